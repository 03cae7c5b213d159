//! Keys that wait for a worker.
//!
//! As client-go's work queue: a key waits once however often it is added; a key that is being worked on is not given to a second
//! worker, but waits again when it was added meanwhile; failures come back after pauses that double. Its length is bounded by
//! the number of objects.

use crate::{Key, metrics::QueueMetrics};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The first pause after a failure, as in client-go.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest for an object that is at fault. client-go goes to 1000 s, which nobody waits for; a changed object is looked at
/// at once anyhow.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    /// What is in `ready`, and since when.
    waiting: HashMap<Key, Instant>,
    /// What workers have, and since when.
    working: HashMap<Key, Instant>,
    /// Added while it was worked on.
    again: HashSet<Key>,
    /// When a key is due, and what is due when.
    due: HashMap<Key, Instant>,
    later: BTreeMap<(Instant, Key), ()>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn add(&mut self, key: Key) -> bool {
        if self.working.contains_key(&key) {
            self.again.insert(key);
            return false;
        }
        if self.waiting.contains_key(&key) {
            return false;
        }
        self.waiting.insert(key.clone(), Instant::now());
        self.ready.push_back(key);
        true
    }

    fn add_at(&mut self, key: Key, at: Instant) {
        match self.due.get(&key) {
            Some(due) if *due <= at => return,
            Some(due) => {
                self.later.remove(&(*due, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), at);
        self.later.insert((at, key), ());
    }

    /// Moves what is due to `ready` and counts it; when the next is due.
    fn promote(&mut self, now: Instant, metrics: &QueueMetrics) -> Option<Instant> {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                return Some(entry.key().0);
            }
            let ((_, key), ()) = entry.remove_entry();
            self.due.remove(&key);
            if self.add(key) {
                metrics.adds.inc();
            }
        }
        None
    }
}

/// A queue of keys.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    added: Notify,
    metrics: QueueMetrics,
}

impl Queue {
    /// A queue that is counted.
    pub(crate) fn counted(metrics: QueueMetrics) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key.
    pub fn add(&self, key: Key) {
        let mut state = self.state();
        if state.add(key) {
            self.metrics.adds.inc();
            self.show_depth(&state);
            drop(state);
            self.added.notify_one();
        }
    }

    fn show_depth(&self, state: &State) {
        let depth = i64::try_from(state.ready.len()).unwrap_or(i64::MAX);
        self.metrics.depth.set(depth);
    }

    /// Adds a key when `pause` is over.
    pub fn add_after(&self, key: Key, pause: Duration) {
        if pause.is_zero() {
            return self.add(key);
        }
        self.state().add_at(key, Instant::now() + pause);
        self.added.notify_one();
    }

    /// The next key; the worker says [`Queue::done`] when it has finished with it.
    pub async fn next(&self) -> Key {
        loop {
            let next_due = {
                let mut state = self.state();
                let now = Instant::now();
                let next_due = state.promote(now, &self.metrics);
                if let Some(key) = state.ready.pop_front() {
                    if let Some(since) = state.waiting.remove(&key) {
                        self.metrics.waits.observe((now - since).as_secs_f64());
                    }
                    state.working.insert(key.clone(), now);
                    self.show_depth(&state);
                    if !state.ready.is_empty() {
                        self.added.notify_one();
                    }
                    return key;
                }
                next_due
            };
            match next_due {
                None => self.added.notified().await,
                Some(due) => tokio::select! {
                    () = self.added.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    /// The worker has finished with the key.
    pub fn done(&self, key: &Key) {
        let mut state = self.state();
        if let Some(since) = state.working.remove(key) {
            self.metrics.works.observe(since.elapsed().as_secs_f64());
        }
        if state.again.remove(key) && state.add(key.clone()) {
            self.metrics.adds.inc();
            self.show_depth(&state);
            self.added.notify_one();
        }
    }

    /// It went well: the next failure is the first again.
    pub fn forget(&self, key: &Key) {
        self.state().failures.remove(key);
    }

    /// It failed: the pause after which the key comes back.
    pub fn retry(&self, key: &Key) -> Duration {
        self.retry_within(key, LONGEST_PAUSE)
    }

    /// [`Queue::retry`] after `longest` at most.
    pub fn retry_within(&self, key: &Key, longest: Duration) -> Duration {
        self.metrics.retries.inc();
        let pause = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            let doubled = 2u32.saturating_pow((*failures - 1).min(20));
            FIRST_PAUSE.saturating_mul(doubled).min(longest)
        };
        self.add_after(key.clone(), pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_is_with_one_worker_only() {
        let queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.next().await, key("a"));
        queue.add(key("a"));
        assert_eq!(queue.next().await, key("b"));
        let none = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(none.is_err(), "a is being worked on");
        queue.done(&key("a"));
        assert_eq!(queue.next().await, key("a"), "it was added meanwhile");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_after_growing_pauses() {
        let queue = Queue::default();
        let mut pauses = Vec::new();
        queue.add(key("a"));
        for _ in 0..30 {
            let key = queue.next().await;
            pauses.push(queue.retry(&key));
            queue.done(&key);
        }
        assert!(pauses.is_sorted());
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert_eq!(pauses[29], LONGEST_PAUSE);
        queue.forget(&key("a"));
        assert_eq!(queue.retry(&key("a")), FIRST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_times_counts() {
        let queue = Queue::default();
        queue.add_after(key("a"), Duration::from_secs(10));
        queue.add_after(key("a"), Duration::from_secs(1));
        queue.add_after(key("a"), Duration::from_secs(20));
        let began = Instant::now();
        queue.next().await;
        assert_eq!(began.elapsed().as_secs(), 1);
    }
}
