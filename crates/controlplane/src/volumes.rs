//! Persistent volumes: claims are bound to volumes that somebody made, and neither goes while it is used. Nothing is provisioned.

pub(super) mod binder;
mod matching;
pub(super) mod protection;

use super::{Key, Objects, pod};
use serde_json::Value;

/// The claims that a pod uses.
fn claims_of(pod: &Value) -> Vec<Key> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes
        .filter_map(|volume| {
            if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                return Some(Key::new(namespace, claim));
            }
            // An ephemeral volume's claim is named after pod and volume.
            let volume_name = volume["ephemeral"]
                .is_object()
                .then(|| volume["name"].as_str())
                .flatten()?;
            Some(Key::new(namespace, &format!("{name}-{volume_name}")))
        })
        .collect()
}

/// Whether a pod that is not finished uses the claim, or a pod on a node does, when only those count.
fn is_used(pods: &Objects, claim: &Key, on_a_node: bool) -> bool {
    pods.list(&claim.namespace).iter().any(|pod| {
        let counts = !on_a_node || !pod::node(pod).is_empty();
        counts && !pod::is_finished(pod) && claims_of(pod).contains(claim)
    })
}
