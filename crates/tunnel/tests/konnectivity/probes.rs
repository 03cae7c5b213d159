//! What a tunnel is put through.

use crate::programs::{Field, PATIENCE};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Listens, and does the same with everyone who comes.
async fn serve<F, R>(program: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(program(stream));
        }
    });
    address
}

/// Sends back what it reads.
pub(crate) async fn echo() -> SocketAddr {
    serve(|mut stream| async move {
        let (mut reading, mut writing) = stream.split();
        let _ = tokio::io::copy(&mut reading, &mut writing).await;
        let _ = writing.shutdown().await;
    })
    .await
}

/// Reads to the end and tells how much there was.
async fn sink() -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let (tell, told) = mpsc::unbounded_channel();
    let address = serve(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            let _ = tell.send(all.len());
        }
    });
    (address.await, told)
}

/// Says the same, back and forth.
pub(crate) async fn ping_pong(stream: impl AsyncRead + AsyncWrite, data: &[u8]) {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut answer = vec![0; data.len()];
    let both = async { tokio::join!(writing.write_all(data), reading.read_exact(&mut answer)) };
    let (said, read) = timeout(PATIENCE, both).await.unwrap();
    said.unwrap();
    read.unwrap();
    assert!(answer == data);
}

/// Descriptors for both ends of everything.
pub(crate) fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(maximum.unwrap_or(16_384).min(16_384));
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

/// Much, both ways at once.
pub(crate) async fn bulk(field: &Field) {
    let echo = echo().await;
    let mut all = JoinSet::new();
    for _ in 0..4 {
        let stream = field.connect(echo).await.unwrap();
        all.spawn(async move { ping_pong(stream, &bytes(2 << 20)).await });
    }
    all.join_all().await;
}

/// So many at once, all of them alive.
pub(crate) async fn crowd(field: &Arc<Field>, count: usize) {
    let echo = echo().await;
    let places = Arc::new(Semaphore::new(32));
    let mut opening = JoinSet::new();
    for _ in 0..count {
        let (field, places) = (Arc::clone(field), Arc::clone(&places));
        opening.spawn(async move {
            let _place = places.acquire_owned().await.unwrap();
            let mut stream = field.connect(echo).await.unwrap();
            ping_pong(&mut stream, b"first").await;
            stream
        });
    }
    let mut streams = opening.join_all().await;
    assert_eq!(streams.len(), count);
    for stream in &mut streams {
        ping_pong(stream, b"second").await;
    }
}

/// Each end closes, and the other is told within a moment.
pub(crate) async fn closing(field: &Field) {
    let (address, mut sunk) = sink().await;
    let stream = field.connect(address).await.unwrap();
    drop(stream);
    assert_eq!(timeout(PATIENCE, sunk.recv()).await.unwrap(), Some(0));
    let farewell = serve(|mut stream| async move {
        let _ = stream.read(&mut [0]).await;
        stream.write_all(b"farewell").await.unwrap();
    });
    let mut stream = field.connect(farewell.await).await.unwrap();
    stream.write_all(b"?").await.unwrap();
    let mut text = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut text)).await;
    assert_eq!(read.unwrap().unwrap(), 8);
}

fn length(round: usize) -> usize {
    [1_000, 20_000, 100_000][round % 3]
}

/// Who writes and closes has written: `rounds` times, everything.
pub(crate) async fn tails_up(field: &Arc<Field>, rounds: usize) {
    let (address, mut sunk) = sink().await;
    let places = Arc::new(Semaphore::new(100));
    for round in 0..rounds {
        let (field, places) = (Arc::clone(field), Arc::clone(&places));
        tokio::spawn(async move {
            let _place = places.acquire_owned().await.unwrap();
            let mut stream = field.connect(address).await.unwrap();
            stream.write_all(&bytes(length(round))).await.unwrap();
            stream.shutdown().await.unwrap();
            // Until it is known to have ended.
            let _ = timeout(PATIENCE, stream.read(&mut [0])).await;
        });
    }
    let mut got: Vec<usize> = Vec::new();
    while got.len() < rounds {
        got.push(timeout(PATIENCE, sunk.recv()).await.unwrap().unwrap());
    }
    let mut wanted: Vec<usize> = (0..rounds).map(length).collect();
    got.sort_unstable();
    wanted.sort_unstable();
    let lost = wanted.iter().sum::<usize>() - got.iter().sum::<usize>();
    assert!(got == wanted, "{lost} bytes of {rounds} uploads were lost");
}

/// The same from the other end. The caller speaks first: konnectivity's server sometimes sends a target's first words before its own answer.
pub(crate) async fn tails_down(field: &Arc<Field>, rounds: usize) {
    let round = AtomicUsize::new(0);
    let source = serve(move |mut stream| {
        let data = bytes(length(round.fetch_add(1, Relaxed)));
        async move {
            let _ = stream.read(&mut [0]).await;
            let _ = stream.write_all(&data).await;
        }
    });
    let address = source.await;
    let places = Arc::new(Semaphore::new(32));
    let mut all = JoinSet::new();
    for _ in 0..rounds {
        let (field, places) = (Arc::clone(field), Arc::clone(&places));
        all.spawn(async move {
            let _place = places.acquire_owned().await.unwrap();
            let mut stream = field.connect(address).await.unwrap();
            stream.write_all(b"?").await.unwrap();
            let mut read = Vec::new();
            let ended = timeout(PATIENCE, stream.read_to_end(&mut read)).await;
            ended.unwrap().unwrap();
            read.len()
        });
    }
    let mut got = all.join_all().await;
    let mut wanted: Vec<usize> = (0..rounds).map(length).collect();
    got.sort_unstable();
    wanted.sort_unstable();
    assert!(got == wanted, "downloads lost bytes");
}

/// Who does not read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stuck {
    /// The caller, of a target that sends without end.
    Caller,
    /// The target, of a caller that does.
    Target,
}

/// Pings go on beside a connection that nobody reads from, until it is cut, and after. Where a stuck one stalls all others, they stall for
/// ever.
pub(crate) async fn stuck(field: &Field, who: Stuck) {
    let mut live = field.connect(echo().await).await.unwrap();
    let block = bytes(64 << 10);
    let flood = serve({
        let block = block.clone();
        move |mut stream| {
            let block = block.clone();
            async move {
                let _ = stream.read(&mut [0]).await;
                match who {
                    Stuck::Caller => while stream.write_all(&block).await.is_ok() {},
                    Stuck::Target => std::future::pending().await,
                }
            }
        }
    });
    let mut culprit = field.connect(flood.await).await.unwrap();
    culprit.write_all(b"?").await.unwrap();
    let mut cut = tokio::spawn(async move {
        match who {
            // What was kept for it can still be read after.
            Stuck::Caller => {
                sleep(Duration::from_secs(3)).await;
                while matches!(culprit.read(&mut [0; 65_536]).await, Ok(1..)) {}
            }
            Stuck::Target => while culprit.write_all(&block).await.is_ok() {},
        }
    });
    let begun = Instant::now();
    while !cut.is_finished() || begun.elapsed() < Duration::from_secs(2) {
        let ping = timeout(Duration::from_secs(10), ping_pong(&mut live, b"ping"));
        ping.await.expect("pings stall beside a stuck connection");
        assert!(begun.elapsed() < PATIENCE, "it is never cut");
        sleep(Duration::from_millis(10)).await;
    }
    (&mut cut).await.unwrap();
    ping_pong(&mut live, b"pong").await;
}

/// Waits until an open connection is told that its tunnel is gone.
pub(crate) async fn told(mut stream: impl AsyncRead + Unpin) {
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
    assert!(!matches!(read, Ok(1..)));
}
