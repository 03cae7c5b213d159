use super::*;
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use yurt_transport::{Destination, Dialer};

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts
        .iter()
        .map(|text| text.parse().expect("a rule"))
        .collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn rules_have_one_form() {
    for (text, shown) in [
        ("10.0.0.0/8", "10.0.0.0/8:1-65535"),
        ("192.168.1.7:22", "192.168.1.7/32:22"),
        ("[fd00::]/64:80,443", "fd00::/64:80,443"),
        ("fd00::1", "fd00::1/128:1-65535"),
        ("[fd00::1]:22", "fd00::1/128:22"),
        ("DB.local.:5432-5440", "db.local:5432-5440"),
    ] {
        let rule: Rule = text.parse().expect(text);
        assert_eq!(rule.to_string(), shown);
        assert_eq!(rule.to_string().parse(), Ok(rule), "{shown}");
    }
    for bad in [
        "",
        ":80",
        "a",
        "a:0",
        "a:80-70",
        "10.0.0.0/33",
        "10.0.0.1:",
        "10.0.0.1:70000",
        "a/b:1",
        "10.0.0.0/8/8:1",
    ] {
        assert!(bad.parse::<Rule>().is_err(), "{bad:?}");
    }
}

fn node() -> NodeScope {
    NodeScope {
        addresses: vec![ip("192.168.1.7"), ip("fd00::7")],
        pod_networks: vec!["10.244.3.0/24".parse().expect("a block")],
        localhost_ports: LOCALHOST_PORTS.to_vec(),
    }
}

#[test]
fn a_node_allows_its_kubelet_and_its_pods() {
    let list = AllowList::of_node(&node(), &[]);
    for (address, port) in [
        ("192.168.1.7", 10250),
        ("fd00::7", 10255),
        ("::ffff:192.168.1.7", 10250),
        ("127.0.0.1", 10250),
        ("::1", 10255),
        ("127.0.0.1", 10267),
        ("10.244.3.9", 1),
        ("10.244.3.9", 65535),
    ] {
        assert!(list.permits(ip(address), port), "{address} {port}");
    }
    for (address, port) in [
        ("192.168.1.7", 22),
        ("192.168.1.7", 10267),
        ("192.168.1.8", 10250),
        ("127.0.0.1", 22),
        ("127.0.0.2", 10250),
        ("0.0.0.0", 10250),
        ("::", 10250),
        ("10.244.4.9", 80),
        ("169.254.169.254", 80),
        ("10.244.3.9", 0),
    ] {
        assert!(!list.permits(ip(address), port), "{address} {port}");
    }
    let more = AllowList::of_node(&node(), &rules(&["127.0.0.1:22", "db.local:5432"]));
    assert!(more.permits(ip("127.0.0.1"), 22));
    assert!(more.permits_by_name("DB.local", ip("203.0.113.9"), 5432));
    assert!(!more.permits_by_name("db.local", ip("203.0.113.9"), 22));
    assert!(!more.permits_by_name("other.local", ip("203.0.113.9"), 5432));
    // A resolver that lies does not open the node's own services.
    for local in [
        "127.0.0.1",
        "169.254.169.254",
        "::1",
        "fe80::1",
        "0.0.0.0",
        "::ffff:127.0.0.1",
    ] {
        assert!(
            !more.permits_by_name("db.local", ip(local), 5432),
            "{local}"
        );
    }
}

proptest! {
    #[test]
    fn only_what_a_rule_covers_is_permitted(octets: [u8; 4], port: u16, base: [u8; 4], prefix in 0u8..=32, first: u16, length in 0u16..1000) {
        let first = first.max(1);
        let last = first.saturating_add(length);
        let text = format!("{}/{prefix}:{first}-{last}", std::net::Ipv4Addr::from(base));
        let list = AllowList::of(rules(&[&text]));
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let (address, base) = (u32::from_be_bytes(octets), u32::from_be_bytes(base));
        let single = address != 0 && address != u32::MAX && octets[0] & 0xf0 != 0xe0;
        let expected = single && address & mask == base & mask && (first..=last).contains(&port);
        prop_assert_eq!(list.permits(octets.into(), port), expected);
        let mapped = std::net::Ipv4Addr::from(octets).to_ipv6_mapped();
        prop_assert_eq!(list.permits(mapped.into(), port), expected);
        prop_assert!(!AllowList::default().permits(octets.into(), port));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,40}") {
        let _ = text.parse::<Rule>();
    }
}

/// A resolver that knows what it is told.
#[derive(Debug)]
struct Book(Vec<(&'static str, Vec<IpAddr>)>);

impl Resolve for Book {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        let found = found.map(|(_, addresses)| addresses.clone());
        Box::pin(async move {
            found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name"))
        })
    }
}

fn to(host: &str, port: u16) -> Destination {
    Destination {
        node: None,
        host: host.into(),
        port,
    }
}

fn dialer(
    list: AllowList,
    names: Vec<(&'static str, Vec<IpAddr>)>,
    bounds: Bounds,
) -> AllowedDialer {
    let list = Arc::new(ArcSwap::from_pointee(list));
    AllowedDialer::new(
        list,
        Arc::new(Book(names)),
        "edge-1",
        vec![ip("127.0.0.1")],
        bounds,
    )
}

async fn refusal(dialer: &AllowedDialer, host: &str, port: u16) -> io::Error {
    match dialer.dial(&to(host, port)).await {
        Ok(_) => panic!("{host}:{port} was dialled"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn names_are_resolved_then_checked_then_dialled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let list = AllowList::of(rules(&[
        &format!("127.0.0.1:{port}"),
        &format!("127.0.0.3:{port}"),
    ]));
    let names = vec![
        ("mixed", vec![ip("127.0.0.2"), ip("127.0.0.1")]),
        ("foreign", vec![ip("127.0.0.2")]),
        ("dead-first", vec![ip("127.0.0.3"), ip("127.0.0.1")]),
        ("empty", vec![]),
    ];
    let dialer = dialer(list, names, Bounds::default());
    for host in ["127.0.0.1", "mixed", "dead-first", "EDGE-1"] {
        let mut stream = dialer.dial(&to(host, port)).await.expect(host);
        let (mut accepted, _) = listener.accept().await.expect("accepted");
        stream.write_all(b"hello").await.expect("written");
        let mut read = [0; 5];
        accepted.read_exact(&mut read).await.expect("read");
        assert_eq!(&read, b"hello");
        assert_eq!(dialer.open(), 1);
    }
    assert_eq!(dialer.open(), 0);
    for host in ["127.0.0.2", "foreign", "0.0.0.0", "::ffff:127.0.0.2"] {
        let error = refusal(&dialer, host, port).await;
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{host}");
        assert!(error.to_string().contains("allow-list"), "{error}");
    }
    assert_eq!(
        refusal(&dialer, "nobody", port).await.kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(
        refusal(&dialer, "empty", port).await.kind(),
        io::ErrorKind::NotFound
    );
    drop(listener);
    let refused = refusal(&dialer, "127.0.0.1", port).await;
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(refused.to_string().contains(&port.to_string()), "{refused}");
}

/// A resolver that never answers.
#[derive(Debug)]
struct Silence;

impl Resolve for Silence {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn dials_are_bounded_in_time_and_number() {
    let bounds = Bounds {
        timeout: Duration::from_millis(50),
        dials: 1,
        connections: 1,
    };
    let list = Arc::new(ArcSwap::from_pointee(AllowList::of(rules(&[
        "127.0.0.0/8",
    ]))));
    let dialer = AllowedDialer::new(list, Arc::new(Silence), "edge-1", vec![], bounds);
    let target = to("slow", 80);
    let mut first = dialer.dial(&target);
    let pending = futures_util::poll!(&mut first);
    assert!(pending.is_pending());
    let busy = refusal(&dialer, "127.0.0.1", 80).await;
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy, "{busy}");
    let late = first.await.err().expect("too late");
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    assert_eq!(dialer.open(), 0);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let open = dialer.dial(&to("127.0.0.1", port)).await.expect("dialled");
    let busy = refusal(&dialer, "127.0.0.1", port).await;
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
    drop(open);
    dialer.dial(&to("127.0.0.1", port)).await.expect("dialled");
}

#[tokio::test]
async fn what_ends_in_the_middle_is_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let list = AllowList::of(rules(&["127.0.0.1"]));
    let dialer = dialer(list, Vec::new(), Bounds::default());
    for whole in [true, false] {
        let mut stream = dialer.dial(&to("127.0.0.1", port)).await.expect("dialled");
        let (mut target, _) = listener.accept().await.expect("accepted");
        stream.write_all(b"half").await.expect("written");
        if whole {
            stream.shutdown().await.expect("ended");
        }
        drop(stream);
        let mut heard = Vec::new();
        let ended = target.read_to_end(&mut heard).await;
        match whole {
            true => assert_eq!((ended.ok(), &heard[..]), (Some(4), &b"half"[..])),
            false => assert_eq!(
                ended.map_err(|error| error.kind()),
                Err(io::ErrorKind::ConnectionReset)
            ),
        }
    }
}
