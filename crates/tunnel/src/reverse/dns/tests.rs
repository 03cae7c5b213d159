use super::*;
use crate::twin::Answers;
use std::{
    future::ready,
    sync::atomic::{AtomicUsize, Ordering},
};

/// The cloud's name server: answers every query with its own question and as many bytes as its first label says, and counts connections.
#[derive(Debug, Default)]
struct World {
    connections: AtomicUsize,
}

async fn answers(mut stream: tokio::io::DuplexStream, once: bool) {
    while let Ok(length) = stream.read_u16().await {
        let mut message = vec![0; usize::from(length)];
        stream.read_exact(&mut message).await.unwrap();
        let query = Query::read(&message).unwrap();
        let more = String::from_utf8(query.name[0].clone()).unwrap();
        let mut answer = query.failed(0);
        answer.extend(vec![b'x'; more.parse().unwrap()]);
        stream.write_all(&framed(&answer).unwrap()).await.unwrap();
        if once {
            return;
        }
    }
}

/// A name server, and the world behind it. `once`: every connection to the cloud serves one query.
async fn started(once: bool) -> (SocketAddr, Arc<World>, CancellationToken) {
    let world = Arc::new(World::default());
    let counted = world.clone();
    let tunnels = Answers(move |to: Destination| {
        assert_eq!(to.to_string(), "kube-dns:53");
        counted.connections.fetch_add(1, Ordering::Relaxed);
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(answers(far, once));
        ready(Ok(Box::new(near) as BoxStream))
    });
    let names = NameServer {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        zones: vec!["cluster.local".parse().unwrap()],
        server: "kube-dns:53".parse().unwrap(),
    };
    let stop = CancellationToken::new();
    let address = started_as(&names, Arc::new(tunnels), &stop).await;
    (address, world, stop)
}

async fn started_as(
    names: &NameServer,
    tunnels: Arc<dyn Tunnels>,
    stop: &CancellationToken,
) -> SocketAddr {
    // A port that is free now, for both.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let names = NameServer {
        listen: vec![address],
        ..names.clone()
    };
    names.start(tunnels, stop).await.unwrap();
    address
}

async fn by_udp(address: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(query, address).await.unwrap();
    let mut answer = vec![0; 9000];
    let received = timeout(Duration::from_secs(20), socket.recv_from(&mut answer));
    let (length, _) = received.await.expect("in time").unwrap();
    answer.truncate(length);
    answer
}

async fn by_tcp(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    stream.write_all(&framed(query).unwrap()).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn names_of_the_zone_are_asked_for_in_the_cloud_and_others_refused() {
    let (address, world, _stop) = started(false).await;
    let query = message::query("10.svc.Cluster.Local", &[]);
    for _ in 0..3 {
        let answer = by_udp(address, &query).await;
        assert_eq!((answer.len(), answer[3]), (query.len() + 10, 0));
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        // What is too long for UDP is told by TCP.
        let long = message::query("3000.cluster.local", &[]);
        let cut = by_udp(address, &long).await;
        assert_eq!((cut.len(), cut[2] & 2), (long.len(), 2));
        assert_eq!(by_tcp(&mut stream, &long).await.len(), long.len() + 3000);
    }
    assert_eq!(world.connections.load(Ordering::Relaxed), 1, "used again");
    for name in [
        "10.example.com",
        "cluster.local.example.com",
        "10.xcluster.local",
    ] {
        let query = message::query(name, &[]);
        assert_eq!(by_udp(address, &query).await[3], REFUSED, "{name}");
        assert_eq!(by_tcp(&mut stream, &query).await[3], REFUSED, "{name}");
    }
    assert_eq!(world.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_connection_that_the_name_server_closed_is_replaced() {
    let (address, world, _stop) = started(true).await;
    for round in 1..=3 {
        let query = message::query("5.cluster.local", &[]);
        assert_eq!(by_udp(address, &query).await.len(), query.len() + 5);
        assert_eq!(world.connections.load(Ordering::Relaxed), round);
    }
}

#[tokio::test]
async fn what_does_not_work_is_said_in_the_answer() {
    #[derive(Debug)]
    struct Failing;
    impl Tunnels for Failing {
        fn open<'a>(&'a self, to: &'a Destination) -> crate::Opening<'a> {
            Box::pin(async move {
                Err(match to.host.as_str() {
                    "forbidden" => DialError::Forbidden("not for the edge".into()),
                    _ => DialError::NoAgent("no server".into()),
                })
            })
        }
    }
    let stop = CancellationToken::new();
    for (server, code) in [("forbidden:53", REFUSED), ("away:53", SERVFAIL)] {
        let names = NameServer {
            listen: Vec::new(),
            zones: vec!["cluster.local".parse().unwrap()],
            server: server.parse().unwrap(),
        };
        let address = started_as(&names, Arc::new(Failing), &stop).await;
        let answer = by_udp(address, &message::query("a.cluster.local", &[])).await;
        assert_eq!(answer[3], code);
    }
}

#[test]
fn zones_are_domains() {
    let zone: Zone = "Cluster.Local.".parse().unwrap();
    assert_eq!(zone.0, [&b"cluster"[..], b"local"]);
    for bad in ["", ".", "a..b", &"a".repeat(64)] {
        assert!(bad.parse::<Zone>().is_err(), "{bad}");
    }
}
