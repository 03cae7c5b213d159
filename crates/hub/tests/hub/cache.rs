//! What reaches the cache of a whole hub: of which agents, and from an older hub's files.

use crate::{
    cloud::{Answer, Cloud, JSON, Trust},
    link::{Link, State},
    node::{Directory, Node, config, eventually},
    pod, pod_list,
};
use http::Method;
use serde_json::json;
use std::fs;

const PODS: &str = "/api/v1/namespaces/default/pods";
const NODE_PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
const MAPS: &str =
    "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dyurt-hub-cfg";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_cache_agents_does_not_name_are_not_learned_from() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let maps = json!({
        "kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"},
        "items": [{
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "yurt-hub-cfg", "namespace": "kube-system", "resourceVersion": "7"},
            "data": {"cache_agents": "Calico"},
        }],
    });
    cloud.answer(Method::GET, MAPS, 200, JSON, maps.to_string());
    let (of_others, of_calico, of_kubelet) = (
        format!("{PODS}/others"),
        format!("{PODS}/of-calico"),
        format!("{PODS}/of-kubelet"),
    );
    for (path, name) in [
        (&of_others, "others"),
        (&of_calico, "of-calico"),
        (&of_kubelet, "of-kubelet"),
    ] {
        cloud.answer(Method::GET, path, 200, JSON, pod(name, 7));
    }
    cloud.answer(
        Method::GET,
        PODS,
        200,
        JSON,
        pod_list(9, &[pod("listed", 8)]),
    );
    let config = || config(&directory.0, &trust, &[cloud.addr]);
    let node = Node::start(config()).await;
    node.until_up().await;
    eventually("the setting is in force", async || {
        node.admin("/debug/settings").await.json()["cacheAgents"] == json!(["calico"])
    })
    .await;
    let read = async |path: &str, agent: &str| {
        let headers = [("accept", JSON), ("user-agent", agent)];
        assert_eq!(node.get_as(path, &headers).await.status, 200, "{agent}");
    };
    read(&of_others, "others/v1").await;
    read(PODS, "others/v1").await;
    read(&of_calico, "calico/v3 (linux)").await;
    // Lessons are taken in order: when the last is learned, the first would have been.
    read(&of_kubelet, "kubelet/v1.33.1 (linux/amd64)").await;
    eventually("the last is learned", async || {
        let overview = node.admin("/debug/cache").await.json();
        let resources = overview["resources"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        resources
            .iter()
            .any(|row| row["resource"] == "v1/pods" && row["objects"] == 2)
    })
    .await;
    node.stop().await;
    cloud.stop();
    let node = Node::start(config()).await;
    for (path, status) in [(&of_calico, 200), (&of_kubelet, 200), (&of_others, 503)] {
        // Whoever asks: what is there is for all who may read it.
        let headers = [("accept", JSON), ("user-agent", "others/v1")];
        assert_eq!(node.get_as(path, &headers).await.status, status, "{path}");
    }
    assert_eq!(node.get(PODS).await.status, 503);
    node.stop().await;
}

/// A node whose hub of OpenYurt is replaced while the cloud is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_without_the_cloud_serves_what_the_older_hub_had_cached() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let old = directory.0.join("cache");
    let write = |path: &str, content: &str| {
        let file = old.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    };
    write("kubelet/pods.v1.core/default/web", &pod("web", 70));
    write("version", r#"{"major":"1","minor":"30"}"#);
    // Nobody listens there.
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for _ in 0..2 {
        let node = Node::start(config(&directory.0, &trust, &[closed])).await;
        let listed = node.get(NODE_PODS).await;
        assert_eq!(listed.status, 200);
        assert_eq!(listed.json()["items"][0]["metadata"]["name"], "web");
        assert_eq!(node.get("/version").await.json()["minor"], "30");
        assert_eq!(node.get("/api/v1/pods").await.status, 503);
        node.stop().await;
    }
    assert!(!old.join("kubelet").exists());
}

/// Discovery that did not change is not fetched again when the link comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_that_did_not_change_costs_two_short_answers() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let fixture = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/kube-apiserver")
            .join(name);
        fs::read(path).unwrap()
    };
    for (path, file) in [
        ("/api", "discovery-api.json"),
        ("/apis", "discovery-apis.json"),
    ] {
        let answer = Answer::Tagged("\"1\"", JSON, fixture(file).into());
        cloud.set(Method::GET, path, answer);
    }
    let link = Link::to(cloud.addr).await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_up().await;
    let asked = |path: &str| cloud.seen(Method::GET, path).len();
    let versions = cloud_versions(&fixture("discovery-apis.json"));
    let looked_at = || {
        let seen = cloud.seen(Method::GET, "/apis/");
        seen.iter()
            .filter(|seen| seen.target.matches('/').count() == 3)
            .count()
    };
    eventually("every version was looked at", async || {
        looked_at() == versions
    })
    .await;
    link.set(State::Cut);
    node.until_mode("offline").await;
    link.set(State::Whole);
    node.until_mode("online").await;
    eventually("both are asked for again", async || {
        let tagged = |path| {
            let seen = cloud.seen(Method::GET, path);
            seen.iter()
                .any(|seen| seen.target == path && seen.headers.contains_key("if-none-match"))
        };
        tagged("/api") && tagged("/apis")
    })
    .await;
    let before = asked("/version");
    // Another look: what follows the first within it would have been asked for by now.
    link.set(State::Cut);
    node.until_mode("offline").await;
    link.set(State::Whole);
    node.until_mode("online").await;
    eventually("a further look", async || asked("/version") > before).await;
    assert_eq!(looked_at(), versions);
    node.stop().await;
}

/// Group versions that a discovery document names.
fn cloud_versions(groups: &[u8]) -> usize {
    let groups: serde_json::Value = serde_json::from_slice(groups).unwrap();
    let groups = groups["groups"].as_array().unwrap();
    groups
        .iter()
        .map(|group| group["versions"].as_array().unwrap().len())
        .sum()
}
