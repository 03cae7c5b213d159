use crate::client::{CONFIG_MAPS, Cluster, PODS, config_map, pod, revision};
use serde_json::json;
use yurt_apiserver::{Config, storage::WindowLimits};
use yurt_wire::{Encoding, watch::EventType};

const STREAMING: &str =
    "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

#[tokio::test]
async fn a_watch_list_sends_objects_then_its_bookmark_then_changes() {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let cluster = Cluster::start().await;
        cluster
            .post(CONFIG_MAPS, &config_map("a"))
            .await
            .expect(201);
        let mut watch = cluster
            .watch_as(&format!("{CONFIG_MAPS}?{STREAMING}"), encoding)
            .await;
        assert_eq!(watch.short().await, "ADDED a");
        let (kind, bookmark) = watch.next().await.expect("a bookmark");
        assert_eq!(kind, EventType::Bookmark);
        assert_eq!(
            bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"],
            "true"
        );
        assert_eq!(bookmark["kind"], "ConfigMap");
        let listed = cluster.get(CONFIG_MAPS).await.expect(200);
        assert_eq!(revision(&bookmark), revision(&listed));
        cluster
            .post(CONFIG_MAPS, &config_map("b"))
            .await
            .expect(201);
        assert_eq!(watch.short().await, "ADDED b");
        cluster
            .delete(&format!("{CONFIG_MAPS}/a"))
            .await
            .expect(200);
        let (kind, object) = watch.next().await.expect("a deletion");
        assert_eq!(kind, EventType::Deleted);
        let listed = cluster.get(CONFIG_MAPS).await.expect(200);
        assert_eq!(
            revision(&object),
            revision(&listed),
            "the revision of the deletion"
        );
    }
}

#[tokio::test]
async fn a_watch_resumes_where_a_list_ended() {
    let cluster = Cluster::start().await;
    cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let list = cluster.get(CONFIG_MAPS).await.expect(200);
    cluster
        .post(CONFIG_MAPS, &config_map("b"))
        .await
        .expect(201);
    cluster
        .delete(&format!("{CONFIG_MAPS}/b"))
        .await
        .expect(200);
    let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", revision(&list));
    let mut watch = cluster.watch(&path).await;
    assert_eq!(watch.short().await, "ADDED b");
    assert_eq!(watch.short().await, "DELETED b");
    let mut fresh = cluster.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    assert_eq!(fresh.short().await, "ADDED a");
}

#[tokio::test]
async fn what_readers_are_sent_is_counted_by_resource() {
    use http_body_util::BodyExt as _;
    let cluster = Cluster::start().await;
    let ask = |path: &str| cluster.raw(Cluster::request("GET", path), bytes::Bytes::new());
    cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let listed = ask(CONFIG_MAPS).await.into_body().collect().await;
    let listed = listed.expect("a list").to_bytes().len();
    let mut watch = ask(&format!("{CONFIG_MAPS}?watch=1")).await.into_body();
    let event = watch
        .frame()
        .await
        .expect("an event")
        .expect("a whole event");
    let event = event.into_data().expect("data").len();
    let told = ask("/metrics").await.into_body().collect().await;
    let told = told.expect("metrics").to_bytes();
    let told = String::from_utf8_lossy(&told);
    let sum = |name: &str, labels: &str| -> f64 {
        let line = told.lines().find(|line| {
            let labelled = line.strip_prefix(name);
            labelled.is_some_and(|rest| {
                rest.starts_with('{') && labels.split(' ').all(|label| rest.contains(label))
            })
        });
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.expect("a sum").parse().expect("a number")
    };
    let of_maps = r#"group="" version="v1" resource="configmaps""#;
    let sizes = sum(
        "apiserver_response_sizes_sum",
        &format!(r#"verb="LIST" {of_maps}"#),
    );
    let events = sum("apiserver_watch_events_sizes_sum", of_maps);
    assert!((sizes - listed as f64).abs() < 0.5, "{sizes} {listed}");
    assert!((events - event as f64).abs() < 0.5, "{events} {event}");
}

#[tokio::test]
async fn objects_come_and_go_by_the_selector() {
    let cluster = Cluster::start().await;
    cluster.post(PODS, &pod("a", "")).await.expect(201);
    let mut watch = cluster
        .watch(&format!("{PODS}?watch=1&labelSelector=tier%3Dx"))
        .await;
    let path = format!("{PODS}/a");
    let label = |value: serde_json::Value| json!({"metadata": {"labels": {"tier": value}}});
    cluster.merge(&path, &label("x".into())).await.expect(200);
    assert_eq!(watch.short().await, "ADDED a");
    let annotate = json!({"metadata": {"annotations": {"n": "1"}}});
    cluster.merge(&path, &annotate).await.expect(200);
    assert_eq!(watch.short().await, "MODIFIED a");
    let left = cluster.merge(&path, &label("y".into())).await.expect(200);
    let (kind, object) = watch.next().await.expect("an event");
    assert_eq!(kind, EventType::Deleted);
    assert_eq!(
        object["metadata"]["labels"]["tier"], "x",
        "as it was last seen"
    );
    assert_eq!(
        revision(&object),
        revision(&left),
        "at the revision that took it away"
    );
    cluster.delete(&path).await.expect(200);
    cluster.post(PODS, &pod("b", "")).await.expect(201);
    cluster
        .merge(&format!("{PODS}/b"), &label("x".into()))
        .await
        .expect(200);
    assert_eq!(watch.short().await, "ADDED b");
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_is_told_so() {
    let cluster = Cluster::with(Config {
        window: WindowLimits {
            changes: 2,
            bytes: 1 << 20,
        },
        ..Config::default()
    })
    .await;
    for name in ["a", "b", "c", "d"] {
        cluster
            .post(CONFIG_MAPS, &config_map(name))
            .await
            .expect(201);
    }
    let mut watch = cluster
        .watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=1"))
        .await;
    let (kind, status) = watch.next().await.expect("an error");
    assert_eq!(kind, EventType::Error);
    assert_eq!(status["reason"], "Expired");
    assert_eq!(status["code"], 410);
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over_with_a_bookmark_before() {
    let cluster = Cluster::start().await;
    let mut watch = cluster
        .watch(&format!(
            "{CONFIG_MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true"
        ))
        .await;
    let (kind, bookmark) = watch.next().await.expect("a bookmark");
    assert_eq!(kind, EventType::Bookmark);
    assert!(bookmark["metadata"].get("annotations").is_none());
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let cluster = Cluster::with(Config {
        window: WindowLimits {
            changes: 50,
            bytes: 64 << 20,
        },
        ..Config::default()
    })
    .await;
    let mut stalled = cluster.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let mut live = cluster.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let large = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"},
        "data": {"a": "x".repeat(100_000)}});
    cluster.post(CONFIG_MAPS, &large).await.expect(201);
    assert_eq!(live.short().await, "ADDED x");
    for n in 0..200 {
        let path = format!("{CONFIG_MAPS}/x");
        cluster
            .merge(&path, &json!({"data": {"n": n.to_string()}}))
            .await
            .expect(200);
        assert_eq!(live.short().await, "MODIFIED x");
    }
    // The other one fell out of the window and is told to list again.
    let mut last = String::new();
    while let Some((kind, _)) = stalled.next().await {
        last = kind.as_str().into();
    }
    assert_eq!(last, "ERROR");
}

#[tokio::test]
async fn contradictory_options_are_refused() {
    let cluster = Cluster::start().await;
    for query in [
        "watch=1&sendInitialEvents=true",
        "watch=1&resourceVersionMatch=NotOlderThan",
        "sendInitialEvents=true",
    ] {
        let answer = cluster
            .get(&format!("{CONFIG_MAPS}?{query}"))
            .await
            .expect(422);
        assert_eq!(answer["reason"], "Invalid", "{query}");
    }
    cluster
        .get(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=x"))
        .await
        .expect(400);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_let_go_after_a_while() {
    let cluster = Cluster::start().await;
    let mut stalled = cluster.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let mut live = cluster.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let large = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"},
        "data": {"a": "x".repeat(50_000)}});
    cluster.post(CONFIG_MAPS, &large).await.expect(201);
    assert_eq!(live.short().await, "ADDED x");
    for n in 0..40 {
        let change = json!({"data": {"n": n.to_string()}});
        let path = format!("{CONFIG_MAPS}/x");
        cluster.merge(&path, &change).await.expect(200);
        assert_eq!(live.short().await, "MODIFIED x");
    }
    tokio::time::sleep(std::time::Duration::from_secs(40)).await;
    let mut received = 0;
    while let Some((kind, _)) = stalled.next().await {
        assert!(matches!(kind, EventType::Added | EventType::Modified));
        received += 1;
    }
    assert!(
        (1..40).contains(&received),
        "what waited for it, then the end: {received}"
    );
    // The others go on.
    cluster
        .delete(&format!("{CONFIG_MAPS}/x"))
        .await
        .expect(200);
    assert_eq!(live.short().await, "DELETED x");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_gets_a_bookmark_about_once_a_minute() {
    let cluster = Cluster::start().await;
    let path = format!("{CONFIG_MAPS}?watch=1&allowWatchBookmarks=true");
    let mut watch = cluster.watch(&path).await;
    let mut plain = cluster.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    // Something else happens meanwhile: the bookmark is about all.
    cluster.post(PODS, &pod("a", "")).await.expect(201);
    for _ in 0..3 {
        tokio::time::sleep(std::time::Duration::from_secs(61)).await;
        let (kind, bookmark) = watch.next().await.expect("a bookmark");
        assert_eq!(kind, EventType::Bookmark);
        let listed = cluster.get(CONFIG_MAPS).await.expect(200);
        assert_eq!(revision(&bookmark), revision(&listed));
    }
    cluster
        .post(CONFIG_MAPS, &config_map("b"))
        .await
        .expect(201);
    assert_eq!(plain.short().await, "ADDED b", "nobody asked for bookmarks");
}

#[tokio::test]
async fn watches_of_one_object_and_of_a_nodes_pods() {
    let cluster = Cluster::with(Config {
        window: WindowLimits {
            changes: 8,
            bytes: 1 << 20,
        },
        ..Config::default()
    })
    .await;
    for (name, node) in [("a", "n1"), ("b", "n2")] {
        cluster.post(PODS, &pod(name, node)).await.expect(201);
    }
    let listed = cluster.get(PODS).await.expect(200);
    let watch = async |selector: &str| {
        let revision = revision(&listed);
        let query = format!("watch=1&resourceVersion={revision}&fieldSelector={selector}");
        cluster.watch(&format!("{PODS}?{query}")).await
    };
    let mut one = watch("metadata.name%3Da").await;
    let mut node = watch("spec.nodeName%3Dn2").await;
    let mut both = watch("spec.nodeName%3Dn2,metadata.name%3Da").await;
    // More than the window holds, and none of it theirs.
    cluster.post(PODS, &pod("c", "n3")).await.expect(201);
    for n in 0..20 {
        let change = json!({"metadata": {"annotations": {"n": n.to_string()}}});
        let path = format!("{PODS}/c");
        cluster.merge(&path, &change).await.expect(200);
    }
    let annotate = json!({"metadata": {"annotations": {"n": "1"}}});
    for name in ["a", "b"] {
        let path = format!("{PODS}/{name}");
        cluster.merge(&path, &annotate).await.expect(200);
    }
    assert_eq!(one.short().await, "MODIFIED a");
    assert_eq!(node.short().await, "MODIFIED b");
    let now = json!({"gracePeriodSeconds": 0});
    for name in ["a", "b"] {
        let path = format!("{PODS}/{name}");
        cluster.delete_with(&path, &now).await.expect(200);
    }
    assert_eq!(one.short().await, "DELETED a");
    assert_eq!(node.short().await, "DELETED b");
    cluster.post(PODS, &pod("a", "n2")).await.expect(201);
    assert_eq!(one.short().await, "ADDED a");
    assert_eq!(node.short().await, "ADDED a");
    assert_eq!(both.short().await, "ADDED a");
}
