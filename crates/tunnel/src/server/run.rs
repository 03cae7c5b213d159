//! `yurt tunnel server`: a server of its flags, with the ports for callers that know of no tunnel, and what brings them there.

use super::{
    Config, FrontendPort, ServerArgs, ServerError, UnixSocket,
    gate::{Guards, Reviewer},
    process::inviting,
    start,
};
use crate::{
    Options,
    certificates::{
        CertificateMetrics, Credentials, Events, GivenFiles, Identity, Keeping, Kept, SomeFiles,
        follow_files, keep, shape,
    },
    cluster::{Cluster, Way},
    directory::{Directory, Known},
    interceptor::{self, KubeletTlsError},
    peers::leases,
    published::{self, Published, Reader},
    standalone::{Authority, AuthorityError},
    steering,
};
use arc_swap::ArcSwap;
use std::{
    io,
    net::IpAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_controller::{
    Context,
    access::AccessError,
    election::{self, Timing},
    kube::Kube,
};
use yurt_pki::{PkiError, Profile};
use yurt_telemetry::Metrics;

/// How the process is known to scrapers.
const COMPONENT: &str = "yurt-tunnel-server";
/// How long a certificate may be for more names than wanted.
const GRACE: Duration = Duration::from_secs(3600);
/// How long tasks may take to end: rules of the host are taken away.
const STOP: Duration = Duration::from_secs(10);

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It cannot start.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The API server cannot be reached with what was given.
    #[error("{0} (without Kubernetes: --standalone)")]
    Access(#[from] AccessError),
    /// Certificates cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The authority of a standalone server cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A port of the interceptor cannot be listened on.
    #[error("cannot listen (callers of kubelets): {0}")]
    Interceptor(#[source] io::Error),
    /// Kubelets cannot be spoken to.
    #[error(transparent)]
    Kubelets(#[from] KubeletTlsError),
    /// What flags say does not fit together.
    #[error("{0}")]
    Flags(String),
}

/// A way to the cluster, where there is one.
struct Ground {
    cluster: Cluster,
    kube: Kube,
}

/// Runs an instance until `shutdown`, and drains.
pub async fn run(args: ServerArgs, shutdown: CancellationToken) -> Result<(), RunError> {
    let metrics = Metrics::new(COMPONENT);
    let certificates = {
        let registry = metrics.registry.lock();
        CertificateMetrics::new(&mut registry.unwrap_or_else(PoisonError::into_inner))
    };
    // Outlives the drain; whatever ends this ends it.
    let life = CancellationToken::new();
    let _ends = life.clone().drop_guard();
    let tasks = TaskTracker::new();
    let ground = if !args.asks_cluster() {
        None
    } else {
        let way = args.kubeconfig.clone().map_or(Way::Pod, Way::Kubeconfig);
        let cluster = Cluster::new(way, life.clone());
        let kube = cluster.client()?.with_user_agent(COMPONENT);
        Some(Ground { cluster, kube })
    };
    let known = Arc::new(Known::default());
    let serves_kubelets = ground.as_ref().filter(|_| !args.egress_only);
    if let Some(ground) = serves_kubelets {
        known.follow(&ground.kube, &tasks, &life);
    }
    let directory: Arc<dyn Directory> = known;
    let identities = Identities::of(&args, ground.as_ref(), &certificates, &life)?;
    let config = config(
        &args,
        ground.as_ref(),
        &identities,
        &directory,
        &certificates,
        &life,
    )?;
    let server = Box::pin(start(config, &metrics, shutdown.clone())).await?;
    if let Some(ground) = serves_kubelets {
        let tunnels = server.tunnels();
        let beside = Beside {
            args: &args,
            identities: &identities,
            context: Context::new(ground.kube.clone(), life.clone()),
            directory,
            metrics: &metrics,
            tasks: &tasks,
            life: &life,
            shutdown: &shutdown,
        };
        Box::pin(beside.start(ground, tunnels)).await?;
    }
    Box::pin(server.stopped()).await;
    life.cancel();
    tasks.close();
    if tokio::time::timeout(STOP, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "tasks did not end in time");
    }
    Ok(())
}

/// The certificates of a server.
struct Identities {
    /// Towards whoever comes in.
    server: Kept,
    /// Towards kubelets and other instances.
    client: Kept,
    /// Without Kubernetes.
    authority: Option<Authority>,
}

/// Addresses of this host, as far as this instance is told.
fn host_addresses(args: &ServerArgs) -> impl Iterator<Item = IpAddr> {
    let named = ["POD_IP", "NODE_IP"].into_iter().filter_map(|name| {
        let text = std::env::var(name).ok()?;
        text.parse().ok()
    });
    let bound = Some(args.bind_address).filter(|ip| !ip.is_unspecified());
    named.chain(bound)
}

/// Addresses that this instance may be reached by, as far as it knows itself.
fn own_addresses(args: &ServerArgs) -> Vec<IpAddr> {
    let loopback = [
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    ];
    host_addresses(args)
        .chain(args.cert_ips.iter().copied())
        .chain(loopback)
        .collect()
}

/// What the serving certificate must be for.
fn serving_profile(args: &ServerArgs, published: Option<&Published>) -> Profile {
    let found = published
        .into_iter()
        .flat_map(|published| published.dns.iter().cloned());
    let dns = args.cert_dns_names.iter().cloned().chain(found);
    let found = published
        .into_iter()
        .flat_map(|published| published.ips.iter().copied());
    shape::server(dns, own_addresses(args).into_iter().chain(found))
}

impl Identities {
    fn of(
        args: &ServerArgs,
        ground: Option<&Ground>,
        metrics: &CertificateMetrics,
        life: &CancellationToken,
    ) -> Result<Self, RunError> {
        let files = |cert: &Option<_>, key: &Option<_>| {
            Some(SomeFiles {
                pair: Some((cert.clone()?, key.clone()?)),
                ca: args.cluster_ca_cert.clone(),
            })
        };
        let follow = |files, identity| follow_files(files, identity, metrics.clone(), life.clone());
        args.certificates_fit()?;
        let given = files(&args.cluster_cert, &args.cluster_key);
        let keeping = |identity, wanted, cluster: &Cluster| {
            let keeping = Keeping {
                identity,
                directory: args.cert_dir.clone(),
                cluster: cluster.clone(),
                wanted,
                ca: args.cluster_ca_cert.clone(),
                grace: GRACE,
                metrics: metrics.clone(),
                events: ground.map(|ground| {
                    let (namespace, service) = (&args.namespace, published::SERVICE);
                    Events::about_service(&ground.kube, life, COMPONENT, namespace, service)
                }),
            };
            keep(keeping, life.clone())
        };
        let mut authority = None;
        let server = match (&given, ground) {
            (Some(files), _) => follow(files.clone(), Identity::Server)?,
            (None, Some(ground)) => {
                let wanted = follow_names(args, ground, life);
                keeping(Identity::Server, wanted, &ground.cluster)
            }
            (None, None) => {
                let own = Authority::open(&args.data_dir)?;
                let (_, wanted) = watch::channel(Some(serving_profile(args, None)));
                let kept = own.serving(wanted, metrics.clone(), life.clone());
                authority = Some(own);
                kept
            }
        };
        let client = match (
            files(&args.proxy_client_cert, &args.proxy_client_key),
            ground,
        ) {
            (Some(files), _) => follow(files, Identity::ProxyClient)?,
            (None, Some(ground)) if !args.egress_only => {
                let (_, wanted) = watch::channel(Some(shape::proxy_client()));
                keeping(Identity::ProxyClient, wanted, &ground.cluster)
            }
            (None, _) => match given {
                Some(files) => follow(files, Identity::ProxyClient)?,
                None if args.peers.is_empty() => Kept::fixed(Credentials::default()),
                None => {
                    return Err(RunError::Flags(
                        "instances know each other by certificates of one CA: with --standalone, --peers takes --cluster-cert, --cluster-key and --cluster-ca-cert".into(),
                    ));
                }
            },
        };
        Ok(Self {
            server: server.under(args.policy()),
            client,
            authority,
        })
    }
}

/// The names of the serving certificate, as what publishes the server changes.
fn follow_names(
    args: &ServerArgs,
    ground: &Ground,
    life: &CancellationToken,
) -> watch::Receiver<Option<Profile>> {
    let mut published = published::follow(
        ground.cluster.clone(),
        &args.namespace,
        Reader::Server,
        life.clone(),
    );
    // Until the cluster has told what it publishes nothing is asked for: it would be asked for again at once.
    let (tell, wanted) = watch::channel(None);
    let args = args.clone();
    tokio::spawn(life.clone().run_until_cancelled_owned(async move {
        while published.changed().await.is_ok() {
            let profile = serving_profile(&args, published.borrow_and_update().as_ref());
            tell.send_replace(Some(profile));
        }
    }));
    wanted
}

fn config(
    args: &ServerArgs,
    ground: Option<&Ground>,
    identities: &Identities,
    directory: &Arc<dyn Directory>,
    certificates: &CertificateMetrics,
    life: &CancellationToken,
) -> Result<Config, RunError> {
    let tokens = match (args.account(), ground) {
        (Some(account), Some(ground)) => Some(Reviewer {
            account,
            kube: ground.kube.clone(),
        }),
        (Some(_), None) => {
            let why = "tokens are reviewed by an API server: --agent-service-account does not go with --standalone";
            return Err(RunError::Flags(why.into()));
        }
        (None, _) => None,
    };
    let frontends = match (
        args.frontend_port(),
        &args.server_cert,
        &args.server_key,
        &args.server_ca_cert,
    ) {
        (0, ..) => None,
        (port, Some(cert), Some(key), Some(ca)) => {
            let files = GivenFiles {
                cert: cert.clone(),
                key: key.clone(),
                ca: ca.clone(),
            };
            let kept = follow_files(files, Identity::Server, certificates.clone(), life.clone())?;
            Some((port, kept.under(args.policy())))
        }
        (port, ..) => Some((port, identities.server.clone())),
    };
    let id = args.server_id.clone().unwrap_or_else(election::uuid);
    let leases = match (ground, args.enable_lease_controller, args.peer_address()) {
        (Some(ground), true, Some(address)) => Some((
            ground.kube.clone(),
            leases::Settings {
                namespace: args.lease_namespace.clone(),
                label: args.lease_label.clone(),
                id: id.clone(),
                address,
                renew: leases::RENEW,
            },
        )),
        (Some(_), true, None) => {
            tracing::warn!(
                "other instances are not told of this one: set $POD_IP or --peer-address"
            );
            None
        }
        _ => None,
    };
    let in_cluster = ground.map(|_| published::SERVICE.to_owned());
    Ok(Config {
        agents: args.agents(),
        quic: args.quic(),
        frontends: frontends.map(|(port, credentials)| FrontendPort {
            address: (args.server_bind_address.unwrap_or(args.bind_address), port).into(),
            credentials,
        }),
        unix: args.uds_name.clone().map(|path| UnixSocket {
            path,
            replace: args.delete_existing_uds_file,
        }),
        meta: args.meta(),
        count: args.server_count,
        credentials: identities.server.clone(),
        client: identities.client.clone(),
        authority: identities.authority.clone(),
        guards: Guards {
            agents: args.trusted_agents(),
            frontends: args.frontends.clone(),
            peers: args.peer_identities.clone(),
            tokens,
        },
        ways: args.ways(),
        cloud: args.cloud_allow.clone(),
        directory: directory.clone(),
        peers: args.peers.clone(),
        peer_name: args
            .peer_server_name
            .clone()
            .or(in_cluster.filter(|_| leases.is_some())),
        leases,
        options: Options {
            dial: args.backend_dial_timeout.min(Options::default().dial),
            quiet: args.keepalive_time,
            drain: args.graceful_shutdown_timeout,
            ..Options::default()
        },
        most_connections: args.max_connections.saturating_add(4096),
        drain: args.graceful_shutdown_timeout,
        now: yurt_pki::renewal::now,
        id,
    })
}

/// What runs beside the server in a cluster.
struct Beside<'a> {
    args: &'a ServerArgs,
    identities: &'a Identities,
    context: Arc<Context>,
    directory: Arc<dyn Directory>,
    metrics: &'a Metrics,
    tasks: &'a TaskTracker,
    life: &'a CancellationToken,
    shutdown: &'a CancellationToken,
}

impl Beside<'_> {
    async fn start(
        &self,
        ground: &Ground,
        tunnels: Arc<dyn crate::Tunnels>,
    ) -> Result<(), RunError> {
        let Self { args, life, .. } = *self;
        let listeners = args.interceptor.listen(args.bind_address).await;
        let listeners = listeners.map_err(RunError::Interceptor)?;
        let address = |listener: &tokio::net::TcpListener| {
            listener.local_addr().map_err(RunError::Interceptor)
        };
        let (secure, insecure) = (address(&listeners.secure)?, address(&listeners.insecure)?);
        let settings = steering::settings::follow(&self.context, insecure.port());
        let counted = interceptor::Metrics::default();
        let steered = steering::Metrics::default();
        {
            let registry = self.metrics.registry.lock();
            let mut registry = registry.unwrap_or_else(PoisonError::into_inner);
            counted.register(&mut registry);
            steered.register(&mut registry);
        }
        let config = interceptor::Config {
            listeners,
            tls: inviting(&self.identities.server, &[b"h2", b"http/1.1"], life)?,
            kubelets: self.kubelets(ground)?,
            callers: args.interceptor.callers(),
            settings: settings.clone(),
            metrics: counted,
            max_requests: interceptor::Config::MAX_REQUESTS,
            drain: args.graceful_shutdown_timeout,
        };
        if let Some(pods) = args.steering.pods(host_addresses(args).collect()) {
            let (directory, shutdown) = (self.directory.clone(), self.shutdown.clone());
            let leading = pods.run(directory, tunnels.clone(), shutdown, life.clone());
            self.tasks.spawn(leading);
        }
        let (directory, shutdown) = (self.directory.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            if let Err(error) = interceptor::run(config, tunnels, directory, shutdown).await {
                tracing::error!(%error, "callers of kubelets are not served any more");
            }
        });
        if args.steering.enable_iptables {
            let config = steering::Config {
                targets: steering::Targets::new(secure, insecure),
                settings: settings.clone(),
                backend: args.steering.steering_backend,
                period: args.steering.rules_period(),
                tools: steering::Tools::default(),
                metrics: steered.clone(),
            };
            let (directory, shutdown) = (self.directory.clone(), self.shutdown.clone());
            self.tasks.spawn(async move {
                // Everything else works without.
                if let Err(error) = steering::run(config, directory, shutdown).await {
                    tracing::error!(%error, "steering");
                }
            });
        }
        if args.steering.enable_dns_controller {
            let config = steering::NamesConfig {
                settings,
                secure_port: secure.port(),
                insecure_port: insecure.port(),
                period: args.steering.names_period(),
                timing: Timing::default(),
                metrics: steered,
            };
            let (context, directory) = (self.context.clone(), self.directory.clone());
            let shutdown = self.shutdown.clone();
            self.tasks
                .spawn(steering::keep_names(config, context, directory, shutdown));
        }
        Ok(())
    }

    /// TLS towards kubelets, as the client certificate is renewed.
    fn kubelets(&self, ground: &Ground) -> Result<Arc<ArcSwap<interceptor::KubeletTls>>, RunError> {
        let args = self.args.interceptor.clone();
        let cluster = ground.cluster.clone();
        let make = move |kept: &Kept| {
            let ca = cluster.authorities();
            let now = kept.current();
            args.kubelet_tls(ca.as_deref(), now.pair.as_ref().map(|pair| &pair.pem))
        };
        let mut kept = self.identities.client.clone();
        let used = Arc::new(ArcSwap::from_pointee(make(&kept)?));
        let swapped = used.clone();
        let following = async move {
            loop {
                kept.changed().await;
                match make(&kept) {
                    Ok(tls) => swapped.store(Arc::new(tls)),
                    Err(error) => tracing::warn!(%error, "kubelets are spoken to as before"),
                }
            }
        };
        tokio::spawn(self.life.clone().run_until_cancelled_owned(following));
        Ok(used)
    }
}
