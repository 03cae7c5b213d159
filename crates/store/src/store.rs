//! The handle.

use crate::{
    Batch, Commit, StoreError,
    compaction::{self, Compactor, Maintenance},
    directory::Directory,
    index::Index,
    queue::{Pending, Queue, Refusal, lock},
    recovery::recover,
    segment::{Location, Segment},
    writer::Writer,
};
use bytes::Bytes;
use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

/// Records that a scan looks up under one lock.
const SCAN_AT_A_TIME: usize = 64;
/// Stack of the two threads; they do not recurse.
const STACK_BYTES: usize = 256 << 10;

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of a segment before the next is begun (4 KiB to 1 GiB; a group commit is never split, so a segment may grow
    /// over this).
    pub segment_bytes: u64,
    /// A segment whose garbage share is above this (0..1) is rewritten.
    pub garbage_share: f32,
    /// `false` leaves durability to the kernel (tests, benches).
    pub sync: bool,
    /// Compress values of this many bytes and more with LZ4; `usize::MAX` for never.
    pub compress_from: usize,
    /// Bytes that may wait for the disk.
    pub queue_bytes: usize,
    /// Begin a new segment at open rather than going on with the last, so that [`Store::purge`] reaches what is in it.
    pub new_segment: bool,
}

impl Default for Options {
    /// For a node: segments of 8 MiB, rewritten at half garbage, durable, values from 512 bytes compressed, 8 MiB queued.
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            garbage_share: 0.5,
            sync: true,
            compress_from: 512,
            queue_bytes: 8 << 20,
            new_segment: false,
        }
    }
}

/// What `open` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Live records.
    pub records: u64,
    /// Bytes cut from a torn tail (0 after a clean stop).
    pub truncated_bytes: u64,
    /// Damaged places in the middle of segments; each cost one record, or as many as lay in bytes whose borders were lost.
    pub corrupt_records: u64,
}

/// Sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Live records.
    pub records: u64,
    /// Bytes of live records as stored, with their keys and heads.
    pub live_bytes: u64,
    /// Bytes of all segments.
    pub disk_bytes: u64,
    /// Damaged records met since (and at) open.
    pub corrupt_records: u64,
}

/// An open store; cheap to clone. Reads see a batch as soon as it is durable (read-your-writes after `Commit`).
///
/// The last clone to be dropped closes it.
#[derive(Clone, Debug)]
pub struct Store {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the handle and the threads have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dir: Directory,
    pub(crate) options: Options,
    pub(crate) queue: Queue,
    pub(crate) next_segment: AtomicU32,
    pub(crate) corrupt: AtomicU64,
    pub(crate) maintenance: Maintenance,
    pub(crate) compactor: Mutex<Compactor>,
    index: RwLock<Index>,
}

impl Shared {
    pub(crate) fn index_read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn value(
        &self,
        key: &[u8],
        location: Location,
        segment: &Segment,
    ) -> Result<Bytes, StoreError> {
        match segment.value(location, key) {
            Ok(Some(value)) => Ok(value),
            Ok(None) => {
                self.corrupt.fetch_add(1, Ordering::Relaxed);
                Err(self.dir.corrupt(key))
            }
            Err(error) => Err(self.dir.io(error)),
        }
    }
}

impl Store {
    /// Opens or creates a store, recovering what a crash left.
    pub fn open(dir: &Path, mut options: Options) -> Result<(Store, Recovery), StoreError> {
        options.segment_bytes = options.segment_bytes.clamp(4 << 10, 1 << 30);
        options.garbage_share = if options.garbage_share.is_nan() {
            Options::default().garbage_share
        } else {
            options.garbage_share.clamp(0.05, 1.0)
        };
        let dir = Directory::open(dir, options.sync)?;
        let mut found = recover(&dir).map_err(|error| dir.io(error))?;
        if options.new_segment
            && let Some(last) = found.active.take()
        {
            found.index.seal(last);
        }
        if found.report.truncated_bytes > 0 || found.report.corrupt_records > 0 {
            tracing::warn!(
                dir = dir.display(),
                truncated_bytes = found.report.truncated_bytes,
                corrupt_records = found.report.corrupt_records,
                "store repaired"
            );
        }
        let shared = Arc::new(Shared {
            dir,
            queue: Queue::new(options.queue_bytes),
            options,
            next_segment: AtomicU32::new(found.next_segment),
            corrupt: AtomicU64::new(found.report.corrupt_records),
            maintenance: Maintenance::default(),
            compactor: Mutex::default(),
            index: RwLock::new(found.index),
        });
        let io = |error| shared.dir.io(error);
        let writer = Writer::new(shared.clone(), found.active, found.next_seq).map_err(io)?;
        let handle = Handle {
            shared: shared.clone(),
            threads: Mutex::default(),
        };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .stack_size(STACK_BYTES)
                .spawn(run)
                .map_err(io)
        };
        let background = shared.clone();
        // When the second one fails, the drop of the handle ends the first.
        lock(&handle.threads).push(spawn("store-writer", Box::new(|| writer.run()))?);
        lock(&handle.threads).push(spawn(
            "store-compact",
            Box::new(move || compaction::run(&background)),
        )?);
        shared.maintenance.wake();
        Ok((
            Store {
                handle: Arc::new(handle),
            },
            found.report,
        ))
    }

    /// Queues a batch (the queue is bounded by bytes: blocks the thread when the disk cannot follow; use
    /// [`Store::try_commit`] where that must not happen).
    pub fn commit(&self, batch: Batch) -> Commit {
        if let Err(error) = batch.check() {
            return Commit::failed(error);
        }
        let (commit, completion) = Commit::new();
        // A refused batch is dropped, which tells the commit that the store is closed.
        drop(self.handle.shared.queue.push(Pending { batch, completion }));
        commit
    }

    /// As `commit`, but gives the batch back when the queue is full.
    pub fn try_commit(&self, batch: Batch) -> Result<Commit, Batch> {
        if let Err(error) = batch.check() {
            return Ok(Commit::failed(error));
        }
        let (commit, completion) = Commit::new();
        match self
            .handle
            .shared
            .queue
            .try_push(Pending { batch, completion })
        {
            Ok(()) | Err(Refusal::Closed) => Ok(commit),
            Err(Refusal::Full(pending)) => Err(pending.batch),
        }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// `Corrupt` when the record is there but rotten, `Io` when it cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let shared = &self.handle.shared;
        let found = shared.index_read().find(key);
        found
            .map(|(location, segment)| shared.value(key, location, &segment))
            .transpose()
    }

    /// Whether a key has a value, without reading it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.handle.shared.index_read().location(key).is_some()
    }

    /// Bytes that the record of a key takes on disk, without reading it.
    pub fn record_bytes(&self, key: &[u8]) -> Option<u32> {
        let location = self.handle.shared.index_read().location(key)?;
        Some(location.len)
    }

    /// The keys with a prefix, in order.
    pub fn keys(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        self.handle
            .shared
            .index_read()
            .range(prefix, None)
            .map(|(key, _)| key.to_vec())
            .collect()
    }

    /// Every record with a prefix, in key order, one at a time, until `each` says `false`. No lock is held meanwhile:
    /// each record is as it was when its turn came.
    ///
    /// # Errors
    /// `Io` ends it. A corrupt record does not: it is left out, and the first such error is returned at the end.
    pub fn scan(
        &self,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<(), StoreError> {
        let shared = &self.handle.shared;
        let mut corrupt = Ok(());
        let mut after: Option<Vec<u8>> = None;
        loop {
            let some: Vec<(Vec<u8>, Location, Arc<Segment>)> = {
                let index = shared.index_read();
                index
                    .range(prefix, after.as_deref())
                    .take(SCAN_AT_A_TIME)
                    .filter_map(|(key, location)| {
                        Some((key.to_vec(), location, index.segment(location.segment)?))
                    })
                    .collect()
            };
            let full = some.len() == SCAN_AT_A_TIME;
            for (key, location, segment) in &some {
                match shared.value(key, *location, segment) {
                    Ok(value) => {
                        if !each(key, value) {
                            return corrupt;
                        }
                    }
                    Err(error @ StoreError::Corrupt { .. }) => corrupt = corrupt.and(Err(error)),
                    Err(error) => return Err(error),
                }
            }
            match some.into_iter().next_back() {
                Some((key, ..)) if full => after = Some(key),
                _ => return corrupt,
            }
        }
    }

    /// Bytes of live records and bytes on disk.
    pub fn usage(&self) -> Usage {
        let index = self.handle.shared.index_read();
        Usage {
            records: index.records(),
            live_bytes: index.live_bytes(),
            disk_bytes: index.disk_bytes(),
            corrupt_records: self.handle.shared.corrupt.load(Ordering::Relaxed),
        }
    }

    /// Does at once what the background thread would do: rewrites segments with much garbage. Blocks; says how many
    /// segments were rewritten. Commits go on meanwhile.
    pub fn compact(&self) -> Result<usize, StoreError> {
        self.maintain(Compactor::maintain)
    }

    /// As [`Store::compact`], for every segment that holds any garbage, apart from the one being appended to: of records that
    /// were replaced or deleted nothing is left in them.
    pub fn purge(&self) -> Result<usize, StoreError> {
        self.maintain(Compactor::purge)
    }

    fn maintain(
        &self,
        rewrite: fn(&mut Compactor, &Shared) -> io::Result<usize>,
    ) -> Result<usize, StoreError> {
        let shared = &self.handle.shared;
        let mut compactor = lock(&shared.compactor);
        if shared.maintenance.is_stopped() {
            return Err(StoreError::Closed);
        }
        rewrite(&mut compactor, shared).map_err(|error| shared.dir.io(error))
    }

    /// Waits for what is queued, then stops the writer and releases the directory. Later commits fail with `Closed`; reads
    /// go on working as long as a handle is there.
    pub fn close(&self) -> Result<(), StoreError> {
        self.handle.close();
        Ok(())
    }
}

impl Handle {
    fn close(&self) {
        self.shared.queue.close();
        self.shared.maintenance.stop();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if thread.join().is_err() {
                tracing::error!(dir = self.shared.dir.display(), "a store thread panicked");
            }
        }
        // Not while somebody's `compact` is at work.
        let _idle = lock(&self.shared.compactor);
        self.shared.dir.unlock();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}
