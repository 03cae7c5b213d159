use super::*;
use crate::{
    View,
    pools::tests::{lease, node, pool},
};
use serde_json::json;

fn add(object: &mut Value, condition: Value) {
    condition::put(&mut object["status"], condition);
}

fn workload(name: &str, pool: &str, revision: &str, [desired, updated, ready]: [i64; 3]) -> Value {
    json!({"kind": "Deployment",
        "metadata": {"namespace": "shop", "name": name, "generation": 2, "labels": {labels::WORKLOAD_POOL: pool,
            labels::CONTROLLER_REVISION_HASH: revision}, "ownerReferences": [{"uid": "u", "controller": true}]},
        "spec": {"replicas": desired, "selector": {"matchLabels": {"app": "web", labels::WORKLOAD_POOL: pool}},
            "template": {"spec": {"containers": [{"name": "c", "image": format!("web:{pool}")}]}}},
        "status": {"observedGeneration": 2, "updatedReplicas": updated, "readyReplicas": ready}})
}

fn pod(name: &str, node: &str, pool: &str, ready: &str, image: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "web", labels::WORKLOAD_POOL: pool}, "ownerReferences": [{"uid": "u", "controller": true}]},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": image}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
}

fn observed() -> AppObserved {
    let mut broken = pod("web-b-2", "b-1", "b", "False", "web:b");
    broken["status"]["containerStatuses"] =
        json!([{"name": "c", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]);
    let mut stuck = workload("web-c-x", "c", "web-2", [1, 1, 0]);
    stuck["status"]["conditions"] = json!([{"type": "Progressing", "status": "False", "message": "ReplicaSet \"x\" has timed out progressing."}]);
    let mut other = workload("other", "a", "other-1", [1, 1, 1]);
    other["metadata"]["ownerReferences"][0]["uid"] = json!("v");
    AppObserved {
        kind: Kind::YurtAppSet,
        object: json!({"metadata": {"namespace": "shop", "name": "web", "uid": "u", "generation": 3},
            "spec": {"pools": ["a", "gone"], "nodepoolSelector": {"matchLabels": {"region": "east"}},
                "workload": {"workloadTemplate": {"deploymentTemplate": {"spec": {"selector": {"matchLabels": {"app": "web"}}}}}}},
            "status": {"currentRevision": "web-2", "observedGeneration": 3, "conditions": [
                {"type": "AppReady", "status": "False", "reason": "NotAllWorkloadsReady", "message": "1 of 4"},
                {"type": "PoolFound", "status": "True", "reason": "FindPools"}]}}),
        workloads: vec![
            workload("web-a-x", "a", "web-1", [2, 2, 2]),
            workload("web-b-x", "b", "web-2", [3, 3, 1]),
            stuck,
            workload("web-old-x", "old", "web-1", [1, 1, 1]),
            other,
        ],
        pods: vec![
            pod("web-b-1", "b-1", "b", "True", "web:b"),
            broken,
            pod("web-b-3", "b-2", "b", "False", "web:b"),
        ],
        pools: ["a", "b", "c", "d", "old"]
            .map(|name| {
                let mut pool = pool(name);
                if name != "old" {
                    pool["metadata"]["labels"] = json!({"region": "east"});
                }
                pool
            })
            .into(),
        nodes: vec![node("b-1", "b", "True"), node("b-2", "b", "True")],
        leases: Leases::from([lease("b-2", "2026-11-22T09:59:58Z", true)]),
        unseen: Vec::new(),
    }
}

#[test]
fn a_set_is_told_pool_by_pool() {
    assert_eq!(
        observed().judge().text(),
        "\
YurtAppSet shop/web

POOL   WORKLOAD    DESIRED   READY   UPDATED   REVISION   PHASE      IMAGES
a      web-a-x     2         2       2         1          Waiting    web:a
b      web-b-x     3         1       3         2          NotReady   web:b
c      web-c-x     1         0       1         2          Failed     web:c
d      -           0         0       0         -          Missing    -
gone   -           0         0       0         -          NoPool     -
old    web-old-x   1         1       1         1          Waiting    web:old

b: 1 pod on nodes that are away; 1 pod: ImagePullBackOff of container c
c: ReplicaSet \"x\" has timed out progressing.
d: no workload yet: see the conditions, and events of the set
gone: there is no NodePool gone
old: the set does not select this pool any more

AppReady=False NotAllWorkloadsReady: 1 of 4
"
    );
}

#[test]
fn what_the_manager_says_of_a_pool_counts() {
    let mut observed = observed();
    observed.object["status"]["pools"] = json!([
        {"pool": "a", "phase": "Ready", "replicas": 2},
        {"pool": "c", "phase": "Waiting", "message": "after pool b"},
        {"pool": "d", "phase": "Failed", "message": "patch 0: no such path"}]);
    let text = observed.judge().text();
    for part in [
        "a      web-a-x     2         2       2         1          Ready ",
        "c: after pool b; ReplicaSet",
        "d: patch 0: no such path",
        "b: 1 pod on nodes",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn phases_follow_what_a_workload_says() {
    let of = |numbers, current| Phase::of(&workload("w", "a", "r", numbers), current);
    assert_eq!(of([2, 2, 2], true), Phase::Ready);
    assert_eq!(of([0, 0, 0], true), Phase::Empty);
    assert_eq!(of([2, 1, 2], true), Phase::Updating);
    assert_eq!(of([2, 2, 1], true), Phase::NotReady);
    assert_eq!(of([2, 2, 2], false), Phase::Waiting);
    let mut unseen = workload("w", "a", "r", [1, 1, 1]);
    unseen["metadata"]["generation"] = json!(3);
    assert_eq!(Phase::of(&unseen, true), Phase::Updating);
    let mut paused = workload("w", "a", "r", [2, 1, 2]);
    paused["spec"]["paused"] = json!(true);
    assert_eq!(Phase::of(&paused, true), Phase::Paused);
    paused["metadata"]["deletionTimestamp"] = json!("2026-11-22T10:00:00Z");
    assert_eq!(Phase::of(&paused, true), Phase::Deleting);
}

#[test]
fn what_is_on_every_node_is_told_by_the_pools_of_the_nodes() {
    let mut due = pod("agent-1", "b-1", "b", "True", "web:1");
    add(
        &mut due,
        json!({"type": "PodNeedUpgrade", "status": "True"}),
    );
    let mut new = pod("agent-2", "b-2", "b", "True", "web:2");
    add(
        &mut new,
        json!({"type": "PodNeedUpgrade", "status": "False"}),
    );
    let app = AppObserved {
        kind: Kind::DaemonSet,
        object: json!({"metadata": {"namespace": "kube-system", "name": "agent", "uid": "u",
                "annotations": {annotations::UPDATE_STRATEGY: "OTA"}},
            "spec": {"updateStrategy": {"type": "OnDelete"}, "template": {"spec": {"containers": [{"image": "web:2"}]}}}}),
        pods: vec![due, new],
        ..observed()
    };
    assert_eq!(
        app.judge().text(),
        "\
DaemonSet kube-system/agent, strategy OTA

POOL   NODES   READY   UPDATED   PHASE     IMAGES
b      2       2       1         Waiting   web:1 web:2
"
    );
    let mirror = |name: &str| {
        let mut pod = pod(name, "b-1", "b", "True", "web:2");
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.source": "file"});
        pod
    };
    let app = AppObserved {
        kind: Kind::YurtStaticSet,
        object: json!({"metadata": {"namespace": "kube-system", "name": "nginx"},
            "spec": {"upgradeStrategy": {"type": "AdvancedRollingUpdate"}, "template": {"spec": {"containers": [{"image": "web:2"}]}}}}),
        pods: vec![mirror("nginx-b-1"), mirror("other-nginx-b-1")],
        ..observed()
    };
    assert_eq!(
        app.judge().text(),
        "\
YurtStaticSet kube-system/nginx, strategy AdvancedRollingUpdate

POOL   NODES   READY   UPDATED   PHASE   IMAGES
b      1       1       1         Ready   web:2
"
    );
}

#[test]
fn names_may_say_their_kind() {
    let parse = |text: &str| text.parse::<Name>();
    assert_eq!(parse("web").map(|name| name.kind), Ok(None));
    assert_eq!(
        parse("yas/web").map(|name| name.kind),
        Ok(Some(Kind::YurtAppSet))
    );
    assert_eq!(
        parse("daemonsets/web").map(|name| name.kind),
        Ok(Some(Kind::DaemonSet))
    );
    for wrong in ["", "deploy/web", "yas/", "a/b/c"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_pods_of_an_app_are_asked_for_by_its_selector() {
    assert_eq!(selector(&observed().object).as_deref(), Some("app=web"));
    let old =
        json!({"spec": {"selector": {"matchLabels": {"app": "old"}}, "workloadTemplate": {}}});
    assert_eq!(selector(&old).as_deref(), Some("app=old"));
}
