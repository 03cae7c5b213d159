//! The documents that clients read the API from.

use crate::client::Cluster;
use bytes::Bytes;
use http::header;
use serde_json::json;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[tokio::test]
async fn documents_follow_what_is_served() {
    let cluster = Cluster::start().await;
    let index = cluster.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["api/v1"]["serverRelativeURL"]
        .as_str()
        .expect("the core group");
    let core = cluster.get(url).await.expect(200);
    assert!(core["components"]["schemas"]["io.k8s.api.core.v1.Pod"].is_object());
    let path = "/openapi/v3/apis/example.com/v1";
    cluster.get(path).await.expect(404);

    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "size": {"type": "integer", "description": "How large."}}}}}}}]},
    });
    cluster.post(CRDS, &crd).await.expect(201);
    cluster.until(path, 200).await;
    let custom = cluster.get(path).await.expect(200);
    let widget = &custom["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        widget["properties"]["spec"]["properties"]["size"]["description"],
        "How large."
    );
    // Other documents kept their addresses.
    let after = cluster.get("/openapi/v3").await.expect(200);
    assert_eq!(after["paths"]["api/v1"], index["paths"]["api/v1"]);
    cluster.stop().await;
}

#[tokio::test]
async fn an_unchanged_document_is_not_sent_again() {
    let cluster = Cluster::start().await;
    let accept = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let request = || Cluster::request("GET", "/openapi/v2").header(header::ACCEPT, accept);
    let first = cluster.raw(request(), Bytes::new()).await;
    assert_eq!(first.status(), 200);
    assert_eq!(first.headers()[header::CONTENT_TYPE], accept);
    let tag = first.headers()[header::ETAG].clone();
    let again = request().header(header::IF_NONE_MATCH, tag);
    assert_eq!(cluster.raw(again, Bytes::new()).await.status(), 304);
    let json = cluster.get("/openapi/v2").await.expect(200);
    assert_eq!(json["swagger"], "2.0");
    cluster.get("/openapi/v1").await.expect(404);
    cluster.stop().await;
}

#[tokio::test]
async fn the_newest_version_of_a_group_is_preferred() {
    let cluster = Cluster::start().await;
    for (plural, kind, versions) in [
        ("old", "Old", vec!["v1alpha1"]),
        ("news", "New", vec!["v1alpha1", "v1beta1", "v1beta2"]),
    ] {
        let versions: Vec<_> = versions
            .iter()
            .map(|name| {
                json!({"name": name, "served": true, "storage": *name == "v1alpha1",
                    "schema": {"openAPIV3Schema": {"type": "object"}}})
            })
            .collect();
        let crd = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.example.com")},
            "spec": {"group": "example.com", "scope": "Cluster",
                "names": {"plural": plural, "kind": kind}, "versions": versions},
        });
        cluster.post(CRDS, &crd).await.expect(201);
        cluster
            .until(&format!("/apis/example.com/v1alpha1/{plural}"), 200)
            .await;
    }
    let group = cluster.get("/apis/example.com").await.expect(200);
    assert_eq!(group["preferredVersion"]["version"], "v1beta2");
    cluster.stop().await;
}
