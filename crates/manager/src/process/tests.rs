use super::*;
use crate::stage::{self, Stage};
use serde_json::{Value, json};
use yurt_controller::{
    collections::{NODE_POOLS, NODES},
    election::Timing,
    selection::Selection,
};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/yurt-manager";

fn electing(stage: &Stage, timing: Timing) -> Config {
    let all = registry::names();
    Config {
        controllers: Selection::parse("nodepool", all).expect("known"),
        election: Some(Election {
            lease: "yurt-manager".into(),
            timing,
        }),
        ..Config::in_process(stage.kube.clone())
    }
}

fn member(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"apps.openyurt.io/nodepool": "p"}}})
}

fn counts(nodes: u64) -> impl Fn(&Value) -> bool {
    move |pool: &Value| pool["status"]["unreadyNodeNum"] == nodes
}

#[test]
fn identities_are_a_host_and_a_uuid() {
    let identity = identity();
    let (host, uuid) = identity.rsplit_once('_').expect("two parts");
    assert!(!host.is_empty());
    assert_eq!(uuid.len(), 36, "{uuid}");
    assert_eq!(uuid.as_bytes()[14], b'4', "{uuid}");
    assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
    assert_ne!(identity, super::identity());
}

#[tokio::test]
async fn one_of_two_managers_works_and_the_other_takes_over() {
    let stage = Stage::start("").await;
    stage.create(&NODE_POOLS.path(""), stage::pool("p")).await;
    let pool = NODE_POOLS.object_path(&Key::new("", "p"));
    let timing = Timing {
        lease: Duration::from_secs(60),
        renew: Duration::from_secs(40),
        retry: Duration::from_millis(100),
    };
    let begin = |end: &CancellationToken| {
        let (config, end) = (electing(&stage, timing), end.clone());
        tokio::spawn(async move { run(config, end).await })
    };
    let (end_first, end_second) = (CancellationToken::new(), CancellationToken::new());
    let first = begin(&end_first);
    let held = stage
        .until(LEASE, |lease| lease["spec"]["holderIdentity"].is_string())
        .await;
    let second = begin(&end_second);
    stage.create(&NODES.path(""), member("a")).await;
    stage.until(&pool, counts(1)).await;
    let holder = |lease: &Value| lease["spec"]["holderIdentity"].clone();
    let now = stage.kube.get(LEASE).await.expect("the lease");
    assert_eq!(holder(&now), holder(&held), "one works");
    end_first.cancel();
    first.await.expect("no panic").expect("an orderly end");
    stage.create(&NODES.path(""), member("b")).await;
    // Long before the lease of the first would have expired.
    stage.until(&pool, counts(2)).await;
    let now = stage.kube.get(LEASE).await.expect("the lease");
    assert_ne!(holder(&now), holder(&held));
    assert_eq!(now["spec"]["leaseTransitions"], 1);
    // Another takes the lease by force: the manager says so and ends.
    let stolen = json!({"spec": {"holderIdentity": "thief"}});
    stage.kube.merge(LEASE, &stolen).await.expect("written");
    let lost = second.await.expect("no panic").expect_err("lost");
    assert!(lost.to_string().contains("thief"), "{lost}");
    end_second.cancel();
}

#[tokio::test]
async fn without_an_election_all_work_at_once() {
    let stage = Stage::start("").await;
    stage.create(&NODE_POOLS.path(""), stage::pool("p")).await;
    stage.create(&NODES.path(""), member("a")).await;
    let end = CancellationToken::new();
    let running = tokio::spawn(run(Config::in_process(stage.kube.clone()), end.clone()));
    let pool = NODE_POOLS.object_path(&Key::new("", "p"));
    stage.until(&pool, counts(1)).await;
    end.cancel();
    running.await.expect("no panic").expect("an orderly end");
}
