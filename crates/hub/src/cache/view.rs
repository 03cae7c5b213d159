//! Reading: the cloud's state as last known, with local writes on top.

use super::{
    Cache, Listing, LocalChange, Lookup, Shared,
    index::{Key, namespace_range},
    overlay::{Layer, Overlay},
    record::{index_key, split_index_key},
};
use crate::{caller::Caller, query::Query};
use std::collections::HashSet;
use yurt_wire::{Gvk, Gvr, Object, watch::EventType};

/// Why a list cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncovered {
    /// No complete query holds it.
    Unknown,
    /// It is known, but the caller was never allowed to read it.
    Forbidden,
}

/// Whose view of the objects is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The cloud's state with what changed on this node on top.
    Node,
    /// The cloud's state alone: what other nodes get.
    Cloud,
}

impl Sight {
    /// What a caller sees.
    pub(crate) fn of(caller: &Caller) -> Self {
        match caller {
            Caller::Peer(_) => Self::Cloud,
            Caller::Node | Caller::User(_) | Caller::Bearer(_) => Self::Node,
        }
    }
}

/// What a list or watch will show, by key; contents are read one at a time.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// Kind of the objects.
    pub(crate) gvk: Gvk,
    /// The revision at which it is complete; 0 when the cloud told none.
    pub(crate) revision: u64,
    /// Deletions after this revision are all known.
    pub(crate) since: u64,
    /// Candidates in order; [`Cache::read_selected`] tells which belong.
    pub(crate) keys: Vec<Key>,
    /// Whose view the keys are of.
    pub(crate) sight: Sight,
}

/// A deletion, for a watch that resumes.
#[derive(Clone, Debug)]
pub(crate) struct Deleted {
    pub(crate) key: Key,
    pub(crate) revision: u64,
}

impl Shared {
    /// The object as the node sees it, unless it carries an exclusion for the query.
    pub(super) fn read_view(&self, gvr: &Gvr, key: &str, query: Option<&Query>) -> Option<Object> {
        let overlay = {
            let state = self.lock();
            let resource = state.resources.get(gvr)?;
            let entry = resource.objects.get(key);
            match (entry, resource.overlays.get(key)) {
                (None, None) => return None,
                (_, Some(overlay)) if matches!(overlay.layer, Layer::Deleted { .. }) => {
                    return None;
                }
                // A change of something that is gone shows nothing.
                (None, Some(overlay)) => {
                    return (overlay.layer == Layer::Created).then(|| overlay.object.clone());
                }
                (Some(entry), Some(overlay)) if !entry.excluded => {
                    return Some(overlay.object.clone());
                }
                (Some(_), overlay) => overlay.map(|overlay| overlay.object.clone()),
            }
        };
        let stored = self.read_included(gvr, key, query)?;
        Some(overlay.unwrap_or(stored))
    }

    /// The object as the cloud has it, unless it carries an exclusion for the query.
    fn read_included(&self, gvr: &Gvr, key: &str, query: Option<&Query>) -> Option<Object> {
        let stored = self.read_stored(gvr, key)?;
        self.note_read(gvr, key, &stored);
        if let Some(query) = query {
            let excluded = stored
                .absent_from
                .iter()
                .filter_map(|text| Query::from_text(text))
                .any(|absent| absent.covers(query));
            if excluded {
                return None;
            }
        }
        Some(stored.object)
    }
}

impl Cache {
    /// One object, as seen by a caller.
    pub fn get(&self, caller: &Caller, gvr: &Gvr, namespace: &str, name: &str) -> Lookup {
        let shared = self.shared();
        let query = Query::named(gvr.clone(), namespace, name);
        let key = index_key(&query.namespace, name);
        let object = shared.read_view(gvr, &key, None);
        let mut state = shared.lock();
        state.touch_caller(caller);
        // What the node wrote itself it may read.
        let overlay = state
            .resources
            .get(gvr)
            .and_then(|resource| resource.overlays.get(&key));
        let own = *caller == Caller::Node && overlay.is_some();
        let deleted = overlay.is_some_and(|o| matches!(o.layer, Layer::Deleted { .. }));
        let allowed = own
            || state
                .grants
                .allows_object(caller, &query, || object.clone());
        let lookup = match object {
            Some(object) if allowed => Lookup::Found(object),
            Some(_) => Lookup::Forbidden,
            None => {
                let absent = deleted
                    || state.resources.get(gvr).is_some_and(|resource| {
                        resource
                            .coverages
                            .absent_at(&query.namespace, name)
                            .is_some()
                    });
                if absent {
                    state.touch_coverages(gvr, |coverage| {
                        coverage.query.is_identity()
                            && coverage.query.in_scope(&query.namespace, name)
                    });
                }
                match (absent, allowed) {
                    (true, true) => Lookup::KnownAbsent,
                    (true, false) => Lookup::Forbidden,
                    (false, _) => Lookup::Unknown,
                }
            }
        };
        state.count_read(gvr, !matches!(lookup, Lookup::Unknown));
        lookup
    }

    /// The object whoever asks (for the hub's own work).
    pub(crate) fn view(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<Object> {
        self.shared()
            .read_view(gvr, &index_key(namespace, name), None)
    }

    /// A list; `None` when no complete query covers it.
    pub fn list(&self, caller: &Caller, query: &Query) -> Option<Listing> {
        let selection = self.select(caller, query).ok()?;
        let items = selection
            .keys
            .iter()
            .filter_map(|key| self.read_selected(query, key, selection.sight))
            .collect();
        Some(Listing {
            gvk: selection.gvk,
            resource_version: selection.revision.to_string(),
            items,
        })
    }

    /// What a list or watch of the query holds.
    pub(crate) fn select(&self, caller: &Caller, query: &Query) -> Result<Selection, Uncovered> {
        let shared = self.shared();
        let selection = self.select_any(query, Sight::of(caller));
        let allowed = {
            let mut state = shared.lock();
            state.touch_caller(caller);
            state.count_read(&query.gvr, selection.is_ok());
            state.grants.allows(caller, query)
        } || match (query.name(), &selection) {
            // A named list is as good as a get.
            (Some(name), Ok(selection)) if !selection.keys.is_empty() => {
                let object = selection
                    .keys
                    .first()
                    .and_then(|key| shared.read_view(&query.gvr, key, None));
                let identity = Query::named(query.gvr.clone(), &query.namespace, name);
                shared
                    .lock()
                    .grants
                    .allows_object(caller, &identity, || object)
            }
            _ => false,
        };
        match selection {
            Ok(selection) if allowed => Ok(selection),
            Ok(_) => Err(Uncovered::Forbidden),
            Err(uncovered) => Err(uncovered),
        }
    }

    fn select_any(&self, query: &Query, sight: Sight) -> Result<Selection, Uncovered> {
        let shared = self.shared();
        let mut state = shared.lock();
        let clock = state.tick();
        let resource = state
            .resources
            .get_mut(&query.gvr)
            .ok_or(Uncovered::Unknown)?;
        resource.used = clock;
        let best = resource.coverages.best(query);
        let empty = HashSet::new();
        let (revision, since, suspects, snapshot) = match best {
            Some(coverage) => (
                coverage.revision,
                coverage.since,
                &coverage.suspects,
                coverage.snapshot,
            ),
            None => {
                // The object itself answers a query for its name, whatever else is unknown.
                let name = query.name().ok_or(Uncovered::Unknown)?;
                let key = index_key(&query.namespace, name);
                let entry = resource.objects.get(&key).ok_or(Uncovered::Unknown)?;
                (entry.revision, entry.revision, &empty, 0)
            }
        };
        let named = match query.name() {
            Some(name) if !query.namespace.is_empty() || resource.is_cluster_scoped() => {
                Some(index_key(&query.namespace, name))
            }
            _ => None,
        };
        let keys: Vec<Key> = match named {
            Some(key) => (resource.objects.contains_key(&key)
                || sight == Sight::Node && resource.overlays.contains_key(&key))
            .then_some(key)
            .into_iter()
            .collect(),
            None => {
                let mut keys: Vec<Key> = namespace_range(&resource.objects, &query.namespace)
                    .filter(|(key, entry)| !suspects.contains(*key) || entry.revision > snapshot)
                    .map(|(key, _)| key.clone())
                    .collect();
                let created: Vec<Key> = namespace_range(&resource.overlays, &query.namespace)
                    .filter(|(key, overlay)| {
                        sight == Sight::Node
                            && overlay.layer == Layer::Created
                            && !resource.objects.contains_key(*key)
                    })
                    .map(|(key, _)| key.clone())
                    .collect();
                if !created.is_empty() {
                    keys.extend(created);
                    keys.sort();
                }
                keys
            }
        };
        let kind = resource.kind.clone();
        let gvk = Gvk {
            group: query.gvr.group.clone(),
            version: query.gvr.version.clone(),
            kind,
        };
        let since = since.max(resource.deletions.floor());
        let best = resource.coverages.best(query).map(|best| best.epoch);
        if let Some(epoch) = best {
            state.touch_coverages(&query.gvr, |coverage| coverage.epoch == epoch);
        }
        drop(state);
        let mut selection = Selection {
            gvk,
            revision,
            since,
            keys,
            sight,
        };
        self.fill_in(query, &mut selection);
        Ok(selection)
    }

    /// What the index does not know before a record was read: the kind, and the revision of a single object.
    fn fill_in(&self, query: &Query, selection: &mut Selection) {
        let shared = self.shared();
        if selection.gvk.kind.is_empty()
            && let Some(object) = selection
                .keys
                .first()
                .and_then(|key| shared.read_view(&query.gvr, key, None))
            && let Ok(id) = object.key()
        {
            selection.gvk.kind = id.kind.into_owned();
            shared
                .lock()
                .resource(&query.gvr)
                .kind
                .clone_from(&selection.gvk.kind);
        }
        if selection.revision == 0
            && let (Some(_), Some(key)) = (query.name(), selection.keys.first())
            && let Some(stored) = shared.read_stored(&query.gvr, key)
        {
            selection.revision = stored.revision;
            selection.since = stored.revision;
        }
    }

    /// The object of a selected key, if it belongs to the query.
    pub(crate) fn read_selected(&self, query: &Query, key: &str, sight: Sight) -> Option<Object> {
        let shared = self.shared();
        let object = match sight {
            Sight::Node => shared.read_view(&query.gvr, key, Some(query)),
            Sight::Cloud => shared.read_included(&query.gvr, key, Some(query)),
        }?;
        let (namespace, name) = split_index_key(key);
        query.matches(namespace, name, &object).then_some(object)
    }

    /// The revision of an object in the index, and the deletions after a revision. What was shown here and the cloud never had
    /// counts as changed.
    pub(crate) fn changes_since(&self, query: &Query, revision: u64) -> (Vec<Key>, Vec<Deleted>) {
        let shared = self.shared();
        let state = shared.lock();
        let Some(resource) = state.resources.get(&query.gvr) else {
            return (Vec::new(), Vec::new());
        };
        let mut newer = Vec::new();
        let mut deleted = Vec::new();
        for (key, entry) in namespace_range(&resource.objects, &query.namespace) {
            match resource.overlays.get(key).map(|overlay| &overlay.layer) {
                Some(Layer::Deleted { .. }) => deleted.push(Deleted {
                    key: key.clone(),
                    revision: entry.revision,
                }),
                Some(_) => newer.push((entry.revision, key.clone())),
                None if entry.revision > revision || resource.corrections.concern(key) => {
                    newer.push((entry.revision, key.clone()));
                }
                None => {}
            }
        }
        // In the order in which they happened.
        newer.sort();
        let gone = resource.deletions.since(revision).into_iter();
        deleted.extend(gone.map(|(key, revision)| Deleted { key, revision }));
        let phantoms = resource.corrections.phantoms();
        deleted.extend(
            phantoms
                .filter(|key| !resource.objects.contains_key(*key))
                .map(|key| Deleted {
                    key: key.clone(),
                    // One that the cloud knows.
                    revision: revision.min(state.high),
                }),
        );
        deleted.retain(|gone| {
            let (namespace, name) = split_index_key(&gone.key);
            query.in_scope(namespace, name)
        });
        (newer.into_iter().map(|(_, key)| key).collect(), deleted)
    }

    /// Whether somebody keeps a complete list of a resource over all namespaces, with whatever selectors.
    pub(crate) fn is_followed(&self, gvr: &Gvr) -> bool {
        let state = self.shared().lock();
        state.resources.get(gvr).is_some_and(|resource| {
            let mut coverages = resource.coverages.iter();
            coverages.any(|coverage| {
                coverage.query.namespace.is_empty() && coverage.query.name().is_none()
            })
        })
    }

    /// The kind of a resource's objects; its `kind` is empty while none was seen.
    pub(crate) fn gvk_of(&self, gvr: &Gvr) -> Gvk {
        let kind = self
            .shared()
            .lock()
            .resources
            .get(gvr)
            .map(|resource| resource.kind.clone())
            .unwrap_or_default();
        Gvk {
            group: gvr.group.clone(),
            version: gvr.version.clone(),
            kind,
        }
    }

    /// The newest revision at which any of these resources is known as a whole.
    pub(crate) fn shared_revision(&self, shared: &[Gvr]) -> u64 {
        let state = self.shared().lock();
        let resources = shared.iter().filter_map(|gvr| state.resources.get(gvr));
        resources
            .flat_map(|resource| resource.coverages.iter())
            .filter(|coverage| coverage.query.name().is_none())
            .map(|coverage| coverage.revision)
            .max()
            .unwrap_or_default()
    }

    /// The highest revision the cloud ever showed.
    pub(crate) fn high_revision(&self) -> u64 {
        self.shared().lock().high
    }

    /// Puts a local write on top of the cloud's state; tells the watchers when the view changed.
    pub(crate) fn set_overlay(&self, gvr: &Gvr, key: &str, overlay: Overlay, tell: bool) {
        let shared = self.shared();
        let previous = shared.read_view(gvr, key, None);
        let object = overlay.object.clone();
        let id = object.key().unwrap_or_default();
        let seen = id.revision();
        let layer = overlay.layer.clone();
        let mut state = shared.lock();
        let resource = state.resource(gvr);
        if resource.kind.is_empty() {
            resource.kind = id.kind.into_owned();
        }
        resource.overlays.insert(key.into(), overlay);
        let now = match &layer {
            Layer::Deleted { .. } => None,
            _ => Some(object),
        };
        if tell && let Some(change) = local_change(gvr, previous, now) {
            // Under the lock: watchers see changes in the order in which they were applied. Nobody listening is no error.
            let _listeners = shared.changes.send(change);
        }
        drop(state);
        // The cloud's state may have moved on since the write was computed on it.
        let (Layer::Changed(change), Some(stored)) = (&layer, shared.read_stored(gvr, key)) else {
            return;
        };
        if seen.is_some_and(|seen| stored.revision > seen)
            && let Some(object) = change.rebase(&stored.object)
        {
            let mut state = shared.lock();
            if let Some(overlay) = state.resource(gvr).overlays.get_mut(key)
                && overlay.layer == layer
            {
                overlay.object = object;
            }
        }
    }

    /// A local write ended (replayed or dropped): the cloud's state shows again. Watchers are told when that differs from what
    /// they saw (`shown`); `None` when the cloud's own watch tells them.
    pub(crate) fn end_overlay(&self, gvr: &Gvr, key: &str, shown: Option<Option<Object>>) {
        let shared = self.shared();
        {
            let mut state = shared.lock();
            if state.resource(gvr).overlays.remove(key).is_none() {
                return;
            }
        }
        let Some(previous) = shown else {
            return;
        };
        let now = shared.read_view(gvr, key, None);
        if let Some(change) = local_change(gvr, previous, now) {
            shared.correct(change, key);
        }
    }
}

/// The change between two views of an object; `None` when they are the same.
pub(super) fn local_change(
    gvr: &Gvr,
    previous: Option<Object>,
    now: Option<Object>,
) -> Option<LocalChange> {
    let (kind, object) = match (&previous, now) {
        (Some(before), Some(now)) if *before == now => return None,
        (Some(_), Some(now)) => (EventType::Modified, now),
        (None, Some(now)) => (EventType::Added, now),
        (Some(before), None) => (EventType::Deleted, before.clone()),
        (None, None) => return None,
    };
    Some(LocalChange {
        gvr: gvr.clone(),
        kind,
        object,
        previous,
    })
}

impl super::state::Resource {
    /// Whether the known objects have no namespace.
    fn is_cluster_scoped(&self) -> bool {
        self.objects
            .keys()
            .chain(self.overlays.keys())
            .next()
            .is_some_and(|key| key.starts_with('/'))
    }
}
