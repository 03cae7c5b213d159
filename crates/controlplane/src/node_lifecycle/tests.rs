use super::*;
use crate::{NodeMonitor, condition, pod, stage::Stage, taint as taints};
use jiff::Timestamp;
use serde_json::json;
use std::time::Duration;
use yurt_controller::node_lifecycle::LEASE_NAMESPACE;

/// Quick enough for a test.
fn quick() -> Settings {
    let nodes = NodeMonitor {
        period: Duration::from_millis(50),
        grace: Duration::from_millis(500),
        startup_grace: Duration::from_millis(500),
    };
    Settings {
        nodes,
        ..Settings::default()
    }
}

fn has(node: &Value, key: &str, effect: &str) -> bool {
    taints::has(node, key, effect)
}

async fn heartbeat(stage: &Stage, node: &str, ready: &str) {
    let now = Timestamp::now();
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready, "reason": "KubeletReady",
        "lastHeartbeatTime": pod::stamp(now), "lastTransitionTime": pod::stamp(now)}]}});
    let path = format!("/api/v1/nodes/{node}/status");
    stage
        .kube
        .strategic(&path, &status)
        .await
        .expect("heartbeat");
}

#[tokio::test]
async fn a_silent_node_becomes_unknown_tainted_and_its_pods_not_ready() {
    let stage = Stage::start_with(NAME, quick()).await;
    for name in ["silent", "alive"] {
        stage
            .create("/api/v1/nodes", json!({"metadata": {"name": name}}))
            .await;
        heartbeat(&stage, name, "True").await;
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "silent", "containers": [{"name": "c", "image": "i"}]}});
    stage.create("/api/v1/namespaces/default/pods", pod).await;
    stage.report("default", "p", "Running", true).await;
    // One node lives on by its lease, so that it is not this controller that seems cut off.
    let kube = stage.kube.clone();
    let lease = json!({"metadata": {"name": "alive"}, "spec": {"holderIdentity": "alive", "leaseDurationSeconds": 40}});
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases");
    stage.create(&leases, lease).await;
    let renewing = tokio::spawn(async move {
        loop {
            let renewed = json!({"spec": {"renewTime": format!("{:.6}", Timestamp::now())}});
            kube.merge(&format!("{leases}/alive"), &renewed)
                .await
                .expect("renewed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let node = stage
        .until("/api/v1/nodes/silent", |node| {
            has(node, taints::UNREACHABLE, "NoExecute")
                && has(node, taints::UNREACHABLE, "NoSchedule")
        })
        .await;
    let ready = condition::find(&node["status"], "Ready").expect("a condition");
    assert_eq!(ready["reason"], "NodeStatusUnknown");
    assert_eq!(ready["message"], "Kubelet stopped posting node status.");
    stage
        .until("/api/v1/namespaces/default/pods/p", |pod| {
            pod["status"]["phase"] == "Running" && !pod::is_ready(pod)
        })
        .await;
    heartbeat(&stage, "silent", "False").await;
    stage
        .until("/api/v1/nodes/silent", |node| {
            has(node, taints::NOT_READY, "NoExecute")
                && !has(node, taints::UNREACHABLE, "NoExecute")
        })
        .await;
    renewing.abort();
    heartbeat(&stage, "alive", "True").await;
    let alive = stage.kube.get("/api/v1/nodes/alive").await.expect("there");
    assert_eq!(
        condition::find(&alive["status"], "Ready").map(|c| c["status"].clone()),
        Some("True".into())
    );
}

#[tokio::test]
async fn taints_follow_conditions_and_cordons_at_once() {
    let stage = Stage::start(NAME).await;
    let node = json!({"metadata": {"name": "n", "labels": {"kubernetes.io/os": "linux"}}, "spec": {"unschedulable": true}});
    stage.create("/api/v1/nodes", node).await;
    let path = "/api/v1/nodes/n";
    stage
        .until(path, |node| {
            has(node, "node.kubernetes.io/unschedulable", "NoSchedule")
        })
        .await;
    stage
        .until(path, |node| {
            node["metadata"]["labels"]["beta.kubernetes.io/os"] == "linux"
        })
        .await;
    stage
        .kube
        .merge(path, &json!({"spec": {"unschedulable": null}}))
        .await
        .expect("uncordoned");
    stage
        .until(path, |node| {
            !has(node, "node.kubernetes.io/unschedulable", "NoSchedule")
        })
        .await;
    let pressure =
        json!({"status": {"conditions": [{"type": "MemoryPressure", "status": "True"}]}});
    stage
        .kube
        .strategic(&format!("{path}/status"), &pressure)
        .await
        .expect("reported");
    stage
        .until(path, |node| {
            has(node, "node.kubernetes.io/memory-pressure", "NoSchedule")
        })
        .await;
    stage.quiet(path).await;
}
