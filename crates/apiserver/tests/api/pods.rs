use crate::client::{Cluster, PODS, pod};
use serde_json::json;

#[tokio::test]
async fn a_pod_on_a_node_waits_for_its_kubelet() {
    let cluster = Cluster::start().await;
    cluster.post(PODS, &pod("a", "n")).await.expect(201);
    let path = format!("{PODS}/a");
    let dying = cluster.delete(&path).await.expect(200);
    assert_eq!(dying["kind"], "Pod");
    assert_eq!(dying["metadata"]["deletionGracePeriodSeconds"], 30);
    let uid = dying["metadata"]["uid"].clone();
    cluster.get(&path).await.expect(200);
    // As the kubelet ends it.
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    cluster.delete_with(&path, &wrong).await.expect(409);
    let end = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    cluster.delete_with(&path, &end).await.expect(200);
    cluster.get(&path).await.expect(404);
}

#[tokio::test]
async fn a_finalizer_holds_an_object_until_it_is_removed() {
    let cluster = Cluster::start().await;
    let mut object = pod("a", "");
    object["metadata"]["finalizers"] = json!(["example.org/x"]);
    cluster.post(PODS, &object).await.expect(201);
    let path = format!("{PODS}/a");
    let dying = cluster.delete(&path).await.expect(200);
    assert!(dying["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.org/x", "example.org/y"]}});
    cluster.merge(&path, &more).await.expect(422);
    let none = json!({"metadata": {"finalizers": null}});
    cluster.merge(&path, &none).await.expect(200);
    cluster.get(&path).await.expect(404);
}

#[tokio::test]
async fn binding_assigns_a_pod_once() {
    let cluster = Cluster::start().await;
    cluster.post(PODS, &pod("a", "")).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}});
    let path = format!("{PODS}/a/binding");
    cluster.post(&path, &binding).await.expect(201);
    let object = cluster.get(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(object["spec"]["nodeName"], "n1");
    assert_eq!(object["status"]["conditions"][0]["type"], "PodScheduled");
    cluster.post(&path, &binding).await.expect(409);
    cluster.get(&path).await.expect(405);
}

#[tokio::test]
async fn eviction_respects_the_disruption_budget() {
    let cluster = Cluster::start().await;
    cluster.post(PODS, &pod("a", "n")).await.expect(201);
    let running = json!({"status": {"phase": "Running"}});
    cluster
        .merge(&format!("{PODS}/a/status"), &running)
        .await
        .expect(200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}});
    cluster.post(budgets, &budget).await.expect(201);
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let path = format!("{PODS}/a/eviction");
    let refused = cluster.post(&path, &eviction).await.expect(429);
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "DisruptionBudget"
    );
    let status = json!({"status": {"disruptionsAllowed": 1, "observedGeneration": 1,
        "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}});
    cluster
        .merge(&format!("{budgets}/b/status"), &status)
        .await
        .expect(200);
    cluster.post(&path, &eviction).await.expect(201);
    let pod = cluster.get(&format!("{PODS}/a")).await.expect(200);
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
    let budget = cluster.get(&format!("{budgets}/b")).await.expect(200);
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
}

#[tokio::test]
async fn a_pod_is_completed_as_by_kubernetes() {
    let cluster = Cluster::start().await;
    let created = cluster.post(PODS, &pod("a", "")).await.expect(201);
    let spec = &created["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["priority"], 0);
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    assert!(
        spec["volumes"][0]["name"]
            .as_str()
            .is_some_and(|n| n.starts_with("kube-api-access-"))
    );
    assert_eq!(
        created["status"],
        json!({"phase": "Pending", "qosClass": "BestEffort"})
    );
    let mut critical = pod("b", "");
    critical["spec"]["priorityClassName"] = "system-node-critical".into();
    critical["spec"]["automountServiceAccountToken"] = false.into();
    let created = cluster.post(PODS, &critical).await.expect(201);
    assert_eq!(created["spec"]["priority"], 2_000_001_000);
    assert!(created["spec"].get("volumes").is_none());
    let mut lost = pod("c", "");
    lost["spec"]["serviceAccountName"] = "nobody".into();
    let refused = cluster.post(PODS, &lost).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"c\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found"
    );
}
