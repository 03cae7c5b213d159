use super::*;
use crate::stage::Stage;

const SYSTEM: &str = "/api/v1/namespaces/kube-system/pods";
const MAP: &str = "/api/v1/namespaces/kube-system/configmaps/yurt-static-set-hub";
const CONTROLLER: &str = "yurt-static-set-controller";

fn set(strategy: &str, image: &str) -> Value {
    json!({"metadata": {"name": "hub", "namespace": "kube-system"}, "spec": {
        "staticPodManifest": "yurt-hub", "upgradeStrategy": {"type": strategy, "maxUnavailable": 1},
        "template": {"metadata": {"labels": {"app": "hub"}}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": image}]}}}})
}

fn sets() -> String {
    SETS.path("kube-system")
}

/// Creates a ready node, and a mirror pod of the set as its kubelet shows it.
async fn mirror(stage: &Stage, node: &str, image: &str, hash: &str) {
    let mut wanted = manifest::pod(&set("", image), hash);
    wanted["metadata"]["name"] = format!("hub-{node}").into();
    wanted["metadata"]["annotations"][SOURCE] = "file".into();
    wanted["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "x".into();
    wanted["spec"]["nodeName"] = node.into();
    wanted["spec"]["tolerations"] = json!([{"operator": "Exists", "effect": "NoExecute"}]);
    stage.create(SYSTEM, wanted).await;
    stage
        .report("kube-system", &format!("hub-{node}"), "Running", true)
        .await;
}

async fn node(stage: &Stage, name: &str) {
    stage
        .create("/api/v1/nodes", json!({"metadata": {"name": name}}))
        .await;
    set_ready(stage, name, true).await;
}

async fn set_ready(stage: &Stage, name: &str, ready: bool) {
    let status = if ready { "True" } else { "Unknown" };
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    stage
        .kube
        .merge(&format!("/api/v1/nodes/{name}/status"), &status)
        .await
        .expect("a status");
}

async fn gone(stage: &Stage, path: &str) {
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
    stage
        .kube
        .delete_with(path, &options)
        .await
        .expect("deleted");
}

fn workers(list: &Value) -> Vec<String> {
    let of = items(&list["items"]).filter(|p| p["metadata"]["labels"][STATIC_SET] == worker::LABEL);
    of.filter(|p| !pod::is_deleting(p))
        .map(|p| text(&p["metadata"]["name"]))
        .collect()
}

async fn one_worker(stage: &Stage, node: &str) -> String {
    let list = stage
        .until(SYSTEM, |list| {
            let all = workers(list);
            all.len() == 1 && all[0].contains(&format!("-{node}-"))
        })
        .await;
    workers(&list).remove(0)
}

#[test]
fn whose_static_pod_a_pod_is() {
    let p = |name: &str, source: &str| json!({"metadata": {"name": name, "namespace": "n", "annotations": {SOURCE: source}}, "spec": {"nodeName": "a-1"}});
    assert_eq!(set_of(&p("hub-a-1", "file")), Some(Key::new("n", "hub")));
    // A set with a common prefix is another.
    assert_eq!(
        set_of(&p("hub-cloud-a-1", "http")),
        Some(Key::new("n", "hub-cloud"))
    );
    for (name, source) in [
        ("hub-a-1", "api"),
        ("hub-1", "file"),
        ("-a-1", "file"),
        ("huba-1", "file"),
    ] {
        assert_eq!(set_of(&p(name, source)), None, "{name}");
    }
    assert_eq!(set_of(&json!({})), None);
}

#[test]
fn what_of_a_config_map_is_changed() {
    let mut set = set("", "i");
    set["metadata"]["uid"] = "u".into();
    let data = json!({"new": "text"});
    let of_openyurt = json!({"metadata": {"name": "m", "resourceVersion": "3", "annotations": {STATIC_POD_HASH: "go"}}, "data": {"old": "x"}});
    let patch = map_patch(&set, &of_openyurt, "h", &data)
        .unwrap()
        .expect("a change");
    assert_eq!(
        patch["data"],
        json!({"new": "text", "old": null}),
        "renamed"
    );
    assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "u");
    let ours = json!({"metadata": {"labels": {STATIC_SET: "manifest"}, "annotations": {STATIC_POD_HASH: "h"},
        "ownerReferences": [{"uid": "u", "controller": true}]}, "data": data});
    assert!(map_patch(&set, &ours, "h", &data).unwrap().is_none());
    let theirs =
        json!({"metadata": {"name": "m", "ownerReferences": [{"uid": "x", "controller": true}]}});
    assert!(matches!(
        map_patch(&set, &theirs, "h", &data),
        Err(BadSet::ConfigMapTaken(_))
    ));
}

#[tokio::test]
async fn nodes_are_upgraded_one_by_one_and_a_failed_one_stops_nobody() {
    let stage = Stage::start_confined(CONTROLLER, crate::Settings::default()).await;
    for name in ["n1", "n2", "n3"] {
        node(&stage, name).await;
    }
    // What OpenYurt made: another hash, the same fields.
    for name in ["n1", "n2", "n3"] {
        mirror(&stage, name, "i:1", "go-hash").await;
    }
    stage
        .create(&sets(), set("advancedrollingupdate", "i:1"))
        .await;
    let path = format!("{}/hub", sets());
    let status = |one: &Value, field: &str| one["status"][field].as_i64();
    let one = stage
        .until(&path, |one| {
            condition::holds(&one["status"], UPGRADED) && status(one, "totalNumber") == Some(3)
        })
        .await;
    assert_eq!(
        (
            status(&one, "upgradedNumber"),
            status(&one, "observedGeneration")
        ),
        (Some(3), Some(1))
    );
    assert!(
        workers(&stage.kube.get(SYSTEM).await.unwrap()).is_empty(),
        "taken over as they are"
    );
    let map = stage.kube.get(MAP).await.expect("a config map");
    let manifest = text(&map["data"]["yurt-hub"]);
    assert!(
        manifest.contains("image: \"i:1\"") && manifest.contains(manifest::hash_of(&map)),
        "{manifest}"
    );
    stage.quiet(&path).await;

    set_ready(&stage, "n3", false).await;
    let change = json!({"spec": {"staticPodManifest": "hub", "template": set("", "i:2")["spec"]["template"]}});
    stage.kube.merge(&path, &change).await.expect("changed");
    let first = one_worker(&stage, "n1").await;
    let map = stage
        .until(MAP, |map| map["data"]["yurt-hub"].is_null())
        .await;
    let hash = manifest::hash_of(&map).to_owned();
    assert!(text(&map["data"]["hub"]).contains("i:2"));
    // It fails: the next node gets its turn, the first one is told of.
    let now = pod::stamp(Timestamp::now());
    let failed = json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "upgrade-worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "disk full", "finishedAt": now}}}]}});
    stage
        .kube
        .merge(&format!("{SYSTEM}/{first}/status"), &failed)
        .await
        .expect("failed");
    let list = stage.until(SYSTEM, |list| workers(list).len() == 2).await;
    let second = workers(&list)
        .into_iter()
        .find(|name| *name != first)
        .expect("another");
    assert!(second.contains("-n2-"), "{second}");
    let one = stage
        .until(&path, |one| {
            items(&one["status"]["nodes"])
                .any(|node| node["name"] == "n1" && node["phase"] == "Failed")
        })
        .await;
    let node_of = |name: &str| {
        items(&one["status"]["nodes"])
            .find(|node| node["name"] == name)
            .expect("a node")
            .clone()
    };
    assert!(text(&node_of("n1")["message"]).contains("disk full"));
    assert_eq!(node_of("n3")["phase"], "Waiting");
    assert_eq!(
        condition::find(&one["status"], UPGRADED).expect("a condition")["reason"],
        "UpgradeFailed"
    );
    // The second succeeds; its worker goes. The third is back and gets its turn.
    let done = json!({"status": {"phase": "Succeeded"}});
    stage
        .kube
        .merge(&format!("{SYSTEM}/{second}/status"), &done)
        .await
        .expect("done");
    gone(&stage, &format!("{SYSTEM}/hub-n2")).await;
    mirror(&stage, "n2", "i:2", &hash).await;
    stage
        .until(SYSTEM, |list| !workers(list).contains(&second))
        .await;
    set_ready(&stage, "n3", true).await;
    stage
        .until(SYSTEM, |list| {
            workers(list).iter().any(|name| name.contains("-n3-"))
        })
        .await;
    let revisions = "/apis/apps/v1/namespaces/kube-system/controllerrevisions";
    stage
        .until(revisions, |list| items(&list["items"]).count() == 2)
        .await;
}

#[tokio::test]
async fn with_ota_pods_say_that_they_are_old() {
    let stage = Stage::start_confined(
        "yurt-static-set-controller,garbage-collector-controller",
        crate::Settings::default(),
    )
    .await;
    node(&stage, "n1").await;
    mirror(&stage, "n1", "i:1", "go-hash").await;
    stage.create(&sets(), set("OTA", "i:2")).await;
    let p = stage
        .until(&format!("{SYSTEM}/hub-n1"), |p| {
            condition::holds(&p["status"], POD_NEED_UPGRADE)
        })
        .await;
    let map = stage.kube.get(MAP).await.expect("a config map");
    let said = condition::find(&p["status"], POD_NEED_UPGRADE).expect("a condition");
    assert_eq!(
        said["message"],
        format!("{REVISION_PREFIX}{}", manifest::hash_of(&map))
    );
    stage.quiet(&format!("{SYSTEM}/hub-n1")).await;
    assert!(workers(&stage.kube.get(SYSTEM).await.unwrap()).is_empty());
    // With the set goes what was made for it.
    stage
        .kube
        .delete(&format!("{}/hub", sets()))
        .await
        .expect("deleted");
    stage.until(MAP, |map| map["code"] == 404).await;
}

#[tokio::test]
async fn a_set_that_makes_no_sense_says_so() {
    let stage = Stage::start_confined(CONTROLLER, crate::Settings::default()).await;
    let theirs = json!({"metadata": {"name": "yurt-static-set-hub", "ownerReferences": [
        {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "x", "controller": true}]}, "data": {"a": "b"}});
    stage
        .create("/api/v1/namespaces/kube-system/configmaps", theirs)
        .await;
    stage.create(&sets(), set("", "i")).await;
    let mut odd = set("Sometimes", "i");
    odd["metadata"]["name"] = "odd".into();
    stage.create(&sets(), odd).await;
    for (name, reason) in [("hub", "ConfigMapTaken"), ("odd", "InvalidSpec")] {
        let path = format!("{}/{name}", sets());
        let says = |one: &Value| {
            condition::find(&one["status"], UPGRADED).is_some_and(|c| c["reason"] == reason)
        };
        stage.until(&path, says).await;
        stage.quiet(&path).await;
    }
    assert_eq!(
        stage.kube.get(MAP).await.expect("theirs")["data"],
        json!({"a": "b"})
    );
    let told = |list: &Value| items(&list["items"]).any(|event| event["reason"] == "InvalidSpec");
    stage
        .until("/api/v1/namespaces/kube-system/events", told)
        .await;
}
