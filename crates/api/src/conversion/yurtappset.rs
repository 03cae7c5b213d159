//! YurtAppSet: v1beta1 is the hub. Patches, tolerations and node selectors of v1alpha1 pools become patches of tweaks, so that they are
//! honoured by whoever knows only v1beta1.

use super::{Facet, Pair, fields::Fields};
use crate::{names::labels::NODE_POOL, translation};
use serde_json::{Map, Value, json};

const TEMPLATE: &str = "/spec/workloadTemplate";
const SELECTOR: &str = "/spec/selector";
const TOPOLOGY: &str = "/spec/topology";

const POOLS: &str = "/spec/pools";
const POOL_SELECTOR: &str = "/spec/nodepoolSelector";
const TWEAKS: &str = "/spec/workload/workloadTweaks";

const SUMMARY: &str = "/status/workloadSummary";
const POOL_REPLICAS: &str = "/status/poolReplicas";
const READY_REPLICAS: &str = "/status/readyReplicas";
const REPLICAS: &str = "/status/replicas";
const TEMPLATE_TYPE: &str = "/status/templateType";
const TOTAL: &str = "/status/totalWorkloads";
const READY: &str = "/status/readyWorkloads";

pub(super) const PAIRS: &[Pair] = &[Pair {
    older: "v1alpha1",
    shared: &[
        (TEMPLATE, "/spec/workload/workloadTemplate"),
        ("/spec/revisionHistoryLimit", "/spec/revisionHistoryLimit"),
        ("/status/observedGeneration", "/status/observedGeneration"),
        ("/status/collisionCount", "/status/collisionCount"),
        ("/status/currentRevision", "/status/currentRevision"),
        ("/status/conditions", "/status/conditions"),
    ],
    facets: &[
        Facet {
            name: "selector",
            older: &[SELECTOR],
            hub: &[],
            up: |_, _| Fields::new(),
            down: selector_of_template,
            merge: |_, _, _| Fields::new(),
        },
        Facet {
            name: "placement",
            older: &[TOPOLOGY],
            hub: &[POOLS, POOL_SELECTOR, TWEAKS],
            up: tweaks_of_topology,
            down: topology_of_tweaks,
            merge: with_changed_pools,
        },
        Facet {
            name: "status",
            older: &[
                SUMMARY,
                POOL_REPLICAS,
                READY_REPLICAS,
                REPLICAS,
                TEMPLATE_TYPE,
            ],
            hub: &[TOTAL, READY, REPLICAS],
            up: workloads_of_replicas,
            down: replicas_of_workloads,
            merge: |_, shown, older| workloads_of_replicas(shown, older),
        },
    ],
    hub_defaults: super::empty,
}];

/// The kind of the workloads, and the template.
fn template(older: &Value) -> Option<(&'static str, &Value)> {
    let templates = older.pointer(TEMPLATE)?;
    [
        ("Deployment", "deploymentTemplate"),
        ("StatefulSet", "statefulSetTemplate"),
    ]
    .into_iter()
    .find_map(|(kind, field)| Some((kind, templates.get(field)?)))
}

/// Pods of a pool whose replicas nothing else says: as Kubernetes has it, one.
fn template_replicas(older: &Value) -> Value {
    let replicas = template(older).and_then(|(_, template)| template.pointer("/spec/replicas"));
    replicas
        .filter(|replicas| replicas.is_i64())
        .cloned()
        .unwrap_or(Value::from(1))
}

fn selector_of_template(_: &Fields, older: &Value) -> Fields {
    let selector = template(older).and_then(|(_, template)| template.pointer("/spec/selector"));
    selector
        .map(|selector| (SELECTOR.to_owned(), selector.clone()))
        .into_iter()
        .collect()
}

fn list(value: Option<&Value>) -> impl DoubleEndedIterator<Item = &Value> + Clone {
    value
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
}

fn names(value: Option<&Value>) -> Vec<String> {
    list(value)
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Whether an expression of a node selector is the one that names NodePools.
fn names_pools(expression: &Value) -> bool {
    expression["key"] == NODE_POOL && expression["operator"] == "In"
}

/// The NodePools that a pool of the topology is made of: those that its node selector names, otherwise the one of its name.
fn node_pools(pool: &Value) -> Vec<String> {
    let expressions = list(pool.pointer("/nodeSelectorTerm/matchExpressions"));
    let named = expressions
        .clone()
        .find(|expression| names_pools(expression));
    match named {
        Some(expression) => names(expression.get("values")),
        None => pool["name"]
            .as_str()
            .map(str::to_owned)
            .into_iter()
            .collect(),
    }
}

/// What a pool of the topology says of its workload, as a tweak.
fn tweak(pool: &Value, older: &Value) -> Option<Value> {
    let mut tweaks = Map::new();
    let replicas = pool.get("replicas").filter(|replicas| !replicas.is_null());
    if let Some(replicas) = replicas {
        tweaks.insert("replicas".into(), replicas.clone());
    }
    if let Some((kind, template)) = template(older) {
        let term = pool.get("nodeSelectorTerm").map(|term| {
            let mut term = term.clone();
            // The pool itself is selected anyhow.
            if let Some(Value::Array(expressions)) = term.get_mut("matchExpressions") {
                expressions.retain(|expression| !names_pools(expression));
            }
            term
        });
        let patches = translation::Changes {
            replicas,
            node_selector_term: term.as_ref(),
            tolerations: pool.get("tolerations"),
            patch: pool.get("patch"),
        }
        .as_patches(kind, template);
        if !patches.is_empty() {
            tweaks.insert("patches".into(), patches.into());
        }
    }
    (!tweaks.is_empty()).then(|| json!({"pools": node_pools(pool), "tweaks": tweaks}))
}

fn tweaks_of_topology(shown: &Fields, older: &Value) -> Fields {
    let mut fields = Fields::new();
    let Some(topology) = shown.get(TOPOLOGY) else {
        return fields;
    };
    let mut pools: Vec<String> = Vec::new();
    let mut tweaks = Vec::new();
    for pool in list(topology.get("pools")) {
        for name in node_pools(pool) {
            if !pools.contains(&name) {
                pools.push(name);
            }
        }
        tweaks.extend(tweak(pool, older));
    }
    fields.insert(POOLS.into(), pools.into());
    if !tweaks.is_empty() {
        fields.insert(TWEAKS.into(), tweaks.into());
    }
    fields
}

/// Only pools that are named have a place in a topology; each shows its replicas.
fn topology_of_tweaks(fields: &Fields, older: &Value) -> Fields {
    let Some(pools) = fields.get(POOLS) else {
        return Fields::new();
    };
    let replicas = |name: &str| {
        let naming = |tweak: &&Value| list(tweak.get("pools")).any(|pool| pool == name);
        list(fields.get(TWEAKS))
            .rev()
            .filter(naming)
            .find_map(|tweak| {
                tweak
                    .pointer("/tweaks/replicas")
                    .filter(|replicas| replicas.is_i64())
            })
            .cloned()
            .unwrap_or_else(|| template_replicas(older))
    };
    let pools: Vec<Value> = names(Some(pools))
        .iter()
        .map(|name| {
            let term = json!({"matchExpressions": [{"key": NODE_POOL, "operator": "In", "values": [name]}]});
            json!({"name": name, "nodeSelectorTerm": term, "replicas": replicas(name)})
        })
        .collect();
    Fields::from_iter([(TOPOLOGY.to_owned(), json!({"pools": pools}))])
}

/// The stashed placement with what changed in the topology since: pools that came and went, and what those that stayed say anew.
fn with_changed_pools(stashed: &Fields, shown: &Fields, older: &Value) -> Fields {
    let before = topology_of_tweaks(stashed, older);
    let pools_of = |fields: &Fields| -> Vec<Value> {
        let pools = fields
            .get(TOPOLOGY)
            .and_then(|topology| topology.get("pools"));
        list(pools).cloned().collect()
    };
    let (before, after) = (pools_of(&before), pools_of(shown));
    let remaining: Vec<String> = after.iter().flat_map(node_pools).collect();
    let gone: Vec<String> = before
        .iter()
        .flat_map(node_pools)
        .filter(|name| !remaining.contains(name))
        .collect();
    let mut pools = names(stashed.get(POOLS));
    pools.retain(|name| !gone.contains(name));
    let mut tweaks: Vec<Value> = list(stashed.get(TWEAKS)).cloned().collect();
    let said = |pool: &Value| (node_pools(pool), tweak(pool, older));
    let before: Vec<_> = before.iter().map(said).collect();
    for (names, tweak) in after.iter().map(said).filter(|said| !before.contains(said)) {
        for name in &names {
            if !pools.contains(name) {
                pools.push(name.clone());
            }
        }
        let Some(tweak) = tweak else {
            continue;
        };
        // Later tweaks win: an earlier one for the same pools that says no more than replicas is said again.
        let replaced = json!({"pools": names, "tweaks": {"replicas": null}});
        tweaks.retain(|known| {
            let mut known = known.clone();
            if let Some(replicas) = known.pointer_mut("/tweaks/replicas") {
                replicas.take();
            }
            known != replaced
        });
        tweaks.push(tweak);
    }
    let mut fields = stashed.clone();
    if fields.contains_key(POOLS) || !pools.is_empty() {
        fields.insert(POOLS.into(), pools.into());
    }
    if fields.contains_key(TWEAKS) || !tweaks.is_empty() {
        fields.insert(TWEAKS.into(), tweaks.into());
    }
    fields
}

/// A workload is ready as in v1beta1: when it has pods and all are.
fn workloads_of_replicas(shown: &Fields, _: &Value) -> Fields {
    let mut fields = Fields::new();
    if let Some(pools) = shown.get(POOL_REPLICAS).and_then(Value::as_object) {
        fields.insert(TOTAL.into(), pools.len().into());
    }
    if shown.contains_key(SUMMARY) {
        let ready = list(shown.get(SUMMARY)).filter(|workload| {
            workload["replicas"].as_i64() > Some(0)
                && workload["replicas"] == workload["readyReplicas"]
        });
        fields.insert(READY.into(), ready.count().into());
    }
    // Both are required.
    if !fields.is_empty() || shown.contains_key(REPLICAS) {
        for count in [TOTAL, READY] {
            fields.entry(count).or_insert(0.into());
        }
    }
    if let Some(replicas) = shown.get(REPLICAS) {
        fields.insert(REPLICAS.into(), replicas.clone());
    }
    fields
}

/// An estimate: v1beta1 counts workloads, not pods.
fn replicas_of_workloads(fields: &Fields, older: &Value) -> Fields {
    let mut shown = Fields::new();
    if fields.is_empty() {
        return shown;
    }
    let count = |pointer: &str| fields.get(pointer).and_then(Value::as_i64);
    let mut pools = Map::new();
    for pool in list(
        older
            .pointer(TOPOLOGY)
            .and_then(|topology| topology.get("pools")),
    ) {
        if let Some(replicas) = pool["replicas"].as_i64() {
            for name in node_pools(pool) {
                pools.insert(name, replicas.into());
            }
        }
    }
    let each = template_replicas(older).as_i64().unwrap_or(1);
    let (total, ready) = (count(TOTAL).unwrap_or(0), count(READY).unwrap_or(0));
    let of_pools = pools
        .values()
        .filter_map(Value::as_i64)
        .fold(0, i64::saturating_add);
    let replicas = count(REPLICAS).unwrap_or(if pools.len() as i64 == total {
        of_pools
    } else {
        total.saturating_mul(each)
    });
    let ready = if ready >= total {
        replicas
    } else {
        ready.saturating_mul(each).clamp(0, replicas.max(0))
    };
    shown.insert(POOL_REPLICAS.into(), pools.into());
    shown.insert(REPLICAS.into(), replicas.into());
    shown.insert(READY_REPLICAS.into(), ready.into());
    let kind = template(older).map_or("Deployment", |(kind, _)| kind);
    shown.insert(TEMPLATE_TYPE.into(), kind.into());
    shown
}
