//! The rules themselves, in network namespaces of a test's own.

use super::*;
use crate::{
    allow::Mark,
    redirect::{
        MARK,
        stage::{
            HARDLY, Pod, SOON, Told, by_each, greeting, listing, outside, run, until_led,
            until_listed,
        },
    },
    reverse::{Kind, serve},
};
use std::{collections::BTreeMap, io::ErrorKind, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

fn redirect(networks: &[&str], except: &[&str], backend: Backend) -> Redirect {
    let networks: Vec<String> = networks.iter().map(|text| (*text).to_owned()).collect();
    let except = except.iter().map(|text| text.parse().unwrap());
    Redirect::new(&networks, except, 0, backend).unwrap()
}

fn pods(networks: &[&str]) -> NodeScope {
    NodeScope {
        pod_networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
        ..NodeScope::default()
    }
}

#[test]
fn networks_are_the_clouds_alone() {
    for bad in [
        "",
        "0.0.0.0/0",
        "::/0:80",
        "a:80",
        "10.0.0.0/33",
        "10.0.0.0/8:0",
    ] {
        let made = Redirect::new(&[bad.to_owned()], [], 0, Backend::Auto);
        assert!(made.is_err(), "{bad:?}");
    }
    let all = redirect(
        &[
            "10.96.0.0/12:80,8000-8100",
            "10.96.0.1:443",
            "10.200.0.0/24",
            "fd96::/112:53",
        ],
        &["10.97.0.0/16"],
        Backend::Auto,
    );
    let scope = pods(&["10.98.0.0/24", "fd01::/64"]);
    let plan = all.plan(Family::V4, 1, &scope, &["10.99.0.1".parse().unwrap()]);
    let leads = |to: &str| plan.leads(to.parse().unwrap());
    for to in [
        "10.96.0.9:80",
        "10.111.9.9:8100",
        "10.96.0.1:443",
        "10.200.0.2:1",
    ] {
        assert!(leads(to), "{to}");
    }
    for (to, why) in [
        ("10.96.0.9:81", "the port"),
        ("10.200.0.1:443", "the API server's"),
        ("10.97.1.1:80", "excepted"),
        ("10.98.0.7:80", "a pod of this node"),
        ("10.99.0.1:80", "an address of the API server"),
        ("11.0.0.1:80", "elsewhere"),
        ("127.0.0.1:80", "this node"),
        ("[fd96::2]:53", "the other family"),
    ] {
        assert!(!leads(to), "{to}: {why}");
    }
    let six = all.plan(Family::V6, 1, &scope, &[]);
    assert!(six.leads("[fd96::2]:53".parse().unwrap()));
    assert!(!six.leads("[fd96::1]:53".parse().unwrap()));
    assert!(all.plan(Family::V6, 1, &scope, &[]).ruleset(&AGENT) == six.ruleset(&AGENT));
    let none = redirect(&["10.0.0.0/8"], &[], Backend::Auto);
    assert!(none.plan(Family::V6, 1, &scope, &[]).is_empty());
}

#[test]
fn both_languages_say_the_same() {
    let all = redirect(
        &["10.96.0.0/12:80,8000-8100"],
        &["10.97.0.0/16"],
        Backend::Auto,
    );
    let rules = all
        .plan(Family::V4, 4242, &pods(&["10.244.1.0/24"]), &[])
        .ruleset(&AGENT);
    for part in [
        "elements = { 10.96.0.1/32, 10.97.0.0/16 }",
        "set led0 {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\tauto-merge\n\t\telements = { 10.96.0.0/12 }",
        "ip daddr @led0 tcp dport { 80, 8000-8100 } redirect to :4242",
        "meta mark 0x59 return",
        "ip saddr @pods jump led",
        "fib daddr type local return",
    ] {
        assert!(
            rules.nftables.contains(part),
            "{part} not in\n{}",
            rules.nftables
        );
    }
    let lines = rules
        .iptables
        .iter()
        .map(|(chain, rule)| format!("{chain} {rule}"));
    assert_eq!(
        lines.collect::<Vec<_>>(),
        [
            "TUNNEL-EDGE -d 127.0.0.0/8 -j RETURN",
            "TUNNEL-EDGE -m addrtype --dst-type LOCAL -j RETURN",
            "TUNNEL-EDGE -d 10.96.0.1/32 -j RETURN",
            "TUNNEL-EDGE -d 10.97.0.0/16 -j RETURN",
            "TUNNEL-EDGE -d 10.244.1.0/24 -j RETURN",
            "TUNNEL-EDGE -p tcp -d 10.96.0.0/12 --dport 80 -j REDIRECT --to-ports 4242",
            "TUNNEL-EDGE -p tcp -d 10.96.0.0/12 --dport 8000:8100 -j REDIRECT --to-ports 4242",
            "TUNNEL-EDGE-PODS -s 10.244.1.0/24 -j TUNNEL-EDGE",
        ]
    );
    assert!(AGENT.owner.jumps[1].1.contains(&format!("{MARK:#x} ")));
}

/// Everything that is to hold, by one backend.
async fn course(backend: Backend, pod: &Pod) {
    let redirect = redirect(
        &["10.96.0.0/12:80,8000-8100", "10.200.0.7", "fd96::/112:80"],
        &["10.97.0.0/16"],
        backend,
    );
    let (scope, followed) = watch::channel(pods(&["10.244.1.0/24"]));
    let (shutdown, stop, mut tidying) = (
        CancellationToken::new(),
        CancellationToken::new(),
        JoinSet::new(),
    );
    let inputs = Inputs {
        scope: followed,
        apiserver: Some("10.96.0.33:6443".into()),
    };
    let listening = redirect
        .start(inputs, &shutdown, &mut tidying)
        .await
        .unwrap();
    let mut ports = BTreeMap::new();
    for (listener, intended) in listening {
        let address = listener.local_addr().unwrap();
        ports.insert(address.is_ipv6(), address.port());
        let kind = Kind::Intended(intended);
        tokio::spawn(serve(listener, kind, Arc::new(Told), stop.clone()));
    }
    // Of this host: services of the cloud, as if they were here.
    assert_eq!(until_led("10.96.0.9:80").await, "10.96.0.9:80\n");
    assert_eq!(until_led("10.200.0.7:4444").await, "10.200.0.7:4444\n");
    assert_eq!(until_led("[fd96::9]:80").await, "[fd96::9]:80\n");
    let mut open = TcpStream::connect("10.96.0.9:80").await.unwrap();
    open.write_all(b"more").await.unwrap();
    open.shutdown().await.unwrap();
    let mut heard = String::new();
    open.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "10.96.0.9:80\nmore", "both ways, with their ends");
    // Of a pod.
    assert_eq!(pod.greeting("10.96.0.9", 8050).await, "10.96.0.9:8050\n");
    assert_eq!(pod.greeting("10.96.0.9", 81).await, "");
    // What is not led there.
    for (to, why) in [
        ("10.96.0.9:81", "another port"),
        ("10.96.0.1:80", "the API server's Service"),
        ("10.96.0.33:80", "the API server"),
        ("10.97.0.9:80", "excepted"),
    ] {
        assert!(greeting(to).await.is_none(), "{to}: {why}");
    }
    // The agent's own.
    let own = timeout(HARDLY, Mark(Some(MARK)).connect_to("10.96.0.9", 80)).await;
    assert!(!own.is_ok_and(|own| own.is_ok()), "that would be a circle");
    // What is refused is reset: no end that the cloud sent.
    let refused = greeting("10.96.0.9:8066").await.expect("connected");
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Whoever connects to the listener itself gets nothing by it.
    let direct = greeting(&format!("192.168.88.1:{}", ports[&false])).await;
    assert!(!direct.is_some_and(|heard| heard.is_ok_and(|heard| !heard.is_empty())));
    // Pods elsewhere.
    scope.send_replace(pods(&["10.244.2.0/24"]));
    until_listed(backend, |rules| rules.contains("10.244.2.0/24")).await;
    assert_eq!(
        pod.greeting("10.96.0.9", 8050).await,
        "",
        "nobody who comes by"
    );
    // The end: nothing is left, and nothing new is led to the tunnel.
    shutdown.cancel();
    timeout(SOON, async { while tidying.join_next().await.is_some() {} })
        .await
        .expect("taken away");
    let left = listing(backend);
    assert!(
        !left.contains("tunnel_edge") && !left.contains("TUNNEL-EDGE"),
        "{left}"
    );
    assert!(greeting("10.96.0.9:80").await.is_none());
    stop.cancel();
}

#[test]
fn connections_to_the_cloud_are_led_to_the_tunnel_and_nothing_else() {
    let test =
        "reverse::redirect::tests::connections_to_the_cloud_are_led_to_the_tunnel_and_nothing_else";
    if outside(test) {
        return;
    }
    for words in [
        "ip addr add 192.168.88.1/24 dev lo",
        "ip route add 10.96.0.0/12 dev lo",
        "ip route add 10.200.0.0/24 dev lo",
        "ip -6 addr add fd77::1/128 dev lo nodad",
        "ip -6 route add fd96::/112 dev lo",
    ] {
        assert!(run(words), "{words}");
    }
    let pod = Pod::new();
    by_each(|backend| course(backend, &pod));
}
