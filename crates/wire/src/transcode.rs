//! JSON <-> protobuf for the built-in kinds, by the tables of [`crate::schema`].
//!
//! The JSON is what kube-apiserver prints, down to the order of members and escapes: a value that Go leaves out
//! when it is zero is left out, one that it always prints is there even when the wire has nothing. The protobuf is
//! what Go writes: zero values of non-pointers are explicit, fields ascend, map keys are sorted.

mod decode;
mod encode;
pub(crate) mod scalar;

use crate::{
    Encoding, Gvk, list,
    object::Malformed,
    schema::{self, Message},
};
use serde_json::Value;

/// Decodes a bare message (no envelope) of a kind to JSON, with apiVersion and kind.
pub fn to_json(gvk: &Gvk, raw: &[u8]) -> Result<Value, Malformed> {
    let mut text = Vec::new();
    to_json_text(gvk, raw, &mut text)?;
    serde_json::from_slice(&text).map_err(|error| Malformed {
        encoding: Encoding::Protobuf,
        what: format!("as JSON: {error}"),
    })
}

/// As [`to_json`], but straight to JSON text, without building values. After an error `out` holds a part.
///
/// A message whose JSON would be more than 8 times larger (and 64 KiB) is `Malformed`: no server writes one.
pub fn to_json_text(gvk: &Gvk, raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let message = message_of(gvk, Encoding::Protobuf)?;
    out.reserve(raw.len() * 3);
    decode::Decoder::new(out, &gvk.api_version()).kind(&gvk.kind, message, raw)?;
    Ok(())
}

/// Encodes a JSON object of a built-in kind (or its List kind) as a bare message. Unknown fields are dropped.
pub fn from_json(gvk: &Gvk, value: &Value) -> Result<Vec<u8>, Malformed> {
    encode::encode(message_of(gvk, Encoding::Json)?, value)
}

/// Whether the kind (or its List kind) has a protobuf form here.
pub fn has_protobuf(gvk: &Gvk) -> bool {
    schema::message_of(gvk).is_some()
}

fn message_of(gvk: &Gvk, encoding: Encoding) -> Result<&'static Message, Malformed> {
    schema::message_of(gvk).ok_or_else(|| Malformed {
        encoding,
        what: format!("{} {} has no protobuf form", gvk.api_version(), gvk.kind),
    })
}

/// The two places where an object within another one carries its type in JSON though not in protobuf: the items of
/// a partial list, and the claims in a StatefulSet, for which kube-apiserver fills it in. Gives apiVersion and kind;
/// `api_version` is that of the object around it.
pub fn embedded_type<'a>(
    parent: &Message,
    field: &str,
    api_version: &'a str,
) -> Option<(&'a str, &'static str)> {
    match (parent.name.rsplit_once('.')?.1, field) {
        ("PartialObjectMetadataList", "items") => {
            Some((api_version, list::item_kind("PartialObjectMetadataList")?))
        }
        ("StatefulSetSpec", "volumeClaimTemplates") => Some(("v1", "PersistentVolumeClaim")),
        _ => None,
    }
}
