//! One node of a lab: a link to the API server, a hub behind it and a simulated kubelet behind that.

use super::{ADMIN_PORT, Cluster, Config, LabError, POOL_PORT, PROXY_PORT, TLS_PROXY_PORT};
use crate::{
    control::NodeStatus,
    credentials,
    directory::Directory,
    hub_process::{HubCommand, HubProcess},
    kube::Kube,
    kubeconfig::{self, Credentials},
    kubelet::{self, KubeletConfig, KubeletHandle, PortOptions, SimulatedKubelet},
    link::{Link, LinkState},
    plan::NodePlan,
    tunnel,
};
use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use yurt_api::names::labels;
use yurt_pki::{Ca, KeyPairPem};

/// One node of a running lab.
#[derive(Debug)]
pub struct Node {
    /// Name, pool and address.
    pub plan: NodePlan,
    /// To the API server.
    pub(super) link: Link,
    /// To the tunnel's server.
    pub(super) tunnel: Link,
    pub(super) hub: HubProcess,
    pub(super) kubelet: KubeletHandle,
    pub(super) admin: Kube,
}

impl Node {
    /// Whatever the node has to do with the cloud goes over one wire.
    pub(super) fn set_links(&self, state: LinkState) {
        self.link.set(state);
        self.tunnel.set(state);
    }

    /// What the node is doing, by its links, its process and its hub's own word; `connected` is its tunnel agent.
    pub(super) async fn status(&self, connected: bool) -> NodeStatus {
        let hub = self.admin.get("/v1/status").await.ok();
        let counters = self.link.counters();
        let pid = self.hub.pid();
        NodeStatus {
            name: self.plan.name.clone(),
            pool: self.plan.pool.clone(),
            address: self.plan.address.to_string(),
            link: self.link.state().to_string(),
            hub_pid: pid,
            hub_restarts: self.hub.restarts(),
            hub: match &hub {
                Some(status) => status["mode"].as_str().unwrap_or("unknown").to_owned(),
                None => "down".into(),
            },
            pool_role: hub
                .as_ref()
                .and_then(|s| s["pool"]["role"].as_str())
                .unwrap_or_default()
                .to_owned(),
            journal: hub
                .as_ref()
                .and_then(|s| s["journal"]["pending"].as_u64())
                .unwrap_or(0),
            hub_memory: yurt_telemetry::process_usage(pid).map_or(0, |u| u.resident_bytes),
            bytes_from_cloud: counters.from_target,
            bytes_to_cloud: counters.to_target,
            tunnel: connected,
            bytes_to_tunnel: self.tunnel.counters().to_target,
        }
    }
}

/// What a node proves itself with, and where its hub finds it.
pub(crate) struct Identity {
    pub(crate) dir: PathBuf,
    pub(crate) client: KeyPairPem,
    pub(crate) serving: KeyPairPem,
}

/// Makes the directory of a node with its certificates.
pub(crate) fn identity(
    directory: &Directory,
    ca: &Ca,
    plan: &NodePlan,
) -> Result<Identity, LabError> {
    let dir = directory.create(Path::new("nodes").join(&plan.name))?;
    directory.create(dir.join("pki"))?;
    let user = format!("system:node:{}", plan.name);
    let client = credentials::client(ca, &user, &["openyurt:yurthub", "system:nodes"])?;
    let addresses = [plan.address.into()];
    let serving = credentials::serving(ca, &user, &["system:nodes"], &[], &addresses)?;
    directory.write(dir.join("pki/ca.crt"), &ca.cert_pem())?;
    for (name, pair) in [("client", &client), ("server", &serving)] {
        directory.write(dir.join(format!("pki/{name}.crt")), &pair.cert)?;
        directory.write(dir.join(format!("pki/{name}.key")), &pair.key)?;
    }
    Ok(Identity {
        dir,
        client,
        serving,
    })
}

impl Cluster {
    /// Starts one of the `nodes`: its link, its hub and its kubelet.
    pub(super) async fn start_node(
        &mut self,
        config: &Config,
        ca: &Ca,
        plan: &NodePlan,
        nodes: &[NodePlan],
        api: SocketAddr,
    ) -> Result<(), LabError> {
        let Identity {
            dir,
            client,
            serving,
        } = identity(&self.directory, ca, plan)?;
        let server = format!("https://{}:{TLS_PROXY_PORT}", plan.address);
        self.directory.write(
            dir.join("kubeconfig"),
            &kubeconfig::render(
                &plan.name,
                &server,
                &self.ca,
                &Credentials::Token(&self.manifest.admin_token),
            ),
        )?;
        self.directory.write(
            dir.join("pool.kubeconfig"),
            &pool_kubeconfig(plan, nodes, &self.ca, &client),
        )?;

        let listen = SocketAddr::from((plan.address, api.port()));
        let link = link_to(listen, api).await?;
        let to_tunnel = SocketAddr::from((plan.address, tunnel::PORT));
        let tunnel = link_to(to_tunnel, self.tunnel.address()).await?;
        let hub = HubProcess::start(
            HubCommand {
                program: config.program.clone(),
                arguments: hub_arguments(plan, config.heartbeat_seconds, &dir, listen),
                log: dir.join("hub.log"),
            },
            self.shutdown.clone(),
        );
        let mut kubelet =
            KubeletConfig::new(&plan.name, &format!("http://{}:{PROXY_PORT}", plan.address));
        kubelet
            .labels
            .push((labels::NODE_POOL.into(), plan.pool.clone()));
        kubelet
            .labels
            .push((labels::EDGE_WORKER.into(), "true".into()));
        kubelet.address = IpAddr::V4(plan.address);
        let address = SocketAddr::from((plan.address, kubelet::PORT));
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.map_err(|source| LabError::Listen {
            what: "the node's kubelet",
            address,
            source,
        })?;
        let (handle, run) = SimulatedKubelet::start(kubelet, self.shutdown.clone());
        let options = PortOptions {
            serving,
            client_ca: self.ca.clone(),
            websockets: true,
        };
        // Ends with the token, as the kubelet does.
        drop(handle.serve(listener, options, self.shutdown.clone())?);
        self.kubelets.push(run);
        let agent = tunnel::join(
            &self.directory,
            ca,
            plan,
            to_tunnel,
            handle.clone(),
            self.shutdown.clone(),
        );
        self.kubelets.push(agent?);
        let admin = format!("{}:{ADMIN_PORT}", plan.address);
        let admin = Kube::new(&admin, None, None, Duration::from_secs(2));
        self.nodes.push(Node {
            plan: plan.clone(),
            link,
            tunnel,
            hub,
            kubelet: handle,
            admin,
        });
        Ok(())
    }
}

async fn link_to(listen: SocketAddr, target: SocketAddr) -> Result<Link, LabError> {
    let link = Link::start(listen, target).await;
    link.map_err(|source| LabError::Listen {
        what: "the node's link",
        address: listen,
        source,
    })
}

/// With it the node asks the hubs of its pool, a context for each; its own hub is the current one.
fn pool_kubeconfig(plan: &NodePlan, nodes: &[NodePlan], ca: &str, client: &KeyPairPem) -> String {
    let others = nodes
        .iter()
        .filter(|node| node.pool == plan.pool && node.name != plan.name);
    let servers: Vec<_> = std::iter::once(plan)
        .chain(others)
        .map(|node| {
            (
                node.name.as_str(),
                format!("https://{}:{POOL_PORT}", node.address),
            )
        })
        .collect();
    let credentials = Credentials::Certificate {
        cert: &client.cert,
        key: &client.key,
    };
    kubeconfig::contexts(&servers, &plan.name, ca, &credentials)
}

/// The command line of a node's hub.
pub(crate) fn hub_arguments(
    plan: &NodePlan,
    heartbeat_seconds: u32,
    dir: &Path,
    server: SocketAddr,
) -> Vec<OsString> {
    let address = plan.address.to_string();
    let mut arguments: Vec<OsString> = vec!["hub".into()];
    let mut flag = |name: &str, value: OsString| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        arguments.push(argument);
    };
    flag("node-name", (&plan.name).into());
    flag("nodepool-name", (&plan.pool).into());
    flag("node-ip", address.clone().into());
    flag("server-addr", format!("https://{server}").into());
    flag("bind-address", address.clone().into());
    flag("bind-proxy-address", address.into());
    flag("enable-dummy-if", "false".into());
    flag(
        "heartbeat-interval-seconds",
        heartbeat_seconds.to_string().into(),
    );
    flag("root-dir", dir.into());
    flag("disk-cache-path", dir.join("cache").into());
    flag("static-pod-path", dir.join("manifests").into());
    flag("ca-file", dir.join("pki/ca.crt").into());
    flag("client-cert", dir.join("pki/client.crt").into());
    flag("client-key", dir.join("pki/client.key").into());
    flag("tls-cert", dir.join("pki/server.crt").into());
    flag("tls-key", dir.join("pki/server.key").into());
    arguments
}
