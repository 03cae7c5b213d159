//! Watches without the cloud.

use super::*;

#[tokio::test]
async fn a_watch_list_goes_on_with_local_changes() {
    let node = Node::recorded().await;
    let mut watch = node.watch(
        WATCH_PODS,
        "application/vnd.kubernetes.protobuf,application/json",
    );
    for (name, revision) in [
        ("web-65b97464c6-5t9tz", "335"),
        ("web-65b97464c6-hbq56", "340"),
        ("web-65b97464c6-pz569", "343"),
    ] {
        assert_eq!(
            next(&mut watch).await,
            Some((EventType::Added, name.to_owned(), revision.to_owned()))
        );
    }
    assert_eq!(
        next(&mut watch).await,
        Some((EventType::Bookmark, String::new(), "367".to_owned()))
    );
    assert_eq!(watch.last_revision(), "367");
    let mut by_label = node.watch(
        "/api/v1/namespaces/default/pods?watch=true&fieldSelector=spec.nodeName%3Dedge-1%2Cstatus.phase%3DRunning&resourceVersion=367",
        JSON,
    );
    let path = "/api/v1/namespaces/default/pods/web-65b97464c6-hbq56/status";
    let got = node
        .patch(path, &json!({"status": {"phase": "Failed"}}))
        .await;
    assert_eq!(got.code, 200, "{}", got.message());
    // the revision stays the cloud's
    let name = "web-65b97464c6-hbq56".to_owned();
    assert_eq!(
        next(&mut watch).await,
        Some((EventType::Modified, name.clone(), "340".to_owned()))
    );
    assert_eq!(
        next(&mut by_label).await,
        Some((EventType::Deleted, name.clone(), "340".to_owned()))
    );
    node.patch(path, &json!({"status": {"phase": "Running"}}))
        .await;
    assert_eq!(
        next(&mut by_label).await,
        Some((EventType::Added, name, "340".to_owned()))
    );
}

#[tokio::test]
async fn a_watch_goes_on_from_a_revision() {
    let node = Node::recorded().await;
    let pods = query(PODS);
    let mut learner = node.cache.watch_learner(&Caller::Node, &pods, "367", false);
    for event in events(fixture("watch-pods.pb"), Encoding::Protobuf)
        .iter()
        .skip(4)
    {
        // kubelet's selector: the pod enters when it is bound
        if pods.matches(
            "default",
            &event.object.meta().expect("metadata").name,
            &event.object,
        ) {
            learner.event(event);
        }
    }
    let mut watch = node.watch(&format!("{PODS}&watch=true&resourceVersion=390"), PROTOBUF);
    assert_eq!(watch.last_revision(), "413");
    let mut got = Vec::new();
    for _ in 0..2 {
        got.extend(next(&mut watch).await);
    }
    assert_eq!(
        got,
        [
            (
                EventType::Modified,
                "web-65b97464c6-5t9tz".to_owned(),
                "410".to_owned()
            ),
            (
                EventType::Modified,
                "web-65b97464c6-52j9z".to_owned(),
                "413".to_owned()
            ),
        ]
    );
    // before what is known: the client must list again
    let path = format!("{PODS}&watch=true&resourceVersion=100");
    let gone = LocalWatch::follow(
        &node.offline,
        &Caller::Node,
        &info(&Method::GET, &path),
        &parts(&Method::GET, &path, JSON, ""),
    );
    assert!(gone.is_ok(), "a stream that was open only wants what comes");
    let status = node
        .offline
        .watch(
            &Caller::Node,
            &info(&Method::GET, &path),
            &parts(&Method::GET, &path, JSON, ""),
        )
        .expect_err("too old");
    assert_eq!(status.code(), 410);
}

#[tokio::test(start_paused = true)]
async fn watches_send_bookmarks_and_end() {
    let node = Node::recorded().await;
    let path = format!(
        "{PODS}&watch=true&resourceVersion=367&allowWatchBookmarks=true&timeoutSeconds=150"
    );
    let mut watch = node.watch(&path, PROTOBUF);
    let begun = tokio::time::Instant::now();
    for _ in 0..2 {
        assert_eq!(
            next(&mut watch).await,
            Some((EventType::Bookmark, String::new(), "367".to_owned()))
        );
    }
    assert_eq!(next(&mut watch).await, None);
    assert_eq!(begun.elapsed().as_secs(), 150);
}

#[tokio::test]
async fn a_table_watch_shows_rows() {
    let node = Node::recorded().await;
    let path = "/api/v1/namespaces/default/pods?watch=true&fieldSelector=spec.nodeName%3Dedge-1";
    let mut watch = node.watch(path, TABLE);
    assert_eq!(watch.content_type(), JSON);
    let mut tables = Vec::new();
    for _ in 0..3 {
        let frame = watch.next().await.expect("a frame");
        let frame: Value = serde_json::from_slice(&frame.bytes).expect("JSON");
        assert_eq!(frame["type"], "ADDED");
        tables.push(frame["object"].clone());
    }
    assert_eq!(tables[0]["columnDefinitions"][0]["name"], "Name");
    assert!(
        tables[1]["columnDefinitions"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
    assert_eq!(tables[2]["rows"][0]["cells"][0], "web-65b97464c6-pz569");
}
