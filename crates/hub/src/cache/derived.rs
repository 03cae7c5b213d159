//! Objects that show otherwise than the cloud has them because of what changed on the node: worked out, never written anywhere.

use super::{
    Cache,
    index::{Key, namespace_range},
    overlay::{Layer, Overlay},
    record::{Stored, split_index_key},
    view::local_change,
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::Notify;
use yurt_store::{Batch, StoreError};
use yurt_wire::{Gvr, Object};

impl Cache {
    /// The cloud's state of an object.
    pub(crate) fn stored(&self, gvr: &Gvr, key: &str) -> Option<Stored> {
        self.shared().read_stored(gvr, key)
    }

    /// The objects of a resource in one namespace.
    pub(crate) fn keys_in(&self, gvr: &Gvr, namespace: &str) -> Vec<Key> {
        let state = self.shared().lock();
        state
            .resources
            .get(gvr)
            .into_iter()
            .flat_map(|resource| namespace_range(&resource.objects, namespace))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// The objects of a resource that show a derived state.
    pub(crate) fn derived(&self, gvr: &Gvr) -> Vec<Key> {
        let state = self.shared().lock();
        state
            .resources
            .get(gvr)
            .into_iter()
            .flat_map(|resource| &resource.overlays)
            .filter(|(_, overlay)| matches!(overlay.layer, Layer::Derived { .. }))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Whether an object of this name exists only here.
    pub(crate) fn is_created_here(&self, gvr: &Gvr, key: &str) -> bool {
        let state = self.shared().lock();
        state
            .resources
            .get(gvr)
            .and_then(|resource| resource.overlays.get(key))
            .is_some_and(|overlay| overlay.layer == Layer::Created)
    }

    /// Whether an object is known to be gone: deleted here, or said so by the cloud.
    pub(crate) fn is_gone(&self, gvr: &Gvr, key: &str) -> bool {
        let state = self.shared().lock();
        let Some(resource) = state.resources.get(gvr) else {
            return false;
        };
        let (namespace, name) = split_index_key(key);
        let deleted_here = resource
            .overlays
            .get(key)
            .is_some_and(|overlay| matches!(overlay.layer, Layer::Deleted { .. }));
        deleted_here
            || !resource.objects.contains_key(key)
                && (resource.deletions.of(key).is_some()
                    || resource.coverages.absent_at(namespace, name).is_some())
    }

    /// A record of somebody beside the cache.
    pub(crate) fn note(&self, record: &[u8]) -> Option<Bytes> {
        self.shared().store.get(record).ok().flatten()
    }

    /// Replaces such a record; blocks until it is durable.
    pub(crate) fn set_note(&self, record: &[u8], value: Bytes) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.put(record, value);
        self.shared().store.commit(batch).wait()
    }

    /// Told when the cloud's state of pods, services and their endpoints changes.
    pub(crate) fn endpoints_changed(&self) -> Arc<Notify> {
        self.shared().lock().endpoints.clone()
    }

    /// Shows an object worked out from the cloud's state at revision `base`, and tells the watchers. Nothing is shown when the cloud's
    /// state is another by now: it will be worked out anew.
    pub(crate) fn show_derived(&self, gvr: &Gvr, key: &str, base: u64, object: Object) {
        let shared = self.shared();
        let previous = shared.read_view(gvr, key, None);
        let mut state = shared.lock();
        let resource = state.resource(gvr);
        let current = resource.objects.get(key).map(|entry| entry.revision);
        if current.is_none_or(|revision| revision != base && revision != 0) {
            return;
        }
        let overlay = Overlay {
            object: object.clone(),
            layer: Layer::Derived { base },
        };
        resource.overlays.insert(key.into(), overlay);
        if let Some(change) = local_change(gvr, previous, Some(object)) {
            // Under the lock, as all changes. Nobody listening is no error.
            let _listeners = shared.changes.send(change);
        }
    }

    /// The cloud's state shows again.
    pub(crate) fn end_derived(&self, gvr: &Gvr, key: &str) {
        let shared = self.shared();
        let shown = {
            let mut state = shared.lock();
            let overlays = &mut state.resource(gvr).overlays;
            match overlays.get(key).map(|overlay| &overlay.layer) {
                Some(Layer::Derived { base }) => {
                    let base = *base;
                    overlays.remove(key).map(|shown| (shown.object, base))
                }
                _ => None,
            }
        };
        let Some((previous, base)) = shown else {
            return;
        };
        let now = shared.read_stored(gvr, key);
        let newer = now.as_ref().is_none_or(|stored| stored.revision > base);
        let Some(change) = local_change(gvr, Some(previous), now.map(|stored| stored.object))
        else {
            return;
        };
        if newer {
            // Whose stream comes from the cloud is told by it.
            let _listeners = shared.changes.send(change);
        } else {
            shared.correct(change, key);
        }
    }
}
