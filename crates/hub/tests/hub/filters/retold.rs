//! What running watches are told when filters decide otherwise than before.

use super::*;
use crate::{
    cloud::{Cloud, JSON},
    link::State,
    recorded::direct,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_told_when_a_services_topology_or_the_pool_changes() {
    let edge = Edge::start().await;
    let list = format!("{SLICES}?labelSelector=kubernetes.io%2Fservice-name%3Dweb");
    let mut watches = Vec::new();
    for (agent, encoding) in [
        ("kube-proxy", Encoding::Json),
        ("coredns", Encoding::Protobuf),
    ] {
        let (shown, revision) = listed(&edge.node, &list, agent, encoding).await;
        assert_eq!(nodes_of(&shown["web-x"]), "1,2,3");
        let target =
            format!("{list}&resourceVersion={revision}&watch=true&allowWatchBookmarks=true");
        watches.push(Watching::open(&edge.node, &target, agent, encoding).await);
    }
    let versions = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let mut expect = async |expected: &str| {
        for watch in &mut watches {
            let event = watch.next().await.expect("an event");
            let object = event.object.to_json_value().unwrap();
            assert_eq!(
                (event.kind, nodes_of(&object).as_str()),
                (EventType::Modified, expected)
            );
            versions
                .borrow_mut()
                .insert(object["metadata"]["resourceVersion"].to_string());
        }
    };
    edge.annotate("web", json!("kubernetes.io/hostname")).await;
    expect("1").await;
    edge.annotate("web", json!("openyurt.io/nodepool")).await;
    expect("1,2").await;
    // The pool grows and shrinks.
    edge.patch(
        &format!("{POOLS}/here"),
        json!({"status": {"nodes": ["edge-1", "edge-2", "edge-3"]}}),
    )
    .await;
    expect("1,2,3").await;
    edge.patch(
        &format!("{POOLS}/here"),
        json!({"status": {"nodes": ["edge-1", "edge-2"]}}),
    )
    .await;
    expect("1,2").await;
    // Annotations that change nothing tell nothing; a list names the nearest first.
    edge.annotate("web", json!("kubernetes.io/zone")).await;
    edge.annotate("web", json!("kubernetes.io/hostname, openyurt.io/nodepool"))
        .await;
    expect("1").await;
    edge.annotate("web", Value::Null).await;
    expect("1,2,3").await;
    // It was the same object all the time, whose revision the cloud gave.
    assert_eq!(versions.borrow().len(), 1);
    // The stream goes on: what comes from the cloud is filtered as it is now.
    edge.annotate("web", json!("kubernetes.io/hostname")).await;
    expect("1").await;
    edge.patch(
        &format!("{SLICES}/web-x"),
        json!({"metadata": {"labels": {"more": "1"}}}),
    )
    .await;
    expect("1").await;

    // A connection that breaks takes with it what was on its way: who comes back at once is told again.
    edge.annotate("web", json!("openyurt.io/nodepool")).await;
    expect("1,2").await;
    drop(watches);
    for (agent, encoding) in [
        ("kube-proxy", Encoding::Json),
        ("coredns", Encoding::Protobuf),
    ] {
        let (shown, revision) = listed(&edge.node, &list, "somebody", encoding).await;
        assert_eq!(nodes_of(&shown["web-x"]), "1,2,3");
        let target = format!("{list}&resourceVersion={revision}&watch=true");
        let mut watch = Watching::open(&edge.node, &target, agent, encoding).await;
        assert_eq!(watch.nodes().await, (EventType::Modified, "1,2".into()));
    }
    edge.annotate("web", json!("kubernetes.io/hostname")).await;
    eventually("the annotation is known", async || {
        let (shown, _) = listed(&edge.node, &list, "kube-proxy", Encoding::Json).await;
        nodes_of(&shown["web-x"]) == "1"
    })
    .await;

    // What a restarted hub knows without the cloud: its clients come back where they were.
    let (shown, revision) = listed(&edge.node, &list, "kube-proxy", Encoding::Json).await;
    assert_eq!(nodes_of(&shown["web-x"]), "1");
    edge.link.set(State::Cut);
    edge.node.until_mode("offline").await;
    for encoding in ENCODINGS {
        let (shown, _) = listed(&edge.node, &list, "kube-proxy", encoding).await;
        assert_eq!(nodes_of(&shown["web-x"]), "1");
    }
    let edge = edge.restarted().await;
    let node = &edge.node;
    for (agent, encoding) in [
        ("kube-proxy", Encoding::Json),
        ("coredns", Encoding::Protobuf),
    ] {
        let target = format!("{list}&resourceVersion={revision}&watch=true");
        let mut watch = Watching::open(node, &target, agent, encoding).await;
        // Nobody remembers what they were shown before: they are told how it is.
        assert_eq!(watch.nodes().await, (EventType::Modified, "1".into()));
        let (shown, _) = listed(node, &list, agent, encoding).await;
        assert_eq!(nodes_of(&shown["web-x"]), "1");
        // What changes while the link is cut is told when it is back.
        edge.annotate("web", json!("openyurt.io/nodepool")).await;
        edge.link.set(State::Whole);
        assert_eq!(watch.nodes().await, (EventType::Modified, "1,2".into()));
        edge.annotate("web", json!("kubernetes.io/hostname")).await;
        assert_eq!(watch.nodes().await, (EventType::Modified, "1".into()));
        edge.link.set(State::Cut);
        node.until_mode("offline").await;
    }
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_add_components_whose_running_watches_begin_anew() {
    let edge = Edge::start().await;
    let (shown, revision) = listed(&edge.node, SERVICES, "my-proxy", Encoding::Json).await;
    assert!(shown.contains_key("discarded"));
    let target = format!("{SERVICES}?resourceVersion={revision}&watch=true");
    let mut watch = Watching::open(&edge.node, &target, "my-proxy", Encoding::Json).await;
    write(&edge.cloud, Method::POST, "/api/v1/namespaces/kube-system/configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "yurt-hub-cfg"}, "data": {"discardcloudservice": "my-proxy"}}),
    )
    .await;
    // It is nobody's error: the client comes back for what follows, and is told what it is not to have.
    assert!(watch.next().await.is_none());
    let mut watch = Watching::open(&edge.node, &target, "my-proxy", Encoding::Json).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (event.kind, event.object.key().unwrap().name.as_ref()),
        (EventType::Deleted, "discarded")
    );
    // It is let go again, and shown again.
    direct(
        &edge.cloud,
        Method::DELETE,
        "/api/v1/namespaces/kube-system/configmaps/yurt-hub-cfg",
        None,
    )
    .await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (event.kind, event.object.key().unwrap().name.as_ref()),
        (EventType::Added, "discarded")
    );
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_without_a_network_puts_pods_on_their_nodes() {
    let edge = Edge::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut watches = Vec::new();
    for encoding in ENCODINGS {
        let (shown, revision) = listed(&edge.node, pods, "kubelet", encoding).await;
        assert_eq!(shown["plain"]["spec"]["hostNetwork"], Value::Null);
        let target = format!("{pods}?resourceVersion={revision}&watch=true");
        watches.push((
            encoding,
            Watching::open(&edge.node, &target, "kubelet", encoding).await,
        ));
    }
    edge.patch(
        &format!("{POOLS}/here"),
        json!({"spec": {"hostNetwork": true}}),
    )
    .await;
    for (encoding, watch) in &mut watches {
        for name in ["plain", "wired"] {
            let event = watch.next().await.unwrap();
            let pod = event.object.to_json_value().unwrap();
            assert_eq!(
                (event.kind, &pod["metadata"]["name"]),
                (EventType::Modified, &json!(name))
            );
            assert_eq!(pod["spec"]["hostNetwork"], true);
        }
        let (shown, _) = listed(&edge.node, pods, "kubelet", *encoding).await;
        assert!(shown.values().all(|pod| pod["spec"]["hostNetwork"] == true));
        let one = get(&edge.node, &format!("{pods}/plain"), "kubelet", *encoding).await;
        assert_eq!(value(&one.body, *encoding)["spec"]["hostNetwork"], true);
    }
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_api_servers_some_filters_are_off_and_watchers_list_again() {
    let edge = Edge::start().await;
    let directory = Directory::new();
    let mut config = config(&directory.0, &edge.trust, &[edge.link.addr]);
    config.pool = "here".into();
    config.working_mode = yurt_hub::config::WorkingMode::Cloud;
    let node = Node::start(config).await;
    node.until_up().await;
    eventually("the pool is known", async || {
        let (shown, _) = listed(&node, SERVICES, "kube-proxy", Encoding::Protobuf).await;
        assert!(shown.contains_key("discarded"));
        !shown.contains_key("elsewhere")
    })
    .await;
    let slice = format!("{SLICES}?fieldSelector=metadata.name%3Dweb-x");
    for (keys, encoding) in [
        ("kubernetes.io/hostname", Encoding::Json),
        ("openyurt.io/nodepool", Encoding::Protobuf),
    ] {
        let (_, revision) = listed(&node, &slice, "kube-proxy", encoding).await;
        let target = format!("{slice}&resourceVersion={revision}&watch=true");
        let mut watch = Watching::open(&node, &target, "kube-proxy", encoding).await;
        edge.annotate("web", json!(keys)).await;
        // Nothing is cached here that could be told.
        let event = watch.next().await.unwrap();
        let status = event.object.to_json_value().unwrap();
        assert_eq!(
            (event.kind, &status["code"]),
            (EventType::Error, &json!(410))
        );
        assert!(watch.next().await.is_none());
        let (shown, _) = listed(&node, &slice, "kube-proxy", encoding).await;
        assert_eq!(
            nodes_of(&shown["web-x"]),
            if keys.contains("host") { "1" } else { "1,2" }
        );
    }
    node.stop().await;
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_are_not_kept_back_for_long_by_services_that_are_not_known() {
    const ALL: &str = "/apis/discovery.k8s.io/v1/endpointslices";
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let endpoints = json!([{"addresses": ["10.0.0.1"], "nodeName": "edge-1"}, {"addresses": ["10.0.0.2"], "nodeName": "edge-2"}]);
    let slices = json!({"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {"resourceVersion": "9"}, "items": [
        {"metadata": {"name": "web-x", "namespace": "default", "uid": "s", "resourceVersion": "8", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": null}]});
    cloud.answer(Method::GET, ALL, 200, JSON, slices.to_string());
    // Services cannot be read at first.
    let refused = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"ServiceUnavailable","code":503}"#;
    cloud.answer(Method::GET, "/api/v1/services", 503, JSON, refused);
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    node.until_up().await;
    let (shown, revision) = listed(&node, ALL, "kube-proxy", Encoding::Json).await;
    assert_eq!(nodes_of(&shown["web-x"]), "1,2");
    assert!(
        node.metric("node_yurthub_filter_unready_answers_total")
            .await
            >= 1.0
    );
    let target = format!("{ALL}?resourceVersion={revision}&watch=true");
    let mut watch = Watching::open(&node, &target, "kube-proxy", Encoding::Json).await;
    let services = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": [
        {"metadata": {"name": "web", "namespace": "default", "uid": "w", "resourceVersion": "3", "annotations": {TOPOLOGY: "kubernetes.io/hostname"}}, "spec": {}}]});
    cloud.answer(
        Method::GET,
        "/api/v1/services",
        200,
        JSON,
        services.to_string(),
    );
    // Told as soon as it is known.
    assert_eq!(watch.nodes().await, (EventType::Modified, "1".into()));
    node.stop().await;
    cloud.stop();
}
