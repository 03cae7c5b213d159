//! Clusters of OpenYurt are taken over: what its manager made stays as it is, and no pod is replaced.

use super::*;
use std::collections::BTreeSet;
use yurt_api::conversion;
use yurt_controller::collections::{CONTROLLER_REVISIONS, REPLICA_SETS, YURT_APP_DAEMONS};

/// Puts objects as OpenYurt's manager left them, and its native controllers' part.
async fn found(recorded: &str, collection: &yurt_controller::Collection, version: &str) -> Stage {
    let stage =
        Stage::start("deployment-controller,replicaset-controller,statefulset-controller,garbage-collector-controller")
            .await;
    let recorded: Value = serde_json::from_str(recorded).expect("JSON");
    let mut subject = recorded["set"].clone();
    if subject["apiVersion"] != *version {
        subject = conversion::to_version(subject, version).expect("converted");
    }
    // As whoever applied it.
    let made = stage.create(&path(collection, ""), subject).await;
    let uid = made["metadata"]["uid"].as_str().expect("a uid").to_owned();
    for object in ["revisions", "workloads"]
        .iter()
        .flat_map(|list| recorded[*list].as_array().expect("a list"))
    {
        let mut object = object.clone();
        object["metadata"]["ownerReferences"][0]["uid"] = (*uid).into();
        let collection = match object["kind"].as_str().expect("a kind") {
            "ControllerRevision" => &CONTROLLER_REVISIONS,
            "Deployment" => &DEPLOYMENTS,
            kind => {
                assert_eq!(kind, "StatefulSet");
                &STATEFUL_SETS
            }
        };
        let path = format!("{}?fieldManager=yurt-manager", path(collection, ""));
        stage.create(&path, object).await;
    }
    stage.define_pools(&["hangzhou", "beijing"]).await;
    // As the recorded tolerations have it.
    let taints = match recorded["workloads"].to_string().contains("\"site\"") {
        true => json!([{"key": "site", "value": "beijing", "effect": "NoSchedule"}]),
        false => json!([]),
    };
    let pool = NODE_POOLS.object_path(&yurt_controller::Key::new("", "beijing"));
    change(
        &stage,
        &pool,
        &json!({"metadata": {"labels": {"yurtappset.openyurt.io/type": "nginx"}}, "spec": {"taints": taints}}),
    )
    .await;
    // Kubernetes' own write down each pod template once: as a ReplicaSet, or as a revision of a StatefulSet.
    while hashes(&stage).await.len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage
}

/// The hashes of all pod templates that there ever were.
async fn hashes(stage: &Stage) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (collection, owner) in [
        (&REPLICA_SETS, "Deployment"),
        (&CONTROLLER_REVISIONS, "StatefulSet"),
    ] {
        let list = stage.kube.get(&path(collection, "")).await.expect("list");
        let items = list["items"].as_array().into_iter().flatten();
        let of_workloads =
            items.filter(|item| item["metadata"]["ownerReferences"][0]["kind"] == owner);
        all.extend(of_workloads.map(|item| name(item).to_owned()));
    }
    all
}

/// Pod template and selector of each workload by its name.
async fn templates(stage: &Stage) -> Vec<(String, Value, Value)> {
    let mut all = Vec::new();
    for collection in [&DEPLOYMENTS, &STATEFUL_SETS] {
        let list = stage.kube.get(&path(collection, "")).await.expect("list");
        let of = |d: &Value| {
            let (template, selector) = (&d["spec"]["template"], &d["spec"]["selector"]);
            (name(d).to_owned(), template.clone(), selector.clone())
        };
        all.extend(list["items"].as_array().expect("a list").iter().map(of));
    }
    all
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

/// What OpenYurt's own code made (`src/recorded/README.md`): which pods there are, and of which template, stays as it is.
#[tokio::test]
async fn what_openyurts_own_code_made_is_taken_over_without_a_new_template() {
    let recorded = [
        (
            "1.4, Deployments",
            include_str!("../../recorded/openyurt/v1.4-deployment.json"),
        ),
        (
            "1.4, StatefulSets",
            include_str!("../../recorded/openyurt/v1.4-statefulset.json"),
        ),
        (
            "1.6, a daemon",
            include_str!("../../recorded/openyurt/daemon-v1.6.json"),
        ),
        (
            "1.7, Deployments",
            include_str!("../../recorded/openyurt/v1.7-deployment.json"),
        ),
        (
            "1.7, StatefulSets",
            include_str!("../../recorded/openyurt/v1.7-statefulset.json"),
        ),
    ];
    for (what, recorded) in recorded {
        let is_daemon = recorded.contains("\"YurtAppDaemon\"");
        let (collection, version) = match is_daemon {
            true => (&YURT_APP_DAEMONS, "apps.openyurt.io/v1alpha1"),
            false => (&YURT_APP_SETS, "apps.openyurt.io/v1beta1"),
        };
        let mut stage = found(recorded, collection, version).await;
        let _kubelet = kubelet(&stage);
        let (before, hashes_before) = (templates(&stage).await, hashes(&stage).await);
        assert_eq!((before.len(), hashes_before.len()), (2, 2), "{what}");
        // Twice: a manager that starts anew finds nothing to do either.
        for _ in 0..2 {
            stage.restart(CONTROLLERS);
            let told = |set: &Value| {
                let updated = if is_daemon {
                    "WorkLoadUpdated"
                } else {
                    "AppUpdated"
                };
                set["status"]["observedGeneration"] == set["metadata"]["generation"]
                    && condition::holds(&set["status"], updated)
            };
            let set = stage.until(&path(collection, "web"), told).await;
            // What 1.4 wrote down of a set is of the version of then.
            if !what.starts_with("1.4") {
                let recorded: Value = serde_json::from_str(recorded).expect("JSON");
                let revision = &recorded["revisions"][0]["metadata"]["name"];
                assert_eq!(set["status"]["currentRevision"], *revision, "{what}");
            }
            stage.quiet(&path(collection, "web")).await;
            assert_eq!(
                templates(&stage).await,
                before,
                "{what}: not a byte of a template"
            );
            assert_eq!(
                hashes(&stage).await,
                hashes_before,
                "{what}: no pod template hash is new"
            );
        }
    }
}

#[tokio::test]
async fn what_1_7_made_goes_on() {
    let stage = taken_over(include_str!("../../recorded/by-hand/v1.7.json")).await;
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
    let stage = taken_over(include_str!("../../recorded/by-hand/v1.4.json")).await;
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
        include_str!("../../recorded/by-hand/v1.7.json"),
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
        include_str!("../../recorded/by-hand/v1.7.json"),
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
    let recorded = include_str!("../../recorded/by-hand/daemon-v1.6.json");
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
