//! What lists that wait for their clients may hold of memory, all together. A client that takes nothing loses its list when
//! another one needs the room.

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use yurt_transport::{Body, BoxError};
use yurt_wire::Status;

/// Lists put together at one time.
const BUILDERS: usize = 2;
/// How long a list may wait to be put together, and then for room.
const WAIT: Duration = Duration::from_secs(10);
/// When others need the room, a client that took nothing for this long loses its list.
const IDLE: Duration = Duration::from_secs(1);
/// What a client is told to wait.
const RETRY_AFTER: u32 = 1;
/// Largest frame: what a client has not taken can be given up, but for one frame in the hands of the connection.
const FRAME: usize = 64 << 10;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Lists {
    shared: Arc<Shared>,
    builders: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shared {
    budget: usize,
    ledger: Mutex<Ledger>,
    /// Room was made.
    released: Notify,
    cut: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Ledger {
    held: usize,
    next: u64,
    lists: HashMap<u64, Held>,
}

/// A list that waits for its client.
#[derive(Debug)]
struct Held {
    parts: VecDeque<Bytes>,
    size: usize,
    taken: Instant,
}

/// What there is to do for room.
enum Room {
    Made,
    /// Nobody loses a list before then.
    NotBefore(Instant),
}

impl Ledger {
    fn make_room(&mut self, size: usize, budget: usize, now: Instant, cut: &AtomicU64) -> Room {
        // A list alone may be larger than the budget.
        while !self.lists.is_empty() && self.held.saturating_add(size) > budget {
            let Some((&id, oldest)) = self.lists.iter().min_by_key(|(_, held)| held.taken) else {
                break;
            };
            let until = oldest.taken + IDLE;
            if now < until {
                return Room::NotBefore(until);
            }
            self.remove(id);
            cut.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("list broken off: its client takes nothing, and others need the room");
        }
        Room::Made
    }

    fn remove(&mut self, id: u64) {
        if let Some(held) = self.lists.remove(&id) {
            self.held -= held.size;
        }
    }
}

impl Lists {
    /// At most `budget` bytes at one time; `cut` counts the clients that lost their list.
    pub(super) fn new(budget: usize, cut: Arc<AtomicU64>) -> Self {
        Self {
            shared: Arc::new(Shared {
                budget,
                ledger: Mutex::default(),
                released: Notify::new(),
                cut,
            }),
            builders: Arc::new(Semaphore::new(BUILDERS)),
        }
    }

    /// The right to put a list together; to be held until it was admitted.
    pub(super) async fn begin(&self) -> Result<OwnedSemaphorePermit, Box<Status>> {
        match timeout(WAIT, self.builders.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(too_many()),
        }
    }

    /// Waits until there is room for a list; a refusal when there is none in time.
    pub(super) async fn admit(
        &self,
        response: Response<Vec<Bytes>>,
    ) -> Result<Response<Body>, Box<Status>> {
        let (head, parts) = response.into_parts();
        let parts = frames(parts);
        let size = parts.iter().map(Bytes::len).sum();
        let deadline = Instant::now() + WAIT;
        loop {
            // Before looking, or a release between looking and waiting would be missed.
            let released = self.shared.released.notified();
            let not_before = {
                let mut ledger = self.shared.ledger();
                let room =
                    ledger.make_room(size, self.shared.budget, Instant::now(), &self.shared.cut);
                match room {
                    Room::Made => {
                        let id = ledger.next;
                        ledger.next += 1;
                        ledger.held += size;
                        let held = Held {
                            parts,
                            size,
                            taken: Instant::now(),
                        };
                        ledger.lists.insert(id, held);
                        drop(ledger);
                        let body = Waiting {
                            shared: self.shared.clone(),
                            id,
                            remaining: size,
                        };
                        return Ok(Response::from_parts(head, body.boxed_unsync()));
                    }
                    Room::NotBefore(at) => at,
                }
            };
            if Instant::now() >= deadline {
                return Err(too_many());
            }
            // Whoever takes something is waited for again; either way the ledger is asked again.
            let _ = timeout_at(not_before.min(deadline), released).await;
        }
    }
}

fn too_many() -> Box<Status> {
    Box::new(Status::too_many_requests(
        "too many lists wait for their clients on this node, please try again later",
        RETRY_AFTER,
    ))
}

/// Frames that keep nothing but themselves in memory.
fn frames(parts: Vec<Bytes>) -> VecDeque<Bytes> {
    let mut frames = VecDeque::with_capacity(parts.len());
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        if part.len() > FRAME {
            frames.extend(part.chunks(FRAME).map(Bytes::copy_from_slice));
        } else {
            frames.push_back(part);
        }
    }
    frames
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // It is whole after every statement that may panic.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of an admitted list. What the client has not taken stays in the ledger.
struct Waiting {
    shared: Arc<Shared>,
    id: u64,
    remaining: usize,
}

impl http_body::Body for Waiting {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        let shared = self.shared.clone();
        let mut ledger = shared.ledger();
        let Some(held) = ledger.lists.get_mut(&self.id) else {
            drop(ledger);
            self.remaining = 0;
            return Poll::Ready(Some(Err(
                "the list was given up: nothing was taken of it".into()
            )));
        };
        held.taken = Instant::now();
        let frame = yurt_transport::next_joined(&mut held.parts);
        let size = frame.as_ref().map_or(0, Bytes::len);
        held.size -= size;
        let is_last = held.parts.is_empty();
        ledger.held -= size;
        if is_last {
            ledger.remove(self.id);
        }
        drop(ledger);
        self.shared.released.notify_waiters();
        self.remaining -= size;
        Poll::Ready(frame.map(|frame| Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining as u64)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.ledger().remove(self.id);
        self.shared.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use http_body::Body as _;

    const MIB: usize = 1 << 20;

    fn lists() -> (Lists, Arc<AtomicU64>) {
        let cut = Arc::default();
        (Lists::new(4 * MIB, Arc::clone(&cut)), cut)
    }

    async fn admit(lists: &Lists, size: usize) -> Result<Body, Box<Status>> {
        let parts = vec![Bytes::from_static(b"["), Bytes::from(vec![b'x'; size - 1])];
        lists
            .admit(Response::new(parts))
            .await
            .map(Response::into_body)
    }

    fn held(lists: &Lists) -> usize {
        lists.shared.ledger().held
    }

    #[tokio::test]
    async fn many_small_parts_go_out_in_few_frames() {
        let (lists, _) = lists();
        let parts = vec![Bytes::from_static(&[b'x'; 150]); 1000];
        let mut body = lists.admit(Response::new(parts)).await.unwrap();
        let (mut frames, mut bytes) = (0, 0);
        while let Some(frame) = body.body_mut().frame().await {
            frames += 1;
            bytes += frame.unwrap().into_data().unwrap().len();
            assert_eq!(held(&lists), 150_000 - bytes);
        }
        assert_eq!((frames, bytes), (5, 150_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_alone_may_be_larger_than_the_budget() {
        let (lists, cut) = lists();
        let body = admit(&lists, 9 * MIB).await.unwrap();
        assert_eq!(body.size_hint().exact(), Some(9 * MIB as u64));
        assert_eq!(held(&lists), 9 * MIB);
        let whole = body.collect().await.unwrap().to_bytes();
        assert_eq!(
            (whole.len(), whole[0], whole[9 * MIB - 1]),
            (9 * MIB, b'[', b'x')
        );
        assert_eq!((held(&lists), cut.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_loses_its_list_when_another_needs_the_room() {
        let (lists, cut) = lists();
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(admit(&lists, 3 * MIB).await.unwrap());
            assert!(held(&lists) <= 4 * MIB);
        }
        assert_eq!(cut.load(Ordering::Relaxed), 19);
        // The last one is still whole; the others end with an error, never as if they were whole.
        let last = silent.pop().unwrap().collect().await.unwrap();
        assert_eq!(last.to_bytes().len(), 3 * MIB);
        for body in silent {
            assert!(body.collect().await.is_err());
        }
        assert_eq!(held(&lists), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_loses_a_list_when_there_is_room() {
        let (lists, cut) = lists();
        let silent = admit(&lists, MIB).await.unwrap();
        tokio::time::sleep(WAIT * 100).await;
        drop(admit(&lists, 3 * MIB).await.unwrap());
        assert_eq!(silent.collect().await.unwrap().to_bytes().len(), MIB);
        assert_eq!(cut.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_keeps_its_list_and_others_are_refused_in_time() {
        let (lists, cut) = lists();
        let mut slow = admit(&lists, 4 * MIB).await.unwrap();
        let waiting = tokio::spawn({
            let lists = lists.clone();
            async move { admit(&lists, 4 * MIB).await.map(drop) }
        });
        let began = Instant::now();
        while !waiting.is_finished() {
            slow.frame().await.unwrap().unwrap();
            tokio::time::sleep(IDLE / 2).await;
        }
        assert!(began.elapsed() >= WAIT);
        let status = waiting.await.unwrap().unwrap_err();
        assert_eq!((status.code(), status.retry_after_seconds), (429, Some(1)));
        assert!(slow.collect().await.is_ok());
        assert_eq!(cut.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_waits_for_room_that_is_made_in_time() {
        let (lists, cut) = lists();
        let first = admit(&lists, 4 * MIB).await.unwrap();
        let reading = tokio::spawn(first.collect());
        drop(admit(&lists, 4 * MIB).await.unwrap());
        assert!(reading.await.unwrap().is_ok());
        assert_eq!(cut.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn few_are_put_together_at_one_time() {
        let (lists, _) = lists();
        let begun = [lists.begin().await.unwrap(), lists.begin().await.unwrap()];
        assert_eq!(lists.begin().await.unwrap_err().code(), 429);
        drop(begun);
        assert!(lists.begin().await.is_ok());
    }
}
