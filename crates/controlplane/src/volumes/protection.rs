//! `persistentvolumeclaim-protection-controller` and `persistentvolume-protection-controller`: finalizers that hold what is used.

use super::{claims_of, is_used};
use crate::{
    Collection, Context, Controller, Failure, Key, Next, Watch,
    collections::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS},
    pod,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Holds claims that pods use.
#[derive(Debug, Default)]
pub(crate) struct ClaimProtection;

/// Holds volumes that are bound.
#[derive(Debug, Default)]
pub(crate) struct VolumeProtection;

impl Controller for ClaimProtection {
    const NAME: &'static str = "persistentvolumeclaim-protection-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let claims = Watch::own(PERSISTENT_VOLUME_CLAIMS);
        // Only a pod that goes or ends sets a claim free.
        let pods = Watch::of(PODS, |change| match (&change.old, &change.new) {
            (Some(old), None) => claims_of(old),
            (_, Some(new)) if pod::is_finished(new) => claims_of(new),
            _ => Vec::new(),
        });
        vec![claims, pods]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(claim) = context.objects(&PERSISTENT_VOLUME_CLAIMS).get(key) else {
            return Ok(Next::Done);
        };
        let used = is_used(&context.objects(&PODS), key, true);
        settle(
            context,
            &PERSISTENT_VOLUME_CLAIMS,
            &claim,
            "kubernetes.io/pvc-protection",
            used,
        )
        .await
    }
}

impl Controller for VolumeProtection {
    const NAME: &'static str = "persistentvolume-protection-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(PERSISTENT_VOLUMES)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(volume) = context.objects(&PERSISTENT_VOLUMES).get(key) else {
            return Ok(Next::Done);
        };
        let used = volume["status"]["phase"] == "Bound";
        settle(
            context,
            &PERSISTENT_VOLUMES,
            &volume,
            "kubernetes.io/pv-protection",
            used,
        )
        .await
    }
}

/// Puts the finalizer on what lives, and takes it from what is being deleted and not used.
async fn settle(
    context: &Context,
    collection: &Collection,
    object: &Value,
    finalizer: &str,
    used: bool,
) -> Result<Next, Failure> {
    let Some(finalizers) = finalizers(object, finalizer, used) else {
        return Ok(Next::Done);
    };
    let patch = json!({"metadata": {"uid": object["metadata"]["uid"],
        "resourceVersion": object["metadata"]["resourceVersion"], "finalizers": finalizers}});
    match context
        .merge(collection, &Key::of(object), "", &patch)
        .await
    {
        Err(error) if error.code() == Some(404) => Ok(Next::Done),
        other => {
            other?;
            Ok(Next::Done)
        }
    }
}

/// The finalizers as they should be; `None` when they are. Pure.
fn finalizers(object: &Value, finalizer: &str, used: bool) -> Option<Vec<Value>> {
    let mut all = object["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let held = all.iter().any(|f| f == finalizer);
    match (pod::is_deleting(object), held) {
        (false, false) => all.push(finalizer.into()),
        (true, true) if !used => all.retain(|f| f != finalizer),
        _ => return None,
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    #[test]
    fn what_lives_is_held_and_what_is_going_is_held_while_it_is_used() {
        let object = |finalizers: Value, deleting: bool| {
            let mut object = json!({"metadata": {"finalizers": finalizers}});
            if deleting {
                object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            object
        };
        let settled = |finalizers_now: Value, deleting: bool, used: bool| {
            finalizers(&object(finalizers_now, deleting), "f", used).map(Value::Array)
        };
        assert_eq!(settled(json!(["x"]), false, false), Some(json!(["x", "f"])));
        assert_eq!(settled(json!(["f"]), false, false), None);
        assert_eq!(settled(json!(["f", "x"]), true, true), None);
        assert_eq!(settled(json!(["f", "x"]), true, false), Some(json!(["x"])));
        assert_eq!(settled(json!([]), true, false), None, "too late");
    }

    #[tokio::test]
    async fn a_claim_stays_until_its_pod_has_gone() {
        let stage = Stage::start(ClaimProtection::NAME).await;
        let default = "/api/v1/namespaces/default";
        let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        stage
            .create(&format!("{default}/persistentvolumeclaims"), claim)
            .await;
        let path = format!("{default}/persistentvolumeclaims/data");
        stage
            .until(&path, |c| {
                c["metadata"]["finalizers"] == json!(["kubernetes.io/pvc-protection"])
            })
            .await;
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
        stage.create(&format!("{default}/pods"), pod).await;
        stage.context.objects(&PODS).synced().await;
        while stage
            .context
            .objects(&PODS)
            .get(&Key::new("default", "p"))
            .is_none()
        {
            tokio::task::yield_now().await;
        }
        stage.kube.delete(&path).await.expect("deletion begins");
        stage.quiet(&path).await;
        let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        stage
            .kube
            .delete_with(&format!("{default}/pods/p"), &now)
            .await
            .expect("deleted");
        stage.until(&path, |c| c["code"] == 404).await;
    }
}
