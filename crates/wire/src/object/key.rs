//! Which object it is, read without copying.

use super::{
    Malformed,
    meta::{HeadShape, head_shape_of, read_list_version},
};
use crate::{
    Encoding,
    gvk::split_api_version,
    protobuf::{Envelope, Reader},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use std::{borrow::Cow, fmt};

/// Type, name and resource version of an object, borrowed from its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ObjectKey<'a> {
    /// `v1`, `apps/v1`.
    pub api_version: Cow<'a, str>,
    pub kind: Cow<'a, str>,
    pub namespace: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// As [`super::ObjectMeta::resource_version`].
    pub resource_version: Cow<'a, str>,
}

impl ObjectKey<'_> {
    /// API group, `""` for core.
    pub fn group(&self) -> &str {
        split_api_version(&self.api_version).0
    }
    /// The resource version as a number; `None` when absent or opaque.
    pub fn revision(&self) -> Option<u64> {
        self.resource_version.parse().ok()
    }
}

pub(super) fn read(encoding: Encoding, bytes: &[u8]) -> Result<ObjectKey<'_>, Malformed> {
    match encoding {
        Encoding::Protobuf => read_protobuf(bytes),
        Encoding::Json => read_json(bytes),
    }
}

fn read_protobuf(bytes: &[u8]) -> Result<ObjectKey<'_>, Malformed> {
    let envelope = Envelope::open(bytes)?;
    let mut key = ObjectKey {
        api_version: envelope.api_version.into(),
        kind: envelope.kind.into(),
        ..ObjectKey::default()
    };
    let version = split_api_version(envelope.api_version).1;
    let shape = head_shape_of(version, envelope.kind);
    if shape == HeadShape::None {
        return Ok(key);
    }
    let mut fields = Reader::new(envelope.raw);
    while let Some(field) = fields.next_field()? {
        if field.number != 1 {
            continue;
        }
        let message = field.bytes()?;
        if shape == HeadShape::List {
            key.resource_version = read_list_version(message)?.into();
            continue;
        }
        // ObjectMeta: 1 name, 3 namespace, 6 resourceVersion.
        let mut meta = Reader::new(message);
        while let Some(field) = meta.next_field()? {
            match field.number {
                1 => key.name = field.str()?.into(),
                3 => key.namespace = field.str()?.into(),
                6 => key.resource_version = field.str()?.into(),
                _ => {}
            }
        }
    }
    Ok(key)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonObject<'a> {
    #[serde(borrow, default)]
    api_version: Text<'a>,
    #[serde(borrow, default)]
    kind: Text<'a>,
    #[serde(borrow, default)]
    metadata: Option<JsonMeta<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JsonMeta<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    namespace: Text<'a>,
    #[serde(borrow)]
    resource_version: Text<'a>,
}

/// A string, borrowed unless it holds escapes; null leaves it empty.
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

fn read_json(bytes: &[u8]) -> Result<ObjectKey<'_>, Malformed> {
    let object: JsonObject<'_> = serde_json::from_slice(bytes)?;
    let meta = object.metadata.unwrap_or_default();
    Ok(ObjectKey {
        api_version: object.api_version.0,
        kind: object.kind.0,
        namespace: meta.namespace.0,
        name: meta.name.0,
        resource_version: meta.resource_version.0,
    })
}
