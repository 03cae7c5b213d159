//! What objects use of a `ResourceQuota`: pure functions shared by admission and the quota controller.

use crate::{resources::Resource, selectable};
use serde_json::Value;
use std::collections::BTreeMap;
use yurt_wire::quantity::Quantity;

/// Amounts by resource name (`pods`, `requests.cpu`, `count/deployments.apps`, ...).
pub type Usage = BTreeMap<String, Quantity>;

/// Kinds of the core group that a quota may count by their bare name.
const COUNTED_BY_NAME: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Compute resources that go by their own name and by `requests.<name>`.
const COMPUTE: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// What one object uses, by every name under which a quota may limit it. `now` is in seconds since the epoch: a pod
/// whose grace period is over is not charged any more.
pub fn usage(resource: &Resource, object: &Value, now: i64) -> Usage {
    let mut used = Usage::new();
    used.insert(count_name(resource), Quantity::count(1));
    if !resource.group.is_empty() {
        return used;
    }
    if COUNTED_BY_NAME.contains(&resource.plural.as_str()) {
        used.insert(resource.plural.clone(), Quantity::count(1));
    }
    match resource.plural.as_str() {
        "pods" if !is_over(object, now) => pod(&object["spec"], &mut used),
        "services" => service(&object["spec"], &mut used),
        "persistentvolumeclaims" => claim(object, &mut used),
        _ => {}
    }
    used
}

/// `count/pods`, `count/deployments.apps`: the name under which objects of any kind are counted.
pub fn count_name(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("count/{}", resource.plural)
    } else {
        format!("count/{}.{}", resource.plural, resource.group)
    }
}

/// Whether a resource name of a quota is one that objects of this kind are charged to.
pub fn concerns(resource: &Resource, name: &str) -> bool {
    if name == count_name(resource) {
        return true;
    }
    if !resource.group.is_empty() {
        return false;
    }
    match resource.plural.as_str() {
        "pods" => {
            let base = name
                .strip_prefix("requests.")
                .or_else(|| name.strip_prefix("limits."))
                .unwrap_or(name);
            name == "pods"
                || COMPUTE.contains(&base)
                || base.starts_with("hugepages-")
                || (name.starts_with("requests.") && is_extended(base))
        }
        "services" => matches!(
            name,
            "services" | "services.loadbalancers" | "services.nodeports"
        ),
        "persistentvolumeclaims" => {
            matches!(name, "persistentvolumeclaims" | "requests.storage")
                || name.contains(".storageclass.storage.k8s.io/")
        }
        plural => plural == name && COUNTED_BY_NAME.contains(&plural),
    }
}

/// Whether a quota with these `spec.scopes` and `spec.scopeSelector` covers the object. Scopes are about pods (and
/// claims of a volume attributes class); with any scope, other kinds are not covered.
pub fn in_scope(resource: &Resource, quota: &Value, object: &Value) -> bool {
    let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let plain = scopes.map(|scope| (scope.as_str().unwrap_or_default(), "Exists", &Value::Null));
    let selector = quota["spec"]["scopeSelector"]["matchExpressions"].as_array();
    let selected = selector.into_iter().flatten().map(|expression| {
        (
            expression["scopeName"].as_str().unwrap_or_default(),
            expression["operator"].as_str().unwrap_or_default(),
            &expression["values"],
        )
    });
    plain
        .chain(selected)
        .all(|(scope, operator, values)| has_scope(resource, object, scope, operator, values))
}

fn has_scope(
    resource: &Resource,
    object: &Value,
    scope: &str,
    operator: &str,
    values: &Value,
) -> bool {
    let spec = &object["spec"];
    let named = |name: Option<&str>| {
        let name = name.filter(|name| !name.is_empty());
        let listed = || {
            values
                .as_array()
                .is_some_and(|values| values.iter().any(|value| value.as_str() == name))
        };
        match operator {
            "Exists" => name.is_some(),
            "DoesNotExist" => name.is_none(),
            "In" => name.is_some() && listed(),
            "NotIn" => !listed(),
            _ => false,
        }
    };
    match (resource.plural.as_str(), scope) {
        ("pods", "Terminating") => spec["activeDeadlineSeconds"].as_i64().is_some(),
        ("pods", "NotTerminating") => spec["activeDeadlineSeconds"].as_i64().is_none(),
        ("pods", "BestEffort") => is_best_effort(spec),
        ("pods", "NotBestEffort") => !is_best_effort(spec),
        ("pods", "PriorityClass") => named(spec["priorityClassName"].as_str()),
        ("pods", "CrossNamespacePodAffinity") => crosses_namespaces(spec),
        ("persistentvolumeclaims", "VolumeAttributesClass") => {
            named(spec["volumeAttributesClassName"].as_str())
        }
        _ => false,
    }
}

/// The containers of a pod that do not say what a quota asks for: `cpu for: a,b; memory for: a`. A quota on computing
/// forbids pods whose use cannot be known.
pub fn unspecified(resource: &Resource, quota_hard: &Value, object: &Value) -> Option<String> {
    if !(resource.group.is_empty() && resource.plural == "pods") {
        return None;
    }
    let spec = &object["spec"];
    let mut missing: Vec<String> = Vec::new();
    for name in quota_hard.as_object().into_iter().flatten().map(|(k, _)| k) {
        let (list, base) = match name.split_once('.') {
            Some(("limits", base)) => ("limits", base),
            Some(("requests", base)) => ("requests", base),
            _ => ("requests", name.as_str()),
        };
        if !COMPUTE.contains(&base) || !spec["resources"][list][base].is_null() {
            continue;
        }
        let mut silent: Vec<&str> = containers(spec)
            .filter(|(_, c)| c["resources"][list][base].is_null())
            .filter_map(|(_, c)| c["name"].as_str())
            .collect();
        if !silent.is_empty() {
            silent.sort_unstable();
            missing.push(format!("{name} for: {}", silent.join(",")));
        }
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// Terminated pods, and pods whose node did not stop them in time, use nothing.
fn is_over(pod: &Value, now: i64) -> bool {
    if matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    ) {
        return true;
    }
    let metadata = &pod["metadata"];
    let deadline = metadata["deletionTimestamp"]
        .as_str()
        .and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let grace = metadata["deletionGracePeriodSeconds"].as_i64();
    match (deadline, grace) {
        (Some(deadline), Some(grace)) => now > deadline.as_second().saturating_add(grace),
        _ => false,
    }
}

fn containers(spec: &Value) -> impl Iterator<Item = (bool, &Value)> {
    let list = |field: &str| spec[field].as_array().into_iter().flatten();
    let init = list("initContainers").map(|container| (true, container));
    init.chain(list("containers").map(|container| (false, container)))
}

/// The sum of a pod's resource list: containers run together, init containers one after the other beside the restartable
/// ones before them; the pod's own figures overrule; overhead comes on top.
pub fn pod_resources(spec: &Value, list: &str) -> Usage {
    let read = |amounts: &Value| -> Usage {
        amounts
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, amount)| {
                let amount = match amount {
                    Value::String(text) => Quantity::parse(text)?,
                    other => Quantity::parse(&other.to_string())?,
                };
                Some((name.clone(), amount))
            })
            .collect()
    };
    let add = |to: &mut Usage, amounts: &Usage| {
        for (name, amount) in amounts {
            let sum = to.entry(name.clone()).or_insert(Quantity::ZERO);
            *sum = *sum + *amount;
        }
    };
    let at_least = |to: &mut Usage, amounts: &Usage| {
        for (name, amount) in amounts {
            let most = to.entry(name.clone()).or_insert(*amount);
            *most = most.max(*amount);
        }
    };
    let (mut together, mut peak, mut beside) = (Usage::new(), Usage::new(), Usage::new());
    for (is_init, container) in containers(spec) {
        let own = read(&container["resources"][list]);
        if !is_init {
            add(&mut together, &own);
        } else if container["restartPolicy"] == "Always" {
            add(&mut together, &own);
            add(&mut beside, &own);
            at_least(&mut peak, &beside);
        } else {
            let mut now = own;
            add(&mut now, &beside);
            at_least(&mut peak, &now);
        }
    }
    at_least(&mut together, &peak);
    for (name, amount) in read(&spec["resources"][list]) {
        together.insert(name, amount);
    }
    for (name, amount) in read(&spec["overhead"]) {
        // A limit that is not there is not made by the overhead.
        if list == "requests" || together.contains_key(&name) {
            let sum = together.entry(name).or_insert(Quantity::ZERO);
            *sum = *sum + amount;
        }
    }
    together
}

/// Extended resources have a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

fn pod(spec: &Value, used: &mut Usage) {
    used.insert("pods".into(), Quantity::count(1));
    for (name, amount) in pod_resources(spec, "requests") {
        if COMPUTE.contains(&name.as_str()) || name.starts_with("hugepages-") {
            used.insert(format!("requests.{name}"), amount);
            used.insert(name, amount);
        } else if is_extended(&name) {
            used.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in pod_resources(spec, "limits") {
        if COMPUTE.contains(&name.as_str()) {
            used.insert(format!("limits.{name}"), amount);
        }
    }
}

fn service(spec: &Value, used: &mut Usage) {
    let ports = spec["ports"].as_array().map_or(0, Vec::len);
    let ports = Quantity::count(u32::try_from(ports).unwrap_or(u32::MAX));
    match spec["type"].as_str() {
        Some("NodePort") => {
            used.insert("services.nodeports".into(), ports);
        }
        Some("LoadBalancer") => {
            used.insert("services.loadbalancers".into(), Quantity::count(1));
            let allocates = spec["allocateLoadBalancerNodePorts"] != false;
            let chosen = spec["ports"].as_array().into_iter().flatten();
            let chosen = chosen.filter(|p| p["nodePort"].as_i64().is_some_and(|p| p != 0));
            let chosen = u32::try_from(chosen.count()).unwrap_or(u32::MAX);
            let ports = if allocates {
                ports
            } else {
                Quantity::count(chosen)
            };
            used.insert("services.nodeports".into(), ports);
        }
        _ => {}
    }
}

fn claim(claim: &Value, used: &mut Usage) {
    let annotated = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"]
        .as_str()
        .filter(|class| !class.is_empty());
    let class = annotated.or(claim["spec"]["storageClassName"].as_str());
    let by_class = |name: &str| {
        class
            .filter(|class| !class.is_empty())
            .map(|class| format!("{class}.storageclass.storage.k8s.io/{name}"))
    };
    if let Some(name) = by_class("persistentvolumeclaims") {
        used.insert(name, Quantity::count(1));
    }
    let asked = selectable::at(claim, "spec.resources.requests.storage").and_then(Value::as_str);
    if let Some(amount) = asked.and_then(Quantity::parse) {
        used.insert("requests.storage".into(), amount);
        if let Some(name) = by_class("requests.storage") {
            used.insert(name, amount);
        }
    }
}

fn is_best_effort(spec: &Value) -> bool {
    containers(spec)
        .map(|(_, container)| &container["resources"])
        .chain([&spec["resources"]])
        .all(|resources| {
            ["requests", "limits"].iter().all(|list| {
                ["cpu", "memory"]
                    .iter()
                    .all(|n| resources[*list][*n].is_null())
            })
        })
}

fn crosses_namespaces(spec: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &spec["affinity"][*kind];
        let list = |field: &str| affinity[field].as_array().into_iter().flatten();
        let required = list("requiredDuringSchedulingIgnoredDuringExecution");
        let preferred = list("preferredDuringSchedulingIgnoredDuringExecution");
        required
            .chain(preferred.map(|term| &term["podAffinityTerm"]))
            .any(|term| {
                term["namespaces"].as_array().is_some_and(|n| !n.is_empty())
                    || term["namespaceSelector"].is_object()
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Catalog;
    use serde_json::json;

    fn used(group: &str, plural: &str, object: &Value) -> BTreeMap<String, String> {
        let catalog = Catalog::new(&[]);
        let resource = catalog.find(group, "v1", plural).expect("served");
        usage(resource, object, 1_000)
            .into_iter()
            .map(|(name, amount)| (name, amount.to_string()))
            .collect()
    }

    fn expect(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned()))
            .collect()
    }

    #[test]
    fn a_pod_uses_what_runs_at_once() {
        let mut pod = json!({"spec": {
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}}}],
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m", "example.com/gpu": "1"}, "limits": {"cpu": "1"}}},
                {"name": "b", "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}}}]}});
        assert_eq!(
            used("", "pods", &pod),
            expect(&[
                ("count/pods", "1"),
                ("cpu", "2100m"),
                ("limits.cpu", "1"),
                ("memory", "1Gi"),
                ("pods", "1"),
                ("requests.cpu", "2100m"),
                ("requests.example.com/gpu", "1"),
                ("requests.memory", "1Gi"),
            ])
        );
        pod["status"] = json!({"phase": "Failed"});
        assert_eq!(used("", "pods", &pod), expect(&[("count/pods", "1")]));
    }

    #[test]
    fn services_claims_and_others_are_counted() {
        let service =
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(
            used("", "services", &service),
            expect(&[
                ("count/services", "1"),
                ("services", "1"),
                ("services.loadbalancers", "1"),
                ("services.nodeports", "2"),
            ])
        );
        let claim = json!({"metadata": {}, "spec": {"storageClassName": "gold",
            "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            used("", "persistentvolumeclaims", &claim),
            expect(&[
                ("count/persistentvolumeclaims", "1"),
                (
                    "gold.storageclass.storage.k8s.io/persistentvolumeclaims",
                    "1"
                ),
                ("gold.storageclass.storage.k8s.io/requests.storage", "1Gi"),
                ("persistentvolumeclaims", "1"),
                ("requests.storage", "1Gi"),
            ])
        );
        assert_eq!(
            used("apps", "deployments", &json!({})),
            expect(&[("count/deployments.apps", "1")])
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let catalog = Catalog::new(&[]);
        let pods = catalog.find("", "v1", "pods").expect("served");
        let configs = catalog.find("", "v1", "configmaps").expect("served");
        let pod = json!({"spec": {"priorityClassName": "high", "containers": [{"name": "a"}]}});
        let scoped = |scopes: Value| json!({"spec": {"scopes": scopes}});
        assert!(in_scope(
            pods,
            &scoped(json!(["BestEffort", "NotTerminating"])),
            &pod
        ));
        assert!(!in_scope(pods, &scoped(json!(["NotBestEffort"])), &pod));
        assert!(!in_scope(
            configs,
            &scoped(json!(["BestEffort"])),
            &json!({})
        ));
        let selected = |operator: &str, values: Value| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}}})
        };
        assert!(in_scope(pods, &selected("In", json!(["high"])), &pod));
        assert!(!in_scope(pods, &selected("NotIn", json!(["high"])), &pod));
        assert!(in_scope(pods, &selected("Exists", json!([])), &pod));
    }

    #[test]
    fn a_quota_on_computing_wants_it_specified() {
        let catalog = Catalog::new(&[]);
        let pods = catalog.find("", "v1", "pods").expect("served");
        let pod = json!({"spec": {"containers": [
            {"name": "b"}, {"name": "a", "resources": {"limits": {"memory": "1"}}}]}});
        let hard = json!({"cpu": "1", "limits.memory": "1Gi", "pods": "3"});
        assert_eq!(
            unspecified(pods, &hard, &pod).as_deref(),
            Some("cpu for: a,b; limits.memory for: b")
        );
        assert_eq!(unspecified(pods, &json!({"pods": "3"}), &pod), None);
    }
}
