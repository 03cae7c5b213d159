//! `discardcloudservice`: services that only mean something beside the cloud's load balancers are not shown on edge nodes.

use super::{Context, Filter, Scope, Verdict, value_of};
use serde_json::Value;
use yurt_wire::{Object, ObjectMeta, Verb};

const DISCARD: &str = "svc.openyurt.io/discard";
const LOAD_BALANCER: &str = "LoadBalancer";
/// The service of the tunnel's server, which edge nodes do not reach.
const TUNNEL: (&str, &str) = ("kube-system", "x-tunnel-server-internal-svc");

/// Drops load balancers that say so, and the tunnel's.
#[derive(Debug)]
pub(super) struct DiscardCloudService;

impl Filter for DiscardCloudService {
    fn name(&self) -> &'static str {
        "discardcloudservice"
    }

    fn scope(&self) -> Scope {
        let verbs = [Verb::Get, Verb::List, Verb::Watch];
        Scope::of(&["kube-proxy"], &[("", "services")], &verbs).on_edge_only()
    }

    fn concerns(&self, _: &Object, meta: &ObjectMeta, _: &Context) -> bool {
        value_of(&meta.annotations, DISCARD) == Some("true")
            || (meta.namespace.as_str(), meta.name.as_str()) == TUNNEL
    }

    fn apply(&self, object: &mut Value, _: &Context) -> Verdict {
        let is =
            |pointer, value: &str| object.pointer(pointer).and_then(Value::as_str) == Some(value);
        let tunnel = is("/metadata/namespace", TUNNEL.0) && is("/metadata/name", TUNNEL.1);
        if tunnel || is("/spec/type", LOAD_BALANCER) {
            Verdict::Dropped
        } else {
            Verdict::Kept
        }
    }
}
