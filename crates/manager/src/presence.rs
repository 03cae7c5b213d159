//! Which nodes are there: they hear of what the cloud wants, and do it now. What is deleted or made on others would be missed until they
//! are back.

use crate::{
    Context, Key, Watch,
    collections::{LEASES, NODES},
    condition,
    delegate_lease::{CUT_OFF, EFFECT, NAMESPACE, is_delegated, leases},
    taint,
};
use serde_json::Value;
use std::sync::Arc;
use yurt_controller::Objects;

/// Whether a node is there, by its own word and what others say. Pure.
///
/// One that its pool vouches for is Ready as well; its lease says so at the first renewal by another, the taint only at the fourth.
pub(crate) fn is_here(node: &Value, lease: Option<&Value>) -> bool {
    condition::holds(&node["status"], "Ready")
        && !taint::has(node, CUT_OFF, EFFECT)
        && !lease.is_some_and(is_delegated)
}

/// Nodes and their leases.
#[derive(Clone, Debug)]
pub(crate) struct Presence {
    nodes: Arc<Objects>,
    leases: Arc<Objects>,
}

impl Presence {
    pub(crate) fn of(context: &Context) -> Self {
        Self {
            nodes: context.objects(&NODES),
            leases: context.scoped(&LEASES, &leases()),
        }
    }

    /// Whether a node is there.
    pub(crate) fn has(&self, node: &str) -> bool {
        let lease = self.leases.get(&Key::new(NAMESPACE, node));
        let node = self.nodes.get(&Key::new("", node));
        node.is_some_and(|node| is_here(&node, lease.as_deref()))
    }
}

/// Tells of nodes that come and go, by the keys of whom that concerns. Nodes that are new have nothing yet.
pub(crate) fn watches(
    who: impl Fn(&str) -> Vec<Key> + Clone + Send + Sync + 'static,
) -> [Watch; 2] {
    let of_lease = who.clone();
    let nodes = Watch::of(NODES, move |change| {
        let ready = |node: &Option<Arc<Value>>| Some(is_here(node.as_deref()?, None));
        if change.old.is_none() || ready(&change.old) == ready(&change.new) {
            return Vec::new();
        }
        who(&change.key().name)
    });
    let delegations = Watch::of(LEASES, move |change| {
        let delegated = |lease: &Option<Arc<Value>>| lease.as_deref().is_some_and(is_delegated);
        if delegated(&change.old) == delegated(&change.new) {
            return Vec::new();
        }
        of_lease(&change.key().name)
    });
    [nodes, delegations.scoped(leases())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_api::names::annotations::DELEGATE_HEARTBEAT;

    #[test]
    fn a_node_that_others_vouch_for_is_away_at_once() {
        let mut node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let lease =
            |delegated: &str| json!({"metadata": {"annotations": {DELEGATE_HEARTBEAT: delegated}}});
        assert!(is_here(&node, None));
        assert!(is_here(&node, Some(&lease("false"))));
        assert!(!is_here(&node, Some(&lease("true"))));
        node["spec"]["taints"] = json!([{"key": CUT_OFF, "value": "true", "effect": EFFECT}]);
        assert!(!is_here(&node, None));
        for unready in ["False", "Unknown"] {
            let node = json!({"status": {"conditions": [{"type": "Ready", "status": unready}]}});
            assert!(!is_here(&node, None), "{unready}");
        }
        assert!(!is_here(&json!({}), None));
    }
}
