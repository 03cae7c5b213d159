//! What the hub's certificates must say. Pure.

use std::net::IpAddr;
use yurt_controller::signing_request::{CLIENT, KUBELET_SERVING};
use yurt_pki::Profile;
pub use yurt_pki::renewal::{Reason, Validity, moment, now, pause, reason, renew_at, validity};

/// The group of OpenYurt's hubs.
pub const HUBS: &str = "openyurt:yurthub";
/// The group of nodes.
pub const NODES: &str = "system:nodes";
/// Names under which pods reach an API server, and thus a hub in its place.
const SERVICE_NAMES: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// A certificate of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Towards the cloud and other hubs.
    Client,
    /// Towards those who call the hub.
    Serving,
}

impl Kind {
    /// Its name in status, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Serving => "server",
        }
    }

    /// Beginning of its file names (OpenYurt's).
    pub(super) fn file_prefix(self) -> &'static str {
        match self {
            Self::Client => "yurthub",
            Self::Serving => "yurthub-server",
        }
    }

    /// Who signs it.
    pub(super) fn signer(self) -> &'static str {
        match self {
            Self::Client => CLIENT,
            Self::Serving => KUBELET_SERVING,
        }
    }

    /// What it is for. Approvers compare the whole set.
    pub(super) fn usages(self) -> [&'static str; 3] {
        let last = match self {
            Self::Client => "client auth",
            Self::Serving => "server auth",
        };
        ["digital signature", "key encipherment", last]
    }
}

/// The user that a node is.
pub fn user_of(node: &str) -> String {
    format!("system:node:{node}")
}

/// Contents of the client certificate. `organizations` beside the usual ones.
pub fn client_profile(node: &str, organizations: &[String]) -> Profile {
    let mut groups = vec![HUBS.to_owned(), NODES.to_owned()];
    for organization in organizations {
        if !groups.contains(organization) {
            groups.push(organization.clone());
        }
    }
    Profile {
        common_name: user_of(node),
        organizations: groups,
        ..Profile::default()
    }
}

/// Contents of the serving certificate for these addresses; those that no client can name are left out.
pub fn serving_profile(node: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Profile {
    let mut ips: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !address.is_unspecified() && !address.is_multicast() && !ips.contains(&address) {
            ips.push(address);
        }
    }
    Profile {
        common_name: user_of(node),
        organizations: vec![NODES.to_owned()],
        dns: SERVICE_NAMES.map(str::to_owned).into(),
        ips,
        ..Profile::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn subjects_are_what_approvers_expect() {
        let tenant = ["openyurt:tenant:a".to_owned(), "system:nodes".to_owned()];
        let client = client_profile("edge-1", &tenant);
        assert_eq!(client.common_name, "system:node:edge-1");
        assert_eq!(
            client.organizations,
            ["openyurt:yurthub", "system:nodes", "openyurt:tenant:a"]
        );
        assert!(client.dns.is_empty() && client.ips.is_empty());
        let serving = serving_profile(
            "edge-1",
            addresses(&[
                "10.96.0.1",
                "0.0.0.0",
                "127.0.0.1",
                "127.0.0.1",
                "::",
                "fd00::7",
            ]),
        );
        assert_eq!(serving.organizations, ["system:nodes"]);
        assert_eq!(
            serving.ips,
            addresses(&["10.96.0.1", "127.0.0.1", "fd00::7"])
        );
        assert_eq!(serving.dns.len(), 4);
    }
}
