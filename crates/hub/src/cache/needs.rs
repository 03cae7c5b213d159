//! What pods need to run: the objects that a kubelet reads before it starts them. Pure.

use super::{index::Key, record::index_key};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use yurt_wire::Gvr;

/// An object that a pod refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// API group, `""` for the core group.
    pub group: &'static str,
    /// Resource.
    pub resource: &'static str,
    /// `""` for cluster scope.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Whether the pod starts without it as well.
    pub optional: bool,
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Secrets of volume drivers within the tree: where their names are in a volume.
const VOLUME_SECRETS: [&str; 10] = [
    "/secret/secretName",
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/csi/nodePublishSecretRef/name",
    "/flexVolume/secretRef/name",
    "/iscsi/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
    "/storageos/secretRef/name",
];

/// Secrets of a persistent volume, each a name beside a namespace.
const PERSISTENT_VOLUME_SECRETS: [&str; 3] = [
    "/spec/csi/nodePublishSecretRef",
    "/spec/csi/nodeStageSecretRef",
    "/spec/csi/nodeExpandSecretRef",
];

/// What a pod (JSON) refers to, without repetition. What follows from a claim is in [`of_claim`] and [`of_volume`].
pub fn of_pod(pod: &Value) -> Vec<Reference> {
    of_containers(pod, &CONTAINERS)
}

/// As [`of_pod`], without what only ephemeral containers refer to: these are not started again.
pub fn to_start(pod: &Value) -> Vec<Reference> {
    of_containers(pod, &CONTAINERS[..2])
}

/// Where containers are in a pod; those that start with it first.
const CONTAINERS: [&str; 3] = [
    "/spec/initContainers",
    "/spec/containers",
    "/spec/ephemeralContainers",
];

fn of_containers(pod: &Value, containers: &[&str]) -> Vec<Reference> {
    let namespace = text(pod, "/metadata/namespace").unwrap_or_default();
    let mut found: BTreeMap<(&'static str, String), bool> = BTreeMap::new();
    let mut add = |resource: &'static str, name: Option<&str>, optional: bool| {
        if let Some(name) = name {
            let known = found.entry((resource, name.to_owned())).or_insert(optional);
            *known &= optional;
        }
    };
    let is_optional = |of: Option<&Value>| {
        of.and_then(|of| of.get("optional"))
            .and_then(Value::as_bool)
            .unwrap_or(false)
    };
    let account = text(pod, "/spec/serviceAccountName").or(text(pod, "/spec/serviceAccount"));
    add("serviceaccounts", account, false);
    for secret in items(pod, "/spec/imagePullSecrets") {
        // A kubelet pulls without them when they are missing.
        add("secrets", text(secret, "/name"), true);
    }
    for volume in items(pod, "/spec/volumes") {
        let of = volume.get("configMap");
        add(
            "configmaps",
            text(volume, "/configMap/name"),
            is_optional(of),
        );
        let of = volume.get("secret");
        for pointer in VOLUME_SECRETS {
            let optional = pointer.starts_with("/secret/") && is_optional(of);
            add("secrets", text(volume, pointer), optional);
        }
        for source in items(volume, "/projected/sources") {
            for (field, resource) in [("configMap", "configmaps"), ("secret", "secrets")] {
                let of = source.get(field);
                let name = of.and_then(|of| text(of, "/name"));
                add(resource, name, is_optional(of));
            }
        }
        let claim = text(volume, "/persistentVolumeClaim/claimName");
        add("persistentvolumeclaims", claim, false);
        if volume.get("ephemeral").is_some_and(Value::is_object)
            && let (Some(pod), Some(volume)) = (text(pod, "/metadata/name"), text(volume, "/name"))
        {
            // The claim of a generic ephemeral volume has the names of both.
            let claim = format!("{pod}-{volume}");
            add("persistentvolumeclaims", Some(&claim), false);
        }
    }
    for pointer in containers {
        for container in items(pod, pointer) {
            let from = items(container, "/env").filter_map(|env| env.get("valueFrom"));
            for (from, map, secret) in from
                .map(|from| (from, "configMapKeyRef", "secretKeyRef"))
                .chain(items(container, "/envFrom").map(|from| (from, "configMapRef", "secretRef")))
            {
                for (field, resource) in [(map, "configmaps"), (secret, "secrets")] {
                    let of = from.get(field);
                    let name = of.and_then(|of| text(of, "/name"));
                    add(resource, name, is_optional(of));
                }
            }
        }
    }
    let mut references: Vec<Reference> = found
        .into_iter()
        .map(|((resource, name), optional)| Reference {
            group: "",
            resource,
            namespace: namespace.to_owned(),
            name,
            optional,
        })
        .collect();
    if let Some(class) = text(pod, "/spec/runtimeClassName") {
        references.push(Reference {
            group: "node.k8s.io",
            resource: "runtimeclasses",
            namespace: String::new(),
            name: class.to_owned(),
            optional: false,
        });
    }
    let claims =
        items(pod, "/spec/resourceClaims").chain(items(pod, "/status/resourceClaimStatuses"));
    for claim in claims.filter_map(|claim| text(claim, "/resourceClaimName")) {
        references.push(Reference {
            group: "resource.k8s.io",
            resource: "resourceclaims",
            namespace: namespace.to_owned(),
            name: claim.to_owned(),
            optional: false,
        });
    }
    references
}

/// The volume that a claim (JSON) is bound to.
pub fn of_claim(claim: &Value) -> Option<Reference> {
    Some(Reference {
        group: "",
        resource: "persistentvolumes",
        namespace: String::new(),
        name: text(claim, "/spec/volumeName")?.to_owned(),
        optional: false,
    })
}

/// The secrets that a persistent volume (JSON) is mounted with.
pub fn of_volume(volume: &Value) -> Vec<Reference> {
    PERSISTENT_VOLUME_SECRETS
        .iter()
        .filter_map(|pointer| {
            let of = volume.pointer(pointer)?;
            Some(Reference {
                group: "",
                resource: "secrets",
                namespace: text(of, "/namespace")?.to_owned(),
                name: text(of, "/name")?.to_owned(),
                optional: false,
            })
        })
        .collect()
}

/// Whether a pod (JSON) has ended, so that nothing is needed to run it.
pub fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), Some("Succeeded" | "Failed"))
}

/// Objects by group, resource and key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needs(BTreeMap<(&'static str, &'static str), BTreeSet<Key>>);

impl Needs {
    /// Adds one object.
    pub(crate) fn add(&mut self, reference: &Reference) {
        self.0
            .entry((reference.group, reference.resource))
            .or_default()
            .insert(index_key(&reference.namespace, &reference.name));
    }

    /// Adds an object of the core group.
    pub(crate) fn add_core(&mut self, resource: &'static str, key: &str) {
        self.0.entry(("", resource)).or_default().insert(key.into());
    }

    /// Whether an object is among them.
    pub(crate) fn hold(&self, gvr: &Gvr, key: &str) -> bool {
        self.0
            .get(&(gvr.group.as_str(), gvr.resource.as_str()))
            .is_some_and(|keys| keys.contains(key))
    }

    /// The keys of a resource of the core group.
    pub(crate) fn core(&self, resource: &str) -> Vec<Key> {
        self.0
            .iter()
            .find(|((group, of), _)| group.is_empty() && *of == resource)
            .map(|(_, keys)| keys.iter().cloned().collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_a_pod_refers_to() {
        let pod = json!({
            "metadata": {"name": "web-0", "namespace": "shop"},
            "spec": {
                "serviceAccountName": "web",
                "runtimeClassName": "kata",
                "imagePullSecrets": [{"name": "registry"}, {"name": ""}],
                "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s-env", "key": "k"}}}]}],
                "containers": [{
                    "env": [
                        {"name": "A", "value": "x"},
                        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c-env", "key": "k", "optional": true}}},
                        {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    ],
                    "envFrom": [{"configMapRef": {"name": "c-env"}}, {"secretRef": {"name": "s-from", "optional": true}}],
                }],
                "volumes": [
                    {"name": "a", "configMap": {"name": "c-vol"}},
                    {"name": "b", "secret": {"secretName": "s-vol", "optional": true}},
                    {"name": "c", "projected": {"sources": [
                        {"serviceAccountToken": {"path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt"}},
                        {"secret": {"name": "s-proj"}},
                    ]}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data-web-0"}},
                    {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
                    {"name": "f", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "s-csi"}}},
                    {"name": "g", "emptyDir": {}},
                ],
                "resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu-claim"}],
            },
        });
        let found: Vec<String> = of_pod(&pod)
            .iter()
            .map(|r| {
                let mark = if r.optional { "?" } else { "" };
                format!("{}/{}/{}{mark}", r.resource, r.namespace, r.name)
            })
            .collect();
        assert_eq!(
            found,
            [
                // Required in one place is required.
                "configmaps/shop/c-env",
                "configmaps/shop/c-vol",
                "configmaps/shop/kube-root-ca.crt",
                "persistentvolumeclaims/shop/data-web-0",
                "persistentvolumeclaims/shop/web-0-e",
                "secrets/shop/registry?",
                "secrets/shop/s-csi",
                "secrets/shop/s-env",
                "secrets/shop/s-from?",
                "secrets/shop/s-proj",
                "secrets/shop/s-vol?",
                "serviceaccounts/shop/web",
                "runtimeclasses//kata",
                "resourceclaims/shop/gpu-claim",
            ]
        );
        assert_eq!(of_pod(&json!({"spec": "nonsense"})), []);
    }

    #[test]
    fn claims_lead_to_volumes_and_their_secrets() {
        let claim = json!({"spec": {"volumeName": "pv-1"}});
        assert_eq!(of_claim(&claim).map(|r| r.name), Some("pv-1".into()));
        assert_eq!(of_claim(&json!({"spec": {}})), None);
        let volume =
            json!({"spec": {"csi": {"nodeStageSecretRef": {"name": "s", "namespace": "csi"}}}});
        let secrets = of_volume(&volume);
        assert_eq!(secrets.len(), 1);
        assert_eq!((&*secrets[0].namespace, &*secrets[0].name), ("csi", "s"));
        let mut needs = Needs::default();
        needs.add(&secrets[0]);
        assert!(needs.hold(&Gvr::new("", "v1", "secrets"), "csi/s"));
        assert!(!needs.hold(&Gvr::new("x", "v1", "secrets"), "csi/s"));
        assert_eq!(needs.core("secrets").len(), 1);
    }
}
