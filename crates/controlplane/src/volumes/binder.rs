//! `persistentvolume-binder-controller`, as far as volumes are made by hand.

use super::{
    claims_of, is_used,
    matching::{class, find, is_claimed_by},
};
use crate::{
    Context, Controller, Failure, Key, Next, Watch,
    collections::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, STORAGE_CLASSES},
    pod,
};
use serde_json::{Value, json};
use std::sync::Arc;

const COMPONENT: &str = "persistentvolume-controller";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// The controller. Its keys are claims, and volumes, which have no namespace.
#[derive(Debug, Default)]
pub(crate) struct Binder;

impl Controller for Binder {
    const NAME: &'static str = "persistentvolume-binder-controller";
    // One at a time: two claims never choose one volume.
    const WORKERS: usize = 1;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let claims = context.objects(&PERSISTENT_VOLUME_CLAIMS);
        let volumes = context.objects(&PERSISTENT_VOLUMES);
        vec![
            Watch::of(PERSISTENT_VOLUME_CLAIMS, move |change| {
                let mut keys = vec![change.key()];
                if change.new.is_none() {
                    let volumes = volumes.list("");
                    let claim = change.old.as_deref();
                    let bound = volumes
                        .iter()
                        .filter(|v| claim.is_some_and(|claim| is_claimed_by(v, claim)));
                    keys.extend(bound.map(|v| Key::of(v)));
                }
                keys
            }),
            Watch::of(PERSISTENT_VOLUMES, move |change| {
                let mut keys = vec![change.key()];
                // A volume is an offer to all who wait.
                let waiting = claims.list("");
                keys.extend(
                    waiting
                        .iter()
                        .filter(|claim| claim["status"]["phase"] != "Bound")
                        .map(|c| Key::of(c)),
                );
                keys
            }),
            Watch::of(PODS, |change| match (&change.old, &change.new) {
                (None, Some(pod)) => claims_of(pod),
                _ => Vec::new(),
            }),
            Watch::of(STORAGE_CLASSES, |_| Vec::new()),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        if key.namespace.is_empty() {
            if let Some(volume) = context.objects(&PERSISTENT_VOLUMES).get(key) {
                settle_volume(context, &volume).await?;
            }
        } else if let Some(claim) = context.objects(&PERSISTENT_VOLUME_CLAIMS).get(key) {
            settle_claim(context, key, &claim).await?;
        }
        Ok(Next::Done)
    }
}

/// Sets a volume's phase.
async fn settle_volume(context: &Context, volume: &Value) -> Result<(), Failure> {
    let reference = &volume["spec"]["claimRef"];
    let phase = if reference.is_null() || reference["uid"].as_str().is_none_or(str::is_empty) {
        "Available"
    } else {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let key = Key::new(text("namespace"), text("name"));
        match context.objects(&PERSISTENT_VOLUME_CLAIMS).get(&key) {
            Some(claim) if claim["metadata"]["uid"] == reference["uid"] => "Bound",
            _ => "Released",
        }
    };
    if volume["status"]["phase"] != phase {
        context
            .merge(
                &PERSISTENT_VOLUMES,
                &Key::of(volume),
                "status",
                &json!({"status": {"phase": phase}}),
            )
            .await?;
    }
    Ok(())
}

async fn settle_claim(context: &Context, key: &Key, claim: &Value) -> Result<(), Failure> {
    if pod::is_deleting(claim) {
        return Ok(());
    }
    if claim["metadata"]["annotations"][BIND_COMPLETED] == "yes" {
        return check_bound(context, key, claim).await;
    }
    let name = class(claim);
    let storage_class = context.objects(&STORAGE_CLASSES).get(&Key::new("", name));
    let waits = storage_class
        .as_ref()
        .is_some_and(|class| class["volumeBindingMode"] == "WaitForFirstConsumer");
    if waits && !is_used(&context.objects(&PODS), key, false) {
        let message = "waiting for first consumer to be created before binding";
        tell(context, claim, "WaitForFirstConsumer", message);
        return Ok(());
    }
    let volumes = context.objects(&PERSISTENT_VOLUMES).list("");
    let Some(volume) = find(&volumes, claim) else {
        if name.is_empty() {
            let message =
                "no persistent volumes available for this claim and no storage class is set";
            tell(context, claim, "FailedBinding", message);
        }
        return Ok(());
    };
    bind(context, claim, &volume).await
}

fn tell(context: &Context, claim: &Value, reason: &str, message: &str) {
    context.event(COMPONENT, claim, "Normal", reason, message);
}

/// A bound claim whose volume is gone has lost its data.
async fn check_bound(context: &Context, key: &Key, claim: &Value) -> Result<(), Failure> {
    let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    let there = context
        .objects(&PERSISTENT_VOLUMES)
        .get(&Key::new("", volume));
    if there.is_some() || claim["status"]["phase"] == "Lost" {
        return Ok(());
    }
    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    context.event(COMPONENT, claim, "Warning", "ClaimLost", message);
    context
        .merge(
            &PERSISTENT_VOLUME_CLAIMS,
            key,
            "status",
            &json!({"status": {"phase": "Lost"}}),
        )
        .await?;
    Ok(())
}

/// Binds both to each other. Each step can be the last before a crash: the next look goes on from it.
async fn bind(context: &Context, claim: &Value, volume: &Value) -> Result<(), Failure> {
    let (claim_key, volume_key) = (Key::of(claim), Key::of(volume));
    let meta = &claim["metadata"];
    if volume["spec"]["claimRef"]["uid"] != meta["uid"] {
        let mut patch = json!({"metadata": {"resourceVersion": volume["metadata"]["resourceVersion"]},
            "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta["namespace"],
                "name": meta["name"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}}});
        if volume["spec"]["claimRef"].is_null() {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        context
            .merge(&PERSISTENT_VOLUMES, &volume_key, "", &patch)
            .await?;
    }
    context
        .merge(
            &PERSISTENT_VOLUMES,
            &volume_key,
            "status",
            &json!({"status": {"phase": "Bound"}}),
        )
        .await?;
    let mut annotations = json!({BIND_COMPLETED: "yes"});
    if claim["spec"]["volumeName"]
        .as_str()
        .is_none_or(str::is_empty)
    {
        annotations[BOUND_BY_CONTROLLER] = "yes".into();
    }
    let status = json!({"status": {"phase": "Bound", "accessModes": volume["spec"]["accessModes"],
        "capacity": volume["spec"]["capacity"]}});
    context
        .merge(&PERSISTENT_VOLUME_CLAIMS, &claim_key, "status", &status)
        .await?;
    let patch =
        json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": volume_key.name}});
    context
        .merge(&PERSISTENT_VOLUME_CLAIMS, &claim_key, "", &patch)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    #[tokio::test]
    async fn a_claim_is_bound_and_its_volume_released_when_it_goes() {
        let stage = Stage::start(Binder::NAME).await;
        let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
        let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}}});
        stage.create(claims, claim).await;
        let volume = json!({"metadata": {"name": "disk"}, "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/data"}}});
        stage.create("/api/v1/persistentvolumes", volume).await;
        let path = format!("{claims}/data");
        let bound = stage
            .until(&path, |claim| {
                claim["metadata"]["annotations"][BIND_COMPLETED] == "yes"
            })
            .await;
        assert_eq!(bound["status"]["phase"], "Bound");
        assert_eq!(bound["spec"]["volumeName"], "disk");
        assert_eq!(bound["status"]["capacity"], json!({"storage": "2Gi"}));
        let disk = "/api/v1/persistentvolumes/disk";
        let volume = stage
            .until(disk, |volume| volume["status"]["phase"] == "Bound")
            .await;
        assert_eq!(volume["spec"]["claimRef"]["uid"], bound["metadata"]["uid"]);
        stage.quiet(disk).await;
        stage.kube.delete(&path).await.expect("deleted");
        stage
            .until(disk, |volume| volume["status"]["phase"] == "Released")
            .await;
    }
}
