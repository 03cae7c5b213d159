//! What the tunnel's certificates must say: subjects, names and signers are OpenYurt's, which approvers compare. Pure.

use std::{collections::BTreeSet, net::IpAddr};
use yurt_controller::signing_request::{CLIENT, KUBELET_SERVING};
use yurt_pki::Profile;

/// The organization of both ends of the tunnel.
pub const TUNNEL: &str = "openyurt:yurttunnel";
/// The common name of agents, whose nodes are told by the names in the certificate.
pub const AGENT: &str = "tunnel-agent-client";
/// The common name of servers towards kubelets.
pub const PROXY_CLIENT: &str = "tunnel-proxy-client";
/// The common name that servers serve under. Kubernetes' signer wants that of a node.
pub const SERVER: &str = "system:node:tunnel-server";
const NODES: &str = "system:nodes";

/// Whose certificate it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The server's, towards agents and callers.
    Server,
    /// The server's, towards kubelets.
    ProxyClient,
    /// An agent's, towards servers.
    Agent,
}

impl Identity {
    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::ProxyClient => "proxy-client",
            Self::Agent => "agent",
        }
    }

    /// Beginning of its file names. OpenYurt meant them so, but has its server's two identities share one.
    pub fn file_prefix(self) -> &'static str {
        match self {
            Self::Server => "yurttunnel-server",
            Self::ProxyClient => "yurttunnel-server-proxy-client",
            Self::Agent => "yurttunnel-agent",
        }
    }

    /// Who signs it.
    pub fn signer(self) -> &'static str {
        match self {
            Self::Server => KUBELET_SERVING,
            Self::ProxyClient | Self::Agent => CLIENT,
        }
    }

    /// What it is for, and nothing else.
    pub fn usages(self) -> [&'static str; 3] {
        let last = match self {
            Self::Server => "server auth",
            Self::ProxyClient | Self::Agent => "client auth",
        };
        ["digital signature", "key encipherment", last]
    }
}

/// Names in an order of their own, each once, without what no client can name.
fn names(dns: impl IntoIterator<Item = String>, ips: impl IntoIterator<Item = IpAddr>) -> Profile {
    let dns: BTreeSet<String> = dns
        .into_iter()
        .map(|name| name.trim_end_matches('.').to_ascii_lowercase())
        .filter(|name| is_dns_name(name))
        .collect();
    let ips: BTreeSet<IpAddr> = ips
        .into_iter()
        .map(|ip| ip.to_canonical())
        .filter(|ip| !ip.is_unspecified() && !ip.is_multicast())
        .collect();
    Profile {
        dns: dns.into_iter().collect(),
        ips: ips.into_iter().collect(),
        ..Profile::default()
    }
}

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*'))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// The server's serving certificate, for these names and addresses.
pub fn server(
    dns: impl IntoIterator<Item = String>,
    ips: impl IntoIterator<Item = IpAddr>,
) -> Profile {
    Profile {
        common_name: SERVER.to_owned(),
        organizations: vec![NODES.to_owned()],
        server: true,
        ..names(dns, ips)
    }
}

/// The server's certificate towards kubelets.
pub fn proxy_client() -> Profile {
    Profile {
        common_name: PROXY_CLIENT.to_owned(),
        organizations: vec![TUNNEL.to_owned()],
        client: true,
        ..Profile::default()
    }
}

/// An agent's certificate. Its names are what the agent may be asked for by: the node's name, and the node's addresses.
pub fn agent(node: &str, ips: impl IntoIterator<Item = IpAddr>) -> Profile {
    Profile {
        common_name: AGENT.to_owned(),
        organizations: vec![TUNNEL.to_owned()],
        client: true,
        ..names([node.to_owned()], ips)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_openyurts() {
        let own = agent(
            "Edge-1",
            ["10.0.0.7".parse().unwrap(), "0.0.0.0".parse().unwrap()],
        );
        assert_eq!(own.common_name, "tunnel-agent-client");
        assert_eq!(own.organizations, ["openyurt:yurttunnel"]);
        assert_eq!(own.dns, ["edge-1"]);
        assert_eq!(own.ips, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        let serving = server(
            [
                "b".to_owned(),
                "a.".to_owned(),
                "b".to_owned(),
                "not a name".to_owned(),
            ],
            [
                "::ffff:10.0.0.1".parse().unwrap(),
                "10.0.0.1".parse().unwrap(),
            ],
        );
        assert_eq!(serving.common_name, "system:node:tunnel-server");
        assert_eq!(serving.organizations, ["system:nodes"]);
        assert_eq!(serving.dns, ["a", "b"]);
        assert_eq!(serving.ips.len(), 1);
        let client = proxy_client();
        assert_eq!(client.common_name, "tunnel-proxy-client");
        assert!(client.dns.is_empty() && client.ips.is_empty());
        for identity in [Identity::Server, Identity::ProxyClient, Identity::Agent] {
            let is_serving = identity == Identity::Server;
            assert_eq!(identity.signer() == KUBELET_SERVING, is_serving);
            assert_eq!(identity.usages().contains(&"server auth"), is_serving);
            assert_eq!(identity.usages().contains(&"client auth"), !is_serving);
        }
    }
}
