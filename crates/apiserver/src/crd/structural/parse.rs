//! Reading a schema and checking that it is structural.

use super::{Additional, JsonType, Pattern, Structural};
use crate::causes::{forbidden, invalid, not_supported, required};
use crate::crd::rules;
use regex::Regex;
use serde_json::{Map, Value};
use yurt_wire::status::Cause;

/// Deepest schema that is read.
const MAX_DEPTH: usize = 64;

/// Where in a schema one is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Field,
    Items,
    /// Below allOf, anyOf, oneOf or not.
    Logic,
}

/// Keywords that no structural schema may use.
const FORBIDDEN: &[&str] = &[
    "$ref",
    "$schema",
    "additionalItems",
    "definitions",
    "dependencies",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
];

/// Keywords that only make sense outside of value validations.
const STRUCTURE_ONLY: &[&str] = &[
    "additionalProperties",
    "default",
    "description",
    "nullable",
    "title",
    "type",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
];

impl Structural {
    /// Parses `openAPIV3Schema`, at `path` in the CRD, and checks that it is structural.
    pub fn parse(schema: &Value, path: &str) -> Result<Self, Vec<Cause>> {
        let mut parser = Parser { causes: Vec::new() };
        let mut parsed = parser.schema(schema, path, Place::Root, 0);
        if parser.causes.is_empty() {
            parser.check_defaults(&parsed, path);
        }
        if parser.causes.is_empty() {
            rules::compile(&mut parsed, path, true, Ok(()), &mut parser.causes);
        }
        if parser.causes.is_empty() {
            Ok(parsed)
        } else {
            Err(parser.causes)
        }
    }
}

struct Parser {
    causes: Vec<Cause>,
}

impl Parser {
    fn schema(&mut self, schema: &Value, path: &str, place: Place, depth: usize) -> Structural {
        let mut out = Structural::default();
        let Value::Object(fields) = schema else {
            self.causes
                .push(invalid(path, schema, "must be a schema object"));
            return out;
        };
        if depth > MAX_DEPTH {
            self.causes
                .push(forbidden(path, "the schema is nested too deeply"));
            return out;
        }
        self.keywords(fields, path, place);
        self.structure(fields, &mut out, path, place, depth);
        self.validations(fields, &mut out, path);
        self.logic(fields, &mut out, path, depth);
        if place != Place::Logic {
            self.check_type(&out, fields, path, place);
            self.check_lists(&out, path);
            check_logic_covered(&out, path, &mut self.causes);
        }
        out
    }

    fn keywords(&mut self, fields: &Map<String, Value>, path: &str, place: Place) {
        for name in FORBIDDEN.iter().filter(|name| fields.contains_key(**name)) {
            self.causes.push(forbidden(
                &format!("{path}.{name}"),
                &format!("{name} is not supported"),
            ));
        }
        if fields.get("uniqueItems") == Some(&Value::Bool(true)) {
            self.causes.push(forbidden(
                &format!("{path}.uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ));
        }
        if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
            self.causes.push(forbidden(
                &format!("{path}.additionalProperties"),
                "additionalProperties cannot be set to false",
            ));
        }
        if place == Place::Logic {
            let int_or_string = matches!(
                fields.get("type").and_then(Value::as_str),
                Some("integer" | "string")
            ) && fields.len() == 1;
            for name in STRUCTURE_ONLY {
                let set = match fields.get(*name) {
                    None | Some(Value::Null | Value::Bool(false)) => false,
                    Some(_) => !(*name == "type" && int_or_string),
                };
                if set {
                    self.causes.push(forbidden(
                        &format!("{path}.{name}"),
                        "must be empty to be structural",
                    ));
                }
            }
        }
    }

    fn structure(
        &mut self,
        fields: &Map<String, Value>,
        out: &mut Structural,
        path: &str,
        place: Place,
        depth: usize,
    ) {
        let flag = |name: &str| fields.get(name) == Some(&Value::Bool(true));
        let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
        if let Some(name) = text("type").filter(|name| !name.is_empty()) {
            out.json_type = JsonType::parse(&name);
            if out.json_type.is_none() {
                self.causes.push(not_supported(
                    &format!("{path}.type"),
                    &Value::from(name),
                    &["array", "boolean", "integer", "number", "object", "string"],
                ));
            }
        }
        out.description = text("description");
        out.default = fields.get("default").cloned();
        out.nullable = flag("nullable");
        out.preserve_unknown = flag("x-kubernetes-preserve-unknown-fields");
        out.embedded_resource = flag("x-kubernetes-embedded-resource");
        out.int_or_string = flag("x-kubernetes-int-or-string");
        out.list_type = text("x-kubernetes-list-type");
        out.map_type = text("x-kubernetes-map-type");
        out.list_map_keys = strings(fields.get("x-kubernetes-list-map-keys"));
        out.required = strings(fields.get("required"));
        out.rules = fields
            .get("x-kubernetes-validations")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();

        let inner = |place_inside| {
            if place == Place::Logic {
                Place::Logic
            } else {
                place_inside
            }
        };
        if let Some(Value::Object(properties)) = fields.get("properties") {
            for (name, property) in properties {
                let at = format!("{path}.properties[{name}]");
                let parsed = if place == Place::Root && name == "metadata" {
                    self.root_metadata(property, &at, depth)
                } else {
                    self.schema(property, &at, inner(Place::Field), depth + 1)
                };
                out.properties.insert(name.clone(), parsed);
            }
        }
        match fields.get("additionalProperties") {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Bool(true)) => out.additional = Some(Additional::Any),
            Some(schema) => {
                let at = format!("{path}.additionalProperties");
                out.additional = Some(Additional::Schema(Box::new(self.schema(
                    schema,
                    &at,
                    inner(Place::Field),
                    depth + 1,
                ))));
            }
        }
        if out.additional.is_some() && !out.properties.is_empty() {
            self.causes.push(forbidden(
                &format!("{path}.additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            ));
        }
        match fields.get("items") {
            None | Some(Value::Null) => {}
            Some(Value::Array(_)) => self.causes.push(forbidden(
                &format!("{path}.items"),
                "items must be a schema object and not an array",
            )),
            Some(items) => {
                let at = format!("{path}.items");
                out.items = Some(Box::new(self.schema(
                    items,
                    &at,
                    inner(Place::Items),
                    depth + 1,
                )));
            }
        }
    }

    /// metadata is ObjectMeta whatever the schema says; it may restrict the name only.
    fn root_metadata(&mut self, schema: &Value, path: &str, depth: usize) -> Structural {
        let only_names = schema.as_object().is_some_and(|fields| {
            fields.iter().all(|(name, value)| match name.as_str() {
                "type" => value == "object",
                "description" => true,
                "properties" => value.as_object().is_some_and(|p| {
                    p.keys()
                        .all(|k| matches!(k.as_str(), "name" | "generateName"))
                }),
                _ => false,
            })
        });
        if !only_names {
            self.causes.push(forbidden(
                path,
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            ));
        }
        let mut out = self.schema(schema, path, Place::Field, depth + 1);
        out.preserve_unknown = true;
        out
    }

    fn validations(&mut self, fields: &Map<String, Value>, out: &mut Structural, path: &str) {
        let flag = |name: &str| fields.get(name) == Some(&Value::Bool(true));
        let number = |name: &str| fields.get(name).and_then(Value::as_f64);
        let mut count = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => None,
            Some(value) => {
                let count = value.as_u64();
                if count.is_none() {
                    self.causes.push(invalid(
                        &format!("{path}.{name}"),
                        value,
                        "must be greater than or equal to 0",
                    ));
                }
                count
            }
        };
        out.min_length = count("minLength");
        out.max_length = count("maxLength");
        out.min_items = count("minItems");
        out.max_items = count("maxItems");
        out.min_properties = count("minProperties");
        out.max_properties = count("maxProperties");
        out.minimum = number("minimum");
        out.maximum = number("maximum");
        out.exclusive_minimum = flag("exclusiveMinimum");
        out.exclusive_maximum = flag("exclusiveMaximum");
        out.multiple_of = number("multipleOf").filter(|m| *m > 0.0);
        out.unique_items = flag("uniqueItems");
        out.format = fields
            .get("format")
            .and_then(Value::as_str)
            .map(str::to_owned);
        out.enumeration = fields.get("enum").and_then(Value::as_array).cloned();
        if let Some(source) = fields.get("pattern").and_then(Value::as_str)
            && !source.is_empty()
        {
            match Regex::new(source) {
                Ok(regex) => {
                    out.pattern = Some(Pattern {
                        source: source.to_owned(),
                        regex,
                    });
                }
                Err(why) => self.causes.push(invalid(
                    &format!("{path}.pattern"),
                    &Value::from(source),
                    &format!("must be a valid regular expression, but isn't: {why}"),
                )),
            }
        }
    }

    fn logic(
        &mut self,
        fields: &Map<String, Value>,
        out: &mut Structural,
        path: &str,
        depth: usize,
    ) {
        let mut list = |name: &str| -> Vec<Structural> {
            let schemas = fields.get(name).and_then(Value::as_array);
            schemas
                .into_iter()
                .flatten()
                .enumerate()
                .map(|(i, schema)| {
                    self.schema(
                        schema,
                        &format!("{path}.{name}[{i}]"),
                        Place::Logic,
                        depth + 1,
                    )
                })
                .collect()
        };
        out.all_of = list("allOf");
        out.any_of = list("anyOf");
        out.one_of = list("oneOf");
        if let Some(not) = fields.get("not").filter(|not| !not.is_null()) {
            let not = self.schema(not, &format!("{path}.not"), Place::Logic, depth + 1);
            out.not = Some(Box::new(not));
        }
    }

    fn check_type(
        &mut self,
        out: &Structural,
        fields: &Map<String, Value>,
        path: &str,
        place: Place,
    ) {
        let at = format!("{path}.type");
        let empty = fields
            .get("type")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty);
        if place == Place::Root {
            if empty {
                self.causes
                    .push(required(&at, "must not be empty at the root"));
            } else if out.json_type.is_some_and(|t| t != JsonType::Object) {
                self.causes
                    .push(invalid(&at, &fields["type"], "must be object at the root"));
            }
            if out.nullable {
                self.causes.push(forbidden(
                    &format!("{path}.nullable"),
                    "nullable cannot be true at the root",
                ));
            }
        } else if empty && !out.int_or_string && !out.preserve_unknown {
            let what = match place {
                Place::Items => "must not be empty for specified array items",
                _ => "must not be empty for specified object fields",
            };
            self.causes.push(required(&at, what));
        }
        if out.int_or_string && !empty {
            self.causes.push(forbidden(
                &at,
                "must be empty if x-kubernetes-int-or-string is true",
            ));
        }
        if out.embedded_resource {
            if out.json_type != Some(JsonType::Object) {
                self.causes.push(invalid(
                    &at,
                    fields.get("type").unwrap_or(&Value::Null),
                    "must be object if x-kubernetes-embedded-resource is true",
                ));
            }
            if out.properties.is_empty() && !out.preserve_unknown {
                self.causes.push(required(
                    &format!("{path}.properties"),
                    "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
                ));
            }
        }
        if out.json_type == Some(JsonType::Array) && out.items.is_none() {
            self.causes
                .push(required(&format!("{path}.items"), "must be specified"));
        }
    }

    fn check_lists(&mut self, out: &Structural, path: &str) {
        if let Some(list_type) = &out.list_type {
            let at = format!("{path}.x-kubernetes-list-type");
            if out.json_type != Some(JsonType::Array) {
                self.causes.push(invalid(
                    &format!("{path}.type"),
                    &Value::from(out.json_type.map_or("", JsonType::as_str)),
                    "must be array if x-kubernetes-list-type is specified",
                ));
            }
            if !matches!(list_type.as_str(), "atomic" | "set" | "map") {
                self.causes.push(not_supported(
                    &at,
                    &Value::from(list_type.as_str()),
                    &["atomic", "map", "set"],
                ));
            }
            if list_type == "map" {
                self.check_map_keys(out, path);
            }
        }
        if let Some(map_type) = &out.map_type {
            if !matches!(map_type.as_str(), "atomic" | "granular") {
                self.causes.push(not_supported(
                    &format!("{path}.x-kubernetes-map-type"),
                    &Value::from(map_type.as_str()),
                    &["atomic", "granular"],
                ));
            }
            if out.json_type != Some(JsonType::Object) {
                self.causes.push(invalid(
                    &format!("{path}.type"),
                    &Value::from(out.json_type.map_or("", JsonType::as_str)),
                    "must be object if x-kubernetes-map-type is specified",
                ));
            }
        }
        if out.list_type.as_deref() != Some("map") && !out.list_map_keys.is_empty() {
            self.causes.push(forbidden(
                &format!("{path}.x-kubernetes-list-map-keys"),
                "must be empty if x-kubernetes-list-type is not map",
            ));
        }
    }

    fn check_map_keys(&mut self, out: &Structural, path: &str) {
        let at = format!("{path}.x-kubernetes-list-map-keys");
        if out.list_map_keys.is_empty() {
            self.causes.push(required(
                &at,
                "must not be empty if x-kubernetes-list-type is map",
            ));
        }
        let Some(items) = &out.items else {
            return;
        };
        if items.json_type != Some(JsonType::Object) {
            self.causes.push(invalid(
                &format!("{path}.items.type"),
                &Value::from(items.json_type.map_or("", JsonType::as_str)),
                "must be object if parent array's x-kubernetes-list-type is map",
            ));
        }
        for (i, key) in out.list_map_keys.iter().enumerate() {
            let Some(property) = items.properties.get(key) else {
                self.causes.push(invalid(
                    &format!("{at}[{i}]"),
                    &Value::from(key.as_str()),
                    "entries must all be names of item properties",
                ));
                continue;
            };
            if matches!(property.json_type, Some(JsonType::Array | JsonType::Object)) {
                self.causes.push(invalid(
                    &format!("{path}.items.properties[{key}].type"),
                    &Value::from(property.json_type.map_or("", JsonType::as_str)),
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                ));
            }
            if property.default.is_none() && !items.required.contains(key) {
                self.causes.push(required(
                    &format!("{path}.items.properties[{key}].default"),
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                ));
            }
        }
    }

    /// Defaults must themselves be valid and free of unknown fields.
    fn check_defaults(&mut self, schema: &Structural, path: &str) {
        if let Some(default) = &schema.default {
            let at = format!("{path}.default");
            if default.is_null() && !schema.nullable {
                self.causes.push(invalid(
                    &at,
                    default,
                    "must not be null unless nullable is true",
                ));
            } else {
                let mut pruned = default.clone();
                schema.prune_part(&mut pruned);
                if pruned != *default {
                    self.causes
                        .push(invalid(&at, default, "must not have unknown fields"));
                }
                schema.validate_part(default, &at, &mut self.causes);
            }
        }
        for (name, property) in &schema.properties {
            self.check_defaults(property, &format!("{path}.properties[{name}]"));
        }
        if let Some(Additional::Schema(additional)) = &schema.additional {
            self.check_defaults(additional, &format!("{path}.additionalProperties"));
        }
        if let Some(items) = &schema.items {
            self.check_defaults(items, &format!("{path}.items"));
        }
    }
}

/// Fields that value validations mention must be declared outside of them.
fn check_logic_covered(out: &Structural, path: &str, causes: &mut Vec<Cause>) {
    fn covered(
        outer: &Structural,
        inner: &Structural,
        at: &str,
        path: &str,
        causes: &mut Vec<Cause>,
    ) {
        for (name, property) in &inner.properties {
            match outer.property(name) {
                Some(declared) => covered(
                    declared,
                    property,
                    &format!("{at}.properties[{name}]"),
                    &format!("{path}.properties[{name}]"),
                    causes,
                ),
                None if outer.preserve_unknown
                    || matches!(outer.additional, Some(Additional::Any)) => {}
                None => causes.push(required(
                    &format!("{path}.properties[{name}]"),
                    &format!("because it is defined in {at}.properties[{name}]"),
                )),
            }
        }
        if let (Some(inner), Some(declared)) = (&inner.items, &outer.items) {
            covered(
                declared,
                inner,
                &format!("{at}.items"),
                &format!("{path}.items"),
                causes,
            );
        }
        for (at, logic) in logic_of(inner, at) {
            covered(outer, logic, &at, path, causes);
        }
    }
    for (at, logic) in logic_of(out, path) {
        covered(out, logic, &at, path, causes);
    }
}

fn logic_of<'s>(schema: &'s Structural, path: &str) -> Vec<(String, &'s Structural)> {
    let mut out = Vec::new();
    for (name, list) in [
        ("allOf", &schema.all_of),
        ("anyOf", &schema.any_of),
        ("oneOf", &schema.one_of),
    ] {
        out.extend(
            list.iter()
                .enumerate()
                .map(|(i, logic)| (format!("{path}.{name}[{i}]"), logic)),
        );
    }
    out.extend(schema.not.iter().map(|not| (format!("{path}.not"), &**not)));
    out
}

fn strings(value: Option<&Value>) -> Vec<String> {
    value
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}
