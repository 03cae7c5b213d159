//! What a kubelet needs of a hub that has no cloud when the node, or everything on it, starts anew (W4): what it asks for is
//! answered, what it reports is kept, what it ended does not come back.

mod node;

use http::Method;
use node::{Answer, JSON, Node, PROTOBUF, fixture_json, next, twin::Twin};
use serde_json::{Value, json};
use yurt_hub::{caller::Caller, endpoints::Endpoints};
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
    node.cache.learn_object(
        &Caller::Node,
        &gvr,
        &object,
        yurt_hub::cache::Asked::default(),
    );
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
}

/// Reads a WatchList to its end: the names.
async fn initial(node: &Node, path: &str) -> Vec<String> {
    let query = format!(
        "{path}{}watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
        if path.contains('?') { "&" } else { "?" }
    );
    let mut watch = node.watch(&query, PROTOBUF);
    let mut names = Vec::new();
    loop {
        match next(&mut watch).await.expect("an event") {
            (EventType::Added, name, _) => names.push(name),
            (EventType::Bookmark, ..) => return names,
            (kind, ..) => panic!("{kind:?} within the initial events of {path}"),
        }
    }
}

/// What a node has that the recordings lack: storage and a secret.
fn learn_more(node: &Node) {
    let meta = |name: &str, namespace: &str| json!({"name": name, "namespace": namespace, "uid": name, "resourceVersion": "300"});
    for (group, version, resource, object) in [
        (
            "",
            "v1",
            "secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("s", "default"), "data": {"k": "dg=="}}),
        ),
        (
            "",
            "v1",
            "persistentvolumeclaims",
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": meta("claim", "default"), "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}),
        ),
        (
            "",
            "v1",
            "persistentvolumes",
            json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": meta("pv", ""), "spec": {}}),
        ),
        (
            "storage.k8s.io",
            "v1",
            "csinodes",
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode",
            "metadata": meta("edge-1", ""), "spec": {"drivers": []}}),
        ),
    ] {
        let object = Object::from_json_value(&object, Encoding::Protobuf).expect("protobuf");
        let gvr = yurt_wire::Gvr::new(group, version, resource);
        node.cache.learn_object(
            &Caller::Node,
            &gvr,
            &object,
            yurt_hub::cache::Asked::default(),
        );
    }
}

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";

/// What a kubelet asks and reports from its start to the last of its pods, in its order.
async fn start_kubelet(node: &Node) {
    let registration = fixture_json("get-node.json");
    let mut fresh = registration.clone();
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
    ] {
        fresh["metadata"]
            .as_object_mut()
            .expect("metadata")
            .remove(field);
    }
    let made = node.send(Method::POST, "/api/v1/nodes", &fresh).await;
    assert_eq!(made.code, 409, "{}", made.message());
    assert_eq!(made.json()["reason"], "AlreadyExists");
    assert_eq!(node.get("/api/v1/nodes/edge-1", PROTOBUF).await.code, 200);
    for path in [
        "/apis/storage.k8s.io/v1/csinodes/edge-1?resourceVersion=0",
        "/apis/storage.k8s.io/v1/csinodes/edge-1",
        "/api/v1/namespaces/default/secrets/s",
        "/api/v1/namespaces/default/persistentvolumeclaims/claim",
        "/api/v1/persistentvolumes/pv",
    ] {
        let got = node.get(path, PROTOBUF).await;
        assert_eq!(got.code, 200, "{path}: {}", got.message());
    }
    let again = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": "edge-1"}, "spec": {"drivers": []}});
    let made = node
        .send(Method::POST, "/apis/storage.k8s.io/v1/csinodes", &again)
        .await;
    assert_eq!(made.code, 409, "{}", made.message());

    assert_eq!(
        initial(node, "/api/v1/nodes?fieldSelector=metadata.name%3Dedge-1").await,
        ["edge-1"]
    );
    assert_eq!(initial(node, PODS).await.len(), 3);
    assert!(
        initial(
            node,
            "/api/v1/services?fieldSelector=spec.clusterIP%21%3DNone"
        )
        .await
        .contains(&"web".to_owned())
    );
    for empty in [
        "/apis/storage.k8s.io/v1/csidrivers",
        "/apis/node.k8s.io/v1/runtimeclasses",
    ] {
        assert_eq!(initial(node, empty).await, Vec::<String>::new());
    }
    for (name, found) in [("kube-root-ca.crt", 1), ("openshift-service-ca.crt", 0)] {
        let path =
            format!("/api/v1/namespaces/default/configmaps?fieldSelector=metadata.name%3D{name}");
        assert_eq!(initial(node, &path).await.len(), found, "{name}");
    }
    assert_eq!(
        initial(
            node,
            "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Ds"
        )
        .await,
        ["s"]
    );

    let status = json!({"status": {"nodeInfo": {"bootID": "second-boot"}, "conditions": [
        {"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
    let patched = node
        .patch("/api/v1/nodes/edge-1/status?timeout=5s", &status)
        .await;
    assert_eq!(patched.code, 200, "{}", patched.message());
    let mut lease = node
        .get(&format!("{LEASE}?timeout=5s"), PROTOBUF)
        .await
        .json();
    lease["spec"]["renewTime"] = "2026-11-22T04:00:00.000000Z".into();
    let renewed = node
        .send(Method::PUT, &format!("{LEASE}?timeout=5s"), &lease)
        .await;
    assert_eq!(renewed.code, 200, "{}", renewed.message());
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "booted", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": "edge-1", "uid": "edge-1"}, "reason": "Rebooted", "type": "Warning", "count": 1});
    let told = node
        .send(Method::POST, "/api/v1/namespaces/default/events", &event)
        .await;
    assert_eq!(told.code, 201, "{}", told.message());
}

/// The containers of a pod are started again.
async fn restart_pod(node: &Node, name: &str, old: &str, new: &str) {
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    let pod = node.get(&path, PROTOBUF).await;
    assert_eq!(pod.code, 200, "{}", pod.message());
    let pod = pod.json();
    let container = |state: Value, ready: bool| {
        json!([{"name": "busybox", "state": state, "ready": ready, "started": ready, "restartCount": 1,
            "image": "registry.lab/busybox:1", "imageID": "i",
            "lastState": {"terminated": {"exitCode": 255, "reason": "Unknown"}}}])
    };
    let ready = |status: &str| json!([{"type": "Ready", "status": status}, {"type": "ContainersReady", "status": status}]);
    for status in [
        json!({"conditions": ready("False"), "containerStatuses": container(json!({"waiting": {"reason": "ContainerCreating"}}), false)}),
        json!({"conditions": ready("True"), "containerStatuses": container(json!({"running": {"startedAt": "2026-11-22T04:00:01Z"}}), true),
            "podIP": new, "$setElementOrder/podIPs": [{"ip": new}], "podIPs": [{"ip": new}, {"ip": old, "$patch": "delete"}]}),
    ] {
        let patch = json!({"metadata": {"uid": pod["metadata"]["uid"]}, "status": status});
        let patched = node.patch(&format!("{path}/status"), &patch).await;
        assert_eq!(patched.code, 200, "{}", patched.message());
    }
}

const RESTARTED: [(&str, &str, &str); 3] = [
    ("web-65b97464c6-5t9tz", "10.244.0.33", "10.244.0.93"),
    ("web-65b97464c6-hbq56", "10.244.0.34", "10.244.0.94"),
    ("web-65b97464c6-pz569", "10.244.0.35", "10.244.0.95"),
];

/// The addresses of the recorded service.
async fn service_addresses(node: &Node) -> Vec<String> {
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-6xx88";
    let slice = node.get(path, JSON).await.json();
    let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
    let mut addresses: Vec<String> = endpoints
        .iter()
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
        .collect();
    addresses.sort();
    addresses
}

#[tokio::test]
async fn w4_a_rebooted_kubelet_is_answered_after_a_kill_and_what_it_reports_is_kept() {
    let node = Node::recorded().await;
    learn_more(&node);
    node.cache.flush().await.expect("flush");
    let node = node.killed();
    start_kubelet(&node).await;
    for (name, old, new) in RESTARTED {
        restart_pod(&node, name, old, new).await;
    }
    // Power is lost once more, right after the last answer.
    let node = node.killed();
    let grace = std::time::Duration::from_secs(60);
    Endpoints::open(&node.cache, &node.journal, "edge-1", grace);
    let addresses: Vec<_> = RESTARTED
        .iter()
        .map(|(.., new)| (*new).to_owned())
        .collect();
    assert_eq!(service_addresses(&node).await, addresses);
    let shown = node.get("/api/v1/nodes/edge-1", JSON).await.json();
    assert_eq!(shown["status"]["nodeInfo"]["bootID"], "second-boot");
    start_kubelet_again(&node).await;

    let twin = Twin::recorded();
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.kept, report.dropped.len()), (0, 0), "{report:?}");
    for (name, _, new) in RESTARTED {
        let pod = twin.object(&format!("/api/v1/namespaces/default/pods/{name}"));
        assert_eq!(pod["status"]["podIPs"], json!([{"ip": new}]));
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 1);
    }
    let sent = twin.object("/api/v1/nodes/edge-1");
    assert_eq!(sent["status"]["nodeInfo"]["bootID"], "second-boot");
    assert_eq!(
        twin.object("/api/v1/namespaces/default/events/booted")["reason"],
        "Rebooted"
    );
}

/// The event of the first start is there already.
async fn start_kubelet_again(node: &Node) {
    let path = "/api/v1/namespaces/default/events/booted";
    let again = node.patch(path, &json!({"count": 2})).await;
    assert_eq!(again.code, 200, "{}", again.message());
    assert_eq!(initial(node, PODS).await.len(), 3);
}
