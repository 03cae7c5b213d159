//! Keeping the byte budget: the least valuable goes first ([`super::worth`]), what this node's pods need never.

use super::{
    Shared, coverage,
    needs::{self, Needs},
    record::{self, split_index_key},
    state::{State, Value},
    worth::{Scale, Scope, Sizes, Worth, over_share},
};
use crate::caller::Caller;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};
use yurt_wire::Gvr;

/// Evicts until live bytes are under nine tenths of the budget. What is evicted takes the coverages along that held it. `false`
/// when only what is never evicted is left and it is more than the budget.
pub(crate) fn keep_budget(shared: &Shared) -> bool {
    let budget = shared.config.budget_bytes;
    let live = shared.store.usage().live_bytes;
    if live <= budget {
        return true;
    }
    let mut excess = live.saturating_sub(budget / 10 * 9);
    let least = excess.saturating_sub(live - budget);
    excess = excess.saturating_sub(drop_forms(shared));
    let needs = needed(shared);
    let over = {
        let state = shared.lock();
        over_share(budget, &held(&state, shared))
    };
    for worth in Worth::EVICTABLE {
        let mut order: Vec<(u64, Gvr)> = {
            let state = shared.lock();
            state
                .resources
                .iter()
                .filter(|(_, resource)| !resource.objects.is_empty())
                .map(|(gvr, resource)| (resource.used, gvr.clone()))
                .collect()
        };
        order.sort();
        for (_, gvr) in order {
            if excess == 0 {
                return true;
            }
            let freed = evict(shared, &gvr, worth, &needs, &over, excess);
            if freed > 0 {
                tracing::info!(resource = %gvr, bytes = freed, ?worth, "evicted from the cache to keep its budget");
            }
            excess = excess.saturating_sub(freed);
        }
    }
    excess <= least
}

/// Forms of documents that follow from their JSON or are only another encoding of it.
fn drop_forms(shared: &Shared) -> u64 {
    let mut freed = 0;
    let mut state = shared.lock();
    for name in state.documents.other_forms() {
        let record = [record::DOCUMENTS, name.as_bytes()].concat();
        freed += u64::from(shared.store.record_bytes(&record).unwrap_or(0));
        state.documents.remove(&name);
        state.enqueue(record, Value::Delete, Duration::ZERO);
    }
    freed
}

/// Bytes by caller: what lies in the places where it was seen to read.
pub(crate) fn held(state: &State, shared: &Shared) -> HashMap<Caller, u64> {
    let mut held: HashMap<Caller, u64> = HashMap::new();
    for (gvr, resource) in &state.resources {
        let keys = resource.objects.keys();
        let sizes = Sizes::of(keys.map(|key| (&**key, bytes_of(shared, gvr, key))));
        for (caller, grants) in state.grants.readers(gvr) {
            let bytes = Scope::of(grants).sum(&sizes);
            if bytes > 0 {
                *held.entry(caller.clone()).or_default() += bytes;
            }
        }
    }
    held
}

fn bytes_of(shared: &Shared, gvr: &Gvr, key: &str) -> u64 {
    let record = record::object_record(record::OBJECTS, gvr, key);
    shared.store.record_bytes(&record).unwrap_or(0).into()
}

/// What this node's pods need, by name, and the pods and the node themselves.
pub(crate) fn needed(shared: &Shared) -> Needs {
    let mut needs = Needs::default();
    let nodes = node_names(shared);
    for node in &nodes {
        needs.add_core("nodes", &record::index_key("", node));
    }
    each(shared, "pods", None, |key, object| {
        let on = object.field("spec.nodeName").unwrap_or_default();
        if !nodes.contains(&on) {
            return;
        }
        needs.add_core("pods", key);
        if let Ok(pod) = object.to_json_value()
            && !needs::has_ended(&pod)
        {
            for reference in needs::of_pod(&pod) {
                needs.add(&reference);
            }
        }
    });
    let claims = needs.core("persistentvolumeclaims");
    each(
        shared,
        "persistentvolumeclaims",
        Some(claims),
        |_, claim| {
            if let Some(volume) = claim
                .to_json_value()
                .ok()
                .as_ref()
                .and_then(needs::of_claim)
            {
                needs.add(&volume);
            }
        },
    );
    let volumes = needs.core("persistentvolumes");
    each(shared, "persistentvolumes", Some(volumes), |_, volume| {
        if let Ok(volume) = volume.to_json_value() {
            for secret in needs::of_volume(&volume) {
                needs.add(&secret);
            }
        }
    });
    needs
}

/// The names of this node; a cache that was not told takes the names by which pods are followed.
fn node_names(shared: &Shared) -> HashSet<String> {
    let told = &shared.config.binding.node_name;
    if !told.is_empty() {
        return HashSet::from([told.clone()]);
    }
    let state = shared.lock();
    state
        .grants
        .observed(&Caller::Node, &Gvr::new("", "v1", "pods"))
        .iter()
        .filter_map(|grant| grant.fields.exact("spec.nodeName"))
        .map(str::to_owned)
        .collect()
}

/// Reads objects of a resource of the core group one at a time: those of `keys`, or all.
fn each(
    shared: &Shared,
    resource: &str,
    keys: Option<Vec<super::index::Key>>,
    mut see: impl FnMut(&str, &yurt_wire::Object),
) {
    let gvr = Gvr::new("", "v1", resource);
    let keys = keys.unwrap_or_else(|| {
        let state = shared.lock();
        state
            .resources
            .get(&gvr)
            .map(|resource| resource.objects.keys().cloned().collect())
            .unwrap_or_default()
    });
    for key in keys {
        if let Some(stored) = shared.read_stored(&gvr, &key) {
            see(&key, &stored.object);
        }
    }
}

fn evict(
    shared: &Shared,
    gvr: &Gvr,
    worth: Worth,
    needs: &Needs,
    over: &HashSet<Caller>,
    excess: u64,
) -> u64 {
    let (keys, grants) = {
        let state = shared.lock();
        let Some(resource) = state.resources.get(gvr) else {
            return 0;
        };
        let scale = Scale::of(gvr, needs, over, state.grants.readers(gvr));
        // Oldest first: what changed lately is more likely to be asked for.
        let mut keys: BTreeMap<(u64, &str), ()> = BTreeMap::new();
        for (key, entry) in &resource.objects {
            let of = scale.worth(key);
            // What turns out to be asked for narrowly is left for its turn.
            let maybe = of == worth || (of == Worth::Wide && worth == Worth::Named);
            if maybe && !resource.overlays.contains_key(key) {
                keys.insert((entry.revision, key), ());
            }
        }
        let keys: Vec<super::index::Key> = keys.into_keys().map(|(_, key)| key.into()).collect();
        (keys, state.grants.observed(&Caller::Node, gvr).to_vec())
    };
    let over_none = HashSet::new();
    let node = [(&Caller::Node, grants.as_slice())];
    let scale = Scale::of(gvr, needs, &over_none, node.into_iter());
    let mut freed = 0;
    for key in keys {
        if freed >= excess {
            break;
        }
        let Some(stored) = shared.read_stored(gvr, &key) else {
            continue;
        };
        if worth == Worth::Wide && scale.is_named(&key, &stored.object) {
            continue;
        }
        let bytes = bytes_of(shared, gvr, &key);
        let (namespace, name) = split_index_key(&key);
        let matching =
            |coverage: &coverage::Coverage| coverage.query.matches(namespace, name, &stored.object);
        let mut state = shared.lock();
        // Lists of events may lack the oldest.
        if gvr.resource != "events" {
            state.drop_coverages(gvr, matching);
        }
        state.forget_object(gvr, &key);
        drop(state);
        freed += bytes;
        shared.stats.evicted.add(1);
    }
    freed
}
