//! The server as a whole: what listens, what is kept up beside it, and how it ends.

use super::{
    cloud::{Cloud, Rule},
    gate::{ALPN, ALPN_PEER, Gate, Guards},
    meta,
    metrics::{Metrics, Present},
    quic,
    switchboard::{Switchboard, Ways},
};
use crate::{
    Options, Tunnels,
    certificates::Kept,
    directory::Directory,
    frontend::client::Way,
    hello::ALPN_QUIC,
    mux,
    peers::{Connect, Connected, Peers, leases},
    registry::Registry,
    standalone::Authority,
};
use arc_swap::ArcSwap;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_controller::kube::Kube;
use yurt_pki::{Callers, PkiError};
use yurt_transport::{Destination, ServeOptions};

/// How long tasks may take to end that were told to.
const STOP: Duration = Duration::from_secs(2);
/// Until whoever connected just before the drain has asked for what he wants.
const SETTLE: Duration = Duration::from_millis(500);
/// How often it is looked whether everything has ended that was open.
const LOOK: Duration = Duration::from_millis(100);
/// Scrapers and kubelets are few.
const MOST_SCRAPERS: usize = 64;

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({purpose}): {source}")]
    Bind {
        /// The address or path.
        address: String,
        /// What for.
        purpose: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// A Unix socket for frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Where.
    pub path: PathBuf,
    /// Whether what another process left there is replaced.
    pub replace: bool,
}

/// Frontends on a TCP port of their own.
#[derive(Clone, Debug)]
pub struct FrontendPort {
    /// Where.
    pub address: SocketAddr,
    /// What is shown to them, and whom of them is believed.
    pub credentials: Kept,
}

/// What a server is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Differs between instances.
    pub id: String,
    /// How many instances there are, unless leases tell.
    pub count: u32,
    /// Where agents, other instances and frontends with certificates come in.
    pub agents: SocketAddr,
    /// The UDP port of the same address on which agents are taken by QUIC; 0: of the same number.
    pub quic: Option<u16>,
    /// Where frontends come in by TCP beside it.
    pub frontends: Option<FrontendPort>,
    /// Where frontends come in by a Unix socket.
    pub unix: Option<UnixSocket>,
    /// Where metrics, health and status are.
    pub meta: Option<SocketAddr>,
    /// What is shown to whoever comes in, and whom of them is believed.
    pub credentials: Kept,
    /// What is shown to other instances, and by whom they are believed.
    pub client: Kept,
    /// The authority that agents join by, without Kubernetes.
    pub authority: Option<Authority>,
    /// Who may do what.
    pub guards: Guards,
    /// How targets are reached.
    pub ways: Ways,
    /// What edges may reach in the cloud.
    pub cloud: Vec<Rule>,
    /// What is known of the cluster.
    pub directory: Arc<dyn Directory>,
    /// How instances find each other in a cluster.
    pub leases: Option<(Kube, leases::Settings)>,
    /// Other instances: `host:port`.
    pub peers: Vec<String>,
    /// The name that the certificates of other instances are for; `None`: their host.
    pub peer_name: Option<String>,
    /// Bounds of connections to agents.
    pub options: Options,
    /// Connections of all kinds.
    pub most_connections: usize,
    /// How long open connections may go on after shutdown began.
    pub drain: Duration,
    /// The clock by which certificates end: seconds since the epoch.
    pub now: fn() -> i64,
}

/// A server at work.
#[derive(Debug)]
pub struct Server {
    /// The server as its users see it.
    pub switchboard: Arc<Switchboard>,
    /// Where agents come in.
    pub agents: SocketAddr,
    /// Where agents come in by QUIC.
    pub quic: Option<SocketAddr>,
    /// Where frontends come in by a port of their own.
    pub frontends: Option<SocketAddr>,
    /// Where metrics, health and status are.
    pub meta: Option<SocketAddr>,
    gate: Arc<Gate>,
    tasks: TaskTracker,
    drain: Duration,
}

async fn bind(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, ServerError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ServerError::Bind {
        address: address.to_string(),
        purpose,
        source,
    })
}

/// Where a listener listens.
fn local(listener: &TcpListener) -> Result<SocketAddr, ServerError> {
    listener.local_addr().map_err(|source| ServerError::Bind {
        address: String::new(),
        purpose: "its own address",
        source,
    })
}

/// A TLS configuration for callers that need not show a certificate (agents and callers with tokens), made anew with every change of
/// the credentials.
pub(super) fn inviting(
    kept: &Kept,
    alpn: &'static [&'static [u8]],
    stop: &CancellationToken,
) -> Result<Arc<ArcSwap<rustls::ServerConfig>>, PkiError> {
    let make = move |kept: &Kept| -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let now = kept.current();
        let Some(pair) = &now.pair else {
            return yurt_pki::server_config_without_certificate();
        };
        // Without a CA nobody's certificate counts.
        let callers = match now.ca.as_str() {
            "" => Callers::Unasked,
            ca => Callers::Invited(ca),
        };
        let config = yurt_pki::server_config_under(kept.policy(), &pair.pem, callers, false)?;
        let mut config = rustls::ServerConfig::clone(&config);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    };
    let used = Arc::new(ArcSwap::new(make(kept)?));
    let (mut kept, serving) = (kept.clone(), used.clone());
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        loop {
            kept.changed().await;
            match make(&kept) {
                Ok(config) => serving.store(config),
                Err(error) => {
                    tracing::warn!(%error, "the certificate before goes on being served");
                }
            }
        }
    }));
    Ok(used)
}

/// The way to another instance, as who we are now.
pub(super) fn way(
    kept: &Kept,
    name: Option<&str>,
    address: &str,
    alpn: &[&[u8]],
) -> Result<Way, String> {
    let at: Destination = address
        .parse()
        .map_err(|_| format!("{address:?} is no host:port"))?;
    let config = kept.current().client_config(alpn);
    Ok(Way::Tls {
        name: name.unwrap_or(&at.host).to_owned(),
        at,
        config: config.map_err(|error| error.to_string())?,
    })
}

fn connector(kept: Kept, name: Option<String>, options: Options) -> Connect {
    Box::new(move |address| {
        let way = way(&kept, name.as_deref(), &address, &[ALPN_PEER]);
        let options = options.clone();
        Box::pin(async move {
            let stream = way?.open().await.map_err(|error| error.to_string())?;
            let session = mux::cloud::ask(stream, options).await;
            let session = session.map_err(|error| error.to_string())?;
            Ok(Connected {
                closed: session.closed().clone(),
                tunnels: session,
            })
        })
    })
}

/// Starts a server: when this returns, everything listens.
pub async fn start(
    config: Config,
    telemetry: &yurt_telemetry::Metrics,
    shutdown: CancellationToken,
) -> Result<Server, ServerError> {
    let agents = bind(config.agents, "agents").await?;
    let frontends = match &config.frontends {
        Some(port) => Some((bind(port.address, "frontends").await?, port)),
        None => None,
    };
    let meta = match config.meta {
        Some(address) => Some(bind(address, "metrics, health, status").await?),
        None => None,
    };
    let agents_at = local(&agents)?;
    let unix = match config.unix {
        Some(socket) => Some((bind_unix(&socket).await?, socket.path)),
        None => None,
    };
    let socket = unix.as_ref().map(|(_, path)| path.clone());
    // Apart from `shutdown`, which begins the drain.
    let stop = CancellationToken::new();
    let metrics = Metrics::default();
    let registry = Arc::new(Registry::default());
    let connect = connector(
        config.client.clone(),
        config.peer_name.clone(),
        config.options.clone(),
    );
    let peers = Peers::new(connect);
    let present = Present {
        registry: registry.clone(),
        peers: peers.clone(),
        strategies: config.ways.strategies.clone(),
    };
    {
        let shown = telemetry.registry.lock();
        let mut shown = shown.unwrap_or_else(PoisonError::into_inner);
        metrics.register(&mut shown);
        shown.register_collector(Box::new(present));
    }
    let switchboard = Switchboard::new(
        registry,
        config.directory.clone(),
        peers.clone(),
        config.ways.clone(),
        metrics.clone(),
    );
    let count = Arc::new(AtomicU32::new(config.count.max(1)));
    let pages = meta::Pages::new(
        config.id.clone(),
        switchboard.clone(),
        count.clone(),
        shutdown.clone(),
        (config.client.clone(), config.peer_name.clone()),
    );
    let inviting_agents = |alpn| match config.guards.tokens {
        Some(_) => inviting(&config.credentials, alpn, &stop),
        None => config.credentials.serving(alpn, stop.clone()),
    };
    let tls = inviting_agents(ALPN)?;
    let quic_tls = inviting_agents(&[ALPN_QUIC])?;
    let quic = config
        .quic
        .and_then(|port| quic::bind(agents_at, port, quic_tls.load_full(), &config.options));
    let quic_at = quic
        .as_ref()
        .and_then(|endpoint| endpoint.local_addr().ok());
    let tasks = TaskTracker::new();
    let (handshakes, reviews) = Gate::bounds();
    let gate = Arc::new(Gate {
        cloud: Cloud::new(
            config.cloud.clone(),
            config.directory.clone(),
            config.ways.dialer.clone(),
        ),
        switchboard: switchboard.clone(),
        guards: config.guards.clone(),
        authority: config
            .authority
            .map(|authority| (authority, config.credentials.clone())),
        now: config.now,
        id: config.id.clone(),
        count: count.clone(),
        quic: quic_at.map(|at| {
            if at.port() == agents_at.port() {
                0
            } else {
                at.port()
            }
        }),
        options: config.options.clone(),
        page: Arc::new(pages.clone().page()),
        metrics,
        places: Arc::new(Semaphore::new(
            config.most_connections.min(Semaphore::MAX_PERMITS),
        )),
        handshakes,
        reviews,
        tasks: tasks.clone(),
        drain: shutdown.clone(),
        stop: stop.clone(),
    });
    let server = Server {
        switchboard,
        agents: agents_at,
        quic: quic_at,
        frontends: frontends.as_ref().map(|(l, _)| local(l)).transpose()?,
        meta: meta.as_ref().map(local).transpose()?,
        gate: gate.clone(),
        tasks: tasks.clone(),
        drain: config.drain,
    };
    tasks.spawn(gate.clone().listen(agents, tls));
    if let Some(endpoint) = quic {
        tasks.spawn(gate.clone().listen_quic(endpoint, quic_tls));
    }
    if let Some((listener, port)) = frontends {
        let tls = port.credentials.serving(ALPN, stop.clone())?;
        tasks.spawn(gate.clone().listen(listener, tls));
    }
    if let Some((listener, path)) = unix {
        tasks.spawn(gate.clone().listen_unix(listener, path));
    }
    if let Some(listener) = meta {
        let options = ServeOptions {
            max_connections: MOST_SCRAPERS,
            ..ServeOptions::default()
        };
        let (telemetry, stop) = (telemetry.clone(), stop.clone());
        tasks.spawn(async move {
            let serving = yurt_transport::serve(listener, None, options, stop, move |request| {
                pages.clone().answer(telemetry.clone(), request)
            });
            if let Err(error) = serving.await {
                tracing::error!(%error, "metrics, health and status are not served any more");
            }
        });
    }
    let known = config.peers.iter();
    let known: BTreeMap<_, _> = known
        .map(|address| (address.clone(), String::new()))
        .collect();
    peers.set(&known);
    if let Some((kube, settings)) = config.leases {
        tasks.spawn(leases::keep(
            kube,
            settings,
            known,
            peers,
            count,
            shutdown.clone(),
        ));
    } else if !known.is_empty() {
        let others = u32::try_from(known.len()).unwrap_or(u32::MAX);
        count.fetch_max(others.saturating_add(1), Ordering::Relaxed);
    }
    tracing::info!(id = %config.id, agents = %server.agents, quic = ?server.quic, frontends = ?server.frontends, unix = ?socket, meta = ?server.meta, "the tunnel server listens");
    Ok(server)
}

impl Server {
    /// What opens connections through the tunnel.
    pub fn tunnels(&self) -> Arc<dyn Tunnels> {
        self.switchboard.clone()
    }

    /// Waits for shutdown; then sends agents elsewhere, takes nothing new, lets open connections end for a while, and ends.
    pub async fn stopped(self) {
        self.gate.drain.cancelled().await;
        let registry = self.switchboard.registry();
        registry.drain();
        let draining = async {
            tokio::time::sleep(SETTLE.min(self.drain / 2)).await;
            while self.switchboard.connections() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tracing::info!(open = self.switchboard.connections(), bound = ?self.drain, "draining");
        if tokio::time::timeout(self.drain, draining).await.is_err() {
            let left = self.switchboard.connections();
            tracing::warn!(left, "connections that did not end in time are broken");
        }
        self.gate.stop.cancel();
        registry.close().await;
        self.switchboard.peers().close().await;
        self.tasks.close();
        if tokio::time::timeout(STOP, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "tasks did not end in time");
        }
    }
}

/// Listens on a Unix socket that its group may use. It takes the place of one that nobody listens on any more.
pub(super) async fn bind_unix(socket: &UnixSocket) -> Result<UnixListener, ServerError> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let UnixSocket { path, replace } = socket;
    let failed = |source: io::Error| ServerError::Bind {
        address: path.display().to_string(),
        purpose: "frontends",
        source,
    };
    if let Ok(there) = std::fs::symlink_metadata(path) {
        let taken = if !there.file_type().is_socket() {
            Some("there is a file of another kind")
        } else if tokio::net::UnixStream::connect(path).await.is_ok() {
            Some("another process serves it")
        } else if !*replace {
            Some("it is left over, and --delete-existing-uds-file=false")
        } else {
            None
        };
        if let Some(why) = taken {
            return Err(failed(io::Error::new(io::ErrorKind::AddrInUse, why)));
        }
    }
    // Under its name only when its mode is right.
    let mut fresh = path.clone().into_os_string();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let _ = std::fs::remove_file(&fresh);
    let bound = UnixListener::bind(&fresh).and_then(|listener| {
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&fresh, path)?;
        Ok(listener)
    });
    bound.map_err(|error| {
        let _ = std::fs::remove_file(&fresh);
        failed(error)
    })
}
