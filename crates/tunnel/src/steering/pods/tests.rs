//! What is led away, and the rules themselves in network namespaces of a test's own.

use super::*;
use crate::{
    allow::Mark,
    directory::Known,
    redirect::{
        MARK,
        stage::{
            HARDLY, Pod, SOON, Told, by_each, greeting, listing, outside, run, until_led,
            until_listed,
        },
    },
};
use proptest::prelude::*;
use std::{io::ErrorKind, net::SocketAddr};
use tokio::time::timeout;

fn node(name: &str, edge: bool, address: &str, networks: &[&str]) -> NodeFacts {
    NodeFacts {
        name: name.to_owned(),
        internal: vec![address.parse().unwrap()],
        edge,
        networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
        ..NodeFacts::default()
    }
}

fn pods(ports: &str, own: &[&str], backend: Backend) -> Pods {
    Pods {
        ports: ports.parse().unwrap(),
        port: 0,
        own: own.iter().map(|text| text.parse().unwrap()).collect(),
        cloud: Vec::new(),
        backend,
        tools: Tools::default(),
    }
}

#[test]
fn pods_of_the_edge_are_led_away_and_nothing_of_the_cloud() {
    let nodes = [
        node("cloud", false, "10.0.0.1", &["10.244.1.0/24", "fd01::/64"]),
        node("edge", true, "10.0.0.7", &["10.244.7.0/24", "fd07::/64"]),
        // Somebody's mistake, and one that cannot be told from a pod of the cloud.
        node("all", true, "10.0.0.8", &["0.0.0.0/0"]),
        node("twice", true, "10.0.0.9", &["10.244.1.0/24"]),
        // This host, labelled as if it were of the edge.
        node("own", true, "10.0.0.2", &["10.244.2.0/24"]),
    ]
    .map(Arc::new);
    let pods = pods("80,8000-8100", &["10.0.0.2"], Backend::Auto);
    let plan = pods.plan(Family::V4, 1, &nodes);
    let leads = |to: &str| plan.leads(to.parse().unwrap());
    assert!(leads("10.244.7.1:80") && leads("10.244.7.255:8099"));
    for to in [
        "10.244.7.1:81",
        "10.0.0.7:80",
        "10.244.1.1:80",
        "10.244.2.1:80",
        "10.0.0.2:80",
        "10.244.3.1:80",
    ] {
        assert!(!leads(to), "{to}");
    }
    let six = pods.plan(Family::V6, 1, &nodes);
    assert!(six.leads("[fd07::1]:80".parse().unwrap()));
    assert!(!six.leads("[fd01::1]:80".parse().unwrap()));
    assert!(pods.plan(Family::V4, 1, &nodes[..1]).is_empty());
    for (place, chain) in [(0, CLOUD), (1, CHAIN)] {
        assert!(SERVER.owner.jumps[place].1.ends_with(chain));
    }
    assert!(SERVER.owner.jumps[1].1.contains(&format!("{MARK:#x} ")));
}

prop_compose! {
    /// Few blocks, of which many overlap.
    fn some_network()(high in 0u8..4, low in 0u8..4, prefix in prop::sample::select(vec![0u8, 14, 16, 24, 32])) -> Network {
        Network::new([10, high, low, low].into(), prefix).unwrap()
    }
}

prop_compose! {
    fn some_node()(
        edge: bool,
        opted_in: bool,
        last in 0u8..6,
        networks in prop::collection::vec(some_network(), 0..3),
    ) -> Arc<NodeFacts> {
        Arc::new(NodeFacts {
            internal: vec![[10, 0, 0, last].into()],
            edge,
            opted_in,
            networks,
            ..NodeFacts::default()
        })
    }
}

proptest! {
    #[test]
    fn never_what_is_of_the_cloud_or_of_this_host(
        nodes in prop::collection::vec(some_node(), 0..6),
        own in 0u8..6,
        to in (0u8..4, 0u8..4, 0u8..6),
    ) {
        let own: IpAddr = [10, 0, 0, own].into();
        let to: IpAddr = [10, to.0, to.1, to.2].into();
        let plan = Pods { own: vec![own], ..pods("80", &[], Backend::Auto) }.plan(Family::V4, 1, &nodes);
        let has = |node: &NodeFacts| {
            node.internal.contains(&to) || node.networks.iter().any(|block| block.contains(to))
        };
        let is_clouds = |node: &NodeFacts| !node.runs_agent() || node.internal.contains(&own);
        let clouds = to == own || nodes.iter().any(|node| is_clouds(node) && has(node));
        let edges = nodes.iter().any(|node| {
            let mut blocks = node.networks.iter().filter(|block| block.prefix() > 0);
            !is_clouds(node) && blocks.any(|block| block.contains(to))
        });
        prop_assert_eq!(plan.leads(SocketAddr::new(to, 80)), edges && !clouds);
        prop_assert!(!plan.leads(SocketAddr::new(to, 81)));
    }
}

/// Everything that is to hold, by one backend. This host is a node of the cloud with the pods 10.244.1.0/24.
async fn course(backend: Backend, pod: &Pod) {
    let known = Arc::new(Known::default());
    let put = |node: NodeFacts| known.put_node(&node.name.clone(), Some(node));
    known.set_complete(false);
    put(node(
        "edge",
        true,
        "192.168.99.7",
        &["10.244.7.0/24", "fd07::/64"],
    ));
    let (shutdown, stop) = (CancellationToken::new(), CancellationToken::new());
    let pods = pods("80,8000-8100", &["192.168.88.1"], backend);
    let running = pods.run(
        known.clone(),
        Arc::new(Told),
        shutdown.clone(),
        stop.clone(),
    );
    let running = tokio::spawn(running);
    // While a node of the cloud may yet exist, nothing is led away.
    assert!(greeting("10.244.7.5:80").await.is_none());
    put(node("cloud", false, "192.168.88.1", &["10.244.1.0/24"]));
    known.set_complete(true);
    // Of this host, and of a pod.
    assert_eq!(until_led("10.244.7.5:80").await, "10.244.7.5:80\n");
    assert_eq!(until_led("[fd07::5]:80").await, "[fd07::5]:80\n");
    assert_eq!(pod.greeting("10.244.7.5", 8050).await, "10.244.7.5:8050\n");
    // What is not led there.
    for (to, why) in [
        ("10.244.7.5:81", "another port"),
        ("10.244.8.5:80", "nobody's"),
        ("192.168.99.7:80", "the node itself"),
    ] {
        assert!(greeting(to).await.is_none(), "{to}: {why}");
    }
    // The server's own.
    let own = timeout(HARDLY, Mark(Some(MARK)).connect_to("10.244.7.5", 80)).await;
    assert!(!own.is_ok_and(|own| own.is_ok()), "that would be a circle");
    // What is not reached is reset.
    let refused = greeting("10.244.7.5:8066").await.expect("connected");
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Another node comes; one changes sides.
    put(node("new", true, "192.168.99.8", &["10.244.8.0/24"]));
    assert_eq!(until_led("10.244.8.5:80").await, "10.244.8.5:80\n");
    put(node("edge", false, "192.168.99.7", &["10.244.7.0/24"]));
    until_listed(backend, |rules| rules.contains("192.168.99.7")).await;
    assert!(greeting("10.244.7.5:80").await.is_none());
    // Pods of the cloud that are none any more only come by.
    put(node("cloud", false, "192.168.88.1", &[]));
    until_listed(backend, |rules| !rules.contains("10.244.1.0/24")).await;
    assert_eq!(pod.greeting("10.244.8.5", 8050).await, "");
    // The end: nothing is left, and nothing new is led to the tunnel.
    shutdown.cancel();
    until_listed(backend, |rules| {
        !rules.contains("tunnel_pods") && !rules.contains("TUNNEL-PODS")
    })
    .await;
    assert!(greeting("10.244.8.5:80").await.is_none());
    stop.cancel();
    timeout(SOON, running).await.expect("it ends").unwrap();
    let left = listing(backend);
    assert!(!left.contains("tunnel_pods"), "{left}");
}

#[test]
fn connections_to_pods_of_the_edge_are_led_to_the_tunnel_and_nothing_else() {
    let test = "steering::pods::tests::connections_to_pods_of_the_edge_are_led_to_the_tunnel_and_nothing_else";
    if outside(test) {
        return;
    }
    for words in [
        "ip addr add 192.168.88.1/24 dev lo",
        "ip route add 192.168.99.0/24 dev lo",
        "ip route add 10.244.7.0/24 dev lo",
        "ip route add 10.244.8.0/24 dev lo",
        "ip -6 addr add fd77::1/128 dev lo nodad",
        "ip -6 route add fd07::/64 dev lo",
    ] {
        assert!(run(words), "{words}");
    }
    let pod = Pod::new();
    by_each(|backend| course(backend, &pod));
}
