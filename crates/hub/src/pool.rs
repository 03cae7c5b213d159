//! The other nodes of the pool: who they are (`membership`), how they are asked (`peers`), who of them leads (`role`), what is
//! shared with them (`share`), and what they may ask of this node.

mod membership;
pub mod peers;
pub mod rank;
pub mod role;
pub mod share;

pub use membership::Membership;
pub(crate) use membership::follow_members;
pub use peers::{Distrust, PeerError, Peers};
pub use role::{PeerNode, Role};
pub use share::Share;

use yurt_wire::{Gvr, RequestInfo, Status, Verb};

/// Where nodes renew their leases.
const NODE_LEASES: &str = "kube-node-lease";

/// Whether another node of the pool may ask for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It may.
    Given,
    /// It may when the object that it creates has its own name.
    OwnName,
    /// It may not.
    Refused,
}

/// What the node `peer` may ask of this one: to read what is shared within the pool (and what clients need to know for that: which
/// groups and resources there are), and to keep its own lease.
pub fn permission(scope: &[Gvr], peer: &str, info: &RequestInfo) -> Permission {
    if !info.is_resource && info.verb == Verb::Get && is_discovery(&info.path) {
        return Permission::Given;
    }
    if !info.is_resource || !info.subresource.is_empty() {
        return Permission::Refused;
    }
    let lease = info.group == "coordination.k8s.io"
        && info.resource == "leases"
        && info.namespace == NODE_LEASES;
    match info.verb {
        Verb::Get | Verb::List | Verb::Watch if scope.contains(&info.gvr()) => Permission::Given,
        Verb::Get | Verb::Update | Verb::Patch if lease && info.name == peer => Permission::Given,
        Verb::Create if lease && info.name.is_empty() => Permission::OwnName,
        _ => Permission::Refused,
    }
}

/// `/api`, `/api/v1`, `/apis`, `/apis/GROUP`, `/apis/GROUP/VERSION`.
fn is_discovery(path: &str) -> bool {
    let mut parts = path.trim_end_matches('/').split('/').skip(1);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("api"), _, None, None) | (Some("apis"), _, _, None) => true,
        _ => false,
    }
}

/// What a node is told that asks for something else.
pub fn refusal(peer: &str, info: &RequestInfo) -> Box<Status> {
    let what = if info.is_resource {
        info.resource.as_str()
    } else {
        info.path.as_str()
    };
    Box::new(Status::forbidden(
        &info.group,
        what,
        &info.name,
        &format!(
            "node {peer:?} may read what is shared within the pool through this node, and keep its own lease; nothing else"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use proptest::prelude::*;

    fn scope() -> [Gvr; 2] {
        [
            Gvr::new("", "v1", "services"),
            Gvr::new("discovery.k8s.io", "v1", "endpointslices"),
        ]
    }

    fn asked(method: &str, target: &str) -> Permission {
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        let info = RequestInfo::parse(&Method::from_bytes(method.as_bytes()).unwrap(), path, query);
        permission(&scope(), "edge-2", &info)
    }

    #[test]
    fn what_peers_may_ask() {
        use Permission::{Given, OwnName, Refused};
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        for (method, target, expected) in [
            ("GET", "/api/v1/services", Given),
            ("GET", "/api/v1/services?watch=true", Given),
            ("GET", "/api/v1/namespaces/a/services/b", Given),
            (
                "GET",
                "/apis/discovery.k8s.io/v1/endpointslices?watch=1",
                Given,
            ),
            (
                "GET",
                "/apis/discovery.k8s.io/v1beta1/endpointslices",
                Refused,
            ),
            ("GET", "/api/v1/services/b", Given),
            ("GET", "/api/v1/namespaces/a/services/b/status", Refused),
            ("GET", "/api/v1/namespaces/a/services/b/proxy/x", Refused),
            ("POST", "/api/v1/namespaces/a/services", Refused),
            ("DELETE", "/api/v1/namespaces/a/services/b", Refused),
            ("DELETE", "/api/v1/namespaces/a/services", Refused),
            ("GET", "/api/v1/secrets", Refused),
            ("GET", "/api/v1/namespaces/a/secrets/b", Refused),
            ("GET", "/api/v1/pods?watch=true", Refused),
            ("GET", "/version", Refused),
            ("GET", "/", Refused),
            ("GET", "/apifoo", Refused),
            ("GET", "/openapi/v3", Refused),
            ("GET", "/api", Given),
            ("GET", "/api/v1", Given),
            ("GET", "/apis", Given),
            ("GET", "/apis/discovery.k8s.io/v1", Given),
            ("POST", "/apis", Refused),
            ("DELETE", "/apis/discovery.k8s.io/v1", Refused),
            ("GET", &format!("{leases}/edge-2"), Given),
            ("PUT", &format!("{leases}/edge-2"), Given),
            ("PATCH", &format!("{leases}/edge-2"), Given),
            ("POST", leases, OwnName),
            ("GET", leases, Refused),
            (
                "GET",
                &format!("{leases}?fieldSelector=metadata.name%3Dedge-2"),
                Refused,
            ),
            ("PUT", &format!("{leases}/edge-1"), Refused),
            ("DELETE", &format!("{leases}/edge-2"), Refused),
            ("PUT", &format!("{leases}/edge-2/status"), Refused),
            (
                "PUT",
                "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/edge-2",
                Refused,
            ),
            ("POST", "/apis/coordination.k8s.io/v1/leases", Refused),
        ] {
            assert_eq!(asked(method, target), expected, "{method} {target}");
        }
    }

    proptest! {
        /// Whatever a peer writes, it is its own lease.
        #[test]
        fn peers_write_only_their_lease(
            method in "(POST|PUT|PATCH|DELETE)",
            path in "/(api/v1|apis/coordination.k8s.io/v1)(/namespaces/(a|kube-node-lease))?/(leases|services|pods)(/(edge-1|edge-2))?(/status)?",
        ) {
            let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
            match asked(&method, &path) {
                Permission::Given => prop_assert_eq!(path, format!("{lease}/edge-2")),
                Permission::OwnName => prop_assert_eq!(path, lease),
                Permission::Refused => {}
            }
        }
    }
}
