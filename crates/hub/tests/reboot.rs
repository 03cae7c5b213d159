//! What a kubelet needs of a hub that has no cloud when the node, or everything on it, starts anew (W4): what it asks for is
//! answered, what it reports is kept, what it ended does not come back.

mod node;

use http::Method;
use node::{Answer, JSON, Node, PROTOBUF, fixture_json, next, twin::Twin};
use serde_json::{Value, json};
use yurt_hub::{caller::Caller, journal::JournalConfig};
use yurt_wire::{Encoding, Object, watch::EventType};

const NAME: &str = "web-65b97464c6-hbq56";
const POD: &str = "/api/v1/namespaces/default/pods/web-65b97464c6-hbq56";
const PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
const MIRROR: &str = "kubernetes.io/config.mirror";

fn uid() -> String {
    let pods = fixture_json("list-pods.json");
    let items = pods["items"].as_array().expect("items");
    let pod = items.iter().find(|pod| pod["metadata"]["name"] == NAME);
    let uid = &pod.expect("the pod")["metadata"]["uid"];
    uid.as_str().expect("a uid").to_owned()
}

/// As a kubelet deletes: in protobuf, with no grace and the uid it means.
async fn delete(node: &Node, path: &str, options: Value) -> Answer {
    let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    for (key, value) in options.as_object().expect("options") {
        body[key] = value.clone();
    }
    node.send(Method::DELETE, path, &body).await
}

fn at_once(uid: &str) -> Value {
    json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
}

async fn listed(node: &Node) -> Vec<String> {
    let list = node.get(PODS, JSON).await.json();
    let items = list["items"].as_array().expect("items");
    let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned);
    items.iter().filter_map(name).collect()
}

#[tokio::test]
async fn w4_a_pod_that_the_kubelet_removed_while_cut_stays_removed_and_goes_in_the_cloud() {
    let node = Node::recorded().await;
    let mut watch = node.watch(
        &format!("{PODS}&watch=true&resourceVersion=367&allowWatchBookmarks=true"),
        PROTOBUF,
    );
    // Its last status first: whoever counts the pod in the cloud decides by it.
    let done = node
        .patch(
            &format!("{POD}/status"),
            &json!({"status": {"phase": "Succeeded"}}),
        )
        .await;
    assert_eq!(done.code, 200, "{}", done.message());
    assert_eq!(
        next(&mut watch).await.map(|event| event.0),
        Some(EventType::Modified)
    );
    let removed = delete(&node, POD, at_once(&uid())).await;
    assert_eq!(removed.code, 200, "{}", removed.message());
    assert_eq!(removed.content_type, PROTOBUF);
    assert_eq!(removed.json()["kind"], "Pod");
    assert_eq!(
        next(&mut watch).await.map(|event| (event.0, event.1)),
        Some((EventType::Deleted, NAME.to_owned()))
    );

    let absent = async |node: &Node| {
        assert_eq!(node.get(POD, JSON).await.code, 404);
        assert!(!listed(node).await.contains(&NAME.to_owned()));
        assert_eq!(delete(node, POD, at_once(&uid())).await.code, 404);
        let status = json!({"status": {"phase": "Running"}});
        assert_eq!(
            node.patch(&format!("{POD}/status"), &status).await.code,
            404
        );
        assert_eq!(node.journal.pending(), 1);
    };
    absent(&node).await;
    drop(watch);
    let node = node.killed();
    absent(&node).await;
    // A client that knew the pod and comes back is told.
    let mut again = node.watch(&format!("{PODS}&watch=true&resourceVersion=367"), PROTOBUF);
    let told = next(&mut again).await.expect("an event");
    assert_eq!((told.0, told.1), (EventType::Deleted, NAME.to_owned()));
    drop(again);

    let twin = Twin::recorded();
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.applied, report.kept), (1, 0), "{report:?}");
    assert_eq!(
        twin.state().log,
        [
            format!("GET {POD}"),
            format!("PUT {POD}/status"),
            format!("DELETE {POD}")
        ]
    );
    assert_eq!(twin.object(POD), Value::Null);
    assert_eq!(node.get(POD, JSON).await.code, 404);
    assert_eq!(node.restart().await.get(POD, JSON).await.code, 404);
}

#[tokio::test]
async fn a_deletion_is_of_one_uid_only() {
    let node = Node::recorded().await;
    let wrong = delete(&node, POD, at_once("another")).await;
    assert_eq!(wrong.code, 409, "{}", wrong.message());
    assert_eq!(
        wrong.message(),
        format!(
            "Operation cannot be fulfilled on pods \"{NAME}\": Precondition failed: UID in precondition: another, UID in object meta: {}",
            uid()
        )
    );
    assert_eq!(delete(&node, POD, at_once(&uid())).await.code, 200);
    // Meanwhile the cloud has another pod of the name: it lives, and shows.
    let twin = Twin::recorded();
    twin.change(POD, |pod| pod["metadata"]["uid"] = "successor".into());
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.applied, report.kept), (1, 0), "{report:?}");
    assert_eq!(twin.object(POD)["metadata"]["uid"], "successor");
    let shown = node.get(POD, JSON).await;
    assert_eq!(shown.json()["metadata"]["uid"], "successor");
    // Gone already is as good.
    let node = Node::recorded().await;
    assert_eq!(delete(&node, POD, at_once(&uid())).await.code, 200);
    let twin = Twin::recorded();
    twin.state().objects.remove(POD);
    assert_eq!(node.journal.replay(&twin).await.applied, 1);
}

#[tokio::test]
async fn deletions_that_only_the_cloud_can_begin_are_refused() {
    let node = Node::recorded().await;
    for options in [json!({}), json!({"gracePeriodSeconds": 30})] {
        let refused = delete(&node, POD, options).await;
        assert_eq!(refused.code, 503, "{}", refused.message());
        assert!(
            refused.message().contains("offline"),
            "{}",
            refused.message()
        );
    }
    let dry = delete(&node, &format!("{POD}?dryRun=All"), at_once(&uid())).await;
    assert_eq!(dry.code, 200);
    let unknown = "/api/v1/namespaces/default/pods/never-seen";
    assert_eq!(delete(&node, unknown, at_once("u")).await.code, 503);
    let bearer = Caller::Bearer("t".into());
    node.cache.accept_bearer(&bearer);
    let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
    let refused = node
        .request(
            &bearer,
            Method::DELETE,
            POD,
            JSON,
            JSON,
            body.to_string().into(),
        )
        .await;
    assert_eq!(refused.code, 503, "{}", refused.message());
    for path in [
        "/api/v1/nodes/edge-1",
        "/api/v1/namespaces/default/configmaps/kube-root-ca.crt",
    ] {
        assert_eq!(
            delete(&node, path, json!({"gracePeriodSeconds": 0}))
                .await
                .code,
            503
        );
    }
    assert_eq!(node.get(POD, JSON).await.code, 200);
    assert_eq!(node.journal.pending(), 0);
}

fn static_pod(hash: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "proxy-edge-1", "namespace": "default", "uid": "of-the-file", "annotations": {MIRROR: hash},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": "n", "controller": true}]},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": "i"}]}})
}

const STATIC: &str = "/api/v1/namespaces/default/pods/proxy-edge-1";
const DEFAULT_PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn w4_a_static_pod_shows_while_cut_with_its_status_and_is_mirrored_later() {
    let node = Node::recorded().await;
    let mut watch = node.watch(&format!("{PODS}&watch=true&resourceVersion=367"), PROTOBUF);
    let made = node
        .send(Method::POST, DEFAULT_PODS, &static_pod("h1"))
        .await;
    assert_eq!(made.code, 201, "{}", made.message());
    let uid = made.json()["metadata"]["uid"].clone();
    assert_ne!(uid, "of-the-file", "a server gives it");
    assert_eq!(
        next(&mut watch).await.map(|event| (event.0, event.1)),
        Some((EventType::Added, "proxy-edge-1".to_owned()))
    );
    let again = node
        .send(Method::POST, DEFAULT_PODS, &static_pod("h1"))
        .await;
    assert_eq!(again.code, 409, "{}", again.message());
    let status =
        json!({"metadata": {"uid": uid}, "status": {"phase": "Running", "podIP": "10.244.0.9"}});
    let patched = node.patch(&format!("{STATIC}/status"), &status).await;
    assert_eq!(patched.code, 200, "{}", patched.message());
    drop(watch);

    let node = node.killed();
    let shown = node.get(STATIC, JSON).await.json();
    assert_eq!(shown["metadata"]["uid"], uid, "the same after a kill");
    assert_eq!(shown["status"]["podIP"], "10.244.0.9");
    assert!(listed(&node).await.contains(&"proxy-edge-1".to_owned()));

    let twin = Twin::recorded();
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.applied, report.kept), (1, 0), "{report:?}");
    let mirrored = twin.object(STATIC);
    assert_eq!(mirrored["status"]["podIP"], "10.244.0.9");
    let shown = node.get(STATIC, JSON).await.json();
    assert_eq!(shown["metadata"]["uid"], mirrored["metadata"]["uid"]);
}

#[tokio::test]
async fn a_static_pod_that_changed_while_cut_replaces_its_mirror() {
    let node = Node::recorded().await;
    let mut known = static_pod("h1");
    known["metadata"]["uid"] = "old".into();
    known["metadata"]["resourceVersion"] = "360".into();
    let object = Object::from_json_value(&known, Encoding::Protobuf).expect("protobuf");
    let gvr = yurt_wire::Gvr::new("", "v1", "pods");
    node.cache.learn_object(&Caller::Node, &gvr, &object);
    let twin = Twin::recorded();
    twin.state().objects.insert(STATIC.into(), known);

    assert_eq!(delete(&node, STATIC, at_once("old")).await.code, 200);
    let made = node
        .send(Method::POST, DEFAULT_PODS, &static_pod("h2"))
        .await;
    assert_eq!(made.code, 201, "{}", made.message());
    let node = node.killed();
    let shown = node.get(STATIC, JSON).await.json();
    assert_eq!(shown["metadata"]["annotations"][MIRROR], "h2");
    assert_eq!(node.journal.replay(&twin).await.applied, 1);
    let log = twin.state().log.clone();
    assert_eq!(
        log,
        [
            format!("DELETE {STATIC}"),
            format!("POST {DEFAULT_PODS}"),
            format!("PUT {STATIC}/status")
        ]
    );
    assert_eq!(twin.object(STATIC)["metadata"]["annotations"][MIRROR], "h2");
}

#[tokio::test]
async fn only_mirrors_of_this_nodes_static_pods_are_created() {
    let node = Node::recorded().await;
    let mut plain = static_pod("h");
    plain["metadata"]["annotations"] = json!({});
    let mut elsewhere = static_pod("h");
    elsewhere["spec"]["nodeName"] = "edge-2".into();
    for pod in [plain, elsewhere] {
        let refused = node.send(Method::POST, DEFAULT_PODS, &pod).await;
        assert_eq!(refused.code, 503, "{}", refused.message());
    }
    assert_eq!(node.journal.pending(), 0);
    // One that was made here and ended here was never in the cloud.
    let made = node
        .send(Method::POST, DEFAULT_PODS, &static_pod("h"))
        .await;
    let uid = made.json()["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let mut watch = node.watch(&format!("{PODS}&watch=true&resourceVersion=367"), PROTOBUF);
    assert_eq!(delete(&node, STATIC, at_once(&uid)).await.code, 200);
    let mut told = Vec::new();
    while told
        .last()
        .is_none_or(|event: &(EventType, String)| event.0 != EventType::Deleted)
    {
        let event = next(&mut watch).await.expect("an event");
        told.push((event.0, event.1));
    }
    assert_eq!(
        told.last().map(|event| event.1.as_str()),
        Some("proxy-edge-1")
    );
    assert_eq!(node.journal.pending(), 0);
    assert_ne!(node.get(STATIC, JSON).await.code, 200);
    assert_eq!(node.killed().journal.pending(), 0);
}

#[tokio::test]
async fn events_wait_for_everything_else_in_a_replay() {
    let node = Node::recorded().await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "web", "namespace": "default"}, "reason": "Started", "count": 1,
        "firstTimestamp": null, "lastTimestamp": null, "source": {}, "type": "Normal"});
    let events = "/api/v1/namespaces/default/events";
    assert_eq!(node.send(Method::POST, events, &event).await.code, 201);
    let status = json!({"status": {"phase": "Running", "podIP": "10.244.0.77"}});
    assert_eq!(
        node.patch(&format!("{POD}/status"), &status).await.code,
        200
    );
    let twin = Twin::recorded();
    assert_eq!(node.journal.replay(&twin).await.applied, 2);
    let log = twin.state().log.clone();
    assert_eq!(log.last(), Some(&format!("POST {events}")), "{log:?}");
    assert_eq!(JournalConfig::default().max_events, 1000);
}
