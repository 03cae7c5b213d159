//! Validating values by a schema, with the words of kube-apiserver.

use super::format::check_format;
use super::prune::join;
use super::structural::{JsonType, Structural};
use crate::causes::{
    duplicate, invalid, not_supported, required, too_long, too_many, type_invalid,
};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use yurt_wire::status::Cause;

/// More causes than this help nobody; kube-apiserver's answers are bounded by its request size alone.
const MAX_CAUSES: usize = 500;

impl Structural {
    /// What is wrong with a custom resource. Parts that are unchanged since `old` are not held against the writer
    /// (validation ratcheting), so that a tightened schema does not lock existing objects.
    ///
    /// Rules ([`Structural::rules`]) are run after this, when the value is known to fit its types.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = Vec::new();
        validate(self, object, old, "", Mode::Resource, &mut causes);
        causes
    }

    /// Validates a part, such as a default, at `path`.
    pub(crate) fn validate_part(&self, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        validate(self, value, None, path, mode_of(self), causes);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The whole object: metadata is validated elsewhere.
    Resource,
    Embedded,
    Part,
}

fn mode_of(schema: &Structural) -> Mode {
    if schema.embedded_resource {
        Mode::Embedded
    } else {
        Mode::Part
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if is_integer(number) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integer(number: &serde_json::Number) -> bool {
    number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|f| f.fract() == 0.0)
}

fn fits(value: &Value, json_type: JsonType) -> bool {
    match (json_type, value) {
        (JsonType::Object, Value::Object(_))
        | (JsonType::Array, Value::Array(_))
        | (JsonType::String, Value::String(_))
        | (JsonType::Boolean, Value::Bool(_))
        | (JsonType::Number, Value::Number(_)) => true,
        (JsonType::Integer, Value::Number(number)) => is_integer(number),
        _ => false,
    }
}

fn wrong_type(path: &str, expected: &str, value: &Value) -> Cause {
    let got = type_of(value);
    type_invalid(
        path,
        &Value::from(got),
        &format!("{path} in body must be of type {expected}: {got:?}"),
    )
}

fn validate(
    schema: &Structural,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    mode: Mode,
    causes: &mut Vec<Cause>,
) {
    if old == Some(value) || causes.len() >= MAX_CAUSES {
        return;
    }
    if value.is_null() {
        // Below allOf and its kin nothing says whether null is fine; the schema around does.
        let open = schema.json_type.is_none() && !schema.int_or_string;
        if !schema.nullable && !open {
            let expected = match schema.json_type {
                Some(json_type) => json_type.as_str(),
                None => "integer,string",
            };
            causes.push(wrong_type(path, expected, value));
        }
        return;
    }
    if let Some(json_type) = schema.json_type
        && !fits(value, json_type)
    {
        causes.push(wrong_type(path, json_type.as_str(), value));
        return;
    }
    if schema.int_or_string && !fits(value, JsonType::Integer) && !fits(value, JsonType::String) {
        causes.push(wrong_type(path, "integer,string", value));
        return;
    }
    if let Some(allowed) = &schema.enumeration
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed
            .iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect();
        causes.push(not_supported(path, value, &allowed));
    }
    match value {
        Value::String(text) => check_string(schema, text, path, causes),
        Value::Number(number) => check_number(schema, number, path, causes),
        Value::Array(items) => check_array(schema, items, old, path, causes),
        Value::Object(fields) => check_object(schema, fields, old, path, mode, causes),
        Value::Null | Value::Bool(_) => {}
    }
    check_logic(schema, value, path, mode, causes);
}

fn check_string(schema: &Structural, text: &str, path: &str, causes: &mut Vec<Cause>) {
    let value = Value::from(text);
    if schema.max_length.is_some() || schema.min_length.is_some() {
        let length = text.chars().count() as u64;
        if let Some(max) = schema.max_length.filter(|max| length > *max) {
            causes.push(too_long(path, max));
        }
        if let Some(min) = schema.min_length.filter(|min| length < *min) {
            causes.push(invalid(
                path,
                &value,
                &format!("{path} in body should be at least {min} chars long"),
            ));
        }
    }
    if let Some(pattern) = &schema.pattern
        && !pattern.regex.is_match(text)
    {
        causes.push(invalid(
            path,
            &value,
            &format!("{path} in body should match '{}'", pattern.source),
        ));
    }
    if let Some(format) = &schema.format
        && !check_format(format, text)
    {
        causes.push(type_invalid(
            path,
            &value,
            &format!("{path} in body must be of type {format}: {text:?}"),
        ));
    }
}

fn check_number(
    schema: &Structural,
    number: &serde_json::Number,
    path: &str,
    causes: &mut Vec<Cause>,
) {
    let Some(float) = number.as_f64() else {
        return;
    };
    let value = Value::Number(number.clone());
    let mut say =
        |what: String| causes.push(invalid(path, &value, &format!("{path} in body {what}")));
    if let Some(max) = schema.maximum {
        if schema.exclusive_maximum && float >= max {
            say(format!("should be less than {max}"));
        } else if float > max {
            say(format!("should be less than or equal to {max}"));
        }
    }
    if let Some(min) = schema.minimum {
        if schema.exclusive_minimum && float <= min {
            say(format!("should be greater than {min}"));
        } else if float < min {
            say(format!("should be greater than or equal to {min}"));
        }
    }
    if let Some(step) = schema.multiple_of {
        let quotient = float / step;
        if (quotient - quotient.round()).abs() > 1e-9 * quotient.abs().max(1.0) {
            say(format!("should be a multiple of {step}"));
        }
    }
    let in_range = match schema.format.as_deref() {
        Some("int32") => number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        Some("int64") => number.is_i64() || (number.is_f64() && float.abs() < 9.3e18),
        Some("float") => float.abs() <= f64::from(f32::MAX),
        _ => true,
    };
    if !in_range {
        let format = schema.format.as_deref().unwrap_or_default();
        say(format!("must be of type {format}: {number}"));
    }
}

fn check_array(
    schema: &Structural,
    items: &[Value],
    old: Option<&Value>,
    path: &str,
    causes: &mut Vec<Cause>,
) {
    let length = items.len() as u64;
    if let Some(max) = schema.max_items.filter(|max| length > *max) {
        causes.push(too_many(path, items.len(), max));
        // A list far over its bound is not worth a look at each item.
        return;
    }
    if let Some(min) = schema.min_items.filter(|min| length < *min) {
        causes.push(invalid(
            path,
            &Value::from(length),
            &format!("{path} in body should have at least {min} items"),
        ));
    }
    if schema.unique_items {
        let mut seen = BTreeSet::new();
        if items.iter().any(|item| !seen.insert(item.to_string())) {
            causes.push(invalid(
                path,
                &Value::Array(items.to_vec()),
                &format!("{path} in body shouldn't contain duplicates"),
            ));
        }
    }
    let keyed = schema.list_type.as_deref() == Some("map");
    let key_of = |item: &Value| -> Option<Value> {
        let fields = item.as_object()?;
        let mut key = Map::new();
        for name in &schema.list_map_keys {
            if let Some(value) = fields.get(name) {
                key.insert(name.clone(), value.clone());
            }
        }
        Some(Value::Object(key))
    };
    if keyed || schema.list_type.as_deref() == Some("set") {
        let mut seen = BTreeSet::new();
        for (i, item) in items.iter().enumerate() {
            let Some(key) = (if keyed {
                key_of(item)
            } else {
                Some(item.clone())
            }) else {
                continue;
            };
            if !seen.insert(key.to_string()) {
                causes.push(duplicate(&format!("{path}[{i}]"), &key));
            }
        }
    }
    if let Some(child) = &schema.items {
        let olds = old.and_then(Value::as_array);
        for (i, item) in items.iter().enumerate() {
            // Only items with keys can be told to be the same item as before.
            let old = olds.filter(|_| keyed).and_then(|olds| {
                let key = key_of(item)?;
                olds.iter().find(|old| key_of(old).as_ref() == Some(&key))
            });
            validate(
                child,
                item,
                old,
                &format!("{path}[{i}]"),
                mode_of(child),
                causes,
            );
        }
    }
}

fn check_object(
    schema: &Structural,
    fields: &Map<String, Value>,
    old: Option<&Value>,
    path: &str,
    mode: Mode,
    causes: &mut Vec<Cause>,
) {
    let length = fields.len() as u64;
    if let Some(max) = schema.max_properties.filter(|max| length > *max) {
        causes.push(too_many(path, fields.len(), max));
    }
    if let Some(min) = schema.min_properties.filter(|min| length < *min) {
        causes.push(invalid(
            path,
            &Value::from(length),
            &format!("{path} in body should have at least {min} properties"),
        ));
    }
    for name in &schema.required {
        if !fields.contains_key(name) {
            causes.push(required(&join(path, name), ""));
        }
    }
    if mode == Mode::Embedded {
        for name in ["apiVersion", "kind"] {
            let at = join(path, name);
            match fields.get(name) {
                None => causes.push(required(&at, "must not be empty")),
                Some(Value::String(text)) if text.is_empty() => {
                    causes.push(required(&at, "must not be empty"));
                }
                Some(Value::String(_)) => {}
                Some(other) => causes.push(wrong_type(&at, "string", other)),
            }
        }
    }
    for (name, inner) in fields {
        let identity = mode != Mode::Part && matches!(name.as_str(), "apiVersion" | "kind");
        if identity {
            continue;
        }
        if let Some(child) = schema.property(name) {
            let old = old.and_then(|old| old.get(name));
            validate(child, inner, old, &join(path, name), mode_of(child), causes);
        }
    }
}

fn is_valid(schema: &Structural, value: &Value, path: &str, mode: Mode) -> bool {
    let mut causes = Vec::new();
    validate(schema, value, None, path, mode, &mut causes);
    causes.is_empty()
}

fn check_logic(
    schema: &Structural,
    value: &Value,
    path: &str,
    mode: Mode,
    causes: &mut Vec<Cause>,
) {
    let mut say = |what: String| causes.push(invalid(path, value, &what));
    if !schema.any_of.is_empty() && !schema.any_of.iter().any(|s| is_valid(s, value, path, mode)) {
        say(format!(
            "{path:?} must validate at least one schema (anyOf)"
        ));
    }
    if !schema.one_of.is_empty() {
        let valid = schema
            .one_of
            .iter()
            .filter(|s| is_valid(s, value, path, mode))
            .count();
        match valid {
            0 => say(format!(
                "{path:?} must validate one and only one schema (oneOf). Found none valid"
            )),
            1 => {}
            n => say(format!(
                "{path:?} must validate one and only one schema (oneOf). Found {n} valid alternatives"
            )),
        }
    }
    if let Some(not) = &schema.not
        && is_valid(not, value, path, mode)
    {
        say(format!("{path:?} must not validate the schema (not)"));
    }
    if !schema.all_of.is_empty() {
        let mut inner = Vec::new();
        for part in &schema.all_of {
            validate(part, value, None, path, mode, &mut inner);
        }
        if !inner.is_empty() {
            causes.push(invalid(
                path,
                value,
                &format!("{path:?} must validate all the schemas (allOf)"),
            ));
            causes.extend(inner);
        }
    }
}
