//! What a listener promises.

use crate::fixture::*;
use http::{Request, StatusCode};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use yurt_transport::*;

/// Everything the server says until it closes.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    // A reset at the end is an end too.
    let _ = timeout(LONG, stream.read_to_end(&mut said))
        .await
        .expect("the server did not close");
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn handlers_know_their_peer() {
    let plain = Server::plain(ServeOptions::default()).await;
    let who = text(&plain.h1(), "/who").await;
    assert!(
        who.starts_with("- HTTP/1.1 127.0.0.1:") && who.ends_with("tls=false"),
        "{who}"
    );
    let tls = Server::tls(ServeOptions::default()).await;
    let who = text(&tls.h2(), "/who").await;
    assert!(
        who.starts_with("- HTTP/2.0 127.0.0.1:") && who.ends_with("tls=true"),
        "{who}"
    );
    let pair = client_pair("system:node:edge-1");
    for (alpn, version) in [("h2", "HTTP/2.0"), ("http/1.1", "HTTP/1.1")] {
        let client = tls.client(Some(client_tls(Some(&pair), &[alpn])));
        let who = text(&client, "/who").await;
        assert!(
            who.starts_with(&format!("system:node:edge-1 {version} ")),
            "{who}"
        );
    }
}

#[tokio::test]
async fn a_unix_socket_says_whose_process_connected() {
    let directory = std::env::temp_dir().join(format!("yurt-transport-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("serve.sock");
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let handler = |request: Request<hyper::body::Incoming>| async move {
        let peer = request.extensions().get::<Peer>().unwrap();
        let found = peer
            .findings
            .once(async { Ok::<_, ()>(request.uri().path().to_owned()) });
        let found = found.await.unwrap();
        let process = peer.process.unwrap();
        http::Response::new(full(format!("{found} {:?}", process.pid)))
    };
    let serving = tokio::spawn(serve(
        listener,
        None,
        ServeOptions::default(),
        shutdown.clone(),
        handler,
    ));
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    // What the first request finds out holds for the second.
    stream
        .write_all(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\nGET /two HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut said = String::new();
    let reading = stream.read_to_string(&mut said);
    timeout(LONG, reading).await.unwrap().unwrap();
    let pid = format!("/one {:?}", Some(std::process::id()));
    assert_eq!(said.matches(&pid).count(), 2, "{said}");
    shutdown.cancel();
    serving.await.unwrap().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test]
async fn findings_keep_no_errors() {
    let findings = Findings::default();
    let failed: Result<u8, &str> = findings.once(async { Err("not now") }).await;
    assert_eq!(failed, Err("not now"));
    assert_eq!(findings.once(async { Ok::<u8, &str>(1) }).await, Ok(1));
    assert_eq!(findings.once(async { Ok::<u8, &str>(2) }).await, Ok(1));
}

#[tokio::test]
async fn a_silent_client_is_closed() {
    let options = || ServeOptions {
        header_read_timeout: Duration::from_millis(100),
        tls_handshake_timeout: Duration::from_millis(100),
        ..ServeOptions::default()
    };
    let (plain, tls) = (Server::plain(options()).await, Server::tls(options()).await);
    for (server, beginning) in [
        (&plain, &b""[..]),
        (&plain, b"GET /who HTTP/1.1\r\nHost: a"),
        (&plain, b"PRI * HTT"),
        (&tls, b""),
        (&tls, b"\x16\x03\x01"),
    ] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let said = read_all(&mut stream).await;
        assert!(
            said.is_empty() || said.starts_with("HTTP/1.1 408"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_huge_head_is_refused() {
    let options = ServeOptions {
        max_header_bytes: 16 << 10,
        ..ServeOptions::default()
    };
    let request = |length: usize| {
        Request::get("/who")
            .header("x-long", "v".repeat(length))
            .body(empty())
            .unwrap()
    };
    let (plain, tls) = (
        Server::plain(options.clone()).await,
        Server::tls(options).await,
    );
    for client in [plain.h1(), tls.h2()] {
        let response = client.send(request(8 << 10), LONG).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let response = client.send(request(40 << 10), LONG).await.unwrap();
        assert_eq!(
            response.status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        );
    }
}

#[tokio::test]
async fn connections_beyond_the_cap_are_told() {
    let options = ServeOptions {
        max_connections: 1,
        ..ServeOptions::default()
    };
    let server = Server::plain(options).await;
    let first = server.h1();
    let (_, held) = watch(&first).await;
    let mut second = TcpStream::connect(server.addr).await.unwrap();
    let said = read_all(&mut second).await;
    assert!(
        said.starts_with("HTTP/1.1 503") && said.contains("Retry-After: 1"),
        "{said}"
    );
    drop((held, first));
    // The place is free again.
    let begin = Instant::now();
    loop {
        let response = server.h1().send(get("/who"), LONG).await;
        if response.is_ok_and(|response| response.status() == StatusCode::OK) {
            break;
        }
        assert!(begin.elapsed() < LONG, "the place was never free again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_upgraded_connection_counts_until_it_ends() {
    let options = ServeOptions {
        max_connections: 1,
        ..ServeOptions::default()
    };
    let server = Server::plain(options).await;
    let response = server
        .h1()
        .send_upgrade(upgrade("/upgrade"), LONG)
        .await
        .unwrap();
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let mut second = TcpStream::connect(server.addr).await.unwrap();
    assert!(read_all(&mut second).await.starts_with("HTTP/1.1 503"));
    drop(upgraded);
    let begin = Instant::now();
    while server
        .h1()
        .send(get("/who"), LONG)
        .await
        .is_ok_and(|r| r.status() != StatusCode::OK)
    {
        assert!(begin.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_drain_lets_requests_end_and_takes_no_new_ones() {
    let (plain, tls) = (
        Server::plain(ServeOptions {
            drain: LONG,
            ..ServeOptions::default()
        })
        .await,
        Server::tls(ServeOptions {
            drain: LONG,
            ..ServeOptions::default()
        })
        .await,
    );
    for (server, client) in [(plain.h1(), &plain), (tls.h2(), &tls)].map(|(c, s)| (s, c)) {
        let (sender, body) = channel(1);
        sender.send(Ok("late ".into())).await.unwrap();
        let request = Request::post("/mirror").body(body).unwrap();
        let mut body = client.send(request, LONG).await.unwrap().into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "late ");
        server.shutdown.cancel();
        eventually("closed", || {
            std::net::TcpStream::connect(server.addr).is_err()
        })
        .await;
        sender.send(Ok("but whole".into())).await.unwrap();
        drop(sender);
        assert_eq!(collect(body, 100).await.unwrap(), "but whole");
    }
    for server in [plain, tls] {
        timeout(LONG, server.serving)
            .await
            .expect("drained")
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn what_does_not_drain_is_broken() {
    let options = || ServeOptions {
        drain: Duration::from_millis(100),
        ..ServeOptions::default()
    };
    let (plain, tls) = (Server::plain(options()).await, Server::tls(options()).await);
    for (server, client) in [(plain.h1(), plain), (tls.h2(), tls)].map(|(c, s)| (s, c)) {
        let (_, mut watched) = watch(&client).await;
        let response = client
            .send_upgrade(upgrade("/upgrade"), LONG)
            .await
            .unwrap();
        let upgraded = hyper::upgrade::on(response).await.unwrap();
        let mut upgraded = hyper_util::rt::TokioIo::new(upgraded);
        server.shutdown.cancel();
        timeout(LONG, server.serving)
            .await
            .expect("stopped")
            .unwrap()
            .unwrap();
        assert!(
            matches!(next(&mut watched).await, Some(Err(_))),
            "a broken watch is no whole one"
        );
        let mut rest = Vec::new();
        let ended = timeout(LONG, upgraded.read_to_end(&mut rest))
            .await
            .expect("broken too");
        assert!(ended.is_err() || rest.is_empty());
    }
}

#[tokio::test]
async fn a_handler_notices_that_its_client_went() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    for (server, client) in [(&plain, plain.h1()), (&tls, tls.h2())] {
        let (_, watched) = watch(&client).await;
        assert_eq!(server.flooded.load(Ordering::SeqCst), 0);
        drop(watched);
        eventually("the end of the watch", || {
            server.flooded.load(Ordering::SeqCst) == 1
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_little() {
    const BOUND: u64 = 32 << 20;
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    for (server, client) in [(&plain, plain.h1()), (&tls, tls.h2())] {
        let response = client.send(get("/flood"), LONG).await.unwrap();
        let taken = || server.flooded.load(Ordering::SeqCst);
        let mut before = 0;
        // The flood is over when nothing moves for a while; without a bound it goes on at gigabytes per second.
        while taken() == 0 || taken() != before {
            before = taken();
            assert!(
                before < BOUND,
                "{before} bytes for a client that reads nothing"
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        drop(response);
    }
}
