//! Static tables of the built-in kinds: messages, fields, their JSON names, protobuf numbers, types, defaults,
//! list types, merge keys. Generated from the published API definitions (`schema/generate.py`); facts only.
//!
//! Messages go by the names of the OpenAPI documents (`io.k8s.api.core.v1.Pod`).

use crate::Gvk;
use std::{fmt, ops::Deref};

#[rustfmt::skip]
mod tables;

use tables::{KINDS, MESSAGES};

/// A message (a Go struct) of the built-in API.
pub struct Message {
    /// Its name in the OpenAPI documents.
    pub name: &'static str,
    /// Its fields in the order in which kube-apiserver prints them.
    pub fields: &'static [Field],
    /// Indexes into `fields` in the order in which they stand on the wire: by the numbers of the inlined
    /// structs they are in, then their own.
    pub wire_order: &'static [u8],
}

impl fmt::Debug for Message {
    /// The name only: messages are recursive.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Message").field(&self.name).finish()
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for Message {}

/// How a list behaves under strategic merge patch and server-side apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// One field of a message, as JSON shows it (Go-inlined structs are already flattened into their parent here;
/// `parents` tells where they are on the wire).
#[derive(Clone, Debug)]
pub struct Field {
    /// The name in JSON.
    pub json_name: &'static str,
    /// What it holds, or each of its items or values.
    pub kind: FieldKind,
    /// A list.
    pub repeated: bool,
    /// A map from strings to `kind`.
    pub map: bool,
    /// Must be given (as the OpenAPI documents say).
    pub required: bool,
    /// The protobuf field number.
    pub number: u8,
    /// The field numbers of the Go-inlined structs around it, outermost first; 0 for none.
    pub parents: [u8; 2],
    /// A Go pointer: absent is something else than zero, on the wire too.
    pub pointer: bool,
    /// Left out of JSON when it is zero, empty or absent (Go's `omitempty`, which never leaves out a struct).
    pub omit_empty: bool,
    /// Left out of JSON when it is a zero struct (`omitzero`).
    pub omit_zero: bool,
    /// Index of the message of `kind`.
    message: u16,
    markers: Option<&'static Markers>,
}

/// What the markers in the API definitions say of a field. A [`Field`] derefs to its markers: they are kept
/// apart only because most fields have none and the tables are a good part of a small binary.
#[derive(Clone, Debug)]
pub struct Markers {
    /// `+listType`.
    pub list_type: Option<ListType>,
    /// `+listMapKey`.
    pub list_map_keys: &'static [&'static str],
    /// `+structType=atomic` / `+mapType=atomic`.
    pub atomic: bool,
    /// `+patchMergeKey`.
    pub patch_merge_key: Option<&'static str>,
    /// `+patchStrategy`; contains `merge`, `replace`, `retainKeys`.
    pub patch_strategy: Option<&'static str>,
    /// `+default`, as JSON text.
    pub default: Option<&'static str>,
}

const NONE: Markers = Markers {
    list_type: None,
    list_map_keys: &[],
    atomic: false,
    patch_merge_key: None,
    patch_strategy: None,
    default: None,
};

static NO_MARKERS: Markers = NONE;

static ATOMIC_LIST: Markers = Markers {
    list_type: Some(ListType::Atomic),
    ..NONE
};

impl Deref for Field {
    type Target = Markers;

    fn deref(&self) -> &Markers {
        self.markers.unwrap_or(&NO_MARKERS)
    }
}

impl Field {
    /// The message this field, its items or its values are made of.
    pub fn message(&self) -> Option<&'static Message> {
        match self.kind {
            FieldKind::Message(_)
            | FieldKind::JsonSchemaPropsOrArray
            | FieldKind::JsonSchemaPropsOrBool
            | FieldKind::JsonSchemaPropsOrStringArray => MESSAGES.get(usize::from(self.message)),
            _ => None,
        }
    }

    /// The field numbers from the message to this field.
    pub(crate) fn path(&self) -> impl Iterator<Item = u8> {
        let [outer, inner] = self.parents;
        [outer, inner, self.number]
            .into_iter()
            .filter(|&number| number != 0)
    }
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
    JsonSchemaPropsOrArray,
    JsonSchemaPropsOrBool,
    JsonSchemaPropsOrStringArray,
}

// What most fields are, so that the tables stay readable. Named by what JSON shows of a zero value.

const fn always(json_name: &'static str, kind: FieldKind, number: u8) -> Field {
    Field {
        json_name,
        kind,
        repeated: false,
        map: false,
        required: false,
        number,
        parents: [0, 0],
        pointer: false,
        omit_empty: false,
        omit_zero: false,
        message: 0,
        markers: None,
    }
}

const fn omitted(json_name: &'static str, kind: FieldKind, number: u8) -> Field {
    Field {
        omit_empty: true,
        ..always(json_name, kind, number)
    }
}

const fn pointer(json_name: &'static str, kind: FieldKind, number: u8) -> Field {
    Field {
        pointer: true,
        ..omitted(json_name, kind, number)
    }
}

/// A kind and its message.
struct KindEntry {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    message: u16,
}

/// A built-in kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its group, `""` for core.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its name.
    pub kind: &'static str,
    /// What it is made of (apart from apiVersion and kind).
    pub message: &'static Message,
}

/// All built-in kinds, list kinds and options among them, by group, version and kind.
pub fn kinds() -> impl Iterator<Item = Kind> {
    KINDS.iter().map(|entry| Kind {
        group: entry.group,
        version: entry.version,
        kind: entry.kind,
        message: &MESSAGES[usize::from(entry.message)],
    })
}

/// All messages by name.
pub fn messages() -> &'static [Message] {
    &MESSAGES
}

/// The message of a built-in kind; `None` for CRD kinds.
///
/// Options and watch events belong to every group and version.
pub fn message_of(gvk: &Gvk) -> Option<&'static Message> {
    let find = |group: &str, version: &str| {
        KINDS
            .binary_search_by(|entry| {
                (entry.group, entry.version, entry.kind).cmp(&(group, version, gvk.kind.as_str()))
            })
            .ok()
            .map(|index| &MESSAGES[usize::from(KINDS[index].message)])
    };
    find(&gvk.group, &gvk.version).or_else(|| {
        matches!(
            gvk.kind.as_str(),
            "CreateOptions"
                | "DeleteOptions"
                | "GetOptions"
                | "ListOptions"
                | "PatchOptions"
                | "UpdateOptions"
                | "WatchEvent"
        )
        .then(|| find("", "v1"))
        .flatten()
    })
}

/// A message by its full name.
pub fn message(name: &str) -> Option<&'static Message> {
    MESSAGES
        .binary_search_by(|message| message.name.cmp(name))
        .ok()
        .map(|index| &MESSAGES[index])
}

/// A field of a message by its JSON name.
pub fn field(message: &Message, json_name: &str) -> Option<&'static Field> {
    message
        .fields
        .iter()
        .find(|field| field.json_name == json_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn tables_are_sorted_and_whole() {
        assert!(MESSAGES.is_sorted_by(|a, b| a.name < b.name));
        assert!(
            KINDS.is_sorted_by(|a, b| {
                (a.group, a.version, a.kind) < (b.group, b.version, b.kind)
            })
        );
        for message in &MESSAGES {
            let names: BTreeSet<_> = message.fields.iter().map(|f| f.json_name).collect();
            assert_eq!(names.len(), message.fields.len(), "{}", message.name);
            let order: BTreeSet<_> = message.wire_order.iter().collect();
            assert_eq!(order.len(), message.fields.len(), "{}", message.name);
            assert!(message.wire_order.is_sorted_by_key(|&index| {
                message.fields[usize::from(index)]
                    .path()
                    .collect::<Vec<_>>()
            }));
            for field in message.fields {
                match field.kind {
                    FieldKind::Message(name) => {
                        assert_eq!(field.message().map(|m| m.name), Some(name));
                    }
                    FieldKind::JsonSchemaPropsOrArray
                    | FieldKind::JsonSchemaPropsOrBool
                    | FieldKind::JsonSchemaPropsOrStringArray => assert!(
                        field
                            .message()
                            .is_some_and(|m| m.name.ends_with(".JSONSchemaProps"))
                    ),
                    _ => assert_eq!(field.message(), None),
                }
                // A merge by key needs a key among the fields of the items.
                for key in field.list_map_keys.iter().chain(&field.patch_merge_key) {
                    let item = field.message().expect("items with keys are messages");
                    assert!(super::field(item, key).is_some(), "{}: {key}", item.name);
                }
                if let Some(default) = field.default {
                    serde_json::from_str::<serde_json::Value>(default).expect("defaults are JSON");
                }
            }
        }
    }

    #[test]
    fn known_facts() {
        let pod = message_of(&Gvk::from_api_version("v1", "Pod")).unwrap();
        let spec = field(pod, "spec").unwrap().message().unwrap();
        let containers = field(spec, "containers").unwrap();
        assert!(containers.required && containers.repeated && !containers.omit_empty);
        assert_eq!(containers.patch_merge_key, Some("name"));
        assert_eq!(containers.list_type, Some(ListType::Map));
        let ports = field(containers.message().unwrap(), "ports").unwrap();
        assert_eq!(ports.list_map_keys, ["containerPort", "protocol"]);
        let protocol = field(ports.message().unwrap(), "protocol").unwrap();
        assert_eq!(protocol.default, Some("\"TCP\""));
        let volumes = field(spec, "volumes").unwrap();
        assert_eq!(volumes.patch_strategy, Some("merge,retainKeys"));
        let config_map = field(volumes.message().unwrap(), "configMap").unwrap();
        assert_eq!(config_map.parents, [2, 0]);
        let any = Gvk::from_api_version("example.org/v3", "DeleteOptions");
        assert!(message_of(&any).is_some());
        assert!(message_of(&Gvk::from_api_version("example.org/v3", "Pod")).is_none());
    }
}
