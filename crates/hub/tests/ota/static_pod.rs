//! Static pods: their manifest is verified, replaced, and put back.

use crate::{
    edge::{Edge, PODS, direct},
    node::eventually,
};
use http::Method;
use serde_json::{Value, json};
use std::path::PathBuf;

const HASH: &str = "openyurt.io/static-pod-hash";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const POD: &str = "proxy-edge-1";

fn manifest(hash: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: proxy\n  namespace: default\n  annotations:\n    {HASH}: {hash}\n\
         spec:\n  containers:\n  - name: c\n    image: {image}\n"
    )
}

/// The mirror of a manifest, as a kubelet makes it.
async fn mirror(edge: &Edge, hash: &str, image: &str) {
    direct(
        &edge.cloud,
        Method::DELETE,
        &format!("{PODS}/{POD}"),
        Some(json!({"gracePeriodSeconds": 0})),
    )
    .await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": POD, "annotations": {HASH: hash, "kubernetes.io/config.source": "file",
            "kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": edge.node_uid, "controller": true}]},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": image}]},
    });
    let (status, made) = direct(&edge.cloud, Method::POST, PODS, Some(pod)).await;
    assert_eq!(status, 201, "{made}");
}

async fn set(edge: &Edge, announced: &str, data: Value) {
    direct(
        &edge.cloud,
        Method::DELETE,
        &format!("{MAPS}/yurt-static-set-proxy"),
        None,
    )
    .await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "yurt-static-set-proxy", "annotations": {HASH: announced}}, "data": data});
    let (status, made) = direct(&edge.cloud, Method::POST, MAPS, Some(map)).await;
    assert_eq!(status, 201, "{made}");
}

async fn edge() -> (Edge, PathBuf) {
    let edge = Edge::start(|_| {}).await;
    let file = edge.root().join("manifests/proxy.yaml");
    std::fs::write(&file, manifest("h1", "a:1")).unwrap();
    mirror(&edge, "h1", "a:1").await;
    edge.condition(POD, json!({"type": "PodNeedUpgrade", "status": "True"}))
        .await;
    (edge, file)
}

async fn id(edge: &Edge) -> String {
    edge.jobs().await.last().unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_verified_replaced_and_its_pod_seen_through() {
    let (edge, file) = edge().await;
    let untouched = |file: &PathBuf| {
        assert_eq!(
            std::fs::read_to_string(file).unwrap(),
            manifest("h1", "a:1")
        )
    };
    let refused = edge.upgrade(POD).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(
        refused.text().contains("yurt-static-set-proxy"),
        "{}",
        refused.text()
    );
    for (announced, data, why) in [
        (
            "h2",
            json!({"proxy": manifest("h3", "a:2")}),
            "not the one announced",
        ),
        (
            "h2",
            json!({"proxy": manifest("h2", "a:2").replace("name: proxy", "name: other")}),
            "of pod default/other",
        ),
        ("h2", json!({"proxy": "kind: Secret"}), "not a Pod"),
        (
            "h2",
            json!({".proxy": manifest("h2", "a:2")}),
            "not the name of a file",
        ),
    ] {
        set(&edge, announced, data).await;
        let refused = edge.upgrade(POD).await;
        assert_eq!(refused.status, 403, "{}", refused.text());
        assert!(refused.text().contains(why), "{}", refused.text());
        untouched(&file);
    }
    // A manifest that is not there is not made, and nothing outside of the directory is touched.
    set(&edge, "h2", json!({"elsewhere": manifest("h2", "a:2")})).await;
    let outside = edge.root().join("outside");
    std::fs::write(&outside, manifest("h1", "a:1")).unwrap();
    std::os::unix::fs::symlink(&outside, edge.root().join("manifests/elsewhere.yaml")).unwrap();
    let refused = edge.upgrade(POD).await;
    assert_eq!(refused.status, 500, "{}", refused.text());
    assert!(
        refused.text().contains("symbolic link"),
        "{}",
        refused.text()
    );
    untouched(&outside);

    set(&edge, "h2", json!({"proxy": manifest("h2", "a:2")})).await;
    let begun = edge.upgrade(POD).await;
    assert_eq!(
        (begun.status, begun.text()),
        (200, format!("Start updating pod default/{POD}"))
    );
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        manifest("h2", "a:2")
    );
    mirror(&edge, "h2", "a:2").await;
    edge.until_job(&id(&edge).await, "done").await;
    edge.until_event("UpgradeSucceeded").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_put_back_when_its_pod_does_not_become_ready() {
    let (edge, file) = edge().await;
    edge.workshop.lock().unwrap().good.remove("a:2");
    set(&edge, "h2", json!({"proxy": manifest("h2", "a:2")})).await;
    assert_eq!(edge.upgrade(POD).await.status, 200);
    mirror(&edge, "h2", "a:2").await;
    let job = id(&edge).await;
    edge.late(&job).await;
    edge.until_job(&job, "rolling-back").await;
    eventually("the old manifest is back", async || {
        std::fs::read_to_string(&file).unwrap() == manifest("h1", "a:1")
    })
    .await;
    mirror(&edge, "h1", "a:1").await;
    edge.until_job(&job, "rolled-back").await;
    edge.until_event("UpgradeRolledBack").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_was_written_before_a_kill_is_seen_through_or_put_back() {
    let (edge, _) = edge().await;
    set(&edge, "h2", json!({"proxy": manifest("h2", "a:2")})).await;
    assert_eq!(edge.upgrade(POD).await.status, 200);
    let job = id(&edge).await;
    // The cluster wants yet another one by then: it is the one of before that is had back.
    set(&edge, "h3", json!({"proxy": manifest("h3", "a:3")})).await;
    let edge = edge.kill(|_| {}).await;
    let file = edge.root().join("manifests/proxy.yaml");
    // No kubelet took it up.
    edge.policy("readyTimeout: 1s\nminReady: 0s");
    edge.until_job(&job, "rolled-back").await;
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        manifest("h1", "a:1")
    );
    edge.stop().await;
}
