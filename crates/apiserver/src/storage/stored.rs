//! One stored object: its JSON, and what serving needs to know of it without parsing.

use crate::selectable;
use bytes::Bytes;
use serde_json::Value;
use std::{ops::Range, sync::OnceLock};
use yurt_wire::{
    Encoding, Object,
    object::Malformed,
    watch::{self, EventType},
};

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

/// What is known of an object besides its bytes.
#[derive(Debug)]
pub(super) struct Traits {
    labels: Vec<(String, String)>,
    node: Option<Box<str>>,
    deleting: bool,
}

/// The resource whose objects are watched by the node they are on.
const PODS: &str = "/pods";

impl Traits {
    pub(super) fn of(partition: &str, object: &Value) -> Self {
        let labels = object["metadata"]["labels"].as_object();
        Self {
            labels: labels.map_or_else(Vec::new, |labels| {
                labels
                    .iter()
                    .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
                    .collect()
            }),
            node: (partition == PODS).then(|| {
                object["spec"]["nodeName"]
                    .as_str()
                    .unwrap_or_default()
                    .into()
            }),
            deleting: crate::meta::is_deleting(object),
        }
    }
}

/// An object in one encoding, within the frame of the event that brought it: watchers share the one, everybody else
/// the other, and both are the same bytes.
#[derive(Debug)]
struct Framed {
    frame: Bytes,
    /// Where the object is in the frame.
    start: u32,
    end: u32,
}

impl Framed {
    fn new(event: EventType, object: &Object) -> Self {
        let frame = watch::encode(event, object, object.encoding);
        // A JSON frame ends with a brace and a newline, a protobuf one with the object. Objects are far below 4 GiB.
        let after = match object.encoding {
            Encoding::Json => 2,
            Encoding::Protobuf => 0,
        };
        let end = frame.len() - after;
        Self {
            start: (end - object.bytes.len()) as u32,
            end: end as u32,
            frame,
        }
    }

    fn place(&self) -> Range<usize> {
        self.start as usize..self.end as usize
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
    node: Option<Box<str>>,
    deleting: bool,
    /// What its writing was to those who watch everything.
    event: EventType,
    json: Framed,
    protobuf: OnceLock<Option<Framed>>,
    /// The values of the resource's selectable paths, in their order.
    fields: OnceLock<Box<[Box<str>]>>,
}

impl Stored {
    /// From JSON that carries `revision` as its resourceVersion already.
    pub(super) fn new(
        key: Key,
        revision: u64,
        event: EventType,
        traits: Traits,
        json: Bytes,
    ) -> Self {
        let object = Object {
            encoding: Encoding::Json,
            bytes: json,
        };
        Self {
            key,
            revision,
            labels: traits.labels,
            node: traits.node,
            deleting: traits.deleting,
            event,
            json: Framed::new(event, &object),
            protobuf: OnceLock::new(),
            fields: OnceLock::new(),
        }
    }

    /// The node that a pod is on.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Whether its deletion has begun.
    pub fn is_deleting(&self) -> bool {
        self.deleting
    }

    /// The object as JSON text.
    pub fn json(&self) -> &[u8] {
        &self.json.frame[self.json.place()]
    }

    /// As [`Stored::json`], shared.
    pub fn json_bytes(&self) -> Bytes {
        self.json.frame.slice(self.json.place())
    }

    /// The object as a value. Its JSON was serialised by this process (or checked when the store was opened), so
    /// it parses.
    pub fn value(&self) -> Value {
        serde_json::from_slice(self.json()).unwrap_or_default()
    }

    fn framed(&self, encoding: Encoding) -> Result<&Framed, Malformed> {
        if encoding == Encoding::Json {
            return Ok(&self.json);
        }
        let cached = self.protobuf.get_or_init(|| {
            let json = Object {
                encoding: Encoding::Json,
                bytes: self.json_bytes(),
            };
            let object = json.to_encoding(Encoding::Protobuf).ok()?;
            Some(Framed::new(self.event, &object))
        });
        cached.as_ref().ok_or_else(|| Malformed {
            encoding,
            what: "the kind has no protobuf form".into(),
        })
    }

    /// The object in an encoding; protobuf is made once and kept.
    pub fn object(&self, encoding: Encoding) -> Result<Object, Malformed> {
        let framed = self.framed(encoding)?;
        Ok(Object {
            encoding,
            bytes: framed.frame.slice(framed.place()),
        })
    }

    /// The object as an event of a watch; made once for all watchers to whom the event is of the usual kind.
    pub fn event(&self, event: EventType, encoding: Encoding) -> Result<Bytes, Malformed> {
        if event == self.event {
            return Ok(self.framed(encoding)?.frame.clone());
        }
        Ok(watch::encode(event, &self.object(encoding)?, encoding))
    }

    /// The same object as if it had been written at `revision`.
    pub fn at_revision(&self, revision: u64) -> Result<Self, Malformed> {
        let json = self
            .object(Encoding::Json)?
            .with_resource_version(&revision.to_string())?;
        let traits = Traits {
            labels: self.labels.clone(),
            node: self.node.clone(),
            deleting: self.deleting,
        };
        let key = self.key.clone();
        Ok(Self::new(key, revision, self.event, traits, json.bytes))
    }

    /// The same object in another form.
    pub fn showing(&self, value: &Value) -> Self {
        let json = Bytes::from(value.to_string());
        let traits = Traits::of("", value);
        Self::new(self.key.clone(), self.revision, self.event, traits, json)
    }

    /// The value a field selector sees at `path`. The paths in `selectable`, which are always the same for a resource, are
    /// read once and kept.
    pub fn field(&self, path: &str, selectable: &[String]) -> String {
        match path {
            "metadata.name" => return self.key.name.to_string(),
            "metadata.namespace" => return self.key.namespace.to_string(),
            "spec.nodeName" if self.node.is_some() => {
                return self.node().unwrap_or_default().to_owned();
            }
            _ => {}
        }
        let fields = self.fields.get_or_init(|| {
            let value = self.value();
            let fields = selectable.iter();
            fields
                .map(|path| selectable::field(&value, path).into())
                .collect()
        });
        let known = selectable.iter().position(|known| known == path);
        match known.and_then(|at| fields.get(at)) {
            Some(value) => value.to_string(),
            None => selectable::field(&self.value(), path),
        }
    }
}
