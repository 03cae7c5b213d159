//! What components of the node see otherwise than the cloud has it: every filter by list, get and watch, in JSON and protobuf; and that
//! running watches are told when it changes.

mod example;
mod rules;

use crate::{
    cloud::{Cloud, JSON, Trust},
    link::{Link, State},
    node::{Answered, Directory, Node, PATIENCE, config, eventually},
    recorded::{direct, write},
};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config, Running, Tls};
use yurt_hub::{
    filter::{BuiltIn, Context, Filter, Force, Outcome, Selection},
    metrics::Metrics,
};
use yurt_pki::Profile;
use yurt_transport::ResponseBody;
use yurt_wire::{
    Encoding, Object, RequestInfo, list,
    watch::{Event, EventType, FrameDecoder},
};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const POOLS: &str = "/apis/apps.openyurt.io/v1beta2/nodepools";
const POD: &str = "/api/v1/namespaces/default/pods/wired";
const TOPOLOGY: &str = "openyurt.io/topologyKeys";
const ENCODINGS: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

struct Edge {
    cloud: Running,
    link: Link,
    node: Node,
    directory: Directory,
    trust: Trust,
    stop: CancellationToken,
}

impl Edge {
    /// A hub in the pool `here` (nodes edge-1, edge-2) of a cluster with something for every filter.
    async fn start() -> Self {
        let mut trust = Trust::new();
        let profile = Profile {
            common_name: "system:node:edge-1".into(),
            organizations: vec!["system:nodes".into(), "system:masters".into()],
            client: true,
            days: 1,
            ..Profile::default()
        };
        trust.node = trust.ca.issue(&profile).unwrap();
        let (directory, stop) = (Directory::new(), CancellationToken::new());
        let cloud = cloud(&trust, &stop).await;
        let link = Link::to(cloud.addr()).await;
        let node = Self::hub(&directory, &trust, &link).await;
        node.until_up().await;
        let edge = Self {
            cloud,
            link,
            node,
            directory,
            trust,
            stop,
        };
        edge.settled().await;
        edge
    }

    async fn hub(directory: &Directory, trust: &Trust, link: &Link) -> Node {
        let mut config = config(&directory.0, trust, &[link.addr]);
        config.pool = "here".into();
        Node::start(config).await
    }

    async fn restarted(self) -> Self {
        self.node.stop().await;
        let node = Self::hub(&self.directory, &self.trust, &self.link).await;
        Self { node, ..self }
    }

    /// Waits until the hub knows who is in the pool.
    async fn settled(&self) {
        eventually("the pool is known", async || {
            let inputs = &self.node.admin("/debug/filters").await.json()["inputs"];
            inputs["poolNodes"] == json!(["edge-1", "edge-2"])
        })
        .await;
    }

    async fn annotate(&self, service: &str, keys: Value) {
        let patch = json!({"metadata": {"annotations": {TOPOLOGY: keys}}});
        self.patch(&format!("{SERVICES}/{service}"), patch).await;
    }

    async fn patch(&self, path: &str, patch: Value) {
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(path)
            .header("authorization", "Bearer admin")
            .header("content-type", "application/merge-patch+json")
            .body(yurt_transport::full(patch.to_string()))
            .unwrap();
        let response = self.cloud.call(request).await;
        assert_eq!(response.status(), 200, "{path}");
    }

    async fn end(self) {
        self.node.stop().await;
        self.stop.cancel();
    }
}

async fn cloud(trust: &Trust, stop: &CancellationToken) -> Running {
    let admin = yurt_apiserver::authn::User::new("admin", &["system:masters"]);
    let config = Config {
        tls: Some(Tls {
            serving: trust.serving.clone(),
            client_ca: Some(trust.ca.cert_pem()),
        }),
        tokens: vec![("admin".into(), admin)],
        ..Config::default()
    };
    let cloud = ApiServer::start(config, stop.clone()).await.unwrap();
    let create = async |path: &str, object: Value| write(&cloud, Method::POST, path, object).await;
    create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "nodepools.apps.openyurt.io"},
            "spec": {"group": "apps.openyurt.io", "scope": "Cluster", "names": {"plural": "nodepools", "singular": "nodepool", "kind": "NodePool", "listKind": "NodePoolList"},
                "versions": [{"name": "v1beta2", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}),
    )
    .await;
    // Served a moment after it is created.
    let pool = json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "here"},
        "spec": {"type": "Edge"}, "status": {"nodes": ["edge-1", "edge-2"]}});
    eventually("NodePools are served", async || {
        let request = Request::builder()
            .method(Method::POST)
            .uri(POOLS)
            .header("authorization", "Bearer admin")
            .header("content-type", "application/json")
            .body(yurt_transport::full(pool.to_string()))
            .unwrap();
        cloud.call(request).await.status() == 201
    })
    .await;
    create(
        "/api/v1/nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}}),
    )
    .await;
    for (name, kind, annotations) in [
        ("web", "ClusterIP", json!({})),
        (
            "near",
            "ClusterIP",
            json!({TOPOLOGY: "openyurt.io/nodepool"}),
        ),
        (
            "discarded",
            "LoadBalancer",
            json!({"svc.openyurt.io/discard": "true"}),
        ),
        (
            "elsewhere",
            "NodePort",
            json!({"nodeport.openyurt.io/listen": "-here,*"}),
        ),
    ] {
        create(SERVICES, json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "annotations": annotations},
            "spec": {"type": kind, "selector": {"app": name}, "ports": [{"port": 80}]}}))
        .await;
    }
    let endpoints: Vec<Value> = (1..4)
        .map(|node| json!({"addresses": [format!("10.0.0.{node}")], "conditions": {"ready": true}, "nodeName": format!("edge-{node}")}))
        .collect();
    for service in ["web", "near"] {
        create(SLICES, json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": format!("{service}-x"), "labels": {"kubernetes.io/service-name": service}}, "ports": [{"name": "", "port": 80}]}))
        .await;
    }
    let addresses: Vec<Value> = (1..4)
        .map(|node| json!({"ip": format!("10.0.0.{node}"), "nodeName": format!("edge-{node}")}))
        .collect();
    create(
        "/api/v1/namespaces/default/endpoints",
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "near"},
        "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]}),
    )
    .await;
    create("/api/v1/namespaces/kube-system/configmaps", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-proxy"},
        "data": {"config.conf": "clientConnection:\n  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf\n  qps: 5\n", "kubeconfig.conf": "x"}}))
    .await;
    let wired = json!([{"name": "KUBERNETES_SERVICE_HOST", "value": "1.2.3.4"}, {"name": "KUBERNETES_SERVICE_PORT", "value": "443"}, {"name": "OTHER", "value": "x"}]);
    for (name, env) in [("wired", wired), ("plain", json!([]))] {
        create("/api/v1/namespaces/default/pods", json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": "i", "env": env}], "initContainers": [{"name": "i", "image": "i", "env": env}]}}))
        .await;
    }
    cloud
}

/// As components ask.
fn asked(target: &str, agent: &str, encoding: Encoding) -> Request<Bytes> {
    Request::builder()
        .uri(target)
        .header("accept", encoding.content_type())
        .header("user-agent", format!("{agent}/v1.0 (linux/amd64)"))
        .header("accept-encoding", "gzip")
        .body(Bytes::new())
        .unwrap()
}

async fn get(node: &Node, target: &str, agent: &str, encoding: Encoding) -> Answered {
    Answered::of(node.ask(asked(target, agent, encoding)).await).await
}

fn value(bytes: &Bytes, encoding: Encoding) -> Value {
    let object = Object {
        encoding,
        bytes: bytes.clone(),
    };
    object.to_json_value().unwrap()
}

/// The objects of a list, by name.
async fn listed(
    node: &Node,
    path: &str,
    agent: &str,
    encoding: Encoding,
) -> (BTreeMap<String, Value>, String) {
    let answered = get(node, path, agent, encoding).await;
    assert_eq!(
        (answered.status, answered.content_type()),
        (200, encoding.content_type()),
        "{path} {}",
        answered.text()
    );
    let list = list::split(&answered.body, encoding).unwrap();
    let named = |object: &Object| {
        (
            object.key().unwrap().name.into_owned(),
            object.to_json_value().unwrap(),
        )
    };
    (
        list.items.iter().map(named).collect(),
        list.resource_version,
    )
}

/// A watch in either encoding.
struct Watching {
    body: ResponseBody,
    frames: FrameDecoder,
}

impl Watching {
    async fn open(node: &Node, target: &str, agent: &str, encoding: Encoding) -> Self {
        let response = node.ask(asked(target, agent, encoding)).await;
        assert_eq!(response.status(), 200);
        let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
        assert_eq!(Encoding::from_content_type(content_type), Some(encoding));
        Self {
            body: response.into_body(),
            frames: FrameDecoder::new(encoding, 1 << 20),
        }
    }

    /// The next event of an object, `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(frame) = self.frames.next_frame().unwrap() {
                let event = frame.event.unwrap();
                if event.kind != EventType::Bookmark {
                    return Some(event);
                }
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .expect("an event")?;
            self.frames.push(frame.unwrap().into_data().unwrap());
        }
    }

    /// The next event as its type and the nodes of the endpoints of its slice.
    async fn nodes(&mut self) -> (EventType, String) {
        let event = self.next().await.expect("an event");
        (event.kind, nodes_of(&event.object.to_json_value().unwrap()))
    }
}

fn nodes_of(slice: &Value) -> String {
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let node = |endpoint: &Value| {
        endpoint["nodeName"]
            .as_str()
            .unwrap_or("-")
            .replace("edge-", "")
    };
    endpoints.map(node).collect::<Vec<_>>().join(",")
}

/// What a filter makes of one object of a collection.
enum Seen {
    /// Gone.
    Not,
    /// These places are so.
    With(&'static [(&'static str, &'static str)]),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_filter_by_list_get_and_watch_in_json_and_protobuf() {
    let edge = Edge::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let maps = "/api/v1/namespaces/kube-system/configmaps";
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let cases = [
        (
            "masterservice",
            "kubelet",
            SERVICES,
            "kubernetes",
            Seen::With(&[
                ("/spec/clusterIP", r#""127.0.0.1""#),
                ("/spec/clusterIPs", r#"["127.0.0.1"]"#),
                ("/spec/ports/0/port", "10268"),
            ]),
        ),
        (
            "discardcloudservice",
            "kube-proxy",
            SERVICES,
            "discarded",
            Seen::Not,
        ),
        (
            "nodeportisolation",
            "kube-proxy",
            SERVICES,
            "elsewhere",
            Seen::Not,
        ),
        (
            "servicetopology",
            "kube-proxy",
            SLICES,
            "near-x",
            Seen::With(&[
                ("/endpoints/0/nodeName", r#""edge-1""#),
                ("/endpoints/1/nodeName", r#""edge-2""#),
                ("/endpoints/2", "null"),
            ]),
        ),
        (
            "servicetopology",
            "coredns",
            endpoints,
            "near",
            Seen::With(&[
                ("/subsets/0/addresses/0/ip", r#""10.0.0.1""#),
                ("/subsets/0/addresses/1/ip", r#""10.0.0.2""#),
                ("/subsets/0/addresses/2", "null"),
            ]),
        ),
        (
            "forwardkubesvctraffic",
            "kube-proxy",
            SLICES,
            "kubernetes",
            Seen::With(&[
                ("/endpoints/0/addresses", r#"["127.0.0.1"]"#),
                ("/endpoints/1", "null"),
                ("/ports/0/port", "10268"),
            ]),
        ),
        (
            "inclusterconfig",
            "kubelet",
            maps,
            "kube-proxy",
            Seen::With(&[
                (
                    "/data/config.conf",
                    r##""clientConnection:\n  #kubeconfig: /var/lib/kube-proxy/kubeconfig.conf\n  qps: 5\n""##,
                ),
                ("/data/kubeconfig.conf", r#""x""#),
            ]),
        ),
        (
            "serviceenvupdater",
            "kubelet",
            pods,
            "wired",
            Seen::With(&[
                ("/spec/containers/0/env/0/value", r#""127.0.0.1""#),
                ("/spec/containers/0/env/1/value", r#""10268""#),
                ("/spec/containers/0/env/2/value", r#""x""#),
                ("/spec/initContainers/0/env/0/value", r#""127.0.0.1""#),
            ]),
        ),
    ];
    for (filter, agent, path, name, seen) in &cases {
        let counted = format!("filtered_objects_total{{filter=\"{filter}\"");
        for encoding in ENCODINGS {
            let what = format!("{filter} {encoding:?}");
            let (as_is, _) = listed(&edge.node, path, "somebody", encoding).await;
            let original = as_is
                .get(*name)
                .unwrap_or_else(|| panic!("{what}: {name} in {:?}", as_is.keys()));
            let (shown, revision) = listed(&edge.node, path, agent, encoding).await;
            let check = |object: &Value, how: &str| match seen {
                Seen::Not => panic!("{what} {how}: shown"),
                Seen::With(places) => {
                    for (place, expected) in *places {
                        let is = object.pointer(place).cloned().unwrap_or(Value::Null);
                        assert_eq!(
                            is,
                            serde_json::from_str::<Value>(expected).unwrap(),
                            "{what} {how} {place}"
                        );
                    }
                    assert_ne!(object, original, "{what} {how}");
                    assert_eq!(object["metadata"], original["metadata"], "{what} {how}");
                }
            };
            // List.
            match (shown.get(*name), seen) {
                (None, Seen::Not) => {}
                (Some(object), _) => check(object, "list"),
                (None, _) => panic!("{what}: not in the list"),
            }
            // Get.
            let one = get(&edge.node, &format!("{path}/{name}"), agent, encoding).await;
            match seen {
                Seen::Not => {
                    let status = value(&one.body, encoding);
                    assert_eq!(
                        (one.status, &status["reason"]),
                        (404, &json!("NotFound")),
                        "{what}: {status}"
                    );
                }
                Seen::With(_) => check(&value(&one.body, encoding), "get"),
            }
            // Watch: from nothing on, until everything that is listed was told.
            let mut watch = Watching::open(
                &edge.node,
                &format!("{path}?watch=true&resourceVersion=0"),
                agent,
                encoding,
            )
            .await;
            let mut told = BTreeMap::new();
            while told.len() < shown.len() {
                let event = watch.next().await.unwrap();
                assert_eq!(event.kind, EventType::Added, "{what}");
                let object = event.object.to_json_value().unwrap();
                told.insert(
                    object["metadata"]["name"].as_str().unwrap().to_owned(),
                    object,
                );
            }
            assert_eq!(told, shown, "{what}");
            // By name only.
            let target = format!(
                "{path}?fieldSelector=metadata.name%3D{name}&resourceVersion={revision}&watch=true"
            );
            let mut watch = Watching::open(&edge.node, &target, agent, encoding).await;
            edge.patch(
                &format!("{path}/{name}"),
                json!({"metadata": {"labels": {"touched": format!("{encoding:?}")}}}),
            )
            .await;
            let event = watch.next().await.unwrap();
            match seen {
                Seen::Not => assert_eq!(event.kind, EventType::Deleted, "{what}"),
                Seen::With(places) => {
                    assert_eq!(event.kind, EventType::Modified, "{what}");
                    let object = event.object.to_json_value().unwrap();
                    for (place, expected) in *places {
                        let is = object.pointer(place).cloned().unwrap_or(Value::Null);
                        assert_eq!(
                            is,
                            serde_json::from_str::<Value>(expected).unwrap(),
                            "{what} modified {place}"
                        );
                    }
                }
            }
            // Everything else is as it is.
            let touched: Vec<&str> = cases
                .iter()
                .filter(|case| case.1 == *agent && case.2 == *path)
                .map(|case| case.3)
                .collect();
            for (other, object) in as_is
                .iter()
                .filter(|(other, _)| !touched.contains(&other.as_str()))
            {
                assert_eq!(shown.get(other), Some(object), "{what}: {other}");
            }
        }
        let metrics = edge.node.admin("/metrics").await.text();
        assert!(metrics.contains(&counted), "{filter} is not counted");
    }
    // What is written comes back filtered too.
    let patched = Request::builder()
        .method(Method::PATCH)
        .uri(format!("{POD}/status"))
        .header("accept", "application/vnd.kubernetes.protobuf")
        .header("content-type", "application/merge-patch+json")
        .header("user-agent", "kubelet/v1.37.1")
        .body(Bytes::from_static(br#"{"status":{"phase":"Running"}}"#))
        .unwrap();
    let patched = Answered::of(edge.node.ask(patched).await).await;
    assert_eq!(patched.status, 200, "{}", patched.text());
    let pod = value(&patched.body, Encoding::Protobuf);
    assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], "127.0.0.1");
    // Tables are for people.
    let table = [
        ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
        ("user-agent", "kube-proxy/v1"),
    ];
    let table = edge.node.get_as(SERVICES, &table).await;
    assert!(table.text().contains("discarded"), "{}", table.text());
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_told_when_a_services_topology_or_the_pool_changes() {
    let edge = Edge::start().await;
    let list = format!("{SLICES}?labelSelector=kubernetes.io%2Fservice-name%3Dweb");
    let mut watches = Vec::new();
    for (agent, encoding) in [
        ("kube-proxy", Encoding::Json),
        ("coredns", Encoding::Protobuf),
    ] {
        let (shown, revision) = listed(&edge.node, &list, agent, encoding).await;
        assert_eq!(nodes_of(&shown["web-x"]), "1,2,3");
        let target =
            format!("{list}&resourceVersion={revision}&watch=true&allowWatchBookmarks=true");
        watches.push(Watching::open(&edge.node, &target, agent, encoding).await);
    }
    let versions = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let mut expect = async |expected: &str| {
        for watch in &mut watches {
            let event = watch.next().await.expect("an event");
            let object = event.object.to_json_value().unwrap();
            assert_eq!(
                (event.kind, nodes_of(&object).as_str()),
                (EventType::Modified, expected)
            );
            versions
                .borrow_mut()
                .insert(object["metadata"]["resourceVersion"].to_string());
        }
    };
    edge.annotate("web", json!("kubernetes.io/hostname")).await;
    expect("1").await;
    edge.annotate("web", json!("openyurt.io/nodepool")).await;
    expect("1,2").await;
    // The pool grows and shrinks.
    edge.patch(
        &format!("{POOLS}/here"),
        json!({"status": {"nodes": ["edge-1", "edge-2", "edge-3"]}}),
    )
    .await;
    expect("1,2,3").await;
    edge.patch(
        &format!("{POOLS}/here"),
        json!({"status": {"nodes": ["edge-1", "edge-2"]}}),
    )
    .await;
    expect("1,2").await;
    // Annotations that change nothing tell nothing; a list names the nearest first.
    edge.annotate("web", json!("kubernetes.io/zone")).await;
    edge.annotate("web", json!("kubernetes.io/hostname, openyurt.io/nodepool"))
        .await;
    expect("1").await;
    edge.annotate("web", Value::Null).await;
    expect("1,2,3").await;
    // It was the same object all the time, whose revision the cloud gave.
    assert_eq!(versions.borrow().len(), 1);
    // The stream goes on: what comes from the cloud is filtered as it is now.
    edge.annotate("web", json!("kubernetes.io/hostname")).await;
    expect("1").await;
    edge.patch(
        &format!("{SLICES}/web-x"),
        json!({"metadata": {"labels": {"more": "1"}}}),
    )
    .await;
    expect("1").await;

    // A connection that breaks takes with it what was on its way: who comes back at once is told again.
    edge.annotate("web", json!("openyurt.io/nodepool")).await;
    expect("1,2").await;
    drop(watches);
    for (agent, encoding) in [
        ("kube-proxy", Encoding::Json),
        ("coredns", Encoding::Protobuf),
    ] {
        let (shown, revision) = listed(&edge.node, &list, "somebody", encoding).await;
        assert_eq!(nodes_of(&shown["web-x"]), "1,2,3");
        let target = format!("{list}&resourceVersion={revision}&watch=true");
        let mut watch = Watching::open(&edge.node, &target, agent, encoding).await;
        assert_eq!(watch.nodes().await, (EventType::Modified, "1,2".into()));
    }
    edge.annotate("web", json!("kubernetes.io/hostname")).await;
    eventually("the annotation is known", async || {
        let (shown, _) = listed(&edge.node, &list, "kube-proxy", Encoding::Json).await;
        nodes_of(&shown["web-x"]) == "1"
    })
    .await;

    // What a restarted hub knows without the cloud: its clients come back where they were.
    let (shown, revision) = listed(&edge.node, &list, "kube-proxy", Encoding::Json).await;
    assert_eq!(nodes_of(&shown["web-x"]), "1");
    edge.link.set(State::Cut);
    edge.node.until_mode("offline").await;
    for encoding in ENCODINGS {
        let (shown, _) = listed(&edge.node, &list, "kube-proxy", encoding).await;
        assert_eq!(nodes_of(&shown["web-x"]), "1");
    }
    let edge = edge.restarted().await;
    let node = &edge.node;
    for (agent, encoding) in [
        ("kube-proxy", Encoding::Json),
        ("coredns", Encoding::Protobuf),
    ] {
        let target = format!("{list}&resourceVersion={revision}&watch=true");
        let mut watch = Watching::open(node, &target, agent, encoding).await;
        // Nobody remembers what they were shown before: they are told how it is.
        assert_eq!(watch.nodes().await, (EventType::Modified, "1".into()));
        let (shown, _) = listed(node, &list, agent, encoding).await;
        assert_eq!(nodes_of(&shown["web-x"]), "1");
        // What changes while the link is cut is told when it is back.
        edge.annotate("web", json!("openyurt.io/nodepool")).await;
        edge.link.set(State::Whole);
        assert_eq!(watch.nodes().await, (EventType::Modified, "1,2".into()));
        edge.annotate("web", json!("kubernetes.io/hostname")).await;
        assert_eq!(watch.nodes().await, (EventType::Modified, "1".into()));
        edge.link.set(State::Cut);
        node.until_mode("offline").await;
    }
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_add_components_whose_running_watches_begin_anew() {
    let edge = Edge::start().await;
    let (shown, revision) = listed(&edge.node, SERVICES, "my-proxy", Encoding::Json).await;
    assert!(shown.contains_key("discarded"));
    let target = format!("{SERVICES}?resourceVersion={revision}&watch=true");
    let mut watch = Watching::open(&edge.node, &target, "my-proxy", Encoding::Json).await;
    write(&edge.cloud, Method::POST, "/api/v1/namespaces/kube-system/configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "yurt-hub-cfg"}, "data": {"discardcloudservice": "my-proxy"}}),
    )
    .await;
    // It is nobody's error: the client comes back for what follows, and is told what it is not to have.
    assert!(watch.next().await.is_none());
    let mut watch = Watching::open(&edge.node, &target, "my-proxy", Encoding::Json).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (event.kind, event.object.key().unwrap().name.as_ref()),
        (EventType::Deleted, "discarded")
    );
    // It is let go again, and shown again.
    direct(
        &edge.cloud,
        Method::DELETE,
        "/api/v1/namespaces/kube-system/configmaps/yurt-hub-cfg",
        None,
    )
    .await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (event.kind, event.object.key().unwrap().name.as_ref()),
        (EventType::Added, "discarded")
    );
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_without_a_network_puts_pods_on_their_nodes() {
    let edge = Edge::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut watches = Vec::new();
    for encoding in ENCODINGS {
        let (shown, revision) = listed(&edge.node, pods, "kubelet", encoding).await;
        assert_eq!(shown["plain"]["spec"]["hostNetwork"], Value::Null);
        let target = format!("{pods}?resourceVersion={revision}&watch=true");
        watches.push((
            encoding,
            Watching::open(&edge.node, &target, "kubelet", encoding).await,
        ));
    }
    edge.patch(
        &format!("{POOLS}/here"),
        json!({"spec": {"hostNetwork": true}}),
    )
    .await;
    for (encoding, watch) in &mut watches {
        for name in ["plain", "wired"] {
            let event = watch.next().await.unwrap();
            let pod = event.object.to_json_value().unwrap();
            assert_eq!(
                (event.kind, &pod["metadata"]["name"]),
                (EventType::Modified, &json!(name))
            );
            assert_eq!(pod["spec"]["hostNetwork"], true);
        }
        let (shown, _) = listed(&edge.node, pods, "kubelet", *encoding).await;
        assert!(shown.values().all(|pod| pod["spec"]["hostNetwork"] == true));
        let one = get(&edge.node, &format!("{pods}/plain"), "kubelet", *encoding).await;
        assert_eq!(value(&one.body, *encoding)["spec"]["hostNetwork"], true);
    }
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_turn_filters_off_and_bounds_are_kept() {
    let edge = Edge::start().await;
    let flags: [(bool, &[&str], bool); 4] = [
        (true, &["discardcloudservice"], true),
        (true, &["*"], true),
        (false, &[], true),
        (true, &["masterservice"], false),
    ];
    edge.node.stop().await;
    for (enabled, disabled, shown) in flags {
        let directory = Directory::new();
        let mut config = config(&directory.0, &edge.trust, &[edge.link.addr]);
        config.filters = enabled;
        config.disabled_filters = disabled.iter().map(|name| (*name).to_owned()).collect();
        // Not even one service fits.
        config.bounds.filtered_body = 200;
        let node = Node::start(config).await;
        node.until_up().await;
        let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
        if shown {
            assert!(
                answered.text().contains("discarded"),
                "{enabled} {disabled:?}: {}",
                answered.text()
            );
        } else {
            // Rather nothing than what misleads.
            assert_eq!(answered.status, 500, "{}", answered.text());
            assert!(
                answered.json()["message"]
                    .as_str()
                    .unwrap()
                    .contains("limit")
            );
            let refused = node
                .metric("node_yurthub_filter_refused_answers_total{reason=\"too_large\"}")
                .await;
            assert!(refused >= 1.0);
        }
        node.stop().await;
    }
    edge.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_api_servers_some_filters_are_off_and_watchers_list_again() {
    let edge = Edge::start().await;
    let directory = Directory::new();
    let mut config = config(&directory.0, &edge.trust, &[edge.link.addr]);
    config.pool = "here".into();
    config.working_mode = yurt_hub::config::WorkingMode::Cloud;
    let node = Node::start(config).await;
    node.until_up().await;
    eventually("the pool is known", async || {
        let (shown, _) = listed(&node, SERVICES, "kube-proxy", Encoding::Protobuf).await;
        assert!(shown.contains_key("discarded"));
        !shown.contains_key("elsewhere")
    })
    .await;
    let slice = format!("{SLICES}?fieldSelector=metadata.name%3Dweb-x");
    for (keys, encoding) in [
        ("kubernetes.io/hostname", Encoding::Json),
        ("openyurt.io/nodepool", Encoding::Protobuf),
    ] {
        let (_, revision) = listed(&node, &slice, "kube-proxy", encoding).await;
        let target = format!("{slice}&resourceVersion={revision}&watch=true");
        let mut watch = Watching::open(&node, &target, "kube-proxy", encoding).await;
        edge.annotate("web", json!(keys)).await;
        // Nothing is cached here that could be told.
        let event = watch.next().await.unwrap();
        let status = event.object.to_json_value().unwrap();
        assert_eq!(
            (event.kind, &status["code"]),
            (EventType::Error, &json!(410))
        );
        assert!(watch.next().await.is_none());
        let (shown, _) = listed(&node, &slice, "kube-proxy", encoding).await;
        assert_eq!(
            nodes_of(&shown["web-x"]),
            if keys.contains("host") { "1" } else { "1,2" }
        );
    }
    node.stop().await;
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_are_not_kept_back_for_long_by_services_that_are_not_known() {
    const ALL: &str = "/apis/discovery.k8s.io/v1/endpointslices";
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let endpoints = json!([{"addresses": ["10.0.0.1"], "nodeName": "edge-1"}, {"addresses": ["10.0.0.2"], "nodeName": "edge-2"}]);
    let slices = json!({"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {"resourceVersion": "9"}, "items": [
        {"metadata": {"name": "web-x", "namespace": "default", "uid": "s", "resourceVersion": "8", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": null}]});
    cloud.answer(Method::GET, ALL, 200, JSON, slices.to_string());
    // Services cannot be read at first.
    let refused = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"ServiceUnavailable","code":503}"#;
    cloud.answer(Method::GET, "/api/v1/services", 503, JSON, refused);
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    node.until_up().await;
    let (shown, revision) = listed(&node, ALL, "kube-proxy", Encoding::Json).await;
    assert_eq!(nodes_of(&shown["web-x"]), "1,2");
    assert!(
        node.metric("node_yurthub_filter_unready_answers_total")
            .await
            >= 1.0
    );
    let target = format!("{ALL}?resourceVersion={revision}&watch=true");
    let mut watch = Watching::open(&node, &target, "kube-proxy", Encoding::Json).await;
    let services = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": [
        {"metadata": {"name": "web", "namespace": "default", "uid": "w", "resourceVersion": "3", "annotations": {TOPOLOGY: "kubernetes.io/hostname"}}, "spec": {}}]});
    cloud.answer(
        Method::GET,
        "/api/v1/services",
        200,
        JSON,
        services.to_string(),
    );
    // Told as soon as it is known.
    assert_eq!(watch.nodes().await, (EventType::Modified, "1".into()));
    node.stop().await;
    cloud.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_no_other_than_it_came() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let service = |name: &str, discard: &str| json!({"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "3", "annotations": {"svc.openyurt.io/discard": discard}}, "spec": {"type": "LoadBalancer"}});
    let list = |items: Value| {
        json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "9", "continue": "more", "remainingItemCount": 7}, "items": items}).to_string()
    };
    cloud.answer(
        Method::GET,
        SERVICES,
        200,
        JSON,
        list(json!([service("a", "true"), service("b", "no")])),
    );
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.bounds.filtering = 4096;
    let node = Node::start(config).await;
    node.until_up().await;
    // One is gone, the rest of the list is as it was; it came without a coding that would have to be undone.
    let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
    let shown = answered.json();
    assert_eq!(
        shown["metadata"],
        json!({"resourceVersion": "9", "continue": "more", "remainingItemCount": 7})
    );
    assert_eq!(shown["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        answered.headers["content-length"],
        answered.body.len().to_string()
    );
    let coding = |agent: &str| {
        let seen = cloud.seen(Method::GET, SERVICES);
        let asked = seen.iter().rev().find(|seen| {
            seen.headers["user-agent"]
                .to_str()
                .unwrap()
                .starts_with(agent)
        });
        asked.unwrap().headers["accept-encoding"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(coding("kube-proxy"), "identity");
    get(&node, SERVICES, "somebody", Encoding::Json).await;
    assert_eq!(coding("somebody"), "gzip");
    // Garbage and what is no list pass.
    for body in [
        "]]]",
        "{\"kind\":\"ServiceList\",\"items\":[{\"metadata\":7}]}",
        "{\"kind\":\"Status\",\"apiVersion\":\"v1\"}",
        "",
    ] {
        cloud.answer(Method::GET, SERVICES, 200, JSON, body);
        let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
        assert_eq!((answered.status, answered.text().as_str()), (200, body));
    }
    let refused =
        r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}"#;
    cloud.answer(Method::GET, SERVICES, 403, JSON, refused);
    let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
    assert_eq!((answered.status, answered.text().as_str()), (403, refused));
    // More than there is room for at one time: later.
    let many: Vec<Value> = (0..100)
        .map(|name| service(&name.to_string(), "no"))
        .collect();
    cloud.answer(Method::GET, SERVICES, 200, JSON, list(json!(many)));
    let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
    assert_eq!(
        (
            answered.status,
            answered.headers["retry-after"].to_str().unwrap()
        ),
        (429, "1")
    );
    assert_eq!(
        get(&node, SERVICES, "somebody", Encoding::Json)
            .await
            .status,
        200
    );
    // The room is given back.
    cloud.answer(
        Method::GET,
        SERVICES,
        200,
        JSON,
        list(json!([service("a", "true")])),
    );
    for _ in 0..20 {
        let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
        assert_eq!(
            (answered.status, &answered.json()["items"]),
            (200, &json!([]))
        );
    }
    // A stream of which nothing can be made breaks, so that its client begins anew.
    let response = node
        .ask(asked(
            &format!("{SERVICES}?watch=true&resourceVersion=9"),
            "kube-proxy",
            Encoding::Json,
        ))
        .await;
    eventually("the watch is open", async || cloud.watching(SERVICES) == 1).await;
    cloud.emit(SERVICES, "]]]garbage\n").await;
    let mut body = response.into_body();
    let broken = tokio::time::timeout(PATIENCE, body.frame())
        .await
        .expect("an end");
    assert!(matches!(broken, Some(Err(_))), "{broken:?}");
    assert!(
        node.metric("node_yurthub_filter_refused_answers_total{reason=\"undecodable\"}")
            .await
            >= 1.0
    );
    node.stop().await;
    cloud.stop();
}

/// The filter of the docs, in a chain as the hub makes them.
#[test]
fn the_filter_of_the_docs_filters() {
    let docs = include_str!("../../../../docs/filters.md");
    let code = include_str!("filters/example.rs");
    assert!(
        docs.contains(code.trim()),
        "docs/filters.md shows another filter than tests/hub/filters/example.rs"
    );
    let selection = Selection {
        enabled: true,
        ..Selection::default()
    };
    let example: Arc<dyn Filter> = Arc::new(example::QuietPods);
    let force = Force::of(
        &BuiltIn::default(),
        &[example],
        &selection,
        Context::of_node("edge-1"),
    );
    let info = RequestInfo::parse(&Method::GET, "/api/v1/pods", Some("watch=true"));
    let chain = Arc::new(force)
        .chain("log-agent/2.1", &info)
        .expect("a chain");
    for encoding in ENCODINGS {
        let pod = |namespace: &str, quiet: &str| {
            let value = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "p", "namespace": namespace, "annotations": {"example.com/quiet": quiet}},
                "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "b"}]}]}});
            chain.filter(
                &Object::from_json_value(&value, encoding).unwrap(),
                &Metrics::default(),
            )
        };
        assert_eq!(pod("default", "true"), Outcome::Dropped);
        assert_eq!(pod("kube-system", "true"), Outcome::Kept);
        let Outcome::Changed(changed) = pod("default", "no") else {
            panic!("not changed")
        };
        assert_eq!(changed.encoding, encoding);
        assert_eq!(
            changed.to_json_value().unwrap()["spec"]["containers"][0].get("env"),
            None
        );
    }
}
