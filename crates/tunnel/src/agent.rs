//! The agent: keeps a connection to every server, wherever they move, and refuses what its allow-list does not name.
//!
//! [`doors`] says where servers are, [`fleet`] (pure) which to dial and which to give up, [`connector`] does it, [`reach`] is the way to one
//! of them. What servers ask for is dialled by [`crate::allow`].

pub mod address;
mod args;
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
    allow::{AllowList, AllowedDialer, Bounds, NodeScope, Rule, SystemResolver},
    certificates::{
        CertificateMetrics, GivenFiles, Identity, Keeping, Kept, follow_files, keep, shape,
    },
    cluster::{Cluster, Way},
    published::{self, Reader},
    reverse::{self, Route},
    standalone::{self, Enrolment, JoinToken},
};
use address::ServerAddress;
use arc_swap::ArcSwap;
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
use yurt_pki::PkiError;
use yurt_telemetry::Metrics;
use yurt_transport::{Dialer, ServeOptions, serve};

/// How long the certificate may be for addresses that the node has lost.
const GRACE: Duration = Duration::from_secs(3600);

/// Where the agent's certificate is from.
#[derive(Clone, Debug)]
pub enum Authority {
    /// Somebody else keeps it in files.
    Files(GivenFiles),
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
    /// For konnectivity's servers.
    pub token: Option<PathBuf>,
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
    /// Where programs of the node ask for the cloud.
    pub reverse: Vec<SocketAddr>,
    /// Ports of the node that lead to the cloud.
    pub routes: Vec<Route>,
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
    let kept = certificate(&config, cluster.as_ref(), certificates, &stop)?;
    let list = allowed(&config, cluster.as_ref(), &stop);
    let allowed = AllowedDialer::new(
        list.clone(),
        Arc::new(SystemResolver),
        &config.node,
        config.scope.addresses.clone(),
        config.bounds,
    );
    let dialer = Arc::new(allowed.over(config.beneath.clone()));
    let reach = Arc::new(Reach {
        kept: kept.clone(),
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
    for address in &config.reverse {
        let listener = listen(*address).await?;
        tokio::spawn(reverse::serve(
            listener,
            reverse::Kind::Asked,
            ways.clone(),
            stop.clone(),
        ));
    }
    for route in &config.routes {
        let listener = listen(route.listen).await?;
        let kind = reverse::Kind::Fixed(route.target.clone());
        tokio::spawn(reverse::serve(listener, kind, ways.clone(), stop.clone()));
    }
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
    match serving.await {
        Ok(served) => Ok(served?),
        Err(error) => Err(io::Error::other(error).into()),
    }
}

fn certificate(
    config: &AgentConfig,
    cluster: Option<&Cluster>,
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
        (Authority::Cluster { directory, ca }, Some(cluster)) => {
            let keeping = Keeping {
                identity: Identity::Agent,
                directory: directory.clone(),
                cluster: cluster.clone(),
                wanted: watch::channel(Some(profile)).1,
                ca: ca.clone(),
                grace: GRACE,
                metrics,
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
            };
            Ok(standalone::enrol(enrolment, stop.clone())?)
        }
    }
}

/// What the cloud may reach, as it is known now and as the Node says later.
fn allowed(
    config: &AgentConfig,
    cluster: Option<&Cluster>,
    stop: &CancellationToken,
) -> Arc<ArcSwap<AllowList>> {
    if !config.default_allow {
        return Arc::new(ArcSwap::from_pointee(AllowList::of(config.allow.clone())));
    }
    let list = AllowList::of_node(&config.scope, &config.allow);
    let list = Arc::new(ArcSwap::from_pointee(list));
    if let Some(cluster) = cluster {
        tokio::spawn(node::follow(
            cluster.clone(),
            config.node.clone(),
            config.scope.clone(),
            config.allow.clone(),
            list.clone(),
            stop.clone(),
        ));
    }
    list
}

#[cfg(test)]
mod tests;
