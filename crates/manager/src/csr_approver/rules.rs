//! Which requests are approved, and who is entitled to them. Pure.

use crate::fields::items;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};
use yurt_api::names::labels::EDGE_WORKER;
use yurt_controller::signing_request::{CLIENT, KUBELET_SERVING, are};
use yurt_pki::SigningRequest;

const HUBS: &str = "openyurt:yurthub";
const NODES: &str = "system:nodes";
const TENANT: &str = "openyurt:tenant:";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Before the name of a node in that of its user.
pub(super) const USER: &str = "system:node:";
/// The organization of both ends of the tunnel, and their names.
const TUNNEL: &str = "openyurt:yurttunnel";
const TUNNEL_SERVER: &str = "tunnel-proxy-client";
const TUNNEL_AGENT: &str = "tunnel-agent-client";
/// The name that servers serve agents and callers under.
const TUNNEL_SERVING: &str = "system:node:tunnel-server";
/// The service account of the tunnel's server.
const TUNNEL_SERVER_ACCOUNT: &str = "tunnel-server";
/// In the `extra` of who asks: the node that its pod runs on.
const POD_NODE: &str = "authentication.kubernetes.io/node-name";
/// The Service of the API server, in whose place hubs answer pods.
pub(super) const SERVER_NAMES_SERVICE: &str = "kubernetes";
/// Its names.
const SERVICE_NAMES: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
/// The default address of the dummy interface in IPv6.
const DUMMY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1);

/// Which certificate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A hub's, for the API server.
    Client,
    /// A hub's, for pods.
    Serving,
    /// That of the tunnel's server, for kubelets.
    TunnelServer,
    /// That of the tunnel's server, for agents and callers.
    TunnelServing,
    /// That of the tunnel's agents.
    TunnelAgent,
}

impl Shape {
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Client => "Auto approving yurthub node client certificate",
            Self::Serving => "Auto approving openyurt tls server certificate",
            Self::TunnelServer => "Auto approving tunnel-server proxy client certificate",
            Self::TunnelServing => "Auto approving tunnel-server serving certificate",
            Self::TunnelAgent => "Auto approving tunnel-agent client certificate",
        }
    }
}

/// Why a request is not approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Objection {
    /// It is another's: it is denied.
    Sure(String),
    /// An administrator may know better.
    Doubt(String),
}

/// Which certificate this is, if any of them.
pub(super) fn shape(signer: &str, request: &SigningRequest, usages: &[&str]) -> Option<Shape> {
    let subject = &request.subject;
    let named = !request.dns.is_empty() || !request.ips.is_empty();
    if !request.emails.is_empty() || !request.uris.is_empty() {
        return None;
    }
    let is_node = subject.user.len() > USER.len() && subject.user.starts_with(USER);
    let of_hubs = |group: &String| group == HUBS || group == NODES || group.starts_with(TENANT);
    match signer {
        CLIENT if !are(usages, "client auth") => None,
        // An agent is asked for by the names in its certificate: the node's, and its addresses.
        CLIENT if subject.groups == [TUNNEL] && subject.user == TUNNEL_AGENT => {
            (request.dns.len() <= 1).then_some(Shape::TunnelAgent)
        }
        CLIENT if named => None,
        CLIENT if is_node => {
            let groups = &subject.groups;
            (groups.len() >= 2 && groups.iter().all(of_hubs)).then_some(Shape::Client)
        }
        CLIENT if subject.groups == [TUNNEL] && subject.user == TUNNEL_SERVER => {
            Some(Shape::TunnelServer)
        }
        KUBELET_SERVING => {
            let fits = is_node && named && subject.groups == [NODES] && are(usages, "server auth");
            fits.then_some(match subject.user == TUNNEL_SERVING {
                true => Shape::TunnelServing,
                false => Shape::Serving,
            })
        }
        _ => None,
    }
}

/// Whether who asks (`spec` of the request) may have it. `namespace` is where the components of OpenYurt are.
pub(super) fn entitled(
    shape: Shape,
    spec: &Value,
    request: &SigningRequest,
    namespace: &str,
) -> Result<(), Objection> {
    let who = spec["username"].as_str().unwrap_or_default();
    let groups: Vec<&str> = items(&spec["groups"]).filter_map(Value::as_str).collect();
    let node = &request.subject.user;
    let is_itself = who == node;
    // A node has no business with what is another's; of all others it is not known what they are up to.
    let refuse = |why: String| match groups.contains(&NODES) {
        true => Err(Objection::Sure(why)),
        false => Err(Objection::Doubt(why)),
    };
    match shape {
        Shape::Client if groups.contains(&BOOTSTRAPPERS) => Ok(()),
        Shape::Client if is_itself => {
            // A node stays of the tenant it is of.
            let mut wanted = request.subject.groups.iter();
            let foreign = wanted.find(|g| g.starts_with(TENANT) && !groups.contains(&g.as_str()));
            match foreign {
                Some(tenant) => Err(Objection::Sure(format!("{who} is not of {tenant}"))),
                None => Ok(()),
            }
        }
        Shape::Client => refuse(format!(
            "only {node} itself or a bootstrap token may ask for it, not {who}"
        )),
        Shape::Serving if is_itself => Ok(()),
        Shape::Serving => refuse(format!("only {node} itself may ask for it, not {who}")),
        Shape::TunnelServer | Shape::TunnelServing => {
            let account = format!("system:serviceaccount:{namespace}:{TUNNEL_SERVER_ACCOUNT}");
            match who == account {
                true => Ok(()),
                false => refuse(format!("only {account} may ask for it, not {who}")),
            }
        }
        Shape::TunnelAgent => {
            let accounts = format!("system:serviceaccounts:{namespace}");
            let name = request.dns.first().map(String::as_str);
            // A pod's token says which node it runs on; those of older clusters do not.
            let of_pod = items(&spec["extra"][POD_NODE]).find_map(Value::as_str);
            let on = match who.strip_prefix(USER).filter(|_| groups.contains(&NODES)) {
                Some(node) => Some(node),
                None if groups.contains(&accounts.as_str()) => of_pod,
                None => {
                    return refuse(format!(
                        "only nodes and {accounts} may ask for it, not {who}"
                    ));
                }
            };
            match (on, name) {
                (Some(on), Some(name)) if !on.eq_ignore_ascii_case(name) => {
                    Err(Objection::Sure(format!("{who} on {on} is not {name}")))
                }
                (_, None) if !request.ips.is_empty() => Err(Objection::Doubt(
                    "addresses without the name of their node".to_owned(),
                )),
                _ => Ok(()),
            }
        }
    }
}

/// A name or address in a serving certificate of the tunnel that is somebody else's: the API server's, or an edge node's. All others may be
/// how the tunnel's servers are reached, which the Service and flags say.
pub(super) fn others_name(
    request: &SigningRequest,
    nodes: &[Arc<Value>],
    service: &Value,
) -> Option<String> {
    let of_service = items(&service["spec"]["clusterIPs"]).chain([&service["spec"]["clusterIP"]]);
    let mut taken: BTreeSet<&str> = SERVICE_NAMES.into();
    taken.extend(of_service.filter_map(Value::as_str));
    for node in nodes {
        if node["metadata"]["labels"][EDGE_WORKER] == "true" {
            taken.extend(node["metadata"]["name"].as_str());
            let addresses = items(&node["status"]["addresses"]);
            taken.extend(addresses.filter_map(|address| address["address"].as_str()));
        }
    }
    let ips = request.ips.iter().map(IpAddr::to_string);
    let mut all = request.dns.iter().cloned().chain(ips);
    all.find(|name| name.contains('*') || taken.contains(name.to_ascii_lowercase().as_str()))
}

/// A name or address of the request that is not the node's.
pub(super) fn foreign_name(
    request: &SigningRequest,
    name: &str,
    node: &Value,
    service: &Value,
) -> Option<String> {
    let addresses = items(&node["status"]["addresses"]);
    let of_node: Vec<&str> = addresses.filter_map(|a| a["address"].as_str()).collect();
    let of_service: Vec<&str> = items(&service["spec"]["clusterIPs"])
        .chain([&service["spec"]["clusterIP"]])
        .filter_map(Value::as_str)
        .collect();
    let is_own = |ip: &IpAddr| {
        let local = match ip {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || *v6 == DUMMY,
        };
        let mut known = of_node.iter().chain(&of_service);
        local || known.any(|text| text.parse() == Ok(*ip))
    };
    let mut dns = request.dns.iter();
    let foreign = dns.find(|dns| {
        !SERVICE_NAMES.contains(&dns.as_str()) && *dns != name && !of_node.contains(&dns.as_str())
    });
    foreign.cloned().or_else(|| {
        request
            .ips
            .iter()
            .find(|ip| !is_own(ip))
            .map(IpAddr::to_string)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_pki::{Profile, request};

    const AS_CLIENT: [&str; 3] = ["client auth", "digital signature", "key encipherment"];
    const AS_SERVER: [&str; 3] = ["digital signature", "key encipherment", "server auth"];

    fn asked(user: &str, groups: &[&str], dns: &[&str], ips: &[&str]) -> SigningRequest {
        let profile = Profile {
            common_name: user.into(),
            organizations: groups.iter().map(|g| (*g).into()).collect(),
            dns: dns.iter().map(|d| (*d).into()).collect(),
            ips: ips
                .iter()
                .map(|ip| ip.parse().expect("an address"))
                .collect(),
            ..Profile::default()
        };
        SigningRequest::from_pem(&request(&profile).expect("made").request).expect("read")
    }

    #[test]
    fn shapes_are_openyurts() {
        let client = |groups: &[&str], usages: &[&str]| {
            shape(CLIENT, &asked("system:node:a", groups, &[], &[]), usages)
        };
        assert_eq!(client(&[HUBS, NODES], &AS_CLIENT), Some(Shape::Client));
        let tenant = [HUBS, NODES, "openyurt:tenant:x"];
        assert_eq!(client(&tenant, &AS_CLIENT), Some(Shape::Client));
        assert_eq!(client(&[NODES], &AS_CLIENT), None);
        assert_eq!(client(&[HUBS, "system:masters"], &AS_CLIENT), None);
        assert_eq!(client(&[HUBS, NODES], &AS_CLIENT[1..]), None);
        assert_eq!(client(&[HUBS, NODES], &AS_SERVER), None);
        let user = |user| shape(CLIENT, &asked(user, &[HUBS, NODES], &[], &[]), &AS_CLIENT);
        assert_eq!(user("admin"), None);
        assert_eq!(user("system:node:"), None);
        let serving = |dns: &[&str], groups: &[&str]| {
            let request = asked("system:node:a", groups, dns, &[]);
            shape(KUBELET_SERVING, &request, &AS_SERVER)
        };
        assert_eq!(serving(&["kubernetes"], &[NODES]), Some(Shape::Serving));
        assert_eq!(serving(&[], &[NODES]), None);
        assert_eq!(serving(&["kubernetes"], &[HUBS, NODES]), None);
    }

    #[test]
    fn keys_that_encipher_nothing_need_not_say_so() {
        let hub = asked("system:node:a", &[HUBS, NODES], &[], &[]);
        assert_eq!(
            shape(CLIENT, &hub, &AS_CLIENT[..2]),
            Some(Shape::Client),
            "an ECDSA key"
        );
        let served = asked("system:node:a", &[NODES], &["a"], &[]);
        let ecdsa = ["digital signature", "server auth"];
        assert_eq!(
            shape(KUBELET_SERVING, &served, &ecdsa),
            Some(Shape::Serving)
        );
        assert_eq!(
            shape(CLIENT, &hub, &["client auth", "key encipherment"]),
            None
        );
    }

    #[test]
    fn the_tunnels_shapes_are_openyurts() {
        let tunnel = |user: &str, groups: &[&str], dns: &[&str]| {
            shape(CLIENT, &asked(user, groups, dns, &[]), &AS_CLIENT)
        };
        assert_eq!(
            tunnel(TUNNEL_SERVER, &[TUNNEL], &[]),
            Some(Shape::TunnelServer)
        );
        assert_eq!(
            tunnel(TUNNEL_AGENT, &[TUNNEL], &[]),
            Some(Shape::TunnelAgent)
        );
        assert_eq!(tunnel("other", &[TUNNEL], &[]), None);
        assert_eq!(tunnel(TUNNEL_AGENT, &[TUNNEL, NODES], &[]), None);
        assert_eq!(
            tunnel(TUNNEL_AGENT, &[TUNNEL], &["a"]),
            Some(Shape::TunnelAgent)
        );
        assert_eq!(tunnel(TUNNEL_AGENT, &[TUNNEL], &["a", "b"]), None);
        assert_eq!(tunnel(TUNNEL_SERVER, &[TUNNEL], &["a"]), None);
        let serving = asked(TUNNEL_SERVING, &[NODES], &["tunnel"], &[]);
        assert_eq!(
            shape(KUBELET_SERVING, &serving, &AS_SERVER),
            Some(Shape::TunnelServing)
        );
        assert_eq!(shape(KUBELET_SERVING, &serving, &AS_CLIENT), None);
    }

    /// `ok`, `denied` or `left`.
    fn judged(shape: Shape, user: &str, groups: &[&str], request: &SigningRequest) -> &'static str {
        match entitled(
            shape,
            &json!({"username": user, "groups": groups}),
            request,
            "kube-system",
        ) {
            Ok(()) => "ok",
            Err(Objection::Sure(_)) => "denied",
            Err(Objection::Doubt(_)) => "left",
        }
    }

    #[test]
    fn who_asks_must_be_entitled() {
        let hub = asked("system:node:a", &[HUBS, NODES], &[], &[]);
        let tenant = asked(
            "system:node:a",
            &[HUBS, NODES, "openyurt:tenant:x"],
            &[],
            &[],
        );
        let token = ["system:bootstrappers", "system:authenticated"];
        let of_it = [NODES, "openyurt:tenant:x"];
        for (shape, user, groups, request, expected) in [
            (
                Shape::Client,
                "system:bootstrap:abcdef",
                &token[..],
                &hub,
                "ok",
            ),
            (Shape::Client, "system:node:a", &[NODES], &hub, "ok"),
            (Shape::Client, "system:node:b", &[NODES], &hub, "denied"),
            (Shape::Client, "jane", &["system:masters"], &hub, "left"),
            (Shape::Client, "system:node:a", &[NODES], &tenant, "denied"),
            (Shape::Client, "system:node:a", &of_it, &tenant, "ok"),
            (
                Shape::Client,
                "system:bootstrap:abcdef",
                &token,
                &tenant,
                "ok",
            ),
            (
                Shape::Serving,
                "system:bootstrap:abcdef",
                &token,
                &hub,
                "left",
            ),
            (Shape::Serving, "system:node:a", &[NODES], &hub, "ok"),
            (Shape::Serving, "system:node:b", &[NODES], &hub, "denied"),
            (
                Shape::TunnelServer,
                "system:serviceaccount:kube-system:tunnel-server",
                &[],
                &hub,
                "ok",
            ),
            (
                Shape::TunnelServer,
                "system:serviceaccount:default:tunnel-server",
                &[],
                &hub,
                "left",
            ),
            (
                Shape::TunnelServer,
                "system:node:a",
                &[NODES],
                &hub,
                "denied",
            ),
            (Shape::TunnelAgent, "system:node:a", &[NODES], &hub, "ok"),
            (
                Shape::TunnelAgent,
                "x",
                &["system:serviceaccounts:kube-system"],
                &hub,
                "ok",
            ),
            (
                Shape::TunnelAgent,
                "x",
                &["system:serviceaccounts:default"],
                &hub,
                "left",
            ),
        ] {
            assert_eq!(
                judged(shape, user, groups, request),
                expected,
                "{shape:?} by {user}"
            );
        }
    }

    #[test]
    fn an_agent_is_asked_for_by_its_own_node_only() {
        let agent = asked(TUNNEL_AGENT, &[TUNNEL], &["a"], &["10.0.0.7"]);
        let nameless = asked(TUNNEL_AGENT, &[TUNNEL], &[], &["10.0.0.7"]);
        let accounts = "system:serviceaccounts:kube-system";
        let by = |user: &str, group: &str, node: &str, request: &SigningRequest| {
            let spec = json!({"username": user, "groups": [group], "extra": {POD_NODE: [node]}});
            match entitled(Shape::TunnelAgent, &spec, request, "kube-system") {
                Ok(()) => "ok",
                Err(Objection::Sure(_)) => "denied",
                Err(Objection::Doubt(_)) => "left",
            }
        };
        assert_eq!(by("system:node:a", NODES, "", &agent), "ok");
        assert_eq!(by("system:node:b", NODES, "", &agent), "denied");
        assert_eq!(by("system:node:a", NODES, "", &nameless), "left");
        let pod = "system:serviceaccount:kube-system:tunnel-agent";
        assert_eq!(by(pod, accounts, "a", &agent), "ok");
        assert_eq!(by(pod, accounts, "b", &agent), "denied");
        assert_eq!(
            by(pod, "system:serviceaccounts:default", "a", &agent),
            "left"
        );
        // It calls itself a node, and is none.
        assert_eq!(
            by("system:node:a", "system:authenticated", "", &agent),
            "left"
        );
    }

    #[test]
    fn servers_of_the_tunnel_do_not_take_names_of_others() {
        let node = |name: &str, edge: &str, ip: &str| {
            Arc::new(
                json!({"metadata": {"name": name, "labels": {EDGE_WORKER: edge}},
                "status": {"addresses": [{"type": "InternalIP", "address": ip}]}}),
            )
        };
        let nodes = [
            node("edge-1", "true", "192.168.0.1"),
            node("cloud-1", "false", "10.0.0.1"),
        ];
        let service = json!({"spec": {"clusterIP": "10.96.0.1"}});
        let taken = |dns: &[&str], ips: &[&str]| {
            let request = asked(TUNNEL_SERVING, &[NODES], dns, ips);
            others_name(&request, &nodes, &service)
        };
        assert_eq!(
            taken(
                &["x-tunnel-server-svc", "lb.example", "cloud-1"],
                &["10.0.0.1", "127.0.0.1"]
            ),
            None
        );
        for name in [
            "edge-1",
            "kubernetes.default.svc",
            "Kubernetes",
            "*.example",
        ] {
            assert_eq!(taken(&["a", name], &[]).as_deref(), Some(name));
        }
        for ip in ["192.168.0.1", "10.96.0.1"] {
            assert_eq!(taken(&[], &[ip]).as_deref(), Some(ip));
        }
    }

    #[test]
    fn names_must_be_the_nodes() {
        let node = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"},
            {"type": "Hostname", "address": "a.example"}]}});
        let service = json!({"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}});
        let foreign = |dns: &[&str], ips: &[&str], node: &Value| {
            let request = asked("system:node:a", &[NODES], dns, ips);
            foreign_name(&request, "a", node, &service)
        };
        let dns = [
            "kubernetes",
            "kubernetes.default.svc.cluster.local",
            "a",
            "a.example",
        ];
        let ips = [
            "10.96.0.1",
            "169.254.2.1",
            "127.0.0.1",
            "10.0.0.7",
            "::1",
            "fd00::2:1",
        ];
        assert_eq!(foreign(&dns, &ips, &node), None);
        assert_eq!(foreign(&["b"], &[], &node).as_deref(), Some("b"));
        assert_eq!(
            foreign(&[], &["10.0.0.8"], &node).as_deref(),
            Some("10.0.0.8")
        );
        // The kubelet has not registered yet.
        assert_eq!(
            foreign(&dns[..3], &ips, &Value::Null).as_deref(),
            Some("10.0.0.7")
        );
    }
}
