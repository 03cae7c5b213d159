//! `pod-garbage-collector-controller`: pods of nodes that are gone, pods that are dying where nobody runs them, and the oldest of very
//! many finished ones.

use super::{
    Context, Key, batch,
    collections::{NODES, PODS},
    condition, pod,
    taint::Taint,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior};
use yurt_controller::kube::KubeError;

/// kube-controller-manager's name of this controller.
pub(super) const NAME: &str = "pod-garbage-collector-controller";
/// How often it looks.
const PERIOD: Duration = Duration::from_secs(20);
/// How long a node must be gone, lest a registration that is just being renewed costs it its pods.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Finished pods that are kept (`--terminated-pod-gc-threshold`).
const KEPT: usize = 12_500;
/// How many pods are deleted at once.
const AT_ONCE: usize = 30;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Why a pod is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// Its node is gone.
    Orphaned,
    /// It is being deleted and has no node that could end it.
    Unscheduled,
    /// It is being deleted on a node that is out of service.
    OutOfService,
    /// It is finished, and there are too many.
    TooMany,
}

impl Reason {
    /// What its DisruptionTarget condition says.
    fn message(self) -> Option<&'static str> {
        match self {
            Self::Orphaned => Some("PodGC: node no longer exists"),
            Self::OutOfService => Some("PodGC: node is out-of-service"),
            Self::Unscheduled | Self::TooMany => None,
        }
    }
}

/// Starts the controller.
pub(super) fn start(context: &Arc<Context>) {
    let (pods, nodes) = (context.objects(&PODS), context.objects(&NODES));
    let context = context.clone();
    let shutdown = context.shutdown().clone();
    tokio::spawn(async move {
        let work = async {
            pods.synced().await;
            nodes.synced().await;
            let mut missing = Missing::default();
            let mut looks = tokio::time::interval(PERIOD);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                look(&context, &mut missing).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    });
}

/// Nodes that pods name and that are not there, with when that was first noticed.
#[derive(Debug, Default)]
struct Missing(HashMap<String, Instant>);

impl Missing {
    /// Notes which are missing now; those that have been for long enough.
    fn note(&mut self, now_missing: &HashSet<&str>, now: Instant) -> Vec<String> {
        self.0.retain(|name, _| now_missing.contains(name.as_str()));
        for name in now_missing {
            self.0.entry((*name).to_owned()).or_insert(now);
        }
        let old = self
            .0
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= QUARANTINE);
        old.map(|(name, _)| name.clone()).collect()
    }
}

async fn look(context: &Context, missing: &mut Missing) {
    let pods = context.objects(&PODS).list("");
    let nodes = context.objects(&NODES);
    let named = pods
        .iter()
        .map(|pod| pod::node(pod))
        .filter(|name| !name.is_empty());
    let absent: HashSet<&str> = named
        .filter(|name| nodes.get(&Key::new("", name)).is_none())
        .collect();
    let mut gone = HashSet::new();
    for name in missing.note(&absent, Instant::now()) {
        // Asked for live: a cache may be behind.
        let path = NODES.object_path(&Key::new("", &name));
        if let Err(error) = context.kube().get(&path).await
            && error.code() == Some(404)
        {
            gone.insert(name);
        }
    }
    let out_of_service = |name: &str| {
        nodes
            .get(&Key::new("", name))
            .is_some_and(|node| is_out_of_service(&node))
    };
    let collected = collect(&pods, &gone, out_of_service, KEPT);
    for chunk in collected.chunks(AT_ONCE) {
        let deleted = chunk
            .iter()
            .map(|(pod, reason)| delete(context, pod, *reason));
        for ((pod, reason), result) in chunk.iter().zip(batch::all(deleted.collect()).await) {
            if let Err(error) = result {
                tracing::warn!(controller = NAME, pod = %Key::of(pod), ?reason, %error, "delete");
            }
        }
    }
}

fn is_out_of_service(node: &Value) -> bool {
    let mut taints = Taint::of(node).into_iter();
    let tainted = taints.any(|taint| taint.key == OUT_OF_SERVICE);
    tainted && !condition::holds(&node["status"], "Ready")
}

/// The pods to be collected. Pure.
fn collect(
    pods: &[Arc<Value>],
    gone: &HashSet<String>,
    out_of_service: impl Fn(&str) -> bool,
    kept: usize,
) -> Vec<(Arc<Value>, Reason)> {
    let mut collected: Vec<(Arc<Value>, Reason)> = Vec::new();
    let mut finished: Vec<&Arc<Value>> = Vec::new();
    for pod in pods {
        let node = pod::node(pod);
        let reason = match (node, pod::is_deleting(pod)) {
            ("", true) => Some(Reason::Unscheduled),
            (name, _) if gone.contains(name) => Some(Reason::Orphaned),
            (name, true) if out_of_service(name) => Some(Reason::OutOfService),
            _ => None,
        };
        match reason {
            Some(reason) => collected.push((pod.clone(), reason)),
            None if pod::is_finished(pod) => finished.push(pod),
            None => {}
        }
    }
    if kept > 0 && finished.len() > kept {
        let surplus = finished.len() - kept;
        let evicted = |pod: &Value| pod["status"]["reason"] == "Evicted";
        let created = |pod: &Value| {
            pod["metadata"]["creationTimestamp"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        finished.sort_by_cached_key(|pod| (!evicted(pod), created(pod), Key::of(pod)));
        collected.extend(
            finished
                .into_iter()
                .take(surplus)
                .map(|pod| (pod.clone(), Reason::TooMany)),
        );
    }
    collected
}

/// Marks a pod as failed, if it was not finished, and deletes it without grace: nobody could use it.
async fn delete(context: &Context, pod: &Value, reason: Reason) -> Result<(), KubeError> {
    if !pod::is_finished(pod) {
        let mut status = json!({"phase": "Failed"});
        if let Some(message) = reason.message() {
            let target = condition::new(
                "DisruptionTarget",
                "True",
                "DeletionByPodGC",
                message,
                Timestamp::now(),
            );
            status["conditions"] = json!([target]);
        }
        let patch = json!({"metadata": {"uid": pod["metadata"]["uid"]}, "status": status});
        match context.patch(&PODS, &Key::of(pod), "status", &patch).await {
            Err(error) if matches!(error.code(), Some(404 | 409)) => return Ok(()),
            other => other.map(drop)?,
        }
    }
    context
        .delete_with(&PODS, pod, &json!({"gracePeriodSeconds": 0}))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    fn pod(name: &str, node: &str, phase: &str, deleting: bool) -> Arc<Value> {
        let mut pod = json!({"metadata": {"namespace": "d", "name": name, "creationTimestamp": format!("2026-01-0{}T00:00:00Z", name.len())},
            "spec": {"nodeName": node}, "status": {"phase": phase}});
        if deleting {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Arc::new(pod)
    }

    fn collected(pods: &[Arc<Value>], kept: usize) -> Vec<(String, Reason)> {
        let gone = HashSet::from(["gone".to_owned()]);
        let collected = collect(pods, &gone, |name| name == "out", kept);
        collected
            .iter()
            .map(|(pod, reason)| (Key::of(pod).name, *reason))
            .collect()
    }

    #[test]
    fn what_nobody_will_ever_end_is_collected() {
        let pods = [
            pod("a", "gone", "Running", false),
            pod("b", "here", "Running", true),
            pod("c", "", "Pending", true),
            pod("d", "", "Pending", false),
            pod("e", "out", "Running", true),
            pod("f", "out", "Running", false),
        ];
        let expected = [
            ("a", Reason::Orphaned),
            ("c", Reason::Unscheduled),
            ("e", Reason::OutOfService),
        ];
        assert_eq!(
            collected(&pods, 0),
            expected.map(|(name, reason)| (name.to_owned(), reason))
        );
    }

    #[test]
    fn of_too_many_finished_pods_evicted_and_old_ones_go_first() {
        let mut evicted = Value::clone(&pod("eeee", "here", "Failed", false));
        evicted["status"]["reason"] = "Evicted".into();
        let pods = [
            pod("aaa", "here", "Succeeded", false),
            pod("bb", "here", "Failed", false),
            Arc::new(evicted),
            pod("c", "here", "Running", false),
        ];
        assert_eq!(collected(&pods, 3), []);
        let expected = ["eeee", "bb"].map(|name| (name.to_owned(), Reason::TooMany));
        assert_eq!(collected(&pods, 1), expected);
    }

    #[test]
    fn a_node_must_be_gone_for_a_while() {
        let mut missing = Missing::default();
        let start = Instant::now();
        let absent = HashSet::from(["n"]);
        assert_eq!(missing.note(&absent, start), [""; 0]);
        assert_eq!(
            missing.note(&absent, start + Duration::from_secs(39)),
            [""; 0]
        );
        assert_eq!(
            missing.note(&absent, start + Duration::from_secs(40)),
            ["n"]
        );
        missing.note(&HashSet::new(), start + Duration::from_secs(41));
        assert_eq!(
            missing.note(&absent, start + Duration::from_secs(42)),
            [""; 0],
            "it came back meanwhile"
        );
    }

    #[tokio::test]
    async fn an_orphan_is_failed_and_deleted() {
        let stage = Stage::start("-*").await;
        let pods = "/api/v1/namespaces/default/pods";
        let pod = json!({"metadata": {"name": "p", "finalizers": ["lab.test/look"]},
            "spec": {"nodeName": "gone", "containers": [{"name": "c", "image": "i"}]}});
        let pod = stage.create(pods, pod).await;
        delete(&stage.context, &pod, Reason::Orphaned)
            .await
            .expect("deleted");
        let left = stage
            .kube
            .get(&format!("{pods}/p"))
            .await
            .expect("held by its finalizer");
        assert_eq!(left["status"]["phase"], "Failed");
        assert_eq!(left["metadata"]["deletionGracePeriodSeconds"], 0);
        let target = condition::find(&left["status"], "DisruptionTarget").expect("a condition");
        assert_eq!(target["message"], "PodGC: node no longer exists");
    }
}
