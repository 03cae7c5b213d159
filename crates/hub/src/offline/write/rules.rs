//! Which writes are taken while the cloud is away, and what of them. Pure.

use crate::{autonomy::heartbeat::NODE_LEASES, caller::Caller};
use bytes::Bytes;
use http::{header, request::Parts};
use serde_json::{Map, Value};
use yurt_wire::{
    Encoding, Gvk, Object, RequestInfo, Status, Verb,
    patch::{PatchType, json_patch, merge_patch, strategic_merge_patch},
    schema::message_of,
};

/// What kind of write is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Status of a pod of this node.
    PodStatus,
    /// Status of the node.
    NodeStatus,
    /// Labels and annotations of the node.
    NodeMetadata,
    /// The node's heartbeat.
    NodeLease,
    /// Events.
    Event,
    /// The image of a static pod, which the kubelet runs whether it is there or not.
    MirrorPod,
    /// A pod of which the kubelet says that nothing is left.
    PodRemoval,
}

/// Why a write is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Only the cloud can decide it.
    NotWhileAway,
    /// Not this node's business.
    NotOurs,
    /// It would have to be replayed with an identity that is not the caller's.
    BearerToken,
}

impl Refusal {
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::NotWhileAway => "is not accepted while the cloud is away",
            Self::NotOurs => {
                "is not accepted while the cloud is away: it is about something of another node"
            }
            Self::BearerToken => {
                "with a bearer token is not accepted while the cloud is away: it could only be brought to the cloud later with \
                 the node's identity, which is lent to nobody"
            }
        }
    }
}

/// The table of writes.
pub(super) fn decide(
    caller: &Caller,
    node_name: &str,
    info: &RequestInfo,
) -> Result<Kind, Refusal> {
    let modify = matches!(info.verb, Verb::Update | Verb::Patch);
    let ours = info.name == node_name;
    let kind = match (
        info.group.as_str(),
        info.resource.as_str(),
        info.subresource.as_str(),
    ) {
        ("", "pods", "status") if modify => Kind::PodStatus,
        ("", "nodes", "status") if modify && ours => Kind::NodeStatus,
        ("", "nodes", "") if info.verb == Verb::Patch && ours => Kind::NodeMetadata,
        ("coordination.k8s.io", "leases", "")
            if info.namespace == NODE_LEASES && info.verb != Verb::Delete =>
        {
            if info.verb != Verb::Create && !ours {
                return Err(Refusal::NotOurs);
            }
            Kind::NodeLease
        }
        ("" | "events.k8s.io", "events", "") if info.verb != Verb::Delete => Kind::Event,
        // Which of them are taken, the object tells.
        ("", "pods", "") if info.verb == Verb::Create => Kind::MirrorPod,
        ("", "pods", "") if info.verb == Verb::Delete => Kind::PodRemoval,
        ("", "nodes", "status" | "") if modify && !ours => return Err(Refusal::NotOurs),
        _ => return Err(Refusal::NotWhileAway),
    };
    match caller {
        Caller::Node => Ok(kind),
        Caller::Peer(_) => Err(Refusal::NotOurs),
        Caller::User(_) | Caller::Bearer(_) => Err(Refusal::BearerToken),
    }
}

pub(super) fn bad_request(message: impl Into<String>) -> Box<Status> {
    Box::new(Status::bad_request(message))
}

/// The content type without parameters, lower case.
pub(super) fn media_type(parts: &Parts) -> String {
    parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json")
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// A body that is a whole object.
pub(in crate::offline) fn decode_object(parts: &Parts, body: &Bytes) -> Result<Value, Box<Status>> {
    let media_type = media_type(parts);
    let encoding = Encoding::from_content_type(&media_type).ok_or_else(|| {
        Box::new(Status::unsupported_media_type(&[
            "application/json",
            "application/vnd.kubernetes.protobuf",
        ]))
    })?;
    let object = Object {
        encoding,
        bytes: body.clone(),
    };
    let value = object
        .to_json_value()
        .map_err(|error| bad_request(format!("the object provided cannot be read: {error}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(bad_request("the object provided is not an object"))
    }
}

/// An object with a patch on it.
pub(super) fn patched(
    gvk: &Gvk,
    current: &Value,
    parts: &Parts,
    body: &Bytes,
) -> Result<Value, Box<Status>> {
    let media_type = media_type(parts);
    let unsupported = || {
        Box::new(Status::unsupported_media_type(&[
            PatchType::Json.content_type(),
            PatchType::Merge.content_type(),
            PatchType::StrategicMerge.content_type(),
        ]))
    };
    let kind = PatchType::from_content_type(&media_type).ok_or_else(unsupported)?;
    if kind == PatchType::Apply {
        // Field ownership is kept by the cloud.
        return Err(unsupported());
    }
    let patch: Value = serde_json::from_slice(body)
        .map_err(|error| bad_request(format!("the patch is not JSON: {error}")))?;
    let mut out = current.clone();
    let applied = match kind {
        PatchType::Json => json_patch(&mut out, &patch),
        PatchType::StrategicMerge if message_of(gvk).is_some() => {
            strategic_merge_patch(gvk, &mut out, &patch)
        }
        PatchType::StrategicMerge => return Err(unsupported()),
        PatchType::Merge | PatchType::Apply => {
            merge_patch(&mut out, &patch);
            Ok(())
        }
    };
    applied.map_err(|error| Box::new(error.to_status()))?;
    Ok(out)
}

pub(super) fn metadata<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The new state: of what the caller sent only what this kind of write may change.
pub(super) fn take(kind: Kind, current: &Value, sent: &Value) -> Value {
    let mut out = current.clone();
    let (Some(target), Some(source)) = (out.as_object_mut(), sent.as_object()) else {
        return out;
    };
    let mut set = |key: &str| match source.get(key) {
        Some(value) => {
            target.insert(key.to_owned(), value.clone());
        }
        None => {
            target.remove(key);
        }
    };
    match kind {
        Kind::PodStatus | Kind::NodeStatus => set("status"),
        Kind::MirrorPod | Kind::PodRemoval => {}
        Kind::NodeLease => set("spec"),
        Kind::Event => {
            let keys: std::collections::BTreeSet<String> = current
                .as_object()
                .into_iter()
                .flat_map(Map::keys)
                .chain(source.keys())
                .filter(|key| !matches!(key.as_str(), "metadata" | "apiVersion" | "kind"))
                .cloned()
                .collect();
            for key in keys {
                set(&key);
            }
        }
        Kind::NodeMetadata => {}
    }
    let fields: &[&str] = match kind {
        Kind::NodeLease => &["labels", "annotations", "ownerReferences"],
        _ => &["labels", "annotations"],
    };
    let sent_metadata = source.get("metadata");
    if let Some(kept) = target.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in fields {
            match sent_metadata.and_then(|m| m.get(*field)) {
                Some(value) => {
                    kept.insert((*field).to_owned(), value.clone());
                }
                None => {
                    kept.remove(*field);
                }
            }
        }
    }
    out
}

/// Whether a patch of the node's own object leaves everything but labels and annotations alone.
pub(super) fn only_metadata(current: &Value, sent: &Value) -> bool {
    take(Kind::NodeMetadata, current, sent) == *sent
}

/// Checks that what was sent speaks of the object that is known.
pub(super) fn check_identity(
    info: &RequestInfo,
    current: &Value,
    sent: &Value,
) -> Result<(), Box<Status>> {
    let conflict = |why: &str| {
        Err(Box::new(Status::conflict(
            &info.group,
            &info.resource,
            &info.name,
            why,
        )))
    };
    let name = metadata(sent, "name");
    if !name.is_empty() && name != info.name {
        return Err(bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            info.name
        )));
    }
    let namespace = metadata(sent, "namespace");
    if !namespace.is_empty() && !info.namespace.is_empty() && namespace != info.namespace {
        return Err(bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the URL ({})",
            info.namespace
        )));
    }
    let uid = metadata(sent, "uid");
    let known = metadata(current, "uid");
    if !uid.is_empty() && uid != known {
        return conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {known}"
        ));
    }
    let revision = metadata(sent, "resourceVersion");
    if !revision.is_empty() && revision != metadata(current, "resourceVersion") {
        return conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        );
    }
    Ok(())
}

/// An object as a component sends it, without what a server fills in.
pub(super) fn bare(object: &Value) -> Value {
    let mut out = object.clone();
    if let Some(metadata) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "generation",
            "managedFields",
            "selfLink",
        ] {
            metadata.remove(field);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn decided(method: &str, path: &str) -> Result<Kind, Refusal> {
        let method = method.parse().unwrap_or(http::Method::GET);
        decide(
            &Caller::Node,
            "edge-1",
            &RequestInfo::parse(&method, path, None),
        )
    }

    #[test]
    fn the_table_of_writes() {
        let cases = [
            (
                "PATCH",
                "/api/v1/namespaces/d/pods/p/status",
                Ok(Kind::PodStatus),
            ),
            (
                "PUT",
                "/api/v1/namespaces/d/pods/p/status",
                Ok(Kind::PodStatus),
            ),
            ("PATCH", "/api/v1/nodes/edge-1/status", Ok(Kind::NodeStatus)),
            ("PATCH", "/api/v1/nodes/edge-1", Ok(Kind::NodeMetadata)),
            ("PUT", "/api/v1/nodes/edge-1", Err(Refusal::NotWhileAway)),
            (
                "PATCH",
                "/api/v1/nodes/edge-2/status",
                Err(Refusal::NotOurs),
            ),
            (
                "PUT",
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1",
                Ok(Kind::NodeLease),
            ),
            (
                "PUT",
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-2",
                Err(Refusal::NotOurs),
            ),
            (
                "POST",
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
                Ok(Kind::NodeLease),
            ),
            (
                "PUT",
                "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/leader",
                Err(Refusal::NotWhileAway),
            ),
            ("POST", "/api/v1/namespaces/d/events", Ok(Kind::Event)),
            (
                "PATCH",
                "/apis/events.k8s.io/v1/namespaces/d/events/e",
                Ok(Kind::Event),
            ),
            ("POST", "/api/v1/namespaces/d/pods", Ok(Kind::MirrorPod)),
            (
                "DELETE",
                "/api/v1/namespaces/d/pods/p",
                Ok(Kind::PodRemoval),
            ),
            (
                "DELETE",
                "/api/v1/namespaces/d/events/e",
                Err(Refusal::NotWhileAway),
            ),
            (
                "DELETE",
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1",
                Err(Refusal::NotWhileAway),
            ),
            (
                "POST",
                "/api/v1/namespaces/d/pods/p/eviction",
                Err(Refusal::NotWhileAway),
            ),
            (
                "PATCH",
                "/api/v1/namespaces/d/pods/p",
                Err(Refusal::NotWhileAway),
            ),
            ("POST", "/api/v1/nodes", Err(Refusal::NotWhileAway)),
            (
                "POST",
                "/api/v1/namespaces/d/serviceaccounts/s/token",
                Err(Refusal::NotWhileAway),
            ),
            (
                "PUT",
                "/apis/apps/v1/namespaces/d/deployments/x",
                Err(Refusal::NotWhileAway),
            ),
        ];
        for (method, path, want) in cases {
            assert_eq!(decided(method, path), want, "{method} {path}");
        }
        let info = RequestInfo::parse(
            &http::Method::PATCH,
            "/api/v1/namespaces/d/pods/p/status",
            None,
        );
        assert_eq!(
            decide(&Caller::Bearer("x".into()), "edge-1", &info),
            Err(Refusal::BearerToken)
        );
    }

    #[test]
    fn a_status_write_changes_nothing_else() {
        let current = json!({"metadata": {"name": "p", "labels": {"a": "1"}}, "spec": {"x": 1}, "status": {"phase": "Pending"}});
        let sent = json!({"metadata": {"name": "q", "labels": {"a": "2"}}, "spec": {"x": 2}, "status": {"phase": "Running"}});
        assert_eq!(
            take(Kind::PodStatus, &current, &sent),
            json!({"metadata": {"name": "p", "labels": {"a": "2"}}, "spec": {"x": 1}, "status": {"phase": "Running"}})
        );
    }

    #[test]
    fn identity_is_checked() {
        let info = RequestInfo::parse(
            &http::Method::PUT,
            "/api/v1/namespaces/d/pods/p/status",
            None,
        );
        let current = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u", "resourceVersion": "5"}});
        let check = |sent: Value| check_identity(&info, &current, &sent).map_err(|s| s.code());
        assert_eq!(
            check(json!({"metadata": {"name": "p", "uid": "u", "resourceVersion": "5"}})),
            Ok(())
        );
        assert_eq!(check(json!({"metadata": {}})), Ok(()));
        assert_eq!(check(json!({"metadata": {"name": "q"}})), Err(400));
        assert_eq!(check(json!({"metadata": {"namespace": "e"}})), Err(400));
        assert_eq!(check(json!({"metadata": {"uid": "w"}})), Err(409));
        assert_eq!(
            check(json!({"metadata": {"resourceVersion": "4"}})),
            Err(409)
        );
    }
}
