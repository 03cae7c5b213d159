//! Services over a cut (W4): what watchers of EndpointSlices see of pods that come up elsewhere, and that nobody is left with a state
//! that the cloud never had.

use crate::{
    cloud::{Cloud, JSON, Trust},
    event,
    link::{Link, State},
    node::{Came, Directory, Node, Watching, config, eventually},
};
use http::Method;
use serde_json::Value;
use std::time::Duration;

const NODE_PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
const POD: &str = "/api/v1/namespaces/default/pods/a";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const PATCH: &str = "application/strategic-merge-patch+json";

fn pod(revision: u64, ip: &str) -> String {
    format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"a","namespace":"default","uid":"uid-a","resourceVersion":"{revision}"}},"spec":{{"nodeName":"edge-1","containers":[{{"name":"c","image":"i"}}]}},"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
    )
}

fn slice(revision: u64, ip: &str) -> String {
    format!(
        r#"{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{{"name":"web-x","namespace":"default","uid":"s","resourceVersion":"{revision}","labels":{{"kubernetes.io/service-name":"web"}}}},"addressType":"IPv4","endpoints":[{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"edge-1","targetRef":{{"kind":"Pod","namespace":"default","name":"a","uid":"uid-a"}}}}],"ports":[{{"name":"","port":80,"protocol":"TCP"}}]}}"#
    )
}

fn list(kind: &str, api_version: &str, item: &str) -> String {
    format!(
        r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{{"resourceVersion":"9"}},"items":[{item}]}}"#
    )
}

struct Edge {
    cloud: Cloud,
    link: Link,
    node: Node,
    directory: Directory,
    trust: Trust,
}

impl Edge {
    /// A hub whose cache holds a pod of the node and the slice of its service.
    async fn start() -> Self {
        let (trust, directory) = (Trust::new(), Directory::new());
        let cloud = Cloud::start(&trust).await;
        cloud.answer(
            Method::GET,
            "/api/v1/pods",
            200,
            JSON,
            list("Pod", "v1", &pod(7, "10.0.0.1")),
        );
        let slices = list(
            "EndpointSlice",
            "discovery.k8s.io/v1",
            &slice(8, "10.0.0.1"),
        );
        cloud.answer(Method::GET, SLICES, 200, JSON, slices);
        let link = Link::to(cloud.addr).await;
        let node = Self::hub(&trust, &directory, &link).await;
        node.until_up().await;
        for path in [NODE_PODS, SLICES] {
            assert_eq!(node.get(path).await.status, 200);
        }
        eventually("the cache has learned", async || {
            node.status().await["cache"]["objects"].as_u64() >= Some(2)
        })
        .await;
        Self {
            cloud,
            link,
            node,
            directory,
            trust,
        }
    }

    async fn hub(trust: &Trust, directory: &Directory, link: &Link) -> Node {
        let mut config = config(&directory.0, trust, &[link.addr]);
        config.bounds.endpoints_grace = Duration::from_secs(1);
        Node::start(config).await
    }

    async fn cut(&self) {
        self.link.set(State::Cut);
        self.node.until_mode("offline").await;
    }

    async fn heal(&self) {
        self.link.set(State::Whole);
        self.node.until_mode("online").await;
    }

    async fn watch(&self, accept: &str) -> Watching {
        let target = format!("{SLICES}?watch=true&resourceVersion=9&timeoutSeconds=600");
        self.node.watch(&target, &[("accept", accept)]).await
    }

    /// The kubelet reports that the pod has another address.
    async fn moved(&self, ip: &str) {
        let status = format!(
            r#"{{"status":{{"podIP":"{ip}","podIPs":[{{"ip":"{ip}"}},{{"ip":"10.0.0.1","$patch":"delete"}}]}}}}"#
        );
        let headers = [("content-type", PATCH), ("accept", JSON)];
        let path = format!("{POD}/status");
        let patched = self
            .node
            .call(Method::PATCH, &path, &headers, &status)
            .await;
        assert_eq!(patched.status, 200, "{}", patched.text());
    }

    async fn replayed(&self) {
        eventually("replayed", async || {
            self.node.status().await["journal"]["pending"] == 0
        })
        .await;
    }
}

/// The addresses that an event shows, in an object or a row.
fn addresses(event: &Value) -> String {
    let object = &event["object"];
    let address = &object["endpoints"][0]["addresses"][0];
    match address.as_str() {
        Some(address) => address.to_owned(),
        None => object["rows"][0]["cells"][3]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    }
}

async fn until_shows(watch: &mut Watching, ip: &str) {
    loop {
        let event = watch.event().await;
        assert_ne!(event["type"], "ERROR", "{event}");
        if addresses(&event) == ip {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w4_a_state_that_the_cloud_never_had_does_not_outlive_the_cut() {
    let edge = Edge::start().await;
    let mut watches = [edge.watch(JSON).await, edge.watch(TABLE).await];
    edge.cut().await;
    edge.moved("10.0.0.9").await;
    for watch in &mut watches {
        until_shows(watch, "10.0.0.9").await;
    }
    // The cloud takes the status, and nobody there looks after the slice.
    edge.cloud
        .answer(Method::GET, POD, 200, JSON, pod(7, "10.0.0.1"));
    let status = format!("{POD}/status");
    edge.cloud
        .answer(Method::PUT, &status, 200, JSON, pod(30, "10.0.0.9"));
    edge.heal().await;
    edge.replayed().await;
    for watch in &mut watches {
        until_shows(watch, "10.0.0.1").await;
    }
    // Who listed while cut and comes back only now is told as well.
    let mut late = edge.watch(JSON).await;
    let told = late.event().await;
    assert_eq!(
        (told["type"].as_str(), addresses(&told)),
        (Some("MODIFIED"), "10.0.0.1".into())
    );
    // The streams go on as the cloud's.
    edge.cloud
        .emit(SLICES, event("MODIFIED", &slice(40, "10.0.0.9")))
        .await;
    for watch in [&mut watches[0], &mut late] {
        until_shows(watch, "10.0.0.9").await;
    }
    // What the cloud told of itself needs no word of the hub.
    let mut later = edge.watch(JSON).await;
    assert!(later.silent_for(Duration::from_millis(500)).await);
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w4_addresses_of_a_reboot_without_a_link_hold_until_the_cloud_tells_its_own() {
    let edge = Edge::start().await;
    edge.cut().await;
    edge.moved("10.0.0.9").await;
    edge.node.stop().await;
    let node = Edge::hub(&edge.trust, &edge.directory, &edge.link).await;
    let edge = Edge { node, ..edge };
    let mut watch = edge.watch(JSON).await;
    until_shows(&mut watch, "10.0.0.9").await;
    let list = edge.node.get(SLICES).await.json();
    assert_eq!(list["items"][0]["endpoints"][0]["addresses"][0], "10.0.0.9");
    // The pod moves on, and so does what watchers see.
    edge.moved("10.0.0.10").await;
    until_shows(&mut watch, "10.0.0.10").await;
    edge.cloud
        .answer(Method::GET, POD, 200, JSON, pod(7, "10.0.0.1"));
    let status = format!("{POD}/status");
    edge.cloud
        .answer(Method::PUT, &status, 200, JSON, pod(30, "10.0.0.10"));
    edge.heal().await;
    eventually("resumed", async || edge.cloud.watching(SLICES) == 1).await;
    edge.cloud
        .emit(SLICES, event("MODIFIED", &slice(31, "10.0.0.10")))
        .await;
    let told = watch.event().await;
    assert_eq!(told["object"]["metadata"]["resourceVersion"], "31");
    assert_eq!(addresses(&told), "10.0.0.10");
    // The cloud's word is there: nothing is to be put right any more.
    assert!(watch.silent_for(Duration::from_secs(3)).await);
    edge.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_the_cloud_refuses_is_undone_in_open_watches() {
    let edge = Edge::start().await;
    let target = format!("{NODE_PODS}&watch=true&resourceVersion=9&timeoutSeconds=600");
    let mut pods = edge.node.watch(&target, &[("accept", JSON)]).await;
    edge.cut().await;
    let headers = [("content-type", JSON), ("accept", JSON)];
    let options = r#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0,"preconditions":{"uid":"uid-a"}}"#;
    let removed = edge.node.call(Method::DELETE, POD, &headers, options).await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert_eq!(pods.event().await["type"], "DELETED");
    edge.cloud.answer(
        Method::DELETE,
        POD,
        403,
        JSON,
        r#"{"kind":"Status","apiVersion":"v1","code":403,"message":"no"}"#,
    );
    edge.heal().await;
    edge.replayed().await;
    // The pod lives on: whoever was told that it is gone must be told so.
    let told = pods.event().await;
    assert_eq!(told["object"]["metadata"]["name"], "a");
    assert_ne!(told["type"], "DELETED");
    eventually("resumed", async || edge.cloud.watching("/api/v1/pods") == 1).await;
    edge.cloud.end_watches("/api/v1/pods", false).await;
    // It may be told twice, never otherwise.
    while let Came::Event(again) = pods.next().await {
        assert_eq!(again["object"], told["object"]);
    }
    edge.node.stop().await;
}
