//! What a source says, put to the cache and told to who follows. No network here.

use super::{
    Feed,
    differences::{Changed, Comparison},
    lock,
    window::{Before, Told},
};
use crate::{
    cache::{Cache, ListLearner, WatchLearner, index_key, split_index_key},
    caller::Caller,
    tee::teach_page,
};
use bytes::Bytes;
use serde_json::json;
use std::sync::Arc;
use yurt_wire::{
    Encoding, Gvk, Object, Status,
    list::SplitList,
    watch::{Event, EventType},
};

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Something new: the source is as far as this node.
    News,
    /// Nothing new.
    Nothing,
    /// The source is behind this node.
    Behind,
}

/// Why a source cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// What it says is none of the resource.
    Garbage,
    /// It does not hold what comes next any more.
    Expired,
    /// It ended for another reason.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Teller {
    pub(super) cache: Cache,
    pub(super) feed: Arc<Feed>,
}

impl Teller {
    /// Whether objects of a group, version and kind are of the resource.
    pub(super) fn is_ours(&self, gvk: &Gvk) -> bool {
        let gvr = &self.feed.query.gvr;
        let known = self.cache.gvk_of(gvr).kind;
        gvk.group == gvr.group
            && gvk.version == gvr.version
            && (known.is_empty() || known == gvk.kind)
    }

    /// What learns from the events after a revision.
    pub(super) fn learner(&self, since: u64) -> WatchLearner {
        let query = &self.feed.query;
        let since = since.to_string();
        self.cache
            .watch_learner(&Caller::Node, query, &since, false)
    }

    /// Learns an event, and tells it.
    pub(super) fn event(&self, learner: &mut WatchLearner, event: Event) -> Result<Heard, Wrong> {
        if event.kind == EventType::Error {
            let object = &event.object;
            let status = Status::from_bytes(&object.bytes, object.encoding);
            return Err(match status.ok_or(Wrong::Garbage)?.code() {
                410 => Wrong::Expired,
                _ => Wrong::Ended,
            });
        }
        let id = event.object.key().map_err(|_| Wrong::Garbage)?;
        let revision = id.revision().ok_or(Wrong::Garbage)?;
        let known = self.feed.known();
        if event.kind == EventType::Bookmark {
            if revision < known {
                return Ok(Heard::Behind);
            }
            learner.event(&event);
            self.feed.advance(revision);
            return Ok(Heard::News);
        }
        let gvk = Gvk::from_api_version(&id.api_version, &id.kind);
        if id.name.is_empty() || !self.is_ours(&gvk) {
            return Err(Wrong::Garbage);
        }
        let key = index_key(&id.namespace, &id.name);
        let (event, revision, heard) = if revision > known {
            (event, revision, Heard::News)
        } else {
            match self.late(event, &key, revision, known)? {
                Some((event, revision)) => (event, revision, Heard::Nothing),
                None => return Ok(Heard::Nothing),
            }
        };
        let due = revision.max(known + 1);
        let before = self.before(&key, event.kind, revision);
        let told = Told::new(due, event.kind, &key, revision, &event.object, before);
        // The cache first: who is told finds it there.
        learner.event(&event);
        self.feed.tell([told]);
        Ok(heard)
    }

    /// What is new of an event that comes late: its source found it out by a list itself.
    fn late(
        &self,
        event: Event,
        key: &str,
        revision: u64,
        known: u64,
    ) -> Result<Option<(Event, u64)>, Wrong> {
        let had = self.cache.revision_of(&self.feed.query.gvr, key);
        Ok(match (event.kind, had) {
            (EventType::Deleted, Some(had)) if had <= known => {
                let object = event.object.with_resource_version(&known.to_string());
                let object = object.map_err(|_| Wrong::Garbage)?;
                let kind = event.kind;
                Some((Event { kind, object }, known))
            }
            (EventType::Deleted, _) => None,
            (_, Some(had)) if had >= revision => None,
            _ => Some((event, revision)),
        })
    }

    /// What who follows was told of an object before it came to a revision. A state that the cache learned by another way is none of
    /// that: who follows may have been told of an older one that other selectors select.
    fn before(&self, key: &str, kind: EventType, revision: u64) -> Before {
        let (known, latest) = {
            let window = lock(&self.feed.window);
            (window.revision(), window.latest(key))
        };
        if let Some(latest) = latest {
            return match latest.kind {
                EventType::Deleted => Before::Nothing,
                _ => Before::Object(latest.object.clone()),
            };
        }
        match self.cache.stored(&self.feed.query.gvr, key) {
            Some(stored) if stored.revision < revision.min(known + 1) => {
                Before::Object(apart(&stored.object))
            }
            None if kind == EventType::Added => Before::Nothing,
            Some(_) | None => Before::Unknown,
        }
    }

    /// An object that is gone, as it was last; when nobody knows, just its name.
    fn last_state(&self, key: &str, revision: u64) -> Option<Object> {
        let gvr = &self.feed.query.gvr;
        let stored = self.cache.stored(gvr, key).map(|stored| stored.object);
        let last = stored.or_else(|| {
            let window = lock(&self.feed.window);
            Some(window.latest(key)?.object.clone())
        });
        let version = revision.to_string();
        if let Some(last) = last {
            return last.with_resource_version(&version).ok();
        }
        let gvk = self.cache.gvk_of(gvr);
        let (namespace, name) = split_index_key(key);
        let mut object = json!({"apiVersion": gvk.api_version(), "kind": gvk.kind,
            "metadata": {"name": name, "resourceVersion": version}});
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = namespace.into();
        }
        Object::from_json_value(&object, Encoding::Json).ok()
    }
}

/// A list under way: what it teaches, and how it differs from what was told.
#[derive(Debug)]
pub(super) struct Listing {
    /// Its revision.
    pub(super) at: u64,
    /// Up to which revision everything was told before; 0 for nothing.
    since: u64,
    learner: ListLearner,
    comparison: Option<Comparison>,
    changes: Vec<Told>,
}

impl Listing {
    pub(super) fn begin(teller: &Teller, at: u64) -> Self {
        let (cache, query) = (&teller.cache, &teller.feed.query);
        let since = teller.feed.known();
        let comparison = (since > 0).then(|| {
            let (objects, gone) = cache.known_since(&query.gvr, since);
            Comparison::new(objects, gone, since, at)
        });
        Self {
            at,
            since,
            learner: cache.list_learner(&Caller::Node, query),
            comparison,
            changes: Vec::new(),
        }
    }

    pub(super) async fn page(&mut self, teller: &Teller, page: SplitList) -> Result<(), Wrong> {
        if let Some(comparison) = &mut self.comparison {
            for item in &page.items {
                let id = item.key().map_err(|_| Wrong::Garbage)?;
                let revision = id.revision().ok_or(Wrong::Garbage)?;
                let key = index_key(&id.namespace, &id.name);
                if let Some(Changed { kind, due }) = comparison.listed(&key, revision) {
                    let before = teller.before(&key, kind, revision);
                    let told = Told::new(due, kind, &key, revision, item, before);
                    self.changes.push(told);
                }
            }
        }
        teach_page(&teller.cache, &mut self.learner, page).await;
        Ok(())
    }

    /// The last page was seen. `None` when the cache had no room for all of it.
    pub(super) fn finish(self, teller: &Teller) -> Option<u64> {
        let Self {
            at,
            since,
            learner,
            comparison,
            mut changes,
        } = self;
        let deletions: Vec<Told> = comparison.map_or_else(Vec::new, |comparison| {
            let (keys, due) = comparison.deleted();
            let told = keys.iter().filter_map(|key| {
                let last = teller.last_state(key, since)?;
                let kind = EventType::Deleted;
                let before = teller.before(key, kind, due);
                Some(Told::new(due, kind, key, since, &last, before))
            });
            told.collect()
        });
        learner.finish();
        let feed = &teller.feed;
        feed.metrics.listed();
        teller.cache.complete_at(&feed.query)?;
        if since == 0 {
            feed.begin(at);
        } else {
            changes.sort_by_key(|told| told.revision);
            let (resource, gone) = (&feed.query.gvr, deletions.len());
            tracing::debug!(%resource, deleted = gone, changed = changes.len(), "listed again");
            feed.tell(deletions.into_iter().chain(changes));
            feed.advance(at);
        }
        Some(at)
    }
}

/// Without the buffer that it came in.
fn apart(object: &Object) -> Object {
    Object {
        encoding: object.encoding,
        bytes: Bytes::copy_from_slice(&object.bytes),
    }
}
