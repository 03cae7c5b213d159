use super::*;
use crate::{
    DialError, SessionError,
    hello::{ALPN_CLOUD, ALPN_GRPC},
    server::gate::ALPN_PEER,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn greeted(world: &World, client: &Kept, hello: AgentHello) -> Result<Session, SessionError> {
    let way = world.ca.way(world.server.agents, client, &[ALPN_MUX]);
    let io = way
        .open()
        .await
        .map_err(|error| SessionError::Broken(error.to_string()))?;
    let dialer = twin::served(twin::echo);
    mux::answer(
        io,
        hello,
        dialer,
        Options::default(),
        CancellationToken::new(),
    )
    .await
}

fn hello(id: &str, identifiers: &str) -> AgentHello {
    AgentHello {
        id: id.into(),
        identifiers: identifiers.parse().expect("never fails"),
        version: String::new(),
    }
}

#[tokio::test]
async fn nobody_takes_another_nodes_place() {
    let world = World::new().await;
    let _victim = world.agent_by("victim", twin::served(twin::count)).await;
    let client = world
        .ca
        .client("tunnel-agent-client", &["openyurt:yurttunnel"], &["thief"]);
    for said in [
        hello("victim", ""),
        hello("thief", "host=victim"),
        hello("thief", "ipv4=10.9.9.9"),
        hello("thief", "cidr=0.0.0.0/0"),
        hello("thief", "default-route=true"),
    ] {
        // It may have a session for the moment in which it is told no.
        let why = match greeted(&world, &client, said.clone()).await {
            Ok(mut session) => session.ended().await,
            Err(error) => error,
        };
        let SessionError::Refused(why) = why else {
            panic!("{said:?}: {why}");
        };
        assert!(why.contains("is not covered"), "{why}");
    }
    assert_eq!(world.server.switchboard.registry().connected(), 1);
    let stream = world.dial(&twin::to("victim:22")).await.expect("dialled");
    assert_eq!(twin::exchange(stream, b"four").await.expect("read"), b"4");
}

#[tokio::test]
async fn certificates_of_others_let_nobody_in() {
    let world = World::new().await;
    let other = Authority::new();
    let foreign = other.issue("kube-apiserver", &[], &["edge-1"]);
    // It believes the server, and shows what the server does not believe.
    let foreign = Kept::fixed(Credentials {
        pair: Some(Pair::of(foreign).expect("a pair")),
        ca: world.ca.0.cert_pem(),
    });
    for alpn in [ALPN_MUX, ALPN_CLOUD, ALPN_PEER, b"http/1.1"] {
        let way = world.ca.way(world.server.agents, &foreign, &[alpn]);
        // With TLS 1.3 the client learns of the refusal with its first read.
        let refused = match way.open().await {
            Ok(mut io) => io.read(&mut [0]).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    // Of the right CA, but nobody's who may do this.
    let nobody = world.ca.client("somebody", &[], &["edge-1"]);
    let mut ended = match greeted(&world, &nobody, hello("edge-1", "")).await {
        Ok(session) => session,
        Err(error) => panic!("{error}"),
    };
    let why = ended.ended().await;
    assert!(
        matches!(&why, SessionError::Refused(why) if why.contains("no agent's")),
        "{why}"
    );
    let way = world.ca.way(world.server.agents, &nobody, &[]);
    let io = way.open().await.expect("TLS");
    let refused = client::connect(io, &twin::to("edge-1:1")).await.err();
    assert!(
        matches!(&refused, Some(DialError::Forbidden(why)) if why.contains("--frontends")),
        "{refused:?}"
    );
    for alpn in [ALPN_CLOUD, ALPN_PEER] {
        let way = world.ca.way(world.server.agents, &nobody, &[alpn]);
        let mut io = way.open().await.expect("TLS");
        assert!(
            !matches!(io.read(&mut [0]).await, Ok(1..)),
            "it is hung up on"
        );
    }
    assert!(world.server.switchboard.registry().is_empty());
}

#[tokio::test]
async fn garbage_is_hung_up_on_and_others_go_on() {
    let world = World::new().await;
    let _agent = world.agent_by("edge-1", twin::served(twin::echo)).await;
    // No TLS at all.
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(world.server.agents).await.expect("TCP");
        stream.write_all(bytes).await.expect("written");
        let mut rest = Vec::new();
        // An alert, then the end; or a reset.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.len() < 64, "{rest:?}");
    }
    // Rubbish where a protocol is expected.
    let client = world
        .ca
        .client("tunnel-agent-client", &["openyurt:yurttunnel"], &["edge-2"]);
    let apiserver = world.ca.client("kube-apiserver", &[], &[]);
    let peer = world
        .ca
        .client("tunnel-proxy-client", &["openyurt:yurttunnel"], &[]);
    for (who, alpn) in [
        (&client, ALPN_MUX),
        (&client, ALPN_CLOUD),
        (&peer, ALPN_PEER),
        (&client, ALPN_GRPC),
        (&apiserver, b"http/1.1".as_slice()),
    ] {
        let way = world.ca.way(world.server.agents, who, &[alpn]);
        let mut io = way.open().await.expect("TLS");
        let _ = io.write_all(&[0xff; 1000]).await;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(15), io.read_to_end(&mut rest));
        assert!(ended.await.is_ok(), "{}", String::from_utf8_lossy(alpn));
    }
    let stream = world.dial(&twin::to("edge-1:22")).await.expect("dialled");
    assert_eq!(twin::exchange(stream, b"ok").await.expect("read"), b"ok");
}

/// The way to the cloud of an agent on edge-1.
async fn way_to_the_cloud(world: &World) -> Arc<mux::cloud::Cloud> {
    let client = world
        .ca
        .client("tunnel-agent-client", &["openyurt:yurttunnel"], &["edge-1"]);
    let way = world.ca.way(world.server.agents, &client, &[ALPN_CLOUD]);
    let io = way.open().await.expect("TLS");
    mux::cloud::ask(io, Options::default())
        .await
        .expect("a way")
}

#[tokio::test]
async fn edges_reach_in_the_cloud_what_is_allowed() {
    let target = echo().await;
    let rule = format!("127.0.0.0/8:{}", target.port);
    let world = World::with(|config| {
        config.cloud = vec![rule.parse().expect("a rule")];
    })
    .await;
    let cloud = way_to_the_cloud(&world).await;
    let stream = crate::Tunnels::open(&*cloud, &target)
        .await
        .expect("allowed");
    assert_eq!(twin::exchange(stream, b"up").await.expect("read"), b"up");
    let other = crate::Tunnels::open(&*cloud, &twin::to("127.0.0.1:1"))
        .await
        .err();
    assert!(
        matches!(&other, Some(DialError::Forbidden(why)) if why.contains("--cloud-allow")),
        "{other:?}"
    );
}

/// By the server's clock: what was shown in the handshake ended days ago.
#[tokio::test]
async fn whoever_goes_on_with_a_certificate_that_ended_is_told_to_come_again() {
    let world = World::with(|config| {
        config.now = || yurt_pki::renewal::now() + 7 * 86_400;
        config.cloud = vec!["10.0.0.0/8".parse().expect("a rule")];
    })
    .await;
    let dialer = Arc::new(yurt_transport::TcpDialer);
    let mut session = agent(&world.ca, world.server.agents, "edge-1", dialer).await;
    let why = tokio::time::timeout(Duration::from_secs(20), session.ended()).await;
    let why = why.expect("ended").to_string();
    assert!(
        why.contains("refused") && why.contains("come again"),
        "{why}"
    );
    until(|| world.server.switchboard.registry().connected() == 0).await;
    let cloud = way_to_the_cloud(&world).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), cloud.closed().cancelled());
    ended.await.expect("the way to the cloud ends, too");
}

#[tokio::test]
async fn a_socket_that_was_left_over_is_replaced_and_one_in_use_is_not() {
    let world = World::new().await;
    let again = UnixSocket {
        path: world.unix.clone(),
        replace: true,
    };
    let again = process::bind_unix(&again).await;
    let error = again.expect_err("in use");
    assert!(error.to_string().contains("another process"), "{error}");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let socket = |path: &std::path::Path, replace| UnixSocket {
        path: path.to_owned(),
        replace,
    };
    assert!(process::bind_unix(&socket(&path, false)).await.is_err());
    let _listener = process::bind_unix(&socket(&path, true))
        .await
        .expect("replaced");
    tokio::net::UnixStream::connect(&path)
        .await
        .expect("served");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("written");
    assert!(process::bind_unix(&socket(&file, true)).await.is_err());
    assert!(file.exists());
}

/// konnectivity's protocol by the same port: who it is counts there as well.
#[tokio::test]
async fn konnectivitys_agents_are_let_in_by_what_they_show() {
    let world = World::new().await;
    let client = world
        .ca
        .client("tunnel-agent-client", &["openyurt:yurttunnel"], &["edge-1"]);
    let asked = async |hello: AgentHello| {
        let way = world.ca.way(world.server.agents, &client, &[ALPN_GRPC]);
        let io = way.open().await.expect("TLS");
        let (dialer, options) = (twin::served(twin::echo), Options::default());
        let shutdown = CancellationToken::new();
        crate::anp::agent::connect(io, hello, dialer, None, options, shutdown).await
    };
    let refused = asked(hello("edge-2", "host=edge-2")).await.err();
    assert!(refused.is_some());
    assert!(world.server.switchboard.registry().is_empty());
    let agent = asked(hello("edge-1", "host=edge-1")).await.expect("let in");
    assert_eq!(agent.server.id, "server-1");
    let registry = world.server.switchboard.registry().clone();
    until(|| registry.connected() == 1).await;
    let stream = world.dial(&twin::to("edge-1:22")).await.expect("dialled");
    assert_eq!(twin::exchange(stream, b"ok").await.expect("read"), b"ok");
    let shown = registry.agents().remove(0).links.remove(0);
    assert_eq!(
        (shown.protocol.as_str(), shown.identity.as_str()),
        ("anp", "tunnel-agent-client")
    );
    // It looks for other instances by connecting, and hangs up when it finds this one again: what goes by the first is not cut.
    let mut stream = world.dial(&twin::to("edge-1:22")).await.expect("dialled");
    let again = asked(hello("edge-1", "host=edge-1")).await.expect("let in");
    until(|| registry.connected() == 2).await;
    let mut later = world.dial(&twin::to("edge-1:22")).await.expect("dialled");
    drop(again);
    until(|| registry.connected() == 1).await;
    for stream in [&mut stream, &mut later] {
        stream.write_all(b"ok").await.expect("written");
        let mut back = [0; 2];
        stream.read_exact(&mut back).await.expect("read");
        assert_eq!(&back, b"ok");
    }
}

#[tokio::test]
async fn who_does_not_shake_hands_is_hung_up_on() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.server.agents).await.expect("TCP");
    stream.write_all(&[0x16, 3, 1]).await.expect("written");
    // It is accepted.
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Nothing happens from here on but time.
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let ended = stream.read(&mut [0]).await;
    assert!(!matches!(ended, Ok(1..)));
    assert!(
        began.elapsed() <= Duration::from_secs(11),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn too_much_is_refused_with_a_reason_and_is_had_again_when_there_is_less() {
    let world = World::with(|config| {
        config.ways.connections = 3;
        config.ways.pending = 2;
    })
    .await;
    let (hole, _held, _listener) = black_hole().await;
    let _agent = world.agent("edge-1").await;
    let busy = async |to: &Destination, what: &str| {
        let refused = world.dial(to).await.err();
        assert!(
            matches!(&refused, Some(DialError::Busy(why)) if why.contains(what)),
            "{refused:?}"
        );
    };
    let target = echo().await;
    let pending = [world.dial(&hole), world.dial(&hole)].map(Box::pin);
    let switchboard = world.server.switchboard.clone();
    let filling = futures_util::future::join_all(pending);
    tokio::select! {
        _ = filling => panic!("nobody is there"),
        () = async {
            until(|| switchboard.connections() == 2).await;
            busy(&target, "2 dials").await;
        } => {}
    }
    until(|| switchboard.connections() == 0).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(world.dial(&target).await.expect("a connection"));
    }
    busy(&target, "3 connections").await;
    drop(open);
    until(|| switchboard.connections() == 0).await;
    let stream = world.dial(&target).await.expect("a connection");
    assert_eq!(twin::exchange(stream, b"ok").await.expect("read"), b"ok");
}

#[tokio::test]
async fn connections_beyond_the_places_are_turned_away() {
    let world = World::with(|config| config.most_connections = 4).await;
    let idle = async || {
        let stream = tokio::net::UnixStream::connect(&world.unix).await;
        stream.expect("a socket")
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(idle().await);
    }
    let mut turned_away = idle().await;
    assert!(!matches!(turned_away.read(&mut [0]).await, Ok(1..)));
    held.truncate(2);
    let mut agent = None;
    while agent.is_none() {
        // A place is free when the server has noticed.
        let client = world
            .ca
            .client("tunnel-agent-client", &["openyurt:yurttunnel"], &["edge-1"]);
        agent = greeted(&world, &client, hello("edge-1", "host=edge-1"))
            .await
            .ok();
    }
    let registry = world.server.switchboard.registry().clone();
    until(|| registry.connected() == 1).await;
    let stream = world.dial(&twin::to("edge-1:22")).await.expect("dialled");
    assert_eq!(twin::exchange(stream, b"ok").await.expect("read"), b"ok");
}

#[tokio::test]
async fn an_agent_that_vanishes_while_it_dials_is_told_at_once() {
    let world = World::new().await;
    let dialling = Arc::new(tokio::sync::Notify::new());
    let tell = dialling.clone();
    let dialer = Arc::new(twin::Answers(move |_: Destination| {
        tell.notify_one();
        std::future::pending::<std::io::Result<BoxStream>>()
    }));
    let agent = world.agent_by("edge-1", dialer).await;
    let to = twin::to("edge-1:22");
    let began = std::time::Instant::now();
    let vanishing = async {
        dialling.notified().await;
        drop(agent);
    };
    let (refused, ()) = tokio::join!(world.dial(&to), vanishing);
    // 502, and why.
    let refused = refused.err().expect("refused");
    assert!(
        matches!(&refused, DialError::Failed(why) if why.contains("tunnel")),
        "{refused:?}"
    );
    assert!(
        began.elapsed() < Options::default().dial,
        "{:?}",
        began.elapsed()
    );
    until(|| world.server.switchboard.connections() == 0).await;
}
