//! What to send to the cloud for an entry, and what its answers mean. Pure.

use super::entry::{Entry, MIRROR, Write};
use serde_json::{Value, json};

/// Attempts to write on a fresh object before the entry waits for the next time.
pub(crate) const MAX_CONFLICTS: u32 = 5;

/// Where the replay of one entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The object was asked for.
    Fetch,
    /// The changed object was sent.
    Update,
    /// The object was created.
    Create,
    /// The object was deleted.
    Delete,
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Send {
    pub(crate) stage: Stage,
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) body: Option<Value>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// Send this and come back with the answer.
    Send(Send),
    /// In the cloud; this is its state of the object, when known.
    Done(Option<Value>),
    /// Deleted: the cloud does not have the object any more.
    Gone,
    /// It can never be applied.
    Drop {
        /// Why.
        reason: String,
        /// Whether the cloud said that the object does not exist.
        gone: bool,
    },
    /// Not now: the cloud cannot take anything.
    Later(String),
    /// Not now, for reasons of this object alone (a conflict without end, a webhook that fails): the others go on.
    LaterAlone(String),
}

fn fetch(entry: &Entry) -> Next {
    Next::Send(Send {
        stage: Stage::Fetch,
        method: http::Method::GET,
        path: entry.path(false),
        body: None,
    })
}

fn create(entry: &Entry, object: &Value) -> Next {
    let mut object = object.clone();
    if entry.has_status()
        && let Some(object) = object.as_object_mut()
    {
        // Brought through its own door once the object is there.
        object.remove("status");
    }
    Next::Send(Send {
        stage: Stage::Create,
        method: http::Method::POST,
        path: entry.path(true),
        body: Some(object),
    })
}

/// Deletes at once, as whoever ran it says that nothing of it is left; only the object of this uid.
fn delete(entry: &Entry, uid: &str) -> Next {
    Next::Send(Send {
        stage: Stage::Delete,
        method: http::Method::DELETE,
        path: entry.path(false),
        body: Some(json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid},
        })),
    })
}

fn update(entry: &Entry, object: Value) -> Next {
    Next::Send(Send {
        stage: Stage::Update,
        method: http::Method::PUT,
        path: format!("{}{}", entry.path(false), entry.subresource()),
        body: Some(object),
    })
}

/// The first step.
pub(crate) fn begin(entry: &Entry) -> Next {
    match &entry.write {
        Write::Create {
            replaces: Some(uid),
            ..
        }
        | Write::Delete { uid, last: None } => delete(entry, uid),
        Write::Create { object, .. } => create(entry, object),
        Write::Change { .. } | Write::Delete { .. } => fetch(entry),
    }
}

fn message(body: &Value) -> &str {
    body.get("message")
        .and_then(Value::as_str)
        .unwrap_or("no message")
}

/// The step after an answer. `conflicts` counts the conflicts so far.
pub(crate) fn after(entry: &Entry, stage: Stage, code: u16, body: &Value, conflicts: u32) -> Next {
    match (stage, code) {
        (_, 500) => Next::LaterAlone(format!("{code}: {}", message(body))),
        (_, 401 | 408 | 425 | 429 | 501..) => Next::Later(format!("{code}: {}", message(body))),
        (Stage::Delete, _) => on_delete(entry, code, body, conflicts),
        (Stage::Fetch, 200) => on_fresh(entry, body),
        (Stage::Fetch | Stage::Update, 404) => match &entry.write {
            Write::Change {
                recreate: Some(object),
                ..
            }
            | Write::Create { object, .. } => create(entry, object),
            Write::Change { recreate: None, .. } => Next::Drop {
                reason: "the object is gone in the cloud".into(),
                gone: true,
            },
            Write::Delete { .. } => Next::Gone,
        },
        (Stage::Create, 200..=202) if entry.has_status() => on_fresh(entry, body),
        (Stage::Update, 409) if conflicts < MAX_CONFLICTS => fetch(entry),
        (Stage::Update, code) if code != 409 && deleted(entry).is_some() => {
            // A status that is refused for good does not keep the object.
            delete(entry, deleted(entry).unwrap_or_default())
        }
        (Stage::Update | Stage::Create, 200..=202) => Next::Done(Some(body.clone())),
        (Stage::Create, 409) if entry.is_event() => Next::Done(None),
        (Stage::Create, 409) if conflicts < MAX_CONFLICTS => fetch(entry),
        (_, 409) => Next::LaterAlone(format!("still in conflict: {}", message(body))),
        (Stage::Create, 404) => Next::Drop {
            reason: format!("its namespace is gone in the cloud: {}", message(body)),
            gone: true,
        },
        _ => Next::Drop {
            reason: format!("the cloud refuses it with {code}: {}", message(body)),
            gone: false,
        },
    }
}

/// The uid of the object that an entry deletes.
fn deleted(entry: &Entry) -> Option<&str> {
    match &entry.write {
        Write::Delete { uid, .. } => Some(uid),
        Write::Create { .. } | Write::Change { .. } => None,
    }
}

fn on_delete(entry: &Entry, code: u16, body: &Value, conflicts: u32) -> Next {
    match (&entry.write, code) {
        // Gone, or another object has its name: then ours is gone too, or in the way, which its creation will tell.
        (Write::Create { object, .. }, 200..=202 | 404 | 409) => create(entry, object),
        (_, 404) => Next::Gone,
        (_, 200..=202) => {
            let finalizers = body.pointer("/metadata/finalizers");
            let stays = finalizers
                .and_then(Value::as_array)
                .is_some_and(|finalizers| !finalizers.is_empty());
            if stays {
                Next::Done(Some(body.clone()))
            } else {
                Next::Gone
            }
        }
        // Of another uid, as a rule: the fresh object tells.
        (_, 409) if conflicts < MAX_CONFLICTS => fetch(entry),
        (_, 409) => Next::LaterAlone(format!("still in conflict: {}", message(body))),
        _ => Next::Drop {
            reason: format!(
                "the cloud refuses its deletion with {code}: {}",
                message(body)
            ),
            gone: false,
        },
    }
}

fn on_fresh(entry: &Entry, fresh: &Value) -> Next {
    let another = || Next::Drop {
        reason: "another object has its name in the cloud".into(),
        gone: false,
    };
    let changed = match &entry.write {
        Write::Change { change, recreate } => match (change.apply(fresh), recreate) {
            (Some(changed), _) => changed,
            // Another lease of the same name: ours is the newer word.
            (None, Some(object)) => on_other(fresh, object),
            (None, None) => return another(),
        },
        Write::Create { object, .. } if entry.has_status() => {
            if mirrored(fresh) != mirrored(object) {
                return another();
            }
            with_status(fresh, object)
        }
        Write::Create { object, .. } => on_other(fresh, object),
        Write::Delete { uid, last } => {
            if fresh.pointer("/metadata/uid").and_then(Value::as_str) != Some(uid) {
                return Next::Done(Some(fresh.clone()));
            }
            match last.as_ref().and_then(|last| last.apply(fresh)) {
                Some(changed) if changed != *fresh => changed,
                _ => return delete(entry, uid),
            }
        }
    };
    if changed == *fresh || renewed_later(fresh, &changed) {
        return Next::Done(Some(fresh.clone()));
    }
    update(entry, changed)
}

/// What makes two mirror pods of one name the same.
fn mirrored(pod: &Value) -> Option<&Value> {
    pod.get("metadata")?.get("annotations")?.get(MIRROR)
}

/// A pod with the status that was reported of it here.
fn with_status(fresh: &Value, ours: &Value) -> Value {
    let mut out = fresh.clone();
    if let (Some(out), Some(ours)) = (
        out.as_object_mut(),
        ours.get("status").and_then(Value::as_object),
    ) {
        let status = out.entry("status").or_insert_with(|| json!({}));
        if let Some(status) = status.as_object_mut() {
            for (key, value) in ours {
                status.insert(key.clone(), value.clone());
            }
        }
    }
    out
}

/// Whether a lease was renewed in the cloud after it was renewed here. The times are RFC 3339 in UTC with microseconds, which
/// sort as text.
fn renewed_later(fresh: &Value, ours: &Value) -> bool {
    let renewed = |lease: &Value| {
        lease
            .pointer("/spec/renewTime")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    match (renewed(fresh), renewed(ours)) {
        (Some(theirs), Some(ours)) => theirs > ours,
        _ => false,
    }
}

/// Our content on another object of the same name.
fn on_other(fresh: &Value, ours: &Value) -> Value {
    let mut out = fresh.clone();
    if let (Some(out), Some(ours)) = (out.as_object_mut(), ours.as_object()) {
        for (key, value) in ours {
            if !matches!(key.as_str(), "metadata" | "apiVersion" | "kind") {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{super::change::Change, *};

    fn pod_entry() -> Entry {
        let base = json!({"metadata": {"uid": "u"}, "status": {"phase": "Pending"}});
        let local = json!({"metadata": {"uid": "u"}, "status": {"phase": "Running"}});
        Entry {
            order: 1,
            group: String::new(),
            version: "v1".into(),
            resource: "pods".into(),
            kind: "Pod".into(),
            namespace: "default".into(),
            name: "web".into(),
            at: 0,
            write: Write::Change {
                change: Change::between(&base, &local),
                recreate: None,
            },
        }
    }

    fn is_later(next: &Next) -> bool {
        matches!(next, Next::Later(_))
    }

    #[test]
    fn status_goes_on_the_fresh_object() {
        let entry = pod_entry();
        let Next::Send(first) = begin(&entry) else {
            panic!("no request")
        };
        assert_eq!(first.path, "/api/v1/namespaces/default/pods/web");
        let fresh = json!({"metadata": {"uid": "u", "resourceVersion": "9"},
            "status": {"phase": "Pending", "qosClass": "Guaranteed"}});
        let Next::Send(second) = after(&entry, Stage::Fetch, 200, &fresh, 0) else {
            panic!("no request")
        };
        assert_eq!(second.method, http::Method::PUT);
        assert_eq!(second.path, "/api/v1/namespaces/default/pods/web/status");
        assert_eq!(
            second.body,
            Some(json!({"metadata": {"uid": "u", "resourceVersion": "9"},
                "status": {"phase": "Running", "qosClass": "Guaranteed"}}))
        );
        // written already (killed before the entry was struck out): nothing to do
        let written = second.body.unwrap_or_default();
        assert_eq!(
            after(&entry, Stage::Fetch, 200, &written, 0),
            Next::Done(Some(written))
        );
    }

    #[test]
    fn gone_replaced_refused_and_transient() {
        let entry = pod_entry();
        let gone = |next: Next| match next {
            Next::Drop { gone, .. } => Some(gone),
            _ => None,
        };
        assert_eq!(
            gone(after(&entry, Stage::Fetch, 404, &Value::Null, 0)),
            Some(true)
        );
        let other = json!({"metadata": {"uid": "w"}});
        assert_eq!(
            gone(after(&entry, Stage::Fetch, 200, &other, 0)),
            Some(false)
        );
        assert_eq!(
            gone(after(&entry, Stage::Update, 422, &Value::Null, 0)),
            Some(false)
        );
        assert_eq!(
            gone(after(&entry, Stage::Update, 403, &Value::Null, 0)),
            Some(false)
        );
        for code in [401, 429, 503, 504] {
            assert!(is_later(&after(
                &entry,
                Stage::Update,
                code,
                &Value::Null,
                0
            )));
        }
        assert!(matches!(
            after(&entry, Stage::Update, 409, &Value::Null, 0),
            Next::Send(_)
        ));
        for (code, conflicts) in [(409, MAX_CONFLICTS), (500, 0)] {
            assert!(matches!(
                after(&entry, Stage::Update, code, &Value::Null, conflicts),
                Next::LaterAlone(_)
            ));
        }
    }

    #[test]
    fn events_exist_once() {
        let entry = Entry {
            resource: "events".into(),
            write: Write::create(json!({"metadata": {"name": "e"}})),
            ..pod_entry()
        };
        assert!(matches!(
            begin(&entry),
            Next::Send(Send {
                stage: Stage::Create,
                ..
            })
        ));
        assert_eq!(
            after(&entry, Stage::Create, 409, &Value::Null, 0),
            Next::Done(None)
        );
        assert!(matches!(
            after(&entry, Stage::Create, 404, &Value::Null, 0),
            Next::Drop { gone: true, .. }
        ));
    }

    #[test]
    fn a_lease_renewed_in_the_cloud_meanwhile_is_not_turned_back() {
        let lease = |time: &str| json!({"metadata": {"uid": "u"}, "spec": {"renewTime": time}});
        let ours = lease("2026-11-21T22:00:10.000000Z");
        let entry = Entry {
            group: "coordination.k8s.io".into(),
            resource: "leases".into(),
            write: Write::Change {
                change: Change::between(&lease("2026-11-21T22:00:00.000000Z"), &ours),
                recreate: Some(ours),
            },
            ..pod_entry()
        };
        let newer = lease("2026-11-21T22:00:20.000000Z");
        assert_eq!(
            after(&entry, Stage::Fetch, 200, &newer, 0),
            Next::Done(Some(newer))
        );
        let older = lease("2026-11-21T22:00:05.000000Z");
        assert!(matches!(
            after(&entry, Stage::Fetch, 200, &older, 0),
            Next::Send(_)
        ));
    }

    fn sent(next: &Next) -> Option<(&http::Method, &str)> {
        match next {
            Next::Send(send) => Some((&send.method, send.path.as_str())),
            _ => None,
        }
    }

    #[test]
    fn a_deletion_brings_the_last_status_first_and_spares_other_uids() {
        const POD: &str = "/api/v1/namespaces/default/pods/web";
        let Write::Change { change, .. } = pod_entry().write else {
            panic!("a change")
        };
        let plain = Entry {
            write: Write::Delete {
                uid: "u".into(),
                last: None,
            },
            ..pod_entry()
        };
        let Next::Send(first) = begin(&plain) else {
            panic!("no request")
        };
        assert_eq!(
            (&first.method, first.path.as_str()),
            (&http::Method::DELETE, POD)
        );
        let body = first.body.unwrap_or_default();
        assert_eq!(body["preconditions"], json!({"uid": "u"}));
        assert_eq!(body["gracePeriodSeconds"], 0);
        let after_delete = |code, body: &Value| after(&plain, Stage::Delete, code, body, 0);
        assert_eq!(after_delete(200, &json!({})), Next::Gone);
        assert_eq!(after_delete(404, &json!({})), Next::Gone);
        let held =
            json!({"metadata": {"uid": "u", "finalizers": ["batch.kubernetes.io/job-tracking"]}});
        assert_eq!(after_delete(200, &held), Next::Done(Some(held.clone())));
        assert!(matches!(
            after_delete(403, &json!({})),
            Next::Drop { gone: false, .. }
        ));
        // another uid: nothing is deleted, and the other one shows
        assert_eq!(
            sent(&after_delete(409, &json!({}))),
            Some((&http::Method::GET, POD))
        );
        let other = json!({"metadata": {"uid": "w"}});
        assert_eq!(
            after(&plain, Stage::Fetch, 200, &other, 1),
            Next::Done(Some(other))
        );

        let last = Entry {
            write: Write::Delete {
                uid: "u".into(),
                last: Some(change),
            },
            ..pod_entry()
        };
        assert_eq!(sent(&begin(&last)), Some((&http::Method::GET, POD)));
        let fresh = json!({"metadata": {"uid": "u"}, "status": {"phase": "Pending"}});
        let next = after(&last, Stage::Fetch, 200, &fresh, 0);
        let status = format!("{POD}/status");
        assert_eq!(sent(&next), Some((&http::Method::PUT, status.as_str())));
        for code in [200, 422] {
            let next = after(&last, Stage::Update, code, &json!({}), 0);
            assert_eq!(sent(&next), Some((&http::Method::DELETE, POD)), "{code}");
        }
    }

    #[test]
    fn a_mirror_pod_is_created_once_with_its_status() {
        let ours = json!({"metadata": {"name": "web", "annotations": {MIRROR: "hash"}},
            "status": {"phase": "Running"}});
        let entry = Entry {
            write: Write::create(ours.clone()),
            ..pod_entry()
        };
        let Next::Send(first) = begin(&entry) else {
            panic!("no request")
        };
        assert_eq!(first.method, http::Method::POST);
        assert_eq!(first.body.unwrap_or_default().get("status"), None);
        let made = json!({"metadata": {"name": "web", "uid": "c", "annotations": {MIRROR: "hash"}},
            "status": {"phase": "Pending", "qosClass": "BestEffort"}});
        let Next::Send(second) = after(&entry, Stage::Create, 201, &made, 0) else {
            panic!("no status")
        };
        assert_eq!(second.method, http::Method::PUT);
        assert_eq!(
            second.body.unwrap_or_default()["status"],
            json!({"phase": "Running", "qosClass": "BestEffort"})
        );
        // it exists: the same mirror is ours, another is not
        assert!(matches!(
            after(&entry, Stage::Create, 409, &json!({}), 0),
            Next::Send(Send {
                stage: Stage::Fetch,
                ..
            })
        ));
        let mut same = made.clone();
        same["status"]["phase"] = "Running".into();
        assert_eq!(
            after(&entry, Stage::Fetch, 200, &same, 1),
            Next::Done(Some(same))
        );
        let mut other = made;
        other["metadata"]["annotations"][MIRROR] = "another".into();
        assert!(matches!(
            after(&entry, Stage::Fetch, 200, &other, 1),
            Next::Drop { gone: false, .. }
        ));
        // the predecessor goes first
        let replacing = Entry {
            write: Write::Create {
                object: ours,
                uid: String::new(),
                replaces: Some("old".into()),
            },
            ..entry
        };
        let Next::Send(first) = begin(&replacing) else {
            panic!("no request")
        };
        assert_eq!(first.method, http::Method::DELETE);
        for code in [200, 404, 409] {
            let next = after(&replacing, Stage::Delete, code, &json!({}), 0);
            assert_eq!(
                sent(&next),
                Some((&http::Method::POST, "/api/v1/namespaces/default/pods"))
            );
        }
    }
}
