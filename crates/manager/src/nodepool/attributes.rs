//! What a pool gives to a node and takes back: labels, annotations, taints. Pure.
//!
//! The annotation `previous-attributes` of a node says what it was given, as OpenYurt's does, so that nodes pass from one to the
//! other. It is written together with what it is about. What stands there is the pool's: it is put right when somebody changes it
//! and taken back when the pool wants it no more. What does not stand there is somebody else's: it is neither overwritten nor ever
//! taken away, even where it happens to be what the pool wants.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use yurt_api::names::{annotations::PREVIOUS_ATTRIBUTES, labels};
use yurt_controller::{
    fields::{items, text},
    taint,
};
use yurt_wire::selector::{label_key_errors, label_value_errors};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// What no pool gives: it says where the node belongs, and is kept by others.
const RESERVED: [&str; 3] = [labels::NODE_POOL, labels::HOST_NETWORK, PREVIOUS_ATTRIBUTES];

/// Labels, annotations and taints (their values by key and effect).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    taints: BTreeMap<(String, String), String>,
}

impl Attributes {
    fn read(value: &Value) -> Self {
        let map = |value: &Value| -> BTreeMap<String, String> {
            let entries = value.as_object().into_iter().flatten();
            entries
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect()
        };
        let taints = items(&value["taints"]).map(|taint| {
            (
                (text(&taint["key"]), text(&taint["effect"])),
                text(&taint["value"]),
            )
        });
        Self {
            labels: map(&value["labels"]),
            annotations: map(&value["annotations"]),
            taints: taints.collect(),
        }
    }

    /// What a node was given; `None` where nothing says so that can be read.
    fn given(node: &Value) -> Option<Self> {
        let text = node["metadata"]["annotations"][PREVIOUS_ATTRIBUTES].as_str()?;
        Some(Self::read(&serde_json::from_str(text).ok()?))
    }

    /// What a pool gives, and what of its spec no node can have.
    pub(super) fn of_pool(pool: &Value) -> (Self, Vec<String>) {
        let mut wanted = Self::read(&pool["spec"]);
        let mut faults = Vec::new();
        let mut judge = |what: String, errors: Vec<String>| {
            let good = errors.is_empty();
            faults.extend(errors.into_iter().map(|error| format!("{what}: {error}")));
            good
        };
        let key_errors = |key: &str| {
            if RESERVED.contains(&key) {
                return vec!["is not for pools to give".into()];
            }
            label_key_errors(key)
        };
        wanted.labels.retain(|key, value| {
            let mut errors = key_errors(key);
            errors.extend(label_value_errors(value));
            judge(format!("label {key}"), errors)
        });
        // Keys of annotations may be upper case; the API server compares them in lower case.
        wanted
            .annotations
            .retain(|key, _| judge(format!("annotation {key}"), key_errors(&key.to_lowercase())));
        wanted.taints.retain(|(key, effect), value| {
            let mut errors = label_key_errors(key);
            errors.extend(label_value_errors(value));
            if !EFFECTS.contains(&effect.as_str()) {
                errors.push("there is no such effect".into());
            }
            judge(format!("taint {key}:{effect}"), errors)
        });
        (wanted, faults)
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As OpenYurt writes the annotation.
    fn to_json(&self) -> Value {
        let mut written = Map::new();
        if !self.labels.is_empty() {
            written.insert("labels".into(), json!(self.labels));
        }
        if !self.annotations.is_empty() {
            written.insert("annotations".into(), json!(self.annotations));
        }
        if !self.taints.is_empty() {
            let taints = self
                .taints
                .iter()
                .map(|((key, effect), value)| taint(key, effect, value));
            written.insert("taints".into(), taints.collect());
        }
        written.into()
    }
}

fn taint(key: &str, effect: &str, value: &str) -> Value {
    let mut taint = json!({"key": key, "effect": effect});
    if !value.is_empty() {
        taint["value"] = value.into();
    }
    taint
}

/// What is to be done with a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// A merge patch for exactly this version of the node; `None` when it is in order.
    pub(super) patch: Option<Value>,
    /// What the pool wants and somebody else has set otherwise.
    pub(super) conflicts: Vec<String>,
}

/// Brings one kind of entries in order: the changes (`null` takes away), and what is the pool's from now on.
fn settle(
    what: &str,
    has: &Value,
    given: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
    conflicts: &mut Vec<String>,
) -> (Map<String, Value>, BTreeMap<String, String>) {
    let (mut changes, mut kept) = (Map::new(), BTreeMap::new());
    for (key, value) in wanted {
        let own = given.contains_key(key);
        match has[key].as_str() {
            Some(known) if known == value && !own => {}
            Some(known) if known != value && !own => conflicts.push(format!("{what} {key}")),
            known => {
                if known != Some(value) {
                    changes.insert(key.clone(), value.as_str().into());
                }
                kept.insert(key.clone(), value.clone());
            }
        }
    }
    for (key, value) in given {
        if !wanted.contains_key(key) && has[key] == value.as_str() {
            changes.insert(key.clone(), Value::Null);
        }
    }
    (changes, kept)
}

/// What a node needs to have what its pool wants and nothing else of any pool. `sync` says whether pools give anything at all: if
/// not, everything stays as it is but the label of host networks, which goes with the pool (`host_network`) in any case.
pub(super) fn plan(node: &Value, wanted: Option<&Attributes>, host_network: bool) -> Plan {
    let metadata = &node["metadata"];
    let mut conflicts = Vec::new();
    let (mut labels, mut annotations, mut spec) = (Map::new(), Map::new(), Map::new());
    if let Some(wanted) = wanted {
        let read = Attributes::given(node);
        let is_read = read.is_some();
        let given = read.unwrap_or_default();
        let mut kept = Attributes::default();
        (labels, kept.labels) = settle(
            "label",
            &metadata["labels"],
            &given.labels,
            &wanted.labels,
            &mut conflicts,
        );
        (annotations, kept.annotations) = settle(
            "annotation",
            &metadata["annotations"],
            &given.annotations,
            &wanted.annotations,
            &mut conflicts,
        );
        let taints = settle_taints(node, &given, wanted, &mut kept, &mut conflicts);
        if let Some(taints) = taints {
            spec.insert("taints".into(), taints.into());
        }
        let is_written = !metadata["annotations"][PREVIOUS_ATTRIBUTES].is_null();
        if kept != given || is_written && !is_read {
            let written = match kept.is_empty() {
                true => Value::Null,
                false => kept.to_json().to_string().into(),
            };
            annotations.insert(PREVIOUS_ATTRIBUTES.into(), written);
        }
    }
    let has = &metadata["labels"][labels::HOST_NETWORK];
    if host_network != (has == "true") {
        let value = if host_network {
            "true".into()
        } else {
            Value::Null
        };
        labels.insert(labels::HOST_NETWORK.into(), value);
    }
    let mut patch = json!({});
    for (field, changes) in [("labels", labels), ("annotations", annotations)] {
        if !changes.is_empty() {
            patch["metadata"][field] = changes.into();
        }
    }
    if !spec.is_empty() {
        patch["spec"] = spec.into();
    }
    let nothing = patch.as_object().is_some_and(Map::is_empty);
    if !nothing {
        patch["metadata"]["resourceVersion"] = metadata["resourceVersion"].clone();
    }
    Plan {
        patch: (!nothing).then_some(patch),
        conflicts,
    }
}

/// The node's taints as they should be, unless they are.
fn settle_taints(
    node: &Value,
    given: &Attributes,
    wanted: &Attributes,
    kept: &mut Attributes,
    conflicts: &mut Vec<String>,
) -> Option<Vec<Value>> {
    let before = taint::taints(node);
    let mut taints = before.clone();
    for ((key, effect), value) in &wanted.taints {
        let identity = (key.clone(), effect.clone());
        let own = given.taints.contains_key(&identity);
        let found = taints
            .iter_mut()
            .find(|known| taint::is(known, key, effect));
        match found {
            Some(known) if !own => {
                if text(&known["value"]) != *value {
                    conflicts.push(format!("taint {key}:{effect}"));
                }
                continue;
            }
            Some(known) if text(&known["value"]) != *value => {
                *known = self::taint(key, effect, value)
            }
            Some(_) => {}
            None => taints.push(self::taint(key, effect, value)),
        }
        kept.taints.insert(identity, value.clone());
    }
    taints.retain(|known| {
        let identity = (text(&known["key"]), text(&known["effect"]));
        wanted.taints.contains_key(&identity)
            || given.taints.get(&identity) != Some(&text(&known["value"]))
    });
    (taints != before).then_some(taints)
}

#[cfg(test)]
mod tests;
