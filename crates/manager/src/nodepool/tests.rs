use super::*;
use crate::{Settings, stage::Stage};
use yurt_api::names::{annotations::PREVIOUS_ATTRIBUTES, labels::HOST_NETWORK};
use yurt_controller::taint;

const NAME: &str = NodePools::NAME;

fn node(name: &str, pool: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({"metadata": {"name": name, "labels": {NODE_POOL: pool, "own": "1"}},
        "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}})
}

fn path(pool: &str) -> String {
    format!("/apis/apps.openyurt.io/v1beta2/nodepools/{pool}")
}

/// Whether a pool's condition has this reason.
fn is(pool: &Value, reason: &str) -> bool {
    condition::find(&pool["status"], SYNCED).is_some_and(|synced| synced["reason"] == reason)
}

async fn merged(stage: &Stage, path: &str, patch: Value) {
    stage.kube.merge(path, &patch).await.expect("patched");
}

#[test]
fn a_pool_counts_its_nodes_and_writes_what_is_new() {
    let nodes = [node("b", "p", true), node("a", "p", false)].map(Arc::new);
    let written = status(&json!({"status": {"unreadyNodeNum": 1}}), &nodes, None);
    assert_eq!(
        written,
        Some(json!({"status": {"readyNodeNum": 1, "nodes": ["a", "b"]}}))
    );
    let empty = status(&json!({}), &[], None);
    assert_eq!(
        empty,
        Some(json!({"status": {"readyNodeNum": 0, "unreadyNodeNum": 0, "nodes": []}}))
    );
    let mut pool = json!({"metadata": {"resourceVersion": "7"}});
    let synced = |message| {
        Some(condition::new(
            SYNCED,
            "False",
            "Conflict",
            message,
            Timestamp::UNIX_EPOCH,
        ))
    };
    let written = status(&pool, &nodes, synced("a")).expect("new");
    assert_eq!(written["metadata"]["resourceVersion"], "7");
    pool["status"] = written["status"].clone();
    assert_eq!(status(&pool, &nodes, synced("a")), None);
    assert_eq!(
        status(&pool, &nodes, synced("b")).expect("new")["status"]
            .as_object()
            .expect("fields")
            .len(),
        1
    );
    assert_eq!(
        status(&pool, &nodes, None).expect("gone")["status"],
        json!({"conditions": null})
    );
}

#[tokio::test]
async fn pools_follow_their_nodes() {
    let stage = Stage::start_confined(NAME, Settings::default()).await;
    stage.define_pools(&["p", "q"]).await;
    stage
        .until(&path("p"), |p| p["status"]["nodes"] == json!([]))
        .await;
    stage.create("/api/v1/nodes", node("a", "p", true)).await;
    stage
        .until(&path("p"), |p| p["status"]["nodes"] == json!(["a"]))
        .await;
    let ready = json!({"status": node("a", "p", true)["status"]});
    merged(&stage, "/api/v1/nodes/a/status", ready).await;
    stage
        .until(&path("p"), |p| p["status"]["readyNodeNum"] == 1)
        .await;
    merged(
        &stage,
        "/api/v1/nodes/a",
        json!({"metadata": {"labels": {NODE_POOL: "q"}}}),
    )
    .await;
    stage
        .until(&path("q"), |p| p["status"]["nodes"] == json!(["a"]))
        .await;
    stage
        .until(&path("p"), |p| p["status"]["readyNodeNum"] == 0)
        .await;
    stage.quiet(&path("q")).await;
}

#[tokio::test]
async fn nodes_have_what_their_pool_gives_as_long_as_they_are_in_it() {
    let mut stage = Stage::start_confined(NAME, Settings::default()).await;
    stage.define_pools(&["p", "q"]).await;
    let gives = json!({"spec": {"labels": {"zone": "north"}, "annotations": {"who": "p"}, "hostNetwork": true,
        "taints": [{"key": "t", "value": "x", "effect": "NoSchedule"}]}});
    merged(&stage, &path("p"), gives).await;
    stage.create("/api/v1/nodes", node("a", "p", true)).await;
    let at = "/api/v1/nodes/a";
    let has = |node: &Value, key: &str, value: Value| node["metadata"]["labels"][key] == value;
    let given = stage
        .until(at, |node| has(node, "zone", "north".into()))
        .await;
    assert_eq!(given["metadata"]["annotations"]["who"], "p");
    assert_eq!(given["metadata"]["labels"][HOST_NETWORK], "true");
    assert!(taint::has(&given, "t", "NoSchedule"));
    assert_eq!(
        given["metadata"]["annotations"][PREVIOUS_ATTRIBUTES],
        r#"{"annotations":{"who":"p"},"labels":{"zone":"north"},"taints":[{"effect":"NoSchedule","key":"t","value":"x"}]}"#
    );
    stage.until(&path("p"), |pool| is(pool, "Synced")).await;
    // Drift.
    merged(
        &stage,
        at,
        json!({"metadata": {"labels": {"zone": "south"}, "annotations": {"who": null}}}),
    )
    .await;
    stage
        .until(at, |node| {
            has(node, "zone", "north".into()) && node["metadata"]["annotations"]["who"] == "p"
        })
        .await;
    // The pool changes, while nobody looks.
    stage.restart("hubleader-controller");
    merged(
        &stage,
        &path("p"),
        json!({"spec": {"labels": {"zone": "east", "own": "2"}, "taints": null}}),
    )
    .await;
    stage.restart(NAME);
    let given = stage
        .until(at, |node| has(node, "zone", "east".into()))
        .await;
    assert!(!taint::has(&given, "t", "NoSchedule"));
    assert!(has(&given, "own", "1".into()), "not the pool's");
    let pool = stage.until(&path("p"), |pool| is(pool, "Conflict")).await;
    let message = condition::find(&pool["status"], SYNCED).expect("told")["message"].clone();
    assert_eq!(
        message,
        "set otherwise by others and left so on a: label own"
    );
    let told = |events: &Value| {
        events["items"]
            .as_array()
            .is_some_and(|events| events.iter().any(|e| e["reason"] == "AttributeConflict"))
    };
    stage.until("/api/v1/namespaces/default/events", told).await;
    stage.quiet(at).await;
    stage.quiet(&path("p")).await;
    // It moves, and leaves.
    merged(
        &stage,
        at,
        json!({"metadata": {"labels": {NODE_POOL: "q"}}}),
    )
    .await;
    let moved = stage.until(at, |node| has(node, "zone", Value::Null)).await;
    assert!(moved["metadata"]["annotations"][PREVIOUS_ATTRIBUTES].is_null());
    assert!(has(&moved, HOST_NETWORK, Value::Null) && has(&moved, "own", "1".into()));
    merged(
        &stage,
        &path("q"),
        json!({"spec": {"labels": {"zone": "west"}}}),
    )
    .await;
    stage
        .until(at, |node| has(node, "zone", "west".into()))
        .await;
    merged(
        &stage,
        at,
        json!({"metadata": {"labels": {NODE_POOL: null}}}),
    )
    .await;
    stage.until(at, |node| has(node, "zone", Value::Null)).await;
    stage
        .until(&path("q"), |pool| pool["status"]["nodes"] == json!([]))
        .await;
}

#[tokio::test]
async fn a_pool_that_is_deleted_takes_back_what_it_gave() {
    let stage = Stage::start_confined(NAME, Settings::default()).await;
    stage.define_pools(&["p"]).await;
    merged(
        &stage,
        &path("p"),
        json!({"spec": {"labels": {"zone": "north", "bad label": "x"}}}),
    )
    .await;
    stage.create("/api/v1/nodes", node("a", "p", true)).await;
    stage
        .until("/api/v1/nodes/a", |node| {
            node["metadata"]["labels"]["zone"] == "north"
        })
        .await;
    let pool = stage
        .until(&path("p"), |pool| is(pool, "InvalidAttributes"))
        .await;
    assert!(
        condition::find(&pool["status"], SYNCED).expect("told")["message"]
            .as_str()
            .expect("text")
            .contains("bad label")
    );
    stage.kube.delete(&path("p")).await.expect("deleted");
    stage
        .until("/api/v1/nodes/a", |node| {
            node["metadata"]["labels"]["zone"].is_null()
        })
        .await;
}

#[tokio::test]
async fn switched_off_pools_give_nothing_and_still_count() {
    let settings = Settings {
        sync_nodepool_configurations: false,
        ..Settings::default()
    };
    let stage = Stage::start_with(NAME, settings).await;
    stage.define_pools(&["p"]).await;
    merged(
        &stage,
        &path("p"),
        json!({"spec": {"labels": {"zone": "north"}}}),
    )
    .await;
    stage.create("/api/v1/nodes", node("a", "p", true)).await;
    let pool = stage
        .until(&path("p"), |p| p["status"]["nodes"] == json!(["a"]))
        .await;
    assert!(condition::find(&pool["status"], SYNCED).is_none());
    stage.quiet("/api/v1/nodes/a").await;
    let node = stage.kube.get("/api/v1/nodes/a").await.expect("there");
    assert!(node["metadata"]["labels"]["zone"].is_null());
}
