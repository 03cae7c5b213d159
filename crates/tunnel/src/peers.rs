//! The other instances of the server: what is connected to one of them is reached through any of them.
//!
//! Every instance keeps a connection to every other one (`yurt-peer/1`: a CONNECT stream per proxied connection). Who is asked that way
//! asks only its own agents, so that no request goes in a circle, and nobody has to know beforehand which agent is where: whoever was
//! right last time is asked first, then the others, the next one as soon as one denies it or takes its time.

pub mod leases;

use crate::{DialError, Tunnels};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_transport::{BoxStream, Destination};

/// How long one instance may think before the next one is asked as well.
const HEDGE: Duration = Duration::from_millis(200);
/// Instances that are asked for one target.
const MOST_ASKED: usize = 8;
/// Instances that are kept connections to.
const MOST_PEERS: usize = 64;
/// Targets that are remembered.
const MOST_REMEMBERED: usize = 16_384;
/// Pauses between attempts to connect: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to another instance.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Its own agents.
    pub tunnels: Arc<dyn Tunnels>,
    /// Cancelled when the connection has ended; cancelling it ends it.
    pub closed: CancellationToken,
}

/// Connects to an instance at `host:port`; the error is for people.
pub type Connect =
    Box<dyn Fn(String) -> BoxFuture<'static, Result<Connected, String>> + Send + Sync>;

#[derive(Debug)]
struct Peer {
    id: String,
    now: Result<Connected, String>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    /// By address.
    peers: BTreeMap<String, Peer>,
    /// Which address reached a target last.
    remembered: HashMap<String, String>,
}

/// The other instances, and the connections to them.
pub struct Peers {
    connect: Connect,
    inner: Mutex<Inner>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for Peers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Peers")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Peers {
    /// None yet.
    pub fn new(connect: Connect) -> Arc<Self> {
        Arc::new(Self {
            connect,
            inner: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// There is, and will be, no other instance.
    pub fn none() -> Arc<Self> {
        Self::new(Box::new(|_| {
            Box::pin(async { Err("no other instances".to_owned()) })
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These instances there are (address, and id where it is known): connections to others are left to end, new ones are opened.
    pub fn set(self: &Arc<Self>, wanted: &BTreeMap<String, String>) {
        if self.stop.is_cancelled() {
            return;
        }
        let mut inner = self.lock();
        inner.peers.retain(|address, peer| {
            let stays = wanted.contains_key(address);
            if !stays {
                tracing::info!(%address, id = %peer.id, "an instance is gone");
                peer.stop.cancel();
            }
            stays
        });
        for (address, id) in wanted.iter().take(MOST_PEERS) {
            if let Some(peer) = inner.peers.get_mut(address) {
                peer.id.clone_from(id);
                continue;
            }
            let stop = self.stop.child_token();
            let peer = Peer {
                id: id.clone(),
                now: Err("not connected yet".into()),
                stop: stop.clone(),
            };
            inner.peers.insert(address.clone(), peer);
            let keeping = self.clone().keep(address.clone());
            self.tasks.spawn(stop.run_until_cancelled_owned(keeping));
        }
    }

    /// Keeps a connection to one of them.
    async fn keep(self: Arc<Self>, address: String) {
        let mut pause = PAUSES.0;
        loop {
            let connecting = (self.connect)(address.clone());
            let connected = match tokio::time::timeout(CONNECT, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("no connection in {CONNECT:?}")),
            };
            self.is_now(&address, connected.clone());
            match connected {
                Ok(connected) => {
                    tracing::info!(%address, "connected to another instance");
                    // Ends with this task, whoever ends it.
                    let _ends = connected.closed.clone().drop_guard();
                    connected.closed.cancelled().await;
                    self.is_now(&address, Err("the connection ended".into()));
                    tracing::info!(%address, "the connection to another instance ended");
                    pause = PAUSES.0;
                }
                Err(error) => {
                    tracing::debug!(%address, %error, "another instance is not reached");
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    fn is_now(&self, address: &str, now: Result<Connected, String>) {
        if let Some(peer) = self.lock().peers.get_mut(address) {
            peer.now = now;
        }
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.lock()
            .peers
            .values()
            .filter(|peer| peer.now.is_ok())
            .count()
    }

    /// Whom to ask about a target, the likeliest first.
    fn candidates(&self, key: &str) -> Vec<(String, Arc<dyn Tunnels>)> {
        let inner = self.lock();
        let connected = inner.peers.iter().filter_map(|(address, peer)| {
            let now = peer.now.as_ref().ok()?;
            (!now.closed.is_cancelled()).then(|| (address.clone(), now.tunnels.clone()))
        });
        let mut candidates: Vec<_> = connected.collect();
        fastrand::shuffle(&mut candidates);
        if let Some(last) = inner.remembered.get(key) {
            candidates.sort_by_key(|(address, _)| address != last);
        }
        candidates.truncate(MOST_ASKED);
        candidates
    }

    fn remember(&self, key: String, address: String) {
        let mut inner = self.lock();
        if inner.remembered.len() >= MOST_REMEMBERED {
            inner.remembered.clear();
        }
        inner.remembered.insert(key, address);
    }

    /// Opens a connection through whichever instance has an agent for it.
    pub async fn open(&self, to: &Destination) -> Result<BoxStream, DialError> {
        let key = to.node.clone().unwrap_or_else(|| to.host.clone());
        let mut candidates = self.candidates(&key).into_iter();
        let mut asked = FuturesUnordered::new();
        let mut last = DialError::NoAgent("no other instance is connected".into());
        let ask = |(address, tunnels): (String, Arc<dyn Tunnels>)| async move {
            let opened = tunnels.open(to).await;
            (address, opened)
        };
        loop {
            if asked.is_empty() {
                match candidates.next() {
                    Some(next) => asked.push(ask(next)),
                    None => return Err(last),
                }
            }
            let answer = tokio::select! {
                answer = asked.next() => answer,
                () = tokio::time::sleep(HEDGE), if candidates.len() > 0 => None,
            };
            match answer {
                Some((address, Ok(stream))) => {
                    self.remember(key, address);
                    return Ok(stream);
                }
                Some((_, Err(error))) if error.may_retry() => {
                    let worse = matches!(error, DialError::NoAgent(_));
                    if !worse || matches!(last, DialError::NoAgent(_)) {
                        last = error;
                    }
                    asked.extend(candidates.next().map(ask));
                }
                Some((_, Err(error))) => return Err(error),
                None => asked.extend(candidates.next().map(ask)),
            }
        }
    }

    /// Where a target was reached last.
    pub fn remembered(&self, to: &Destination) -> Option<String> {
        let key = to.node.as_ref().unwrap_or(&to.host);
        self.lock().remembered.get(key).cloned()
    }

    /// What there is, for people.
    pub fn status(&self) -> Vec<PeerStatus> {
        let inner = self.lock();
        let peers = inner.peers.iter();
        peers
            .map(|(address, peer)| PeerStatus {
                address: address.clone(),
                id: peer.id.clone(),
                connected: peer.now.is_ok(),
                why: peer.now.as_ref().err().cloned().unwrap_or_default(),
            })
            .collect()
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Another instance, as `/v1/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Where it is reached.
    pub address: String,
    /// Its id, where it is known.
    #[serde(default)]
    pub id: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Why there is none.
    #[serde(default)]
    pub why: String,
}

#[cfg(test)]
mod tests;
