//! 1,000 agents, two servers that know of each other, and one of them killed while every node is scraped.
//!
//! Servers are processes. The agents are real ones, with certificates and TLS of their own, in this process; what they dial is one origin that
//! says on which address it was reached.

use super::pair::{Authority, Servers};
use crate::fixture::Scratch;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use yurt_tunnel::{
    Identifiers,
    agent::{self, AgentConfig, Authority as Certificate, fleet::Policy},
    allow::{Bounds, NodeScope},
    certificates::GivenFiles,
};

const AGENTS: u16 = 1000;
/// Scrapes under way at a time.
const AT_A_TIME: usize = 64;
/// One scrape.
const SCRAPE: Duration = Duration::from_secs(15);
const JOINING: Duration = Duration::from_secs(120);

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
    let node = format!("node-{number}");
    let allow = format!("{}:{port}", address(number));
    AgentConfig {
        identifiers: Identifiers {
            addresses: vec![address(number).into()],
            hosts: vec![node.clone()],
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
        namespace: "kube-system".into(),
        leases: None,
        token: None,
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
        known: dir.join(&node),
        reverse: Vec::new(),
        routes: Vec::new(),
        beneath: None,
        node,
    }
}

/// One scrape by a server's socket: right only when it is the node's own.
async fn scrape(socket: PathBuf, number: u16, port: u16) -> Result<(), String> {
    let asked = async {
        let mut stream = UnixStream::connect(&socket).await?;
        let target = address(number);
        let connect = format!("CONNECT {target}:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(connect.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        if !head.starts_with(b"HTTP/1.1 200") {
            stream.read_to_end(&mut head).await?;
            return Err(io::Error::other(
                String::from_utf8_lossy(&head).into_owned(),
            ));
        }
        stream.write_all(b"figures").await?;
        let mut said = String::new();
        while !said.ends_with('\n') {
            said.push(char::from(stream.read_u8().await?));
        }
        match said.trim() == target.to_string() {
            true => Ok(()),
            false => Err(io::Error::other(format!("{target} is {said}"))),
        }
    };
    match timeout(SCRAPE, asked).await {
        Ok(asked) => asked.map_err(|error| format!("node-{number}: {error}")),
        Err(_) => Err(format!("node-{number}: no answer within {SCRAPE:?}")),
    }
}

/// Scrapes every node, each by the server that `choose` says; the failures.
async fn scrape_all(port: u16, choose: impl Fn(u16) -> PathBuf) -> Vec<String> {
    let (mut under_way, mut failed) = (JoinSet::new(), Vec::new());
    for number in 0..AGENTS {
        if under_way.len() >= AT_A_TIME
            && let Some(Ok(Err(why))) = under_way.join_next().await
        {
            failed.push(why);
        }
        under_way.spawn(scrape(choose(number), number, port));
    }
    while let Some(done) = under_way.join_next().await {
        failed.extend(done.unwrap().err());
    }
    failed
}

/// Waits until every node answers by a server.
async fn all_joined(port: u16, socket: &Path) {
    let deadline = Instant::now() + JOINING;
    loop {
        let failed = scrape_all(port, |_| socket.to_owned()).await;
        if failed.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {AGENTS} are not reached: {}",
            failed.len(),
            failed[0]
        );
        sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_agents_are_scraped_while_a_server_dies() {
    let scratch = Scratch::new();
    let dir = scratch.path();
    let authority = Authority::new(dir);
    for number in 0..AGENTS {
        let node = format!("node-{number}");
        authority.agent(&format!("agent-{number}"), &node, address(number).into());
    }
    let mut servers = Servers::start(dir, &authority, 2);
    let port = origin().await.port();
    let shutdown = CancellationToken::new();
    let mut agents = JoinSet::new();
    for number in 0..AGENTS {
        agents.spawn(agent::run(
            config(dir, number, &servers.addresses(), port),
            shutdown.clone(),
        ));
    }
    let sockets = [servers.socket(0), servers.socket(1)];
    for socket in &sockets {
        all_joined(port, socket).await;
    }

    // The first dies in the middle; who had asked it asks the other, as a scraper behind a Service does.
    let victim = sockets[0].clone();
    let killer = tokio::spawn(async move {
        sleep(Duration::from_millis(100)).await;
        servers.kill(0);
        servers
    });
    let first = scrape_all(port, |number| sockets[usize::from(number % 2)].clone()).await;
    let mut servers = killer.await.unwrap();
    let by_other = scrape_all(port, |_| sockets[1].clone()).await;
    assert!(by_other.is_empty(), "{by_other:?}");
    // Nobody who asked the living one noticed.
    let noticed: Vec<_> = first
        .iter()
        .filter(|why| {
            let number = why
                .split([' ', ':', '-'])
                .nth(1)
                .and_then(|n| n.parse::<u16>().ok());
            number.is_some_and(|number| number % 2 == 1)
        })
        .collect();
    assert!(noticed.is_empty(), "{noticed:?}");

    // It comes back, and with it all its agents.
    servers.again(0);
    all_joined(port, &victim).await;
    shutdown.cancel();
    while let Some(ended) = agents.join_next().await {
        ended.unwrap().unwrap();
    }
}
