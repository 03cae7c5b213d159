//! The pod that upgrades a static pod on one node: `yurt node static-pod-upgrade`, under the name and with the flags of OpenYurt's
//! `node-servant`, so that either image does it. Pure.

use super::plan::{Worker, WorkerState};
use crate::{
    fields::{items, text},
    pod,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;
use yurt_api::names::{
    annotations::{ATTEMPT, STATIC_POD_HASH},
    labels::STATIC_SET,
    objects::{STATIC_SET_PREFIX, STATIC_SET_WORKER_PREFIX},
};
use yurt_controller::template_hash;

/// The value of the label of such pods.
pub(super) const LABEL: &str = "worker";
/// Where kubelets look for manifests.
const MANIFESTS: &str = "/etc/kubernetes/manifests/";
/// Where the hub keeps the token of the node's owner: by it the worker may ask the hub for the node's pods.
const HUB: &str = "/var/lib/yurthub";
/// How long it may take with everything, pulling its image too.
const LONGEST: u32 = 600;
/// The longest name of a pod.
const LONGEST_NAME: usize = 253;

/// What a worker is made of.
pub(super) struct Order<'o> {
    pub(super) set: &'o Value,
    pub(super) owner: Value,
    pub(super) node: &'o str,
    pub(super) hash: &'o str,
    pub(super) attempt: u32,
    pub(super) image: &'o str,
}

impl Order<'_> {
    fn name(&self) -> String {
        let set = text(&self.set["metadata"]["name"]);
        let try_number = match self.attempt {
            1 => String::new(),
            attempt => format!("-{attempt}"),
        };
        let name = format!(
            "{STATIC_SET_WORKER_PREFIX}{set}-{}-{}{try_number}",
            self.node, self.hash
        );
        if name.len() <= LONGEST_NAME {
            return name;
        }
        let short = template_hash::of(&name.as_str().into(), None);
        format!("{STATIC_SET_WORKER_PREFIX}{short}")
    }

    /// The pod.
    pub(super) fn pod(&self) -> Value {
        let meta = &self.set["metadata"];
        let (set, namespace) = (text(&meta["name"]), text(&meta["namespace"]));
        let manifest = text(&self.set["spec"]["staticPodManifest"]);
        let arguments = [
            "static-pod-upgrade".to_owned(),
            format!("--name={set}-{}", self.node),
            format!("--namespace={namespace}"),
            format!("--manifest={manifest}"),
            format!("--hash={}", self.hash),
            "--mode=AdvancedRollingUpdate".to_owned(),
        ];
        json!({
            "metadata": {"name": self.name(), "namespace": namespace, "labels": {STATIC_SET: LABEL},
                "annotations": {STATIC_POD_HASH: self.hash, ATTEMPT: self.attempt.to_string()}, "ownerReferences": [self.owner]},
            "spec": {
                "hostPID": true, "hostNetwork": true, "restartPolicy": "Never", "nodeName": self.node,
                "activeDeadlineSeconds": LONGEST, "automountServiceAccountToken": false, "enableServiceLinks": false,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "upgrade-worker", "image": self.image, "imagePullPolicy": "IfNotPresent",
                    "command": ["/usr/local/bin/node-servant"], "args": arguments,
                    "securityContext": {"privileged": true}, "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [{"name": "host", "mountPath": MANIFESTS}, {"name": "data", "mountPath": "/data"},
                        {"name": "hub", "mountPath": HUB, "readOnly": true}]}],
                "volumes": [
                    {"name": "host", "hostPath": {"path": MANIFESTS}},
                    {"name": "hub", "hostPath": {"path": HUB, "type": "DirectoryOrCreate"}},
                    {"name": "data", "configMap": {"name": format!("{STATIC_SET_PREFIX}{set}")}}],
            },
        })
    }
}

/// What its container says.
fn said(p: &Value, of: &str) -> Option<String> {
    let mut states = items(&p["status"]["containerStatuses"]).map(|status| &status["state"][of]);
    let state = states.find(|state| state.is_object())?;
    let (reason, message) = (text(&state["reason"]), text(&state["message"]));
    Some(match message.trim() {
        "" => reason,
        message => format!("{reason}: {message}"),
    })
}

/// How far a worker is.
pub(super) fn read(p: &Value, hash: &str, now: Timestamp) -> Worker {
    let annotations = &p["metadata"]["annotations"];
    let ended = items(&p["status"]["containerStatuses"])
        .filter_map(|status| pod::instant(&status["state"]["terminated"]["finishedAt"]))
        .max();
    // One that failed before it ran says when only by its conditions.
    let last = items(&p["status"]["conditions"])
        .filter_map(|condition| pod::instant(&condition["lastTransitionTime"]))
        .max();
    let since = ended
        .or(last)
        .or_else(|| pod::instant(&p["metadata"]["creationTimestamp"]));
    // A clock that goes back makes nothing due.
    let ago = since.map_or(0, |since| now.as_second().saturating_sub(since.as_second()));
    let ago = Duration::from_secs(u64::try_from(ago).unwrap_or(0));
    let state = match pod::phase(p) {
        _ if pod::is_deleting(p) => WorkerState::Running("the last try ends".into()),
        "Succeeded" => WorkerState::Succeeded { ago },
        "Failed" => {
            let why = said(p, "terminated").or_else(|| Some(text(&p["status"]["message"])));
            let why = why.filter(|why| !why.is_empty());
            WorkerState::Failed {
                ago,
                why: why.unwrap_or_else(|| "the worker failed".into()),
            }
        }
        _ => WorkerState::Running(said(p, "waiting").unwrap_or_default()),
    };
    Worker {
        name: text(&p["metadata"]["name"]),
        current: annotations[STATIC_POD_HASH] == hash,
        attempt: text(&annotations[ATTEMPT]).parse().unwrap_or(1),
        state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_one_of_openyurt() {
        let set = json!({"metadata": {"name": "hub", "namespace": "kube-system"}, "spec": {"staticPodManifest": "yurthub"}});
        let node = "n".repeat(250);
        let order = |node, attempt| Order {
            set: &set,
            owner: json!({"uid": "u"}),
            node,
            hash: "h",
            attempt,
            image: "i",
        };
        let p = order("n1", 1).pod();
        assert_eq!(p["metadata"]["name"], "yss-upgrade-worker-hub-n1-h");
        assert_eq!(
            p["spec"]["containers"][0]["args"],
            json!([
                "static-pod-upgrade",
                "--name=hub-n1",
                "--namespace=kube-system",
                "--manifest=yurthub",
                "--hash=h",
                "--mode=AdvancedRollingUpdate"
            ])
        );
        assert_eq!(
            p["spec"]["volumes"][2]["configMap"]["name"],
            "yurt-static-set-hub"
        );
        assert_eq!(
            order("n1", 3).pod()["metadata"]["name"],
            "yss-upgrade-worker-hub-n1-h-3"
        );
        let long = order(&node, 1).pod();
        assert!(text(&long["metadata"]["name"]).len() <= LONGEST_NAME);
        assert_ne!(
            long["metadata"]["name"],
            order(&node, 2).pod()["metadata"]["name"]
        );
    }

    #[test]
    fn how_far_it_is() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let annotations = json!({STATIC_POD_HASH: "h", ATTEMPT: "2"});
        let of = |status: Value| {
            read(
                &json!({"metadata": {"name": "w", "annotations": annotations}, "status": status}),
                "h",
                now,
            )
        };
        let ended = |message: &str| json!([{"state": {"terminated": {"reason": "Error", "message": message, "finishedAt": "2026-01-01T00:00:30Z"}}}]);
        let failed = of(json!({"phase": "Failed", "containerStatuses": ended("not ready\n")}));
        assert_eq!((failed.attempt, failed.current), (2, true));
        assert_eq!(
            failed.state,
            WorkerState::Failed {
                ago: Duration::from_secs(30),
                why: "Error: not ready".into()
            }
        );
        let deadline = of(json!({"phase": "Failed", "message": "too long"}));
        assert!(matches!(deadline.state, WorkerState::Failed { why, .. } if why == "too long"));
        let waiting = of(
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}),
        );
        assert_eq!(waiting.state, WorkerState::Running("ErrImagePull".into()));
        let done = of(json!({"phase": "Succeeded", "containerStatuses": ended("")}));
        assert_eq!(
            done.state,
            WorkerState::Succeeded {
                ago: Duration::from_secs(30)
            }
        );
        assert!(!read(&json!({}), "h", now).current);
    }
}
