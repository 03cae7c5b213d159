//! The cache's memory: what is indexed, what is complete, what waits for the disk. Every method here runs under one lock and
//! touches no disk, except [`State::resolve`], which reads a record that was not read since start.

use super::{
    alarm::Alarm,
    collect::{Missing, today},
    corrections::Corrections,
    coverage::{self, Coverages, Leave},
    documents::Documents,
    grants::Grants,
    index::{self, Deletions, Entry, Key, Upsert, namespace_range},
    overlay::Overlay,
    record::{self, Stored, index_key, split_index_key},
    sealed::SealedStore,
    shelf::Shelves,
    stats::Stats,
};
use crate::query::Query;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use yurt_wire::{Encoding, Gvr, Object, ObjectKey};

/// A lease on disk is at most this old: losing a renewal costs nothing, writing each wears the flash.
const LEASE_DELAY: Duration = Duration::from_secs(300);
/// Events kept; the cloud keeps them for an hour only.
pub(crate) const MAX_EVENTS: usize = 1000;

/// All that is known of one resource.
#[derive(Debug, Default)]
pub(crate) struct Resource {
    /// Kind of the objects, `""` while none was seen.
    pub(crate) kind: String,
    pub(crate) objects: BTreeMap<Key, Entry>,
    pub(crate) deletions: Deletions,
    pub(crate) coverages: Coverages,
    pub(crate) overlays: BTreeMap<Key, Overlay>,
    /// What was shown of it and the cloud never had.
    pub(crate) corrections: Corrections,
    /// When it was last read or learned (a counter).
    pub(crate) used: u64,
    /// Reads answered, and reads of what is not known, since start.
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    /// When the cloud last told anything about it.
    pub(crate) heard: Option<Instant>,
}

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

/// How it shows that an object left a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// A DELETED event, with the revision at which it happened.
    ByEvent,
    /// A complete list did not hold it: it happened at some revision up to the list's.
    InSnapshot,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) resources: HashMap<Gvr, Resource>,
    pub(crate) grants: Grants,
    pub(crate) documents: Documents,
    pub(crate) shelves: Shelves,
    pub(crate) pending: HashMap<Vec<u8>, Pending>,
    pub(crate) pending_bytes: usize,
    pub(crate) queue_bytes: usize,
    /// Coverages changed since they were written.
    pub(crate) dirty: HashSet<Query>,
    /// When the dirty coverages must be written.
    pub(crate) dirty_due: Option<Instant>,
    /// Coverages whose suspects are to be looked at.
    pub(crate) suspected: Vec<Query>,
    /// What the cloud does not serve any more, and since when.
    pub(crate) missing: Missing,
    /// The highest revision the cloud ever showed.
    pub(crate) high: u64,
    pub(crate) clock: u64,
    pub(crate) stats: Arc<Stats>,
    /// Told when the cloud's state of pods, services and their endpoints changes.
    pub(crate) endpoints: Arc<Notify>,
    pub(crate) alarm: Alarm,
}

/// This much waiting is written at once.
const BURST: usize = 1 << 20;

/// How long the revision of a coverage on disk may lag behind; being behind is harmless, it only makes a resumed watch repeat.
pub(crate) const COVERAGE_LAG: Duration = Duration::from_secs(5);

impl State {
    pub(crate) fn new(queue_bytes: usize, stats: Arc<Stats>) -> Self {
        Self {
            resources: HashMap::new(),
            grants: Grants::default(),
            documents: Documents::default(),
            shelves: Shelves::default(),
            pending: HashMap::new(),
            pending_bytes: 0,
            queue_bytes,
            dirty: HashSet::new(),
            dirty_due: None,
            suspected: Vec::new(),
            missing: Missing::default(),
            high: 0,
            clock: 0,
            stats,
            endpoints: Arc::default(),
            alarm: Alarm::default(),
        }
    }

    fn concerns(&self, gvr: &Gvr) {
        if matches!(
            gvr.resource.as_str(),
            "pods" | "services" | "endpointslices" | "endpoints"
        ) {
            self.endpoints.notify_one();
        }
    }

    /// The next tick of the logical clock.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The resource, made when it is not there.
    pub(crate) fn resource(&mut self, gvr: &Gvr) -> &mut Resource {
        if !self.resources.contains_key(gvr) {
            self.resources.insert(gvr.clone(), Resource::default());
        }
        let clock = self.tick();
        let resource = self.resources.entry(gvr.clone()).or_default();
        resource.used = clock;
        resource
    }

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

    /// The objects whose entries are so.
    pub(crate) fn objects_where(&self, is: impl Fn(&Entry) -> bool) -> Vec<(Gvr, Key)> {
        let mut found = Vec::new();
        for (gvr, resource) in &self.resources {
            let keys = resource.objects.iter().filter(|(_, entry)| is(entry));
            found.extend(keys.map(|(key, _)| (gvr.clone(), key.clone())));
        }
        found
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
    }

    /// The entry of an object, its record read when that did not happen since start.
    pub(crate) fn resolve(&mut self, store: &SealedStore, gvr: &Gvr, key: &str) -> Option<Entry> {
        let entry = *self.resources.get(gvr)?.objects.get(key)?;
        if entry.revision != 0 {
            return Some(entry);
        }
        let record = record::object_record(record::OBJECTS, gvr, key);
        match store.get(&record).ok().flatten() {
            Some(bytes) => match Stored::decode(&bytes) {
                Some(stored) => {
                    let entry = Entry {
                        revision: stored.revision,
                        encoding: stored.object.encoding,
                        excluded: !stored.absent_from.is_empty(),
                    };
                    self.high = self.high.max(stored.revision);
                    if let Some(slot) = self
                        .resources
                        .get_mut(gvr)
                        .and_then(|r| r.objects.get_mut(key))
                    {
                        *slot = entry;
                    }
                    Some(entry)
                }
                None => {
                    self.corrupt(gvr, key);
                    None
                }
            },
            None => {
                self.corrupt(gvr, key);
                None
            }
        }
    }

    /// A record cannot be read: the object is unknown from now on, and what relied on it is not complete any more.
    pub(crate) fn corrupt(&mut self, gvr: &Gvr, key: &str) {
        self.stats.corrupt.add(1);
        tracing::warn!(resource = %gvr, object = key, "cached object cannot be read; dropped");
        self.lose(gvr, key);
        self.forget_object(gvr, key);
    }

    /// Takes an object out of memory and off the disk, as if it had never been seen.
    pub(crate) fn forget_object(&mut self, gvr: &Gvr, key: &str) {
        if let Some(resource) = self.resources.get_mut(gvr) {
            resource.objects.remove(key);
        }
        let record = record::object_record(record::OBJECTS, gvr, key);
        self.enqueue(record, Value::Delete, Duration::ZERO);
    }

    /// Knowledge of one object was lost: coverages that may hold it are not complete any more.
    pub(crate) fn lose(&mut self, gvr: &Gvr, key: &str) {
        let (namespace, name) = split_index_key(key);
        self.drop_coverages(gvr, |coverage| coverage.query.in_scope(namespace, name));
    }

    /// Drops coverages, on disk too.
    pub(crate) fn drop_coverages(
        &mut self,
        gvr: &Gvr,
        lost: impl FnMut(&coverage::Coverage) -> bool,
    ) {
        let Some(resource) = self.resources.get_mut(gvr) else {
            return;
        };
        for query in resource.coverages.drop_where(lost) {
            self.stats.coverages_dropped.add(1);
            self.uncover(&query);
        }
    }

    fn uncover(&mut self, query: &Query) {
        self.dirty.remove(query);
        self.enqueue(
            record::coverage_record(query),
            Value::Delete,
            Duration::ZERO,
        );
    }

    /// Notes that coverages were asked for today.
    pub(crate) fn touch_coverages(
        &mut self,
        gvr: &Gvr,
        asked: impl Fn(&coverage::Coverage) -> bool,
    ) {
        let Some(resource) = self.resources.get_mut(gvr) else {
            return;
        };
        for query in resource.coverages.touch(today(), asked) {
            self.mark_dirty(&query, COVERAGE_LAG);
        }
    }

    /// Marks a coverage for writing.
    pub(crate) fn mark_dirty(&mut self, query: &Query, delay: Duration) {
        if !self.dirty.contains(query) {
            self.dirty.insert(query.clone());
        }
        let due = Instant::now() + delay;
        self.dirty_due = Some(self.dirty_due.map_or(due, |at| at.min(due)));
        self.alarm.due(due);
    }

    /// Learns one object. `observed_at` as in [`index::upsert`].
    pub(crate) fn learn(
        &mut self,
        store: &SealedStore,
        gvr: &Gvr,
        id: &ObjectKey<'_>,
        revision: u64,
        object: &Object,
        observed_at: Option<u64>,
    ) -> Upsert {
        let key = index_key(&id.namespace, &id.name);
        self.high = self.high.max(revision);
        let existing = self.resolve(store, gvr, &key);
        let is_lease = gvr.resource == "leases" && gvr.group == "coordination.k8s.io";
        let resource = self.resource(gvr);
        resource.heard = Some(Instant::now());
        let decision = index::upsert(
            existing,
            resource.deletions.of(&key),
            resource.coverages.absent_at(&id.namespace, &id.name),
            revision,
            object.encoding,
            observed_at,
        );
        if decision != Upsert::Store {
            return decision;
        }
        // News that comes late: a selector that is complete at a later revision and should have held this, but does not, knows
        // that it changed since.
        let absent_from: Vec<String> = if existing.is_some_and(|e| e.revision == revision) {
            Vec::new()
        } else {
            resource
                .coverages
                .iter()
                .filter(|coverage| {
                    coverage.revision >= revision
                        && !coverage.query.is_identity()
                        && coverage.query.matches(&id.namespace, &id.name, object)
                })
                .map(|coverage| coverage.query.to_text())
                .collect()
        };
        let excluded = !absent_from.is_empty();
        let mut object = object.clone();
        let mut delay = Duration::ZERO;
        if is_lease && existing.is_some() {
            // It stays in memory for a while: not with the buffer it came in.
            object.bytes = Bytes::copy_from_slice(&object.bytes);
            delay = LEASE_DELAY;
        }
        let stored = Stored {
            revision,
            absent_from,
            object: object.clone(),
        };
        let record = record::object_record(record::OBJECTS, gvr, &key);
        if !self.enqueue(record, Value::Object(stored), delay) {
            self.stats.overflowed.add(1);
            self.lose(gvr, &key);
            return Upsert::Older;
        }
        let resource = self.resource(gvr);
        if resource.kind.is_empty() {
            resource.kind = id.kind.clone().into_owned();
        }
        resource.deletions.revive(&key);
        resource.objects.insert(
            key.clone(),
            Entry {
                revision,
                encoding: object.encoding,
                excluded,
            },
        );
        if let Some(overlay) = resource.overlays.get(&key) {
            match overlay.on_newer(&object) {
                Some(overlay) => resource.overlays.insert(key.clone(), overlay),
                None => resource.overlays.remove(&key),
            };
        }
        if existing.is_none_or(|e| e.revision < revision) {
            // Whoever knows less is told by the cloud.
            resource.corrections.forget(&key);
        }
        self.concerns(gvr);
        self.bound_events(gvr);
        Upsert::Store
    }

    /// Events are bounded by count: the oldest go, and nobody misses them in a list.
    fn bound_events(&mut self, gvr: &Gvr) {
        if gvr.resource != "events" {
            return;
        }
        while let Some(key) = self.resources.get(gvr).and_then(|resource| {
            (resource.objects.len() > MAX_EVENTS)
                .then(|| resource.objects.iter().min_by_key(|(_, e)| e.revision))
                .flatten()
                .map(|(key, _)| key.clone())
        }) {
            self.forget_object(gvr, &key);
        }
    }

    /// The query tells that it does not hold an object at `revision`. `stored` is the record when it is at hand; it is only
    /// needed to keep an object that left a selector.
    pub(crate) fn leave(
        &mut self,
        store: &SealedStore,
        query: &Query,
        key: &str,
        revision: u64,
        seen: Left,
        stored: impl FnOnce() -> Option<Stored>,
    ) {
        let gvr = &query.gvr;
        let (namespace, name) = split_index_key(key);
        self.high = self.high.max(revision);
        let Some(entry) = self.resolve(store, gvr, key) else {
            self.resource(gvr)
                .deletions
                .record(key, revision, query.is_stable());
            return;
        };
        if entry.revision > revision || (entry.revision == revision && !query.is_stable()) {
            return;
        }
        let resource = self.resource(gvr);
        match coverage::leave(&resource.coverages, query, namespace, name) {
            Leave::Remove => {
                let at = match seen {
                    // It may live on outside the selector, changed at any revision after the one known.
                    Left::InSnapshot if !query.is_stable() => entry.revision + 1,
                    Left::InSnapshot | Left::ByEvent => revision,
                };
                self.remove(gvr, key, at, query.is_stable());
            }
            Leave::Exclude => match stored() {
                Some(mut stored) => {
                    let text = query.to_text();
                    if !stored.absent_from.contains(&text) {
                        stored.absent_from.push(text);
                        let record = record::object_record(record::OBJECTS, gvr, key);
                        if !self.enqueue(record, Value::Object(stored), Duration::ZERO) {
                            self.stats.overflowed.add(1);
                            self.lose(gvr, key);
                        }
                    }
                    if let Some(entry) = self.resource(gvr).objects.get_mut(key) {
                        entry.excluded = true;
                    }
                }
                // It cannot be kept for those who rely on it.
                None => {
                    self.lose(gvr, key);
                    self.remove(gvr, key, revision, query.is_stable());
                }
            },
        }
    }

    /// Takes an object out. `certain`: it does not exist, rather than having left the selector through which it was seen.
    pub(crate) fn remove(&mut self, gvr: &Gvr, key: &str, revision: u64, certain: bool) {
        let resource = self.resource(gvr);
        resource.objects.remove(key);
        resource.corrections.forget(key);
        resource.deletions.record(key, revision, certain);
        self.concerns(gvr);
        let record = record::object_record(record::OBJECTS, gvr, key);
        self.enqueue(record, Value::Delete, Duration::ZERO);
    }

    /// A snapshot of a query is complete at `revision`: it held `seen`. Gives the epoch of the coverage; `None` when an object
    /// of the snapshot is not in the cache (it found no room in the queue), so that the query is not complete here.
    pub(crate) fn complete(
        &mut self,
        store: &SealedStore,
        query: &Query,
        kind: &str,
        revision: u64,
        seen: &HashSet<Key>,
    ) -> Option<u64> {
        self.high = self.high.max(revision);
        let clock = self.tick();
        let resource = self.resource(&query.gvr);
        resource.heard = Some(Instant::now());
        let known = |key: &Key| {
            let (namespace, name) = split_index_key(key);
            resource.objects.contains_key(key)
                || resource.deletions.is_certain(key)
                // Absent before the snapshot says nothing: it came, and left the selector through which it was seen.
                || (resource.coverages.absent_at(namespace, name)).is_some_and(|at| at >= revision)
        };
        // Events are bounded by count, and lists of them may lack the oldest.
        if query.gvr.resource != "events" && !seen.iter().all(known) {
            tracing::debug!(query = %query.to_text(), "not complete: objects found no room in the queue");
            return None;
        }
        if resource.kind.is_empty() {
            resource.kind = kind.to_owned();
        }
        let missing: Vec<Key> = match query.name() {
            Some(name) if !query.namespace.is_empty() => {
                let key = index_key(&query.namespace, name);
                let gone = resource.objects.contains_key(&key) && !seen.contains(&key);
                gone.then_some(key).into_iter().collect()
            }
            _ => namespace_range(&resource.objects, &query.namespace)
                .filter(|(key, _)| {
                    let (namespace, name) = split_index_key(key);
                    !seen.contains(*key) && query.in_scope(namespace, name)
                })
                .map(|(key, _)| key.clone())
                .collect(),
        };
        let mut suspects = HashSet::new();
        for key in missing {
            match self.resolve(store, &query.gvr, &key) {
                Some(entry) if entry.revision <= revision => {
                    if query.is_identity() {
                        self.remove(&query.gvr, &key, revision, true);
                    } else {
                        suspects.insert(key);
                    }
                }
                _ => {}
            }
        }
        let suspected = !suspects.is_empty();
        let resource = self.resource(&query.gvr);
        let (epoch, evicted) =
            resource
                .coverages
                .complete(query, revision, suspects, clock, today());
        if let Some(evicted) = evicted {
            self.uncover(&evicted);
        }
        if suspected {
            self.suspected.push(query.clone());
            self.alarm.ring();
        }
        self.mark_dirty(query, Duration::ZERO);
        Some(epoch)
    }

    /// A 404 for one name: as a complete query that found nothing, at no known revision.
    pub(crate) fn absent(&mut self, store: &SealedStore, query: &Query, key: &str) {
        if self.resolve(store, &query.gvr, key).is_some() {
            let revision = self.high;
            self.remove(&query.gvr, key, revision, true);
        }
        let clock = self.tick();
        let resource = self.resource(&query.gvr);
        let (namespace, name) = split_index_key(key);
        if resource.coverages.absent_at(namespace, name).is_some() {
            return;
        }
        let (_, evicted) = resource
            .coverages
            .complete(query, 0, HashSet::new(), clock, today());
        if let Some(evicted) = evicted {
            self.uncover(&evicted);
        }
        self.mark_dirty(query, Duration::ZERO);
    }

    /// The encoding of an object in the index, for tests and metrics.
    pub(crate) fn object_count(&self) -> usize {
        self.resources.values().map(|r| r.objects.len()).sum()
    }
}

/// An entry that is known to exist but was not read yet.
pub(crate) const UNREAD: Entry = Entry {
    revision: 0,
    encoding: Encoding::Json,
    excluded: false,
};
