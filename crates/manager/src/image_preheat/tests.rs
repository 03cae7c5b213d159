use super::*;
use crate::stage::Stage;
use yurt_api::names::annotations::MAX_IMAGE_PULLS;

const SETS: &str = "/apis/apps/v1/namespaces/default/daemonsets";
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
const JOBS_PATH: &str = "/apis/batch/v1/namespaces/default/jobs";

fn asking(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": "u"}, "spec": {"nodeName": "n"}, "status": {"conditions": [
        {"type": POD_IMAGE_READY, "status": "False", "message": "controllerrevision: h"},
        {"type": POD_NEED_UPGRADE, "status": "True", "message": "controllerrevision: h"}]}})
}

#[test]
fn images_are_wanted_for_the_present_template_only() {
    let mut p = asking("d-x");
    assert_eq!(wanted(&p), Some("h"));
    p["status"]["conditions"][0]["reason"] = FAILED.into();
    assert_eq!(wanted(&p), None, "until it is asked for again");
    p = asking("d-x");
    p["status"]["conditions"][1]["message"] = "controllerrevision: newer".into();
    assert_eq!(wanted(&p), None);
    p = asking("d-x");
    p["status"]["conditions"][0]["status"] = "True".into();
    assert_eq!(wanted(&p), None);
}

#[test]
fn a_job_pulls_every_image_on_the_node() {
    let template = json!({"spec": {"containers": [{"image": "a"}, {"image": "b"}], "initContainers": [{"image": "c"}],
        "imagePullSecrets": [{"name": "s"}], "serviceAccountName": "d"}});
    let job = job(&asking("d-x"), &template, "h", 1);
    assert_eq!(job["metadata"]["name"], "image-pre-pull-d-x-h");
    let spec = &job["spec"]["template"]["spec"];
    let images: Vec<_> = items(&spec["containers"])
        .map(|c| (&c["name"], &c["image"]))
        .collect();
    let wanted = json!([
        ["prepull-0", "a"],
        ["prepull-1", "b"],
        ["prepull-init-0", "c"]
    ]);
    assert_eq!(json!(images), wanted);
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "s"}]));
}

#[test]
fn names_of_jobs_fit_and_differ() {
    let name = |pod: String, attempt| job_name(&asking(&pod), "h", attempt);
    let long = "d".repeat(80);
    let one = name(format!("{long}-abcde"), 1);
    assert!(
        one.len() <= LONGEST_NAME && one.ends_with("-abcde-h"),
        "{one}"
    );
    for other in [
        name(format!("e{long}-abcde"), 1),
        name(format!("{long}-abcde"), 2),
    ] {
        assert!(other.len() <= LONGEST_NAME && other != one, "{other}");
    }
}

fn condition_of(p: &Value, kind: &str) -> Value {
    condition::find(&p["status"], kind)
        .cloned()
        .unwrap_or_default()
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A daemon with OTA on some nodes, changed to another image, whose owners asked for it.
async fn asked(count: usize, most: &str) -> Stage {
    let stage = Stage::start_confined("daemonset-controller,job-controller,kube-scheduler,daemon-pod-updater-controller,image-preheat-controller", crate::Settings::default())
    .await;
    for n in 0..count {
        let name = format!("n{n}");
        stage
            .create("/api/v1/nodes", json!({"metadata": {"name": name}}))
            .await;
        let status = json!({"status": {"allocatable": {"pods": "10", "cpu": "4", "memory": "4Gi"}, "conditions": [{"type": "Ready", "status": "True"}]}});
        stage
            .kube
            .merge(&format!("/api/v1/nodes/{name}/status"), &status)
            .await
            .expect("ready");
    }
    let annotations = json!({"apps.openyurt.io/update-strategy": "OTA", MAX_IMAGE_PULLS: most});
    stage.create(SETS, json!({"metadata": {"name": "d", "annotations": annotations}, "spec": {
        "selector": {"matchLabels": {"app": "d"}}, "updateStrategy": {"type": "OnDelete"}, "template": template("i:1")}})).await;
    let all = |list: &Value, status: &str| {
        let on_nodes = items(&list["items"]).filter(|p| !pod::node(p).is_empty());
        on_nodes
            .filter(|p| condition_of(p, POD_NEED_UPGRADE)["status"] == status)
            .count()
            == count
    };
    stage.until(PODS_PATH, |list| all(list, "False")).await;
    let change = json!({"spec": {"template": template("i:2")}});
    stage
        .kube
        .merge(&format!("{SETS}/d"), &change)
        .await
        .expect("changed");
    let list = stage.until(PODS_PATH, |list| all(list, "True")).await;
    for p in items(&list["items"]) {
        ask(&stage, p).await;
    }
    stage
}

/// As a hub does it for the owner of a node.
async fn ask(stage: &Stage, p: &Value) {
    let message = condition_of(p, POD_NEED_UPGRADE)["message"].clone();
    let asked = json!({"status": {"conditions": [{"type": POD_IMAGE_READY, "status": "False", "reason": "", "message": message}]}});
    let path = format!("{PODS_PATH}/{}/status", text(&p["metadata"]["name"]));
    stage.kube.strategic(&path, &asked).await.expect("asked");
}

fn pulling(list: &Value) -> Vec<Value> {
    let pods = items(&list["items"]).filter(|p| p["metadata"]["labels"][IMAGE_PULL] == "true");
    pods.filter(|p| !pod::is_deleting(p)).cloned().collect()
}

/// What the kubelet says of a pod's container.
async fn says(stage: &Stage, p: &Value, phase: &str, state: Value) {
    let name = text(&p["metadata"]["name"]);
    let status = json!({"status": {"phase": phase, "containerStatuses": [
        {"name": "prepull-0", "image": "i:2", "imageID": "", "ready": false, "restartCount": 0, "state": state}]}});
    stage
        .kube
        .merge(&format!("{PODS_PATH}/{name}/status"), &status)
        .await
        .expect("a status");
}

#[tokio::test]
async fn an_image_without_a_program_true_is_pulled_all_the_same() {
    let stage = asked(1, "10").await;
    let list = stage
        .until(PODS_PATH, |list| pulling(list).len() == 1)
        .await;
    let p = &pulling(&list)[0];
    assert_eq!(p["spec"]["containers"][0]["image"], "i:2");
    let state =
        json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "no such file"}});
    says(&stage, p, "Failed", state).await;
    let list = stage
        .until(PODS_PATH, |list| {
            items(&list["items"]).any(|p| condition_of(p, POD_IMAGE_READY)["status"] == "True")
        })
        .await;
    let daemon = items(&list["items"])
        .find(|p| p["metadata"]["labels"]["app"] == "d")
        .expect("a daemon");
    let said = condition_of(daemon, POD_IMAGE_READY);
    assert_eq!(
        (&said["reason"], &said["message"]),
        (
            &PULLED.into(),
            &condition_of(daemon, POD_NEED_UPGRADE)["message"]
        )
    );
    let gone = |list: &Value| items(&list["items"]).all(pod::is_deleting);
    stage.until(JOBS_PATH, gone).await;
}

#[tokio::test]
async fn a_few_at_a_time_and_what_fails_makes_room() {
    let stage = asked(3, "2").await;
    let list = stage
        .until(JOBS_PATH, |list| items(&list["items"]).count() == 2)
        .await;
    let first = text(&list["items"][0]["metadata"]["name"]);
    let failed = json!({"status": {"startTime": "2026-01-01T00:00:00Z", "failed": 1, "conditions": [
        {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": pod::stamp(Timestamp::now())},
        {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": pod::stamp(Timestamp::now())}]}});
    stage
        .kube
        .merge(&format!("{JOBS_PATH}/{first}/status"), &failed)
        .await
        .expect("failed");
    let list = stage
        .until(JOBS_PATH, |list| items(&list["items"]).count() == 3)
        .await;
    let tries = items(&list["items"]).filter(|job| pulls::attempt(job) > 1);
    assert_eq!(tries.count(), 0, "its next try waits");
    assert!(items(&list["items"]).any(|job| job["metadata"]["name"] == first.as_str()));
    for p in items(&stage.kube.get(PODS_PATH).await.expect("pods")["items"]) {
        assert_ne!(
            condition_of(p, POD_IMAGE_READY)["reason"],
            FAILED,
            "not given up"
        );
    }
}
