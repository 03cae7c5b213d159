//! `forwardkubesvctraffic`: what pods send to the service `default/kubernetes` goes to the hub of their node.

use super::{Context, Filter, Scope, Verdict, value_of};
use serde_json::{Value, json};
use yurt_wire::{Object, ObjectMeta, Verb};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Shows the hub as the one endpoint of `default/kubernetes`.
#[derive(Debug)]
pub(super) struct ForwardKubeSvcTraffic;

impl Filter for ForwardKubeSvcTraffic {
    fn name(&self) -> &'static str {
        "forwardkubesvctraffic"
    }

    fn scope(&self) -> Scope {
        let verbs = [Verb::Get, Verb::List, Verb::Watch];
        let slices = [("discovery.k8s.io", "endpointslices")];
        Scope::of(&["kube-proxy"], &slices, &verbs).on_edge_only()
    }

    fn concerns(&self, _: &Object, meta: &ObjectMeta, _: &Context) -> bool {
        meta.namespace == NAMESPACE
            && value_of(&meta.labels, SERVICE_LABEL).unwrap_or(&meta.name) == NAME
    }

    fn apply(&self, object: &mut Value, context: &Context) -> Verdict {
        let family = object.get("addressType").and_then(Value::as_str);
        let ours = match family {
            Some("IPv4") => context.hub_host.is_ipv4(),
            Some("IPv6") => context.hub_host.is_ipv6(),
            // v1beta1 once had one type for both.
            Some("IP") => true,
            _ => false,
        };
        if !ours {
            // The other family of the cluster's addresses leads to the API servers as before.
            return Verdict::Kept;
        }
        let host = context.hub_host.to_string();
        object["endpoints"] = json!([{"addresses": [host], "conditions": {"ready": true}}]);
        let ports = object.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten() {
            if port.get("name").and_then(Value::as_str) == Some("https") {
                port["port"] = context.hub_port.into();
            }
        }
        Verdict::Changed
    }
}
