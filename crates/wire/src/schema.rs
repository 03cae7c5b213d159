//! Static tables of the built-in kinds: messages, fields, their JSON names, protobuf numbers, types, defaults,
//! list types, merge keys. Generated from the published API definitions; facts only.

use crate::Gvk;

/// A message (a Go struct) of the built-in API.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Message {
    pub name: &'static str,
    pub fields: &'static [Field],
}

/// How a list behaves under strategic merge patch and server-side apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// One field of a message, as JSON shows it (Go-inlined structs are already flattened into their parent here
/// by the `path` of protobuf numbers).
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Field {
    pub json_name: &'static str,
    pub kind: FieldKind,
    pub repeated: bool,
    /// `Some` for maps: the kind of the values (keys are strings).
    pub map: bool,
    pub required: bool,
    pub list_type: Option<ListType>,
    pub list_map_keys: &'static [&'static str],
    /// `+structType=atomic` / `+mapType=atomic`.
    pub atomic: bool,
    pub patch_merge_key: Option<&'static str>,
    /// contains `merge`, `replace`, `retainKeys`.
    pub patch_strategy: Option<&'static str>,
    pub default: Option<&'static str>,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FieldKind {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    Duration,
    FieldsV1,
    RawExtension,
    Json,
    StringList,
    Message(&'static str),
    JsonSchemaProps,
}

/// The message of a built-in kind; `None` for CRD kinds.
pub fn message_of(_gvk: &Gvk) -> Option<&'static Message> {
    unimplemented!()
}
/// A message by its full name.
pub fn message(_name: &str) -> Option<&'static Message> {
    unimplemented!()
}
/// A field of a message by its JSON name.
pub fn field(_message: &Message, _json_name: &str) -> Option<&'static Field> {
    unimplemented!()
}
