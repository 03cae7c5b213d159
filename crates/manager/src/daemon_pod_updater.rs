//! `daemon-pod-updater-controller` of OpenYurt: tells the owner of each node which daemons there are of an older template, so that he
//! may upgrade them when it suits him (`apps.openyurt.io/update-strategy: OTA` with `OnDelete`). The manager replaces it; it also rolls
//! by itself with `AdvancedRollingUpdate`, which this one leaves alone.
//!
//! The present template is that of the newest ControllerRevision: its hash is the daemon set controller's own affair.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{CONTROLLER_REVISIONS, DAEMON_SETS, PODS},
    condition, controller_of, pod, revision,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_controller::policy::Rule;

/// Who decides about upgrades of a daemon set's pods.
const STRATEGY: &str = "apps.openyurt.io/update-strategy";
/// The condition of a pod that says whether it is of an older template.
pub(crate) const NEEDS_UPGRADE: &str = "PodNeedUpgrade";
/// In its message, before the hash of the present template.
pub(crate) const HASH_PREFIX: &str = "controllerrevision: ";

pub(crate) const ENTRY: Entry = Entry::of::<DaemonPodUpdater>(
    "daemonpodupdater",
    &[Rule::new("", &["pods/status"], &["patch"])],
);

/// `daemon-pod-updater-controller`.
#[derive(Debug, Default)]
pub(crate) struct DaemonPodUpdater;

/// Whether the owner of the node upgrades a daemon set's pods.
fn is_owners(set: &Value) -> bool {
    let strategy = set["metadata"]["annotations"][STRATEGY].as_str();
    strategy.is_some_and(|strategy| strategy.eq_ignore_ascii_case("OTA"))
        && set["spec"]["updateStrategy"]["type"] == "OnDelete"
}

/// The hash of a daemon set's template; `None` while its newest revision is still of an earlier one.
fn present_hash(set: &Value, revisions: &[Arc<Value>]) -> Option<String> {
    let own = revisions.iter().filter(|revision| {
        controller_of(revision).is_some_and(|owner| owner["uid"] == set["metadata"]["uid"])
    });
    let newest = own.max_by_key(|revision| revision::number(revision))?;
    let hash = newest["metadata"]["labels"][revision::HASH].as_str()?;
    (newest["data"] == revision::data(set)).then(|| hash.to_owned())
}

/// The condition of a pod, unless it says so already. Pure.
fn verdict(p: &Value, hash: &str, now: Timestamp) -> Option<Value> {
    let current = p["metadata"]["labels"][revision::HASH] == hash;
    let (status, message) = (
        if current { "False" } else { "True" },
        format!("{HASH_PREFIX}{hash}"),
    );
    let known = condition::find(&p["status"], NEEDS_UPGRADE);
    if known.is_some_and(|known| known["status"] == status && known["message"] == message.as_str())
    {
        return None;
    }
    let mut condition = condition::new(NEEDS_UPGRADE, status, "", &message, now);
    if let Some(known) = known.filter(|known| known["status"] == status) {
        condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
    }
    Some(condition)
}

impl Controller for DaemonPodUpdater {
    const NAME: &'static str = "daemon-pod-updater-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![
            Watch::own(DAEMON_SETS),
            Watch::owned(PODS, "DaemonSet"),
            Watch::owned(CONTROLLER_REVISIONS, "DaemonSet"),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(set) = context
            .objects(&DAEMON_SETS)
            .get(key)
            .filter(|set| is_owners(set))
        else {
            return Ok(Next::Done);
        };
        let revisions = context.objects(&CONTROLLER_REVISIONS).list(&key.namespace);
        let Some(hash) = present_hash(&set, &revisions) else {
            // Its revision will come.
            return Ok(Next::Done);
        };
        let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
        let mut pods = context.objects(&PODS).owned_by(uid);
        pods.retain(|p| pod::is_active(p));
        for p in pods {
            let Some(condition) = verdict(&p, &hash, Timestamp::now()) else {
                continue;
            };
            let patch = json!({"metadata": {"uid": p["metadata"]["uid"]}, "status": {"conditions": [condition]}});
            match context.patch(&PODS, &Key::of(&p), "status", &patch).await {
                // Gone, or another of that name.
                Err(error) if !matches!(error.code(), Some(404 | 409 | 422)) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    fn daemons(image: &str) -> Value {
        json!({"metadata": {"name": "d", "annotations": {STRATEGY: "ota"}}, "spec": {
            "selector": {"matchLabels": {"app": "d"}}, "updateStrategy": {"type": "OnDelete"},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}})
    }

    #[test]
    fn only_what_changes_is_written() {
        let now = Timestamp::UNIX_EPOCH;
        let mut p = json!({"metadata": {"labels": {revision::HASH: "a"}}, "status": {}});
        let old = verdict(&p, "b", now).expect("old");
        assert_eq!(
            (&old["status"], &old["message"]),
            (&"True".into(), &"controllerrevision: b".into())
        );
        p["status"]["conditions"] = json!([old]);
        assert_eq!(verdict(&p, "b", now), None);
        assert_eq!(verdict(&p, "a", now).expect("again")["status"], "False");
    }

    #[tokio::test]
    async fn pods_of_an_older_template_say_so() {
        let stage = Stage::start("daemonset-controller,daemon-pod-updater-controller").await;
        stage
            .create("/api/v1/nodes", json!({"metadata": {"name": "n"}}))
            .await;
        let sets = "/apis/apps/v1/namespaces/default/daemonsets";
        stage.create(sets, daemons("i:1")).await;
        let pods = "/api/v1/namespaces/default/pods";
        let says = |list: &Value, status: &str| {
            let conditions = list["items"][0]["status"]["conditions"].as_array();
            conditions.is_some_and(|c| {
                c.iter()
                    .any(|c| c["type"] == NEEDS_UPGRADE && c["status"] == status)
            })
        };
        let first = stage.until(pods, |list| says(list, "False")).await;
        let newer =
            json!({"spec": {"template": {"spec": daemons("i:2")["spec"]["template"]["spec"]}}});
        stage
            .kube
            .merge(&format!("{sets}/d"), &newer)
            .await
            .expect("changed");
        let second = stage.until(pods, |list| says(list, "True")).await;
        assert_eq!(
            second["items"][0]["metadata"]["uid"], first["items"][0]["metadata"]["uid"],
            "nobody replaces it"
        );
        let name = second["items"][0]["metadata"]["name"]
            .as_str()
            .expect("a name");
        stage.quiet(&format!("{pods}/{name}")).await;
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        stage
            .kube
            .delete_with(&format!("{pods}/{name}"), &options)
            .await
            .expect("upgraded");
        let third = stage.until(pods, |list| says(list, "False")).await;
        assert_eq!(third["items"][0]["spec"]["containers"][0]["image"], "i:2");
    }
}
