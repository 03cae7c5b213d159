//! Undoes what the cluster concluded from a link that was away: the node lifecycle controller sets the pods of a node that it
//! cannot hear to not ready, and the Node's conditions to unknown. A kubelet that lives and has nothing new to say may leave it at
//! that for minutes, and Services go without these pods.
//!
//! What the kubelet said last of a pod is still in the pod: `ContainersReady` and the container statuses are the kubelet's alone, and
//! `Ready` follows from them and the readiness gates. The controller only turns the status of `Ready`, without a reason. Of the
//! Node's conditions it leaves nothing, so the last word of the kubelet is remembered here. All pure but [`run`].
//!
//! Every write carries the revision it was decided on: what the kubelet or the cloud say meanwhile wins.

use super::{own_node, patch_status, seconds};
use crate::{caller::Caller, proxy::Hub, query::Query, route::Mode};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use yurt_wire::{Gvr, selector::FieldSelector};

/// After the return of the link, the kubelet goes first.
const SETTLE: Duration = Duration::from_secs(3);
/// Between attempts at one object.
const AGAIN: Duration = Duration::from_secs(30);
/// Pods written in one turn.
const MOST_WRITES: usize = 64;
/// Reasons of the node lifecycle controller for conditions that it set itself.
const CONTROLLERS: [&str; 2] = ["NodeStatusUnknown", "NodeStatusNeverUpdated"];

fn conditions(object: &Value) -> impl Iterator<Item = &Value> {
    object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get(field)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn status_of<'a>(object: &'a Value, kind: &str) -> &'a str {
    conditions(object)
        .find(|condition| text(condition, "type") == kind)
        .map_or("", |condition| text(condition, "status"))
}

/// Exactly this object at exactly this revision.
fn precondition(object: &Value) -> Option<Value> {
    let metadata = object.get("metadata")?;
    let (uid, revision) = (text(metadata, "uid"), text(metadata, "resourceVersion"));
    if uid.is_empty() || revision.is_empty() {
        return None;
    }
    Some(json!({"uid": uid, "resourceVersion": revision}))
}

/// The write that makes a pod ready again which somebody else than its kubelet set to not ready; `None` when it is as its kubelet
/// said.
pub fn restored_pod(pod: &Value, now: Timestamp) -> Option<Value> {
    let ready = conditions(pod).find(|condition| text(condition, "type") == "Ready")?;
    if text(ready, "status") != "False" || !text(ready, "reason").is_empty() {
        return None;
    }
    let status = pod.get("status")?;
    let containers = status.get("containerStatuses")?.as_array()?;
    let said_ready = text(status, "phase") == "Running"
        && pod.pointer("/metadata/deletionTimestamp").is_none()
        && status_of(pod, "ContainersReady") == "True"
        && !containers.is_empty()
        && containers
            .iter()
            .all(|container| container.get("ready") == Some(&Value::Bool(true)));
    let gates_open = pod
        .pointer("/spec/readinessGates")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .all(|gate| status_of(pod, text(gate, "conditionType")) == "True");
    if !said_ready || !gates_open {
        return None;
    }
    Some(json!({
        "metadata": precondition(pod)?,
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": seconds(now)}]},
    }))
}

/// What the kubelet said last of its Node, by condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWord(BTreeMap<String, Said>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    status: String,
    reason: String,
    message: String,
}

/// Conditions remembered; a kubelet has five at most.
const MOST_CONDITIONS: usize = 16;

fn by_controller(condition: &Value) -> bool {
    text(condition, "status") == "Unknown" && CONTROLLERS.contains(&text(condition, "reason"))
}

impl LastWord {
    /// Takes in a state of the Node.
    pub fn hear(&mut self, node: &Value) {
        for condition in conditions(node) {
            let kind = text(condition, "type");
            let kubelets = matches!(
                kind,
                "Ready" | "MemoryPressure" | "DiskPressure" | "PIDPressure" | "NetworkUnavailable"
            );
            if !kubelets || by_controller(condition) || self.0.len() >= MOST_CONDITIONS {
                continue;
            }
            let said = Said {
                status: text(condition, "status").to_owned(),
                reason: text(condition, "reason").to_owned(),
                message: text(condition, "message").chars().take(512).collect(),
            };
            self.0.insert(kind.to_owned(), said);
        }
    }

    /// The write that says it again; `None` when the Node is as its kubelet said, or what it said was not that it is ready.
    pub fn restored(&self, node: &Value, now: Timestamp) -> Option<Value> {
        let ready = self.0.get("Ready")?;
        let given_up = conditions(node)
            .any(|condition| text(condition, "type") == "Ready" && by_controller(condition));
        if ready.status != "True" || !given_up {
            return None;
        }
        let now = seconds(now);
        let again: Vec<Value> = conditions(node)
            .filter(|condition| by_controller(condition))
            .filter_map(|condition| {
                let kind = text(condition, "type");
                let said = self.0.get(kind)?;
                Some(json!({
                    "type": kind, "status": said.status, "reason": said.reason, "message": said.message,
                    "lastHeartbeatTime": now, "lastTransitionTime": now,
                }))
            })
            .collect();
        Some(json!({"metadata": precondition(node)?, "status": {"conditions": again}}))
    }
}

/// The pods of this node.
pub(crate) fn own_pods(node_name: &str) -> Option<Query> {
    let mut query = Query::all(Gvr::new("", "v1", "pods"), "");
    query.fields = FieldSelector::parse(&format!("spec.nodeName={node_name}")).ok()?;
    Some(query)
}

/// Looks after every return of the link, and now and then.
pub(super) async fn run(hub: Arc<Hub>, interval: Duration) {
    let mut modes = hub.modes();
    let mut due = Instant::now() + SETTLE;
    let mut word = LastWord::default();
    let mut tried: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            changed = modes.changed() => {
                if changed.is_err() {
                    return;
                }
                due = Instant::now() + SETTLE;
                continue;
            }
            () = hub.shutdown.cancelled() => return,
        }
        due = Instant::now() + interval;
        let Some(node) = own_node(&hub) else {
            continue;
        };
        word.hear(&node);
        let kubelet_lives = hub.heartbeat.as_ref().is_some_and(|heartbeat| {
            let pulse = heartbeat.pulse();
            pulse.alive && pulse.kubelet_silent.is_some()
        });
        // What waits in the journal is the kubelet's newer word.
        if hub.mode() != Mode::Online || hub.journal.pending() > 0 || !kubelet_lives {
            continue;
        }
        tried.retain(|_, at| at.elapsed() < AGAIN);
        if let Some(patch) = word.restored(&node, Timestamp::now()) {
            let path = format!("/api/v1/nodes/{}/status", hub.node_name);
            write(&hub, &path, &patch, &mut tried).await;
        }
        // The controller would do the same again while it takes the node for lost.
        if status_of(&node, "Ready") != "True" {
            continue;
        }
        let Some(query) = own_pods(&hub.node_name) else {
            continue;
        };
        let Some(pods) = hub.cache.list(&Caller::Node, &query) else {
            continue;
        };
        let marked = pods
            .items
            .iter()
            .filter_map(|pod| {
                let pod = pod.to_json_value().ok()?;
                let patch = restored_pod(&pod, Timestamp::now())?;
                let metadata = pod.get("metadata")?;
                let (namespace, name) = (text(metadata, "namespace"), text(metadata, "name"));
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
                Some((path, patch))
            })
            .take(MOST_WRITES);
        for (path, patch) in marked.collect::<Vec<_>>() {
            write(&hub, &path, &patch, &mut tried).await;
        }
    }
}

async fn write(hub: &Arc<Hub>, path: &str, patch: &Value, tried: &mut HashMap<String, Instant>) {
    if tried.contains_key(path) {
        return;
    }
    tried.insert(path.to_owned(), Instant::now());
    match patch_status(hub, path, patch).await {
        Ok(()) => {
            hub.metrics.resynced();
            tracing::info!(path, "the kubelet's last word is told to the cloud again");
        }
        Err(why) => tracing::info!(path, why, "left as the cloud has it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {"name": "a", "namespace": "d", "uid": "u", "resourceVersion": "9"},
            "spec": {},
            "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "ContainersReady", "status": "True"}],
                "containerStatuses": [{"name": "c", "ready": true}]},
        })
    }

    fn now() -> Timestamp {
        "2026-11-22T10:00:00.5Z".parse().unwrap()
    }

    #[test]
    fn a_pod_that_its_kubelet_called_ready_is_ready_again() {
        assert_eq!(
            restored_pod(&pod(), now()),
            Some(
                json!({"metadata": {"uid": "u", "resourceVersion": "9"}, "status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T10:00:00Z"}]}})
            )
        );
    }

    #[test]
    fn what_the_kubelet_itself_said_stays() {
        let cases: [(&str, Value); 7] = [
            ("/status/conditions/0/reason", "ContainersNotReady".into()),
            ("/status/conditions/0/status", "True".into()),
            ("/status/conditions/1/status", "False".into()),
            ("/status/containerStatuses/0/ready", false.into()),
            ("/status/containerStatuses", json!([])),
            ("/status/phase", "Succeeded".into()),
            ("/metadata/resourceVersion", "".into()),
        ];
        for (pointer, value) in cases {
            let mut pod = pod();
            pod["status"]["conditions"][0]["reason"] = "".into();
            *pod.pointer_mut(pointer).unwrap() = value;
            assert_eq!(restored_pod(&pod, now()), None, "{pointer}");
        }
        let mut ending = pod();
        ending["metadata"]["deletionTimestamp"] = "2026-11-22T10:00:00Z".into();
        assert_eq!(restored_pod(&ending, now()), None);
        let mut gated = pod();
        gated["spec"]["readinessGates"] = json!([{"conditionType": "x/lb"}]);
        assert_eq!(restored_pod(&gated, now()), None);
        gated["status"]["conditions"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "x/lb", "status": "True"}));
        assert!(restored_pod(&gated, now()).is_some());
    }

    fn node(ready: &str, reason: &str) -> Value {
        json!({"metadata": {"uid": "n", "resourceVersion": "4"}, "status": {"conditions": [
            {"type": "Ready", "status": ready, "reason": reason, "message": "m"},
            {"type": "DiskPressure", "status": if ready == "Unknown" { "Unknown" } else { "False" }, "reason": reason},
            {"type": "Autonomy", "status": "True", "reason": "autonomy enabled successfully"}]}})
    }

    #[test]
    fn a_node_that_was_given_up_says_again_what_its_kubelet_said() {
        let mut word = LastWord::default();
        let given_up = node("Unknown", "NodeStatusUnknown");
        assert_eq!(word.restored(&given_up, now()), None);
        word.hear(&node("True", "KubeletReady"));
        word.hear(&given_up);
        let told = word.restored(&given_up, now()).unwrap();
        assert_eq!(told["metadata"]["resourceVersion"], "4");
        let told = told["status"]["conditions"].as_array().unwrap();
        assert_eq!(told.len(), 2);
        assert_eq!(
            (&told[0]["status"], &told[0]["reason"], &told[1]["status"]),
            (&"True".into(), &"KubeletReady".into(), &"False".into())
        );
        // The kubelet's own word is newer, whatever it is.
        assert_eq!(word.restored(&node("True", "KubeletReady"), now()), None);
        word.hear(&node("False", "KubeletNotReady"));
        assert_eq!(word.restored(&given_up, now()), None);
    }
}
