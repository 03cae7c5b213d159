//! Many agents, and two servers that know of each other: one of them is killed while every node is scraped and operators work at some of
//! them, and both are updated, one after the other, without anybody noticing.
//!
//! Servers are processes. The agents are real ones, with certificates and TLS of their own, in this process; what they dial is one origin that
//! says on which address it was reached, and on some nodes a simulated kubelet.

mod operators;
mod scrapers;

use super::pair::{Authority, Servers};
use crate::fixture::{Scratch, eventually, signal};
use operators::Operators;
use scrapers::{Scrapers, connect};
use serde_json::Value;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Runtime,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use yurt_tunnel::{
    Identifiers,
    agent::{self, AgentConfig, Authority as Certificate, fleet::Policy},
    allow::{Bounds, NodeScope},
    certificates::GivenFiles,
    frontend::client::Way,
};

/// How long agents may take to come, all of them.
const JOINING: Duration = Duration::from_secs(120);

fn node(number: u16) -> String {
    format!("node-{number}")
}

fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 79, high, low)
}

/// Answers every request with the address that was dialled.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 64];
                while stream.read(&mut request).await? > 0 {
                    let said = format!("{}\n", stream.local_addr()?.ip());
                    stream.write_all(said.as_bytes()).await?;
                }
                Ok::<_, io::Error>(())
            });
        }
    });
    address
}

fn config(dir: &Path, number: u16, servers: &[SocketAddr], port: u16) -> AgentConfig {
    let file = |kind: &str| dir.join(format!("agent-{number}.{kind}"));
    let allow = format!("{}:{port}", address(number));
    AgentConfig {
        identifiers: Identifiers {
            addresses: vec![address(number).into()],
            hosts: vec![node(number)],
            ..Identifiers::default()
        },
        servers: servers
            .iter()
            .map(|server| server.to_string().parse().unwrap())
            .collect(),
        policy: Policy::All,
        proxy: None,
        authority: Certificate::Files(GivenFiles {
            cert: file("crt"),
            key: file("key"),
            ca: dir.join("ca.crt"),
        }),
        way: None,
        transport: yurt_tunnel::agent::beside::Transport::Tcp,
        namespace: "kube-system".into(),
        leases: None,
        token: None,
        protocols: Vec::new(),
        scope: NodeScope {
            addresses: vec![address(number).into()],
            pod_networks: Vec::new(),
            localhost_ports: Vec::new(),
        },
        default_allow: true,
        allow: vec![allow.parse().unwrap()],
        bounds: Bounds::default(),
        drain: Duration::from_millis(100),
        meta: (Ipv4Addr::LOCALHOST, 0).into(),
        known: dir.join(node(number)),
        reverse: Default::default(),
        beneath: None,
        node: node(number),
    }
}

/// Two servers and their agents.
struct Fleet {
    servers: Servers,
    authority: Authority,
    count: u16,
    /// Where the origin listens, on every node.
    port: u16,
    shutdown: CancellationToken,
    agents: JoinSet<()>,
    runtime: Runtime,
    scratch: Scratch,
}

impl Fleet {
    fn start(count: u16) -> Self {
        let scratch = Scratch::new();
        let dir = scratch.path();
        let authority = Authority::new(dir);
        for number in 0..count {
            authority.agent(
                &format!("agent-{number}"),
                &node(number),
                address(number).into(),
            );
        }
        let servers = Servers::start(dir, &authority, 2);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let port = runtime.block_on(origin()).port();
        let shutdown = CancellationToken::new();
        let mut agents = JoinSet::new();
        for number in 0..count {
            let config = config(dir, number, &servers.addresses(), port);
            let running = agent::run(config, shutdown.clone());
            agents.spawn_on(async { running.await.unwrap() }, runtime.handle());
        }
        let fleet = Self {
            servers,
            authority,
            count,
            port,
            shutdown,
            agents,
            runtime,
            scratch,
        };
        fleet.all_joined(0);
        fleet.all_joined(1);
        fleet
    }

    /// Where the frontends of both are.
    fn sockets(&self) -> [PathBuf; 2] {
        [0, 1].map(|number| self.servers.socket(number))
    }

    /// Waits until every agent is connected to a server.
    fn all_joined(&self, server: usize) {
        let way = Way::Unix(self.servers.socket(server));
        let deadline = Instant::now() + JOINING;
        loop {
            let page = self.runtime.block_on(way.get("/v1/status"));
            let connected = page.ok().and_then(|(_, text)| {
                let status: Value = serde_json::from_str(&text).ok()?;
                Some(status["agents"].as_array()?.len())
            });
            if connected == Some(usize::from(self.count)) {
                return;
            }
            assert!(Instant::now() < deadline, "{connected:?} of {}", self.count);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Scrapes all nodes over and over, by the first of these frontends that is there.
    fn scrape(&self, sockets: &[PathBuf]) -> Scrapers {
        let targets = (0..self.count).map(|number| (address(number), self.port).into());
        Scrapers::start(&self.runtime, sockets, targets.collect())
    }

    /// A connection that answers, by one frontend.
    fn hold(&self, server: usize) -> yurt_transport::BoxStream {
        let to = SocketAddr::from((address(0), self.port));
        let socket = self.servers.socket(server);
        let mut stream = self.runtime.block_on(connect(&socket, to)).unwrap();
        self.still_answers(&mut stream);
        stream
    }

    fn still_answers(&self, stream: &mut yurt_transport::BoxStream) {
        let asked = self.runtime.block_on(scrapers::ask(stream));
        assert_eq!(asked.unwrap(), address(0).to_string());
    }

    /// Tells a server to stop.
    fn terminate(&self, server: usize) {
        signal(self.servers.pid(server), rustix::process::Signal::TERM);
    }

    fn end(mut self) {
        self.shutdown.cancel();
        self.runtime.block_on(async {
            while let Some(ended) = self.agents.join_next().await {
                ended.unwrap();
            }
        });
    }
}

#[test]
fn a_thousand_agents_are_scraped_while_a_server_dies() {
    let mut fleet = Fleet::start(1000);
    let [victim, survivor] = fleet.sockets();
    let operators = Operators::start(&fleet);
    let steady = fleet.scrape(std::slice::from_ref(&survivor));
    // As behind a Service: who finds one gone, or is cut off by it, asks the other.
    let moving = fleet.scrape(&[victim.clone(), survivor]);
    moving.wait_for(usize::from(fleet.count) / 4);

    fleet.servers.kill(0);
    let killed = Instant::now();
    if let Some(operators) = &operators {
        operators.go_on_without_the_first();
    }
    // Each node is scraped once more by those who lost their server.
    moving.wait_for(usize::from(fleet.count));
    let (steady, moving) = (steady.stop(), moving.stop());
    for scrape in steady.iter().chain(&moving) {
        assert!(scrape.answered.is_ok(), "{scrape:?}");
    }
    // Only who was being served by the dead one was cut off.
    let lost = moving.iter().filter(|scrape| scrape.lost > 0);
    let lost: Vec<_> = lost.collect();
    assert!(lost.len() <= scrapers::AT_A_TIME, "{lost:?}");
    assert!(lost.iter().all(|scrape| scrape.began < killed), "{lost:?}");
    assert!(steady.iter().all(|scrape| scrape.lost == 0));
    // New dials succeed within a second; a machine that is busy with other things delays a few.
    let later = steady
        .iter()
        .chain(&moving)
        .filter(|scrape| scrape.began > killed);
    let (all, slow) = later.fold((0, 0), |(all, slow), scrape| {
        (
            all + 1,
            slow + usize::from(scrape.took > Duration::from_secs(1)),
        )
    });
    assert!(
        all > 0 && slow * 20 <= all,
        "{slow} of {all} took longer than a second"
    );

    // It comes back, all agents with it, and is used again.
    fleet.servers.again(0);
    fleet.all_joined(0);
    let again = fleet.scrape(&[victim]);
    again.wait_for(usize::from(fleet.count));
    for scrape in again.stop() {
        assert!(scrape.answered.is_ok() && scrape.lost == 0, "{scrape:?}");
    }
    drop(operators);
    fleet.end();
}

#[test]
fn servers_are_updated_one_by_one_and_no_dial_fails() {
    let mut fleet = Fleet::start(100);
    let sockets = fleet.sockets();
    for (server, forgotten) in [(0, false), (1, true)] {
        let other = 1 - server;
        let mut held = fleet.hold(server);
        let steady = fleet.scrape(&sockets[other..=other]);
        let moving = fleet.scrape(&[sockets[server].clone(), sockets[other].clone()]);
        moving.wait_for(50);
        fleet.terminate(server);
        let told = Instant::now();
        eventually("nobody finds it any more", || !sockets[server].exists());
        fleet.still_answers(&mut held);
        assert!(fleet.servers.runs(server), "with an open connection");
        if forgotten {
            eventually("it ends all the same", || !fleet.servers.runs(server));
            assert!(told.elapsed() >= super::pair::GRACE);
            assert!(fleet.runtime.block_on(scrapers::ask(&mut held)).is_err());
        } else {
            drop(held);
            eventually("it ends with the last one", || !fleet.servers.runs(server));
            assert!(told.elapsed() < super::pair::GRACE, "{:?}", told.elapsed());
        }
        moving.wait_for(50);
        for scrape in steady.stop().into_iter().chain(moving.stop()) {
            assert!(scrape.answered.is_ok() && scrape.lost == 0, "{scrape:?}");
        }
        fleet.servers.again(server);
        fleet.all_joined(server);
    }
    fleet.end();
}
