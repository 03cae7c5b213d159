//! An object in another encoding or shape.

use super::{
    Malformed, Object,
    meta::{HeadShape, head_shape},
};
use crate::{
    Encoding, Gvk, json,
    protobuf::{self, Envelope, Reader, Writer},
    transcode,
};
use bytes::Bytes;
use serde_json::Value;

pub(super) fn to_encoding(object: &Object, encoding: Encoding) -> Result<Object, Malformed> {
    if object.encoding == encoding {
        return Ok(object.clone());
    }
    match encoding {
        Encoding::Json => Ok(Object {
            encoding,
            bytes: to_json_text(&object.bytes)?,
        }),
        Encoding::Protobuf => {
            from_json_value(&serde_json::from_slice(&object.bytes)?, Encoding::Protobuf)
        }
    }
}

fn to_json_text(bytes: &Bytes) -> Result<Bytes, Malformed> {
    let envelope = Envelope::open(bytes)?;
    if envelope.content_type == Encoding::Json.content_type() {
        return Ok(bytes.slice_ref(envelope.raw));
    }
    let mut out = Vec::new();
    transcode::to_json_text(&envelope.gvk(), envelope.raw, &mut out)?;
    Ok(out.into())
}

pub(super) fn to_json_value(object: &Object) -> Result<Value, Malformed> {
    match object.encoding {
        Encoding::Json => Ok(serde_json::from_slice(&object.bytes)?),
        Encoding::Protobuf => Ok(serde_json::from_slice(&to_json_text(&object.bytes)?)?),
    }
}

pub(super) fn from_json_value(value: &Value, encoding: Encoding) -> Result<Object, Malformed> {
    let member = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (member("apiVersion"), member("kind"));
    if kind.is_empty() {
        return Err(Malformed {
            encoding: Encoding::Json,
            what: "an object without kind".to_owned(),
        });
    }
    let bytes = match encoding {
        Encoding::Json => serde_json::to_vec(value)?.into(),
        Encoding::Protobuf => {
            let gvk = Gvk::from_api_version(api_version, kind);
            protobuf::seal(api_version, kind, &transcode::from_json(&gvk, value)?)
        }
    };
    Ok(Object { encoding, bytes })
}

pub(super) fn to_partial_metadata(object: &Object, version: &str) -> Result<Object, Malformed> {
    const KIND: &str = "PartialObjectMetadata";
    let api_version = format!("meta.k8s.io/{version}");
    let bytes = match object.encoding {
        Encoding::Protobuf => {
            let envelope = Envelope::open(&object.bytes)?;
            if head_shape(&envelope.gvk()) != HeadShape::Object {
                return Err(Malformed {
                    encoding: Encoding::Protobuf,
                    what: format!("{} has no object metadata", envelope.kind),
                });
            }
            let mut raw = Writer::with_capacity(envelope.raw.len().min(4096));
            let mut fields = Reader::new(envelope.raw);
            while let Some(field) = fields.next_field()? {
                if field.number == 1 {
                    raw.raw(field.raw);
                }
            }
            protobuf::seal(&api_version, KIND, &raw.into_vec())
        }
        Encoding::Json => {
            let metadata =
                json::member(&object.bytes, "metadata")?.map_or("{}", |metadata| metadata.get());
            let mut out = Vec::with_capacity(metadata.len() + 96);
            out.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"#);
            json::push_string(&mut out, &api_version);
            out.extend_from_slice(br#","metadata":"#);
            out.extend_from_slice(metadata.as_bytes());
            out.push(b'}');
            out.into()
        }
    };
    Ok(Object {
        encoding: object.encoding,
        bytes,
    })
}
