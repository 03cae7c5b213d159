//! Endpoints and EndpointSlices: pods on an autonomous node that is cut off go on serving the others of their pool.
//!
//! When the cloud hears nothing of a node, it takes the pods of the node for not ready. An autonomous node promises that they go
//! on, so their endpoints stay ready, as long as something speaks for it: the leader of the pool that renews the lease of the node
//! ([`taints::UNSCHEDULABLE`]), or, where nobody could, the time that the node was given. Endpoints of a dead node do not stay for
//! ever. And only what was ready when the node was last heard of: a pod that fails by itself is not ready.

use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use yurt_api::{autonomy::Autonomy, names::taints};
use yurt_controller::{
    Key, condition,
    fields::{items, text},
    pod, taint,
};

/// How long a leader has to notice that a node is cut off and speak for it: its lease must end, and be renewed by others.
const NOTICE: Duration = Duration::from_secs(5 * 60);

/// Whether the pods of a node are to be taken for alive although the cloud does not hear of them. `witness`: there is a leader of
/// its pool that the cloud hears of, and that would speak for the node if it lived.
pub(super) fn lives(node: &Value, witness: bool, now: Timestamp) -> bool {
    let promised = match Autonomy::of(node) {
        Autonomy::Off(_) => return false,
        Autonomy::For(time) => Some(time),
        Autonomy::Unlimited => None,
    };
    if taint::has(node, taints::UNSCHEDULABLE, "NoSchedule") {
        return true;
    }
    let status = &node["status"];
    let Some(ready) = condition::find(status, "Ready") else {
        return false;
    };
    if ready["status"] == "True" {
        // The node speaks for itself: the pod is not ready.
        return false;
    }
    let Some(since) = pod::instant(&ready["lastTransitionTime"]) else {
        return false;
    };
    let silent = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    match promised {
        Some(time) => silent < time,
        None => !witness || silent < NOTICE,
    }
}

/// Whether the cloud hears of a leader of the pool other than this node. `is_ready` says it of a node by its name.
pub(super) fn has_witness(pool: &Value, node: &str, is_ready: impl Fn(&str) -> bool) -> bool {
    let mut leaders =
        items(&pool["status"]["leaderEndpoints"]).filter_map(|leader| leader["nodeName"].as_str());
    pool["spec"]["enableLeaderElection"] == true
        && leaders.any(|leader| leader != node && is_ready(leader))
}

/// Whether a pod was ready when its node was last heard of. That the node is silent changes its condition `Ready`, and no other.
pub(super) fn was_ready(pod: &Value) -> bool {
    let status = &pod["status"];
    let containers = match condition::find(status, "ContainersReady") {
        Some(condition) => condition["status"] == "True",
        None => !items(&status["containerStatuses"])
            .any(|container| container["state"]["waiting"]["reason"] == "CrashLoopBackOff"),
    };
    let mut gates = items(&pod["spec"]["readinessGates"]);
    containers
        && pod::phase(pod) == "Running"
        && !pod::is_deleting(pod)
        && gates.all(|gate| condition::holds(status, &text(&gate["conditionType"])))
}

/// The pod and node of an address.
fn target(address: &Value) -> Option<(Key, String)> {
    let node = address["nodeName"].as_str().filter(|n| !n.is_empty())?;
    let target = &address["targetRef"];
    let (namespace, name) = (target["namespace"].as_str()?, target["name"].as_str()?);
    let is_pod = target["kind"] == "Pod";
    is_pod.then(|| (Key::new(namespace, name), node.to_owned()))
}

/// Whether an endpoint of a slice is one that may be taken for ready.
fn is_silent(endpoint: &Value) -> bool {
    endpoint["conditions"]["ready"] == false && endpoint["conditions"]["terminating"] != true
}

/// The pods that are not ready by an Endpoints or EndpointSlice, and their nodes.
pub(super) fn silent(object: &Value) -> BTreeMap<Key, String> {
    let addresses = items(&object["subsets"]).flat_map(|s| items(&s["notReadyAddresses"]));
    let endpoints = items(&object["endpoints"]).filter(|endpoint| is_silent(endpoint));
    addresses.chain(endpoints).filter_map(target).collect()
}

/// The pods that are ready by an Endpoints or EndpointSlice.
pub(super) fn ready(object: &Value) -> BTreeSet<Key> {
    let addresses = items(&object["subsets"]).flat_map(|s| items(&s["addresses"]));
    let endpoints =
        items(&object["endpoints"]).filter(|endpoint| endpoint["conditions"]["ready"] != false);
    let targets = addresses.chain(endpoints).filter_map(target);
    targets.map(|(pod, _)| pod).collect()
}

/// The object with these pods taken for ready.
pub(super) fn completed(mut object: Value, alive: &BTreeSet<Key>) -> Value {
    let is_alive = |address: &Value| target(address).is_some_and(|(pod, _)| alive.contains(&pod));
    let subsets = object.get_mut("subsets").and_then(Value::as_array_mut);
    for subset in subsets
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        let Some(Value::Array(silent)) = subset.get_mut("notReadyAddresses") else {
            continue;
        };
        let moved: Vec<Value> = silent.extract_if(.., |address| is_alive(address)).collect();
        if silent.is_empty() {
            subset.remove("notReadyAddresses");
        }
        if moved.is_empty() {
            continue;
        }
        match subset.entry("addresses").or_insert(Value::Null) {
            Value::Array(ready) => ready.extend(moved),
            other => *other = moved.into(),
        }
    }
    let endpoints = object.get_mut("endpoints").and_then(Value::as_array_mut);
    for endpoint in endpoints.into_iter().flatten() {
        if !is_silent(endpoint) || !is_alive(endpoint) {
            continue;
        }
        if let Some(Value::Object(conditions)) = endpoint.get_mut("conditions") {
            conditions.insert("ready".into(), true.into());
            if conditions.get("serving").is_some_and(Value::is_boolean) {
                conditions.insert("serving".into(), true.into());
            }
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_api::names::annotations;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// A node that is not ready since 1970.
    fn node(annotations: Value, ready: &str) -> Value {
        json!({"metadata": {"name": "n1", "annotations": annotations}, "status": {"conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:00:00Z"}]}})
    }

    #[test]
    fn who_speaks_for_a_node() {
        let forever = json!({annotations::AUTONOMY: "true"});
        let hour = json!({annotations::AUTONOMY_DURATION: "1h"});
        for (annotations, ready, witness, second, alive) in [
            (json!({}), "Unknown", false, 10, false),
            (forever.clone(), "True", false, 10, false),
            (forever.clone(), "Unknown", false, 10, true),
            (forever.clone(), "False", false, 1_000_000, true),
            (forever.clone(), "Unknown", true, 299, true),
            (forever.clone(), "Unknown", true, 301, false),
            (hour.clone(), "Unknown", false, 3599, true),
            (hour.clone(), "Unknown", true, 3599, true),
            (hour.clone(), "Unknown", false, 3601, false),
            (
                json!({annotations::AUTONOMY_DURATION: "0"}),
                "Unknown",
                false,
                1_000_000,
                true,
            ),
            (
                json!({annotations::BINDING: "true"}),
                "Unknown",
                true,
                1_000_000,
                false,
            ),
            (
                json!({annotations::AUTONOMY_DURATION: "soon"}),
                "Unknown",
                false,
                1,
                false,
            ),
        ] {
            let mut silent = node(annotations.clone(), ready);
            assert_eq!(
                lives(&silent, witness, at(second)),
                alive,
                "{annotations} {ready} {witness} {second}"
            );
            // The leader of the pool renews its lease.
            silent["spec"]["taints"] =
                json!([{"key": taints::UNSCHEDULABLE, "effect": "NoSchedule", "value": "true"}]);
            let promised = Autonomy::of(&silent).is_on();
            assert_eq!(lives(&silent, true, at(9_000_000)), promised);
        }
        // The clock went back.
        assert!(lives(
            &node(json!({annotations::AUTONOMY_DURATION: "1h"}), "Unknown"),
            false,
            at(-10)
        ));
        assert!(!lives(
            &json!({"metadata": {"annotations": {annotations::AUTONOMY: "true"}}}),
            false,
            at(0)
        ));
    }

    #[test]
    fn a_leader_that_is_heard_of_is_a_witness() {
        let pool = |enabled: bool| {
            json!({"spec": {"enableLeaderElection": enabled},
            "status": {"leaderEndpoints": [{"nodeName": "a"}, {"nodeName": "b"}]}})
        };
        let heard = |name: &str| name == "a";
        assert!(has_witness(&pool(true), "n1", heard));
        assert!(has_witness(&pool(true), "b", heard));
        assert!(!has_witness(&pool(true), "a", heard), "nobody is his own");
        assert!(
            !has_witness(&pool(true), "n1", |_| false),
            "the whole pool is cut off"
        );
        assert!(!has_witness(&pool(false), "n1", heard));
        assert!(!has_witness(&json!({}), "n1", heard));
    }

    fn running(conditions: Value) -> Value {
        json!({"metadata": {"name": "p"}, "status": {"phase": "Running", "conditions": conditions}})
    }

    #[test]
    fn only_what_was_ready_is_kept() {
        let containers = |status: &str| json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": status}]);
        assert!(was_ready(&running(containers("True"))));
        assert!(!was_ready(&running(containers("False"))));
        assert!(was_ready(&running(json!([]))));
        let mut crashing = running(json!([]));
        crashing["status"]["containerStatuses"] =
            json!([{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
        assert!(!was_ready(&crashing));
        let mut gated = running(containers("True"));
        gated["spec"]["readinessGates"] = json!([{"conditionType": "lb"}]);
        assert!(!was_ready(&gated));
        gated["status"]["conditions"]
            .as_array_mut()
            .expect("a list")
            .push(json!({"type": "lb", "status": "True"}));
        assert!(was_ready(&gated));
        let mut other = running(containers("True"));
        other["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(!was_ready(&other));
        let mut pending = running(containers("True"));
        pending["status"]["phase"] = "Pending".into();
        assert!(!was_ready(&pending));
    }

    fn address(pod: &str) -> Value {
        json!({"ip": "10.0.0.1", "nodeName": "n1", "targetRef": {"kind": "Pod", "namespace": "d", "name": pod}})
    }

    #[test]
    fn addresses_move_to_the_ready_ones() {
        let alive = BTreeSet::from([Key::new("d", "a")]);
        let endpoints = json!({"subsets": [
            {"notReadyAddresses": [address("a"), address("b"), {"ip": "10.0.0.9"}], "ports": [{"port": 80}]},
            {"addresses": [address("c")], "notReadyAddresses": [address("a")]}, "odd"]});
        assert_eq!(silent(&endpoints).len(), 2);
        assert_eq!(ready(&endpoints), BTreeSet::from([Key::new("d", "c")]));
        assert_eq!(
            completed(endpoints.clone(), &alive),
            json!({"subsets": [
                {"addresses": [address("a")], "notReadyAddresses": [address("b"), {"ip": "10.0.0.9"}], "ports": [{"port": 80}]},
                {"addresses": [address("c"), address("a")]}, "odd"]})
        );
        assert_eq!(completed(endpoints.clone(), &BTreeSet::new()), endpoints);
    }

    #[test]
    fn endpoints_of_a_slice_become_ready() {
        let alive = BTreeSet::from([Key::new("d", "a")]);
        let endpoint = |pod: &str, conditions: Value| {
            let mut endpoint = address(pod);
            endpoint["conditions"] = conditions;
            endpoint
        };
        let slice = json!({"endpoints": [
            endpoint("a", json!({"ready": false, "serving": false, "terminating": false})),
            endpoint("a", json!({"ready": false})),
            endpoint("a", json!({"ready": false, "serving": true, "terminating": true})),
            endpoint("b", json!({"ready": false})),
            {"addresses": ["10.0.0.1"], "conditions": {"ready": false}}, 7]});
        let made = completed(slice.clone(), &alive);
        assert_eq!(silent(&slice).len(), 2);
        assert_eq!(ready(&made), alive);
        let conditions = |i: usize| made["endpoints"][i]["conditions"].clone();
        assert_eq!(
            conditions(0),
            json!({"ready": true, "serving": true, "terminating": false})
        );
        assert_eq!(conditions(1), json!({"ready": true}));
        for same in 2..6 {
            assert_eq!(made["endpoints"][same], slice["endpoints"][same]);
        }
        for odd in [json!({}), json!({"endpoints": 1, "subsets": "x"})] {
            assert_eq!(completed(odd.clone(), &alive), odd);
        }
    }
}
