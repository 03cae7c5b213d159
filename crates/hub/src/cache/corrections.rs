//! States that were shown to clients and that the cloud never had. While the link is down watchers are told when such a state
//! ends. A client whose stream comes from the cloud by then, or that comes back only later, would keep it: the cloud has nothing
//! to tell. It must be told the cloud's state all the same.

use super::{Cache, LocalChange, Shared, index::Key};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use yurt_wire::{Gvr, Object, watch::EventType};

/// How long a client may be away and still be told.
const KEPT: Duration = Duration::from_secs(600);
/// Objects of one resource that are remembered; beyond it the oldest are forgotten.
const MOST: usize = 2048;

#[derive(Debug)]
struct Ended {
    /// Its place in the order of all corrections.
    number: u64,
    at: Instant,
    /// The object as it was shown, when it existed here only.
    phantom: Option<Object>,
}

/// The shown states of one resource that ended without a word of the cloud.
#[derive(Debug, Default)]
pub(crate) struct Corrections {
    ended: BTreeMap<Key, Ended>,
}

impl Corrections {
    fn insert(&mut self, key: &str, ended: Ended) {
        self.ended.retain(|_, ended| ended.at.elapsed() < KEPT);
        if self.ended.len() >= MOST
            && let Some(oldest) = self
                .ended
                .iter()
                .min_by_key(|(_, ended)| ended.number)
                .map(|(key, _)| key.clone())
        {
            self.ended.remove(&oldest);
        }
        self.ended.insert(key.into(), ended);
    }

    /// The cloud tells of a newer state.
    pub(super) fn forget(&mut self, key: &str) {
        self.ended.remove(key);
    }

    /// Whether somebody may hold another state of the object than the cloud's.
    pub(super) fn concern(&self, key: &str) -> bool {
        self.ended.contains_key(key)
    }

    /// Objects that somebody may hold and that existed here only.
    pub(super) fn phantoms(&self) -> impl Iterator<Item = &Key> {
        self.ended
            .iter()
            .filter(|(_, ended)| ended.phantom.is_some())
            .map(|(key, _)| key)
    }
}

/// What a client is to be told.
#[derive(Clone, Debug)]
pub(crate) struct Correction {
    /// `NAMESPACE/NAME`.
    pub(crate) key: Key,
    pub(crate) change: LocalChange,
    /// The cloud's revision of it; 0 when it has none.
    pub(crate) revision: u64,
}

impl Shared {
    /// Tells watchers that the cloud's state shows again, and remembers it for those that do not listen now.
    pub(super) fn correct(&self, change: LocalChange, key: &str) {
        let mut state = self.lock();
        let number = *self.corrected.borrow() + 1;
        let phantom = (change.kind == EventType::Deleted).then(|| change.object.clone());
        let ended = Ended {
            number,
            at: Instant::now(),
            phantom,
        };
        state.resource(&change.gvr).corrections.insert(key, ended);
        // Under the lock: in the order in which they were applied. Nobody listening is no error.
        let _listeners = self.changes.send(change);
        self.corrected.send_replace(number);
    }
}

impl Cache {
    /// The number of the latest correction, as it grows.
    pub(crate) fn corrected(&self) -> watch::Receiver<u64> {
        self.shared().corrected.subscribe()
    }

    /// Whether clients may hold states of the resource that the cloud never had.
    pub(crate) fn unsettled(&self, gvr: &Gvr) -> bool {
        let state = self.shared().lock();
        state.resources.get(gvr).is_some_and(|resource| {
            !resource.overlays.is_empty() || !resource.corrections.ended.is_empty()
        })
    }

    /// The corrections of a resource after a number, oldest first, and the number of the last one.
    pub(crate) fn corrections(&self, gvr: &Gvr, after: u64) -> (Vec<Correction>, u64) {
        let shared = self.shared();
        let (mut due, last) = {
            let state = shared.lock();
            let last = *shared.corrected.borrow();
            let due: Vec<_> = state
                .resources
                .get(gvr)
                .into_iter()
                .flat_map(|resource| &resource.corrections.ended)
                .filter(|(_, ended)| ended.number > after && ended.at.elapsed() < KEPT)
                .map(|(key, ended)| (ended.number, key.clone(), ended.phantom.clone()))
                .collect();
            (due, last)
        };
        due.sort_by_key(|(number, ..)| *number);
        let corrections = due.into_iter().filter_map(|(_, key, phantom)| {
            let stored = shared.read_stored(gvr, &key);
            let revision = stored.as_ref().map_or(0, |stored| stored.revision);
            // Whoever does not know the object yet takes a change for it; whoever does not see it is not told: `previous`.
            let (kind, object) = match (stored, phantom) {
                (Some(stored), _) => (EventType::Modified, stored.object),
                (None, Some(phantom)) => (EventType::Deleted, phantom),
                (None, None) => return None,
            };
            Some(Correction {
                key,
                change: LocalChange {
                    gvr: gvr.clone(),
                    kind,
                    previous: Some(object.clone()),
                    object,
                },
                revision,
            })
        });
        (corrections.collect(), last)
    }
}
