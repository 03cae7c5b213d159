//! What the node wrote while the cloud was away: one entry per object, durable before the write is acknowledged, replayed in
//! the order of the last writes when the cloud is back (design rule R5).
//!
//! The journal lies in the store of the cache, and is the truth of it: local writes on top of the cloud's state ("overlays" of
//! the cache) are derived from it at start. [`change`] says how a change is put on a newer object, `entry` how writes of one
//! object coalesce, `replay` what is sent; all pure. `shown` puts entries on top of the cloud's state, `precedence` settles what
//! happens when a younger write overtakes.

pub(crate) mod change;
pub(crate) mod entry;
mod precedence;
mod replay;
mod shown;

use crate::{
    cache::{
        Asked, Cache,
        overlay::Overlay,
        record::{self, index_key},
        tolerate,
    },
    caller::Caller,
};
use bytes::Bytes;
use entry::{Entry, Write, coalesce};
pub use precedence::Waiting;
use replay::{Next, after, begin};
use shown::overlay_of;
pub(crate) use shown::{fill_created, name_uid};
use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use yurt_store::{Batch, StoreError};
use yurt_transport::ClientError;
use yurt_wire::{Encoding, Gvr, Object};

/// The cloud, as the journal needs it.
pub trait Cloud: Send + Sync {
    /// Sends one request with the node's identity and gives the whole answer (bounded).
    fn call(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, ClientError>> + Send + '_>>;
}

/// Bounds.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Events kept; beyond it the oldest are dropped and counted.
    pub max_events: usize,
    /// Bytes of events kept.
    pub max_event_bytes: usize,
    /// Entries other than events; beyond it writes to further objects are refused.
    pub max_entries: usize,
    /// How long one request of the replay may take.
    pub timeout: Duration,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            max_events: 1000,
            max_event_bytes: 2 << 20,
            max_entries: 5000,
            timeout: Duration::from_secs(10),
        }
    }
}

/// What a replay did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Entries that are in the cloud now.
    pub applied: usize,
    /// Entries that can never be applied, with the reason.
    pub dropped: Vec<String>,
    /// Entries that wait for the next time.
    pub kept: usize,
    /// Why something waits: the first reason.
    pub stopped: Option<String>,
}

/// Why a write was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too many objects were written while offline.
    #[error("the journal of offline writes is full ({0} entries)")]
    Full(usize),
    /// It cannot be encoded.
    #[error("the write cannot be encoded: {0}")]
    Encode(#[from] serde_json::Error),
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Entries {
    map: HashMap<(Gvr, Box<str>), Kept>,
    order: u64,
    event_bytes: usize,
    events: usize,
}

impl Entries {
    fn insert(&mut self, key: (Gvr, Box<str>), kept: Kept) {
        let (events, bytes) = (usize::from(kept.entry.is_event()), kept.bytes);
        self.remove(&key);
        if events == 1 {
            self.events += 1;
            self.event_bytes += bytes;
        }
        self.map.insert(key, kept);
    }

    fn remove(&mut self, key: &(Gvr, Box<str>)) -> Option<Kept> {
        let kept = self.map.remove(key)?;
        if kept.entry.is_event() {
            self.events -= 1;
            self.event_bytes -= kept.bytes;
        }
        Some(kept)
    }

    /// The oldest events that must go to make room for one more of `bytes`.
    fn surplus(&self, config: &JournalConfig, bytes: usize) -> Vec<(Gvr, Box<str>)> {
        let mut events = self.events + 1;
        let mut total = self.event_bytes + bytes;
        if events <= config.max_events && total <= config.max_event_bytes {
            return Vec::new();
        }
        let mut by_age: Vec<_> = self
            .map
            .iter()
            .filter(|(_, kept)| kept.entry.is_event())
            .map(|(key, kept)| (kept.entry.order, kept.bytes, key.clone()))
            .collect();
        by_age.sort_by_key(|(order, ..)| *order);
        let mut gone = Vec::new();
        for (_, bytes, key) in by_age {
            if events <= config.max_events && total <= config.max_event_bytes {
                break;
            }
            events -= 1;
            total -= bytes;
            gone.push(key);
        }
        gone
    }
}

struct Inner {
    cache: Cache,
    config: JournalConfig,
    entries: Mutex<Entries>,
    /// Held by a write from reading the object to showing its new state.
    writing: tokio::sync::Mutex<()>,
    replaying: tokio::sync::Mutex<()>,
    dropped: AtomicU64,
    replayed: AtomicU64,
}

/// Shared handle.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal in the cache's store and shows its writes in the cache's view.
    pub fn open(cache: &Cache, config: JournalConfig) -> Result<Self, StoreError> {
        let mut entries = Entries::default();
        let mut unreadable = Vec::new();
        tolerate(cache
            .shared()
            .store
            .scan(record::JOURNAL, &mut |key, value| {
                match serde_json::from_slice::<Entry>(&value) {
                    Ok(mut entry) => {
                        name_uid(&mut entry);
                        entries.order = entries.order.max(entry.order);
                        let index = index_key(&entry.namespace, &entry.name);
                        let kept = Kept {
                            bytes: value.len(),
                            entry,
                        };
                        entries.insert((kept.entry.gvr(), index), kept);
                    }
                    Err(error) => {
                        tracing::error!(%error, key = %String::from_utf8_lossy(key), "an offline write cannot be read back; it is lost");
                        unreadable.push(key.to_vec());
                    }
                }
                true
            }))?;
        for ((gvr, key), kept) in &entries.map {
            if let Some(overlay) = overlay_of(cache, &kept.entry) {
                cache.set_overlay(gvr, key, overlay, false);
            }
        }
        let dropped = unreadable.len() as u64;
        if dropped > 0 {
            let mut batch = Batch::default();
            for key in unreadable {
                batch.delete(key);
            }
            cache.shared().store.commit(batch).wait()?;
        }
        if !entries.map.is_empty() {
            tracing::info!(
                entries = entries.map.len(),
                "offline writes wait for the cloud"
            );
        }
        Ok(Self {
            inner: Arc::new(Inner {
                cache: cache.clone(),
                config,
                entries: Mutex::new(entries),
                writing: tokio::sync::Mutex::default(),
                replaying: tokio::sync::Mutex::default(),
                dropped: AtomicU64::new(dropped),
                replayed: AtomicU64::new(0),
            }),
        })
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.inner
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries that wait for the cloud.
    pub fn pending(&self) -> usize {
        self.entries().map.len()
    }

    /// Entries dropped since start: never applicable, or events beyond the bound.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    /// Entries brought to the cloud since start.
    pub fn replayed(&self) -> u64 {
        self.inner.replayed.load(Ordering::Relaxed)
    }

    /// Whether an object exists only here so far.
    pub(crate) fn creates(&self, gvr: &Gvr, namespace: &str, name: &str) -> bool {
        let key = (gvr.clone(), index_key(namespace, name));
        let entries = self.entries();
        let kept = entries.map.get(&key);
        kept.is_some_and(|kept| matches!(kept.entry.write, Write::Create { .. }))
    }

    /// The objects of a resource (`NAMESPACE/NAME`) that were written here and wait for the cloud.
    pub(crate) fn waiting_keys(&self, gvr: &Gvr) -> Vec<Box<str>> {
        let entries = self.entries();
        let of = entries.map.keys().filter(|(of, _)| of == gvr);
        of.map(|(_, key)| key.clone()).collect()
    }

    /// Taken by a write for as long as it reads, decides and appends.
    pub(crate) async fn begin_write(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.inner.writing.lock().await
    }

    /// Appends a write; when it returns the write is durable and shows in the cache's view. `overlay` makes the new view from
    /// the entry's order.
    pub(crate) async fn append(
        &self,
        mut new: Entry,
        overlay: impl FnOnce(&Entry) -> Option<Overlay>,
    ) -> Result<(), AppendError> {
        let inner = &self.inner;
        let gvr = new.gvr();
        let index = index_key(&new.namespace, &new.name);
        let key = (gvr.clone(), index.clone());
        let prepared = {
            let mut entries = self.entries();
            let known = entries.map.get(&key);
            let others = entries.map.len() - entries.events;
            if known.is_none() && !new.is_event() && others >= inner.config.max_entries {
                return Err(AppendError::Full(others));
            }
            let known = known.map(|kept| kept.entry.clone());
            entries.order += 1;
            new.order = entries.order;
            match coalesce(known.clone(), new) {
                None => None,
                Some(mut entry) => {
                    name_uid(&mut entry);
                    let value = serde_json::to_vec(&entry)?;
                    let surplus = if entry.is_event() && known.is_none() {
                        entries.surplus(&inner.config, value.len())
                    } else {
                        Vec::new()
                    };
                    Some((entry, surplus, value))
                }
            }
        };
        let Some((entry, surplus, value)) = prepared else {
            return self.undo(key).await;
        };
        let view = overlay(&entry);
        let bytes = value.len();
        let mut batch = Batch::default();
        let record = record::object_record(record::JOURNAL, &gvr, &index);
        let store = &inner.cache.shared().store;
        store.put(&mut batch, record, value.into())?;
        for (gvr, index) in &surplus {
            batch.delete(record::object_record(record::JOURNAL, gvr, index));
        }
        self.commit(batch).await?;
        {
            let mut entries = self.entries();
            for key in &surplus {
                entries.remove(key);
            }
            entries.insert(key, Kept { entry, bytes });
        }
        if !surplus.is_empty() {
            inner
                .dropped
                .fetch_add(surplus.len() as u64, Ordering::Relaxed);
            for (gvr, index) in &surplus {
                inner.cache.end_overlay(gvr, index, None);
            }
        }
        if let Some(view) = view {
            inner.cache.set_overlay(&gvr, &index, view, true);
        }
        Ok(())
    }

    /// Takes an entry back whose object the cloud never had.
    async fn undo(&self, key: (Gvr, Box<str>)) -> Result<(), AppendError> {
        let mut batch = Batch::default();
        batch.delete(record::object_record(record::JOURNAL, &key.0, &key.1));
        self.commit(batch).await?;
        self.entries().remove(&key);
        let (gvr, index) = key;
        let (namespace, name) = record::split_index_key(&index);
        let shown = self.inner.cache.view(&gvr, namespace, name);
        self.inner.cache.end_overlay(&gvr, &index, Some(shown));
        Ok(())
    }

    /// Commits without blocking the runtime when the disk's queue is full.
    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let store = self.inner.cache.shared().store.clone();
        let result = match store.try_commit(batch) {
            Ok(commit) => commit.await,
            Err(batch) => tokio::task::spawn_blocking(move || store.commit(batch).wait())
                .await
                .unwrap_or(Err(StoreError::Closed)),
        };
        if let Err(error) = &result {
            self.inner.cache.stats().write_errors.add(1);
            tracing::warn!(%error, "the journal cannot be written");
        }
        result
    }

    /// Brings what waits to the cloud: events last, everything else in the order of the last writes. A cloud that cannot be reached,
    /// or takes nothing for the moment, stops it; what fails for reasons of its own waits while the others go on. Killed in the
    /// middle and begun again it does no harm.
    pub async fn replay(&self, cloud: &dyn Cloud) -> ReplayReport {
        let _alone = self.inner.replaying.lock().await;
        let mut report = ReplayReport::default();
        let mut queue: Vec<Entry> = self
            .entries()
            .map
            .values()
            .map(|kept| kept.entry.clone())
            .collect();
        // Clients follow soon whether it is over or not: services must be right by then, what was told about them need not.
        queue.sort_by_key(|entry| (entry.is_event(), entry.order));
        for entry in queue {
            if !self.still_waits(&entry) {
                continue;
            }
            let asked = self.inner.cache.asked(&entry.gvr());
            let gone = match self.replay_one(cloud, &entry).await {
                Next::Done(object) => {
                    // Another object of its name shows from now on.
                    let shown =
                        matches!(entry.write, Write::Delete { .. }).then(|| self.view(&entry));
                    self.learn(&entry, object, asked);
                    self.strike(&entry, shown).await;
                    false
                }
                Next::Gone => {
                    self.learn_absent(&entry, asked);
                    self.strike(&entry, None).await;
                    true
                }
                Next::Drop { reason, gone } => {
                    let what = format!(
                        "{} {}/{}: {reason}",
                        entry.resource, entry.namespace, entry.name
                    );
                    tracing::warn!(write = %what, "an offline write is dropped");
                    let shown = self.view(&entry);
                    if gone {
                        self.learn_absent(&entry, asked);
                    }
                    self.strike(&entry, Some(shown)).await;
                    self.inner.dropped.fetch_add(1, Ordering::Relaxed);
                    report.dropped.push(what);
                    continue;
                }
                Next::Later(reason) => {
                    tracing::info!(%reason, entry = %entry.path(false), "the replay of offline writes waits");
                    report.stopped = Some(reason);
                    break;
                }
                Next::LaterAlone(reason) => {
                    tracing::info!(%reason, entry = %entry.path(false), "an offline write waits");
                    report.stopped.get_or_insert(reason);
                    continue;
                }
                // `replay_one` ends with a decision.
                Next::Send(_) => break,
            };
            tracing::debug!(entry = %entry.path(false), gone, "an offline write is in the cloud");
            self.inner.replayed.fetch_add(1, Ordering::Relaxed);
            report.applied += 1;
        }
        report.kept = self.pending();
        report
    }

    /// What the node shows of the object of an entry.
    fn view(&self, entry: &Entry) -> Option<Object> {
        let cache = &self.inner.cache;
        cache.view(&entry.gvr(), &entry.namespace, &entry.name)
    }

    fn learn_absent(&self, entry: &Entry, asked: Asked) {
        let cache = &self.inner.cache;
        let (gvr, namespace, name) = (entry.gvr(), &entry.namespace, &entry.name);
        cache.learn_absent(&Caller::Node, &gvr, namespace, name, asked);
    }

    async fn replay_one(&self, cloud: &dyn Cloud, entry: &Entry) -> Next {
        let mut next = begin(entry);
        let mut conflicts = 0;
        // Each round is one request; conflicts are bounded, and nothing else goes back to an earlier stage more than once.
        for _ in 0..4 * replay::MAX_CONFLICTS {
            let Next::Send(send) = next else {
                return next;
            };
            if !self.still_waits(entry) {
                return Next::LaterAlone("a younger write went ahead of it".into());
            }
            let stage = send.stage;
            let (code, body) = match self.send(cloud, send).await {
                Ok(answer) => answer,
                Err(reason) => return Next::Later(reason),
            };
            next = after(entry, stage, code, &body, conflicts);
            if code == 409 {
                conflicts += 1;
            }
        }
        Next::LaterAlone("no end of conflicts".into())
    }

    async fn send(
        &self,
        cloud: &dyn Cloud,
        send: replay::Send,
    ) -> Result<(u16, serde_json::Value), String> {
        let mut request = http::Request::builder()
            .method(send.method)
            .uri(send.path)
            .header(http::header::ACCEPT, "application/json");
        let body = match send.body {
            Some(body) => {
                request = request.header(http::header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request.body(body).map_err(|error| error.to_string())?;
        let answer = cloud
            .call(request, self.inner.config.timeout)
            .await
            .map_err(|error| error.to_string())?;
        let code = answer.status().as_u16();
        // A proxy's error page is no Status; its code decides.
        let body = serde_json::from_slice(answer.body()).unwrap_or_default();
        Ok((code, body))
    }

    /// The cloud's answer is what the node sees from now on.
    fn learn(&self, entry: &Entry, object: Option<serde_json::Value>, asked: Asked) {
        let Some(mut object) = object else { return };
        let gvk = entry.gvk();
        if let Some(map) = object.as_object_mut() {
            map.entry("apiVersion")
                .or_insert_with(|| gvk.api_version().into());
            map.entry("kind").or_insert_with(|| gvk.kind.into());
        }
        let object = Object {
            encoding: Encoding::Json,
            bytes: object.to_string().into(),
        };
        self.inner
            .cache
            .learn_object(&Caller::Node, &entry.gvr(), &object, asked);
    }

    /// Ends an entry, unless something was written on top of it meanwhile. Watchers are told when `shown`, what they saw so far,
    /// is given.
    async fn strike(&self, entry: &Entry, shown: Option<Option<Object>>) {
        let _write = self.inner.writing.lock().await;
        let key = (entry.gvr(), index_key(&entry.namespace, &entry.name));
        {
            let mut entries = self.entries();
            match entries.map.get(&key) {
                Some(kept) if kept.entry.order == entry.order => {}
                _ => return,
            }
            entries.remove(&key);
        }
        let mut batch = Batch::default();
        batch.delete(record::object_record(record::JOURNAL, &key.0, &key.1));
        // Together with the cloud's answer, which may still wait for the disk: a kill in between would show the state before
        // the write again.
        let waiting = self
            .inner
            .cache
            .shared()
            .put_waiting(&mut batch, &key.0, &key.1);
        if let Err(error) = match waiting {
            Ok(()) => self.commit(batch).await,
            Err(error) => Err(error),
        } {
            // It may come back after a restart; putting it on the fresh object again changes nothing then.
            tracing::warn!(%error, "a replayed write could not be struck out");
        }
        self.inner.cache.end_overlay(&key.0, &key.1, shown);
    }
}
