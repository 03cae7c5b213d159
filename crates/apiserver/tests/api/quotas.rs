//! Quotas and limit ranges.

use crate::client::{CONFIG_MAPS, Cluster, PODS, config_map, pod};
use serde_json::{Value, json};

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const LIMITS: &str = "/api/v1/namespaces/default/limitranges";

fn quota(hard: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}})
}

#[tokio::test]
async fn a_quota_is_never_exceeded() {
    let cluster = Cluster::start().await;
    let there = cluster.get(CONFIG_MAPS).await.expect(200)["items"]
        .as_array()
        .map_or(0, Vec::len);
    let hard = json!({"count/configmaps": (there + 5).to_string(), "requests.cpu": "1"});
    cluster.post(QUOTAS, &quota(&hard)).await.expect(201);
    // Many at once: exactly as many as there is room for get in.
    let names: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
    let mut made = 0;
    let bodies: Vec<Value> = names.iter().map(|name| config_map(name)).collect();
    let mut posts = Vec::new();
    for body in &bodies {
        posts.push(cluster.post(CONFIG_MAPS, body));
    }
    for answer in join_all(posts).await {
        match answer.code {
            201 => made += 1,
            403 => assert!(
                answer.body["message"]
                    .as_str()
                    .is_some_and(|m| m.contains("is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=")),
                "{}",
                answer.body
            ),
            other => panic!("{other}: {}", answer.body),
        }
    }
    assert_eq!(made, 5);

    let refused = cluster.post(PODS, &pod("p", "")).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    let mut asking = pod("p", "");
    asking["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "600m"}});
    cluster.post(PODS, &asking).await.expect(201);
    asking["metadata"]["name"] = "p2".into();
    let refused = cluster.post(PODS, &asking).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"p2\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
    );
}

/// Polls all until the last is ready.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *output = Some(value);
            }
        }
        match outputs.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[tokio::test]
async fn admission_keeps_the_usage_of_a_quota() {
    let cluster = Cluster::start().await;
    cluster
        .post(QUOTAS, &quota(&json!({"pods": "2"})))
        .await
        .expect(201);
    let status = json!({"status": {"hard": {"pods": "2"}, "used": {"pods": "0"}}});
    cluster
        .merge(&format!("{QUOTAS}/q/status"), &status)
        .await
        .expect(200);
    cluster.post(PODS, &pod("a", "")).await.expect(201);
    let seen = cluster.get(&format!("{QUOTAS}/q")).await.expect(200);
    assert_eq!(seen["status"]["used"]["pods"], "1");
    cluster
        .post(&format!("{PODS}?dryRun=All"), &pod("b", ""))
        .await
        .expect(201);
    let seen = cluster.get(&format!("{QUOTAS}/q")).await.expect(200);
    assert_eq!(seen["status"]["used"]["pods"], "1");
    cluster.post(PODS, &pod("b", "")).await.expect(201);
    cluster.post(PODS, &pod("c", "")).await.expect(403);
    cluster.delete(&format!("{PODS}/b")).await.expect(200);
    cluster.post(PODS, &pod("c", "")).await.expect(201);
}

#[tokio::test]
async fn a_limit_range_fills_in_and_refuses() {
    let cluster = Cluster::start().await;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}}]}});
    cluster.post(LIMITS, &range).await.expect(201);
    let filled = cluster.post(PODS, &pod("p", "")).await.expect(201);
    assert_eq!(
        filled["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
    );
    assert_eq!(filled["status"]["qosClass"], "Burstable");
    let mut greedy = pod("g", "");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    let refused = cluster.post(PODS, &greedy).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"g\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
    );
}
