//! The process: opens what the node knows, binds the listeners, starts the tasks, stops them in order.

pub mod admin;
mod dump;
mod listeners;
mod lock;
mod notify;

use crate::{
    autonomy::{self, heartbeat::Heartbeat},
    backing::Backing,
    cache::{Binding, Cache, CacheConfig, collect},
    caller::Entrance,
    certificates::{self, Certificates},
    config::{Config, ConfigError, WorkingMode},
    drill::Drill,
    endpoints::Endpoints,
    filter::{self, Filters},
    identity::Gate,
    journal::{Journal, JournalConfig},
    local_mode::{self, LocalModeError, Tool},
    metrics::Metrics,
    network::{Network, Presence},
    offline::Offline,
    ota::{self, Ota},
    pool::{self, Coordination, Membership, Peers, Role, Share, follow_members},
    prefetch,
    proxy::Hub,
    reconnect,
    route::Mode,
    rules::{self, Rules},
    settings::{self, Settings},
    tee::Teacher,
    tenant::Tenant,
    tokens::{Tokens, signer},
    upstream::Upstreams,
};
use admin::Admin;
use http::Request;
use hyper::body::Incoming;
pub use listeners::{LOCAL_SOCKET, Listeners, bind_local};
use lock::Lock;
pub use lock::LockError;
use notify::Notifier;
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_store::StoreError;
use yurt_transport::ServeOptions;

/// How long open requests may go on at shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// How long tasks may take to end after that, and the cache to be written.
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
    Cache(#[from] StoreError),
    /// A data directory is another hub's, or of no use.
    #[error(transparent)]
    Directory(#[from] LockError),
    /// Local mode cannot go on.
    #[error("local mode: {0}")]
    Local(#[from] LocalModeError),
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

/// Runs a hub until `shutdown`: all of the process.
pub async fn run(mut config: Config, shutdown: CancellationToken) -> Result<(), HubError> {
    // From now on the signal does not end the process, also while the cache is read, and in local mode.
    let _ignored = signal(SignalKind::user_defined1());
    // Before anything that a second hub must not touch.
    let _lock = Lock::take(&config.root_dir)?;
    if config.working_mode == WorkingMode::Local {
        return Box::pin(run_local(config, shutdown)).await;
    }
    let mut listeners = Listeners::bind(&config)?;
    let opened = open(&config).await?;
    let network = match &config.dummy {
        Some(dummy) => Some(Network::start(dummy.clone()).await),
        None => None,
    };
    if let Some(network) = &network
        && matches!(
            &*network.presence().borrow(),
            Presence::Absent { denied: true, .. }
        )
    {
        listeners.leave_dummy(&mut config)?;
    }
    let ended = Box::pin(run_opened(config, opened, listeners, shutdown)).await;
    if let Some(network) = network {
        network.end().await;
    }
    ended
}

async fn run_local(config: Config, shutdown: CancellationToken) -> Result<(), HubError> {
    let notifier = Arc::new(Notifier::from_env());
    let tool = Tool::find().await.map_err(LocalModeError::from)?;
    notifier.ready();
    let life = CancellationToken::new();
    if let Some(every) = notifier.watchdog {
        let alive = notify::keep_alive(notifier.clone(), every, None, life.clone());
        tokio::spawn(alive);
    }
    let ended = local_mode::run(config, tool, shutdown).await;
    life.cancel();
    Ok(ended?)
}

/// Runs a hub on listeners that are bound already (socket activation, tests); its network interface is somebody else's care.
pub async fn run_on(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), HubError> {
    let opened = open(&config).await?;
    Box::pin(run_opened(config, opened, listeners, shutdown)).await
}

async fn run_opened(
    config: Config,
    (cache, journal, endpoints): Opened,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), HubError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let notifier = Arc::new(Notifier::from_env());
    let dump = signal(SignalKind::user_defined1());
    let config = Arc::new(config);
    let autonomous = config.working_mode == WorkingMode::Edge;
    // A listener that breaks stops the others as well.
    let stop = shutdown.child_token();

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
    let (decide, role) = watch::channel(Role::Alone);
    let hub = Arc::new(Hub {
        node_name: config.node_name.clone(),
        autonomous,
        gate: Gate::new(&config.node_name, pool.clone(), config.unsafe_open_proxy),
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
        role,
        peers: Peers::new(certificates.clone(), metrics.clone()),
        share: Share::new(config.bounds.pool_window, metrics.clone()),
        filters: Filters::new(&config),
        rules: Rules::new(config.rules_file.clone(), metrics.clone()),
        coordination: Coordination::default(),
        in_order: in_order.clone(),
        reviewed: Mutex::default(),
        told_rules: Mutex::default(),
        tokens,
        unvouched: Mutex::default(),
        ota: Ota::open(&config, &cache, metrics.clone()),
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
    if autonomous {
        tasks.spawn(prefetch::run(hub.clone()));
        tasks.spawn(endpoints.run(hub.modes(), stop.clone()));
        tasks.spawn(collect::run(
            cache.clone(),
            hub.modes(),
            config.gc_frequency,
            stop.clone(),
        ));
        autonomy::start(&hub);
        let serves = listeners.pool.is_some() && certificates.pool().is_some();
        pool::start(&hub, serves, pool, decide);
    }
    tasks.spawn(ota::worker::run(hub.clone()));
    tasks.spawn(certificates.clone().keep(upstreams.clone(), stop.clone()));
    tasks.spawn(settings::follow(hub.clone(), config.clone(), set));
    if config.filters {
        tasks.spawn(rules::follow(hub.clone()));
        tasks.spawn(filter::keep(hub.clone(), members.subscribe()));
    }
    if config.filters || listeners.pool.is_some() {
        tasks.spawn(follow_members(hub.clone(), config.node_buckets, members));
    }

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
    let admin = Arc::new(Admin::new(hub.clone(), telemetry, config.profiling));
    if let Some(listener) = listeners.local {
        tracing::info!(
            ?listener,
            entrance = Entrance::Local.as_str(),
            "API proxy, and upgrades"
        );
        let (hub, of_socket) = (hub.clone(), admin.clone());
        let handler = move |request: Request<Incoming>| {
            let (hub, admin) = (hub.clone(), of_socket.clone());
            async move {
                if admin::ota::is_path(request.uri().path()) {
                    admin.handle(request).await
                } else {
                    hub.handle(Entrance::Local, request).await
                }
            }
        };
        serving.spawn(yurt_transport::serve(
            listener,
            None,
            options.clone(),
            stop.clone(),
            handler,
        ));
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
        serve_proxy(
            &mut serving,
            Entrance::Pool,
            listener,
            Some(tls),
            &options,
            &hub,
        );
    }
    match dump {
        Ok(signal) => {
            let dir = config.root_dir.clone();
            tasks.spawn(dump::on_signal(signal, admin.clone(), dir, stop.clone()));
        }
        Err(error) => tracing::warn!(%error, "SIGUSR1 cannot be listened to"),
    }
    if let Some(listener) = listeners.admin {
        tracing::info!(address = ?listener.local_addr().ok(), "admin endpoints");
        let of_listener = admin.clone();
        let handler = move |request: Request<Incoming>| {
            let admin = of_listener.clone();
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
    // What is asked from now on is answered, by the cloud or from what the node knows: nobody need wait for the cloud.
    notifier.ready();
    tasks.spawn(notify::tell_status(notifier.clone(), hub.clone()));
    // Lives through the drain.
    let life = CancellationToken::new();
    let alive = notifier.watchdog.map(|every| {
        let (notifier, cache) = (notifier.clone(), Some(cache.clone()));
        tokio::spawn(notify::keep_alive(notifier, every, cache, life.clone()))
    });

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
    notifier.stopping();
    stop.cancel();
    drop(admin);
    while serving.join_next().await.is_some() {}
    tasks.close();
    if tokio::time::timeout(STOP, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "tasks did not end in time");
    }
    drop(hub);
    let _ = tokio::time::timeout(STOP, learning).await;
    match tokio::time::timeout(STOP, cache.flush()).await {
        Ok(flushed) => flushed?,
        Err(_) => tracing::error!("the cache could not be written in time"),
    }
    life.cancel();
    if let Some(alive) = alive {
        let _ = alive.await;
    }
    tracing::info!("hub stopped");
    result
}

/// What the node knows, what it wrote, and what it makes of its pods for services.
type Opened = (Cache, Journal, Endpoints);

/// Opens what the node knows and wrote. Reading a large cache takes a moment of a thread.
async fn open(config: &Config) -> Result<Opened, HubError> {
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
        Ok::<_, StoreError>((cache, journal, endpoints))
    });
    match opened.await {
        Ok(Err(StoreError::InUse { dir })) => {
            let dir = PathBuf::from(dir);
            let holder = lock::holder(&dir.join("lock"));
            Err(LockError::InUse { dir, holder }.into())
        }
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
