//! Servers in this process, with real sockets and certificates.

mod cluster;
mod frontends;
mod instances;
mod objects;
mod strangers;
mod transports;

use super::{callers::Bearers, gate::Guards, *};
use crate::{
    AgentHello, Options, Session,
    certificates::{Credentials, Kept},
    directory::Known,
    frontend::client::{self, Way},
    hello::ALPN_MUX,
    mux,
    server::switchboard::{Direct, Ways},
    twin,
};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, KeyPairPem, Profile, store::Pair};
use yurt_transport::{BoxStream, Destination, Dialer, TcpDialer};

/// A CA, and what it issues.
pub(crate) struct Authority(Ca);

impl Authority {
    pub(crate) fn new() -> Self {
        Self(Ca::new("test", 10).expect("a CA"))
    }

    fn issue(&self, user: &str, groups: &[&str], dns: &[&str]) -> KeyPairPem {
        let profile = Profile {
            common_name: user.into(),
            organizations: groups.iter().map(|group| (*group).to_owned()).collect(),
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            ips: vec![[127, 0, 0, 1].into()],
            client: true,
            server: true,
            days: 2,
        };
        self.0.issue(&profile).expect("issued")
    }

    fn kept(&self, pem: KeyPairPem) -> Kept {
        Kept::fixed(Credentials {
            pair: Some(Pair::of(pem).expect("a pair")),
            ca: self.0.cert_pem(),
        })
    }

    fn server(&self) -> Kept {
        self.kept(self.issue("system:node:tunnel-server", &["system:nodes"], &["server"]))
    }

    fn client(&self, user: &str, groups: &[&str], dns: &[&str]) -> Kept {
        self.kept(self.issue(user, groups, dns))
    }

    /// TLS to a server, as somebody.
    pub(crate) fn way(&self, to: SocketAddr, as_whom: &Kept, alpn: &[&[u8]]) -> Way {
        let config = as_whom.current().client_config(alpn);
        Way::Tls {
            at: at(to),
            name: "server".into(),
            config: config.expect("a configuration"),
        }
    }
}

fn at(address: SocketAddr) -> Destination {
    Destination {
        node: None,
        host: address.ip().to_string(),
        port: address.port(),
    }
}

pub(crate) fn config(ca: &Authority, id: &str) -> Config {
    Config {
        id: id.into(),
        count: 1,
        agents: ([127, 0, 0, 1], 0).into(),
        quic: Some(0),
        frontends: None,
        unix: None,
        meta: Some(([127, 0, 0, 1], 0).into()),
        credentials: ca.server(),
        client: ca.client("tunnel-proxy-client", &["openyurt:yurttunnel"], &[]),
        authority: None,
        guards: Guards {
            agents: Vec::new(),
            frontends: vec![Bearers::User("kube-apiserver".into())],
            peers: vec![Bearers::User("tunnel-proxy-client".into())],
            tokens: None,
        },
        ways: Ways {
            direct: Direct::Never,
            ..Ways::default()
        },
        cloud: Vec::new(),
        directory: Arc::new(Known::default()),
        leases: None,
        peers: Vec::new(),
        peer_name: Some("server".into()),
        options: Options::default(),
        most_connections: 10_000,
        drain: Duration::from_secs(5),
        now: yurt_pki::renewal::now,
    }
}

/// A server at work; stopped when it is dropped.
pub(crate) struct World {
    pub(crate) ca: Authority,
    pub(crate) server: Server,
    pub(crate) shutdown: CancellationToken,
    /// Where its Unix socket is.
    pub(crate) unix: PathBuf,
    _dir: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let ca = Authority::new();
        let dir = tempfile::tempdir().expect("a directory");
        let unix = dir.path().join("frontend.sock");
        let mut config = config(&ca, "server-1");
        config.unix = Some(UnixSocket {
            path: unix.clone(),
            replace: true,
        });
        change(&mut config);
        let shutdown = CancellationToken::new();
        let telemetry = yurt_telemetry::Metrics::new("test");
        let server = start(config, &telemetry, shutdown.clone())
            .await
            .expect("started");
        Self {
            ca,
            server,
            shutdown,
            unix,
            _dir: dir,
        }
    }

    /// An agent of a node, that dials by TCP; it is registered when this returns.
    pub(crate) async fn agent(&self, node: &str) -> Session {
        self.agent_by(node, Arc::new(TcpDialer)).await
    }

    pub(crate) async fn agent_by(&self, node: &str, dialer: Arc<dyn Dialer>) -> Session {
        let before = self.server.switchboard.registry().connected();
        let session = agent(&self.ca, self.server.agents, node, dialer).await;
        let registry = self.server.switchboard.registry().clone();
        until(|| registry.connected() > before).await;
        session
    }

    /// CONNECT by the Unix socket.
    pub(crate) async fn dial(&self, to: &Destination) -> Result<BoxStream, crate::DialError> {
        let io = Way::Unix(self.unix.clone()).open().await.expect("a socket");
        client::connect(io, to).await
    }
}

/// Connects an agent to a server.
pub(crate) async fn agent(
    ca: &Authority,
    server: SocketAddr,
    node: &str,
    dialer: Arc<dyn Dialer>,
) -> Session {
    let client = ca.client("tunnel-agent-client", &["openyurt:yurttunnel"], &[node]);
    let way = ca.way(server, &client, &[ALPN_MUX]);
    let hello = AgentHello {
        id: node.into(),
        identifiers: format!("host={node}&ipv4=127.0.0.1")
            .parse()
            .expect("never fails"),
        version: "test".into(),
    };
    let io = way.open().await.expect("TLS");
    let options = Options::default();
    let session = mux::answer(io, hello, dialer, options, CancellationToken::new()).await;
    session.expect("a session")
}

/// Waits until something is so; fails after a time that is too long for anything here.
pub(crate) async fn until(so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("it comes to be so");
}

/// A TCP server that sends back what it reads, on the node `edge-1`.
pub(crate) async fn echo() -> Destination {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    at(address)
}

/// One that nobody can connect to: its queue is full and stays so.
pub(crate) async fn black_hole() -> (Destination, Vec<TcpStream>, TcpListener) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("bound");
    let listener = socket.listen(0).expect("listens");
    let address = listener.local_addr().expect("an address");
    let mut held = Vec::new();
    loop {
        let connecting = TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(200), connecting).await {
            Ok(Ok(stream)) => held.push(stream),
            _ => return (at(address), held, listener),
        }
    }
}
