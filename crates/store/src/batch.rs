//! What callers pass in, and the ticket that they wait on.

use crate::{
    StoreError,
    queue::lock,
    record::{HEAD_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES},
};
use bytes::Bytes;
use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

/// Bytes of one batch; a segment's offsets have 32 bits.
const MAX_BATCH_BYTES: usize = 256 << 20;

/// Changes that become durable together or not at all.
///
/// Of several changes to one key the last one counts.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
    bytes: usize,
}

/// One change: a value, or `None` for a delete.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Bytes>,
}

impl Batch {
    /// Sets a key. At most 64 KiB of key, 64 MiB of value.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) -> &mut Self {
        self.push(key.into(), Some(value.into()))
    }

    /// Removes a key (no error when absent).
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) -> &mut Self {
        self.push(key.into(), None)
    }

    fn push(&mut self, key: Vec<u8>, value: Option<Bytes>) -> &mut Self {
        self.bytes += HEAD_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len);
        self.changes.push(Change { key, value });
        self
    }

    /// Whether nothing is in it. Committing an empty batch is a barrier: it is acknowledged when everything queued
    /// before it is durable (or has failed).
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Bytes that it takes in the queue and, uncompressed, on disk.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The limits of keys, values and batches.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.bytes > MAX_BATCH_BYTES {
            return Err(StoreError::TooLarge(self.bytes));
        }
        for Change { key, value } in &self.changes {
            let value = value.as_ref().map_or(0, Bytes::len);
            if key.len() > MAX_KEY_BYTES || value > MAX_VALUE_BYTES {
                return Err(StoreError::TooLarge(key.len() + value));
            }
        }
        Ok(())
    }

    /// The changes, without those that a later one to the same key makes void.
    pub(crate) fn into_changes(self) -> Vec<Change> {
        if self.changes.len() < 2 {
            return self.changes;
        }
        let keep: Vec<bool> = {
            let mut seen = HashSet::with_capacity(self.changes.len());
            let mut keep: Vec<bool> = self
                .changes
                .iter()
                .rev()
                .map(|change| seen.insert(change.key.as_slice()))
                .collect();
            keep.reverse();
            keep
        };
        let mut keep = keep.into_iter();
        let mut changes = self.changes;
        changes.retain(|_| keep.next().unwrap_or(true));
        changes
    }
}

/// A ticket for a batch under way; `wait` blocks until it is durable, awaiting it does the same without a thread.
/// Dropping it does not cancel the batch.
#[derive(Debug)]
#[must_use = "a batch is durable only when its commit says so"]
pub struct Commit {
    ticket: Arc<Ticket>,
}

/// The two ends' common state.
#[derive(Debug)]
struct Ticket {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    Done(Result<(), StoreError>),
    Taken,
}

/// The writer's end of a [`Commit`]. Dropped unfinished (a panic of the writer), it says `Closed`.
#[derive(Debug)]
pub(crate) struct Completion {
    ticket: Option<Arc<Ticket>>,
}

impl Commit {
    /// A pair of ends.
    pub(crate) fn new() -> (Self, Completion) {
        let ticket = Arc::new(Ticket {
            state: Mutex::new(State::Waiting(None)),
            done: Condvar::new(),
        });
        (
            Self {
                ticket: ticket.clone(),
            },
            Completion {
                ticket: Some(ticket),
            },
        )
    }

    /// One that has failed already.
    pub(crate) fn failed(error: StoreError) -> Self {
        let (commit, completion) = Self::new();
        completion.finish(Err(error));
        commit
    }

    /// Blocks until the batch is on disk.
    pub fn wait(self) -> Result<(), StoreError> {
        let mut state = lock(&self.ticket.state);
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Done(result) => return result,
                // A commit that was polled to its end and then waited for.
                State::Taken => return Err(StoreError::Closed),
                waiting @ State::Waiting(_) => {
                    *state = waiting;
                    state = self
                        .ticket
                        .done
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Future for Commit {
    type Output = Result<(), StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.ticket.state);
        match &mut *state {
            State::Waiting(waker) => {
                if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            State::Done(_) => match std::mem::replace(&mut *state, State::Taken) {
                State::Done(result) => Poll::Ready(result),
                State::Waiting(_) | State::Taken => Poll::Ready(Err(StoreError::Closed)),
            },
            State::Taken => Poll::Ready(Err(StoreError::Closed)),
        }
    }
}

impl Completion {
    /// Tells the caller.
    pub(crate) fn finish(mut self, result: Result<(), StoreError>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<(), StoreError>) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let before = std::mem::replace(&mut *lock(&ticket.state), State::Done(result));
        ticket.done.notify_all();
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.tell(Err(StoreError::Closed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_change_to_a_key_counts() {
        let mut batch = Batch::default();
        batch.put("a", "1").delete("b").put("a", "2").put("b", "3");
        let changes = batch.into_changes();
        assert_eq!(changes.len(), 2);
        assert_eq!(
            (&changes[0].key[..], changes[0].value.as_deref()),
            (&b"a"[..], Some(&b"2"[..]))
        );
        assert_eq!(
            (&changes[1].key[..], changes[1].value.as_deref()),
            (&b"b"[..], Some(&b"3"[..]))
        );
    }

    #[test]
    fn limits() {
        let mut batch = Batch::default();
        batch.put(vec![0; MAX_KEY_BYTES], "");
        assert!(batch.check().is_ok());
        batch.put(vec![0; MAX_KEY_BYTES + 1], "");
        assert!(matches!(batch.check(), Err(StoreError::TooLarge(n)) if n == MAX_KEY_BYTES + 1));
    }

    #[test]
    fn a_forgotten_completion_says_closed() {
        let (commit, completion) = Commit::new();
        drop(completion);
        assert!(matches!(commit.wait(), Err(StoreError::Closed)));
    }

    #[test]
    fn a_waiter_in_another_thread_is_woken() {
        let (commit, completion) = Commit::new();
        let waiter = std::thread::spawn(move || commit.wait());
        completion.finish(Ok(()));
        assert!(waiter.join().expect("no panic").is_ok());
    }
}
