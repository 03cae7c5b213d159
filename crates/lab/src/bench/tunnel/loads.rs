//! What is done to a way to the origin, and what it took.

use super::{
    origin::Ask,
    way::{Connection, Way},
};
use crate::bench::{
    BenchError, cpu_seconds,
    load::{Asks, Latencies, Load, call},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::time::{Duration, Instant};
use tokio::{task::JoinSet, time::sleep};

/// Connections opened at one time.
const OPENED: usize = 32;
/// Between two pings.
const PING: Duration = Duration::from_millis(10);
/// Until a stuck reader's buffers are full everywhere.
const FILLING: Duration = Duration::from_millis(1500);
const MEBIBYTE: f64 = (1 << 20) as f64;

/// Server and agent of a tunnel, by process; none where there is no tunnel or nobody said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    pub(super) server: Option<u32>,
    pub(super) agent: Option<u32>,
}

impl Ends {
    fn cpu(self) -> [f64; 2] {
        [self.server, self.agent].map(cpu_seconds)
    }
}

/// Where bulk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toward {
    /// From the origin.
    Down,
    /// To it.
    Up,
}

/// The outcome of bulk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bulk {
    /// MiB per second.
    pub(super) rate: f64,
    /// CPU milliseconds per MiB of the tunnel's server and agent; not a number where they are unknown.
    pub(super) cpu: [f64; 2],
}

/// Moves `bytes` on each of so many streams at once.
pub(super) async fn bulk(
    way: &Way,
    ends: Ends,
    toward: Toward,
    streams: usize,
    bytes: u64,
) -> Result<Bulk, BenchError> {
    let mut connections = open(way, streams).await?;
    // What a first request needs is not counted.
    for connection in &mut connections {
        connection
            .small()
            .await
            .map_err(|error| failed(way, error))?;
    }
    let (before, begun) = (ends.cpu(), Instant::now());
    let mut moving = JoinSet::new();
    for connection in connections {
        moving.spawn(async move {
            match toward {
                Toward::Down => connection.download(bytes).await,
                Toward::Up => connection.upload(bytes).await,
            }
        });
    }
    while let Some(moved) = moving.join_next().await {
        moved
            .map_err(std::io::Error::other)
            .and_then(|moved| moved)
            .map_err(|error| failed(way, error))?;
    }
    let mebibytes = bytes as f64 * streams as f64 / MEBIBYTE;
    let rate = mebibytes / begun.elapsed().as_secs_f64();
    let [server, agent] = ends.cpu();
    let per_mebibyte = |after: f64, before: f64| (after - before) * 1e3 / mebibytes;
    Ok(Bulk {
        rate,
        cpu: [
            per_mebibyte(server, before[0]),
            per_mebibyte(agent, before[1]),
        ],
    })
}

fn failed(way: &Way, error: impl ToString) -> BenchError {
    call(&way.to_string(), error)
}

/// Opens so many connections.
async fn open(way: &Way, count: usize) -> Result<Vec<Connection>, BenchError> {
    let opening = (0..count).map(|_| way.must_connect());
    stream::iter(opening).buffered(OPENED).try_collect().await
}

/// Whether connections are kept between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Kept,
    /// A new one for each request.
    Fresh,
}

struct Client {
    way: Way,
    manner: Manner,
    connection: Option<Connection>,
}

impl Asks for Client {
    async fn ask(&mut self) -> Result<(), BenchError> {
        let exchange = async {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => self.way.connect().await?,
            };
            connection.small().await?;
            if self.manner == Manner::Kept {
                self.connection = Some(connection);
            }
            Ok::<(), std::io::Error>(())
        };
        exchange.await.map_err(|error| failed(&self.way, error))
    }
}

/// Small requests, from so many clients at once.
pub(super) async fn requests(way: &Way, manner: Manner, clients: usize, time: Duration) -> Load {
    let client = |_| Client {
        way: way.clone(),
        manner,
        connection: None,
    };
    Load::of((0..clients).map(client), time).await
}

/// Opens so many connections with one request each, and keeps them while `then` looks.
pub(super) async fn held<T>(
    way: &Way,
    count: usize,
    then: impl Future<Output = T>,
) -> Result<T, BenchError> {
    let opening = (0..count).map(|_| async {
        let mut connection = way.must_connect().await?;
        connection
            .small()
            .await
            .map_err(|error| failed(way, error))?;
        Ok::<_, BenchError>(connection)
    });
    let connections: Vec<Connection> = stream::iter(opening).buffered(OPENED).try_collect().await?;
    let seen = then.await;
    drop(connections);
    Ok(seen)
}

/// Who does not take what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    Nobody,
    /// A client that asked for much.
    Reader,
    /// An address behind the agent.
    Target,
}

/// What a live connection sees.
#[derive(Debug)]
pub(super) struct Pings {
    pub(super) latencies: Latencies,
    /// Those without an answer.
    pub(super) lost: u64,
    /// How long a new connection with its first answer took; not a number when there was none.
    pub(super) dial: f64,
}

/// Pings on one connection for a while, beside others that are stuck.
pub(super) async fn pings(way: &Way, stuck: Stuck, time: Duration) -> Result<Pings, BenchError> {
    let mut live = way.must_connect().await?;
    live.small().await.map_err(|error| failed(way, error))?;
    let mut beside = way.must_connect().await?;
    let flood = match stuck {
        Stuck::Nobody => None,
        Stuck::Reader => {
            let asked = beside.begin(Ask::Bulk(u64::MAX)).await;
            asked.map_err(|error| failed(way, error))?;
            None
        }
        Stuck::Target => {
            let asked = beside.begin(Ask::Stuck).await;
            asked.map_err(|error| failed(way, error))?;
            // Ends when it is aborted, or somebody gave up.
            Some(tokio::spawn(async move {
                let _ = beside.flood().await;
            }))
        }
    };
    if stuck != Stuck::Nobody {
        sleep(FILLING).await;
    }
    let mut pings = Pings {
        latencies: Latencies::new(),
        lost: 0,
        dial: f64::NAN,
    };
    let end = Instant::now() + time;
    while Instant::now() < end {
        let sent = Instant::now();
        if live.small().await.is_err() {
            pings.lost += 1;
            break;
        }
        pings.latencies.record(sent.elapsed());
        sleep(PING).await;
    }
    let begun = Instant::now();
    if let Ok(mut connection) = way.connect().await
        && connection.small().await.is_ok()
    {
        pings.dial = begun.elapsed().as_secs_f64() * 1e3;
    }
    if let Some(flood) = flood {
        flood.abort();
    }
    Ok(pings)
}
