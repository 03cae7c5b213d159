//! Types that know the schema by which an API server checks them: one declaration gives the struct, its JSON and its
//! `openAPIV3Schema`, with the doc comments as descriptions.
//!
//! Reading is lenient, as the API server has already checked what it stored: what is absent or `null` is the default, what is
//! unknown is skipped. Whoever must keep unknown fields works on `serde_json::Value` (conversions) or patches (controllers).

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A type that can be the value of a field.
pub trait Field {
    /// Whether a field of this type must be there, unless its declaration says otherwise.
    const REQUIRED: bool;

    /// Its structural schema, without a description.
    fn schema() -> Value;

    /// Whether to leave the field out.
    fn absent(&self) -> bool {
        false
    }
}

macro_rules! scalar {
    ($($ty:ty => $schema:tt,)*) => { $(
        impl Field for $ty {
            const REQUIRED: bool = true;
            fn schema() -> Value {
                json!($schema)
            }
        }
    )* };
}

scalar! {
    String => {"type": "string"},
    bool => {"type": "boolean"},
    i32 => {"type": "integer", "format": "int32"},
    i64 => {"type": "integer", "format": "int64"},
    Timestamp => {"type": "string", "format": "date-time"},
    IntOrString => {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true},
}

impl<T: Field> Field for Option<T> {
    const REQUIRED: bool = false;
    fn schema() -> Value {
        T::schema()
    }
    fn absent(&self) -> bool {
        self.is_none()
    }
}

impl<T: Field> Field for Vec<T> {
    const REQUIRED: bool = false;
    fn schema() -> Value {
        json!({"type": "array", "items": T::schema()})
    }
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    const REQUIRED: bool = false;
    fn schema() -> Value {
        json!({"type": "object", "additionalProperties": T::schema()})
    }
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

/// Anything: pod templates, whose schema is Kubernetes' own and differs by its version.
impl Field for Value {
    const REQUIRED: bool = false;
    fn schema() -> Value {
        json!({"x-kubernetes-preserve-unknown-fields": true})
    }
    fn absent(&self) -> bool {
        self.is_null()
    }
}

/// A point in time as in `metadata.creationTimestamp`: RFC 3339, whole seconds, UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub String);

/// A number, or a text like `10%`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum IntOrString {
    Int(i64),
    String(String),
}

/// What is absent or `null` is the default.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// `leader_replicas` as JSON has it: `leaderReplicas`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut out = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        out.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

/// A doc comment as one paragraph.
fn description(lines: &[&str]) -> String {
    let words: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    words.join(" ").trim().to_owned()
}

/// A field as its declaration has it.
pub(crate) struct Declared<'d> {
    pub(crate) rust_name: &'d str,
    pub(crate) json_name: Option<&'d str>,
    pub(crate) doc: &'d [&'d str],
    pub(crate) required: bool,
    pub(crate) schema: Value,
    /// Further keywords of its schema.
    pub(crate) keywords: Option<Value>,
}

/// The schema of a struct.
pub(crate) fn object(doc: &[&str], fields: Vec<Declared<'_>>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in fields {
        let name = field
            .json_name
            .map_or_else(|| camel_case(field.rust_name), str::to_owned);
        let mut schema = field.schema;
        schema["description"] = description(field.doc).into();
        for (keyword, value) in field
            .keywords
            .as_ref()
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            schema[keyword] = value.clone();
        }
        if field.required {
            required.push(name.clone());
        }
        properties.insert(name, schema);
    }
    let mut schema =
        json!({"type": "object", "description": description(doc), "properties": properties});
    if !required.is_empty() {
        required.sort();
        schema["required"] = required.into();
    }
    schema
}

/// Declares structs with their schemas:
///
/// ```text
/// /// What it is.
/// pub struct Name {
///     /// What it means.
///     [required | optional] field as "jsonName": Type => {"further": "keywords"},
/// }
/// ```
///
/// Names are in camelCase unless `as` says otherwise; `Option`, `Vec`, maps and free-form values are optional and left out when
/// empty, all others are required, unless the word in brackets says otherwise.
macro_rules! types {
    ($(
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $([$need:ident])? $field:ident $(as $json:literal)? : $ty:ty $(=> $keywords:tt)?,
            )*
        }
    )*) => { $(
        $(#[doc = $about])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            $(
                $(#[doc = $doc])*
                #[serde(default, deserialize_with = "crate::schema::or_default",
                    skip_serializing_if = "crate::schema::Field::absent" $(, rename = $json)?)]
                pub $field: $ty,
            )*
        }

        impl crate::schema::Field for $name {
            const REQUIRED: bool = true;
            fn schema() -> serde_json::Value {
                crate::schema::object(&[$($about),*], vec![$(
                    crate::schema::Declared {
                        rust_name: stringify!($field),
                        json_name: Option::<&str>::None $(.or(Some($json)))?,
                        doc: &[$($doc),*],
                        required: crate::schema::needed!($ty $(, $need)?),
                        schema: <$ty as crate::schema::Field>::schema(),
                        keywords: Option::<serde_json::Value>::None $(.or(Some(serde_json::json!($keywords))))?,
                    },
                )*])
            }
        }
    )* };
}

macro_rules! needed {
    ($ty:ty) => {
        <$ty as crate::schema::Field>::REQUIRED
    };
    ($ty:ty, required) => {
        true
    };
    ($ty:ty, optional) => {
        false
    };
}

pub(crate) use {needed, types};

#[cfg(test)]
#[allow(unreachable_pub)]
mod tests {
    use super::*;

    types! {
        /// A thing
        /// of two lines.
        pub struct Thing {
            /// Its kind.
            thing_type as "type": String,
            /// How many.
            [optional] how_many: i32 => {"minimum": 0},
            /// Free.
            [required] template: Value,
            /// Some.
            names: Vec<String>,
        }
    }

    #[test]
    fn a_declaration_gives_a_schema() {
        let wanted = json!({"type": "object", "description": "A thing of two lines.", "required": ["template", "type"],
            "properties": {
                "type": {"type": "string", "description": "Its kind."},
                "howMany": {"type": "integer", "format": "int32", "minimum": 0, "description": "How many."},
                "template": {"x-kubernetes-preserve-unknown-fields": true, "description": "Free."},
                "names": {"type": "array", "items": {"type": "string"}, "description": "Some."}}});
        assert_eq!(Thing::schema(), wanted);
    }

    #[test]
    fn reading_is_lenient_and_writing_leaves_out_what_is_empty() {
        let given = json!({"type": null, "howMany": 3, "names": null, "unknown": {}});
        let thing: Thing = serde_json::from_value(given).unwrap();
        let wanted = Thing {
            how_many: 3,
            ..Thing::default()
        };
        assert_eq!(thing, wanted);
        assert_eq!(
            serde_json::to_value(&thing).unwrap(),
            json!({"type": "", "howMany": 3})
        );
    }
}
