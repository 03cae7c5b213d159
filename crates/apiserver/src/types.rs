//! Whether JSON has the types its kind asks for, by the schema tables. Go refuses such input when it decodes; so does
//! this, with the same words, and everything after it may rely on objects being objects and lists being lists.

use crate::{registry::Reply, resources::Resource};
use serde_json::Value;
use yurt_wire::{
    Gvk, Reason, Status,
    schema::{self, Field, FieldKind, Message},
};

/// What a value should have been.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mismatch {
    found: &'static str,
    message: String,
    path: String,
    wanted: String,
}

/// A 400 Status when a value of the object has a type its kind does not allow. Of custom resources only the metadata is
/// checked here.
pub(crate) fn check(resource: &Resource, object: &Value) -> Reply<()> {
    let gvk = resource.gvk();
    let outcome = if resource.custom.is_some() {
        metadata(object)
    } else {
        kind(&gvk, object)
    };
    outcome.map_err(|m| refusal(&gvk, &m))
}

/// As [`check`], of any built-in kind.
pub(crate) fn check_kind(gvk: &Gvk, object: &Value) -> Reply<()> {
    kind(gvk, object).map_err(|m| refusal(gvk, &m))
}

fn refusal(gvk: &Gvk, m: &Mismatch) -> Box<Status> {
    Box::new(Status::new(
        Reason::BadRequest,
        format!(
            "{} in version \"{}\" cannot be handled as a {}: json: cannot unmarshal {} into Go struct field {}.{} of type {}",
            gvk.kind, gvk.version, gvk.kind, m.found, m.message, m.path, m.wanted
        ),
    ))
}

fn kind(gvk: &Gvk, object: &Value) -> Result<(), Mismatch> {
    if !object.is_object() {
        return Err(mismatch(object, &gvk.kind, "", "object"));
    }
    metadata(object)?;
    match schema::message_of(gvk) {
        Some(message) => walk(message, object, &mut String::new()),
        None => Ok(()),
    }
}

/// Metadata is the same for all kinds.
fn metadata(object: &Value) -> Result<(), Mismatch> {
    let metadata = &object["metadata"];
    if !(metadata.is_object() || metadata.is_null()) {
        return Err(mismatch(metadata, "ObjectMeta", "metadata", "object"));
    }
    let pod = Gvk::from_api_version("v1", "Pod");
    let field = schema::message_of(&pod).and_then(|pod| schema::field(pod, "metadata"));
    match field {
        Some(field) => value(field, metadata, "ObjectMeta", &mut "metadata".to_owned()),
        None => Ok(()),
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn mismatch(value: &Value, message: &str, path: &str, wanted: &str) -> Mismatch {
    Mismatch {
        found: name_of(value),
        message: message.rsplit('.').next().unwrap_or(message).to_owned(),
        path: path.to_owned(),
        wanted: wanted.to_owned(),
    }
}

fn walk(message: &Message, object: &Value, path: &mut String) -> Result<(), Mismatch> {
    let Some(fields) = object.as_object() else {
        return Err(mismatch(object, message.name, path, message.name));
    };
    for (name, child) in fields {
        let Some(field) = schema::field(message, name) else {
            continue;
        };
        let length = path.len();
        if length > 0 {
            path.push('.');
        }
        path.push_str(name);
        value(field, child, message.name, path)?;
        path.truncate(length);
    }
    Ok(())
}

fn value(field: &Field, found: &Value, message: &str, path: &mut String) -> Result<(), Mismatch> {
    if found.is_null() {
        return Ok(());
    }
    if field.map {
        let Some(entries) = found.as_object() else {
            return Err(mismatch(found, message, path, "map"));
        };
        return entries
            .values()
            .try_for_each(|entry| scalar(field, entry, message, path));
    }
    if field.repeated {
        let Some(items) = found.as_array() else {
            return Err(mismatch(found, message, path, "list"));
        };
        return items
            .iter()
            .try_for_each(|item| scalar(field, item, message, path));
    }
    scalar(field, found, message, path)
}

fn scalar(field: &Field, found: &Value, message: &str, path: &mut String) -> Result<(), Mismatch> {
    let (fits, wanted) = match field.kind {
        FieldKind::String => (found.is_string(), "string"),
        FieldKind::Bool => (found.is_boolean(), "bool"),
        FieldKind::Int32 => (
            found.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            "int32",
        ),
        FieldKind::Int64 => (found.is_i64() || found.is_u64(), "int64"),
        FieldKind::Double => (found.is_number(), "float64"),
        FieldKind::Bytes => (found.is_string(), "[]uint8"),
        FieldKind::Time | FieldKind::MicroTime => (found.is_string(), "Time"),
        FieldKind::Duration => (found.is_string(), "Duration"),
        FieldKind::Quantity => (found.is_string() || found.is_number(), "Quantity"),
        FieldKind::IntOrString => (found.is_string() || found.is_number(), "IntOrString"),
        FieldKind::StringList => (
            found
                .as_array()
                .is_some_and(|a| a.iter().all(Value::is_string)),
            "[]string",
        ),
        FieldKind::Message(_) => {
            return match field.message() {
                Some(message) if !found.is_null() => walk(message, found, path),
                _ => Ok(()),
            };
        }
        // Free JSON.
        FieldKind::FieldsV1
        | FieldKind::RawExtension
        | FieldKind::Json
        | FieldKind::JsonSchemaPropsOrArray
        | FieldKind::JsonSchemaPropsOrBool
        | FieldKind::JsonSchemaPropsOrStringArray => (true, ""),
    };
    if fits || found.is_null() {
        Ok(())
    } else {
        Err(mismatch(found, message, path, wanted))
    }
}

/// Removes the fields of a built-in object that its kind does not have; their paths. (Types have been checked.)
pub(crate) fn prune(gvk: &Gvk, object: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    if let Some(message) = schema::message_of(gvk) {
        prune_message(message, object, true, "", &mut dropped);
    }
    dropped
}

fn prune_message(
    message: &Message,
    object: &mut Value,
    top: bool,
    path: &str,
    dropped: &mut Vec<String>,
) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    let join = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    fields.retain(|name, _| {
        let known = (top && matches!(name.as_str(), "apiVersion" | "kind"))
            || schema::field(message, name).is_some();
        if !known {
            dropped.push(join(name));
        }
        known
    });
    for (name, child) in fields.iter_mut() {
        let Some(field) = schema::field(message, name) else {
            continue;
        };
        let Some(inner) = field
            .message()
            .filter(|_| matches!(field.kind, FieldKind::Message(_)))
        else {
            continue;
        };
        let path = join(name);
        match child {
            Value::Array(items) if field.repeated => {
                for (i, item) in items.iter_mut().enumerate() {
                    prune_message(inner, item, false, &format!("{path}[{i}]"), dropped);
                }
            }
            Value::Object(entries) if field.map => {
                for (key, entry) in entries.iter_mut() {
                    prune_message(inner, entry, false, &format!("{path}.{key}"), dropped);
                }
            }
            other => prune_message(inner, other, false, &path, dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Gvk {
        Gvk::from_api_version("v1", "Pod")
    }

    #[test]
    fn wrong_types_are_refused_with_the_words_of_go() {
        let refused = |object: Value| check_kind(&pod(), &object).map_err(|s| s.message);
        assert_eq!(
            refused(json!({"metadata": {"name": "a"}, "spec": {"nodeName": 5}})),
            Err("Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field PodSpec.spec.nodeName of type string".into())
        );
        for bad in [
            json!([]),
            json!({"metadata": "x"}),
            json!({"metadata": {"labels": []}}),
            json!({"metadata": {"labels": {"a": 1}}}),
            json!({"metadata": {"finalizers": "x"}}),
            json!({"spec": {"containers": {"name": "x"}}}),
            json!({"spec": {"containers": [3]}}),
            json!({"spec": {"terminationGracePeriodSeconds": "x"}}),
            json!({"status": []}),
        ] {
            assert!(refused(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_recorded_object_fits_its_kind() {
        for mut object in crate::recorded::objects() {
            let gvk = Gvk::from_api_version(
                object["apiVersion"].as_str().unwrap_or_default(),
                object["kind"].as_str().unwrap_or_default(),
            );
            assert_eq!(check_kind(&gvk, &object).map_err(|s| s.message), Ok(()));
            assert_eq!(prune(&gvk, &mut object), Vec::<String>::new());
        }
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let mut object = json!({"apiVersion": "v1", "kind": "Pod", "bar": 1,
            "spec": {"containers": [{"name": "a", "foo": 1, "env": [{"name": "x", "valu": "y"}]}]}});
        assert_eq!(
            prune(&pod(), &mut object),
            [
                "bar",
                "spec.containers[0].foo",
                "spec.containers[0].env[0].valu"
            ]
        );
        assert!(object.get("bar").is_none());
        assert_eq!(prune(&pod(), &mut object), Vec::<String>::new());
    }
}
