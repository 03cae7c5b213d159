//! The pool coordinates itself (design rule R7). Its nodes: who they are (`membership`), how they are asked (`peers`), what they may
//! ask of this one. Who leads: [`rank`] decides (pure) on what `presence` tells over a `session` with each candidate; `coordinator`
//! puts it to work and says it as a [`Role`]. What is shared with them: [`share`]. Who lives: nodes tell their leader (`renewal`), which
//! keeps their `leases` and renews them in the cloud for those that are cut off (`delegation`). `evidence` is what people are told.

mod coordinator;
mod delegation;
mod evidence;
pub mod leases;
mod membership;
pub mod peers;
pub mod presence;
pub mod rank;
mod renewal;
pub mod role;
mod session;
pub mod share;

pub use coordinator::Coordination;
pub use evidence::PoolStatus;
pub(crate) use evidence::gather;
pub(crate) use leases::MOST_BYTES;
pub use membership::Membership;
pub(crate) use membership::follow_members;
pub use peers::{Distrust, PeerError, Peers};
pub use role::{PeerNode, Role};
pub use share::Share;

use crate::{
    autonomy::heartbeat::NODE_LEASES,
    proxy::{Hub, Upload},
    route,
};
use bytes::Bytes;
use http::{Method, Response, request::Parts};
use leases::Refused;
use std::sync::Arc;
use tokio::sync::watch;
use yurt_transport::Body;
use yurt_wire::{Gvr, RequestInfo, Status, Verb};

/// Whether another node of the pool may ask for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It may.
    Given,
    /// It may not.
    Refused,
}

/// Starts coordinating. `serves`: other nodes can reach this one.
pub(crate) fn start(
    hub: &Arc<Hub>,
    serves: bool,
    members: watch::Receiver<Membership>,
    role: watch::Sender<Role>,
) {
    hub.tasks
        .spawn(coordinator::run(hub.clone(), serves, members, role));
    if let Some(heartbeat) = &hub.heartbeat {
        hub.tasks
            .spawn(renewal::run(hub.clone(), heartbeat.clone()));
        hub.tasks
            .spawn(delegation::run(hub.clone(), heartbeat.clone()));
    }
}

/// The leases of nodes.
fn is_node_lease(info: &RequestInfo) -> bool {
    let named =
        info.group == "coordination.k8s.io" && info.version == "v1" && info.resource == "leases";
    // All namespaces: there are leases of nodes only.
    let all = info.namespace.is_empty() && matches!(info.verb, Verb::List | Verb::Watch);
    info.is_resource
        && info.subresource.is_empty()
        && named
        && (all || info.namespace == NODE_LEASES)
}

/// What the node `peer` may ask of this one: to read what is shared within the pool and who of it lives, and to keep its own lease.
/// That a lease that it writes is its own is looked at again in the lease.
pub fn permission(scope: &[Gvr], peer: &str, info: &RequestInfo) -> Permission {
    let given = match info.verb {
        Verb::Get if !info.is_resource => {
            info.path == presence::PATH || route::is_document(&Method::GET, &info.path)
        }
        _ if !info.is_resource || !info.subresource.is_empty() => false,
        Verb::Get | Verb::List | Verb::Watch => is_node_lease(info) || scope.contains(&info.gvr()),
        Verb::Update => is_node_lease(info) && info.name == peer,
        Verb::Create => is_node_lease(info) && info.name.is_empty(),
        _ => false,
    };
    match given {
        true => Permission::Given,
        false => Permission::Refused,
    }
}

/// Answers what is this node's own to answer to another: its presence, and the leases. `None` for everything else.
pub(crate) fn answer(
    hub: &Hub,
    peer: &str,
    info: &RequestInfo,
    parts: &Parts,
    body: &Upload,
) -> Option<Result<Response<Body>, Box<Status>>> {
    let (tasks, shutdown) = (&hub.tasks, &hub.shutdown);
    if info.path == presence::PATH {
        return Some(hub.coordination.presence.stream(peer, shutdown.clone()));
    }
    if !is_node_lease(info) {
        return None;
    }
    let nothing = Bytes::new();
    let body = match body {
        Upload::Held(body) => body,
        Upload::Stream(_) => &nothing,
    };
    let leases = &hub.coordination.leases;
    let answer = leases::answer(leases, peer, info, parts, body, (tasks, shutdown));
    Some(answer.map_err(|refused| {
        let reason = match &refused {
            Refused::Lease(refusal) => refusal.as_str(),
            Refused::Status(status) if status.code() == 403 => "another",
            Refused::Status(_) => "malformed",
        };
        if !parts.method.is_safe() {
            hub.metrics.pool().lease_refused(reason);
        }
        refused.status()
    }))
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
            "node {peer:?} may read what is shared within the pool and whose leases there are through this node, and keep its own lease; nothing else"
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
        use Permission::{Given, Refused};
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
            // What kubectl needs to ask for anything.
            ("GET", "/version", Given),
            ("GET", "/api", Given),
            ("GET", "/api/v1", Given),
            ("GET", "/apis", Given),
            ("GET", "/apis/discovery.k8s.io/v1", Given),
            ("GET", "/", Refused),
            ("GET", "/apifoo", Refused),
            ("POST", "/apis", Refused),
            ("DELETE", "/apis/discovery.k8s.io/v1", Refused),
            ("GET", "/metrics", Refused),
            ("GET", "/logs/x", Refused),
            ("POST", "/version", Refused),
            ("GET", presence::PATH, Given),
            ("PUT", presence::PATH, Refused),
            ("GET", &format!("{leases}/edge-2"), Given),
            ("GET", &format!("{leases}/edge-1"), Given),
            ("PUT", &format!("{leases}/edge-2"), Given),
            ("PATCH", &format!("{leases}/edge-2"), Refused),
            ("POST", leases, Given),
            ("GET", leases, Given),
            ("GET", &format!("{leases}?watch=true"), Given),
            ("GET", "/apis/coordination.k8s.io/v1/leases", Given),
            (
                "GET",
                "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases",
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
            if asked(&method, &path) == Permission::Given {
                let own = match method.as_str() {
                    "POST" => lease.to_owned(),
                    _ => format!("{lease}/edge-2"),
                };
                prop_assert_eq!(path, own);
            }
        }
    }
}
