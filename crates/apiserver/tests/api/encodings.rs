use crate::client::{CONFIG_MAPS, Cluster, PODS, config_map, pod};
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::header;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::io::Read;
use yurt_wire::{Encoding, Object, list};

async fn fetch(cluster: &Cluster, path: &str, accept: &str) -> (http::HeaderMap, Bytes) {
    let request = Cluster::request("GET", path)
        .header(header::ACCEPT, accept)
        .header(header::ACCEPT_ENCODING, "gzip");
    let response = cluster.raw(request, Bytes::new()).await;
    assert_eq!(response.status(), 200, "{path} {accept}");
    let (parts, body) = response.into_parts();
    (
        parts.headers,
        body.collect().await.expect("a body").to_bytes(),
    )
}

#[tokio::test]
async fn both_encodings_show_the_same() {
    let cluster = Cluster::start().await;
    cluster.post(PODS, &pod("a", "n")).await.expect(201);
    let text = cluster.get(&format!("{PODS}/a")).await.expect(200);
    let protobuf = "application/vnd.kubernetes.protobuf,application/json";
    let (headers, bytes) = fetch(&cluster, &format!("{PODS}/a"), protobuf).await;
    assert_eq!(
        headers[header::CONTENT_TYPE],
        "application/vnd.kubernetes.protobuf"
    );
    let object = Object {
        encoding: Encoding::Protobuf,
        bytes,
    };
    let decoded = object.to_json_value().expect("a pod");
    assert_eq!(decoded["metadata"], text["metadata"]);
    assert_eq!(decoded["spec"], text["spec"]);
    let (_, bytes) = fetch(&cluster, PODS, protobuf).await;
    let split = list::split(&bytes, Encoding::Protobuf).expect("a list");
    assert_eq!(split.items.len(), 1);

    // And back: a protobuf body is stored like a JSON one.
    let mut second = pod("b", "");
    second["metadata"]["namespace"] = "default".into();
    let body = Object::from_json_value(&second, Encoding::Protobuf).expect("a pod");
    let request = Cluster::request("POST", PODS)
        .header(header::CONTENT_TYPE, "application/vnd.kubernetes.protobuf")
        .header(header::ACCEPT, "application/vnd.kubernetes.protobuf");
    let response = cluster.raw(request, body.bytes).await;
    assert_eq!(response.status(), 201);
    let stored = cluster.get(&format!("{PODS}/b")).await.expect(200);
    assert_eq!(stored["spec"]["containers"][0]["image"], "i");
}

#[tokio::test]
async fn yaml_is_read_and_written() {
    let cluster = Cluster::start().await;
    let request = Cluster::request("POST", CONFIG_MAPS)
        .header(header::CONTENT_TYPE, "application/yaml")
        .header(header::ACCEPT, "application/yaml");
    let sent =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {b: 'true', c: \"1\\n2\"}\n";
    let response = cluster.raw(request, sent.into()).await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/yaml");
    for path in [
        format!("{CONFIG_MAPS}/a"),
        CONFIG_MAPS.to_owned(),
        "/api/v1".to_owned(),
    ] {
        let (headers, bytes) = fetch(&cluster, &path, "application/yaml, */*").await;
        assert_eq!(headers[header::CONTENT_TYPE], "application/yaml");
        assert_ne!(bytes.first(), Some(&b'{'), "{path}");
        let read: Value = serde_saphyr::from_slice(&bytes).expect("YAML");
        assert_eq!(read, cluster.get(&path).await.expect(200), "{path}");
    }
    for (path, code) in [
        (format!("{CONFIG_MAPS}/none"), 404),
        (format!("{CONFIG_MAPS}?watch=true"), 406),
    ] {
        let request = Cluster::request("GET", &path).header(header::ACCEPT, "application/yaml");
        let response = cluster.raw(request, Bytes::new()).await;
        assert_eq!(response.status(), code);
        let body = response.into_body().collect().await.expect("a body");
        let status: Value = serde_saphyr::from_slice(&body.to_bytes()).expect("YAML");
        assert_eq!(status["code"], code);
    }
}

#[tokio::test]
async fn delete_options_come_in_both_encodings() {
    let cluster = Cluster::start().await;
    cluster.post(PODS, &pod("a", "n")).await.expect(201);
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 7});
    let body = Object::from_json_value(&options, Encoding::Protobuf).expect("options");
    let request = Cluster::request("DELETE", &format!("{PODS}?fieldSelector=spec.nodeName%3Dn"))
        .header(header::CONTENT_TYPE, "application/vnd.kubernetes.protobuf");
    assert_eq!(cluster.raw(request, body.bytes).await.status(), 200);
    let dying = cluster.get(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(dying["metadata"]["deletionGracePeriodSeconds"], 7);
}

#[tokio::test]
async fn tables_and_partial_metadata_are_views() {
    let cluster = Cluster::start().await;
    cluster.post(PODS, &pod("a", "n")).await.expect(201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let (_, bytes) = fetch(&cluster, PODS, table).await;
    let value: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(value["kind"], "Table");
    assert_eq!(value["rows"][0]["cells"][0], "a");
    assert_eq!(value["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial =
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, bytes) = fetch(&cluster, PODS, partial).await;
    let split = list::split(&bytes, Encoding::Protobuf).expect("a list");
    assert_eq!(split.gvk.kind, "PartialObjectMetadataList");
    let one = split.items[0].to_json_value().expect("metadata");
    assert_eq!(one["metadata"]["name"], "a");
    assert!(one.get("spec").is_none());
}

#[tokio::test]
async fn large_answers_are_compressed_small_ones_are_not() {
    let cluster = Cluster::start().await;
    let (headers, _) = fetch(&cluster, CONFIG_MAPS, "application/json").await;
    assert!(!headers.contains_key(header::CONTENT_ENCODING));
    let mut large = config_map("a");
    large["data"]["x"] = "x".repeat(200_000).into();
    cluster.post(CONFIG_MAPS, &large).await.expect(201);
    let (headers, bytes) = fetch(&cluster, CONFIG_MAPS, "application/json").await;
    assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
    let mut text = String::new();
    GzDecoder::new(&bytes[..])
        .read_to_string(&mut text)
        .expect("gzip");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["items"][0]["data"]["x"], large["data"]["x"]);
}

#[tokio::test]
async fn both_versions_of_events_show_one_object() {
    let cluster = Cluster::start().await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "message": "m", "reason": "R", "type": "Normal"});
    cluster
        .post("/api/v1/namespaces/default/events", &event)
        .await
        .expect(201);
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let list = cluster
        .get(&format!("{path}?fieldSelector=regarding.name%3Dp"))
        .await
        .expect(200);
    assert_eq!(list["items"][0]["note"], "m");
    assert_eq!(list["items"][0]["apiVersion"], "events.k8s.io/v1");
    let changed = cluster
        .merge(&format!("{path}/e"), &json!({"note": "n"}))
        .await
        .expect(200);
    assert_eq!(changed["note"], "n");
    let core = cluster
        .get("/api/v1/namespaces/default/events/e")
        .await
        .expect(200);
    assert_eq!(core["message"], "n");
    assert!(core.get("note").is_none());
}

#[tokio::test]
async fn discovery_has_the_form_of_kubernetes() {
    let cluster = Cluster::start().await;
    let recorded: Value = serde_json::from_str(include_str!(
        "../../../wire/tests/fixtures/kube-apiserver/discovery-apps-v1.json"
    ))
    .expect("a fixture");
    let mut served = cluster.get("/apis/apps/v1").await.expect(200);
    let mut expected = recorded;
    for list in [&mut served, &mut expected] {
        for resource in list["resources"].as_array_mut().expect("resources") {
            // A fingerprint of how the server stores the resource: anything that is stable will do.
            resource
                .as_object_mut()
                .expect("an object")
                .remove("storageVersionHash");
        }
    }
    assert_eq!(served, expected);
    let aggregated: Value = serde_json::from_str(include_str!(
        "../../../wire/tests/fixtures/kube-apiserver/aggregated-discovery-apis.json"
    ))
    .expect("a fixture");
    let (headers, bytes) = fetch(
        &cluster,
        "/apis",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
    )
    .await;
    assert_eq!(
        headers[header::CONTENT_TYPE],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let served: Value = serde_json::from_slice(&bytes).expect("JSON");
    let groups =
        |list: &Value| -> Vec<Value> { list["items"].as_array().cloned().unwrap_or_default() };
    for group in groups(&served) {
        let mut recorded = groups(&aggregated)
            .into_iter()
            .find(|g| g["metadata"] == group["metadata"])
            .unwrap_or_else(|| panic!("{} is recorded", group["metadata"]));
        for version in recorded["versions"].as_array_mut().expect("versions") {
            // What is not done is not served.
            let resources = version["resources"].as_array_mut().expect("resources");
            resources.retain(|resource| {
                let name = resource["resource"].as_str().unwrap_or_default();
                !name.starts_with("mutatingadmissionpolic")
            });
        }
        assert_eq!(group, recorded);
    }
}
