//! The objects of one resource and the window of their latest changes.

use super::stored::{Key, Stored};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
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
    fn default() -> Self {
        Self {
            changes: 10_000,
            bytes: 32 << 20,
        }
    }
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision it made.
    pub revision: u64,
    /// `Added`, `Modified` or `Deleted`.
    pub kind: EventType,
    /// The object after the change; for a deletion its last state, at the revision of the deletion.
    pub object: Arc<Stored>,
    /// The object before the change.
    pub previous: Option<Arc<Stored>>,
}

/// The revision asked for has left the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({floor})")]
pub struct TooOld {
    /// What was asked for.
    pub asked: u64,
    /// The oldest revision from which changes are still known.
    pub floor: u64,
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
    objects: BTreeMap<Key, Arc<Stored>>,
    window: VecDeque<Change>,
    window_bytes: usize,
    /// Changes at or before this revision are not in the window.
    floor: u64,
    /// The newest change.
    last: u64,
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

    /// Puts back an object found on disk.
    pub(super) fn restore(&self, object: Arc<Stored>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.floor = state.floor.max(object.revision);
        state.last = state.floor;
        state.objects.insert(object.key.clone(), object);
    }

    /// Notes that something was deleted at `revision` before the store was opened.
    pub(super) fn restore_deletion(&self, revision: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.floor = state.floor.max(revision);
        state.last = state.floor;
    }

    /// Applies a change and wakes the watchers. Changes come in order of revision.
    pub(super) fn apply(&self, kind: EventType, object: Arc<Stored>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let revision = object.revision;
        let previous = if kind == EventType::Deleted {
            state.objects.remove(&object.key)
        } else {
            state.objects.insert(object.key.clone(), object.clone())
        };
        let kind = match (kind, &previous) {
            (EventType::Deleted, _) => EventType::Deleted,
            (_, None) => EventType::Added,
            (_, Some(_)) => EventType::Modified,
        };
        state.window_bytes += object.json().len();
        state.window.push_back(Change {
            revision,
            kind,
            object,
            previous,
        });
        state.last = revision;
        while state.window.len() > self.limits.changes || state.window_bytes > self.limits.bytes {
            let Some(oldest) = state.window.pop_front() else {
                break;
            };
            state.floor = oldest.revision;
            state.window_bytes -= oldest.object.json().len();
        }
        drop(state);
        self.changed.send_replace(revision);
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.read().objects.get(key).cloned()
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

    /// The objects of a namespace (`""`: of all) after `start` in order, and the revision they show: at least
    /// `published`, which the caller read before.
    pub(super) fn list(
        &self,
        namespace: &str,
        start: Option<&Key>,
        published: u64,
    ) -> (Vec<Arc<Stored>>, u64) {
        let state = self.read();
        let revision = published.max(state.last);
        (range(&state.objects, namespace, start), revision)
    }

    /// As [`Partition::list`], at a past revision.
    pub(super) fn list_at(
        &self,
        namespace: &str,
        start: Option<&Key>,
        revision: u64,
    ) -> Result<Vec<Arc<Stored>>, TooOld> {
        let state = self.read();
        if revision < state.floor {
            return Err(TooOld {
                asked: revision,
                floor: state.floor,
            });
        }
        if revision >= state.last {
            return Ok(range(&state.objects, namespace, start));
        }
        let mut objects: BTreeMap<Key, Arc<Stored>> = range(&state.objects, namespace, start)
            .into_iter()
            .map(|o| (o.key.clone(), o))
            .collect();
        for change in state.window.iter().rev() {
            if change.revision <= revision {
                break;
            }
            let key = &change.object.key;
            if !in_range(key, namespace, start) {
                continue;
            }
            match &change.previous {
                Some(previous) => {
                    objects.insert(key.clone(), previous.clone());
                }
                None => {
                    objects.remove(key);
                }
            }
        }
        Ok(objects.into_values().collect())
    }

    /// Up to `limit` changes after `revision`, oldest first.
    pub fn changes_after(&self, revision: u64, limit: usize) -> Result<Vec<Change>, TooOld> {
        let state = self.read();
        if revision < state.floor {
            return Err(TooOld {
                asked: revision,
                floor: state.floor,
            });
        }
        let from = state.window.partition_point(|c| c.revision <= revision);
        Ok(state
            .window
            .iter()
            .skip(from)
            .take(limit)
            .cloned()
            .collect())
    }
}

fn in_range(key: &Key, namespace: &str, start: Option<&Key>) -> bool {
    (namespace.is_empty() || *key.namespace == *namespace) && start.is_none_or(|start| key > start)
}

fn range(
    objects: &BTreeMap<Key, Arc<Stored>>,
    namespace: &str,
    start: Option<&Key>,
) -> Vec<Arc<Stored>> {
    let first = Key::new(namespace, "");
    let from = match start {
        Some(start) if *start > first => Bound::Excluded(start),
        _ => Bound::Included(&first),
    };
    objects
        .range((from, Bound::Unbounded))
        .take_while(|(key, _)| namespace.is_empty() || *key.namespace == *namespace)
        .map(|(_, object)| object.clone())
        .collect()
}
