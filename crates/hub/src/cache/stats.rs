//! Counters of the cache.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the cache counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Objects not learned because the queue to the disk was full.
    pub overflowed: Counter,
    /// Objects and lists not learned because they do not parse or carry no numeric revision.
    pub malformed: Counter,
    /// Records that could not be read back.
    pub corrupt: Counter,
    /// Sealed records that this node has no key for, taken out at start.
    pub unsealable: Counter,
    /// Reads of resources that nothing is known of.
    pub misses_elsewhere: Counter,
    /// Reads that the disk refused for the moment.
    pub read_errors: Counter,
    /// Complete queries given up (overflow, corruption, eviction).
    pub coverages_dropped: Counter,
    /// Objects evicted to keep the budget.
    pub evicted: Counter,
    /// Batches that the disk refused, those of the journal included.
    pub write_errors: Counter,
    /// Records written.
    pub written: Counter,
}
