//! Batches on their way to the writer: first in, first out, bounded by bytes.

use crate::{Batch, batch::Completion};
use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// A batch and who waits for it.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) batch: Batch,
    pub(crate) completion: Completion,
}

/// Why a batch was not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    Full(Pending),
    Closed,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    limit: usize,
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Pending>,
    /// Bytes of what waits and of what the writer has taken but not finished.
    bytes: usize,
    closed: bool,
}

/// Locks, also after a panic elsewhere: every state here is valid between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// A queue for this many bytes. One batch is always let in when nothing else is under way.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
        }
    }

    fn fits(&self, state: &State, batch: &Batch) -> bool {
        state.bytes == 0 || state.bytes.saturating_add(cost(batch)) <= self.limit
    }

    /// Adds a batch, waiting for room.
    pub(crate) fn push(&self, pending: Pending) -> Result<(), Refusal> {
        let mut state = lock(&self.state);
        while !state.closed && !self.fits(&state, &pending.batch) {
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.add(state, pending)
    }

    /// Adds a batch if there is room now.
    pub(crate) fn try_push(&self, pending: Pending) -> Result<(), Refusal> {
        let state = lock(&self.state);
        if !state.closed && !self.fits(&state, &pending.batch) {
            return Err(Refusal::Full(pending));
        }
        self.add(state, pending)
    }

    fn add(&self, mut state: MutexGuard<'_, State>, pending: Pending) -> Result<(), Refusal> {
        if state.closed {
            return Err(Refusal::Closed);
        }
        state.bytes += cost(&pending.batch);
        state.batches.push_back(pending);
        self.work.notify_one();
        Ok(())
    }

    /// The next batches, at least one, up to `bytes`; waits for them. `None` when closed and drained. Their bytes count
    /// until [`Queue::release`].
    pub(crate) fn take(&self, bytes: usize) -> Option<Vec<Pending>> {
        let mut state = lock(&self.state);
        while state.batches.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let mut group = Vec::new();
        let mut sum = 0_usize;
        while let Some(next) = state.batches.front() {
            sum = sum.saturating_add(cost(&next.batch));
            if sum > bytes && !group.is_empty() {
                break;
            }
            group.extend(state.batches.pop_front());
        }
        Some(group)
    }

    /// The writer is done with this many bytes.
    pub(crate) fn release(&self, bytes: usize) {
        let mut state = lock(&self.state);
        state.bytes = state.bytes.saturating_sub(bytes);
        self.room.notify_all();
    }

    /// Takes no more.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Throws away what nobody will write any more; its callers get `Closed`.
    pub(crate) fn abandon(&self) {
        self.close();
        let dropped = std::mem::take(&mut lock(&self.state).batches);
        drop(dropped);
    }
}

/// Bytes that a batch takes of the queue's limit; also an empty one takes some, so that their number is bounded.
pub(crate) fn cost(batch: &Batch) -> usize {
    batch.bytes() + 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Commit;

    fn pending(bytes: usize) -> (Commit, Pending) {
        let mut batch = Batch::default();
        batch.put("", vec![0; bytes]);
        let (commit, completion) = Commit::new();
        (commit, Pending { batch, completion })
    }

    #[test]
    fn bounded_by_bytes_but_one_always_fits() {
        let queue = Queue::new(1000);
        let (_a, big) = pending(5000);
        queue.try_push(big).expect("one always fits");
        let (_b, small) = pending(1);
        assert!(matches!(queue.try_push(small), Err(Refusal::Full(_))));
        let group = queue.take(1).expect("one");
        assert_eq!(group.len(), 1);
        let (_c, small) = pending(1);
        assert!(
            matches!(queue.try_push(small), Err(Refusal::Full(_))),
            "what the writer holds still counts"
        );
        queue.release(group.iter().map(|p| cost(&p.batch)).sum());
        let (_d, small) = pending(1);
        assert!(queue.try_push(small).is_ok());
    }

    #[test]
    fn groups_keep_order_and_size() {
        let queue = Queue::new(10_000);
        let commits: Vec<_> = [100, 200, 300]
            .into_iter()
            .map(|n| {
                let (commit, pending) = pending(n);
                queue.try_push(pending).expect("fits");
                commit
            })
            .collect();
        let sizes = |group: Vec<Pending>| group.iter().map(|p| p.batch.bytes()).collect::<Vec<_>>();
        assert_eq!(sizes(queue.take(600).expect("two")), [132, 232]);
        queue.close();
        assert_eq!(sizes(queue.take(600).expect("one")), [332]);
        assert!(queue.take(600).is_none());
        assert_eq!(commits.len(), 3);
    }

    #[test]
    fn closing_frees_a_blocked_caller() {
        let queue = std::sync::Arc::new(Queue::new(10));
        let (_a, first) = pending(100);
        queue.try_push(first).expect("fits");
        let other = queue.clone();
        let blocked = std::thread::spawn(move || {
            let (_b, second) = pending(100);
            matches!(other.push(second), Err(Refusal::Closed))
        });
        queue.close();
        assert!(blocked.join().expect("no panic"));
    }
}
