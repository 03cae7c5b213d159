//! The node's life as the cluster sees it: its lease, the condition `Autonomy`, statuses that were given up.

use crate::{
    cloud::{Cloud, JSON, Seen, Trust},
    event,
    link::{Link, State},
    node::{Directory, Node, config, eventually},
    pod_list,
};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;
use yurt_hub::Config;

pub(crate) const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
pub(crate) const LEASE: &str =
    "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";
const NODES: &str = "/api/v1/nodes";
const NODE: &str = "/api/v1/nodes/edge-1";
const STATUS: &str = "/api/v1/nodes/edge-1/status";
const AS_JSON: [(&str, &str); 2] = [
    ("content-type", "application/json"),
    ("accept", "application/json"),
];
const INTERVAL: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_millis(1500);

pub(crate) struct Edge {
    pub(crate) cloud: Cloud,
    pub(crate) link: Link,
    pub(crate) node: Node,
    _directory: Directory,
}

/// A hub with a quick heartbeat, before a cloud told what it answers.
pub(crate) async fn edge(told: impl FnOnce(&Cloud), set: impl FnOnce(&mut Config)) -> Edge {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    told(&cloud);
    let link = Link::to(cloud.addr).await;
    let mut config = config(&directory.0, &trust, &[link.addr]);
    config.heartbeat.interval = INTERVAL;
    set(&mut config);
    let node = Node::start(config).await;
    node.until_up().await;
    node.until_mode("online").await;
    Edge {
        cloud,
        link,
        node,
        _directory: directory,
    }
}

pub(crate) fn lease(revision: u64) -> String {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "edge-1", "namespace": "kube-node-lease", "uid": "lease", "resourceVersion": revision.to_string(),
            "annotations": {"openyurt.io/delegate-heartbeat": "true"}},
        "spec": {"holderIdentity": "edge-1", "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"},
    })
    .to_string()
}

/// A cloud with a lease of the node.
pub(crate) fn with_lease(cloud: &Cloud) {
    cloud.answer(Method::GET, LEASE, 200, JSON, lease(5));
    cloud.answer(Method::PUT, LEASE, 200, JSON, lease(6));
}

/// The kubelet renews.
pub(crate) async fn beat(node: &Node, revision: &str) -> Value {
    let mut own: Value = serde_json::from_str(&lease(0)).unwrap();
    own["metadata"]["resourceVersion"] = revision.into();
    own["spec"]["renewTime"] = "2026-11-22T10:00:00.000000Z".into();
    let answer = node
        .call(Method::PUT, LEASE, &AS_JSON, &own.to_string())
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn by_hub(cloud: &Cloud, method: Method, path: &str) -> Vec<Seen> {
    let seen = cloud.seen(method, path).into_iter();
    seen.filter(|seen| {
        let agent = seen.headers.get("user-agent").map(|v| v.to_str().unwrap());
        agent.is_some_and(|agent| agent.starts_with("yurthub/"))
    })
    .collect()
}

fn body(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kubelet_renews_at_the_hub_and_the_hub_in_the_cloud() {
    let edge = edge(with_lease, |config| config.heartbeat.kubelet_grace = GRACE).await;
    let (cloud, node) = (&edge.cloud, &edge.node);
    // What the hub learns of it, or what the cloud tells: there is one.
    assert_eq!(node.get(LEASE).await.status, 200);
    let told = beat(node, "5").await;
    assert_eq!(told["spec"]["renewTime"], "2026-11-22T10:00:00.000000Z");
    // The kubelet writes on what it read, the hub renews beside it: no conflict, and no trip to the cloud.
    for stale in ["1", "5", "6"] {
        beat(node, stale).await;
    }
    assert_eq!(
        cloud.seen(Method::PUT, LEASE).len(),
        by_hub(cloud, Method::PUT, LEASE).len()
    );
    eventually("the hub renews", async || {
        by_hub(cloud, Method::PUT, LEASE).len() >= 3
    })
    .await;
    let last = by_hub(cloud, Method::PUT, LEASE).pop().unwrap();
    assert!(last.certificate, "not with the node's identity");
    let sent = body(&last);
    assert_eq!(sent["metadata"]["resourceVersion"], "6");
    assert_eq!(sent["metadata"]["uid"], "lease");
    assert_eq!(sent["metadata"].get("annotations"), None, "{sent}");
    assert_eq!(sent["spec"]["holderIdentity"], "edge-1");
    assert_eq!(sent["spec"]["leaseDurationSeconds"], GRACE.as_secs());
    assert!(sent["spec"]["renewTime"].as_str() > Some("2026-11-22T"));

    // A silent kubelet: the lease runs out, and nothing else changes.
    eventually("the hub stops", async || {
        let before = by_hub(cloud, Method::PUT, LEASE).len();
        tokio::time::sleep(INTERVAL * 4).await;
        by_hub(cloud, Method::PUT, LEASE).len() == before
    })
    .await;
    assert_eq!(node.status().await["mode"], "online");
    let before = cloud.seen(Method::GET, "/version").len();
    assert_eq!(node.get("/version").await.status, 200);
    assert!(cloud.seen(Method::GET, "/version").len() > before);
    // It speaks again.
    let before = by_hub(cloud, Method::PUT, LEASE).len();
    beat(node, "6").await;
    eventually("the hub renews again", async || {
        by_hub(cloud, Method::PUT, LEASE).len() > before
    })
    .await;
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_cloud_lacks_is_made_for_the_kubelet_with_its_node_as_owner() {
    let edge = edge(
        |cloud| {
            cloud.answer(Method::GET, NODES, 200, JSON, node_list(&plain_node()));
            cloud.answer(Method::POST, LEASES, 201, JSON, lease(5));
            cloud.answer(Method::PATCH, STATUS, 200, JSON, plain_node().to_string());
        },
        |_| {},
    )
    .await;
    let (cloud, node) = (&edge.cloud, &edge.node);
    eventually("the node is known", async || {
        node.status().await["cache"]["objects"].as_u64() >= Some(1)
    })
    .await;
    assert_eq!(node.get(LEASE).await.status, 404);
    assert_eq!(by_hub(cloud, Method::POST, LEASES).len(), 0);
    let own = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"edge-1"},"spec":{"holderIdentity":"edge-1"}}"#;
    let made = node.call(Method::POST, LEASES, &AS_JSON, own).await;
    assert_eq!(made.status, 201, "{}", made.text());
    eventually("the hub makes it", async || {
        !by_hub(cloud, Method::POST, LEASES).is_empty()
    })
    .await;
    with_lease(cloud);
    let sent = body(&by_hub(cloud, Method::POST, LEASES)[0]);
    assert_eq!(
        sent["metadata"]["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": "node-uid"}])
    );
    eventually("what the kubelet sees is the cloud's", async || {
        node.get(LEASE).await.json()["metadata"]["uid"] == "lease"
    })
    .await;
    // Leases of others are not the hub's business.
    let other = own.replace("edge-1", "edge-2");
    let passed = node.call(Method::POST, LEASES, &AS_JSON, &other).await;
    assert_eq!(passed.status, 201);
    assert!(
        cloud
            .seen(Method::POST, LEASES)
            .iter()
            .any(|seen| body(seen)["metadata"]["name"] == "edge-2")
    );
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_go_on_while_cut_and_while_the_cloud_refuses() {
    let edge = edge(with_lease, |_| {}).await;
    let (cloud, node) = (&edge.cloud, &edge.node);
    beat(node, "5").await;
    cloud.answer(Method::PUT, LEASE, 403, JSON, "{}");
    eventually("the refusal is counted", async || {
        let refused = "node_yurthub_heartbeats_total{reason=\"refused\"}";
        node.metric(refused).await >= 2.0
    })
    .await;
    beat(node, "5").await;
    edge.link.set(State::Cut);
    node.until_mode("offline").await;
    beat(node, "5").await;
    assert_eq!(
        node.get(LEASE).await.json()["spec"]["renewTime"],
        "2026-11-22T10:00:00.000000Z"
    );
    // It is worth nothing later: nothing waits for the cloud.
    assert_eq!(node.status().await["journal"]["pending"], 0);
    with_lease(cloud);
    let before = by_hub(cloud, Method::PUT, LEASE).len();
    edge.link.set(State::Whole);
    eventually("renewed as the link is back", async || {
        by_hub(cloud, Method::PUT, LEASE).len() > before
    })
    .await;
    edge.node.stop().await;
}

fn plain_node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "edge-1", "uid": "node-uid", "resourceVersion": "7"},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
    })
}

fn node_list(node: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "8"}, "items": [node]}).to_string()
}

fn condition(node: &Value) -> Option<&Value> {
    let conditions = node["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == "Autonomy")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_condition_follows_the_annotations_and_is_written_once() {
    let mut told = plain_node();
    // Of this one OpenYurt's own condition knows nothing.
    told["metadata"]["annotations"] = json!({"node.openyurt.io/autonomy-duration": "1h"});
    let edge = edge(
        |cloud| {
            cloud.answer(Method::GET, NODES, 200, JSON, node_list(&told));
            cloud.answer(Method::PATCH, STATUS, 500, JSON, "{}");
        },
        |_| {},
    )
    .await;
    let cloud = &edge.cloud;
    let patches = || by_hub(cloud, Method::PATCH, STATUS);
    eventually("it is tried again, with pauses", async || {
        patches().len() >= 2
    })
    .await;
    assert!(patches().len() < 6, "a hot loop: {}", patches().len());
    let sent = body(&patches()[0]);
    let sent = condition(&sent).unwrap();
    assert_eq!(sent["status"], "True");
    assert_eq!(sent["reason"], "autonomy enabled successfully");

    told["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(sent.clone());
    told["metadata"]["resourceVersion"] = "9".into();
    cloud.answer(Method::PATCH, STATUS, 200, JSON, told.to_string());
    cloud
        .emit(NODES, event("MODIFIED", &told.to_string()))
        .await;
    let mut count = patches().len();
    eventually("it says so: nothing more to write", async || {
        let before = patches().len();
        tokio::time::sleep(INTERVAL * 5).await;
        patches().len() == before
    })
    .await;
    assert!(count <= patches().len());

    // Taken back while the cloud is there.
    count = patches().len();
    told["metadata"]["annotations"] = json!({});
    told["metadata"]["resourceVersion"] = "10".into();
    cloud
        .emit(NODES, event("MODIFIED", &told.to_string()))
        .await;
    eventually("it is told", async || patches().len() > count).await;
    let sent = body(patches().last().unwrap());
    assert_eq!(condition(&sent).unwrap()["reason"], "autonomy disabled");
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_gets_its_node_while_the_condition_waits_for_the_cloud() {
    // The trap of OpenYurt: a condition that is to be written and a cloud that is away made GET node a 500.
    let mut told = plain_node();
    told["metadata"]["annotations"] = json!({"node.beta.openyurt.io/autonomy": "true"});
    let edge = edge(
        |cloud| {
            cloud.answer(Method::GET, NODES, 200, JSON, node_list(&told));
            cloud.answer(Method::GET, NODE, 200, JSON, told.to_string());
            cloud.answer(Method::PATCH, STATUS, 503, JSON, "{}");
        },
        |_| {},
    )
    .await;
    let (cloud, node) = (&edge.cloud, &edge.node);
    eventually("the cloud refuses the condition", async || {
        !by_hub(cloud, Method::PATCH, STATUS).is_empty()
    })
    .await;
    assert_eq!(node.get(NODE).await.status, 200);
    edge.link.set(State::Cut);
    node.until_mode("offline").await;
    let seen = node.get(NODE).await;
    assert_eq!(seen.status, 200, "{}", seen.text());
    // The kubelet sees what it will be, and so will the cloud.
    eventually("the condition in the node's own view", async || {
        let seen = node.get(NODE).await;
        assert_eq!(seen.status, 200, "{}", seen.text());
        condition(&seen.json()).is_some_and(|told| told["status"] == "True")
    })
    .await;
    assert_eq!(node.status().await["journal"]["pending"], 1);
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_were_given_up_are_ready_again_as_their_kubelet_said() {
    let marked = |name: &str, reason: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "6"},
            "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "c", "ready": true}], "conditions": [
                {"type": "Ready", "status": "False", "reason": reason}, {"type": "ContainersReady", "status": "True"}]},
        })
        .to_string()
    };
    let pods = "/api/v1/pods";
    let status = "/api/v1/namespaces/default/pods/a/status";
    let edge = edge(
        |cloud| {
            with_lease(cloud);
            cloud.answer(Method::GET, NODES, 200, JSON, node_list(&plain_node()));
            cloud.answer(Method::PATCH, STATUS, 200, JSON, plain_node().to_string());
            let list = pod_list(7, &[marked("a", ""), marked("b", "ContainersNotReady")]);
            cloud.answer(Method::GET, pods, 200, JSON, list);
            cloud.answer(Method::PATCH, status, 409, JSON, "{}");
        },
        |_| {},
    )
    .await;
    let (cloud, node) = (&edge.cloud, &edge.node);
    let own = format!("{pods}?fieldSelector=spec.nodeName%3Dedge-1");
    assert_eq!(node.get(&own).await.status, 200);
    // Without a kubelet nobody knows.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(by_hub(cloud, Method::PATCH, "/api/v1/namespaces").len(), 0);
    beat(node, "5").await;
    eventually("the kubelet's word is told again", async || {
        !by_hub(cloud, Method::PATCH, status).is_empty()
    })
    .await;
    // A conflict: the kubelet or the cloud said something newer. That is the end of it, for now.
    tokio::time::sleep(INTERVAL * 5).await;
    let written = by_hub(cloud, Method::PATCH, "/api/v1/namespaces");
    assert_eq!(written.len(), 1);
    let sent = body(&written[0]);
    assert_eq!(
        sent["metadata"],
        json!({"uid": "uid-a", "resourceVersion": "6"})
    );
    assert_eq!(sent["status"]["conditions"][0]["type"], "Ready");
    assert_eq!(sent["status"]["conditions"][0]["status"], "True");
    edge.node.stop().await;
}
