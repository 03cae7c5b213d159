//! The agent: keeps a connection to every server, wherever they move, and refuses what its allow-list does not name.
//!
//! [`doors`] says where servers are, [`fleet`] (pure) which to dial and which to give up, [`connector`] does it, [`reach`] is the way to one
//! of them. What servers ask for is dialled by [`crate::allow`].

pub mod address;
mod args;
pub mod beside;
pub mod connector;
mod doors;
pub mod fleet;
mod health;
mod known;
mod leases;
mod metrics;
mod node;
pub mod proxy;
pub mod reach;
mod srv;

pub use args::{AgentArgs, AgentArgsError};
pub use metrics::AgentMetrics;

use crate::{
    AgentHello, Identifiers, Options,
    allow::{AllowList, AllowedDialer, Bounds, Mark, NodeScope, Rule, SystemResolver},
    certificates::{
        CertificateMetrics, GivenFiles, Identity, Keeping, Kept, SomeFiles, follow_files, keep,
        shape,
    },
    cluster::{Cluster, Way},
    published::{self, Reader},
    reverse::{self, MARK, Reverse},
    standalone::{self, Enrolment, JoinToken},
};
use address::ServerAddress;
use arc_swap::ArcSwap;
use beside::Transport;
use connector::Connections;
use doors::Source;
use fleet::Policy;
use known::KnownServers;
use metrics::Measured;
use proxy::Proxy;
use reach::Reach;
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use yurt_pki::{PkiError, renewal};
use yurt_telemetry::Metrics;
use yurt_transport::{Dialer, ServeOptions, serve};

/// How long the certificate may be for addresses that the node has lost.
const GRACE: Duration = Duration::from_secs(3600);

/// How long rules of the kernel may take to be taken away.
const TIDY: Duration = Duration::from_secs(10);

/// Where the agent's certificate is from.
#[derive(Clone, Debug)]
pub enum Authority {
    /// Somebody else keeps it in files.
    Files(GivenFiles),
    /// There is none: [`AgentConfig::token`] says who the agent is, as konnectivity's.
    Token {
        /// The CAs that servers are verified with.
        ca: PathBuf,
    },
    /// The cluster's signer.
    Cluster {
        /// Where it is kept.
        directory: PathBuf,
        /// The CAs that servers are verified with; `None`: the API server's.
        ca: Option<PathBuf>,
    },
    /// A server without Kubernetes.
    Standalone {
        /// Until there is a certificate.
        token: Option<JoinToken>,
        /// Where it is kept.
        directory: PathBuf,
    },
}

/// An agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Its id.
    pub node: String,
    /// By what it is asked for.
    pub identifiers: Identifiers,
    /// Where servers are; none: the cluster says.
    pub servers: Vec<ServerAddress>,
    /// To how many of them.
    pub policy: Policy,
    /// What carries the tunnel.
    pub transport: Transport,
    /// On the way.
    pub proxy: Option<Proxy>,
    /// Its certificate.
    pub authority: Authority,
    /// How the API server is asked, where there is one.
    pub way: Option<Way>,
    /// Of the Service that publishes servers.
    pub namespace: String,
    /// Namespace in which servers' leases are counted.
    pub leases: Option<String>,
    /// For konnectivity's servers, and ours where there is no certificate.
    pub token: Option<PathBuf>,
    /// TLS protocols to offer beside `h2`, in place of our own: konnectivity's is spoken then.
    pub protocols: Vec<String>,
    /// What is known of the node beforehand.
    pub scope: NodeScope,
    /// Whether kubelet and pods may be reached.
    pub default_allow: bool,
    /// What else.
    pub allow: Vec<Rule>,
    /// Of what is dialled.
    pub bounds: Bounds,
    /// How long open connections go on after the end.
    pub drain: Duration,
    /// The port for health and status; port 0: any.
    pub meta: SocketAddr,
    /// Directory in which servers' addresses are kept.
    pub known: PathBuf,
    /// What of the cloud programs of the node reach, and how.
    pub reverse: Reverse,
    /// What connects to permitted addresses in place of TCP: the network of a node that is simulated.
    pub beneath: Option<Arc<dyn Dialer>>,
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// An address cannot be listened on.
    #[error("{address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Files of certificates cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// There is no certificate and no way to one.
    #[error(transparent)]
    Join(#[from] standalone::JoinError),
    /// The port for health and status is of no use any more.
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Listen { address, source })
}

/// Runs an agent until `shutdown`, then drains.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), AgentError> {
    let meta = listen(config.meta).await?;
    let metrics = Metrics::new("yurt-tunnel-agent");
    let (own, certificates) = {
        let mut registry = metrics
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (
            AgentMetrics::new(&mut registry),
            CertificateMetrics::new(&mut registry),
        )
    };
    let stop = shutdown.child_token();
    let _stop = stop.clone().drop_guard();
    let cluster = config
        .way
        .clone()
        .map(|way| Cluster::new(way, stop.clone()));
    let mark = Mark(config.reverse.redirect.as_ref().map(|_| MARK));
    let kept = certificate(&config, cluster.as_ref(), mark, certificates, &stop)?;
    let scope = scope(&config, cluster.as_ref(), &stop);
    let list = allowed(&config, scope.clone(), &stop);
    let allowed = AllowedDialer::new(
        list.clone(),
        Arc::new(SystemResolver),
        &config.node,
        config.scope.addresses.clone(),
        config.bounds,
    );
    let dialer = Arc::new(allowed.over(config.beneath.clone()).marked(mark));
    let reach = Arc::new(Reach {
        kept: kept.clone(),
        transport: config.transport,
        within: beside::WITHIN,
        proxy: config.proxy.clone(),
        hello: AgentHello {
            id: config.node.clone(),
            identifiers: config.identifiers.clone(),
            version: concat!("yurt/", env!("CARGO_PKG_VERSION")).to_owned(),
        },
        dialer: Arc::new(Measured {
            dialer: dialer.clone(),
            metrics: own.clone(),
        }),
        options: Options {
            dial: config.bounds.timeout,
            max_connections: config.bounds.connections,
            drain: config.drain,
            ..Options::default()
        },
        token: config.token.clone(),
        mark,
        now: renewal::now,
        protocols: config.protocols.clone(),
    });
    let connections = Connections::new(config.policy);
    let source = match (&cluster, config.servers.is_empty()) {
        (Some(cluster), true) => Source::Published(published::follow(
            cluster.clone(),
            &config.namespace,
            Reader::Agent,
            stop.clone(),
        )),
        _ => Source::Given(config.servers.clone()),
    };
    if let (Some(cluster), Some(namespace)) = (&cluster, &config.leases) {
        tokio::spawn(stop.clone().run_until_cancelled_owned(leases::count(
            cluster.clone(),
            namespace.clone(),
            connections.clone(),
        )));
    }
    let doors = doors::follow(
        source,
        config.proxy.is_some(),
        KnownServers::at(&config.known),
        connections.clone(),
        stop.clone(),
    );
    let ways = reverse::Cloud::new(reach.clone(), connections.clone());
    let apiserver = config.way.as_ref().and_then(Way::authority);
    let reverse = config.reverse.start(ways, scope, apiserver, &stop);
    let mut tidying = reverse.await?;
    let told = health::Told {
        node: config.node.clone(),
        identifiers: config.identifiers.to_string(),
        connections: connections.clone(),
        dialer,
        list,
        kept,
        metrics,
        own: own.clone(),
    };
    let serving = tokio::spawn(serve(
        meta,
        None,
        ServeOptions::default(),
        stop.clone(),
        move |request| {
            let answer = told.answer(request.method(), request.uri().path());
            async move { answer }
        },
    ));
    connections.run(reach, doors, own, shutdown).await;
    stop.cancel();
    let tidy = async { while tidying.join_next().await.is_some() {} };
    if tokio::time::timeout(TIDY, tidy).await.is_err() {
        tracing::warn!("rules of the kernel may be left behind");
    }
    match serving.await {
        Ok(served) => Ok(served?),
        Err(error) => Err(io::Error::other(error).into()),
    }
}

fn certificate(
    config: &AgentConfig,
    cluster: Option<&Cluster>,
    mark: Mark,
    metrics: CertificateMetrics,
    stop: &CancellationToken,
) -> Result<Kept, AgentError> {
    let profile = shape::agent(&config.node, config.scope.addresses.iter().copied());
    match (&config.authority, cluster) {
        (Authority::Files(files), _) => Ok(follow_files(
            files.clone(),
            Identity::Agent,
            metrics,
            stop.clone(),
        )?),
        (Authority::Token { ca }, _) => {
            let files = SomeFiles {
                pair: None,
                ca: Some(ca.clone()),
            };
            Ok(follow_files(files, Identity::Agent, metrics, stop.clone())?.bare())
        }
        (Authority::Cluster { directory, ca }, Some(cluster)) => {
            let keeping = Keeping {
                identity: Identity::Agent,
                directory: directory.clone(),
                cluster: cluster.clone(),
                wanted: watch::channel(Some(profile)).1,
                ca: ca.clone(),
                grace: GRACE,
                metrics,
                // Nodes may not write Events about what is not theirs.
                events: None,
            };
            Ok(keep(keeping, stop.clone()))
        }
        (Authority::Cluster { .. }, None) => Err(PkiError::Invalid {
            what: "certificate".to_owned(),
            why: "there is no API server to ask for one".to_owned(),
        }
        .into()),
        (Authority::Standalone { token, directory }, _) => {
            let enrolment = Enrolment {
                node: config.node.clone(),
                servers: config.servers.clone(),
                proxy: config.proxy.clone(),
                directory: directory.clone(),
                token: token.clone(),
                wanted: profile,
                metrics,
                mark,
            };
            Ok(standalone::enrol(enrolment, stop.clone())?)
        }
    }
}

/// What is known of the node, as the Node says later.
fn scope(
    config: &AgentConfig,
    cluster: Option<&Cluster>,
    stop: &CancellationToken,
) -> watch::Receiver<NodeScope> {
    let (tell, scope) = watch::channel(config.scope.clone());
    let wanted = config.default_allow || config.reverse.redirect.is_some();
    if let Some(cluster) = cluster.filter(|_| wanted) {
        tokio::spawn(node::follow(
            cluster.clone(),
            config.node.clone(),
            config.scope.clone(),
            tell,
            stop.clone(),
        ));
    }
    scope
}

/// What the cloud may reach, as the node's scope changes.
fn allowed(
    config: &AgentConfig,
    mut scope: watch::Receiver<NodeScope>,
    stop: &CancellationToken,
) -> Arc<ArcSwap<AllowList>> {
    let more = config.allow.clone();
    if !config.default_allow {
        return Arc::new(ArcSwap::from_pointee(AllowList::of(more)));
    }
    let list = AllowList::of_node(&scope.borrow_and_update(), &more);
    let list = Arc::new(ArcSwap::from_pointee(list));
    let kept = list.clone();
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        while scope.changed().await.is_ok() {
            let new = AllowList::of_node(&scope.borrow_and_update(), &more);
            tracing::info!(rules = ?new.rules(), "what the cloud may reach");
            kept.store(Arc::new(new));
        }
    }));
    list
}

#[cfg(test)]
mod tests;
