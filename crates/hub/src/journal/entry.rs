//! One entry of the journal: what the node wrote to one object since the link went. Pure.

use super::change::Change;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use yurt_wire::{Gvk, Gvr};

/// The annotation of a mirror pod: the image of a static pod in the API. Its value follows from the static pod.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is to be done in the cloud.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Write {
    /// Create this object (JSON as the component sent it).
    Create {
        /// The object without what a server fills in.
        object: Value,
        /// Its uid on the node, until the cloud gives it one.
        #[serde(default)]
        uid: String,
        /// The uid of the object of the same name that is to go first.
        #[serde(default)]
        replaces: Option<String>,
    },
    /// Put this change on the fresh object.
    Change {
        /// The change.
        change: Change,
        /// What to create when the object is gone meanwhile (leases, events); without it the change is dropped.
        recreate: Option<Value>,
    },
    /// Delete the object of this uid, and no other of its name.
    Delete {
        /// The uid.
        uid: String,
        /// What waited for it: its last status is brought first, as whoever follows the object in the cloud decides by it.
        #[serde(default)]
        last: Option<Change>,
    },
}

impl Write {
    /// The creation of an object.
    pub(crate) fn create(object: Value) -> Self {
        Self::Create {
            object,
            uid: String::new(),
            replaces: None,
        }
    }
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

    /// Whether the object's status is written through a subresource, after its creation.
    pub(crate) fn has_status(&self) -> bool {
        self.group.is_empty() && self.resource == "pods"
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

/// The entry of an object after one more write; `None` when nothing is left to be done in the cloud.
pub(crate) fn coalesce(known: Option<Entry>, mut new: Entry) -> Option<Entry> {
    let Some(known) = known else {
        return Some(new);
    };
    new.write = match (known.write, new.write) {
        // Created here and changed since: it is created in its last state.
        (
            Write::Create { uid, replaces, .. },
            Write::Change {
                recreate: Some(object),
                ..
            },
        ) => Write::Create {
            object,
            uid,
            replaces,
        },
        (Write::Change { change: first, .. }, Write::Change { change, recreate }) => {
            Write::Change {
                change: first.then(change),
                recreate,
            }
        }
        (Write::Change { change, .. }, Write::Delete { uid, last: None }) => Write::Delete {
            last: (change.uid == uid).then_some(change),
            uid,
        },
        // The cloud never had it; it may have its predecessor.
        (Write::Create { replaces, .. }, Write::Delete { .. }) => Write::Delete {
            uid: replaces?,
            last: None,
        },
        (Write::Delete { uid: old, .. }, Write::Create { object, uid, .. }) => Write::Create {
            object,
            uid,
            replaces: Some(old),
        },
        (_, new) => new,
    };
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(write: Write) -> Entry {
        Entry {
            order: 1,
            group: String::new(),
            version: "v1".into(),
            resource: "pods".into(),
            kind: "Pod".into(),
            namespace: "d".into(),
            name: "p".into(),
            at: 0,
            write,
        }
    }

    fn then(first: Write, second: Write) -> Option<Write> {
        coalesce(Some(entry(first)), entry(second)).map(|entry| entry.write)
    }

    fn status(uid: &str) -> Change {
        let pod = |phase: &str| json!({"metadata": {"uid": uid}, "status": {"phase": phase}});
        Change::between(&pod("Running"), &pod("Succeeded"))
    }

    fn delete(uid: &str, last: Option<Change>) -> Write {
        let uid = uid.into();
        Write::Delete { uid, last }
    }

    #[test]
    fn a_deletion_takes_the_waiting_status_of_its_own_object_along_and_of_no_other() {
        let waiting = |uid: &str| Write::Change {
            change: status(uid),
            recreate: None,
        };
        assert_eq!(
            then(waiting("u"), delete("u", None)),
            Some(delete("u", Some(status("u"))))
        );
        assert_eq!(
            then(waiting("other"), delete("u", None)),
            Some(delete("u", None))
        );
    }

    #[test]
    fn what_was_created_here_and_deleted_again_was_never_there() {
        assert_eq!(then(Write::create(json!({})), delete("local", None)), None);
        let replaced = then(delete("old", None), Write::create(json!({"a": 1})));
        let Some(Write::Create {
            replaces: Some(old),
            ..
        }) = &replaced
        else {
            panic!("{replaced:?}")
        };
        assert_eq!(old, "old");
        let gone = replaced.and_then(|replaced| then(replaced, delete("local", None)));
        assert_eq!(
            gone,
            Some(delete("old", None)),
            "its predecessor still goes"
        );
    }

    #[test]
    fn entries_of_earlier_versions_are_read() {
        let text = r#"{"create":{"object":{"a":1}}}"#;
        assert_eq!(
            serde_json::from_str::<Write>(text).ok(),
            Some(Write::create(json!({"a": 1})))
        );
    }
}
