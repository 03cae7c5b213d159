//! `pods/binding`: a scheduler assigns a pod to a node.

use crate::{
    meta,
    registry::{Registry, Reply, Target},
};
use serde_json::{Value, json};
use yurt_wire::{Status, status::Cause};

/// Assigns the pod `target` to the node a `Binding` names.
pub(crate) async fn bind(registry: &Registry, target: &Target, binding: &Value) -> Reply<()> {
    crate::types::check_kind(&yurt_wire::Gvk::from_api_version("v1", "Binding"), binding)?;
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if node.is_empty() || !(kind.is_empty() || kind == "Node") {
        return Err(Box::new(Status::invalid(
            "",
            "Binding",
            &target.name,
            vec![Cause {
                reason: "FieldValueRequired".into(),
                message: "Required value: a node is required".into(),
                field: "target.name".into(),
            }],
        )));
    }
    let conflict = |why: String| Box::new(Status::conflict("", "pods/binding", &target.name, &why));
    let uid = meta::uid(binding);
    let annotations = &binding["metadata"]["annotations"];
    registry
        .modify(target, &|pod: &mut Value| {
            if !uid.is_empty() && uid != meta::uid(pod) {
                return Err(conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::uid(pod)
                )));
            }
            if meta::is_deleting(pod) {
                return Err(conflict(format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    target.name
                )));
            }
            match pod["spec"]["nodeName"].as_str() {
                None | Some("") => {}
                Some(assigned) => {
                    return Err(conflict(format!(
                        "pod {} is already assigned to node \"{assigned}\"",
                        target.name
                    )));
                }
            }
            pod["spec"]["nodeName"] = node.into();
            for (key, value) in annotations.as_object().into_iter().flatten() {
                pod["metadata"]["annotations"][key] = value.clone();
            }
            scheduled(pod);
            Ok(())
        })
        .await
        .map(|_| ())
}

/// Sets the `PodScheduled` condition.
fn scheduled(pod: &mut Value) {
    let now = meta::now();
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": now});
    let conditions = &mut pod["status"]["conditions"];
    match conditions.as_array_mut() {
        None => *conditions = json!([condition]),
        Some(list) => match list.iter_mut().find(|c| c["type"] == "PodScheduled") {
            Some(found) => *found = condition,
            None => list.push(condition),
        },
    }
}

/// The answer to a binding or an eviction.
pub(crate) fn created() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}
