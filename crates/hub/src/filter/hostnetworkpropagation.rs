//! `hostnetworkpropagation`: pods of a pool without a network of its own are on their node's (NodePool `spec.hostNetwork`; OpenYurt's hub
//! did that up to v1.4, its webhooks do it since).

use super::{Context, Filter, Inputs, Scope, Verdict};
use serde_json::Value;
use yurt_wire::{Object, ObjectMeta, Verb};

/// Shows pods on the network of their node.
#[derive(Debug)]
pub(super) struct HostNetworkPropagation;

impl Filter for HostNetworkPropagation {
    fn name(&self) -> &'static str {
        "hostnetworkpropagation"
    }

    fn scope(&self) -> Scope {
        let verbs = [Verb::Get, Verb::List, Verb::Watch, Verb::Patch];
        Scope::of(&["kubelet"], &[("", "pods")], &verbs)
    }

    fn inputs(&self) -> Inputs {
        Inputs::POOL
    }

    fn is_idle(&self, context: &Context) -> bool {
        !context.membership.host_network
    }

    fn concerns(&self, object: &Object, _: &ObjectMeta, context: &Context) -> bool {
        context.membership.host_network
            && object.field("spec.hostNetwork").as_deref() != Some("true")
    }

    fn apply(&self, object: &mut Value, context: &Context) -> Verdict {
        match object.get_mut("spec").and_then(Value::as_object_mut) {
            Some(spec) if context.membership.host_network => {
                let before = spec.insert("hostNetwork".into(), true.into());
                if before == Some(Value::Bool(true)) {
                    return Verdict::Kept;
                }
                Verdict::Changed
            }
            _ => Verdict::Kept,
        }
    }
}
