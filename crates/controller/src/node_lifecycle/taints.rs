//! Taints by which the state of a node acts on pods.

use super::health::Status;
pub(super) use crate::taint::{NOT_READY, UNREACHABLE, has, write};
use crate::{
    condition,
    pod::stamp,
    taint::{self, UNSCHEDULABLE, is, taints},
};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Condition, status, key of the taint that keeps pods from being scheduled.
const CONDITIONS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", taint::MEMORY_PRESSURE),
    ("DiskPressure", "True", taint::DISK_PRESSURE),
    ("PIDPressure", "True", taint::PID_PRESSURE),
    ("NetworkUnavailable", "True", taint::NETWORK_UNAVAILABLE),
];

/// The node's taints with the NoSchedule taints that its conditions call for; `None` when they are as they should be. Pure.
pub(super) fn no_schedule(node: &Value, now: Timestamp) -> Option<Vec<Value>> {
    let calls = |(kind, status, key): &(&'static str, &str, &'static str)| {
        let found = condition::find(&node["status"], kind)?;
        (found["status"] == *status).then_some(*key)
    };
    let mut wanted: Vec<&str> = CONDITIONS.iter().filter_map(calls).collect();
    if node["spec"]["unschedulable"] == true {
        wanted.push(UNSCHEDULABLE);
    }
    let ours = |taint: &Value| {
        taint["effect"] == "NoSchedule"
            && (taint["key"] == UNSCHEDULABLE
                || CONDITIONS.iter().any(|(_, _, key)| taint["key"] == *key))
    };
    let mut left = taints(node);
    left.retain(|taint| !ours(taint) || wanted.iter().any(|key| taint["key"] == *key));
    for key in wanted {
        if !has(node, key, "NoSchedule") {
            left.push(json!({"key": key, "effect": "NoSchedule", "timeAdded": stamp(now)}));
        }
    }
    (left != taints(node)).then_some(left)
}

/// The node's taints with the NoExecute taint that its readiness calls for: one of the two, or none. Pure.
pub(super) fn no_execute(node: &Value, ready: Status, now: Timestamp) -> Option<Vec<Value>> {
    let wanted = match ready {
        Status::True => None,
        Status::False => Some(NOT_READY),
        Status::Unknown => Some(UNREACHABLE),
    };
    let mut left = taints(node);
    left.retain(|taint| {
        [NOT_READY, UNREACHABLE]
            .iter()
            .all(|key| wanted == Some(*key) || !is(taint, key, "NoExecute"))
    });
    if let Some(key) = wanted
        && !has(node, key, "NoExecute")
    {
        left.push(json!({"key": key, "effect": "NoExecute", "timeAdded": stamp(now)}));
    }
    (left != taints(node)).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(0).expect("a time")
    }

    #[test]
    fn conditions_and_cordons_keep_pods_from_being_scheduled() {
        let node = |spec: Value, conditions: Value| json!({"spec": spec, "status": {"conditions": conditions}});
        let bad = node(
            json!({"unschedulable": true, "taints": [{"key": "mine", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"},
                {"key": NOT_READY, "effect": "NoExecute"}]}),
            json!([{"type": "Ready", "status": "False"}, {"type": "MemoryPressure", "status": "False"}, {"type": "DiskPressure", "status": "True"}]),
        );
        let taints = no_schedule(&bad, now()).expect("changes");
        let shapes: Vec<(&str, &str)> = taints
            .iter()
            .map(|t| {
                (
                    t["key"].as_str().unwrap_or_default(),
                    t["effect"].as_str().unwrap_or_default(),
                )
            })
            .collect();
        assert_eq!(
            shapes,
            [
                ("mine", "NoSchedule"),
                (NOT_READY, "NoExecute"),
                (NOT_READY, "NoSchedule"),
                ("node.kubernetes.io/disk-pressure", "NoSchedule"),
                (UNSCHEDULABLE, "NoSchedule"),
            ]
        );
        assert_eq!(taints[2]["timeAdded"], "1970-01-01T00:00:00Z");
        let mut settled = bad;
        settled["spec"]["taints"] = taints.into();
        assert_eq!(no_schedule(&settled, now()), None);
        let well = node(json!({}), json!([{"type": "Ready", "status": "True"}]));
        assert_eq!(no_schedule(&well, now()), None);
    }

    #[test]
    fn not_ready_and_unreachable_exclude_each_other() {
        let node = json!({"spec": {"taints": [{"key": NOT_READY, "effect": "NoExecute", "timeAdded": "t"}, {"key": NOT_READY, "effect": "NoSchedule"}]}});
        assert_eq!(no_execute(&node, Status::False, now()), None);
        let swapped = no_execute(&node, Status::Unknown, now()).expect("changes");
        let keys: Vec<&Value> = swapped.iter().map(|t| &t["key"]).collect();
        assert_eq!(keys, [NOT_READY, UNREACHABLE]);
        assert_eq!(
            swapped[0]["effect"], "NoSchedule",
            "the other effect is not touched"
        );
        let freed = no_execute(&node, Status::True, now()).expect("changes");
        assert_eq!(freed.len(), 1);
    }
}
