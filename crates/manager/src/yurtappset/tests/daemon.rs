use super::*;
use yurt_controller::collections::{YURT_APP_DAEMONS, YURT_APP_OVERRIDERS};

#[tokio::test]
async fn a_daemon_is_in_every_pool_of_its_selector() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["a", "b"]).await;
    let pool = |name: &str| NODE_POOLS.object_path(&yurt_controller::Key::new("", name));
    let tainted =
        json!({"spec": {"taints": [{"key": "edge", "value": "x", "effect": "NoSchedule"}]}});
    change(&stage, &pool("a"), &tainted).await;
    let mut template = template("web:1");
    template["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "x", "operator": "Exists"}]}]}}});
    let daemon = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
        "nodepoolSelector": {"matchLabels": {"nodepool.openyurt.io/type": "edge"}}, "workloadTemplate": {"deploymentTemplate": template}}});
    stage.create(&path(&YURT_APP_DAEMONS, ""), daemon).await;
    let daemon = path(&YURT_APP_DAEMONS, "web");
    let told = stage
        .until(&daemon, |d| {
            condition::holds(&d["status"], "WorkLoadUpdated")
                && d["status"]["workloadSummary"]
                    .as_array()
                    .is_some_and(|all| {
                        all.len() == 2 && all.iter().all(|one| one["readyReplicas"] == 2)
                    })
        })
        .await;
    let status = &told["status"];
    assert_eq!(status["nodepools"], json!(["a", "b"]));
    assert_eq!(status["templateType"], "Deployment");
    assert!(
        condition::holds(status, "WorkLoadProvisioned")
            && !condition::holds(status, "WorkLoadFailure")
    );
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    let a = of_pool(&list, "a").expect("a");
    let pods = &a["spec"]["template"]["spec"];
    assert_eq!(
        pods["tolerations"],
        json!([{"key": "edge", "operator": "Exists", "effect": "NoSchedule"}])
    );
    assert_eq!(
        pods["nodeSelector"],
        json!({"apps.openyurt.io/nodepool": "a"})
    );
    assert!(
        pods["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            .is_null()
    );
    assert_eq!(a["metadata"]["labels"]["app"], "web");
    assert!(a["metadata"]["labels"]["apps.openyurt.io/ref-yurtappset"].is_null());
    // A taint that goes restarts nobody, one that comes is tolerated.
    change(&stage, &pool("a"), &json!({"spec": {"taints": []}})).await;
    stage.quiet(&path(&DEPLOYMENTS, name(a))).await;
    let later = stage
        .kube
        .get(&path(&DEPLOYMENTS, name(a)))
        .await
        .expect("there");
    assert_eq!(later["spec"]["template"], a["spec"]["template"]);
    let b = name(of_pool(&list, "b").expect("b")).to_owned();
    change(&stage, &pool("b"), &tainted).await;
    stage
        .until(&path(&DEPLOYMENTS, &b), |b| {
            b["spec"]["template"]["spec"]["tolerations"][0]["key"] == "edge"
        })
        .await;
    // An overrider makes one pool different.
    let overrider = json!({"metadata": {"name": "o"}, "subject": {"apiVersion": "apps.openyurt.io/v1alpha1", "kind": "YurtAppDaemon", "name": "web"},
        "entries": [{"pools": ["*", "-a"], "items": [{"replicas": 1}, {"image": {"containerName": "web", "imageClaim": "web:b"}}],
            "patches": [{"operation": "add", "path": "/metadata/labels/in", "value": "{{nodepool}}"}]}]});
    stage
        .create(&path(&YURT_APP_OVERRIDERS, ""), overrider)
        .await;
    let b = stage
        .until(&path(&DEPLOYMENTS, &b), |b| image(b) == "web:b")
        .await;
    assert_eq!(
        (&b["spec"]["replicas"], &b["metadata"]["labels"]["in"]),
        (&json!(1), &json!("b"))
    );
    stage
        .until(&daemon, |d| d["status"]["overriderRef"] == "o")
        .await;
    let later = stage
        .kube
        .get(&path(&DEPLOYMENTS, name(a)))
        .await
        .expect("there");
    assert_eq!(later["spec"]["template"], a["spec"]["template"]);
    stage
        .kube
        .delete(&path(&YURT_APP_OVERRIDERS, "o"))
        .await
        .expect("deleted");
    stage
        .until(&path(&DEPLOYMENTS, name(&b)), |b| {
            image(b) == "web:1" && b["spec"]["replicas"] == 2
        })
        .await;
}
