//! Objects in memory, durable through `yurt_store`, with one global revision and a bounded past for watches.
//!
//! There is one writer: [`Storage::put`] and [`Storage::delete`] check what they expect, take the next revision and
//! queue a commit under one lock; commits of concurrent callers share a sync. Only what is durable is published, in
//! order of revision, to readers and watchers. Writers themselves see what is still under way
//! ([`Storage::current`]), so that two of them cannot overwrite one another.

mod draft;
mod log;
mod partition;
mod stored;
#[cfg(test)]
mod tests;
mod topics;

pub use log::{Change, TooOld};
pub use partition::{Follower, Listed, Partition, Range, WindowLimits};
pub use stored::{Key, Stored};
pub use topics::Topic;

use bytes::Bytes;
use draft::Draft;
use serde_json::Value;
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};
use stored::Traits;
use tokio::sync::{mpsc, oneshot, watch};
use yurt_store::{Batch, Commit, Options, Recovery, Store, StoreError};
use yurt_wire::watch::EventType;

/// The largest object stored, in bytes of JSON (etcd's limit on a request).
pub const MAX_OBJECT_BYTES: usize = 1_500_000;

/// Why the storage could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is intact but is not what this program writes: not our store, or one of a newer version.
    #[error("record {key:?} in the store is not a Kubernetes object")]
    Foreign {
        /// The record's key, printable.
        key: String,
    },
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object is not at the revision expected (or exists, or is gone). Read again and decide.
    #[error("the object has been modified")]
    Conflict,
    /// Too much is waiting for the disk; retry later.
    #[error("the disk does not follow")]
    Busy,
    /// The object is over [`MAX_OBJECT_BYTES`].
    #[error("the object has {0} bytes, at most {MAX_OBJECT_BYTES} are stored")]
    TooLarge(usize),
    /// The disk refused; nothing was acknowledged.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The server is stopping.
    #[error("the storage is closed")]
    Closed,
    /// The object cannot be printed as JSON.
    #[error("the object cannot be serialised: {0}")]
    Unprintable(#[from] serde_json::Error),
}

/// What a writer expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No object.
    Absent,
    /// The object at this revision.
    At(u64),
}

/// The storage; cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    writer: Mutex<Writer>,
    partitions: RwLock<HashMap<Arc<str>, Arc<Partition>>>,
    /// The newest published revision.
    published: watch::Sender<u64>,
    /// The newest revision whose write is over, also when it failed.
    settled: watch::Sender<u64>,
    sink: Sink,
    limits: WindowLimits,
}

#[derive(Debug)]
enum Sink {
    Memory,
    Durable {
        store: Store,
        queue: mpsc::UnboundedSender<Pending>,
    },
}

/// By key: revision and object (`None`: deleted) of the newest write that is not published yet.
type Unpublished = HashMap<Key, (u64, Option<Arc<Stored>>)>;

#[derive(Debug)]
struct Writer {
    revision: u64,
    /// The state of objects with a commit under way, by partition: the revision that made it, `None` when deleted.
    pending: HashMap<Arc<str>, Unpublished>,
}

impl Writer {
    fn pending(&self, partition: &Arc<str>, key: &Key) -> Option<&(u64, Option<Arc<Stored>>)> {
        self.pending.get(partition)?.get(key)
    }

    /// The write of a revision is over.
    fn forget(&mut self, partition: &Arc<str>, key: &Key, revision: u64) {
        let Some(slots) = self.pending.get_mut(partition) else {
            return;
        };
        if slots.get(key).is_some_and(|(at, _)| *at == revision) {
            slots.remove(key);
        }
        if slots.is_empty() {
            self.pending.remove(partition);
        }
    }
}

/// A commit under way. The queue of these is bounded by the requests in flight.
#[derive(Debug)]
struct Pending {
    partition: Arc<str>,
    kind: EventType,
    object: Arc<Stored>,
    commit: Commit,
    done: oneshot::Sender<Result<(), WriteError>>,
}

const OBJECTS: &[u8] = b"o/";
const DELETIONS: &[u8] = b"d/";

impl Storage {
    /// A storage that forgets everything with the process.
    pub fn memory(limits: WindowLimits) -> Self {
        Self {
            inner: Arc::new(Inner::new(Sink::Memory, limits)),
        }
    }

    /// Opens or creates a durable storage. Must be called within a Tokio runtime.
    pub fn open(dir: &Path, limits: WindowLimits) -> Result<(Self, Recovery), OpenError> {
        let options = Options {
            segment_bytes: 32 << 20,
            garbage_share: 0.5,
            sync: true,
            compress_from: 1024,
            queue_bytes: 64 << 20,
            ..Options::default()
        };
        let (store, recovery) = Store::open(dir, options)?;
        let (queue, pending) = mpsc::unbounded_channel();
        let inner = Inner::new(
            Sink::Durable {
                store: store.clone(),
                queue,
            },
            limits,
        );
        let revision = inner.restore(&store)?;
        inner.lock().revision = revision;
        inner.published.send_replace(revision);
        let inner = Arc::new(inner);
        tokio::spawn(publish(Arc::downgrade(&inner), pending));
        Ok((Self { inner }, recovery))
    }

    /// Waits for what is under way and closes the store. Later writes fail with [`WriteError::Closed`].
    pub async fn close(&self) -> Result<(), StoreError> {
        if let Sink::Durable { store, .. } = &self.inner.sink {
            let store = store.clone();
            return tokio::task::spawn_blocking(move || store.close())
                .await
                .unwrap_or(Err(StoreError::Closed));
        }
        Ok(())
    }

    /// The newest revision readers can see.
    pub fn revision(&self) -> u64 {
        *self.inner.published.borrow()
    }

    /// Follows the newest published revision.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.published.subscribe()
    }

    /// The partition of a resource, made when it is first named.
    pub fn partition(&self, id: &Arc<str>) -> Arc<Partition> {
        self.inner.partition(id)
    }

    /// The object as readers see it.
    pub fn get(&self, partition: &Arc<str>, key: &Key) -> Option<Arc<Stored>> {
        self.partition(partition).get(key)
    }

    /// The object as the next writer must see it: with commits still under way.
    pub fn current(&self, partition: &Arc<str>, key: &Key) -> Option<Arc<Stored>> {
        self.inner.current(&self.inner.lock(), partition, key)
    }

    /// Waits until no write of an object is under way that was so when this was called. Whoever tells a client of what
    /// [`Storage::current`] shows waits first: until then it may still come to nothing, and readers do not see it.
    pub async fn settle(&self, partition: &Arc<str>, key: &Key) {
        let under_way = self.inner.lock().pending(partition, key).map(|(at, _)| *at);
        if let Some(revision) = under_way {
            let mut settled = self.inner.settled.subscribe();
            // The sender is in `inner`, which is here.
            let _ = settled.wait_for(|at| *at >= revision).await;
        }
    }

    /// The objects of a namespace (`""`: of all) after `start`, and the revision they show.
    pub fn list(
        &self,
        partition: &Arc<str>,
        namespace: &str,
        start: Option<&Key>,
    ) -> (Vec<Arc<Stored>>, u64) {
        let range = Range {
            namespace,
            start,
            limit: None,
        };
        let (listed, revision) = self.page(partition, &range);
        (listed.items, revision)
    }

    /// One object as readers see it, and the revision that this shows.
    pub fn find(&self, partition: &Arc<str>, key: &Key) -> (Option<Arc<Stored>>, u64) {
        let published = self.revision();
        self.partition(partition).find(key, published)
    }

    /// The objects in a range, and the revision they show.
    pub fn page(&self, partition: &Arc<str>, range: &Range<'_>) -> (Listed, u64) {
        let published = self.revision();
        self.partition(partition).page(range, published)
    }

    /// As [`Storage::page`], at a past revision.
    pub fn page_at(
        &self,
        partition: &Arc<str>,
        range: &Range<'_>,
        revision: u64,
    ) -> Result<Listed, TooOld> {
        self.partition(partition).page_at(range, revision)
    }

    /// Stores an object; its resourceVersion is filled in. Returns when it is durable and published.
    pub async fn put(
        &self,
        partition: &Arc<str>,
        key: Key,
        expect: Expect,
        value: Value,
    ) -> Result<Arc<Stored>, WriteError> {
        self.write(partition, key, expect, value, EventType::Modified)
            .await
    }

    /// Deletes an object; `value` is its last state, which the DELETED event carries.
    pub async fn delete(
        &self,
        partition: &Arc<str>,
        key: Key,
        expect: Expect,
        value: Value,
    ) -> Result<Arc<Stored>, WriteError> {
        self.write(partition, key, expect, value, EventType::Deleted)
            .await
    }

    async fn write(
        &self,
        partition: &Arc<str>,
        key: Key,
        expect: Expect,
        value: Value,
        kind: EventType,
    ) -> Result<Arc<Stored>, WriteError> {
        // Printed before its turn: others need not wait for that.
        let draft = Draft::new(partition, &value)?;
        drop(value);
        if draft.len() > MAX_OBJECT_BYTES && kind != EventType::Deleted {
            return Err(WriteError::TooLarge(draft.len()));
        }
        let (object, done) = self.inner.begin(partition, key, expect, draft, kind)?;
        if let Some(done) = done {
            done.await.map_err(|_| WriteError::Closed)??;
        }
        Ok(object)
    }
}

/// The result of a queued commit; `None` when the write is published already.
type Ticket = Option<oneshot::Receiver<Result<(), WriteError>>>;

impl Inner {
    fn new(sink: Sink, limits: WindowLimits) -> Self {
        Self {
            writer: Mutex::new(Writer {
                revision: 1,
                pending: HashMap::new(),
            }),
            partitions: RwLock::default(),
            published: watch::Sender::new(1),
            settled: watch::Sender::new(1),
            sink,
            limits,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partition(&self, id: &Arc<str>) -> Arc<Partition> {
        let known = self
            .partitions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned();
        known.unwrap_or_else(|| {
            self.partitions
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(id.clone())
                .or_insert_with(|| Arc::new(Partition::new(self.limits)))
                .clone()
        })
    }

    fn current(&self, writer: &Writer, partition: &Arc<str>, key: &Key) -> Option<Arc<Stored>> {
        match writer.pending(partition, key) {
            Some((_, state)) => state.clone(),
            None => self.partition(partition).get(key),
        }
    }

    /// Checks, numbers and queues one write.
    fn begin(
        &self,
        partition: &Arc<str>,
        key: Key,
        expect: Expect,
        draft: Draft,
        kind: EventType,
    ) -> Result<(Arc<Stored>, Ticket), WriteError> {
        let mut writer = self.lock();
        let found = self.current(&writer, partition, &key).map(|o| o.revision);
        match (expect, found) {
            (Expect::Absent, None) => {}
            (Expect::At(expected), Some(found)) if expected == found => {}
            _ => return Err(WriteError::Conflict),
        }
        let revision = writer.revision + 1;
        let event = match (kind, found) {
            (EventType::Deleted, _) => EventType::Deleted,
            (_, None) => EventType::Added,
            (_, Some(_)) => EventType::Modified,
        };
        let object = Arc::new(draft.at(key.clone(), revision, event));
        let Sink::Durable { store, queue } = &self.sink else {
            writer.revision = revision;
            self.partition(partition).apply(kind, object.clone());
            self.published.send_replace(revision);
            return Ok((object, None));
        };
        let mut batch = Batch::default();
        if kind == EventType::Deleted {
            batch.delete(object_key(partition, &key));
            batch.put(
                [DELETIONS, partition.as_bytes()].concat(),
                revision.to_string().into_bytes(),
            );
        } else {
            batch.put(object_key(partition, &key), object.json_bytes());
        }
        let commit = store.try_commit(batch).map_err(|_| WriteError::Busy)?;
        writer.revision = revision;
        let (done, ticket) = oneshot::channel();
        let state = (kind != EventType::Deleted).then(|| object.clone());
        let slots = writer.pending.entry(partition.clone()).or_default();
        slots.insert(key, (revision, state));
        let pending = Pending {
            partition: partition.clone(),
            kind,
            object: object.clone(),
            commit,
            done,
        };
        queue.send(pending).map_err(|_| WriteError::Closed)?;
        Ok((object, Some(ticket)))
    }

    /// Reads everything back; the newest revision ever given out.
    fn restore(&self, store: &Store) -> Result<u64, OpenError> {
        let mut newest = 1;
        let mut foreign = None;
        store.scan(OBJECTS, &mut |record, json| {
            match restored(record, json) {
                Some((partition, object)) => {
                    newest = newest.max(object.revision);
                    self.partition(&partition).restore(Arc::new(object));
                }
                None => foreign = Some(String::from_utf8_lossy(record).into_owned()),
            }
            foreign.is_none()
        })?;
        store.scan(DELETIONS, &mut |record, revision| {
            let partition = std::str::from_utf8(&record[DELETIONS.len()..]);
            let revision = std::str::from_utf8(&revision)
                .ok()
                .and_then(|r| r.parse::<u64>().ok());
            match (partition, revision) {
                (Ok(partition), Some(revision)) => {
                    newest = newest.max(revision);
                    self.partition(&partition.into()).restore_deletion(revision);
                }
                _ => foreign = Some(String::from_utf8_lossy(record).into_owned()),
            }
            foreign.is_none()
        })?;
        match foreign {
            Some(key) => Err(OpenError::Foreign { key }),
            None => Ok(newest),
        }
    }
}

fn object_key(partition: &str, key: &Key) -> Vec<u8> {
    [
        OBJECTS,
        partition.as_bytes(),
        b"\0",
        key.namespace.as_bytes(),
        b"\0",
        key.name.as_bytes(),
    ]
    .concat()
}

fn restored(record: &[u8], json: Bytes) -> Option<(Arc<str>, Stored)> {
    let mut parts = std::str::from_utf8(record.get(OBJECTS.len()..)?)
        .ok()?
        .split('\0');
    let (partition, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let value: Value = serde_json::from_slice(&json).ok()?;
    let revision = value["metadata"]["resourceVersion"]
        .as_str()?
        .parse()
        .ok()?;
    let key = Key::new(namespace, name);
    let traits = Traits::of(partition, &value);
    Some((
        Arc::from(partition),
        Stored::new(key, revision, EventType::Added, traits, json),
    ))
}

/// Publishes commits in order of revision as they become durable. Ends with the storage.
async fn publish(inner: std::sync::Weak<Inner>, mut queue: mpsc::UnboundedReceiver<Pending>) {
    while let Some(pending) = queue.recv().await {
        let result = pending.commit.await;
        let Some(inner) = inner.upgrade() else { return };
        let (partition, key) = (pending.partition, pending.object.key.clone());
        let revision = pending.object.revision;
        let outcome = match result {
            Ok(()) => {
                inner
                    .partition(&partition)
                    .apply(pending.kind, pending.object);
                inner.published.send_replace(revision);
                Ok(())
            }
            Err(StoreError::Closed) => Err(WriteError::Closed),
            Err(error) => {
                tracing::error!(%error, revision, "a write was not made durable");
                Err(WriteError::Store(Arc::new(error)))
            }
        };
        inner.lock().forget(&partition, &key, revision);
        inner.settled.send_replace(revision);
        // The caller may have given up waiting; the write stands all the same.
        let _ = pending.done.send(outcome);
    }
}
