//! Events about pods and the node.

use super::{api::Api, backoff::Backoff, clock::time, pod::Occurrence};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;

/// Events that wait to be sent; further ones are dropped, as client-go does.
const QUEUE: usize = 512;
/// client-go's number of attempts.
const ATTEMPTS: usize = 12;

/// Takes events; never waits.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    node: String,
    queue: mpsc::Sender<Value>,
}

impl Recorder {
    /// A recorder, and what it takes to send its events.
    pub(super) fn new(node: &str) -> (Self, mpsc::Receiver<Value>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let node = node.to_owned();
        (Self { node, queue }, events)
    }

    /// About one container of a pod.
    pub(super) fn container(&self, pod: &Value, container: &str, reason: &str, message: String) {
        let meta = &pod["metadata"];
        let about = json!({
            "kind": "Pod", "apiVersion": "v1",
            "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
            "fieldPath": format!("spec.containers{{{container}}}"),
        });
        self.record(about, "Normal", reason, message);
    }

    /// About a pod or one of its containers.
    pub(super) fn occurrence(&self, pod: &Value, what: Occurrence) {
        let meta = &pod["metadata"];
        let mut about = json!({
            "kind": "Pod", "apiVersion": "v1",
            "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
        });
        if !what.field.is_empty() {
            about["fieldPath"] = what.field.into();
        }
        let kind = if what.warning { "Warning" } else { "Normal" };
        self.record(about, kind, what.reason, what.message);
    }

    /// About the node.
    pub(super) fn node(&self, reason: &str, message: &str) {
        let about =
            json!({"kind": "Node", "apiVersion": "v1", "name": self.node, "uid": self.node});
        self.record(about, "Normal", reason, message.to_owned());
    }

    fn record(&self, about: Value, kind: &str, reason: &str, message: String) {
        let mut event = event(&self.node, about, reason, message, Timestamp::now());
        event["type"] = kind.into();
        if self.queue.try_send(event).is_err() {
            tracing::debug!(node = %self.node, reason, "an event was dropped, too many wait");
        }
    }
}

fn event(node: &str, about: Value, reason: &str, message: String, now: Timestamp) -> Value {
    let namespace = about["namespace"].as_str().unwrap_or("default");
    let name = about["name"].as_str().unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {
            "namespace": namespace,
            // Several events of a pod fall into one nanosecond tick of some clocks.
            "name": format!("{name}.{:x}{:04x}", now.as_nanosecond(), fastrand::u16(..)),
        },
        "involvedObject": about, "reason": reason, "message": message, "type": "Normal",
        "source": {"component": "kubelet", "host": node},
        "firstTimestamp": time(now), "lastTimestamp": time(now), "count": 1,
        "reportingComponent": "kubelet", "reportingInstance": node,
    })
}

/// Sends events one after the other, for ever.
pub(super) async fn send(api: &Api, mut events: mpsc::Receiver<Value>) {
    while let Some(event) = events.recv().await {
        let namespace = event["metadata"]["namespace"].as_str().unwrap_or("default");
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        for _ in 0..ATTEMPTS {
            match api.create(&path, &event).await {
                Ok(_) => break,
                Err(error) if error.is_transient() => tokio::time::sleep(backoff.pause()).await,
                Err(error) => {
                    tracing::debug!(%error, "event refused");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::{Encoding, Object};

    #[test]
    fn events_look_like_a_kubelets() {
        let (recorder, mut events) = Recorder::new("edge-1");
        let pod = json!({"metadata": {"namespace": "shop", "name": "web", "uid": "u"}});
        recorder.container(
            &pod,
            "busybox",
            "Started",
            "Started container busybox".into(),
        );
        recorder.node("Starting", "Starting kubelet.");
        let event = events.try_recv().unwrap();
        let event = Object::from_json_value(&event, Encoding::Protobuf).unwrap();
        let event = event.to_json_value().unwrap();
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(
            event["involvedObject"]["fieldPath"],
            "spec.containers{busybox}"
        );
        assert_eq!(
            event["source"],
            json!({"component": "kubelet", "host": "edge-1"})
        );
        let event = events.try_recv().unwrap();
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["involvedObject"]["name"], "edge-1");
    }

    #[test]
    fn too_many_events_are_dropped() {
        let (recorder, mut events) = Recorder::new("edge-1");
        for _ in 0..QUEUE + 10 {
            recorder.node("Starting", "again");
        }
        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), QUEUE);
    }
}
