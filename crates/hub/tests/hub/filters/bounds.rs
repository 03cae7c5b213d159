//! Filters that are off, and answers that cannot be filtered.

use super::*;
use crate::cloud::{Cloud, JSON};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_turn_filters_off_and_bounds_are_kept() {
    let edge = Edge::start().await;
    let flags: [(bool, &[&str], bool); 4] = [
        (true, &["discardcloudservice"], true),
        (true, &["*"], true),
        (false, &[], true),
        (true, &["masterservice"], false),
    ];
    edge.node.stop().await;
    for (enabled, disabled, shown) in flags {
        let directory = Directory::new();
        let mut config = config(&directory.0, &edge.trust, &[edge.link.addr]);
        config.filters = enabled;
        config.disabled_filters = disabled.iter().map(|name| (*name).to_owned()).collect();
        // Not even one service fits.
        config.bounds.filtered_body = 200;
        let node = Node::start(config).await;
        node.until_up().await;
        let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
        if shown {
            assert!(
                answered.text().contains("discarded"),
                "{enabled} {disabled:?}: {}",
                answered.text()
            );
        } else {
            // Rather nothing than what misleads.
            assert_eq!(answered.status, 500, "{}", answered.text());
            assert!(
                answered.json()["message"]
                    .as_str()
                    .unwrap()
                    .contains("limit")
            );
            let refused = node
                .metric("node_yurthub_filter_refused_answers_total{reason=\"too_large\"}")
                .await;
            assert!(refused >= 1.0);
        }
        node.stop().await;
    }
    edge.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_no_other_than_it_came() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let service = |name: &str, discard: &str| json!({"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "3", "annotations": {"svc.openyurt.io/discard": discard}}, "spec": {"type": "LoadBalancer"}});
    let list = |items: Value| {
        json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "9", "continue": "more", "remainingItemCount": 7}, "items": items}).to_string()
    };
    cloud.answer(
        Method::GET,
        SERVICES,
        200,
        JSON,
        list(json!([service("a", "true"), service("b", "no")])),
    );
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.bounds.filtering = 4096;
    let node = Node::start(config).await;
    node.until_up().await;
    // One is gone, the rest of the list is as it was; it came without a coding that would have to be undone.
    let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
    let shown = answered.json();
    assert_eq!(
        shown["metadata"],
        json!({"resourceVersion": "9", "continue": "more", "remainingItemCount": 7})
    );
    assert_eq!(shown["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        answered.headers["content-length"],
        answered.body.len().to_string()
    );
    let coding = |agent: &str| {
        let seen = cloud.seen(Method::GET, SERVICES);
        let asked = seen.iter().rev().find(|seen| {
            seen.headers["user-agent"]
                .to_str()
                .unwrap()
                .starts_with(agent)
        });
        asked.unwrap().headers["accept-encoding"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(coding("kube-proxy"), "identity");
    get(&node, SERVICES, "somebody", Encoding::Json).await;
    assert_eq!(coding("somebody"), "gzip");
    // Garbage and what is no list pass.
    for body in [
        "]]]",
        "{\"kind\":\"ServiceList\",\"items\":[{\"metadata\":7}]}",
        "{\"kind\":\"Status\",\"apiVersion\":\"v1\"}",
        "",
    ] {
        cloud.answer(Method::GET, SERVICES, 200, JSON, body);
        let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
        assert_eq!((answered.status, answered.text().as_str()), (200, body));
    }
    let refused =
        r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}"#;
    cloud.answer(Method::GET, SERVICES, 403, JSON, refused);
    let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
    assert_eq!((answered.status, answered.text().as_str()), (403, refused));
    // More than there is room for at one time: later.
    let many: Vec<Value> = (0..100)
        .map(|name| service(&name.to_string(), "no"))
        .collect();
    cloud.answer(Method::GET, SERVICES, 200, JSON, list(json!(many)));
    let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
    assert_eq!(
        (
            answered.status,
            answered.headers["retry-after"].to_str().unwrap()
        ),
        (429, "1")
    );
    assert_eq!(
        get(&node, SERVICES, "somebody", Encoding::Json)
            .await
            .status,
        200
    );
    // The room is given back.
    cloud.answer(
        Method::GET,
        SERVICES,
        200,
        JSON,
        list(json!([service("a", "true")])),
    );
    for _ in 0..20 {
        let answered = get(&node, SERVICES, "kube-proxy", Encoding::Json).await;
        assert_eq!(
            (answered.status, &answered.json()["items"]),
            (200, &json!([]))
        );
    }
    // A stream of which nothing can be made breaks, so that its client begins anew.
    let response = node
        .ask(asked(
            &format!("{SERVICES}?watch=true&resourceVersion=9"),
            "kube-proxy",
            Encoding::Json,
        ))
        .await;
    eventually("the watch is open", async || cloud.watching(SERVICES) == 1).await;
    cloud.emit(SERVICES, "]]]garbage\n").await;
    let mut body = response.into_body();
    let broken = tokio::time::timeout(PATIENCE, body.frame())
        .await
        .expect("an end");
    assert!(matches!(broken, Some(Err(_))), "{broken:?}");
    assert!(
        node.metric("node_yurthub_filter_refused_answers_total{reason=\"undecodable\"}")
            .await
            >= 1.0
    );
    node.stop().await;
    cloud.stop();
}
