//! What is known as a whole, and what is known to be gone.

use super::{
    COVERAGE_LAG, Duration, HashSet, Instant, Query, SealedStore, State, Stored, Value, record,
};
use crate::cache::{
    collect::today,
    coverage::{self, Leave},
    index::{Gone, Key, namespace_range},
    record::{index_key, split_index_key},
};
use yurt_wire::Gvr;

/// How it shows that an object left a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// A DELETED event, with the revision at which it happened.
    ByEvent,
    /// A complete list did not hold it: it happened at some revision up to the list's.
    InSnapshot,
}

/// How far the cloud surely was when it was asked something: its answer is no older. The default is an answer of any age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    revision: u64,
}

impl Asked {
    /// The question says how old the answer may be (`resourceVersion`: `""` for the newest, `0` for any).
    #[must_use]
    pub fn not_older_than(self, resource_version: &str) -> Self {
        match resource_version {
            "" => self,
            text => Self {
                revision: self.revision.min(text.parse().unwrap_or(0)),
            },
        }
    }

    /// The earlier of two.
    pub(crate) fn earlier(self, other: Self) -> Self {
        Self {
            revision: self.revision.min(other.revision),
        }
    }

    /// A revision after which the answer, which shows the object at `revision`, was surely given; or at which a list without the
    /// object cannot be told to be younger than the answer.
    pub(crate) fn shown_at(self, revision: u64) -> u64 {
        self.revision.max(revision).saturating_add(1)
    }
}

impl State {
    /// To note before the cloud is asked about a resource.
    pub(crate) fn asked(&self, gvr: &Gvr) -> Asked {
        Asked {
            revision: self.resources.get(gvr).map_or(0, |resource| resource.high),
        }
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
        self.saw(gvr, revision);
        let Some(entry) = self.resolve(store, gvr, key) else {
            let gone = Gone::at(revision, query.is_stable());
            self.resource(gvr).deletions.record(key, gone);
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
                self.remove(gvr, key, Gone::at(at, query.is_stable()));
            }
            Leave::Exclude => match stored() {
                Some(mut stored) => {
                    let text = query.to_text();
                    let known = stored.absent_from.contains(&text);
                    if !known && stored.absent_from.len() >= record::MOST_ABSENT {
                        self.drop_coverages(gvr, |coverage| coverage.query == *query);
                        return;
                    }
                    if !known {
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
                    self.remove(gvr, key, Gone::at(revision, query.is_stable()));
                }
            },
        }
    }

    /// Takes an object out.
    fn remove(&mut self, gvr: &Gvr, key: &str, gone: Gone) {
        let resource = self.resource(gvr);
        resource.objects.remove(key);
        resource.corrections.forget(key);
        resource.deletions.record(key, gone);
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
        self.saw(&query.gvr, revision);
        let clock = self.tick();
        let resource = self.resource(&query.gvr);
        resource.high = resource.high.max(revision);
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
                        self.remove(&query.gvr, &key, Gone::at(revision, true));
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

    /// A 404 for one name: as a complete query that found nothing, at a revision not below that of the question. What was learned of
    /// the object meanwhile may be younger than the answer.
    pub(crate) fn absent(&mut self, store: &SealedStore, query: &Query, key: &str, asked: Asked) {
        match self.resolve(store, &query.gvr, key) {
            Some(entry) if entry.revision > asked.revision => return,
            Some(_) => {
                let gone = Gone {
                    revision: asked.revision.saturating_add(1),
                    told: self.high,
                    certain: true,
                };
                self.remove(&query.gvr, key, gone);
            }
            None => {}
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

    /// The suspects of a snapshot were looked at, but for those that could not be read: these are looked at again if they are still
    /// there. Whether none is left.
    pub(crate) fn cleared(
        &mut self,
        query: &Query,
        snapshot: u64,
        mut unread: HashSet<Key>,
    ) -> bool {
        let Some(resource) = self.resources.get_mut(&query.gvr) else {
            return true;
        };
        unread.retain(|key| resource.objects.contains_key(key));
        match resource.coverages.exact_mut(query) {
            Some(coverage) if coverage.snapshot == snapshot => {
                let none = unread.is_empty();
                coverage.suspects = unread;
                if !none {
                    self.suspected.push(query.clone());
                }
                none
            }
            _ => true,
        }
    }
}
