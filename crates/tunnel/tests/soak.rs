//! What is left of thousands of connections, however they ended, of dials that nobody waited for, and of agents that were killed: no task,
//! no socket and no memory, at neither end, by no protocol. One test: it counts what the whole process has.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, Callers, Profile};
use yurt_telemetry::process_usage;
use yurt_transport::{BoxStream, Destination, Dialer, Dialing, TcpDialer};
use yurt_tunnel::{
    AgentHello, Link, Options, ServerHello, Session, Tunnels,
    anp::{
        self,
        server::{Refused, Welcome},
    },
    hello::ALPN_QUIC,
    mux,
    quic::{self, endpoint},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// Agents, one after the other; each of them is killed.
const AGENTS: usize = 12;
/// Connections by each agent; of each sixth the dial is given up.
const CONNECTIONS: usize = 240;
/// At a time.
const ABREAST: usize = 24;
/// Open when the agent is killed.
const STRANDED: usize = 16;
/// What the allocator may keep of it all: 4 KiB for each connection would be more.
const GROWTH: u64 = 8 << 20;
/// Nothing is ever heard from there.
const SILENT: &str = "silent.example:1";

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Mux,
    Quic,
    Anp,
}

/// Dials by TCP, and counts the dials that wait for what never answers.
#[derive(Debug, Default)]
struct Counting(Arc<AtomicUsize>);

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Dialer for Counting {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        if to.to_string() != SILENT {
            return TcpDialer.dial(to);
        }
        self.0.fetch_add(1, SeqCst);
        let waiting = Waiting(Arc::clone(&self.0));
        Box::pin(async move {
            let _waiting = waiting;
            std::future::pending::<io::Result<BoxStream>>().await
        })
    }
}

struct Door(mpsc::UnboundedSender<Arc<dyn Link>>);

impl Welcome for Door {
    fn agent<'a>(
        &'a self,
        _: &'a AgentHello,
        _: Option<&'a str>,
    ) -> futures_util::future::BoxFuture<'a, Result<(), Refused>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn registered(&self, link: Arc<dyn Link>) {
        let _ = self.0.send(link);
    }
    fn frontend(&self) -> Option<Arc<dyn Tunnels>> {
        None
    }
}

/// Sends back what it reads; what begins with `!` it hangs up on.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = vec![0; 16 << 10];
                while let Ok(count @ 1..) = stream.read(&mut some).await {
                    if some[0] == b'!' || stream.write_all(&some[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Both ends of a QUIC connection, the server's first.
async fn connection_by_quic(options: &Options) -> (quinn::Connection, quinn::Connection) {
    let ca = Ca::new("soak", 1).unwrap();
    let profile = Profile {
        dns: vec!["server".into()],
        client: true,
        server: true,
        days: 1,
        ..Profile::default()
    };
    let (pem, ca) = (ca.issue(&profile).unwrap(), ca.cert_pem());
    let serving = yurt_pki::server_config_for(&pem, Callers::Certified(&ca), false).unwrap();
    let mut serving = rustls::ServerConfig::clone(&serving);
    serving.alpn_protocols = vec![ALPN_QUIC.to_vec()];
    let calling = yurt_pki::client_config(&ca, Some(&pem), &[]).unwrap();
    let mut calling = rustls::ClientConfig::clone(&calling);
    calling.alpn_protocols = vec![ALPN_QUIC.to_vec()];
    let serving = endpoint::serving(Arc::new(serving), options).unwrap();
    let calling = endpoint::calling(Arc::new(calling), options).unwrap();
    let server = endpoint::listen("127.0.0.1:0".parse().unwrap(), serving).unwrap();
    let address = server.local_addr().unwrap();
    let accepting = async { server.accept().await.unwrap().await };
    let (called, calling) = tokio::join!(accepting, endpoint::connect(address, "server", calling));
    (called.unwrap(), calling.unwrap())
}

/// A server's link to an agent, on a TCP connection or by QUIC.
async fn pair(protocol: Protocol, dialer: Arc<dyn Dialer>) -> (Arc<dyn Link>, Session) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap());
    let (theirs, ours) = tokio::join!(theirs, listener.accept());
    let (theirs, ours) = (Box::new(theirs.unwrap()), Box::new(ours.unwrap().0));
    let server = ServerHello {
        id: "server-1".into(),
        count: 1,
        quic: None,
    };
    let agent = AgentHello {
        id: "edge-1".into(),
        identifiers: "host=edge-1".parse().unwrap(),
        version: "soak".into(),
    };
    let (options, never) = (Options::default(), CancellationToken::new());
    match protocol {
        Protocol::Quic => {
            let (called, calling) = connection_by_quic(&options).await;
            let answering = async {
                let greeted = quic::greet(calling, options.clone()).await?;
                greeted.answer(agent, dialer, never).await
            };
            let (link, session) =
                tokio::join!(quic::call(called, server, options.clone()), answering);
            (link.unwrap(), session.unwrap())
        }
        Protocol::Mux => {
            let (link, session) = tokio::join!(
                mux::call(ours, server, options.clone()),
                mux::answer(theirs, agent, dialer, options, never),
            );
            (link.unwrap(), session.unwrap())
        }
        Protocol::Anp => {
            let (came, mut coming) = mpsc::unbounded_channel();
            let door = Arc::new(Door(came));
            tokio::spawn(anp::server::serve(
                ours,
                server,
                door,
                options.clone(),
                never.clone(),
            ));
            let session = anp::agent::connect(theirs, agent, dialer, None, options, never);
            let session = session.await.unwrap();
            (coming.recv().await.unwrap(), session)
        }
    }
}

/// One connection, to one of six ends.
async fn connection(link: Arc<dyn Link>, echo: Destination, waiting: Arc<AtomicUsize>, way: usize) {
    let data = vec![b'y'; 1 + (way * 977) % 60_000];
    if way.is_multiple_of(6) {
        // Given up when the agent is at it.
        let silent: Destination = SILENT.parse().unwrap();
        let dial = link.dial(&silent);
        let at_it = async {
            while waiting.load(SeqCst) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            dialled = dial => panic!("{:?}", dialled.err()),
            () = at_it => return,
        }
    }
    if way % 6 == 1 {
        let nobody: Destination = "127.0.0.1:1".parse().unwrap();
        assert!(link.dial(&nobody).await.is_err());
        return;
    }
    let mut stream = link.dial(&echo).await.unwrap();
    match way % 6 {
        // Closed, after an answer.
        2 => {
            let (mut reading, mut writing) = tokio::io::split(stream);
            let mut answer = vec![0; data.len()];
            let (said, read) =
                tokio::join!(writing.write_all(&data), reading.read_exact(&mut answer));
            said.unwrap();
            read.unwrap();
            assert!(answer == data);
            writing.shutdown().await.unwrap();
            assert_eq!(reading.read(&mut [0]).await.unwrap(), 0);
        }
        // Dropped with an answer under way, and dropped unused.
        3 => stream.write_all(&data).await.unwrap(),
        4 => {}
        // Closed by the target.
        _ => {
            stream.write_all(b"!").await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    }
}

/// Tasks and descriptors of the process, and its memory.
fn usage() -> (usize, u64, u64) {
    let usage = process_usage(None).unwrap();
    let tasks = Handle::current().metrics().num_alive_tasks();
    (tasks, usage.open_fds, usage.resident_bytes)
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !done() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    if waited.await.is_err() {
        panic!("{what}; tasks, descriptors, memory: {:?}", usage());
    }
}

/// The life of an agent.
async fn life(protocol: Protocol, echo: &Destination) {
    let waiting = Arc::new(AtomicUsize::new(0));
    let dialer = Arc::new(Counting(Arc::clone(&waiting)));
    let (link, session) = pair(protocol, dialer).await;
    let (tasks, files, _) = usage();
    let mut abreast = JoinSet::new();
    for way in 0..CONNECTIONS {
        if abreast.len() >= ABREAST {
            abreast.join_next().await.unwrap().unwrap();
        }
        let (link, echo, waiting) = (Arc::clone(&link), echo.clone(), Arc::clone(&waiting));
        abreast.spawn(async move {
            timeout(PATIENCE, connection(link, echo, waiting, way))
                .await
                .unwrap_or_else(|_| panic!("{protocol:?}: connection {way} is stuck"));
        });
    }
    while let Some(done) = abreast.join_next().await {
        done.unwrap();
    }
    // The agent lives on, and has nothing left of them.
    until("the agent still dials", || waiting.load(SeqCst) == 0).await;
    until("connections are left", || {
        link.connections() == 0 && session.connections() == 0
    })
    .await;
    until(
        &format!("{protocol:?}: more than {tasks} tasks, {files} descriptors"),
        || {
            let now = usage();
            now.0 <= tasks && now.1 <= files
        },
    )
    .await;

    let mut stranded = Vec::new();
    for _ in 0..STRANDED {
        stranded.push(link.dial(echo).await.unwrap());
    }
    let silent: Destination = SILENT.parse().unwrap();
    let kill = async {
        until("the dial is under way", || waiting.load(SeqCst) == 1).await;
        drop(session);
    };
    let (dialled, ()) = tokio::join!(timeout(PATIENCE, link.dial(&silent)), kill);
    assert!(dialled.expect("a dial ends with its agent").is_err());
    for mut stream in stranded {
        let ended = timeout(PATIENCE, stream.read(&mut [0])).await;
        assert!(!matches!(ended.expect("an end is told"), Ok(1..)));
    }
    timeout(PATIENCE, link.closed().cancelled()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_connections_cancelled_dials_and_killed_agents() {
    let echo: Destination = echo().await.to_string().parse().unwrap();
    let (tasks, files, _) = usage();
    for protocol in [Protocol::Mux, Protocol::Quic, Protocol::Anp] {
        let mut warm = 0;
        for number in 0..AGENTS {
            life(protocol, &echo).await;
            until(
                &format!(
                    "{protocol:?}: agent {number} left something of {tasks} tasks, {files} descriptors"
                ),
                || {
                    let now = usage();
                    now.0 <= tasks && now.1 <= files
                },
            )
            .await;
            if number == AGENTS / 3 {
                warm = usage().2;
            }
        }
        let grown = usage().2.saturating_sub(warm);
        assert!(grown < GROWTH, "{protocol:?}: {grown} bytes more");
    }
}
