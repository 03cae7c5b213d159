use super::*;
use crate::stage::{Stage, pool};

const CONTROLLER: &str = "yurt-node-conversion-controller";
const JOBS_PATH: &str = "/apis/batch/v1/namespaces/kube-system/jobs";

async fn node(stage: &Stage, name: &str, labels: Value, annotations: Value, cordoned: bool) {
    let node = json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}, "spec": {"unschedulable": cordoned}});
    stage.create("/api/v1/nodes", node).await;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    stage
        .kube
        .merge(&format!("/api/v1/nodes/{name}/status"), &status)
        .await
        .expect("ready");
}

fn path(node: &str) -> String {
    format!("/api/v1/nodes/{node}")
}

fn reason(node: &Value) -> String {
    let condition = condition::find(&node["status"], NODE_CONVERSION_FAILED);
    condition
        .map(|condition| text(&condition["reason"]))
        .unwrap_or_default()
}

fn is_cordoned(node: &Value) -> bool {
    node["spec"]["unschedulable"] == true
}

async fn job(stage: &Stage, node: &str) -> String {
    let path = format!("{JOBS_PATH}/{}", conversion_job::name(node));
    stage.until(&path, |job| job["kind"] == "Job").await;
    path
}

async fn ends(stage: &Stage, path: &str, kind: &str) {
    let before = if kind == "Complete" {
        "SuccessCriteriaMet"
    } else {
        "FailureTarget"
    };
    let at = "2026-01-01T00:00:01Z";
    let mut status = json!({"startTime": "2026-01-01T00:00:00Z", "conditions": [
        {"type": before, "status": "True", "lastTransitionTime": at}, {"type": kind, "status": "True", "lastTransitionTime": at}]});
    if kind == "Complete" {
        status["completionTime"] = at.into();
        status["succeeded"] = 1.into();
    }
    stage
        .kube
        .merge(&format!("{path}/status"), &json!({"status": status}))
        .await
        .expect("a status");
}

#[test]
fn there_is_room_for_a_few_and_one_of_a_pool() {
    let running = |pools: &[&str]| -> BTreeMap<String, String> {
        let named = pools.iter().enumerate();
        named
            .map(|(n, pool)| (n.to_string(), (*pool).to_owned()))
            .collect()
    };
    assert_eq!(no_room(true, "p", &running(&["q", "r"]), 2), None);
    for (is_here, running, failures) in [
        (false, running(&[]), 0),
        (true, running(&["p"]), 0),
        (true, running(&["q", "r", "s"]), 0),
        (true, running(&[]), MOST_FAILURES),
    ] {
        assert!(no_room(is_here, "p", &running, failures).is_some());
    }
    let zoned = json!({"metadata": {"labels": {ZONE: "z"}}});
    let of = |node: &Value, direction| labels(node, direction, "p", |zone| zone == "z");
    assert_eq!(of(&zoned, Direction::Convert), json!({EDGE_WORKER: "true"}));
    assert_eq!(
        of(&json!({}), Direction::Convert),
        json!({EDGE_WORKER: "true", ZONE: "p"})
    );
    assert_eq!(
        of(&zoned, Direction::Revert),
        json!({EDGE_WORKER: null, ZONE: null})
    );
    assert_eq!(
        of(&json!({}), Direction::Revert),
        json!({EDGE_WORKER: null})
    );
}

#[tokio::test]
async fn a_node_goes_to_the_edge_and_back_and_keeps_its_cordon() {
    let mut stage = Stage::start_confined(CONTROLLER, crate::Settings::default()).await;
    stage.define_pools(&["p"]).await;
    node(
        &stage,
        "n",
        json!({NODE_POOL: "p"}),
        json!({NODE_CONVERSION: "auto"}),
        true,
    )
    .await;
    let one = job(&stage, "n").await;
    let there = stage
        .until(&path("n"), |node| reason(node) == "Converting")
        .await;
    assert!(is_cordoned(&there));
    // The controller is killed, and its job ends meanwhile.
    stage.restart("");
    ends(&stage, &one, "Complete").await;
    stage.restart(CONTROLLER);
    let there = stage
        .until(&path("n"), |node| {
            reason(node) == "Converted" && node["metadata"]["labels"][EDGE_WORKER] == "true"
        })
        .await;
    assert_eq!(there["metadata"]["labels"][ZONE], "p");
    assert!(is_cordoned(&there), "somebody had cordoned it before");
    stage.until(&one, conversion_job::is_told).await;
    stage.quiet(&path("n")).await;
    let leaves =
        json!({"metadata": {"labels": {NODE_POOL: null}}, "spec": {"unschedulable": null}});
    stage.kube.merge(&path("n"), &leaves).await.expect("left");
    stage
        .until(&one, |job| {
            conversion_job::direction(job) == Direction::Revert && job["kind"] == "Job"
        })
        .await;
    ends(&stage, &one, "Complete").await;
    let there = stage
        .until(&path("n"), |node| {
            reason(node) == "Reverted" && !is_cordoned(node)
        })
        .await;
    let labels = &there["metadata"]["labels"];
    assert!(
        labels[EDGE_WORKER].is_null() && labels[ZONE].is_null(),
        "{labels}"
    );
}

#[tokio::test]
async fn nothing_happens_to_nodes_that_nobody_spoke_for() {
    let stage = Stage::start_confined(CONTROLLER, crate::Settings::default()).await;
    let mut auto = pool("auto");
    auto["metadata"]["annotations"] = json!({NODE_CONVERSION: "auto"});
    stage
        .create("/apis/apps.openyurt.io/v1beta2/nodepools", auto)
        .await;
    stage.define_pools(&["p"]).await;
    // Joined as a node of the edge, in no pool: OpenYurt reverts it.
    node(
        &stage,
        "joined",
        json!({EDGE_WORKER: "true"}),
        json!({}),
        false,
    )
    .await;
    node(
        &stage,
        "labelled",
        json!({NODE_POOL: "p"}),
        json!({}),
        false,
    )
    .await;
    node(
        &stage,
        "first",
        json!({NODE_POOL: "auto"}),
        json!({}),
        false,
    )
    .await;
    job(&stage, "first").await;
    node(
        &stage,
        "second",
        json!({NODE_POOL: "auto"}),
        json!({}),
        false,
    )
    .await;
    let told = |list: &Value| {
        items(&list["items"]).any(|event| {
            event["reason"] == "NodeConversionNotAllowed"
                && event["involvedObject"]["name"] == "labelled"
        })
    };
    stage.until("/api/v1/namespaces/default/events", told).await;
    let jobs = stage.kube.get(JOBS_PATH).await.expect("jobs");
    assert_eq!(
        items(&jobs["items"]).count(),
        1,
        "one node of a pool at a time"
    );
    for name in ["joined", "labelled", "second"] {
        let node = stage.kube.get(&path(name)).await.expect("a node");
        assert!(!is_cordoned(&node) && reason(&node).is_empty(), "{name}");
        stage.quiet(&path(name)).await;
    }
}

#[tokio::test]
async fn what_failed_is_not_tried_again_until_somebody_asks() {
    let stage = Stage::start_confined(CONTROLLER, crate::Settings::default()).await;
    stage.define_pools(&["p"]).await;
    node(
        &stage,
        "n",
        json!({NODE_POOL: "p"}),
        json!({NODE_CONVERSION: "convert"}),
        false,
    )
    .await;
    let one = job(&stage, "n").await;
    ends(&stage, &one, "Failed").await;
    let there = stage
        .until(&path("n"), |node| reason(node) == "ConvertFailed")
        .await;
    assert!(is_cordoned(&there) && condition::holds(&there["status"], NODE_CONVERSION_FAILED));
    stage.until(&one, conversion_job::is_told).await;
    let options =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    let gone = stage.kube.delete_with(&one, &options).await;
    gone.expect("as after its time");
    stage.until(&one, |job| job["code"] == 404).await;
    stage.quiet(&path("n")).await;
    assert!(
        stage.kube.get(&one).await.is_err(),
        "no new round by itself"
    );
    let again = json!({"metadata": {"annotations": {NODE_CONVERSION: "convert:2"}}});
    stage
        .kube
        .merge(&path("n"), &again)
        .await
        .expect("asked again");
    job(&stage, "n").await;
    ends(&stage, &one, "Complete").await;
    stage
        .until(&path("n"), |node| {
            reason(node) == "Converted" && !is_cordoned(node)
        })
        .await;
}
