//! QUIC beside TCP, by real sockets: an agent's connections against a server, with a network between them that may be against UDP.

use super::*;
use crate::{
    Options,
    agent::{
        AgentMetrics,
        beside::Transport,
        connector::Connections,
        fleet::{Door, Policy},
        reach::Reach,
    },
    allow::Mark,
    server::gate::HANDSHAKES,
    twin,
};
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
    sync::watch,
};

fn quick() -> Options {
    Options {
        quiet: Duration::from_millis(400),
        patience: Duration::from_millis(1200),
        drain: Duration::from_secs(2),
        ..Options::default()
    }
}

/// Between agent and server: passes TCP on, and of UDP so many datagrams in 256.
struct Between {
    address: SocketAddr,
    passes: Arc<AtomicU8>,
    _ends: tokio_util::sync::DropGuard,
}

impl Between {
    async fn to(server: SocketAddr, passes: u8) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // The number may be taken.
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let end = CancellationToken::new();
        tokio::spawn(end.clone().run_until_cancelled_owned(async move {
            while let Ok((mut near, _)) = tcp.accept().await {
                let mut far = TcpStream::connect(server).await.unwrap();
                tokio::spawn(
                    async move { tokio::io::copy_bidirectional(&mut near, &mut far).await },
                );
            }
        }));
        let passes = Arc::new(AtomicU8::new(passes));
        let lets = {
            let passes = passes.clone();
            move || fastrand::u8(..) < passes.load(SeqCst)
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(async move {
            let out = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            out.connect(server).await.unwrap();
            let (mut one, mut other) = (vec![0; 65_536], vec![0; 65_536]);
            let mut agent = None;
            loop {
                tokio::select! {
                    Ok((count, from)) = udp.recv_from(&mut one) => {
                        agent = Some(from);
                        if lets() {
                            let _ = out.send(&one[..count]).await;
                        }
                    }
                    Ok(count) = out.recv(&mut other) => {
                        if let Some(agent) = agent.filter(|_| lets()) {
                            let _ = udp.send_to(&other[..count], agent).await;
                        }
                    }
                }
            }
        }));
        Self {
            address,
            passes,
            _ends: end.drop_guard(),
        }
    }

    fn passes(&self, of_256: u8) {
        self.passes.store(of_256, SeqCst);
    }
}

/// An agent's connections to the server at this address.
fn connect(
    world: &World,
    at: SocketAddr,
    transport: Transport,
) -> (Connections, CancellationToken) {
    connect_by(world, at, transport, quick())
}

fn connect_by(
    world: &World,
    at: SocketAddr,
    transport: Transport,
    options: Options,
) -> (Connections, CancellationToken) {
    let door = Door {
        priority: 0,
        host: at.ip().to_string(),
        port: at.port(),
        name: "server".into(),
    };
    let reach = Arc::new(Reach {
        kept: world
            .ca
            .client("tunnel-agent-client", &["openyurt:yurttunnel"], &["edge-1"]),
        transport,
        within: Duration::from_secs(1),
        proxy: None,
        hello: twin::agent_hello("edge-1"),
        dialer: Arc::new(TcpDialer),
        options,
        token: None,
        mark: Mark::default(),
        now: yurt_pki::renewal::now,
        protocols: Vec::new(),
    });
    let connections = Connections::new(Policy::All);
    let shutdown = CancellationToken::new();
    let metrics = AgentMetrics::new(&mut prometheus_client::registry::Registry::default());
    let running = (connections.clone(), shutdown.clone());
    tokio::spawn(async move {
        let (_tell, doors) = watch::channel(vec![door]);
        running.0.run(reach, doors, metrics, running.1).await;
    });
    (connections, shutdown)
}

fn quic(connections: &Connections) -> serde_json::Value {
    connections.describe()["servers"][0]["quic"].clone()
}

fn links(world: &World) -> Vec<&'static str> {
    let links = world.server.switchboard.registry().links("edge-1");
    links.iter().map(|link| link.protocol()).collect()
}

async fn exchange(world: &World, echo: &Destination) {
    let to = Destination {
        node: Some("edge-1".into()),
        ..echo.clone()
    };
    let stream = world.dial(&to).await.expect("dialled");
    assert_eq!(
        twin::exchange(stream, b"hello").await.expect("an answer"),
        b"hello"
    );
}

async fn world() -> World {
    world_of(quick()).await
}

async fn world_of(options: Options) -> World {
    World::with(|config| config.options = options).await
}

#[tokio::test]
async fn quic_is_made_beside_tcp_and_what_udp_breaks_tcp_goes_on_with() {
    let (world, echo) = (world().await, echo().await);
    let between = Between::to(world.server.agents, u8::MAX).await;
    let (connections, shutdown) = connect(&world, between.address, Transport::Quic);
    until(|| links(&world) == ["quic", "mux"]).await;
    // Who knocks with anything else harms nobody.
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in 0..200 {
        let garbage: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
            .take(length * 7)
            .collect();
        let _ = stranger.send_to(&garbage, world.server.quic.unwrap()).await;
    }
    let to = Destination {
        node: Some("edge-1".into()),
        ..echo.clone()
    };
    let mut stream = world.dial(&to).await.expect("dialled");
    stream.write_all(b"here").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(
        world.server.switchboard.registry().links("edge-1")[0].connections(),
        1
    );
    assert_eq!(quic(&connections)["connections"], 1);
    // UDP passes no more: what was open ends with an error, within seconds, and everybody else goes on by TCP.
    between.passes(0);
    let began = std::time::Instant::now();
    let _ = stream.write_all(b"lost").await;
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer)).await;
    assert!(ended.expect("it ends").is_err());
    until(|| links(&world) == ["mux"]).await;
    exchange(&world, &echo).await;
    assert!(began.elapsed() < Duration::from_secs(10));
    until(|| quic(&connections)["inUse"] == false).await;
    // The end: nothing is left.
    shutdown.cancel();
    until(|| links(&world).is_empty()).await;
}

#[tokio::test]
async fn where_udp_is_blocked_tcp_is_all_there_is() {
    let (world, echo) = (world().await, echo().await);
    let between = Between::to(world.server.agents, 0).await;
    let (connections, _shutdown) = connect(&world, between.address, Transport::Quic);
    let why = || {
        quic(&connections)["why"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    until(|| why().contains("UDP does not pass")).await;
    assert_eq!(links(&world), ["mux"]);
    exchange(&world, &echo).await;
}

#[tokio::test]
async fn left_to_itself_an_agent_takes_quic_where_the_path_loses_and_the_dead_window_costs_no_dial()
{
    let (world, echo) = (world().await, echo().await);
    // Nine of ten pass.
    let lossy = Between::to(world.server.agents, 230).await;
    let (connections, _shutdown) = loop {
        let (connections, shutdown) = connect(&world, lossy.address, Transport::Auto);
        // On a busy machine datagrams may be slower than TCP's handshake was, which counts as well: then somebody else looks.
        let is_slow = || {
            let why = quic(&connections)["why"].to_string();
            why.contains("a round trip of TCP takes")
        };
        until(|| links(&world) == ["quic", "mux"] || is_slow()).await;
        if !is_slow() {
            break (connections, shutdown);
        }
        shutdown.cancel();
        until(|| links(&world).is_empty()).await;
    };
    exchange(&world, &echo).await;
    assert_eq!(quic(&connections)["inUse"], true);
    // A dial while nobody knows yet that UDP is dead: it is asked for again, by TCP.
    lossy.passes(0);
    exchange(&world, &echo).await;
    assert_eq!(links(&world), ["mux"]);
}

#[tokio::test]
async fn what_an_agent_left_behind_is_not_dialled_by_once_it_is_back() {
    let (world, echo) = (world_of(Options::default()).await, echo().await);
    let between = Between::to(world.server.agents, u8::MAX).await;
    let (_before, _) = connect_by(&world, between.address, Transport::Quic, Options::default());
    until(|| links(&world) == ["quic", "mux"]).await;
    // A connection that comes or ends puts it to the proof, which it gives.
    let beside = agent(
        &world.ca,
        world.server.agents,
        "edge-1",
        Arc::new(TcpDialer),
    )
    .await;
    until(|| links(&world) == ["quic", "mux", "mux"]).await;
    drop(beside);
    until(|| links(&world) == ["quic", "mux"]).await;
    // The agent dies with all it had, and is back before that is noticed.
    between.passes(0);
    let _back = agent(
        &world.ca,
        world.server.agents,
        "edge-1",
        Arc::new(TcpDialer),
    )
    .await;
    until(|| links(&world) == ["mux", "quic", "mux"]).await;
    let began = std::time::Instant::now();
    exchange(&world, &echo).await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_server_that_takes_no_quic_says_so() {
    let world = World::with(|config| (config.quic, config.options) = (None, quick())).await;
    assert!(world.server.quic.is_none());
    let (connections, _shutdown) = connect(&world, world.server.agents, Transport::Quic);
    until(|| links(&world) == ["mux"]).await;
    assert!(quic(&connections).is_null());
}

#[tokio::test]
async fn handshakes_that_nobody_ends_keep_nobody_out() {
    let world = world_of(Options::default()).await;
    // Whoever is at this address never hears an answer: as with a sender that is made up.
    let deaf = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = deaf.local_addr().unwrap();
    let server = world.server.quic.unwrap();
    let passed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    tokio::spawn({
        let passed = passed.clone();
        async move {
            let out = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let mut datagram = vec![0; 2048];
            while let Ok((count, _)) = deaf.recv_from(&mut datagram).await {
                passed.fetch_add(1, SeqCst);
                let _ = out.send_to(&datagram[..count], server).await;
            }
        }
    });
    let kept = world
        .ca
        .client("tunnel-agent-client", &["openyurt:yurttunnel"], &["edge-1"]);
    let tls = kept
        .current()
        .client_config(&[crate::hello::ALPN_QUIC])
        .unwrap();
    let config = crate::quic::endpoint::calling(tls, &Options::default()).unwrap();
    let mut calling = tokio::task::JoinSet::new();
    // A few at a time, for no socket to overflow; a quarter more than there is room for.
    for round in 1..=20 {
        for _ in 0..HANDSHAKES / 16 {
            let config = config.clone();
            calling.spawn(async move {
                let _ = crate::quic::endpoint::connect(address, "server", config).await;
            });
        }
        until(|| passed.load(SeqCst) >= round * HANDSHAKES / 16).await;
    }
    let (_connections, _shutdown) = connect(&world, world.server.agents, Transport::Quic);
    until(|| links(&world) == ["quic", "mux"]).await;
    assert!(!calling.is_empty());
}
