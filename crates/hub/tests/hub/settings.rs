//! Config maps of the cloud, in force on the node.

use crate::{
    cloud::{Cloud, JSON, Trust},
    node::{Directory, Node, config, eventually},
};
use http::Method;
use serde_json::{Value, json};
use yurt_hub::Config;

const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
const NODES: &str = "/api/v1/nodes";

fn list(kind: &str, revision: u64, items: &[Value]) -> String {
    json!({
        "kind": format!("{kind}List"), "apiVersion": "v1",
        "metadata": { "resourceVersion": revision.to_string() }, "items": items,
    })
    .to_string()
}

fn map(name: &str, revision: u64, data: &Value) -> Value {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "kube-system", "uid": name, "resourceVersion": revision.to_string() },
        "data": data,
    })
}

fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": kind, "object": object }))
}

fn selected(path: &str, name: &str) -> String {
    format!("{path}?fieldSelector=metadata.name%3D{name}")
}

fn of_pool(config: Config) -> Config {
    Config {
        pool: "hangzhou".into(),
        ..config
    }
}

async fn until(node: &Node, what: &str, holds: impl Fn(&Value) -> bool) {
    let path = "/debug/settings";
    eventually(what, async || holds(&node.admin(path).await.json())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_are_followed_reset_by_deletion_and_known_after_an_offline_start() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let agents = |revision, agents: &str| {
        let data = json!({ "cache_agents": agents, "nonsense": "x", "masterservice": "k3s-agent" });
        map("yurt-hub-cfg", revision, &data)
    };
    let leaders = json!({ "leaders": "edge-9/10.0.0.9,broken", "enable-leader-election": "true" });
    let (hub_map, pool_map) = (
        selected(MAPS, "yurt-hub-cfg"),
        selected(MAPS, "leader-hub-hangzhou"),
    );
    let item = agents(7, "Nginx");
    cloud.answer(
        Method::GET,
        &hub_map,
        200,
        JSON,
        list("ConfigMap", 9, &[item]),
    );
    let item = map("leader-hub-hangzhou", 8, &leaders);
    cloud.answer(
        Method::GET,
        &pool_map,
        200,
        JSON,
        list("ConfigMap", 9, &[item]),
    );
    let config = || of_pool(config(&directory.0, &trust, &[cloud.addr]));

    let node = Node::start(config()).await;
    until(&node, "both maps in force", |s| {
        s["cacheAgents"] == json!(["nginx"])
            && s["filters"] == json!({ "masterservice": ["k3s-agent"] })
            && s["leaders"] == json!(["edge-9/10.0.0.9"])
            && s["leaderElection"] == true
            && s["poolScope"][0] == "/v1/services"
    })
    .await;
    assert_eq!(node.metric("node_yurthub_settings_ignored").await, 2.0);

    let watch = |name: &str| selected(MAPS, name);
    eventually("the map is watched", async || {
        let event = event("MODIFIED", &agents(11, "nginx,calico"));
        cloud.emit(&watch("yurt-hub-cfg"), event).await > 0
    })
    .await;
    until(&node, "a change", |s| {
        s["cacheAgents"] == json!(["calico", "nginx"])
    })
    .await;
    node.stop().await;
    cloud.stop();
    // Known again although nobody can be asked.
    let node = Node::start(config()).await;
    until(&node, "the settings of before", |s| {
        s["cacheAgents"] == json!(["calico", "nginx"]) && s["leaders"] == json!(["edge-9/10.0.0.9"])
    })
    .await;
    node.stop().await;

    let cloud = Cloud::start(&trust).await;
    let item = agents(11, "nginx,calico");
    cloud.answer(
        Method::GET,
        &hub_map,
        200,
        JSON,
        list("ConfigMap", 12, &[item]),
    );
    cloud.answer(
        Method::GET,
        &pool_map,
        200,
        JSON,
        list("ConfigMap", 12, &[]),
    );
    let config = of_pool(crate::node::config(&directory.0, &trust, &[cloud.addr]));
    let node = Node::start(config).await;
    until(&node, "a map that is gone is not in force", |s| {
        s["leaders"] == json!([]) && s["leaderElection"] == false
    })
    .await;
    eventually("the map is watched", async || {
        let event = event("DELETED", &agents(13, "nginx,calico"));
        cloud.emit(&watch("yurt-hub-cfg"), event).await > 0
    })
    .await;
    until(&node, "deletion resets", |s| {
        s["cacheAgents"] == json!([]) && s["filters"] == json!({})
    })
    .await;
    node.stop().await;
}

/// W17: the pool's name is no flag that must be given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_label_says_the_pool() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let labelled = |revision: u64, pool: &str| {
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "name": "edge-1", "uid": "n", "resourceVersion": revision.to_string(),
                "labels": { "apps.openyurt.io/nodepool": pool } },
        })
    };
    let nodes = selected(NODES, "edge-1");
    let node_list = list("Node", 3, &[labelled(3, "a")]);
    cloud.answer(Method::GET, &nodes, 200, JSON, node_list);
    for (pool, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let name = format!("leader-hub-{pool}");
        let data = json!({ "leaders": format!("leader/{address}") });
        let maps = list("ConfigMap", 3, &[map(&name, 2, &data)]);
        cloud.answer(Method::GET, &selected(MAPS, &name), 200, JSON, maps);
    }
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    until(&node, "the pool of the label", |s| {
        s["pool"] == "a" && s["leaders"] == json!(["leader/10.0.0.1"])
    })
    .await;
    eventually("the Node is watched", async || {
        cloud
            .emit(&nodes, event("MODIFIED", &labelled(4, "b")))
            .await
            > 0
    })
    .await;
    until(&node, "another pool", |s| {
        s["pool"] == "b" && s["leaders"] == json!(["leader/10.0.0.2"])
    })
    .await;
    node.stop().await;
}
