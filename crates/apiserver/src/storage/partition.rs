//! The objects of one resource and the window of their latest changes.

use super::{
    log::{Change, Log, TooOld},
    stored::{Key, Stored},
    topics::{Topic, Topics},
};
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use tokio::sync::watch;
use yurt_wire::watch::EventType;

/// How much of the past a partition remembers.
#[derive(Clone, Copy, Debug)]
pub struct WindowLimits {
    /// Changes kept at most.
    pub changes: usize,
    /// Bytes of JSON of changed objects kept at most.
    pub bytes: usize,
}

impl Default for WindowLimits {
    /// Of the leases of thousands of nodes about a minute.
    fn default() -> Self {
        Self {
            changes: 50_000,
            bytes: 32 << 20,
        }
    }
}

/// Objects of one resource. Reads never wait for the disk.
#[derive(Debug)]
pub struct Partition {
    state: RwLock<State>,
    changed: watch::Sender<u64>,
    limits: WindowLimits,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeSet<ByKey>,
    log: Log,
    /// Of the changes in the log.
    log_bytes: usize,
    topics: Topics,
    /// The newest change.
    last: u64,
}

/// An object in the order of its key.
#[derive(Clone, Debug)]
struct ByKey(Arc<Stored>);

impl Borrow<Key> for ByKey {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

/// Which objects a list shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range<'a> {
    /// `""` for those of all namespaces.
    pub namespace: &'a str,
    /// Those after this one.
    pub start: Option<&'a Key>,
    /// So many at most; others are counted.
    pub limit: Option<usize>,
}

impl Range<'_> {
    fn contains(&self, key: &Key) -> bool {
        (self.namespace.is_empty() || *key.namespace == *self.namespace)
            && self.start.is_none_or(|start| key > start)
    }

    /// Collects up to the limit and counts the rest.
    fn take<'s>(&self, mut objects: impl Iterator<Item = &'s Arc<Stored>>) -> Listed {
        let limit = self.limit.unwrap_or(usize::MAX);
        let objects = objects.by_ref();
        Listed {
            items: objects.take(limit).cloned().collect(),
            rest: objects.count(),
        }
    }
}

/// Objects in order of their keys.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Those within the limit.
    pub items: Vec<Arc<Stored>>,
    /// How many more there are.
    pub rest: usize,
}

impl State {
    fn range<'s>(&'s self, range: &Range<'_>) -> impl Iterator<Item = &'s Arc<Stored>> {
        let first = Key::new(range.namespace, "");
        let from = match range.start {
            Some(start) if *start > first => Bound::Excluded(start),
            _ => Bound::Included(&first),
        };
        let namespace: Box<str> = range.namespace.into();
        self.objects
            .range::<Key, _>((from, Bound::Unbounded))
            .map(|ByKey(object)| object)
            .take_while(move |o| namespace.is_empty() || o.key.namespace == namespace)
    }
}

impl Partition {
    pub(super) fn new(limits: WindowLimits) -> Self {
        Self {
            state: RwLock::default(),
            changed: watch::Sender::new(0),
            limits,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts back an object found on disk.
    pub(super) fn restore(&self, object: Arc<Stored>) {
        let mut state = self.write();
        state.log.raise_floor(object.revision);
        state.last = state.log.floor();
        state.objects.insert(ByKey(object));
    }

    /// Notes that something was deleted at `revision` before the store was opened.
    pub(super) fn restore_deletion(&self, revision: u64) {
        let mut state = self.write();
        state.log.raise_floor(revision);
        state.last = state.log.floor();
    }

    /// Applies a change and wakes the watchers. Changes come in order of revision.
    pub(super) fn apply(&self, kind: EventType, object: Arc<Stored>) {
        let mut state = self.write();
        let revision = object.revision;
        let previous = if kind == EventType::Deleted {
            state.objects.take(&object.key)
        } else {
            state.objects.replace(ByKey(object.clone()))
        };
        let previous = previous.map(|ByKey(previous)| previous);
        let kind = match (kind, &previous) {
            (EventType::Deleted, _) => EventType::Deleted,
            (_, None) => EventType::Added,
            (_, Some(_)) => EventType::Modified,
        };
        state.log_bytes += object.json().len();
        let change = Change {
            revision,
            kind,
            object,
            previous,
        };
        let woken = state.topics.push(&change);
        state.log.push(change);
        state.last = revision;
        while state.log.len() > self.limits.changes || state.log_bytes > self.limits.bytes {
            let Some(oldest) = state.log.forget_oldest() else {
                break;
            };
            state.log_bytes -= oldest.object.json().len();
            state.topics.forget(&oldest);
        }
        drop(state);
        self.changed.send_replace(revision);
        for topic in woken {
            topic.send_replace(revision);
        }
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.read().objects.get(key).map(|ByKey(o)| o.clone())
    }

    /// One object, and the revision that this shows: at least `published`, which the caller read before.
    pub(super) fn find(&self, key: &Key, published: u64) -> (Option<Arc<Stored>>, u64) {
        let state = self.read();
        let found = state.objects.get(key).map(|ByKey(o)| o.clone());
        (found, published.max(state.last))
    }

    /// Wakes when something changed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Objects held.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.read().objects.is_empty()
    }

    /// The objects in a range, and the revision they show: at least `published`, which the caller read before.
    pub(super) fn page(&self, range: &Range<'_>, published: u64) -> (Listed, u64) {
        let state = self.read();
        let revision = published.max(state.last);
        (range.take(state.range(range)), revision)
    }

    /// As [`Partition::page`], at a past revision.
    pub(super) fn page_at(&self, range: &Range<'_>, revision: u64) -> Result<Listed, TooOld> {
        let state = self.read();
        // What was changed since, as it was then: the oldest change tells.
        let mut then: BTreeMap<&Key, Option<&Arc<Stored>>> = BTreeMap::new();
        for change in state.log.after(revision)?.rev() {
            if range.contains(&change.object.key) {
                then.insert(&change.object.key, change.previous.as_ref());
            }
        }
        if then.is_empty() {
            return Ok(range.take(state.range(range)));
        }
        let unchanged = state.range(range).filter(|o| !then.contains_key(&o.key));
        let restored = then.values().filter_map(|previous| *previous);
        let mut unchanged = unchanged.peekable();
        let mut restored = restored.peekable();
        let merged = std::iter::from_fn(|| match (unchanged.peek(), restored.peek()) {
            (Some(a), Some(b)) if b.key < a.key => restored.next(),
            (None, _) => restored.next(),
            (Some(_), _) => unchanged.next(),
        });
        Ok(range.take(merged))
    }

    /// Up to `limit` changes after `revision`, oldest first.
    pub fn changes_after(&self, revision: u64, limit: usize) -> Result<Vec<Change>, TooOld> {
        let state = self.read();
        let changes = state.log.after(revision)?;
        Ok(changes.take(limit).cloned().collect())
    }

    /// Follows the changes, or those of a topic only.
    pub fn follow(self: Arc<Self>, topic: Option<Topic>) -> Follower {
        let changed = match &topic {
            None => self.subscribe(),
            Some(topic) => {
                let mut state = self.write();
                let State { topics, log, .. } = &mut *state;
                topics.follow(topic, log)
            }
        };
        Follower {
            partition: self,
            topic,
            changed: Some(changed),
        }
    }
}

/// Somebody who follows the changes of a partition.
#[derive(Debug)]
pub struct Follower {
    partition: Arc<Partition>,
    topic: Option<Topic>,
    /// `None` only while it is dropped.
    changed: Option<watch::Receiver<u64>>,
}

impl Follower {
    /// Up to `limit` changes after `revision`, oldest first.
    pub fn changes_after(&self, revision: u64, limit: usize) -> Result<Vec<Change>, TooOld> {
        let Some(topic) = &self.topic else {
            return self.partition.changes_after(revision, limit);
        };
        let state = self.partition.read();
        match state.topics.log(topic) {
            Some(log) => Ok(log.after(revision)?.take(limit).cloned().collect()),
            // Not while it is followed.
            None => Ok(Vec::new()),
        }
    }

    /// What [`Follower::changed`] waits for is counted from now on.
    pub fn mark_seen(&mut self) {
        if let Some(changed) = &mut self.changed {
            changed.borrow_and_update();
        }
    }

    /// Waits until something changed since [`Follower::mark_seen`].
    pub async fn changed(&mut self) {
        let ended = match &mut self.changed {
            Some(changed) => changed.changed().await.is_err(),
            None => true,
        };
        if ended {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.changed.take());
        if let Some(topic) = &self.topic {
            self.partition.write().topics.leave(topic);
        }
    }
}
