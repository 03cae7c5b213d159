//! Clusters of OpenYurt are taken over: what its manager made stays as it is, and no pod is replaced.

use super::*;
use yurt_api::conversion;
use yurt_controller::collections::{CONTROLLER_REVISIONS, REPLICA_SETS, YURT_APP_DAEMONS};

/// Puts objects as OpenYurt's manager left them, and its native controllers' part.
async fn found(recorded: &str, collection: &yurt_controller::Collection, version: &str) -> Stage {
    let stage =
        Stage::start("deployment-controller,replicaset-controller,garbage-collector-controller")
            .await;
    let recorded: Value = serde_json::from_str(recorded).expect("JSON");
    let mut subject = recorded["set"].clone();
    if subject["apiVersion"] != *version {
        subject = conversion::to_version(subject, version).expect("converted");
    }
    // As whoever applied it.
    let made = stage.create(&path(collection, ""), subject).await;
    let uid = made["metadata"]["uid"].as_str().expect("a uid").to_owned();
    for (list, collection) in [
        ("revisions", &CONTROLLER_REVISIONS),
        ("workloads", &DEPLOYMENTS),
    ] {
        for object in recorded[list].as_array().expect("a list") {
            let mut object = object.clone();
            object["metadata"]["ownerReferences"][0]["uid"] = (*uid).into();
            let path = format!("{}?fieldManager=yurt-manager", path(collection, ""));
            stage.create(&path, object).await;
        }
    }
    stage.define_pools(&["hangzhou", "beijing"]).await;
    let pool = NODE_POOLS.object_path(&yurt_controller::Key::new("", "beijing"));
    change(
        &stage,
        &pool,
        &json!({"metadata": {"labels": {"yurtappset.openyurt.io/type": "nginx"}}}),
    )
    .await;
    stage
        .until(&path(&REPLICA_SETS, ""), |list| count(list) == 2)
        .await;
    stage
}

/// Pod template and selector of each workload by its name.
async fn templates(stage: &Stage) -> Vec<(String, Value, Value)> {
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    let items = list["items"].as_array().expect("a list");
    let of = |d: &Value| {
        (
            name(d).to_owned(),
            d["spec"]["template"].clone(),
            d["spec"]["selector"].clone(),
        )
    };
    items.iter().map(of).collect()
}

async fn taken_over(recorded: &str) -> Stage {
    let mut stage = found(recorded, &YURT_APP_SETS, "apps.openyurt.io/v1beta1").await;
    let before = templates(&stage).await;
    stage.restart(CONTROLLERS);
    let kubelet = kubelet(&stage);
    ready(&stage, 2).await;
    assert_eq!(templates(&stage).await, before, "not a byte of a template");
    let sets = stage
        .kube
        .get(&path(&REPLICA_SETS, ""))
        .await
        .expect("list");
    assert_eq!(count(&sets), 2, "no pod template hash is new");
    // Another look, and a manager that starts anew, change nothing.
    let names: Vec<String> = before.iter().map(|(name, ..)| name.clone()).collect();
    for name in &names {
        stage.quiet(&path(&DEPLOYMENTS, name)).await;
    }
    stage.restart(CONTROLLERS);
    stage.quiet(&super::sets("web")).await;
    assert_eq!(templates(&stage).await, before);
    drop(kubelet);
    stage
}

#[tokio::test]
async fn what_1_7_made_goes_on() {
    let stage = taken_over(include_str!("recorded/v1.7.json")).await;
    let _kubelet = kubelet(&stage);
    let told = stage.kube.get(&sets("web")).await.expect("there");
    assert_eq!(
        told["status"]["currentRevision"], "web-76d79c5b9f",
        "Go's zeros are no difference"
    );
    // From here on the fields are ours: what is taken out of the template goes away.
    let without = json!({"spec": {"workload": {"workloadTweaks": []}}});
    change(&stage, &sets("web"), &without).await;
    let hangzhou = path(&DEPLOYMENTS, "web-hangzhou-8x2kq");
    let updated = stage.until(&hangzhou, |d| image(d) == "nginx:1.25").await;
    assert!(
        updated["spec"]["template"]["spec"]["containers"][0]["env"].is_null(),
        "{updated:#}"
    );
    assert_eq!(updated["spec"]["replicas"], 2);
    ready(&stage, 2).await;
    let beijing = stage
        .kube
        .get(&path(&DEPLOYMENTS, "web-beijing-b7mzt"))
        .await
        .expect("there");
    assert_eq!(
        *revision(&beijing),
        "web-76d79c5b9f",
        "its pods are the same"
    );
}

#[tokio::test]
async fn what_1_4_made_goes_on() {
    let stage = taken_over(include_str!("recorded/v1.4.json")).await;
    let _kubelet = kubelet(&stage);
    // Under the names that their selectors have, adopted by the label of today.
    let north = stage
        .kube
        .get(&path(&DEPLOYMENTS, "web-north-q4jwr"))
        .await
        .expect("there");
    assert_eq!(
        north["metadata"]["labels"]["apps.openyurt.io/ref-yurtappset"],
        "web"
    );
    assert_eq!(
        north["metadata"]["annotations"]["apps.openyurt.io/ref-nodepool"],
        "beijing"
    );
    assert!(north["metadata"]["annotations"]["apps.openyurt.io/patch"].is_null());
    // A change replaces pods anyhow: then they are bound as today.
    let newer = json!([{"op": "replace", "path": "/spec/workload/workloadTemplate/deploymentTemplate/spec/template/spec/containers/0/image", "value": "nginx:1.20"}]);
    stage
        .kube
        .json_patch(&sets("web"), &newer)
        .await
        .expect("changed");
    let hangzhou = path(&DEPLOYMENTS, "web-hangzhou-dvgz7");
    let updated = stage.until(&hangzhou, |d| image(d) == "nginx:1.20").await;
    let pods = &updated["spec"]["template"]["spec"];
    assert_eq!(
        pods["nodeSelector"],
        json!({"apps.openyurt.io/nodepool": "hangzhou"})
    );
    assert_eq!(pods["tolerations"][0]["key"], "apps.openyurt.io/example");
    ready(&stage, 2).await;
    let north = stage
        .kube
        .get(&path(&DEPLOYMENTS, "web-north-q4jwr"))
        .await
        .expect("there");
    assert_eq!(image(&north), "nginx:1.19.0", "its patch holds");
    assert_eq!(*revision(&north), "web-5c56bfb9dd");
}

#[tokio::test]
async fn what_changed_while_no_manager_ran_is_made_up_for() {
    let mut stage = found(
        include_str!("recorded/v1.7.json"),
        &YURT_APP_SETS,
        "apps.openyurt.io/v1beta1",
    )
    .await;
    change(
        &stage,
        &sets("web"),
        &json!({"spec": {"workload": {"workloadTweaks": []}}}),
    )
    .await;
    let before = templates(&stage).await;
    stage.restart(CONTROLLERS);
    let _kubelet = kubelet(&stage);
    ready(&stage, 2).await;
    let after = templates(&stage).await;
    let of = |list: &[(String, Value, Value)], name: &str| {
        let found = list.iter().find(|(known, ..)| known == name);
        found.map(|(_, template, _)| template.clone())
    };
    assert_eq!(
        of(&before, "web-beijing-b7mzt"),
        of(&after, "web-beijing-b7mzt")
    );
    let hangzhou = of(&after, "web-hangzhou-8x2kq").expect("there");
    assert!(
        hangzhou["spec"]["containers"][0]["env"].is_null(),
        "{hangzhou:#}"
    );
}

#[tokio::test]
async fn orphans_that_name_the_set_are_adopted() {
    let mut stage = found(
        include_str!("recorded/v1.7.json"),
        &YURT_APP_SETS,
        "apps.openyurt.io/v1beta1",
    )
    .await;
    for name in ["web-hangzhou-8x2kq", "web-beijing-b7mzt"] {
        change(
            &stage,
            &path(&DEPLOYMENTS, name),
            &json!({"metadata": {"ownerReferences": null}}),
        )
        .await;
    }
    let before = templates(&stage).await;
    stage.restart(CONTROLLERS);
    let _kubelet = kubelet(&stage);
    let set = ready(&stage, 2).await;
    assert_eq!(templates(&stage).await, before);
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    for deployment in list["items"].as_array().expect("items") {
        assert_eq!(
            deployment["metadata"]["ownerReferences"][0]["uid"],
            set["metadata"]["uid"]
        );
    }
}

#[tokio::test]
async fn daemons_of_1_6_go_on() {
    let recorded = include_str!("recorded/daemon-v1.6.json");
    let mut stage = found(recorded, &YURT_APP_DAEMONS, "apps.openyurt.io/v1alpha1").await;
    let before = templates(&stage).await;
    stage.restart(CONTROLLERS);
    let _kubelet = kubelet(&stage);
    let daemon = path(&YURT_APP_DAEMONS, "web");
    let told = stage
        .until(&daemon, |d| {
            condition::holds(&d["status"], "WorkLoadUpdated")
                && d["status"]["observedGeneration"] == d["metadata"]["generation"]
        })
        .await;
    assert_eq!(told["status"]["currentRevision"], "web-5b59bbb5d4");
    stage.quiet(&daemon).await;
    assert_eq!(templates(&stage).await, before, "not a byte of a template");
}
