//! How a pod is deleted, to the letter: against an API server that follows a script.

use crate::{
    cloud::{Answer, Cloud, JSON, Trust},
    edge::copy,
    node::{Directory, Node, config, eventually},
};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

const PODS: &str = "/api/v1/namespaces/default/pods";
const POD: &str = "/api/v1/namespaces/default/pods/agent";
const UPGRADE: &str = "/openyurt.io/v1/namespaces/default/pods/agent/upgrade";
const UPGRADES: &str = "/openyurt.io/v1/upgrades";

fn pod(name: &str, uid: &str, revision: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": uid, "resourceVersion": revision,
            "ownerReferences": [{"kind": "DaemonSet", "name": "agent", "uid": "set"}]},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": "a:1"}]},
        "status": {"conditions": [{"type": "PodNeedUpgrade", "status": "True"}, {"type": "Ready", "status": "True"}]},
    })
}

fn list(pods: &[Value]) -> String {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "90"}, "items": pods}).to_string()
}

fn status(code: u16, reason: &str) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": format!("said {reason}"), "reason": reason, "code": code}).to_string()
}

/// From now on these are the pods.
fn has(cloud: &Cloud, pods: &[Value]) {
    cloud.answer(Method::GET, PODS, 200, JSON, list(pods));
}

struct Edge {
    cloud: Cloud,
    node: Node,
    trust: Trust,
    directory: Directory,
}

async fn edge() -> Edge {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    has(&cloud, &[pod("agent", "old", "7")]);
    cloud.answer(Method::GET, "/api/v1/pods", 200, JSON, list(&[]));
    cloud.answer(
        Method::POST,
        "/api/v1/namespaces/default/events",
        201,
        JSON,
        "{}",
    );
    let node = start(&directory, &trust, &cloud).await;
    Edge {
        cloud,
        node,
        trust,
        directory,
    }
}

async fn start(directory: &Directory, trust: &Trust, cloud: &Cloud) -> Node {
    let mut config = config(&directory.0, trust, &[cloud.addr]);
    config.ota.look = Duration::from_millis(50);
    std::fs::write(directory.0.join("ota-policy.yaml"), "minReady: 0s\n").unwrap();
    let node = Node::start(config).await;
    node.until_mode("online").await;
    node
}

impl Edge {
    fn deletions(&self) -> Vec<Value> {
        let seen = self.cloud.seen(Method::DELETE, POD);
        seen.iter()
            .map(|seen| serde_json::from_slice(&seen.body).unwrap())
            .collect()
    }

    async fn tried_again(&self) {
        eventually("it is tried again", async || self.deletions().len() >= 2).await;
    }

    async fn state(&self) -> (String, String) {
        let jobs = self.node.admin(UPGRADES).await.json();
        let job = jobs["items"]
            .as_array()
            .and_then(|jobs| jobs.last().cloned())
            .unwrap_or_default();
        let text = |name: &str| job[name].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_means_the_pod_as_it_was_read_and_is_repeated_while_others_change_it() {
    let edge = edge().await;
    edge.cloud
        .answer(Method::DELETE, POD, 409, JSON, status(409, "Conflict"));
    let asking = async { edge.node.admin_call(Method::POST, UPGRADE, "").await };
    let scripting = async {
        edge.tried_again().await;
        has(&edge.cloud, &[pod("agent", "old", "8")]);
        eventually("as it is now", async || {
            edge.deletions()
                .last()
                .is_some_and(|sent| sent["preconditions"]["resourceVersion"] == "8")
        })
        .await;
        edge.cloud.answer(Method::DELETE, POD, 200, JSON, "{}");
    };
    let (answer, ()) = tokio::join!(asking, scripting);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "Start updating pod default/agent")
    );
    for sent in edge.deletions() {
        assert_eq!(sent["preconditions"]["uid"], "old");
        assert!(sent["preconditions"]["resourceVersion"].is_string());
    }
    for seen in edge.cloud.seen(Method::DELETE, POD) {
        assert!(seen.certificate, "not as the node");
    }
    // What is deleted is not deleted again.
    let count = edge.deletions().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        (edge.deletions().len(), edge.state().await.0.as_str()),
        (count, "waiting-for-pod")
    );
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_in_trouble_is_asked_again_and_a_refusal_is_final() {
    let edge = edge().await;
    edge.cloud
        .answer(Method::DELETE, POD, 500, JSON, status(500, "InternalError"));
    let asking = async { edge.node.admin_call(Method::POST, UPGRADE, "").await };
    let scripting = async {
        edge.tried_again().await;
        // It was carried out all the same: another pod has the name.
        has(&edge.cloud, &[pod("agent", "another", "9")]);
    };
    let (answer, ()) = tokio::join!(asking, scripting);
    assert_eq!(answer.status, 200, "{}", answer.text());
    edge.node.stop().await;

    let edge = self::edge().await;
    edge.cloud
        .answer(Method::DELETE, POD, 403, JSON, status(403, "Forbidden"));
    let answer = edge.node.admin_call(Method::POST, UPGRADE, "").await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (500, "said Forbidden")
    );
    assert_eq!(edge.deletions().len(), 1);
    assert_eq!(
        edge.state().await,
        ("failed".into(), "said Forbidden".into())
    );
    // What failed can be asked for again.
    edge.cloud.answer(Method::DELETE, POD, 200, JSON, "{}");
    assert_eq!(
        edge.node.admin_call(Method::POST, UPGRADE, "").await.status,
        200
    );
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_in_trouble_is_given_up() {
    let edge = edge().await;
    edge.cloud.answer(
        Method::DELETE,
        POD,
        503,
        JSON,
        status(503, "ServiceUnavailable"),
    );
    let answer = edge.node.admin_call(Method::POST, UPGRADE, "").await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(
        answer.text().contains("given up after 10 attempts"),
        "{}",
        answer.text()
    );
    assert_eq!(edge.deletions().len(), 10);
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_killed_while_it_deletes_goes_on_where_it_was() {
    let edge = edge().await;
    edge.cloud.set(Method::DELETE, POD, Answer::Silence);
    let killed = Directory::new();
    let asking = edge.node.admin_call(Method::POST, UPGRADE, "");
    let killing = async {
        eventually("it is deleted", async || edge.deletions().len() == 1).await;
        copy(&edge.directory.0, &killed.0);
    };
    tokio::select! {
        answer = asking => panic!("{}", answer.text()),
        () = killing => {}
    }
    let Edge {
        cloud, node, trust, ..
    } = edge;
    node.stop().await;
    cloud.answer(Method::DELETE, POD, 200, JSON, "{}");
    cloud.answer(
        Method::GET,
        "/api/v1/pods",
        200,
        JSON,
        list(&[pod("agent-2", "new", "12")]),
    );
    let node = start(&killed, &trust, &cloud).await;
    let after = Edge {
        cloud,
        node,
        trust,
        directory: killed,
    };
    eventually("it is done", async || after.state().await.0 == "done").await;
    let deletions = after.deletions();
    assert_eq!(deletions.len(), 2);
    assert_eq!(deletions[1]["preconditions"]["uid"], "old");
    after.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_know_its_pods_says_so() {
    let edge = edge().await;
    edge.cloud.answer(
        Method::GET,
        "/api/v1/pods",
        500,
        JSON,
        status(500, "InternalError"),
    );
    let unknown = edge.node.admin("/pods").await;
    assert_eq!(
        (unknown.status, unknown.text().as_str()),
        (500, "Get pod list failed")
    );
    let told = list(&[pod("agent", "old", "7")]);
    edge.cloud
        .answer(Method::GET, "/api/v1/pods", 200, JSON, told);
    let pods = edge.node.admin("/pods").await.json();
    assert_eq!(pods["items"][0]["metadata"]["name"], "agent");
    assert_eq!(pods["metadata"]["resourceVersion"], "90");
    edge.node.stop().await;
}
