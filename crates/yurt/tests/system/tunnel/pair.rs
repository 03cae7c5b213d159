//! A server and an agent as processes, and the certificates they need.

use crate::{
    fixture::{eventually, free_port, yurt},
    real_node::Service,
};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use yurt_controller::kubeconfig::{self, Credentials};
use yurt_pki::{Ca, KeyPairPem, Profile};

/// How long open connections of a server that stops may go on.
pub(super) const GRACE: Duration = Duration::from_secs(8);

/// The agent's node.
pub(super) const AGENT_NODE: &str = "edge-1";

/// A CA, with `ca.crt` and what it issued in a directory.
#[derive(Debug)]
pub(super) struct Authority {
    ca: Ca,
    dir: PathBuf,
}

impl Authority {
    pub(super) fn new(dir: &Path) -> Self {
        let ca = Ca::new("system-test", 2).unwrap();
        std::fs::write(dir.join("ca.crt"), ca.cert_pem()).unwrap();
        Self {
            ca,
            dir: dir.to_owned(),
        }
    }

    /// The CA, PEM.
    pub(super) fn ca(&self) -> String {
        self.ca.cert_pem()
    }

    fn issue(&self, file: &str, profile: Profile) {
        let pair = self.ca.issue(&Profile { days: 2, ..profile }).unwrap();
        std::fs::write(self.file(file, "crt"), &pair.cert).unwrap();
        std::fs::write(self.file(file, "key"), &pair.key).unwrap();
    }

    /// `FILE.crt` and `FILE.key` for a server of these addresses.
    pub(super) fn server(&self, file: &str, name: &str, ips: &[IpAddr]) {
        let profile = Profile {
            common_name: name.into(),
            organizations: vec!["system:nodes".into()],
            dns: vec!["localhost".into(), "kubernetes.default.svc".into()],
            ips: ips.to_vec(),
            server: true,
            ..Profile::default()
        };
        self.issue(file, profile);
    }

    /// `FILE.crt` and `FILE.key` for services.
    pub(super) fn services(&self, file: &str, dns: &[&str]) {
        let profile = Profile {
            common_name: file.into(),
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            server: true,
            ..Profile::default()
        };
        self.issue(file, profile);
    }

    /// `FILE.crt` and `FILE.key` for a user.
    pub(super) fn client(&self, file: &str, name: &str, groups: &[&str]) {
        let profile = Profile {
            common_name: name.into(),
            organizations: groups.iter().map(|group| (*group).to_owned()).collect(),
            client: true,
            ..Profile::default()
        };
        self.issue(file, profile);
    }

    /// `FILE.crt` and `FILE.key` for the agent of a node.
    pub(super) fn agent(&self, file: &str, node: &str, address: IpAddr) {
        let profile = Profile {
            common_name: "tunnel-agent-client".into(),
            organizations: vec!["openyurt:yurttunnel".into()],
            dns: vec![node.into()],
            ips: vec![address],
            client: true,
            ..Profile::default()
        };
        self.issue(file, profile);
    }

    pub(super) fn file(&self, file: &str, kind: &str) -> PathBuf {
        self.dir.join(format!("{file}.{kind}"))
    }

    /// What was issued.
    pub(super) fn pair(&self, file: &str) -> KeyPairPem {
        let read = |kind: &str| std::fs::read_to_string(self.file(file, kind)).unwrap();
        KeyPairPem {
            cert: read("crt"),
            key: read("key"),
        }
    }

    /// A kubeconfig for a user that was issued.
    pub(super) fn kubeconfig(&self, user: &str, server: &str) -> PathBuf {
        let pair = self.pair(user);
        let credentials = Credentials::Certificate {
            cert: &pair.cert,
            key: &pair.key,
        };
        let file = self.file(user, "kubeconfig");
        let text = kubeconfig::render(user, server, &self.ca(), &credentials);
        std::fs::write(&file, text).unwrap();
        file
    }
}

/// Servers that know of each other, as processes.
pub(super) struct Servers {
    dir: PathBuf,
    ports: Vec<u16>,
    /// Where frontends with certificates come in.
    pub(super) frontends: Vec<SocketAddr>,
    services: Vec<Service>,
}

impl Servers {
    pub(super) fn start(dir: &Path, authority: &Authority, count: usize) -> Self {
        Self::start_with(dir, authority, count, &["--standalone".into()])
    }

    fn start_with(dir: &Path, authority: &Authority, count: usize, arguments: &[String]) -> Self {
        let localhost = [Ipv4Addr::LOCALHOST.into()];
        authority.server("tunnel-server", "system:node:tunnel-server", &localhost);
        authority.client(
            "tunnel-peer",
            "tunnel-proxy-client",
            &["openyurt:yurttunnel"],
        );
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let frontends: Vec<SocketAddr> = (0..count)
            .map(|_| (Ipv4Addr::LOCALHOST, free_port()).into())
            .collect();
        let services = (0..count).map(|number| {
            let (dir, ports, frontend) = (dir.to_owned(), ports.clone(), frontends[number]);
            let arguments = arguments.to_vec();
            Service::start(dir.join(format!("server-{number}.log")), move || {
                let mut command = server_command(&dir, number, &ports, frontend);
                command.args(&arguments);
                command
            })
        });
        let mut servers = Self {
            dir: dir.to_owned(),
            services: services.collect(),
            ports,
            frontends: frontends.clone(),
        };
        for number in 0..count {
            servers.listens(number);
        }
        servers
    }

    fn listens(&mut self, number: usize) {
        let socket = self.socket(number);
        eventually("the server listens", || {
            self.services[number].must_run();
            UnixStream::connect(&socket).is_ok()
        });
    }

    /// Where agents come in.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let ports = self.ports.iter();
        ports
            .map(|port| (Ipv4Addr::LOCALHOST, *port).into())
            .collect()
    }

    /// The frontend of one.
    pub(super) fn socket(&self, number: usize) -> PathBuf {
        self.dir.join(format!("server-{number}.sock"))
    }

    pub(super) fn pid(&self, number: usize) -> u32 {
        self.services[number].pid()
    }

    pub(super) fn kill(&mut self, number: usize) {
        self.services[number].kill();
    }

    pub(super) fn runs(&mut self, number: usize) -> bool {
        self.services[number].runs()
    }

    /// Starts a killed one, on its old port.
    pub(super) fn again(&mut self, number: usize) {
        self.services[number].again();
        self.listens(number);
    }
}

fn server_command(dir: &Path, number: usize, ports: &[u16], frontend: SocketAddr) -> Command {
    let at = |name: &str| dir.join(name).display().to_string();
    let others = ports
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != number);
    let peers: Vec<String> = others
        .map(|(_, port)| format!("127.0.0.1:{port}"))
        .collect();
    let mut command = yurt();
    command
        .args([
            "tunnel",
            "server",
            "--bind-address=127.0.0.1",
            "--meta-port=0",
        ])
        .arg(format!("--tunnel-agent-connect-port={}", ports[number]))
        .arg(format!("--server-id=server-{number}"))
        .arg(format!("--server-port={}", frontend.port()))
        .arg("--server-bind-address=127.0.0.1")
        .arg("--frontends=system:kube-apiserver")
        .arg(format!("--graceful-shutdown-timeout={}", GRACE.as_secs()))
        .arg(format!(
            "--uds-name={}",
            at(&format!("server-{number}.sock"))
        ))
        .arg(format!("--cluster-cert={}", at("tunnel-server.crt")))
        .arg(format!("--cluster-key={}", at("tunnel-server.key")))
        .arg(format!("--cluster-ca-cert={}", at("ca.crt")));
    if !peers.is_empty() {
        command.arg(format!("--peers={}", peers.join(",")));
    }
    command
}

/// By which kubeconfigs server and agent ask an API server.
pub(super) struct Cluster {
    pub(super) server: PathBuf,
    pub(super) agent: PathBuf,
}

impl Cluster {
    fn server(&self, dir: &Path) -> Vec<String> {
        let at = |name: &str| dir.join(name).display().to_string();
        vec![
            format!("--kubeconfig={}", self.server.display()),
            format!("--proxy-client-cert={}", at("tunnel-peer.crt")),
            format!("--proxy-client-key={}", at("tunnel-peer.key")),
            "--secure-port=0".into(),
            "--insecure-port=0".into(),
            "--enable-iptables=false".into(),
            "--enable-dns-controller=false".into(),
            "--enable-lease-controller=false".into(),
        ]
    }

    fn agent(&self) -> Vec<String> {
        vec![format!("--kubeconfig={}", self.agent.display())]
    }
}

/// One server and the agent of one node.
pub(super) struct Pair {
    servers: Servers,
    agent: RefCell<Service>,
}

impl Pair {
    /// An agent for `address`; kubelets are on its usual allow-list.
    pub(super) fn start(dir: &Path, authority: &Authority, address: IpAddr) -> Self {
        Self::start_for(dir, authority, address, &[])
    }

    /// An agent that also allows some targets.
    pub(super) fn start_for(
        dir: &Path,
        authority: &Authority,
        address: IpAddr,
        targets: &[SocketAddr],
    ) -> Self {
        let mut arguments = vec!["--standalone".into()];
        arguments.extend(targets.iter().map(|to| format!("--allow={to}")));
        let servers = Servers::start(dir, authority, 1);
        Self::join(servers, dir, authority, address, arguments)
    }

    /// Both know of a cluster: where pods and services are, and what the agent's node is.
    pub(super) fn in_cluster(
        dir: &Path,
        authority: &Authority,
        address: IpAddr,
        cluster: &Cluster,
    ) -> Self {
        let servers = Servers::start_with(dir, authority, 1, &cluster.server(dir));
        Self::join(servers, dir, authority, address, cluster.agent())
    }

    fn join(
        servers: Servers,
        dir: &Path,
        authority: &Authority,
        address: IpAddr,
        arguments: Vec<String>,
    ) -> Self {
        authority.agent("tunnel-agent", AGENT_NODE, address);
        let (dir, server) = (dir.to_owned(), servers.addresses()[0]);
        let agent = Service::start(dir.join("agent.log"), move || {
            let at = |name: &str| dir.join(name).display().to_string();
            let mut command = yurt();
            command
                .args(["tunnel", "agent", "--meta-port=0"])
                .arg(format!("--node-name={AGENT_NODE}"))
                .arg(format!("--node-ip={address}"))
                .arg(format!("--server={server}"))
                .arg(format!("--cert-dir={}", at("agent")))
                .arg(format!("--ca-cert={}", at("ca.crt")))
                .arg(format!("--agent-cert={}", at("tunnel-agent.crt")))
                .arg(format!("--agent-key={}", at("tunnel-agent.key")))
                .args(&arguments);
            command
        });
        Self {
            servers,
            agent: RefCell::new(agent),
        }
    }

    /// The three that kube-apiserver knows, by name.
    pub(super) fn transports(&self, authority: &Authority) -> [(&'static str, Value); 3] {
        authority.client("egress", "system:kube-apiserver", &["system:masters"]);
        let file = |name: &str, kind: &str| authority.file(name, kind);
        let socket = json!({"uds": {"udsName": self.servers.socket(0)}});
        let port = json!({"tcp": {"url": format!("https://{}", self.servers.frontends[0]),
            "tlsConfig": {"caBundle": file("ca", "crt"), "clientCert": file("egress", "crt"), "clientKey": file("egress", "key")}}});
        [
            (
                "grpc-uds",
                json!({"proxyProtocol": "GRPC", "transport": socket}),
            ),
            (
                "connect-uds",
                json!({"proxyProtocol": "HTTPConnect", "transport": socket}),
            ),
            (
                "connect-tls",
                json!({"proxyProtocol": "HTTPConnect", "transport": port}),
            ),
        ]
    }

    /// The frontend.
    pub(super) fn socket(&self) -> PathBuf {
        self.servers.socket(0)
    }

    /// Of the server and the agent.
    pub(super) fn pids(&self) -> [u32; 2] {
        [self.servers.pid(0), self.agent.borrow().pid()]
    }

    /// Kills the server, or the agent, with -9.
    pub(super) fn kill(&mut self, server: bool) {
        match server {
            true => self.servers.kill(0),
            false => self.agent.get_mut().kill(),
        }
    }

    /// Starts what was killed.
    pub(super) fn again(&mut self, server: bool) {
        match server {
            true => self.servers.again(0),
            false => self.agent.get_mut().again(),
        }
    }

    /// What comes of something while the agent is away; it is back afterwards.
    pub(super) fn without_agent<T>(&self, act: impl FnOnce() -> T) -> T {
        let mut agent = self.agent.borrow_mut();
        agent.kill();
        let came = act();
        agent.again();
        came
    }
}
