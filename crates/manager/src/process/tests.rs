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

/// The answer of a plain HTTP server.
async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
    let kube = Kube::new(&address.to_string(), None, None, Duration::from_secs(5));
    match kube.get(path).await {
        Ok(Value::String(text)) => (200, text),
        Ok(other) => (200, other.to_string()),
        Err(error) => (error.code().unwrap_or(0), error.message()),
    }
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

#[tokio::test]
async fn controllers_write_as_accounts_of_their_own_and_all_is_served() {
    let stage = Stage::start("").await;
    stage.create(&NODE_POOLS.path(""), stage::pool("p")).await;
    stage.create(&NODES.path(""), member("a")).await;
    let (metrics, health) = (free_address(), free_address());
    let config = Config {
        independent_accounts: true,
        limit: Some((50.0, 100)),
        metrics: Some(metrics),
        health: Some(health),
        webhooks: Some(webhook::Options {
            address: "127.0.0.1".parse().expect("an address"),
            port: 0,
            ..webhook::Options::default()
        }),
        ..electing(&stage, Timing::default())
    };
    // What one controller may do, and nothing else; the stage lets the manager itself do everything.
    let rules = registry::selected(&config.controllers).flat_map(|entry| entry.rules);
    let role = json!({"metadata": {"name": "of-the-test"},
        "rules": rules.map(yurt_controller::policy::Rule::to_json).collect::<Value>()});
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    stage.create(roles, role).await;
    let account = "yurt-manager-nodepool-controller";
    let binding = json!({"metadata": {"name": "of-the-test"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "of-the-test"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}]});
    stage
        .create(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            binding,
        )
        .await;
    let end = CancellationToken::new();
    let running = tokio::spawn(run(config, end.clone()));
    let pool = NODE_POOLS.object_path(&Key::new("", "p"));
    stage.until(&pool, counts(1)).await;
    let account = format!("/api/v1/namespaces/kube-system/serviceaccounts/{account}");
    stage.kube.get(&account).await.expect("made for it");
    while ask(health, "/readyz").await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask(health, "/healthz").await, (200, "ok".into()));
    let (_, said) = ask(health, "/readyz?verbose").await;
    for line in [
        "[+]webhook ok",
        "[+]cache/nodepools.apps.openyurt.io ok",
        "works ok",
    ] {
        assert!(said.contains(line), "{line} is missing in {said}");
    }
    let (_, shown) = ask(metrics, "/metrics").await;
    for line in [
        "openyurt_version_info{component_name=\"yurt-manager\",",
        "leader_election_master_status{name=\"yurt-manager\"} 1",
        "controller_runtime_max_concurrent_reconciles{controller=\"nodepool-controller\"}",
        "controller_runtime_reconcile_total{controller=\"nodepool-controller\",result=\"success\"}",
        "rest_client_requests_total{code=\"200\",method=\"GET\"}",
    ] {
        assert!(shown.contains(line), "{line} is missing in\n{shown}");
    }
    crate::monitoring::assert_told(&shown, false);
    assert_eq!(ask(metrics, "/debug/pprof/").await.0, 404);
    // The account is made anew, as by somebody who cleans up: its token is refused, and another is had at once.
    stage.kube.delete(&account).await.expect("deleted");
    stage.create(&NODES.path(""), member("b")).await;
    stage.until(&pool, counts(2)).await;
    end.cancel();
    running.await.expect("no panic").expect("an orderly end");
}

#[tokio::test]
async fn an_address_that_is_taken_is_said() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let stage = Stage::start("").await;
    let config = Config {
        health: taken.local_addr().ok(),
        ..Config::in_process(stage.kube.clone())
    };
    let error = run(config, CancellationToken::new())
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("health probes"), "{error}");
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
