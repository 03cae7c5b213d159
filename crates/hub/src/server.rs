//! The process: opens what the node knows, binds the listeners, starts the tasks, stops them in order.

pub mod admin;

use crate::{
    autonomy::{self, heartbeat::Heartbeat},
    backing::Backing,
    cache::{Binding, Cache, CacheConfig, collect},
    caller::Entrance,
    certificates::{self, Certificates},
    config::{Config, ConfigError, WorkingMode},
    drill::Drill,
    endpoints::Endpoints,
    identity::Gate,
    journal::{Journal, JournalConfig},
    metrics::Metrics,
    offline::Offline,
    pool::{Membership, follow_members},
    prefetch,
    proxy::Hub,
    reconnect,
    route::Mode,
    settings::{self, Settings},
    tee::Teacher,
    tenant::Tenant,
    tokens::{Tokens, signer},
    upstream::Upstreams,
};
use admin::Admin;
use http::Request;
use hyper::body::Incoming;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_transport::ServeOptions;

/// How long open requests may go on at shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// The Unix socket of the API proxy, in the root directory.
pub const LOCAL_SOCKET: &str = "hub.sock";
/// How long tasks may take to end after that.
const STOP: Duration = Duration::from_secs(3);

/// Why the hub does not run.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The flags are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate, key or CA cannot be used.
    #[error("certificate: {0}")]
    Certificate(#[from] yurt_pki::PkiError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({purpose}): {source}{}", hint(.source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What for.
        purpose: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The Unix socket cannot be listened on.
    #[error("cannot listen on {}: {source}{}", path.display(), hint(.source))]
    BindLocal {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The cache's directory cannot be used.
    #[error("cache: {0}")]
    Cache(#[from] yurt_store::StoreError),
    /// A listener broke while running.
    #[error("listener: {0}")]
    Listener(std::io::Error),
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another hub on this node?",
        std::io::ErrorKind::AddrNotAvailable => "; is the address one of this node's?",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// The listeners of a hub, bound and not yet served.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Admin endpoints.
    pub admin: Option<TcpListener>,
    /// Plain API proxy.
    pub proxy: Option<TcpListener>,
    /// Plain API proxy on the dummy interface.
    pub dummy_proxy: Option<TcpListener>,
    /// TLS API proxy.
    pub secure_proxy: Option<TcpListener>,
    /// For the other nodes of the pool.
    pub pool: Option<TcpListener>,
    /// For root's processes on the node.
    pub local: Option<UnixListener>,
}

impl Listeners {
    /// Binds what the configuration asks for.
    pub async fn bind(config: &Config) -> Result<Self, HubError> {
        Ok(Self {
            admin: bind(config.admin, "admin endpoints").await?,
            proxy: bind(config.proxy, "API proxy").await?,
            dummy_proxy: bind(config.dummy_proxy, "API proxy on the dummy interface").await?,
            secure_proxy: bind(
                config
                    .secure_proxy
                    .filter(|_| config.serving_certificate.is_some() || config.bootstrap.is_some()),
                "TLS API proxy",
            )
            .await?,
            pool: bind_pool(config).await?,
            local: bind_local(config)?,
        })
    }
}

/// Binds the port for the other nodes of the pool on the node's address. Who is let in there does not depend on the address: where
/// the node has none yet (no `--node-ip`, no route, or not set up after a start), every address will do.
async fn bind_pool(config: &Config) -> Result<Option<TcpListener>, HubError> {
    let purpose = "for the nodes of the pool";
    let tls = config.serving_certificate.is_some() || config.bootstrap.is_some();
    let (Some(port), true) = (config.pool_port, tls) else {
        return Ok(None);
    };
    let any = match config.node_ip {
        Some(IpAddr::V6(_)) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let ip = config
        .node_ip
        .or_else(|| certificates::default_address(&config.servers))
        .unwrap_or(any);
    match bind(Some(SocketAddr::new(ip, port)), purpose).await {
        Err(HubError::Bind { source, .. })
            if source.kind() == std::io::ErrorKind::AddrNotAvailable =>
        {
            tracing::warn!(%ip, "the node does not have this address now; its pool is served on every address");
            bind(Some(SocketAddr::new(any, port)), purpose).await
        }
        bound => bound,
    }
}

/// Binds the Unix socket in the root directory, for root and the hub's own user. Another hub that still serves there is an error.
pub fn bind_local(config: &Config) -> Result<Option<UnixListener>, HubError> {
    let path = config.root_dir.join(LOCAL_SOCKET);
    let bind = || {
        if let Err(error) = std::fs::create_dir_all(&config.root_dir) {
            tracing::warn!(dir = %config.root_dir.display(), %error, "no Unix socket: there is no root directory");
            return Ok(None);
        }
        match std::os::unix::net::UnixStream::connect(&path) {
            Ok(_) => return Err(std::io::ErrorKind::AddrInUse.into()),
            // What an earlier hub left.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path)?;
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Some(listener))
    };
    bind().map_err(|source| HubError::BindLocal {
        path: path.clone(),
        source,
    })
}

async fn bind(
    address: Option<SocketAddr>,
    purpose: &'static str,
) -> Result<Option<TcpListener>, HubError> {
    let Some(address) = address else {
        return Ok(None);
    };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(source) => Err(HubError::Bind {
            address,
            purpose,
            source,
        }),
    }
}

/// Runs a hub until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), HubError> {
    let listeners = Listeners::bind(&config).await?;
    run_on(config, listeners, shutdown).await
}

/// Runs a hub on listeners that are bound already (socket activation, tests).
pub async fn run_on(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), HubError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let config = Arc::new(config);
    // A listener that breaks stops the others as well.
    let stop = shutdown.child_token();
    // First: it makes sure that no other hub works here.
    let (cache, journal, endpoints) = open(&config).await?;

    let telemetry = yurt_telemetry::Metrics::new("yurthub");
    let metrics = {
        let mut registry = telemetry
            .registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.register_collector(cache.collector());
        Metrics::registered(&mut registry)
    };
    let tasks = TaskTracker::new();
    let tokens = Tokens::open(
        &cache,
        &config.node_name,
        Some(signer::key_path(&config.root_dir)),
        metrics.clone(),
    );
    let certificates = Certificates::open(&config, metrics.clone())?;
    let upstreams = Upstreams::new(
        &config.servers,
        config.lb_mode,
        &certificates.cloud()?,
        metrics.clone(),
        tokens.clone(),
    );
    let (mode, modes) = watch::channel(Mode::Online);
    let (set, settings) = watch::channel(Arc::new(Settings::of_flags(&config)));
    let in_order = Arc::new(AtomicBool::new(true));
    let offline = Offline::new(cache.clone(), journal.clone(), &config.node_name)
        .with_list_budget(config.bounds.lists, metrics.clients_cut().clone())
        .with_tokens(tokens.clone());
    let (teacher, learning) = Teacher::new(
        cache.clone(),
        tokens.clone(),
        metrics.clone(),
        config.bounds.learned_body,
        config.bounds.learning,
    );
    // Ends when the last handle is gone, so that nothing on its way is lost at shutdown.
    let learning = tokio::spawn(learning);
    let (members, pool) = watch::channel(Membership::default());
    let hub = Arc::new(Hub {
        node_name: config.node_name.clone(),
        gate: Gate::new(&config.node_name, pool, config.unsafe_open_proxy),
        tenant: Tenant::of(&config.organizations),
        heartbeat: (config.working_mode == WorkingMode::Edge)
            .then(|| Arc::new(Heartbeat::new(config.heartbeat.clone()))),
        trouble: watch::Sender::new(None),
        drill: Drill::default(),
        config: config.clone(),
        offline: offline.clone(),
        backing: Backing::new(
            upstreams.clone(),
            cache.clone(),
            metrics.clone(),
            config.bounds.clone(),
            modes.clone(),
            tasks.clone(),
            stop.clone(),
        ),
        upstreams: upstreams.clone(),
        certificates: certificates.clone(),
        cache: cache.clone(),
        journal: journal.clone(),
        teacher,
        metrics: metrics.clone(),
        bounds: config.bounds.clone(),
        min_request_timeout: config.min_request_timeout,
        mode: modes,
        settings,
        in_order: in_order.clone(),
        reviewed: Mutex::default(),
        tokens,
        unvouched: Mutex::default(),
        tasks: tasks.clone(),
        shutdown: stop.clone(),
    });
    if let Some(tenant) = &hub.tenant {
        tenant.start(&hub);
    }
    upstreams.start(&stop, &tasks);
    tasks.spawn(reconnect::supervise(
        upstreams.clone(),
        journal.clone(),
        offline,
        mode,
        in_order,
        metrics.clone(),
        stop.clone(),
    ));
    tasks.spawn(prefetch::run(hub.clone()));
    autonomy::start(&hub);
    tasks.spawn(endpoints.run(hub.modes(), stop.clone()));
    tasks.spawn(collect::run(
        cache.clone(),
        hub.modes(),
        config.gc_frequency,
        stop.clone(),
    ));
    tasks.spawn(certificates.clone().keep(upstreams.clone(), stop.clone()));
    tasks.spawn(settings::follow(hub.clone(), config.clone(), set));

    let mut serving = JoinSet::new();
    let options = ServeOptions {
        drain: DRAIN,
        stalled_client: Some(config.bounds.stalled_client),
        clients_cut: metrics.clients_cut().clone(),
        ..ServeOptions::default()
    };
    if let Some(listener) = listeners.proxy {
        serve_proxy(
            &mut serving,
            Entrance::Plain,
            listener,
            None,
            &options,
            &hub,
        );
    }
    if let Some(listener) = listeners.dummy_proxy {
        serve_proxy(
            &mut serving,
            Entrance::Dummy,
            listener,
            None,
            &options,
            &hub,
        );
    }
    if let Some(listener) = listeners.local {
        serve_proxy(
            &mut serving,
            Entrance::Local,
            listener,
            None,
            &options,
            &hub,
        );
    }
    if let (Some(listener), Some(tls)) = (listeners.secure_proxy, certificates.secure()) {
        serve_proxy(
            &mut serving,
            Entrance::Secure,
            listener,
            Some(tls),
            &options,
            &hub,
        );
    }
    if let (Some(listener), Some(tls)) = (listeners.pool, certificates.pool()) {
        tasks.spawn(follow_members(hub.clone(), config.node_buckets, members));
        serve_proxy(
            &mut serving,
            Entrance::Pool,
            listener,
            Some(tls),
            &options,
            &hub,
        );
    }
    if let Some(listener) = listeners.admin {
        tracing::info!(address = ?listener.local_addr().ok(), "admin endpoints");
        let admin = Arc::new(Admin::new(hub.clone(), telemetry, config.profiling));
        let handler = move |request: Request<Incoming>| {
            let admin = admin.clone();
            async move { admin.handle(request).await }
        };
        serving.spawn(yurt_transport::serve(
            listener,
            None,
            options.clone(),
            stop.clone(),
            handler,
        ));
    }
    tracing::info!(
        node = config.node_name,
        servers = ?config.servers,
        objects = cache.object_count(),
        pending_writes = journal.pending(),
        "hub runs"
    );

    let mut result = Ok(());
    tokio::select! {
        () = shutdown.cancelled() => {}
        Some(ended) = serving.join_next() => {
            if let Ok(Err(error)) = ended {
                tracing::error!(%error, "a listener broke");
                result = Err(HubError::Listener(error));
            }
        }
    }
    stop.cancel();
    while serving.join_next().await.is_some() {}
    tasks.close();
    if tokio::time::timeout(STOP, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "tasks did not end in time");
    }
    drop(hub);
    let _ = tokio::time::timeout(STOP, learning).await;
    cache.flush().await?;
    tracing::info!("hub stopped");
    result
}

/// Opens what the node knows and wrote. Reading a large cache takes a moment of a thread.
async fn open(config: &Arc<Config>) -> Result<(Cache, Journal, Endpoints), HubError> {
    let config = config.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let began = std::time::Instant::now();
        let (cache, recovery) = Cache::open(
            &config.cache_dir,
            CacheConfig {
                budget_bytes: config.cache_budget,
                // The initial events of a watch come as fast as the link brings them; the disk may be slower.
                queue_bytes: 24 << 20,
                binding: Binding::of_node(
                    config.root_dir.join("pki").join("cache.key"),
                    &config.node_name,
                ),
            },
        )?;
        let journal = Journal::open(&cache, JournalConfig::default())?;
        let grace = config.bounds.endpoints_grace;
        let endpoints = Endpoints::open(&cache, &journal, &config.node_name, grace);
        tracing::info!(
            dir = %config.cache_dir.display(),
            records = recovery.records,
            truncated_bytes = recovery.truncated_bytes,
            corrupt_records = recovery.corrupt_records,
            took = ?began.elapsed(),
            "cache opened"
        );
        Ok::<_, yurt_store::StoreError>((cache, journal, endpoints))
    });
    match opened.await {
        Ok(opened) => Ok(opened?),
        Err(error) => Err(HubError::Listener(std::io::Error::other(error))),
    }
}

fn serve_proxy(
    serving: &mut JoinSet<std::io::Result<()>>,
    entrance: Entrance,
    listener: impl Into<yurt_transport::Listening>,
    tls: Option<certificates::ServingTls>,
    options: &ServeOptions,
    hub: &Arc<Hub>,
) {
    let listener = listener.into();
    tracing::info!(?listener, entrance = entrance.as_str(), "API proxy");
    let shutdown = hub.shutdown.clone();
    let hub = hub.clone();
    let handler = move |request: Request<Incoming>| hub.clone().handle(entrance, request);
    serving.spawn(yurt_transport::serve(
        listener,
        tls,
        options.clone(),
        shutdown,
        handler,
    ));
}
