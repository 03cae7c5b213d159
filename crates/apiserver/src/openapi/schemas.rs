//! Schemas of the built-in kinds, from the tables.

use super::{Dialect, custom};
use crate::managed::is_atomic_struct;
use crate::resources::Resource;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use yurt_wire::Gvk;
use yurt_wire::schema::{self, Field, FieldKind, ListType, Message};

/// The type of every list's metadata.
pub(super) const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const JSON_PREFIX: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// The schemas that a document's paths lead to.
#[derive(Debug)]
pub(super) struct Definitions {
    pub(super) dialect: Dialect,
    schemas: Map<String, Value>,
    kinds: BTreeMap<&'static str, Vec<Value>>,
}

pub(super) fn gvk_extension(gvk: &Gvk) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

impl Definitions {
    pub(super) fn new(dialect: Dialect) -> Self {
        let mut kinds: BTreeMap<&'static str, Vec<Value>> = BTreeMap::new();
        for kind in schema::kinds() {
            // The aliases of the meta group are no kinds of their own.
            if kind.group != "meta.k8s.io" {
                kinds.entry(kind.message.name).or_default().push(json!({
                    "group": kind.group, "version": kind.version, "kind": kind.kind,
                }));
            }
        }
        Self {
            dialect,
            schemas: Map::new(),
            kinds,
        }
    }

    pub(super) fn into_map(self) -> Map<String, Value> {
        self.schemas
    }

    /// A reference to a definition that is in the document, or is put there.
    pub(super) fn reference(&mut self, name: &str) -> Value {
        if !self.schemas.contains_key(name)
            && let Some(message) = schema::message(name)
        {
            // Recursive messages find themselves here.
            self.schemas.insert(name.to_owned(), Value::Null);
            let schema = self.message(message);
            self.schemas.insert(name.to_owned(), schema);
        }
        self.dialect.reference(name)
    }

    pub(super) fn insert(&mut self, name: &str, schema: Value) -> Value {
        self.schemas.entry(name).or_insert(schema);
        self.dialect.reference(name)
    }

    /// The schema of a kind that the resource serves: a built-in one by its message, a custom one by its CRD.
    pub(super) fn kind(&mut self, resource: &Resource, gvk: &Gvk) -> Value {
        if let Some(message) = schema::message_of(gvk) {
            return self.reference(message.name);
        }
        custom::reference(resource, gvk, self)
    }

    fn message(&mut self, message: &'static Message) -> Value {
        let mut properties = Map::new();
        let kinds = self.kinds.get(message.name).cloned();
        if kinds.is_some() {
            for name in ["apiVersion", "kind"] {
                properties.insert(name.into(), json!({"type": "string"}));
            }
        }
        let mut required: Vec<&str> = Vec::new();
        for field in message.fields {
            let mut property = self.field(field);
            if let Some(default) = field.default
                && let Ok(default) = serde_json::from_str::<Value>(default)
                && let Value::Object(property) = &mut property
            {
                property.insert("default".into(), default);
            }
            properties.insert(field.json_name.into(), property);
            if field.required {
                required.push(field.json_name);
            }
        }
        let mut out = json!({"type": "object"});
        if !properties.is_empty() {
            out["properties"] = Value::Object(properties);
        }
        if !required.is_empty() {
            required.sort_unstable();
            out["required"] = json!(required);
        }
        if is_atomic_struct(message.name) {
            out["x-kubernetes-map-type"] = json!("atomic");
        }
        if let Some(kinds) = kinds {
            out["x-kubernetes-group-version-kind"] = Value::Array(kinds);
        }
        out
    }

    fn field(&mut self, field: &'static Field) -> Value {
        let mut out = if field.repeated {
            json!({"type": "array", "items": self.element(field)})
        } else if field.map {
            json!({"type": "object", "additionalProperties": self.element(field)})
        } else {
            self.element(field)
        };
        if let Some(list_type) = field.list_type {
            out["x-kubernetes-list-type"] = json!(match list_type {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            });
        }
        if !field.list_map_keys.is_empty() {
            out["x-kubernetes-list-map-keys"] = json!(field.list_map_keys);
        }
        if field.atomic && field.map {
            out["x-kubernetes-map-type"] = json!("atomic");
        }
        if let Some(key) = field.patch_merge_key {
            out["x-kubernetes-patch-merge-key"] = json!(key);
        }
        if let Some(strategy) = field.patch_strategy {
            out["x-kubernetes-patch-strategy"] = json!(strategy);
        }
        out
    }

    /// A single value of a field.
    fn element(&mut self, field: &'static Field) -> Value {
        let v3 = self.dialect == Dialect::V3;
        let meta = "io.k8s.apimachinery.pkg.apis.meta.v1";
        let (name, schema) = match field.kind {
            FieldKind::String => return json!({"type": "string"}),
            FieldKind::Bool => return json!({"type": "boolean"}),
            FieldKind::Int32 => return json!({"type": "integer", "format": "int32"}),
            FieldKind::Int64 => return json!({"type": "integer", "format": "int64"}),
            FieldKind::Double => return json!({"type": "number", "format": "double"}),
            FieldKind::Bytes => return json!({"type": "string", "format": "byte"}),
            FieldKind::StringList => {
                return json!({"type": "array", "items": {"type": "string"}});
            }
            FieldKind::Message(name) => {
                let reference = self.reference(name);
                return self.wrapped(reference);
            }
            FieldKind::Quantity => (
                "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(),
                if v3 {
                    json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
                } else {
                    json!({"type": "string"})
                },
            ),
            FieldKind::IntOrString => (
                "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
                if v3 {
                    json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
                } else {
                    json!({"type": "string", "format": "int-or-string"})
                },
            ),
            FieldKind::Time => (
                format!("{meta}.Time"),
                json!({"type": "string", "format": "date-time"}),
            ),
            FieldKind::MicroTime => (
                format!("{meta}.MicroTime"),
                json!({"type": "string", "format": "date-time"}),
            ),
            FieldKind::Duration => (format!("{meta}.Duration"), json!({"type": "string"})),
            FieldKind::FieldsV1 => (format!("{meta}.FieldsV1"), json!({"type": "object"})),
            FieldKind::RawExtension => (
                "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(),
                json!({"type": "object"}),
            ),
            FieldKind::Json => (format!("{JSON_PREFIX}.JSON"), json!({})),
            FieldKind::JsonSchemaPropsOrArray => {
                (format!("{JSON_PREFIX}.JSONSchemaPropsOrArray"), json!({}))
            }
            FieldKind::JsonSchemaPropsOrBool => {
                (format!("{JSON_PREFIX}.JSONSchemaPropsOrBool"), json!({}))
            }
            FieldKind::JsonSchemaPropsOrStringArray => (
                format!("{JSON_PREFIX}.JSONSchemaPropsOrStringArray"),
                json!({}),
            ),
        };
        let reference = self.insert(&name, schema);
        self.wrapped(reference)
    }

    /// OpenAPI 3 lets nothing stand beside a reference, so it is wrapped where extensions or defaults may follow.
    pub(super) fn wrapped(&self, reference: Value) -> Value {
        match self.dialect {
            Dialect::V2 => reference,
            Dialect::V3 => json!({"allOf": [reference]}),
        }
    }
}
