//! Where a request goes: a function of its head and of what is known of nodes.

use crate::directory::{Directory, NodeFacts};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, uri::Authority};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};
use yurt_transport::Destination;

/// Names the node whose agent is to be used, with or without a port.
pub(super) const PROXY_HOST: HeaderName = HeaderName::from_static("x-tunnel-proxy-host");
/// Names what is wanted behind that node, as `host:port`. Never passed on.
pub(super) const PROXY_DEST: HeaderName = HeaderName::from_static("x-tunnel-proxy-dest");

/// What a request says about where it goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) path: &'a str,
    /// `Host`, or the authority of the request's target.
    pub(super) host: Option<&'a str>,
    pub(super) proxy_host: Option<&'a str>,
    pub(super) proxy_dest: Option<&'a str>,
    /// Whether it came by TLS, and goes on by TLS.
    pub(super) tls: bool,
}

impl<'a> Asked<'a> {
    pub(super) fn of(uri: &'a Uri, headers: &'a HeaderMap, tls: bool) -> Result<Self, Unclear> {
        let text = |name: HeaderName| match headers.get(&name).map(HeaderValue::to_str) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
            Some(Err(_)) => Err(Unclear(format!("the header {name} is not text"))),
        };
        let host = match uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => text(header::HOST)?,
        };
        Ok(Self {
            path: uri.path(),
            host,
            proxy_host: text(PROXY_HOST)?,
            proxy_dest: text(PROXY_DEST)?,
            tls,
        })
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// What is dialled, behind which node.
    pub(super) to: Destination,
    /// `host:port` that `Host` says and TLS proves.
    pub(super) authority: String,
    /// What `X-Tunnel-Proxy-Host` says from here on.
    pub(super) proxy_host: Option<String>,
    /// Whether it is a known node's kubelet.
    pub(super) is_kubelet: bool,
}

/// Why it cannot be told where a request goes; the caller is at fault (400).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unclear(String);

/// An address or name, and a port.
struct Place {
    host: String,
    port: u16,
}

impl Place {
    fn parse(text: &str, what: &str) -> Result<Self, Unclear> {
        let unclear = || Unclear(format!("{what} must be host:port, not {text:?}"));
        let authority: Authority = text.parse().map_err(|_| unclear())?;
        let port = authority.port_u16().filter(|port| *port > 0);
        if text.contains('@') {
            return Err(unclear());
        }
        Ok(Self {
            host: unbracketed(authority.host()).to_owned(),
            port: port.ok_or_else(unclear)?,
        })
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// The pod that a kubelet's path is about, as `(namespace, name)`.
fn pod_in(path: &str) -> Option<(&str, &str)> {
    let mut segments = path.strip_prefix('/')?.split('/');
    let verb = segments.next()?;
    if !matches!(verb, "exec" | "attach" | "portForward" | "containerLogs") {
        return None;
    }
    let (namespace, pod) = (segments.next()?, segments.next()?);
    (!namespace.is_empty() && !pod.is_empty()).then_some((namespace, pod))
}

/// The kubelet of the node that a path's pod is on. Callers may not know it: since 1.22 the API server follows no redirects, and
/// `Host` may be a name of a load balancer.
fn traced(path: &str, directory: &dyn Directory) -> Option<(Arc<NodeFacts>, Place)> {
    let (namespace, pod) = pod_in(path)?;
    let node = directory.node_of_pod(namespace, pod)?;
    let found = directory.node(&node).and_then(|node| {
        let host = node.address()?.to_string();
        let port = node.kubelet_port;
        Some((node, Place { host, port }))
    });
    if found.is_none() {
        tracing::debug!(%namespace, %pod, %node, "the pod's node has no address");
    }
    found
}

fn node_named(name: &str, directory: &dyn Directory) -> Option<Arc<NodeFacts>> {
    directory.node(name).or_else(|| {
        let nodes = directory.nodes();
        let mut called = nodes
            .into_iter()
            .filter(|n| n.hosts.iter().any(|h| h == name));
        called.next().filter(|_| called.next().is_none())
    })
}

/// The one node that has an address; those with an agent are meant where others have it too.
fn node_at(address: IpAddr, directory: &dyn Directory) -> Result<Option<Arc<NodeFacts>>, Unclear> {
    let nodes = directory.nodes_at(address);
    let with_agent: Vec<_> = nodes.iter().filter(|node| node.runs_agent()).collect();
    match (nodes.as_slice(), with_agent.as_slice()) {
        ([], _) => Ok(None),
        ([only], _) => Ok(Some(only.clone())),
        (_, [only]) => Ok(Some((*only).clone())),
        _ => Err(Unclear(format!(
            "{} nodes have the address {address}: name one by X-Tunnel-Proxy-Host",
            nodes.len()
        ))),
    }
}

/// The node that `X-Tunnel-Proxy-Host` names, by its name or address. What is not known may still be an agent's id.
fn hinted(
    hint: &str,
    directory: &dyn Directory,
) -> Result<(String, Option<Arc<NodeFacts>>), Unclear> {
    let authority: Authority = hint
        .parse()
        .map_err(|_| Unclear(format!("X-Tunnel-Proxy-Host cannot be {hint:?}")))?;
    let host = unbracketed(authority.host());
    let node = match host.parse() {
        Ok(address) => node_at(address, directory)?,
        Err(_) => node_named(host, directory),
    };
    let name = node.as_ref().map_or(host, |node| &node.name).to_owned();
    Ok((name, node))
}

/// Where a request goes. `localhost` are ports that nodes serve on their loopback address.
pub(super) fn target(
    asked: &Asked<'_>,
    directory: &dyn Directory,
    localhost: &BTreeSet<u16>,
) -> Result<Target, Unclear> {
    let mut hint = asked.proxy_host.map(str::to_owned);
    let mut place;
    // Whose address or name the request bears.
    let mut owner = None;
    if let Some((node, kubelet)) = traced(asked.path, directory) {
        let named = || format!("{}:{}", node.name, node.kubelet_port);
        hint.get_or_insert_with(named);
        place = kubelet;
        owner = Some(node);
    } else {
        let host = asked.host.unwrap_or_default();
        place = Place::parse(host, "Host")?;
        match place.ip() {
            Some(address) if hint.is_none() => owner = node_at(address, directory)?,
            Some(_) => {}
            None => {
                let node = node_named(&place.host, directory);
                let node =
                    node.ok_or_else(|| Unclear(format!("no node {} is known", place.host)))?;
                let address = node
                    .address()
                    .ok_or_else(|| Unclear(format!("the node {} has no address", node.name)))?;
                hint.get_or_insert_with(|| place.host.clone());
                place.host = address.to_string();
                owner = Some(node);
            }
        }
    }
    let mut agent = None;
    if let Some(hint) = &hint {
        let (name, node) = hinted(hint, directory)?;
        agent = Some(name);
        owner = node.or(owner);
    }
    if let Some(destination) = asked.proxy_dest {
        place = Place::parse(destination, "X-Tunnel-Proxy-Dest")?;
    }
    let agent = agent
        .or_else(|| owner.as_ref().map(|node| node.name.clone()))
        .or_else(|| directory.node_for(place.ip()?));
    let mut authority = authority_of(&place);
    if localhost.contains(&place.port) {
        if agent.is_none() {
            return Err(Unclear(format!(
                "port {} is served on the loopback address of nodes, and no node {} is known: name one by X-Tunnel-Proxy-Host",
                place.port, place.host
            )));
        }
        hint = hint.or_else(|| agent.clone());
        let address = owner.as_ref().and_then(|node| node.address());
        place.host = match address {
            Some(IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.to_string(),
            _ => Ipv4Addr::LOCALHOST.to_string(),
        };
        // A certificate proves the node, not its loopback address.
        authority = match address {
            Some(address) if asked.tls => authority_of(&Place {
                host: address.to_string(),
                port: place.port,
            }),
            _ => authority_of(&place),
        };
    }
    let is_kubelet = owner.as_ref().is_some_and(|node| {
        let is_its = |ip: IpAddr| node.internal.contains(&ip) || node.external.contains(&ip);
        agent.as_ref() == Some(&node.name)
            && node.kubelet_port == place.port
            && place.ip().is_some_and(is_its)
    });
    Ok(Target {
        to: Destination {
            node: agent,
            host: place.host,
            port: place.port,
        },
        authority,
        proxy_host: hint,
        is_kubelet,
    })
}

fn authority_of(place: &Place) -> String {
    Destination {
        node: None,
        host: place.host.clone(),
        port: place.port,
    }
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Known, PodFacts};
    use yurt_controller::Key;

    fn known() -> Known {
        let known = Known::default();
        for (name, address, edge) in [
            ("edge-1", "192.168.0.11", true),
            ("edge-2", "192.168.0.12", true),
            ("twin-1", "192.168.0.99", true),
            ("twin-2", "192.168.0.99", true),
            ("cloud", "192.168.0.11", false),
            ("six", "fd00::6", true),
        ] {
            let facts = NodeFacts {
                name: name.into(),
                internal: vec![address.parse().unwrap()],
                hosts: vec![format!("{name}.site")],
                kubelet_port: 10250,
                edge,
                ..NodeFacts::default()
            };
            known.put_node(name, Some(facts));
        }
        let pod = PodFacts {
            node: "edge-2".into(),
            addresses: vec!["10.1.0.5".parse().unwrap()],
        };
        known.put_pod(&Key::new("shop", "cart-0"), Some(pod));
        known
    }

    fn ask(asked: Asked<'_>) -> Result<Target, Unclear> {
        target(&asked, &known(), &[10266, 10267].into())
    }

    fn shown(asked: Asked<'_>) -> String {
        match ask(asked) {
            Ok(t) => {
                let node = t.to.node.as_deref().unwrap_or("-");
                let hint = t.proxy_host.as_deref().unwrap_or("-");
                let kubelet = if t.is_kubelet { " kubelet" } else { "" };
                format!("{} by {node} as {} hint {hint}{kubelet}", t.to, t.authority)
            }
            Err(unclear) => format!("400 {unclear}"),
        }
    }

    fn host(host: &str) -> Asked<'_> {
        Asked {
            path: "/metrics",
            host: Some(host),
            ..Asked::default()
        }
    }

    #[test]
    fn hosts_are_addresses_or_names_of_nodes() {
        for (given, wanted) in [
            (
                "192.168.0.12:10250",
                "192.168.0.12:10250 by edge-2 as 192.168.0.12:10250 hint - kubelet",
            ),
            (
                "edge-2:10250",
                "192.168.0.12:10250 by edge-2 as 192.168.0.12:10250 hint edge-2 kubelet",
            ),
            (
                "edge-2.site:9100",
                "192.168.0.12:9100 by edge-2 as 192.168.0.12:9100 hint edge-2.site",
            ),
            (
                "192.168.0.11:10250",
                "192.168.0.11:10250 by edge-1 as 192.168.0.11:10250 hint - kubelet",
            ),
            (
                "[fd00::6]:10250",
                "[fd00::6]:10250 by six as [fd00::6]:10250 hint - kubelet",
            ),
            ("10.1.0.5:80", "10.1.0.5:80 by edge-2 as 10.1.0.5:80 hint -"),
            ("10.9.0.5:80", "10.9.0.5:80 by - as 10.9.0.5:80 hint -"),
            ("nobody:10250", "400 no node nobody is known"),
            (
                "192.168.0.12",
                "400 Host must be host:port, not \"192.168.0.12\"",
            ),
            (
                "192.168.0.12:0",
                "400 Host must be host:port, not \"192.168.0.12:0\"",
            ),
            (
                "a@192.168.0.12:1",
                "400 Host must be host:port, not \"a@192.168.0.12:1\"",
            ),
            ("", "400 Host must be host:port, not \"\""),
            (
                "192.168.0.99:10250",
                "400 2 nodes have the address 192.168.0.99: name one by X-Tunnel-Proxy-Host",
            ),
        ] {
            assert_eq!(shown(host(given)), wanted);
        }
    }

    #[test]
    fn a_pods_path_leads_to_its_nodes_kubelet_whatever_the_host() {
        let wanted = "192.168.0.12:10250 by edge-2 as 192.168.0.12:10250 hint edge-2:10250 kubelet";
        for path in [
            "/exec/shop/cart-0/main",
            "/attach/shop/cart-0/uid/main",
            "/portForward/shop/cart-0",
            "/containerLogs/shop/cart-0/main",
        ] {
            let asked = Asked {
                path,
                ..host("balancer.example:10250")
            };
            assert_eq!(shown(asked), wanted, "{path}");
        }
        let unknown = Asked {
            path: "/exec/shop/other/main",
            ..host("edge-1:10250")
        };
        assert_eq!(ask(unknown).unwrap().to.node.as_deref(), Some("edge-1"));
        let other = Asked {
            path: "/run/shop/cart-0/main",
            ..host("balancer.example:10250")
        };
        assert!(ask(other).is_err());
    }

    #[test]
    fn headers_name_the_node_and_what_is_behind_it() {
        let asked = Asked {
            proxy_host: Some("twin-2:10250"),
            ..host("192.168.0.99:10250")
        };
        assert_eq!(
            shown(asked),
            "192.168.0.99:10250 by twin-2 as 192.168.0.99:10250 hint twin-2:10250 kubelet"
        );
        let asked = Asked {
            proxy_host: Some("some-agent"),
            proxy_dest: Some("10.0.0.9:22"),
            ..host("192.168.0.11:80")
        };
        assert_eq!(
            shown(asked),
            "10.0.0.9:22 by some-agent as 10.0.0.9:22 hint some-agent"
        );
        let asked = Asked {
            proxy_dest: Some("10.0.0.9"),
            ..host("192.168.0.11:80")
        };
        assert_eq!(
            shown(asked),
            "400 X-Tunnel-Proxy-Dest must be host:port, not \"10.0.0.9\""
        );
        let asked = Asked {
            proxy_host: Some("192.168.0.12"),
            ..host("10.0.0.1:80")
        };
        assert_eq!(ask(asked).unwrap().to.node.as_deref(), Some("edge-2"));
    }

    proptest::proptest! {
        /// Whatever callers write: no panic, a port, and a kubelet is one only at its node's own address. Tokens go nowhere else.
        #[test]
        fn a_kubelet_is_where_its_node_is(
            host in "[a-z0-9:.\\[\\]@%-]{0,24}|edge-1:10250|192\\.168\\.0\\.1[12]:10250",
            hint in proptest::option::of("edge-[12](:10250)?|twin-1|[ -~]{0,12}"),
            dest in proptest::option::of("192\\.168\\.0\\.1[12]:10250|127.0.0.1:1025[05]|[ -~]{0,16}"),
            path in "/(exec|run)/shop/(cart-0|x)/c|[ -~]{0,16}", tls: bool) {
            let asked = Asked { path: &path, host: Some(&host), proxy_host: hint.as_deref(), proxy_dest: dest.as_deref(), tls };
            if let Ok(target) = ask(asked) {
                proptest::prop_assert!(target.to.port > 0);
                if target.is_kubelet {
                    let node = known().node(target.to.node.as_deref().unwrap()).unwrap();
                    proptest::prop_assert!(node.internal.contains(&target.to.host.parse().unwrap()));
                    proptest::prop_assert_eq!(target.to.port, node.kubelet_port);
                    proptest::prop_assert_eq!(target.authority, target.to.to_string());
                }
            }
        }
    }

    #[test]
    fn ports_on_loopback_need_a_node() {
        assert_eq!(
            shown(host("192.168.0.12:10267")),
            "127.0.0.1:10267 by edge-2 as 127.0.0.1:10267 hint edge-2"
        );
        assert_eq!(
            shown(host("[fd00::6]:10267")),
            "[::1]:10267 by six as [::1]:10267 hint six"
        );
        let tls = Asked {
            tls: true,
            ..host("edge-2:10267")
        };
        assert_eq!(
            shown(tls),
            "127.0.0.1:10267 by edge-2 as 192.168.0.12:10267 hint edge-2"
        );
        for nobody in ["192.168.0.99:10267", "10.9.9.9:10266"] {
            assert!(shown(host(nobody)).starts_with("400 "), "{nobody}");
        }
        let asked = Asked {
            proxy_dest: Some("10.0.0.1:10266"),
            ..host("edge-1:80")
        };
        assert_eq!(
            shown(asked),
            "127.0.0.1:10266 by edge-1 as 127.0.0.1:10266 hint edge-1"
        );
    }
}
