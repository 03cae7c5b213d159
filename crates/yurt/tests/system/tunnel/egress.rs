//! A real kube-apiserver reaches an edge through the tunnel, by each transport of its EgressSelector. `KUBE_APISERVER` and `ETCD` name
//! the binaries; without them the tests are skipped and say so.

mod cloud;
mod edge_service;
mod recorder;

use super::{
    operations::{attaches, copies, forwards, speaks_spdy, types},
    pair::{AGENT_NODE, Cluster, Pair},
};
use crate::fixture::{Kubectl, Scratch, eventually, text};
use cloud::{Cloud, NODE, Node, apply, pod};
use edge_service::{EdgeService, HELLO};
use recorder::Recorder;
use serde_json::{Value, json};
use std::{path::Path, process::Command};

/// Addresses of the node and of its pods (RFC 5737: nobody's). kube-apiserver proxies to no loopback address, and no endpoint has one.
const NETWORKS: [&str; 2] = ["192.0.2.0/24", "198.51.100.0/24"];
/// What is copied each way.
const MEGABYTES: usize = 1024;

/// What an operator does, all of it through the tunnel.
fn operate(kubectl: &Kubectl, dir: &Path, megabytes: usize) {
    let mut logs = kubectl.follow(&["logs", "-f", "web"]);
    eventually("a line of the log", || !logs.lines().is_empty());
    let before = logs.lines().len();
    assert_eq!(
        kubectl.ok(&["exec", "web", "--", "echo", "a b", "c"]),
        "a b c\n"
    );
    let failed = kubectl.output(&["exec", "web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{}", text(&failed.stderr));
    assert_eq!(
        kubectl.feed(&["exec", "-i", "web", "--", "cat"], "through\n"),
        "through\n"
    );
    types(kubectl, dir);
    copies(kubectl, dir, megabytes);
    forwards(kubectl);
    // The request is in the log, which is followed all the while.
    eventually("another line of the log", || logs.lines().len() > before);
    assert!(logs.runs());
    attaches(kubectl);
    speaks_spdy(kubectl);
    let path = format!("/api/v1/nodes/{AGENT_NODE}/proxy/metrics/resource");
    let figures = kubectl.ok(&["get", "--raw", &path]);
    assert!(
        figures.contains("node_cpu_usage_seconds_total"),
        "{figures}"
    );
}

/// The node, joined, with a pod that is ready.
fn node_with(cloud: &Cloud, kubectl: &Kubectl, pod: &Value) -> Node {
    let node = Node::start(cloud);
    eventually("the node joins", || {
        kubectl
            .ok(&["get", "nodes", "-o", "name"])
            .contains(AGENT_NODE)
    });
    apply(kubectl, std::slice::from_ref(pod));
    node
}

fn ready(kubectl: &Kubectl, pod: &str) {
    let pod = format!("pod/{pod}");
    kubectl.ok(&["wait", &pod, "--for=condition=Ready", "--timeout=60s"]);
}

/// Whether a refusal is ours. Of a CONNECT that failed kube-apiserver tells the status only.
fn says_no_agent(refused: &str) -> bool {
    refused.contains("agent") || refused.contains("503 Service Unavailable")
}

/// Marks the test that runs inside of a network namespace of its own.
const INSIDE: &str = "YURT_TEST_NETNS";

/// Runs the calling test again, by its full name, in a network namespace in which [`NETWORKS`] are this machine; true inside.
fn inside(test: &str) -> bool {
    let tool = |name: &str, arguments: &[&str]| {
        let done = Command::new(name).args(arguments).output();
        done.is_ok_and(|done| done.status.success())
    };
    if std::env::var_os(INSIDE).is_some() {
        assert!(tool("ip", &["link", "set", "lo", "up"]));
        for network in NETWORKS {
            assert!(tool("ip", &["address", "add", network, "dev", "lo"]));
        }
        return true;
    }
    if !tool("unshare", &["--net", "ip", "link"]) {
        eprintln!("SKIPPED {test}: no network namespace can be made here");
        return false;
    }
    let done = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = text(&done.stdout) + &text(&done.stderr);
    eprintln!("{said}");
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    false
}

#[test]
fn kube_apiserver_reaches_a_kubelet_by_each_transport() {
    if !inside("tunnel::egress::kube_apiserver_reaches_a_kubelet_by_each_transport") {
        return;
    }
    let scratch = Scratch::new();
    let dir = scratch.path();
    let Some(mut cloud) = Cloud::start(dir) else {
        return;
    };
    let pair = Pair::start(dir, &cloud.authority, NODE.into());
    let mut node = None;
    for (name, connection) in pair.transports(&cloud.authority) {
        let (mut api, kubectl) = cloud.with_egress(name, &connection);
        node.get_or_insert_with(|| node_with(&cloud, &kubectl, &pod("web", 80)));
        ready(&kubectl, "web");
        operate(&kubectl, dir, MEGABYTES);
        // Nothing else leads there: a server without its agent answers, and says why.
        let refused = pair.without_agent(|| kubectl.refused(&["exec", "web", "--", "echo"]));
        assert!(says_no_agent(&refused), "{name}: {refused}");
        // Asked to stop, it would wait a minute for its watchers.
        api.kill();
    }
}

#[test]
fn kube_apiserver_asks_services_in_edge_pods_by_each_transport() {
    if !inside("tunnel::egress::kube_apiserver_asks_services_in_edge_pods_by_each_transport") {
        return;
    }
    let scratch = Scratch::new();
    let dir = scratch.path();
    let Some(mut cloud) = Cloud::start(dir) else {
        return;
    };
    // Where the pods of the node are, server and agent learn from the cluster.
    let cluster = Cluster {
        server: cloud.kubeconfig("admin"),
        agent: cloud.kubeconfig("node"),
    };
    let pair = Pair::in_cluster(dir, &cloud.authority, NODE.into(), &cluster);
    let mut running = None;
    for (name, connection) in pair.transports(&cloud.authority) {
        let recorder = Recorder::before(&connection, dir, name);
        let (mut api, kubectl) = cloud.with_egress(name, recorder.connection());
        let (_node, service) = running.get_or_insert_with(|| {
            let node = node_with(&cloud, &kubectl, &pod("service", 8443));
            // As kube-controller-manager does; by it the agent knows what its pods are.
            let [_, pods] = NETWORKS;
            let network = json!({"spec": {"podCIDR": pods, "podCIDRs": [pods]}});
            kubectl.ok(&["patch", "node", AGENT_NODE, "-p", &network.to_string()]);
            ready(&kubectl, "service");
            (node, EdgeService::start(&cloud, &kubectl))
        });
        eventually("the metrics API", || {
            let waited = [
                "wait",
                "apiservice/v1beta1.metrics.k8s.io",
                "--for=condition=Available",
                "--timeout=5s",
            ];
            kubectl.output(&waited).status.success()
        });
        let asked = service.asked();
        let figures = kubectl.ok(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"]);
        assert!(figures.contains("NodeMetricsList"), "{figures}");
        let top = kubectl.ok(&["top", "nodes", "--no-headers"]);
        assert!(top.contains(AGENT_NODE) && top.contains("250m"), "{top}");
        let create = |what: &str| format!("{what}-{name}");
        kubectl.ok(&["create", "configmap", &create("good")]);
        let denied = kubectl.refused(&["create", "configmap", &create("bad")]);
        assert!(denied.contains("says the pod at the edge"), "{denied}");
        let path = "/api/v1/namespaces/default/pods/service:8080/proxy/hello";
        assert_eq!(kubectl.ok(&["get", "--raw", path]), HELLO);
        recorder.write("GET /hello");
        assert!(service.asked() >= asked + 5);
        let refused = pair.without_agent(|| {
            // What is in the cloud needs no agent.
            let path = "/api/v1/nodes/http:cloud-1:8080/proxy/hello";
            assert_eq!(kubectl.ok(&["get", "--raw", path]), HELLO);
            kubectl.refused(&["create", "configmap", &create("nobody-decides")])
        });
        assert!(
            refused.contains("failed calling webhook") && says_no_agent(&refused),
            "{name}: {refused}"
        );
        api.kill();
    }
}
