//! What a real kubelet and kube-proxy asked a real API server, asked of the hub: with the cloud, without it, and after a
//! restart without it. The answers must be the same.

use crate::{
    cloud::Trust,
    link::{Link, State},
    node::{Answered, Directory, Node, PATIENCE, config, eventually},
};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use std::collections::BTreeMap;
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config, Running, Tls};
use yurt_pki::Profile;
use yurt_wire::{
    Encoding, Object,
    watch::{EventType, FrameDecoder, is_initial_events_end},
};

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recorded {
    method: String,
    path: String,
    accept: String,
    user_agent: String,
}

/// The reads of the recording, each once.
fn reads() -> Vec<Recorded> {
    let text = include_str!("../fixtures/node-client-requests.jsonl");
    let mut seen = std::collections::BTreeSet::new();
    text.lines()
        .map(|line| serde_json::from_str::<Recorded>(line).unwrap())
        .filter(|request| request.method == "GET" && seen.insert(shape(&request.path)))
        .collect()
}

/// A request apart from how long it lasts.
fn shape(path: &str) -> String {
    path.split(['?', '&'])
        .filter(|part| !part.starts_with("timeout"))
        .collect::<Vec<_>>()
        .join("&")
}

/// Asks the cloud itself, as its administrator.
async fn send(
    cloud: &Running,
    method: Method,
    path: &str,
    content_type: &str,
    body: Option<Value>,
) -> (StatusCode, Value) {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", "Bearer admin")
        .header("content-type", content_type)
        .body(yurt_transport::full(body))
        .unwrap();
    let response = cloud.call(request).await;
    let status = response.status();
    let body = yurt_transport::collect(response.into_body(), 1 << 20)
        .await
        .unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

pub(crate) async fn direct(
    cloud: &Running,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Value {
    let (status, answer) = send(cloud, method, path, "application/json", body).await;
    assert!(status.is_success(), "{path}: {status} {answer}");
    answer
}

pub(crate) async fn merge(cloud: &Running, path: &str, patch: Value) -> Value {
    let content_type = "application/merge-patch+json";
    let (status, answer) = send(cloud, Method::PATCH, path, content_type, Some(patch)).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

pub(crate) async fn write(cloud: &Running, method: Method, path: &str, body: Value) {
    direct(cloud, method, path, Some(body)).await;
}

async fn cloud(trust: &Trust, shutdown: &CancellationToken) -> Running {
    let admin = yurt_apiserver::authn::User::new("admin", &["system:masters"]);
    let config = Config {
        tls: Some(Tls {
            serving: trust.serving.clone(),
            client_ca: Some(trust.ca.cert_pem()),
        }),
        tokens: vec![("admin".into(), admin)],
        ..Config::default()
    };
    let cloud = ApiServer::start(config, shutdown.clone()).await.unwrap();
    let pod = |name: &str| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": "nginx"}]},
        })
    };
    write(&cloud, Method::POST, "/api/v1/nodes", serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1", "labels": {"kubernetes.io/hostname": "edge-1"}},
    }))
    .await;
    write(&cloud, Method::POST, "/apis/storage.k8s.io/v1/csinodes", serde_json::json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": "edge-1"}, "spec": {"drivers": []},
    }))
    .await;
    write(
        &cloud,
        Method::POST,
        "/api/v1/namespaces/default/services",
        serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
        }),
    )
    .await;
    for name in ["web-1", "web-2"] {
        write(
            &cloud,
            Method::POST,
            "/api/v1/namespaces/default/pods",
            pod(name),
        )
        .await;
    }
    cloud
}

/// What an answer says, apart from what may differ from one time to the next.
async fn summary(node: &Node, request: &Recorded) -> String {
    let asked = Request::builder()
        .uri(&request.path)
        .header("accept", &request.accept)
        .header("user-agent", &request.user_agent)
        .body(Bytes::new())
        .unwrap();
    let response = node.ask(asked).await;
    let status = response.status();
    let content_type = response.headers()[header::CONTENT_TYPE]
        .to_str()
        .unwrap()
        .to_owned();
    let encoding = Encoding::from_content_type(&content_type).unwrap();
    if status == 200 && request.path.contains("watch=true") {
        let mut body = response.into_body();
        let mut frames = FrameDecoder::new(encoding, 1 << 20);
        let mut told = Vec::new();
        loop {
            while let Some(frame) = frames.next_frame().unwrap() {
                let event = frame.event.unwrap();
                let meta = event.object.meta().unwrap();
                assert_ne!(event.kind, EventType::Error);
                if is_initial_events_end(&event.object) {
                    assert!(meta.revision().is_some_and(|revision| revision > 0));
                    told.push(format!("END {}", meta.gvk.kind));
                    return format!("{status} {content_type} {}", told.join(", "));
                }
                told.push(format!("{:?} {}/{}", event.kind, meta.namespace, meta.name));
            }
            let frame = tokio::time::timeout(PATIENCE, body.frame())
                .await
                .unwrap_or_else(|_| {
                    panic!("{}: no end of the initial events: {told:?}", request.path)
                });
            frames.push(frame.unwrap().unwrap().into_data().unwrap());
        }
    }
    let answered = Answered::of(response).await;
    let object = Object {
        encoding,
        bytes: answered.body,
    };
    let value = object.to_json_value().unwrap();
    if value["kind"] == "Status" {
        return format!("{status} {content_type} {}", value["reason"]);
    }
    format!("{status} {content_type} {value}")
}

async fn all(node: &Node) -> BTreeMap<String, String> {
    let mut answers = BTreeMap::new();
    for request in reads() {
        answers.insert(request.path.clone(), summary(node, &request).await);
    }
    answers
}

fn powerful_node(trust: &Trust) -> yurt_pki::KeyPairPem {
    let profile = Profile {
        common_name: "system:node:edge-1".into(),
        organizations: vec!["system:nodes".into(), "system:masters".into()],
        client: true,
        days: 1,
        ..Profile::default()
    };
    trust.ca.issue(&profile).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_reads_are_answered_alike_with_and_without_the_cloud() {
    let (mut trust, directory) = (Trust::new(), Directory::new());
    // Kubelet and kube-proxy share the node's identity here; the node authorizer is not what is tested.
    trust.node = powerful_node(&trust);
    let shutdown = CancellationToken::new();
    let cloud = cloud(&trust, &shutdown).await;
    let link = Link::to(cloud.addr()).await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_up().await;

    let online = all(&node).await;
    assert!(online.len() >= 10, "{online:#?}");
    assert!(
        online
            .values()
            .any(|told| told.contains("END Pod") && told.contains("default/web-1")),
        "{online:#?}"
    );

    link.set(State::Cut);
    node.until_mode("offline").await;
    // Answers are learned beside the client's, perhaps a moment after it.
    eventually("learned", async || all(&node).await == online).await;

    node.stop().await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_mode("offline").await;
    assert_eq!(all(&node).await, online);
    node.stop().await;
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_node_wrote_while_cut_is_in_the_cloud_afterwards() {
    let (mut trust, directory) = (Trust::new(), Directory::new());
    trust.node = powerful_node(&trust);
    let shutdown = CancellationToken::new();
    let cloud = cloud(&trust, &shutdown).await;
    let link = Link::to(cloud.addr()).await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_up().await;
    let pod = "/api/v1/namespaces/default/pods/web-1";
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = format!("{leases}/edge-1");
    let json = [
        ("content-type", "application/json"),
        ("accept", "application/json"),
    ];
    let patch = [
        ("content-type", "application/strategic-merge-patch+json"),
        ("accept", "application/json"),
    ];
    assert_eq!(node.get(pod).await.status, 200);
    let created = node
        .call(
            Method::POST,
            leases,
            &json,
            r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"edge-1"},"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":"2026-01-01T00:00:00.000000Z"}}"#,
        )
        .await;
    assert_eq!(created.status, 201, "{}", created.text());
    eventually("the hub brought the lease on", async || {
        node.metric("node_yurthub_heartbeats_total{reason=\"renewed\"}")
            .await
            >= 1.0
    })
    .await;

    link.set(State::Cut);
    node.until_mode("offline").await;
    for phase in ["Pending", "Running"] {
        let body = format!(r#"{{"status":{{"phase":"{phase}"}}}}"#);
        let patched = node
            .call(Method::PATCH, &format!("{pod}/status"), &patch, &body)
            .await;
        assert_eq!(patched.status, 200, "{}", patched.text());
    }
    let mut renewed = node.get(&lease).await.json();
    renewed["spec"]["renewTime"] = "2026-02-02T00:00:00.000000Z".into();
    let put = node
        .call(Method::PUT, &lease, &json, &renewed.to_string())
        .await;
    assert_eq!(put.status, 200, "{}", put.text());
    let event = r#"{"apiVersion":"v1","kind":"Event","metadata":{"name":"web-1.1","namespace":"default"},"involvedObject":{"kind":"Pod","name":"web-1","namespace":"default"},"reason":"Started","message":"m","type":"Normal"}"#;
    let events = "/api/v1/namespaces/default/events";
    let posted = node.call(Method::POST, events, &json, event).await;
    assert_eq!(posted.status, 201, "{}", posted.text());
    let refused = node.call(Method::DELETE, pod, &json, "").await;
    assert_eq!(
        (refused.status, refused.json()["kind"].as_str()),
        (503, Some("Status"))
    );
    // Meanwhile in the cloud.
    write(&cloud, Method::PUT, &format!("{pod}/status"), {
        let mut now = direct(&cloud, Method::GET, pod, None).await;
        now["status"]["message"] = "from the cloud".into();
        now
    })
    .await;

    // Also what was written before a restart.
    node.stop().await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_mode("offline").await;
    assert_eq!(node.get(pod).await.json()["status"]["phase"], "Running");
    link.set(State::Whole);
    node.until_mode("online").await;
    eventually("replayed", async || {
        node.status().await["journal"]["pending"] == 0
    })
    .await;
    let told = direct(&cloud, Method::GET, pod, None).await;
    assert_eq!(told["status"]["phase"], "Running");
    assert_eq!(told["status"]["message"], "from the cloud");
    // The node lives: its lease is renewed now, not when the kubelet wrote it.
    eventually("the lease is renewed", async || {
        let lease = direct(&cloud, Method::GET, &lease, None).await;
        lease["spec"]["renewTime"].as_str() > Some("2026-02-02T00:00:00.000000Z")
    })
    .await;
    let events = direct(&cloud, Method::GET, events, None).await;
    assert!(
        events["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|event| event["reason"] == "Started"),
        "{events}"
    );
    assert_eq!(node.get(pod).await.json(), told);
    node.stop().await;
    shutdown.cancel();
}
