//! Durable, checksummed, group-committed records: a log-structured key-value store.
//!
//! One directory, one writer. Records go to append-only segments; an index in memory maps each key to its newest
//! record; values are read with `pread` when asked for. `commit` returns when the batch is on disk
//! (many callers share one `fdatasync`). A torn tail is truncated at open and reported; segments with much garbage are
//! rewritten in the background; the caller is told how many bytes are live so that it can keep a budget.

use bytes::Bytes;
use std::{path::Path, sync::Arc};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the directory.
    #[error("store {dir} is in use by another process")]
    InUse {
        /// The directory.
        dir: String,
    },
    /// The disk refuses (full, read-only, gone). Nothing of the batch is acknowledged; later batches may succeed.
    #[error("store {dir}: {source}")]
    Io {
        /// The directory.
        dir: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A record that was good when written does not match its checksum.
    #[error("store {dir}: record {key} is corrupt")]
    Corrupt {
        /// The directory.
        dir: String,
        /// The key, printable.
        key: String,
    },
    /// Key or value over the limits.
    #[error("record too large: {0} bytes")]
    TooLarge(usize),
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of a segment before the next is begun.
    pub segment_bytes: u64,
    /// A segment whose garbage share is above this (0..1) is rewritten.
    pub garbage_share: f32,
    /// `false` leaves durability to the kernel (tests, benches).
    pub sync: bool,
    /// Compress values of this many bytes and more with LZ4.
    pub compress_from: usize,
}

/// What `open` found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Live records.
    pub records: u64,
    /// Bytes cut from a torn tail (0 after a clean stop).
    pub truncated_bytes: u64,
    /// Records left out because their checksum failed in the middle of a segment.
    pub corrupt_records: u64,
}

/// Changes that become durable together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {/* private */}

impl Batch {
    /// Sets a key. At most 64 KiB of key, 64 MiB of value.
    pub fn put(&mut self, _key: impl Into<Vec<u8>>, _value: impl Into<Bytes>) -> &mut Self {
        unimplemented!()
    }
    /// Removes a key (no error when absent).
    pub fn delete(&mut self, _key: impl Into<Vec<u8>>) -> &mut Self {
        unimplemented!()
    }
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
}

/// A ticket for a batch under way; `wait` blocks until it is durable.
#[derive(Debug)]
pub struct Commit {/* private */}
impl Commit {
    /// Blocks until the batch is on disk.
    pub fn wait(self) -> Result<(), StoreError> {
        unimplemented!()
    }
}
impl std::future::Future for Commit {
    type Output = Result<(), StoreError>;
    fn poll(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        unimplemented!()
    }
}

/// An open store; cheap to clone. Reads see a batch as soon as it is durable (read-your-writes after `Commit`).
#[derive(Clone, Debug)]
pub struct Store {
    _inner: Arc<()>,
}

impl Store {
    /// Opens or creates a store, recovering what a crash left.
    pub fn open(_dir: &Path, _options: Options) -> Result<(Store, Recovery), StoreError> {
        unimplemented!()
    }
    /// Queues a batch (the queue is bounded by bytes: blocks the thread when the disk cannot follow; use
    /// [`Store::try_commit`] where that must not happen).
    pub fn commit(&self, _batch: Batch) -> Commit {
        unimplemented!()
    }
    /// As `commit`, but gives the batch back when the queue is full.
    pub fn try_commit(&self, _batch: Batch) -> Result<Commit, Batch> {
        unimplemented!()
    }
    /// The value of a key.
    pub fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        unimplemented!()
    }
    /// The keys with a prefix, in order.
    pub fn keys(&self, _prefix: &[u8]) -> Vec<Vec<u8>> {
        unimplemented!()
    }
    /// Every record with a prefix, in key order, one at a time.
    pub fn scan(
        &self,
        _prefix: &[u8],
        _each: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// Bytes of live records and bytes on disk.
    pub fn usage(&self) -> Usage {
        unimplemented!()
    }
    /// Waits for what is queued, then stops the writer and releases the directory.
    pub fn close(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
}

/// Sizes.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Usage {
    pub records: u64,
    pub live_bytes: u64,
    pub disk_bytes: u64,
    pub corrupt_records: u64,
}
