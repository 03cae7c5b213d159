//! Requests that end with their answer.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_component_reaches_kubelets_as_the_tunnel() {
    let stage = Stage::start(Setting::default()).await;
    let (status, who) = answer(&stage.component(), get("/who?a=b")).await;
    assert_eq!(status, StatusCode::OK);
    let host = format!("{NODE}:10250");
    assert_eq!(
        who,
        format!(
            "tunnel-proxy-client HTTP/2.0 host={host} hint=edge-1 dest=- auth=- te=- query=a=b"
        )
    );
    let asked = stage.twin.asked.lock().unwrap().clone();
    assert_eq!(asked[0].node.as_deref(), Some("edge-1"));
    assert_eq!(asked[0].to_string(), host);
}

#[tokio::test]
async fn a_kubelet_without_http2_is_asked_by_http1() {
    let stage = Stage::start(Setting {
        http2: false,
        ..Setting::default()
    })
    .await;
    let (_, who) = answer(&stage.component(), get("/who")).await;
    assert!(
        who.starts_with("tunnel-proxy-client HTTP/1.1 host=192.168.0.11:10250"),
        "{who}"
    );
}

#[tokio::test]
async fn callers_must_be_somebody() {
    let stage = Stage::start(Setting::default()).await;
    let nobody = stage.caller(None, &["h2", "http/1.1"]);
    let (status, text) = answer(&nobody, get("/who")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(text, "a client certificate or a bearer token is needed\n");
    for (name, group) in [
        ("system:node:edge-2", "system:nodes"),
        ("tunnel-agent-client", "openyurt:yurttunnel"),
    ] {
        let node = stage.caller(Some(&proving(name, group)), &["http/1.1"]);
        let (status, text) = answer(&node, get("/who")).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
    }
    assert_eq!(stage.opened(), 0, "nothing was dialled for them");
    let stranger = Ca::new("stranger", 1).unwrap();
    let own = stranger
        .issue(&Profile {
            common_name: "kube-apiserver-kubelet-client".into(),
            client: true,
            days: 1,
            ..Profile::default()
        })
        .unwrap();
    let stranger = stage.caller(Some(&own), &["http/1.1"]);
    assert!(stranger.send(get("/who"), LONG).await.is_err());
    assert_eq!(stage.opened(), 0);
}

#[tokio::test]
async fn a_token_is_the_callers_own_and_reaches_only_kubelets() {
    let stage = Stage::start(Setting::default()).await;
    let caller = stage.caller(None, &["h2", "http/1.1"]);
    let with_token = |mut request: Request<Body>| {
        let token = HeaderValue::from_static("Bearer prometheus");
        request.headers_mut().insert(header::AUTHORIZATION, token);
        request
    };
    let (status, who) = answer(&caller, with_token(get("/who"))).await;
    assert_eq!(status, StatusCode::OK);
    assert!(who.starts_with("- HTTP/2.0"), "not as the tunnel: {who}");
    assert!(who.contains("auth=Bearer prometheus"), "{who}");
    let elsewhere = get_at("/who", &format!("{NODE}:8443"));
    let (status, text) = answer(&caller, with_token(elsewhere)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(text.contains("only kubelets can be reached"), "{text}");
    // A component may.
    let elsewhere = get_at("/who", &format!("{NODE}:8443"));
    let (status, _) = answer(&stage.component(), elsewhere).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn anonymous_callers_only_where_it_was_said() {
    let stage = Stage::start(Setting {
        callers: Callers {
            anonymous: true,
            ..Callers::default()
        },
        ..Setting::default()
    })
    .await;
    let (_, who) = answer(&stage.caller(None, &["http/1.1"]), get("/who")).await;
    assert!(who.starts_with("tunnel-proxy-client "), "{who}");
}

#[tokio::test]
async fn a_kubelet_of_another_ca_is_not_believed_unless_that_was_said() {
    let stranger = Ca::new("stranger", 1).unwrap();
    let kubelet = serving(&stranger, NODE);
    let stage = Stage::start(Setting {
        kubelet: kubelet.clone(),
        ..Setting::default()
    })
    .await;
    let (status, text) = answer(&stage.component(), get("/who")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.starts_with("could not setup the tunnel: "), "{text}");
    assert!(text.contains("UnknownIssuer"), "{text}");
    let stage = Stage::start(Setting {
        kubelet,
        insecure: true,
        ..Setting::default()
    })
    .await;
    let (status, _) = answer(&stage.component(), get("/who")).await;
    assert_eq!(status, StatusCode::OK);
    // Its own CA, but another node's address.
    let stage = Stage::start(Setting {
        kubelet: serving(ca(), "192.168.0.99"),
        ..Setting::default()
    })
    .await;
    let (status, text) = answer(&stage.component(), get("/who")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
}

#[tokio::test]
async fn reasons_reach_the_caller() {
    let stage = Stage::start(Setting::default()).await;
    let component = stage.component();
    let (status, text) = answer(&component, get_at("/who", "10.9.9.9:10250")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.starts_with("could not setup the tunnel: "), "{text}");
    assert!(
        text.contains("No agent available: nobody leads to 10.9.9.9:10250"),
        "{text}"
    );
    let (status, text) = answer(&component, get_at("/who", "10.9.9.9")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        text,
        "X-Tunnel-Proxy-Dest must be host:port, not \"10.9.9.9\"\n"
    );
    let (status, text) = answer(&component, get("/nothing")).await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::NOT_FOUND, "no such thing here")
    );
}

#[tokio::test]
async fn host_names_of_nodes_and_loopback_ports_work_on_the_wire() {
    let stage = Stage::start(Setting::default()).await;
    for (path, host, wanted) in [
        (
            "/who",
            "edge-1:10255",
            "host=192.168.0.11:10255 hint=edge-1",
        ),
        (
            "/who",
            "192.168.0.11:10267",
            "host=127.0.0.1:10267 hint=edge-1",
        ),
        ("/who", "10.1.0.5:80", "host=10.1.0.5:80 hint=-"),
        ("/who", "nobody:10255", "no node nobody is known"),
        ("/who", "nobody", "Host must be host:port"),
    ] {
        let mut stream = TcpStream::connect(stage.insecure).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answered = String::new();
        stream.read_to_string(&mut answered).await.unwrap();
        assert!(answered.contains(wanted), "{host}: {answered}");
    }
}

#[tokio::test]
async fn ten_thousand_requests_need_few_connections() {
    for (http2, most) in [(true, 1), (false, 250)] {
        let stage = Stage::start(Setting {
            http2,
            ..Setting::default()
        })
        .await;
        let own = proving("prometheus", "monitoring");
        let caller = stage.caller(Some(&own), &["h2"]);
        let count = if http2 { 10_000 } else { 1000 };
        let asking = (0..16).map(|_| {
            let caller = caller.clone();
            tokio::spawn(async move {
                for _ in 0..count / 16 {
                    let (status, _) = answer(&caller, get("/who")).await;
                    assert_eq!(status, StatusCode::OK);
                }
            })
        });
        for asked in asking.collect::<Vec<_>>() {
            asked.await.unwrap();
        }
        assert!(stage.opened() <= most, "{} connections", stage.opened());
        eventually("nothing is under way", LONG, || {
            stage.metrics.in_flight() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_caller_that_goes_ends_what_it_asked_for() {
    for http2 in [true, false] {
        let stage = Stage::start(Setting {
            http2,
            ..Setting::default()
        })
        .await;
        let own = proving("kube-apiserver-kubelet-client", "system:masters");
        for protocol in ["h2", "http/1.1"] {
            let caller = stage.caller(Some(&own), &[protocol]);
            let follow = get("/containerLogs/shop/cart/main?follow=true");
            let mut response = caller.send(follow, LONG).await.unwrap();
            let line = response.body_mut().frame().await.unwrap().unwrap();
            assert_eq!(line.into_data().unwrap(), "first line\n");
            assert_eq!(stage.following(), 1);
            drop(response);
            eventually("the kubelet's stream ends", Duration::from_secs(1), || {
                stage.following() == 0
            })
            .await;
            eventually("it is not counted any more", LONG, || {
                stage.metrics.in_flight() == 0
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_stuck_reader_costs_a_live_one_nothing() {
    let stage = Stage::start(Setting::default()).await;
    let component = stage.component();
    let mut stuck = Vec::new();
    for _ in 0..20 {
        // Their heads arrive, and nobody reads on.
        stuck.push(component.send(get("/flood"), LONG).await.unwrap());
    }
    let live = stage.component();
    for _ in 0..50 {
        let asked = tokio::time::timeout(LONG, answer(&live, get("/who")));
        let (status, _) = asked.await.expect("a live one is answered");
        assert_eq!(status, StatusCode::OK);
    }
    assert!(stage.opened() <= 2, "they share a connection");
    drop(stuck);
    eventually("nothing is under way", LONG, || {
        stage.metrics.in_flight() == 0
    })
    .await;
}

/// A gRPC call: each message is answered before the next is sent.
async fn grpc(client: &Client, destination: &str) {
    let (sender, body) = channel(1);
    let request = Request::post("/test.Echo/Stream")
        .header("x-tunnel-proxy-host", "edge-1")
        .header("x-tunnel-proxy-dest", destination)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let response = client.send(request, LONG).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    for number in 0..3u8 {
        let message = Bytes::from(vec![0, 0, 0, 0, 1, number]);
        sender.send(Ok(message.clone())).await.unwrap();
        let frame = tokio::time::timeout(LONG, body.frame()).await;
        let frame = frame.expect("answered at once").unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(sender);
    let frame = body.frame().await.unwrap().unwrap();
    let trailers = frame.into_trailers().expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn grpc_goes_by_tls_and_by_plain_text_with_its_trailers() {
    let stage = Stage::start(Setting::default()).await;
    let own = proving("kube-apiserver-kubelet-client", "system:masters");
    let caller = stage.caller(Some(&own), &["h2"]);
    grpc(&caller, &format!("{NODE}:10250")).await;
    let to = Destination {
        node: None,
        host: "127.0.0.1".into(),
        port: stage.insecure.port(),
    };
    let plain = Client::through(
        &stage.insecure.to_string(),
        Arc::new(yurt_transport::TcpDialer),
        to,
        yurt_transport::Channel::PlainHttp2,
        ClientOptions::default(),
    );
    grpc(&plain, &format!("{NODE}:10255")).await;
}

#[tokio::test]
async fn bodies_go_up_as_they_come() {
    let stage = Stage::start(Setting::default()).await;
    for client in [stage.component(), stage.plain()] {
        let destination = match client.authority() == stage.secure.to_string() {
            true => format!("{NODE}:10250"),
            false => format!("{NODE}:10255"),
        };
        let (sender, body) = channel(1);
        let mut request = get_at("/echo", &destination);
        *request.method_mut() = http::Method::POST;
        *request.body_mut() = body;
        let (response, ()) = tokio::join!(client.send(request, LONG), async {
            sender.send(Ok(Bytes::from_static(b"one"))).await.unwrap();
        });
        let mut body = response.unwrap().into_body();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "one");
        let many = Bytes::from(vec![b'y'; 3 << 20]);
        let sent = many.clone();
        tokio::spawn(async move { sender.send(Ok(sent)).await.unwrap() });
        assert_eq!(collect(body, 4 << 20).await.unwrap(), many);
    }
}

#[tokio::test]
async fn there_is_a_most_of_requests() {
    let stage = Stage::start(Setting {
        max_requests: 2,
        ..Setting::default()
    })
    .await;
    let own = proving("kube-apiserver-kubelet-client", "system:masters");
    let caller = stage.caller(Some(&own), &["h2"]);
    let follow = || get("/containerLogs/shop/cart/main");
    let one = caller.send(follow(), LONG).await.unwrap();
    let _two = caller.send(follow(), LONG).await.unwrap();
    let (status, text) = answer(&caller, get("/who")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "too many requests are under way\n");
    drop(one);
    eventually("a place is free", LONG, || stage.following() == 1).await;
    eventually("a place is counted free", LONG, || {
        stage.metrics.in_flight() == 1
    })
    .await;
    let (status, _) = answer(&caller, get("/who")).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_request_does_not_go_round() {
    let mut places: HashMap<String, SocketAddr> = HashMap::new();
    let stage = Stage::start(Setting::default()).await;
    // Whatever is dialled leads back here, as by rules of the host.
    places.insert("10.9.9.9:10255".into(), stage.insecure);
    let round = Arc::new(Twin {
        places,
        ..Twin::default()
    });
    let back = Stage::start_with(Setting::default(), Some(round.clone())).await;
    let (status, text) = answer(&back.plain(), get_at("/who", "10.9.9.9:10255")).await;
    assert_eq!(status, StatusCode::LOOP_DETECTED, "{text}");
    assert_eq!(round.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn this_is_no_connect_proxy() {
    let stage = Stage::start(Setting::default()).await;
    let mut stream = TcpStream::connect(stage.insecure).await.unwrap();
    stream
        .write_all(b"CONNECT 192.168.0.11:10255 HTTP/1.1\r\nHost: 192.168.0.11:10255\r\n\r\n")
        .await
        .unwrap();
    let mut answered = [0; 12];
    stream.read_exact(&mut answered).await.unwrap();
    assert_eq!(&answered, b"HTTP/1.1 405");
}

#[tokio::test]
async fn shutdown_ends_what_is_open_within_the_drain() {
    let stage = Stage::start(Setting::default()).await;
    let component = stage.component();
    let mut open = component
        .send(get("/containerLogs/shop/cart/main"), LONG)
        .await
        .unwrap();
    open.body_mut().frame().await.unwrap().unwrap();
    stage.shutdown.cancel();
    tokio::time::timeout(LONG, stage.running)
        .await
        .expect("in time")
        .unwrap()
        .unwrap();
}
