//! What a client promises.

use crate::fixture::*;
use http::Request;
use http_body_util::BodyExt;
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use yurt_pki::Ca;
use yurt_transport::*;

/// The port the server saw, out of a `/who` answer.
fn port(who: &str) -> String {
    who.split_whitespace().nth(2).unwrap().to_owned()
}

#[tokio::test]
async fn connections_are_shared_and_reused() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    let h1 = plain.h1();
    let first = port(&text(&h1, "/who").await);
    eventually("an idle connection", || h1.connections() == 1).await;
    assert_eq!(port(&text(&h1, "/who").await), first);
    let h2 = tls.h2();
    let asked: Vec<_> = (0..50)
        .map(|_| {
            let client = h2.clone();
            tokio::spawn(async move { port(&text(&client, "/who").await) })
        })
        .collect();
    let mut seen = HashSet::new();
    for answer in asked {
        seen.insert(answer.await.unwrap());
    }
    assert_eq!(seen.len(), 1, "fifty requests at once need one connection");
    assert_eq!(h2.connections(), 1);
}

#[tokio::test]
async fn a_tls_server_without_http2_is_spoken_to_in_http1() {
    let own = ca()
        .issue(&yurt_pki::Profile {
            common_name: "server".into(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            days: 1,
            ..Default::default()
        })
        .unwrap();
    let config = yurt_pki::server_config(&own, None, false).unwrap();
    let server = Server::start("127.0.0.1:0", Some(config), ServeOptions::default()).await;
    let client = server.h2();
    let asked: Vec<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { text(&client, "/who").await })
        })
        .collect();
    for answer in asked {
        assert!(answer.await.unwrap().contains("HTTP/1.1"));
    }
    let (_, one) = watch(&client).await;
    let (_, two) = watch(&client).await;
    assert!(text(&client, "/who").await.contains("HTTP/1.1"));
    drop((one, two));
}

#[tokio::test]
async fn another_connection_when_the_streams_are_used_up() {
    let server = Server::tls(ServeOptions {
        h2_max_streams: 2,
        ..ServeOptions::default()
    })
    .await;
    let client = server.h2();
    let mut watches = Vec::new();
    let mut ports = HashSet::new();
    for _ in 0..7 {
        let (port, body) = watch(&client).await;
        ports.insert(port);
        watches.push(body);
    }
    assert!(ports.len() >= 4, "{ports:?}");
    let connections = client.connections();
    // A stream that ended makes room on its connection.
    watches.clear();
    for _ in 0..7 {
        watches.push(watch(&client).await.1);
    }
    assert_eq!(client.connections(), connections);
}

#[tokio::test]
async fn a_stranger_is_refused() {
    let server = Server::tls(ServeOptions::default()).await;
    let stranger = Ca::new("stranger", 1).unwrap();
    let config = yurt_pki::client_config(&stranger.cert_pem(), None, &["h2"]).unwrap();
    let client = server.client(Some(config));
    for refused in [
        client.send(get("/who"), LONG).await,
        client.send_upgrade(upgrade("/upgrade"), LONG).await,
    ] {
        let error = refused.expect_err("the server is not the stranger's");
        assert!(
            matches!(error, ClientError::Tls { .. }) && error.not_sent(),
            "{error}"
        );
    }
    // The other way round: the server does not know the client's authority.
    let pair = stranger
        .issue(&yurt_pki::Profile {
            common_name: "x".into(),
            client: true,
            days: 1,
            ..Default::default()
        })
        .unwrap();
    let client = server.client(Some(client_tls(Some(&pair), &["h2"])));
    let error = client
        .send(get("/who"), LONG)
        .await
        .expect_err("unknown client");
    // A reset that overtakes the alert hides the reason.
    assert!(
        matches!(error, ClientError::Tls { .. } | ClientError::Broken { .. }),
        "{error}"
    );
    if let ClientError::Tls { source, .. } = error {
        assert!(source.to_string().contains("UnknownCA"), "{source}");
    }
}

#[tokio::test]
async fn nobody_there_is_a_connect_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let tls = || Some(client_tls(None, &["h2"]));
    for (authority, tls) in [
        (&addr, None),
        (&addr, tls()),
        (&"nonsense".to_owned(), None),
    ] {
        let client = Client::new(authority, tls, client_options());
        let error = client.send(get("/"), LONG).await.expect_err("nobody there");
        assert!(
            matches!(error, ClientError::Connect { .. }) && error.not_sent(),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_silent_server_fails_all_who_wait_at_once() {
    // Connections are accepted by the kernel, and never a byte comes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ClientOptions {
        connect_timeout: Duration::from_millis(200),
        ..client_options()
    };
    let authority = listener.local_addr().unwrap().to_string();
    let client = Client::new(&authority, Some(client_tls(None, &["h2"])), options);
    let begin = Instant::now();
    let asked: Vec<_> = (0..40)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(get("/"), LONG).await })
        })
        .collect();
    for answer in asked {
        let error = answer.await.unwrap().expect_err("no handshake");
        assert!(error.not_sent(), "{error}");
    }
    // One after the other they would have taken eight seconds.
    assert!(
        begin.elapsed() < Duration::from_secs(6),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn no_answer_in_time() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    for client in [plain.h1(), tls.h2()] {
        text(&client, "/who").await;
        let error = client
            .send(get("/never"), Duration::from_millis(100))
            .await
            .expect_err("never");
        assert!(
            matches!(error, ClientError::Timeout { .. }) && !error.not_sent(),
            "{error}"
        );
        text(&client, "/who").await;
    }
}

#[tokio::test]
async fn upgrades_pass_bytes_both_ways() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    for client in [plain.h1(), tls.h2()] {
        let response = client
            .send_upgrade(upgrade("/upgrade"), LONG)
            .await
            .unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        let upgraded = hyper::upgrade::on(response).await.unwrap();
        let mut stream = hyper_util::rt::TokioIo::new(upgraded);
        for word in [&b"ping"[..], b"and again"] {
            stream.write_all(word).await.unwrap();
            stream.flush().await.unwrap();
            let mut echo = vec![0; word.len()];
            timeout(LONG, stream.read_exact(&mut echo))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(echo, word);
        }
        // A reset reaches what has left hyper's hands, too.
        client.reset();
        let ended = timeout(LONG, stream.read_u8())
            .await
            .expect("broken at once");
        assert!(ended.is_err());
    }
}

#[tokio::test]
async fn a_refused_upgrade_keeps_its_body() {
    let server = Server::plain(ServeOptions::default()).await;
    let response = server
        .h1()
        .send_upgrade(upgrade("/chunks"), LONG)
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(collect(response.into_body(), 6).await.unwrap(), "onetwo");
}

/// Measured with default windows: three stalled streams on one connection starve a fourth.
#[tokio::test]
async fn stalled_streams_do_not_starve_a_live_one() {
    let server = Server::tls(ServeOptions::default()).await;
    let client = server.h2();
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(client.send(get("/flood"), LONG).await.unwrap());
    }
    let mut live = client.send(get("/flood"), LONG).await.unwrap().into_body();
    let reading = async {
        let mut read = 0;
        while read < 64 << 20 {
            read += live
                .frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .len();
        }
    };
    timeout(LONG, reading)
        .await
        .expect("the live stream starved");
    assert_eq!(client.connections(), 1);
    drop(stalled);
}

#[tokio::test]
async fn a_reset_breaks_what_is_in_flight() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    for client in [plain.h1(), tls.h2()] {
        let (before, mut watched) = watch(&client).await;
        let waiting = client.clone();
        let waiting = tokio::spawn(async move { waiting.send(get("/never"), LONG).await });
        client.reset();
        assert!(matches!(next(&mut watched).await, Some(Err(_))));
        let (after, _watched) = watch(&client).await;
        assert_ne!(before, after);
        // The request was still dialing, or on its way: on one of the old connections it is broken, else it waits on.
        client.reset();
        let error = timeout(LONG, waiting)
            .await
            .expect("broken")
            .unwrap()
            .expect_err("reset");
        assert!(!matches!(error, ClientError::Timeout { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_black_hole_is_noticed_by_pings() {
    let server = Server::tls(ServeOptions::default()).await;
    let relay = Relay::start(server.addr).await;
    let options = ClientOptions {
        keepalive_interval: Duration::from_millis(200),
        keepalive_timeout: Duration::from_secs(1),
        ..client_options()
    };
    let tls = client_tls(None, &["h2"]);
    let client = Client::new(&relay.addr.to_string(), Some(tls), options);
    let (_, mut watched) = watch(&client).await;
    // Idle time with answered pings does no harm.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(client.connections(), 1);
    relay.freeze();
    assert!(matches!(next(&mut watched).await, Some(Err(_))));
    text(&client, "/who").await;
    // Without any request under way, too.
    drop(watched);
    assert_eq!(client.connections(), 1);
    relay.freeze();
    eventually("an idle connection given up", || client.connections() == 0).await;
}

#[tokio::test]
async fn a_server_that_goes_away_is_left_without_losing_a_request() {
    let options = || ServeOptions {
        drain: LONG,
        ..ServeOptions::default()
    };
    let old = Server::tls(options()).await;
    let addr = old.addr.to_string();
    let client = old.h2();
    let (_, mut watched) = watch(&client).await;
    // GOAWAY: the watch goes on, new requests go to the successor.
    old.shutdown.cancel();
    eventually("the listener closed", || {
        std::net::TcpStream::connect(old.addr).is_err()
    })
    .await;
    let new = Server::start(&addr, Some(server_tls()), options()).await;
    for _ in 0..20 {
        text(&client, "/who").await;
    }
    assert!(
        timeout(Duration::from_millis(50), watched.frame())
            .await
            .is_err(),
        "still open"
    );
    drop(watched);
    timeout(LONG, old.serving)
        .await
        .expect("drained")
        .unwrap()
        .unwrap();
    drop(new);
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closed_costs_nothing() {
    let options = ServeOptions {
        header_read_timeout: Duration::from_millis(500),
        ..ServeOptions::default()
    };
    let server = Server::plain(options).await;
    let client = server.h1();
    for pause in [0, 480, 495, 500, 505, 530] {
        text(&client, "/who").await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    text(&client, "/who").await;
}

#[tokio::test]
async fn a_new_certificate_counts_from_the_next_request() {
    let server = Server::tls(ServeOptions::default()).await;
    let (one, two) = (client_pair("one"), client_pair("two"));
    let client = server.client(Some(client_tls(Some(&one), &["h2"])));
    assert!(text(&client, "/who").await.starts_with("one "));
    let (_, mut watched) = watch(&client).await;
    client.set_tls(client_tls(Some(&two), &["h2"]));
    assert!(text(&client, "/who").await.starts_with("two "));
    assert!(
        timeout(Duration::from_millis(50), watched.frame())
            .await
            .is_err(),
        "still open"
    );
    // A reset reaches the retired connection as well.
    client.reset();
    assert!(matches!(next(&mut watched).await, Some(Err(_))));
}

#[tokio::test]
async fn connections_of_an_old_certificate_can_be_ended_alone() {
    let server = Server::tls(ServeOptions::default()).await;
    let (one, two) = (client_pair("one"), client_pair("two"));
    let client = server.client(Some(client_tls(Some(&one), &["h2"])));
    let (_, mut old) = watch(&client).await;
    client.set_tls(client_tls(Some(&two), &["h2"]));
    let (_, mut new) = watch(&client).await;
    client.end_retired();
    assert!(matches!(next(&mut old).await, Some(Err(_))));
    assert!(
        timeout(Duration::from_millis(50), new.frame())
            .await
            .is_err(),
        "still open"
    );
    assert!(text(&client, "/who").await.starts_with("two "));
}

#[tokio::test]
async fn urls_and_headers_fit_the_protocol() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    for client in [plain.h1(), tls.h2()] {
        let request = Request::get("http://somewhere.else:1234/who?a=b")
            .header("host", "somewhere.else")
            .header("connection", "keep-alive")
            .header("keep-alive", "timeout=5")
            .header("te", "gzip")
            .body(empty())
            .unwrap();
        let response = client.send(request, LONG).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_drain_under_load_lose_no_request() {
    let mut server = Server::tls(ServeOptions::default()).await;
    let relay = Relay::start(server.addr).await;
    let tls = client_tls(None, &["h2"]);
    let client = Client::new(&relay.addr.to_string(), Some(tls), client_options());
    let stop = tokio_util::sync::CancellationToken::new();
    let askers: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answers = 0;
                while !stop.is_cancelled() {
                    text(&client, "/who").await;
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    for _ in 0..20 {
        let successor = Server::tls(ServeOptions::default()).await;
        relay.retarget(successor.addr);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let old = std::mem::replace(&mut server, successor);
        old.shutdown.cancel();
        timeout(LONG, old.serving)
            .await
            .expect("drained")
            .unwrap()
            .unwrap();
    }
    stop.cancel();
    for asker in askers {
        assert!(asker.await.expect("a request was lost") > 0);
    }
}

/// Opens pipes to a server at another address than is asked for, and counts them.
#[derive(Debug)]
struct Detour {
    to: std::net::SocketAddr,
    dialed: Arc<AtomicUsize>,
}

impl Dialer for Detour {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(async move {
            assert_eq!(to.node.as_deref(), Some("edge"));
            self.dialed.fetch_add(1, Ordering::Relaxed);
            let (near, mut far) = tokio::io::duplex(4096);
            let mut stream = tokio::net::TcpStream::connect(self.to).await?;
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut far, &mut stream).await });
            Ok(Box::new(near) as BoxStream)
        })
    }
}

#[tokio::test]
async fn connections_go_by_whoever_knows_the_way_and_are_kept() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    let config = client_tls(None, &["h2", "http/1.1"]);
    for (server, channel, protocol) in [
        (&plain, Channel::Plain, "HTTP/1.1"),
        (&plain, Channel::PlainHttp2, "HTTP/2.0"),
        (&tls, Channel::Tls(config), "HTTP/2.0"),
    ] {
        let dialed = Arc::new(AtomicUsize::new(0));
        let dialer = Detour {
            to: server.addr,
            dialed: dialed.clone(),
        };
        let to = Destination {
            node: Some("edge".into()),
            host: "10.0.0.1".into(),
            port: 10250,
        };
        // The name that TLS wants to see proven is the authority's.
        let client = Client::through(
            "127.0.0.1:10250",
            Arc::new(dialer),
            to,
            channel,
            client_options(),
        );
        for _ in 0..20 {
            let who = text(&client, "/who").await;
            assert!(who.contains(protocol), "{who}");
            eventually("a connection to use again", || client.connections() > 0).await;
        }
        assert_eq!(dialed.load(Ordering::Relaxed), 1);
        let response = client
            .send_upgrade(upgrade("/upgrade"), LONG)
            .await
            .unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(dialed.load(Ordering::Relaxed), 2, "a connection of its own");
    }
}
