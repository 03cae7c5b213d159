//! Requests to other nodes of the pool: as this node (mTLS, with its client certificate of the moment), to that node and no other
//! (its serving certificate is of the cluster's CA, good for the address, and names it).

use super::role::PeerNode;
use crate::{certificates::Certificates, metrics::Metrics};
use bytes::Bytes;
use http::{Request, Response};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use yurt_pki::PkiError;
use yurt_transport::{Client, ClientError, ClientOptions, ResponseBody};

/// Peers that connections are kept to; of more, those that were not asked for the longest time are forgotten.
const MOST_PEERS: usize = 64;
/// How long the head of an answer may take.
const HEAD: Duration = Duration::from_secs(10);
/// Within one network a connection is there at once, or the node is not.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a peer that is not believed is set aside the first time; doubled each time up to the longest.
const FIRST_ASIDE: Duration = Duration::from_secs(2);
const LONGEST_ASIDE: Duration = Duration::from_secs(300);
/// Good conduct for so long after being set aside is a new beginning.
const FORGIVEN: Duration = Duration::from_secs(900);

/// Why a peer is not believed. A closed set: it labels a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Distrust {
    /// Its certificate is not that node's, or not the cluster's.
    Certificate,
    /// What it says cannot be read.
    Garbage,
    /// It stops in the middle.
    Stalled,
    /// What it says contradicts itself: revisions that go back, events out of order.
    Lies,
    /// It says more than anybody needs to.
    Flood,
}

impl Distrust {
    /// Its name in metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Garbage => "garbage",
            Self::Stalled => "stalled",
            Self::Lies => "lies",
            Self::Flood => "flood",
        }
    }
}

/// Why a peer gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// This node has no certificate to show: nobody's fault, and over as soon as there is one.
    #[error("this node has no certificate to show to others")]
    NoIdentity,
    /// The certificates of this node are of no use.
    #[error(transparent)]
    Unusable(#[from] PkiError),
    /// The peer is set aside: it is at fault; not to be asked before that is over.
    #[error("{peer} is set aside for {left:?}: {}", reason.as_str())]
    Aside {
        /// The peer.
        peer: PeerNode,
        /// Why.
        reason: Distrust,
        /// For how long still.
        left: Duration,
    },
    /// It did not answer. The error tells whether it was asked.
    #[error(transparent)]
    Failed(#[from] ClientError),
}

impl PeerError {
    /// Whether the peer is not who it should be, or does not take this node for who it is.
    pub fn is_identity(&self) -> bool {
        matches!(
            self,
            Self::Failed(ClientError::Tls { .. }) | Self::NoIdentity | Self::Unusable(_)
        )
    }
}

/// The clients of other nodes. Cheap to clone; clones share the connections.
#[derive(Clone, Debug)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    certificates: Certificates,
    metrics: Metrics,
    known: Mutex<HashMap<PeerNode, Known>>,
    aside: Mutex<HashMap<Box<str>, Aside>>,
}

#[derive(Debug)]
struct Known {
    client: Client,
    /// Of the certificates that the client was made with.
    epoch: u64,
    asked: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Aside {
    reason: Distrust,
    times: u32,
    until: Instant,
}

impl Aside {
    /// Sets aside a peer that may have been before: each time for longer.
    fn again(before: Option<Self>, reason: Distrust, now: Instant) -> Self {
        let before = before.filter(|before| now < before.until + FORGIVEN);
        // Found out about one thing by two ways at once: that is one time.
        let times = before.map_or(0, |before| {
            before.times.saturating_sub(u32::from(now < before.until))
        });
        let length = (FIRST_ASIDE * 2u32.saturating_pow(times.min(16))).min(LONGEST_ASIDE);
        Self {
            reason,
            times: times + 1,
            until: now + length,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// Clients that show what `certificates` has for the node.
    pub fn new(certificates: Certificates, metrics: Metrics) -> Self {
        Self {
            inner: Arc::new(Inner {
                certificates,
                metrics,
                known: Mutex::default(),
                aside: Mutex::default(),
            }),
        }
    }

    /// Asks a peer. The URI is a path. Waits a bounded time for the head of the answer; its body is not timed.
    pub async fn send(
        &self,
        peer: &PeerNode,
        request: Request<Bytes>,
    ) -> Result<Response<ResponseBody>, PeerError> {
        self.send_within(peer, request, HEAD).await
    }

    /// As [`Peers::send`], waiting for the head no longer than `wait`.
    pub async fn send_within(
        &self,
        peer: &PeerNode,
        request: Request<Bytes>,
        wait: Duration,
    ) -> Result<Response<ResponseBody>, PeerError> {
        if let Some((reason, left)) = self.set_aside(&peer.node) {
            return Err(PeerError::Aside {
                peer: peer.clone(),
                reason,
                left,
            });
        }
        let client = self.client(peer)?;
        let request = request.map(yurt_transport::full);
        let sent = client.send(request, wait.min(HEAD)).await;
        if let Err(error @ ClientError::Tls { .. }) = &sent
            && !error.is_refusal()
        {
            tracing::warn!(%peer, %error, "another certificate than the peer's");
            self.distrust(&peer.node, Distrust::Certificate);
        }
        Ok(sent?)
    }

    /// Breaks all connections with a peer: what is under way there ends at once.
    pub fn reset(&self, peer: &PeerNode) {
        if let Some(known) = lock(&self.inner.known).get(peer) {
            known.client.reset();
        }
    }

    /// Sets a peer aside, each time for longer: it is asked nothing meanwhile, and what is under way ends.
    pub fn distrust(&self, node: &str, reason: Distrust) {
        let now = Instant::now();
        let length = {
            let mut all = lock(&self.inner.aside);
            all.retain(|_, aside| now < aside.until + FORGIVEN);
            if all.len() >= MOST_PEERS
                && !all.contains_key(node)
                && let Some(first) = all.iter().min_by_key(|(_, aside)| aside.until)
            {
                let first = first.0.clone();
                all.remove(&first);
            }
            let aside = Aside::again(all.get(node).copied(), reason, now);
            all.insert(node.into(), aside);
            aside.until.saturating_duration_since(now)
        };
        self.inner.metrics.pool().distrusted(reason);
        tracing::warn!(
            node,
            reason = reason.as_str(),
            ?length,
            "a peer is set aside"
        );
        for (peer, known) in lock(&self.inner.known).iter() {
            if &*peer.node == node {
                known.client.reset();
            }
        }
    }

    /// Why and for how long still a peer is set aside, if it is.
    pub fn set_aside(&self, node: &str) -> Option<(Distrust, Duration)> {
        let aside = *lock(&self.inner.aside).get(node)?;
        let left = aside.until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some((aside.reason, left))
    }

    fn client(&self, peer: &PeerNode) -> Result<Client, PeerError> {
        let epoch = self.inner.certificates.epoch();
        let mut known = lock(&self.inner.known);
        if let Some(known) = known.get_mut(peer)
            && known.epoch == epoch
        {
            known.asked = Instant::now();
            return Ok(known.client.clone());
        }
        let tls = self.inner.certificates.peer(&peer.node)?;
        let Some(tls) = tls else {
            // Nothing goes on under a certificate that has ended.
            if let Some(known) = known.remove(peer) {
                known.client.reset();
            }
            return Err(PeerError::NoIdentity);
        };
        let client = match known.remove(peer) {
            // What is under way goes on over the connections it has, until their time is over.
            Some(known) => {
                known.client.end_retired();
                known.client.set_tls(tls);
                known.client
            }
            None => Client::new(
                &peer.address.to_string(),
                Some(tls),
                ClientOptions {
                    connect_timeout: CONNECT,
                    keepalive_interval: Duration::from_secs(5),
                    keepalive_timeout: Duration::from_secs(3),
                    max_idle: 4,
                },
            ),
        };
        if known.len() >= MOST_PEERS
            && let Some(oldest) = known.iter().min_by_key(|(_, known)| known.asked)
        {
            let oldest = oldest.0.clone();
            known.remove(&oldest);
        }
        let entry = Known {
            client: client.clone(),
            epoch,
            asked: Instant::now(),
        };
        known.insert(peer.clone(), entry);
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_set_aside_for_longer_each_time() {
        let mut now = Instant::now();
        let mut aside = None;
        let mut lengths = Vec::new();
        for _ in 0..10 {
            let set = Aside::again(aside, Distrust::Lies, now);
            lengths.push(set.until.duration_since(now).as_secs());
            now = set.until;
            aside = Some(set);
        }
        assert_eq!(lengths, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        // Not again for what was known already.
        let known = Aside::again(aside, Distrust::Lies, now);
        let twice = Aside::again(Some(known), Distrust::Garbage, now);
        assert_eq!((twice.times, twice.until), (known.times, known.until));
        let later = Aside::again(aside, Distrust::Lies, now + FORGIVEN);
        assert_eq!(later.times, 1);
    }
}
