use super::*;
use crate::stage::Stage;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn set(replicas: usize) -> Value {
    json!({"metadata": {"name": "web", "generation": 3}, "spec": {"replicas": replicas,
        "template": {"metadata": {"labels": {"app": "web"}}}}})
}

/// A pod named by what makes it special.
fn pod_with(name: &str, change: impl Fn(&mut Value)) -> Arc<Value> {
    let mut pod = json!({"metadata": {"name": name, "uid": name, "creationTimestamp": "1970-01-01T00:00:00Z",
        "labels": {"app": "web"}},
        "spec": {"nodeName": "n"}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]}});
    change(&mut pod);
    Arc::new(pod)
}

fn names(pods: &[Arc<Value>]) -> Vec<&str> {
    pods.iter()
        .filter_map(|p| p["metadata"]["name"].as_str())
        .collect()
}

#[test]
fn the_pods_that_are_missed_least_go_first() {
    let pods = [
        pod_with("steady", |_| {}),
        pod_with("restarted", |p| {
            p["status"]["containerStatuses"] = json!([{"restartCount": 3}])
        }),
        pod_with("newly-ready", |p| {
            p["status"]["conditions"][0]["lastTransitionTime"] = "1970-01-01T00:59:00Z".into();
        }),
        pod_with("crowded", |p| p["spec"]["nodeName"] = "m".into()),
        pod_with("cheap", |p| {
            p["metadata"]["annotations"] =
                json!({"controller.kubernetes.io/pod-deletion-cost": "-5"});
        }),
        pod_with("unready", |p| {
            p["status"]["conditions"][0]["status"] = "False".into()
        }),
        pod_with("unknown", |p| p["status"]["phase"] = "Unknown".into()),
        pod_with("pending", |p| p["status"]["phase"] = "Pending".into()),
        pod_with("unassigned", |p| {
            p["spec"] = json!({});
        }),
    ];
    let crowds = HashMap::from([("n".to_owned(), 1), ("m".to_owned(), 2)]);
    let Plan::Delete(going) = plan(&set(0), &pods, &crowds, at(3600)) else {
        panic!("nothing to delete");
    };
    assert_eq!(
        names(&going),
        [
            "unassigned",
            "pending",
            "unknown",
            "unready",
            "cheap",
            "crowded",
            "newly-ready",
            "restarted",
            "steady"
        ]
    );
}

proptest! {
    #[test]
    fn exactly_the_difference_is_created_or_deleted(wanted in 0usize..1200, there in 0usize..20) {
        let pods: Vec<_> = (0..there).map(|n| pod_with(&n.to_string(), |_| {})).collect();
        match plan(&set(wanted), &pods, &HashMap::new(), at(0)) {
            Plan::Nothing => prop_assert_eq!(wanted, there),
            Plan::Create(count) => {
                prop_assert!(count <= batch::MOST);
                prop_assert_eq!(count, (wanted - there).min(batch::MOST));
            }
            Plan::Delete(pods) => prop_assert_eq!(pods.len(), there - wanted),
        }
    }
}

#[test]
fn a_set_that_is_being_deleted_does_nothing() {
    let mut set = set(3);
    set["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(plan(&set, &[], &HashMap::new(), at(0)), Plan::Nothing);
}

#[test]
fn the_status_counts_pods() {
    let mut set = set(4);
    set["spec"]["minReadySeconds"] = 100.into();
    let pods = [
        pod_with("a", |_| {}),
        pod_with("b", |p| {
            p["status"]["conditions"][0]["lastTransitionTime"] = "1970-01-01T00:00:50Z".into();
        }),
        pod_with("c", |p| {
            p["status"]["conditions"] = json!([]);
            p["metadata"]["labels"] = json!({"other": "label"});
        }),
    ];
    let counted = status(&REPLICA_SET, &set, &pods, 1, None, at(100));
    assert_eq!(
        counted,
        json!({"replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2, "availableReplicas": 1,
            "terminatingReplicas": 1, "observedGeneration": 3})
    );
    let empty = status(&REPLICATION_CONTROLLER, &set, &[], 0, None, at(100));
    assert_eq!(empty, json!({"replicas": 0, "observedGeneration": 3}));
}

#[test]
fn trouble_is_told_and_goes() {
    let mut set = set(1);
    let trouble = ("FailedCreate", "pods \"x\" is forbidden".to_owned());
    set["status"] = status(&REPLICA_SET, &set, &[], 0, Some(&trouble), at(5));
    let condition = &set["status"]["conditions"][0];
    assert_eq!(
        *condition,
        json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
            "message": "pods \"x\" is forbidden", "lastTransitionTime": "1970-01-01T00:00:05Z"})
    );
    let again = status(&REPLICA_SET, &set, &[], 0, Some(&trouble), at(9));
    assert_eq!(again, set["status"], "told once");
    let over = status(&REPLICA_SET, &set, &[], 0, None, at(9));
    assert!(over.get("conditions").is_none());
}

const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";

fn manifest(replicas: usize) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_go_and_are_adopted_and_released() {
    let stage = Stage::start("replicaset-controller").await;
    let orphan = json!({"metadata": {"name": "orphan", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    stage.create(PODS_PATH, orphan).await;
    stage.create(SETS, manifest(3)).await;
    let pods = stage.until(PODS_PATH, |list| items(list).len() == 3).await;
    let adopted = stage
        .until(&format!("{PODS_PATH}/orphan"), |p| {
            controller_of(p).is_some()
        })
        .await;
    assert_eq!(controller_of(&adopted).unwrap()["name"], "web");
    assert_eq!(controller_of(&adopted).unwrap()["blockOwnerDeletion"], true);
    for pod in items(&pods) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        assert!(name == "orphan" || (name.starts_with("web-") && name.len() == 9));
        stage.report("default", name, "Running", true).await;
    }
    let web = format!("{SETS}/web");
    let set = stage
        .until(&web, |set| set["status"]["availableReplicas"] == 3)
        .await;
    assert_eq!(set["status"]["fullyLabeledReplicas"], 3);
    assert_eq!(set["status"]["terminatingReplicas"], 0);
    assert_eq!(set["status"]["observedGeneration"], 1);
    stage.quiet(&web).await;

    // A pod whose label goes is released, and another takes its place.
    let patch = json!({"metadata": {"labels": {"app": "else"}}});
    stage
        .kube
        .merge(&format!("{PODS_PATH}/orphan"), &patch)
        .await
        .unwrap();
    stage
        .until(&format!("{PODS_PATH}/orphan"), |p| {
            controller_of(p).is_none()
        })
        .await;
    let pods = stage.until(PODS_PATH, |list| items(list).len() == 4).await;
    for pod in items(&pods) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        stage.report("default", name, "Running", true).await;
    }
    stage
        .until(&web, |set| set["status"]["availableReplicas"] == 3)
        .await;

    let scale = json!({"spec": {"replicas": 1}});
    stage
        .kube
        .merge(&format!("{web}/scale"), &scale)
        .await
        .unwrap();
    stage
        .until(&web, |set| set["status"]["replicas"] == 1)
        .await;
    stage.until(PODS_PATH, |list| items(list).len() == 2).await;
    let events = stage
        .until("/api/v1/namespaces/default/events", |list| {
            let count = |reason: &str| items(list).iter().filter(|e| e["reason"] == reason).count();
            count("SuccessfulCreate") == 3 && count("SuccessfulDelete") == 2
        })
        .await;
    let created = items(&events)
        .iter()
        .find(|e| e["reason"] == "SuccessfulCreate")
        .unwrap();
    assert_eq!(created["source"]["component"], "replicaset-controller");
    assert_eq!(created["involvedObject"]["kind"], "ReplicaSet");
    assert!(
        created["message"]
            .as_str()
            .unwrap()
            .starts_with("Created pod: web-")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_is_served_by_the_same_code() {
    let stage = Stage::start("replicationcontroller-controller").await;
    let mut rc = manifest(2);
    rc["spec"]["selector"] = json!({"app": "web"});
    let path = "/api/v1/namespaces/default/replicationcontrollers";
    stage.create(path, rc).await;
    let pods = stage.until(PODS_PATH, |list| items(list).len() == 2).await;
    assert_eq!(controller_of(&items(&pods)[0]).unwrap()["apiVersion"], "v1");
    let rc = stage
        .until(&format!("{path}/web"), |rc| rc["status"]["replicas"] == 2)
        .await;
    assert!(rc["status"].get("terminatingReplicas").is_none());
}
