//! Sharing within a pool: hubs on loopback addresses of their own, an API server behind them, plain clients in front.

mod peers;
mod pool;

use crate::{
    link::State,
    node::{Came, Watching, eventually},
    recorded::write,
};
use http::Method;
use pool::{Pool, SERVICES};
use serde_json::{Value, json};
use std::time::Duration;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const JSON: (&str, &str) = ("accept", "application/json");

/// The type, name and revision of the next event that is no bookmark.
async fn told(watch: &mut Watching) -> (String, String, u64) {
    loop {
        let event = watch.event().await;
        if event["type"] == "BOOKMARK" {
            continue;
        }
        let meta = &event["object"]["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let revision = text(&meta["resourceVersion"]).parse().unwrap_or(0);
        return (text(&event["type"]), text(&meta["name"]), revision);
    }
}

async fn tell_next(watch: &mut Watching, kind: &str, name: &str) {
    let (got, of, _) = told(watch).await;
    assert_eq!((&*got, &*of), (kind, name));
}

/// Names and revisions of a list.
fn state(list: &Value) -> Vec<(String, String)> {
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = |item: &Value| {
        let meta = &item["metadata"];
        (text(&meta["name"]), text(&meta["resourceVersion"]))
    };
    items.iter().map(meta).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_asks_the_cloud_once() {
    let pool = Pool::start(3).await;
    pool.led_by(&[1]).await;
    for name in ["a", "b"] {
        pool.create(name, json!({"color": "red"})).await;
    }
    // Followers first: whoever asks is served.
    let mut watches = Vec::new();
    for number in [2, 3, 1] {
        let node = pool.node(number);
        pool.until_shared(number).await;
        for (query, agent) in [
            ("resourceVersion=0", "one"),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
                "two",
            ),
        ] {
            let target = format!("{SERVICES}?watch=true&{query}");
            let mut watch = node.watch(&target, &[JSON, ("user-agent", agent)]).await;
            tell_next(&mut watch, "ADDED", "a").await;
            tell_next(&mut watch, "ADDED", "b").await;
            tell_next(&mut watch, "ADDED", "kubernetes").await;
            watches.push(watch);
        }
        let listed = node.get(SERVICES).await.json();
        assert_eq!(state(&listed).len(), 3, "{listed}");
    }
    // What a hub reads when it starts does not count, however late it comes.
    let received = || -> Vec<u64> { (1..=3).map(|n| pool.link(n).received()).collect() };
    eventually("the links are quiet", async || {
        let then = received();
        tokio::time::sleep(Duration::from_millis(500)).await;
        then.iter()
            .zip(received())
            .all(|(then, now)| now - then < 2000)
    })
    .await;
    let before = received();
    for round in 0..40 {
        pool.change(
            "a",
            json!({"data": "x".repeat(2000), "round": round.to_string()}),
        )
        .await;
    }
    pool.create("c", json!({})).await;
    pool.remove("b").await;
    let mut revisions = Vec::new();
    for watch in &mut watches {
        let mut seen = Vec::new();
        for _ in 0..40 {
            let (kind, name, revision) = told(watch).await;
            assert_eq!((&*kind, &*name), ("MODIFIED", "a"));
            seen.push(revision);
        }
        tell_next(watch, "ADDED", "c").await;
        tell_next(watch, "DELETED", "b").await;
        assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
        revisions.push(seen);
    }
    assert!(revisions.windows(2).all(|pair| pair[0] == pair[1]));
    let received: Vec<u64> = (1..=3)
        .map(|number| pool.link(number).received() - before[number - 1])
        .collect();
    // The leader took each change once; the others nothing of it.
    assert!(
        received[0] > 40 * 2000 && received[0] < 2 * 40 * 2000,
        "{received:?}"
    );
    for follower in &received[1..] {
        assert!(*follower < 20_000, "{received:?}");
    }
    for number in 1..=3 {
        let node = pool.node(number);
        let feed = node.feed("services").await;
        assert!(feed["lists"].as_u64() <= Some(1), "{feed}");
        assert!(node.metric("node_yurthub_pool_saved_bytes_total").await > 0.0);
        let line = "node_yurthub_pool_feed_watchers{resource=\"services\"}";
        assert!(node.metric(line).await >= 2.0);
    }
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_resume_select_and_show_as_clients_want() {
    let pool = Pool::start(2).await;
    pool.led_by(&[1]).await;
    pool.create("a", json!({"color": "red"})).await;
    pool.until_shared(2).await;
    let node = pool.node(2);
    let from = node.get(SERVICES).await.json()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut red = node
        .watch(
            &format!("{SERVICES}?watch=true&labelSelector=color%3Dred"),
            &[JSON],
        )
        .await;
    tell_next(&mut red, "ADDED", "a").await;
    let mut table = node
        .watch(
            &format!("{SERVICES}?watch=true&resourceVersion={from}"),
            &[("accept", TABLE)],
        )
        .await;
    pool.label("a", "blue").await;
    pool.label("a", "red").await;
    pool.remove("a").await;
    for kind in ["DELETED", "ADDED", "DELETED"] {
        tell_next(&mut red, kind, "a").await;
    }
    for kind in ["MODIFIED", "MODIFIED", "DELETED"] {
        let event = table.event().await;
        assert_eq!(event["type"], kind);
        assert_eq!(event["object"]["kind"], "Table");
    }
    // From a revision of the past: everything since, once.
    let mut since = node
        .watch(
            &format!("{SERVICES}?watch=true&resourceVersion={from}"),
            &[JSON],
        )
        .await;
    let mut last = from.parse().unwrap();
    for kind in ["MODIFIED", "MODIFIED", "DELETED"] {
        let (got, _, revision) = told(&mut since).await;
        assert_eq!(got, kind);
        assert!(revision > last);
        last = revision;
    }
    // What is not known any more, and what is not known yet.
    let old = node
        .get(&format!("{SERVICES}?watch=true&resourceVersion=1"))
        .await;
    assert_eq!(old.status, 410, "{}", old.text());
    let future = node
        .get(&format!("{SERVICES}?resourceVersion=9999999"))
        .await;
    assert_eq!(future.status, 504);
    assert_eq!(
        future.json()["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    // In pages that nobody needs.
    let listed = node.get(&format!("{SERVICES}?limit=1")).await.json();
    assert_eq!(listed["metadata"]["continue"], Value::Null);
    let shown = node.get_as(SERVICES, &[("accept", TABLE)]).await.json();
    assert_eq!(shown["kind"], "Table");
    assert!(
        shown["rows"]
            .as_array()
            .is_some_and(|rows| !rows.is_empty())
    );
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_go_on_whoever_leads() {
    let pool = Pool::start(3).await;
    pool.led_by(&[1, 2]).await;
    pool.create("a", json!({})).await;
    // Each may come to lead, and remembers what happened.
    for number in 1..=3 {
        pool.until_shared(number).await;
    }
    let node = pool.node(3);
    let mut watch = node
        .watch(&format!("{SERVICES}?watch=true&resourceVersion=0"), &[JSON])
        .await;
    tell_next(&mut watch, "ADDED", "a").await;
    tell_next(&mut watch, "ADDED", "kubernetes").await;
    let mut round = 0;
    let mut expected = Vec::new();
    let mut churn = async |count: usize| {
        for _ in 0..count {
            round += 1;
            expected.push(pool.change("a", json!({"round": round.to_string()})).await);
        }
    };
    churn(5).await;
    let before = node.feed("services").await;
    assert_eq!(before["source"], "edge-1");
    // The cloud names others.
    pool.led_by(&[2]).await;
    churn(5).await;
    eventually("another leads", async || {
        node.feed("services").await["source"] == "edge-2"
    })
    .await;
    churn(5).await;
    // This node itself.
    pool.led_by(&[3]).await;
    eventually("this node leads", async || {
        node.feed("services").await["source"] == "cloud"
    })
    .await;
    churn(5).await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        let (kind, name, revision) = told(&mut watch).await;
        assert_eq!((&*kind, &*name), ("MODIFIED", "a"));
        seen.push(revision);
    }
    assert_eq!(seen, expected, "nothing lost, nothing twice, in order");
    assert!(watch.silent_for(Duration::from_millis(200)).await);
    let feed = node.feed("services").await;
    assert_eq!(feed["lists"], before["lists"], "resumed everywhere: {feed}");
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_before_the_pool_shares_ends_and_its_client_shares() {
    let pool = Pool::start(1).await;
    pool.create("a", json!({})).await;
    let target = format!("{SERVICES}?watch=true");
    let node = pool.node(1);
    assert_eq!(node.status().await["pool"]["role"], "alone");
    let mut watch = node.watch(&target, &[JSON]).await;
    tell_next(&mut watch, "ADDED", "a").await;
    tell_next(&mut watch, "ADDED", "kubernetes").await;
    let revision = pool.change("a", json!({"x": "y"})).await;
    assert_eq!(told(&mut watch).await.2, revision);
    pool.led_by(&[1]).await;
    assert_eq!(watch.next().await, Came::End);
    pool.until_shared(1).await;
    let mut watch = node
        .watch(&format!("{SERVICES}?watch=true&resourceVersion=0"), &[JSON])
        .await;
    tell_next(&mut watch, "ADDED", "a").await;
    tell_next(&mut watch, "ADDED", "kubernetes").await;
    assert_eq!(node.feed("services").await["watchers"], 1);
    let revision = pool.change("a", json!({"x": "z"})).await;
    assert_eq!(told(&mut watch).await.2, revision);
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_node_asks_its_peers_for_what_it_never_read() {
    let pool = Pool::start(2).await;
    pool.led_by(&[1]).await;
    pool.until_shared(1).await;
    pool.until_led(2).await;
    pool.link(2).set(State::Cut);
    pool.node(2).until_mode("offline").await;
    pool.create("new", json!({})).await;
    let path = "/api/v1/namespaces/default/services/new";
    eventually("one service is known by its name", async || {
        pool.node(2).get(path).await.status == 200
    })
    .await;
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_cut_tells_the_same_everywhere() {
    let pool = Pool::start(3).await;
    pool.led_by(&[1, 2]).await;
    pool.create("a", json!({})).await;
    let mut watches = Vec::new();
    for number in 1..=3 {
        pool.until_shared(number).await;
        let target = format!("{SERVICES}?watch=true&resourceVersion=0");
        let mut watch = pool.node(number).watch(&target, &[JSON]).await;
        tell_next(&mut watch, "ADDED", "a").await;
        tell_next(&mut watch, "ADDED", "kubernetes").await;
        watches.push(watch);
    }
    // One node without a link hears of everything from its leader.
    pool.link(3).set(State::Cut);
    pool.node(3).until_mode("offline").await;
    let revision = pool.change("a", json!({"alone": "no"})).await;
    for watch in &mut watches {
        assert_eq!(told(watch).await.2, revision);
    }
    // The whole pool.
    for number in 1..=3 {
        pool.link(number).set(State::Cut);
    }
    for number in 1..=3 {
        pool.node(number).until_mode("offline").await;
    }
    let missed = pool.change("a", json!({"cut": "yes"})).await;
    let mut lists = Vec::new();
    for number in 1..=3 {
        let answer = pool.node(number).get(SERVICES).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        lists.push(state(&answer.json()));
    }
    assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "{lists:?}");
    for watch in &mut watches {
        assert!(watch.silent_for(Duration::from_millis(100)).await);
    }
    for number in 1..=3 {
        pool.link(number).set(State::Whole);
    }
    for watch in &mut watches {
        assert_eq!(told(watch).await.2, missed);
    }
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_are_shared_too() {
    const WIDGETS: &str = "/apis/example.io/v1/namespaces/default/widgets";
    const ALL: &str = "/apis/example.io/v1/widgets";
    let pool = Pool::start(2).await;
    pool.define("widgets", "Widget").await;
    pool.led_by(&[1]).await;
    let widget = |size: u64| json!({"apiVersion": "example.io/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": size}});
    write(&pool.cloud, Method::POST, WIDGETS, widget(1)).await;
    let node = pool.node(2);
    eventually("widgets are shared", async || {
        let answered = node.get(ALL).await;
        answered.status == 200 && node.feed("widgets").await["stage"] == "synced"
    })
    .await;
    assert_eq!(node.feed("widgets").await["source"], "edge-1");
    let mut watch = node
        .watch(
            &format!("{ALL}?watch=true"),
            &[(
                "accept",
                "application/vnd.kubernetes.protobuf,application/json",
            )],
        )
        .await;
    let added = watch.event().await;
    assert_eq!(
        (&added["type"], &added["object"]["spec"]["size"]),
        (&json!("ADDED"), &json!(1))
    );
    let patch = json!({"spec": {"size": 2}});
    pool.merge(&format!("{WIDGETS}/w"), patch).await;
    assert_eq!(watch.event().await["object"]["spec"]["size"], 2);
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_may_read_is_served() {
    let pool = Pool::start(2).await;
    pool.led_by(&[1]).await;
    pool.create("a", json!({})).await;
    pool.until_shared(2).await;
    let node = pool.node(2);
    let given = async || node.metric("node_yurthub_pool_given_bytes_total").await;
    let ask = async |token: &str, more: &[(&str, &str)]| {
        let token = format!("Bearer {token}");
        let mut headers = vec![JSON, ("authorization", &*token)];
        headers.extend_from_slice(more);
        node.get_as(SERVICES, &headers).await.status
    };
    let before = given().await;
    // Refused by the cloud, and impersonated: not out of what is shared.
    assert_eq!(ask("nobody", &[]).await, 403);
    assert_eq!(ask("wrong", &[]).await, 401);
    assert_eq!(ask("reader", &[("impersonate-user", "nobody")]).await, 403);
    assert_eq!(given().await, before);
    assert_eq!(ask("reader", &[]).await, 200);
    assert!(given().await > before);
    // In its namespace only.
    let own = "/api/v1/namespaces/default/services";
    let headers = [JSON, ("authorization", "Bearer local")];
    assert_eq!(node.get_as(SERVICES, &headers).await.status, 403);
    let before = given().await;
    assert_eq!(node.get_as(own, &headers).await.status, 200);
    assert!(given().await > before);
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_resumes_where_it_was() {
    let mut pool = Pool::start(2).await;
    pool.led_by(&[1]).await;
    pool.create("a", json!({})).await;
    pool.until_shared(2).await;
    pool.restart(2).await;
    let revision = pool.change("a", json!({"while": "away"})).await;
    pool.until_shared(2).await;
    let node = pool.node(2);
    eventually("what happened meanwhile is known", async || {
        let listed = node.get(SERVICES).await.json();
        state(&listed).contains(&("a".into(), revision.to_string()))
    })
    .await;
    let feed = node.feed("services").await;
    assert_eq!(
        (&feed["lists"], &feed["source"]),
        (&json!(0), &json!("edge-1")),
        "{feed}"
    );
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_when_its_client_wants() {
    let pool = Pool::start(1).await;
    pool.led_by(&[1]).await;
    pool.until_shared(1).await;
    let node = pool.node(1);
    let target = format!("{SERVICES}?watch=true&resourceVersion=0&timeoutSeconds=1");
    let mut watch = node.watch(&target, &[JSON]).await;
    tell_next(&mut watch, "ADDED", "kubernetes").await;
    assert_eq!(watch.next().await, Came::End);
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_of_a_watch_loses_it_and_hurts_nobody() {
    let pool = Pool::start(1).await;
    pool.led_by(&[1]).await;
    pool.until_shared(1).await;
    let node = pool.node(1);
    let target = format!("{SERVICES}?watch=true&resourceVersion=0");
    let stalled = node.watch(&target, &[JSON]).await;
    let mut live = node.watch(&target, &[JSON]).await;
    tell_next(&mut live, "ADDED", "kubernetes").await;
    let cut = async || node.metric("node_yurthub_clients_cut_total").await >= 1.0;
    // More than sockets on the way hold, and than the feed keeps for who is slow.
    let padding = "x".repeat(200 << 10);
    pool.create("big", json!({})).await;
    tell_next(&mut live, "ADDED", "big").await;
    for number in 0..80 {
        let annotations = json!({"number": number.to_string(), "padding": padding});
        let revision = pool.change("big", annotations).await;
        assert_eq!(told(&mut live).await.2, revision);
    }
    eventually("the stalled one is cut", cut).await;
    pool.create("after", json!({})).await;
    tell_next(&mut live, "ADDED", "after").await;
    drop(stalled);
    pool.stop().await;
}
