//! Values of expressions. JSON is looked at where it is, never copied as a whole.

use super::{
    Error,
    schema::{Form, Schema},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;
use std::{cmp::Ordering, collections::BTreeMap, net::IpAddr, sync::Arc};
use yurt_wire::quantity::Quantity;

/// A value. `'v` is the life of the JSON behind it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Val<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Val<'v>>>),
    /// A JSON list and the schema of its items.
    JsonList(&'v [Value], Option<&'v dyn Schema>),
    Map(Arc<BTreeMap<Key, Val<'v>>>),
    /// A JSON object and its schema.
    JsonMap(&'v serde_json::Map<String, Value>, Option<&'v dyn Schema>),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    Type(&'static str),
    Optional(Option<Arc<Val<'v>>>),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Arc<http::Uri>),
}

/// Keys of maps that an expression makes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Key {
    Bool(bool),
    Int(i64),
    String(Arc<str>),
}

/// Words that no identifier may be: fields of these names are written `__word__`.
const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name under which an expression reaches a declared field.
pub fn escaped(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c => out.push(c),
        }
    }
    if name.contains("__") && out == name {
        out = name.replace("__", "__underscores__");
    }
    out
}

impl<'v> Val<'v> {
    /// A text.
    pub fn text(text: &str) -> Self {
        Self::String(text.into())
    }

    /// JSON as its schema types it; without a schema by its looks.
    pub fn of(value: &'v Value, schema: Option<&'v dyn Schema>) -> Self {
        let form = schema.map_or(Form::Any, Schema::form);
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => {
                let is_double = form == Form::Double;
                match number.as_i64() {
                    Some(int) if !is_double => Self::Int(int),
                    _ => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
                }
            }
            Value::String(text) => match form {
                Form::Timestamp => text
                    .parse()
                    .map_or_else(|_| Self::text(text), Self::Timestamp),
                Form::Duration => {
                    super::time::parse(text).map_or_else(|| Self::text(text), Self::Duration)
                }
                Form::Bytes => STANDARD
                    .decode(text)
                    .map_or_else(|_| Self::text(text), |bytes| Self::Bytes(bytes.into())),
                _ => Self::text(text),
            },
            Value::Array(items) => Self::JsonList(items, schema.and_then(Schema::inner)),
            Value::Object(fields) => Self::JsonMap(fields, schema),
        }
    }

    /// Its type, as `type()` names it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) | Self::JsonList(..) => "list",
            Self::Map(_) | Self::JsonMap(..) => "map",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(..) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number of characters, bytes, items or fields.
    pub fn size(&self) -> Option<usize> {
        Some(match self {
            Self::String(text) => text.chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(items) => items.len(),
            Self::JsonList(items, _) => items.len(),
            Self::Map(fields) => fields.len(),
            Self::JsonMap(fields, _) => fields.len(),
            _ => return None,
        })
    }

    /// The items of a list, or the keys of a map.
    pub fn items(&self) -> Option<Vec<Val<'v>>> {
        Some(match self {
            Self::List(items) => items.to_vec(),
            Self::JsonList(items, schema) => {
                items.iter().map(|item| Self::of(item, *schema)).collect()
            }
            Self::Map(fields) => fields.keys().map(Key::to_val).collect(),
            Self::JsonMap(fields, schema) => {
                let declares = declares(*schema);
                fields
                    .keys()
                    .map(|name| match declares {
                        true => Self::text(&escaped(name)),
                        false => Self::text(name),
                    })
                    .collect()
            }
            _ => return None,
        })
    }

    /// A field or entry.
    pub fn field(&self, name: &str) -> Option<Val<'v>> {
        match self {
            Self::Map(fields) => fields.get(&Key::String(name.into())).cloned(),
            Self::JsonMap(fields, schema) => {
                let Some(schema) = schema.filter(|_| declares(*schema)) else {
                    let inner = schema.and_then(Schema::inner);
                    return fields.get(name).map(|value| Self::of(value, inner));
                };
                if let Some(property) = schema.field(name)
                    && escaped(name) == name
                {
                    return fields
                        .get(name)
                        .map(|value| Self::of(value, Some(property)));
                }
                if let Some((real, property)) =
                    schema.fields().find(|(real, _)| escaped(real) == name)
                {
                    return fields
                        .get(real)
                        .map(|value| Self::of(value, Some(property)));
                }
                let undeclared = fields.iter().find(|(real, _)| escaped(real) == name);
                undeclared.map(|(_, value)| Self::of(value, None))
            }
            _ => None,
        }
    }

    /// Equality as CEL has it: numbers of all kinds compare by value, lists declared as sets or maps by content.
    /// `steps` counts what is looked at.
    pub fn equals(&self, other: &Val<'v>, steps: &mut u64) -> bool {
        *steps += 1;
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::String(a), Self::String(b)) => {
                *steps += a.len() as u64 / 10;
                a == b
            }
            (Self::Bytes(a), Self::Bytes(b)) => {
                *steps += a.len() as u64 / 10;
                a == b
            }
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Quantity(a), Self::Quantity(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a, n), Self::Cidr(b, m)) => a == b && n == m,
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b, steps),
                (a, b) => a.is_none() && b.is_none(),
            },
            (Self::Int(_) | Self::Uint(_) | Self::Double(_), _) => {
                self.order(other) == Some(Ordering::Equal)
            }
            (Self::List(_) | Self::JsonList(..), Self::List(_) | Self::JsonList(..)) => {
                if self.size() != other.size() {
                    return false;
                }
                let (a, b) = (
                    self.items().unwrap_or_default(),
                    other.items().unwrap_or_default(),
                );
                a.iter().zip(&b).all(|(a, b)| a.equals(b, steps))
            }
            (Self::Map(_) | Self::JsonMap(..), Self::Map(_) | Self::JsonMap(..)) => {
                if self.size() != other.size() {
                    return false;
                }
                let keys = self.items().unwrap_or_default();
                keys.iter().all(|key| {
                    let pair = self.entry(key).zip(other.entry(key));
                    pair.is_some_and(|(a, b)| a.equals(&b, steps))
                })
            }
            _ => false,
        }
    }

    /// An entry under a key of any kind.
    pub fn entry(&self, key: &Val<'v>) -> Option<Val<'v>> {
        match (self, key) {
            (_, Val::String(name)) => self.field(name),
            (Self::Map(fields), key) => fields.get(&Key::of(key)?).cloned(),
            _ => None,
        }
    }

    /// Order within one kind, numbers across kinds.
    pub fn order(&self, other: &Val<'v>) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Int(_) | Self::Uint(_) | Self::Double(_), _) => {
                self.as_double()?.partial_cmp(&other.as_double()?)
            }
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// A number.
    pub fn as_double(&self) -> Option<f64> {
        match self {
            Self::Int(a) => Some(*a as f64),
            Self::Uint(a) => Some(*a as f64),
            Self::Double(a) => Some(*a),
            _ => None,
        }
    }

    /// What `string()` makes of it, where it can.
    pub fn printed(&self) -> Option<String> {
        Some(match self {
            Self::Bool(a) => a.to_string(),
            Self::Int(a) => a.to_string(),
            Self::Uint(a) => a.to_string(),
            Self::Double(a) => a.to_string(),
            Self::String(a) => a.to_string(),
            Self::Bytes(a) => String::from_utf8(a.to_vec()).ok()?,
            Self::Timestamp(a) => a.to_string(),
            Self::Duration(a) => super::time::print(*a),
            Self::Ip(a) => a.to_string(),
            Self::Cidr(a, bits) => format!("{a}/{bits}"),
            _ => return None,
        })
    }
}

/// Whether the fields of an object are declared by name, rather than being entries of a map.
fn declares(schema: Option<&dyn Schema>) -> bool {
    schema.is_some_and(|schema| schema.form() != Form::Map)
}

impl Key {
    /// A value as a key, where it can be one.
    pub fn of(value: &Val<'_>) -> Option<Self> {
        Some(match value {
            Val::Bool(a) => Self::Bool(*a),
            Val::Int(a) => Self::Int(*a),
            Val::Uint(a) => Self::Int(i64::try_from(*a).ok()?),
            Val::String(a) => Self::String(a.clone()),
            _ => return None,
        })
    }

    fn to_val<'v>(&self) -> Val<'v> {
        match self {
            Self::Bool(a) => Val::Bool(*a),
            Self::Int(a) => Val::Int(*a),
            Self::String(a) => Val::String(a.clone()),
        }
    }
}

/// `no such key: x`.
pub(super) fn no_such_key(name: &str) -> Error {
    Error::Failed(format!("no such key: {name}"))
}
