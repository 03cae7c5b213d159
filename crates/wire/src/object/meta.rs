//! Reading the metadata of an object and nothing else.

use super::{Malformed, ObjectMeta};
use crate::{
    Encoding, Gvk,
    protobuf::{Envelope, Reader, WireError},
    transcode::scalar::read_time,
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use std::fmt;

/// What a kind has at field 1 of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadShape {
    /// An ObjectMeta: every kind that is stored.
    Object,
    /// A ListMeta: lists and `Status`.
    List,
    /// Something else.
    None,
}

/// The shape of a built-in kind's message. By name, because every stored kind of every API version has
/// ObjectMeta at field 1; the exceptions are few and fixed.
pub(crate) fn head_shape(gvk: &Gvk) -> HeadShape {
    head_shape_of(&gvk.version, &gvk.kind)
}

/// As [`head_shape`], which no group has a say in.
pub(super) fn head_shape_of(version: &str, kind: &str) -> HeadShape {
    match kind {
        "Status" => HeadShape::List,
        "APIVersions"
        | "APIGroup"
        | "APIGroupList"
        | "APIResourceList"
        | "WatchEvent"
        | "AdmissionReview"
        | "ConversionReview"
        | "SerializedReference" => HeadShape::None,
        "PartialObjectMetadataList" if version == "v1beta1" => HeadShape::None,
        kind if kind.ends_with("List") => HeadShape::List,
        kind if kind.ends_with("Options") => HeadShape::None,
        _ => HeadShape::Object,
    }
}

pub(super) fn read(encoding: Encoding, bytes: &[u8]) -> Result<ObjectMeta, Malformed> {
    match encoding {
        Encoding::Protobuf => read_protobuf(bytes),
        Encoding::Json => read_json(bytes),
    }
}

fn read_protobuf(bytes: &[u8]) -> Result<ObjectMeta, Malformed> {
    let envelope = Envelope::open(bytes)?;
    let mut meta = ObjectMeta {
        gvk: envelope.gvk(),
        ..ObjectMeta::default()
    };
    let shape = head_shape(&meta.gvk);
    if shape == HeadShape::None {
        return Ok(meta);
    }
    let mut fields = Reader::new(envelope.raw);
    while let Some(field) = fields.next_field()? {
        if field.number == 1 {
            match shape {
                HeadShape::Object => read_object_meta(field.bytes()?, &mut meta)?,
                HeadShape::List => {
                    meta.resource_version = read_list_version(field.bytes()?)?.to_owned();
                }
                HeadShape::None => {}
            }
        }
    }
    Ok(meta)
}

/// ObjectMeta: 1 name, 2 generateName, 3 namespace, 5 uid, 6 resourceVersion, 7 generation,
/// 8 creationTimestamp, 9 deletionTimestamp, 11 labels, 12 annotations.
fn read_object_meta(message: &[u8], meta: &mut ObjectMeta) -> Result<(), Malformed> {
    reserve_maps(message, meta)?;
    let mut fields = Reader::new(message);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => meta.name = field.str()?.to_owned(),
            2 => meta.generate_name = field.str()?.to_owned(),
            3 => meta.namespace = field.str()?.to_owned(),
            5 => meta.uid = field.str()?.to_owned(),
            6 => meta.resource_version = field.str()?.to_owned(),
            7 => meta.generation = field.int()?,
            8 => meta.creation_timestamp = read_time(field.bytes()?)?.unwrap_or_default(),
            9 => meta.deletion_timestamp = read_time(field.bytes()?)?.unwrap_or_default(),
            11 => meta.labels.push(read_map_entry(field.bytes()?)?),
            12 => meta.annotations.push(read_map_entry(field.bytes()?)?),
            _ => {}
        }
    }
    Ok(())
}

/// Makes room for labels and annotations, so that their vectors need not grow. An entry is a pair of strings in memory
/// and at least 7 bytes as servers write it, but a hostile one may be empty: then there are too many.
fn reserve_maps(message: &[u8], meta: &mut ObjectMeta) -> Result<(), Malformed> {
    const MIN_ENTRY: usize = 7;
    const FREE_ENTRIES: usize = 64;
    let (mut labels, mut annotations) = (0, 0);
    let mut fields = Reader::new(message);
    while let Some(field) = fields.next_field()? {
        match field.number {
            11 => labels += 1,
            12 => annotations += 1,
            _ => {}
        }
    }
    if labels + annotations > message.len() / MIN_ENTRY + FREE_ENTRIES {
        return Err(Malformed {
            encoding: Encoding::Protobuf,
            what: "labels and annotations without content".to_owned(),
        });
    }
    meta.labels.reserve_exact(labels);
    meta.annotations.reserve_exact(annotations);
    Ok(())
}

pub(super) fn read_list_version(message: &[u8]) -> Result<&str, WireError> {
    let mut fields = Reader::new(message);
    let mut version = "";
    while let Some(field) = fields.next_field()? {
        if field.number == 2 {
            version = field.str()?;
        }
    }
    Ok(version)
}

fn read_map_entry(message: &[u8]) -> Result<(String, String), WireError> {
    let (mut key, mut value) = ("", "");
    let mut fields = Reader::new(message);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => key = field.str()?,
            2 => value = field.str()?,
            _ => {}
        }
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonObject {
    #[serde(default, deserialize_with = "null_is_default")]
    api_version: String,
    #[serde(default, deserialize_with = "null_is_default")]
    kind: String,
    #[serde(default, deserialize_with = "null_is_default")]
    metadata: JsonMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JsonMeta {
    #[serde(deserialize_with = "null_is_default")]
    name: String,
    #[serde(deserialize_with = "null_is_default")]
    generate_name: String,
    #[serde(deserialize_with = "null_is_default")]
    namespace: String,
    #[serde(deserialize_with = "null_is_default")]
    uid: String,
    #[serde(deserialize_with = "null_is_default")]
    resource_version: String,
    #[serde(deserialize_with = "null_is_default")]
    generation: i64,
    #[serde(deserialize_with = "null_is_default")]
    creation_timestamp: String,
    #[serde(deserialize_with = "null_is_default")]
    deletion_timestamp: String,
    #[serde(deserialize_with = "null_is_default")]
    labels: Pairs,
    #[serde(deserialize_with = "null_is_default")]
    annotations: Pairs,
}

/// A map of strings, sorted by key; of equal keys the last one counts, and null is an empty string.
#[derive(Default)]
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of strings")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Option<String>>()? {
            pairs.push((key, value.unwrap_or_default()));
        }
        // Servers write sorted maps, which are left as they are.
        if !pairs.is_sorted_by(|(a, _), (b, _)| a < b) {
            pairs.reverse();
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            pairs.dedup_by(|(later, _), (first, _)| later == first);
        }
        Ok(Pairs(pairs))
    }
}

/// Go's decoder leaves a field alone where JSON says null.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn read_json(bytes: &[u8]) -> Result<ObjectMeta, Malformed> {
    let object: JsonObject = serde_json::from_slice(bytes)?;
    let meta = object.metadata;
    Ok(ObjectMeta {
        gvk: Gvk::from_api_version(&object.api_version, &object.kind),
        name: meta.name,
        generate_name: meta.generate_name,
        namespace: meta.namespace,
        uid: meta.uid,
        resource_version: meta.resource_version,
        generation: meta.generation,
        labels: meta.labels.0,
        annotations: meta.annotations.0,
        creation_timestamp: meta.creation_timestamp,
        deletion_timestamp: meta.deletion_timestamp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn head_shapes_are_those_of_the_tables() {
        for kind in schema::kinds() {
            let gvk = Gvk {
                group: kind.group.into(),
                version: kind.version.into(),
                kind: kind.kind.into(),
            };
            let first = kind.message.fields.iter().find(|field| {
                field.json_name == "metadata" && field.number == 1 && field.parents == [0, 0]
            });
            let first = first.and_then(|field| field.message()).map(|m| m.name);
            let shape = match first.and_then(|name| name.rsplit_once('.')) {
                Some((_, "ObjectMeta")) => HeadShape::Object,
                Some((_, "ListMeta")) => HeadShape::List,
                _ => HeadShape::None,
            };
            assert_eq!(head_shape(&gvk), shape, "{gvk:?}");
        }
    }
}
