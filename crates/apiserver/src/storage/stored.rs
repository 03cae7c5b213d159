//! One stored object: its JSON, and what serving needs to know of it without parsing.

use crate::selectable;
use bytes::Bytes;
use serde_json::Value;
use std::sync::OnceLock;
use yurt_wire::{Encoding, Object, object::Malformed};

/// Namespace and name; the order of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `""` for cluster-scoped objects.
    pub namespace: Box<str>,
    /// The name.
    pub name: Box<str>,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// An object at one revision. Immutable; shared by the partition, the window and every response under way.
#[derive(Debug)]
pub struct Stored {
    /// Where it lives.
    pub key: Key,
    /// Its `metadata.resourceVersion`.
    pub revision: u64,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    json: Bytes,
    protobuf: OnceLock<Option<Bytes>>,
    fields: OnceLock<Vec<(String, String)>>,
}

impl Stored {
    /// From a value that carries `revision` as its resourceVersion already, and its serialised form.
    pub(super) fn new(key: Key, revision: u64, value: &Value, json: Bytes) -> Self {
        let labels = value["metadata"]["labels"]
            .as_object()
            .map(|labels| {
                labels
                    .iter()
                    .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
                    .collect()
            })
            .unwrap_or_default();
        Self {
            key,
            revision,
            labels,
            json,
            protobuf: OnceLock::new(),
            fields: OnceLock::new(),
        }
    }

    /// The object as JSON text.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The object as a value. `json` was serialised by this process (or checked when the store was opened), so
    /// it parses.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// The object in an encoding; protobuf is made once and kept.
    pub fn object(&self, encoding: Encoding) -> Result<Object, Malformed> {
        let json = || Object {
            encoding: Encoding::Json,
            bytes: self.json.clone(),
        };
        if encoding == Encoding::Json {
            return Ok(json());
        }
        let cached = self.protobuf.get_or_init(|| {
            json()
                .to_encoding(Encoding::Protobuf)
                .ok()
                .map(|object| object.bytes)
        });
        match cached {
            Some(bytes) => Ok(Object {
                encoding,
                bytes: bytes.clone(),
            }),
            None => Err(Malformed {
                encoding,
                what: "the kind has no protobuf form".into(),
            }),
        }
    }

    /// The same object as if it had been written at `revision`.
    pub fn at_revision(&self, revision: u64) -> Self {
        let mut value = self.value();
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        let json = Bytes::from(value.to_string());
        Self::new(self.key.clone(), revision, &value, json)
    }

    /// The value a field selector sees at `path`. The paths in `selectable` are read once and kept.
    pub fn field(&self, path: &str, selectable: &[String]) -> String {
        match path {
            "metadata.name" => return self.key.name.to_string(),
            "metadata.namespace" => return self.key.namespace.to_string(),
            _ => {}
        }
        let fields = self.fields.get_or_init(|| {
            let value = self.value();
            selectable
                .iter()
                .map(|path| (path.clone(), selectable::field(&value, path)))
                .collect()
        });
        match fields.iter().find(|(known, _)| known == path) {
            Some((_, value)) => value.clone(),
            None => selectable::field(&self.value(), path),
        }
    }
}
