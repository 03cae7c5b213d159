//! How each part of an object merges: as a scalar, whole, by fields, or by items.

use super::path::PathElement;
use crate::crd::structural::{Additional, JsonType};
use crate::crd::{OBJECT_META, Structural};
use serde_json::Value;
use yurt_wire::schema::{self, Field, FieldKind, ListType, Message};

/// What is known of an object's type.
#[derive(Clone, Copy, Debug)]
pub enum Typing<'a> {
    /// A built-in kind, by the schema tables.
    Builtin(&'static Message),
    /// A custom resource, by its structural schema.
    Crd(&'a Structural),
    /// Nothing: objects merge by field, lists are atomic.
    Deduced,
}

/// The type at one place of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Type<'a> {
    /// A built-in struct.
    Message(&'static Message),
    /// A built-in field with its list or map around the elements.
    Field(&'static Field),
    /// One element of a built-in field.
    Element(&'static Field),
    /// A custom resource or an embedded one: its metadata is ObjectMeta.
    Resource(&'a Structural),
    /// A part of a custom resource.
    Structural(&'a Structural),
    /// Unknown; the form of the value decides.
    Deduced,
    /// Unknown and never looked into.
    Opaque,
}

/// How a value of a type behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape<'a> {
    /// One value: scalars, and lists and maps that have one owner.
    Leaf,
    /// Fields are owned one by one.
    Map,
    /// Items are the values themselves.
    Set(Type<'a>),
    /// Items are known by some of their fields.
    Keyed(Keys<'a>, Type<'a>),
}

/// The key fields of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keys<'a> {
    Static(&'static [&'static str]),
    One(&'static str),
    Owned(&'a [String]),
}

impl Keys<'_> {
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Static(keys) => keys.to_vec(),
            Self::One(key) => vec![key],
            Self::Owned(keys) => keys.iter().map(String::as_str).collect(),
        }
    }
}

/// Structs that the API marks as atomic on the type itself rather than on every field that holds them
/// (`+structType=atomic`): the ends of their names.
const ATOMIC_STRUCTS: &[&str] = &[
    ".ConfigMapKeySelector",
    ".EndpointAddress",
    ".EndpointPort",
    ".FileKeySelector",
    ".LabelSelector",
    ".LocalObjectReference",
    ".MatchResources",
    ".NamedRuleWithOperations",
    ".NodeSelector",
    ".NodeSelectorTerm",
    ".ObjectFieldSelector",
    ".ObjectReference",
    ".OwnerReference",
    ".ParamKind",
    ".ParamRef",
    ".ResourceFieldSelector",
    ".RoleRef",
    ".ScopeSelector",
    ".SecretKeySelector",
    ".SecretReference",
    ".ServiceBackendPort",
    ".Subject",
    ".TopologySelectorTerm",
    ".TypedLocalObjectReference",
    ".admissionregistration.v1.Variable",
    ".autoscaling.v1.CrossVersionObjectReference",
];

/// Whether a struct has one owner.
pub(crate) fn is_atomic_struct(name: &str) -> bool {
    ATOMIC_STRUCTS.iter().any(|end| name.ends_with(end))
}

/// The one field that is owned by its parts although its struct is atomic (`+structType=granular`): a volume's
/// claim, which users fill in and the binder completes.
fn is_granular(field: &Field) -> bool {
    field.json_name == "claimRef"
}

impl<'a> Typing<'a> {
    pub(crate) fn root(self) -> Type<'a> {
        match self {
            Self::Builtin(message) => Type::Message(message),
            Self::Crd(structural) => Type::Resource(structural),
            Self::Deduced => Type::Deduced,
        }
    }
}

/// ObjectMeta of the schema tables; without it metadata merges by form.
fn object_meta<'a>() -> Type<'a> {
    schema::message(OBJECT_META).map_or(Type::Deduced, Type::Message)
}

fn form(value: Option<&Value>) -> Shape<'static> {
    match value {
        Some(Value::Object(_)) => Shape::Map,
        _ => Shape::Leaf,
    }
}

impl<'a> Type<'a> {
    /// The behaviour of `value`. A value whose form contradicts its type is a leaf; null (or absence) takes the
    /// form of the type.
    pub(crate) fn shape(self, value: Option<&Value>) -> Shape<'a> {
        let shape = self.declared_shape(value);
        match (shape, value) {
            (_, None | Some(Value::Null)) => shape,
            (Shape::Map, Some(Value::Object(_)))
            | (Shape::Set(_) | Shape::Keyed(..), Some(Value::Array(_))) => shape,
            _ => Shape::Leaf,
        }
    }

    fn declared_shape(self, value: Option<&Value>) -> Shape<'a> {
        match self {
            Type::Opaque => Shape::Leaf,
            Type::Deduced => form(value),
            Type::Message(_) => Shape::Map,
            Type::Field(field) if field.repeated => {
                let element = Type::Element(field);
                let merges = field.patch_strategy.is_some_and(|s| s.contains("merge"));
                match (field.list_type, field.patch_merge_key) {
                    (Some(ListType::Map), _) if !field.list_map_keys.is_empty() => {
                        Shape::Keyed(Keys::Static(field.list_map_keys), element)
                    }
                    (Some(ListType::Set), _) => Shape::Set(element),
                    (None, Some(key)) if merges => Shape::Keyed(Keys::One(key), element),
                    (None, None) if merges => Shape::Set(element),
                    _ => Shape::Leaf,
                }
            }
            Type::Field(field) if field.map => {
                if field.atomic {
                    Shape::Leaf
                } else {
                    Shape::Map
                }
            }
            Type::Field(field) => {
                if field.atomic {
                    Shape::Leaf
                } else if is_granular(field) {
                    Shape::Map
                } else {
                    Type::Element(field).declared_shape(value)
                }
            }
            Type::Element(field) => match field.kind {
                FieldKind::Message(name) if is_atomic_struct(name) => Shape::Leaf,
                FieldKind::Message(_) => Shape::Map,
                FieldKind::FieldsV1 => form(value),
                _ => Shape::Leaf,
            },
            Type::Resource(structural) | Type::Structural(structural) => {
                structural_shape(structural, value)
            }
        }
    }

    /// Whether `name` is a declared field here, and its type.
    pub(crate) fn child(self, name: &str) -> (bool, Type<'a>) {
        match self {
            Type::Opaque => (false, Type::Opaque),
            Type::Deduced => (false, Type::Deduced),
            Type::Message(message) => message_child(message, name),
            Type::Field(field) if field.map => (false, Type::Element(field)),
            Type::Field(field) | Type::Element(field) => match field.kind {
                FieldKind::Message(message) => match schema::message(message) {
                    Some(message) => message_child(message, name),
                    None => (false, Type::Deduced),
                },
                _ => (false, Type::Deduced),
            },
            Type::Resource(structural) => match name {
                "metadata" => (true, object_meta()),
                "apiVersion" | "kind" => (true, Type::Opaque),
                _ => structural_child(structural, name),
            },
            Type::Structural(structural) => structural_child(structural, name),
        }
    }

    /// Whether a schema is known here and has no place for `name`.
    pub(crate) fn forbids(self, name: &str) -> bool {
        if matches!(name, "apiVersion" | "kind") {
            return false;
        }
        let unknown = |message: &'static Message| schema::field(message, name).is_none();
        match self {
            Type::Message(message) => unknown(message),
            Type::Field(field) if field.map => false,
            Type::Field(field) | Type::Element(field) => match field.kind {
                FieldKind::Message(message) => schema::message(message).is_some_and(unknown),
                _ => false,
            },
            Type::Resource(_) if name == "metadata" => false,
            Type::Resource(structural) | Type::Structural(structural) => {
                !structural.properties.is_empty()
                    && !structural.properties.contains_key(name)
                    && !structural.preserve_unknown
                    && structural.additional.is_none()
            }
            Type::Deduced | Type::Opaque => false,
        }
    }

    /// The default of a key field of an item of this type.
    fn key_default(self, name: &str) -> Option<Value> {
        match self {
            Type::Element(field) => {
                let FieldKind::Message(message) = field.kind else {
                    return None;
                };
                let field = schema::field(schema::message(message)?, name)?;
                serde_json::from_str(field.default?).ok()
            }
            Type::Structural(structural) | Type::Resource(structural) => structural
                .properties
                .get(name)
                .and_then(|s| s.default.clone()),
            _ => None,
        }
    }
}

fn message_child<'a>(message: &'static Message, name: &str) -> (bool, Type<'a>) {
    match schema::field(message, name) {
        Some(field) => (true, Type::Field(field)),
        None => (false, Type::Deduced),
    }
}

fn structural_shape<'a>(structural: &'a Structural, value: Option<&Value>) -> Shape<'a> {
    if structural.int_or_string {
        return Shape::Leaf;
    }
    match structural.json_type {
        Some(JsonType::Object) if structural.map_type.as_deref() == Some("atomic") => Shape::Leaf,
        Some(JsonType::Object) => Shape::Map,
        Some(JsonType::Array) => {
            let items = structural.items.as_deref().map_or(Type::Deduced, of);
            match structural.list_type.as_deref() {
                Some("set") => Shape::Set(items),
                Some("map") if !structural.list_map_keys.is_empty() => {
                    Shape::Keyed(Keys::Owned(&structural.list_map_keys), items)
                }
                _ => Shape::Leaf,
            }
        }
        Some(_) => Shape::Leaf,
        None => form(value),
    }
}

fn of(structural: &Structural) -> Type<'_> {
    if structural.embedded_resource {
        Type::Resource(structural)
    } else {
        Type::Structural(structural)
    }
}

fn structural_child<'a>(structural: &'a Structural, name: &str) -> (bool, Type<'a>) {
    if let Some(property) = structural.properties.get(name) {
        return (true, of(property));
    }
    match &structural.additional {
        Some(Additional::Schema(schema)) => (false, of(schema)),
        _ => (false, Type::Deduced),
    }
}

/// The step to an item of a set or keyed list; `None` when the item lacks a key or cannot be an item.
pub(crate) fn item_element(shape: Shape<'_>, item: &Value) -> Option<PathElement> {
    match shape {
        Shape::Set(_) => match item {
            Value::Null | Value::Array(_) | Value::Object(_) => None,
            scalar => Some(PathElement::value(scalar)),
        },
        Shape::Keyed(keys, element) => {
            let fields = item.as_object()?;
            let mut key = Vec::new();
            for name in keys.names() {
                match fields.get(name) {
                    Some(Value::Null) | None => {
                        if let Some(default) = element.key_default(name) {
                            key.push((name, default));
                        }
                    }
                    Some(value) => key.push((name, value.clone())),
                }
            }
            if key.is_empty() {
                return None;
            }
            Some(PathElement::key(key))
        }
        Shape::Leaf | Shape::Map => None,
    }
}
