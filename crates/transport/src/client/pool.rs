//! The connections of one client.

use super::error::{DialError, Witness};
use crate::Body;
use hyper::client::conn::{http1, http2};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Streams we put on one HTTP/2 connection at most, whatever the peer allows: together their windows fit into the connection's
/// window, so that stalled streams cannot starve a live one.
pub(super) const MAX_STREAMS: usize = 100;
/// Changes of the TLS configuration whose connections may still be in use. Those of an older one are broken.
const RETIRED: usize = 4;
/// Servers close idle connections; one that was idle for long is not worth a lost request.
const MAX_IDLE_TIME: Duration = Duration::from_secs(20);

/// `None` until the dial is over.
pub(super) type DialResult = watch::Receiver<Option<Result<(), DialError>>>;

/// An HTTP/1.1 connection: one request at a time.
pub(super) struct Own {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) witness: Witness,
}

/// An HTTP/2 connection and how many streams of it are taken.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) sender: http2::SendRequest<Body>,
    pub(super) witness: Witness,
    taken: Arc<AtomicUsize>,
    /// What the peer allows, as last seen by the task that drives the connection.
    allowed: Arc<AtomicUsize>,
}

/// A taken stream of a [`Shared`] connection, given back on drop.
#[derive(Debug)]
pub(super) struct StreamSlot(Arc<AtomicUsize>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    pub(super) fn new(
        sender: http2::SendRequest<Body>,
        allowed: Arc<AtomicUsize>,
        witness: Witness,
    ) -> Self {
        Self {
            sender,
            witness,
            taken: Arc::new(AtomicUsize::new(0)),
            allowed,
        }
    }

    /// Takes a stream if there is one to take. Only called under the pool's lock, so that check and increment are one.
    fn take(&self) -> Option<StreamSlot> {
        let allowed = self.allowed.load(Ordering::Acquire).clamp(1, MAX_STREAMS);
        if self.taken.load(Ordering::Acquire) >= allowed {
            return None;
        }
        self.taken.fetch_add(1, Ordering::AcqRel);
        Some(StreamSlot(Arc::clone(&self.taken)))
    }
}

struct Idle {
    own: Own,
    since: Instant,
}

/// A connection to send one request on.
pub(super) enum Lease {
    Shared { shared: Shared, slot: StreamSlot },
    Own { own: Own, reused: bool },
}

#[derive(Default)]
pub(super) struct Pool {
    shared: Vec<Shared>,
    idle: VecDeque<Idle>,
    /// The dial that all callers without a connection wait for.
    pub(super) dialing: Option<DialResult>,
    /// The peer was seen to speak HTTP/1.1: dials need not be shared.
    pub(super) exclusive: bool,
    /// Cancelled by a reset.
    pub(super) token: CancellationToken,
    /// Of the connections before a change of the TLS configuration.
    retired: VecDeque<CancellationToken>,
    /// Counts resets and changes of the TLS configuration; connections of an older epoch are not pooled any more.
    pub(super) epoch: u64,
}

impl Pool {
    /// A pooled connection that looks alive.
    pub(super) fn take(&mut self) -> Option<Lease> {
        self.shared.retain(|shared| !shared.sender.is_closed());
        for shared in &self.shared {
            if let Some(slot) = shared.take() {
                let shared = shared.clone();
                return Some(Lease::Shared { shared, slot });
            }
        }
        // The last one used is the most likely to be alive.
        while let Some(idle) = self.idle.pop_back() {
            if idle.own.sender.is_ready() && idle.since.elapsed() < MAX_IDLE_TIME {
                return Some(Lease::Own {
                    own: idle.own,
                    reused: true,
                });
            }
        }
        None
    }

    pub(super) fn put_shared(&mut self, shared: Shared) {
        self.shared.push(shared);
    }

    /// Takes a connection out of use for new requests; its streams go on.
    pub(super) fn retire_shared(&mut self, gone: &Shared) {
        self.shared
            .retain(|shared| !Arc::ptr_eq(&shared.taken, &gone.taken));
    }

    pub(super) fn put_idle(&mut self, own: Own, max: usize) {
        self.idle
            .retain(|idle| idle.own.sender.is_ready() && idle.since.elapsed() < MAX_IDLE_TIME);
        if max == 0 {
            return;
        }
        while self.idle.len() >= max {
            self.idle.pop_front();
        }
        self.idle.push_back(Idle {
            own,
            since: Instant::now(),
        });
    }

    /// Forgets all connections; those in use go on until their streams end, or [`Pool::end_retired`].
    pub(super) fn retire(&mut self) {
        self.epoch += 1;
        self.shared.clear();
        self.idle.clear();
        self.dialing = None;
        self.exclusive = false;
        self.retired.push_back(std::mem::take(&mut self.token));
        while self.retired.len() > RETIRED {
            self.retired.pop_front().inspect(CancellationToken::cancel);
        }
    }

    /// Breaks the connections that were retired.
    pub(super) fn end_retired(&mut self) {
        self.retired.drain(..).for_each(|token| token.cancel());
    }

    /// Forgets all connections and breaks them.
    pub(super) fn reset(&mut self) {
        self.retire();
        self.end_retired();
    }

    /// Open HTTP/2 connections and idle HTTP/1.1 ones.
    pub(super) fn connections(&self) -> usize {
        let shared = self.shared.iter().filter(|s| !s.sender.is_closed()).count();
        shared + self.idle.iter().filter(|i| i.own.sender.is_ready()).count()
    }
}
