//! The cache's memory: what is indexed, what is complete, what waits for the disk. Every method here runs under one lock and
//! touches no disk, except [`State::resolve`], which reads a record that was not read since start.

mod covered;
#[cfg(test)]
mod tests;
mod waiting;

pub use covered::Asked;
pub(crate) use covered::Left;
pub(crate) use waiting::{Pending, Value};

use super::{
    alarm::Alarm,
    collect::Missing,
    corrections::Corrections,
    coverage::Coverages,
    documents::Documents,
    grants::Grants,
    index::{self, Deletions, Entry, Key, Upsert},
    overlay::Overlay,
    record::{self, Stored, index_key},
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
    /// The highest revision that the cloud showed of it. Of each resource apart: not all need be kept in one etcd.
    pub(crate) high: u64,
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

    /// The cloud showed a revision of a resource.
    pub(crate) fn saw(&mut self, gvr: &Gvr, revision: u64) {
        self.high = self.high.max(revision);
        if let Some(resource) = self.resources.get_mut(gvr) {
            resource.high = resource.high.max(revision);
        }
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

    /// The objects whose entries are so.
    pub(crate) fn objects_where(&self, is: impl Fn(&Entry) -> bool) -> Vec<(Gvr, Key)> {
        let mut found = Vec::new();
        for (gvr, resource) in &self.resources {
            let keys = resource.objects.iter().filter(|(_, entry)| is(entry));
            found.extend(keys.map(|(key, _)| (gvr.clone(), key.clone())));
        }
        found
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
                    self.saw(gvr, stored.revision);
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

    /// Learns one object. `observed_at` as in [`index::upsert`].
    pub(crate) fn learn(
        &mut self,
        store: &SealedStore,
        gvr: &Gvr,
        id: &ObjectKey<'_>,
        revision: u64,
        object: &Object,
        observed_at: u64,
    ) -> Upsert {
        let key = index_key(&id.namespace, &id.name);
        let existing = self.resolve(store, gvr, &key);
        let is_lease = gvr.resource == "leases" && gvr.group == "coordination.k8s.io";
        self.high = self.high.max(revision);
        let resource = self.resource(gvr);
        resource.high = resource.high.max(revision);
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
        let mut absent_from: Vec<Query> = if existing.is_some_and(|e| e.revision == revision) {
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
                .map(|coverage| coverage.query.clone())
                .collect()
        };
        if absent_from.len() > record::MOST_ABSENT {
            let lost = absent_from.split_off(record::MOST_ABSENT);
            self.drop_coverages(gvr, |coverage| lost.contains(&coverage.query));
        }
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
            absent_from: absent_from.iter().map(Query::to_text).collect(),
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
