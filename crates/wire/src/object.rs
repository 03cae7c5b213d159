//! One object as bytes, with its metadata read and nothing else decoded.

mod convert;
mod field;
mod key;
mod meta;
mod version;

pub(crate) use version::insert_member;

pub use key::ObjectKey;

use crate::{Encoding, Gvk};
use bytes::Bytes;

/// Why bytes could not be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("malformed {encoding:?} object: {what}")]
pub struct Malformed {
    /// The encoding that was expected.
    pub encoding: Encoding,
    /// What is wrong, for a log line.
    pub what: String,
}

/// As much of a foreign text as fits an error.
pub(crate) fn shown(text: &str) -> &str {
    const MAX: usize = 128;
    &text[..text.floor_char_boundary(MAX)]
}

/// A complete object as bytes: protobuf with the `k8s\0` envelope, or JSON with apiVersion and kind.
///
/// `bytes` may be a slice of a larger body or chunk and then keeps all of it alive: who stores an object for long
/// copies it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The encoding of `bytes`.
    pub encoding: Encoding,
    /// The object.
    pub bytes: Bytes,
}

/// What is known of an object without decoding the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ObjectMeta {
    pub gvk: Gvk,
    pub name: String,
    pub generate_name: String,
    pub namespace: String,
    pub uid: String,
    /// Opaque to clients; numeric in every API server known. `""` when absent.
    pub resource_version: String,
    pub generation: i64,
    pub labels: Vec<(String, String)>,
    pub annotations: Vec<(String, String)>,
    /// RFC 3339, `""` when absent.
    pub creation_timestamp: String,
    /// RFC 3339, `""` when absent.
    pub deletion_timestamp: String,
}

impl ObjectMeta {
    /// The resource version as a number; `None` when absent or opaque.
    pub fn revision(&self) -> Option<u64> {
        self.resource_version.parse().ok()
    }
}

impl Object {
    /// Reads type and metadata.
    ///
    /// Lists and `Status` give their type and resource version, the few kinds without metadata (options,
    /// discovery documents) only their type.
    pub fn meta(&self) -> Result<ObjectMeta, Malformed> {
        meta::read(self.encoding, &self.bytes)
    }
    /// Reads type, name and resource version only, without copying them (but for JSON strings with escapes).
    ///
    /// What [`Self::meta`] says of these, at a fraction of its cost: for who only needs to know which object it is.
    pub fn key(&self) -> Result<ObjectKey<'_>, Malformed> {
        key::read(self.encoding, &self.bytes)
    }
    /// The same object with another `metadata.resourceVersion`; everything else stays byte for byte.
    pub fn with_resource_version(&self, version: &str) -> Result<Object, Malformed> {
        version::replace(self, version)
    }
    /// The value at a dotted field path as a field selector sees it (`metadata.name`,
    /// `spec.nodeName`, `status.phase`, `involvedObject.uid`): strings as they are, booleans and numbers
    /// printed, absent as `""` (but `false` and `0` where a built-in kind cannot be without a value). `None` when
    /// the path leads to no scalar, or, in protobuf, the kind or path is unknown.
    pub fn field(&self, path: &str) -> Option<String> {
        field::read(self, path)
    }
    /// The same object in another encoding (unchanged bytes when it is the same). CRD kinds have no protobuf form.
    pub fn to_encoding(&self, encoding: Encoding) -> Result<Object, Malformed> {
        convert::to_encoding(self, encoding)
    }
    /// Decodes to a JSON value.
    pub fn to_json_value(&self) -> Result<serde_json::Value, Malformed> {
        convert::to_json_value(self)
    }
    /// Encodes a JSON value (with apiVersion and kind).
    pub fn from_json_value(
        value: &serde_json::Value,
        encoding: Encoding,
    ) -> Result<Object, Malformed> {
        convert::from_json_value(value, encoding)
    }
    /// `PartialObjectMetadata` of this object, in the same encoding. `version` is `v1` or `v1beta1` of meta.k8s.io.
    pub fn to_partial_metadata(&self, version: &str) -> Result<Object, Malformed> {
        convert::to_partial_metadata(self, version)
    }
}
