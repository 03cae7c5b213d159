//! A pool of three hubs, each with a link to the cloud and one to the others: who leads it, whose leases are renewed for them, and what
//! comes of peers that are not to be believed.

use crate::{
    cloud::{Cloud, JSON, Seen, Trust},
    link::{Link, State},
    node::{Directory, Node, config, eventually},
    pool,
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Body, ServeOptions};

const INTERVAL: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_millis(2500);
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const MAP: &str =
    "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dleader-hub-here";
const SECRET: &str = "/api/v1/namespaces/kube-system/secrets?fieldSelector=metadata.name%3Dyurt-coordinator-yurthub-certs";
const PROXY: &str = "openyurt:yurt-coordinator:node-lease-proxy-client";
const DELEGATE: &str = "openyurt.io/delegate-heartbeat";
const PRESENCE: &str = "/yurt.io/pool/v1/presence";

fn name(index: usize) -> String {
    format!("edge-{}", index + 1)
}

/// Where the others reach a node.
fn address(index: usize) -> IpAddr {
    IpAddr::from([127, 0, 7, u8::try_from(index + 1).unwrap()])
}

fn list(kind: &str, items: &[Value]) -> String {
    json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": {"resourceVersion": "20"}, "items": items})
        .to_string()
}

fn serving(ca: &Ca, user: &str, address: IpAddr) -> KeyPairPem {
    ca.issue(&Profile {
        common_name: user.into(),
        organizations: vec!["system:nodes".into()],
        ips: vec![address],
        server: true,
        days: 1,
        ..Profile::default()
    })
    .unwrap()
}

/// Listeners for several nodes, all on one port.
async fn doors(count: usize) -> Vec<TcpListener> {
    loop {
        let first = TcpListener::bind((address(0), 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut doors = vec![first];
        for index in 1..count {
            match TcpListener::bind((address(index), port)).await {
                Ok(door) => doors.push(door),
                Err(_) => break,
            }
        }
        if doors.len() == count {
            return doors;
        }
    }
}

fn leaders(cloud: &Cloud, ranked: &[usize]) {
    let ranked: Vec<String> = ranked
        .iter()
        .map(|index| format!("{}/{}", name(*index), address(*index)))
        .collect();
    // The cloud names one, an administrator those that are to follow.
    let map = json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "leader-hub-here", "namespace": "kube-system", "uid": "m", "resourceVersion": "12"},
        "data": {"leaders": ranked[0], "candidates": ranked[1..].join(","), "enable-leader-election": "true"},
    });
    cloud.answer(Method::GET, MAP, 200, JSON, list("ConfigMap", &[map]));
}

fn secret(cloud: &Cloud, ca: &Ca) {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let pair = pool::certificate(ca, PROXY, &[]);
    let secret = json!({
        "kind": "Secret", "apiVersion": "v1",
        "metadata": {"name": "yurt-coordinator-yurthub-certs", "namespace": "kube-system", "uid": "s", "resourceVersion": "13"},
        "data": {"node-lease-proxy-client.crt": STANDARD.encode(&pair.cert), "node-lease-proxy-client.key": STANDARD.encode(&pair.key)},
    });
    cloud.answer(Method::GET, SECRET, 200, JSON, list("Secret", &[secret]));
}

fn lease(index: usize) -> String {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name(index), "namespace": "kube-node-lease", "uid": "lease", "resourceVersion": "5"},
        "spec": {"holderIdentity": name(index), "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"},
    })
    .to_string()
}

/// What is written into a lease in the cloud.
#[derive(Clone, Debug)]
struct Renewal {
    user: String,
    delegated: bool,
    time: String,
    body: Value,
}

/// Three hubs.
struct Trio {
    cloud: Cloud,
    nodes: Vec<Node>,
    links: Vec<Link>,
    doors: Vec<Link>,
    _directories: Vec<Directory>,
}

impl Trio {
    async fn start(told: impl FnOnce(&Cloud, &Ca)) -> Self {
        let trust = Trust::new();
        let cloud = Cloud::start(&trust).await;
        pool::script(&cloud);
        let all: Vec<String> = (0..3).map(name).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        pool::members(&cloud, &all);
        leaders(&cloud, &[0, 1, 2]);
        for index in 0..3 {
            let path = format!("{LEASES}/{}", name(index));
            cloud.answer(Method::GET, &path, 200, JSON, lease(index));
            cloud.answer(Method::PUT, &path, 200, JSON, lease(index));
        }
        told(&cloud, &trust.ca);
        let mut trio = Self {
            cloud: cloud.clone(),
            nodes: Vec::new(),
            links: Vec::new(),
            doors: Vec::new(),
            _directories: Vec::new(),
        };
        for (index, door) in doors(3).await.into_iter().enumerate() {
            let directory = Directory::new();
            let link = Link::to(cloud.addr).await;
            let config = hub_config(&directory, &trust, link.addr, index, &door);
            let node = Node::start(config).await;
            trio.doors.push(Link::on(door, node.pool));
            trio.nodes.push(node);
            trio.links.push(link);
            trio._directories.push(directory);
        }
        trio
    }

    async fn told(&self, index: usize) -> Value {
        self.nodes[index].admin("/v1/pool").await.json()
    }

    /// Whom each goes by.
    async fn leaders(&self) -> Vec<String> {
        let mut leaders = Vec::new();
        for index in 0..3 {
            let told = self.told(index).await;
            leaders.push(match told["role"].as_str().unwrap() {
                "leader" => name(index),
                "follower" => told["leader"].as_str().unwrap().to_owned(),
                alone => alone.to_owned(),
            });
        }
        leaders
    }

    async fn until_led_by(&self, expected: [&str; 3]) {
        eventually(&format!("led by {expected:?}"), async || {
            self.leaders().await == expected
        })
        .await;
    }

    fn renewals(&self, index: usize) -> Vec<Renewal> {
        let seen = self
            .cloud
            .seen(Method::PUT, &format!("{LEASES}/{}", name(index)));
        seen.iter().map(renewal).collect()
    }

    fn delegated(&self, index: usize) -> usize {
        self.renewals(index).iter().filter(|r| r.delegated).count()
    }

    async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }
}

fn renewal(seen: &Seen) -> Renewal {
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    Renewal {
        user: seen.user.clone(),
        delegated: body["metadata"]["annotations"][DELEGATE] == "true",
        time: body["spec"]["renewTime"].as_str().unwrap().to_owned(),
        body,
    }
}

fn hub_config(
    directory: &Directory,
    trust: &Trust,
    cloud: SocketAddr,
    index: usize,
    door: &TcpListener,
) -> yurt_hub::Config {
    let mut config = config(&directory.0, trust, &[cloud]);
    let write = |name: &str, pair: KeyPairPem| {
        let file = |suffix: &str| directory.0.join(format!("{name}.{suffix}"));
        std::fs::write(file("crt"), pair.cert).unwrap();
        std::fs::write(file("key"), pair.key).unwrap();
    };
    let user = format!("system:node:{}", name(index));
    write("node", pool::hub_certificate(&trust.ca, &name(index)));
    write("serving", serving(&trust.ca, &user, address(index)));
    config.node_name = name(index);
    config.pool = "here".into();
    config.pool_port = Some(door.local_addr().unwrap().port());
    config.heartbeat.interval = INTERVAL;
    config.heartbeat.kubelet_grace = GRACE;
    config
}

/// A kubelet that renews its lease at its hub.
struct Kubelet {
    alive: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Kubelet {
    fn of(node: &Node, index: usize) -> Self {
        let alive = Arc::new(AtomicBool::new(true));
        let beating = alive.clone();
        let client = node.client.clone();
        let task = tokio::spawn(async move {
            loop {
                if beating.load(Ordering::Relaxed) {
                    let request = Request::builder()
                        .method(Method::PUT)
                        .uri(format!("{LEASES}/{}", name(index)))
                        .header("content-type", JSON)
                        .body(yurt_transport::full(lease(index)))
                        .unwrap();
                    let _ = client.send(request, Duration::from_secs(5)).await;
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { alive, task }
    }

    fn lives(&self, lives: bool) {
        self.alive.store(lives, Ordering::Relaxed);
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_that_answers_and_has_a_link_leads() {
    let trio = Trio::start(|_, _| {}).await;
    trio.until_led_by(["edge-1"; 3]).await;
    eventually(
        "it is seen to lead, and counts itself as leader",
        async || {
            let first = trio.told(1).await["candidates"][0].clone();
            let gauge = trio.nodes[0].metric("node_yurthub_pool_leader").await;
            first["link"] == "online" && first["leads"] == true && gauge == 1.0
        },
    )
    .await;

    // Out of the others' reach, and unaware of it: it goes on, for itself.
    trio.doors[0].set(State::Cut);
    trio.until_led_by(["edge-1", "edge-2", "edge-2"]).await;
    let took = trio.told(2).await["lastTakeoverMilliseconds"].clone();
    assert!(took.is_number(), "{took}");
    let changes = "node_yurthub_pool_role_changes_total{reason=\"leader\"}";
    assert!(trio.nodes[1].metric(changes).await >= 1.0);
    trio.doors[0].set(State::Whole);
    trio.until_led_by(["edge-1"; 3]).await;

    // Without a link it steps back by itself.
    trio.links[0].set(State::Cut);
    trio.until_led_by(["edge-2"; 3]).await;
    // As a whole: one for all, whoever.
    trio.links[1].set(State::Cut);
    trio.until_led_by(["edge-3"; 3]).await;
    trio.links[2].set(State::Cut);
    eventually("nobody has a link, and all go by the same", async || {
        let mut cut = true;
        for index in 0..3 {
            cut &= trio.told(index).await["link"] == "offline";
        }
        let leaders = trio.leaders().await;
        cut && leaders[0].starts_with("edge-") && leaders.iter().all(|l| *l == leaders[0])
    })
    .await;
    for link in &trio.links {
        link.set(State::Whole);
    }
    trio.until_led_by(["edge-1"; 3]).await;
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_ends_is_followed_at_once() {
    let mut trio = Trio::start(|_, _| {}).await;
    trio.until_led_by(["edge-1"; 3]).await;
    trio.nodes.remove(0).stop().await;
    for node in &trio.nodes {
        eventually("edge-2 leads", async || {
            let told = node.admin("/v1/pool").await.json();
            told["role"] == "leader" || told["leader"] == "edge-2"
        })
        .await;
    }
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_renews_the_lease_of_a_node_that_is_cut_for_as_long_as_its_kubelet_lives() {
    let trio = Trio::start(secret).await;
    let kubelet = Kubelet::of(&trio.nodes[2], 2);
    trio.until_led_by(["edge-1"; 3]).await;
    eventually("it renews by itself", async || !trio.renewals(2).is_empty()).await;
    assert_eq!(trio.delegated(2), 0);

    trio.links[2].set(State::Cut);
    eventually("it is renewed for it", async || trio.delegated(2) >= 3).await;
    let delegated: Vec<Renewal> = trio
        .renewals(2)
        .into_iter()
        .filter(|renewal| renewal.delegated)
        .collect();
    for pair in delegated.windows(2) {
        assert!(pair[0].time < pair[1].time, "{pair:?}");
    }
    let last = delegated.last().unwrap();
    assert_eq!(last.user, PROXY);
    assert_eq!(last.body["spec"]["holderIdentity"], "edge-3");
    assert_eq!(last.body["metadata"]["uid"], "lease");
    // Told by whoever is asked.
    for index in 0..3 {
        eventually("edge-3 is alive by edge-1's word", async || {
            let told = trio.told(index).await;
            let mut nodes = told["nodes"].as_array().unwrap().iter();
            let cut = nodes.find(|node| node["node"] == "edge-3");
            told["evidence"] == "edge-1"
                && cut.is_some_and(|cut| cut["alive"] == true && cut["delegated"] == true)
        })
        .await;
    }
    let renewed = "node_yurthub_pool_delegated_renewals_total{reason=\"renewed\"}";
    assert!(trio.nodes[0].metric(renewed).await >= 3.0);
    // Nothing of it waits for the link.
    assert_eq!(trio.nodes[2].status().await["journal"]["pending"], 0);

    // A kubelet that is dead is not kept alive.
    kubelet.lives(false);
    eventually("the leader stops", async || {
        let before = trio.delegated(2);
        tokio::time::sleep(INTERVAL * 8).await;
        trio.delegated(2) == before
    })
    .await;
    eventually("and says so", async || {
        let told = trio.told(0).await;
        let nodes = told["nodes"].as_array().unwrap();
        nodes
            .iter()
            .any(|node| node["node"] == "edge-3" && node["alive"] == false)
    })
    .await;
    kubelet.lives(true);
    let before = trio.delegated(2);
    eventually("it lives again", async || trio.delegated(2) > before).await;

    // The next leader goes on with it.
    trio.links[0].set(State::Cut);
    trio.until_led_by(["edge-2"; 3]).await;
    let before = trio.delegated(2);
    eventually("the next leader renews", async || {
        trio.delegated(2) > before
    })
    .await;

    // Back: it speaks for itself, and nobody else does.
    trio.links[2].set(State::Whole);
    eventually("its own word", async || {
        let last = trio.renewals(2).pop().unwrap();
        last.user == "system:node:edge-3" && !last.delegated
    })
    .await;
    eventually("and no other", async || {
        let before = trio.renewals(2).len();
        tokio::time::sleep(INTERVAL * 5).await;
        let since = trio.renewals(2).split_off(before);
        !since.is_empty() && since.iter().all(|renewal| !renewal.delegated)
    })
    .await;
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_identity_for_it_nothing_is_renewed_and_that_is_said() {
    let none = |cloud: &Cloud, _: &Ca| {
        cloud.answer(Method::GET, SECRET, 200, JSON, list("Secret", &[]));
    };
    let trio = Trio::start(none).await;
    let _kubelet = Kubelet::of(&trio.nodes[2], 2);
    trio.until_led_by(["edge-1"; 3]).await;
    trio.links[2].set(State::Cut);
    let counted = "node_yurthub_pool_delegated_renewals_total{reason=\"no_identity\"}";
    eventually("it is counted", async || {
        trio.nodes[0].metric(counted).await >= 1.0
    })
    .await;
    assert_eq!(trio.delegated(2), 0);
    eventually("it is said", async || {
        let told = trio.told(0).await["delegation"].clone();
        let why = told["why"].as_str().unwrap_or_default();
        told["state"] == "noIdentity" && why.contains("yurt-coordinator-yurthub-certs")
    })
    .await;
    trio.stop().await;
}

/// What a scripted peer answers.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Lines that are none.
    Garbage,
    /// That it is somebody else.
    Lies,
    /// Without an end.
    Flood,
    /// As a leader of OpenYurt, which passes the question on to a cloud that has no answer.
    OpenYurt,
}

fn respond(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .body(yurt_transport::full(body))
        .unwrap()
}

/// Another node, scripted.
fn scripted(
    door: TcpListener,
    trust: &Trust,
    shown: &KeyPairPem,
    manner: Manner,
) -> CancellationToken {
    let ca = trust.ca.cert_pem();
    let tls = yurt_pki::server_config_for(shown, yurt_pki::Callers::Certified(&ca), false).unwrap();
    let stop = CancellationToken::new();
    let handler = move |request: Request<hyper::body::Incoming>| async move {
        let lines = "application/jsonl";
        let beat = |node: &str| format!("{{\"node\":\"{node}\",\"link\":\"online\"}}\n");
        match manner {
            Manner::OpenYurt if request.uri().path() == PRESENCE => respond(404, JSON, "{}"),
            Manner::OpenYurt => respond(200, JSON, list("Service", &[])),
            Manner::Garbage => respond(200, lines, "\u{0}\u{1} nonsense\n"),
            Manner::Lies => respond(200, lines, beat("edge-1")),
            Manner::Flood => respond(200, lines, beat("edge-5").repeat(10_000)),
        }
    };
    tokio::spawn(yurt_transport::serve(
        door,
        Some(Arc::new(ArcSwap::new(tls))),
        ServeOptions {
            drain: Duration::from_millis(50),
            ..ServeOptions::default()
        },
        stop.clone(),
        handler,
    ));
    stop
}

/// The hub `edge-1` among scripted candidates.
async fn among(
    trust: &Trust,
    cloud: &Cloud,
    directory: &Directory,
    ranked: &[usize],
    door: TcpListener,
) -> Node {
    pool::script(cloud);
    pool::members(cloud, &["edge-1", "edge-2", "edge-3", "edge-4", "edge-5"]);
    leaders(cloud, ranked);
    let config = hub_config(directory, trust, cloud.addr, 0, &door);
    let node = Node::start(config).await;
    Link::on(door, node.pool);
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_to_be_believed_does_not_lead() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let mut doors = doors(6).await.into_iter();
    let own = doors.next().unwrap();
    let user = |index: usize| format!("system:node:{}", name(index));
    let honest = |index: usize| serving(&trust.ca, &user(index), address(index));
    let other = Ca::new("other", 1).unwrap();
    let mut peers = Vec::new();
    for (index, shown, manner) in [
        // Another node's, and another CA's.
        (
            1,
            serving(&trust.ca, &user(4), address(1)),
            Manner::OpenYurt,
        ),
        (2, serving(&other, &user(2), address(2)), Manner::OpenYurt),
        (3, honest(3), Manner::Garbage),
        (4, honest(4), Manner::Flood),
    ] {
        assert_eq!(index, peers.len() + 1);
        peers.push(scripted(doors.next().unwrap(), &trust, &shown, manner));
    }
    // Never answers.
    let _silent = doors.next().unwrap();
    let node = among(&trust, &cloud, &directory, &[1, 2, 3, 4, 5, 0], own).await;
    eventually("edge-1 leads", async || {
        node.admin("/v1/pool").await.json()["role"] == "leader"
    })
    .await;
    let count = async |reason: &str| {
        let line = format!("node_yurthub_pool_distrusts_total{{reason=\"{reason}\"}}");
        node.metric(&line).await
    };
    assert!(count("certificate").await >= 2.0);
    assert!(count("garbage").await >= 1.0);
    assert!(count("flood").await >= 1.0);
    eventually("and why is told of each", async || {
        let told = node.admin("/v1/pool").await.json();
        let mut candidates = told["candidates"].as_array().unwrap().iter();
        candidates.all(|candidate| match candidate["node"] == "edge-1" {
            true => candidate["state"] == "self",
            false => candidate["state"] == "silent" && candidate["why"].is_string(),
        })
    })
    .await;
    node.stop().await;
    peers.iter().for_each(CancellationToken::cancel);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_openyurt_is_followed_for_as_long_as_it_answers() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let mut doors = doors(3).await.into_iter();
    let own = doors.next().unwrap();
    let shown = serving(&trust.ca, "system:node:edge-2", address(1));
    let leader = scripted(doors.next().unwrap(), &trust, &shown, Manner::OpenYurt);
    let shown = serving(&trust.ca, "system:node:edge-3", address(2));
    let liar = scripted(doors.next().unwrap(), &trust, &shown, Manner::Lies);
    let node = among(&trust, &cloud, &directory, &[1, 2, 0], own).await;
    eventually("it is followed", async || {
        node.admin("/v1/pool").await.json()["leader"] == "edge-2"
    })
    .await;
    let told = node.admin("/v1/pool").await.json();
    assert_eq!(told["candidates"][0]["openyurt"], true, "{told}");
    assert_eq!(told["candidates"][0]["link"], Value::Null, "{told}");
    assert_eq!(told["evidence"], Value::Null, "{told}");
    leader.cancel();
    eventually("it is not any more", async || {
        node.admin("/v1/pool").await.json()["role"] == "leader"
    })
    .await;
    let lies = "node_yurthub_pool_distrusts_total{reason=\"lies\"}";
    assert!(node.metric(lies).await >= 1.0);
    node.stop().await;
    liar.cancel();
}
