//! What the node knows: every object once, unfiltered, with its revision; and which queries are known complete, at which
//! revision (design rule R2). Durable through `yurt-store`. Feeding it never blocks the stream that feeds it.

use crate::{caller::Caller, query::Query};
use std::{path::Path, sync::Arc};
use yurt_wire::{
    Gvk, Gvr, Object,
    watch::{Event, EventType},
};

/// Shared handle.
#[derive(Clone, Debug)]
pub struct Cache {
    _inner: Arc<()>,
}

/// Settings.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Live bytes the cache may hold on disk; beyond it the least valuable objects go (never those of the node itself).
    pub budget_bytes: u64,
    /// Bytes that may wait for the disk; beyond it new knowledge is dropped and its queries lose their completeness.
    pub queue_bytes: usize,
}

/// What one lookup found.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The object as the node sees it (cloud state with local writes applied).
    Found(Object),
    /// A complete query says that it does not exist.
    KnownAbsent,
    /// Never seen by this node.
    Unknown,
    /// Known, but this caller was never allowed to read it.
    Forbidden,
}

/// An answer to a list.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Kind of the items.
    pub gvk: Gvk,
    /// Revision at which the listing is complete.
    pub resource_version: String,
    /// In namespace/name order.
    pub items: Vec<Object>,
}

/// A change of the local view (a local write while offline, or a replayed one).
#[derive(Clone, Debug)]
pub struct LocalChange {
    /// Resource.
    pub gvr: Gvr,
    /// The event.
    pub kind: EventType,
    /// The object after the change (before it, for `Deleted`).
    pub object: Object,
}

/// Learns one list answer, page by page. Dropped without `finish`: the pages' objects stay, completeness is not recorded.
#[derive(Debug)]
pub struct ListLearner {/* private */}
impl ListLearner {
    /// One page (the body of one response).
    pub fn page(&mut self, _list: yurt_wire::list::SplitList) {
        unimplemented!()
    }
    /// The last page was seen: what the query covers and the list did not hold is gone, unless learned at a newer revision.
    pub fn finish(self) {
        unimplemented!()
    }
}

/// Learns one watch.
#[derive(Debug)]
pub struct WatchLearner {/* private */}
impl WatchLearner {
    /// One event. The bookmark annotated `k8s.io/initial-events-end` completes the query.
    pub fn event(&mut self, _event: &Event) {
        unimplemented!()
    }
}

impl Cache {
    /// Opens (or creates) the cache directory and recovers it.
    pub fn open(
        _dir: &Path,
        _config: CacheConfig,
    ) -> Result<(Cache, yurt_store::Recovery), yurt_store::StoreError> {
        unimplemented!()
    }
    /// Learns one object from a get, create, update or patch answer.
    pub fn learn_object(&self, _caller: &Caller, _gvr: &Gvr, _object: &Object) {
        unimplemented!()
    }
    /// A get answered 404, or a delete succeeded: the object is gone.
    pub fn learn_absent(&self, _caller: &Caller, _gvr: &Gvr, _namespace: &str, _name: &str) {
        unimplemented!()
    }
    /// Begins to learn a list.
    pub fn list_learner(&self, _caller: &Caller, _query: &Query) -> ListLearner {
        unimplemented!()
    }
    /// Begins to learn a watch that started at `since` (`""`/`"0"` without initial events teaches objects but not completeness;
    /// a watch from the revision of a complete list keeps that query complete and moves its revision on).
    pub fn watch_learner(
        &self,
        _caller: &Caller,
        _query: &Query,
        _since: &str,
        _initial_events: bool,
    ) -> WatchLearner {
        unimplemented!()
    }
    /// One object, as seen by a caller.
    pub fn get(&self, _caller: &Caller, _gvr: &Gvr, _namespace: &str, _name: &str) -> Lookup {
        unimplemented!()
    }
    /// A list; `None` when no complete query covers it.
    pub fn list(&self, _caller: &Caller, _query: &Query) -> Option<Listing> {
        unimplemented!()
    }
    /// Changes of the local view from now on (bounded; a lagging receiver gets `Lagged` and must relist).
    pub fn changes(&self) -> tokio::sync::broadcast::Receiver<LocalChange> {
        unimplemented!()
    }
    /// A non-resource document (`/version`, discovery) as it was served: content type and body.
    pub fn learn_document(&self, _path: &str, _content_type: &str, _body: bytes::Bytes) {
        unimplemented!()
    }
    /// The document, if it was ever served.
    pub fn document(&self, _path: &str) -> Option<(String, bytes::Bytes)> {
        unimplemented!()
    }
    /// Waits until everything learned so far is durable.
    pub async fn flush(&self) -> Result<(), yurt_store::StoreError> {
        unimplemented!()
    }
}
