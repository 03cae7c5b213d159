//! What a built-in object means when it leaves fields out.
//!
//! [`normalize`] gives an object the shape that decoding into Go structs and encoding again gives it: fields nobody
//! knows are dropped, empty ones are left out or written as the struct tags say. [`apply_defaults`] does that and
//! then fills in kube-apiserver's defaults. Both change nothing in an object that went through them.

mod cluster;
mod network;
mod pod;
#[cfg(test)]
mod tests;
mod workload;

use serde_json::{Map, Value};
use yurt_wire::Gvk;
use yurt_wire::quantity::Quantity;
use yurt_wire::schema::{self, Field, FieldKind, Message};
use yurt_wire::transcode;

pub use network::service_ip_families;

/// Deeper than any built-in object that carries data.
const MAX_DEPTH: usize = 100;

/// Sets a field that is absent, null or an empty string.
pub(crate) fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Value::Object(fields) = object {
        let slot = fields.entry(name).or_insert(Value::Null);
        if slot.is_null() || slot == "" {
            *slot = value.into();
        }
    }
}

/// Sets a field that is absent or null: where an empty string is a choice.
pub(crate) fn set_if_absent(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Value::Object(fields) = object {
        let slot = fields.entry(name).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value.into();
        }
    }
}

/// A field that is an object, if it is there.
pub(crate) fn child<'v>(object: &'v mut Value, name: &str) -> Option<&'v mut Value> {
    object.get_mut(name).filter(|value| value.is_object())
}

/// The objects in a field that is a list.
pub(crate) fn items<'v>(object: &'v mut Value, name: &str) -> impl Iterator<Item = &'v mut Value> {
    object
        .get_mut(name)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter(|item| item.is_object())
}

/// A string field; empty when absent.
pub(crate) fn text<'v>(object: &'v Value, name: &str) -> &'v str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// An empty object.
pub(crate) fn empty() -> Value {
    Value::Object(Map::new())
}

/// Normalizes a built-in object and fills in its defaults. Objects of other kinds stay as they are.
pub fn apply_defaults(gvk: &Gvk, object: &mut Value) {
    let Some(message) = schema::message_of(gvk) else {
        return;
    };
    normalize(gvk, object);
    table_defaults(message, object, 0);
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", _) => match gvk.kind.as_str() {
            "Pod" => pod::pod(object),
            "PodTemplate" => pod::template(object),
            "ReplicationController" => workload::replication_controller(object),
            "Service" => network::service(object),
            "Endpoints" => {}
            _ => cluster::core(&gvk.kind, object),
        },
        ("apps" | "batch" | "autoscaling", _) => workload::workload(&gvk.kind, object),
        ("discovery.k8s.io" | "networking.k8s.io", _) => network::network(&gvk.kind, object),
        (group, kind) => cluster::other(group, kind, object),
    }
}

/// Fills in what the schema tables give a default for.
fn table_defaults(message: &'static Message, value: &mut Value, depth: usize) {
    let Value::Object(fields) = value else {
        return;
    };
    for field in message.fields {
        if let Some(default) = field.default
            && fields.get(field.json_name).is_none_or(Value::is_null)
            && let Ok(default) = serde_json::from_str::<Value>(default)
            && (field.pointer || !is_zero(&default))
        {
            fields.insert(field.json_name.into(), default);
        }
        if let (Some(inner), Some(value)) = (inner_message(field), fields.get_mut(field.json_name))
        {
            each(field, value, |value| {
                if depth < MAX_DEPTH {
                    table_defaults(inner, value, depth + 1);
                }
            });
        }
    }
}

fn inner_message(field: &'static Field) -> Option<&'static Message> {
    match field.kind {
        FieldKind::Message(_) => field.message(),
        _ => None,
    }
}

/// Calls `f` with the value of a field, or with each of its items or map values.
fn each(field: &Field, value: &mut Value, mut f: impl FnMut(&mut Value)) {
    match value {
        Value::Array(items) if field.repeated => items.iter_mut().for_each(f),
        Value::Object(entries) if field.map => entries.values_mut().for_each(f),
        value if !field.repeated && !field.map => f(value),
        _ => {}
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Gives a built-in object the form it has when Go's structs write it. Values of wrong types stay (see
/// [`crate::validation::type_errors`]).
pub fn normalize(gvk: &Gvk, object: &mut Value) {
    if let Some(message) = schema::message_of(gvk) {
        normalize_message(message, object, true, 0);
    }
}

/// `typed`: whether apiVersion and kind say what the value is. Elsewhere they are fields as any other, or strangers.
fn normalize_message(message: &'static Message, value: &mut Value, typed: bool, depth: usize) {
    let Value::Object(fields) = value else {
        return;
    };
    if depth > MAX_DEPTH {
        return;
    }
    fields.retain(|name, value| {
        if typed && matches!(name.as_str(), "apiVersion" | "kind") {
            return true;
        }
        match schema::field(message, name) {
            None => false,
            Some(field) => !is_left_out(field, value),
        }
    });
    for field in message.fields {
        if field.kind == FieldKind::Quantity
            && let Some(value) = fields.get_mut(field.json_name)
        {
            each(field, value, canonical_quantity);
        }
        if !fields.contains_key(field.json_name)
            && let Some(zero) = written_zero(field)
        {
            fields.insert(field.json_name.into(), zero);
        }
        if let Some(value) = fields.get_mut(field.json_name)
            && !(value.is_null() && field.pointer)
        {
            // Storage does not tell an empty list from an absent one.
            if (field.repeated || field.map) && !field.pointer && is_zero(value) {
                *value = Value::Null;
            }
            // Null is the zero value, also of an item.
            let item = field.repeated || field.map;
            each(field, value, |value| {
                if !value.is_null() {
                    return;
                }
                match zero(field.kind) {
                    Some(zero) => *value = zero,
                    None if item && field.kind == FieldKind::Bytes => *value = Value::from(""),
                    None => {}
                }
            });
        }
        if let (Some(inner), Some(value)) = (inner_message(field), fields.get_mut(field.json_name))
        {
            let typed = transcode::embedded_type(message, field.json_name, "").is_some();
            each(field, value, |value| {
                normalize_message(inner, value, typed, depth + 1);
            });
        }
    }
}

/// Spells the amounts in an applied configuration as stored objects do, so that `0.5` is no change of `500m`.
pub(crate) fn canonical_quantities(message: &'static Message, value: &mut Value) {
    canonical_amounts(message, value, 0);
}

fn canonical_amounts(message: &'static Message, value: &mut Value, depth: usize) {
    let Value::Object(fields) = value else {
        return;
    };
    for field in message.fields {
        let Some(value) = fields.get_mut(field.json_name) else {
            continue;
        };
        if field.kind == FieldKind::Quantity {
            each(field, value, canonical_quantity);
        } else if let Some(inner) = inner_message(field)
            && depth < MAX_DEPTH
        {
            each(field, value, |value| {
                canonical_amounts(inner, value, depth + 1)
            });
        }
    }
}

/// Amounts have one spelling: `1000m` is `1`.
fn canonical_quantity(value: &mut Value) {
    let written = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Some(amount) = Quantity::parse(&written) {
        *value = Value::from(amount.to_string());
    }
}

/// Whether Go leaves this value out.
fn is_left_out(field: &Field, value: &Value) -> bool {
    let by_value_struct = !field.repeated
        && !field.map
        && !field.pointer
        && matches!(
            field.kind,
            FieldKind::Message(_) | FieldKind::IntOrString | FieldKind::Quantity
        );
    match value {
        Value::Null => field.omit_empty && !by_value_struct || field.omit_zero,
        _ if field.pointer || !field.omit_empty || by_value_struct => false,
        _ => match field.kind {
            _ if field.repeated || field.map => is_zero(value),
            FieldKind::String | FieldKind::Bool | FieldKind::Bytes => is_zero(value),
            FieldKind::Int32 | FieldKind::Int64 | FieldKind::Double => is_zero(value),
            _ => false,
        },
    }
}

/// What Go writes for a field that was never set; `None` when it leaves it out.
fn written_zero(field: &'static Field) -> Option<Value> {
    if field.omit_zero {
        return None;
    }
    if field.pointer {
        return (!field.omit_empty).then_some(Value::Null);
    }
    if field.repeated || field.map {
        return (!field.omit_empty).then_some(Value::Null);
    }
    match field.kind {
        FieldKind::Message(_)
        | FieldKind::IntOrString
        | FieldKind::Quantity
        | FieldKind::Time
        | FieldKind::MicroTime
        | FieldKind::RawExtension => zero(field.kind).or(Some(Value::Null)),
        FieldKind::Bytes => (!field.omit_empty).then_some(Value::Null),
        _ if field.omit_empty => None,
        _ => zero(field.kind),
    }
}

/// The zero value of a type, where it is another than null.
fn zero(kind: FieldKind) -> Option<Value> {
    Some(match kind {
        FieldKind::Message(_) => empty(),
        FieldKind::IntOrString => Value::from(0),
        FieldKind::Quantity => Value::from("0"),
        FieldKind::String => Value::from(""),
        FieldKind::Bool => Value::from(false),
        FieldKind::Int32 | FieldKind::Int64 | FieldKind::Double => Value::from(0),
        _ => return None,
    })
}
