//! One entry of the journal: what the node wrote to one object since the link went. Pure.

use super::change::Change;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use yurt_wire::{Gvk, Gvr};

/// What is to be done in the cloud.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Write {
    /// Create this object (JSON as the component sent it).
    Create {
        /// The object without what a server fills in.
        object: Value,
    },
    /// Put this change on the fresh object.
    Change {
        /// The change.
        change: Change,
        /// What to create when the object is gone meanwhile (leases, events); without it the change is dropped.
        recreate: Option<Value>,
    },
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Place in the order of last writes.
    pub(crate) order: u64,
    /// API group, version, resource and kind.
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Seconds since the epoch of the last write.
    pub(crate) at: i64,
    pub(crate) write: Write,
}

impl Entry {
    /// The resource.
    pub(crate) fn gvr(&self) -> Gvr {
        Gvr::new(&self.group, &self.version, &self.resource)
    }

    /// The kind.
    pub(crate) fn gvk(&self) -> Gvk {
        Gvk {
            group: self.group.clone(),
            version: self.version.clone(),
            kind: self.kind.clone(),
        }
    }

    /// Whether it is an event: many, small, worth less than the rest.
    pub(crate) fn is_event(&self) -> bool {
        self.resource == "events"
    }

    /// The path of the object, with the subresource that takes its changes; without a name the collection's.
    pub(crate) fn path(&self, collection: bool) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if !self.namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(&self.namespace);
        }
        path.push('/');
        path.push_str(&self.resource);
        if !collection {
            path.push('/');
            path.push_str(&self.name);
        }
        path
    }

    /// The subresource through which changes of this resource are written.
    pub(crate) fn subresource(&self) -> &'static str {
        match (self.group.as_str(), self.resource.as_str()) {
            ("", "pods" | "nodes") => "/status",
            _ => "",
        }
    }
}

/// The entry of an object after one more write.
pub(crate) fn coalesce(known: Option<Entry>, mut new: Entry) -> Entry {
    let Some(known) = known else {
        return new;
    };
    new.write = match (known.write, new.write) {
        // Created here and changed since: it is created in its last state.
        (
            Write::Create { .. },
            Write::Change {
                recreate: Some(object),
                ..
            },
        ) => Write::Create { object },
        (Write::Change { change: first, .. }, Write::Change { change, recreate }) => {
            Write::Change {
                change: first.then(change),
                recreate,
            }
        }
        (_, new) => new,
    };
    new
}
