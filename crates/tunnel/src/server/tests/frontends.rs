use super::*;
use crate::DialError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What a server answers to raw bytes, until it closes.
async fn answered(world: &World, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(&world.unix).await.expect("a socket");
    stream.write_all(bytes).await.expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("text");
    text
}

#[tokio::test]
async fn a_connection_carries_everything_and_half_closes() {
    let world = World::new().await;
    let _agent = world.agent("edge-1").await;
    let target = echo().await;
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    for _ in 0..3 {
        let stream = world.dial(&target).await.expect("a connection");
        let back = twin::exchange(stream, &data).await.expect("carried");
        assert!(back == data);
    }
    let tls = world.ca.client("kube-apiserver", &[], &[]);
    // kube-apiserver offers no ALPN.
    for alpn in [&[][..], &[b"http/1.1".as_slice()]] {
        let way = world.ca.way(world.server.agents, &tls, alpn);
        let io = way.open().await.expect("TLS");
        let stream = client::connect(io, &target).await.expect("a connection");
        let back = twin::exchange(stream, &data).await.expect("carried");
        assert!(back == data);
    }
    let switchboard = world.server.switchboard.clone();
    until(|| switchboard.connections() == 0).await;
}

/// kube-apiserver takes payload in the read of the head for an error, and reads whatever is there.
#[tokio::test]
async fn the_200_comes_alone_although_the_target_speaks_first() {
    let world = World::new().await;
    let banner = twin::served(|mut stream| async move {
        let _ = stream.write_all(b"SSH-2.0-target\r\n").await;
        let _ = stream.read(&mut [0]).await;
    });
    let _agent = world.agent_by("edge-1", banner).await;
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&world.unix).await.expect("a socket");
        let request = b"CONNECT edge-1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
        stream.write_all(request).await.expect("written");
        let mut head = vec![0; 1 << 20];
        let read = stream.read(&mut head).await.expect("an answer");
        let text = std::str::from_utf8(&head[..read]).expect("text");
        assert_eq!(text, "HTTP/1.1 200 Connection Established\r\n\r\n");
        let read = stream.read(&mut head).await.expect("the banner");
        assert_eq!(&head[..read], b"SSH-2.0-target\r\n");
    }
}

#[tokio::test]
async fn what_the_caller_says_early_is_not_lost() {
    let world = World::new().await;
    let _agent = world.agent("edge-1").await;
    let target = echo().await;
    let mut stream = UnixStream::connect(&world.unix).await.expect("a socket");
    let request = format!("CONNECT {target} HTTP/1.1\r\n\r\nearly bird");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = vec![0; "HTTP/1.1 200 Connection Established\r\n\r\nearly bird".len()];
    stream.read_exact(&mut answer).await.expect("read");
    assert!(answer.ends_with(b"\r\n\r\nearly bird"));
}

#[tokio::test]
async fn failures_have_a_status_and_say_why() {
    let world = World::with(|config| {
        config.ways.dial = Duration::from_millis(500);
        config.options.dial = Duration::from_millis(300);
    })
    .await;
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        at(listener.local_addr().expect("an address"))
    };
    let none = answered(&world, b"CONNECT edge-1:1 HTTP/1.1\r\n\r\n").await;
    assert!(none.starts_with("HTTP/1.1 503 "), "{none}");
    assert!(none.contains("No agent available"), "{none}");
    let _agent = world.agent("edge-1").await;
    let request = format!("CONNECT {refused} HTTP/1.1\r\n\r\n");
    let text = answered(&world, request.as_bytes()).await;
    assert!(text.starts_with("HTTP/1.1 502 "), "{text}");
    assert!(text.to_lowercase().contains("refused"), "{text}");
    let (hole, _held, _listener) = black_hole().await;
    let request = format!("CONNECT {hole} HTTP/1.1\r\n\r\n");
    let text = answered(&world, request.as_bytes()).await;
    assert!(text.starts_with("HTTP/1.1 504 "), "{text}");
    for (bytes, status) in [
        (&b"POST / HTTP/1.1\r\n\r\n"[..], "405"),
        (b"CONNECT nowhere HTTP/1.1\r\n\r\n", "400"),
        (b"\x16\x03\x01 garbage\r\n\r\n", "400"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", "404"),
    ] {
        let text = answered(&world, bytes).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    }
    let switchboard = world.server.switchboard.clone();
    until(|| switchboard.connections() == 0).await;
}

#[tokio::test]
async fn whoever_names_the_node_reaches_that_nodes_loopback() {
    let world = World::new().await;
    let here = twin::served(twin::echo);
    let there = twin::served(twin::count);
    let _one = world.agent_by("edge-1", here).await;
    let _other = world.agent_by("edge-2", there).await;
    let to = |node: &str| Destination {
        node: Some(node.into()),
        ..twin::to("127.0.0.1:10267")
    };
    let stream = world.dial(&to("edge-1:10250")).await.expect("a connection");
    assert_eq!(twin::exchange(stream, b"abc").await.expect("read"), b"abc");
    let stream = world.dial(&to("edge-2")).await.expect("a connection");
    assert_eq!(twin::exchange(stream, b"abc").await.expect("read"), b"3");
    let nobody = world.dial(&to("edge-3")).await.err().expect("refused");
    assert!(nobody.to_string().contains("edge-3"), "{nobody}");
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_its_dial() {
    let world = World::new().await;
    let (hole, _held, _listener) = black_hole().await;
    let agent = world.agent("edge-1").await;
    let mut callers = Vec::new();
    for _ in 0..50 {
        let mut stream = UnixStream::connect(&world.unix).await.expect("a socket");
        let request = format!("CONNECT {hole} HTTP/1.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        callers.push(stream);
    }
    let switchboard = world.server.switchboard.clone();
    until(|| switchboard.connections() == 50).await;
    drop(callers);
    until(|| switchboard.connections() == 0).await;
    until(|| agent.connections() == 0).await;
}

#[tokio::test]
async fn one_that_does_not_read_holds_up_nobody() {
    let world = World::new().await;
    let _agent = world.agent("edge-1").await;
    let target = echo().await;
    let mut stuck = world.dial(&target).await.expect("a connection");
    // Until nothing more is taken: it is never read.
    let block = vec![7u8; 1 << 20];
    let filling = async {
        loop {
            stuck.write_all(&block).await.expect("written");
        }
    };
    let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(2), filling).await;
    for _ in 0..100 {
        let exchange = async {
            let stream = world.dial(&target).await.expect("a connection");
            twin::exchange(stream, b"ping").await.expect("answered")
        };
        let answer = tokio::time::timeout(Duration::from_secs(2), exchange).await;
        assert_eq!(answer.expect("in time"), b"ping");
    }
}

/// Thousands of connections, of which nothing is left.
#[tokio::test]
async fn thousands_of_dials_leave_nothing() {
    let world = World::new().await;
    let agent = world.agent_by("edge-1", twin::served(twin::echo)).await;
    let world = Arc::new(world);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let world = world.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                let stream = world.dial(&twin::to("edge-1:80")).await.expect("dialled");
                match number % 4 {
                    // Dropped as it is.
                    0 => drop(stream),
                    _ => {
                        let back = twin::exchange(stream, b"all of it").await;
                        assert_eq!(back.expect("carried"), b"all of it");
                    }
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no failure");
    }
    let switchboard = world.server.switchboard.clone();
    until(|| switchboard.connections() == 0).await;
    until(|| agent.connections() == 0).await;
}

#[tokio::test]
async fn an_agent_that_dies_ends_its_connections_and_is_forgotten() {
    let world = World::new().await;
    let agent = world.agent_by("edge-1", twin::served(twin::echo)).await;
    let to = twin::to("edge-1:80");
    let mut stream = world.dial(&to).await.expect("a connection");
    drop(agent);
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0])).await;
    assert!(!matches!(ended.expect("at once"), Ok(1..)));
    let registry = world.server.switchboard.registry().clone();
    until(|| registry.is_empty()).await;
    let none = world.dial(&to).await.err();
    assert!(matches!(none, Some(DialError::Busy(text)) if text.contains("No agent")));
    // It comes back.
    let _agent = world.agent_by("edge-1", twin::served(twin::echo)).await;
    assert!(world.dial(&to).await.is_ok());
}

#[tokio::test]
async fn the_newest_connection_of_an_agent_is_used_and_a_draining_one_last() {
    let world = World::new().await;
    let old = world.agent_by("edge-1", twin::served(twin::echo)).await;
    let to = twin::to("edge-1:80");
    let mut kept = world.dial(&to).await.expect("a connection");
    let new = world.agent_by("edge-1", twin::served(twin::count)).await;
    let stream = world.dial(&to).await.expect("a connection");
    assert_eq!(twin::exchange(stream, b"four").await.expect("read"), b"4");
    // What was opened by the old one goes on.
    kept.write_all(b"still").await.expect("written");
    let mut back = [0; 5];
    kept.read_exact(&mut back).await.expect("read");
    assert_eq!(&back, b"still");
    drop(new);
    let registry = world.server.switchboard.registry().clone();
    until(|| registry.connected() == 1).await;
    let stream = world.dial(&to).await.expect("by the old one");
    assert_eq!(
        twin::exchange(stream, b"four").await.expect("read"),
        b"four"
    );
    // More than are kept: the oldest are closed.
    let mut more = Vec::new();
    for _ in 0..4 {
        more.push(
            agent(
                &world.ca,
                world.server.agents,
                "edge-1",
                twin::served(twin::echo),
            )
            .await,
        );
    }
    until(|| registry.connected() == 4).await;
    drop(old);
}
