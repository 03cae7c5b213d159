use super::*;
use crate::stage::Stage;
use yurt_controller::kube::KubeError;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn budget(spec: Value) -> Value {
    let mut budget = json!({"metadata": {"name": "b", "generation": 2}, "spec": spec});
    budget["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
    budget
}

fn pods(ready: usize, unready: usize) -> Vec<Arc<Value>> {
    let pod = |n: usize, status: &str| {
        Arc::new(
            json!({"metadata": {"name": format!("p{n}"), "labels": {"app": "web"}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}}),
        )
    };
    let first = (0..ready).map(|n| pod(n, "True"));
    first
        .chain((ready..ready + unready).map(|n| pod(n, "False")))
        .collect()
}

#[test]
fn what_may_go() {
    let expected = |replicas| Expected {
        replicas,
        ..Expected::default()
    };
    for (spec, there, expected, numbers) in [
        // expectedPods, desiredHealthy, currentHealthy, disruptionsAllowed
        (
            json!({"minAvailable": 2}),
            pods(3, 0),
            expected(0),
            (3, 2, 3, 1),
        ),
        (
            json!({"minAvailable": 2}),
            pods(1, 2),
            expected(0),
            (3, 2, 1, 0),
        ),
        (
            json!({"minAvailable": "50%"}),
            pods(5, 0),
            expected(5),
            (5, 3, 5, 2),
        ),
        (
            json!({"maxUnavailable": 1}),
            pods(3, 0),
            expected(3),
            (3, 2, 3, 1),
        ),
        (
            json!({"maxUnavailable": 1}),
            pods(2, 1),
            expected(3),
            (3, 2, 2, 0),
        ),
        (
            json!({"maxUnavailable": "30%"}),
            pods(3, 0),
            expected(3),
            (3, 2, 3, 1),
        ),
        (
            json!({"maxUnavailable": 5}),
            pods(3, 0),
            expected(3),
            (3, 0, 3, 3),
        ),
        (
            json!({"minAvailable": 0}),
            pods(0, 0),
            expected(0),
            (0, 0, 0, 0),
        ),
    ] {
        let status = status(&budget(spec.clone()), &there, &expected, Map::new(), at(5));
        let number = |field: &str| status[field].as_i64().unwrap();
        let found = (
            number("expectedPods"),
            number("desiredHealthy"),
            number("currentHealthy"),
            number("disruptionsAllowed"),
        );
        assert_eq!(found, numbers, "{spec}");
        let condition = &status["conditions"][0];
        let holds = if numbers.3 > 0 { "True" } else { "False" };
        assert_eq!(condition["status"], holds);
        assert_eq!(condition["observedGeneration"], 2);
        assert_eq!(condition["message"], "");
    }
}

#[test]
fn evictions_on_their_way_are_counted_until_they_are_overdue() {
    let mut budget = budget(json!({"minAvailable": 1}));
    budget["status"] =
        json!({"disruptedPods": {"p0": "1970-01-01T00:00:10Z", "gone": "1970-01-01T00:00:10Z"}});
    let there = pods(3, 0);
    let (pending, overdue) = evictions(&budget, &there, at(20));
    assert_eq!(
        Value::from(pending.clone()),
        json!({"p0": "1970-01-01T00:00:10Z"})
    );
    assert!(overdue.is_empty());
    let status = status(&budget, &there, &Expected::default(), pending, at(20));
    assert_eq!(status["currentHealthy"], 2);
    assert_eq!(status["disruptionsAllowed"], 1);
    let (pending, overdue) = evictions(&budget, &there, at(131));
    assert!(pending.is_empty());
    assert_eq!(overdue.len(), 1);
}

#[test]
fn a_transition_is_a_change_of_the_status() {
    let mut budget = budget(json!({"minAvailable": 1}));
    let expected = Expected::default();
    budget["status"] = status(&budget, &pods(2, 0), &expected, Map::new(), at(1));
    let later = status(&budget, &pods(2, 0), &expected, Map::new(), at(9));
    assert_eq!(later, budget["status"], "nothing changed");
    let failed = failed(&budget, "found no controllers", at(9));
    assert_eq!(failed["disruptionsAllowed"], 0);
    assert_eq!(failed["conditions"][0]["reason"], "SyncFailed");
    assert_eq!(
        failed["conditions"][0]["lastTransitionTime"],
        "1970-01-01T00:00:09Z"
    );
}

#[test]
fn a_selector_is_printed_as_go_does() {
    let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["a", "b"]}]});
    assert_eq!(
        printed(&selector),
        "&LabelSelector{MatchLabels:map[string]string{app: web,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:k,Operator:In,Values:[a b],},},}"
    );
}

async fn evict(stage: &Stage, pod: &str) -> Result<Value, KubeError> {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"}});
    let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
    stage.kube.create(&path, &eviction).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_are_allowed_one_by_one() {
    let stage = Stage::start("disruption-controller").await;
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let set = stage
        .create("/apis/apps/v1/namespaces/default/replicasets", set)
        .await;
    let owner = claim::reference(&REPLICA_SETS, &set);
    for name in ["a", "b"] {
        let pod = json!({"metadata": {"name": name, "labels": {"app": "web"}, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        stage.create("/api/v1/namespaces/default/pods", pod).await;
        stage.report("default", name, "Running", true).await;
    }
    let budget = json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    stage
        .create(
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            budget,
        )
        .await;
    let path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/b";
    stage
        .until(path, |b| b["status"]["disruptionsAllowed"] == 1)
        .await;
    stage.quiet(path).await;
    evict(&stage, "a").await.expect("one may go");
    stage
        .until(path, |b| {
            b["status"]["disruptionsAllowed"] == 0 && b["status"]["currentHealthy"] == 1
        })
        .await;
    let refused = evict(&stage, "b").await.expect_err("not the last one");
    assert_eq!(refused.code(), Some(429));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_what_cannot_be_scaled_fail_the_budget() {
    let stage = Stage::start("disruption-controller").await;
    let daemons = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let daemons = stage
        .create("/apis/apps/v1/namespaces/default/daemonsets", daemons)
        .await;
    let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": daemons["metadata"]["uid"], "controller": true});
    let pod = json!({"metadata": {"name": "a", "labels": {"app": "web"}, "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    stage.create("/api/v1/namespaces/default/pods", pod).await;
    let budget = json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    stage
        .create(
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            budget,
        )
        .await;
    let failed = stage
        .until(
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets/b",
            |b| b["status"]["conditions"][0]["reason"] == "SyncFailed",
        )
        .await;
    assert_eq!(
        failed["status"]["conditions"][0]["message"],
        "daemonsets.apps does not implement the scale subresource"
    );
}
