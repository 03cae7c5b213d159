//! What to send to the cloud for an entry, and what its answers mean. Pure.

use super::entry::{Entry, Write};
use serde_json::Value;

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
    Next::Send(Send {
        stage: Stage::Create,
        method: http::Method::POST,
        path: entry.path(true),
        body: Some(object.clone()),
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
        Write::Create { object } => create(entry, object),
        Write::Change { .. } => fetch(entry),
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
        (Stage::Fetch, 200) => on_fresh(entry, body),
        (Stage::Fetch | Stage::Update, 404) => match &entry.write {
            Write::Change {
                recreate: Some(object),
                ..
            }
            | Write::Create { object } => create(entry, object),
            Write::Change { recreate: None, .. } => Next::Drop {
                reason: "the object is gone in the cloud".into(),
                gone: true,
            },
        },
        (Stage::Update | Stage::Create, 200..=202) => Next::Done(Some(body.clone())),
        (Stage::Update, 409) if conflicts < MAX_CONFLICTS => fetch(entry),
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

fn on_fresh(entry: &Entry, fresh: &Value) -> Next {
    let changed = match &entry.write {
        Write::Change { change, recreate } => match (change.apply(fresh), recreate) {
            (Some(changed), _) => changed,
            // Another lease of the same name: ours is the newer word.
            (None, Some(object)) => on_other(fresh, object),
            (None, None) => {
                return Next::Drop {
                    reason: "another object has its name in the cloud".into(),
                    gone: false,
                };
            }
        },
        Write::Create { object } => on_other(fresh, object),
    };
    if changed == *fresh || renewed_later(fresh, &changed) {
        return Next::Done(Some(fresh.clone()));
    }
    update(entry, changed)
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
    use serde_json::json;

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
            write: Write::Create {
                object: json!({"metadata": {"name": "e"}}),
            },
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
}
