//! Reads and watches without the cloud, against the recordings of a real API server.

mod node;
#[path = "offline/regressions.rs"]
mod regressions;
#[path = "offline/watches.rs"]
mod watches;

use http::Method;
use http_body_util::BodyExt;
use node::{
    JSON, Node, PROTOBUF, TABLE, event, events, fixture, fixture_json, info, next, parts, query,
};
use serde_json::{Value, json};
use yurt_hub::{cache::Lookup, caller::Caller, offline::LocalWatch};
use yurt_wire::{
    Encoding, Gvr, Object, list,
    watch::{EventType, is_initial_events_end},
};

const PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
const WATCH_PODS: &str = "/api/v1/pods?allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dedge-1&resourceVersionMatch=NotOlderThan&sendInitialEvents=true&timeoutSeconds=496&watch=true";

/// Lists of JSON answers: items carry apiVersion and kind, which a real server leaves out.
fn items(list: &Value) -> Vec<Value> {
    let mut items = list["items"].as_array().cloned().unwrap_or_default();
    for item in &mut items {
        if let Some(item) = item.as_object_mut() {
            item.remove("apiVersion");
            item.remove("kind");
        }
    }
    items
}

#[tokio::test]
async fn recorded_kubelet_requests_get_a_real_servers_answers() {
    let node = Node::recorded().await.restart().await;
    let requests = include_str!("fixtures/node-client-requests.jsonl");
    let mut seen = 0;
    for line in requests.lines() {
        let request: Value = serde_json::from_str(line).expect("JSON");
        let text = |field: &str| request[field].as_str().unwrap_or_default();
        let (method, path) = (text("method"), text("path"));
        let method: Method = method.parse().expect("a method");
        let request_info = info(&method, path);
        seen += 1;
        if path.contains("watch=true") {
            let mut watch = node
                .offline
                .watch(
                    &Caller::Node,
                    &request_info,
                    &parts(&method, path, text("accept"), ""),
                )
                .unwrap_or_else(|status| panic!("{path}: {status}"));
            assert_eq!(
                watch.content_type(),
                "application/vnd.kubernetes.protobuf;stream=watch"
            );
            let mut names = Vec::new();
            loop {
                let frame = watch.next().await.expect("a frame");
                let event = event(frame.bytes, Encoding::Protobuf);
                if is_initial_events_end(&event.object) {
                    assert_eq!(event.kind, EventType::Bookmark);
                    break;
                }
                assert_eq!(event.kind, EventType::Added);
                names.push(event.object.meta().expect("metadata").name);
            }
            let want = match request_info.resource.as_str() {
                "nodes" => vec!["edge-1"],
                "services" => vec!["kubernetes", "lb", "np", "web"],
                "pods" => vec![
                    "web-65b97464c6-5t9tz",
                    "web-65b97464c6-hbq56",
                    "web-65b97464c6-pz569",
                ],
                "configmaps" if path.contains("kube-root") => vec!["kube-root-ca.crt"],
                _ => vec![],
            };
            assert_eq!(names, want, "{path}");
            continue;
        }
        let body = match (method.as_str(), request_info.resource.as_str()) {
            ("PATCH", _) => json!({"status": {"phase": "Running"}}).to_string().into(),
            ("PUT", "leases") => list::split(&fixture("list-leases.pb"), Encoding::Protobuf)
                .expect("leases")
                .items[0]
                .bytes
                .clone(),
            ("POST", "events") => {
                let event = json!({"apiVersion": "v1", "kind": "Event",
                    "metadata": {"name": "e", "namespace": "default"}, "reason": "Started"});
                Object::from_json_value(&event, Encoding::Protobuf)
                    .expect("protobuf")
                    .bytes
            }
            ("POST", "nodes") => fixture("get-node.pb"),
            ("POST", "serviceaccounts") => {
                let pod = &fixture_json("list-pods.json")["items"][0]["metadata"];
                let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                    "spec": {"audiences": [], "expirationSeconds": 3607, "boundObjectRef": {
                        "apiVersion": "v1", "kind": "Pod", "name": pod["name"], "uid": pod["uid"]}}});
                Object::from_json_value(&request, Encoding::Protobuf)
                    .expect("protobuf")
                    .bytes
            }
            _ => bytes::Bytes::new(),
        };
        let answer = node
            .request(
                &Caller::Node,
                method.clone(),
                path,
                text("accept"),
                text("contentType"),
                body,
            )
            .await;
        let want = match (method.as_str(), request_info.resource.as_str()) {
            ("GET", "csinodes") => 404,
            ("POST", "events" | "serviceaccounts") => 201,
            // it is registered already, as the kubelet learns from a real server
            ("POST", "nodes") => 409,
            ("DELETE", _) => 503,
            _ => 200,
        };
        assert_eq!(answer.code, want, "{method} {path}: {}", answer.message());
        assert_eq!(answer.content_type, PROTOBUF, "{method} {path}");
    }
    assert_eq!(seen, 20);
}

#[tokio::test]
async fn objects_and_lists_are_those_recorded_in_both_encodings() {
    let node = Node::recorded().await;
    for node in [node.killed(), node.restart().await] {
        let got = node.get("/api/v1/nodes/edge-1", JSON).await;
        assert_eq!((got.code, got.json()), (200, fixture_json("get-node.json")));
        let got = node
            .get(
                "/api/v1/nodes/edge-1",
                "application/vnd.kubernetes.protobuf,application/json",
            )
            .await;
        assert_eq!(got.body, fixture("get-node.pb"));
        for (path, json_file, pb_file) in [
            (PODS, "list-pods.json", "list-pods.pb"),
            (
                "/api/v1/services?fieldSelector=spec.clusterIP!%3DNone",
                "list-services.json",
                "list-services.pb",
            ),
            (
                "/apis/coordination.k8s.io/v1/leases",
                "list-leases.json",
                "list-leases.pb",
            ),
            (
                "/apis/discovery.k8s.io/v1/endpointslices",
                "list-endpointslices.json",
                "list-endpointslices.pb",
            ),
        ] {
            let got = node.get(path, JSON).await;
            assert_eq!(got.code, 200, "{path}: {}", got.message());
            let (got, want) = (got.json(), fixture_json(json_file));
            assert_eq!(items(&got), items(&want), "{path}");
            assert_eq!(
                got["metadata"]["resourceVersion"],
                want["metadata"]["resourceVersion"]
            );
            assert_eq!(got["kind"], want["kind"]);
            let got = node.get(path, PROTOBUF).await;
            assert_eq!(got.body, fixture(pb_file), "{path}");
        }
    }
}

#[tokio::test]
async fn tables_and_partial_metadata_are_those_recorded() {
    let node = Node::recorded().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut learner = node
        .cache
        .watch_learner(&Caller::Node, &query(pods), "", true);
    for event in events(fixture("watch-pods.pb"), Encoding::Protobuf) {
        learner.event(&event);
    }
    let got = node.get(pods, TABLE).await;
    let (got, want) = (got.json(), fixture_json("table-pods.json"));
    assert_eq!(got["kind"], "Table");
    let columns = |table: &Value| -> Vec<Value> {
        let mut columns = table["columnDefinitions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for column in &mut columns {
            if let Some(column) = column.as_object_mut() {
                column.remove("description");
            }
        }
        columns
    };
    assert_eq!(columns(&got), columns(&want));
    let rows = |table: &Value| -> Vec<(Value, Value)> {
        let rows = table["rows"].as_array().cloned().unwrap_or_default();
        rows.iter()
            .map(|row| {
                let mut cells = row["cells"].clone();
                // the age
                cells[4] = Value::Null;
                (cells, row["object"].clone())
            })
            .collect()
    };
    assert_eq!(rows(&got), rows(&want));
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let got = node.get(pods, partial).await.json();
    let want = fixture_json("partial-pods.json");
    assert_eq!(
        (&got["kind"], &got["items"]),
        (&want["kind"], &want["items"])
    );
}

#[tokio::test]
async fn people_are_told_that_they_read_a_cache() {
    let node = Node::recorded().await;
    let got = node.get("/api/v1/nodes/edge-1", TABLE).await;
    let warning = got
        .headers
        .get("warning")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    assert!(
        warning.starts_with("299 - \"yurthub: ") && warning.contains("edge-1"),
        "{warning}"
    );
    let got = node.get("/api/v1/nodes/edge-1", JSON).await;
    assert!(!got.headers.contains_key("warning"));
}

#[tokio::test]
async fn a_miss_says_why() {
    let node = Node::recorded().await;
    let got = node
        .get("/api/v1/namespaces/default/secrets/none", PROTOBUF)
        .await;
    assert_eq!(got.code, 503);
    assert!(
        got.message().contains("edge-1") && got.message().contains("never cached"),
        "{}",
        got.message()
    );
    assert!(
        !got.headers.contains_key("retry-after"),
        "clients would wait for it"
    );
    let got = node.get("/apis/apps/v1/deployments", JSON).await;
    assert_eq!(got.code, 503);
    assert!(
        got.message().contains("never cached completely"),
        "{}",
        got.message()
    );
    // known absent: kubelets treat a missing object as deleted, so only when it is sure
    let got = node
        .get(
            "/api/v1/namespaces/default/configmaps/openshift-service-ca.crt",
            JSON,
        )
        .await;
    assert_eq!(got.code, 404);
    assert_eq!(got.json()["reason"], "NotFound");
    let got = node
        .get("/api/v1/namespaces/default/pods/x/log", JSON)
        .await;
    assert_eq!(got.code, 503);
}

#[tokio::test]
async fn lists_go_in_pages() {
    let node = Node::recorded().await;
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("/api/v1/events?limit=10&continue={token}");
        let page = node.get(&path, JSON).await.json();
        let got = items(&page);
        assert!(!got.is_empty() && got.len() <= 10);
        seen.extend(got);
        token = page["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if token.is_empty() {
            break;
        }
        assert_eq!(
            page["metadata"]["remainingItemCount"],
            json!(28 - seen.len())
        );
    }
    assert_eq!(seen, items(&fixture_json("list-events.json")));
}

#[tokio::test]
async fn discovery_is_there() {
    let node = Node::recorded().await;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let accept = format!("{aggregated},application/json");
    assert_eq!(node.get("/version", JSON).await.code, 503);
    node.cache
        .learn_document("/version", JSON, fixture("version.json"));
    node.cache.learn_document(
        "/apis",
        aggregated,
        fixture("aggregated-discovery-apis.json"),
    );
    let node = node.restart().await;
    assert_eq!(
        node.get("/version", JSON).await.body,
        fixture("version.json")
    );
    let got = node.get("/apis", &accept).await;
    assert_eq!(
        (got.content_type.as_str(), got.body),
        (aggregated, fixture("aggregated-discovery-apis.json"))
    );
    // only the aggregated one is known: the legacy ones are derived
    let got = node.get("/apis", JSON).await;
    assert_eq!(
        (got.content_type.as_str(), got.json()),
        (JSON, fixture_json("discovery-apis.json"))
    );
    let got = node.get("/apis/apps/v1", JSON).await.json();
    assert_eq!(got["groupVersion"], "apps/v1");
    assert_eq!(node.get("/healthz", "*/*").await.body, "ok");
    assert_eq!(node.get("/readyz", "*/*").await.code, 503);
}

#[tokio::test]
async fn bearers_read_what_they_were_allowed() {
    let node = Node::recorded().await;
    let admin = Caller::Bearer("aa".into());
    let stranger = Caller::Bearer("bb".into());
    let ask = async |caller: &Caller, path: &str| {
        node.request(caller, Method::GET, path, JSON, "", bytes::Bytes::new())
            .await
            .code
    };
    assert_eq!(ask(&stranger, "/api/v1/nodes/edge-1").await, 401);
    node.cache.accept_bearer(&admin);
    assert_eq!(ask(&admin, "/api/v1/nodes/edge-1").await, 403);
    node.cache.learn_rules(
        &admin,
        &json!({"resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]}]}),
    );
    assert_eq!(ask(&admin, "/api/v1/nodes/edge-1").await, 200);
    assert_eq!(ask(&admin, PODS).await, 403);
    // what it read itself; selectors are no matter of RBAC
    node.learn_list(
        &admin,
        "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb",
        "list-pods.pb",
    );
    assert_eq!(
        ask(
            &admin,
            "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb"
        )
        .await,
        200
    );
    assert_eq!(
        ask(
            &admin,
            "/api/v1/namespaces/default/pods/web-65b97464c6-hbq56"
        )
        .await,
        200
    );
    // the node itself reads only what it asked for
    node.learn_list(&admin, "/api/v1/secrets", "list-secrets.pb");
    assert_eq!(ask(&admin, "/api/v1/secrets").await, 200);
    assert_eq!(ask(&Caller::Node, "/api/v1/secrets").await, 403);
    let node = node.restart().await;
    let got = node
        .request(
            &admin,
            Method::GET,
            "/api/v1/secrets",
            JSON,
            "",
            bytes::Bytes::new(),
        )
        .await;
    assert_eq!(got.code, 200);
    // and no more when the cloud says so
    node.cache
        .learn_forbidden(&admin, &query("/api/v1/secrets"));
    let got = node
        .request(
            &admin,
            Method::GET,
            "/api/v1/secrets",
            JSON,
            "",
            bytes::Bytes::new(),
        )
        .await;
    assert_eq!(got.code, 403);
    node.cache.forget_bearer(&admin);
    assert!(!node.restart().await.cache.knows(&admin));
}

#[tokio::test]
async fn large_answers_are_compressed_for_who_asks() {
    use std::io::Read as _;
    let node = Node::recorded().await;
    let mut split = list::split(&fixture("list-pods.json"), Encoding::Json).expect("a list");
    let model = split.items[0].to_json_value().expect("JSON");
    split.items = (0..60)
        .map(|i| {
            let mut pod = model.clone();
            pod["metadata"]["name"] = format!("p{i:02}").into();
            Object::from_json_value(&pod, Encoding::Json).expect("JSON")
        })
        .collect();
    let path = "/api/v1/namespaces/default/pods";
    let mut learner = node.cache.list_learner(&Caller::Node, &query(path));
    learner.page(split);
    learner.finish();
    let got = node.get(path, JSON).await;
    assert_eq!(
        got.headers
            .get("content-encoding")
            .and_then(|v| v.to_str().ok()),
        Some("gzip")
    );
    let mut text = String::new();
    flate2::read::GzDecoder::new(&got.body[..])
        .read_to_string(&mut text)
        .expect("gzip");
    let listed: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(items(&listed).len(), 60);
    assert!(text.len() > 128 << 10 && got.body.len() < text.len() / 4);
    let small = node.get("/api/v1/nodes/edge-1", JSON).await;
    assert!(!small.headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn a_watch_of_partial_metadata_shows_only_that() {
    let node = Node::recorded().await;
    let accept = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let mut watch = node.watch(WATCH_PODS, accept);
    assert_eq!(
        watch.content_type(),
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    for expected in [
        EventType::Added,
        EventType::Added,
        EventType::Added,
        EventType::Bookmark,
    ] {
        let frame = watch.next().await.expect("a frame");
        let event = event(frame.bytes, Encoding::Protobuf);
        let meta = event.object.meta().expect("metadata");
        assert_eq!(event.kind, expected);
        assert_eq!(
            (meta.gvk.group.as_str(), meta.gvk.kind.as_str()),
            ("meta.k8s.io", "PartialObjectMetadata")
        );
        if expected == EventType::Bookmark {
            assert!(is_initial_events_end(&event.object));
            assert_eq!(meta.resource_version, "367");
        } else {
            assert!(!meta.labels.is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lists_that_nobody_takes_make_room_for_those_that_are() {
    let node = Node::recorded().await;
    let cut = std::sync::Arc::default();
    let offline = node
        .offline
        .clone()
        .with_list_budget(1, std::sync::Arc::clone(&cut));
    let (info, parts) = (
        info(&Method::GET, PODS),
        parts(&Method::GET, PODS, PROTOBUF, ""),
    );
    let list = || offline.answer(&Caller::Node, &info, &parts, bytes::Bytes::new());
    let silent = list().await;
    assert_eq!(silent.status(), 200);
    let taken = list().await;
    assert_eq!(taken.status(), 200);
    let taken = taken.into_body().collect().await.expect("a whole list");
    assert_eq!(
        list::split(&taken.to_bytes(), Encoding::Protobuf)
            .expect("a list")
            .items
            .len(),
        3
    );
    // Broken, never short.
    assert!(silent.into_body().collect().await.is_err());
    assert_eq!(cut.load(std::sync::atomic::Ordering::Relaxed), 1);
}
