//! What the cluster is told of upgrades: events of the pod, and a condition where one did not succeed. Both are for people and
//! controllers to see, and nothing waits for them.

use super::Worker;
use crate::{
    ota::{
        asked::path_of,
        job::{Job, State},
        pod::{self, FAILED, REVISION},
        seconds,
    },
    proxy::Hub,
};
use bytes::Bytes;
use http::{Method, Request, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// How long telling may take.
const WAIT: Duration = Duration::from_secs(30);
/// Longest message of an event.
const MOST_MESSAGE: usize = 1024;

/// An Event (v1) of a pod.
fn event(
    node: &str,
    pod: (&str, &str, &str),
    kind: &str,
    reason: &str,
    message: &str,
    at: Timestamp,
) -> Value {
    let (namespace, name, uid) = pod;
    let message: String = message.chars().take(MOST_MESSAGE).collect();
    let time = seconds(at);
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"namespace": namespace, "name": format!("{name}.{:x}", at.as_nanosecond())},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
        "type": kind, "reason": reason, "message": message, "count": 1,
        "firstTimestamp": time, "lastTimestamp": time,
        "source": {"component": "yurthub", "host": node},
        "reportingComponent": "yurthub", "reportingInstance": node,
    })
}

/// Sends as the node, kept for later while the cloud is away, and not waited for.
fn send(hub: &Arc<Hub>, method: Method, uri: String, content_type: &'static str, body: &Value) {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, crate::USER_AGENT)
        .body(Bytes::from(body.to_string()));
    let Ok(request) = request else {
        return;
    };
    let own = hub.clone();
    hub.tasks.spawn(async move {
        let path = request.uri().path().to_owned();
        let sending = tokio::time::timeout(WAIT, own.own(request));
        let status = tokio::select! {
            sent = sending => sent.map(|response| response.status()),
            () = own.shutdown.cancelled() => return,
        };
        if !status.as_ref().is_ok_and(http::StatusCode::is_success) {
            tracing::debug!(path, ?status, "what became of an upgrade could not be told");
        }
    });
}

impl Worker {
    /// Tells of a job by an event of its pod.
    pub(super) fn tell(&self, job: &Job, kind: &str, reason: &str, message: &str) {
        let pod = (job.namespace.as_str(), job.pod.as_str(), job.uid.as_str());
        self.tell_of(pod, kind, reason, message);
    }

    fn tell_of(&self, pod: (&str, &str, &str), kind: &str, reason: &str, message: &str) {
        let event = event(
            &self.hub.node_name,
            pod,
            kind,
            reason,
            message,
            Timestamp::now(),
        );
        let uri = format!("/api/v1/namespaces/{}/events", pod.0);
        send(&self.hub, Method::POST, uri, "application/json", &event);
    }

    /// A job is over; `pod`: the one that is there now.
    pub(super) fn end(
        &self,
        mut job: Job,
        state: State,
        why: impl Into<String>,
        pod: Option<&Value>,
    ) {
        let begun = job.state.is_under_way();
        if !self.turn(&mut job, state, why) {
            return;
        }
        let hub = &self.hub;
        hub.metrics.ota().ended(state.as_str());
        tracing::info!(
            job = job.id, pod = %format_args!("{}/{}", job.namespace, job.pod), state = state.as_str(), reason = job.reason,
            "upgrade"
        );
        let (kind, reason) = match state {
            State::Done => ("Normal", "UpgradeSucceeded"),
            State::RolledBack => ("Warning", "UpgradeRolledBack"),
            _ => ("Warning", "UpgradeFailed"),
        };
        let now_there = pod.map(|pod| (pod::name_of(pod), pod::uid(pod).to_owned()));
        let (name, uid) = match &now_there {
            Some((full, uid)) => (
                full.split_once('/').map_or("", |(_, name)| name),
                uid.as_str(),
            ),
            None => (job.pod.as_str(), job.uid.as_str()),
        };
        self.tell_of((&job.namespace, name, uid), kind, reason, &job.reason);
        if state != State::Done && begun && now_there.is_some() {
            let message = format!("{REVISION}{}", job.revision);
            let patch = pod::condition_patch(
                uid,
                FAILED,
                "True",
                reason,
                &message,
                &seconds(Timestamp::now()),
            );
            let uri = format!(
                "{}/status?fieldManager=yurthub-ota",
                path_of(&job.namespace, name)
            );
            send(
                hub,
                Method::PATCH,
                uri,
                crate::ota::cloud::STRATEGIC,
                &patch,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_its_pod_and_has_a_bound() {
        let at = "2026-11-22T10:00:00.5Z".parse().unwrap();
        let event = event(
            "edge-1",
            ("d", "p", "u"),
            "Normal",
            "UpgradeStarted",
            &"ü".repeat(5000),
            at,
        );
        assert_eq!(event["involvedObject"]["uid"], "u");
        assert_eq!(event["lastTimestamp"], "2026-11-22T10:00:00Z");
        assert_eq!(
            event["message"].as_str().unwrap().chars().count(),
            MOST_MESSAGE
        );
        let name = event["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("p.") && name.len() < 30);
    }
}
