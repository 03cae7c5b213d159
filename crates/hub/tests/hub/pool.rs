//! The port for the other nodes of the pool: who gets in, what they may ask, online and offline.

use crate::{
    cloud::{Cloud, JSON, Trust},
    event,
    node::{Answered, Directory, Node, PATIENCE, config, eventually},
};
use http::{Method, Request};
use serde_json::json;
use std::net::SocketAddr;
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Client, ClientOptions};

const SERVICES: &str = "/api/v1/services";
const POOLS: &str = "/apis/apps.openyurt.io/v1beta1/nodepools";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

pub(crate) fn certificate(ca: &Ca, user: &str, groups: &[&str]) -> KeyPairPem {
    ca.issue(&Profile {
        common_name: user.into(),
        organizations: groups.iter().map(|group| (*group).to_owned()).collect(),
        client: true,
        days: 1,
        ..Profile::default()
    })
    .unwrap()
}

/// As hubs of OpenYurt have them.
pub(crate) fn hub_certificate(ca: &Ca, node: &str) -> KeyPairPem {
    let user = format!("system:node:{node}");
    certificate(ca, &user, &["openyurt:yurthub", "system:nodes"])
}

fn pool(revision: u64, nodes: &[&str]) -> String {
    json!({
        "kind": "NodePool",
        "apiVersion": "apps.openyurt.io/v1beta1",
        "metadata": {"name": "here", "uid": "p", "resourceVersion": revision.to_string()},
        "status": {"nodes": nodes},
    })
    .to_string()
}

pub(crate) fn script(cloud: &Cloud) {
    let group = r#"{"kind":"APIGroup","apiVersion":"v1","name":"apps.openyurt.io","versions":[{"groupVersion":"apps.openyurt.io/v1alpha1","version":"v1alpha1"},{"groupVersion":"apps.openyurt.io/v1beta1","version":"v1beta1"}],"preferredVersion":{"groupVersion":"apps.openyurt.io/v1beta1","version":"v1beta1"}}"#;
    cloud.answer(Method::GET, "/apis/apps.openyurt.io", 200, JSON, group);
    members(cloud, &["edge-1", "edge-2"]);
    let services = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"dns","namespace":"kube-system","uid":"d","resourceVersion":"3"},"spec":{"clusterIP":"10.0.0.10"}}]}"#;
    cloud.answer(Method::GET, SERVICES, 200, JSON, services);
}

/// Who is in the pool.
pub(crate) fn members(cloud: &Cloud, nodes: &[&str]) {
    let pools = format!(
        r#"{{"kind":"NodePoolList","apiVersion":"apps.openyurt.io/v1beta1","metadata":{{"resourceVersion":"5"}},"items":[{}]}}"#,
        pool(4, nodes)
    );
    cloud.answer(Method::GET, POOLS, 200, JSON, pools);
}

/// Another node of OpenYurt: HTTP/1.1, a certificate, and the user agent of its multiplexer.
pub(crate) struct Follower(pub(crate) Client);

impl Follower {
    pub(crate) fn new(trust: &Trust, hub: SocketAddr, pair: Option<&KeyPairPem>) -> Self {
        let tls = yurt_pki::client_config(&trust.ca.cert_pem(), pair, &["http/1.1"]).unwrap();
        Self(Client::new(
            &hub.to_string(),
            Some(tls),
            ClientOptions::default(),
        ))
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        target: &str,
        headers: &[(&'static str, &str)],
        body: String,
    ) -> Option<Answered> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .header("user-agent", "multiplexer-proxy-edge-2");
        for (name, value) in headers {
            let known = request.headers_mut().unwrap();
            known.insert(*name, value.parse().unwrap());
        }
        let request = request.body(yurt_transport::full(body)).unwrap();
        match self.0.send(request, PATIENCE).await {
            Ok(response) => Some(Answered::of(response).await),
            Err(_) => None,
        }
    }

    async fn get(&self, target: &str) -> u16 {
        let got = self.ask(Method::GET, target, &[], String::new()).await;
        got.map_or(0, |answered| answered.status)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_the_pool_read_what_it_shares_and_keep_their_leases() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let configured = || {
        let mut config = config(&directory.0, &trust, &[cloud.addr]);
        config.pool = "here".into();
        config
    };
    let node = Node::start(configured()).await;
    node.until_up().await;
    let pair = hub_certificate(&trust.ca, "edge-2");
    let peer = Follower::new(&trust, node.pool, Some(&pair));
    eventually("the pool is known", async || {
        peer.get(SERVICES).await == 200
    })
    .await;
    assert!(cloud.seen(Method::GET, SERVICES).pop().unwrap().certificate);
    for target in [
        "/api/v1/secrets",
        "/api/v1/namespaces/default/pods/a",
        "/api/v1/namespaces/kube-system/services/dns/proxy/x",
        "/metrics",
        "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/edge-2",
    ] {
        assert_eq!(peer.get(target).await, 403, "{target}");
    }
    assert!(cloud.seen(Method::GET, "/api/v1/secrets").is_empty());

    // Its own lease, and no other. It is this node's to keep: the cloud knows nothing of it.
    let lease_of = |name: &str, holder: &str| {
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 40, "renewTime": "2026-11-22T10:00:00.000000Z"}})
            .to_string()
    };
    let lease = |name: &str| lease_of(name, name);
    let write = async |method: Method, target: String, body: String| {
        peer.ask(method, &target, &[], body).await.unwrap().status
    };
    let own = format!("{LEASES}/edge-2");
    assert_eq!(peer.get(&own).await, 404);
    assert_eq!(
        write(Method::POST, LEASES.into(), lease("edge-2")).await,
        201
    );
    assert_eq!(
        write(Method::POST, LEASES.into(), lease("edge-2")).await,
        409
    );
    assert_eq!(write(Method::PUT, own.clone(), lease("edge-2")).await, 200);
    assert_eq!(write(Method::PATCH, own.clone(), "{}".into()).await, 403);
    assert!(cloud.seen(Method::POST, LEASES).is_empty());
    let foreign = lease_of("edge-2", "edge-1");
    assert_eq!(write(Method::PUT, own.clone(), foreign).await, 422);
    let huge = "x".repeat(65 << 10);
    assert_eq!(write(Method::PUT, own.clone(), huge).await, 413);
    let read = peer
        .ask(Method::GET, LEASES, &[], String::new())
        .await
        .unwrap()
        .json();
    assert_eq!(read["kind"], "LeaseList");
    assert_eq!(read["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        read["items"][0]["spec"]["renewTime"],
        "2026-11-22T10:00:00.000000Z"
    );
    // As kubectl asks.
    let table = [(
        "accept",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    )];
    let table = peer
        .ask(Method::GET, &own, &table, String::new())
        .await
        .unwrap()
        .json();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "edge-2");
    for body in [lease("edge-1"), lease(""), "nonsense".into(), String::new()] {
        assert_eq!(write(Method::POST, LEASES.into(), body).await, 403);
    }
    let other = format!("{LEASES}/edge-1");
    assert_eq!(write(Method::PUT, other, lease("edge-1")).await, 403);
    assert_eq!(write(Method::DELETE, own.clone(), String::new()).await, 403);

    // Neither a token nor impersonation has a place here.
    for (header, status) in [
        (("authorization", "Bearer abc"), 401),
        (("impersonate-user", "admin"), 403),
    ] {
        let got = peer
            .ask(Method::GET, SERVICES, &[header], String::new())
            .await;
        assert_eq!(got.unwrap().status, status, "{header:?}");
    }
    // Who is not of the pool.
    let far = hub_certificate(&trust.ca, "far");
    let refused = Follower::new(&trust, node.pool, Some(&far));
    let refused = refused
        .ask(Method::GET, SERVICES, &[], String::new())
        .await
        .unwrap();
    assert_eq!(refused.status, 403);
    assert!(
        refused.text().contains("not in this node's pool"),
        "{}",
        refused.text()
    );
    let admin = certificate(&trust.ca, "admin", &["system:masters"]);
    assert_eq!(
        Follower::new(&trust, node.pool, Some(&admin))
            .get(SERVICES)
            .await,
        403
    );
    let impostor = hub_certificate(&Ca::new("other", 1).unwrap(), "edge-2");
    for pair in [None, Some(&impostor)] {
        assert_eq!(
            Follower::new(&trust, node.pool, pair).get(SERVICES).await,
            0,
            "no handshake"
        );
    }
    let line = "node_yurthub_callers_refused_total{entrance=\"pool\",reason=\"other_pool\"}";
    assert_eq!(node.metric(line).await, 1.0);

    // Without the cloud: what this node knows; and after a start without it, still.
    cloud.stop();
    node.until_mode("offline").await;
    assert_eq!(peer.get(SERVICES).await, 200);
    assert_eq!(peer.get("/api/v1/secrets").await, 403);
    assert_eq!(write(Method::PUT, own, lease("edge-2")).await, 200);
    node.stop().await;
    let node = Node::start(configured()).await;
    let peer = Follower::new(&trust, node.pool, Some(&pair));
    eventually("the pool is known from the cache", async || {
        peer.get(SERVICES).await == 200
    })
    .await;
    assert_eq!(
        Follower::new(&trust, node.pool, Some(&far))
            .get(SERVICES)
            .await,
        403
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_the_pool_is_let_in_no_more() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.pool = "here".into();
    let node = Node::start(config).await;
    let pair = hub_certificate(&trust.ca, "edge-2");
    let peer = Follower::new(&trust, node.pool, Some(&pair));
    eventually("the pool is known", async || {
        peer.get(SERVICES).await == 200
    })
    .await;
    eventually("the pool is followed", async || cloud.watching(POOLS) == 1).await;
    // What it listens to ends with its place in the pool.
    let mut streams = Vec::new();
    for target in [
        "/yurt.io/pool/v1/presence".to_owned(),
        format!("{LEASES}?watch=true"),
        format!("{SERVICES}?watch=true"),
    ] {
        let request = Request::builder()
            .uri(&target)
            .body(yurt_transport::empty())
            .unwrap();
        let response = peer.0.send(request, PATIENCE).await.unwrap();
        assert_eq!(response.status(), 200, "{target}");
        streams.push((target, response.into_body()));
    }
    cloud
        .emit(POOLS, event("MODIFIED", &pool(6, &["edge-1"])))
        .await;
    for (target, body) in streams {
        let rest = yurt_transport::collect(body, 1 << 20);
        let rest = tokio::time::timeout(PATIENCE, rest).await;
        assert!(rest.is_ok(), "{target} goes on");
    }
    eventually("gone", async || peer.get(SERVICES).await == 403).await;
    cloud
        .emit(POOLS, event("DELETED", &pool(7, &["edge-1"])))
        .await;
    eventually("nobody is known", async || {
        let got = peer.ask(Method::GET, SERVICES, &[], String::new()).await;
        got.is_some_and(|got| got.status == 403 && got.text().contains("not known"))
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_no_pool_lets_nobody_in() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    node.until_up().await;
    let pair = hub_certificate(&trust.ca, "edge-2");
    let peer = Follower::new(&trust, node.pool, Some(&pair));
    let refused = peer
        .ask(Method::GET, SERVICES, &[], String::new())
        .await
        .unwrap();
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("not known"), "{}", refused.text());
    node.stop().await;
}
