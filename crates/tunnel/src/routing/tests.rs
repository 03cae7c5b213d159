use super::{Strategy, *};
use crate::directory::{Known, NodeFacts, ServiceFacts, SliceFacts};
use proptest::prelude::*;
use yurt_controller::Key;

fn agent(address: &str, host: &str) -> Identifiers {
    Identifiers {
        addresses: vec![address.parse().expect("an address")],
        hosts: vec![host.to_owned()],
        ..Identifiers::default()
    }
}

fn to(host: &str) -> Destination {
    Destination {
        node: None,
        host: host.to_owned(),
        port: 10250,
    }
}

fn roster(agents: &[(&str, Identifiers)]) -> Roster {
    let mut roster = Roster::default();
    for (id, identifiers) in agents {
        roster.insert(&Arc::from(*id), identifiers);
    }
    roster
}

fn facts(name: &str, address: &str, edge: bool) -> NodeFacts {
    NodeFacts {
        name: name.to_owned(),
        internal: vec![address.parse().expect("an address")],
        edge,
        ..NodeFacts::default()
    }
}

fn known(nodes: &[NodeFacts]) -> Known {
    let known = Known::default();
    for node in nodes {
        known.put_node(&node.name, Some(node.clone()));
    }
    known
}

fn chosen(plan: &Plan) -> Vec<&str> {
    plan.routes.iter().map(|route| &*route.agent).collect()
}

#[test]
fn strategies_are_named_as_konnectivity_names_them() {
    for strategy in Strategy::ALL {
        assert_eq!(strategy.name().parse(), Ok(strategy));
    }
    for wrong in ["", "desthost", "random"] {
        let error = wrong.parse::<Strategy>().expect_err("refused");
        assert!(error.to_string().contains("destHost"), "{error}");
    }
}

#[test]
fn the_target_is_compared_with_identifiers_whatever_its_spelling() {
    let roster = roster(&[
        ("a", agent("10.0.0.1", "edge-1")),
        ("b", agent("fd00::1", "Edge-2")),
    ]);
    let nothing = Known::default();
    let find = |host: &str| {
        let plan = plan(&to(host), &[Strategy::DestHost], &roster, &nothing, 0);
        chosen(&plan).join(",")
    };
    for (host, agent) in [
        ("10.0.0.1", "a"),
        ("edge-1", "a"),
        ("EDGE-1.", "a"),
        ("fd00:0:0::1", "b"),
        ("edge-2", "b"),
        ("a", "a"),
        ("10.0.0.2", ""),
        ("edge", ""),
    ] {
        assert_eq!(find(host), agent, "{host}");
    }
}

#[test]
fn the_longest_network_wins() {
    let within = |networks: &[&str]| Identifiers {
        networks: networks
            .iter()
            .map(|text| {
                let network: Network = text.parse().expect("a network");
                (network.base(), network.prefix())
            })
            .collect(),
        ..Identifiers::default()
    };
    let roster = roster(&[
        ("wide", within(&["10.0.0.0/8", "fd00::/16"])),
        ("narrow", within(&["10.1.0.0/16"])),
    ]);
    let find = |host: &str| {
        let plan = plan(&to(host), &[Strategy::Cidr], &roster, &Known::default(), 0);
        chosen(&plan).join(",")
    };
    assert_eq!(find("10.1.2.3"), "narrow,wide");
    assert_eq!(find("10.2.2.3"), "wide");
    assert_eq!(find("fd00::7"), "wide");
    assert_eq!(find("11.0.0.1"), "");
    assert_eq!(find("name"), "");
}

#[test]
fn the_cluster_tells_the_node_and_whether_it_has_an_agent() {
    let roster = roster(&[("edge-1", agent("10.0.0.1", "edge-1"))]);
    let known = known(&[
        facts("edge-1", "10.0.0.1", true),
        facts("edge-2", "10.0.0.2", true),
        facts("cloud-1", "10.9.0.1", false),
    ]);
    let all = [Strategy::Cluster, Strategy::Default];
    let ask = |host: &str| plan(&to(host), &all, &roster, &known, 0);
    let here = ask("edge-1");
    assert_eq!(chosen(&here), ["edge-1"]);
    assert_eq!(here.routes[0].to.host, "10.0.0.1");
    let cloud = ask("cloud-1");
    assert_eq!(cloud.direct[0].host, "10.9.0.1");
    assert!(cloud.routes.is_empty(), "no agent is guessed: {cloud:?}");
    let other = ask("10.0.0.2");
    assert_eq!(other.elsewhere[0].node.as_deref(), Some("edge-2"));
    assert!(other.routes.is_empty(), "{other:?}");
    assert_eq!(chosen(&ask("192.168.0.1")), ["edge-1"]);
}

#[test]
fn whoever_names_the_node_gets_it_or_nobody() {
    let roster = roster(&[("edge-1", agent("10.0.0.1", "edge-1"))]);
    let named = |node: &str| Destination {
        node: Some(node.to_owned()),
        ..to("127.0.0.1")
    };
    let ask = |node| plan(&named(node), &Strategy::ALL, &roster, &Known::default(), 0);
    assert_eq!(chosen(&ask("edge-1")), ["edge-1"]);
    assert_eq!(chosen(&ask("10.0.0.1")), ["edge-1"]);
    let other = ask("edge-2");
    assert!(other.routes.is_empty());
    assert_eq!(other.elsewhere, [named("edge-2")]);
}

#[test]
fn services_are_dialled_by_their_endpoints() {
    let known = known(&[
        facts("edge-1", "10.0.0.1", true),
        facts("cloud-1", "10.9.0.1", false),
    ]);
    let key = Key::new("shop", "web");
    let service = ServiceFacts {
        addresses: vec!["10.96.0.7".parse().expect("an address")],
        ports: vec![(80, "http".into())],
    };
    known.put_service(&key, Some(service));
    let endpoint = |address: &str, node: &str| {
        let address = address.parse().expect("an address");
        (address, Some(node.to_owned()))
    };
    let slice = SliceFacts {
        service: "web".into(),
        ports: vec![("http".into(), 8080)],
        endpoints: vec![
            endpoint("10.244.1.5", "edge-1"),
            endpoint("10.244.9.5", "cloud-1"),
            endpoint("10.244.2.5", "edge-2"),
        ],
    };
    known.put_slice(&Key::new("shop", "web-x"), Some(slice));
    let roster = roster(&[("edge-1", agent("10.0.0.1", "edge-1"))]);
    for host in ["10.96.0.7", "web.shop.svc", "web.shop.svc.cluster.local."] {
        let target = Destination {
            port: 80,
            ..to(host)
        };
        let plan = plan(&target, &Strategy::ALL, &roster, &known, 0);
        let here = &plan.routes[0];
        assert_eq!((&*here.agent, here.by), ("edge-1", Some(Strategy::Cluster)));
        assert_eq!(here.to.to_string(), "10.244.1.5:8080", "{host}");
        assert_eq!(plan.direct[0].to_string(), "10.244.9.5:8080");
        assert_eq!(plan.elsewhere[0].node.as_deref(), Some("edge-2"));
    }
    for none in ["web.shop", "web", "web.shop.pod", ".shop.svc", ""] {
        assert_eq!(service_name(none), None, "{none}");
    }
}

proptest! {
    /// Whatever comes and goes: nothing of an agent that is gone is left, and every way found leads to one that is there.
    #[test]
    fn only_who_is_there_is_chosen(
        steps in prop::collection::vec((0u8..6, 0u8..4, any::<bool>(), any::<bool>()), 1..40),
        target in 0u8..5,
        random in any::<u64>(),
    ) {
        let mut roster = Roster::default();
        let mut there = std::collections::BTreeSet::new();
        for (id, host, stays, takes) in steps {
            let name: Arc<str> = format!("agent-{id}").into();
            if stays {
                let identifiers = Identifiers {
                    default_route: takes,
                    networks: vec![([10, host, 0, 0].into(), 16)],
                    ..agent(&format!("10.{host}.0.1"), &format!("host-{host}"))
                };
                roster.insert(&name, &identifiers);
                there.insert(name);
            } else {
                roster.remove(&name);
                there.remove(&name);
            }
        }
        prop_assert_eq!(roster.len(), there.len());
        let target = to(&format!("10.{target}.0.1"));
        let plan = plan(&target, &Strategy::ALL, &roster, &Known::default(), random);
        prop_assert!(plan.routes.len() <= MOST_WAYS);
        prop_assert!(plan.routes.iter().all(|route| there.contains(&route.agent)));
        prop_assert_eq!(plan.routes.is_empty(), there.is_empty());
        for name in &there {
            roster.remove(name);
        }
        prop_assert!(roster.names.is_empty() && roster.networks.is_empty() && roster.takers.is_empty());
    }
}
