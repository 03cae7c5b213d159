use super::*;
use crate::directory::{Known, NodeFacts};

fn leaf(user: &str, groups: &[&str], dns: &[&str], ips: &[&str]) -> Leaf {
    Leaf {
        identity: Identity {
            user: user.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        },
        dns: dns.iter().map(|name| (*name).to_owned()).collect(),
        ips: ips
            .iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect(),
        ..Leaf::default()
    }
}

fn hello(id: &str, identifiers: &str) -> AgentHello {
    AgentHello {
        id: id.into(),
        identifiers: identifiers.parse().expect("never fails"),
        version: String::new(),
    }
}

fn known() -> Known {
    let known = Known::default();
    let facts = NodeFacts {
        name: "edge-1".into(),
        internal: vec!["10.0.0.1".parse().expect("an address")],
        ..NodeFacts::default()
    };
    known.put_node("edge-1", Some(facts));
    known
}

fn asked(leaf: &Leaf, hello: &AgentHello, trusted: &[Bearers]) -> Result<(), Refused> {
    Shown::by_certificate(leaf, trusted, &known())?.covers(hello)
}

#[test]
fn an_agent_is_what_its_certificate_says_and_nothing_else() {
    let ours = leaf("tunnel-agent-client", &[TUNNEL], &["edge-1"], &["10.0.0.1"]);
    let node = leaf("system:node:edge-1", &[NODES], &[], &[]);
    for leaf in [&ours, &node] {
        for said in [
            "",
            "ipv4=10.0.0.1&host=edge-1",
            "host=EDGE-1",
            "host=10.0.0.1",
        ] {
            assert_eq!(asked(leaf, &hello("edge-1", said), &[]), Ok(()), "{said}");
        }
        for (id, said, why) in [
            ("edge-2", "", "id edge-2"),
            ("edge-1", "host=edge-2", "host=edge-2"),
            ("edge-1", "ipv4=10.0.0.2", "10.0.0.2"),
            ("edge-1", "cidr=10.0.0.0/8", "cidr=10.0.0.0/8"),
            ("edge-1", "default-route=true", "default-route"),
            ("", "", "id is empty"),
            ("edge\n1", "", "not plain"),
            ("4b8ff4b1-3a5e-4f0e-9d55-7d1d2f5a8a01", "", "id 4b8ff4b1"),
        ] {
            let refused = asked(leaf, &hello(id, said), &[]).expect_err(why);
            assert!(refused.0.contains(why), "{refused}");
        }
    }
}

#[test]
fn other_certificates_of_the_same_ca_are_no_agents() {
    for leaf in [
        leaf("system:node:edge-1", &[], &["edge-1"], &[]),
        leaf("kube-apiserver", &["system:masters"], &["edge-1"], &[]),
        leaf("", &[], &["edge-1"], &[]),
    ] {
        let refused = asked(&leaf, &hello("edge-1", ""), &[]).expect_err("refused");
        assert!(refused.0.contains("no agent's"), "{refused}");
    }
    // The server's own client certificate has no names.
    let proxy = leaf("tunnel-proxy-client", &[TUNNEL], &[], &[]);
    assert!(asked(&proxy, &hello("edge-1", ""), &[]).is_err());
}

#[test]
fn whom_the_operator_trusts_may_be_any_agent() {
    let gateway = leaf("gateway", &["agents"], &[], &[]);
    let said = hello("site-7", "cidr=10.7.0.0/16&default-route=true&host=x");
    for trusted in ["gateway", "CN=gateway", "O=agents", "*"] {
        let trusted = [trusted.parse().expect("never fails")];
        assert_eq!(asked(&gateway, &said, &trusted), Ok(()));
    }
    for other in ["gateway2", "O=gateway", "agents"] {
        let trusted = [other.parse().expect("never fails")];
        assert!(asked(&gateway, &said, &trusted).is_err(), "{other}");
    }
}

#[test]
fn a_token_is_the_service_accounts_and_its_nodes() {
    let account = ServiceAccount {
        namespace: "kube-system".into(),
        name: "konnectivity-agent".into(),
        audiences: vec!["system:konnectivity-server".into()],
    };
    let status = |user: &str, audience: &str, node: Option<&str>| {
        let mut status = json!({
            "authenticated": true,
            "audiences": [audience],
            "user": {"username": user},
        });
        if let Some(node) = node {
            status["user"]["extra"] = json!({NODE_OF_TOKEN: [node]});
        }
        status
    };
    let good = "system:serviceaccount:kube-system:konnectivity-agent";
    let audience = "system:konnectivity-server";
    let ask = |status: &Value, hello: &AgentHello| {
        Shown::by_token(status, &account, &[], &known())?.covers(hello)
    };
    let uuid = "4b8ff4b1-3a5e-4f0e-9d55-7d1d2f5a8a01";
    let anybody = status(good, audience, None);
    assert_eq!(ask(&anybody, &hello(uuid, "host=anything")), Ok(()));
    let bound = status(good, audience, Some("edge-1"));
    assert_eq!(
        ask(&bound, &hello(uuid, "host=edge-1&ipv4=10.0.0.1")),
        Ok(())
    );
    assert_eq!(ask(&bound, &hello("edge-1", "")), Ok(()));
    assert!(ask(&bound, &hello("edge-2", "")).is_err());
    assert!(ask(&bound, &hello(uuid, "host=edge-2")).is_err());
    let trusted = [account.user().parse().expect("never fails")];
    let shown = Shown::by_token(&bound, &account, &trusted, &known()).expect("shown");
    assert_eq!(shown.covers(&hello(uuid, "host=edge-2")), Ok(()));
    for (status, why) in [
        (
            status("system:serviceaccount:a:b", audience, None),
            "not system",
        ),
        (status(good, "https://kubernetes", None), "audience"),
        (
            json!({"authenticated": false, "error": "expired"}),
            "expired",
        ),
        (json!({}), "not valid"),
    ] {
        let refused = ask(&status, &hello(uuid, "")).expect_err(why);
        assert!(refused.0.contains(why), "{refused}");
    }
}
