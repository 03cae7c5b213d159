//! JSON to protobuf, as Go writes it.

use super::scalar;
use crate::{
    Encoding,
    object::Malformed,
    protobuf::{MAX_DEPTH, Writer},
    schema::{Field, FieldKind, Message},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value};

/// What is wrong, and where (`spec.containers[0].image`).
struct Wrong {
    path: String,
    what: String,
}

impl Wrong {
    fn new(what: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            what: what.into(),
        }
    }

    fn expected(what: &str, value: &Value) -> Self {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        Self::new(format!("expected {what}, found {found}"))
    }

    fn within(mut self, outer: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("{outer}{dot}{}", self.path);
        self
    }
}

/// Encodes a bare message.
pub(super) fn encode(message: &'static Message, value: &Value) -> Result<Vec<u8>, Malformed> {
    let mut out = Writer::with_capacity(256);
    Encoder { depth: 0 }
        .message(&mut out, message, value)
        .map_err(|wrong| Malformed {
            encoding: Encoding::Json,
            what: if wrong.path.is_empty() {
                wrong.what
            } else {
                format!("{}: {}", wrong.path, wrong.what)
            },
        })?;
    Ok(out.into_vec())
}

struct Encoder {
    depth: usize,
}

impl Encoder {
    fn message(
        &mut self,
        out: &mut Writer,
        message: &'static Message,
        value: &Value,
    ) -> Result<(), Wrong> {
        if self.depth == MAX_DEPTH {
            return Err(Wrong::new("nested too deeply"));
        }
        let empty = Map::new();
        let object = match value {
            Value::Object(object) => object,
            Value::Null => &empty,
            other => return Err(Wrong::expected("an object", other)),
        };
        self.depth += 1;
        self.fields(out, message, message.wire_order, 0, object)?;
        self.depth -= 1;
        Ok(())
    }

    /// The fields that `order` names, of which all share the first `level` numbers of their path.
    fn fields(
        &mut self,
        out: &mut Writer,
        message: &'static Message,
        order: &[u8],
        level: usize,
        object: &Map<String, Value>,
    ) -> Result<(), Wrong> {
        let parent = |index: &u8| {
            let parents = message.fields[usize::from(*index)].parents;
            parents.get(level).copied().unwrap_or(0)
        };
        for group in order.chunk_by(|a, b| parent(a) != 0 && parent(a) == parent(b)) {
            match parent(&group[0]) {
                0 => {
                    let field = &message.fields[usize::from(group[0])];
                    self.field(out, field, object.get(field.json_name))
                        .map_err(|wrong| wrong.within(field.json_name))?;
                }
                number => out.message(u32::from(number), |out| {
                    self.fields(out, message, group, level + 1, object)
                })?,
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        out: &mut Writer,
        field: &'static Field,
        value: Option<&Value>,
    ) -> Result<(), Wrong> {
        let number = u32::from(field.number);
        match value {
            None | Some(Value::Null) => {
                let absent = field.pointer || field.repeated || field.map;
                // These are nil as they are, without a pointer.
                if !absent && !matches!(field.kind, FieldKind::Bytes | FieldKind::StringList) {
                    self.value(out, field, number, &Value::Null)?;
                }
            }
            Some(Value::Array(items)) if field.repeated => {
                for (index, item) in items.iter().enumerate() {
                    self.value(out, field, number, item)
                        .map_err(|wrong| wrong.within(&format!("[{index}]")))?;
                }
            }
            Some(Value::Object(entries)) if field.map => {
                let mut entries: Vec<_> = entries.iter().collect();
                entries.sort_unstable_by_key(|(key, _)| *key);
                for (key, value) in entries {
                    out.message(number, |out| {
                        out.str(1, key);
                        let nil = value.is_null() && field.kind == FieldKind::Bytes;
                        if nil {
                            Ok(())
                        } else {
                            self.value(out, field, 2, value)
                        }
                    })
                    .map_err(|wrong| wrong.within(&format!("[{key}]")))?;
                }
            }
            Some(other) if field.repeated => return Err(Wrong::expected("a list", other)),
            Some(other) if field.map => return Err(Wrong::expected("an object", other)),
            Some(value) => self.value(out, field, number, value)?,
        }
        Ok(())
    }

    /// One value; null is the zero value.
    fn value(
        &mut self,
        out: &mut Writer,
        field: &'static Field,
        number: u32,
        value: &Value,
    ) -> Result<(), Wrong> {
        match field.kind {
            FieldKind::String => out.str(number, string(value)?),
            FieldKind::Bool => match value {
                Value::Bool(value) => out.bool(number, *value),
                Value::Null => out.bool(number, false),
                other => return Err(Wrong::expected("a boolean", other)),
            },
            FieldKind::Int32 => out.int(number, i64::from(int32(value)?)),
            FieldKind::Int64 => out.int(number, integer(value)?),
            FieldKind::Double => match value {
                Value::Null => out.double(number, 0.0),
                other => out.double(
                    number,
                    other
                        .as_f64()
                        .ok_or_else(|| Wrong::expected("a number", other))?,
                ),
            },
            FieldKind::Bytes => {
                let bytes = BASE64_STANDARD
                    .decode(string(value)?)
                    .map_err(|error| Wrong::new(format!("not base64: {error}")))?;
                out.bytes(number, &bytes);
            }
            FieldKind::Quantity => {
                let text = match value {
                    Value::Null => "0".to_owned(),
                    Value::Number(number) => number.to_string(),
                    Value::String(text) if text.trim().is_empty() => "0".to_owned(),
                    Value::String(text) => text.trim().to_owned(),
                    other => return Err(Wrong::expected("a quantity", other)),
                };
                out.message(number, |out| {
                    out.str(1, &text);
                    Ok::<_, Wrong>(())
                })?;
            }
            FieldKind::IntOrString => {
                let (kind, int, text) = match value {
                    Value::String(text) => (1, 0, text.as_str()),
                    other => (0, int32(other)?, ""),
                };
                out.message(number, |out| {
                    out.int(1, kind);
                    out.int(2, i64::from(int));
                    out.str(3, text);
                    Ok::<_, Wrong>(())
                })?;
            }
            FieldKind::Time | FieldKind::MicroTime => self.time(out, field, number, value)?,
            FieldKind::Duration => {
                let nanos = match value {
                    Value::Null => 0,
                    value => scalar::parse_duration(string(value)?)
                        .ok_or_else(|| Wrong::new("not a duration such as 1h30m"))?,
                };
                out.message(number, |out| {
                    out.int(1, nanos);
                    Ok::<_, Wrong>(())
                })?;
            }
            FieldKind::FieldsV1 | FieldKind::RawExtension | FieldKind::Json => {
                out.message(number, |out| {
                    if !value.is_null() {
                        // serde_json fails on maps with keys that are not strings only.
                        let text = serde_json::to_vec(value)
                            .map_err(|error| Wrong::new(error.to_string()))?;
                        out.bytes(1, &text);
                    }
                    Ok::<_, Wrong>(())
                })?;
            }
            FieldKind::StringList => {
                out.message(number, |out| strings(out, 1, value))?;
            }
            FieldKind::Message(_) => {
                if let Some(message) = field.message() {
                    out.message(number, |out| self.message(out, message, value))?;
                }
            }
            FieldKind::JsonSchemaPropsOrArray
            | FieldKind::JsonSchemaPropsOrBool
            | FieldKind::JsonSchemaPropsOrStringArray => {
                if let Some(message) = field.message() {
                    out.message(number, |out| self.schema_or(out, field, message, value))?;
                }
            }
        }
        Ok(())
    }

    fn time(
        &mut self,
        out: &mut Writer,
        field: &Field,
        number: u32,
        value: &Value,
    ) -> Result<(), Wrong> {
        if value.is_null() {
            out.bytes(number, &[]);
            return Ok(());
        }
        let (seconds, nanos) = scalar::parse_time(string(value)?)
            .ok_or_else(|| Wrong::new("not a time in RFC 3339"))?;
        if (seconds, nanos) == scalar::ZERO {
            out.bytes(number, &[]);
            return Ok(());
        }
        let nanos = if field.kind == FieldKind::MicroTime {
            nanos / 1000 * 1000
        } else {
            0
        };
        out.message(number, |out| {
            out.int(1, seconds);
            out.int(2, i64::from(nanos));
            Ok::<_, Wrong>(())
        })
    }

    /// See the decoder for the three forms.
    fn schema_or(
        &mut self,
        out: &mut Writer,
        field: &Field,
        message: &'static Message,
        value: &Value,
    ) -> Result<(), Wrong> {
        let or_bool = field.kind == FieldKind::JsonSchemaPropsOrBool;
        match value {
            Value::Object(_) if or_bool => {
                out.bool(1, true);
                out.message(2, |out| self.message(out, message, value))
            }
            Value::Object(_) => out.message(1, |out| self.message(out, message, value)),
            Value::Bool(allows) if or_bool => {
                out.bool(1, *allows);
                Ok(())
            }
            Value::Array(items) if field.kind == FieldKind::JsonSchemaPropsOrArray => {
                for (index, item) in items.iter().enumerate() {
                    out.message(2, |out| self.message(out, message, item))
                        .map_err(|wrong| wrong.within(&format!("[{index}]")))?;
                }
                Ok(())
            }
            Value::Array(_) if !or_bool => strings(out, 2, value),
            Value::Null => {
                if or_bool {
                    out.bool(1, false);
                }
                Ok(())
            }
            other => Err(Wrong::expected("a schema", other)),
        }
    }
}

fn strings(out: &mut Writer, number: u32, value: &Value) -> Result<(), Wrong> {
    match value {
        Value::Null => {}
        Value::Array(items) => {
            for item in items {
                out.str(number, string(item)?);
            }
        }
        other => return Err(Wrong::expected("a list of strings", other)),
    }
    Ok(())
}

fn string(value: &Value) -> Result<&str, Wrong> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(""),
        other => Err(Wrong::expected("a string", other)),
    }
}

fn integer(value: &Value) -> Result<i64, Wrong> {
    match value {
        Value::Null => Ok(0),
        Value::Number(number) => number
            .as_i64()
            .ok_or_else(|| Wrong::new(format!("{number} is not a 64-bit integer"))),
        other => Err(Wrong::expected("an integer", other)),
    }
}

fn int32(value: &Value) -> Result<i32, Wrong> {
    let value = integer(value)?;
    i32::try_from(value).map_err(|_| Wrong::new(format!("{value} is not a 32-bit integer")))
}
