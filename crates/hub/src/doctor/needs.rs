//! What a pod needs from the API to start again on its node, read from its spec. Pure.
//!
//! Protocol facts: kubelet `pkg/kubelet` (secret and configmap managers, volume populator, runtimeclass manager, token manager) and
//! `pkg/api/v1/pod` (`VisitPodSecretNames`). A kubelet reads neither ServiceAccounts nor PriorityClasses to start a pod: admission put
//! what they say into the pod.

use crate::{
    cache::needs,
    tokens::{issued::Wish, jwt},
};
use serde_json::Value;
use std::collections::BTreeSet;
use yurt_wire::Gvr;

/// An object that a pod names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// What it is.
    pub kind: Kind,
    /// Its name; its namespace is the pod's, or none.
    pub name: String,
    /// Whether the pod starts without it.
    pub optional: bool,
}

/// What pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    ConfigMap,
    Secret,
    Claim,
    RuntimeClass,
}

impl Kind {
    /// The resource.
    pub fn gvr(self) -> Gvr {
        match self {
            Self::ConfigMap => Gvr::new("", "v1", "configmaps"),
            Self::Secret => Gvr::new("", "v1", "secrets"),
            Self::Claim => Gvr::new("", "v1", "persistentvolumeclaims"),
            Self::RuntimeClass => Gvr::new("node.k8s.io", "v1", "runtimeclasses"),
        }
    }

    /// The kind of a resource that a restarted pod cannot be without.
    fn of(group: &str, resource: &str) -> Option<Self> {
        match (group, resource) {
            ("", "configmaps") => Some(Self::ConfigMap),
            ("", "secrets") => Some(Self::Secret),
            ("", "persistentvolumeclaims") => Some(Self::Claim),
            ("node.k8s.io", "runtimeclasses") => Some(Self::RuntimeClass),
            _ => None,
        }
    }

    /// As people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Claim => "persistentvolumeclaim",
            Self::RuntimeClass => "runtimeclass",
        }
    }
}

fn items<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Whether the kubelet runs the pod after a reboot.
pub fn is_to_run(pod: &Value) -> bool {
    !needs::has_ended(pod) && pod.pointer("/metadata/deletionTimestamp").is_none()
}

/// Whether the pod comes from a file of the node, and so needs nothing from the API.
pub fn is_static(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations")
        .is_some_and(|annotations| annotations.get("kubernetes.io/config.mirror").is_some())
}

/// Containers that are started with the pod.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    items(pod, "/spec/initContainers").chain(items(pod, "/spec/containers"))
}

/// The objects that a pod names and that its kubelet reads to start it.
pub fn references(pod: &Value) -> BTreeSet<Reference> {
    needs::to_start(pod)
        .into_iter()
        .filter_map(|reference| {
            Some(Reference {
                kind: Kind::of(reference.group, reference.resource)?,
                name: reference.name,
                optional: reference.optional,
            })
        })
        .collect()
}

/// Whether the pod mounts volumes of a CSI driver itself (those behind claims are known by their volume only).
pub fn uses_csi(pod: &Value) -> bool {
    items(pod, "/spec/volumes").any(|volume| volume.get("csi").is_some())
}

/// The tokens of its service account that a pod mounts, as its kubelet asks for them.
pub fn tokens(pod: &Value) -> Vec<Wish> {
    items(pod, "/spec/volumes")
        .flat_map(|volume| items(volume, "/projected/sources"))
        .filter_map(|source| source.get("serviceAccountToken"))
        .map(|token| {
            let audience = text(token, "/audience");
            let seconds = token.get("expirationSeconds").and_then(Value::as_i64);
            Wish {
                namespace: text(pod, "/metadata/namespace").to_owned(),
                account: text(pod, "/spec/serviceAccountName").to_owned(),
                audiences: (!audience.is_empty())
                    .then(|| audience.to_owned())
                    .into_iter()
                    .collect(),
                seconds: seconds.unwrap_or(3600),
                bound: Some((
                    "Pod".into(),
                    jwt::Reference {
                        name: text(pod, "/metadata/name").to_owned(),
                        uid: text(pod, "/metadata/uid").to_owned(),
                    },
                )),
            }
        })
        .collect()
}

/// An image as the node's runtime names it.
fn whole_name(image: &str) -> String {
    let (host, rest) = match image.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("docker.io", image),
    };
    let library = if host == "docker.io" && !rest.contains('/') {
        "library/"
    } else {
        ""
    };
    let tagged = rest.contains('@')
        || rest
            .rsplit('/')
            .next()
            .is_some_and(|last| last.contains(':'));
    let tag = if tagged { "" } else { ":latest" };
    format!("{host}/{library}{rest}{tag}")
}

/// Images of a pod that may not be on the node, by what the Node tells and by the containers that ran.
pub fn unseen_images(pod: &Value, node: &Value) -> Vec<String> {
    let known: BTreeSet<String> = items(node, "/status/images")
        .flat_map(|image| items(image, "/names"))
        .filter_map(Value::as_str)
        .map(whole_name)
        .collect();
    let ran = |container: &str| {
        items(pod, "/status/containerStatuses")
            .chain(items(pod, "/status/initContainerStatuses"))
            .filter(|status| text(status, "/name") == container)
            // Set when it was started, and kept; an image that a container uses is not collected.
            .any(|status| {
                !text(status, "/imageID").is_empty() || !text(status, "/containerID").is_empty()
            })
    };
    containers(pod)
        .filter(|container| !ran(text(container, "/name")))
        .map(|container| text(container, "/image"))
        .filter(|image| !image.is_empty() && !known.contains(&whole_name(image)))
        .map(str::to_owned)
        .collect()
}

/// Containers whose image is asked for at the registry whenever they start.
pub fn always_pulled(pod: &Value) -> Vec<String> {
    containers(pod)
        .filter(|container| text(container, "/imagePullPolicy") == "Always")
        .map(|container| text(container, "/image").to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_a_pod_can_name_is_found() {
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {
                "runtimeClassName": "kata",
                "imagePullSecrets": [{"name": "s-pull"}],
                "volumes": [
                    {"secret": {"secretName": "s-volume"}},
                    {"configMap": {"name": "c-volume", "optional": true}},
                    {"projected": {"sources": [{"secret": {"name": "s-projected"}}, {"configMap": {"name": "c-projected"}},
                        {"serviceAccountToken": {"audience": "vault", "expirationSeconds": 600}}, {"serviceAccountToken": {}}]}},
                    {"persistentVolumeClaim": {"claimName": "v"}},
                    {"name": "scratch", "ephemeral": {}},
                    {"csi": {"nodePublishSecretRef": {"name": "s-csi"}}},
                    {"azureFile": {"secretName": "s-azure"}},
                    {"emptyDir": {}},
                ],
                "initContainers": [{"envFrom": [{"secretRef": {"name": "s-from"}}]}],
                "containers": [{
                    "envFrom": [{"configMapRef": {"name": "c-from"}}],
                    "env": [{"valueFrom": {"secretKeyRef": {"name": "s-key", "optional": true}}},
                        {"valueFrom": {"configMapKeyRef": {"name": "c-key"}}}, {"value": "x"}],
                }],
            },
        });
        let found: Vec<String> = references(&pod)
            .iter()
            .map(|r| {
                format!(
                    "{} {}{}",
                    r.kind.as_str(),
                    r.name,
                    if r.optional { "?" } else { "" }
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                "configmap c-from",
                "configmap c-key",
                "configmap c-projected",
                "configmap c-volume?",
                "secret s-azure",
                "secret s-csi",
                "secret s-from",
                "secret s-key?",
                "secret s-projected",
                "secret s-pull?",
                "secret s-volume",
                "persistentvolumeclaim p-scratch",
                "persistentvolumeclaim v",
                "runtimeclass kata",
            ]
        );
        let tokens = tokens(&pod);
        let asked: Vec<(&[String], i64)> = tokens
            .iter()
            .map(|wish| (wish.audiences.as_slice(), wish.seconds))
            .collect();
        assert_eq!(asked, [(&["vault".to_owned()][..], 600), (&[], 3600)]);
        assert!(uses_csi(&pod));
        assert_eq!(references(&json!({"spec": {"volumes": 3}})).len(), 0);
    }

    #[test]
    fn names_of_images() {
        for (given, whole) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1", "docker.io/library/nginx:1"),
            ("a/b", "docker.io/a/b:latest"),
            ("registry.lab/app:1", "registry.lab/app:1"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("r.io/a@sha256:00", "r.io/a@sha256:00"),
        ] {
            assert_eq!(whole_name(given), whole);
            assert_eq!(whole_name(whole), whole);
        }
    }

    #[test]
    fn images_that_ran_or_that_the_node_tells_of_are_there() {
        let node =
            json!({"status": {"images": [{"names": ["docker.io/library/nginx:1", "x@sha256:1"]}]}});
        let pod = json!({
            "spec": {"containers": [{"name": "a", "image": "nginx:1"}, {"name": "b", "image": "ran:1", "imagePullPolicy": "Always"},
                {"name": "c", "image": "never:1"}]},
            "status": {"containerStatuses": [{"name": "b", "imageID": "sha256:2"}, {"name": "c", "imageID": ""}]},
        });
        assert_eq!(unseen_images(&pod, &node), ["never:1"]);
        assert_eq!(always_pulled(&pod), ["ran:1"]);
    }

    #[test]
    fn pods_that_ended_or_end_do_not_run_again() {
        assert!(is_to_run(&json!({"status": {"phase": "Pending"}})));
        assert!(!is_to_run(&json!({"status": {"phase": "Succeeded"}})));
        assert!(!is_to_run(&json!({"metadata": {"deletionTimestamp": "x"}})));
        assert!(is_static(
            &json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "h"}}})
        ));
        assert!(!is_static(&json!({})));
    }
}
