//! `masterservice`: the kubelet learns from the service `default/kubernetes` what it tells pods about the API server
//! (`KUBERNETES_SERVICE_HOST`, `_PORT`). On this node that is the hub.

use super::{Context, Filter, Scope, Verdict};
use serde_json::{Value, json};
use yurt_wire::{Object, ObjectMeta, Verb};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Shows the hub's address as that of `default/kubernetes`.
#[derive(Debug)]
pub(super) struct MasterService;

impl Filter for MasterService {
    fn name(&self) -> &'static str {
        "masterservice"
    }

    fn scope(&self) -> Scope {
        let verbs = [Verb::Get, Verb::List, Verb::Watch];
        Scope::of(&["kubelet"], &[("", "services")], &verbs).only(NAMESPACE, NAME)
    }

    fn concerns(&self, _: &Object, meta: &ObjectMeta, _: &Context) -> bool {
        meta.namespace == NAMESPACE && meta.name == NAME
    }

    fn apply(&self, object: &mut Value, context: &Context) -> Verdict {
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
            return Verdict::Kept;
        };
        let host = context.hub_host.to_string();
        spec.insert("clusterIPs".into(), json!([host]));
        spec.insert("clusterIP".into(), host.into());
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        let https = ports
            .into_iter()
            .flatten()
            .find(|port| port.get("name").and_then(Value::as_str) == Some("https"));
        if let Some(https) = https {
            https["port"] = context.hub_port.into();
        }
        Verdict::Changed
    }
}
