//! `serviceenvupdater`: containers whose pod names the API server by environment variable go to the hub.

use super::{Context, Filter, Scope, Verdict};
use serde_json::Value;
use yurt_wire::{Object, ObjectMeta, Verb};

const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";
const CONTAINERS: [&str; 3] = [
    "/spec/containers",
    "/spec/initContainers",
    "/spec/ephemeralContainers",
];

/// Shows the hub's address in the variables that name the API server, where a pod sets them.
#[derive(Debug)]
pub(super) struct ServiceEnvUpdater;

impl Filter for ServiceEnvUpdater {
    fn name(&self) -> &'static str {
        "serviceenvupdater"
    }

    fn scope(&self) -> Scope {
        let verbs = [Verb::Get, Verb::List, Verb::Watch, Verb::Patch];
        Scope::of(&["kubelet"], &[("", "pods")], &verbs).on_edge_only()
    }

    fn concerns(&self, object: &Object, _: &ObjectMeta, _: &Context) -> bool {
        // Both names begin so, and hardly any pod has them: others need not be decoded.
        memchr::memmem::find(&object.bytes, b"KUBERNETES_SERVICE_").is_some()
    }

    fn apply(&self, object: &mut Value, context: &Context) -> Verdict {
        let (host, port) = (context.hub_host.to_string(), context.hub_port.to_string());
        let mut verdict = Verdict::Kept;
        for containers in CONTAINERS {
            let containers = object.pointer_mut(containers).and_then(Value::as_array_mut);
            let variables = containers
                .into_iter()
                .flatten()
                .filter_map(|container| container.get_mut("env")?.as_array_mut())
                .flatten()
                .filter_map(Value::as_object_mut);
            for variable in variables {
                let value = match variable.get("name").and_then(Value::as_str) {
                    Some(HOST) => &host,
                    Some(PORT) => &port,
                    _ => continue,
                };
                // A variable with both is none that the kubelet takes.
                let from = variable.remove("valueFrom");
                let before = variable.insert("value".into(), value.as_str().into());
                if from.is_some() || before.as_ref().and_then(Value::as_str) != Some(value) {
                    verdict = Verdict::Changed;
                }
            }
        }
        verdict
    }
}
