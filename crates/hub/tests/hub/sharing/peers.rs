//! Other nodes: OpenYurt's, and such as cannot be trusted.

use super::{
    JSON, TABLE,
    pool::{Pool, SERVICES},
    state, tell_next, told,
};
use crate::{
    cloud::{self, Answer, Cloud},
    event,
    link::State,
    node::{Answered, Came, PATIENCE, Watching, eventually},
    pool::Follower,
};
use http::{Method, Request, Response};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpListener;
use yurt_transport::ResponseBody;

impl Follower {
    /// As client-go asks.
    async fn send(&self, target: &str, accept: &str) -> Response<ResponseBody> {
        let request = Request::builder()
            .uri(target)
            .header("accept", accept)
            .header("user-agent", "multiplexer-proxy-edge-2")
            .body(yurt_transport::empty())
            .unwrap();
        self.0.send(request, PATIENCE).await.unwrap()
    }

    async fn read(&self, target: &str, accept: &str) -> Answered {
        Answered::of(self.send(target, accept).await).await
    }

    async fn follow(&self, target: &str) -> Watching {
        let response = self.send(target, "application/json").await;
        assert_eq!(response.status(), 200, "{target}");
        Watching::of(response)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_openyurt_are_served() {
    let pool = Pool::start(2).await;
    pool.led_by(&[1]).await;
    pool.create("a", json!({})).await;
    pool.until_shared(1).await;
    let leader = format!("{}:{}", pool.address(1), pool.port());
    let (pair, _) = pool.certificate(2);
    let follower = Follower::new(&pool.trust, leader.parse().unwrap(), Some(&pair));
    // As a reflector of OpenYurt's multiplexer: from the watch cache, then a watch from there.
    let listed = follower
        .read(&format!("{SERVICES}?resourceVersion=0"), "application/json")
        .await;
    assert_eq!(listed.status, 200, "{}", listed.text());
    let listed = listed.json();
    assert_eq!(state(&listed).len(), 2);
    let from = listed["metadata"]["resourceVersion"].as_str().unwrap();
    let target = format!(
        "{SERVICES}?allowWatchBookmarks=true&resourceVersion={from}&timeout=7m1s&timeoutSeconds=421&watch=true"
    );
    let mut watch = follower.follow(&target).await;
    let revision = pool.change("a", json!({"x": "y"})).await;
    assert_eq!(
        told(&mut watch).await,
        ("MODIFIED".into(), "a".into(), revision)
    );
    let bookmark = watch.event().await;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["resourceVersion"],
        revision.to_string()
    );
    // What people ask with a node's certificate.
    for path in ["/api", "/apis", "/api/v1"] {
        assert_eq!(
            follower.read(path, "application/json").await.status,
            200,
            "{path}"
        );
    }
    let table = follower.read(SERVICES, TABLE).await.json();
    assert_eq!(table["rows"].as_array().map(Vec::len), Some(2), "{table}");
    for path in ["/api/v1/pods", "/api/v1/secrets"] {
        assert_eq!(
            follower.read(path, "application/json").await.status,
            403,
            "{path}"
        );
    }
    // Protobuf, as OpenYurt's hubs ask it where they can.
    let bytes = follower
        .read(
            SERVICES,
            "application/vnd.kubernetes.protobuf,application/json",
        )
        .await;
    assert!(bytes.body.starts_with(b"k8s\0"));
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_knows_nothing_says_so() {
    let pool = Pool::start(1).await;
    pool.led_by(&[1]).await;
    let node = pool.node(1);
    // The map is in force.
    pool.until_shared(1).await;
    pool.define("widgets", "Widget").await;
    pool.link(1).set(State::Cut);
    node.until_mode("offline").await;
    let leader = format!("{}:{}", pool.address(1), pool.port());
    let (pair, _) = pool.certificate(9);
    let follower = Follower::new(&pool.trust, leader.parse().unwrap(), Some(&pair));
    let refused = follower
        .read(
            "/apis/example.io/v1/widgets?resourceVersion=0",
            "application/json",
        )
        .await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.json()["reason"], "TooManyRequests");
    // What it knows it tells.
    assert_eq!(
        follower.read(SERVICES, "application/json").await.status,
        200
    );
    pool.stop().await;
}

/// A node that the cloud names as a leader, and that says whatever it is told to.
async fn rogue(pool: &Pool) -> Cloud {
    let address = format!("{}:{}", pool.address(9), pool.port());
    let (_, serving) = pool.certificate(9);
    let listener = TcpListener::bind(address).await.unwrap();
    let rogue = Cloud::start_on(listener, &pool.trust, &serving).await;
    // What is true of long ago; who knows nothing yet begins with it.
    let list = services(5, &[service("kubernetes", 4)]).to_string();
    rogue.answer(Method::GET, SERVICES, 200, cloud::JSON, list);
    rogue
}

fn service(name: &str, revision: u64) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default", "uid": name,
        "resourceVersion": revision.to_string()}, "spec": {"clusterIP": "10.0.0.7"}})
}

fn services(revision: u64, items: &[Value]) -> Value {
    json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": revision.to_string()}, "items": items})
}

async fn distrusts(pool: &Pool, reason: &str) -> f64 {
    let line = format!("node_yurthub_pool_distrusts_total{{reason=\"{reason}\"}}");
    pool.node(2).metric(&line).await
}

/// A follower of the rogue, and a watch of a client there.
async fn misled(pool: &Pool, rogue: &Cloud) -> Watching {
    pool.led_by(&[9]).await;
    pool.until_shared(2).await;
    let node = pool.node(2);
    eventually("fed by the rogue", async || {
        node.feed("services").await["source"] == "edge-9" && rogue.watching(SERVICES) > 0
    })
    .await;
    let target = format!("{SERVICES}?watch=true&resourceVersion=0");
    let mut watch = node.watch(&target, &[JSON]).await;
    tell_next(&mut watch, "ADDED", "kubernetes").await;
    watch
}

/// What comes of a frame that is no event of the resource.
async fn not_believed(frame: String) {
    let pool = Pool::start(2).await;
    let rogue = rogue(&pool).await;
    let mut watch = misled(&pool, &rogue).await;
    let listed = pool.node(2).get(SERVICES).await.json();
    let known = &listed["metadata"]["resourceVersion"];
    let known: u64 = known.as_str().unwrap().parse().unwrap();
    // Kept back by the rogue, which tells of another one instead.
    pool.create("a", json!({})).await;
    pool.change("a", json!({"x": "y"})).await;
    let bogus = event("ADDED", &service("bogus", known + 1).to_string());
    rogue.emit(SERVICES, bogus).await;
    tell_next(&mut watch, "ADDED", "bogus").await;
    rogue.emit(SERVICES, frame).await;
    eventually("not believed", async || {
        distrusts(&pool, "garbage").await > 0.0
    })
    .await;
    // The frame was told to nobody, and the stream goes on with what is true.
    pool.led_by(&[1]).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let (kind, name, _) = told(&mut watch).await;
        if name != "kubernetes" {
            seen.push(format!("{kind} {name}"));
        }
    }
    seen.sort();
    assert_eq!(seen, ["ADDED a", "DELETED bogus"]);
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_neither_told_nor_believed() {
    Box::pin(not_believed("]]]]\n".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_another_kind_are_neither_told_nor_believed() {
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "resourceVersion": "900000"}});
    Box::pin(not_believed(event("ADDED", &pod.to_string()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lie_about_revisions_does_not_outlive_the_liar() {
    const FUTURE: u64 = 1_000_000_000_000;
    let pool = Pool::start(2).await;
    let rogue = rogue(&pool).await;
    let mut watch = misled(&pool, &rogue).await;
    let bogus = event("ADDED", &service("bogus", FUTURE).to_string());
    rogue.emit(SERVICES, bogus).await;
    tell_next(&mut watch, "ADDED", "bogus").await;
    pool.led_by(&[1]).await;
    // It holds a state that never was: it has to begin anew.
    let told = watch.event().await;
    assert_eq!(
        (&told["type"], &told["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(watch.next().await, Came::End);
    let node = pool.node(2);
    eventually("the truth", async || {
        let listed = node.get(SERVICES).await;
        listed.status == 200
            && state(&listed.json())
                .iter()
                .map(|(name, _)| name)
                .eq(["kubernetes"])
    })
    .await;
    eventually("fed again", async || {
        node.feed("services").await["stage"] == "synced"
    })
    .await;
    let revision = node.feed("services").await["revision"].as_u64();
    assert!(revision.is_some_and(|revision| revision < FUTURE));
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_any_more_is_set_aside() {
    let pool = Pool::start_with(2, Duration::from_secs(1)).await;
    let rogue = rogue(&pool).await;
    rogue.set(Method::GET, SERVICES, Answer::Silence);
    let mut watch = misled(&pool, &rogue).await;
    eventually("set aside", async || {
        distrusts(&pool, "stalled").await > 0.0
    })
    .await;
    // Who is served goes on being served.
    assert_eq!(pool.node(2).get(SERVICES).await.status, 200);
    assert!(watch.silent_for(Duration::from_millis(50)).await);
    pool.stop().await;
}
