//! A running lab: API server, nodes, links; commands on them.

mod node;

pub use node::Node;
pub(crate) use node::{hub_arguments, identity};

use crate::{
    control::{Answer, Command, NodeStatus},
    controllers::Controllers,
    credentials::{self, ADMIN, MASTERS},
    directory::{Directory, DirectoryError, Manifest},
    kube::{Kube, KubeError},
    light_nodes::LightNodes,
    link::LinkState,
    manager,
    plan::{self, LightNode, NodePlan, Pools},
    tunnel::{self, Tunnel},
};
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{Kubelets, authn::User};
use yurt_controller::Context;
use yurt_controlplane::{NodeMonitor, Settings};
use yurt_pki::{Ca, PkiError};
use yurt_transport::Dialer;
use yurt_tunnel::server::ServerError;

/// The hub's proxy port.
pub const PROXY_PORT: u16 = 10261;
/// The hub's TLS proxy port.
pub const TLS_PROXY_PORT: u16 = 10268;
/// The hub's admin port.
pub const ADMIN_PORT: u16 = 10267;
/// The hub's port for the other nodes of its pool.
pub const POOL_PORT: u16 = 10269;
/// Claimed on `127.<subnet>.0.1`, so that two labs on one machine never share addresses.
const CLAIM_PORT: u16 = 10260;
/// How long the manager may take to serve.
const MANAGER_PATIENCE: Duration = Duration::from_secs(30);
/// What to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The pools and their sizes.
    pub pools: Pools,
    /// The API server's port on 127.0.0.1; 0 for any free one.
    pub port: u16,
    /// The `yurt` binary that runs the hubs.
    pub program: PathBuf,
    /// The controllers that run.
    pub controllers: Controllers,
    /// Times of the node controllers.
    pub node_monitor: NodeMonitor,
    /// Nodes without hubs.
    pub light_nodes: Vec<LightNode>,
    /// How often hubs renew their nodes' leases, seconds.
    pub heartbeat_seconds: u32,
}

/// Why a lab does not start or run.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The API server.
    #[error("API server: {0}")]
    ApiServer(#[from] yurt_apiserver::StartError),
    /// A call to it.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// An address is taken.
    #[error(
        "{what} cannot listen on {address}: {source}; stop what uses it or choose another --port"
    )]
    Listen {
        /// Who.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No loopback subnet is free.
    #[error("no free loopback subnet 127.N.0.0/16 for the nodes: stop another lab")]
    NoSubnet,
    /// The nodes did not become ready.
    #[error("not Ready after {after:?}: {nodes}; see {log}")]
    NotReady {
        /// How long.
        after: Duration,
        /// Which.
        nodes: String,
        /// A hub's log.
        log: PathBuf,
    },
    /// Light nodes did not join.
    #[error(
        "only {registered} light nodes joined in {after:?}: this machine is too small for so many"
    )]
    LightNotReady {
        /// How long.
        after: Duration,
        /// How many did.
        registered: usize,
    },
    /// The manager does not serve.
    #[error("the manager is not ready after {0:?}: another program may have its ports")]
    Manager(Duration),
    /// Control socket.
    #[error("control socket: {0}")]
    Control(std::io::Error),
    /// The tunnel's server does not start.
    #[error("tunnel: {0}")]
    Tunnel(#[from] ServerError),
    /// The API server ended with an error.
    #[error("API server: {0}")]
    Serve(std::io::Error),
}

/// A running lab.
#[derive(Debug)]
pub struct Cluster {
    directory: Directory,
    manifest: Manifest,
    ca: String,
    nodes: Vec<Node>,
    light: Option<LightNodes>,
    kube: Kube,
    shutdown: CancellationToken,
    api: yurt_apiserver::Running,
    manager: Option<Manager>,
    kubelets: Vec<tokio::task::JoinHandle<()>>,
    tunnel: Tunnel,
    _claim: TcpListener,
}

/// The manager at work.
#[derive(Debug)]
struct Manager {
    at: manager::Address,
    task: tokio::task::JoinHandle<()>,
}

impl Manager {
    /// Waits until it serves: what it completes, checks and converts is not to depend on who is first.
    async fn ready(&self, kube: &Kube) -> Result<(), LabError> {
        let deadline = tokio::time::Instant::now() + MANAGER_PATIENCE;
        while !self.at.is_ready(kube).await? {
            if tokio::time::Instant::now() >= deadline {
                return Err(LabError::Manager(MANAGER_PATIENCE));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Cluster {
    /// Starts everything and returns when hubs and kubelets are under way; `say` is told of each step.
    pub async fn start(config: &Config, say: &mut dyn FnMut(&str)) -> Result<Self, LabError> {
        let directory = Directory::lock(&config.data_dir)?;
        let earlier = directory.manifest(&config.pools)?;
        let (claim, subnet) = claim_subnet(earlier.as_ref().map(|m| m.subnet))?;
        let nodes = plan::nodes(&config.pools, subnet);
        let ca = credentials::certificate_authority(&directory)?;
        let wanted_port = match &earlier {
            Some(manifest) if config.port == 0 => manifest.port,
            _ => config.port,
        };

        let shutdown = CancellationToken::new();
        let admin_token = match &earlier {
            Some(manifest) => manifest.admin_token.clone(),
            None => credentials::random_token()?,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, wanted_port));
        let controller_token = credentials::random_token()?;
        let manager_token = credentials::random_token()?;
        let tokens = vec![
            (admin_token.clone(), master(ADMIN)),
            (manager_token.clone(), master(manager::USER)),
            // Native controllers are part of the control plane: nobody grants them anything.
            (
                controller_token.clone(),
                master("system:kube-controller-manager"),
            ),
        ];
        let base = yurt_apiserver::Config {
            tokens,
            controllers: config.controllers.native.within_server(),
            ..yurt_apiserver::Config::default()
        };
        let socket = tunnel::Socket::of(&directory)?;
        let starting = start_api_server(
            &directory,
            &ca,
            address,
            &nodes,
            base,
            socket.egress(),
            &shutdown,
        );
        let api = starting.await?;
        let address = api.addr();
        say(&format!("API server on https://{address}"));
        let manifest = Manifest {
            pools: config.pools.to_string(),
            subnet,
            port: address.port(),
            admin_token,
        };
        directory.remember(&manifest)?;

        let ca_pem = ca.cert_pem();
        let admin = credentials::client(&ca, ADMIN, &[MASTERS])?;
        let server = format!("https://{address}");
        directory.write(
            "admin.kubeconfig",
            &credentials::kubeconfig(&ca, &admin, "yurt-lab", &server),
        )?;
        let tls = yurt_pki::client_config(&ca_pem, Some(&admin), &["h2", "http/1.1"])?;
        let kube = Kube::new(
            &address.to_string(),
            Some(tls),
            None,
            Duration::from_secs(10),
        );

        crate::rbac::install(&kube).await?;
        let light_pools = config
            .light_nodes
            .iter()
            .filter_map(|light| light.pool.as_deref());
        let pools = config.pools.iter().map(|(pool, _)| pool).chain(light_pools);
        crate::pools::define(&kube).await?;
        let call = api.in_process().into_call();
        let manager = config.controllers.have_manager().then(|| {
            let kube = Kube::in_process(call.clone(), &manager_token, Duration::from_secs(10));
            let at = manager::Address(Ipv4Addr::new(127, subnet, 0, 1).into());
            let keep = at.keep(kube, config.controllers.clone(), shutdown.clone());
            Manager {
                at,
                task: tokio::spawn(keep),
            }
        });
        if let Some(manager) = &manager {
            manager.ready(&kube).await?;
        }
        crate::pools::install(&kube, &ca, &pools.collect()).await?;
        crate::control_plane::write(&directory, &ca, &server)?;
        let settings = Settings {
            nodes: config.node_monitor,
            signing: Some(ca.to_pem()),
        };
        let controller = Kube::in_process(call, &controller_token, Duration::from_secs(10));
        let context = Context::new(controller, shutdown.clone());
        yurt_controlplane::start_in(&config.controllers.native, &settings, &context);

        let own = Ipv4Addr::new(127, subnet, 0, 1).into();
        let tunnel = Tunnel::start(socket, own, &ca, &nodes, &kube, &shutdown).await?;
        let light = match config.light_nodes.len() {
            0 => None,
            count => {
                say(&format!("{count} light nodes are joining"));
                Some(LightNodes::start(config.light_nodes.clone(), &context))
            }
        };

        let mut cluster = Self {
            directory,
            manifest,
            ca: ca_pem,
            nodes: Vec::new(),
            light,
            kube,
            shutdown,
            api,
            manager,
            kubelets: Vec::new(),
            tunnel,
            _claim: claim,
        };
        for plan in &nodes {
            cluster
                .start_node(config, &ca, plan, &nodes, address)
                .await?;
        }
        say(&format!(
            "{} hubs and kubelets started",
            cluster.nodes.len()
        ));
        Ok(cluster)
    }

    /// The administrator's client, directly at the API server.
    pub fn kube(&self) -> &Kube {
        &self.kube
    }

    /// An administrator's client through a node's hub, as that node's kubeconfig has it.
    pub fn through(&self, node: &str, timeout: Duration) -> Option<Kube> {
        let node = self.nodes.iter().find(|n| n.plan.name == node)?;
        let tls = yurt_pki::client_config(&self.ca, None, &["http/1.1"]).ok()?;
        let authority = format!("{}:{TLS_PROXY_PORT}", node.plan.address);
        Some(Kube::new(
            &authority,
            Some(tls),
            Some(&self.manifest.admin_token),
            timeout,
        ))
    }

    /// The data directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Waits until every node is Ready in the API server.
    pub async fn ready(&self, patience: Duration) -> Result<(), LabError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let nodes = self.kube.get("/api/v1/nodes").await?;
            let waiting: Vec<&str> = self
                .nodes
                .iter()
                .map(|n| n.plan.name.as_str())
                .filter(|name| !is_ready(&nodes, name))
                .collect();
            let Some(first) = waiting.first() else {
                return self.light_ready(patience).await;
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(LabError::NotReady {
                    after: patience,
                    log: self.directory.node(first).join("hub.log"),
                    nodes: waiting.join(", "),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the light nodes have joined, which takes the longer the more they are.
    async fn light_ready(&self, patience: Duration) -> Result<(), LabError> {
        let Some(light) = &self.light else {
            return Ok(());
        };
        light
            .registered(patience * 5)
            .await
            .map_err(|registered| LabError::LightNotReady {
                after: patience * 5,
                registered,
            })
    }

    /// Carries out a command.
    pub async fn command(&self, command: Command) -> Answer {
        let target = match &command {
            Command::Cut { target, .. }
            | Command::Heal { target }
            | Command::Slow { target, .. }
            | Command::Kill { target }
            | Command::Reboot { target }
            | Command::Status { target } => target.as_str(),
            Command::Touch { pod } => return self.touch(pod).await,
        };
        let plans: Vec<NodePlan> = self.nodes.iter().map(|n| n.plan.clone()).collect();
        let chosen = plan::select(&plans, target);
        let chosen: Vec<&Node> = self
            .nodes
            .iter()
            .filter(|n| target.is_empty() || chosen.iter().any(|c| c.name == n.plan.name))
            .collect();
        if chosen.is_empty() {
            let names: Vec<&str> = plans.iter().map(|n| n.name.as_str()).collect();
            return Answer::Refused(format!(
                "no node or pool `{target}`; nodes are {}",
                names.join(", ")
            ));
        }
        for node in &chosen {
            match &command {
                Command::Cut { reset: false, .. } => node.set_links(LinkState::Cut),
                Command::Cut { reset: true, .. } => node.set_links(LinkState::Reset),
                Command::Heal { .. } => node.set_links(LinkState::Up),
                Command::Slow {
                    delay_ms,
                    bytes_per_second,
                    loss_percent,
                    ..
                } => {
                    let delay = Duration::from_millis(*delay_ms);
                    node.set_links(match *loss_percent {
                        0 => LinkState::Slow {
                            delay,
                            bytes_per_second: Some(*bytes_per_second).filter(|rate| *rate > 0),
                        },
                        loss_percent => LinkState::Lossy {
                            delay,
                            loss_percent,
                        },
                    });
                }
                Command::Kill { .. } => {
                    node.hub.kill();
                }
                Command::Reboot { .. } => {
                    node.hub.kill();
                    node.kubelet.reboot();
                }
                Command::Status { .. } | Command::Touch { .. } => {}
            }
        }
        let mut statuses = Vec::with_capacity(chosen.len());
        for node in chosen {
            statuses.push(self.status(node).await);
        }
        Answer::Nodes(statuses)
    }

    /// What a node is doing.
    pub(crate) async fn status(&self, node: &Node) -> NodeStatus {
        let connected = self.tunnel.reaches(&node.plan.name);
        node.status(connected).await
    }

    async fn touch(&self, pod: &str) -> Answer {
        let Some((namespace, name)) = pod.split_once('/') else {
            return Answer::Refused(format!("`{pod}` is not namespace/name"));
        };
        for node in &self.nodes {
            if node.kubelet.touch_pod(namespace, name) {
                return Answer::Nodes(vec![self.status(node).await]);
            }
        }
        Answer::Refused(format!("no simulated kubelet runs pod {pod}"))
    }

    /// Stops everything, hubs first drained.
    pub async fn stop(self) {
        self.shutdown.cancel();
        for node in self.nodes {
            node.hub.stopped().await;
        }
        self.tunnel.stopped().await;
        for task in self
            .kubelets
            .into_iter()
            .chain(self.manager.map(|manager| manager.task))
        {
            // Ends with the token.
            let _ = task.await;
        }
        if let Err(error) = self.api.stopped().await {
            tracing::error!(%error, "API server");
        }
    }
}

fn is_ready(nodes: &Value, name: &str) -> bool {
    let items = nodes["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    items
        .iter()
        .filter(|node| node["metadata"]["name"] == name)
        .any(|node| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.is_some_and(|conditions| {
                conditions
                    .iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
        })
}

/// Holds `127.<subnet>.0.0/16` for this process: the one of an earlier lab if it is free.
pub(crate) fn claim_subnet(earlier: Option<u8>) -> Result<(TcpListener, u8), LabError> {
    let claim = |subnet: u8| TcpListener::bind((Ipv4Addr::new(127, subnet, 0, 1), CLAIM_PORT));
    earlier
        .into_iter()
        .chain(10..=250)
        .find_map(|subnet| claim(subnet).ok().map(|listener| (listener, subnet)))
        .ok_or(LabError::NoSubnet)
}

fn master(name: &str) -> User {
    User {
        name: name.into(),
        groups: vec![MASTERS.into(), "system:authenticated".into()],
        ..User::default()
    }
}

async fn start_api_server(
    directory: &Directory,
    ca: &Ca,
    address: SocketAddr,
    nodes: &[NodePlan],
    base: yurt_apiserver::Config,
    dialer: Arc<dyn Dialer>,
    shutdown: &CancellationToken,
) -> Result<yurt_apiserver::Running, LabError> {
    let mut addresses = vec![address.ip()];
    addresses.extend(nodes.iter().map(|node| IpAddr::V4(node.address)));
    let serving = credentials::serving(ca, "kube-apiserver", &[], &["localhost"], &addresses)?;
    let kubelet_client = credentials::client(ca, "kube-apiserver-kubelet-client", &[MASTERS])?;
    let config = yurt_apiserver::Config {
        data_dir: Some(directory.create("apiserver")?),
        listen: address,
        tls: Some(yurt_apiserver::Tls {
            serving,
            client_ca: Some(ca.cert_pem()),
        }),
        root_ca: Some(ca.cert_pem()),
        kubelets: Kubelets {
            ca: Some(ca.cert_pem()),
            client: Some(kubelet_client),
            // The names of simulated nodes are in no DNS.
            preferred_addresses: ["InternalIP", "ExternalIP", "Hostname"]
                .map(str::to_owned)
                .into(),
            dialer,
            ..Kubelets::default()
        },
        ..base
    };
    Ok(yurt_apiserver::ApiServer::start(config, shutdown.clone()).await?)
}
