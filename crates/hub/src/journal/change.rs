//! A change of an object as a difference that can be put on a newer state of it. Pure.
//!
//! What a component of the node writes while offline was computed on the state of that time. On reconnect the cloud's state may
//! have moved on. As with a kubelet's own patches, every field that was written here is set on the fresh object (last writer
//! wins) and every field that was not keeps the cloud's value; lists whose items have a `type` (conditions, addresses) are
//! taken apart by it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use yurt_wire::Object;

/// A change. `base` and `local` hold the parts of the object that may differ (everything but type and identity).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Of the object that was changed; another uid is another object.
    pub(crate) uid: String,
    base: Value,
    local: Value,
}

/// Parts of the metadata that a write may change.
const METADATA: [&str; 4] = ["labels", "annotations", "ownerReferences", "finalizers"];

fn parts(object: &Value) -> Value {
    let mut out = Map::new();
    let Some(object) = object.as_object() else {
        return Value::Object(out);
    };
    for (key, value) in object {
        match key.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                let kept: Map<String, Value> = METADATA
                    .iter()
                    .filter_map(|name| Some(((*name).to_owned(), value.get(name)?.clone())))
                    .collect();
                out.insert("metadata".into(), Value::Object(kept));
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(out)
}

fn uid(object: &Value) -> &str {
    object
        .pointer("/metadata/uid")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

impl Change {
    /// What was changed between two states of one object.
    pub(crate) fn between(before: &Value, after: &Value) -> Self {
        let mut base = parts(before);
        let mut local = parts(after);
        // Parts that are the same on both sides say nothing.
        if let (Some(base), Some(local)) = (base.as_object_mut(), local.as_object_mut()) {
            base.retain(|key, value| {
                let same = local.get(key) == Some(value);
                if same {
                    local.remove(key);
                }
                !same
            });
        }
        Self {
            uid: uid(before).to_owned(),
            base,
            local,
        }
    }

    /// This change and then a later one, as one.
    pub(crate) fn then(self, later: Self) -> Self {
        if self.uid != later.uid {
            return later;
        }
        let join = |first: Value, second: Value| match (first, second) {
            (Value::Object(mut first), Value::Object(second)) => {
                for (key, value) in second {
                    first.insert(key, value);
                }
                Value::Object(first)
            }
            (_, second) => second,
        };
        // A part that the later change does not speak of is as this one left it; one that only the later speaks of had then
        // its base. A part that the later removed is in its base but not in its local side.
        let mut local = join(self.local.clone(), later.local.clone());
        if let (Some(out), Some(base), Some(after)) = (
            local.as_object_mut(),
            later.base.as_object(),
            later.local.as_object(),
        ) {
            for key in base.keys() {
                if !after.contains_key(key) {
                    out.remove(key);
                }
            }
        }
        let mut base = join(later.base.clone(), self.base.clone());
        if let (Some(out), Some(first_local), Some(first_base)) = (
            base.as_object_mut(),
            self.local.as_object(),
            self.base.as_object(),
        ) {
            // Added by this change: it was not there at first, whatever the later one started from.
            for key in first_local.keys() {
                if !first_base.contains_key(key) {
                    out.remove(key);
                }
            }
        }
        Self {
            uid: self.uid,
            base,
            local,
        }
    }

    /// The change but for one part of the object; `None` when that was all.
    pub(crate) fn without(mut self, part: &str) -> Option<Self> {
        let mut left = false;
        for side in [&mut self.base, &mut self.local] {
            if let Some(side) = side.as_object_mut() {
                side.remove(part);
                left |= !side.is_empty();
            }
        }
        left.then_some(self)
    }

    /// The fresh object with the change on it; `None` when it is another object.
    pub(crate) fn apply(&self, fresh: &Value) -> Option<Value> {
        if uid(fresh) != self.uid {
            return None;
        }
        let mut out = fresh.clone();
        let target = out.as_object_mut()?;
        let empty = Map::new();
        let base = self.base.as_object().unwrap_or(&empty);
        let local = self.local.as_object().unwrap_or(&empty);
        merge_map(base, local, target);
        Some(out)
    }

    /// As [`Change::apply`], on bytes, keeping the encoding.
    pub(crate) fn rebase(&self, fresh: &Object) -> Option<Object> {
        let merged = self.apply(&fresh.to_json_value().ok()?)?;
        Object::from_json_value(&merged, fresh.encoding).ok()
    }
}

fn merge_map(
    base: &Map<String, Value>,
    local: &Map<String, Value>,
    fresh: &mut Map<String, Value>,
) {
    for (key, mine) in local {
        match (base.get(key), fresh.get_mut(key)) {
            (Some(before), _) if before == mine => {}
            (before, Some(theirs)) => merge(before.unwrap_or(&Value::Null), mine, theirs),
            (_, None) => {
                fresh.insert(key.clone(), mine.clone());
            }
        }
    }
    for key in base.keys() {
        if !local.contains_key(key) {
            fresh.remove(key);
        }
    }
}

fn merge(base: &Value, local: &Value, fresh: &mut Value) {
    match (base, local, fresh) {
        (Value::Object(base), Value::Object(local), Value::Object(fresh)) => {
            merge_map(base, local, fresh);
        }
        (Value::Null, Value::Object(local), Value::Object(fresh)) => {
            merge_map(&Map::new(), local, fresh);
        }
        (base, Value::Array(local), Value::Array(fresh))
            if typed(local) && typed(fresh) && base.as_array().is_none_or(|b| typed(b)) =>
        {
            merge_typed(base.as_array().map_or(&[], Vec::as_slice), local, fresh);
        }
        (_, local, fresh) => *fresh = local.clone(),
    }
}

/// Whether every item has a `type` of its own.
fn typed(items: &[Value]) -> bool {
    let mut seen = std::collections::HashSet::new();
    items.iter().all(|item| {
        item.get("type")
            .and_then(Value::as_str)
            .is_some_and(|name| seen.insert(name.to_owned()))
    })
}

fn merge_typed(base: &[Value], local: &[Value], fresh: &mut Vec<Value>) {
    let of = |items: &[Value], name: &Value| -> Option<Value> {
        items
            .iter()
            .find(|item| item.get("type") == Some(name))
            .cloned()
    };
    for mine in local {
        let Some(name) = mine.get("type") else {
            continue;
        };
        if of(base, name).as_ref() == Some(mine) {
            continue;
        }
        match fresh.iter_mut().find(|item| item.get("type") == Some(name)) {
            Some(theirs) => *theirs = mine.clone(),
            None => fresh.push(mine.clone()),
        }
    }
    for before in base {
        if let Some(name) = before.get("type")
            && of(local, name).is_none()
        {
            fresh.retain(|item| item.get("type") != Some(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(status: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "5", "labels": {"app": "a"}},
            "status": status})
    }

    #[test]
    fn last_writer_wins_by_field_and_condition() {
        let base = pod(json!({"phase": "Pending", "conditions": [
            {"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}]}));
        let local = pod(
            json!({"phase": "Running", "podIP": "10.0.0.1", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]}),
        );
        let fresh = json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "9",
                "labels": {"app": "a", "new": "1"}},
            "status": {"phase": "Pending", "qosClass": "Burstable", "conditions": [
                {"type": "Ready", "status": "False"}, {"type": "DisruptionTarget", "status": "True"},
                {"type": "PodScheduled", "status": "True", "reason": "cloud"}]}});
        let merged = Change::between(&base, &local).apply(&fresh);
        assert_eq!(
            merged,
            Some(
                json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "9",
                "labels": {"app": "a", "new": "1"}},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "qosClass": "Burstable", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "DisruptionTarget", "status": "True"},
                {"type": "PodScheduled", "status": "True", "reason": "cloud"}]}})
            )
        );
        let other = json!({"metadata": {"uid": "w"}});
        assert_eq!(Change::between(&base, &local).apply(&other), None);
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..4i64).prop_map(Value::from)
        ];
        let conditions = prop::collection::btree_map("[ABC]", 0..3i64, 0..3).prop_map(|of| {
            of.into_iter()
                .map(|(name, status)| json!({"type": name, "status": status}))
                .collect::<Value>()
        });
        let value = prop_oneof![leaf, conditions];
        prop::collection::btree_map("[abcd]", value, 0..4)
            .prop_map(|of| Value::Object(of.into_iter().collect()))
    }

    fn object() -> impl Strategy<Value = Value> {
        (prop::option::of(tree()), prop::option::of(tree())).prop_map(|(status, spec)| {
            let mut out = json!({"metadata": {"uid": "u"}});
            if let Some(status) = status {
                out["status"] = status;
            }
            if let Some(spec) = spec {
                out["spec"] = spec;
            }
            out
        })
    }

    /// Lists by type are equal whatever their order.
    fn sorted(mut value: Value) -> Value {
        for part in ["status", "spec"] {
            if let Some(map) = value.get_mut(part).and_then(Value::as_object_mut) {
                for field in map.values_mut() {
                    if let Some(items) = field.as_array_mut() {
                        items.sort_by_key(|item| item["type"].to_string());
                    }
                }
            }
        }
        value
    }

    proptest! {
        #[test]
        fn on_its_own_base_it_gives_the_local_state(base in object(), local in object()) {
            let change = Change::between(&base, &local);
            prop_assert_eq!(change.apply(&base).map(sorted), Some(sorted(local)));
        }

        #[test]
        fn twice_is_once(base in object(), local in object(), fresh in object()) {
            let change = Change::between(&base, &local);
            let once = change.apply(&fresh).ok_or_else(|| TestCaseError::fail("other uid"))?;
            prop_assert_eq!(change.apply(&once), Some(once));
        }

        #[test]
        fn two_in_a_row_are_one(a in object(), b in object(), c in object()) {
            let joined = Change::between(&a, &b).then(Change::between(&b, &c));
            prop_assert_eq!(joined.apply(&a).map(sorted), Some(sorted(c)));
        }
    }
}
