//! What rules may not do: change which object it is, or take from the kubelet what it cannot live without.

use super::{Action, matching::Match};
use std::collections::BTreeSet;

/// What says which object it is, in which state, and that it goes.
const IDENTITY: [&[&str]; 9] = [
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "uid"],
    &["metadata", "resourceVersion"],
    &["metadata", "generation"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
];

/// Why a path may not be written, if it may not. Its parts are unescaped.
pub(super) fn forbids(path: &[String]) -> Option<String> {
    let touches = |kept: &&&[&str]| path.iter().zip(kept.iter()).all(|(a, b)| a == b);
    let kept = IDENTITY.iter().find(touches)?;
    Some(if path.len() < kept.len() {
        format!(
            "would replace /{} as a whole, and with it /{}, which no rule changes",
            path.join("/"),
            kept.join("/")
        )
    } else {
        format!("/{} is what no rule changes", kept.join("/"))
    })
}

/// Whose own objects are guarded.
const KUBELET: &str = "kubelet";
/// Group, kind, resource; whether only dropping them is harmful; what comes of it.
const VITAL: [(&str, &str, &str, bool, &str); 3] = [
    (
        "",
        "Pod",
        "pods",
        true,
        "it kills pods that it is not shown",
    ),
    (
        "",
        "Node",
        "nodes",
        false,
        "without its Node it is nobody, and it writes back what it reads",
    ),
    (
        "coordination.k8s.io",
        "Lease",
        "leases",
        false,
        "without its lease the node counts as dead, and it writes back what it reads",
    ),
];

/// Why a rule needs `force: true`, if it does.
pub(super) fn needs_force(
    components: Option<&BTreeSet<String>>,
    matching: &Match,
    action: &Action,
) -> Option<String> {
    if components.is_some_and(|names| !names.contains(KUBELET)) {
        return None;
    }
    let harmful = |&&(group, kind, resource, only_drop, _): &&(&str, &str, &str, bool, &str)| {
        (matches!(action, Action::Drop) || !only_drop) && matching.reaches(group, kind, resource)
    };
    let (_, _, resource, _, why) = VITAL.iter().find(harmful)?;
    let does = match action {
        Action::Drop => "hide",
        Action::Patch(_) => "change",
    };
    Some(format!(
        "would {does} {resource} from the kubelet: {why}; name the components it is for, or what it is to match, or say force: true"
    ))
}
