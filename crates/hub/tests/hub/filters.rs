//! What components of the node see otherwise than the cloud has it: every filter by list, get and watch, in JSON and protobuf; and that
//! running watches are told when it changes.

mod bounds;
mod example;
mod retold;
mod rules;

use crate::{
    cloud::Trust,
    link::Link,
    node::{Answered, Directory, Node, PATIENCE, config, eventually},
    recorded::{merge, write},
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
        merge(&self.cloud, path, patch).await;
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
