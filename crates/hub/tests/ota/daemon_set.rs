//! Pods of a DaemonSet: upgraded, once; queued while cut; taken back.

use crate::{
    edge::{Edge, PODS, UPGRADES, direct, upgrade_path},
    node::eventually,
};
use http::Method;
use serde_json::{Value, json};

const STARTED: &str = "Start updating pod default/agent-old";

async fn id(edge: &Edge) -> String {
    let jobs = edge.jobs().await;
    jobs.last().unwrap()["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_replaced_and_the_new_one_seen_through() {
    let edge = Edge::start(|_| {}).await;
    let begun = edge.upgrade("agent-old").await;
    assert_eq!((begun.status, begun.text().as_str()), (200, STARTED));
    let job = edge.until_job(&id(&edge).await, "done").await;
    assert_eq!(
        (&job["newPod"], &job["revision"]),
        (&"agent-new-1".into(), &"r2".into()),
        "{job}"
    );
    assert_eq!(edge.pods().await, ["agent-new-1"]);
    for reason in ["UpgradeStarted", "UpgradeSucceeded"] {
        edge.until_event(reason).await;
    }
    assert_eq!(
        edge.metric("node_yurthub_ota_upgrades_total{state=\"done\"}")
            .await,
        1.0
    );
    // The new one is not due.
    assert_eq!(edge.upgrade("agent-new-1").await.status, 403);
    let late = edge
        .ask(
            Method::DELETE,
            &format!("{UPGRADES}/{}", id(&edge).await),
            None,
        )
        .await;
    assert_eq!(late.status, 409, "{}", late.text());
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_twice_at_once_it_happens_once() {
    let edge = Edge::start(|_| {}).await;
    edge.workshop.lock().unwrap().makes = false;
    let asks = async || edge.upgrade("agent-old").await;
    let (one, two, three) = tokio::join!(asks(), asks(), asks());
    let mut codes = [one.status, two.status, three.status];
    codes.sort_unstable();
    assert_eq!(codes, [200, 202, 202]);
    let jobs = edge.jobs().await;
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    let kept = [one, two, three]
        .into_iter()
        .find(|answer| answer.status == 202)
        .unwrap();
    assert_eq!(kept.json()["id"], jobs[0]["id"]);
    edge.workshop.lock().unwrap().makes = true;
    edge.until_job(&id(&edge).await, "done").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_while_cut_is_done_at_reconnect_over_a_kill() {
    let mut edge = Edge::start(|_| {}).await;
    edge.pod("agent-2", "a:1", "r1").await;
    edge.needs_upgrade("agent-2", "r2").await;
    eventually("the node knows both", async || {
        edge.ask(Method::GET, "/pods", None)
            .await
            .text()
            .contains("agent-2")
            || {
                // The kubelet's watch, played.
                edge.kubelet_lists().await;
                false
            }
    })
    .await;
    edge.cut().await;
    let path = format!("{}?queue=false", upgrade_path("agent-old"));
    let refused = edge.ask(Method::POST, &path, None).await;
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (
            503,
            "OTA upgrade is not allowed when node is disconnected to cloud"
        )
    );
    assert!(edge.jobs().await.is_empty());
    assert_eq!(edge.upgrade("nobody").await.status, 500);
    let mut ids = Vec::new();
    for pod in ["agent-old", "agent-2", "agent-old"] {
        let kept = edge.upgrade(pod).await;
        assert_eq!(
            (kept.status, &kept.json()["state"]),
            (202, &"waiting-for-link".into()),
            "{}",
            kept.text()
        );
        ids.push(kept.json()["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids[0], ids[2], "asked again: the same");

    let mut edge = edge.kill(|_| {}).await;
    edge.until_mode("offline").await;
    for id in &ids {
        edge.until_job(id, "waiting-for-link").await;
    }
    assert!(edge.pods().await.contains(&"agent-old".to_owned()));
    // Meanwhile the cloud thinks better of the second one.
    edge.condition(
        "agent-2",
        json!({"type": "PodNeedUpgrade", "status": "False"}),
    )
    .await;
    edge.policy("minReady: 0s\nmaxAtOnce: 2");
    edge.heal().await;
    let failed = edge.until_job(&ids[1], "failed").await;
    assert!(
        failed["reason"]
            .as_str()
            .unwrap()
            .contains("PodNeedUpgrade"),
        "{failed}"
    );
    direct(
        &edge.cloud,
        Method::DELETE,
        &format!("{PODS}/agent-2"),
        None,
    )
    .await;
    edge.until_job(&ids[0], "done").await;
    assert!(!edge.pods().await.contains(&"agent-old".to_owned()));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_goes_on_after_a_kill_in_the_middle_of_it() {
    let edge = Edge::start(|_| {}).await;
    edge.workshop.lock().unwrap().makes = false;
    assert_eq!(edge.upgrade("agent-old").await.status, 200);
    let job = id(&edge).await;
    let edge = edge.kill(|_| {}).await;
    edge.until_job(&job, "waiting-for-pod").await;
    edge.workshop.lock().unwrap().makes = true;
    edge.until_job(&job, "done").await;
    assert_eq!(
        edge.pods().await,
        ["agent-new-1"],
        "nothing was deleted twice"
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_taken_back_when_the_new_pod_does_not_become_ready() {
    let edge = Edge::start(|_| {}).await;
    edge.workshop.lock().unwrap().good.remove("a:2");
    // Under the name of who asked: the node may not change pods.
    let begun = edge
        .ask(Method::POST, &upgrade_path("agent-old"), Some("dev-token"))
        .await;
    assert_eq!((begun.status, begun.text().as_str()), (200, STARTED));
    edge.late(&id(&edge).await).await;
    let job = edge.until_job(&id(&edge).await, "rolled-back").await;
    assert!(
        job["reason"]
            .as_str()
            .unwrap()
            .starts_with("not ready within 2s"),
        "{job}"
    );
    let (_, pod) = edge.get(&format!("{PODS}/agent-new-1")).await;
    assert_eq!(pod["spec"]["containers"][0]["image"], "a:1");
    assert_eq!(
        pod["metadata"]["labels"]["controller-revision-hash"], "r1",
        "controllers see what it is"
    );
    assert_eq!(
        pod["metadata"]["annotations"]["openyurt.io/ota-rolled-back-from"],
        "r2"
    );
    edge.until_event("UpgradeRolledBack").await;
    until_condition(&edge, "agent-new-1", "UpgradeRolledBack").await;
    edge.stop().await;
}

async fn until_condition(edge: &Edge, pod: &str, reason: &str) {
    eventually("the condition", async || {
        let (_, pod) = edge.get(&format!("{PODS}/{pod}")).await;
        let conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions.iter().any(|c: &Value| {
            c["type"] == "OTAUpgradeFailed"
                && c["reason"] == reason
                && c["message"] == "controllerrevision: r2"
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owners_service_account_takes_images_back_after_a_kill() {
    let token = |config: &mut yurt_hub::Config| {
        let file = config.root_dir.join("robot");
        std::fs::write(&file, "robot-token\n").unwrap();
        config.ota.rollback_token_file = Some(file);
    };
    let edge = Edge::start(token).await;
    edge.workshop.lock().unwrap().good.remove("a:2");
    assert_eq!(edge.upgrade("agent-old").await.status, 200);
    let job = id(&edge).await;
    let edge = edge.kill(token).await;
    edge.late(&job).await;
    edge.until_job(&job, "rolled-back").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_taken_back_fails_and_is_told() {
    // Nobody may change the pod.
    let edge = Edge::start(|_| {}).await;
    edge.workshop.lock().unwrap().good.remove("a:2");
    assert_eq!(edge.upgrade("agent-old").await.status, 200);
    edge.late(&id(&edge).await).await;
    let job = edge.until_job(&id(&edge).await, "failed").await;
    let reason = job["reason"].as_str().unwrap();
    assert!(
        reason.contains("the old images cannot be set again") && reason.contains("forbidden"),
        "{job}"
    );
    edge.until_event("UpgradeFailed").await;
    until_condition(&edge, "agent-new-1", "UpgradeFailed").await;
    let (_, pod) = edge.get(&format!("{PODS}/agent-new-1")).await;
    assert_eq!(pod["spec"]["containers"][0]["image"], "a:2");

    // More than the image changed.
    edge.workshop.lock().unwrap().image = "a:3".into();
    edge.workshop.lock().unwrap().args = vec!["--new".into()];
    edge.needs_upgrade("agent-new-1", "r3").await;
    let begun = edge
        .ask(
            Method::POST,
            &upgrade_path("agent-new-1"),
            Some("dev-token"),
        )
        .await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    edge.late(&id(&edge).await).await;
    let job = edge.until_job(&id(&edge).await, "failed").await;
    assert!(
        job["reason"].as_str().unwrap().contains("more than images"),
        "{job}"
    );

    // No new pod at all, and an owner who does not want to go back.
    edge.workshop.lock().unwrap().makes = false;
    edge.needs_upgrade("agent-new-2", "r4").await;
    assert_eq!(edge.upgrade("agent-new-2").await.status, 200);
    edge.policy("readyTimeout: 1s");
    let job = edge.until_job(&id(&edge).await, "failed").await;
    assert!(
        job["reason"].as_str().unwrap().contains("no new pod came"),
        "{job}"
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_ready_for_a_moment_is_not_done() {
    let edge = Edge::start(|_| {}).await;
    edge.policy("readyTimeout: 1h\nminReady: 1h");
    assert_eq!(edge.upgrade("agent-old").await.status, 200);
    let job = id(&edge).await;
    let until_ready = async |status: &str| {
        eventually("the new pod's readiness", async || {
            let (_, pod) = edge.get(&format!("{PODS}/agent-new-1")).await;
            let conditions = pod["status"]["conditions"].as_array().cloned();
            let conditions = conditions.unwrap_or_default();
            conditions
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == status)
        })
        .await;
    };
    until_ready("True").await;
    edge.until_job(&job, "waiting-for-pod").await;
    // It fails after all.
    edge.workshop.lock().unwrap().good.remove("a:2");
    until_ready("False").await;
    edge.policy("readyTimeout: 1s\nminReady: 1h\nrollback: false");
    let job = edge.until_job(&job, "failed").await;
    assert!(
        job["reason"].as_str().unwrap().contains("does not go back"),
        "{job}"
    );
    edge.stop().await;
}
