//! NodeRestriction: what the node authorizer cannot see because it stands in the objects. A kubelet writes its own
//! Node, Lease, CSINode and slices, mirrors its own static pods, and asks for tokens of pods that it runs.

use super::super::{Registry, Reply, Target};
use crate::{
    authz::{Attributes, is_mirror, node::LEASES, visit_configuration},
    meta,
    storage::Key,
};
use serde_json::Value;
use std::collections::BTreeSet;
use yurt_wire::Status;

/// Labels of Kubernetes' own that a kubelet sets.
const KUBELET_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Prefixes of labels that are the kubelet's.
const KUBELET_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Labels with this prefix steer workloads: no node sets them.
const RESTRICTED: &str = "node-restriction.kubernetes.io";

/// A write, as its objects show it.
#[derive(Clone, Copy, Debug)]
enum Write<'a> {
    Create(&'a Value),
    Update(&'a Value, &'a Value),
    Delete(&'a Value),
}

impl Registry {
    /// Refuses what a kubelet writes beyond what is its own; others pass. `live` is the object before the write, `new`
    /// the one after it.
    pub(in crate::registry) fn restrict_node(
        &self,
        target: &Target,
        live: Option<&Value>,
        new: Option<&Value>,
    ) -> Reply<()> {
        if !target.user.is_node() {
            return Ok(());
        }
        let write = match (live, new) {
            (None, Some(new)) => Write::Create(new),
            (Some(live), Some(new)) => Write::Update(live, new),
            (Some(live), None) => Write::Delete(live),
            (None, None) => return Ok(()),
        };
        let uid = |node: &str| {
            let stored = self.storage.get(&"/nodes".into(), &Key::new("", node))?;
            Some(meta::uid(&stored.value()).to_owned())
        };
        let outcome = match target.user.node() {
            Some(node) => check(node, target, write, uid),
            None => Err(format!(
                "could not determine node from user {:?}",
                target.user.name
            )),
        };
        outcome.map_err(|why| refused(target, write, &why))
    }

    /// As [`Registry::restrict_node`], of an eviction of the pod.
    pub(crate) fn restrict_eviction(&self, target: &Target, pod: &Value) -> Reply<()> {
        match target.user.node() {
            Some(node) if !runs_on(pod, node) => {
                let why =
                    format!("node {node} can only evict pods with spec.nodeName set to itself");
                Err(refused(target, Write::Delete(pod), &why))
            }
            _ => Ok(()),
        }
    }

    /// As [`Registry::restrict_node`], of a request for a service account's token.
    pub(crate) fn restrict_token(&self, target: &Target, request: &Value) -> Reply<()> {
        let Some(node) = target.user.node() else {
            return Ok(());
        };
        let refused = |why: &str| {
            Err(Box::new(Status::forbidden(
                "",
                "serviceaccounts",
                &target.name,
                why,
            )))
        };
        let bound = &request["spec"]["boundObjectRef"];
        let name = bound["name"].as_str().unwrap_or_default();
        if bound["apiVersion"] != "v1" || bound["kind"] != "Pod" || name.is_empty() {
            return refused("node requested token not bound to a pod");
        }
        let uid = bound["uid"].as_str().unwrap_or_default();
        if uid.is_empty() {
            return refused("node requested token with a pod binding without a uid");
        }
        let key = Key::new(&target.namespace, name);
        let Some(pod) = self.storage.get(&"/pods".into(), &key) else {
            return Err(Box::new(Status::not_found("", "pods", name)));
        };
        let pod = pod.value();
        if meta::uid(&pod) != uid {
            return refused(&format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ));
        }
        if !runs_on(&pod, node) {
            return refused("node requested token bound to a pod scheduled on a different node");
        }
        let audience = match request["spec"]["audiences"].as_array().map(Vec::as_slice) {
            None | Some([]) => "",
            Some([audience]) => audience.as_str().unwrap_or_default(),
            Some(_) => return refused("node may only request 0 or 1 audiences"),
        };
        if self.uses_audience(&pod, audience) {
            return Ok(());
        }
        let what = Attributes {
            verb: "request-serviceaccounts-token-audience".into(),
            resource: audience.to_owned(),
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            ..Attributes::default()
        };
        if !audience.is_empty() && self.authorizer.decide(&target.user, &what).allowed {
            return Ok(());
        }
        refused(&format!(
            "audience {audience:?} not found in pod spec volume"
        ))
    }

    /// Whether a volume of the pod needs a token for this audience.
    fn uses_audience(&self, pod: &Value, audience: &str) -> bool {
        let of = |request: &Value| request["audience"].as_str().unwrap_or_default() == audience;
        items(&pod["spec"]["volumes"]).any(|volume| {
            let mut sources = items(&volume["projected"]["sources"]);
            if sources.any(|source| {
                let token = &source["serviceAccountToken"];
                token.is_object() && of(token)
            }) {
                return true;
            }
            self.driver_of(pod, volume).is_some_and(|driver| {
                let key = Key::new("", &driver);
                let stored = self.storage.get(&"storage.k8s.io/csidrivers".into(), &key);
                stored.is_some_and(|driver| {
                    let driver = driver.value();
                    items(&driver["spec"]["tokenRequests"]).any(of)
                })
            })
        })
    }

    /// The CSI driver behind a volume, in the pod or behind its claim.
    fn driver_of(&self, pod: &Value, volume: &Value) -> Option<String> {
        if let Some(driver) = volume["csi"]["driver"].as_str() {
            return Some(driver.to_owned());
        }
        let claim = match volume["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => claim.to_owned(),
            None if volume.get("ephemeral").is_some() => {
                format!("{}-{}", meta::name(pod), volume["name"].as_str()?)
            }
            None => return None,
        };
        let key = Key::new(meta::text(pod, "namespace"), &claim);
        let claim = self
            .storage
            .get(&"/persistentvolumeclaims".into(), &key)?
            .value();
        let key = Key::new("", claim["spec"]["volumeName"].as_str()?);
        let volume = self
            .storage
            .get(&"/persistentvolumes".into(), &key)?
            .value();
        Some(volume["spec"]["csi"]["driver"].as_str()?.to_owned())
    }
}

fn refused(target: &Target, write: Write<'_>, why: &str) -> Box<Status> {
    let (Write::Create(object) | Write::Update(_, object) | Write::Delete(object)) = write;
    let name = if target.name.is_empty() {
        meta::name(object)
    } else {
        &target.name
    };
    let resource = &target.resource;
    Box::new(Status::forbidden(
        &resource.group,
        &resource.plural,
        name,
        why,
    ))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn runs_on(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"].as_str() == Some(node)
}

/// Why a node may not do this.
fn check(
    node: &str,
    target: &Target,
    write: Write<'_>,
    uid: impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    let resource = &target.resource;
    let subresource = target.subresource.as_str();
    match (resource.group.as_str(), resource.plural.as_str(), write) {
        ("", "pods", write) => match (subresource, write) {
            ("", Write::Create(pod)) => mirrors(node, pod, uid),
            ("", Write::Delete(pod)) if runs_on(pod, node) => Ok(()),
            // An eviction is looked at before it becomes a deletion.
            ("eviction", Write::Delete(_)) => Ok(()),
            ("", Write::Delete(_)) => Err(format!(
                "node {node:?} can only delete pods with spec.nodeName set to itself"
            )),
            ("status", Write::Update(live, new)) => pod_status(node, live, new),
            ("", Write::Update(..)) => Err(format!(
                "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
            )),
            (other, _) => Err(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            )),
        },
        ("", "nodes", write) => own_node(node, target, write),
        ("", "persistentvolumeclaims", Write::Update(live, new)) if subresource == "status" => {
            claim_status(node, live, new)
        }
        ("", "persistentvolumeclaims", _) => Err("may only update PVC status".into()),
        ("coordination.k8s.io", "leases", _) if target.namespace != LEASES => Err(format!(
            "can only access leases in the {LEASES:?} system namespace"
        )),
        ("coordination.k8s.io", "leases", write) => same_name(node, "node lease", target, write),
        ("storage.k8s.io", "csinodes", write) => same_name(node, "CSINode", target, write),
        ("resource.k8s.io", "resourceslices", write) => {
            let (Write::Create(slice) | Write::Update(_, slice) | Write::Delete(slice)) = write;
            if runs_on(slice, node) {
                Ok(())
            } else {
                Err("can only create, update or delete ResourceSlice with the same NodeName as the requesting node".into())
            }
        }
        _ => Ok(()),
    }
}

fn same_name(node: &str, what: &str, target: &Target, write: Write<'_>) -> Result<(), String> {
    let name = match write {
        Write::Create(object) => meta::name(object),
        _ => &target.name,
    };
    if name == node {
        return Ok(());
    }
    Err(format!(
        "can only access {what} with the same name as the requesting node"
    ))
}

/// A node creates nothing but what mirrors its own static pods, and these use nothing of the cluster.
fn mirrors(node: &str, pod: &Value, uid: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    if !is_mirror(pod) {
        return Err(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        ));
    }
    let only = |what: &str| Err(format!("node {node:?} can only create pods with {what}"));
    if !runs_on(pod, node) {
        return only("spec.nodeName set to itself");
    }
    let owners: Vec<&Value> = items(&pod["metadata"]["ownerReferences"]).collect();
    let owner = match owners.as_slice() {
        [owner] => owner,
        [] => return only("an owner reference set to itself"),
        _ => return only("a single owner reference set to itself"),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != *node {
        return only("an owner reference set to itself");
    }
    if owner["controller"] != true {
        return only("a controller owner reference set to itself");
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let claimed = owner["uid"].as_str().unwrap_or_default();
    match uid(node) {
        Some(uid) if uid == claimed => {}
        Some(uid) => {
            return Err(format!(
                "node {node} UID mismatch: expected {claimed} got {uid}"
            ));
        }
        None => return Err(format!("node {node:?} not found")),
    }
    let refers = |what: &str| {
        Err(format!(
            "node {node:?} can not create pods that reference {what}"
        ))
    };
    let account = pod["spec"]["serviceAccountName"].as_str();
    if account.is_some_and(|account| !account.is_empty()) {
        return refers("a service account");
    }
    let mut found = None;
    visit_configuration(pod, &mut |kind, _| {
        found.get_or_insert(kind);
    });
    match found {
        Some(crate::authz::node::Kind::Secret) => return refers("secrets"),
        Some(_) => return refers("configmaps"),
        None => {}
    }
    for volume in items(&pod["spec"]["volumes"]) {
        if volume.get("persistentVolumeClaim").is_some() {
            return refers("persistentvolumeclaims");
        }
        if items(&volume["projected"]["sources"]).any(|s| s.get("clusterTrustBundle").is_some()) {
            return refers("clustertrustbundles");
        }
    }
    if items(&pod["spec"]["resourceClaims"]).next().is_some() {
        return refers("resourceclaims");
    }
    Ok(())
}

fn pod_status(node: &str, live: &Value, new: &Value) -> Result<(), String> {
    if !runs_on(live, node) {
        return Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if live["metadata"]["labels"] != new["metadata"]["labels"] {
        return Err(format!(
            "node {node:?} cannot update labels through pod status"
        ));
    }
    if live["status"]["resourceClaimStatuses"] != new["status"]["resourceClaimStatuses"] {
        return Err(format!(
            "node {node:?} cannot update resource claim statues"
        ));
    }
    Ok(())
}

fn claim_status(node: &str, live: &Value, new: &Value) -> Result<(), String> {
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        meta::remove(&mut claim, "resourceVersion");
        meta::remove(&mut claim, "managedFields");
        if let Some(status) = claim["status"].as_object_mut() {
            for field in [
                "capacity",
                "conditions",
                "allocatedResourceStatuses",
                "allocatedResources",
            ] {
                status.remove(field);
            }
        }
        claim
    };
    if rest(live) == rest(new) {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
    ))
}

fn own_node(node: &str, target: &Target, write: Write<'_>) -> Result<(), String> {
    let requested = match write {
        Write::Create(object) => meta::name(object),
        _ => &target.name,
    };
    if requested != node {
        return Err(format!(
            "node {node:?} is not allowed to modify node {requested:?}"
        ));
    }
    match write {
        Write::Create(new) => {
            let forbidden = forbidden_labels(&Value::Null, new);
            if !forbidden.is_empty() {
                return Err(format!(
                    "node {node:?} is not allowed to set the following labels: {}",
                    forbidden.join(", ")
                ));
            }
        }
        Write::Update(live, new) => {
            if live["spec"]["taints"] != new["spec"]["taints"] {
                return Err(format!("node {node:?} is not allowed to modify taints"));
            }
            let forbidden = forbidden_labels(live, new);
            if !forbidden.is_empty() {
                return Err(format!(
                    "is not allowed to modify labels: {}",
                    forbidden.join(", ")
                ));
            }
        }
        Write::Delete(_) => {}
    }
    Ok(())
}

/// The labels that differ and that a kubelet must leave alone.
fn forbidden_labels(live: &Value, new: &Value) -> Vec<String> {
    let labels = |object: &Value| object["metadata"]["labels"].as_object().cloned();
    let (live, new) = (
        labels(live).unwrap_or_default(),
        labels(new).unwrap_or_default(),
    );
    let keys: BTreeSet<&String> = live.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| live.get(*key) != new.get(*key) && !is_kubelets(key))
        .cloned()
        .collect()
}

/// Whether a kubelet may set a label: its own, and any that are not of Kubernetes.
fn is_kubelets(label: &str) -> bool {
    let prefix = label.split_once('/').map_or("", |(prefix, _)| prefix);
    let within = |domain: &str| {
        prefix
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if within(RESTRICTED) {
        return false;
    }
    !(within("kubernetes.io") || within("k8s.io"))
        || KUBELET_LABELS.contains(&label)
        || KUBELET_PREFIXES.iter().any(|own| within(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_of_kubernetes_are_not_the_kubelets_to_set() {
        for own in [
            "app",
            "apps.openyurt.io/nodepool",
            "kubernetes.io/hostname",
            "node.kubernetes.io/instance-type",
            "x.kubelet.kubernetes.io/y",
        ] {
            assert!(is_kubelets(own), "{own}");
        }
        for other in [
            "kubernetes.io/role",
            "node-role.kubernetes.io/master",
            "x.k8s.io/y",
            "node-restriction.kubernetes.io/z",
            "a.node-restriction.kubernetes.io/z",
        ] {
            assert!(!is_kubelets(other), "{other}");
        }
        let before =
            json!({"metadata": {"labels": {"node-role.kubernetes.io/edge": "", "a": "b"}}});
        let after = json!({"metadata": {"labels": {"a": "c"}}});
        assert_eq!(
            forbidden_labels(&before, &after),
            ["node-role.kubernetes.io/edge"]
        );
        assert!(forbidden_labels(&after, &after).is_empty());
    }

    #[test]
    fn a_mirror_pod_belongs_to_its_node_and_uses_nothing() {
        let mirror = json!({
            "metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]}});
        let changed = |parent: &str, field: &str, value: Value| {
            let mut pod = mirror.clone();
            pod.pointer_mut(parent).expect("a parent")[field] = value;
            mirrors("n", &pod, |_| Some("u".into()))
        };
        assert_eq!(changed("/spec", "hostNetwork", true.into()), Ok(()));
        let volume = |source: Value| json!([source]);
        for (parent, field, value, why) in [
            ("/metadata", "annotations", json!({}), "annotation"),
            ("/spec", "nodeName", json!("m"), "spec.nodeName"),
            ("/metadata", "ownerReferences", json!([]), "owner reference"),
            (
                "/metadata/ownerReferences/0",
                "uid",
                json!("v"),
                "UID mismatch",
            ),
            (
                "/spec",
                "serviceAccountName",
                json!("default"),
                "service account",
            ),
            (
                "/spec",
                "volumes",
                volume(json!({"secret": {"secretName": "s"}})),
                "secrets",
            ),
            (
                "/spec",
                "volumes",
                volume(json!({"configMap": {"name": "c"}})),
                "configmaps",
            ),
            (
                "/spec",
                "volumes",
                volume(json!({"persistentVolumeClaim": {}})),
                "claims",
            ),
        ] {
            let error = changed(parent, field, value).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_pods_status_is_its_nodes_to_write() {
        let pod =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n"}, "status": {}});
        let mut new = pod.clone();
        new["status"]["phase"] = "Running".into();
        assert_eq!(pod_status("n", &pod, &new), Ok(()));
        assert!(pod_status("m", &pod, &new).is_err());
        new["metadata"]["labels"]["a"] = "c".into();
        assert!(pod_status("n", &pod, &new).is_err());
    }
}
