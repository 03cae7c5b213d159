//! The protobuf form of an OpenAPI 2 document, as gnostic defines it (`openapiv2/OpenAPIv2.proto`). Field numbers are
//! facts of that definition.

use serde_json::{Map, Value};
use std::convert::Infallible;
use yurt_wire::protobuf::Writer;

/// Writes a nested message.
fn message(out: &mut Writer, number: u32, body: impl FnOnce(&mut Writer)) {
    let Ok(()) = out.message::<Infallible>(number, |inner| {
        body(inner);
        Ok(())
    });
}

fn text(out: &mut Writer, number: u32, value: Option<&Value>) {
    if let Some(text) = value.and_then(Value::as_str)
        && !text.is_empty()
    {
        out.str(number, text);
    }
}

fn texts(out: &mut Writer, number: u32, value: Option<&Value>) {
    for text in value.and_then(Value::as_array).into_iter().flatten() {
        out.str(number, text.as_str().unwrap_or_default());
    }
}

fn flag(out: &mut Writer, number: u32, value: Option<&Value>) {
    if value == Some(&Value::Bool(true)) {
        out.bool(number, true);
    }
}

fn whole(out: &mut Writer, number: u32, value: Option<&Value>) {
    if let Some(value) = value.and_then(Value::as_i64) {
        out.int(number, value);
    }
}

fn double(out: &mut Writer, number: u32, value: Option<&Value>) {
    if let Some(value) = value.and_then(Value::as_f64) {
        out.double(number, value);
    }
}

/// `Any`: field 2 is YAML, of which JSON is a part.
fn any(out: &mut Writer, number: u32, value: &Value) {
    message(out, number, |out| out.str(2, &value.to_string()));
}

/// `NamedX {name = 1, value = 2}`.
fn named(out: &mut Writer, number: u32, name: &str, value: impl FnOnce(&mut Writer)) {
    message(out, number, |out| {
        out.str(1, name);
        message(out, 2, value);
    });
}

fn extensions(out: &mut Writer, number: u32, fields: &Map<String, Value>) {
    for (name, value) in fields.iter().filter(|(name, _)| name.starts_with("x-")) {
        named(out, number, name, |out| out.str(2, &value.to_string()));
    }
}

fn entries(value: Option<&Value>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    value
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name, value.as_object()?)))
}

/// A whole document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Writer::new();
    text(&mut out, 1, document.get("swagger"));
    if let Some(info) = document.get("info") {
        message(&mut out, 2, |out| {
            text(out, 1, info.get("title"));
            text(out, 2, info.get("version"));
        });
    }
    message(&mut out, 8, |out| {
        for (path, item) in entries(document.get("paths")) {
            named(out, 2, path, |out| path_item(out, item));
        }
    });
    message(&mut out, 9, |out| {
        for (name, definition) in entries(document.get("definitions")) {
            named(out, 1, name, |out| schema(out, definition));
        }
    });
    out.into_vec()
}

fn path_item(out: &mut Writer, item: &Map<String, Value>) {
    for (number, verb) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (8, "patch"),
    ] {
        if let Some(Value::Object(written)) = item.get(verb) {
            message(out, number, |out| operation(out, written));
        }
    }
    parameters(out, 9, item.get("parameters"));
}

fn operation(out: &mut Writer, operation: &Map<String, Value>) {
    texts(out, 1, operation.get("tags"));
    text(out, 5, operation.get("operationId"));
    texts(out, 6, operation.get("produces"));
    texts(out, 7, operation.get("consumes"));
    parameters(out, 8, operation.get("parameters"));
    message(out, 9, |out| {
        for (code, response) in entries(operation.get("responses")) {
            named(out, 1, code, |out| {
                // ResponseValue.response
                message(out, 1, |out| {
                    text(out, 1, response.get("description"));
                    if let Some(Value::Object(body)) = response.get("schema") {
                        // SchemaItem.schema
                        message(out, 2, |out| message(out, 1, |out| schema(out, body)));
                    }
                });
            });
        }
    });
    extensions(out, 13, operation);
}

fn parameters(out: &mut Writer, number: u32, list: Option<&Value>) {
    for parameter in list.and_then(Value::as_array).into_iter().flatten() {
        // ParametersItem.parameter
        message(out, number, |out| {
            message(out, 1, |out| self::parameter(out, parameter));
        });
    }
}

fn parameter(out: &mut Writer, parameter: &Value) {
    let place = parameter.get("in").and_then(Value::as_str);
    if place == Some("body") {
        message(out, 1, |out| {
            text(out, 2, parameter.get("name"));
            text(out, 3, parameter.get("in"));
            flag(out, 4, parameter.get("required"));
            if let Some(Value::Object(body)) = parameter.get("schema") {
                message(out, 5, |out| schema(out, body));
            }
        });
        return;
    }
    // NonBodyParameter: query parameters are its field 3, path parameters its field 4; they differ in where the
    // type and the uniqueness stand.
    let (kind, of, unique) = if place == Some("query") {
        (3, 6, 20)
    } else {
        (4, 5, 19)
    };
    message(out, 2, |out| {
        message(out, kind, |out| {
            flag(out, 1, parameter.get("required"));
            text(out, 2, parameter.get("in"));
            text(out, 4, parameter.get("name"));
            text(out, of, parameter.get("type"));
            flag(out, unique, parameter.get("uniqueItems"));
        });
    });
}

fn schema(out: &mut Writer, fields: &Map<String, Value>) {
    text(out, 1, fields.get("$ref"));
    text(out, 2, fields.get("format"));
    text(out, 4, fields.get("description"));
    if let Some(default) = fields.get("default") {
        any(out, 5, default);
    }
    double(out, 6, fields.get("multipleOf"));
    double(out, 7, fields.get("maximum"));
    flag(out, 8, fields.get("exclusiveMaximum"));
    double(out, 9, fields.get("minimum"));
    flag(out, 10, fields.get("exclusiveMinimum"));
    whole(out, 11, fields.get("maxLength"));
    whole(out, 12, fields.get("minLength"));
    text(out, 13, fields.get("pattern"));
    whole(out, 14, fields.get("maxItems"));
    whole(out, 15, fields.get("minItems"));
    flag(out, 16, fields.get("uniqueItems"));
    whole(out, 17, fields.get("maxProperties"));
    whole(out, 18, fields.get("minProperties"));
    texts(out, 19, fields.get("required"));
    for value in fields
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        any(out, 20, value);
    }
    match fields.get("additionalProperties") {
        Some(Value::Object(inner)) => {
            message(out, 21, |out| message(out, 1, |out| schema(out, inner)));
        }
        Some(Value::Bool(open)) => message(out, 21, |out| out.bool(2, *open)),
        _ => {}
    }
    if let Some(Value::String(name)) = fields.get("type") {
        message(out, 22, |out| out.str(1, name));
    }
    if let Some(Value::Object(items)) = fields.get("items") {
        message(out, 23, |out| message(out, 1, |out| schema(out, items)));
    }
    for part in fields
        .get("allOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
    {
        message(out, 24, |out| schema(out, part));
    }
    if fields.contains_key("properties") {
        message(out, 25, |out| {
            for (name, property) in entries(fields.get("properties")) {
                named(out, 1, name, |out| schema(out, property));
            }
        });
    }
    extensions(out, 31, fields);
}
