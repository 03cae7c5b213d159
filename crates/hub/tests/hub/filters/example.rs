//! `quietpods`: an agent does not see pods that ask not to be watched, and others without their environment.

use serde_json::Value;
use yurt_hub::filter::{Context, Filter, Scope, Verdict};
use yurt_wire::{Object, ObjectMeta, Verb};

const QUIET: &str = "example.com/quiet";

/// Hides pods annotated `example.com/quiet: "true"`, and what containers are told by environment.
#[derive(Debug)]
pub(super) struct QuietPods;

impl Filter for QuietPods {
    fn name(&self) -> &'static str {
        "quietpods"
    }

    fn scope(&self) -> Scope {
        let verbs = [Verb::Get, Verb::List, Verb::Watch];
        Scope::of(&["log-agent"], &[("", "pods")], &verbs)
    }

    fn concerns(&self, _: &Object, meta: &ObjectMeta, _: &Context) -> bool {
        meta.namespace != "kube-system"
    }

    fn apply(&self, pod: &mut Value, _: &Context) -> Verdict {
        let annotations = pod.pointer("/metadata/annotations");
        if annotations.and_then(|all| all.get(QUIET)) == Some(&"true".into()) {
            return Verdict::Dropped;
        }
        let mut verdict = Verdict::Kept;
        let containers = pod
            .pointer_mut("/spec/containers")
            .and_then(Value::as_array_mut);
        for container in containers
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
        {
            if container.remove("env").is_some() {
                verdict = Verdict::Changed;
            }
        }
        verdict
    }
}
