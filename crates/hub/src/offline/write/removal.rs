//! The last word of a kubelet about a pod: nothing of it is left, it may go. Only removals at once are taken; a deletion that
//! begins with a time of grace is for the cloud to begin.

use super::{
    super::Offline,
    is_dry_run, not_kept,
    rules::{Refusal, check_identity, decode_object, metadata},
};
use crate::{
    cache::overlay::{Layer, Overlay},
    caller::Caller,
    journal::entry::{Entry, Write},
};
use bytes::Bytes;
use http::{StatusCode, request::Parts};
use serde_json::{Value, json};
use yurt_wire::{Object, RequestInfo, Status};

/// What of `DeleteOptions` matters here.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    grace: Option<i64>,
    uid: String,
    revision: String,
    dry_run: bool,
}

impl Options {
    /// From body or query, as an API server takes them.
    fn of(info: &RequestInfo, parts: &Parts, body: &Bytes) -> Result<Self, Box<Status>> {
        let body = if body.is_empty() {
            Value::Null
        } else {
            decode_object(parts, body)?
        };
        let precondition = |field: &str| {
            let value = body.get("preconditions").and_then(|p| p.get(field));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let grace = body.get("gracePeriodSeconds").and_then(Value::as_i64);
        let in_query = || info.query_value("gracePeriodSeconds")?.parse().ok();
        let dry_run = body.get("dryRun").and_then(Value::as_array);
        Ok(Self {
            grace: grace.or_else(in_query),
            uid: precondition("uid"),
            revision: precondition("resourceVersion"),
            dry_run: is_dry_run(info) || dry_run.is_some_and(|modes| !modes.is_empty()),
        })
    }
}

/// Whether the deletion leaves nothing to wait for. An API server gives pods that ended no grace either.
fn is_removal(pod: &Value, options: &Options) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    options.grace == Some(0) || matches!(phase, Some("Succeeded" | "Failed"))
}

impl Offline {
    /// Takes the removal of a pod of this node.
    pub(super) async fn remove(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<(StatusCode, Object), Box<Status>> {
        let options = Options::of(info, parts, body)?;
        let object = self.lookup(caller, info)?;
        let gvk = super::super::gvk_of(&object)?;
        let pod = object
            .to_json_value()
            .map_err(|error| super::malformed(&error))?;
        if !self.is_bound_here(&pod) {
            return Err(self.refused(info, Refusal::NotOurs.why()));
        }
        let preconditions =
            json!({"metadata": {"uid": options.uid, "resourceVersion": options.revision}});
        check_identity(info, &pod, &preconditions)?;
        if !is_removal(&pod, &options) {
            return Err(self.refused(info, Refusal::NotWhileAway.why()));
        }
        if options.dry_run {
            return Ok((StatusCode::OK, object));
        }
        let entry = Entry {
            write: Write::Delete {
                uid: metadata(&pod, "uid").to_owned(),
                last: None,
            },
            ..self.entry(info, &gvk, &info.name)
        };
        let last_seen = object.clone();
        self.journal
            .append(entry, |entry| match &entry.write {
                Write::Delete { uid, .. } => Some(Overlay {
                    object: last_seen,
                    layer: Layer::Deleted { uid: uid.clone() },
                }),
                Write::Create { .. } | Write::Change { .. } => None,
            })
            .await
            .map_err(|error| not_kept(&error))?;
        Ok((StatusCode::OK, object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Request};

    fn options(query: &str, content_type: &str, body: &str) -> Result<Options, u16> {
        let path = "/api/v1/namespaces/d/pods/p";
        let info = RequestInfo::parse(&Method::DELETE, path, Some(query));
        let request = Request::delete(path).header("content-type", content_type);
        let (parts, ()) = request.body(()).unwrap_or_default().into_parts();
        let body = Bytes::copy_from_slice(body.as_bytes());
        Options::of(&info, &parts, &body).map_err(|status| status.code())
    }

    #[test]
    fn options_come_from_body_or_query() {
        let json = "application/json";
        let kubelet = r#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0,"preconditions":{"uid":"u"}}"#;
        let want = |grace, uid: &str, dry_run| {
            Ok(Options {
                grace,
                uid: uid.into(),
                revision: String::new(),
                dry_run,
            })
        };
        assert_eq!(options("", json, kubelet), want(Some(0), "u", false));
        assert_eq!(
            options("gracePeriodSeconds=0", json, ""),
            want(Some(0), "", false)
        );
        assert_eq!(options("dryRun=All", json, ""), want(None, "", true));
        assert_eq!(
            options("", json, r#"{"dryRun":["All"]}"#),
            want(None, "", true)
        );
        assert_eq!(options("", json, "[]"), Err(400));
        assert_eq!(options("", "text/plain", "x"), Err(415));
    }

    #[test]
    fn only_what_is_over_is_removed() {
        let pod = |phase: &str| json!({"status": {"phase": phase}});
        let with = |grace| Options {
            grace,
            uid: String::new(),
            revision: String::new(),
            dry_run: false,
        };
        assert!(is_removal(&pod("Running"), &with(Some(0))));
        assert!(is_removal(&pod("Failed"), &with(None)));
        assert!(!is_removal(&pod("Running"), &with(None)));
        assert!(!is_removal(&pod("Running"), &with(Some(30))));
    }
}
