//! Readiness, and the mode of a node beside the API servers.

use crate::{
    bookmark,
    cloud::{Cloud, JSON, Trust},
    event,
    link::{Link, State},
    node::{Came, Directory, Node, config, eventually},
    pod, pod_list,
};
use http::Method;
use serde_json::json;
use yurt_hub::{Config, config::WorkingMode};

const PODS: &str = "/api/v1/namespaces/default/pods";
const POD: &str = "/api/v1/namespaces/default/pods/a";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_when_the_cloud_or_the_cache_can_answer() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let link = Link::to(cloud.addr).await;
    link.set(State::Cut);
    let config = || config(&directory.0, &trust, &[link.addr]);
    let node = Node::start(config()).await;
    node.until_mode("offline").await;
    let ready = node.admin("/v1/readyz").await;
    assert_eq!(
        (ready.status, ready.text().as_str()),
        (500, "no API server answers, and nothing is cached\n")
    );
    assert_eq!(node.admin("/v1/healthz").await.text(), "OK", "but alive");
    link.set(State::Whole);
    eventually("ready by the cloud", async || {
        node.admin("/v1/readyz").await.status == 200
    })
    .await;
    cloud.answer(Method::GET, POD, 200, JSON, pod("a", 7));
    assert_eq!(node.get(POD).await.status, 200);
    link.set(State::Cut);
    node.until_mode("offline").await;
    assert_eq!(node.admin("/v1/readyz").await.text(), "OK");
    node.stop().await;
    // Also after a start without the cloud, and without a certificate.
    let node = Node::start(Config {
        node_certificate: None,
        ..config()
    })
    .await;
    node.until_mode("offline").await;
    assert_eq!(node.admin("/v1/readyz").await.text(), "OK");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_links_turns_are_told_with_their_causes() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let link = Link::to(cloud.addr).await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_up().await;
    link.set(State::Cut);
    node.until_mode("offline").await;
    link.set(State::Whole);
    node.until_mode("online").await;
    let debug = node.admin("/debug/link").await.json();
    let server = &debug["servers"][0];
    assert_eq!(server["server"], link.addr.to_string());
    assert_eq!(server["state"], "up");
    let turns = server["turns"].as_array().unwrap();
    let states: Vec<&str> = turns.iter().map(|t| t["to"].as_str().unwrap()).collect();
    assert_eq!(states, ["up", "down", "up"]);
    assert_eq!(turns[1]["cause"], "probes were not answered");
    assert!(turns[1]["afterSeconds"].as_f64().unwrap() > 0.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_beside_the_cloud_remembers_nothing() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let link = Link::to(cloud.addr).await;
    let of_cloud = || Config {
        working_mode: WorkingMode::Cloud,
        ..config(&directory.0, &trust, &[link.addr])
    };
    cloud.answer(Method::GET, POD, 200, JSON, pod("a", 7));
    cloud.answer(Method::GET, PODS, 200, JSON, pod_list(9, &[pod("a", 7)]));
    cloud.answer(
        Method::PATCH,
        &format!("{POD}/status"),
        200,
        JSON,
        pod("a", 8),
    );
    let node = Node::start(of_cloud()).await;
    node.until_up().await;
    assert_eq!(node.get(POD).await.text(), pod("a", 7));
    assert_eq!(node.get(PODS).await.status, 200);

    // A watch is the cloud's own, to its end.
    let mut watch = node
        .watch(&format!("{PODS}?watch=true&resourceVersion=9"), &[])
        .await;
    eventually("the watch is open", async || cloud.watching(PODS) == 1).await;
    cloud.emit(PODS, event("ADDED", &pod("b", 10))).await;
    cloud.emit(PODS, bookmark(11, false)).await;
    assert_eq!(watch.event().await["object"]["metadata"]["name"], "b");
    assert_eq!(watch.event().await["type"], "BOOKMARK");
    assert_eq!(node.status().await["cache"]["objects"], 0);
    let fetched = cloud.seen(Method::GET, "/apis");
    assert!(
        !fetched.iter().any(|seen| seen.target == "/apis"),
        "nothing is fetched beforehand"
    );

    // Without the cloud nothing is answered, and no write is kept.
    link.set(State::Cut);
    node.until_mode("offline").await;
    assert!(matches!(watch.next().await, Came::Broken | Came::End));
    for path in [POD, PODS, "/version"] {
        assert_eq!(node.get(path).await.status, 503, "{path}");
    }
    let write = node
        .call(
            Method::PATCH,
            &format!("{POD}/status"),
            &[("content-type", "application/merge-patch+json")],
            &json!({ "status": { "phase": "Failed" } }).to_string(),
        )
        .await;
    assert_eq!(write.status, 503);
    assert_eq!(node.status().await["journal"]["pending"], 0);
    let ready = node.admin("/v1/readyz").await;
    assert_eq!(ready.status, 500);

    link.set(State::Whole);
    node.until_mode("online").await;
    assert_eq!(node.get(POD).await.status, 200);
    assert_eq!(node.admin("/v1/readyz").await.text(), "OK");
    // At the end of the hub its watches end as those of an API server do.
    let mut watch = node
        .watch(&format!("{PODS}?watch=true&resourceVersion=9"), &[])
        .await;
    let stopping = tokio::spawn(node.stop());
    assert_eq!(watch.next().await, Came::End);
    stopping.await.unwrap();
}
