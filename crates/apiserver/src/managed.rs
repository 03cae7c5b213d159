//! Who owns which field: `metadata.managedFields` and server-side apply.
//!
//! [`track_update`] records an ordinary write: the fields it changed become the writer's. [`apply`] merges a
//! configuration: the fields it names become the applier's, fields that it no longer names go away unless
//! someone else owns them, and a field that another manager owns with another value is a conflict.
//!
//! A set of fields ([`FieldSet`]) is a tree of [`PathElement`]s; how lists and maps are stepped into is the
//! business of a [`Typing`].
//!
//! Callers order their steps as kube-apiserver does, or entries differ from what clients expect: decode, default,
//! [`track_update`], admission, the strategy's own changes (cluster IPs, generation), store. For an apply: [`apply`],
//! then default. A configuration applied to the main resource must first lose its `status` when the kind has a
//! status subresource, and one applied to the status everything but its identity and status.

mod compare;
mod entries;
mod merge;
mod path;
mod set;
#[cfg(test)]
mod tests;
mod typing;

pub use entries::Operation;
pub use path::{MalformedFields, PathElement};
pub use set::FieldSet;
pub use typing::Typing;
pub(crate) use typing::is_atomic_struct;

use crate::defaults;
use compare::{Comparison, claimed, compare, print};
use entries::Entry;
use serde_json::{Map, Value};
use std::borrow::Cow;
use typing::Type;
use yurt_wire::schema::{FieldKind, Message};
use yurt_wire::status::Cause;
use yurt_wire::{Reason, Status};

/// Who writes, how and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The field manager: the request's `fieldManager`, or the user agent up to the first `/`.
    pub manager: &'a str,
    /// The version the object is written in.
    pub api_version: &'a str,
    /// `status`, `scale`, ...; empty for the resource itself.
    pub subresource: &'a str,
    /// RFC 3339, whole seconds, UTC.
    pub now: &'a str,
}

/// A field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The other manager.
    pub manager: String,
    /// How it came to own the field.
    pub operation: Operation,
    /// The version it wrote in.
    pub api_version: String,
    /// The subresource it wrote to; empty for the resource itself.
    pub subresource: String,
    /// The field as printed: `.spec.replicas`.
    pub field: String,
}

impl Conflict {
    /// The other manager as kube-apiserver prints it: `"kubectl-edit" using apps/v1`.
    fn owner(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

/// Why a configuration was not applied. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own fields with other values; `force` would take them.
    #[error("{}", conflict_message(.0))]
    Conflict(Vec<Conflict>),
    /// The configuration cannot be merged; the applier is at fault.
    #[error("{0}")]
    Invalid(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            only.owner(),
            only.field
        );
    }
    let mut lines = Vec::new();
    let mut last = None;
    for conflict in conflicts {
        let owner = conflict.owner();
        if last.as_ref() != Some(&owner) {
            lines.push(format!("conflicts with {owner}:"));
            last = Some(owner);
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Self {
        let message = error.to_string();
        match error {
            ApplyError::Conflict(conflicts) => {
                let mut status = Status::new(Reason::Conflict, message);
                status.causes = conflicts
                    .into_iter()
                    .map(|conflict| Cause {
                        reason: "FieldManagerConflict".into(),
                        message: format!("conflict with {}", conflict.owner()),
                        field: conflict.field,
                    })
                    .collect();
                status
            }
            ApplyError::Invalid(_) => Status::new(Reason::BadRequest, message),
        }
    }
}

/// The fields that nobody owns.
fn unowned() -> FieldSet {
    let mut out = FieldSet::default();
    for top in ["apiVersion", "kind", "metadata"] {
        out.insert(&[PathElement::field(top)]);
    }
    for name in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        out.insert(&[PathElement::field("metadata"), PathElement::field(name)]);
    }
    out
}

/// Records a create, update or patch in `new.metadata.managedFields`.
///
/// `new` is the complete object as it is about to be stored, in the version of `writer`. Entries sent by the client
/// replace the stored ones when they are valid (that is how managers are migrated), except on a subresource;
/// missing or malformed ones do not.
pub fn track_update(
    typing: Typing<'_>,
    live: Option<&Value>,
    new: &mut Value,
    writer: &Writer<'_>,
) {
    let stored = || {
        live.and_then(|live| entries::decode(live).ok())
            .unwrap_or_default()
    };
    let managers = if writer.subresource.is_empty() {
        if entries::is_reset(new) {
            Vec::new()
        } else {
            match entries::decode(new) {
                Ok(sent) if !sent.is_empty() => sent,
                _ => stored(),
            }
        }
    } else {
        stored()
    };
    entries::strip(new);

    let differences = differences(typing, live, new);
    let taken = differences
        .modified
        .clone()
        .union(&differences.added)
        .difference(&unowned());
    let mut managers: Vec<Entry> = managers
        .into_iter()
        .map(|mut entry| {
            entry.fields = entry
                .fields
                .difference(&taken)
                .difference(&differences.removed);
            entry
        })
        .collect();
    if !taken.is_empty() {
        own(&mut managers, Operation::Update, writer, taken, true);
    }
    entries::encode(new, managers);
}

/// Merges `config` into `live` as `writer` and returns the whole object with its managedFields.
///
/// Without `live` the result is the configuration itself, to be created. When nothing changes, the result equals
/// `live`, managedFields and their times included.
pub fn apply(
    typing: Typing<'_>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if !config.is_object() {
        return Err(ApplyError::Invalid(
            "the applied configuration is not an object".into(),
        ));
    }
    if !matches!(
        config.pointer("/metadata/managedFields"),
        None | Some(Value::Null)
    ) {
        return Err(ApplyError::Invalid(
            "metadata.managedFields must be nil".into(),
        ));
    }
    let mut config = Cow::Borrowed(config);
    if let Typing::Builtin(message) = typing {
        defaults::canonical_quantities(message, config.to_mut());
    }
    let config: &Value = &config;
    let root = typing.root();
    let wanted = claimed(root, config)
        .map_err(|why| {
            ApplyError::Invalid(format!(
                "failed to create typed patch object ({}; {}): {why}",
                object_name(config),
                object_type(config)
            ))
        })?
        .difference(&unowned());

    let mut managers = live
        .and_then(|live| entries::decode(live).ok())
        .unwrap_or_default();
    let before = managers.clone();
    let base: Cow<'_, Value> = match live {
        Some(live) => {
            let mut base = live.clone();
            entries::strip(&mut base);
            Cow::Owned(base)
        }
        None => Cow::Owned(Value::Object(Map::new())),
    };
    let merged = merge::merge(root, Some(&base), Some(config));

    let previous = managers
        .iter()
        .find(|entry| entry.is_same_manager(&own_entry(Operation::Apply, writer)))
        .map(|entry| entry.fields.clone())
        .unwrap_or_default();
    own(
        &mut managers,
        Operation::Apply,
        writer,
        wanted.clone(),
        false,
    );
    let mut object = prune(root, merged, &managers, &previous);

    // Conflicts: what changed and someone else owns. Values that agree are shared.
    let differences = differences(typing, live.map(|_| &*base), &object);
    let changed = differences
        .modified
        .clone()
        .union(&differences.added)
        .difference(&unowned());
    let own_identity = own_entry(Operation::Apply, writer);
    let mut conflicts = Vec::new();
    for entry in &mut managers {
        if entry.is_same_manager(&own_identity) {
            continue;
        }
        let contested = entry.fields.intersection(&changed);
        for path in contested.paths() {
            conflicts.push(Conflict {
                manager: entry.manager.clone(),
                operation: entry.operation,
                api_version: entry.api_version.clone(),
                subresource: entry.subresource.clone(),
                field: print(&path),
            });
        }
        entry.fields = entry
            .fields
            .difference(&contested)
            .difference(&differences.removed);
    }
    if !force && !conflicts.is_empty() {
        conflicts.sort();
        return Err(ApplyError::Conflict(conflicts));
    }

    let touched = live.is_none() || object != *base || previous != wanted || {
        let version = before
            .iter()
            .find(|entry| entry.is_same_manager(&own_identity))
            .map(|entry| entry.api_version.as_str());
        version.is_some() && version != Some(writer.api_version)
    };
    if !touched {
        // A no-op apply leaves even the time alone.
        return Ok(live.cloned().unwrap_or(object));
    }
    for entry in &mut managers {
        if entry.is_same_manager(&own_identity) {
            entry.time = writer.now.to_owned();
        }
    }
    entries::encode(&mut object, managers);
    Ok(object)
}

fn own_entry(operation: Operation, writer: &Writer<'_>) -> Entry {
    Entry {
        manager: writer.manager.to_owned(),
        operation,
        api_version: writer.api_version.to_owned(),
        subresource: writer.subresource.to_owned(),
        time: writer.now.to_owned(),
        fields: FieldSet::default(),
    }
}

/// Gives `fields` to the writer's entry: added to what it owns, or instead of it.
fn own(
    managers: &mut Vec<Entry>,
    operation: Operation,
    writer: &Writer<'_>,
    fields: FieldSet,
    keep: bool,
) {
    let fresh = own_entry(operation, writer);
    match managers
        .iter_mut()
        .find(|entry| entry.is_same_manager(&fresh))
    {
        Some(entry) if keep => {
            entry.fields = std::mem::take(&mut entry.fields).union(&fields);
            entry.time = fresh.time;
        }
        Some(entry) => {
            entry.fields = fields;
            entry.api_version = fresh.api_version;
        }
        None => managers.push(Entry { fields, ..fresh }),
    }
}

/// Takes out of `merged` what this applier used to own, no longer names, and nobody else owns. `managers` already
/// holds its new fields.
fn prune(root: Type<'_>, merged: Value, managers: &[Entry], previous: &FieldSet) -> Value {
    if previous.is_empty() {
        return merged;
    }
    let named = |set: &FieldSet| set.with_named_fields(root, Some(&merged));
    let fields_of = |value: &Value| claimed(root, value).unwrap_or_else(|_| all(root, value));

    let previous = named(previous);
    let pruned = merge::remove(root, &merged, &previous);
    // What is still owned comes back, with the path to it.
    let mut owned = FieldSet::default();
    for entry in managers {
        owned = owned.union(&entry.fields);
    }
    let merged_fields = named(&fields_of(&merged));
    let stays = named(&fields_of(&pruned)).union(&named(&owned));
    let pruned = merge::remove(root, &merged, &merged_fields.difference(&stays));
    // What nobody owns but this applier never owned either stays.
    let pruned_fields = named(&fields_of(&pruned));
    let gone = merged_fields
        .difference(&pruned_fields)
        .intersection(&previous);
    merge::remove(root, &merged, &gone)
}

/// Every path of a value, for objects whose lists break the rules of their type.
fn all(root: Type<'_>, value: &Value) -> FieldSet {
    compare(root, None, Some(value)).added
}

fn differences(typing: Typing<'_>, live: Option<&Value>, new: &Value) -> Comparison {
    let mut left = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    entries::strip(&mut left);
    if let Typing::Builtin(message) = typing {
        fill_value_structs(message, &mut left, 0);
    }
    compare(typing.root(), Some(&left), Some(new))
}

/// Fills in what Go's encoder writes even for an empty object: structs held by value, and (as null) lists and maps
/// without `omitempty`. Their mere presence is nobody's doing.
fn fill_value_structs(message: &'static Message, value: &mut Value, depth: usize) {
    let Value::Object(fields) = value else {
        return;
    };
    // Deeper than any chain of structs held by value.
    if depth > 8 {
        return;
    }
    for field in message.fields {
        if field.pointer || field.omit_zero {
            continue;
        }
        if field.repeated || field.map {
            if !field.omit_empty {
                fields.entry(field.json_name).or_insert(Value::Null);
            }
        } else if let (FieldKind::Message(_), Some(inner)) = (field.kind, field.message()) {
            let slot = fields
                .entry(field.json_name)
                .or_insert_with(|| Value::Object(Map::new()));
            fill_value_structs(inner, slot, depth + 1);
        }
    }
}

fn object_name(object: &Value) -> String {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"))
}

fn object_type(object: &Value) -> String {
    let text = |name| object.get(name).and_then(Value::as_str).unwrap_or_default();
    format!("{}, Kind={}", text("apiVersion"), text("kind"))
}
