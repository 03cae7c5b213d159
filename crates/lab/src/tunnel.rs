//! The tunnel of a lab: a server beside the API server, and an agent on every node that dials it over the node's link.
//!
//! Both run in this process: what they do to each other is TLS over the link all the same, an agent keeps nothing that a crash could
//! lose, and a process for each would cost every node of a lab more memory than its hub's cache. (Processes are what `yurt bench tunnel`
//! and the system tests of the tunnel start.)

use crate::{
    cluster::LabError,
    credentials,
    directory::{Directory, DirectoryError},
    egress::Egress,
    kube::Kube,
    kubelet::KubeletHandle,
    plan::NodePlan,
};
use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_pki::{Ca, Profile, store::Pair};
use yurt_transport::Dialer;
use yurt_tunnel::{
    Identifiers, Options,
    agent::{self, AgentConfig, Authority, address::ServerAddress, fleet::Policy},
    allow::{Bounds, NodeScope},
    certificates::{Credentials, GivenFiles, Kept},
    directory::Known,
    network::Network,
    server::{self, Config, Server, UnixSocket, gate::Guards, switchboard::Ways},
};

/// Where agents find the server, at its own address and at each node's link.
pub(crate) const PORT: u16 = 10262;
const SERVER_META_PORT: u16 = 10265;
const AGENT_META_PORT: u16 = 10266;
/// The frontend, in the lab's directory: `yurt tunnel status --uds DIR/tunnel.sock`.
const SOCKET: &str = "tunnel.sock";
/// A stopping lab waits for nobody.
const DRAIN: Duration = Duration::from_millis(200);
/// Until an agent is started again after an error.
const PAUSE: Duration = Duration::from_secs(1);
const CERTIFICATE_DAYS: u32 = 365;

/// The frontend's socket. A path of at most 107 bytes is all the kernel takes: the directory is named by a descriptor.
#[derive(Debug)]
pub(crate) struct Socket {
    directory: File,
}

impl Socket {
    pub(crate) fn of(directory: &Directory) -> Result<Self, DirectoryError> {
        let path = directory.root().to_owned();
        let opened = File::open(&path);
        Ok(Self {
            directory: opened.map_err(|source| DirectoryError::Io { path, source })?,
        })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/self/fd/{}/{SOCKET}",
            self.directory.as_raw_fd()
        ))
    }

    /// The API server's way through it.
    pub(crate) fn egress(&self) -> Arc<dyn Dialer> {
        Arc::new(Egress::new(self.path()))
    }
}

/// The server of a lab at work.
#[derive(Debug)]
pub(crate) struct Tunnel {
    server: Server,
    tasks: TaskTracker,
    _socket: Socket,
}

impl Tunnel {
    /// Starts the server on an address of the lab's. Agents come by links on the nodes' addresses, so its certificate is for those.
    pub(crate) async fn start(
        socket: Socket,
        address: IpAddr,
        ca: &Ca,
        nodes: &[NodePlan],
        kube: &Kube,
        shutdown: &CancellationToken,
    ) -> Result<Self, LabError> {
        let mut addresses = vec![address];
        addresses.extend(nodes.iter().map(|node| IpAddr::V4(node.address)));
        let serving = credentials::serving(
            ca,
            "system:node:tunnel-server",
            &["system:nodes"],
            &["x-tunnel-server-svc.kube-system.svc"],
            &addresses,
        )?;
        let kept = Kept::fixed(Credentials {
            pair: Some(Pair::of(serving)?),
            ca: ca.cert_pem(),
        });
        let tasks = TaskTracker::new();
        let known = Arc::new(Known::default());
        known.follow(kube, &tasks, shutdown);
        let config = Config {
            id: "lab".into(),
            count: 1,
            agents: SocketAddr::new(address, PORT),
            quic: None,
            frontends: None,
            unix: Some(UnixSocket {
                path: socket.path(),
                replace: true,
            }),
            meta: Some(SocketAddr::new(address, SERVER_META_PORT)),
            credentials: kept.clone(),
            client: kept,
            guards: Guards {
                agents: Vec::new(),
                frontends: Vec::new(),
                peers: Vec::new(),
                tokens: None,
            },
            ways: Ways::default(),
            cloud: Vec::new(),
            authority: None,
            directory: known,
            leases: None,
            peers: Vec::new(),
            peer_name: None,
            options: Options::default(),
            most_connections: 4096,
            drain: DRAIN,
            now: yurt_pki::renewal::now,
        };
        let telemetry = yurt_telemetry::Metrics::new("yurt-tunnel-server");
        let server = server::start(config, &telemetry, shutdown.clone()).await?;
        Ok(Self {
            server,
            tasks,
            _socket: socket,
        })
    }

    /// Where agents come in.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.agents
    }

    /// Whether a node's agent is connected.
    pub(crate) fn reaches(&self, node: &str) -> bool {
        !self.server.switchboard.registry().links(node).is_empty()
    }

    /// Waits for its end, which the lab's shutdown has begun.
    pub(crate) async fn stopped(self) {
        self.server.stopped().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs the agent of a node until `shutdown`, by the link to the server.
pub(crate) fn join(
    directory: &Directory,
    ca: &Ca,
    plan: &NodePlan,
    link: SocketAddr,
    kubelet: KubeletHandle,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, LabError> {
    let pair = ca.issue(&Profile {
        common_name: "tunnel-agent-client".into(),
        organizations: vec!["openyurt:yurttunnel".into()],
        dns: vec![plan.name.clone()],
        ips: vec![plan.address.into()],
        client: true,
        days: CERTIFICATE_DAYS,
        ..Profile::default()
    })?;
    let pki = directory.node(&plan.name).join("pki");
    let file = |name: &str| pki.join(name);
    let server = ServerAddress {
        host: link.ip().to_string(),
        port: Some(link.port()),
        name: None,
    };
    let (cert, key) = (file("tunnel-agent.crt"), file("tunnel-agent.key"));
    directory.write(&cert, &pair.cert)?;
    directory.write(&key, &pair.key)?;
    let (base, prefix) = kubelet.pod_network();
    let config = AgentConfig {
        node: plan.name.clone(),
        identifiers: Identifiers {
            addresses: vec![plan.address.into()],
            hosts: vec![plan.name.clone()],
            ..Identifiers::default()
        },
        servers: vec![server],
        policy: Policy::All,
        proxy: None,
        authority: Authority::Files(GivenFiles {
            cert,
            key,
            ca: file("ca.crt"),
        }),
        way: None,
        namespace: "kube-system".into(),
        leases: None,
        token: None,
        protocols: Vec::new(),
        scope: NodeScope {
            addresses: vec![plan.address.into()],
            pod_networks: Network::new(base, prefix).into_iter().collect(),
            localhost_ports: Vec::new(),
        },
        default_allow: true,
        allow: Vec::new(),
        bounds: Bounds::default(),
        drain: DRAIN,
        meta: SocketAddr::new(plan.address.into(), AGENT_META_PORT),
        known: pki,
        reverse: Default::default(),
        // On one machine nothing is lost.
        transport: yurt_tunnel::agent::beside::Transport::Tcp,
        beneath: Some(Arc::new(kubelet)),
    };
    let name = plan.name.clone();
    Ok(tokio::spawn(async move {
        while !shutdown.is_cancelled() {
            if let Err(error) = agent::run(config.clone(), shutdown.clone()).await {
                tracing::warn!(node = name, %error, "the tunnel's agent ended");
            }
            // As a service manager would.
            shutdown
                .run_until_cancelled(tokio::time::sleep(PAUSE))
                .await;
        }
    }))
}
