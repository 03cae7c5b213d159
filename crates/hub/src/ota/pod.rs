//! What pods say of an upgrade: whether one is due, which pod came of it, whether that is ready, and how the old version is had
//! again. Pure.
//!
//! Facts of OpenYurt: the conditions `PodNeedUpgrade` and `PodImageReady`, their message (`controllerrevision: HASH`), and the
//! annotation `openyurt.io/static-pod-hash`. Of Kubernetes: labels `controller-revision-hash` and `pod-template-generation` of a
//! DaemonSet's pods; of a pod's spec, images may change while it lives, and a kubelet restarts the containers with them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Says that a pod is not of the newest revision.
pub const NEED: &str = "PodNeedUpgrade";
/// Says whether the images of the newest revision are on the node.
pub const IMAGE: &str = "PodImageReady";
/// Says that an upgrade did not succeed. Of this hub; OpenYurt has nothing.
pub const FAILED: &str = "OTAUpgradeFailed";
/// Before the revision in messages of conditions.
pub const REVISION: &str = "controllerrevision: ";
/// Hash of the template that a static pod was made of.
pub const STATIC_HASH: &str = "openyurt.io/static-pod-hash";
/// Where a pod comes from, when that is not the API server.
const SOURCE: &str = "kubernetes.io/config.source";
/// What tells the revision of a DaemonSet's pod.
const LABELS: [&str; 2] = ["controller-revision-hash", "pod-template-generation"];
/// Says on a pod that its images were set back, and from which revision.
const ROLLED_BACK: &str = "openyurt.io/ota-rolled-back-from";
/// Volumes that admission adds, with a random end.
const ACCESS: &str = "kube-api-access-";

/// Who makes the new pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The DaemonSet's controller, when the old one is deleted.
    DaemonSet,
    /// The kubelet, of a manifest on the node.
    StaticPod,
}

/// A pod that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its uid.
    pub uid: String,
    /// Its revision.
    pub resource_version: String,
    /// Who makes the new one.
    pub kind: Kind,
    /// Uid of its owner.
    pub owner: String,
    /// The revision to upgrade to; empty when none is named.
    pub revision: String,
}

/// Why a pod is not upgraded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDue {
    /// It ends already.
    #[error("pod {0} is being deleted")]
    Ending(String),
    /// It is somewhere else.
    #[error("pod {pod} is on node {on:?}, not on this one")]
    Elsewhere {
        /// The pod.
        pod: String,
        /// Its node.
        on: String,
    },
    /// Nobody says that it is old.
    #[error("pod {0} is not to be upgraded: its condition PodNeedUpgrade is not True")]
    NotNeeded(String),
    /// Its images are not there.
    #[error("the images of pod {0} are not ready: {1}")]
    ImageNotReady(String, String),
    /// It belongs to nobody who would make it anew.
    #[error("Pod has no owner references")]
    NoOwner,
    /// It belongs to somebody who does not do it this way.
    #[error("pod {0} is owned by a {1}; only pods of DaemonSets and static pods are upgraded so")]
    Owner(String, String),
    /// It is not whole.
    #[error("pod {0} has no uid")]
    NoUid(String),
}

impl NotDue {
    /// Whether the pod is of a kind that can never be upgraded so.
    pub fn is_bad_request(&self) -> bool {
        matches!(self, Self::NoOwner | Self::Owner(..))
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(pod, "/status/conditions").find(|condition| text(condition, "/type") == kind)
}

fn revision_in(condition: &Value) -> &str {
    let message = text(condition, "/message");
    message.strip_prefix(REVISION).unwrap_or_default().trim()
}

fn member<'a>(value: &'a Value, map: &str, key: &str) -> Option<&'a str> {
    value.pointer(map)?.get(key)?.as_str()
}

/// Its name with its namespace.
pub fn name_of(pod: &Value) -> String {
    format!(
        "{}/{}",
        text(pod, "/metadata/namespace"),
        text(pod, "/metadata/name")
    )
}

/// The pod's uid.
pub fn uid(pod: &Value) -> &str {
    text(pod, "/metadata/uid")
}

/// Whether it is on its way out.
pub fn is_ending(pod: &Value) -> bool {
    !text(pod, "/metadata/deletionTimestamp").is_empty()
}

/// Whether it is ready.
pub fn is_ready(pod: &Value) -> bool {
    !is_ending(pod) && condition(pod, "Ready").is_some_and(|ready| text(ready, "/status") == "True")
}

/// Whether a new revision is asked for of a pod on `node`; with its images looked at, whether it may begin.
fn needed(pod: &Value, node: &str) -> Result<String, NotDue> {
    let name = || name_of(pod);
    if is_ending(pod) {
        return Err(NotDue::Ending(name()));
    }
    let on = text(pod, "/spec/nodeName");
    if on != node {
        return Err(NotDue::Elsewhere {
            pod: name(),
            on: on.to_owned(),
        });
    }
    condition(pod, NEED)
        .filter(|need| text(need, "/status") == "True")
        .map(|need| revision_in(need).to_owned())
        .ok_or_else(|| NotDue::NotNeeded(name()))
}

/// Whether a pod on `node` is to be upgraded, and can be.
pub fn examine(pod: &Value, node: &str) -> Result<Due, NotDue> {
    let name = || name_of(pod);
    let revision = needed(pod, node)?;
    if let Some(image) = condition(pod, IMAGE) {
        let why = match text(image, "/status") {
            "True" if revision_in(image) == revision => None,
            "True" => Some("those of another revision were pulled".to_owned()),
            _ => Some(format!(
                "{} {}",
                text(image, "/reason"),
                text(image, "/message")
            )),
        };
        if let Some(why) = why {
            return Err(NotDue::ImageNotReady(name(), why));
        }
    }
    let owner = items(pod, "/metadata/ownerReferences")
        .next()
        .ok_or(NotDue::NoOwner)?;
    let kind = match text(owner, "/kind") {
        "DaemonSet" => Kind::DaemonSet,
        "Node" => Kind::StaticPod,
        other => return Err(NotDue::Owner(name(), other.to_owned())),
    };
    if uid(pod).is_empty() {
        return Err(NotDue::NoUid(name()));
    }
    Ok(Due {
        uid: uid(pod).to_owned(),
        resource_version: text(pod, "/metadata/resourceVersion").to_owned(),
        kind,
        owner: text(owner, "/uid").to_owned(),
        revision,
    })
}

/// Whether images of a pod on `node` are to be pulled: of which revision.
pub fn wants_images(pod: &Value, node: &str) -> Result<String, NotDue> {
    needed(pod, node)
}

/// One condition, to be merged into those of a pod (strategic merge patch): the others stay as whoever keeps them wrote them.
pub fn condition_patch(
    pod_uid: &str,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) -> Value {
    json!({
        "metadata": {"uid": pod_uid},
        "status": {"conditions": [{
            "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
        }]},
    })
}

/// What there is to go back to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Images by container.
    images: BTreeMap<String, String>,
    /// The same of init containers.
    init_images: BTreeMap<String, String>,
    /// Labels that tell the revision.
    labels: BTreeMap<String, String>,
    /// Digest of everything in the spec but images.
    shape: String,
    /// Uids of pods of the same DaemonSet that were on the node beside it: none of them comes in its place.
    #[serde(default)]
    pub beside: Vec<String>,
    /// Of a static pod: the hash of its template, its manifest's name, digests of the manifest before and after.
    pub manifest: Option<Manifests>,
}

/// A manifest that was replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifests {
    /// Its name without the extension.
    pub stem: String,
    /// Hash of the old template; empty when it had none.
    pub old_hash: String,
    /// Hash of the new one.
    pub new_hash: String,
    /// SHA-256 of the new file.
    pub new_digest: String,
}

fn images(spec: &Value, list: &str) -> BTreeMap<String, String> {
    items(spec, list)
        .map(|container| {
            (
                text(container, "/name").to_owned(),
                text(container, "/image").to_owned(),
            )
        })
        .collect()
}

/// Hash of the template of a static pod.
pub fn static_hash(pod: &Value) -> &str {
    member(pod, "/metadata/annotations", STATIC_HASH).unwrap_or_default()
}

/// Hex of a SHA-256.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A value apart from the order of members and from what is random in a pod's spec.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            let members = members
                .into_iter()
                .map(|(key, value)| (key.clone(), canonical(value)));
            Value::Object(Map::from_iter(members))
        }
        Value::Array(list) => list.iter().map(canonical).collect(),
        Value::String(text) if text.starts_with(ACCESS) => ACCESS.into(),
        other => other.clone(),
    }
}

fn shape(spec: &Value) -> String {
    let mut spec = canonical(spec);
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    digest(spec.to_string().as_bytes())
}

impl Before {
    /// What a pod is now.
    pub fn of(pod: &Value) -> Self {
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        let labels = LABELS.iter().filter_map(|label| {
            let value = member(pod, "/metadata/labels", label)?;
            Some(((*label).to_owned(), value.to_owned()))
        });
        Self {
            images: images(spec, "/containers"),
            init_images: images(spec, "/initContainers"),
            labels: labels.collect(),
            shape: shape(spec),
            beside: Vec::new(),
            manifest: None,
        }
    }

    /// The patch (strategic merge) that makes of the new pod what the old one was. Only images of a living pod may change: where
    /// the new revision changed more, it cannot be had back like this.
    pub fn rollback(&self, new: &Value) -> Result<Value, &'static str> {
        let spec = new.get("spec").unwrap_or(&Value::Null);
        if shape(spec) != self.shape {
            return Err(
                "the new revision changes more than images, and nothing else of a living pod can be taken back",
            );
        }
        let list = |images: &BTreeMap<String, String>| -> Vec<Value> {
            images
                .iter()
                .map(|(name, image)| json!({"name": name, "image": image}))
                .collect()
        };
        if self.is_back(new) {
            return Err("the new pod has the images of the old one: there is nothing to take back");
        }
        let from = member(new, "/metadata/labels", LABELS[0]).unwrap_or_default();
        let mut spec = json!({"containers": list(&self.images)});
        if !self.init_images.is_empty() {
            spec["initContainers"] = list(&self.init_images).into();
        }
        Ok(json!({
            "metadata": {"uid": uid(new), "labels": self.labels, "annotations": {ROLLED_BACK: from}},
            "spec": spec,
        }))
    }

    /// Whether a pod has the images of before.
    pub fn is_back(&self, pod: &Value) -> bool {
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        images(spec, "/containers") == self.images
            && images(spec, "/initContainers") == self.init_images
    }
}

/// Whether `pod` came in the place of the pod of uid `old`, made by the DaemonSet `owner`.
pub fn succeeds(pod: &Value, old: &str, owner: &str) -> bool {
    uid(pod) != old
        && !is_ending(pod)
        && items(pod, "/metadata/ownerReferences").any(|reference| {
            text(reference, "/kind") == "DaemonSet" && text(reference, "/uid") == owner
        })
}

/// Whether a pod is the static pod that a manifest with this hash makes.
pub fn is_of_manifest(pod: &Value, hash: &str) -> bool {
    let source = member(pod, "/metadata/annotations", SOURCE);
    source.is_some_and(|source| source != "api") && static_hash(pod) == hash
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::ota) fn pod(image: &str, hash: &str) -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "d", "uid": format!("uid-{hash}"), "resourceVersion": "7",
                "labels": {"app": "x", "controller-revision-hash": hash, "pod-template-generation": "1"},
                "ownerReferences": [{"kind": "DaemonSet", "name": "set", "uid": "set"}]},
            "spec": {"nodeName": "edge-1",
                "containers": [{"name": "c", "image": image, "volumeMounts": [{"name": format!("kube-api-access-{hash}"), "mountPath": "/x"}]}],
                "volumes": [{"name": format!("kube-api-access-{hash}")}]},
            "status": {"conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "PodNeedUpgrade", "status": "True", "message": "controllerrevision: r2"}]},
        })
    }

    #[test]
    fn a_pod_is_due_or_it_is_said_why_not() {
        let due = examine(&pod("a:1", "r1"), "edge-1").unwrap();
        assert_eq!(
            (due.uid.as_str(), due.revision.as_str(), due.kind),
            ("uid-r1", "r2", Kind::DaemonSet)
        );
        let with = |pointer: &str, value: Value| {
            let mut pod = pod("a:1", "r1");
            match pointer.rsplit_once('/') {
                Some((parent, key)) if pod.pointer(pointer).is_none() => {
                    pod.pointer_mut(parent).unwrap()[key] = value;
                }
                _ => *pod.pointer_mut(pointer).unwrap() = value,
            }
            examine(&pod, "edge-1").unwrap_err().to_string()
        };
        for (pointer, value, why) in [
            (
                "/metadata/deletionTimestamp",
                json!("2026-11-22T10:00:00Z"),
                "being deleted",
            ),
            ("/spec/nodeName", json!("edge-2"), "on node \"edge-2\""),
            (
                "/status/conditions/1/status",
                json!("False"),
                "PodNeedUpgrade",
            ),
            ("/status/conditions", json!([]), "PodNeedUpgrade"),
            (
                "/metadata/ownerReferences",
                json!([]),
                "Pod has no owner references",
            ),
            (
                "/metadata/ownerReferences/0/kind",
                json!("ReplicaSet"),
                "owned by a ReplicaSet",
            ),
            ("/metadata/uid", json!(""), "no uid"),
            ("/status", json!("garbage"), "PodNeedUpgrade"),
        ] {
            let error = with(pointer, value);
            assert!(error.contains(why), "{pointer}: {error}");
        }
    }

    #[test]
    fn images_that_were_asked_for_must_be_there() {
        let mut pod = pod("a:1", "r1");
        pod["status"]["conditions"]
            .as_array_mut()
            .unwrap()
            .push(Value::Null);
        let mut examine = |status: &str, message: &str| {
            pod["status"]["conditions"][2] = json!({"type": "PodImageReady", "status": status, "message": message, "reason": "PullImageFail"});
            examine(&pod, "edge-1")
        };
        assert!(examine("True", "controllerrevision: r2").is_ok());
        for (status, message) in [
            ("False", "controllerrevision: r2"),
            ("True", "controllerrevision: r1"),
            ("Unknown", ""),
        ] {
            let error = examine(status, message).unwrap_err();
            assert!(matches!(error, NotDue::ImageNotReady(..)) && !error.is_bad_request());
        }
    }

    #[test]
    fn images_are_taken_back_where_nothing_else_changed() {
        let (old, new) = (pod("a:1", "r1"), pod("a:2", "r2"));
        let before = Before::of(&old);
        let patch = before.rollback(&new).unwrap();
        assert_eq!(
            patch,
            json!({
                "metadata": {"uid": "uid-r2", "labels": {"controller-revision-hash": "r1", "pod-template-generation": "1"},
                    "annotations": {"openyurt.io/ota-rolled-back-from": "r2"}},
                "spec": {"containers": [{"name": "c", "image": "a:1"}]},
            })
        );
        let mut more = new.clone();
        more["spec"]["containers"][0]["args"] = json!(["--new"]);
        assert!(
            before
                .rollback(&more)
                .unwrap_err()
                .contains("more than images")
        );
        let same = pod("a:1", "r2");
        assert!(
            before
                .rollback(&same)
                .unwrap_err()
                .contains("nothing to take back")
        );
        assert!(before.is_back(&same) && !before.is_back(&new));
        let kept: Before = serde_json::from_value(json!(before)).unwrap();
        assert_eq!(kept, before);
    }

    #[test]
    fn who_came_in_whose_place() {
        let new = pod("a:2", "r2");
        assert!(succeeds(&new, "uid-r1", "set"));
        assert!(!succeeds(&new, "uid-r2", "set") && !succeeds(&new, "uid-r1", "other"));
        let mut mirror = new.clone();
        mirror["metadata"]["annotations"] = json!({SOURCE: "file", STATIC_HASH: "h"});
        assert!(is_of_manifest(&mirror, "h") && !is_of_manifest(&mirror, "g"));
        assert!(!is_of_manifest(&new, ""));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            prop::sample::select(vec!["True", "DaemonSet", "edge-1", "PodNeedUpgrade", "x"])
                .prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "metadata",
            "spec",
            "status",
            "conditions",
            "type",
            "message",
            "uid",
            "ownerReferences",
            "kind",
            "nodeName",
            "containers",
            "image",
            "name",
            "labels",
            "annotations",
        ]);
        leaf.prop_recursive(6, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..5).prop_map(|members| {
                    Value::Object(
                        members
                            .into_iter()
                            .map(|(k, v)| (k.to_owned(), v))
                            .collect(),
                    )
                }),
            ]
        })
    }

    proptest! {
        /// Nothing that calls itself a pod makes anything panic, and what is due is on the node and asked for.
        #[test]
        fn any_json_is_a_pod_that_is_not_due(pod in any_json()) {
            if examine(&pod, "edge-1").is_ok() {
                prop_assert_eq!(text(&pod, "/spec/nodeName"), "edge-1");
                prop_assert!(condition(&pod, NEED).is_some());
            }
            let _ = Before::of(&pod).rollback(&pod).is_ok();
            let _ = (is_ready(&pod), succeeds(&pod, "a", "b"), is_of_manifest(&pod, "h"), wants_images(&pod, "edge-1"));
        }

        /// The shape is the same whatever the images, and another one for anything else.
        #[test]
        fn only_images_leave_the_shape(one in "[a-z]{1,8}", other in "[a-z]{1,8}", arg in "[a-z]{1,8}") {
            let (first, second) = (pod(&one, "r1"), pod(&other, "r2"));
            prop_assert_eq!(shape(&first["spec"]), shape(&second["spec"]));
            let mut third = second.clone();
            third["spec"]["containers"][0]["command"] = json!([arg]);
            prop_assert_ne!(shape(&first["spec"]), shape(&third["spec"]));
        }
    }
}
