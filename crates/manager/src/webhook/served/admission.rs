//! What is completed, and what is refused.

use super::*;

#[tokio::test]
async fn pools_are_completed_judged_and_kept_while_they_have_nodes() {
    let scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    let pool = stage
        .create(POOLS, json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "a"},
            "spec": {"interConnectivity": true, "enableLeaderElection": true, "leaderReplicas": 2}}))
        .await;
    assert_eq!(pool["metadata"]["labels"][labels::NODE_POOL_TYPE], "edge");
    assert_eq!(
        pool["spec"]["poolScopeMetadata"][1]["resource"],
        "endpointslices"
    );
    let wrong = json!({"apiVersion": "apps.openyurt.io/v1beta1", "kind": "NodePool", "metadata": {"name": "b"},
        "spec": {"type": "Cloud", "hostNetwork": true}});
    // Through an older version, where the annotation stands for the field.
    let old = POOLS.replace("v1beta2", "v1beta1");
    let why = scene.refused(&old, &wrong).await;
    assert!(why.contains("spec.hostNetwork: a Cloud pool"), "{why}");
    let path = format!("{POOLS}/a");
    let why = refusal(
        stage
            .kube
            .merge(&path, &json!({"spec": {"type": "Cloud"}}))
            .await,
    );
    assert!(
        why.contains("403") && why.contains("spec.type cannot be changed"),
        "{why}"
    );
    // A client of an older version that builds the object anew, as controllers do.
    let revision = &pool["metadata"]["resourceVersion"];
    let anew = json!({"apiVersion": "apps.openyurt.io/v1beta1", "kind": "NodePool",
        "metadata": {"name": "a", "resourceVersion": revision}, "spec": {"type": "Edge", "labels": {"x": "y"}}});
    stage
        .kube
        .replace(&format!("{old}/a"), &anew)
        .await
        .expect("replaced");
    let now = stage.kube.get(&path).await.expect("there");
    let mut wanted = pool["spec"].clone();
    wanted["labels"] = json!({"x": "y"});
    assert_eq!(now["spec"], wanted, "what v1beta1 cannot say is as it was");
    // It has a node.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {labels::DESIRED_NODE_POOL: "a"}}});
    let node = stage.create("/api/v1/nodes", node).await;
    assert_eq!(node["metadata"]["labels"][labels::NODE_POOL], "a");
    let why = refusal(stage.kube.delete(&path).await);
    assert!(why.contains("pool a still has nodes (n1)"), "{why}");
    let leave =
        json!({"metadata": {"labels": {labels::DESIRED_NODE_POOL: null, labels::NODE_POOL: null}}});
    stage
        .kube
        .merge("/api/v1/nodes/n1", &leave)
        .await
        .expect("it leaves");
    stage.kube.delete(&path).await.expect("deleted");
}

#[tokio::test]
async fn nodes_and_pods_follow_their_pools() {
    let scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    let host = json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "host"}, "spec": {"hostNetwork": true}});
    stage.create(POOLS, host).await;
    // A pool that there is not keeps no kubelet from its node.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {labels::NODE_POOL: "gone"}}});
    stage.create("/api/v1/nodes", node).await;
    let path = "/api/v1/nodes/n1";
    let label = |pool: Value| json!({"metadata": {"labels": {labels::NODE_POOL: pool}}});
    let why = refusal(stage.kube.merge(path, &label("host".into())).await);
    assert!(why.contains("take the node out of its pool first"), "{why}");
    stage
        .kube
        .merge(path, &label(Value::Null))
        .await
        .expect("it leaves");
    let node = stage
        .kube
        .merge(path, &label("host".into()))
        .await
        .expect("it enters");
    assert_eq!(node["metadata"]["labels"][labels::HOST_NETWORK], "true");
    let node = stage
        .kube
        .merge(path, &label(Value::Null))
        .await
        .expect("it leaves");
    assert!(
        node["metadata"]["labels"]
            .get(labels::HOST_NETWORK)
            .is_none(),
        "{node}"
    );
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": {annotations::EXCLUDE_HOST_NETWORK_POOL: "true"}},
        "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let pod = stage.create("/api/v1/namespaces/default/pods", pod).await;
    let required =
        &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(
        required["nodeSelectorTerms"][0]["matchExpressions"][0]["key"],
        labels::HOST_NETWORK
    );
}

#[tokio::test]
async fn sets_are_completed_and_judged() {
    let scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    let apps = |version: &str, plural: &str| {
        format!("/apis/apps.openyurt.io/{version}/namespaces/default/{plural}")
    };
    let object = |version: &str, kind: &str, name: &str, body: Value| {
        let mut object = body;
        object["apiVersion"] = format!("apps.openyurt.io/{version}").into();
        object["kind"] = kind.into();
        object["metadata"] = json!({"name": name});
        object
    };
    let sets = apps("v1beta1", "yurtappsets");
    let spec = json!({"spec": {"pools": ["a"], "workload": {"workloadTemplate": web(), "workloadTweaks": [
        {"pools": ["a"], "tweaks": {"patches": [{"path": "/spec/replicas", "operation": "replace", "value": 5}]}}]}}});
    stage
        .create(&sets, object("v1beta1", "YurtAppSet", "web", spec.clone()))
        .await;
    let mut wrong = spec;
    wrong["spec"]["workload"]["workloadTweaks"][0]["tweaks"]["patches"][0]["value"] = "five".into();
    let why = scene
        .refused(&sets, &object("v1beta1", "YurtAppSet", "bad", wrong))
        .await;
    assert!(
        why.contains("422") && why.contains("workloadTweaks[0]"),
        "{why}"
    );
    // The older version is judged alike.
    let mut template = web();
    template["deploymentTemplate"]["spec"]["template"]["spec"]["containers"] = json!([]);
    let older = |template: Value| json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "workloadTemplate": template, "topology": {"pools": []}}});
    let old_sets = apps("v1alpha1", "yurtappsets");
    let why = scene
        .refused(
            &old_sets,
            &object("v1alpha1", "YurtAppSet", "old", older(template)),
        )
        .await;
    assert!(why.contains("containers: at least one"), "{why}");
    let old = stage
        .create(
            &old_sets,
            object("v1alpha1", "YurtAppSet", "old", older(web())),
        )
        .await;
    assert_eq!(old["apiVersion"], "apps.openyurt.io/v1alpha1");
    // Daemons.
    let daemons = apps("v1alpha1", "yurtappdaemons");
    let daemon = json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "nodepoolSelector": {}, "workloadTemplate": web()}});
    stage
        .create(
            &daemons,
            object("v1alpha1", "YurtAppDaemon", "web", daemon.clone()),
        )
        .await;
    let mut wrong = daemon;
    wrong["spec"]["selector"] = json!({"matchLabels": {"app": "other"}});
    let why = scene
        .refused(&daemons, &object("v1alpha1", "YurtAppDaemon", "bad", wrong))
        .await;
    assert!(why.contains("spec.selector: does not match"), "{why}");
    // Overriders.
    let overriders = apps("v1alpha1", "yurtappoverriders");
    let overrider = json!({"subject": {"kind": "YurtAppSet", "name": "web"}, "entries": []});
    stage
        .create(
            &overriders,
            object("v1alpha1", "YurtAppOverrider", "one", overrider.clone()),
        )
        .await;
    let why = scene
        .refused(
            &overriders,
            &object("v1alpha1", "YurtAppOverrider", "two", overrider),
        )
        .await;
    assert!(why.contains("has the overrider one already"), "{why}");
    let why = refusal(stage.kube.delete(&format!("{overriders}/one")).await);
    assert!(why.contains("YurtAppSet web is still there"), "{why}");
    stage
        .kube
        .delete(&format!("{sets}/web"))
        .await
        .expect("deleted");
    stage
        .kube
        .delete(&format!("{overriders}/one"))
        .await
        .expect("deleted");
    // Static sets.
    let statics = apps("v1alpha1", "yurtstaticsets");
    let pods = json!({"spec": {"containers": [{"name": "web", "image": "web:1"}]}});
    let set = stage
        .create(
            &statics,
            object(
                "v1alpha1",
                "YurtStaticSet",
                "web",
                json!({"spec": {"staticPodManifest": "web", "template": pods}}),
            ),
        )
        .await;
    assert_eq!(set["spec"]["upgradeStrategy"]["maxUnavailable"], "10%");
    assert_eq!(set["spec"]["template"]["metadata"]["namespace"], "default");
    let why = scene
        .refused(
            &statics,
            &object(
                "v1alpha1",
                "YurtStaticSet",
                "bad",
                json!({"spec": {"staticPodManifest": "../x", "template": pods}}),
            ),
        )
        .await;
    assert!(why.contains("spec.staticPodManifest"), "{why}");
}
