//! `LimitRange`: what pods and claims of a namespace get when they say nothing, and what they may ask for.

use crate::{
    meta, quota,
    registry::{Registry, Reply, Target},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};
use yurt_wire::{Status, quantity::Quantity};

static LIMIT_RANGES: LazyLock<Arc<str>> = LazyLock::new(|| "/limitranges".into());

/// Says what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

type Amounts = BTreeMap<String, Quantity>;

fn amounts(value: &Value) -> Amounts {
    let entries = value.as_object().into_iter().flatten();
    entries
        .filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(amount.as_str()?)?)))
        .collect()
}

fn list<'v>(value: &'v Value, field: &str) -> impl Iterator<Item = &'v Value> {
    value[field].as_array().into_iter().flatten()
}

impl Registry {
    fn limit_ranges(&self, target: &Target) -> Vec<Value> {
        let limited = target.resource.group.is_empty()
            && target.subresource.is_empty()
            && matches!(
                target.resource.plural.as_str(),
                "pods" | "persistentvolumeclaims"
            );
        if !limited {
            return Vec::new();
        }
        let (ranges, _) = self.storage.list(&LIMIT_RANGES, &target.namespace, None);
        ranges.iter().map(|range| range.value()).collect()
    }

    /// Fills in what a new pod leaves out.
    pub(crate) fn apply_limit_ranges(&self, target: &Target, object: &mut Value) {
        if target.resource.plural == "pods" {
            for range in self.limit_ranges(target) {
                fill(&range, object);
            }
        }
    }

    /// Refuses what asks for too much or too little.
    pub(crate) fn check_limit_ranges(&self, target: &Target, object: &Value) -> Reply<()> {
        for range in self.limit_ranges(target) {
            let faults = match target.resource.plural.as_str() {
                "pods" => pod_faults(&range, &object["spec"]),
                _ => claim_faults(&range, object),
            };
            let why = match faults.as_slice() {
                [] => continue,
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            };
            return Err(Box::new(Status::forbidden(
                "",
                &target.resource.plural,
                meta::name(object),
                &why,
            )));
        }
        Ok(())
    }
}

/// Sets the defaults of a range in every container that does not say.
fn fill(range: &Value, pod: &mut Value) {
    let mut said = Vec::new();
    for item in list(&range["spec"], "limits").filter(|item| item["type"] == "Container") {
        for (field, what) in [
            ("containers", "container"),
            ("initContainers", "init container"),
        ] {
            let Some(Value::Array(containers)) = pod["spec"].get_mut(field) else {
                continue;
            };
            for container in containers {
                let name = container["name"].as_str().unwrap_or_default().to_owned();
                for (source, into, word) in [
                    ("defaultRequest", "requests", "request"),
                    ("default", "limits", "limit"),
                ] {
                    let mut set = Vec::new();
                    for (resource, amount) in item[source].as_object().into_iter().flatten() {
                        if container["resources"][into][resource].is_null() {
                            container["resources"][into][resource] = amount.clone();
                            set.push(resource.clone());
                        }
                    }
                    if !set.is_empty() {
                        said.push(format!("{} {word} for {what} {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if !said.is_empty() {
        let text = format!("LimitRanger plugin set: {}", said.join("; "));
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        pod["metadata"]["annotations"][ANNOTATION] = text.into();
    }
}

fn pod_faults(range: &Value, spec: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for item in list(&range["spec"], "limits") {
        match item["type"].as_str() {
            Some("Container") => {
                for container in list(spec, "containers").chain(list(spec, "initContainers")) {
                    let requests = amounts(&container["resources"]["requests"]);
                    let limits = amounts(&container["resources"]["limits"]);
                    check(item, "Container", &requests, &limits, &mut faults);
                }
            }
            Some("Pod") => {
                let requests = quota::pod_resources(spec, "requests");
                let limits = quota::pod_resources(spec, "limits");
                check(item, "Pod", &requests, &limits, &mut faults);
            }
            _ => {}
        }
    }
    faults
}

fn claim_faults(range: &Value, claim: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    for item in list(&range["spec"], "limits") {
        if item["type"] == "PersistentVolumeClaim" {
            // A claim has no limit: what it requests is what it gets.
            let kind = "PersistentVolumeClaim";
            least(item, kind, &requests, &Amounts::new(), &mut faults);
            for (name, most) in amounts(&item["max"]) {
                if let Some(asked) = requests.get(&name).filter(|asked| **asked > most) {
                    faults.push(format!(
                        "maximum {name} usage per {kind} is {most}, but request is {asked}"
                    ));
                }
            }
        }
    }
    faults
}

fn check(item: &Value, kind: &str, requests: &Amounts, limits: &Amounts, faults: &mut Vec<String>) {
    least(item, kind, requests, limits, faults);
    for (name, most) in amounts(&item["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => faults.push(format!("{head}.  No limit is specified")),
            (Some(limit), _) if *limit > most => {
                faults.push(format!("{head}, but limit is {limit}"));
            }
            (_, Some(request)) if *request > most => {
                faults.push(format!("{head}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, most) in amounts(&item["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {kind} is {most}");
        let given = |amounts: &Amounts| amounts.get(&name).copied().filter(|a| !a.is_zero());
        match (given(requests), given(limits)) {
            (None, _) => faults.push(format!(
                "{head}, but no request is specified or request is 0"
            )),
            (_, None) => faults.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.ratio(request);
                if ratio > most.ratio(Quantity::count(1)) {
                    faults.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn least(item: &Value, kind: &str, requests: &Amounts, limits: &Amounts, faults: &mut Vec<String>) {
    for (name, least) in amounts(&item["min"]) {
        let head = format!("minimum {name} usage per {kind} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => faults.push(format!("{head}.  No request is specified")),
            (Some(request), _) if *request < least => {
                faults.push(format!("{head}, but request is {request}"));
            }
            (_, Some(limit)) if *limit < least => {
                faults.push(format!("{head}, but limit is {limit}"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    #[test]
    fn silent_containers_get_the_defaults() {
        let range = range(
            json!({"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"},
            "defaultRequest": {"cpu": "100m"}}),
        );
        let mut pod = json!({"metadata": {}, "spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}]}});
        fill(&range, &mut pod);
        let containers = &pod["spec"]["containers"];
        assert_eq!(
            containers[0]["resources"],
            json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            containers[1]["resources"]["limits"],
            json!({"cpu": "1", "memory": "1Gi"})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; memory limit for container b"
        );
    }

    #[test]
    fn bounds_are_held() {
        let spec = json!({"containers": [{"name": "a", "resources": {
            "requests": {"cpu": "100m"}, "limits": {"cpu": "2"}}}]});
        let faults = |item: Value| pod_faults(&range(item), &spec);
        assert_eq!(
            faults(json!({"type": "Container", "max": {"cpu": "1"}})),
            ["maximum cpu usage per Container is 1, but limit is 2"]
        );
        assert_eq!(
            faults(json!({"type": "Container", "min": {"cpu": "200m"}})),
            ["minimum cpu usage per Container is 200m, but request is 100m"]
        );
        assert_eq!(
            faults(json!({"type": "Pod", "max": {"memory": "1Gi"}})),
            ["maximum memory usage per Pod is 1Gi.  No limit is specified"]
        );
        assert_eq!(
            faults(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "4"}})),
            ["cpu max limit to request ratio per Container is 4, but provided ratio is 20.000000"]
        );
        assert!(
            faults(json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "100m"}}))
                .is_empty()
        );
        let claim = json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}});
        let item = json!({"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}});
        assert_eq!(
            claim_faults(&range(item), &claim),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 5Gi"]
        );
    }
}
