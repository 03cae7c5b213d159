//! What nobody will ask for again goes, and nothing else does (W9).

mod node;

use node::{Node, fixture, query};
use serde_json::json;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};
use yurt_hub::{
    cache::{
        Cache, Lookup,
        collect::{Collected, Served},
    },
    caller::Caller,
};
use yurt_wire::{
    Encoding, Gvk, Gvr, Object,
    list::{self, SplitList},
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn object(api_version: &str, kind: &str, name: &str, revision: u64) -> Object {
    Object {
        encoding: Encoding::Json,
        bytes: json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": name, "namespace": "a", "resourceVersion": revision.to_string()},
        })
        .to_string()
        .into(),
    }
}

fn learn(cache: &Cache, caller: &Caller, path: &str, revision: u64, items: Vec<Object>) {
    let id = query(path).gvr;
    let mut learner = cache.list_learner(caller, &query(path));
    learner.page(SplitList {
        gvk: Gvk::from_api_version(&id.api_version(), "ThingList"),
        resource_version: revision.to_string(),
        continue_token: String::new(),
        remaining: None,
        items,
    });
    learner.finish();
}

fn listed(cache: &Cache, caller: &Caller, path: &str) -> Option<usize> {
    cache.list(caller, &query(path)).map(|l| l.items.len())
}

fn served(resources: &[(&str, &str, &str)]) -> Served {
    Served {
        resources: resources
            .iter()
            .map(|(group, version, resource)| Gvr::new(group, version, resource))
            .collect::<BTreeSet<_>>(),
        ..Served::default()
    }
}

#[tokio::test]
async fn w9_what_the_cloud_serves_no_more_goes_after_a_while() {
    let node = Node::new();
    let (things, maps) = ("/apis/x.example/v1/things", "/api/v1/configmaps");
    let thing = || vec![object("x.example/v1", "Thing", "one", 5)];
    learn(&node.cache, &Caller::Node, things, 10, thing());
    learn(
        &node.cache,
        &Caller::Node,
        maps,
        10,
        vec![object("v1", "ConfigMap", "c", 6)],
    );
    for path in [
        "/apis/x.example/v1",
        "/openapi/v3/apis/x.example/v1",
        "/api/v1",
        "/version",
    ] {
        node.cache
            .learn_document(path, "application/json", "{}".into());
    }
    let (all, less) = (
        served(&[("", "v1", "configmaps"), ("x.example", "v1", "things")]),
        served(&[("", "v1", "configmaps")]),
    );
    let (start, now) = (Instant::now(), SystemTime::now());
    node.cache.note_served(&all, start);
    node.cache.note_served(&less, start + HOUR);
    assert_eq!(node.cache.collect(start + HOUR, now), Collected::default());
    // Made anew within the grace: it stays.
    node.cache.note_served(&all, start + HOUR * 2);
    node.cache.note_served(&less, start + HOUR * 3);
    assert_eq!(
        node.cache.collect(start + HOUR * 3, now),
        Collected::default()
    );
    assert_eq!(listed(&node.cache, &Caller::Node, things), Some(1));
    let collected = node.cache.collect(start + HOUR * 4, now);
    assert_eq!((collected.resources, collected.documents), (1, 2));
    let node = node.restart().await;
    assert_eq!(listed(&node.cache, &Caller::Node, things), None);
    let gone = node.cache.get(
        &Caller::Node,
        &Gvr::new("x.example", "v1", "things"),
        "a",
        "one",
    );
    assert!(matches!(gone, Lookup::Unknown), "{gone:?}");
    assert_eq!(listed(&node.cache, &Caller::Node, maps), Some(1));
    assert_eq!(node.cache.object_count(), 1);
    let documents = |path| node.cache.document(path).is_some();
    assert!(documents("/version") && documents("/api/v1"));
    assert!(!documents("/apis/x.example/v1") && !documents("/openapi/v3/apis/x.example/v1"));
}

#[tokio::test]
async fn w9_callers_and_lists_that_nobody_uses_go_and_take_along_what_only_they_read() {
    let node = Node::new();
    let [user, bearer] = [Caller::User("u".into()), Caller::Bearer("b".into())];
    let (of_user, of_bearer, of_node) = (
        "/api/v1/namespaces/a/configmaps",
        "/apis/x.example/v1/things",
        "/apis/y.example/v1/others",
    );
    learn(
        &node.cache,
        &user,
        of_user,
        10,
        vec![object("v1", "ConfigMap", "c", 6)],
    );
    learn(
        &node.cache,
        &bearer,
        of_bearer,
        10,
        vec![object("x.example/v1", "Thing", "t", 6)],
    );
    learn(
        &node.cache,
        &Caller::Node,
        of_node,
        10,
        vec![object("y.example/v1", "Other", "o", 6)],
    );
    let now = SystemTime::now();
    assert_eq!(
        node.cache.collect(Instant::now(), now + DAY * 6),
        Collected::default()
    );
    assert_eq!(
        node.cache.collect(Instant::now(), SystemTime::UNIX_EPOCH),
        Collected::default()
    );
    let node = node.restart().await;
    let collected = node.cache.collect(Instant::now(), now + DAY * 8);
    assert_eq!(
        (collected.callers, collected.coverages, collected.orphans),
        (1, 0, 0)
    );
    assert!(!node.cache.knows(&bearer) && node.cache.knows(&user));
    let collected = node.cache.collect(Instant::now(), now + DAY * 31);
    // The lists of all three; the node itself is never forgotten.
    assert_eq!(
        (collected.callers, collected.coverages, collected.orphans),
        (1, 3, 2)
    );
    let node = node.restart().await;
    assert!(!node.cache.knows(&user));
    assert_eq!(node.cache.object_count(), 1);
    let got = node.cache.get(
        &Caller::Node,
        &Gvr::new("y.example", "v1", "others"),
        "a",
        "o",
    );
    assert!(matches!(got, Lookup::Found(_)), "{got:?}");
}

#[tokio::test]
async fn w9_events_go_with_their_time() {
    let node = Node::new();
    let event = |name: &str, at: SystemTime| {
        let seconds = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("a time")
            .as_secs();
        let at = jiff::Timestamp::from_second(seconds as i64).expect("a time");
        Object {
            encoding: Encoding::Json,
            bytes: json!({
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": "a", "resourceVersion": "7"},
                "lastTimestamp": at.to_string(),
            })
            .to_string()
            .into(),
        }
    };
    let now = SystemTime::now();
    let events = vec![event("old", now - HOUR * 3), event("new", now - HOUR)];
    learn(&node.cache, &Caller::Node, "/api/v1/events", 10, events);
    let collected = node.cache.collect(Instant::now(), now);
    assert_eq!(collected.events, 1);
    assert_eq!(
        listed(&node.cache, &Caller::Node, "/api/v1/events"),
        Some(1)
    );
    node.learn_list(&Caller::Node, "/api/v1/events", "list-events.pb");
    let recorded = list::split(&fixture("list-events.pb"), Encoding::Protobuf).expect("a list");
    assert_eq!(
        node.cache.collect(Instant::now(), now).events,
        recorded.items.len()
    );
}

/// A pod that the cloud deleted while the hub was not running: the next complete list takes it out, after a restart too.
#[tokio::test]
async fn w9_a_pod_deleted_while_the_hub_was_off_goes_with_the_next_complete_list() {
    let node = Node::new();
    let pods = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
    let pod = |name: &str| Object {
        encoding: Encoding::Json,
        bytes: json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "a", "resourceVersion": "7"},
            "spec": {"nodeName": "edge-1"},
        })
        .to_string()
        .into(),
    };
    learn(
        &node.cache,
        &Caller::Node,
        pods,
        10,
        vec![pod("stays"), pod("deleted")],
    );
    let node = node.restart().await;
    assert_eq!(listed(&node.cache, &Caller::Node, pods), Some(2));
    learn(&node.cache, &Caller::Node, pods, 20, vec![pod("stays")]);
    assert_eq!(listed(&node.cache, &Caller::Node, pods), Some(1));
    let node = node.restart().await;
    assert_eq!(listed(&node.cache, &Caller::Node, pods), Some(1));
    assert_eq!(node.cache.object_count(), 1);
}
