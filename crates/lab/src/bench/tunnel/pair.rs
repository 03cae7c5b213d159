//! Our server and agent, with TLS between them, and the origin: each a process of its own.

use super::{Side, loads::Ends, way::Way};
use crate::{
    bench::{
        BenchError, PATIENCE,
        load::call,
        processes::{Ended, Scratch, Server, io_error},
    },
    egress::Egress,
    link::Link,
};
use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::time::sleep;
use yurt_pki::{Ca, Profile};

/// The agent's node.
const NODE: &str = "bench-node";
const CERTIFICATE_DAYS: u32 = 7;

/// A server and its agent.
#[derive(Debug)]
pub(super) struct Pair {
    server: Server,
    agent: Server,
    /// Between them, where it is to be slow.
    pub(super) link: Option<Link>,
    socket: PathBuf,
    origin: SocketAddr,
    // Last: the processes end first.
    _scratch: Scratch,
}

impl Pair {
    /// Starts both, with a link between them or without, and waits until the origin is reached.
    pub(super) async fn start(origin: SocketAddr, linked: bool) -> Result<Self, BenchError> {
        let scratch = Scratch::new()?;
        let dir = scratch.0.clone();
        certificates(&dir)?;
        let listens = free_address()?;
        let socket = dir.join("connect.sock");
        let mut server = Server::start("tunnel server", &server_arguments(&dir, listens), &dir)?;
        server.written(&socket).await?;
        let link = match linked {
            true => {
                let listen = free_address()?;
                let link = Link::start(listen, listens).await;
                Some(link.map_err(io_error(listen))?)
            }
            false => None,
        };
        let at = link.as_ref().map_or(listens, Link::address);
        let agent = Server::start("tunnel agent", &agent_arguments(&dir, at, origin), &dir)?;
        let pair = Self {
            server,
            agent,
            link,
            socket,
            origin,
            _scratch: scratch,
        };
        match reachable(&pair.side().way).await {
            Ok(()) => Ok(pair),
            Err(error) => Err(pair.agent.failed(format!("is not connected: {error}"))),
        }
    }

    /// The way through it.
    pub(super) fn side(&self) -> Side {
        Side {
            way: Way::Connect(Egress::new(self.socket.clone()), self.origin),
            ends: Ends {
                server: self.server.pid(),
                agent: self.agent.pid(),
            },
        }
    }

    /// Ends both.
    pub(super) async fn end(mut self) {
        self.agent.end(Ended::Drained).await;
        self.server.end(Ended::Drained).await;
    }
}

/// The origin, a process of its own.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    server: Server,
    // Last: the process ends first.
    _scratch: Scratch,
}

impl Origin {
    pub(super) async fn start() -> Result<Self, BenchError> {
        let scratch = Scratch::new()?;
        let file = scratch.0.join("address");
        let mut serve = OsString::from("--serve-origin=");
        serve.push(&file);
        let arguments = ["bench".into(), "tunnel".into(), serve];
        let mut server = Server::start("origin", &arguments, &scratch.0)?;
        server.written(&file).await?;
        let address = fs::read_to_string(&file).map_err(io_error(file.display()))?;
        let address = address.parse().map_err(|error| server.failed(error))?;
        Ok(Self {
            address,
            server,
            _scratch: scratch,
        })
    }

    pub(super) async fn end(mut self) {
        self.server.end(Ended::Drained).await;
    }
}

/// Waits until the origin answers.
pub(super) async fn reachable(way: &Way) -> Result<(), BenchError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = async { way.connect().await?.small().await };
        match asked.await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(call(&way.to_string(), error)),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

fn free_address() -> Result<SocketAddr, BenchError> {
    let free =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    free.map_err(io_error("a free port"))
}

/// One CA; a server of that address, and an agent of that node.
fn certificates(dir: &Path) -> Result<(), BenchError> {
    let ca = Ca::new("yurt-bench", CERTIFICATE_DAYS)?;
    let server = ca.issue(&Profile {
        common_name: "system:node:tunnel-server".into(),
        organizations: vec!["system:nodes".into()],
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        server: true,
        days: CERTIFICATE_DAYS,
        ..Profile::default()
    })?;
    let agent = ca.issue(&Profile {
        common_name: "tunnel-agent-client".into(),
        organizations: vec!["openyurt:yurttunnel".into()],
        dns: vec![NODE.into()],
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        client: true,
        days: CERTIFICATE_DAYS,
        ..Profile::default()
    })?;
    let write = |name: &str, content: &str| {
        let path = dir.join(name);
        fs::write(&path, content).map_err(io_error(path.display()))
    };
    write("ca.crt", &ca.cert_pem())?;
    for (name, pair) in [("server", &server), ("agent", &agent)] {
        write(&format!("{name}.crt"), &pair.cert)?;
        write(&format!("{name}.key"), &pair.key)?;
    }
    Ok(())
}

fn flag(name: &str, value: impl Into<OsString>) -> OsString {
    let mut argument = OsString::from(format!("--{name}="));
    argument.push(value.into());
    argument
}

fn server_arguments(dir: &Path, listens: SocketAddr) -> Vec<OsString> {
    vec![
        "tunnel".into(),
        "server".into(),
        "--standalone".into(),
        flag("bind-address", listens.ip().to_string()),
        flag("tunnel-agent-connect-port", listens.port().to_string()),
        flag("meta-port", "0"),
        flag("uds-name", dir.join("connect.sock")),
        flag("cluster-cert", dir.join("server.crt")),
        flag("cluster-key", dir.join("server.key")),
        flag("cluster-ca-cert", dir.join("ca.crt")),
    ]
}

fn agent_arguments(dir: &Path, server: SocketAddr, origin: SocketAddr) -> Vec<OsString> {
    vec![
        "tunnel".into(),
        "agent".into(),
        "--standalone".into(),
        flag("node-name", NODE),
        flag("node-ip", Ipv4Addr::LOCALHOST.to_string()),
        flag("server", server.to_string()),
        flag("allow", origin.to_string()),
        flag("meta-port", "0"),
        flag("cert-dir", dir.join("agent")),
        flag("ca-cert", dir.join("ca.crt")),
        flag("agent-cert", dir.join("agent.crt")),
        flag("agent-key", dir.join("agent.key")),
    ]
}
