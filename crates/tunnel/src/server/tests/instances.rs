use super::*;
use crate::status::{Explanation, ServerStatus};
use http::StatusCode;

/// Two instances that know each other.
struct Pair2 {
    ca: Authority,
    one: (Server, CancellationToken),
    other: (Server, CancellationToken),
}

async fn two() -> Pair2 {
    let ca = Authority::new();
    // Ports that nobody else takes meanwhile.
    let hold = |_: u8| async { TcpListener::bind("127.0.0.1:0").await.expect("bound") };
    let (a, b) = (hold(0).await, hold(1).await);
    let ports = [&a, &b].map(|listener| listener.local_addr().expect("an address"));
    drop((a, b));
    let started = async |id: &str, own: SocketAddr, peer: SocketAddr| {
        let mut config = config(&ca, id);
        config.agents = own;
        config.peers = vec![peer.to_string()];
        config.drain = Duration::from_secs(1);
        let shutdown = CancellationToken::new();
        let telemetry = yurt_telemetry::Metrics::new("test");
        let server = start(config, &telemetry, shutdown.clone()).await;
        (server.expect("started"), shutdown)
    };
    let one = started("one", ports[0], ports[1]).await;
    let other = started("other", ports[1], ports[0]).await;
    let peers = [&one, &other].map(|(server, _)| server.switchboard.peers().clone());
    until(|| peers.iter().all(|peers| peers.connected() == 1)).await;
    Pair2 { ca, one, other }
}

async fn page<T: serde::de::DeserializeOwned>(server: &Server, path: &str) -> T {
    let way = Way::Plain(at(server.meta.expect("a port")));
    let (status, text) = way.get(path).await.expect("a page");
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test]
async fn any_instance_reaches_any_agent_and_one_that_dies_takes_only_its_own_with_it() {
    let pair = two().await;
    let (one, other) = (&pair.one.0, &pair.other.0);
    let dialer = || twin::served(twin::echo);
    let _a = agent(&pair.ca, one.agents, "edge-a", dialer()).await;
    let _b = agent(&pair.ca, other.agents, "edge-b", dialer()).await;
    let both = agent(&pair.ca, one.agents, "edge-both", dialer()).await;
    let _both = agent(&pair.ca, other.agents, "edge-both", dialer()).await;
    let registries = [one, other].map(|server| server.switchboard.registry().clone());
    until(|| registries.iter().all(|registry| registry.len() == 2)).await;
    for (server, node) in [
        (one, "edge-a"),
        (one, "edge-b"),
        (other, "edge-a"),
        (other, "edge-b"),
    ] {
        for _ in 0..3 {
            let stream = server
                .tunnels()
                .open(&twin::to(&format!("{node}:22")))
                .await;
            let stream = stream.expect("a connection");
            assert_eq!(twin::exchange(stream, b"hi").await.expect("read"), b"hi");
        }
    }
    let to = |node: &str| Destination {
        node: Some(node.into()),
        ..twin::to("127.0.0.1:10250")
    };
    let stream = one
        .tunnels()
        .open(&to("edge-b"))
        .await
        .expect("by the other");
    assert_eq!(twin::exchange(stream, b"hi").await.expect("read"), b"hi");
    let nobody = one
        .tunnels()
        .open(&to("edge-c"))
        .await
        .err()
        .expect("refused");
    assert!(nobody.to_string().contains("nor to 1 other"), "{nobody}");
    // Where it was is told.
    let explained: Explanation = page(one, "/v1/explain?target=edge-b").await;
    assert_eq!(explained.by, "peer", "{explained:?}");
    assert!(
        explained
            .verdict
            .starts_with("instance other: agent edge-b"),
        "{explained:?}"
    );
    let status: ServerStatus = page(one, "/v1/status").await;
    assert_eq!(status.agents.len(), 2);
    assert!(status.peers[0].connected && status.count == 2, "{status:?}");
    assert!(status.show().contains("edge-both"));
    // The other one is killed.
    pair.other.1.cancel();
    let began = std::time::Instant::now();
    for _ in 0..20 {
        let stream = one.tunnels().open(&twin::to("edge-both:22")).await;
        let stream = stream.expect("a connection");
        assert_eq!(twin::exchange(stream, b"hi").await.expect("read"), b"hi");
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    drop(both);
}

#[tokio::test]
async fn a_server_that_stops_tells_its_agents_and_lets_connections_end() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut world = World::new().await;
    let agent = world.agent_by("edge-1", twin::served(twin::echo)).await;
    let mut stream = world.dial(&twin::to("edge-1:22")).await.expect("dialled");
    let meta = Way::Plain(at(world.server.meta.expect("a port")));
    let ready = meta.get("/readyz").await.expect("a page");
    assert_eq!(ready, (StatusCode::OK, "ok".to_owned()));
    let shutdown = world.shutdown.clone();
    let switchboard = world.server.switchboard.clone();
    let spare = World::new().await;
    let server = std::mem::replace(&mut world.server, start_like(&spare).await);
    let stopping = tokio::spawn(server.stopped());
    shutdown.cancel();
    agent.server_drains().cancelled().await;
    let ready = meta.get("/readyz").await.expect("a page");
    assert_eq!(
        ready,
        (StatusCode::INTERNAL_SERVER_ERROR, "draining".to_owned())
    );
    stream.write_all(b"still").await.expect("written");
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.expect("read");
    assert!(!stopping.is_finished());
    // Nobody finds the socket any more.
    until(|| !world.unix.exists()).await;
    drop(stream);
    let ended = tokio::time::timeout(Duration::from_secs(5), stopping).await;
    ended.expect("in time").expect("no failure");
    assert_eq!(switchboard.connections(), 0);
    assert!(switchboard.registry().is_empty());
}

/// Another server in the place of one that is taken away.
async fn start_like(world: &World) -> Server {
    let telemetry = yurt_telemetry::Metrics::new("test");
    let config = config(&world.ca, "spare");
    let server = start(config, &telemetry, world.shutdown.clone()).await;
    server.expect("started")
}

#[tokio::test]
async fn metrics_are_konnectivitys_and_not_by_agent() {
    let world = World::new().await;
    let _agent = world.agent_by("edge-1", twin::served(twin::echo)).await;
    let stream = world.dial(&twin::to("edge-1:22")).await.expect("dialled");
    twin::exchange(stream, b"hi").await.expect("read");
    assert!(world.dial(&twin::to("edge-9:22")).await.is_err());
    let way = Way::Plain(at(world.server.meta.expect("a port")));
    let (_, text) = way.get("/metrics").await.expect("a page");
    let prefix = "konnectivity_network_proxy_server";
    for line in [
        "_dial_duration_seconds_count 1\n",
        "_ready_backend_connections 1\n",
        "_ready_backends{proxy_strategy=\"destHost\"} 1\n",
        "_dial_failure_count{reason=\"no_agent\"} 1\n",
        "_pending_backend_dials 0\n",
    ] {
        assert!(
            text.contains(&format!("{prefix}{line}")),
            "{line} in {text}"
        );
    }
    assert!(!text.contains("edge-"), "{text}");
}
