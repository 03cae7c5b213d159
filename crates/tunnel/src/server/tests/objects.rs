//! The server and the objects of a cluster: leases, tokens, and what is where.

use super::*;
use crate::{
    DialError, Directory,
    peers::{Peers, leases},
    server::{callers::ServiceAccount, gate::Reviewer},
    twin::Answers,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio_util::task::TaskTracker;
use yurt_controller::election::micro_time;
use yurt_controlplane::stage::Stage;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
const ACCOUNTS: &str = "/api/v1/namespaces/kube-system/serviceaccounts";

async fn stage() -> Stage {
    Box::pin(Stage::of(|_| {})).await
}

fn lease(name: &str, label: &str, address: Option<&str>, age: i64) -> Value {
    let renewed = Timestamp::now() - SignedDuration::from_secs(age);
    let mut lease = json!({
        "metadata": {"name": name, "labels": {"k8s-app": label}},
        "spec": {"holderIdentity": "x", "leaseDurationSeconds": 30, "renewTime": micro_time(renewed)},
    });
    if let Some(address) = address {
        lease["metadata"]["annotations"] = json!({leases::PEER_ADDRESS: address});
    }
    lease
}

#[tokio::test]
async fn a_lease_is_renewed_and_taken_away_and_those_of_others_stay() {
    let stage = stage().await;
    let server = "konnectivity-server";
    // Living ones, ours and konnectivity's; a dead one; and what only looks like one.
    let others = [
        lease(
            "konnectivity-proxy-server-other",
            server,
            Some("10.0.0.2:10262"),
            0,
        ),
        lease("konnectivity-proxy-server-theirs", server, None, 0),
        lease("somebodys", server, None, 4000),
        lease(
            "konnectivity-proxy-server-labelled-otherwise",
            "x",
            None,
            4000,
        ),
    ];
    let mut kept = Vec::new();
    for other in others {
        kept.push(stage.create(LEASES, other).await);
    }
    let dead = "konnectivity-proxy-server-dead";
    stage.create(LEASES, lease(dead, server, None, 4000)).await;
    let settings = leases::Settings {
        namespace: "kube-system".into(),
        label: ("k8s-app".into(), server.into()),
        id: "us".into(),
        address: "10.0.0.1:10262".into(),
        renew: Duration::from_millis(100),
    };
    let (peers, count) = (Peers::none(), Arc::new(AtomicU32::new(1)));
    let shutdown = CancellationToken::new();
    let keeping = tokio::spawn(leases::keep(
        stage.kube.clone(),
        settings,
        BTreeMap::new(),
        peers.clone(),
        count.clone(),
        shutdown.clone(),
    ));
    let ours = format!("{LEASES}/konnectivity-proxy-server-us");
    let held = |lease: &Value| lease["spec"]["holderIdentity"] == "us";
    let first = stage.until(&ours, held).await;
    assert_eq!(
        first["metadata"]["annotations"][leases::PEER_ADDRESS],
        "10.0.0.1:10262"
    );
    assert_eq!(first["metadata"]["labels"]["k8s-app"], server);
    let renewed = stage
        .until(&ours, |lease| {
            lease["spec"]["renewTime"] != first["spec"]["renewTime"]
        })
        .await;
    assert_eq!(renewed["spec"]["acquireTime"], first["spec"]["acquireTime"]);
    // Taken away by somebody, it is there again.
    stage.kube.delete(&ours).await.expect("deleted");
    stage.until(&ours, held).await;
    // Who lives is counted and, if it is one of ours, connected to.
    until(|| count.load(Ordering::Relaxed) == 3).await;
    let known: Vec<_> = peers
        .status()
        .into_iter()
        .map(|peer| (peer.address, peer.id))
        .collect();
    assert_eq!(known, [("10.0.0.2:10262".to_owned(), "other".to_owned())]);
    stage
        .until(&format!("{LEASES}/{dead}"), |lease| lease["code"] == 404)
        .await;
    shutdown.cancel();
    keeping.await.expect("an end");
    stage.until(&ours, |lease| lease["code"] == 404).await;
    for before in kept {
        let name = before["metadata"]["name"].as_str().expect("a name");
        let now = stage
            .kube
            .get(&format!("{LEASES}/{name}"))
            .await
            .expect("there");
        assert_eq!(now, before, "untouched");
    }
    peers.close().await;
}

#[tokio::test]
async fn tokens_are_reviewed_by_the_api_server() {
    let stage = stage().await;
    for name in ["konnectivity-agent", "other"] {
        stage
            .create(ACCOUNTS, json!({"metadata": {"name": name}}))
            .await;
    }
    let token = async |account: &str, audience: &str| {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [audience]}});
        let granted = stage
            .create(&format!("{ACCOUNTS}/{account}/token"), request)
            .await;
        granted["status"]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    };
    let audience = "system:konnectivity-server";
    let kube = stage.kube.clone();
    let world = World::with(|config| {
        config.guards.tokens = Some(Reviewer {
            account: ServiceAccount {
                namespace: "kube-system".into(),
                name: "konnectivity-agent".into(),
                audiences: vec![audience.into()],
            },
            kube,
        });
    })
    .await;
    // Without a certificate: the token is all there is.
    let nobody = yurt_pki::client_config(&world.ca.0.cert_pem(), None, &["h2"]);
    let way = Way::Tls {
        at: at(world.server.agents),
        name: "server".into(),
        config: nobody.expect("a configuration"),
    };
    let come = async |token: Option<String>| {
        let hello = AgentHello {
            id: "edge-1".into(),
            identifiers: "host=edge-1".parse().expect("never fails"),
            version: String::new(),
        };
        let io = way.open().await.expect("TLS");
        let (dialer, options) = (twin::served(twin::echo), Options::default());
        let shutdown = CancellationToken::new();
        crate::anp::agent::connect(io, hello, dialer, token, options, shutdown).await
    };
    let mut right = token("konnectivity-agent", audience).await;
    let agent = come(Some(right.clone())).await.expect("let in");
    let registry = world.server.switchboard.registry().clone();
    until(|| registry.connected() == 1).await;
    let stream = world.dial(&twin::to("edge-1:22")).await.expect("dialled");
    assert_eq!(twin::exchange(stream, b"ok").await.expect("read"), b"ok");
    let identity = registry.agents().remove(0).links.remove(0).identity;
    assert_eq!(
        identity,
        "system:serviceaccount:kube-system:konnectivity-agent"
    );
    drop(agent);
    until(|| registry.connected() == 0).await;
    let wrong_audience = token("konnectivity-agent", "https://elsewhere").await;
    let wrong_account = token("other", audience).await;
    // The signature of another one.
    right.pop();
    for refused in [
        None,
        Some("rubbish".to_owned()),
        Some(wrong_audience),
        Some(wrong_account),
        Some(right),
        Some("admin".to_owned()),
    ] {
        let came = come(refused.clone()).await;
        assert!(came.is_err(), "{refused:?}");
    }
    assert_eq!(registry.connected(), 0);
}

/// Where agents were asked to dial.
type Dialled = Arc<Mutex<Vec<String>>>;

fn recording(dialled: &Dialled) -> Arc<dyn Dialer> {
    let dialled = dialled.clone();
    Arc::new(Answers(move |to: Destination| {
        dialled.lock().expect("held shortly").push(to.to_string());
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        tokio::spawn(twin::echo(theirs));
        std::future::ready(io::Result::Ok(Box::new(ours) as BoxStream))
    }))
}

#[tokio::test]
async fn pods_and_services_are_reached_by_what_the_cluster_says() {
    let stage = stage().await;
    let (known, tasks, life) = (
        Arc::new(Known::default()),
        TaskTracker::new(),
        CancellationToken::new(),
    );
    known.follow(&stage.kube, &tasks, &life);
    let _ends = life.drop_guard();
    let directory = known.clone();
    let world = World::with(|config| config.directory = directory).await;
    for (name, address) in [("edge-1", "10.0.0.1"), ("edge-2", "10.0.0.2")] {
        let labels = json!({"openyurt.io/is-edge-worker": "true"});
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"podCIDRs": [format!("{address}00/32")]}});
        stage.create("/api/v1/nodes", node).await;
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        let path = format!("/api/v1/nodes/{name}/status");
        stage.kube.merge(&path, &status).await.expect("a status");
    }
    stage
        .create("/api/v1/namespaces", json!({"metadata": {"name": "shop"}}))
        .await;
    let pods = "/api/v1/namespaces/shop/pods";
    let pod = json!({"metadata": {"name": "cart"}, "spec": {"nodeName": "edge-2",
        "containers": [{"name": "c", "image": "i"}]}});
    stage.create(pods, pod).await;
    let status = json!({"status": {"phase": "Running", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}]}});
    let merged = stage
        .kube
        .merge(&format!("{pods}/cart/status"), &status)
        .await;
    merged.expect("a status");
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    let service = stage
        .create("/api/v1/namespaces/shop/services", service)
        .await;
    let cluster_ip = service["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    let slice = json!({"metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.1.0.5"], "nodeName": "edge-2", "conditions": {"ready": true}},
            {"addresses": ["10.1.0.6"], "nodeName": "edge-1", "conditions": {"ready": false}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
    stage.create(slices, slice).await;

    let (one, two) = (Dialled::default(), Dialled::default());
    let _agents = [
        world.agent_by("edge-1", recording(&one)).await,
        world.agent_by("edge-2", recording(&two)).await,
    ];
    let reached = async |target: String| {
        let stream = world.dial(&twin::to(&target)).await?;
        twin::exchange(stream, b"x").await?;
        let taken =
            [&one, &two].map(|dialled| std::mem::take(&mut *dialled.lock().expect("held shortly")));
        Ok::<_, DialError>(taken.map(|dialled| dialled.join(",")))
    };
    let ip = cluster_ip.parse().expect("an address");
    until(|| known.pod_at([10, 1, 0, 5].into()).is_some()).await;
    until(|| {
        known
            .service_at(ip, 80)
            .is_some_and(|endpoints| endpoints.len() == 1)
    })
    .await;
    until(|| {
        known
            .node("edge-2")
            .is_some_and(|node| node.address().is_some())
    })
    .await;
    for (target, dialled) in [
        ("10.1.0.5:9000".to_owned(), "10.1.0.5:9000"),
        (format!("{cluster_ip}:80"), "10.1.0.5:8080"),
        ("web.shop.svc:80".to_owned(), "10.1.0.5:8080"),
        ("web.shop.svc.cluster.local:80".to_owned(), "10.1.0.5:8080"),
        ("10.0.0.2:10250".to_owned(), "10.0.0.2:10250"),
    ] {
        let by = reached(target.clone()).await.expect("reached");
        assert_eq!(by, [String::new(), dialled.to_owned()], "{target}");
    }
    // A port that the Service does not have, a Service that there is not, and a pod that is gone.
    stage
        .kube
        .delete(&format!("{pods}/cart?gracePeriodSeconds=0"))
        .await
        .expect("deleted");
    until(|| known.pod_at([10, 1, 0, 5].into()).is_none()).await;
    for target in [
        format!("{cluster_ip}:81"),
        "other.shop.svc:80".to_owned(),
        "10.1.0.5:9000".to_owned(),
    ] {
        let refused = reached(target.clone()).await;
        assert!(
            matches!(refused, Err(DialError::Busy(_))),
            "{target}: {refused:?}"
        );
    }
    // What is ready next is where it goes.
    let moved = json!({"endpoints": [{"addresses": ["10.1.0.6"], "nodeName": "edge-1", "conditions": {"ready": true}}]});
    let merged = stage.kube.merge(&format!("{slices}/web-x"), &moved).await;
    merged.expect("changed");
    until(|| {
        let endpoints = known.service_at(ip, 80).unwrap_or_default();
        endpoints
            .iter()
            .any(|endpoint| endpoint.node.as_deref() == Some("edge-1"))
    })
    .await;
    let by = reached("web.shop.svc:80".to_owned())
        .await
        .expect("reached");
    assert_eq!(by, ["10.1.0.6:8080".to_owned(), String::new()]);
}
