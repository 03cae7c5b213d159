//! A status that is told the cloud directly while an older one of the same object waits.

use super::{POD, write_everything};
use crate::node::{JSON, Node, twin::Twin};
use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};
use std::{future::Future, pin::Pin, sync::Mutex, time::Duration};
use yurt_hub::journal::{Cloud, Journal, Waiting};
use yurt_transport::ClientError;
use yurt_wire::Gvr;

#[tokio::test]
async fn a_younger_status_that_went_ahead_has_the_last_word() {
    let (pods, nodes) = (Gvr::new("", "v1", "pods"), Gvr::new("", "v1", "nodes"));
    let pod_name = POD.rsplit('/').next().expect("a name");
    let node = Node::recorded().await;
    write_everything(&node).await;
    let got = node
        .patch(
            "/api/v1/nodes/edge-1",
            &json!({"metadata": {"labels": {"site": "hangzhou"}}}),
        )
        .await;
    assert_eq!(got.code, 200, "{}", got.message());
    let twin = Twin::recorded();
    // the cloud takes a younger status of both, ahead of what waits
    let pod = node.journal.waiting(&pods, "default", pod_name);
    let edge = node.journal.waiting(&nodes, "", "edge-1");
    twin.change(POD, |pod| pod["status"]["phase"] = "Succeeded".into());
    twin.change("/api/v1/nodes/edge-1", |node| {
        node["status"]["conditions"] =
            json!([{"type": "Ready", "status": "True", "reason": "Online"}]);
    });
    node.journal.superseded(pod.expect("waits")).await;
    node.journal.superseded(edge.expect("waits")).await;
    // of the node's entry the labels are left, whatever happens to the process
    assert_eq!(node.journal.pending(), 2);
    let node = node.killed();
    assert_eq!(node.journal.pending(), 2);
    let shown = node.get("/api/v1/nodes/edge-1", JSON).await.json();
    assert_eq!(shown["metadata"]["labels"]["site"], "hangzhou");
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().cloned();
        conditions
            .into_iter()
            .flatten()
            .find(|c| c["type"] == "Ready")
            .map(|c| c["reason"].clone())
    };
    assert_ne!(ready(&shown), Some("Offline".into()));
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.applied, report.kept), (2, 0), "{report:?}");
    assert_eq!(twin.object(POD)["status"]["phase"], "Succeeded");
    assert_eq!(
        ready(&twin.object("/api/v1/nodes/edge-1")),
        Some("Online".into())
    );
    assert!(!twin.state().log.iter().any(|line| line.contains(POD)));
}

/// A cloud that takes a younger status of the pod just after the replay read the pod.
struct Overtaking<'a> {
    twin: &'a Twin,
    journal: &'a Journal,
    waiting: Mutex<Option<Waiting>>,
}

impl Cloud for Overtaking<'_> {
    fn call(
        &self,
        request: Request<Bytes>,
        timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, ClientError>> + Send + '_>> {
        Box::pin(async move {
            let of_pod = request.uri().path() == POD;
            let answer = self.twin.call(request, timeout).await;
            let waiting = self.waiting.lock().expect("the write").take_if(|_| of_pod);
            if let Some(waiting) = waiting {
                self.twin
                    .change(POD, |pod| pod["status"]["phase"] = "Succeeded".into());
                self.journal.superseded(waiting).await;
            }
            answer
        })
    }
}

#[tokio::test]
async fn a_replay_under_way_stops_for_a_younger_status() {
    let pods = Gvr::new("", "v1", "pods");
    let pod_name = POD.rsplit('/').next().expect("a name");
    let node = Node::recorded().await;
    write_everything(&node).await;
    let twin = Twin::recorded();
    let cloud = Overtaking {
        twin: &twin,
        journal: &node.journal,
        waiting: Mutex::new(node.journal.waiting(&pods, "default", pod_name)),
    };
    let report = node.journal.replay(&cloud).await;
    assert_eq!((report.applied, report.kept), (2, 0), "{report:?}");
    assert_eq!(twin.object(POD)["status"]["phase"], "Succeeded");
}

#[tokio::test]
async fn what_is_written_after_the_younger_status_was_sent_is_not_superseded_by_it() {
    let pods = Gvr::new("", "v1", "pods");
    let pod_name = POD.rsplit('/').next().expect("a name");
    let node = Node::recorded().await;
    write_everything(&node).await;
    let waiting = node.journal.waiting(&pods, "default", pod_name);
    node.patch(
        &format!("{POD}/status"),
        &json!({"status": {"message": "youngest"}}),
    )
    .await;
    node.journal.superseded(waiting.expect("waits")).await;
    assert_eq!(node.journal.pending(), 3);
    let twin = Twin::recorded();
    assert_eq!(node.journal.replay(&twin).await.applied, 3);
    assert_eq!(twin.object(POD)["status"]["message"], "youngest");
    assert!(node.journal.waiting(&pods, "default", pod_name).is_none());
}
