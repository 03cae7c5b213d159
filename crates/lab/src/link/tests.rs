use super::*;
use std::future::Future;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const LONG: Duration = Duration::from_secs(30);
/// Long enough for bytes that are not held back.
const SHORT: Duration = Duration::from_millis(150);

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn in_time<F: Future>(what: F) -> F::Output {
    timeout(LONG, what).await.expect("in time")
}

/// A server that echoes, and a link to it.
async fn echo() -> Link {
    let listener = TcpListener::bind(any()).await.unwrap();
    let target = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    Link::start(any(), target).await.unwrap()
}

async fn ask(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn carries_bytes_ends_and_counts() {
    let link = echo().await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    assert_eq!(in_time(ask(&mut stream, b"hello")).await.unwrap(), b"hello");
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    in_time(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"last");
    let counters = link.counters();
    assert_eq!(
        (counters.to_target, counters.from_target, counters.accepted),
        (9, 9, 1)
    );
    in_time(async {
        while link.counters().open > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_cut_freezes_connections_and_a_heal_thaws_them() {
    let link = echo().await;
    let mut old = TcpStream::connect(link.address()).await.unwrap();
    in_time(ask(&mut old, b"before")).await.unwrap();
    link.set(LinkState::Cut);
    assert_eq!(link.state().to_string(), "cut");
    // Both connections take bytes, and neither hears anything: no byte, no end, no error.
    let mut new = TcpStream::connect(link.address()).await.unwrap();
    for stream in [&mut old, &mut new] {
        stream.write_all(b"one ").await.unwrap();
        stream.write_all(b"two").await.unwrap();
        assert!(timeout(SHORT, stream.read_u8()).await.is_err());
    }
    assert_eq!(link.counters().to_target, 6);
    link.set(LinkState::Up);
    for stream in [&mut old, &mut new] {
        let mut answer = [0; 7];
        in_time(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"one two");
    }
}

#[tokio::test]
async fn a_close_does_not_get_through_a_cut() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let link = Link::start(any(), listener.local_addr().unwrap())
        .await
        .unwrap();
    let client = TcpStream::connect(link.address()).await.unwrap();
    let (mut server, _) = in_time(listener.accept()).await.unwrap();
    link.set(LinkState::Cut);
    drop(client);
    assert!(timeout(SHORT, server.read_u8()).await.is_err(), "half open");
    link.set(LinkState::Up);
    assert!(in_time(server.read_u8()).await.is_err());
}

#[tokio::test]
async fn a_reset_reaches_both_ends_and_new_connections() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let link = Link::start(any(), listener.local_addr().unwrap())
        .await
        .unwrap();
    let mut client = TcpStream::connect(link.address()).await.unwrap();
    let (mut server, _) = in_time(listener.accept()).await.unwrap();
    link.set(LinkState::Reset);
    for stream in [&mut client, &mut server] {
        let error = in_time(stream.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let refused = async { TcpStream::connect(link.address()).await?.read_u8().await };
    assert_eq!(
        in_time(refused).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    link.set(LinkState::Up);
    let _client = TcpStream::connect(link.address()).await.unwrap();
    in_time(listener.accept()).await.unwrap();
}

#[tokio::test]
async fn a_reset_reaches_frozen_connections() {
    let link = echo().await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    in_time(ask(&mut stream, b"x")).await.unwrap();
    link.set(LinkState::Cut);
    stream.write_all(b"lost").await.unwrap();
    link.set(LinkState::Reset);
    assert!(in_time(stream.read_u8()).await.is_err());
}

#[tokio::test]
async fn delay_is_added_to_every_round_trip() {
    let link = echo().await;
    let delay = Duration::from_millis(200);
    link.set(LinkState::Slow {
        delay,
        bytes_per_second: None,
    });
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    for _ in 0..2 {
        let begin = Instant::now();
        assert_eq!(in_time(ask(&mut stream, b"ping")).await.unwrap(), b"ping");
        assert!(begin.elapsed() >= delay, "{:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn the_rate_limits_all_connections_together() {
    let link = echo().await;
    let rate = 400_000;
    link.set(LinkState::Slow {
        delay: Duration::ZERO,
        bytes_per_second: Some(rate),
    });
    let begin = Instant::now();
    let send = || async {
        let mut stream = TcpStream::connect(link.address()).await.unwrap();
        let sent = vec![7; 100_000];
        assert_eq!(in_time(ask(&mut stream, &sent)).await.unwrap(), sent);
    };
    tokio::join!(send(), send());
    assert!(
        begin.elapsed() >= Duration::from_millis(500),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn losses_lose_nothing() {
    let link = echo().await;
    link.set(LinkState::Lossy {
        delay: Duration::ZERO,
        loss_percent: 10,
    });
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    let sent: Vec<u8> = (0..100_000u32)
        .flat_map(u32::to_le_bytes)
        .take(40_000)
        .collect();
    assert!(in_time(ask(&mut stream, &sent)).await.unwrap() == sent);
}

#[tokio::test]
async fn changes_of_state_lose_no_byte() {
    let link = echo().await;
    let (mut read, mut write) = TcpStream::connect(link.address())
        .await
        .unwrap()
        .into_split();
    let sent: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let reading = tokio::spawn(async move {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        got
    });
    let states = [
        LinkState::Cut,
        LinkState::Up,
        LinkState::Slow {
            delay: Duration::from_millis(3),
            bytes_per_second: Some(5_000_000),
        },
        LinkState::Cut,
        LinkState::Lossy {
            delay: Duration::from_millis(1),
            loss_percent: 1,
        },
    ];
    for round in 0..40 {
        link.set(states[round % states.len()]);
        sleep(Duration::from_millis(2)).await;
    }
    link.set(LinkState::Up);
    in_time(writing).await.unwrap();
    assert!(in_time(reading).await.unwrap() == expected);
    assert_eq!(link.counters().to_target, expected.len() as u64);
}

#[tokio::test]
async fn a_cut_link_takes_little() {
    let link = echo().await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    in_time(ask(&mut stream, b"x")).await.unwrap();
    link.set(LinkState::Cut);
    let sent = vec![0; 256 << 20];
    assert!(
        timeout(Duration::from_secs(1), stream.write_all(&sent))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn nobody_behind_the_link_is_a_reset() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let target = listener.local_addr().unwrap();
    drop(listener);
    let link = Link::start(any(), target).await.unwrap();
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    assert!(in_time(stream.read_u8()).await.is_err());
}

#[tokio::test]
async fn a_dropped_link_closes_everything() {
    let link = echo().await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    in_time(ask(&mut stream, b"x")).await.unwrap();
    let address = link.address();
    drop(link);
    assert!(in_time(stream.read_u8()).await.is_err());
    in_time(async {
        while TcpStream::connect(address).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
