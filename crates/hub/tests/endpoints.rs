//! Services while the cloud is away (W4): what watchers of EndpointSlices and Endpoints see when the pods of the node come up with
//! other addresses, across a kill, and until the cloud knows.

mod node;

use http::Method;
use node::{Answer, JSON, Node, PROTOBUF, event, fixture, twin::Twin};
use serde_json::{Value, json};
use std::time::Duration;
use yurt_hub::{caller::Caller, endpoints::Endpoints, offline::LocalWatch};
use yurt_wire::{Encoding, Gvr, Object, watch::EventType};

const NAME: &str = "web-65b97464c6-hbq56";
const POD: &str = "/api/v1/namespaces/default/pods/web-65b97464c6-hbq56";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-6xx88";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/web";
const GRACE: Duration = Duration::from_secs(60);

/// The hub's local half, and who keeps its endpoints.
struct Edge {
    node: Node,
    endpoints: Endpoints,
}

impl Edge {
    async fn recorded() -> Self {
        let node = Node::recorded().await;
        node.learn_list(&Caller::Node, "/api/v1/endpoints", "list-endpoints.pb");
        node.cache.flush().await.expect("flush");
        Self::on(node)
    }

    fn on(node: Node) -> Self {
        let endpoints = Endpoints::open(&node.cache, &node.journal, "edge-1", GRACE);
        Self { node, endpoints }
    }

    /// The kubelet reports a pod; everything follows.
    async fn report(&self, name: &str, status: Value) -> Answer {
        let path = format!("/api/v1/namespaces/default/pods/{name}/status");
        let answer = self.node.patch(&path, &json!({"status": status})).await;
        assert_eq!(answer.code, 200, "{}", answer.message());
        self.endpoints.reconcile(Duration::ZERO);
        answer
    }

    /// Endpoints of the service's slice: name, address, ready.
    async fn shown(&self) -> Vec<(String, String, bool)> {
        listed(&self.node.get(SLICE, JSON).await.json())
    }
}

fn listed(slice: &Value) -> Vec<(String, String, bool)> {
    let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
    let mut listed: Vec<_> = endpoints
        .iter()
        .map(|endpoint| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (
                text(&endpoint["targetRef"]["name"]),
                text(&endpoint["addresses"][0]),
                endpoint["conditions"]["ready"] == true,
            )
        })
        .collect();
    listed.sort();
    listed
}

fn at(ip: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({"podIP": ip, "podIPs": [{"ip": ip}, {"ip": "10.244.0.34", "$patch": "delete"}],
        "conditions": [{"type": "Ready", "status": ready}]})
}

/// What the next event of a watch shows.
async fn seen(watch: &mut LocalWatch) -> (EventType, Encoding, Value) {
    let encoding = Encoding::from_content_type(watch.content_type()).expect("an encoding");
    let frame = watch.next().await.expect("a frame");
    let event = event(frame.bytes, encoding);
    let object = event.object.to_json_value().expect("an object");
    (event.kind, encoding, object)
}

fn expected(ip: &str, ready: bool) -> Vec<(String, String, bool)> {
    let other = |name: &str, ip: &str| (name.to_owned(), ip.to_owned(), true);
    vec![
        other("web-65b97464c6-5t9tz", "10.244.0.33"),
        (NAME.to_owned(), ip.to_owned(), ready),
        other("web-65b97464c6-pz569", "10.244.0.35"),
    ]
}

#[tokio::test]
async fn w4_watchers_in_protobuf_and_json_see_the_new_addresses_of_restarted_pods() {
    let edge = Edge::recorded().await;
    let query = format!("{SLICES}?watch=true&resourceVersion=367");
    let mut watches = [
        edge.node.watch(&query, PROTOBUF),
        edge.node.watch(&query, JSON),
    ];
    edge.report(NAME, at("10.244.0.90", false)).await;
    edge.report(NAME, at("10.244.0.90", true)).await;
    for (watch, encoding) in watches.iter_mut().zip([Encoding::Protobuf, Encoding::Json]) {
        for ready in [false, true] {
            let (kind, got, slice) = seen(watch).await;
            assert_eq!((kind, got), (EventType::Modified, encoding));
            assert_eq!(listed(&slice), expected("10.244.0.90", ready));
            assert_eq!(slice["metadata"]["resourceVersion"], "354", "the cloud's");
            assert_eq!(slice["ports"][0]["port"], 80);
        }
    }
    // What shows in no endpoint moves none.
    edge.report(NAME, json!({"message": "touched"})).await;
    edge.report(NAME, at("10.244.0.91", true)).await;
    for watch in &mut watches {
        assert_eq!(listed(&seen(watch).await.2), expected("10.244.0.91", true));
    }
    drop(watches);

    // After kill -9 the first answer is right already, in either encoding.
    let edge = Edge::on(edge.node.killed());
    assert_eq!(edge.shown().await, expected("10.244.0.91", true));
    let got = edge.node.get(SLICE, PROTOBUF).await;
    assert_eq!(got.content_type, PROTOBUF);
    assert_eq!(listed(&got.json()), expected("10.244.0.91", true));
    // So is a watch that comes back with what it had, and one that begins anew.
    let mut back = edge.node.watch(&query, PROTOBUF);
    assert_eq!(
        listed(&seen(&mut back).await.2),
        expected("10.244.0.91", true)
    );
    let initial = format!(
        "{SLICES}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=kubernetes.io/service-name%3Dweb"
    );
    let mut anew = edge.node.watch(&initial, JSON);
    let (kind, _, slice) = seen(&mut anew).await;
    assert_eq!(kind, EventType::Added);
    assert_eq!(listed(&slice), expected("10.244.0.91", true));
}

#[tokio::test]
async fn w4_endpoints_of_the_older_kind_follow_too() {
    let edge = Edge::recorded().await;
    edge.report(NAME, at("10.244.0.90", false)).await;
    let got = edge.node.get(ENDPOINTS, JSON).await.json();
    let subset = &got["subsets"][0];
    assert_eq!(subset["addresses"].as_array().map(Vec::len), Some(2));
    assert_eq!(subset["notReadyAddresses"][0]["ip"], "10.244.0.90");
    assert_eq!(got["metadata"]["resourceVersion"], "353");
    edge.report(NAME, at("10.244.0.90", true)).await;
    let got = edge.node.get(ENDPOINTS, JSON).await.json();
    assert_eq!(
        got["subsets"][0]["addresses"].as_array().map(Vec::len),
        Some(3)
    );
}

#[tokio::test]
async fn w4_a_pod_that_ends_or_goes_leaves_its_services() {
    let edge = Edge::recorded().await;
    edge.report("web-65b97464c6-5t9tz", json!({"phase": "Failed"}))
        .await;
    let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
    let deleted = edge.node.send(Method::DELETE, POD, &body).await;
    assert_eq!(deleted.code, 200, "{}", deleted.message());
    edge.endpoints.reconcile(Duration::ZERO);
    let left = expected("", true).split_off(2);
    assert_eq!(edge.shown().await, left);
    let edge = Edge::on(edge.node.killed());
    assert_eq!(edge.shown().await, left);
    // They are gone in the cloud as well by and by: until its slice says so, they stay away.
    let twin = Twin::recorded();
    assert_eq!(edge.node.journal.replay(&twin).await.applied, 2);
    edge.endpoints.reconcile(Duration::ZERO);
    assert_eq!(edge.shown().await, left);
}

/// The cloud's slice with another address of the pod.
fn cloud_slice(ip: &str, revision: u64) -> Object {
    let list = yurt_wire::list::split(&fixture("list-endpointslices.pb"), Encoding::Protobuf);
    let items = list.expect("a list").items.into_iter();
    let mut slice = items
        .map(|slice| slice.to_json_value().expect("JSON"))
        .find(|slice| slice["metadata"]["name"] == "web-6xx88")
        .expect("the slice");
    slice["metadata"]["resourceVersion"] = revision.to_string().into();
    for endpoint in slice["endpoints"].as_array_mut().expect("endpoints") {
        if endpoint["targetRef"]["name"] == NAME {
            endpoint["addresses"] = json!([ip]);
        }
    }
    Object::from_json_value(&slice, Encoding::Protobuf).expect("protobuf")
}

fn slices() -> Gvr {
    Gvr::new("discovery.k8s.io", "v1", "endpointslices")
}

#[tokio::test]
async fn the_clouds_own_slice_ends_what_was_worked_out() {
    let edge = Edge::recorded().await;
    edge.report(NAME, at("10.244.0.90", true)).await;
    // News of another pod while the status waits: worked out again, on top of it.
    let gvr = slices();
    edge.node.cache.learn_object(
        &Caller::Node,
        &gvr,
        &cloud_slice("10.244.0.34", 400),
        yurt_hub::cache::Asked::default(),
    );
    edge.endpoints.reconcile(Duration::ZERO);
    let shown = edge.node.get(SLICE, JSON).await.json();
    assert_eq!(listed(&shown), expected("10.244.0.90", true));
    assert_eq!(shown["metadata"]["resourceVersion"], "400");
    let twin = Twin::recorded();
    assert_eq!(edge.node.journal.replay(&twin).await.applied, 1);
    edge.endpoints.reconcile(Duration::ZERO);
    assert_eq!(edge.shown().await, expected("10.244.0.90", true));
    // The cloud acted: another address, as it may know better by now.
    edge.node.cache.learn_object(
        &Caller::Node,
        &gvr,
        &cloud_slice("10.244.0.90", 500),
        yurt_hub::cache::Asked::default(),
    );
    edge.endpoints.reconcile(GRACE / 2);
    let shown = edge.node.get(SLICE, JSON).await.json();
    assert_eq!(shown["metadata"]["resourceVersion"], "500");
    assert_eq!(listed(&shown), expected("10.244.0.90", true));
    edge.endpoints.reconcile(GRACE);
    edge.node.cache.learn_object(
        &Caller::Node,
        &gvr,
        &cloud_slice("10.244.0.99", 501),
        yurt_hub::cache::Asked::default(),
    );
    edge.endpoints.reconcile(Duration::ZERO);
    assert_eq!(edge.shown().await, expected("10.244.0.99", true));
}

#[tokio::test]
async fn a_cloud_that_does_not_act_has_the_last_word_and_a_second_cut_does_not_bring_old_addresses_back()
 {
    let edge = Edge::recorded().await;
    edge.report(NAME, at("10.244.0.90", true)).await;
    let twin = Twin::recorded();
    assert_eq!(edge.node.journal.replay(&twin).await.applied, 1);
    edge.endpoints.reconcile(GRACE / 4);
    // The link goes again, and the hub is killed, before the cloud's slice came: the new address stays.
    edge.node.cache.flush().await.expect("flush");
    let edge = Edge::on(edge.node.killed());
    edge.endpoints.reconcile(Duration::ZERO);
    assert_eq!(edge.shown().await, expected("10.244.0.90", true));
    let mut watch = edge.node.watch(
        &format!("{SLICES}?watch=true&resourceVersion=367"),
        PROTOBUF,
    );
    assert_eq!(
        listed(&seen(&mut watch).await.2),
        expected("10.244.0.90", true)
    );
    // With a link for long enough, the cloud's word holds although it never changed, and watchers are told.
    edge.endpoints.reconcile(GRACE);
    let (kind, _, slice) = seen(&mut watch).await;
    assert_eq!(kind, EventType::Modified);
    assert_eq!(listed(&slice), expected("10.244.0.34", true));
    assert_eq!(edge.shown().await, expected("10.244.0.34", true));
    // A client that was away meanwhile is told as well.
    let mut back = edge
        .node
        .watch(&format!("{SLICES}?watch=true&resourceVersion=367"), JSON);
    assert_eq!(
        listed(&seen(&mut back).await.2),
        expected("10.244.0.34", true)
    );
}

#[tokio::test]
async fn what_the_cloud_knows_already_changes_nothing() {
    let edge = Edge::recorded().await;
    // The cloud's slice says otherwise than its pod, as with a webhook that keeps what is not ready.
    let mut slice = cloud_slice("10.244.0.34", 400)
        .to_json_value()
        .expect("JSON");
    slice["endpoints"][0]["conditions"]["ready"] = false.into();
    let slice = Object::from_json_value(&slice, Encoding::Protobuf).expect("protobuf");
    edge.node.cache.learn_object(
        &Caller::Node,
        &slices(),
        &slice,
        yurt_hub::cache::Asked::default(),
    );
    let before = edge.node.get(SLICE, PROTOBUF).await.body;
    edge.report(NAME, json!({"message": "touched"})).await;
    assert_eq!(edge.node.get(SLICE, PROTOBUF).await.body, before);
    // Pods of other nodes are not ours to judge.
    let path = format!("{POD}/status");
    let status = json!({"status": at("10.244.0.90", true)});
    assert_eq!(edge.node.patch(&path, &status).await.code, 200);
    Endpoints::open(&edge.node.cache, &edge.node.journal, "edge-2", GRACE);
    assert_eq!(edge.node.get(SLICE, PROTOBUF).await.body, before);
}
