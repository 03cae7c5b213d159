//! Schemas of custom resources, from their definitions.

use super::Dialect;
use super::schemas::{Definitions, LIST_META, gvk_extension};
use crate::crd::{Additional, OBJECT_META, Structural};
use crate::resources::Resource;
use serde_json::{Map, Value, json};
use yurt_wire::Gvk;

/// `example.com`, `v1`, `Widget` -> `com.example.v1.Widget`.
fn definition_name(gvk: &Gvk) -> String {
    let mut parts: Vec<&str> = gvk.group.rsplit('.').collect();
    parts.push(&gvk.version);
    parts.push(&gvk.kind);
    parts.join(".")
}

/// A reference to the schema of a custom kind, or of its list.
pub(super) fn reference(resource: &Resource, gvk: &Gvk, definitions: &mut Definitions) -> Value {
    let name = definition_name(gvk);
    if gvk.kind == resource.list_kind {
        let item = reference(resource, &resource.gvk(), definitions);
        let metadata = definitions.reference(LIST_META);
        let list = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": definitions.wrapped(metadata),
                "items": {"type": "array", "items": definitions.wrapped(item)},
            },
            "x-kubernetes-group-version-kind": [gvk_extension(gvk)],
        });
        return definitions.insert(&name, list);
    }
    let structural = resource
        .crd_version()
        .and_then(|version| version.schema.as_ref());
    let v2 = definitions.dialect == Dialect::V2;
    let mut out = match structural {
        // With any property at all, even those every object has, kubectl would refuse the unknown ones.
        Some(structural) if v2 && structural.preserve_unknown => anything(),
        Some(structural) => {
            let mut out = schema(structural, definitions);
            identity(&mut out, definitions);
            out
        }
        None => anything(),
    };
    out.insert(
        "x-kubernetes-group-version-kind".into(),
        json!([gvk_extension(gvk)]),
    );
    definitions.insert(&name, Value::Object(out))
}

/// An object of which no more is known.
fn anything() -> Map<String, Value> {
    Map::from_iter([("type".to_owned(), json!("object"))])
}

/// Adds what every object has.
fn identity(out: &mut Map<String, Value>, definitions: &mut Definitions) {
    let metadata = definitions.reference(OBJECT_META);
    let metadata = definitions.wrapped(metadata);
    let properties = out
        .entry("properties")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(properties) = properties {
        properties.insert("apiVersion".into(), json!({"type": "string"}));
        properties.insert("kind".into(), json!({"type": "string"}));
        properties.insert("metadata".into(), metadata);
    }
}

/// A schema as OpenAPI. In version 2 whatever old clients would misread is left open: they refuse objects whose
/// fields they do not find.
fn schema(structural: &Structural, definitions: &mut Definitions) -> Map<String, Value> {
    let v2 = definitions.dialect == Dialect::V2;
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| {
        out.insert(name.to_owned(), value);
    };
    if let Some(description) = &structural.description {
        put("description", json!(description));
    }
    if structural.preserve_unknown {
        put("x-kubernetes-preserve-unknown-fields", json!(true));
        if v2 {
            return out;
        }
    }
    if structural.int_or_string {
        put("x-kubernetes-int-or-string", json!(true));
        if v2 {
            return out;
        }
    }
    // Version 2 cannot say null: a nullable value stays untyped there.
    if structural.nullable && v2 {
        return out;
    }
    if structural.nullable {
        put("nullable", json!(true));
    }
    if let Some(json_type) = structural.json_type {
        put("type", json!(json_type.as_str()));
    }
    if let Some(default) = &structural.default {
        put("default", default.clone());
    }
    // What may be null is there without being there, which version 2 cannot say either.
    let optional = |name: &str| {
        let property = structural.properties.get(name);
        v2 && property.is_some_and(|property| property.nullable)
    };
    let required: Vec<&String> = structural
        .required
        .iter()
        .filter(|name| !optional(name))
        .collect();
    if !required.is_empty() {
        put("required", json!(required));
    }
    for (name, value) in [
        ("x-kubernetes-list-type", structural.list_type.as_ref()),
        ("x-kubernetes-map-type", structural.map_type.as_ref()),
        ("format", structural.format.as_ref()),
        ("pattern", structural.pattern.as_ref().map(|p| &p.source)),
    ] {
        if let Some(value) = value {
            put(name, json!(value));
        }
    }
    if !structural.list_map_keys.is_empty() {
        put(
            "x-kubernetes-list-map-keys",
            json!(structural.list_map_keys),
        );
    }
    if structural.embedded_resource {
        put("x-kubernetes-embedded-resource", json!(true));
    }
    if !structural.rules.is_empty() {
        put("x-kubernetes-validations", json!(structural.rules));
    }
    for (name, value) in [
        ("minimum", structural.minimum),
        ("maximum", structural.maximum),
        ("multipleOf", structural.multiple_of),
    ] {
        if let Some(value) = value {
            put(name, number(value));
        }
    }
    for (name, value) in [
        ("minLength", structural.min_length),
        ("maxLength", structural.max_length),
        ("minItems", structural.min_items),
        ("maxItems", structural.max_items),
        ("minProperties", structural.min_properties),
        ("maxProperties", structural.max_properties),
    ] {
        if let Some(value) = value {
            put(name, json!(value));
        }
    }
    for (name, flag) in [
        ("exclusiveMinimum", structural.exclusive_minimum),
        ("exclusiveMaximum", structural.exclusive_maximum),
        ("uniqueItems", structural.unique_items),
    ] {
        if flag {
            put(name, json!(true));
        }
    }
    if let Some(values) = &structural.enumeration {
        put("enum", json!(values));
    }
    if let Some(items) = &structural.items {
        put("items", Value::Object(schema(items, definitions)));
    }
    match &structural.additional {
        None => {}
        Some(Additional::Any) => put("additionalProperties", json!(true)),
        Some(Additional::Schema(inner)) => {
            put(
                "additionalProperties",
                Value::Object(schema(inner, definitions)),
            );
        }
    }
    if !structural.properties.is_empty() {
        let properties: Map<String, Value> = structural
            .properties
            .iter()
            .map(|(name, inner)| (name.clone(), Value::Object(schema(inner, definitions))))
            .collect();
        put("properties", Value::Object(properties));
    }
    if !v2 {
        for (name, list) in [
            ("allOf", &structural.all_of),
            ("anyOf", &structural.any_of),
            ("oneOf", &structural.one_of),
        ] {
            if !list.is_empty() {
                let list: Vec<Value> = list
                    .iter()
                    .map(|inner| Value::Object(schema(inner, definitions)))
                    .collect();
                put(name, Value::Array(list));
            }
        }
        if let Some(not) = &structural.not {
            put("not", Value::Object(schema(not, definitions)));
        }
    }
    if structural.embedded_resource {
        identity(&mut out, definitions);
    }
    out
}

/// Bounds are usually whole; they are written as they were.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9.0e15 {
        serde_json::from_str(&format!("{value:.0}")).unwrap_or_else(|_| json!(value))
    } else {
        json!(value)
    }
}
