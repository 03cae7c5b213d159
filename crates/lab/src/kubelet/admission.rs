//! Whether a node takes a pod that is bound to it: a kubelet counts for itself.

use serde_json::Value;
use yurt_controller::resources::{Resources, requests};

/// Reason and message with which a kubelet rejects a pod that has no room beside `others`; `None` when it has.
pub(super) fn rejection<'a>(
    pod: &Value,
    allocatable: &Resources,
    others: impl Iterator<Item = &'a Resources>,
) -> Option<(String, String)> {
    let mut used = Resources::default();
    let mut pods = 0;
    for other in others {
        used.add(other);
        pods += 1;
    }
    let rejected = |name: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!(
            "Pod was rejected: Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Some((format!("OutOf{name}"), message))
    };
    let room = allocatable.get("pods");
    if pods >= room {
        return rejected("pods", 1, pods, room);
    }
    let wanted = requests(pod);
    let missing = wanted.missing(allocatable, &used);
    let name = missing.first()?;
    rejected(
        name,
        wanted.get(name),
        used.get(name),
        allocatable.get(name),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_has_no_room_is_rejected_with_the_figures() {
        let allocatable = Resources::of(&json!({"cpu": "4", "pods": "2"}));
        let asking = |cpu: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}});
        let one = requests(&asking("3"));
        let rejected = |cpu: &str, others: &[&Resources]| {
            rejection(&asking(cpu), &allocatable, others.iter().copied())
        };
        assert_eq!(rejected("1", &[&one]), None);
        let (reason, message) = rejected("2", &[&one]).unwrap();
        assert_eq!(reason, "OutOfcpu");
        assert_eq!(
            message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000"
        );
        assert_eq!(rejected("0", &[&one, &one]).unwrap().0, "OutOfpods");
    }
}
