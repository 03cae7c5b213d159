use super::NAME;
use crate::stage::Stage;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, owners: &[&Value]) -> Value {
    let owners: Vec<Value> = owners
        .iter()
        .map(|owner| {
            json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true})
        })
        .collect();
    json!({"metadata": {"name": name, "ownerReferences": owners}})
}

fn gone(object: &Value) -> bool {
    object["code"] == 404
}

async fn delete(stage: &Stage, path: &str, policy: &str) {
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy});
    stage
        .kube
        .delete_with(path, &options)
        .await
        .expect("deleted");
}

#[tokio::test]
async fn garbage_goes_in_the_background_down_the_line() {
    let stage = Stage::start(NAME).await;
    let owner = stage.create(MAPS, map("owner", &[])).await;
    let other = stage.create(MAPS, map("other", &[])).await;
    let child = stage.create(MAPS, map("child", &[&owner])).await;
    stage.create(MAPS, map("grandchild", &[&child])).await;
    stage.create(MAPS, map("shared", &[&owner, &other])).await;
    delete(&stage, &format!("{MAPS}/owner"), "Background").await;
    stage.until(&format!("{MAPS}/grandchild"), gone).await;
    stage.until(&format!("{MAPS}/child"), gone).await;
    let shared = stage
        .until(&format!("{MAPS}/shared"), |o| {
            o["metadata"]["ownerReferences"]
                .as_array()
                .is_some_and(|r| r.len() == 1)
        })
        .await;
    assert_eq!(shared["metadata"]["ownerReferences"][0]["name"], "other");
}

#[tokio::test]
async fn a_deletion_in_the_foreground_waits_for_those_who_block_it() {
    let stage = Stage::start(NAME).await;
    let owner = stage.create(MAPS, map("owner", &[])).await;
    let mut held = map("held", &[&owner]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    stage.create(MAPS, held).await;
    stage.create(MAPS, map("free", &[&owner])).await;
    delete(&stage, &format!("{MAPS}/owner"), "Foreground").await;
    stage.until(&format!("{MAPS}/free"), gone).await;
    let held = format!("{MAPS}/held");
    stage
        .until(&held, |o| o["metadata"]["deletionTimestamp"].is_string())
        .await;
    let waiting = stage
        .kube
        .get(&format!("{MAPS}/owner"))
        .await
        .expect("waits");
    assert_eq!(
        waiting["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    stage
        .kube
        .merge(&held, &json!({"metadata": {"finalizers": null}}))
        .await
        .expect("released");
    stage.until(&held, gone).await;
    stage.until(&format!("{MAPS}/owner"), gone).await;
}

#[tokio::test]
async fn orphans_stay_and_lose_their_reference() {
    let stage = Stage::start(NAME).await;
    let owner = stage.create(MAPS, map("owner", &[])).await;
    stage.create(MAPS, map("child", &[&owner])).await;
    // The collector must know the child before it can be told to spare it: as with kube-controller-manager, whoever deletes at
    // once races with its watch. A second child that is collected shows that the watch has come this far.
    let mut lost = map("lost", &[&owner]);
    lost["metadata"]["ownerReferences"][0]["uid"] = "no-such-uid".into();
    stage.create(MAPS, lost).await;
    stage.until(&format!("{MAPS}/lost"), gone).await;
    delete(&stage, &format!("{MAPS}/owner"), "Orphan").await;
    stage.until(&format!("{MAPS}/owner"), gone).await;
    let child = stage
        .kube
        .get(&format!("{MAPS}/child"))
        .await
        .expect("it stays");
    assert!(child["metadata"]["ownerReferences"].is_null(), "{child:#}");
}

#[tokio::test]
async fn an_owner_in_another_namespace_counts_as_absent_and_an_event_says_so() {
    let stage = Stage::start(NAME).await;
    let elsewhere = "/api/v1/namespaces/kube-system/configmaps";
    let owner = stage.create(elsewhere, map("owner", &[])).await;
    let child = stage.create(MAPS, map("child", &[&owner])).await;
    stage.until(&format!("{MAPS}/child"), gone).await;
    let events = stage
        .until("/api/v1/namespaces/default/events", |list| {
            list["items"].as_array().is_some_and(|i| !i.is_empty())
        })
        .await;
    let event = &events["items"][0];
    assert_eq!(event["reason"], "OwnerRefInvalidNamespace");
    assert_eq!(event["involvedObject"]["uid"], child["metadata"]["uid"]);
    let uid = owner["metadata"]["uid"].as_str().expect("a UID");
    assert_eq!(
        event["message"],
        format!(
            "ownerRef [v1/ConfigMap, namespace: default, name: owner, uid: {uid}] does not exist in namespace \"default\""
        )
    );
    stage
        .kube
        .get(&format!("{elsewhere}/owner"))
        .await
        .expect("untouched");
}

#[tokio::test]
async fn custom_resources_own_as_they_come_and_go() {
    let stage = Stage::start(NAME).await;
    let crd = json!({"metadata": {"name": "pools.apps.example.com"}, "spec": {"group": "apps.example.com", "scope": "Cluster",
        "names": {"plural": "pools", "singular": "pool", "kind": "Pool", "listKind": "PoolList"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    stage.create(definitions, crd).await;
    let pools = "/apis/apps.example.com/v1/pools";
    stage.until(pools, |list| list["items"].is_array()).await;
    let pool = |name: &str| json!({"apiVersion": "apps.example.com/v1", "kind": "Pool", "metadata": {"name": name}});
    let first = stage.create(pools, pool("first")).await;
    let second = stage.create(pools, pool("second")).await;
    stage.create(MAPS, map("of-first", &[&first])).await;
    stage.create(MAPS, map("of-second", &[&second])).await;
    delete(&stage, &format!("{pools}/first"), "Background").await;
    stage.until(&format!("{MAPS}/of-first"), gone).await;
    delete(
        &stage,
        &format!("{definitions}/pools.apps.example.com"),
        "Background",
    )
    .await;
    stage.until(&format!("{MAPS}/of-second"), gone).await;
}
