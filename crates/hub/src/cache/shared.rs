//! What sharing a resource within the pool needs of the cache.

use super::{
    Cache,
    index::{Deletions, Key},
    overlay::Layer,
};
use crate::query::Query;
use yurt_wire::{Gvr, Object};

impl Cache {
    /// The revision at which exactly this query is known complete, when the cloud told one.
    pub(crate) fn complete_at(&self, query: &Query) -> Option<u64> {
        let state = self.shared().lock();
        let resource = state.resources.get(&query.gvr)?;
        let coverage = resource.coverages.exact(query)?;
        (coverage.revision > 0).then_some(coverage.revision)
    }

    /// The revision of an object; 0 when its record was not read since start.
    pub(crate) fn revision_of(&self, gvr: &Gvr, key: &str) -> Option<u64> {
        let state = self.shared().lock();
        let entry = state.resources.get(gvr)?.objects.get(key)?;
        Some(entry.revision)
    }

    /// The objects of a resource as the cloud has them, with their revisions, and those that went at `since` or later.
    pub(crate) fn known_since(&self, gvr: &Gvr, since: u64) -> (Vec<(Key, u64)>, Vec<Key>) {
        let shared = self.shared();
        let mut state = shared.lock();
        let Some(resource) = state.resources.get(gvr) else {
            return (Vec::new(), Vec::new());
        };
        let keys: Vec<Key> = resource.objects.keys().cloned().collect();
        let gone = resource.deletions.since(since.saturating_sub(1));
        let known = keys.into_iter().filter_map(|key| {
            let entry = state.resolve(&shared.store, gvr, &key)?;
            Some((key, entry.revision))
        });
        let known = known.collect();
        (known, gone.into_iter().map(|(key, _)| key).collect())
    }

    /// What shows here instead of the cloud's state of an object: `None` when nothing does, `Some(None)` when it is hidden.
    pub(crate) fn shown_instead(&self, gvr: &Gvr, key: &str) -> Option<Option<Object>> {
        let state = self.shared().lock();
        let overlay = state.resources.get(gvr)?.overlays.get(key)?;
        Some(match overlay.layer {
            Layer::Deleted { .. } => None,
            Layer::Created | Layer::Changed(_) | Layer::Derived { .. } => {
                Some(overlay.object.clone())
            }
        })
    }

    /// The cloud is not as far as what is known here: what is newer than its revision was never true, or is no more (a lying
    /// peer, a restored backup). Forgets it, and what was complete by it.
    pub(crate) fn forget_after(&self, gvr: &Gvr, revision: u64) {
        let shared = self.shared();
        let (known, _) = self.known_since(gvr, u64::MAX);
        let mut state = shared.lock();
        // All of them: which deletions they rely on is not known any more.
        state.drop_coverages(gvr, |_| true);
        for (key, at) in known {
            if at > revision {
                state.forget_object(gvr, &key);
            }
        }
        let resource = state.resource(gvr);
        resource.deletions = Deletions::default();
        resource.high = resource.high.min(revision);
        state.high = state.high.min(revision);
        drop(state);
        shared.wake.notify_one();
    }
}
