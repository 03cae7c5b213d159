//! What Go's JSON decoder says about a body: wrong types are errors, unknown and duplicate fields are complaints of
//! strict field validation.

use base64::Engine;
use jiff::Timestamp;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use yurt_wire::Gvk;
use yurt_wire::quantity::Quantity;
use yurt_wire::schema::{self, Field, FieldKind, Message};

/// kube-apiserver reports at most this many complaints about one body.
const MAX_COMPLAINTS: usize = 100;

/// Checks the JSON types of a built-in object. The error is the message of the 400 Status.
pub fn type_errors(gvk: &Gvk, value: &Value) -> Result<(), String> {
    let Some(message) = schema::message_of(gvk) else {
        return Ok(());
    };
    let (kind, version) = (&gvk.kind, &gvk.version);
    check_message(message, value, "", kind, true).map_err(|why| {
        format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}")
    })
}

fn short(message: &Message) -> &'static str {
    message.name.rsplit('.').next().unwrap_or(message.name)
}

fn json_kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        // The decoder shows the number where only its form is wrong.
        Value::Number(number) => format!("number {number}"),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

fn go_type(kind: FieldKind) -> String {
    match kind {
        FieldKind::String => "string".into(),
        FieldKind::Bool => "bool".into(),
        FieldKind::Int32 => "int32".into(),
        FieldKind::Int64 => "int64".into(),
        FieldKind::Double => "float64".into(),
        FieldKind::Bytes => "[]uint8".into(),
        FieldKind::StringList => "[]string".into(),
        FieldKind::Message(name) => {
            // `io.k8s.api.core.v1.PodSpec` -> `v1.PodSpec`.
            let mut parts: Vec<&str> = name.rsplitn(3, '.').take(2).collect();
            parts.reverse();
            parts.join(".")
        }
        other => format!("v1.{other:?}"),
    }
}

fn mismatch(value: &Value, owner: &str, path: &str, expected: &str) -> String {
    let got = match value {
        Value::Number(_) if !matches!(expected, "int32" | "int64") => "number".into(),
        other => json_kind(other),
    };
    format!("json: cannot unmarshal {got} into Go struct field {owner}.{path} of type {expected}")
}

fn join(path: &str, name: &str) -> String {
    super::join(path, name)
}

fn check_message(
    message: &'static Message,
    value: &Value,
    path: &str,
    owner: &str,
    resource: bool,
) -> Result<(), String> {
    let fields = match value {
        Value::Null => return Ok(()),
        Value::Object(fields) => fields,
        other if path.is_empty() => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type {}",
                json_kind(other),
                go_type(FieldKind::Message(message.name))
            ));
        }
        other => {
            let expected = go_type(FieldKind::Message(message.name));
            return Err(mismatch(other, owner, path, &expected));
        }
    };
    for (name, inner) in fields {
        let Some(field) = schema::field(message, name) else {
            if resource && matches!(name.as_str(), "apiVersion" | "kind") && !inner.is_string() {
                return Err(mismatch(inner, short(message), name, "string"));
            }
            continue;
        };
        check_field(field, inner, &join(path, name), short(message))?;
    }
    Ok(())
}

fn check_field(
    field: &'static Field,
    value: &Value,
    path: &str,
    owner: &str,
) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    if field.repeated {
        let Value::Array(items) = value else {
            return Err(mismatch(
                value,
                owner,
                path,
                &format!("[]{}", go_type(field.kind)),
            ));
        };
        return items
            .iter()
            .try_for_each(|item| check_single(field, item, path, owner));
    }
    if field.map {
        let Value::Object(entries) = value else {
            let expected = format!("map[string]{}", go_type(field.kind));
            return Err(mismatch(value, owner, path, &expected));
        };
        return entries
            .values()
            .try_for_each(|entry| check_single(field, entry, path, owner));
    }
    check_single(field, value, path, owner)
}

fn check_single(
    field: &'static Field,
    value: &Value,
    path: &str,
    owner: &str,
) -> Result<(), String> {
    let fits = match (field.kind, value) {
        (_, Value::Null) => true,
        (FieldKind::Message(_), value) => {
            return match field.message() {
                Some(message) => check_message(message, value, path, owner, false),
                None => Ok(()),
            };
        }
        (FieldKind::String | FieldKind::Duration, Value::String(_))
        | (FieldKind::Bool, Value::Bool(_))
        | (FieldKind::Double, Value::Number(_)) => true,
        (FieldKind::Int32, Value::Number(n)) => {
            n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
        }
        (FieldKind::Int64, Value::Number(n)) => n.is_i64(),
        (FieldKind::Bytes, Value::String(text)) => {
            return base64::engine::general_purpose::STANDARD
                .decode(text)
                .map(|_| ())
                .map_err(|_| "illegal base64 data at input byte 0".into());
        }
        (FieldKind::StringList, Value::Array(items)) => items.iter().all(Value::is_string),
        (FieldKind::Quantity, Value::String(text)) => return check_quantity(text),
        (FieldKind::Quantity, Value::Number(number)) => {
            return check_quantity(&number.to_string());
        }
        (FieldKind::IntOrString, Value::String(_)) => true,
        (FieldKind::IntOrString, Value::Number(n)) => {
            n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
        }
        (FieldKind::Time | FieldKind::MicroTime, Value::String(text)) => {
            return text.parse::<Timestamp>().map(|_| ()).map_err(|_| {
                format!(
                    "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
                )
            });
        }
        (FieldKind::FieldsV1, value) => value.is_object(),
        (
            FieldKind::RawExtension
            | FieldKind::Json
            | FieldKind::JsonSchemaPropsOrArray
            | FieldKind::JsonSchemaPropsOrBool
            | FieldKind::JsonSchemaPropsOrStringArray,
            _,
        ) => true,
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        Err(mismatch(value, owner, path, &go_type(field.kind)))
    }
}

fn check_quantity(text: &str) -> Result<(), String> {
    match Quantity::parse(text) {
        Some(_) => Ok(()),
        None => Err(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .into(),
        ),
    }
}

/// Strict field validation of a built-in object: `unknown field "spec.foo"`, and from the body as sent
/// `duplicate field "spec.x"`.
pub fn unknown_fields(gvk: &Gvk, value: &Value, raw: Option<&[u8]>) -> Vec<String> {
    let mut strange = Vec::new();
    if let Some(message) = schema::message_of(gvk) {
        unknown(message, value, "", true, &mut strange);
    }
    let Some(raw) = raw else {
        return strange;
    };
    let complaints: BTreeSet<String> = strange.iter().cloned().collect();
    match in_order(raw, &complaints) {
        Some(both) => both,
        None => duplicate_yaml_field(raw)
            .into_iter()
            .chain(strange)
            .collect(),
    }
}

fn unknown(
    message: &'static Message,
    value: &Value,
    path: &str,
    resource: bool,
    out: &mut Vec<String>,
) {
    let Value::Object(fields) = value else {
        return;
    };
    for (name, inner) in fields {
        if resource && matches!(name.as_str(), "apiVersion" | "kind") {
            continue;
        }
        if out.len() >= MAX_COMPLAINTS {
            return;
        }
        let at = join(path, name);
        let Some(field) = schema::field(message, name) else {
            out.push(format!("unknown field {at:?}"));
            continue;
        };
        let (FieldKind::Message(_), Some(child)) = (field.kind, field.message()) else {
            continue;
        };
        // Embedded objects (claim templates) name their type too.
        let resource = schema::field(child, "metadata").is_some();
        match inner {
            Value::Array(items) if field.repeated => {
                for (i, item) in items.iter().enumerate() {
                    unknown(child, item, &format!("{at}[{i}]"), resource, out);
                }
            }
            Value::Object(entries) if field.map => {
                for (key, entry) in entries {
                    unknown(child, entry, &join(&at, key), resource, out);
                }
            }
            single => unknown(child, single, &at, resource, out),
        }
    }
}

/// The fields that a JSON or YAML body gives more than once. Of a YAML body, the first of them.
pub fn duplicate_fields(raw: &[u8]) -> Vec<String> {
    in_order(raw, &BTreeSet::new())
        .unwrap_or_else(|| duplicate_yaml_field(raw).into_iter().collect())
}

/// The fields that a JSON body gives more than once, and which of the complaints `unknown` it earns, as they stand in it.
/// `None` for a body that is not JSON.
fn in_order(raw: &[u8], unknown: &BTreeSet<String>) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(raw);
    let walk = Walk {
        path: String::new(),
        unknown,
        out: &mut out,
    };
    walk.deserialize(&mut deserializer).ok().map(|()| out)
}

/// As the YAML decoder of kube-apiserver puts it.
fn duplicate_yaml_field(raw: &[u8]) -> Option<String> {
    let parsed = serde_saphyr::from_slice::<Value>(raw);
    // Malformed bodies are refused elsewhere.
    let error = parsed.err()?;
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key, location } => Some(format!(
            "yaml: unmarshal errors:\n  line {}: key {:?} already set in map",
            location.line(),
            key.as_deref().unwrap_or_default()
        )),
        _ => None,
    }
}

struct Walk<'o> {
    path: String,
    unknown: &'o BTreeSet<String>,
    out: &'o mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = join(&self.path, &name);
            let complaint = if seen.insert(name) {
                let unknown = format!("unknown field {path:?}");
                self.unknown.contains(&unknown).then_some(unknown)
            } else {
                Some(format!("duplicate field {path:?}"))
            };
            if self.out.len() < MAX_COMPLAINTS {
                self.out.extend(complaint);
            }
            map.next_value_seed(Walk {
                path,
                unknown: self.unknown,
                out: self.out,
            })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut index = 0;
        while seq
            .next_element_seed(Walk {
                path: format!("{}[{index}]", self.path),
                unknown: self.unknown,
                out: self.out,
            })?
            .is_some()
        {
            index += 1;
        }
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }
}
