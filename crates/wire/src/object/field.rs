//! One field of an object, as field selectors ask for it.

use super::Object;
use crate::{
    Encoding, Gvk, json,
    protobuf::{Envelope, Reader, WireField, WireValue},
    schema::{self, Field, FieldKind, Message},
    transcode::scalar,
};
use serde_json::value::RawValue;

pub(super) fn read(object: &Object, path: &str) -> Option<String> {
    match object.encoding {
        Encoding::Protobuf => {
            let envelope = Envelope::open(&object.bytes).ok()?;
            match path {
                "apiVersion" => Some(envelope.api_version.to_owned()),
                "kind" => Some(envelope.kind.to_owned()),
                _ => {
                    let gvk = envelope.gvk();
                    let message = schema::message_of(&gvk)?;
                    let read = |path: &str| in_message(message, Some(envelope.raw), path);
                    renamed(&gvk, path, read).or_else(|| read(path))
                }
            }
        }
        Encoding::Json => {
            let read = |path: &str| in_json(&object.bytes, path);
            let value = read(path);
            if value.as_ref().is_some_and(|value| !value.is_empty()) {
                return value;
            }
            // Absent: a built-in kind may still have a value there, or call the field otherwise.
            let (api_version, kind) = (read("apiVersion")?, read("kind")?);
            let gvk = Gvk::from_api_version(&api_version, &kind);
            let zero = |path: &str| in_message(schema::message_of(&gvk)?, None, path);
            renamed(&gvk, path, |path| {
                read(path)
                    .filter(|value| !value.is_empty())
                    .or_else(|| zero(path))
            })
            .or_else(|| zero(path))
            .or(value)
        }
    }
}

/// The selectable fields that are called otherwise in the object: an event's `source`, a job's
/// `status.successful`.
fn renamed(gvk: &Gvk, path: &str, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    match (gvk.group.as_str(), gvk.kind.as_str(), path) {
        ("", "Event", "source") => read("source.component")
            .filter(|component| !component.is_empty())
            .or_else(|| read("reportingComponent")),
        ("batch", "Job", "status.successful") => read("status.succeeded"),
        _ => None,
    }
}

fn in_json(text: &[u8], path: &str) -> Option<String> {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    let Some(value) = json::member(text, name).ok()? else {
        return Some(String::new());
    };
    match (value.get().as_bytes().first()?, rest) {
        (b'n', _) => Some(String::new()),
        (b'{', rest) if !rest.is_empty() => in_json(value.get().as_bytes(), rest),
        (b'{' | b'[', _) => None,
        (_, "") => scalar_text(value),
        _ => None,
    }
}

fn scalar_text(value: &RawValue) -> Option<String> {
    if value.get().starts_with('"') {
        serde_json::from_str(value.get()).ok()
    } else {
        Some(value.get().to_owned())
    }
}

/// `raw` is `None` where the message is absent, but its type says what its fields would be.
fn in_message(message: &'static Message, raw: Option<&[u8]>, path: &str) -> Option<String> {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    let field = schema::field(message, name)?;
    if field.repeated || field.map {
        return None;
    }
    let found = match raw {
        Some(raw) => find(raw, field).ok()?,
        None => None,
    };
    if rest.is_empty() {
        return print(field, found.as_ref());
    }
    let inner = field.message()?;
    match found {
        Some(found) => in_message(inner, Some(found.bytes().ok()?), rest),
        // Beyond a nil pointer there is nothing, not even a zero.
        None if field.pointer => in_message(inner, None, rest).map(|_| String::new()),
        None => in_message(inner, None, rest),
    }
}

/// The last occurrence of a field, within the structs that Go inlines.
fn find<'a>(
    raw: &'a [u8],
    field: &Field,
) -> Result<Option<WireField<'a>>, crate::object::Malformed> {
    let mut found: Option<WireField<'a>> = None;
    for (level, number) in field.path().enumerate() {
        let container = match (&found, level) {
            (_, 0) => raw,
            (Some(outer), _) => outer.bytes()?,
            (None, _) => return Ok(None),
        };
        found = None;
        let mut fields = Reader::new(container);
        while let Some(field) = fields.next_field()? {
            if field.number == u32::from(number) {
                found = Some(field);
            }
        }
    }
    Ok(found)
}

fn print(field: &Field, found: Option<&WireField<'_>>) -> Option<String> {
    let Some(found) = found else {
        return match field.kind {
            FieldKind::Message(_) | FieldKind::RawExtension | FieldKind::StringList => None,
            _ if field.pointer => Some(String::new()),
            FieldKind::Bool => Some("false".to_owned()),
            FieldKind::Int32 | FieldKind::Int64 => Some("0".to_owned()),
            _ => Some(String::new()),
        };
    };
    match (field.kind, found.value) {
        (FieldKind::String, WireValue::Bytes(text)) => {
            Some(String::from_utf8_lossy(text).into_owned())
        }
        (FieldKind::Bool, WireValue::Varint(value)) => Some((value != 0).to_string()),
        (FieldKind::Int32, WireValue::Varint(value)) => {
            Some((value.cast_signed() as i32).to_string())
        }
        (FieldKind::Int64, WireValue::Varint(value)) => Some(value.cast_signed().to_string()),
        (FieldKind::Time, WireValue::Bytes(time)) => {
            Some(scalar::read_time(time).ok()?.unwrap_or_default())
        }
        _ => None,
    }
}
