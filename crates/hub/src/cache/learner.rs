//! Learning from streams: lists page by page, watches event by event.

use super::{
    Cache, Shared,
    collect::today,
    index::{Key, MAX_DELETIONS, Upsert},
    record::index_key,
    state::{Asked, COVERAGE_LAG, Left},
};
use crate::{caller::Caller, query::Query};
use std::{collections::HashSet, sync::Arc};
use yurt_wire::{
    Gvk, Object, ObjectKey,
    list::SplitList,
    watch::{Event, EventType, is_initial_events_end},
};

/// Objects of one snapshot; beyond it completeness is not learned.
const MAX_SNAPSHOT: usize = 200_000;

/// The kind of a list's items.
pub(crate) fn item_kind(list: &Gvk) -> Option<&str> {
    match list.kind.strip_suffix("List") {
        Some(kind) if list.group != "meta.k8s.io" && !kind.is_empty() => Some(kind),
        _ => None,
    }
}

/// Whether an object is the resource's own representation, not a view (Table, partial metadata) or a Status.
fn is_whole(id: &ObjectKey<'_>) -> bool {
    id.group() != "meta.k8s.io"
        && !(id.group().is_empty() && id.kind == "Status")
        && !id.name.is_empty()
}

/// Which object it is and its revision, when it can be cached.
pub(crate) fn cacheable(object: &Object) -> Option<(ObjectKey<'_>, u64)> {
    let id = object.key().ok()?;
    let revision = id.revision().filter(|revision| *revision > 0)?;
    is_whole(&id).then_some((id, revision))
}

/// Learns one list answer, page by page. Dropped without `finish`: the pages' objects stay, completeness is not recorded.
#[derive(Debug)]
pub struct ListLearner {
    shared: Arc<Shared>,
    caller: Caller,
    query: Query,
    seen: HashSet<Key>,
    kind: String,
    /// Of the first page; all pages must show the same.
    revision: Option<u64>,
    continue_token: String,
    broken: bool,
    forgotten: u64,
}

impl ListLearner {
    pub(crate) fn new(cache: &Cache, caller: &Caller, query: &Query) -> Self {
        let forgotten = cache.shared().forgotten_deletions(&query.gvr);
        Self {
            shared: cache.shared().clone(),
            caller: caller.clone(),
            query: query.clone(),
            seen: HashSet::new(),
            kind: String::new(),
            revision: None,
            continue_token: String::new(),
            broken: false,
            forgotten,
        }
    }

    /// One page (the body of one response).
    pub fn page(&mut self, list: SplitList) {
        let shared = self.shared.clone();
        let (Some(kind), Ok(revision)) = (item_kind(&list.gvk), list.resource_version.parse())
        else {
            shared.stats.malformed.add(1);
            self.broken = true;
            return;
        };
        self.kind = kind.to_owned();
        if *self.revision.get_or_insert(revision) != revision {
            self.broken = true;
        }
        self.continue_token = list.continue_token;
        // Read before the lock is taken: readers need it too.
        let read: Vec<_> = list.items.iter().map(cacheable).collect();
        let mut state = shared.lock();
        state.grant(&self.caller, &self.query);
        for (object, read) in list.items.iter().zip(read) {
            match read {
                Some((id, of_object)) => {
                    state.learn(
                        &shared.store,
                        &self.query.gvr,
                        &id,
                        of_object,
                        object,
                        revision,
                    );
                    self.seen.insert(index_key(&id.namespace, &id.name));
                }
                None => {
                    shared.stats.malformed.add(1);
                    self.broken = true;
                }
            }
        }
        if self.seen.len() > MAX_SNAPSHOT {
            self.broken = true;
        }
        drop(state);
        shared.stir();
    }

    /// The last page was seen: what the query covers and the list did not hold is gone, unless learned at a newer revision.
    pub fn finish(self) {
        let shared = self.shared.clone();
        let Some(revision) = self.revision else {
            return;
        };
        if self.broken
            || !self.continue_token.is_empty()
            || shared.forgotten_deletions(&self.query.gvr) != self.forgotten
        {
            return;
        }
        shared
            .lock()
            .complete(&shared.store, &self.query, &self.kind, revision, &self.seen);
        shared.stir();
    }
}

/// Where a watch stands.
#[derive(Debug)]
enum Phase {
    /// The initial events come; the bookmark will say when they are complete.
    Initial { seen: HashSet<Key>, forgotten: u64 },
    /// It follows a coverage and moves it on.
    Following { epoch: u64 },
    /// It teaches objects only. When it began at a revision, and all its events since were learned, a coverage of the query that
    /// turns up later (its list is learned on another task) is taken on from there.
    Teaching { since: Option<u64> },
}

const DETACHED: Phase = Phase::Teaching { since: None };

/// Learns one watch.
#[derive(Debug)]
pub struct WatchLearner {
    shared: Arc<Shared>,
    query: Query,
    phase: Phase,
    /// While events tell of objects as they are, rather than of changes: how old they may be.
    unordered: Option<Asked>,
    /// The revision up to which all events were seen.
    reached: u64,
    /// Objects that it told of and that left a selector at a later revision, as another watch knows: until it comes to what became
    /// of them, a coverage of the query that moves on would tell that they are not there.
    held: HashSet<Key>,
}

impl WatchLearner {
    pub(crate) fn new(
        cache: &Cache,
        caller: &Caller,
        query: &Query,
        since: &str,
        initial_events: bool,
    ) -> Self {
        let shared = cache.shared().clone();
        let forgotten = shared.forgotten_deletions(&query.gvr);
        let mut state = shared.lock();
        state.grant(caller, query);
        let asked = state.asked(&query.gvr).not_older_than(since);
        let since: u64 = since.parse().unwrap_or(0);
        let unordered = (initial_events || since == 0).then_some(asked);
        let (phase, reached) = if initial_events {
            let seen = HashSet::new();
            (Phase::Initial { seen, forgotten }, 0)
        } else {
            let since = (since > 0).then_some(since);
            (Phase::Teaching { since }, since.unwrap_or(0))
        };
        drop(state);
        shared.stir();
        let mut learner = Self {
            shared,
            query: query.clone(),
            phase,
            unordered,
            reached,
            held: HashSet::new(),
        };
        learner.join();
        learner
    }

    /// The watch was asked for before this learner was made.
    #[must_use]
    pub(crate) fn since_asked(mut self, asked: Asked) -> Self {
        self.unordered = self.unordered.map(|later| later.earlier(asked));
        self
    }

    /// One event. The bookmark annotated `k8s.io/initial-events-end` completes the query.
    pub fn event(&mut self, event: &Event) {
        match event.kind {
            EventType::Added | EventType::Modified => self.alive(event),
            EventType::Deleted => self.gone(event),
            EventType::Bookmark => self.bookmark(event),
            // The stream cannot be followed any more (410 and the like).
            EventType::Error => self.phase = DETACHED,
        }
        self.join();
        self.shared.stir();
    }

    fn alive(&mut self, event: &Event) {
        let shared = self.shared.clone();
        let Some((id, revision)) = cacheable(&event.object) else {
            shared.stats.malformed.add(1);
            self.lost();
            return;
        };
        let mut state = shared.lock();
        // Initial events show objects as they are now, in no order of revisions.
        let observed_at = match self.unordered {
            Some(asked) => asked.shown_at(revision),
            None => revision,
        };
        let learned = state.learn(
            &shared.store,
            &self.query.gvr,
            &id,
            revision,
            &event.object,
            observed_at,
        );
        drop(state);
        let key = index_key(&id.namespace, &id.name);
        match &mut self.phase {
            Phase::Initial { seen, .. } => {
                seen.insert(key);
                if seen.len() > MAX_SNAPSHOT {
                    self.phase = DETACHED;
                }
            }
            Phase::Following { .. } | Phase::Teaching { .. } => {
                if learned == Upsert::Left {
                    self.held.insert(key);
                } else {
                    self.held.remove(&key);
                }
                if self.held.len() > MAX_DELETIONS {
                    self.lost();
                }
                self.advance(revision);
            }
        }
    }

    fn gone(&mut self, event: &Event) {
        let shared = self.shared.clone();
        let Some((id, revision)) = cacheable(&event.object) else {
            shared.stats.malformed.add(1);
            self.lost();
            return;
        };
        let key = index_key(&id.namespace, &id.name);
        // The record as last known is only needed where the object may have left a selector.
        let stored = if self.query.is_stable() {
            None
        } else {
            shared.read_stored(&self.query.gvr, &key)
        };
        shared.lock().leave(
            &shared.store,
            &self.query,
            &key,
            revision,
            Left::ByEvent,
            || stored,
        );
        match &mut self.phase {
            Phase::Initial { seen, .. } => {
                seen.remove(&key);
            }
            Phase::Following { .. } | Phase::Teaching { .. } => {
                self.held.remove(&key);
                self.advance(revision);
            }
        }
    }

    fn bookmark(&mut self, event: &Event) {
        let shared = self.shared.clone();
        let Ok(id) = event.object.key() else {
            shared.stats.malformed.add(1);
            return;
        };
        let Some(revision) = id.revision() else {
            return;
        };
        match &mut self.phase {
            Phase::Initial { seen, forgotten } if is_initial_events_end(&event.object) => {
                let seen = std::mem::take(seen);
                self.unordered = None;
                let kind = match id.group() {
                    "meta.k8s.io" => "",
                    _ => &id.kind,
                };
                self.phase = if *forgotten == shared.forgotten_deletions(&self.query.gvr) {
                    shared
                        .lock()
                        .complete(&shared.store, &self.query, kind, revision, &seen)
                        .map_or(DETACHED, |epoch| Phase::Following { epoch })
                } else {
                    DETACHED
                };
            }
            Phase::Following { .. } | Phase::Teaching { .. } => self.advance(revision),
            Phase::Initial { .. } => {}
        }
    }

    /// An event could not be understood: what follows would build on a gap.
    fn lost(&mut self) {
        if matches!(self.phase, Phase::Following { .. }) {
            let shared = &self.shared;
            let query = &self.query;
            shared
                .lock()
                .drop_coverages(&query.gvr, |coverage| coverage.query == *query);
        }
        self.phase = DETACHED;
    }

    /// Takes on a coverage of the query, when there is one that is not older than where this watch began.
    fn join(&mut self) {
        let Phase::Teaching { since: Some(since) } = self.phase else {
            return;
        };
        let epoch = self
            .shared
            .lock()
            .resources
            .get(&self.query.gvr)
            .and_then(|resource| resource.coverages.exact(&self.query))
            .filter(|coverage| coverage.revision >= since)
            .map(|coverage| coverage.epoch);
        if let Some(epoch) = epoch {
            self.phase = Phase::Following { epoch };
            self.advance(since);
        }
    }

    /// Everything up to a revision was seen.
    fn advance(&mut self, revision: u64) {
        self.reached = self.reached.max(revision);
        if let Phase::Following { epoch } = self.phase {
            let mut state = self.shared.lock();
            state.heard_of(&self.query.gvr);
            let moved = self.held.is_empty()
                && state.resource(&self.query.gvr).coverages.advance(
                    &self.query,
                    epoch,
                    self.reached,
                    today(),
                );
            if moved {
                state.saw(&self.query.gvr, self.reached);
                state.mark_dirty(&self.query, COVERAGE_LAG);
            }
        }
    }
}
