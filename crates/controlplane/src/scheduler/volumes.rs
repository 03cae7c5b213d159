//! Where a pod's volumes can be reached.

use super::{
    pod::Pod,
    snapshot::{Node, Snapshot},
};
use crate::fields::label;

/// What keeps a pod from every node: claims that are not there or not bound.
pub(super) fn obstacle(pod: &Pod, snapshot: &Snapshot) -> Option<String> {
    pod.claims.iter().find_map(|name| {
        let Some(claim) = snapshot.claim(&pod.key.namespace, name) else {
            return Some(format!("persistentvolumeclaim \"{name}\" not found"));
        };
        if claim.deleting {
            return Some(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        match &claim.volume {
            Some(volume) if claim.lost || snapshot.volume(volume).is_none() => Some(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            )),
            None if !snapshot.binds_late(&claim.class) => {
                Some("pod has unbound immediate PersistentVolumeClaims".to_owned())
            }
            _ => None,
        }
    })
}

/// Whether a node reaches the volumes.
pub(super) fn check(pod: &Pod, node: &Node, snapshot: &Snapshot) -> Result<(), &'static str> {
    for name in &pod.claims {
        let claim = snapshot.claim(&pod.key.namespace, name);
        let Some(bound) = claim.and_then(|claim| claim.volume.as_ref()) else {
            return Err("node(s) didn't find available persistent volumes to bind");
        };
        let Some(volume) = snapshot.volume(bound) else {
            return Err(
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
            );
        };
        if let Some(terms) = &volume.nodes
            && !terms
                .iter()
                .any(|term| term.matches(&node.name, &node.labels))
        {
            return Err("node(s) didn't match PersistentVolume's node affinity");
        }
        for key in [
            "topology.kubernetes.io/zone",
            "topology.kubernetes.io/region",
        ] {
            if let Some(wanted) = label(&volume.labels, key)
                && !wanted
                    .split("__")
                    .any(|zone| label(&node.labels, key) == Some(zone))
            {
                return Err("node(s) had no available volume zone");
            }
        }
    }
    Ok(())
}
