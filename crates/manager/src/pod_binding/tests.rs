use super::*;
use crate::{stage::Stage, taint};
use proptest::prelude::*;
use yurt_api::names::annotations::DELEGATE_HEARTBEAT;

const PODS_PATH: &str = "/api/v1/namespaces/default/pods";

fn tolerating(taint: &str, seconds: Option<i64>) -> Value {
    let mut toleration = json!({"key": taint, "operator": "Exists", "effect": EFFECT});
    set_seconds(&mut toleration, seconds);
    toleration
}

fn pod_with(tolerations: Value) -> Value {
    json!({"metadata": {"uid": "u", "resourceVersion": "1"}, "spec": {"tolerations": tolerations}})
}

/// Applies a patch as the server does.
fn apply(p: &mut Value, patch: &Value) {
    for (key, value) in patch["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
    {
        p["metadata"]["annotations"][key] = value.clone();
    }
    if patch["spec"]["tolerations"].is_array() {
        p["spec"]["tolerations"] = patch["spec"]["tolerations"].clone();
    }
}

/// Changes a pod that is to be changed.
fn stay_as(p: &mut Value, stay: Stay) {
    let change = patch(p, stay).expect("a change");
    apply(p, &change);
}

#[test]
fn the_pods_own_seconds_are_saved_and_come_back() {
    let own = json!([{"key": "mine", "operator": "Exists"}, tolerating(NOT_READY, Some(300)), tolerating(UNREACHABLE, Some(10))]);
    let mut p = pod_with(own.clone());
    assert_eq!(patch(&p, Stay::Own), None);
    let change = patch(&p, Stay::For(7200)).expect("a change");
    assert_eq!(change["metadata"]["resourceVersion"], "1");
    apply(&mut p, &change);
    assert_eq!(
        p["spec"]["tolerations"][1],
        tolerating(NOT_READY, Some(7200))
    );
    assert_eq!(
        p["metadata"]["annotations"],
        json!({ORIGINAL_NOT_READY: "300", ORIGINAL_UNREACHABLE: "10"})
    );
    assert_eq!(patch(&p, Stay::For(7200)), None);
    let change = patch(&p, Stay::Forever).expect("a change");
    assert!(
        change["metadata"].get("annotations").is_none(),
        "what is saved stays"
    );
    apply(&mut p, &change);
    assert_eq!(p["spec"]["tolerations"][2], tolerating(UNREACHABLE, None));
    stay_as(&mut p, Stay::Own);
    assert_eq!(p["spec"]["tolerations"], own);
}

#[test]
fn what_a_pod_lacks_is_added_and_what_it_tolerates_for_ever_is_left() {
    let mut p = pod_with(Value::Null);
    stay_as(&mut p, Stay::Forever);
    let both = json!([tolerating(NOT_READY, None), tolerating(UNREACHABLE, None)]);
    assert_eq!(p["spec"]["tolerations"], both);
    // A toleration cannot be taken from a pod; none at all is none for no second.
    stay_as(&mut p, Stay::Own);
    assert_eq!(p["spec"]["tolerations"][0]["tolerationSeconds"], 0);
    for forever in [
        both,
        json!([{"operator": "Exists"}]),
        json!([{"operator": "Exists", "effect": EFFECT}]),
        json!([{"key": NOT_READY, "operator": "Exists"}, {"key": UNREACHABLE, "operator": "Exists"}]),
    ] {
        for stay in [Stay::For(60), Stay::Forever, Stay::Own] {
            assert_eq!(patch(&pod_with(forever.clone()), stay), None, "{forever}");
        }
    }
    // OpenYurt's annotations on a pod of before.
    let mut p = pod_with(json!([
        tolerating(NOT_READY, None),
        tolerating(UNREACHABLE, None)
    ]));
    p["metadata"]["annotations"] =
        json!({ORIGINAL_NOT_READY: "300", ORIGINAL_UNREACHABLE: "nonsense"});
    stay_as(&mut p, Stay::Own);
    assert_eq!(
        p["spec"]["tolerations"],
        json!([
            tolerating(NOT_READY, Some(300)),
            tolerating(UNREACHABLE, None)
        ])
    );
}

#[test]
fn a_part_of_a_second_counts_as_one() {
    let of = |text: &str| {
        let node = json!({"metadata": {"annotations": {AUTONOMY_DURATION: text}}});
        Stay::of(&Autonomy::of(&node))
    };
    assert_eq!(of("1h30m"), Stay::For(5400));
    assert_eq!(of("10ms"), Stay::For(1));
    assert_eq!(of("0s"), Stay::Forever);
    assert_eq!(of("-5m"), Stay::Forever);
    assert_eq!(of("soon"), Stay::Own);
}

fn tolerations() -> impl Strategy<Value = Value> {
    let seconds = prop_oneof![
        Just(Value::Null),
        (-5i64..1000).prop_map(Value::from),
        Just("x".into())
    ];
    let key = prop_oneof![Just(NOT_READY), Just(UNREACHABLE), Just("other"), Just("")];
    let effect = prop_oneof![Just(EFFECT), Just("NoSchedule"), Just("")];
    let one = (key, effect, seconds).prop_map(|(key, effect, seconds)| {
        json!({"key": key, "effect": effect, "operator": "Exists", "tolerationSeconds": seconds})
    });
    let list = prop::collection::vec(one, 0..5).prop_map(Value::from);
    prop_oneof![list, Just(Value::Null), Just("nonsense".into())]
}

proptest! {
    /// Whatever a pod says: one change is enough, other tolerations stay, none is taken away.
    #[test]
    fn any_pod_comes_to_rest(list in tolerations(), saved in prop::option::of("[0-9a-z]{0,4}"), stays in prop::collection::vec(0i64..3, 1..6)) {
        let mut p = pod_with(list);
        if let Some(saved) = saved {
            p["metadata"]["annotations"] = json!({ORIGINAL_NOT_READY: saved});
        }
        for stay in stays {
            let stay = match stay { 0 => Stay::Own, 1 => Stay::Forever, _ => Stay::For(60) };
            let before: Vec<Value> = items(&p["spec"]["tolerations"]).cloned().collect();
            if let Some(change) = patch(&p, stay) {
                apply(&mut p, &change);
            }
            prop_assert_eq!(patch(&p, stay), None);
            let after: Vec<Value> = items(&p["spec"]["tolerations"]).cloned().collect();
            prop_assert!(after.len() >= before.len());
            for (old, new) in before.iter().zip(&after) {
                prop_assert!(old == new || TAINTS.iter().any(|(taint, _)| is_about(old, taint)));
                prop_assert_eq!(&old["key"], &new["key"]);
            }
        }
    }
}

async fn annotate(stage: &Stage, node: &str, annotations: Value) {
    let patch = json!({"metadata": {"annotations": annotations}});
    let path = format!("/api/v1/nodes/{node}");
    stage.kube.merge(&path, &patch).await.expect("annotated");
}

fn seconds_of(p: &Value, taint: &str) -> Option<i64> {
    let mut list = items(&p["spec"]["tolerations"]);
    let found = list.find(|t| is_about(t, taint)).expect("a toleration");
    found["tolerationSeconds"].as_i64()
}

async fn run_pod(stage: &Stage, name: &str, node: &str) -> String {
    let p = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
    stage.create(PODS_PATH, p).await;
    format!("{PODS_PATH}/{name}")
}

#[tokio::test]
async fn every_annotation_and_the_label_are_heeded_when_they_change() {
    let stage = Stage::start_confined("pod-binding-controller", crate::Settings::default()).await;
    let node = json!({"metadata": {"name": "n", "annotations": {AUTONOMY: "true"}}});
    stage.create("/api/v1/nodes", node).await;
    let path = run_pod(&stage, "p", "n").await;
    let is = |wanted: Option<i64>| {
        move |p: &Value| {
            TAINTS
                .iter()
                .all(|(taint, _)| seconds_of(p, taint) == wanted)
        }
    };
    // The API server gives 300 s to every pod.
    let p = stage.until(&path, is(None)).await;
    assert_eq!(p["metadata"]["annotations"][ORIGINAL_UNREACHABLE], "300");
    stage.quiet(&path).await;
    for (annotations, seconds) in [
        (json!({AUTONOMY: null}), Some(300)),
        (json!({BINDING: "true"}), None),
        (
            json!({BINDING: "false", AUTONOMY_DURATION: "2h"}),
            Some(7200),
        ),
        (json!({AUTONOMY_DURATION: "-1s"}), None),
        (json!({AUTONOMY_DURATION: "soon"}), Some(300)),
        (json!({AUTONOMY_DURATION: "0"}), None),
    ] {
        annotate(&stage, "n", annotations).await;
        stage.until(&path, is(seconds)).await;
    }
    let cloud = json!({"metadata": {"labels": {EDGE_WORKER: "false"}}});
    stage
        .kube
        .merge("/api/v1/nodes/n", &cloud)
        .await
        .expect("labelled");
    stage.until(&path, is(Some(300))).await;
    let told =
        |list: &Value| items(&list["items"]).any(|event| event["reason"] == "InvalidAutonomy");
    stage.until("/api/v1/namespaces/default/events", told).await;
}

/// A node that its pool vouches for keeps its pods however long it is cut off; one that nobody vouches for is dead, and its pods go
/// when the duration is over.
#[tokio::test]
async fn pods_of_a_dead_node_go_and_those_of_one_that_is_cut_off_stay() {
    let stage = Stage::start_confined(
        "pod-binding-controller,delegate-lease-controller,taint-eviction-controller",
        crate::Settings::default(),
    )
    .await;
    for name in ["dead", "cut-off"] {
        let node = json!({"metadata": {"name": name, "annotations": {AUTONOMY_DURATION: "1s"}}});
        stage.create("/api/v1/nodes", node).await;
        let path = run_pod(&stage, name, name).await;
        stage
            .until(&path, |p| seconds_of(p, UNREACHABLE) == Some(1))
            .await;
        let lease = json!({"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": name}});
        stage
            .create(
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
                lease,
            )
            .await;
    }
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/cut-off";
    let unknown = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    for name in ["dead", "cut-off"] {
        let path = format!("/api/v1/nodes/{name}/status");
        stage.kube.merge(&path, &unknown).await.expect("silent");
    }
    for second in 1..=5 {
        let renewed = json!({"metadata": {"annotations": {DELEGATE_HEARTBEAT: "true"}},
            "spec": {"renewTime": format!("2026-01-01T00:00:{second:02}.000000Z")}});
        stage.kube.merge(lease, &renewed).await.expect("renewed");
    }
    stage
        .until("/api/v1/nodes/cut-off", |node| {
            crate::condition::holds(&node["status"], "Ready")
        })
        .await;
    // As the node life cycle controller does it, of the condition.
    for name in ["dead", "cut-off"] {
        let path = format!("/api/v1/nodes/{name}");
        let node = stage.kube.get(&path).await.expect("a node");
        let ready = crate::condition::find(&node["status"], "Ready").expect("a condition");
        if ready["status"] == "Unknown" {
            let mut taints = taint::taints(&node);
            taints.push(
                json!({"key": UNREACHABLE, "effect": EFFECT, "timeAdded": "2026-01-01T00:00:00Z"}),
            );
            let patch = json!({"spec": {"taints": taints}});
            stage.kube.merge(&path, &patch).await.expect("tainted");
        }
    }
    stage
        .until(&format!("{PODS_PATH}/dead"), |p| {
            p["code"] == 404 || pod::is_deleting(p)
        })
        .await;
    let p = stage
        .kube
        .get(&format!("{PODS_PATH}/cut-off"))
        .await
        .expect("still there");
    assert!(!pod::is_deleting(&p));
}
