//! Who may ask, and under whose name the kubelet is asked. Pure.

use http::{HeaderMap, StatusCode, header};
use std::collections::BTreeSet;
use yurt_pki::{Identity, identity_of};
use yurt_transport::Peer;

/// Groups whose certificates are no leave to reach other nodes: the nodes themselves, and the tunnel's own identities.
const NO_CALLERS: [&str; 2] = ["system:nodes", "openyurt:yurttunnel"];

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    /// Common names and organizations that may; empty: every certificate of the CA but those of nodes and agents.
    pub only: BTreeSet<String>,
    /// Whether callers without any credentials are taken for the tunnel itself, as OpenYurt's server does. Anybody who reaches the port
    /// then runs commands on every node.
    pub anonymous: bool,
}

/// As whom a kubelet is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Standing {
    /// As the tunnel, by its certificate: the caller has proven to be a component of the cloud.
    Tunnel,
    /// As the caller, by the bearer token that it brought, which only the kubelet judges; nothing else may be reached.
    Bearer,
}

/// Why a caller is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) why: String,
}

impl Callers {
    /// Whether a caller on a TLS connection may ask, and as whom.
    pub(super) fn admit(&self, peer: &Peer, headers: &HeaderMap) -> Result<Standing, Refused> {
        if let Some(certificate) = &peer.certificate {
            let identity = identity_of(certificate).map_err(|error| Refused {
                status: StatusCode::UNAUTHORIZED,
                why: error.to_string(),
            })?;
            return self.admit_identity(&identity);
        }
        let scheme = headers
            .get(header::AUTHORIZATION)
            .map(|value| value.as_bytes());
        if scheme
            .is_some_and(|scheme| scheme.len() > 7 && scheme[..7].eq_ignore_ascii_case(b"bearer "))
        {
            return Ok(Standing::Bearer);
        }
        if self.anonymous {
            return Ok(Standing::Tunnel);
        }
        Err(Refused {
            status: StatusCode::UNAUTHORIZED,
            why: "a client certificate or a bearer token is needed".into(),
        })
    }

    fn admit_identity(&self, identity: &Identity) -> Result<Standing, Refused> {
        let names = || identity.groups.iter().chain([&identity.user]);
        let refused = |why: String| {
            Err(Refused {
                status: StatusCode::FORBIDDEN,
                why,
            })
        };
        let user = &identity.user;
        if !self.only.is_empty() {
            return if names().any(|name| self.only.contains(name)) {
                Ok(Standing::Tunnel)
            } else {
                refused(format!("{user} may not use the tunnel"))
            };
        }
        if user.starts_with("system:node:")
            || names().any(|name| NO_CALLERS.contains(&name.as_str()))
        {
            return refused(format!(
                "{user} is a node or an agent, and may not reach others"
            ));
        }
        Ok(Standing::Tunnel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str, groups: &[&str]) -> Identity {
        Identity {
            user: user.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        }
    }

    #[test]
    fn certificates_of_nodes_and_agents_are_no_leave() {
        let callers = Callers::default();
        let may =
            |user: &str, groups: &[&str]| callers.admit_identity(&identity(user, groups)).is_ok();
        assert!(may(
            "kube-apiserver-kubelet-client",
            &["kubeadm:cluster-admins"]
        ));
        assert!(may("prometheus", &[]));
        assert!(!may("system:node:edge-1", &["system:nodes"]));
        assert!(!may("system:node:edge-1", &[]));
        assert!(!may("somebody", &["system:nodes"]));
        assert!(!may("tunnel-agent-client", &["openyurt:yurttunnel"]));
    }

    #[test]
    fn a_list_is_all_who_may() {
        let callers = Callers {
            only: ["monitoring".to_owned(), "apiserver".to_owned()].into(),
            anonymous: false,
        };
        let may = |user: &str, groups: &[&str]| callers.admit_identity(&identity(user, groups));
        assert_eq!(may("apiserver", &[]), Ok(Standing::Tunnel));
        assert_eq!(may("prometheus", &["monitoring"]), Ok(Standing::Tunnel));
        let refused = may("other", &["system:masters"]).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert_eq!(refused.why, "other may not use the tunnel");
    }

    #[test]
    fn without_a_certificate_a_token_speaks_for_itself() {
        let peer = Peer {
            addr: "127.0.0.1:1".parse().unwrap(),
            local: "127.0.0.1:2".parse().unwrap(),
            certificate: None,
            tls: true,
            process: None,
            findings: Default::default(),
        };
        let headers = |value: &str| {
            let value = value.parse().unwrap();
            HeaderMap::from_iter([(header::AUTHORIZATION, value)])
        };
        let callers = Callers::default();
        assert_eq!(
            callers.admit(&peer, &headers("Bearer abc")),
            Ok(Standing::Bearer)
        );
        assert_eq!(
            callers.admit(&peer, &headers("bearer abc")),
            Ok(Standing::Bearer)
        );
        for none in ["Bearer ", "Basic abc", "Bearer"] {
            let refused = callers.admit(&peer, &headers(none)).unwrap_err();
            assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        }
        let open = Callers {
            anonymous: true,
            ..Callers::default()
        };
        assert_eq!(open.admit(&peer, &HeaderMap::new()), Ok(Standing::Tunnel));
        // Its own name is not exchanged for a greater one.
        assert_eq!(
            open.admit(&peer, &headers("Bearer abc")),
            Ok(Standing::Bearer)
        );
    }
}
