//! What hubs are told and may do. Facts: OpenYurt's charts `yurt-manager` and `yurt-coordinator`.

use super::{
    Values,
    access::{Subject, bind, role},
};
use serde_json::{Value, json};
use yurt_api::names::{
    labels::CONFIG_MAP_NAME,
    objects::{
        HUB_CONFIG, LEASE_PROXY_SECRET, LEASE_PROXY_USER, MULTIPLEXER_GROUP, MULTIPLEXER_ROLE,
    },
};

/// The group of all nodes.
const NODES: &str = "system:nodes";
/// The group of machines that join.
const JOINING: &str = "system:bootstrappers";
/// Where the leases of nodes are.
const NODE_LEASES: &str = "kube-node-lease";

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

fn config(values: &Values) -> Value {
    let mut config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": values.metadata(HUB_CONFIG),
        "data": {"cache_agents": values.cache_agents,
            "servicetopology": "", "discardcloudservice": "", "masterservice": ""}});
    // Hubs may only watch by selector.
    config["metadata"]["labels"][CONFIG_MAP_NAME] = HUB_CONFIG.into();
    config
}

/// What every hub may do as its node. Its config maps are read in their namespace only.
fn of_nodes(namespace: &str) -> [Value; 4] {
    let (follow, read) = (["list", "watch"], ["get", "list", "watch"]);
    let (name, nodes) = ("yurt-hub", Subject::Group(NODES));
    let everywhere = vec![
        rule("", &["events"], &["get"]),
        rule("apps.openyurt.io", &["nodebuckets", "nodepools"], &read),
        rule("", &["services"], &read),
        rule("", &["endpoints"], &follow),
        rule("discovery.k8s.io", &["endpointslices"], &follow),
        rule("coordination.k8s.io", &["leases"], &["get", "update"]),
    ];
    let local = vec![rule("", &["configmaps"], &read)];
    [
        role(None, name, everywhere),
        bind(None, name, &nodes),
        role(Some(namespace), name, local),
        bind(Some(namespace), name, &nodes),
    ]
}

/// What pools share, as the manager keeps the role; a hub asks for it as its node, or as a member of OpenYurt's group.
fn of_pools() -> [Value; 3] {
    let shared = vec![
        rule("", &["services"], &["list", "watch"]),
        rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
    ];
    let mut nodes = bind(None, MULTIPLEXER_ROLE, &Subject::Group(NODES));
    nodes["metadata"]["name"] = format!("{MULTIPLEXER_ROLE}:nodes").into();
    [
        role(None, MULTIPLEXER_ROLE, shared),
        bind(None, MULTIPLEXER_ROLE, &Subject::Group(MULTIPLEXER_GROUP)),
        nodes,
    ]
}

/// Who leads a pool renews the leases of its nodes, with an identity that may do nothing else, and that every node may read.
fn delegation(namespace: &str) -> [Value; 4] {
    let renew = rule(
        "coordination.k8s.io",
        &["leases"],
        &["get", "create", "update", "patch"],
    );
    let mut identity = rule("", &["secrets"], &["get", "list", "watch"]);
    identity["resourceNames"] = json!([LEASE_PROXY_SECRET]);
    let (proxy, reader) = (
        "yurt-coordinator:node-lease-proxy-client",
        "yurt-coordinator:certificates",
    );
    [
        role(Some(NODE_LEASES), proxy, vec![renew]),
        bind(Some(NODE_LEASES), proxy, &Subject::User(LEASE_PROXY_USER)),
        role(Some(namespace), reader, vec![identity]),
        bind(Some(namespace), reader, &Subject::Group(NODES)),
    ]
}

/// All of it.
pub(super) fn objects(values: &Values) -> Vec<Value> {
    let bootstrap = "yurt-hub-bootstrap";
    let pools = vec![rule("apps.openyurt.io", &["nodepools"], &["get"])];
    let mut objects = vec![config(values)];
    objects.extend(of_nodes(&values.namespace));
    objects.push(role(None, bootstrap, pools));
    objects.push(bind(None, bootstrap, &Subject::Group(JOINING)));
    objects.extend(of_pools());
    objects.extend(delegation(&values.namespace));
    objects
}
