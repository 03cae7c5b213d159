use crate::client::{Cluster, config_map, pod};
use serde_json::json;

fn namespace(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

#[tokio::test]
async fn a_namespace_is_emptied_then_goes() {
    let cluster = Cluster::start().await;
    let created = cluster
        .post("/api/v1/namespaces", &namespace("x"))
        .await
        .expect(201);
    assert_eq!(created["status"]["phase"], "Active");
    assert_eq!(
        created["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "x"
    );
    cluster
        .until("/api/v1/namespaces/x/serviceaccounts/default", 200)
        .await;
    cluster
        .post("/api/v1/namespaces/x/configmaps", &config_map("a"))
        .await
        .expect(201);
    cluster
        .post("/api/v1/namespaces/x/pods", &pod("p", "n"))
        .await
        .expect(201);
    let dying = cluster.delete("/api/v1/namespaces/x").await.expect(200);
    assert_eq!(dying["status"]["phase"], "Terminating");
    // The pod has a kubelet to wait for, and the namespace waits for the pod.
    cluster.get("/api/v1/namespaces/x").await.expect(200);
    let refused = cluster
        .post("/api/v1/namespaces/x/configmaps", &config_map("b"))
        .await
        .expect(403);
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    cluster
        .delete_with(
            "/api/v1/namespaces/x/pods/p",
            &json!({"gracePeriodSeconds": 0}),
        )
        .await
        .expect(200);
    cluster.until("/api/v1/namespaces/x", 404).await;
    let missing = cluster
        .post("/api/v1/namespaces/x/configmaps", &config_map("b"))
        .await
        .expect(404);
    assert_eq!(missing["message"], "namespaces \"x\" not found");
}

#[tokio::test]
async fn pods_go_before_what_they_use() {
    let cluster = Cluster::start().await;
    cluster
        .post("/api/v1/namespaces", &namespace("x"))
        .await
        .expect(201);
    let mut held = pod("p", "");
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    cluster
        .post("/api/v1/namespaces/x/pods", &held)
        .await
        .expect(201);
    cluster
        .post("/api/v1/namespaces/x/configmaps", &config_map("a"))
        .await
        .expect(201);
    cluster.delete("/api/v1/namespaces/x").await.expect(200);
    let told = cluster
        .until_object("/api/v1/namespaces/x", |namespace| {
            let conditions = namespace["status"]["conditions"].as_array();
            conditions.is_some_and(|list| {
                list.iter()
                    .any(|c| c["type"] == "NamespaceFinalizersRemaining" && c["status"] == "True")
            })
        })
        .await;
    assert!(told.to_string().contains("pods. has 1 resource instances"));
    cluster
        .get("/api/v1/namespaces/x/configmaps/a")
        .await
        .expect(200);
    cluster
        .merge(
            "/api/v1/namespaces/x/pods/p",
            &json!({"metadata": {"finalizers": null}}),
        )
        .await
        .expect(200);
    cluster.until("/api/v1/namespaces/x", 404).await;
}

#[tokio::test]
async fn a_cluster_begins_with_what_every_cluster_has() {
    let cluster = Cluster::start().await;
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        cluster
            .get(&format!("/api/v1/namespaces/{name}"))
            .await
            .expect(200);
    }
    let service = cluster
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .expect(200);
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let port = cluster.running.addr().port();
    let endpoints = cluster
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .expect(200);
    assert_eq!(endpoints["subsets"][0]["ports"][0]["port"], port);
}

#[tokio::test]
async fn a_custom_resource_lives_and_dies_with_its_definition() {
    let cluster = Cluster::start().await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "pools.example.org"},
        "spec": {"group": "example.org", "scope": "Namespaced",
            "names": {"plural": "pools", "kind": "Pool"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1, "default": 3}, "color": {"type": "string"}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}});
    let created = cluster.post(crds, &crd).await.expect(201);
    assert!(created["status"]["conditions"].as_array().is_some_and(|c| {
        c.iter()
            .any(|c| c["type"] == "Established" && c["status"] == "True")
    }));
    let pools = "/apis/example.org/v1/namespaces/default/pools";
    let pool = json!({"apiVersion": "example.org/v1", "kind": "Pool", "metadata": {"name": "a"}, "spec": {}});
    let created = cluster.post(pools, &pool).await.expect(201);
    assert_eq!(created["spec"]["size"], 3, "defaulted");
    assert_eq!(created["metadata"]["generation"], 1);
    let path = format!("{pools}/a");
    cluster
        .merge(&path, &json!({"spec": {"size": 0}}))
        .await
        .expect(422);
    let pruned = cluster.merge(&path, &json!({"spec": {"foo": 1}})).await;
    assert!(pruned.headers.contains_key("warning"));
    assert!(pruned.expect(200)["spec"].get("foo").is_none());
    cluster
        .merge(
            &format!("{path}?fieldValidation=Strict"),
            &json!({"spec": {"foo": 1}}),
        )
        .await
        .expect(400);
    let strange = json!({"apiVersion": "example.org/v1", "kind": "Pool",
        "metadata": {"name": "a"}, "spec": {"foo": 1}});
    let refused = cluster
        .patch(
            &format!("{path}?fieldManager=m"),
            "application/apply-patch+yaml",
            &strange,
        )
        .await
        .expect(400);
    assert_eq!(
        refused["message"],
        "failed to create typed patch object (default/a; example.org/v1, Kind=Pool): .spec.foo: field not declared in schema"
    );
    let status = json!({"spec": {"size": 9}, "status": {"ready": 1}});
    let changed = cluster
        .merge(&format!("{path}/status"), &status)
        .await
        .expect(200);
    assert_eq!(changed["spec"]["size"], 3);
    assert_eq!(changed["status"]["ready"], 1);
    // A default that comes later is seen in what was stored before.
    let patch = json!([{"op": "add", "value": "blue",
        "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/color/default"}]);
    let definition = format!("{crds}/pools.example.org");
    cluster
        .patch(&definition, "application/json-patch+json", &patch)
        .await
        .expect(200);
    let read = cluster.get(&path).await.expect(200);
    assert_eq!(read["spec"]["color"], "blue");
    assert_eq!(
        read["metadata"]["resourceVersion"],
        changed["metadata"]["resourceVersion"]
    );
    assert_eq!(cluster.get(pools).await.expect(200)["items"][0], read);
    let group = cluster.get("/apis/example.org/v1").await.expect(200);
    assert_eq!(group["resources"][0]["name"], "pools");
    cluster
        .delete(&format!("{crds}/pools.example.org"))
        .await
        .expect(200);
    cluster
        .until(&format!("{crds}/pools.example.org"), 404)
        .await;
    cluster.get(&path).await.expect(404);
    cluster.get("/apis/example.org/v1").await.expect(404);
}
