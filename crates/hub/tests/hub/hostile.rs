//! Bad input from either side: a clear answer, a count, and nobody else affected.

use crate::{
    cloud::{Answer, Cloud, JSON, PROTOBUF, Trust},
    event,
    node::{Came, Directory, Node, config, eventually},
    pod, pod_list,
};
use bytes::Bytes;
use http::{Method, Request};
use std::time::Duration;
use yurt_hub::{HubError, server::Listeners};
use yurt_pki::{Ca, Profile};

const POD: &str = "/api/v1/namespaces/default/pods/a";
const PODS: &str = "/api/v1/namespaces/default/pods";
const UNDECODABLE: &str = "node_yurthub_unlearned_answers_total{reason=\"undecodable\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_answers_pass_and_are_not_cached() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    let garbage: [(&'static str, Bytes); 4] = [
        (JSON, Bytes::from_static(b"{\"kind\":\"Pod\",")),
        (PROTOBUF, Bytes::from_static(b"k8s\0\xff\xff\xff\xff\xff")),
        (PROTOBUF, Bytes::from_static(b"not protobuf at all")),
        (JSON, Bytes::from_static(b"\xff\xfe")),
    ];
    for (index, (content_type, body)) in garbage.iter().enumerate() {
        let path = if index % 2 == 0 { POD } else { PODS };
        cloud.answer(Method::GET, path, 200, content_type, body.clone());
        let got = node.get_as(path, &[("accept", content_type)]).await;
        assert_eq!((got.status, &got.body), (200, body));
        eventually("counted", async || {
            node.metric(UNDECODABLE).await >= (index + 1) as f64
        })
        .await;
    }
    // A list cut short of its end teaches nothing either, and nothing that was known is lost.
    cloud.answer(Method::GET, PODS, 200, JSON, pod_list(9, &[pod("a", 7)]));
    node.get(PODS).await;
    eventually("learned", async || {
        node.status().await["cache"]["objects"] == 1
    })
    .await;
    cloud.answer(
        Method::GET,
        PODS,
        200,
        JSON,
        &b"{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":[{\"metadata\""[..],
    );
    node.get(PODS).await;
    eventually("counted", async || node.metric(UNDECODABLE).await >= 5.0).await;
    assert_eq!(node.status().await["cache"]["objects"], 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_events_pass_and_the_stream_goes_on() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    let mut watch = node
        .watch(
            &format!("{PODS}?watch=true&resourceVersion=5"),
            &[("accept", JSON)],
        )
        .await;
    cloud
        .emit(PODS, "{\"type\":\"SURPRISE\",\"object\":{}}\n")
        .await;
    assert_eq!(watch.event().await["type"], "SURPRISE");
    cloud.emit(PODS, event("ADDED", &pod("a", 7))).await;
    assert_eq!(watch.event().await["object"]["metadata"]["name"], "a");
    assert!(node.metric(UNDECODABLE).await >= 1.0);
    // Bytes that are no frames at all still reach the client.
    cloud.emit(PODS, "]]").await;
    let frame = tokio::time::timeout(
        Duration::from_secs(10),
        http_body_util::BodyExt::frame(&mut watch.body),
    )
    .await;
    assert_eq!(frame.unwrap().unwrap().unwrap().into_data().unwrap(), "]]");
    cloud.end_watches(PODS, false).await;
    assert_eq!(watch.next().await, Came::End);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_is_said_and_too_much_is_not_cached() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.bounds.request_body = 100_000;
    config.bounds.replayable_body = 1_000;
    config.bounds.learned_body = 10_000;
    let node = Node::start(config).await;
    cloud.answer(Method::POST, PODS, 201, JSON, "{}");
    let post = async |body: yurt_transport::Body| {
        let request = Request::builder()
            .method(Method::POST)
            .uri(PODS)
            .header("accept", JSON)
            .body(body)
            .unwrap();
        node.client
            .send(request, Duration::from_secs(10))
            .await
            .map(|response| response.status().as_u16())
    };
    assert_eq!(
        post(yurt_transport::full(vec![b'x'; 100_000]))
            .await
            .unwrap(),
        201
    );
    assert_eq!(
        post(yurt_transport::full(vec![b'x'; 100_001]))
            .await
            .unwrap(),
        413
    );
    // Without a length: found out on the way.
    let (chunks, body) = yurt_transport::channel(4);
    let upload = tokio::spawn(async move {
        for _ in 0..20 {
            if chunks
                .send(Ok(Bytes::from(vec![b'x'; 10_000])))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    assert_eq!(post(body).await.unwrap(), 413);
    upload.abort();

    let many: Vec<String> = (0..100).map(|i| pod(&format!("p{i}"), i + 1)).collect();
    cloud.answer(Method::GET, PODS, 200, JSON, pod_list(500, &many));
    let got = node.get(PODS).await;
    assert_eq!(got.json()["items"].as_array().unwrap().len(), 100);
    let line = "node_yurthub_unlearned_answers_total{reason=\"too_large\"}";
    eventually("counted", async || node.metric(line).await >= 1.0).await;
    assert_eq!(node.status().await["cache"]["objects"], 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_wrong_certificate_gets_nothing() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let mut impostor = Trust::new();
    impostor.ca = Ca::new("impostor", 1).unwrap();
    impostor.serving = impostor
        .ca
        .issue(&Profile {
            common_name: "server".into(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            days: 1,
            ..Profile::default()
        })
        .unwrap();
    let cloud = Cloud::start(&impostor).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    let got = node
        .get_as(POD, &[("authorization", "Bearer secret"), ("accept", JSON)])
        .await;
    assert!(
        matches!(got.status, 401 | 503),
        "{} {}",
        got.status,
        got.text()
    );
    node.until_mode("offline").await;
    assert!(cloud.seen(Method::GET, "/").is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_is_named() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(&directory.0, &trust, &["127.0.0.1:1".parse().unwrap()]);
    config.proxy = Some(taken.local_addr().unwrap());
    let error = Listeners::bind(&config).unwrap_err();
    assert!(matches!(error, HubError::Bind { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&taken.local_addr().unwrap().to_string()) && text.contains("another hub"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_takes_its_request_along() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    cloud.set(Method::GET, POD, Answer::Silence);
    let gone = tokio::time::timeout(Duration::from_millis(300), node.get(POD)).await;
    assert!(gone.is_err());
    let watch = node
        .watch(
            &format!("{PODS}?watch=true&resourceVersion=5"),
            &[("accept", JSON)],
        )
        .await;
    eventually("open", async || cloud.watching(PODS) == 1).await;
    drop(watch);
    eventually("the upstream watch is gone too", async || {
        cloud.watching(PODS) == 0
    })
    .await;
    eventually("nothing is left", async || {
        let status = node.status().await;
        status["inFlightRequests"] == 0 && status["watches"]["open"] == 0
    })
    .await;
    node.stop().await;
}
