//! Over a network in memory, so that time, loss and addresses are the tests' own.

mod network;

use super::*;
use crate::{
    link::Link,
    twin::{self, Answers, count, echo, exchange, served, to},
};
use network::{Fate, Network, Socket};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};
use yurt_pki::{Ca, Profile};

/// Certificates of one CA, and a network.
pub(crate) struct Ground {
    pub(super) network: Arc<Network>,
    ca: Ca,
}

const SERVER: &str = "10.0.0.1:10262";
const AGENT: &str = "10.0.0.2:40000";

impl Ground {
    pub(crate) fn new() -> Self {
        Self {
            network: Arc::default(),
            ca: Ca::new("test", 10).unwrap(),
        }
    }

    fn pem(&self) -> yurt_pki::KeyPairPem {
        let profile = Profile {
            common_name: "peer".into(),
            organizations: Vec::new(),
            dns: vec!["server".into()],
            ips: Vec::new(),
            client: true,
            server: true,
            days: 2,
        };
        self.ca.issue(&profile).unwrap()
    }

    fn serving(&self, options: &Options) -> quinn::ServerConfig {
        let callers = yurt_pki::Callers::Certified(&self.ca.cert_pem());
        let tls = yurt_pki::server_config_for(&self.pem(), callers, false).unwrap();
        let mut tls = rustls::ServerConfig::clone(&tls);
        tls.alpn_protocols = vec![crate::hello::ALPN_QUIC.to_vec()];
        endpoint::serving(Arc::new(tls), options).unwrap()
    }

    fn calling(&self, options: &Options) -> quinn::ClientConfig {
        let tls = yurt_pki::client_config(&self.ca.cert_pem(), Some(&self.pem()), &[]).unwrap();
        let mut tls = rustls::ClientConfig::clone(&tls);
        tls.alpn_protocols = vec![crate::hello::ALPN_QUIC.to_vec()];
        endpoint::calling(Arc::new(tls), options).unwrap()
    }

    fn endpoint(
        &self,
        at: &str,
        config: Option<quinn::ServerConfig>,
    ) -> (quinn::Endpoint, Arc<Socket>) {
        let socket = self.network.socket(at.parse().unwrap());
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            quinn::EndpointConfig::default(),
            config,
            socket.clone(),
            Arc::new(quinn::TokioRuntime),
        );
        (endpoint.unwrap(), socket)
    }

    async fn connections(&self, options: &Options) -> (Connection, Connection, Arc<Socket>) {
        let (server, _) = self.endpoint(SERVER, Some(self.serving(options)));
        let (agent, socket) = self.endpoint(AGENT, None);
        let calling = agent.connect_with(self.calling(options), SERVER.parse().unwrap(), "server");
        let accepting = async { server.accept().await.unwrap().await };
        let (theirs, ours) = tokio::join!(calling.unwrap(), accepting);
        (ours.unwrap(), theirs.unwrap(), socket)
    }

    /// Both ends of a connection with an agent that dials by `dialer`.
    pub(crate) async fn pair(
        &self,
        dialer: Arc<dyn Dialer>,
        options: Options,
    ) -> (Arc<QuicLink>, Session, Arc<Socket>) {
        self.pair_until(dialer, options.clone(), options, CancellationToken::new())
            .await
    }

    async fn pair_until(
        &self,
        dialer: Arc<dyn Dialer>,
        ours: Options,
        theirs: Options,
        shutdown: CancellationToken,
    ) -> (Arc<QuicLink>, Session, Arc<Socket>) {
        let (server, agent, socket) = self.connections(&theirs).await;
        let answering = async {
            let greeted = greet(agent, theirs).await?;
            assert_eq!(greeted.server, twin::server_hello("server-1"));
            greeted
                .answer(twin::agent_hello("node-1"), dialer, shutdown)
                .await
        };
        let calling = call(server, twin::server_hello("server-1"), ours);
        let (link, session) = tokio::join!(calling, answering);
        (link.unwrap(), session.unwrap(), socket)
    }
}

async fn pair(dialer: Arc<dyn Dialer>) -> (Arc<QuicLink>, Session, Ground) {
    let ground = Ground::new();
    let (link, session, _) = ground.pair(dialer, Options::default()).await;
    (link, session, ground)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_and_half_close_works() {
    let (link, session, _ground) = pair(served(count)).await;
    assert_eq!(link.hello(), &twin::agent_hello("node-1"));
    let stream = link.dial(&to("any:1")).await.unwrap();
    assert_eq!(session.connections(), 1);
    assert_eq!(
        exchange(stream, &bytes(3_000_000)).await.unwrap(),
        b"3000000"
    );
    let (link, _session, _ground) = pair(served(echo)).await;
    let stream = link.dial(&to("any:1")).await.unwrap();
    let data = bytes(10 << 20);
    assert!(exchange(stream, &data).await.unwrap() == data);
    link.live.idle().await;
}

#[tokio::test(start_paused = true)]
async fn why_a_dial_failed_is_told() {
    let dialer = Arc::new(Answers(async |to: Destination| {
        Err(match to.host.as_str() {
            "refused" => io::Error::from_raw_os_error(111),
            "files" => io::Error::from_raw_os_error(24),
            "forbidden" => io::Error::new(io::ErrorKind::PermissionDenied, "not on the list"),
            _ => io::ErrorKind::TimedOut.into(),
        })
    }));
    let (link, session, _ground) = pair(dialer).await;
    let mut errors = Vec::new();
    for host in ["refused", "files", "forbidden", "slow"] {
        errors.push(link.dial(&to(&format!("{host}:1"))).await.err().unwrap());
    }
    assert!(matches!(&errors[0], DialError::Failed(text) if text.contains("refused")));
    assert!(matches!(&errors[1], DialError::Busy(_)));
    assert_eq!(errors[2], DialError::Forbidden("not on the list".into()));
    assert!(matches!(&errors[3], DialError::TimedOut(_)));
    let odd = Destination {
        node: Some("a\nb".into()),
        ..to("any:1")
    };
    assert!(matches!(
        link.dial(&odd).await.err().unwrap(),
        DialError::Invalid(_)
    ));
    session.live.idle().await;
    link.live.idle().await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_is_given_up_ends_at_the_agent_and_one_that_hangs_is_bounded() {
    let dropped = Arc::new(Notify::new());
    let dialer = Arc::new(Answers({
        let dropped = dropped.clone();
        move |_| {
            let (dropped, (tell, told)) = (dropped.clone(), tokio::sync::oneshot::channel::<()>());
            tokio::spawn(async move {
                told.await.unwrap_err();
                dropped.notify_one();
            });
            async move {
                let _held = tell;
                std::future::pending().await
            }
        }
    }));
    let (link, session, _ground) = pair(dialer).await;
    let destination = to("black-hole:1");
    assert!(
        timeout(Duration::from_millis(50), link.dial(&destination))
            .await
            .is_err()
    );
    dropped.notified().await;
    let began = Instant::now();
    let error = link.dial(&destination).await.err().unwrap();
    assert!(matches!(error, DialError::TimedOut(text) if text.starts_with("black-hole:1")));
    assert_eq!(began.elapsed().as_secs(), Options::default().dial.as_secs());
    session.live.idle().await;
    link.live.idle().await;
}

/// Breaks when it is told to.
struct Torn(tokio::sync::oneshot::Receiver<()>);

impl tokio::io::AsyncRead for Torn {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0)
            .poll(context)
            .map(|_| Err(io::ErrorKind::ConnectionReset.into()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_no_end() {
    // The target vanishes without an end: what is read of it is an error.
    let (tell, told) = tokio::sync::oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let dialer = Arc::new(Answers(move |_| {
        let torn = Torn(told.lock().unwrap().take().unwrap());
        let stream = tokio::io::join(torn, tokio::io::sink());
        std::future::ready(Ok(Box::new(stream) as BoxStream))
    }));
    let (link, _session, _ground) = pair(dialer).await;
    let mut stream = link.dial(&to("any:1")).await.unwrap();
    tell.send(()).unwrap();
    let mut read = Vec::new();
    let error = stream.read_to_end(&mut read).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    drop(stream);
    link.live.idle().await;
}

#[tokio::test(start_paused = true)]
async fn stuck_readers_take_nothing_from_a_live_one() {
    let options = Options {
        memory: 1 << 20,
        ..Options::default()
    };
    let dialer = Arc::new(Answers(|destination: Destination| {
        let (ours, theirs) = duplex(16 << 10);
        match destination.host.as_str() {
            "stuck" => drop(tokio::spawn(async move {
                let _held = theirs;
                std::future::pending::<()>().await;
            })),
            _ => drop(tokio::spawn(echo(theirs))),
        }
        std::future::ready(Ok(Box::new(ours) as BoxStream))
    }));
    let ground = Ground::new();
    let (link, _session, _) = ground.pair(dialer, options).await;
    let (mut stuck, mut waiting) = (Vec::new(), 0);
    for _ in 0..100 {
        let mut stream = link.dial(&to("stuck:1")).await.unwrap();
        let block = vec![0; 64 << 10];
        while let Ok(count) = timeout(Duration::from_millis(50), stream.write(&block)).await {
            waiting += count.unwrap();
        }
        stuck.push(stream);
    }
    // The pipe to each target holds something, and so does whoever fills it.
    let least = windows::LEAST as usize;
    assert!(
        waiting <= (4 << 20) + 100 * (least + (16 << 10) + (64 << 10)),
        "{waiting}"
    );
    for _ in 0..20 {
        let stream = link.dial(&to("echo:1")).await.unwrap();
        let data = bytes(100_000);
        assert!(exchange(stream, &data).await.unwrap() == data);
    }
    drop(stuck);
    link.live.idle().await;
}

#[tokio::test(start_paused = true)]
async fn write_then_close_delivers_everything_even_on_a_link_that_loses() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let dialer = served(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut read = Vec::new();
            let ended = stream.read_to_end(&mut read).await;
            tell.send((read.len(), ended.is_ok())).unwrap();
        }
    });
    let (link, session, ground) = pair(dialer).await;
    let data = bytes(100_000);
    for round in 0..1000 {
        if round == 900 {
            ground.network.rule(|_, _| match fastrand::u8(..) {
                0..8 => Fate::Lost,
                _ => Fate::Arrives(Duration::from_millis(5)),
            });
        }
        let length = [1000, 100_000][usize::from(round % 10 == 0)];
        let mut stream = link.dial(&to("any:1")).await.unwrap();
        stream.write_all(&data[..length]).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        assert_eq!(told.recv().await.unwrap(), (length, true));
    }
    session.live.idle().await;
    link.live.idle().await;
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_bound_are_refused_as_busy() {
    let few = Options {
        max_connections: 2,
        ..Options::default()
    };
    let ground = Ground::new();
    let (link, _session, _) = ground
        .pair_until(
            served(echo),
            Options::default(),
            few,
            CancellationToken::new(),
        )
        .await;
    let held = [
        link.dial(&to("a:1")).await.unwrap(),
        link.dial(&to("a:1")).await.unwrap(),
    ];
    let error = link.dial(&to("a:1")).await.err().unwrap();
    assert!(matches!(error, DialError::Busy(_)), "{error:?}");
    drop(held);
    // The agent learns of it a moment later.
    while link.dial(&to("a:1")).await.is_err() {
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_dials_given_up_at_once_harm_nobody() {
    let dialer = Arc::new(Answers(|destination: Destination| async move {
        if destination.host == "black-hole" {
            std::future::pending::<()>().await;
        }
        let (ours, theirs) = duplex(1 << 10);
        tokio::spawn(echo(theirs));
        Ok(Box::new(ours) as BoxStream)
    }));
    let (link, session, _ground) = pair(dialer).await;
    for round in 0..5 {
        let dials: Vec<_> = (0..500)
            .map(|_| {
                let link = link.clone();
                tokio::spawn(async move {
                    let destination = to("black-hole:1");
                    let limit = Duration::from_millis(round);
                    assert!(timeout(limit, link.dial(&destination)).await.is_err());
                })
            })
            .collect();
        for dial in dials {
            dial.await.unwrap();
        }
    }
    let stream = link.dial(&to("echo:1")).await.unwrap();
    assert_eq!(exchange(stream, b"alive").await.unwrap(), b"alive");
    session.live.idle().await;
    link.live.idle().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_lives_idle_and_is_found_dead_within_ten_seconds() {
    let (link, mut session, ground) = pair(served(echo)).await;
    let mut stream = link.dial(&to("a:1")).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    assert!(!link.closed().is_cancelled());
    ground.network.rule(|_, _| Fate::Lost);
    let began = Instant::now();
    link.closed().cancelled().await;
    assert!(matches!(session.ended().await, SessionError::Broken(_)));
    assert!(
        began.elapsed() <= Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(stream.read(&mut [0]).await.is_err());
    assert!(matches!(
        link.dial(&to("a:1")).await,
        Err(DialError::Lost(_))
    ));
    drop(stream);
    assert_eq!(link.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_edge_whose_address_changes_keeps_its_streams() {
    let ground = Ground::new();
    let (link, _session, socket) = ground.pair(served(echo), Options::default()).await;
    let mut stream = link.dial(&to("a:1")).await.unwrap();
    let mut answer = [0; 4];
    for (number, address) in ["10.0.0.2:40000", "10.0.0.2:40001", "192.0.2.7:1024"]
        .iter()
        .enumerate()
    {
        let address: SocketAddr = address.parse().unwrap();
        ground.network.moves(&socket, address);
        // A NAT says nothing of it: the next datagram comes from elsewhere.
        let word = [b'0' + number as u8; 4];
        stream.write_all(&word).await.unwrap();
        let read = timeout(Duration::from_secs(20), stream.read_exact(&mut answer)).await;
        read.unwrap_or_else(|_| panic!("lost at {address}"))
            .unwrap();
        assert_eq!(answer, word);
        assert_eq!(link.connection().remote_address(), address);
    }
    assert!(!link.closed().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn draining_is_told_both_ways_and_what_is_open_goes_on() {
    let ground = Ground::new();
    let shutdown = CancellationToken::new();
    let (link, mut session, _) = ground
        .pair_until(
            served(echo),
            Options::default(),
            Options::default(),
            shutdown.clone(),
        )
        .await;
    let (one, other) = (
        link.dial(&to("a:1")).await.unwrap(),
        link.dial(&to("a:1")).await.unwrap(),
    );
    link.drain();
    session.server_drains().cancelled().await;
    assert_eq!(exchange(one, b"still").await.unwrap(), b"still");
    shutdown.cancel();
    while !link.is_draining() {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(link.dial(&to("a:1")).await.err().unwrap().may_retry());
    let data = bytes(1 << 20);
    assert!(exchange(other, &data).await.unwrap() == data);
    assert_eq!(session.ended().await, SessionError::Closed);
    link.closed().cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_not_wanted_is_told_why_and_a_connection_that_is_not_wanted_ends() {
    let (link, mut session, _ground) = pair(served(echo)).await;
    link.refuse("node-1 is somebody else");
    let refused = SessionError::Refused("node-1 is somebody else".into());
    assert_eq!(session.ended().await, refused);
    link.closed().cancelled().await;
    // The agent looks at the connection and leaves.
    let ground = Ground::new();
    let (server, agent, _) = ground.connections(&Options::default()).await;
    let looking = async {
        let greeted = greet(agent.clone(), Options::default()).await.unwrap();
        agent.close(NO_ERROR, b"not better");
        drop(greeted);
    };
    let (called, ()) = tokio::join!(
        call(server, twin::server_hello("server-1"), Options::default()),
        looking
    );
    assert!(matches!(called.unwrap_err(), SessionError::Broken(why) if why.contains("not better")));
}

#[tokio::test(start_paused = true)]
async fn either_end_that_is_dropped_ends_the_other_and_the_streams() {
    let (link, session, _ground) = pair(served(echo)).await;
    let mut stream = link.dial(&to("a:1")).await.unwrap();
    drop(session);
    link.closed().cancelled().await;
    assert!(stream.read(&mut [0]).await.is_err());
    let (link, mut session, _ground) = pair(served(echo)).await;
    let stream = link.dial(&to("a:1")).await.unwrap();
    drop(link);
    assert!(matches!(session.ended().await, SessionError::Broken(_)));
    assert!(exchange(stream, b"gone").await.is_err());
    session.live.idle().await;
}

#[tokio::test(start_paused = true)]
async fn strangers_garbage_and_silence_are_bounded() {
    let options = Options::default();
    let (ground, strangers) = (Ground::new(), Ground::new());
    let (server, _) = ground.endpoint(SERVER, Some(ground.serving(&options)));
    let (agent, socket) = ground.endpoint(AGENT, None);
    for length in [0, 1, 20, 1200, 1400] {
        for first in [0x00, 0x40, 0xc0, 0xff] {
            let mut datagram: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
                .take(length)
                .collect();
            datagram
                .first_mut()
                .into_iter()
                .for_each(|byte| *byte = first);
            ground
                .network
                .deliver(socket.address(), SERVER.parse().unwrap(), &datagram);
        }
    }
    let accepting = async { server.accept().await.unwrap().await };
    // Of another CA.
    let calling = agent.connect_with(
        strangers.calling(&options),
        SERVER.parse().unwrap(),
        "server",
    );
    let (theirs, ours) = tokio::join!(calling.unwrap(), accepting);
    assert!(theirs.is_err() && ours.is_err());
    // Of the right CA; it then says nothing at all.
    let calling = agent.connect_with(ground.calling(&options), SERVER.parse().unwrap(), "server");
    let accepting = async { server.accept().await.unwrap().await };
    let (theirs, ours) = tokio::join!(calling.unwrap(), accepting);
    let (theirs, ours) = (theirs.unwrap(), ours.unwrap());
    let called = call(ours, twin::server_hello("s"), options.clone()).await;
    assert_eq!(called.unwrap_err(), SessionError::Silent(options.hello));
    assert!(theirs.closed().await.to_string().contains("no hello"));
}

/// A peer of the right CA that keeps to nothing: the agent ends what breaks the protocol, and bounds what only wastes it.
#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_keep_to_the_protocol_is_bounded() {
    for says in [
        &b"GET / HTTP/1.1\n\n"[..],
        b"\xff\xff\n\n",
        b"control\nserverid: s\n\n",
    ] {
        let ground = Ground::new();
        let (server, agent, _) = ground.connections(&Options::default()).await;
        let (mut send, _recv) = server.open_bi().await.unwrap();
        send.write_all(says).await.unwrap();
        let error = greet(agent, Options::default()).await.unwrap_err();
        assert!(matches!(error, SessionError::Protocol(_)), "{error:?}");
    }
    let ground = Ground::new();
    let (server, agent, _) = ground.connections(&Options::default()).await;
    let error = greet(agent, Options::default()).await.unwrap_err();
    assert_eq!(error, SessionError::Silent(Options::default().hello));
    drop(server);
}
