//! The owner's policy, with a clock that the test winds.

use crate::{
    edge::{Edge, PODS, UPGRADES, direct, upgrade_path},
    node::eventually,
};
use http::Method;
use jiff::Timestamp;
use std::sync::atomic::{AtomicI64, Ordering};

/// Seconds since the epoch: Sunday, 2026-11-22 12:00 UTC.
static CLOCK: AtomicI64 = AtomicI64::new(1_795_348_800);

fn clock() -> Timestamp {
    Timestamp::from_second(CLOCK.load(Ordering::SeqCst)).unwrap()
}

fn wind(to: &str) {
    CLOCK.store(
        to.parse::<Timestamp>().unwrap().as_second(),
        Ordering::SeqCst,
    );
}

fn under(policy: &'static str) -> impl FnOnce(&mut yurt_hub::Config) {
    move |config| {
        std::fs::write(config.root_dir.join("ota-policy.yaml"), policy).unwrap();
        config.ota.clock = clock;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_waits_for_its_window_over_a_kill() {
    let policy = "minReady: 0s\ntimeZone: CET-1CEST,M3.5.0,M10.5.0/3\nwindows: [{days: [Mon-Fri], from: '22:00', to: '04:00'}]\n";
    let edge = Edge::start(under(policy)).await;
    let kept = edge.upgrade("agent-old").await;
    assert_eq!(kept.status, 202, "{}", kept.text());
    let job = kept.json();
    assert_eq!(
        (&job["state"], &job["until"]),
        (&"waiting-for-window".into(), &"2026-11-23T21:00:00Z".into()),
        "{job}"
    );
    let id = job["id"].as_str().unwrap().to_owned();
    wind("2026-11-23T20:59:59Z");
    let edge = edge.kill(|config| config.ota.clock = clock).await;
    assert_eq!(edge.job(&id).await["state"], "waiting-for-window");
    assert!(edge.pods().await.contains(&"agent-old".to_owned()));
    wind("2026-11-23T21:00:00Z");
    edge.until_job(&id, "done").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_confirms_or_cancels() {
    let edge = Edge::start(|config| {
        std::fs::write(
            config.root_dir.join("ota-policy.yaml"),
            "minReady: 0s\nconfirmation: true\nallow: [{namespace: default, pods: ['agent-*']}]\n",
        )
        .unwrap();
    })
    .await;
    let ask = async || {
        let kept = edge
            .ask(Method::POST, &upgrade_path("agent-old"), Some("dev-token"))
            .await;
        assert_eq!(
            (kept.status, &kept.json()["state"]),
            (202, &"waiting-for-confirmation".into()),
            "{}",
            kept.text()
        );
        kept.json()["id"].as_str().unwrap().to_owned()
    };
    let first = ask().await;
    let path = format!("{UPGRADES}/{first}");
    // A guest neither cancels nor confirms; who asked may cancel.
    assert_eq!(
        edge.ask(Method::DELETE, &path, Some("guest-token"))
            .await
            .status,
        403
    );
    let cancelled = edge.ask(Method::DELETE, &path, Some("dev-token")).await;
    assert_eq!(
        (cancelled.status, &cancelled.json()["state"]),
        (200, &"cancelled".into())
    );
    let second = ask().await;
    assert_ne!(first, second);
    let confirm = format!("{UPGRADES}/{second}/confirm");
    assert_eq!(
        edge.ask(Method::POST, &confirm, Some("dev-token"))
            .await
            .status,
        403
    );
    assert_eq!(
        edge.ask(Method::POST, &confirm, None).await.status,
        403,
        "not by the admin port"
    );
    assert!(edge.pods().await.contains(&"agent-old".to_owned()));
    let confirmed = edge.on_socket(Method::POST, &confirm).await;
    assert_eq!(confirmed.status, 200, "{}", confirmed.text());
    assert_eq!(
        edge.on_socket(Method::POST, &confirm).await.status,
        409,
        "once"
    );
    edge.until_job(&second, "done").await;

    // The owner themselves need not confirm; and what is not allowed is refused to everybody.
    edge.needs_upgrade("agent-new-1", "r3").await;
    let own = edge
        .on_socket(Method::POST, &upgrade_path("agent-new-1"))
        .await;
    assert_eq!(
        (own.status, own.text().as_str()),
        (200, "Start updating pod default/agent-new-1")
    );
    let last = edge.jobs().await.pop().unwrap();
    edge.until_job(last["id"].as_str().unwrap(), "done").await;
    std::fs::write(edge.root().join("ota-policy.yaml"), "allow: []\n").unwrap();
    edge.needs_upgrade("agent-new-2", "r4").await;
    let refused = edge
        .on_socket(Method::POST, &upgrade_path("agent-new-2"))
        .await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    let pull = "/openyurt.io/v1/namespaces/default/pods/agent-new-2/imagepull";
    let pull = edge.on_socket(Method::POST, pull).await;
    assert_eq!(pull.status, 403, "{}", pull.text());
    assert!(
        refused.text().contains("the owner's policy"),
        "{}",
        refused.text()
    );
    // A file that makes no sense: the last good one counts, and everybody can see it.
    std::fs::write(edge.root().join("ota-policy.yaml"), "alow: []\n").unwrap();
    let told = edge.ask(Method::GET, UPGRADES, None).await.json();
    assert_eq!(told["policy"]["usable"], false, "{told}");
    assert_eq!(
        edge.on_socket(Method::POST, &upgrade_path("agent-new-2"))
            .await
            .status,
        403
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_pod_that_went_is_over() {
    let edge = Edge::start(under("confirmation: true\n")).await;
    edge.pod("agent-2", "a:1", "r1").await;
    edge.needs_upgrade("agent-2", "r2").await;
    edge.kubelet_lists().await;
    let mut ids = Vec::new();
    for pod in ["agent-old", "agent-2"] {
        let kept = edge.upgrade(pod).await;
        assert_eq!(kept.status, 202, "{}", kept.text());
        ids.push(kept.json()["id"].as_str().unwrap().to_owned());
    }
    let path = format!("{PODS}/agent-2");
    direct(&edge.cloud, Method::DELETE, &path, None).await;
    eventually("it is gone", async || edge.get(&path).await.0 == 404).await;
    edge.kubelet_lists().await;
    let failed = edge.until_job(&ids[1], "failed").await;
    assert_eq!(failed["reason"], "the pod is gone");
    assert_eq!(edge.job(&ids[0]).await["state"], "waiting-for-confirmation");
    edge.stop().await;
}
