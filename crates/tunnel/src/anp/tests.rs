use super::{
    agent::connect,
    channel::{Channel, Event},
    core::Role,
    server::{Refused, Welcome, serve},
};
use crate::{
    grpc,
    hello::AgentHello,
    link::{DialError, Link, Tunnels},
    session::{Live, Options, Session, SessionError},
    twin::{self, Answers, echo, exchange, served, to},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination, Dialer};

/// Lets in who has the right token or none, and shows who came.
pub(super) struct Door {
    pub(super) came: mpsc::UnboundedSender<Arc<dyn Link>>,
    pub(super) tunnels: Option<Arc<dyn Tunnels>>,
}

impl Welcome for Door {
    fn agent<'a>(
        &'a self,
        hello: &'a AgentHello,
        bearer: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            match bearer {
                Some("wrong") => Err(Refused(format!("{} has no valid token", hello.id))),
                _ => Ok(()),
            }
        })
    }
    fn registered(&self, link: Arc<dyn Link>) {
        let _ = self.came.send(link);
    }
    fn frontend(&self) -> Option<Arc<dyn Tunnels>> {
        self.tunnels.clone()
    }
}

fn server(
    tunnels: Option<Arc<dyn Tunnels>>,
) -> (DuplexStream, mpsc::UnboundedReceiver<Arc<dyn Link>>) {
    let (ours, theirs) = duplex(64 << 10);
    let (came, coming) = mpsc::unbounded_channel();
    let door = Arc::new(Door { came, tunnels });
    tokio::spawn(serve(
        Box::new(ours),
        twin::server_hello("server-1"),
        door,
        Options::default(),
        CancellationToken::new(),
    ));
    (theirs, coming)
}

pub(crate) async fn pair(dialer: Arc<dyn Dialer>) -> (Arc<dyn Link>, Session) {
    pair_until(dialer, CancellationToken::new()).await
}

async fn pair_until(
    dialer: Arc<dyn Dialer>,
    shutdown: CancellationToken,
) -> (Arc<dyn Link>, Session) {
    let (io, mut coming) = server(None);
    let us = AgentHello {
        version: String::new(),
        ..twin::agent_hello("node-1")
    };
    let session = connect(
        Box::new(io),
        us,
        dialer,
        Some("right".into()),
        Options::default(),
        shutdown,
    )
    .await
    .unwrap();
    (coming.recv().await.unwrap(), session)
}

async fn settled(link: &Arc<dyn Link>, session: &Session) {
    while link.connections() + session.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Says everything without an end, and reads as much back.
async fn ping_pong(stream: &mut BoxStream, data: &[u8]) -> Vec<u8> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut answer = vec![0; data.len()];
    let (said, read) = tokio::join!(writing.write_all(data), reading.read_exact(&mut answer));
    said.unwrap();
    read.unwrap();
    answer
}

#[tokio::test]
async fn bytes_go_both_ways_in_order() {
    let (link, session) = pair(served(echo)).await;
    assert_eq!(
        (link.hello().id.as_str(), link.protocol()),
        ("node-1", "anp")
    );
    assert_eq!(session.server, twin::server_hello("server-1"));
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = link.dial(&to("any:1")).await.unwrap();
        streams.push(tokio::spawn(async move {
            let data = bytes(700_000);
            assert!(ping_pong(&mut stream, &data).await == data);
        }));
    }
    for stream in streams {
        stream.await.unwrap();
    }
    settled(&link, &session).await;
}

#[tokio::test]
async fn an_answer_that_comes_soon_after_half_close_arrives() {
    let (link, session) = pair(served(|mut stream: DuplexStream| async move {
        let mut request = [0; 1000];
        stream.read_exact(&mut request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(b"answer").await.unwrap();
    }))
    .await;
    let stream = link.dial(&to("any:1")).await.unwrap();
    assert_eq!(exchange(stream, &bytes(1000)).await.unwrap(), b"answer");
    settled(&link, &session).await;
}

#[tokio::test]
async fn write_then_close_delivers_everything() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let (link, session) = pair(served(move |mut stream: DuplexStream| {
        let tell = tell.clone();
        async move {
            let mut read = Vec::new();
            let ended = stream.read_to_end(&mut read).await;
            tell.send((read.len(), ended.is_ok())).unwrap();
        }
    }))
    .await;
    let data = bytes(200_000);
    for round in 0..1000 {
        let length = [1000, 200_000][round % 2];
        let mut stream = link.dial(&to("any:1")).await.unwrap();
        stream.write_all(&data[..length]).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        assert_eq!(told.recv().await.unwrap(), (length, true));
    }
    settled(&link, &session).await;
}

#[tokio::test]
async fn why_a_dial_failed_is_told() {
    let dialer = Arc::new(Answers(async |destination: Destination| {
        Err(match destination.host.as_str() {
            "slow" => io::ErrorKind::TimedOut.into(),
            "files" => io::Error::from_raw_os_error(24),
            _ => io::Error::from_raw_os_error(111),
        })
    }));
    let (link, session) = pair(dialer).await;
    assert!(
        matches!(link.dial(&to("refused:1")).await, Err(DialError::Failed(text)) if text.contains("refused"))
    );
    assert!(matches!(
        link.dial(&to("slow:1")).await,
        Err(DialError::TimedOut(_))
    ));
    assert!(matches!(
        link.dial(&to("files:1")).await,
        Err(DialError::Busy(_))
    ));
    settled(&link, &session).await;
}

#[tokio::test]
async fn a_dial_that_is_given_up_ends_at_the_agent() {
    let dropped = Arc::new(Notify::new());
    let dialer = Arc::new(Answers({
        let dropped = Arc::clone(&dropped);
        move |_| {
            let (dropped, (tell, told)) =
                (Arc::clone(&dropped), tokio::sync::oneshot::channel::<()>());
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
    let (link, session) = pair(dialer).await;
    let destination = to("black-hole:1");
    assert!(
        timeout(Duration::from_millis(50), link.dial(&destination))
            .await
            .is_err()
    );
    dropped.notified().await;
    settled(&link, &session).await;
}

/// The agent's target floods; the reader here takes nothing.
#[tokio::test]
async fn a_stuck_reader_is_cut_and_nobody_else_notices() {
    let dialer = Arc::new(Answers(|destination: Destination| {
        let (ours, mut theirs) = duplex(64 << 10);
        tokio::spawn(async move {
            if destination.host == "flood" {
                let block = bytes(64 << 10);
                while theirs.write_all(&block).await.is_ok() {}
            } else {
                echo(theirs).await;
            }
        });
        std::future::ready(Ok(Box::new(ours) as BoxStream))
    }));
    let (link, session) = pair(dialer).await;
    let mut live = link.dial(&to("echo:1")).await.unwrap();
    let mut stuck = link.dial(&to("flood:1")).await.unwrap();
    for _ in 0..50 {
        assert_eq!(ping_pong(&mut live, b"ping").await, b"ping");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The flood's end is told as an error, after what was kept.
    let error = stuck.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    drop(stuck);
    drop(live);
    settled(&link, &session).await;
}

/// The agent's target takes nothing; the writer here is held up, and cut at the agent when it goes on.
#[tokio::test]
async fn a_stuck_target_costs_others_nothing() {
    let dialer = Arc::new(Answers(|destination: Destination| {
        let (ours, theirs) = duplex(64 << 10);
        tokio::spawn(async move {
            if destination.host == "stuck" {
                let _held = theirs;
                std::future::pending::<()>().await;
            } else {
                echo(theirs).await;
            }
        });
        std::future::ready(Ok(Box::new(ours) as BoxStream))
    }));
    let (link, session) = pair(dialer).await;
    let mut live = link.dial(&to("echo:1")).await.unwrap();
    let mut stuck = link.dial(&to("stuck:1")).await.unwrap();
    let flooding = tokio::spawn(async move {
        let block = bytes(64 << 10);
        while stuck.write_all(&block).await.is_ok() {}
    });
    for _ in 0..50 {
        assert_eq!(ping_pong(&mut live, b"ping").await, b"ping");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    flooding.await.unwrap();
    drop(live);
    settled(&link, &session).await;
}

#[tokio::test]
async fn a_reader_that_only_lags_gets_everything() {
    let length = 12 << 20;
    let (link, _session) = pair(served(move |mut stream: DuplexStream| async move {
        stream.write_all(&bytes(length)).await.unwrap();
    }))
    .await;
    let mut stream = link.dial(&to("any:1")).await.unwrap();
    let (mut read, mut piece) = (Vec::new(), vec![0; 256 << 10]);
    while let count @ 1.. = stream.read(&mut piece).await.unwrap() {
        read.extend_from_slice(&piece[..count]);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(read == bytes(length));
}

#[tokio::test]
async fn who_is_refused_is_told_why() {
    let (io, _coming) = server(None);
    let us = twin::agent_hello("node-1");
    let refused = connect(
        Box::new(io),
        us,
        served(echo),
        Some("wrong".into()),
        Options::default(),
        CancellationToken::new(),
    )
    .await;
    let error = refused.err().unwrap();
    assert_eq!(
        error,
        SessionError::Refused("gRPC status 7: node-1 has no valid token".into())
    );
}

#[tokio::test]
async fn an_end_of_the_connection_ends_everything_on_it() {
    let (link, session) = pair(served(echo)).await;
    let mut stream = link.dial(&to("any:1")).await.unwrap();
    drop(session);
    assert!(stream.read(&mut [0]).await.is_err());
    link.closed().cancelled().await;
    assert!(matches!(
        link.dial(&to("any:1")).await,
        Err(DialError::Lost(_))
    ));
    drop(stream);
    assert_eq!(link.connections(), 0);

    let (link, mut session) = pair(served(echo)).await;
    let _stream = link.dial(&to("any:1")).await.unwrap();
    link.closed().cancel();
    assert!(matches!(session.ended().await, SessionError::Broken(_)));
    while session.connections() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_draining_agent_says_so_and_ends_with_its_last_connection() {
    let shutdown = CancellationToken::new();
    let (link, mut session) = pair_until(served(echo), shutdown.clone()).await;
    let mut stream = link.dial(&to("any:1")).await.unwrap();
    shutdown.cancel();
    while !link.is_draining() {
        tokio::task::yield_now().await;
    }
    assert_eq!(ping_pong(&mut stream, b"still").await, b"still");
    drop(stream);
    assert_eq!(session.ended().await, SessionError::Closed);
}

/// A frontend as konnectivity's client is one.
struct Frontend {
    channel: Arc<Channel>,
    events: mpsc::UnboundedReceiver<Event>,
}

async fn frontend(io: DuplexStream) -> Result<Frontend, SessionError> {
    let (requests, connection) = h2::client::handshake(io).await?;
    tokio::spawn(connection);
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static("http://tunnel/ProxyService/Proxy");
    let mut requests = requests.ready().await?;
    let (response, mut send) = requests.send_request(request, false)?;
    let response = response.await?;
    grpc::verdict(response.headers())?;
    let channel = Channel::new(Role::Asking, 10);
    let (tell, events) = mpsc::unbounded_channel();
    let running = Arc::clone(&channel);
    tokio::spawn(async move {
        let _held = requests;
        tokio::select! {
            _ = running.read(response.into_body(), |event| drop(tell.send(event))) => {}
            _ = running.write(&mut send) => {}
        }
        let _ = send.send_data(Bytes::new(), true);
    });
    Ok(Frontend { channel, events })
}

#[tokio::test]
async fn frontends_open_what_the_tunnels_reach() {
    let tunnels = Arc::new(Answers(async |destination: Destination| {
        if destination.host != "known" {
            return Err(DialError::NoAgent(destination.to_string()).into());
        }
        let (ours, theirs) = duplex(1 << 10);
        tokio::spawn(echo(theirs));
        Ok(Box::new(ours) as BoxStream)
    }));
    let (io, _coming) = server(Some(tunnels));
    let mut frontend = frontend(io).await.unwrap();
    assert!(frontend.channel.dial(1, "nowhere:1".into()));
    let error = "No agent available: nowhere:1".to_owned();
    assert_eq!(
        frontend.events.recv().await.unwrap(),
        Event::Refused { random: 1, error }
    );
    assert!(frontend.channel.dial(2, "no address".into()));
    assert!(matches!(
        frontend.events.recv().await.unwrap(),
        Event::Refused { random: 2, .. }
    ));
    let live: Arc<Live> = Arc::default();
    // Several on one stream, though konnectivity's client has one.
    for random in [3, 4] {
        assert!(frontend.channel.dial(random, "known:1".into()));
        let Event::Opened { id, .. } = frontend.events.recv().await.unwrap() else {
            panic!("not opened");
        };
        let mut stream: BoxStream = Box::new(frontend.channel.stream(id, live.enter(9).unwrap()));
        let data = bytes(100_000);
        assert!(ping_pong(&mut stream, &data).await == data);
    }
    assert_eq!(frontend.channel.lines(), 0);
}

#[tokio::test]
async fn frontends_are_not_served_where_there_are_none() {
    let (io, _coming) = server(None);
    let error = frontend(io).await.err().unwrap();
    assert_eq!(
        error,
        SessionError::Refused("gRPC status 12: no frontends are served here".into())
    );
}

/// A pair with a way between that loses everything from when the token is cancelled.
async fn pair_that_freezes() -> (Arc<dyn Link>, Session, CancellationToken) {
    let (near, mut coming) = server(None);
    let (far, theirs) = duplex(64 << 10);
    let frozen = CancellationToken::new();
    tokio::spawn({
        let frozen = frozen.clone();
        async move {
            let (mut near, mut far) = (near, far);
            let copying = tokio::io::copy_bidirectional(&mut near, &mut far);
            let _ = frozen.run_until_cancelled(copying).await;
            std::future::pending::<()>().await;
        }
    });
    let session = connect(
        Box::new(theirs),
        twin::agent_hello("node-1"),
        served(echo),
        None,
        Options::default(),
        CancellationToken::new(),
    );
    let session = session.await.unwrap();
    (coming.recv().await.unwrap(), session, frozen)
}

#[tokio::test(start_paused = true)]
async fn a_frozen_agent_is_found() {
    let (link, _session, frozen) = pair_that_freezes().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!link.closed().is_cancelled());
    frozen.cancel();
    let began = tokio::time::Instant::now();
    assert!(matches!(
        link.dial(&to("any:1")).await,
        Err(DialError::Lost(_))
    ));
    assert!(began.elapsed() <= Duration::from_secs(10));
}

/// What our server does besides keeps the link from being silent: here it does nothing, as konnectivity's.
#[tokio::test(start_paused = true)]
async fn a_frozen_server_is_found_and_a_silent_one_is_not_taken_for_one() {
    let (ours, theirs) = duplex(64 << 10);
    let frozen = CancellationToken::new();
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    tokio::spawn({
        let (frozen, asked) = (frozen.clone(), Arc::clone(&asked));
        async move {
            let mut connection = h2::server::handshake(theirs).await.unwrap();
            let mut held = Vec::new();
            let serving = async {
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let path = request.uri().path().to_owned();
                    asked.lock().unwrap().push(path.clone());
                    if path != super::CONNECT {
                        grpc::refuse(respond, grpc::Code::Unimplemented, "unknown service");
                        continue;
                    }
                    let mut answer = grpc::answer();
                    let headers = answer.headers_mut();
                    headers.insert(super::SERVER_ID, "server-1".parse().unwrap());
                    headers.insert(super::SERVER_COUNT, 1.into());
                    let send = respond.send_response(answer, false).unwrap();
                    held.push((request, respond, send));
                }
            };
            let _ = frozen.run_until_cancelled(serving).await;
            std::future::pending::<()>().await;
        }
    });
    let session = connect(
        Box::new(ours),
        twin::agent_hello("node-1"),
        served(echo),
        None,
        Options::default(),
        CancellationToken::new(),
    );
    let mut session = session.await.unwrap();
    let an_hour = timeout(Duration::from_secs(3600), session.ended()).await;
    assert!(an_hour.is_err(), "{an_hour:?}");
    let asked: Vec<String> = std::mem::take(&mut asked.lock().unwrap());
    assert_eq!(asked[0], super::CONNECT);
    assert!(asked.len() > 100);
    let health = "/grpc.health.v1.Health/Check";
    assert!(asked[1..].iter().all(|path| path == health), "{asked:?}");
    frozen.cancel();
    let began = tokio::time::Instant::now();
    assert!(matches!(session.ended().await, SessionError::Silent(_)));
    assert!(began.elapsed() <= Duration::from_secs(30));
}
