//! JSON <-> protobuf for the built-in kinds, by the tables of [`crate::schema`].

use crate::{Gvk, object::Malformed};
use serde_json::Value;

/// Decodes a bare message (no envelope) of a kind to JSON, with apiVersion and kind first.
pub fn to_json(_gvk: &Gvk, _raw: &[u8]) -> Result<Value, Malformed> {
    unimplemented!()
}
/// As [`to_json`], but straight to JSON text, without building values.
pub fn to_json_text(_gvk: &Gvk, _raw: &[u8], _out: &mut Vec<u8>) -> Result<(), Malformed> {
    unimplemented!()
}
/// Encodes a JSON object of a built-in kind (or its List kind) as a bare message. Unknown fields are dropped.
pub fn from_json(_gvk: &Gvk, _value: &Value) -> Result<Vec<u8>, Malformed> {
    unimplemented!()
}
/// Whether the kind (or its List kind) has a protobuf form here.
pub fn has_protobuf(_gvk: &Gvk) -> bool {
    unimplemented!()
}
