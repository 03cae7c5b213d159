//! Keeping the byte budget: the least valuable goes first, what the node itself lives on never.

use super::{
    Shared,
    record::{self, split_index_key},
    state::{State, Value},
};
use crate::caller::Caller;
use std::time::Duration;
use yurt_wire::Gvr;

/// How much a resource is worth, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Events: short-lived everywhere.
    Events,
    /// Only bearers read it.
    Others,
    /// The node's components read it.
    Node,
}

fn worth(state: &State, gvr: &Gvr) -> Worth {
    if gvr.resource == "events" {
        Worth::Events
    } else if state.grants.observed(&Caller::Node, gvr).is_empty() {
        Worth::Others
    } else {
        Worth::Node
    }
}

/// Evicts until live bytes are under nine tenths of the budget. Whole resources lose what the node did not ask for narrowly
/// (by name, or by a field such as `spec.nodeName`), and the coverages that held it.
pub(crate) fn keep_budget(shared: &Shared) {
    let budget = shared.config.budget_bytes;
    if shared.store.usage().live_bytes <= budget {
        return;
    }
    let mut order: Vec<(Worth, u64, Gvr)> = {
        let state = shared.lock();
        state
            .resources
            .iter()
            .filter(|(_, resource)| !resource.objects.is_empty())
            .map(|(gvr, resource)| (worth(&state, gvr), resource.used, gvr.clone()))
            .collect()
    };
    order.sort();
    let mut excess = shared
        .store
        .usage()
        .live_bytes
        .saturating_sub(budget / 10 * 9);
    for (worth, _, gvr) in order {
        if excess == 0 {
            return;
        }
        let freed = evict(shared, &gvr, excess);
        if freed > 0 {
            tracing::info!(resource = %gvr, bytes = freed, ?worth, "evicted from the cache to keep its budget");
        }
        excess = excess.saturating_sub(freed);
    }
}

fn evict(shared: &Shared, gvr: &Gvr, excess: u64) -> u64 {
    let (keys, narrow) = {
        let state = shared.lock();
        let Some(resource) = state.resources.get(gvr) else {
            return 0;
        };
        let narrow: Vec<_> = state
            .grants
            .observed(&Caller::Node, gvr)
            .iter()
            .filter(|grant| {
                !grant.fields.is_empty() && grant.fields.requirements.iter().any(|r| r.equals)
            })
            .cloned()
            .collect();
        // Oldest first: what changed lately is more likely to be asked for.
        let mut keys: Vec<_> = resource
            .objects
            .iter()
            .map(|(key, entry)| (entry.revision, key.clone()))
            .collect();
        keys.sort();
        (keys, narrow)
    };
    let mut freed = 0;
    for (_, key) in keys {
        if freed >= excess {
            break;
        }
        let Some(stored) = shared.read_stored(gvr, &key) else {
            continue;
        };
        let (namespace, name) = split_index_key(&key);
        if narrow
            .iter()
            .any(|grant| grant.matches(namespace, name, &stored.object))
        {
            continue;
        }
        let mut state = shared.lock();
        if state
            .resources
            .get(gvr)
            .is_some_and(|r| r.overlays.contains_key(&key))
        {
            continue;
        }
        let matching = |coverage: &super::coverage::Coverage| {
            coverage.query.matches(namespace, name, &stored.object)
        };
        if gvr.resource != "events" {
            state.drop_coverages(gvr, matching);
        }
        if let Some(resource) = state.resources.get_mut(gvr) {
            resource.objects.remove(&key);
        }
        let record = record::object_record(record::OBJECTS, gvr, &key);
        freed += (stored.object.bytes.len() + record.len()) as u64;
        state.enqueue(record, Value::Delete, Duration::ZERO);
        shared.stats.evicted.add(1);
    }
    freed
}
