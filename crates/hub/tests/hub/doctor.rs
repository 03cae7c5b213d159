//! Would the node go on alone: asked, and tried.

use crate::{
    autonomy::{beat, edge, with_lease},
    cloud::{Cloud, JSON},
    link::State,
    node::{Node, eventually},
    pod_list,
};
use http::Method;
use serde_json::{Value, json};

const SECRET: &str = "/api/v1/namespaces/default/secrets/db";
const PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";

fn told(cloud: &Cloud) {
    with_lease(cloud);
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "edge-1", "uid": "n", "resourceVersion": "3",
            "annotations": {"node.beta.openyurt.io/autonomy": "true"}},
        "status": {"images": [{"names": ["docker.io/library/app:1"]}], "conditions": [{"type": "Ready", "status": "True"},
            {"type": "Autonomy", "status": "True", "reason": "autonomy enabled successfully",
                "message": "The autonomy is enabled and it works fine"}]},
    });
    let nodes = json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "4"}, "items": [node]});
    cloud.answer(Method::GET, "/api/v1/nodes", 200, JSON, nodes.to_string());
    cloud.answer(
        Method::GET,
        "/api/v1/nodes/edge-1",
        200,
        JSON,
        node.to_string(),
    );
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "5"},
        "spec": {"nodeName": "edge-1", "serviceAccountName": "default", "containers": [{"name": "c", "image": "app:1",
            "envFrom": [{"secretRef": {"name": "db"}}]}],
            "volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]},
        "status": {"phase": "Running"},
    });
    let list = pod_list(6, &[pod.to_string()]);
    cloud.answer(Method::GET, "/api/v1/pods", 200, JSON, list);
    for (path, api, kind) in [
        ("/api/v1/services", "v1", "ServiceList"),
        (
            "/apis/discovery.k8s.io/v1/endpointslices",
            "discovery.k8s.io/v1",
            "EndpointSliceList",
        ),
        (
            "/apis/node.k8s.io/v1/runtimeclasses",
            "node.k8s.io/v1",
            "RuntimeClassList",
        ),
        (
            "/apis/storage.k8s.io/v1/csidrivers",
            "storage.k8s.io/v1",
            "CSIDriverList",
        ),
    ] {
        let empty = json!({"apiVersion": api, "kind": kind, "metadata": {"resourceVersion": "6"}, "items": []});
        cloud.answer(Method::GET, path, 200, JSON, empty.to_string());
    }
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db", "namespace": "default", "uid": "s",
        "resourceVersion": "2"}, "data": {}});
    cloud.answer(Method::GET, SECRET, 200, JSON, secret.to_string());
}

/// What kubelet and kube-proxy read at their start, but the secret.
async fn read(node: &Node) {
    for path in [
        "/api/v1/nodes?fieldSelector=metadata.name%3Dedge-1",
        PODS,
        "/api/v1/services?fieldSelector=spec.clusterIP%21%3DNone",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/node.k8s.io/v1/runtimeclasses",
        "/apis/storage.k8s.io/v1/csidrivers",
    ] {
        let answer = node.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    beat(node, "5").await;
}

async fn examined(node: &Node) -> Value {
    let answer = node.admin("/v1/doctor").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn check<'a>(report: &'a Value, id: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["id"] == id).unwrap()
}

async fn drilled(node: &Node) -> Value {
    node.admin("/v1/drill").await.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_secret_is_found_and_the_drill_proves_both() {
    let edge = edge(told, |_| {}).await;
    let (cloud, node) = (&edge.cloud, &edge.node);
    let blank = examined(node).await;
    assert_eq!(blank["verdict"], "not ready");
    assert_eq!(check(&blank, "kubelet")["state"], "fail");
    read(node).await;
    eventually("everything but the secret is well", async || {
        let report = examined(node).await;
        let faults: Vec<&Value> = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["state"] != "ok")
            .map(|check| &check["id"])
            .collect();
        // Certificates of tests hold a day.
        faults == ["objects", "certificates"]
    })
    .await;
    let before = examined(node).await;
    let why = check(&before, "objects")["why"].as_str().unwrap();
    assert!(why.contains("secret default/db (pod default/web)"), "{why}");
    assert_eq!(check(&before, "certificates")["state"], "warn");

    // The drill says the same.
    let begun = node
        .admin_call(Method::POST, "/v1/drill", r#"{"seconds":5}"#)
        .await;
    assert_eq!(begun.status, 202, "{}", begun.text());
    let again = node.admin_call(Method::POST, "/v1/drill", "").await;
    assert_eq!(again.status, 409, "{}", again.text());
    node.until_mode("offline").await;
    let renewed = cloud.seen(Method::PUT, crate::autonomy::LEASE).len();
    // A real caller: it is answered from the cache, or not, and that is noted.
    assert_eq!(node.get(PODS).await.status, 200);
    assert_eq!(
        node.get("/api/v1/namespaces/default/configmaps/never")
            .await
            .status,
        503
    );
    eventually("it ends by itself", async || {
        drilled(node).await["state"] == "done"
    })
    .await;
    node.until_mode("online").await;
    assert!(
        cloud.seen(Method::PUT, crate::autonomy::LEASE).len() > renewed + 10,
        "the node's lease waited for the drill's end"
    );
    let drill = drilled(node).await;
    assert_eq!(
        (&drill["complete"], &drill["survived"]),
        (&true.into(), &false.into()),
        "{drill}"
    );
    let misses = drill["misses"].as_array().unwrap();
    let missed = |what: &str| {
        misses
            .iter()
            .any(|miss| miss["what"] == what && miss["code"] == 503)
    };
    assert!(
        missed(SECRET) && missed("/api/v1/namespaces/default/configmaps/never"),
        "{drill}"
    );
    assert_eq!(misses.len(), 2, "{drill}");

    // After it is cached the score rises, and the drill is passed.
    assert_eq!(node.get(SECRET).await.status, 200);
    eventually("the score rises", async || {
        examined(node).await["score"].as_u64() > before["score"].as_u64()
    })
    .await;
    assert_eq!(check(&examined(node).await, "objects")["state"], "ok");
    assert_eq!(
        node.admin_call(Method::POST, "/v1/drill", r#"{"seconds":5}"#)
            .await
            .status,
        202
    );
    eventually("it ends", async || drilled(node).await["state"] == "done").await;
    let drill = drilled(node).await;
    assert_eq!(drill["survived"], true, "{drill}");
    assert_eq!(drill["rehearsed"], drill["answered"]);
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_is_ended_on_request_and_not_begun_in_earnest() {
    let edge = edge(told, |_| {}).await;
    let node = &edge.node;
    assert_eq!(drilled(node).await["state"], "none");
    for bad in [
        r#"{"seconds":1}"#,
        r#"{"seconds":601}"#,
        r#"{"for":10}"#,
        "soon",
    ] {
        let answer = node.admin_call(Method::POST, "/v1/drill", bad).await;
        assert_eq!(answer.status, 400, "{bad}: {}", answer.text());
    }
    let begun = node
        .admin_call(Method::POST, "/v1/drill", r#"{"seconds":600}"#)
        .await;
    assert_eq!(begun.status, 202, "{}", begun.text());
    node.until_mode("offline").await;
    assert_eq!(
        node.admin_call(Method::DELETE, "/v1/drill", "")
            .await
            .status,
        200
    );
    node.until_mode("online").await;
    eventually("it is over", async || {
        drilled(node).await["state"] == "done"
    })
    .await;
    assert_eq!(drilled(node).await["complete"], false);
    // The link goes for real.
    edge.link.set(State::Cut);
    node.until_mode("offline").await;
    let refused = node.admin_call(Method::POST, "/v1/drill", "").await;
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert_eq!(check(&examined(node).await, "link")["state"], "warn");
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_goes_during_a_drill_is_down_after_it() {
    let edge = edge(told, |_| {}).await;
    let node = &edge.node;
    assert_eq!(
        node.admin_call(Method::POST, "/v1/drill", r#"{"seconds":5}"#)
            .await
            .status,
        202
    );
    node.until_mode("offline").await;
    edge.link.set(State::Cut);
    eventually("it is over", async || {
        drilled(node).await["state"] == "done"
    })
    .await;
    assert_eq!(node.status().await["mode"], "offline");
    edge.link.set(State::Whole);
    node.until_mode("online").await;
    edge.node.stop().await;
}
