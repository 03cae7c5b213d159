//! Amounts of resources as schedulers and kubelets count them: whole numbers per name, CPUs in thousandths.

use serde_json::Value;
use std::collections::BTreeMap;
use yurt_wire::quantity::Quantity;

/// What a container that asks for nothing counts as when nodes are compared, as in kube-scheduler: 100m and 200Mi.
const ASSUMED: [(&str, i64); 2] = [("cpu", 100), ("memory", 200 << 20)];

/// Amounts by resource name; what is not named is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    /// Of a `ResourceList`; amounts that do not parse count as nothing.
    pub fn of(list: &Value) -> Self {
        let amounts = list.as_object().into_iter().flatten();
        Self(
            amounts
                .filter_map(|(name, amount)| {
                    let quantity = match amount {
                        Value::String(text) => Quantity::parse(text)?,
                        Value::Number(number) => Quantity::parse(&number.to_string())?,
                        _ => return None,
                    };
                    let amount = if name == "cpu" {
                        quantity.milli()
                    } else {
                        quantity.whole()
                    };
                    Some((name.clone(), amount))
                })
                .collect(),
        )
    }

    /// How much there is of a resource; 0 where nothing is said.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Each resource and how much there is.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.change(other, i64::saturating_add);
    }

    /// Takes others away.
    pub fn subtract(&mut self, other: &Self) {
        self.change(other, i64::saturating_sub);
    }

    /// At least as much of everything as `other`.
    fn raise(&mut self, other: &Self) {
        self.change(other, i64::max);
    }

    fn change(&mut self, other: &Self, change: impl Fn(i64, i64) -> i64) {
        for (name, amount) in &other.0 {
            match self.0.get_mut(name) {
                Some(own) => *own = change(*own, *amount),
                None => {
                    self.0.insert(name.clone(), change(0, *amount));
                }
            }
        }
    }

    /// The names of what does not fit into `allocatable` beside `used`, cpu, memory and ephemeral-storage first.
    pub fn missing(&self, allocatable: &Self, used: &Self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .iter()
            .filter(|(name, amount)| {
                *amount > 0 && *amount > allocatable.get(name).saturating_sub(used.get(name))
            })
            .map(|(name, _)| name)
            .collect();
        let common = ["cpu", "memory", "ephemeral-storage"];
        names.sort_by_key(|name| {
            let at = common.iter().position(|common| common == name);
            (at.unwrap_or(common.len()), *name)
        });
        names
    }
}

/// What a pod asks for: its containers together, or what starting needs if that is more, and its overhead.
pub fn requests(pod: &Value) -> Resources {
    total(pod, |container| {
        Resources::of(&container["resources"]["requests"])
    })
}

/// [`requests`], where a container that asks for no CPU or no memory counts as a small one.
pub fn assumed_requests(pod: &Value) -> Resources {
    total(pod, |container| {
        let mut requests = Resources::of(&container["resources"]["requests"]);
        for (name, amount) in ASSUMED {
            requests.0.entry(name.into()).or_insert(amount);
        }
        requests
    })
}

fn total(pod: &Value, of: impl Fn(&Value) -> Resources) -> Resources {
    let spec = &pod["spec"];
    let (mut running, mut peak) = (Resources::default(), Resources::default());
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let mut need = of(container);
        need.add(&running);
        // A sidecar goes on; the others are done when the next starts.
        if container["restartPolicy"] == "Always" {
            running = need.clone();
        }
        peak.raise(&need);
    }
    for container in spec["containers"].as_array().into_iter().flatten() {
        running.add(&of(container));
    }
    running.raise(&peak);
    // Requests of the pod as a whole take the place of the containers' together.
    running
        .0
        .extend(Resources::of(&spec["resources"]["requests"]).0);
    running.add(&Resources::of(&spec["overhead"]));
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(cpu: &str) -> Value {
        json!({"resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn a_pod_needs_what_its_fullest_moment_needs() {
        let mut pod = json!({"spec": {"containers": [container("300m"), container("200m")]}});
        assert_eq!(requests(&pod).get("cpu"), 500);
        pod["spec"]["initContainers"] = json!([container("1"), container("2")]);
        assert_eq!(requests(&pod).get("cpu"), 2000, "one after the other");
        let mut sidecar = container("400m");
        sidecar["restartPolicy"] = "Always".into();
        pod["spec"]["initContainers"] = json!([container("1"), sidecar, container("800m")]);
        assert_eq!(
            requests(&pod).get("cpu"),
            1200,
            "the last one beside the sidecar"
        );
        pod["spec"]["initContainers"][2] = container("0");
        pod["spec"]["overhead"] = json!({"cpu": "50m", "memory": "1Mi"});
        assert_eq!(requests(&pod).get("cpu"), 1050);
        assert_eq!(requests(&pod).get("memory"), 1 << 20);
        pod["spec"]["resources"] = json!({"requests": {"cpu": "3"}});
        assert_eq!(requests(&pod).get("cpu"), 3050, "the pod's own word");
    }

    #[test]
    fn what_asks_for_nothing_counts_as_something_small() {
        let pod = json!({"spec": {"containers": [{}, container("1")]}});
        assert_eq!(requests(&pod).get("memory"), 0);
        let assumed = assumed_requests(&pod);
        assert_eq!(
            (assumed.get("cpu"), assumed.get("memory")),
            (1100, 400 << 20)
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let list = |text: &str| Resources::of(&serde_json::from_str(text).unwrap());
        let allocatable = list(r#"{"cpu": "4", "memory": "8Gi", "example.com/gpu": "1"}"#);
        let used = list(r#"{"cpu": "3500m", "example.com/gpu": 1}"#);
        let wanted = list(r#"{"example.com/gpu": "1", "memory": "9Gi", "cpu": "0.6", "x": "0"}"#);
        assert_eq!(
            wanted.missing(&allocatable, &used),
            ["cpu", "memory", "example.com/gpu"]
        );
        assert!(
            list(r#"{"cpu": "500m"}"#)
                .missing(&allocatable, &used)
                .is_empty()
        );
        assert_eq!(Resources::of(&Value::Null), Resources::default());
    }
}
