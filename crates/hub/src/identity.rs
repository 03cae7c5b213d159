//! Who a request comes from (design rule R4: identity is never lent). The decision is `judge`, pure; [`Gate`] finds out what it needs
//! to know. Beside it: tokens (`bearer`), what of a caller's headers and paths goes on (`headers`, `path`).

mod bearer;
mod headers;
mod path;

use crate::{
    caller::{Caller, Entrance},
    pool::Membership,
    processes::{Processes, Stranger},
};
pub use bearer::{hash, set_token, token};
pub use headers::clean_request;
use http::request::Parts;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::watch;
use yurt_transport::Peer;
use yurt_wire::{Reason, Status};

/// What kubelets' and hubs' certificates call a node, and the group that they are in.
const NODE_USER: &str = "system:node:";
const NODES: &str = "system:nodes";
/// Between warnings that somebody acts as the node who is not.
const WARN_EVERY: Duration = Duration::from_secs(600);

/// A caller and how it may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub caller: Caller,
    /// The request asks the cloud to act as somebody else. What comes back is that somebody's: never cached, and never
    /// answered locally.
    pub impersonates: bool,
    /// The caller is not the node and acts as it, because `--unsafe-open-proxy` says so.
    pub lent: bool,
}

impl Identity {
    /// The node itself.
    pub fn node() -> Self {
        Self {
            caller: Caller::Node,
            impersonates: false,
            lent: false,
        }
    }
}

/// Why a request is turned away at the door. The caller is at fault, but for [`Refusal::Unproven`].
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Its path is none.
    #[error("the path is not one of plain names")]
    Path,
    /// Its credentials are not understood.
    #[error("Unauthorized: {0}")]
    Malformed(&'static str),
    /// It brings nothing where something is needed.
    #[error(
        "Unauthorized: this listener serves callers with a bearer token or this node's certificate"
    )]
    NoCredentials,
    /// It brings nothing, and is none of the node's own processes.
    #[error("Unauthorized: {0}; bring a bearer token of your own")]
    NotTheNode(#[from] Stranger),
    /// It could not be found out whose process it is; worth another attempt.
    #[error("it cannot be found out just now which process calls: {0}")]
    Unproven(io::Error),
    /// A certificate that cannot be passed on.
    #[error(
        "Unauthorized: the certificate of {0:?} cannot be passed on to the cloud, and is not this node's; bring a bearer token"
    )]
    ForeignCertificate(String),
    /// A certificate without a name, or one that ended while its connection stayed.
    #[error("Unauthorized: the client certificate {0}")]
    Certificate(&'static str),
    /// A token where nodes prove themselves by certificate.
    #[error(
        "Unauthorized: this port is for the nodes of the pool, by certificate; it takes no bearer tokens"
    )]
    TokenOnPoolPort,
    /// A certificate of somebody else than a node.
    #[error("{0:?} is not a node: this port is for the nodes of the pool")]
    NotANode(String),
    /// A node of another pool.
    #[error("node {node:?} is not in this node's pool {pool:?}")]
    OtherPool {
        /// The caller.
        node: String,
        /// This node's pool.
        pool: String,
    },
    /// It is not known who is in the pool.
    #[error("it is not known on this node which nodes its pool has")]
    PoolUnknown,
    /// It would impersonate with the node's rights.
    #[error("impersonation needs credentials of your own; the node's are not lent for it")]
    Impersonation,
}

impl Refusal {
    /// A short name for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Malformed(_) => "malformed_credentials",
            Self::NoCredentials => "no_credentials",
            Self::NotTheNode(Stranger::Elsewhere) => "not_on_node",
            Self::NotTheNode(Stranger::Container) => "container",
            Self::NotTheNode(Stranger::User(_)) => "user",
            Self::NotTheNode(Stranger::Unseen) => "unseen",
            Self::Unproven(_) => "unproven",
            Self::ForeignCertificate(_) => "foreign_certificate",
            Self::Certificate(_) => "certificate",
            Self::TokenOnPoolPort => "token_on_pool_port",
            Self::NotANode(_) => "not_a_node",
            Self::OtherPool { .. } => "other_pool",
            Self::PoolUnknown => "pool_unknown",
            Self::Impersonation => "impersonation",
        }
    }

    /// What the caller is told.
    pub fn status(&self) -> Box<Status> {
        let reason = match self {
            Self::Path => Reason::BadRequest,
            Self::Malformed(_)
            | Self::NoCredentials
            | Self::NotTheNode(_)
            | Self::ForeignCertificate(_)
            | Self::Certificate(_)
            | Self::TokenOnPoolPort => Reason::Unauthorized,
            Self::NotANode(_)
            | Self::OtherPool { .. }
            | Self::PoolUnknown
            | Self::Impersonation => Reason::Forbidden,
            Self::Unproven(_) => Reason::ServiceUnavailable,
        };
        let mut status = Status::new(reason, self.to_string());
        if matches!(self, Self::Unproven(_)) {
            status.retry_after_seconds = Some(1);
        }
        Box::new(status)
    }
}

/// The 401 of a request without a usable identity.
pub fn unauthorized(message: &str) -> Box<Status> {
    Box::new(Status::new(Reason::Unauthorized, message))
}

/// The subject of a verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Certificate {
    user: String,
    groups: Vec<String>,
    not_after: i64,
}

impl Certificate {
    /// The node that it belongs to.
    fn node(&self) -> Option<&str> {
        self.user
            .strip_prefix(NODE_USER)
            .filter(|node| !node.is_empty() && self.groups.iter().any(|group| group == NODES))
    }
}

/// What a request shows of its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    /// A token; nothing else counts then.
    Token(String),
    /// A client certificate.
    Certificate(Certificate),
    /// Nothing: whether its process is one of the node's own.
    Process(Result<(), Stranger>),
    /// Nothing at all.
    Nothing,
}

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
struct Facts<'a> {
    entrance: Entrance,
    shown: &'a Shown,
    impersonates: bool,
    node_name: &'a str,
    pool: &'a Membership,
    /// `--unsafe-open-proxy`.
    open: bool,
}

/// Who it is.
fn judge(facts: Facts<'_>) -> Result<Identity, Refusal> {
    let known = |caller| (caller, false);
    let (caller, lent) = match (facts.entrance, facts.shown) {
        (Entrance::Pool, Shown::Token(_)) => return Err(Refusal::TokenOnPoolPort),
        (_, Shown::Token(token)) => known(Caller::Bearer(hash(token))),
        (Entrance::Pool, Shown::Certificate(certificate)) => {
            let node = certificate
                .node()
                .ok_or_else(|| Refusal::NotANode(certificate.user.clone()))?;
            facts.pool.admits(node)?;
            known(Caller::Peer(node.to_owned()))
        }
        (_, Shown::Certificate(certificate)) => {
            if certificate.node() != Some(facts.node_name) {
                return Err(Refusal::ForeignCertificate(certificate.user.clone()));
            }
            known(Caller::Node)
        }
        (Entrance::Plain | Entrance::Dummy | Entrance::Local, Shown::Process(Ok(()))) => {
            known(Caller::Node)
        }
        (Entrance::Plain | Entrance::Dummy, _) if facts.open => (Caller::Node, true),
        (_, Shown::Process(Err(stranger))) => return Err((*stranger).into()),
        (_, Shown::Process(Ok(())) | Shown::Nothing) => return Err(Refusal::NoCredentials),
    };
    if facts.impersonates && !caller.has_token() {
        return Err(Refusal::Impersonation);
    }
    Ok(Identity {
        caller,
        impersonates: facts.impersonates,
        lent,
    })
}

/// Tells callers apart.
#[derive(Debug)]
pub struct Gate {
    node_name: String,
    processes: Arc<Processes>,
    pool: watch::Receiver<Membership>,
    open: bool,
    warned: Mutex<Option<Instant>>,
}

impl Gate {
    /// A gate of a node. `open`: callers without credentials act as the node, whoever they are (`--unsafe-open-proxy`).
    pub fn new(node_name: &str, pool: watch::Receiver<Membership>, open: bool) -> Self {
        Self {
            node_name: node_name.to_owned(),
            processes: Arc::default(),
            pool,
            open,
            warned: Mutex::default(),
        }
    }

    /// Finds out who is calling.
    pub async fn identify(&self, entrance: Entrance, parts: &Parts) -> Result<Identity, Refusal> {
        if !path::is_plain(parts.uri.path()) {
            return Err(Refusal::Path);
        }
        let shown = match self.shown(entrance, parts).await {
            // Who would be let in anyway is not held up by what cannot be found out.
            Err(Refusal::Unproven(_)) if self.open => Shown::Nothing,
            shown => shown?,
        };
        let identity = judge(Facts {
            entrance,
            shown: &shown,
            impersonates: headers::impersonates(&parts.headers),
            node_name: &self.node_name,
            pool: &self.pool.borrow(),
            open: self.open,
        })?;
        if identity.lent {
            self.warn(entrance, parts.extensions.get::<Peer>());
        }
        Ok(identity)
    }

    /// Who is in the node's pool.
    pub(crate) fn members(&self) -> Membership {
        self.pool.borrow().clone()
    }

    /// Resolves when a node is of the pool no more.
    pub(crate) fn left(&self, node: &str) -> impl Future<Output = ()> + Send + 'static {
        let (mut pool, node) = (self.pool.clone(), node.to_owned());
        async move {
            let stays = {
                let left = pool.wait_for(|pool| pool.admits(&node).is_err());
                left.await.is_err()
            };
            if stays {
                // Nobody tells any more.
                std::future::pending().await
            }
        }
    }

    /// Whether the other end of a plain connection, or of one to the Unix socket, is one of the node's own processes; an error when
    /// that cannot be found out now.
    pub async fn prove(&self, peer: &Peer) -> std::io::Result<Result<(), Stranger>> {
        if let Some(process) = peer.process {
            return Ok(self.processes.prove_local(process));
        }
        let find = self.processes.prove(peer.addr, peer.local);
        peer.findings.once(find).await
    }

    async fn shown(&self, entrance: Entrance, parts: &Parts) -> Result<Shown, Refusal> {
        if let Some(token) = bearer::of(&parts.headers).map_err(Refusal::Malformed)? {
            return Ok(Shown::Token(token));
        }
        let Some(peer) = parts.extensions.get::<Peer>() else {
            return Ok(Shown::Nothing);
        };
        if let Some(der) = &peer.certificate {
            let read = async {
                let subject = yurt_pki::identity_of(der);
                let not_after = yurt_pki::not_after(der);
                let (subject, not_after) = subject
                    .and_then(|subject| Ok((subject, not_after?)))
                    .map_err(|_| Refusal::Certificate("names nobody"))?;
                Ok::<_, Refusal>(Certificate {
                    user: subject.user,
                    groups: subject.groups,
                    not_after,
                })
            };
            let certificate = peer.findings.once(read).await?;
            // A connection may outlive the certificate that it was opened with.
            if certificate.not_after < now() {
                return Err(Refusal::Certificate("has expired"));
            }
            return Ok(Shown::Certificate(certificate));
        }
        let find = async {
            match (entrance, peer.process) {
                (Entrance::Secure | Entrance::Pool, _) => Ok(None),
                (Entrance::Local, Some(process)) => Ok(Some(self.processes.prove_local(process))),
                (Entrance::Local, None) => Ok(None),
                (Entrance::Plain | Entrance::Dummy, _) => {
                    let proof = self.processes.prove(peer.addr, peer.local).await;
                    proof.map(Some).map_err(Refusal::Unproven)
                }
            }
        };
        let proof = peer.findings.once(find).await?;
        Ok(proof.map_or(Shown::Nothing, Shown::Process))
    }

    fn warn(&self, entrance: Entrance, peer: Option<&Peer>) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(
                entrance = entrance.as_str(),
                caller = ?peer.map(|peer| peer.addr),
                "--unsafe-open-proxy: a caller without credentials that is not the node acts with the node's rights"
            );
        }
    }
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use http::{HeaderMap, HeaderName, Request};
    use proptest::prelude::*;

    pub(crate) fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn certificate(user: &str, groups: &[&str]) -> Shown {
        Shown::Certificate(Certificate {
            user: user.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            not_after: 0,
        })
    }

    fn members(nodes: &[&str]) -> Membership {
        Membership {
            pool: Some("here".into()),
            nodes: Some(nodes.iter().map(|node| (*node).into()).collect()),
            ..Membership::default()
        }
    }

    fn outcome(entrance: Entrance, shown: &Shown, impersonates: bool, open: bool) -> String {
        let pool = members(&["edge-1", "edge-2"]);
        let facts = Facts {
            entrance,
            shown,
            impersonates,
            node_name: "edge-1",
            pool: &pool,
            open,
        };
        match judge(facts) {
            Ok(identity) if identity.lent => format!("lent {}", identity.caller.key()),
            Ok(identity) => identity.caller.key(),
            Err(refusal) => format!("{} {}", refusal.status().code(), refusal.label()),
        }
    }

    #[test]
    fn who_is_who_at_which_door() {
        use Entrance::{Dummy, Local, Plain, Pool, Secure};
        let token = Shown::Token("abc".into());
        let bearer = "b:ba7816bf8f01cfea414140de5dae2223";
        let node = certificate("system:node:edge-1", &["openyurt:yurthub", NODES]);
        let other = certificate("system:node:edge-2", &[NODES]);
        let far = certificate("system:node:far", &[NODES]);
        let nobody = certificate("system:node:edge-1", &["system:masters"]);
        let nameless = certificate(NODE_USER, &[NODES]);
        let own = Shown::Process(Ok(()));
        let pod = Shown::Process(Err(Stranger::Container));
        let away = Shown::Process(Err(Stranger::Elsewhere));
        for (entrance, shown, expected) in [
            (Plain, &own, "node"),
            (Plain, &pod, "401 container"),
            (Plain, &away, "401 not_on_node"),
            (Plain, &token, bearer),
            (Dummy, &own, "node"),
            (Dummy, &away, "401 not_on_node"),
            (Dummy, &pod, "401 container"),
            (Dummy, &token, bearer),
            (Local, &own, "node"),
            (Local, &pod, "401 container"),
            (Local, &token, bearer),
            (Local, &Shown::Nothing, "401 no_credentials"),
            (Secure, &Shown::Nothing, "401 no_credentials"),
            (Secure, &token, bearer),
            (Secure, &node, "node"),
            (Secure, &other, "401 foreign_certificate"),
            (Secure, &nobody, "401 foreign_certificate"),
            (Secure, &nameless, "401 foreign_certificate"),
            // Nobody could be proven there; and a proof would not help.
            (Secure, &own, "401 no_credentials"),
            (Pool, &own, "401 no_credentials"),
            (Pool, &Shown::Nothing, "401 no_credentials"),
            (Pool, &token, "401 token_on_pool_port"),
            (Pool, &other, "p:edge-2"),
            (Pool, &node, "p:edge-1"),
            (Pool, &far, "403 other_pool"),
            (Pool, &nobody, "403 not_a_node"),
            (Pool, &nameless, "403 not_a_node"),
        ] {
            let got = outcome(entrance, shown, false, false);
            assert_eq!(got, expected, "{entrance:?} {shown:?}");
        }
    }

    #[test]
    fn an_open_proxy_is_open_on_plain_listeners_only() {
        let pod = Shown::Process(Err(Stranger::Container));
        for (entrance, expected) in [
            (Entrance::Plain, "lent node"),
            (Entrance::Dummy, "lent node"),
            (Entrance::Local, "401 container"),
        ] {
            assert_eq!(outcome(entrance, &pod, false, true), expected);
        }
        for entrance in [Entrance::Secure, Entrance::Pool] {
            let got = outcome(entrance, &Shown::Nothing, false, true);
            assert_eq!(got, "401 no_credentials");
        }
        let own = Shown::Process(Ok(()));
        assert_eq!(outcome(Entrance::Plain, &own, false, true), "node");
        let token = Shown::Token("abc".into());
        assert!(outcome(Entrance::Plain, &token, false, true).starts_with("b:"));
    }

    #[test]
    fn a_pool_that_is_not_known_has_no_members() {
        let shown = certificate("system:node:edge-2", &[NODES]);
        for pool in [
            Membership::default(),
            Membership {
                nodes: None,
                ..members(&[])
            },
        ] {
            let facts = Facts {
                entrance: Entrance::Pool,
                shown: &shown,
                impersonates: false,
                node_name: "edge-1",
                pool: &pool,
                open: true,
            };
            assert!(matches!(judge(facts), Err(Refusal::PoolUnknown)));
        }
    }

    #[test]
    fn impersonation_needs_own_credentials() {
        let own = Shown::Process(Ok(()));
        let other = certificate("system:node:edge-2", &[NODES]);
        let node = certificate("system:node:edge-1", &[NODES]);
        let refused = "403 impersonation";
        assert_eq!(outcome(Entrance::Plain, &own, true, false), refused);
        assert_eq!(
            outcome(Entrance::Plain, &Shown::Nothing, true, true),
            refused
        );
        assert_eq!(outcome(Entrance::Secure, &node, true, false), refused);
        assert_eq!(outcome(Entrance::Pool, &other, true, false), refused);
        let token = Shown::Token("abc".into());
        assert!(outcome(Entrance::Plain, &token, true, false).starts_with("b:"));
    }

    proptest! {
        /// Without `--unsafe-open-proxy` the node's rights take the node's process or the node's certificate.
        #[test]
        fn the_nodes_rights_take_proof(entrance in 0usize..5, shown in 0usize..6, impersonates: bool, name in "[a-z:]{0,8}") {
            use Entrance::{Dummy, Local, Plain, Pool, Secure};
            let entrance = [Plain, Dummy, Local, Secure, Pool][entrance];
            let shown = match shown {
                0 => Shown::Token(name),
                1 => certificate(&format!("{NODE_USER}{name}"), &[NODES]),
                2 => certificate(&name, &[NODES]),
                3 => Shown::Nothing,
                4 => Shown::Process(Err(Stranger::User(7))),
                _ => Shown::Process(Ok(())),
            };
            let proven = shown == Shown::Process(Ok(()));
            let got = outcome(entrance, &shown, impersonates, false);
            prop_assert!(got != "node" || (proven && matches!(entrance, Plain | Dummy | Local)), "{}", got);
        }
    }

    fn parts(target: &str, pairs: &[(&str, &str)], peer: Option<Peer>) -> Parts {
        let mut request = Request::builder().uri(target).body(()).unwrap();
        *request.headers_mut() = headers(pairs);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        request.into_parts().0
    }

    #[tokio::test]
    async fn the_gate_looks_at_the_connection_once() {
        let (_members, pool) = watch::channel(Membership::default());
        let gate = Gate::new("edge-1", pool, false);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = Peer {
            addr: stream.local_addr().unwrap(),
            local: listener.local_addr().unwrap(),
            certificate: None,
            tls: false,
            process: None,
            findings: yurt_transport::Findings::default(),
        };
        let ask = |target: &str, pairs: &[(&str, &str)]| {
            let parts = parts(target, pairs, Some(peer.clone()));
            let gate = &gate;
            async move {
                let identified = gate.identify(Entrance::Plain, &parts).await;
                identified.map(|identity| identity.caller)
            }
        };
        assert_eq!(ask("/version", &[]).await.unwrap(), Caller::Node);
        drop(stream);
        assert_eq!(ask("/version", &[]).await.unwrap(), Caller::Node);
        // A user agent says nothing about who it is.
        let agent = [
            ("user-agent", "kubelet/v1.36.0"),
            ("authorization", "Basic eDp5"),
        ];
        assert!(matches!(
            ask("/version", &agent).await,
            Err(Refusal::Malformed(_))
        ));
        assert!(matches!(
            ask("/api/v1/namespaces/../pods", &[]).await,
            Err(Refusal::Path)
        ));
        let nobody = parts("/version", &[("user-agent", "kubelet/v1.36.0")], None);
        assert!(matches!(
            gate.identify(Entrance::Plain, &nobody).await,
            Err(Refusal::NoCredentials)
        ));
    }
}
