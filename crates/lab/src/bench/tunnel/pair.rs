//! Our server and agent, with TLS between them, and the origin: each a process of its own.

use super::{Side, datagrams::Datagrams, loads::Ends, way::Way};
use crate::{
    bench::{
        BenchError, PATIENCE,
        load::call,
        processes::{Ended, Scratch, Server, free_address, io_error, write_identities},
    },
    egress::Egress,
    link::Link,
};
use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};
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
    /// The same for QUIC.
    pub(super) datagrams: Option<Datagrams>,
    socket: PathBuf,
    origin: SocketAddr,
    // Last: the processes end first.
    _scratch: Scratch,
}

impl Pair {
    /// Starts both, with a link between them or without, and waits until the origin is reached.
    pub(super) async fn start(
        origin: SocketAddr,
        transport: &str,
        linked: bool,
    ) -> Result<Self, BenchError> {
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
        let datagrams = match linked && transport == "quic" {
            true => Some(Datagrams::start(at, listens).await.map_err(io_error(at))?),
            false => None,
        };
        let tells = free_address()?;
        let mut arguments = agent_arguments(&dir, at, origin);
        arguments.extend([
            flag("transport", transport),
            flag("meta-port", tells.port().to_string()),
        ]);
        let agent = Server::start("tunnel agent", &arguments, &dir)?;
        let pair = Self {
            server,
            agent,
            link,
            datagrams,
            socket,
            origin,
            _scratch: scratch,
        };
        if let Err(error) = reachable(&pair.side().way).await {
            return Err(pair.agent.failed(format!("is not connected: {error}")));
        }
        if transport == "quic" && !by_quic(tells).await {
            return Err(pair.agent.failed("does not use QUIC"));
        }
        Ok(pair)
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

/// Waits until the agent that tells there uses QUIC; whether it does.
async fn by_quic(tells: SocketAddr) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let asked = async {
            let mut stream = TcpStream::connect(tells).await?;
            stream
                .write_all(b"GET /v1/status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
                .await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer.contains("\"inUse\": true"))
        };
        if timeout(PATIENCE, asked)
            .await
            .is_ok_and(|asked| asked.unwrap_or(false))
        {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
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
    write_identities(dir, &ca, &[("server", server), ("agent", agent)])
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
        flag("cert-dir", dir.join("agent")),
        flag("ca-cert", dir.join("ca.crt")),
        flag("agent-cert", dir.join("agent.crt")),
        flag("agent-key", dir.join("agent.key")),
    ]
}
