//! The link goes and comes back.

use crate::{
    bookmark,
    cloud::{Answer, Cloud, JSON, Trust},
    event,
    link::{Link, State},
    node::{Came, Directory, Node, config, eventually},
    pod, pod_list,
};
use http::{Method, Request};
use std::time::Duration;

const POD: &str = "/api/v1/namespaces/default/pods/a";
const PODS: &str = "/api/v1/namespaces/default/pods";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

struct Edge {
    cloud: Cloud,
    link: Link,
    node: Node,
    directory: Directory,
    trust: Trust,
}

async fn edge() -> Edge {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let link = Link::to(cloud.addr).await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_up().await;
    Edge {
        cloud,
        link,
        node,
        directory,
        trust,
    }
}

/// Reads until the cache has learned: the answer is taught beside the client's.
async fn learned(node: &Node, objects: u64) {
    eventually("the cache has learned", async || {
        node.status().await["cache"]["objects"].as_u64() >= Some(objects)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_on_over_a_cut_and_a_restart() {
    let edge = edge().await;
    edge.cloud.answer(
        Method::GET,
        PODS,
        200,
        JSON,
        pod_list(9, &[pod("a", 7), pod("b", 8)]),
    );
    assert_eq!(edge.node.get(PODS).await.status, 200);
    learned(&edge.node, 2).await;

    edge.link.set(State::Cut);
    // Also before anybody noticed: the request is answered, from the cache.
    let during = edge
        .node
        .get(&format!("{PODS}?labelSelector=app%3Da"))
        .await;
    assert_eq!(during.status, 200, "{}", during.text());
    assert_eq!(during.json()["items"][0]["metadata"]["name"], "a");
    edge.node.until_mode("offline").await;
    assert_eq!(
        edge.node.get(POD).await.json()["metadata"]["resourceVersion"],
        "7"
    );
    let missing = edge.node.get("/api/v1/nodes/x").await;
    assert_eq!(missing.status, 503, "{}", missing.text());
    assert!(
        missing.json()["message"]
            .as_str()
            .unwrap()
            .contains("offline")
    );
    assert_eq!(edge.node.admin("/v1/readyz").await.text(), "OK");

    // A restart while cut serves the same.
    edge.node.stop().await;
    let node = Node::start(config(&edge.directory.0, &edge.trust, &[edge.link.addr])).await;
    let again = node.get(PODS).await;
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(again.json()["items"].as_array().unwrap().len(), 2);

    edge.link.set(State::Whole);
    node.until_mode("online").await;
    edge.cloud.answer(Method::GET, POD, 200, JSON, pod("a", 20));
    assert_eq!(
        node.get(POD).await.json()["metadata"]["resourceVersion"],
        "20"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_survives_a_cut_and_resumes_where_it_was() {
    let edge = edge().await;
    let target = format!(
        "{PODS}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=600&fieldSelector=spec.nodeName%3Dedge-1"
    );
    let mut watch = edge.node.watch(&target, &[("accept", JSON)]).await;
    edge.cloud.emit(PODS, event("ADDED", &pod("a", 7))).await;
    edge.cloud.emit(PODS, bookmark(10, true)).await;
    edge.cloud
        .emit(PODS, event("MODIFIED", &pod("a", 12)))
        .await;
    for kind in ["ADDED", "BOOKMARK", "MODIFIED"] {
        assert_eq!(watch.event().await["type"], kind);
    }

    edge.link.set(State::Cut);
    edge.node.until_mode("offline").await;
    assert_eq!(edge.node.status().await["watches"]["open"], 1);
    // What the node itself writes meanwhile shows in the same stream.
    let status = r#"{"status":{"phase":"Failed"}}"#;
    let patched = edge
        .node
        .call(
            Method::PATCH,
            &format!("{POD}/status"),
            &[
                ("content-type", "application/strategic-merge-patch+json"),
                ("accept", JSON),
            ],
            status,
        )
        .await;
    assert_eq!(patched.status, 200, "{}", patched.text());
    let local = watch.event().await;
    assert_eq!(
        (
            local["type"].as_str(),
            local["object"]["status"]["phase"].as_str()
        ),
        (Some("MODIFIED"), Some("Failed"))
    );
    assert_eq!(edge.node.status().await["journal"]["pending"], 1);

    // What waits for the cloud goes there before the watch is resumed.
    edge.cloud.answer(Method::GET, POD, 200, JSON, pod("a", 12));
    edge.cloud.answer(
        Method::PATCH,
        &format!("{POD}/status"),
        200,
        JSON,
        pod("a", 30),
    );
    edge.cloud.answer(
        Method::PUT,
        &format!("{POD}/status"),
        200,
        JSON,
        pod("a", 30),
    );
    edge.link.set(State::Whole);
    edge.node.until_mode("online").await;
    eventually("resumed", async || edge.cloud.watching(PODS) == 1).await;
    let asked = edge
        .cloud
        .seen(Method::GET, &format!("{PODS}?watch=true"))
        .pop()
        .unwrap()
        .target;
    assert!(asked.contains("resourceVersion=12"), "{asked}");
    assert!(!asked.contains("sendInitialEvents"), "{asked}");
    assert!(
        asked.contains("fieldSelector=spec.nodeName%3Dedge-1"),
        "{asked}"
    );
    eventually("replayed", async || {
        edge.node.status().await["journal"]["pending"] == 0
    })
    .await;

    edge.cloud
        .emit(PODS, event("MODIFIED", &pod("a", 31)))
        .await;
    loop {
        // The replay may show as well.
        if watch.event().await["object"]["metadata"]["resourceVersion"] == "31" {
            break;
        }
    }
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_opened_while_cut_joins_the_cloud() {
    let edge = edge().await;
    edge.cloud
        .answer(Method::GET, PODS, 200, JSON, pod_list(9, &[pod("a", 7)]));
    edge.node.get(PODS).await;
    learned(&edge.node, 1).await;
    edge.link.set(State::Cut);
    edge.node.until_mode("offline").await;
    let target = format!(
        "{PODS}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let mut watch = edge.node.watch(&target, &[("accept", JSON)]).await;
    assert_eq!(watch.event().await["object"]["metadata"]["name"], "a");
    let end = watch.event().await;
    assert_eq!(
        end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    edge.link.set(State::Whole);
    edge.node.until_mode("online").await;
    eventually("joined", async || edge.cloud.watching(PODS) == 1).await;
    let asked = edge
        .cloud
        .seen(Method::GET, &format!("{PODS}?watch=true"))
        .pop()
        .unwrap()
        .target;
    assert!(asked.contains("resourceVersion=9"), "{asked}");
    edge.cloud.emit(PODS, event("ADDED", &pod("c", 15))).await;
    assert_eq!(watch.event().await["object"]["metadata"]["name"], "c");

    // Too old to go on: the client hears so in the stream, as from an API server.
    edge.cloud.refuse_watches(Some((
        410,
        r#"{"kind":"Status","apiVersion":"v1","reason":"Expired","code":410}"#,
    )));
    edge.cloud.end_watches(PODS, true).await;
    let error = watch.event().await;
    assert_eq!(
        (error["type"].as_str(), error["object"]["code"].as_u64()),
        (Some("ERROR"), Some(410))
    );
    assert_eq!(watch.next().await, Came::End);
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_told_initial_events_are_not_taken_for_all() {
    let edge = edge().await;
    let target = format!(
        "{PODS}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let mut watch = edge.node.watch(&target, &[("accept", JSON)]).await;
    edge.cloud.emit(PODS, event("ADDED", &pod("a", 7))).await;
    watch.event().await;
    edge.link.set(State::Cut);
    // The client must see that it has not everything, and start anew.
    assert_eq!(watch.next().await, Came::Broken);
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_objects_behind_a_table_are_there_when_the_link_is_not() {
    let edge = edge().await;
    edge.cloud.answer(
        Method::GET,
        &format!("{PODS}#table"),
        200,
        JSON,
        r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"9"},"columnDefinitions":[],"rows":[]}"#,
    );
    edge.cloud.answer(
        Method::GET,
        PODS,
        200,
        JSON,
        pod_list(9, &[pod("a", 7), pod("b", 8)]),
    );
    let table = edge
        .node
        .get_as(&format!("{PODS}?limit=500"), &[("accept", TABLE)])
        .await;
    assert_eq!(table.json()["kind"], "Table");
    learned(&edge.node, 2).await;
    // A watch of the table keeps them fresh.
    let mut watch = edge
        .node
        .watch(
            &format!("{PODS}?watch=true&resourceVersion=9"),
            &[("accept", TABLE)],
        )
        .await;
    eventually("both are watched", async || edge.cloud.watching(PODS) == 2).await;
    edge.cloud.emit(PODS, event("ADDED", &pod("c", 11))).await;
    watch.event().await;
    learned(&edge.node, 3).await;
    edge.link.set(State::Cut);
    edge.node.until_mode("offline").await;
    let table = edge
        .node
        .get_as(PODS, &[("accept", TABLE), ("user-agent", "kubectl/v1.36")])
        .await
        .json();
    assert_eq!(
        (
            table["kind"].as_str(),
            table["rows"].as_array().unwrap().len()
        ),
        (Some("Table"), 3),
        "{table}"
    );
    let full = edge
        .node
        .get(&format!("{PODS}?labelSelector=app%3Dc"))
        .await
        .json();
    assert_eq!(full["items"][0]["metadata"]["name"], "c");
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_is_there_for_who_never_asked() {
    let edge = edge().await;
    eventually("fetched", async || {
        !edge.cloud.seen(Method::GET, "/apis/apps/v1").is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    edge.link.set(State::Cut);
    edge.node.until_mode("offline").await;
    for path in ["/version", "/api", "/apis"] {
        let got = edge.node.get(path).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
    }
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_count_offline_when_they_did_online() {
    let edge = edge().await;
    edge.cloud.answer(Method::GET, POD, 200, JSON, pod("a", 7));
    let known = [("authorization", "Bearer known"), ("accept", JSON)];
    assert_eq!(edge.node.get_as(POD, &known).await.status, 200);
    learned(&edge.node, 1).await;
    edge.link.set(State::Cut);
    edge.node.until_mode("offline").await;
    assert_eq!(edge.node.get_as(POD, &known).await.status, 200);
    let unknown = edge
        .node
        .get_as(POD, &[("authorization", "Bearer other"), ("accept", JSON)])
        .await;
    assert_eq!(
        (unknown.status, unknown.json()["reason"].as_str()),
        (401, Some("Unauthorized"))
    );
    let impersonating = [
        ("authorization", "Bearer known"),
        ("impersonate-user", "x"),
        ("accept", JSON),
    ];
    assert_eq!(edge.node.get_as(POD, &impersonating).await.status, 503);
    // Nobody else can exec either.
    let exec = Request::builder()
        .uri(format!("{POD}/exec"))
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(yurt_transport::empty())
        .unwrap();
    let refused = edge
        .node
        .client
        .send_upgrade(exec, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(refused.status(), 503);
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_slow_for_one_request_is_not_waited_for_beyond_the_callers_time() {
    let edge = edge().await;
    edge.cloud.answer(Method::GET, POD, 200, JSON, pod("a", 7));
    edge.node.get(POD).await;
    learned(&edge.node, 1).await;
    edge.cloud.set(Method::GET, POD, Answer::Silence);
    let began = std::time::Instant::now();
    let got = edge.node.get(&format!("{POD}?timeout=1s")).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(began.elapsed() < Duration::from_secs(10));
    // What is not cached is a time-out, not an absence.
    edge.cloud
        .set(Method::GET, "/api/v1/nodes/x", Answer::Silence);
    let got = edge.node.get("/api/v1/nodes/x?timeout=1s").await;
    assert_eq!(
        (got.status, got.json()["reason"].as_str()),
        (504, Some("Timeout"))
    );
    edge.node.until_mode("online").await;
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_moves_to_another_server_without_the_client_noticing() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let (first, second) = (Cloud::start(&trust).await, Cloud::start(&trust).await);
    let link = Link::to(first.addr).await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr, second.addr])).await;
    eventually("both are up", async || {
        let status = node.status().await;
        status["servers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|s| s["state"] == "up")
    })
    .await;
    let target = format!("{PODS}?watch=true&resourceVersion=5");
    let mut watch = node.watch(&target, &[("accept", JSON)]).await;
    assert_eq!((first.watching(PODS), second.watching(PODS)), (1, 0));
    first.emit(PODS, event("ADDED", &pod("a", 7))).await;
    watch.event().await;
    link.set(State::Cut);
    eventually("resumed on the second", async || second.watching(PODS) == 1).await;
    let asked = second.seen(Method::GET, PODS).pop().unwrap().target;
    assert!(asked.contains("resourceVersion=7"), "{asked}");
    second.emit(PODS, event("MODIFIED", &pod("a", 8))).await;
    assert_eq!(
        watch.event().await["object"]["metadata"]["resourceVersion"],
        "8"
    );
    let status = node.status().await;
    assert_eq!(
        (
            status["mode"].as_str(),
            status["watches"]["resumed"].as_u64()
        ),
        (Some("online"), Some(1))
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_starts_waits_for_the_cloud_only_where_it_must() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let link = Link::to(cloud.addr).await;
    // The first sign of life takes longer than the node waits before it answers by itself.
    link.set(State::Cut);
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    cloud.answer(Method::GET, POD, 200, JSON, pod("a", 7));
    cloud.answer(Method::POST, PODS, 201, JSON, pod("b", 8));
    node.until_mode("offline").await;
    let post = [("content-type", JSON), ("accept", JSON)];
    let heal = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        link.set(State::Whole);
    };
    let (read, written, ()) = tokio::join!(
        node.get(POD),
        node.call(Method::POST, PODS, &post, "{}"),
        heal
    );
    assert_eq!(
        (read.status, written.status),
        (200, 201),
        "{} {}",
        read.text(),
        written.text()
    );
    node.stop().await;
}
