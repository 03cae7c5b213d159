//! `metadata.managedFields`: who owns which fields since when.

use super::path::MalformedFields;
use super::set::FieldSet;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// More Update entries than this are folded together, oldest first.
const MAX_UPDATERS: usize = 10;
/// The manager that the folded entries belong to.
const FOLDED_MANAGER: &str = "ancient-changes";

/// How a manager came to own its fields. Ordered as the entries are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply: the manager wants these fields.
    Apply,
    /// Any other write: the manager was the last to change these fields.
    Update,
}

impl Operation {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) manager: String,
    pub(crate) operation: Operation,
    pub(crate) api_version: String,
    pub(crate) subresource: String,
    /// RFC 3339; empty when unknown.
    pub(crate) time: String,
    pub(crate) fields: FieldSet,
}

impl Entry {
    /// Entries with the same identity are one. An applier is the same whatever version it applies with.
    pub(crate) fn is_same_manager(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn seconds(&self) -> i64 {
        self.time
            .parse::<Timestamp>()
            .map_or(i64::MIN, Timestamp::as_second)
    }
}

fn text<'v>(entry: &'v Map<String, Value>, name: &str) -> &'v str {
    entry.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Reads the entries of an object's metadata.
pub(crate) fn decode(object: &Value) -> Result<Vec<Entry>, MalformedFields> {
    let list = match object.pointer("/metadata/managedFields") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(MalformedFields("managedFields is not a list".into())),
    };
    let mut out: Vec<Entry> = Vec::with_capacity(list.len());
    for entry in list {
        let Value::Object(entry) = entry else {
            return Err(MalformedFields("entry is not an object".into()));
        };
        let operation = match text(entry, "operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            other => return Err(MalformedFields(format!("unknown operation {other:?}"))),
        };
        let fields_type = text(entry, "fieldsType");
        if fields_type != "FieldsV1" {
            return Err(MalformedFields(format!(
                "unknown fieldsType {fields_type:?}"
            )));
        }
        let fields = match entry.get("fieldsV1") {
            None | Some(Value::Null) => FieldSet::default(),
            Some(fields) => FieldSet::from_fields_v1(fields)?,
        };
        let entry = Entry {
            manager: text(entry, "manager").to_owned(),
            operation,
            api_version: text(entry, "apiVersion").to_owned(),
            subresource: text(entry, "subresource").to_owned(),
            time: text(entry, "time").to_owned(),
            fields,
        };
        match out.iter_mut().find(|known| known.is_same_manager(&entry)) {
            Some(known) => *known = entry,
            None => out.push(entry),
        }
    }
    Ok(out)
}

/// Whether a writer asks to forget all managers: a list of one empty entry.
pub(crate) fn is_reset(object: &Value) -> bool {
    matches!(object.pointer("/metadata/managedFields"), Some(Value::Array(list))
        if matches!(list.as_slice(), [Value::Object(entry)] if entry.is_empty()))
}

/// Removes the entries from an object.
pub(crate) fn strip(object: &mut Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
}

/// Writes the entries into an object: without empty ones, capped and sorted as kube-apiserver does.
pub(crate) fn encode(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    cap(&mut entries);
    entries.sort_by(|a, b| {
        a.operation
            .cmp(&b.operation)
            .then_with(|| a.seconds().cmp(&b.seconds()))
            .then_with(|| a.manager.cmp(&b.manager))
            .then_with(|| a.api_version.cmp(&b.api_version))
            .then_with(|| a.subresource.cmp(&b.subresource))
    });
    strip(object);
    if entries.is_empty() {
        return;
    }
    let list: Vec<Value> = entries.iter().map(encode_entry).collect();
    let Value::Object(object) = object else {
        return;
    };
    let metadata = object
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(metadata) = metadata {
        metadata.insert("managedFields".into(), Value::Array(list));
    }
}

fn encode_entry(entry: &Entry) -> Value {
    let mut out = json!({
        "operation": entry.operation.as_str(),
        "apiVersion": entry.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": entry.fields.to_fields_v1(),
    });
    for (name, value) in [
        ("manager", &entry.manager),
        ("time", &entry.time),
        ("subresource", &entry.subresource),
    ] {
        if !value.is_empty() {
            out[name] = Value::from(value.as_str());
        }
    }
    out
}

/// Folds the oldest Update entries of each version into one until at most [`MAX_UPDATERS`] are left.
fn cap(entries: &mut Vec<Entry>) {
    let updaters = |entries: &[Entry]| {
        entries
            .iter()
            .filter(|e| e.operation == Operation::Update)
            .count()
    };
    if updaters(entries) <= MAX_UPDATERS {
        return;
    }
    let (mut old, mut kept): (Vec<Entry>, Vec<Entry>) = std::mem::take(entries)
        .into_iter()
        .partition(|e| e.operation == Operation::Update);
    old.sort_by(|a, b| {
        a.seconds()
            .cmp(&b.seconds())
            .then_with(|| a.manager.cmp(&b.manager))
    });
    let mut length = old.len();
    let mut buckets: BTreeMap<String, Entry> = BTreeMap::new();
    let mut rest = Vec::new();
    for entry in old {
        if length <= MAX_UPDATERS {
            rest.push(entry);
            continue;
        }
        match buckets.get_mut(&entry.api_version) {
            // The first of a version stands alone until a second one joins it.
            None => {
                buckets.insert(entry.api_version.clone(), entry);
            }
            Some(bucket) => {
                bucket.manager = FOLDED_MANAGER.into();
                bucket.subresource.clear();
                bucket.time = entry.time;
                bucket.fields = std::mem::take(&mut bucket.fields).union(&entry.fields);
                length -= 1;
            }
        }
    }
    kept.extend(buckets.into_values());
    kept.extend(rest);
    *entries = kept;
}
