use super::*;
use crate::{
    link::{DialError, Link, Tunnels},
    twin::{self, Answers, count, echo, exchange, served, to},
};
use std::{io, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, join, sink};
use tokio::sync::Notify;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let (link, session) = twin::mux("node-1", served(echo), Options::default()).await;
    assert_eq!(link.hello(), &twin::agent_hello("node-1"));
    assert_eq!(session.server, twin::server_hello("server-1"));
}

#[tokio::test]
async fn bytes_go_both_ways_and_half_close_works() {
    let (link, session) = twin::mux("node-1", served(count), Options::default()).await;
    let stream = link.dial(&to("any:1")).await.unwrap();
    assert_eq!(session.connections(), 1);
    assert_eq!(
        exchange(stream, &bytes(3_000_000)).await.unwrap(),
        b"3000000"
    );
    let (link, _session) = twin::mux("node-1", served(echo), Options::default()).await;
    let stream = link.dial(&to("any:1")).await.unwrap();
    let data = bytes(20 << 20);
    assert!(exchange(stream, &data).await.unwrap() == data);
    link.caller.live.idle().await;
}

#[tokio::test]
async fn why_a_dial_failed_is_told() {
    let dialer = Arc::new(Answers(async |to: Destination| {
        Err(match to.host.as_str() {
            "refused" => io::Error::from_raw_os_error(111),
            "files" => io::Error::from_raw_os_error(24),
            "forbidden" => io::Error::new(io::ErrorKind::PermissionDenied, "not on the list"),
            _ => io::ErrorKind::TimedOut.into(),
        })
    }));
    let (link, session) = twin::mux("node-1", dialer, Options::default()).await;
    let mut errors = Vec::new();
    for host in ["refused", "files", "forbidden", "slow"] {
        errors.push(link.dial(&to(&format!("{host}:1"))).await.err().unwrap());
    }
    assert!(matches!(&errors[0], DialError::Failed(text) if text.contains("refused")));
    assert!(matches!(&errors[1], DialError::Busy(_)));
    assert_eq!(errors[2], DialError::Forbidden("not on the list".into()));
    assert!(matches!(&errors[3], DialError::TimedOut(_)));
    session.live.idle().await;
    assert_eq!(link.connections(), 0);
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
    let (link, session) = twin::mux("node-1", dialer, Options::default()).await;
    let destination = to("black-hole:1");
    let given_up = timeout(Duration::from_millis(50), link.dial(&destination)).await;
    assert!(given_up.is_err());
    dropped.notified().await;
    session.live.idle().await;
    assert_eq!(link.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_hangs_is_bounded_by_the_agent() {
    let dialer = Arc::new(Answers(|_| std::future::pending()));
    let (link, session) = twin::mux("node-1", dialer, Options::default()).await;
    let began = tokio::time::Instant::now();
    let error = link.dial(&to("black-hole:1")).await.err().unwrap();
    assert!(matches!(error, DialError::TimedOut(text) if text.starts_with("black-hole:1")));
    assert_eq!(began.elapsed().as_secs(), Options::default().dial.as_secs());
    session.live.idle().await;
}

#[tokio::test]
async fn a_reset_is_no_end() {
    // The target vanishes after a few bytes, without an end.
    let dialer = Arc::new(Answers(|_| {
        let (ours, mut theirs) = duplex(1 << 10);
        tokio::spawn(async move {
            theirs.write_all(b"half").await.unwrap();
        });
        std::future::ready(Ok(Box::new(join(Torn(ours), sink())) as BoxStream))
    }));
    let (link, _session) = twin::mux("node-1", dialer, Options::default()).await;
    let mut stream = link.dial(&to("any:1")).await.unwrap();
    let mut read = Vec::new();
    let error = stream.read_to_end(&mut read).await.unwrap_err();
    assert!(b"half".starts_with(&read));
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    drop(stream);
    link.caller.live.idle().await;
}

/// Ends with a reset.
struct Torn(tokio::io::DuplexStream);

impl tokio::io::AsyncRead for Torn {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = std::pin::Pin::new(&mut self.0).poll_read(context, buffer);
        if polled.is_ready() && buffer.filled().len() == before {
            return std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        polled
    }
}

#[tokio::test]
async fn stuck_readers_take_nothing_from_a_live_one() {
    let options = Options {
        memory: 1 << 20,
        ..Options::default()
    };
    let dialer = Arc::new(Answers(|destination: Destination| {
        let (ours, theirs) = duplex(16 << 10);
        match destination.host.as_str() {
            // Never read; what is said to it stays where it is.
            "stuck" => {
                tokio::spawn(async move {
                    let _held = theirs;
                    std::future::pending::<()>().await;
                });
            }
            _ => drop(tokio::spawn(echo(theirs))),
        }
        std::future::ready(Ok(Box::new(ours) as BoxStream))
    }));
    let (link, _session) = twin::mux("node-1", dialer, options).await;
    let mut stuck = Vec::new();
    for _ in 0..40 {
        let mut stream = link.dial(&to("stuck:1")).await.unwrap();
        let filled = async {
            let block = vec![0; 64 << 10];
            let mut sent = 0;
            loop {
                match timeout(Duration::from_millis(5), stream.write(&block)).await {
                    Ok(count) => sent += count.unwrap(),
                    Err(_) => return sent,
                }
            }
        };
        let sent = filled.await;
        assert!(
            sent <= (1 << 20) + super::SEND_BUFFER + (64 << 10),
            "{sent}"
        );
        stuck.push(stream);
    }
    for _ in 0..20 {
        let stream = link.dial(&to("echo:1")).await.unwrap();
        let data = bytes(100_000);
        assert!(exchange(stream, &data).await.unwrap() == data);
    }
    assert_eq!(link.connections(), 40);
    drop(stuck);
    link.caller.live.idle().await;
}

/// Says single bytes, each a read of its own, and then nothing.
struct Dribble {
    left: usize,
    said: Arc<std::sync::atomic::AtomicUsize>,
}

impl tokio::io::AsyncRead for Dribble {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if self.left == 0 {
            return std::task::Poll::Pending;
        }
        self.left -= 1;
        self.said.fetch_add(1, Relaxed);
        buffer.put_slice(b"x");
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn small_frames_that_wait_for_a_reader_end_nothing() {
    let options = Options {
        memory: 1 << 20,
        ..Options::default()
    };
    // Of half as many the library makes an end of the connection, should they wait there.
    let each = options.memory / 256 * 2;
    let said = Arc::<std::sync::atomic::AtomicUsize>::default();
    let dialer = Arc::new(Answers({
        let said = Arc::clone(&said);
        move |to: Destination| {
            let stream: BoxStream = match to.host.as_str() {
                "dribble" => {
                    let said = Arc::clone(&said);
                    Box::new(join(Dribble { left: each, said }, sink()))
                }
                _ => {
                    let (ours, theirs) = duplex(1 << 10);
                    tokio::spawn(echo(theirs));
                    Box::new(ours)
                }
            };
            std::future::ready(Ok(stream))
        }
    }));
    let (link, _session) = twin::mux("node-1", dialer, options).await;
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let stream = link.dial(&to("dribble:1")).await.unwrap();
        let (reader, theirs) = duplex(1);
        tokio::spawn(crate::pump::pump(Box::new(theirs), stream));
        stuck.push(reader);
    }
    while said.load(Relaxed) < 4 * each {
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        let stream = link.dial(&to("echo:1")).await.unwrap();
        let data = bytes(10_000);
        assert!(exchange(stream, &data).await.unwrap() == data);
    }
    assert!(!link.closed().is_cancelled());
    // Nothing is lost to who reads in the end.
    for mut reader in stuck {
        reader.read_exact(&mut vec![0; each]).await.unwrap();
    }
}

#[tokio::test]
async fn a_writer_does_not_take_the_readers_wake_up() {
    let (link, _session) = twin::mux("node-1", served(echo), Options::default()).await;
    let stream = link.dial(&to("echo:1")).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let reader = tokio::spawn(async move {
        let mut read = Vec::new();
        reading.read_to_end(&mut read).await.unwrap();
        read
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
        writing.flush().await.unwrap();
        writing.write_all(b"word").await.unwrap();
        writing.flush().await.unwrap();
    }
    writing.shutdown().await.unwrap();
    assert_eq!(reader.await.unwrap().len(), 400);
}

#[tokio::test]
async fn write_then_close_delivers_everything() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let dialer = served(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut read = Vec::new();
            let ended = stream.read_to_end(&mut read).await;
            tell.send((read.len(), ended.is_ok())).unwrap();
        }
    });
    let (link, session) = twin::mux("node-1", dialer, Options::default()).await;
    let data = bytes(200_000);
    for round in 0..1000 {
        let length = [1000, 200_000][round % 2];
        let mut stream = link.dial(&to("any:1")).await.unwrap();
        stream.write_all(&data[..length]).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        assert_eq!(told.recv().await.unwrap(), (length, true));
    }
    session.live.idle().await;
    link.caller.live.idle().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_are_refused_as_busy() {
    let theirs = Options {
        max_connections: 2,
        ..Options::default()
    };
    let (ours, io) = duplex(64 << 10);
    let agent = answer(
        Box::new(io),
        twin::agent_hello("node-1"),
        served(echo),
        theirs,
        CancellationToken::new(),
    );
    let server = call(Box::new(ours), twin::server_hello("s"), Options::default());
    let (link, _session) = tokio::join!(server, agent);
    let (link, _session) = (link.unwrap(), _session.unwrap());
    let held = [
        link.dial(&to("a:1")).await.unwrap(),
        link.dial(&to("a:1")).await.unwrap(),
    ];
    let error = link.dial(&to("a:1")).await.err().unwrap();
    assert!(matches!(error, DialError::Busy(_)), "{error:?}");
    drop(held);
    link.caller.live.idle().await;
    // The agent learns of it a moment later.
    while link.dial(&to("a:1")).await.is_err() {
        tokio::task::yield_now().await;
    }
    let ours = Options {
        max_connections: 0,
        ..Options::default()
    };
    let (link, _session) = twin::mux("node-1", served(echo), ours).await;
    assert!(matches!(
        link.dial(&to("a:1")).await,
        Err(DialError::Busy(_))
    ));
}

#[tokio::test]
async fn many_dials_given_up_at_once_harm_nobody() {
    let dialer = Arc::new(Answers(|destination: Destination| async move {
        if destination.host == "black-hole" {
            std::future::pending::<()>().await;
        }
        let (ours, theirs) = duplex(1 << 10);
        tokio::spawn(echo(theirs));
        Ok(Box::new(ours) as BoxStream)
    }));
    let (link, session) = twin::mux("node-1", dialer, Options::default()).await;
    for round in 0..5 {
        let dials: Vec<_> = (0..500)
            .map(|_| {
                let link = Arc::clone(&link);
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
    assert_eq!(link.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_peer_is_found_at_both_ends() {
    for freeze_agent in [true, false] {
        let (ours, near) = duplex(64 << 10);
        let (far, theirs) = duplex(64 << 10);
        let frozen = CancellationToken::new();
        let between = tokio::spawn({
            let frozen = frozen.clone();
            async move {
                let (mut near, mut far) = (near, far);
                let _ = frozen
                    .run_until_cancelled(tokio::io::copy_bidirectional(&mut near, &mut far))
                    .await;
                std::future::pending::<()>().await;
            }
        });
        let agent = answer(
            Box::new(theirs),
            twin::agent_hello("n"),
            served(echo),
            Options::default(),
            CancellationToken::new(),
        );
        let server = call(Box::new(ours), twin::server_hello("s"), Options::default());
        let (link, session) = tokio::join!(server, agent);
        let (link, mut session) = (link.unwrap(), session.unwrap());
        let mut stream = link.dial(&to("a:1")).await.unwrap();
        // Idle, but alive.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!link.closed().is_cancelled());
        frozen.cancel();
        let began = tokio::time::Instant::now();
        if freeze_agent {
            link.closed().cancelled().await;
            assert!(stream.read(&mut [0]).await.is_err());
            assert!(matches!(
                link.dial(&to("a:1")).await,
                Err(DialError::Lost(_))
            ));
        } else {
            assert!(matches!(session.ended().await, SessionError::Silent(_)));
        }
        assert!(began.elapsed() <= Duration::from_secs(10));
        between.abort();
    }
}

#[tokio::test]
async fn a_draining_server_is_told_of_and_what_is_open_goes_on() {
    let (link, session) = twin::mux("node-1", served(echo), Options::default()).await;
    let stream = link.dial(&to("a:1")).await.unwrap();
    link.drain();
    session.server_drains().cancelled().await;
    assert_eq!(exchange(stream, b"still").await.unwrap(), b"still");
}

#[tokio::test]
async fn a_draining_agent_takes_no_dials_and_ends_with_its_last_connection() {
    let (ours, io) = duplex(64 << 10);
    let shutdown = CancellationToken::new();
    let agent = answer(
        Box::new(io),
        twin::agent_hello("n"),
        served(echo),
        Options::default(),
        shutdown.clone(),
    );
    let (link, session) = tokio::join!(
        call(Box::new(ours), twin::server_hello("s"), Options::default()),
        agent
    );
    let (link, mut session) = (link.unwrap(), session.unwrap());
    let stream = link.dial(&to("a:1")).await.unwrap();
    shutdown.cancel();
    while !link.is_draining() {
        tokio::task::yield_now().await;
    }
    let refused = link.dial(&to("a:1")).await.err().unwrap();
    assert!(refused.may_retry());
    let data = bytes(1 << 20);
    assert!(exchange(stream, &data).await.unwrap() == data);
    assert_eq!(session.ended().await, SessionError::Closed);
    link.closed().cancelled().await;
}

#[tokio::test]
async fn an_agent_that_is_not_wanted_is_told_why() {
    let (link, mut session) = twin::mux("node-1", served(echo), Options::default()).await;
    link.refuse("node-1 is somebody else");
    assert_eq!(
        session.ended().await,
        SessionError::Refused("node-1 is somebody else".into())
    );
    drop(session);
    link.closed().cancelled().await;
}

#[tokio::test]
async fn a_session_that_is_dropped_ends_the_link_and_its_streams() {
    let (link, session) = twin::mux("node-1", served(echo), Options::default()).await;
    let mut stream = link.dial(&to("a:1")).await.unwrap();
    drop(session);
    link.closed().cancelled().await;
    assert!(stream.read(&mut [0]).await.is_err());
    drop(stream);
    assert_eq!(link.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn garbage_and_silence_are_bounded() {
    for say in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b""] {
        let (ours, mut theirs) = duplex(64 << 10);
        theirs.write_all(say).await.unwrap();
        let error = call(Box::new(ours), twin::server_hello("s"), Options::default())
            .await
            .unwrap_err();
        assert_ne!(error, SessionError::Closed);
        let (ours, mut theirs) = duplex(64 << 10);
        theirs.write_all(say).await.unwrap();
        let shutdown = CancellationToken::new();
        let answered = answer(
            Box::new(ours),
            twin::agent_hello("n"),
            served(echo),
            Options::default(),
            shutdown,
        )
        .await;
        assert_ne!(answered.err().unwrap(), SessionError::Closed);
    }
}

#[tokio::test]
async fn the_cloud_is_asked_the_other_way_round() {
    let (ours, theirs) = duplex(64 << 10);
    let tunnels = Arc::new(Answers(async |destination: Destination| {
        if destination.host != "allowed" {
            return Err(DialError::Forbidden("not declared".into()).into());
        }
        let (ours, theirs) = duplex(1 << 10);
        tokio::spawn(echo(theirs));
        Ok(Box::new(ours) as BoxStream)
    }));
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(cloud::serve(
        Box::new(theirs),
        tunnels,
        Options::default(),
        shutdown.clone(),
    ));
    let cloud = cloud::ask(Box::new(ours), Options::default())
        .await
        .unwrap();
    let stream = cloud.open(&to("allowed:1")).await.unwrap();
    assert_eq!(exchange(stream, b"hello").await.unwrap(), b"hello");
    let error = cloud.open(&to("other:1")).await.err().unwrap();
    assert_eq!(error, DialError::Forbidden("not declared".into()));
    while cloud.connections() > 0 {
        tokio::task::yield_now().await;
    }
    shutdown.cancel();
    assert_eq!(serving.await.unwrap(), SessionError::Closed);
    cloud.closed().cancelled().await;
}

#[tokio::test]
async fn a_link_that_is_dropped_ends_the_session() {
    let (link, mut session) = twin::mux("node-1", served(echo), Options::default()).await;
    let stream = link.dial(&to("a:1")).await.unwrap();
    drop(link);
    assert!(matches!(session.ended().await, SessionError::Broken(_)));
    assert!(exchange(stream, b"gone").await.is_err());
    session.live.idle().await;
}

#[tokio::test]
async fn a_server_that_is_not_wanted_never_hears_who_is_there() {
    let (ours, theirs) = duplex(64 << 10);
    let agent = answer_if(
        Box::new(theirs),
        twin::agent_hello("n"),
        served(echo),
        Options::default(),
        CancellationToken::new(),
        &|server| server.id != "s",
    );
    let server = call(Box::new(ours), twin::server_hello("s"), Options::default());
    let (link, session) = tokio::join!(server, agent);
    assert!(link.is_err());
    let unwanted = SessionError::Unwanted(twin::server_hello("s"));
    assert_eq!(session.err(), Some(unwanted));
}
