//! What a service with load balancers per pool needs. Pure.

use crate::{
    Key,
    collections::{NODE_POOLS, SERVICES},
    condition, controller_of,
    fields::{has_all, items, text},
    pod,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use yurt_api::names::{
    annotations::{AGGREGATED_PREFIX, NODE_POOL_SELECTOR},
    finalizers::POOL_SERVICE,
    labels::{POOL_NAME, POOL_SERVICE_MANAGED_BY, POOL_SERVICE_MANAGER, SERVICE_NAME},
};
use yurt_controller::claim;
use yurt_wire::selector::{LabelSelector, label_key_errors, label_value_errors};

/// The condition of a service that says whether its pools have what it wants.
pub(super) const READY: &str = "PoolServicesReady";

/// What there is.
pub(super) struct Found<'a> {
    pub(super) service: &'a Value,
    /// PoolServices that say that they are the service's.
    pub(super) own: &'a [Arc<Value>],
    pub(super) pools: &'a [Arc<Value>],
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// A merge patch of the service.
    pub(super) metadata: Option<Value>,
    /// PoolServices to apply.
    pub(super) apply: Vec<Value>,
    /// PoolServices to delete.
    pub(super) delete: Vec<Arc<Value>>,
    /// PoolServices that somebody has changed, and what is said of it.
    pub(super) modified: Vec<(Arc<Value>, String)>,
    /// A strategic merge patch of the service's status.
    pub(super) status: Option<Value>,
}

fn selector(service: &Value) -> &str {
    let annotation = &service["metadata"]["annotations"][NODE_POOL_SELECTOR];
    annotation.as_str().unwrap_or_default()
}

/// Whether the service's PoolServices are seen to before it goes.
pub(super) fn is_finalized(service: &Value) -> bool {
    items(&service["metadata"]["finalizers"]).any(|finalizer| finalizer == POOL_SERVICE)
}

/// Whether a service may be of concern, by its metadata.
pub(super) fn is_candidate(service: &Value) -> bool {
    !selector(service).is_empty() || is_finalized(service)
}

/// Whether a service wants load balancers per pool.
fn is_set(service: &Value) -> bool {
    let spec = &service["spec"];
    let class = spec["loadBalancerClass"].as_str().unwrap_or_default();
    spec["type"] == "LoadBalancer"
        && !class.is_empty()
        && !selector(service).is_empty()
        && !pod::is_deleting(service)
}

/// Whether a PoolService is this service's: it owns it, or it is labelled so by its manager.
fn is_own(object: &Value, service: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    match controller_of(object) {
        Some(owner) => owner["uid"] == service["metadata"]["uid"],
        None => {
            labels[POOL_SERVICE_MANAGED_BY] == POOL_SERVICE_MANAGER
                && labels[SERVICE_NAME] == service["metadata"]["name"]
        }
    }
}

/// The PoolService of a service in a pool.
fn desired(service: &Value, pool: &Value) -> Value {
    let (of, name) = (Key::of(service), Key::of(pool).name);
    let mut owner = claim::reference(&NODE_POOLS, pool);
    if let Some(owner) = owner.as_object_mut() {
        owner.remove("controller");
    }
    json!({"metadata": {"namespace": of.namespace, "name": format!("{}-{name}", of.name),
            "labels": {SERVICE_NAME: of.name, POOL_NAME: name, POOL_SERVICE_MANAGED_BY: POOL_SERVICE_MANAGER},
            "ownerReferences": [claim::reference(&SERVICES, service), owner]},
        "spec": {"loadBalancerClass": service["spec"]["loadBalancerClass"]}})
}

/// What is wrong with a set: reason and message.
type Fault = (&'static str, String);

/// What a service needs. `taken` finds whatever has a name that a PoolService of it is to have.
pub(super) fn plan(
    found: &Found<'_>,
    taken: impl Fn(&str) -> Option<Arc<Value>>,
    now: Timestamp,
) -> Plan {
    let service = found.service;
    let mut own: Vec<&Arc<Value>> = found.own.iter().filter(|o| is_own(o, service)).collect();
    let there = own.len();
    own.retain(|object| !pod::is_deleting(object));
    if !is_set(service) {
        return wind_up(service, &own, there);
    }
    let mut plan = Plan::default();
    let mut fault: Option<Fault> = None;
    let mut pools = 0;
    match LabelSelector::parse(selector(service)) {
        Ok(selector) => {
            let matching: Vec<&Arc<Value>> = found
                .pools
                .iter()
                .filter(|pool| !pod::is_deleting(pool) && claim::selects(&selector, pool))
                .collect();
            pools = matching.len();
            if matching.is_empty() {
                let message = format!("no pool has labels that fit {NODE_POOL_SELECTOR}");
                fault = Some(("NoMatchNodePool", message));
            }
            let mut wanted = BTreeSet::new();
            for pool in matching {
                let object = desired(service, pool);
                let name = Key::of(&object).name;
                match taken(&name) {
                    Some(known) if !is_own(&known, service) => {
                        let message = format!("PoolService {name} is there and somebody else's");
                        fault = Some(("ManagedConflict", message));
                    }
                    Some(known) if pod::is_deleting(&known) || has_all(&known, &object) => {}
                    Some(known) => {
                        plan.modified.push((
                            known,
                            format!("PoolService {name} was changed; it is put right"),
                        ));
                        plan.apply.push(object);
                    }
                    None => plan.apply.push(object),
                }
                wanted.insert(name);
            }
            own.retain(|object| {
                let stays = wanted.contains(&Key::of(object).name);
                if !stays {
                    plan.delete.push(Arc::clone(object));
                }
                stays
            });
        }
        // A slip of the pen takes no load balancer away.
        Err(error) => {
            let message =
                format!("{NODE_POOL_SELECTOR} cannot be read, everything stays as it is: {error}");
            fault = Some(("InvalidSelector", message));
        }
    }
    let mut unwritable = Vec::new();
    let labels = aggregated(&own, "aggregateToLabels", |key, value| {
        let mut errors = label_key_errors(key);
        errors.extend(label_value_errors(value));
        unwritable.extend(errors.iter().map(|error| format!("label {key}: {error}")));
        errors.is_empty()
    });
    let annotations = aggregated(&own, "aggregateToAnnotations", |key, _| {
        let errors = label_key_errors(&key.to_lowercase());
        unwritable.extend(
            errors
                .iter()
                .map(|error| format!("annotation {key}: {error}")),
        );
        errors.is_empty()
    });
    let fault = fault
        .or_else(|| (!unwritable.is_empty()).then(|| ("InvalidAggregate", unwritable.join("; "))));
    plan.metadata = metadata(service, true, &labels, &annotations);
    let (status, reason, message) = match fault {
        Some((reason, message)) => ("False", reason, message),
        None => ("True", "Reconciled", format!("{pools} pools")),
    };
    let mut verdict = condition::new(READY, status, reason, &message, now);
    verdict["observedGeneration"] = service["metadata"]["generation"].clone();
    let mut patch = json!({});
    let ingress = ingress(&own);
    if !items(&service["status"]["loadBalancer"]["ingress"]).eq(&ingress) {
        patch["loadBalancer"]["ingress"] = ingress.into();
    }
    let mut known = service["status"].clone();
    if condition::renew(&mut known, verdict) {
        let written = condition::find(&known, READY);
        patch["conditions"] = written.into_iter().cloned().collect();
    }
    plan.status = patch
        .as_object()
        .is_some_and(|patch| !patch.is_empty())
        .then_some(patch);
    plan
}

/// Takes everything back from a service that has no load balancers per pool any more; the finalizer last.
fn wind_up(service: &Value, own: &[&Arc<Value>], there: usize) -> Plan {
    let mut plan = Plan::default();
    if !is_finalized(service) {
        return plan;
    }
    plan.delete = own.iter().map(|object| Arc::clone(object)).collect();
    if !pod::is_deleting(service) {
        let mut patch = json!({});
        if items(&service["status"]["loadBalancer"]["ingress"])
            .next()
            .is_some()
        {
            patch["loadBalancer"]["ingress"] = json!([]);
        }
        if condition::find(&service["status"], READY).is_some() {
            patch["conditions"] = json!([{"$patch": "delete", "type": READY}]);
        }
        plan.status = patch
            .as_object()
            .is_some_and(|patch| !patch.is_empty())
            .then_some(patch);
    }
    if there == 0 && plan.status.is_none() {
        plan.metadata = metadata(service, false, &BTreeMap::new(), &BTreeMap::new());
    }
    plan
}

/// `aggregated.KEY`: the different values that the PoolServices report, sorted, where they are `good`.
fn aggregated(
    own: &[&Arc<Value>],
    field: &str,
    mut good: impl FnMut(&str, &str) -> bool,
) -> BTreeMap<String, String> {
    let mut values: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for object in own {
        for (key, value) in object["status"][field].as_object().into_iter().flatten() {
            if let Some(value) = value.as_str() {
                let key = format!("{AGGREGATED_PREFIX}{key}");
                values.entry(key).or_default().insert(value);
            }
        }
    }
    let joined = values.into_iter().map(|(key, values)| {
        let values: Vec<&str> = values.into_iter().collect();
        (key, values.join(","))
    });
    joined.filter(|(key, value)| good(key, value)).collect()
}

/// The addresses of all load balancers, by IP.
fn ingress(own: &[&Arc<Value>]) -> Vec<Value> {
    let all = own
        .iter()
        .flat_map(|object| items(&object["status"]["loadBalancer"]["ingress"]));
    let mut all: Vec<Value> = all.cloned().collect();
    all.sort_by_key(|address| (text(&address["ip"]), text(&address["hostname"])));
    all.dedup();
    all
}

/// A merge patch that gives a service its finalizer or takes it, and the aggregated labels and annotations, and no others of the kind.
fn metadata(
    service: &Value,
    finalized: bool,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> Option<Value> {
    let known = &service["metadata"];
    let mut patch = json!({});
    if finalized != is_finalized(service) {
        let mut finalizers: Vec<Value> = items(&known["finalizers"]).cloned().collect();
        finalizers.retain(|finalizer| finalizer != POOL_SERVICE);
        if finalized {
            finalizers.push(POOL_SERVICE.into());
        }
        patch["finalizers"] = finalizers.into();
    }
    for (field, wanted) in [("labels", labels), ("annotations", annotations)] {
        let has = &known[field];
        let mut changes: Map<String, Value> = Map::new();
        for key in has.as_object().into_iter().flat_map(Map::keys) {
            if key.starts_with(AGGREGATED_PREFIX) && !wanted.contains_key(key) {
                changes.insert(key.clone(), Value::Null);
            }
        }
        for (key, value) in wanted {
            if has[key] != value.as_str() {
                changes.insert(key.clone(), value.as_str().into());
            }
        }
        if !changes.is_empty() {
            patch[field] = changes.into();
        }
    }
    if patch.as_object().is_none_or(Map::is_empty) {
        return None;
    }
    patch["resourceVersion"] = known["resourceVersion"].clone();
    Some(json!({"metadata": patch}))
}

#[cfg(test)]
mod tests;
