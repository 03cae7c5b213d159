//! What the node knows: every object once, unfiltered, with its revision; and which queries are known complete, at which
//! revision (design rule R2). Durable through `yurt-store`. Feeding it never blocks the stream that feeds it.
//!
//! Memory holds revisions, completeness and grants only; contents are read from the store when asked for, except what waits to
//! be written. `coverage` and `index` decide (pure), `state` applies, `learner` feeds, `view` answers, `derived` and `corrections` keep what
//! shows instead of the cloud's state apart from it, `writer` is the thread
//! to the disk; `record` documents the layout of the store.

mod acceptance;
pub(crate) mod agents;
mod alarm;
pub mod collect;
mod corrections;
mod coverage;
mod derived;
mod documents;
mod eviction;
mod grants;
mod import;
mod index;
mod learner;
#[cfg(test)]
mod model_test;
pub mod needs;
mod open;
pub(crate) mod overlay;
mod overview;
pub(crate) mod record;
mod sealed;
mod shared;
mod shelf;
pub(crate) mod state;
mod stats;
mod view;
mod worth;
mod writer;

use crate::{caller::Caller, query::Query};
use bytes::Bytes;
use record::Stored;
pub(crate) use record::{index_key, split_index_key};
use sealed::SealedStore;
use serde_json::Value;
use state::State;
use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::{broadcast, oneshot, watch};
use yurt_store::StoreError;
use yurt_wire::{Gvk, Gvr, Object, watch::EventType};

pub use import::Imported;
pub use learner::{ListLearner, WatchLearner};
pub(crate) use open::tolerate;
pub use overview::{CallerOverview, ListOverview, Overview, ResourceOverview};
pub use sealed::Binding;
pub use shelf::Shelf;
pub use state::Asked;
pub use stats::{Counter, Stats};
pub use view::Uncovered;
pub(crate) use view::{Selection, Sight};

/// Local changes that a slow watcher may be behind before it must begin anew.
const CHANGES: usize = 1024;

/// Shared handle. The last one dropped writes what waits and releases the directory.
#[derive(Clone, Debug)]
pub struct Cache {
    handle: Arc<Handle>,
}

/// Settings.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Live bytes the cache may hold on disk; beyond it the least valuable objects go, never what this node's pods need.
    pub budget_bytes: u64,
    /// Bytes that may wait for the disk; beyond it new knowledge is dropped and its queries lose their completeness.
    pub queue_bytes: usize,
    /// What the encryption of secrets is bound to.
    pub binding: Binding,
}

impl Default for CacheConfig {
    /// 256 MiB on disk, 8 MiB waiting.
    fn default() -> Self {
        Self {
            budget_bytes: 256 << 20,
            queue_bytes: 8 << 20,
            binding: Binding::default(),
        }
    }
}

/// What one lookup found.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The object as the node sees it (cloud state with local writes applied).
    Found(Object),
    /// A complete query says that it does not exist.
    KnownAbsent,
    /// Never seen by this node.
    Unknown,
    /// Known, but this caller was never allowed to read it.
    Forbidden,
}

/// An answer to a list.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Kind of the items.
    pub gvk: Gvk,
    /// Revision at which the listing is complete.
    pub resource_version: String,
    /// In namespace/name order.
    pub items: Vec<Object>,
}

/// A change of the local view (a local write while offline, or a replayed one).
#[derive(Clone, Debug)]
pub struct LocalChange {
    /// Resource.
    pub gvr: Gvr,
    /// The event.
    pub kind: EventType,
    /// The object after the change (before it, for `Deleted`).
    pub object: Object,
    /// The object before the change; `None` when it did not exist. A watch with a selector needs it to tell entering from
    /// changing from leaving.
    pub previous: Option<Object>,
}

/// What the handles and the writing thread share.
pub(crate) struct Shared {
    pub(crate) store: SealedStore,
    pub(crate) config: CacheConfig,
    state: Mutex<State>,
    orders: Mutex<writer::Orders>,
    pub(crate) wake: Condvar,
    pub(crate) changes: broadcast::Sender<LocalChange>,
    /// The number of the latest correction.
    pub(crate) corrected: watch::Sender<u64>,
    pub(crate) stats: Arc<Stats>,
    imported: Option<Imported>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders(&self) -> MutexGuard<'_, writer::Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn forgotten_deletions(&self, gvr: &Gvr) -> u64 {
        self.lock()
            .resources
            .get(gvr)
            .map_or(0, |resource| resource.deletions.forgotten())
    }

    /// Adds what waits to be written of an object to a batch.
    pub(crate) fn put_waiting(
        &self,
        batch: &mut yurt_store::Batch,
        gvr: &Gvr,
        key: &str,
    ) -> Result<(), StoreError> {
        let record = record::object_record(record::OBJECTS, gvr, key);
        let waiting = self.lock().pending.get(&record).map(|p| p.value.clone());
        match waiting {
            Some(state::Value::Object(stored)) => {
                self.store.put(batch, record, stored.encode())?;
            }
            Some(state::Value::Delete) => {
                batch.delete(record);
            }
            Some(state::Value::Raw(_) | state::Value::Shelved(_)) | None => {}
        }
        Ok(())
    }

    /// The cloud's state of an object, waiting writes first. A record that cannot be read is dropped.
    pub(crate) fn read_stored(&self, gvr: &Gvr, key: &str) -> Option<Stored> {
        let record = record::object_record(record::OBJECTS, gvr, key);
        {
            let state = self.lock();
            if let Some(pending) = state.pending.get(&record) {
                return match &pending.value {
                    state::Value::Object(stored) => Some(stored.clone()),
                    state::Value::Raw(_) | state::Value::Shelved(_) | state::Value::Delete => None,
                };
            }
            state.resources.get(gvr)?.objects.get(key)?;
        }
        let read = self.store.get(&record);
        match &read {
            Ok(Some(bytes)) => {
                if let Some(stored) = Stored::decode(bytes) {
                    return Some(stored);
                }
            }
            // Written and deleted between the two looks, or the disk is gone for the moment.
            Ok(None) | Err(StoreError::Io { .. } | StoreError::Closed) => {
                let state = self.lock();
                if let Some(state::Value::Object(stored)) =
                    state.pending.get(&record).map(|p| &p.value)
                {
                    return Some(stored.clone());
                }
                if !matches!(read, Ok(None)) {
                    self.stats.read_errors.add(1);
                    tracing::warn!(resource = %gvr, object = key, "the cache's disk cannot be read");
                }
                return None;
            }
            Err(_) => {}
        }
        self.lock().corrupt(gvr, key);
        None
    }
}

struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shared.fmt(f)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.orders().close = true;
        self.shared.nudge();
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the cache's writing thread panicked");
        }
    }
}

impl Shared {
    /// Wakes the thread if what was learned asks for it.
    pub(crate) fn stir(&self) {
        if self.lock().alarm.rings() {
            self.wake.notify_one();
        }
    }

    /// Wakes the thread whatever there is to do; under the lock, so that the wake-up is not lost between its look and its sleep.
    fn nudge(&self) {
        drop(self.lock());
        self.wake.notify_all();
    }
}

impl Cache {
    /// Opens (or creates) the cache directory and recovers it. A directory that cannot be read as a cache is moved aside
    /// (`DIR.unreadable-SECONDS`) and a fresh one begun; one in use by another process, or a disk that refuses, is an error.
    pub fn open(
        dir: &Path,
        config: CacheConfig,
    ) -> Result<(Cache, yurt_store::Recovery), StoreError> {
        open::open(dir, config)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// To note before the cloud is asked for objects of a resource: what is learned of the answer is held against what was learned
    /// meanwhile.
    pub fn asked(&self, gvr: &Gvr) -> Asked {
        self.shared().lock().asked(gvr)
    }

    /// Learns one object from a get, create, update or patch answer. What carries no numeric revision, and Statuses, Tables and
    /// partial metadata, are left out.
    pub fn learn_object(&self, caller: &Caller, gvr: &Gvr, object: &Object, asked: Asked) {
        let shared = self.shared();
        let Some((id, revision)) = learner::cacheable(object) else {
            shared.stats.malformed.add(1);
            return;
        };
        let query = Query::named(gvr.clone(), &id.namespace, &id.name);
        let mut state = shared.lock();
        state.grant(caller, &query);
        let observed_at = asked.shown_at(revision);
        state.learn(&shared.store, gvr, &id, revision, object, observed_at);
        drop(state);
        shared.stir();
    }

    /// A get answered 404, or a delete succeeded: the object is gone, unless what is known of it is younger than the question.
    pub fn learn_absent(
        &self,
        caller: &Caller,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        asked: Asked,
    ) {
        let shared = self.shared();
        let query = Query::named(gvr.clone(), namespace, name);
        let key = index_key(&query.namespace, name);
        let mut state = shared.lock();
        state.grant(caller, &query);
        state.absent(&shared.store, &query, &key, asked);
        drop(state);
        shared.stir();
    }

    /// The cloud answered 403: what the caller was once allowed of this it is not allowed any more. `true` when its rules said
    /// otherwise: they are forgotten, and should be asked for again.
    pub fn learn_forbidden(&self, caller: &Caller, query: &Query) -> bool {
        let shared = self.shared();
        let mut state = shared.lock();
        let caller = state.grants.who(caller).clone();
        for grant in state.grants.revoke(&caller, query) {
            let record = record::grant_record(&caller, &grant);
            state.enqueue(record, state::Value::Delete, Duration::ZERO);
        }
        let without = state.grants.contradict(&caller, query);
        if let Some(bearer) = &without {
            state.store_bearer(&caller, bearer);
        }
        drop(state);
        shared.stir();
        without.is_some()
    }

    /// Begins to learn a list; all its pages must go through the one learner.
    pub fn list_learner(&self, caller: &Caller, query: &Query) -> ListLearner {
        ListLearner::new(self, caller, query)
    }

    /// Begins to learn a watch that started at `since` (`""`/`"0"` without initial events teaches objects but not completeness;
    /// a watch from the revision of a complete list keeps that query complete and moves its revision on).
    pub fn watch_learner(
        &self,
        caller: &Caller,
        query: &Query,
        since: &str,
        initial_events: bool,
    ) -> WatchLearner {
        WatchLearner::new(self, caller, query, since, initial_events)
    }

    /// The cloud accepted this bearer (any answer but 401).
    pub fn accept_bearer(&self, caller: &Caller) {
        self.shared().lock().accept(caller);
        self.shared().stir();
    }

    /// The cloud answered 401: the bearer and its grants are forgotten.
    pub fn forget_bearer(&self, caller: &Caller) {
        let shared = self.shared();
        let mut state = shared.lock();
        let grants = state.grants.forget(caller);
        state.strike_out(caller, &grants);
        drop(state);
        shared.stir();
    }

    /// The bearer turned out to be a user: what it was allowed, the user is.
    pub fn adopt(&self, bearer: &Caller, user: &Caller) {
        let shared = self.shared();
        shared.lock().adopt(bearer, user);
        shared.stir();
    }

    /// Whether a caller may do something by the rules that the cloud told of it. `resource` is group and resource, perhaps with a
    /// subresource (`pods/log`).
    pub fn permits(
        &self,
        caller: &Caller,
        verb: &str,
        resource: (&str, &str),
        namespace: &str,
        name: Option<&str>,
    ) -> bool {
        let state = self.shared().lock();
        state
            .grants
            .permits(caller, verb, resource, namespace, name)
    }

    /// Whether a caller was allowed to read what a query asks for.
    pub fn may_read(&self, caller: &Caller, query: &Query) -> bool {
        let state = self.shared().lock();
        state.grants.allows(caller, query) || state.grants.allows_object(caller, query, || None)
    }

    /// Whether the caller was ever accepted (the node itself always is).
    pub fn knows(&self, caller: &Caller) -> bool {
        self.shared().lock().grants.knows(caller)
    }

    /// The status of a `SelfSubjectRulesReview` whose rules hold in every namespace. A review is about one namespace; ask about
    /// a namespace that does not exist to learn just the rules that hold everywhere (cluster role bindings).
    pub fn learn_rules(&self, caller: &Caller, rules: &Value) {
        self.learn_namespace_rules(caller, "", rules);
    }

    /// As [`Cache::learn_rules`], for the rules of one namespace.
    pub fn learn_namespace_rules(&self, caller: &Caller, namespace: &str, rules: &Value) {
        let shared = self.shared();
        let mut state = shared.lock();
        let caller = state.grants.who(caller).clone();
        state.accept(&caller);
        if let Some(bearer) = state
            .grants
            .set_rules(&caller, namespace, grants::parse_rules(rules))
        {
            state.store_bearer(&caller, &bearer);
        }
        drop(state);
        shared.stir();
    }

    /// Changes of the local view from now on (bounded; a lagging receiver gets `Lagged` and must relist).
    pub fn changes(&self) -> broadcast::Receiver<LocalChange> {
        self.shared().changes.subscribe()
    }

    /// A non-resource document (`/version`, discovery) as it was served: content type and body. Forms of one path (legacy and
    /// aggregated discovery, JSON and protobuf OpenAPI) are kept side by side.
    pub fn learn_document(&self, path: &str, content_type: &str, body: Bytes) {
        if body.len() > documents::MAX_DOCUMENT || path.len() > 2048 || content_type.len() > 1024 {
            return;
        }
        let shared = self.shared();
        let name = format!("{path}#{}", documents::form(content_type));
        let mut value = Vec::with_capacity(content_type.len() + 1 + body.len());
        value.extend_from_slice(content_type.as_bytes());
        value.push(b'\n');
        value.extend_from_slice(&body);
        let record = [record::DOCUMENTS, name.as_bytes()].concat();
        // The same again (clients refresh discovery often): no write.
        if let Ok(Some(known)) = shared.store.get(&record)
            && known == value
        {
            return;
        }
        let mut state = shared.lock();
        let bytes = value.len();
        if !state.enqueue(record, state::Value::Raw(value.into()), Duration::ZERO) {
            shared.stats.overflowed.add(1);
            return;
        }
        let clock = state.tick();
        for gone in state.documents.note(name, bytes, clock) {
            let record = [record::DOCUMENTS, gone.as_bytes()].concat();
            state.enqueue(record, state::Value::Delete, Duration::ZERO);
        }
        drop(state);
        shared.stir();
    }

    /// The document, if it was ever served; JSON before other forms.
    pub fn document(&self, path: &str) -> Option<(String, Bytes)> {
        self.document_form(path, "json").or_else(|| {
            let forms = self.shared().lock().documents.forms(path);
            forms.iter().find_map(|form| self.document_form(path, form))
        })
    }

    /// One form of a document: `json`, `aggregated-v2`, `aggregated-v2beta1`, or a media type.
    pub(crate) fn document_form(&self, path: &str, form: &str) -> Option<(String, Bytes)> {
        let shared = self.shared();
        let record = [record::DOCUMENTS, path.as_bytes(), b"#", form.as_bytes()].concat();
        let pending = match shared.lock().pending.get(&record).map(|p| p.value.clone()) {
            Some(state::Value::Raw(raw)) => Some(raw),
            _ => None,
        };
        let value = pending.or_else(|| shared.store.get(&record).ok().flatten())?;
        let end = value.iter().position(|byte| *byte == b'\n')?;
        let content_type = std::str::from_utf8(&value[..end]).ok()?.to_owned();
        Some((content_type, value.slice(end + 1..)))
    }

    /// The forms known of a document.
    pub(crate) fn document_forms(&self, path: &str) -> Vec<String> {
        self.shared().lock().documents.forms(path)
    }

    /// Waits until everything learned so far is durable.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let (done, wait) = oneshot::channel();
        self.shared().orders().flush.push(done);
        self.shared().nudge();
        wait.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Looks at the byte budget now, rather than within the next seconds, and evicts what is over it.
    pub fn keep_budget(&self) {
        eviction::keep_budget(self.shared());
        self.shared().stir();
    }

    /// What was taken over from OpenYurt's hub at this start.
    pub fn imported(&self) -> Option<&Imported> {
        self.shared().imported.as_ref()
    }

    /// What was counted since start.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared().stats
    }

    /// Records that could not be read back so far. When it grew while a list was put together, the list may lack something.
    pub(crate) fn damage(&self) -> u64 {
        let stats = self.stats();
        stats.corrupt.get() + stats.read_errors.get()
    }

    /// Objects known.
    pub fn object_count(&self) -> usize {
        self.shared().lock().object_count()
    }

    /// Bytes of live records and bytes on disk.
    pub fn usage(&self) -> yurt_store::Usage {
        self.shared().store.usage()
    }
}
