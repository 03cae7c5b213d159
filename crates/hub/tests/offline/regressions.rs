//! What OpenYurt's cache was known to get wrong.

use super::*;

/// hub.md W6: a named list with zero items wiped everything of its kind and namespace; only the last page of a paged list stayed;
/// an old list overwrote newer watch data; objects deleted meanwhile stayed after a WatchList.
#[tokio::test]
async fn w6_lists_lose_nothing_and_keep_nothing_dead() {
    let node = Node::recorded().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    node.learn_empty(
        &format!("{maps}?fieldSelector=metadata.name%3Doptional"),
        "v1",
        "ConfigMapList",
    );
    let got = node.get(&format!("{maps}/kube-root-ca.crt"), JSON).await;
    assert_eq!(got.code, 200);
    assert_eq!(node.get(&format!("{maps}/optional"), JSON).await.code, 404);
    let empty = node
        .get(
            &format!("{maps}?fieldSelector=metadata.name%3Doptional"),
            JSON,
        )
        .await;
    assert_eq!((empty.code, items(&empty.json()).len()), (200, 0));

    // pages: nothing is complete before the last one, everything after it
    let mut whole = list::split(&fixture("list-secrets.pb"), Encoding::Protobuf).expect("a list");
    let maps_list =
        list::split(&fixture("list-configmaps.pb"), Encoding::Protobuf).expect("a list");
    let all = query("/api/v1/configmaps");
    let mut learner = node.cache.list_learner(&Caller::Node, &all);
    let (first, second) = maps_list.items.split_at(5);
    learner.page(list::SplitList {
        continue_token: "more".into(),
        items: first.to_vec(),
        ..maps_list.clone()
    });
    assert!(node.cache.list(&Caller::Node, &all).is_none());
    learner.page(list::SplitList {
        items: second.to_vec(),
        ..maps_list.clone()
    });
    learner.finish();
    let listed = node.cache.list(&Caller::Node, &all).expect("complete");
    assert_eq!(listed.items.len(), maps_list.items.len());

    // an older list neither overwrites nor revives
    let pods = Gvr::new("", "v1", "pods");
    let everywhere = query("/api/v1/pods");
    let mut watch = node
        .cache
        .watch_learner(&Caller::Node, &everywhere, "", true);
    let recorded = events(fixture("watch-pods.pb"), Encoding::Protobuf);
    for event in &recorded {
        watch.event(event);
    }
    let last = recorded.last().expect("events");
    let mut gone = last.clone();
    gone.kind = EventType::Deleted;
    gone.object = gone
        .object
        .with_resource_version("500")
        .expect("a revision");
    watch.event(&gone);
    node.learn_list(&Caller::Node, "/api/v1/pods", "list-pods.pb");
    let listed = node
        .cache
        .list(&Caller::Node, &everywhere)
        .expect("complete");
    let mut revisions: Vec<String> = listed
        .items
        .iter()
        .map(|object| object.meta().expect("metadata").resource_version)
        .collect();
    revisions.sort();
    assert_eq!(revisions, ["340", "343", "410"]);
    assert_eq!(listed.resource_version, "500");
    let name = last.object.meta().expect("metadata").name;
    assert!(matches!(
        node.cache.get(&Caller::Node, &pods, "default", &name),
        Lookup::KnownAbsent
    ));

    // a WatchList prunes
    whole.items.clear();
    node.learn_list(&Caller::Node, "/api/v1/secrets", "list-secrets.pb");
    let secrets = query("/api/v1/secrets");
    let mut watch = node.cache.watch_learner(&Caller::Node, &secrets, "", true);
    let gvk = yurt_wire::Gvk::from_api_version("v1", "Secret");
    watch.event(&yurt_wire::watch::Event {
        kind: EventType::Bookmark,
        object: yurt_wire::watch::bookmark(&gvk, "600", true, Encoding::Protobuf),
    });
    assert_eq!(
        node.cache
            .list(&Caller::Node, &secrets)
            .map(|l| l.items.len()),
        Some(0)
    );
}

/// hub.md W7: one selector per path and component, ignored offline.
#[tokio::test]
async fn w7_selectors_are_evaluated_whoever_asked_first() {
    let node = Node::new();
    node.learn_list(&Caller::Node, "/api/v1/pods", "list-pods.pb");
    node.learn_list(&Caller::Node, "/api/v1/services", "list-services.json");
    for (path, count) in [
        ("/api/v1/pods?labelSelector=app%3Dweb", 3),
        ("/api/v1/pods?labelSelector=app%3Dother", 0),
        (
            "/api/v1/namespaces/default/pods?fieldSelector=spec.nodeName%3Dedge-1",
            3,
        ),
        ("/api/v1/namespaces/kube-system/pods", 0),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-2", 0),
        (
            "/api/v1/pods?fieldSelector=metadata.name%3Dweb-65b97464c6-hbq56",
            1,
        ),
        (
            "/api/v1/services?fieldSelector=spec.clusterIP%3D10.96.0.1",
            1,
        ),
    ] {
        let got = node.get(path, JSON).await;
        assert_eq!((got.code, items(&got.json()).len()), (200, count), "{path}");
    }
    // a narrower list says nothing about a wider one
    let node = Node::new();
    node.learn_list(
        &Caller::Node,
        "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb",
        "list-pods.pb",
    );
    assert_eq!(
        node.get("/api/v1/namespaces/default/pods", JSON).await.code,
        503
    );
    assert_eq!(
        node.get(
            "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb%2Cpod-template-hash",
            JSON
        )
        .await
        .code,
        200
    );
}

/// hub.md W8: one damaged record poisoned its key for good, and a damaged index file kept the hub from starting.
#[tokio::test]
async fn w8_damage_costs_what_it_hits_and_no_more() {
    let node = Node::recorded().await;
    let dir = node.dir.path().join("cache");
    // rot inside the value of one record
    let needle = b"o//v1/pods/default/web-65b97464c6-pz569";
    let mut hit = false;
    for file in std::fs::read_dir(&dir).expect("files") {
        let path = file.expect("a file").path();
        let mut bytes = std::fs::read(&path).expect("bytes");
        let at = bytes
            .windows(needle.len())
            .position(|window| window == needle);
        if let (Some(at), true) = (at, path.extension().is_some_and(|e| e == "log")) {
            bytes[at + needle.len() + 100] ^= 0xff;
            std::fs::write(&path, bytes).expect("written");
            hit = true;
        }
    }
    assert!(hit);
    let node = node.killed();
    // that object is unknown, so is what would have to hold it; the rest is there
    let got = node
        .get("/api/v1/namespaces/default/pods/web-65b97464c6-pz569", JSON)
        .await;
    assert_eq!(got.code, 503, "{}", got.message());
    assert_eq!(node.get(PODS, JSON).await.code, 503);
    assert!(node.cache.stats().corrupt.get() > 0);
    let got = node
        .get("/api/v1/namespaces/default/pods/web-65b97464c6-hbq56", JSON)
        .await;
    assert_eq!(got.code, 200);
    assert_eq!(node.get("/api/v1/nodes/edge-1", JSON).await.code, 200);
    // and it heals with the next list
    node.learn_list(&Caller::Node, PODS, "list-pods.pb");
    assert_eq!(items(&node.get(PODS, JSON).await.json()).len(), 3);
}

/// hub.md W10: a storm of updates wrote every one of them; here each key is written at most once per pass.
#[tokio::test]
async fn w10_a_storm_is_written_at_its_own_pace() {
    let node = Node::recorded().await;
    node.cache.flush().await.expect("flush");
    let before = node.cache.stats().written.get();
    let slices =
        list::split(&fixture("list-endpointslices.pb"), Encoding::Protobuf).expect("a list");
    let query = query("/apis/discovery.k8s.io/v1/endpointslices");
    let mut watch = node
        .cache
        .watch_learner(&Caller::Node, &query, "367", false);
    let mut last = Vec::new();
    for revision in 1000..6000u64 {
        let item = &slices.items[revision as usize % slices.items.len()];
        let object = item
            .with_resource_version(&revision.to_string())
            .expect("a revision");
        watch.event(&yurt_wire::watch::Event {
            kind: EventType::Modified,
            object: object.clone(),
        });
        last.push(object);
    }
    node.cache.flush().await.expect("flush");
    let written = node.cache.stats().written.get() - before;
    assert!(
        written <= 500,
        "{written} records for 5000 updates of 3 objects"
    );
    let listed = node
        .killed()
        .cache
        .list(&Caller::Node, &query)
        .expect("complete");
    assert_eq!(listed.resource_version, "5999");
    let mut got: Vec<_> = listed.items;
    let mut want = last.split_off(last.len() - 3);
    got.sort_by(|a, b| a.bytes.cmp(&b.bytes));
    want.sort_by(|a, b| a.bytes.cmp(&b.bytes));
    assert_eq!(got, want);
}

/// hub.md W10: a decoder that died on one event stalled the client's watch, and nothing was cached after it.
#[tokio::test]
async fn w10_an_event_that_is_not_understood_costs_completeness_only() {
    let node = Node::recorded().await;
    let pods = query(PODS);
    let mut watch = node.cache.watch_learner(&Caller::Node, &pods, "367", false);
    assert!(node.cache.list(&Caller::Node, &pods).is_some());
    watch.event(&yurt_wire::watch::Event {
        kind: EventType::Modified,
        object: Object {
            encoding: Encoding::Protobuf,
            bytes: bytes::Bytes::from_static(b"k8s\0\xff\xff\xff\xff"),
        },
    });
    // what it said is unknown: no list pretends otherwise
    assert!(node.cache.list(&Caller::Node, &pods).is_none());
    for event in events(fixture("watch-pods.pb"), Encoding::Protobuf) {
        watch.event(&event);
    }
    let got = node
        .get("/api/v1/namespaces/default/pods/web-65b97464c6-52j9z", JSON)
        .await;
    assert_eq!(
        (got.code, got.json()["metadata"]["resourceVersion"].clone()),
        (200, "413".into())
    );
    // and the next list heals it
    node.learn_list(&Caller::Node, PODS, "list-pods.pb");
    assert!(node.cache.list(&Caller::Node, &pods).is_some());
}
