//! With the cloud there: everything passes, and who is who is kept apart.

use crate::{
    cloud::{Answer, Cloud, JSON, PROTOBUF, Trust},
    event,
    link::{Link, State},
    node::{Came, Directory, Node, config, eventually},
    pod, pod_list,
};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use yurt_transport::{Client, ClientOptions};

const POD: &str = "/api/v1/namespaces/default/pods/a";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_pass_untouched_and_requests_are_cleaned() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    let body = pod("a", 7);
    cloud.answer(Method::GET, POD, 200, JSON, body.clone());

    let got = node
        .get_as(
            POD,
            &[
                ("accept", JSON),
                ("user-agent", "kubelet/v1"),
                ("x-remote-user", "admin"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("x-custom", "kept"),
            ],
        )
        .await;
    assert_eq!(
        (got.status, got.content_type(), got.text()),
        (200, JSON, body)
    );
    let seen = cloud.seen(Method::GET, POD).pop().unwrap();
    assert!(
        seen.certificate,
        "the node's own components go with the node's certificate"
    );
    assert_eq!(seen.headers.get("user-agent").unwrap(), "kubelet/v1");
    assert_eq!(seen.headers.get("x-custom").unwrap(), "kept");
    for gone in ["x-remote-user", "x-hop"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }

    // Status codes, errors and writes as they are.
    assert_eq!(
        node.get("/api/v1/namespaces/default/pods/none")
            .await
            .status,
        404
    );
    cloud.answer(Method::POST, PODS, 422, JSON, r#"{"kind":"Status"}"#);
    let refused = node
        .call(Method::POST, PODS, &[("content-type", JSON)], "{\"x\":1}")
        .await;
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (422, r#"{"kind":"Status"}"#)
    );
    assert_eq!(cloud.seen(Method::POST, PODS)[0].body, "{\"x\":1}");

    // gzip only to who accepts it.
    cloud.set(
        Method::GET,
        PODS,
        Answer::Gzip(JSON, pod_list(9, &[pod("a", 7)]).into()),
    );
    let zipped = node
        .get_as(PODS, &[("accept", JSON), ("accept-encoding", "br, gzip")])
        .await;
    assert_eq!(
        zipped.headers.get(header::CONTENT_ENCODING).unwrap(),
        "gzip"
    );
    let plain = node.get(PODS).await;
    assert_eq!(plain.json()["items"].as_array().unwrap().len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_endpoints() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    assert_eq!(node.admin("/v1/healthz").await.text(), "OK");
    assert_eq!(node.admin("/nonsense").await.status, 404);
    node.until_up().await;
    assert_eq!(node.admin("/v1/readyz").await.text(), "OK");
    let status = node.status().await;
    assert_eq!(status["node"], "edge-1");
    assert_eq!(status["mode"], "online");
    assert_eq!(status["servers"][0]["server"], cloud.addr.to_string());
    node.get("/version").await;
    let label = format!(
        "node_yurthub_server_healthy_status{{server=\"{}\"}}",
        cloud.addr
    );
    assert_eq!(node.metric(&label).await, 1.0);
    assert!(
        node.admin("/metrics")
            .await
            .text()
            .contains("process_resident_memory_bytes")
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_are_not_lent() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    cloud.answer(Method::GET, POD, 200, JSON, pod("a", 7));
    let review = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";

    let got = node
        .get_as(POD, &[("authorization", "Bearer abc"), ("accept", JSON)])
        .await;
    assert_eq!(got.status, 200);
    let seen = cloud.seen(Method::GET, POD).pop().unwrap();
    assert!(
        !seen.certificate,
        "a caller with a token goes without the node's certificate"
    );
    assert_eq!(seen.headers.get("authorization").unwrap(), "Bearer abc");
    eventually(
        "the token's rules are asked for, as the token",
        async || {
            cloud.seen(Method::POST, review).iter().any(|seen| {
                !seen.certificate && seen.headers.get("authorization").unwrap() == "Bearer abc"
            })
        },
    )
    .await;

    // Impersonation is the token's business, never the node's.
    let refused = node
        .get_as(POD, &[("impersonate-user", "admin"), ("accept", JSON)])
        .await;
    assert_eq!(
        (refused.status, refused.json()["reason"].as_str()),
        (403, Some("Forbidden"))
    );
    let own = [
        ("impersonate-user", "x"),
        ("authorization", "Bearer abc"),
        ("accept", JSON),
    ];
    assert_eq!(node.get_as(POD, &own).await.status, 200);
    assert_eq!(
        cloud
            .seen(Method::GET, POD)
            .last()
            .unwrap()
            .headers
            .get("impersonate-user")
            .unwrap(),
        "x"
    );

    // The TLS listener has no identity to give.
    let tls = yurt_pki::client_config(&trust.ca.cert_pem(), None, &["h2", "http/1.1"]).unwrap();
    let secure = Client::new(
        &node.secure.to_string(),
        Some(tls),
        ClientOptions::default(),
    );
    let ask = |token: Option<&'static str>| {
        let mut request = Request::builder().uri(POD).header("accept", JSON);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        secure.send(
            request.body(yurt_transport::empty()).unwrap(),
            Duration::from_secs(10),
        )
    };
    assert_eq!(ask(None).await.unwrap().status(), 401);
    assert_eq!(ask(Some("Bearer abc")).await.unwrap().status(), 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_is_asked_when_one_does_not_answer() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let (first, second) = (Cloud::start(&trust).await, Cloud::start(&trust).await);
    for cloud in [&first, &second] {
        cloud.answer(Method::GET, POD, 200, JSON, pod("a", 7));
        cloud.answer(Method::POST, PODS, 201, JSON, pod("b", 8));
    }
    let node = Node::start(config(&directory.0, &trust, &[first.addr, second.addr])).await;
    node.until_up().await;
    assert_eq!(node.get(POD).await.status, 200);
    assert_eq!(first.seen(Method::GET, POD).len(), 1);
    first.stop();
    // Whatever the hub knows of the first by now: nobody sees an error.
    for _ in 0..5 {
        assert_eq!(node.get(POD).await.status, 200);
    }
    eventually("writes go to the second as well", async || {
        node.call(Method::POST, PODS, &[("content-type", JSON)], "{}")
            .await
            .status
            == 201
    })
    .await;
    assert!(!second.seen(Method::POST, PODS).is_empty());
    node.until_mode("online").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_stream_and_end_as_the_cloud_ends_them() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    let mut watch = node
        .watch(
            &format!("{PODS}?watch=true&resourceVersion=5"),
            &[("accept", JSON)],
        )
        .await;
    assert_eq!(watch.headers.get(header::CONTENT_TYPE).unwrap(), JSON);
    cloud.emit(PODS, event("ADDED", &pod("a", 7))).await;
    assert_eq!(watch.event().await["object"]["metadata"]["name"], "a");
    // A frame in pieces comes as a whole.
    let frame = event("MODIFIED", &pod("a", 8));
    let (head, tail) = frame.split_at(40);
    cloud.emit(PODS, head.to_owned()).await;
    assert!(watch.silent_for(Duration::from_millis(100)).await);
    cloud.emit(PODS, tail.to_owned()).await;
    assert_eq!(
        watch.event().await["object"]["metadata"]["resourceVersion"],
        "8"
    );
    cloud.end_watches(PODS, false).await;
    assert_eq!(watch.next().await, Came::End);

    cloud.refuse_watches(Some((
        410,
        r#"{"kind":"Status","apiVersion":"v1","reason":"Expired","code":410}"#,
    )));
    let refused = node
        .get(&format!("{PODS}?watch=true&resourceVersion=1"))
        .await;
    assert_eq!(
        (refused.status, refused.json()["reason"].as_str()),
        (410, Some("Expired"))
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_hurts_nobody() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.bounds.stalled_client = Duration::from_secs(3);
    let node = Node::start(config).await;
    let other = "/api/v1/namespaces/other/pods";
    let stalled = node
        .watch(
            &format!("{PODS}?watch=true&resourceVersion=5"),
            &[("accept", JSON)],
        )
        .await;
    let mut live = node
        .watch(
            &format!("{other}?watch=true&resourceVersion=5"),
            &[("accept", JSON)],
        )
        .await;
    // More than sockets and queues on the way hold, so that it stalls for sure.
    let padding = "x".repeat(1 << 20);
    let big = event(
        "ADDED",
        &pod("a", 7).replace("\"image\":\"i\"", &format!("\"image\":\"{padding}\"")),
    );
    let flood = {
        let cloud = cloud.clone();
        tokio::spawn(async move { while cloud.emit(PODS, big.clone()).await > 0 {} })
    };
    for revision in 10..60 {
        assert_eq!(
            cloud.emit(other, event("ADDED", &pod("b", revision))).await,
            1
        );
        assert_eq!(
            live.event().await["object"]["metadata"]["resourceVersion"],
            revision.to_string()
        );
    }
    eventually("the stalled one is cut", async || {
        node.metric("node_yurthub_watches_cut_total").await >= 1.0
    })
    .await;
    tokio::time::timeout(Duration::from_secs(20), flood)
        .await
        .unwrap()
        .unwrap();
    cloud.emit(other, event("ADDED", &pod("b", 99))).await;
    assert_eq!(
        live.event().await["object"]["metadata"]["resourceVersion"],
        "99"
    );
    drop(stalled);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_of_an_answer_is_cut() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.bounds.stalled_client = Duration::from_secs(2);
    let node = Node::start(config).await;
    // Far more than sockets and queues on the way hold.
    let large = Bytes::from(vec![b'z'; 48 << 20]);
    cloud.answer(Method::GET, "/logs", 200, "text/plain", large.clone());
    node.until_up().await;
    let mut silent = tokio::net::TcpStream::connect(node.client.authority())
        .await
        .unwrap();
    silent
        .write_all(b"GET /logs HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    // One stream among others of a connection.
    let tls = yurt_pki::client_config(&trust.ca.cert_pem(), None, &["h2"]).unwrap();
    let secure = Client::new(
        &node.secure.to_string(),
        Some(tls),
        ClientOptions::default(),
    );
    let ask = |path: &str| {
        let request = Request::builder()
            .uri(path)
            .header("authorization", "Bearer abc")
            .body(yurt_transport::empty())
            .unwrap();
        secure.send(request, Duration::from_secs(10))
    };
    let stalled = ask("/logs").await.unwrap();
    assert_eq!(stalled.status(), 200);
    eventually("both are cut", async || {
        node.metric("node_yurthub_clients_cut_total").await >= 2.0
    })
    .await;
    eventually("nothing is left of them", async || {
        node.status().await["inFlightRequests"] == 0
    })
    .await;
    // Both see a broken answer, never a short one.
    let mut heard = Vec::new();
    let ended = silent.read_to_end(&mut heard).await;
    assert!(ended.is_err() || heard.len() < large.len());
    assert!(stalled.into_body().collect().await.is_err());
    // The others on that connection are none the worse, and who reads gets the whole.
    assert_eq!(ask("/version").await.unwrap().status(), 200);
    let whole = ask("/logs").await.unwrap().into_body().collect().await;
    assert_eq!(whole.unwrap().to_bytes().len(), large.len());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_the_cloud_does_not_finish_is_broken_off() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.bounds.stalled_answer = Duration::from_millis(500);
    let node = Node::start(config).await;
    let log = "/api/v1/namespaces/default/pods/a/log";
    cloud.set(Method::GET, PODS, Answer::Unfinished("{"));
    cloud.set(Method::GET, log, Answer::Unfinished("line"));
    node.until_up().await;
    let ask = |target: String| {
        let request = Request::builder().uri(target).body(Bytes::new()).unwrap();
        node.ask(request)
    };
    let mut followed = ask(format!("{log}?follow=true")).await.into_body();
    assert_eq!(
        followed
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap(),
        "line"
    );
    for target in [PODS, log] {
        let body = ask(target.to_owned()).await.into_body();
        assert!(body.collect().await.is_err(), "{target}");
    }
    assert_eq!(node.metric("node_yurthub_answers_cut_total").await, 2.0);
    // Twice as long as the others, and still open.
    let more = tokio::time::timeout(Duration::from_millis(50), followed.frame()).await;
    assert!(more.is_err(), "{more:?}");
    node.until_mode("online").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_carry_bytes_both_ways() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    let exec = "/api/v1/namespaces/default/pods/a/exec";
    cloud.set(Method::POST, exec, Answer::Echo);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{exec}?command=sh"))
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(yurt_transport::empty())
        .unwrap();
    let mut response = node
        .client
        .send_upgrade(request, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers().get("upgrade").unwrap(), "SPDY/3.1");
    let stream = hyper::upgrade::on(&mut response).await.unwrap();
    let mut stream = hyper_util::rt::TokioIo::new(stream);
    for round in 0..3u8 {
        let sent = vec![round; 70_000];
        let mut heard = vec![0; sent.len()];
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut heard));
        wrote.unwrap();
        read.unwrap();
        assert_eq!(sent, heard);
    }
    drop(stream);
    assert!(cloud.seen(Method::POST, exec)[0].certificate);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_through_in_both_encodings() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    let large = Bytes::from(vec![b'z'; 3 << 20]);
    cloud.answer(Method::GET, "/logs", 200, "text/plain", large.clone());
    cloud.answer(Method::POST, PODS, 200, PROTOBUF, Bytes::new());
    let request = Request::builder().uri("/logs").body(Bytes::new()).unwrap();
    let mut body = node.ask(request).await.into_body();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        size += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(size, large.len());
    // Larger than what is held: it streams.
    let request = Request::builder()
        .method(Method::POST)
        .uri(PODS)
        .body(large.clone())
        .unwrap();
    assert_eq!(node.ask(request).await.status(), 200);
    assert_eq!(cloud.seen(Method::POST, PODS)[0].body.len(), large.len());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_lists_and_many_initial_events_are_learned_whole() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let link = Link::to(cloud.addr).await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_up().await;
    let padding = "x".repeat(12 << 10);
    let object = |kind: &str, index: u64| {
        format!(
            r#"{{"kind":"{kind}","apiVersion":"v1","metadata":{{"name":"o{index}","namespace":"default","uid":"u{index}","resourceVersion":"{}"}},"data":{{"padding":"{padding}"}}}}"#,
            index + 1
        )
    };
    let maps = "/api/v1/namespaces/default/configmaps";
    let items: Vec<String> = (0..1000).map(|index| object("ConfigMap", index)).collect();
    let list = format!(
        r#"{{"kind":"ConfigMapList","apiVersion":"v1","metadata":{{"resourceVersion":"2000"}},"items":[{}]}}"#,
        items.join(",")
    );
    cloud.answer(Method::GET, maps, 200, JSON, list);
    assert_eq!(node.get(maps).await.status, 200);
    let secrets = "/api/v1/namespaces/default/secrets";
    let watched = format!(
        "{secrets}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let mut watch = node.watch(&watched, &[("accept", JSON)]).await;
    let emitting = {
        let cloud = cloud.clone();
        let events: Vec<String> = (0..1000)
            .map(|index| event("ADDED", &object("Secret", index)))
            .collect();
        tokio::spawn(async move {
            for event in events {
                cloud.emit(secrets, event).await;
            }
            let end = r#"{"kind":"Secret","apiVersion":"v1","metadata":{"resourceVersion":"3000","annotations":{"k8s.io/initial-events-end":"true"}}}"#;
            cloud.emit(secrets, event("BOOKMARK", end)).await;
        })
    };
    for _ in 0..1000 {
        assert_eq!(watch.event().await["type"], "ADDED");
    }
    assert_eq!(watch.event().await["type"], "BOOKMARK");
    emitting.await.unwrap();
    eventually("learned", async || {
        node.status().await["cache"]["objects"] == 2000
    })
    .await;
    link.set(State::Cut);
    node.until_mode("offline").await;
    for path in [maps, secrets] {
        eventually("the whole list is there", async || {
            let got = node.get(path).await;
            got.status == 200 && got.json()["items"].as_array().unwrap().len() == 1000
        })
        .await;
    }
    node.stop().await;
}
