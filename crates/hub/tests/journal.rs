//! Writes without the cloud, and how they come to it.

#[path = "journal/model.rs"]
mod model;
mod node;
#[path = "journal/younger.rs"]
mod younger;

use http::Method;
use node::{JSON, Node, PROTOBUF, fixture, fixture_json, next, twin::Twin};
use serde_json::{Value, json};
use std::time::Duration;
use yurt_hub::{
    caller::Caller,
    journal::{Journal, JournalConfig},
};
use yurt_wire::{Encoding, list, watch::EventType};

const POD: &str = "/api/v1/namespaces/default/pods/web-65b97464c6-hbq56";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";

fn event(name: &str, namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"kind": "Pod", "name": "web", "namespace": namespace}, "reason": "Started", "count": 1,
        "firstTimestamp": null, "lastTimestamp": null, "source": {}, "type": "Normal"})
}

async fn write_everything(node: &Node) {
    let got = node
        .patch(&format!("{POD}/status"), &json!({"metadata": {"uid": fixture_uid()},
            "status": {"phase": "Failed", "reason": "Evicted", "$setElementOrder/conditions": [{"type": "Ready"}],
                "conditions": [{"type": "Ready", "status": "False"}]}}))
        .await;
    assert_eq!(got.code, 200, "{}", got.message());
    assert_eq!(got.content_type, PROTOBUF);
    assert_eq!(got.json()["status"]["phase"], "Failed");
    let got = node
        .send(
            Method::POST,
            "/api/v1/namespaces/default/events",
            &event("started", "default"),
        )
        .await;
    assert_eq!(got.code, 201, "{}", got.message());
    let got = node
        .patch(
            "/api/v1/namespaces/default/events/started",
            &json!({"count": 2}),
        )
        .await;
    assert_eq!(got.code, 200, "{}", got.message());
    let mut lease = node.get(LEASE, JSON).await.json();
    lease["spec"]["renewTime"] = "2026-11-21T22:00:00.000000Z".into();
    let got = node.send(Method::PUT, LEASE, &lease).await;
    assert_eq!(got.code, 200, "{}", got.message());
    let got = node
        .patch(
            "/api/v1/nodes/edge-1/status",
            &json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "Offline"}]}}),
        )
        .await;
    assert_eq!(got.code, 200, "{}", got.message());
}

fn fixture_uid() -> Value {
    fixture_json("list-pods.json")["items"][1]["metadata"]["uid"].clone()
}

/// What is on the disk is what the node shows and brings to the cloud: else it would come up after a restart, older than what the
/// cloud was told since.
#[tokio::test]
async fn a_client_that_goes_leaves_no_write_half_kept() {
    let node = Node::recorded().await;
    let path = format!("{POD}/status");
    let status = json!({"metadata": {"uid": fixture_uid()}, "status": {"phase": "Failed"}});
    let write = node.patch(&path, &status);
    let given_up = tokio::time::timeout(Duration::ZERO, write).await;
    assert!(given_up.is_err(), "the disk was not waited for");
    // The next write waits for its turn.
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Offline"}]}});
    let got = node.patch("/api/v1/nodes/edge-1/status", &ready).await;
    assert_eq!(got.code, 200, "{}", got.message());
    assert_eq!(node.journal.pending(), node.killed().journal.pending());
    assert_eq!(
        node.get(POD, JSON).await.json()["status"]["phase"],
        "Failed"
    );
}

#[tokio::test]
async fn writes_show_at_once_survive_a_kill_and_reach_the_cloud() {
    let node = Node::recorded().await;
    write_everything(&node).await;
    assert_eq!(node.journal.pending(), 3);
    // nothing is flushed on purpose: what was acknowledged is durable
    let node = node.killed();
    assert_eq!(node.journal.pending(), 3);
    let pod = node.get(POD, JSON).await.json();
    assert_eq!(
        (&pod["status"]["phase"], &pod["metadata"]["resourceVersion"]),
        (&"Failed".into(), &"340".into())
    );
    let created = node
        .get("/api/v1/namespaces/default/events/started", JSON)
        .await
        .json();
    assert_eq!(created["count"], 2);
    assert!(
        created["metadata"]["uid"]
            .as_str()
            .is_some_and(|uid| uid.len() == 36)
    );
    let listed = node
        .get("/api/v1/namespaces/default/events", JSON)
        .await
        .json();
    assert_eq!(
        listed["items"].as_array().map(Vec::len),
        Some(28 - other_namespaces() + 1)
    );

    let twin = Twin::recorded();
    // meanwhile somebody else changed what the kubelet does not own
    twin.change(POD, |pod| {
        pod["metadata"]["labels"]["new"] = "1".into();
        pod["status"]["conditions"]
            .as_array_mut()
            .expect("conditions")
            .push(json!({"type": "DisruptionTarget", "status": "True"}));
    });
    let report = node.journal.replay(&twin).await;
    assert_eq!(
        (report.applied, report.dropped.len(), report.kept),
        (3, 0, 0),
        "{report:?}"
    );
    assert_eq!(node.journal.pending(), 0);
    let pod = twin.object(POD);
    assert_eq!(pod["status"]["phase"], "Failed");
    assert_eq!(pod["metadata"]["labels"]["new"], "1");
    let condition = |name: &str| {
        let conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == name)
    };
    assert_eq!(
        condition("Ready").map(|c| c["status"].clone()),
        Some("False".into())
    );
    assert!(condition("DisruptionTarget").is_some());
    assert_eq!(
        twin.object("/api/v1/namespaces/default/events/started")["count"],
        2
    );
    // the node sees what the cloud answered, and nothing is written twice
    let seen = node.get(POD, JSON).await.json();
    assert_eq!(
        seen["metadata"]["resourceVersion"],
        pod["metadata"]["resourceVersion"]
    );
    assert_eq!(seen["metadata"]["labels"]["new"], "1");
    let before = twin.state().log.len();
    assert_eq!(node.journal.replay(&twin).await.applied, 0);
    assert_eq!(twin.state().log.len(), before);
    assert_eq!(node.restart().await.journal.pending(), 0);
}

fn other_namespaces() -> usize {
    fixture_json("list-events.json")["items"]
        .as_array()
        .map(|items| {
            items
                .iter()
                .filter(|e| e["metadata"]["namespace"] != "default")
                .count()
        })
        .unwrap_or_default()
}

#[tokio::test]
async fn the_order_is_that_of_the_last_writes_and_events_come_after_them() {
    let node = Node::recorded().await;
    write_everything(&node).await;
    node.patch(
        &format!("{POD}/status"),
        &json!({"status": {"message": "later"}}),
    )
    .await;
    let twin = Twin::recorded();
    node.journal.replay(&twin).await;
    let log = twin.state().log.clone();
    let place = |what: &str| log.iter().position(|line| line == what);
    let events = "POST /api/v1/namespaces/default/events";
    assert_eq!(place(events), Some(log.len() - 1));
    assert_eq!(place(&format!("PUT {POD}/status")), Some(log.len() - 2));
    assert_eq!(log.iter().filter(|line| line.contains("events")).count(), 1);
}

#[tokio::test]
async fn conflicts_are_settled_and_cuts_lose_nothing() {
    let node = Node::recorded().await;
    write_everything(&node).await;
    let twin = Twin::recorded();
    // the link goes at every possible point, and the hub is killed each time
    let mut node = node.killed();
    let mut rounds = 0;
    loop {
        twin.state().cut_after = Some(rounds % 3);
        let report = node.journal.replay(&twin).await;
        assert!(report.dropped.is_empty(), "{report:?}");
        if report.kept == 0 {
            break;
        }
        assert!(report.stopped.is_some());
        node = node.killed();
        rounds += 1;
        assert!(rounds < 40);
    }
    assert_eq!(twin.object(POD)["status"]["reason"], "Evicted");
    assert_eq!(
        twin.object("/api/v1/namespaces/default/events/started")["count"],
        2
    );

    // a conflict is tried again on the fresh object
    let node = Node::recorded().await;
    node.patch(
        &format!("{POD}/status"),
        &json!({"status": {"reason": "Again"}}),
    )
    .await;
    let twin = Twin::recorded();
    twin.state().faults = vec![(Method::PUT, 409)];
    let report = node.journal.replay(&twin).await;
    assert_eq!(report.applied, 1, "{report:?}");
    assert!(twin.state().faults.is_empty());
}

#[tokio::test]
async fn what_cannot_be_applied_is_dropped_counted_and_shown_no_more() {
    let node = Node::recorded().await;
    write_everything(&node).await;
    let got = node
        .send(
            Method::POST,
            "/api/v1/namespaces/gone/events",
            &event("lost", "gone"),
        )
        .await;
    assert_eq!(got.code, 201);
    let twin = Twin::recorded();
    twin.state().objects.remove(POD);
    twin.change("/api/v1/nodes/edge-1", |node| {
        node["metadata"]["uid"] = "another".into()
    });
    let report = node.journal.replay(&twin).await;
    assert_eq!(
        (report.applied, report.dropped.len(), report.kept),
        (1, 3, 0),
        "{report:?}"
    );
    assert_eq!(node.journal.dropped(), 3);
    assert_eq!(node.get(POD, JSON).await.code, 404);
    let seen = node.get("/api/v1/nodes/edge-1", JSON).await.json();
    assert_eq!(seen, fixture_json("get-node.json"));

    // one object that the cloud cannot take does not keep the others
    let node = Node::recorded().await;
    node.patch(
        &format!("{POD}/status"),
        &json!({"status": {"reason": "x"}}),
    )
    .await;
    node.send(
        Method::POST,
        "/api/v1/namespaces/default/events",
        &event("started", "default"),
    )
    .await;
    let twin = Twin::recorded();
    twin.state().faults = vec![(Method::PUT, 500)];
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.applied, report.kept), (1, 1), "{report:?}");
    assert_eq!(node.journal.replay(&twin).await.kept, 0);

    // refused for good, and refused for now
    let node = Node::recorded().await;
    node.patch(
        &format!("{POD}/status"),
        &json!({"status": {"reason": "x"}}),
    )
    .await;
    let twin = Twin::recorded();
    twin.state().faults = vec![(Method::GET, 503)];
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.kept, report.stopped.is_some()), (1, true));
    twin.state().faults = vec![(Method::PUT, 422)];
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.kept, report.dropped.len()), (0, 1));
}

#[tokio::test]
async fn other_writes_are_refused_with_a_reason() {
    let node = Node::recorded().await;
    let pod = fixture_json("list-pods.json")["items"][0].clone();
    let mut other = pod.clone();
    other["metadata"]["name"] = "other".into();
    other["apiVersion"] = "v1".into();
    other["kind"] = "Pod".into();
    for (method, path, code, word) in [
        (
            Method::POST,
            "/api/v1/namespaces/default/pods",
            503,
            "create of pods",
        ),
        (Method::DELETE, POD, 503, "delete of pods"),
        (Method::PUT, POD, 503, "update of pods"),
        (
            Method::POST,
            "/api/v1/namespaces/default/pods/x/eviction",
            503,
            "create of pods/eviction",
        ),
        (
            Method::POST,
            "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews",
            503,
            "localsubjectaccessreviews",
        ),
        (
            Method::DELETE,
            "/api/v1/namespaces/default/pods",
            503,
            "deletecollection of pods",
        ),
    ] {
        let got = node
            .request(
                &Caller::Node,
                method.clone(),
                path,
                JSON,
                JSON,
                other.to_string().into(),
            )
            .await;
        assert_eq!(got.code, code, "{method} {path}");
        let message = got.message();
        assert!(
            message.contains("edge-1") && message.contains(word),
            "{message}"
        );
    }
    let bearer = Caller::Bearer("aa".into());
    node.cache.accept_bearer(&bearer);
    let got = node
        .request(
            &bearer,
            Method::PATCH,
            &format!("{POD}/status"),
            JSON,
            "application/merge-patch+json",
            "{}".into(),
        )
        .await;
    assert_eq!(got.code, 503);
    assert!(got.message().contains("bearer token"), "{}", got.message());
    // of the right kind, but wrong
    for (body, content_type, code) in [
        (
            r#"{"metadata":{"uid":"another"},"status":{}}"#,
            "application/merge-patch+json",
            409,
        ),
        (
            r#"{"metadata":{"resourceVersion":"1"}}"#,
            "application/merge-patch+json",
            409,
        ),
        ("{", "application/merge-patch+json", 400),
        ("[]", "application/apply-patch+yaml", 415),
        (
            r#"[{"op":"remove","path":"/none"}]"#,
            "application/json-patch+json",
            422,
        ),
    ] {
        let got = node
            .request(
                &Caller::Node,
                Method::PATCH,
                &format!("{POD}/status"),
                JSON,
                content_type,
                body.into(),
            )
            .await;
        assert_eq!(got.code, code, "{body}: {}", got.message());
    }
    let got = node
        .patch("/api/v1/namespaces/default/pods/unheard/status", &json!({}))
        .await;
    assert_eq!(got.code, 503);
    // a dry run changes nothing, nor does a patch without effect
    let path = format!("{POD}/status?dryRun=All");
    let got = node
        .patch(&path, &json!({"status": {"phase": "Failed"}}))
        .await;
    assert_eq!(
        (got.code, got.json()["status"]["phase"].clone()),
        (200, "Failed".into())
    );
    node.patch(
        &format!("{POD}/status"),
        &json!({"status": {"phase": "Running"}}),
    )
    .await;
    assert_eq!(node.journal.pending(), 0);
    assert_eq!(
        node.get(POD, JSON).await.json()["status"]["phase"],
        "Running"
    );
}

#[tokio::test]
async fn a_node_without_a_lease_makes_one() {
    let node = Node::new();
    assert_eq!(node.get(LEASE, PROTOBUF).await.code, 404);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "edge-1", "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": "edge-1", "leaseDurationSeconds": 40}});
    let collection = LEASE.trim_end_matches("/edge-1");
    let got = node.send(Method::POST, collection, &lease).await;
    assert_eq!(got.code, 201, "{}", got.message());
    assert_eq!(node.send(Method::POST, collection, &lease).await.code, 409);
    let mut lease = node.get(LEASE, JSON).await.json();
    lease["spec"]["renewTime"] = "2026-11-21T22:00:00.000000Z".into();
    assert_eq!(node.send(Method::PUT, LEASE, &lease).await.code, 200);
    // as it is written, whatever it was read at
    lease["metadata"]["resourceVersion"] = "1".into();
    lease["spec"]["renewTime"] = "2026-11-21T22:00:10.000000Z".into();
    assert_eq!(node.send(Method::PUT, LEASE, &lease).await.code, 200);
    assert_eq!(
        node.get(LEASE, JSON).await.json()["spec"]["renewTime"],
        "2026-11-21T22:00:10.000000Z"
    );
    // a heartbeat is worth nothing later: the hub renews the lease when the cloud is back
    assert_eq!(node.journal.pending(), 0);
}

#[tokio::test]
async fn events_are_bounded() {
    let node = Node::new();
    drop(node.journal.clone());
    let config = JournalConfig {
        max_events: 10,
        ..JournalConfig::default()
    };
    let journal = Journal::open(&node.cache, config).expect("a journal");
    let offline = yurt_hub::offline::Offline::new(node.cache.clone(), journal.clone(), "edge-1");
    let node = Node {
        journal,
        offline,
        ..node
    };
    for i in 0..25 {
        let got = node
            .send(
                Method::POST,
                "/api/v1/namespaces/default/events",
                &event(&format!("e{i:02}"), "default"),
            )
            .await;
        assert_eq!(got.code, 201);
    }
    assert_eq!((node.journal.pending(), node.journal.dropped()), (10, 15));
    assert_eq!(node.killed().journal.pending(), 10);
    let twin = Twin::default();
    node.journal.replay(&twin).await;
    let names: Vec<String> = twin.state().objects.keys().cloned().collect();
    assert_eq!(names.len(), 10);
    assert!(names[0].ends_with("e15"));
}

#[tokio::test]
async fn replayed_and_dropped_writes_show_in_watches() {
    let node = Node::recorded().await;
    let mut watch = node.watch(
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1&watch=true&resourceVersion=367",
        PROTOBUF,
    );
    node.patch(
        &format!("{POD}/status"),
        &json!({"status": {"reason": "x"}}),
    )
    .await;
    let name = "web-65b97464c6-hbq56".to_owned();
    assert_eq!(
        next(&mut watch).await,
        Some((EventType::Modified, name.clone(), "340".into()))
    );
    // a watch that resumes offline hears of the local write again: it cannot know whether it did
    let mut resumed = node.watch(
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1&watch=true&resourceVersion=367",
        PROTOBUF,
    );
    assert_eq!(
        next(&mut resumed).await,
        Some((EventType::Modified, name.clone(), "340".into()))
    );
    let twin = Twin::recorded();
    twin.state().objects.remove(POD);
    let report = node.journal.replay(&twin).await;
    assert_eq!(report.dropped.len(), 1);
    assert_eq!(
        next(&mut watch).await.map(|(kind, name, _)| (kind, name)),
        Some((EventType::Deleted, name))
    );
}

#[tokio::test]
async fn a_newer_cloud_state_keeps_the_local_write_on_top() {
    let node = Node::recorded().await;
    node.patch(
        &format!("{POD}/status"),
        &json!({"status": {"reason": "Local"}}),
    )
    .await;
    // the link is back, the watch delivers, the replay has not run yet
    let pods = list::split(&fixture("list-pods.pb"), Encoding::Protobuf).expect("a list");
    let mut fresh = pods.items[1].to_json_value().expect("JSON");
    fresh["metadata"]["resourceVersion"] = "900".into();
    fresh["metadata"]["labels"]["new"] = "1".into();
    let fresh = yurt_wire::Object::from_json_value(&fresh, Encoding::Protobuf).expect("protobuf");
    node.cache.learn_object(
        &Caller::Node,
        &yurt_wire::Gvr::new("", "v1", "pods"),
        &fresh,
        yurt_hub::cache::Asked::default(),
    );
    let seen = node.get(POD, JSON).await.json();
    assert_eq!(seen["metadata"]["resourceVersion"], "900");
    assert_eq!(seen["metadata"]["labels"]["new"], "1");
    assert_eq!(seen["status"]["reason"], "Local");
}
