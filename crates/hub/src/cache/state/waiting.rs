//! What waits for the disk: one write a key, bounded by bytes.

use super::{Bytes, Duration, Instant, State, Stored, record};

/// What waits to be written under one record key.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Object(Stored),
    Raw(Bytes),
    /// Of a shelf, which has bounds of its own.
    Shelved(Bytes),
    Delete,
}

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::Object(stored) => stored.object.bytes.len() + 64,
            Self::Raw(bytes) | Self::Shelved(bytes) => bytes.len() + 64,
            Self::Delete => 64,
        }
    }
}

/// One waiting write.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) value: Value,
    pub(crate) due: Instant,
    /// Changes with every write to the key, so that what was written meanwhile is not mistaken for what is waiting.
    pub(crate) generation: u64,
}

/// Writes that there is room for at rest.
const IDLE: usize = 64;

/// This much waiting is written at once.
const BURST: usize = 1 << 20;

impl State {
    /// Queues a write. `false` when the queue is full (removals and what is bounded elsewhere always fit).
    pub(crate) fn enqueue(&mut self, key: Vec<u8>, value: Value, delay: Duration) -> bool {
        let bytes = value.len() + key.len();
        let old = self
            .pending
            .get(&key)
            .map_or(0, |p| p.value.len() + key.len());
        let fits = matches!(value, Value::Delete | Value::Shelved(_));
        if !fits && self.pending_bytes - old + bytes > self.queue_bytes {
            return false;
        }
        self.pending_bytes = self.pending_bytes - old + bytes;
        let generation = self.tick();
        let mut due = Instant::now() + delay;
        if let Some(waiting) = self.pending.get(&key) {
            due = due.min(waiting.due);
        }
        self.alarm.due(due);
        if self.overflows() {
            self.alarm.ring();
        }
        self.pending.insert(
            key,
            Pending {
                value,
                due,
                generation,
            },
        );
        true
    }

    /// Whether so much waits that it is not to wait for its turn: a burst (the first list of a large resource) must not fill
    /// the queue.
    pub(crate) fn overflows(&self) -> bool {
        self.pending_bytes > BURST.min(self.queue_bytes / 4)
    }

    /// Forgets a waiting write that reached the disk.
    pub(crate) fn written(&mut self, key: &[u8], generation: u64) {
        if self
            .pending
            .get(key)
            .is_some_and(|p| p.generation == generation)
            && let Some(done) = self.pending.remove(key)
        {
            self.pending_bytes -= done.value.len() + key.len();
        }
        if self.pending.is_empty() {
            // The room that a burst took.
            self.pending.shrink_to(IDLE);
        }
    }

    /// Forgets waiting deletions of what is not on disk: while the disk takes nothing they must not pile up. Those of objects are as
    /// many as there are objects; what callers ask for, and who asks, has no such bound.
    pub(crate) fn spare_deletions(&mut self, on_disk: impl Fn(&[u8]) -> bool) {
        let pending_bytes = &mut self.pending_bytes;
        self.pending.retain(|key, pending| {
            let needed = !matches!(pending.value, Value::Delete)
                || key.starts_with(record::OBJECTS)
                || on_disk(key);
            if !needed {
                *pending_bytes -= pending.value.len() + key.len();
            }
            needed
        });
    }
}
