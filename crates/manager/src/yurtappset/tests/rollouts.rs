use super::*;

fn images(list: &Value, pools: &[&str]) -> Vec<String> {
    let image = |pool: &&str| of_pool(list, pool).map_or(String::new(), |d| image(d).to_owned());
    pools.iter().map(image).collect()
}

fn newer(image: &str) -> Value {
    json!({"spec": {"workload": {"workloadTemplate": {"deploymentTemplate": template(image)}}}})
}

#[tokio::test]
async fn pools_are_updated_in_order_behind_a_health_gate() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["a", "b", "c"]).await;
    let rollout = json!({"rollout": {"order": ["c"], "maxParallel": 1}});
    stage.create(&sets(""), set(&rollout, &json!([]))).await;
    ready(&stage, 3).await;
    // One that cannot start stays the only one.
    change(&stage, &sets("web"), &newer("web:bad")).await;
    let deployments = path(&DEPLOYMENTS, "");
    let told = stage
        .until(&sets("web"), |set| {
            phase(set, "c") == "Updating"
                && phase(set, "a") == "Waiting"
                && phase(set, "b") == "Waiting"
        })
        .await;
    assert_eq!(reason(&told, "AppUpdated"), "RolloutInProgress");
    stage.quiet(&sets("web")).await;
    let list = stage.kube.get(&deployments).await.expect("list");
    assert_eq!(
        images(&list, &["a", "b", "c"]),
        ["web:1", "web:1", "web:bad"]
    );
    // What waits is still scaled.
    let more = json!({"spec": {"workload": {"workloadTweaks": [{"pools": ["a"], "tweaks": {"replicas": 4}}]}}});
    change(&stage, &sets("web"), &more).await;
    let list = stage
        .until(&deployments, |list| {
            of_pool(list, "a").is_some_and(|a| a["spec"]["replicas"] == 4)
        })
        .await;
    assert_eq!(images(&list, &["a"]), ["web:1"]);
    // Its pool vanishes: the next one's turn.
    stage
        .kube
        .delete("/apis/apps.openyurt.io/v1beta2/nodepools/c")
        .await
        .expect("deleted");
    stage
        .until(&deployments, |list| {
            images(list, &["a", "b", "c"]) == ["web:bad", "web:1", ""]
        })
        .await;
    // A good one reaches all.
    change(&stage, &sets("web"), &newer("web:3")).await;
    ready(&stage, 2).await;
    let list = stage.kube.get(&deployments).await.expect("list");
    assert_eq!(images(&list, &["a", "b"]), ["web:3", "web:3"]);
}

#[tokio::test]
async fn a_rollout_is_paused_and_goes_on() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["a", "b"]).await;
    let rollout = json!({"rollout": {"paused": true}});
    stage.create(&sets(""), set(&rollout, &json!([]))).await;
    ready(&stage, 2).await;
    change(&stage, &sets("web"), &newer("web:2")).await;
    let told = stage
        .until(&sets("web"), |set| {
            reason(set, "AppUpdated") == "RolloutPaused"
        })
        .await;
    assert_eq!(
        (phase(&told, "a"), phase(&told, "b")),
        ("Waiting", "Waiting")
    );
    change(
        &stage,
        &sets("web"),
        &json!({"spec": {"rollout": {"paused": null}}}),
    )
    .await;
    ready(&stage, 2).await;
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    assert_eq!(images(&list, &["a", "b"]), ["web:2", "web:2"]);
}

#[tokio::test]
async fn what_does_not_become_ready_is_taken_back() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["a", "b"]).await;
    let rollout = json!({"rollout": {"maxParallel": 1, "progressDeadlineSeconds": 1, "onFailure": "Rollback"}});
    stage.create(&sets(""), set(&rollout, &json!([]))).await;
    let first = ready(&stage, 2).await;
    change(&stage, &sets("web"), &newer("web:bad")).await;
    let told = stage
        .until(&sets("web"), |set| {
            reason(set, "AppUpdated") == "RolledBack" && set["status"]["readyWorkloads"] == 2
        })
        .await;
    let list = stage
        .until(&path(&DEPLOYMENTS, ""), |list| {
            images(list, &["a", "b"]) == ["web:1", "web:1"]
        })
        .await;
    assert_eq!(
        *revision(of_pool(&list, "a").expect("a")),
        first["status"]["currentRevision"]
    );
    assert_ne!(
        told["status"]["currentRevision"],
        first["status"]["currentRevision"]
    );
    stage
        .until("/api/v1/namespaces/default/events", |list| {
            let mut events = list["items"].as_array().into_iter().flatten();
            events.any(|event| event["reason"] == "RolloutFailed")
        })
        .await;
    // Another change is tried.
    let patient = json!({"spec": {"rollout": {"progressDeadlineSeconds": 600}}});
    change(&stage, &sets("web"), &patient).await;
    change(&stage, &sets("web"), &newer("web:3")).await;
    ready(&stage, 2).await;
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    assert_eq!(images(&list, &["a", "b"]), ["web:3", "web:3"]);
}
