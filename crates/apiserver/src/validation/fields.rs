//! Required fields and amounts, by the schema tables.

use super::join;
use crate::causes::{invalid, required};
use serde_json::Value;
use yurt_wire::quantity::Quantity;
use yurt_wire::schema::{self, Field, FieldKind, Message};
use yurt_wire::status::Cause;

/// Strings that the API documents call required although an empty one is fine.
const MAY_BE_EMPTY: &[(&str, &str)] = &[
    ("HTTPHeader", "value"),
    ("StatefulSetSpec", "serviceName"),
    ("Condition", "message"),
    ("EndpointPort", "name"),
    ("ServiceAccountTokenProjection", "path"),
    // These have rules of their own, with better words.
    ("RoleRef", "apiGroup"),
    ("Container", "name"),
    ("EphemeralContainer", "name"),
    ("Volume", "name"),
    ("VolumeMount", "name"),
    ("VolumeMount", "mountPath"),
    ("EnvVar", "name"),
    ("EndpointSlice", "addressType"),
    ("LabelSelectorRequirement", "key"),
    ("LabelSelectorRequirement", "operator"),
];

/// Checks that required strings are not empty and that amounts of resources are not negative. Status is what
/// controllers found; it is theirs.
pub(super) fn check_required(message: &'static Message, object: &Value, causes: &mut Vec<Cause>) {
    check(message, object, "", causes);
}

fn check(message: &'static Message, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !value.is_object() {
        return;
    }
    let owner = message.name.rsplit('.').next().unwrap_or(message.name);
    for field in message.fields {
        let name = field.json_name;
        if path.is_empty() && matches!(name, "status" | "metadata") {
            continue;
        }
        let at = join(path, name);
        let inner = value.get(name).unwrap_or(&Value::Null);
        if field.required
            && !field.repeated
            && !field.map
            && field.kind == FieldKind::String
            && inner.as_str().unwrap_or_default().is_empty()
            && !MAY_BE_EMPTY.contains(&(owner, name))
        {
            causes.push(required(&at, ""));
            continue;
        }
        match inner {
            Value::Array(items) if field.repeated => {
                for (i, item) in items.iter().enumerate() {
                    check_single(field, item, &format!("{at}[{i}]"), causes);
                }
            }
            Value::Object(entries) if field.map => {
                for (key, entry) in entries {
                    check_single(field, entry, &format!("{at}[{key}]"), causes);
                }
            }
            single => check_single(field, single, &at, causes),
        }
    }
}

fn check_single(field: &'static Field, value: &Value, at: &str, causes: &mut Vec<Cause>) {
    match field.kind {
        FieldKind::Message(name) => {
            if let Some(message) = field.message().or_else(|| schema::message(name)) {
                check(message, value, at, causes);
            }
        }
        FieldKind::Quantity => {
            if let Some(amount) = value.as_str().and_then(Quantity::parse)
                && amount.is_negative()
            {
                causes.push(invalid(at, value, "must be greater than or equal to 0"));
            }
        }
        _ => {}
    }
}
