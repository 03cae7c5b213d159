//! Which of two writes of one object has the last word, when the younger one went to the cloud ahead of the journal: it does when
//! what waits cannot be replayed and the node's leases and statuses must get through nevertheless.

use super::{
    Journal, Kept,
    entry::{Entry, Write},
    overlay_of,
};
use crate::cache::record::{self, index_key};
use yurt_store::Batch;
use yurt_wire::Gvr;

/// A write that waits for the cloud: exactly this one, not what may be written on top of it later.
#[derive(Clone, Debug)]
pub struct Waiting {
    key: (Gvr, Box<str>),
    order: u64,
}

impl Journal {
    /// The write of an object that waits now. Taken before a younger write is sent, for [`Self::superseded`].
    pub fn waiting(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<Waiting> {
        let key = (gvr.clone(), index_key(namespace, name));
        let order = self.entries().map.get(&key)?.entry.order;
        Some(Waiting { key, order })
    }

    /// The cloud accepted a younger status of the object: a replay must not bring the older one back. What else waits for the
    /// object goes on waiting. A component of the node sends its whole status, or the difference to what the cloud has, so
    /// nothing of the older one is missed.
    ///
    /// Killed before this is durable, the older status may come back until the component reports again.
    pub async fn superseded(&self, waiting: Waiting) {
        let entry = match self.entries().map.get(&waiting.key) {
            Some(kept) if kept.entry.order == waiting.order => kept.entry.clone(),
            _ => return,
        };
        let Write::Change { change, recreate } = &entry.write else {
            return;
        };
        tracing::info!(
            entry = %entry.path(false),
            "an offline status is superseded: the cloud took a younger one"
        );
        match change.clone().without("status") {
            Some(change) => {
                let recreate = recreate.clone();
                let rest = Entry {
                    write: Write::Change { change, recreate },
                    ..entry
                };
                self.shorten(waiting, rest).await;
            }
            // The cloud's own watch tells the watchers.
            None => self.strike(&entry, None).await,
        }
    }

    /// Whether an entry of a replay is still to be sent as it was read: it is not when it was superseded meanwhile.
    pub(super) fn still_waits(&self, entry: &Entry) -> bool {
        let key = (entry.gvr(), index_key(&entry.namespace, &entry.name));
        self.entries().map.get(&key).is_some_and(|kept| {
            // What was written on top of it is no reason to stop half-way.
            kept.entry.order != entry.order || kept.entry.write == entry.write
        })
    }

    /// Puts what is left of an entry in its place.
    async fn shorten(&self, waiting: Waiting, rest: Entry) {
        let _write = self.inner.writing.lock().await;
        let unchanged = |kept: &Kept| kept.entry.order == waiting.order;
        if !self.entries().map.get(&waiting.key).is_some_and(unchanged) {
            return;
        }
        let (gvr, index) = &waiting.key;
        let value = match serde_json::to_vec(&rest) {
            Ok(value) => value,
            Err(error) => {
                tracing::warn!(%error, "what is left of an offline write cannot be encoded; it waits as it was");
                return;
            }
        };
        let bytes = value.len();
        let mut batch = Batch::default();
        batch.put(record::object_record(record::JOURNAL, gvr, index), value);
        // An error was logged; then the older status comes back only after a restart.
        let _logged = self.commit(batch).await;
        let overlay = overlay_of(&self.inner.cache, &rest);
        {
            let mut entries = self.entries();
            // A replay may have ended it meanwhile.
            if !entries.map.get(&waiting.key).is_some_and(unchanged) {
                return;
            }
            entries.insert(waiting.key.clone(), Kept { entry: rest, bytes });
        }
        if let Some(overlay) = overlay {
            self.inner.cache.set_overlay(gvr, index, overlay, false);
        }
    }
}
