//! One step of a field path, in the three forms it has: in memory, as a key of FieldsV1, and as printed.

use serde_json::{Map, Value};
use std::fmt;

/// One step from a value to a value inside it.
///
/// Scalars are kept as canonical JSON text, so that steps order and compare without looking inside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathElement {
    /// A field of an object or an entry of a map.
    Field(String),
    /// An item of a keyed list: its key fields, sorted by name, with canonical JSON values.
    Key(Vec<(String, String)>),
    /// An item of a set: its canonical JSON value.
    Value(String),
    /// An item of any other list.
    Index(usize),
}

/// FieldsV1 that does not follow its grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid fieldsV1: {0}")]
pub struct MalformedFields(pub String);

/// JSON text in which equal scalars are equal text (`80` and `80.0` are the same number).
pub(crate) fn canonical(value: &Value) -> String {
    if let Value::Number(number) = value
        && let Some(float) = number.as_f64()
        && number.is_f64()
        && float.fract() == 0.0
        && float.abs() < 9.0e15
    {
        return format!("{float:.0}");
    }
    value.to_string()
}

impl PathElement {
    /// A field step.
    pub fn field(name: &str) -> Self {
        Self::Field(name.to_owned())
    }

    /// A keyed item.
    pub fn key<'k>(fields: impl IntoIterator<Item = (&'k str, Value)>) -> Self {
        let mut fields: Vec<(String, String)> = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), canonical(&value)))
            .collect();
        fields.sort();
        Self::Key(fields)
    }

    /// An item of a set.
    pub fn value(value: &Value) -> Self {
        Self::Value(canonical(value))
    }

    /// The key this step has in FieldsV1: `f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`.
    pub(crate) fn to_fields_key(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(fields) => {
                let inner: Vec<String> = fields
                    .iter()
                    .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
                    .collect();
                format!("k:{{{}}}", inner.join(","))
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    /// The inverse of [`Self::to_fields_key`].
    pub(crate) fn from_fields_key(key: &str) -> Result<Self, MalformedFields> {
        let bad = |why: &str| MalformedFields(format!("{why} in path element {key:?}"));
        let (tag, rest) = key.split_once(':').ok_or_else(|| bad("missing type"))?;
        match tag {
            "f" => Ok(Self::field(rest)),
            "k" => {
                let fields: Map<String, Value> =
                    serde_json::from_str(rest).map_err(|_| bad("malformed key"))?;
                if fields.is_empty() {
                    return Err(bad("empty key"));
                }
                let mut fields: Vec<(String, String)> = fields
                    .into_iter()
                    .map(|(name, value)| (name, canonical(&value)))
                    .collect();
                fields.sort();
                Ok(Self::Key(fields))
            }
            "v" => {
                let value: Value =
                    serde_json::from_str(rest).map_err(|_| bad("malformed value"))?;
                Ok(Self::value(&value))
            }
            "i" => Ok(Self::Index(
                rest.parse().map_err(|_| bad("malformed index"))?,
            )),
            _ => Err(bad("unknown type")),
        }
    }
}

/// As kube-apiserver prints a step in a conflict: `.name`, `[name="a",port=80]`, `[="x"]`, `[0]`.
impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{name}={value}")?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}
