//! What the server sets itself and what a request may not change, by kind: kube-apiserver's "strategies".

use crate::{authn::User, meta, resources::Resource};
use serde_json::{Map, Value, json};

/// The finalizer that keeps a CRD until its objects are gone.
pub(crate) const CRD_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Takes from a new object what its creator does not decide. Runs before defaults; what is set here and in the defaults
/// counts as written by the creator.
pub(super) fn prepare_create(resource: &Resource, object: &mut Value) {
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "resourceVersion",
    ] {
        meta::remove(object, field);
    }
    if resource.counts_generation {
        object["metadata"]["generation"] = 1.into();
    }
    if resource.has_status() && !(resource.group.is_empty() && resource.kind == "Node") {
        meta::copy_top(&json!({}), object, "status");
    }
    if resource.group.is_empty() && resource.kind == "Namespace" {
        let name = meta::name(object).to_owned();
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
    }
}

/// Gives a new object its identity.
pub(super) fn identify(object: &mut Value, now: &str) {
    object["metadata"]["uid"] = meta::new_uid().into();
    object["metadata"]["creationTimestamp"] = now.into();
}

/// What a new object of a kind begins with; nobody owns it. Runs after defaults.
pub(super) fn initial_state(resource: &Resource, object: &mut Value, user: &User) {
    if resource.custom.is_some() {
        return;
    }
    match (&*resource.group, &*resource.kind) {
        ("", "Pod") => {
            let class = qos_class(&object["spec"]);
            object["status"] = json!({"phase": "Pending", "qosClass": class});
        }
        ("", "Namespace") => {
            object["status"] = json!({"phase": "Active"});
            let finalizers = object["spec"]["finalizers"].as_array_mut();
            match finalizers {
                Some(finalizers) if finalizers.iter().any(|f| f == "kubernetes") => {}
                Some(finalizers) => finalizers.push("kubernetes".into()),
                None => object["spec"]["finalizers"] = json!(["kubernetes"]),
            }
        }
        ("", "PersistentVolume" | "PersistentVolumeClaim") => {
            object["status"] = json!({"phase": "Pending"});
        }
        ("", "Service") => object["status"] = json!({"loadBalancer": {}}),
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            object["status"] = json!({});
            let info = user.to_json();
            for field in ["username", "uid", "groups", "extra"] {
                if let Some(spec) = object["spec"].as_object_mut() {
                    spec.remove(field);
                    if let Some(value) = info.get(field) {
                        spec.insert(field.to_owned(), value.clone());
                    }
                }
            }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            let mut finalizers = meta::finalizers(object);
            if !finalizers.iter().any(|f| f == CRD_FINALIZER) {
                finalizers.push(CRD_FINALIZER.into());
            }
            meta::set_finalizers(object, &finalizers);
        }
        ("batch", "Job") => {
            object["status"] = json!({});
            job_selector(object);
        }
        _ if resource.has_status() && object.get("status").is_none() => {
            object["status"] = json!({});
        }
        _ => {}
    }
}

/// Jobs select their pods by the job's uid unless the user takes care of it.
fn job_selector(job: &mut Value) {
    if job["spec"]["manualSelector"] == true {
        return;
    }
    let uid = meta::uid(job).to_owned();
    let name = meta::name(job).to_owned();
    let labels = &mut job["spec"]["template"]["metadata"]["labels"];
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        if labels[key].is_null() {
            labels[key] = value.clone().into();
        }
    }
    if job["spec"]["selector"].is_null() {
        job["spec"]["selector"] =
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    }
}

/// The quality of service class of a pod: Guaranteed when every container limits CPU and memory to what it
/// requests, BestEffort when none says anything, Burstable otherwise.
fn qos_class(spec: &Value) -> &'static str {
    let containers = ["initContainers", "containers"]
        .iter()
        .filter_map(|field| spec[*field].as_array())
        .flatten();
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        let resources = &container["resources"];
        for name in ["cpu", "memory"] {
            let limit = resources["limits"].get(name);
            let request = resources["requests"].get(name).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Prepares a changed object: what this (sub)resource may not change comes back from `live`.
pub(super) fn prepare_update(
    resource: &Resource,
    subresource: &str,
    live: &Value,
    new: &mut Value,
) {
    match subresource {
        "" | "scale" => {
            if resource.has_status() {
                meta::copy_top(live, new, "status");
            }
            if resource.group.is_empty() && resource.kind == "Namespace" {
                new["spec"] = live["spec"].clone();
            }
            if is_csr(resource) {
                new["spec"] = live["spec"].clone();
            }
        }
        "status" => restrict_to_status(resource, live, new),
        "approval" => {
            let mut conditions = new["status"]["conditions"].take();
            let now = meta::now();
            for condition in conditions.as_array_mut().into_iter().flatten() {
                if condition["lastTransitionTime"].is_null() {
                    condition["lastTransitionTime"] = now.clone().into();
                }
            }
            restrict_to_status(resource, live, new);
            meta::copy_top(live, new, "status");
            new["status"]["conditions"] = conditions;
        }
        "finalize" => {
            let finalizers = new["spec"]["finalizers"].take();
            restrict_to_status(resource, live, new);
            meta::copy_top(live, new, "status");
            new["spec"]["finalizers"] = finalizers;
        }
        "ephemeralcontainers" => {
            let containers = new["spec"]["ephemeralContainers"].take();
            let metadata = new["metadata"].take();
            new.clone_from(live);
            new["metadata"] = metadata;
            new["spec"]["ephemeralContainers"] = containers;
        }
        "resize" => {
            let resources = container_resources(&new["spec"]);
            let metadata = new["metadata"].take();
            new.clone_from(live);
            new["metadata"] = metadata;
            set_container_resources(&mut new["spec"], &resources);
        }
        _ => {}
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "selfLink",
        "generation",
    ] {
        meta::copy(live, new, field);
    }
}

/// Counts a change of the desired state. Runs last.
pub(super) fn count_generation(resource: &Resource, live: &Value, new: &mut Value) {
    if resource.counts_generation {
        let generation = live["metadata"]["generation"].as_i64().unwrap_or_default();
        let changed = desired_state_differs(resource, live, new);
        new["metadata"]["generation"] = (generation + i64::from(changed)).into();
    }
}

fn is_csr(resource: &Resource) -> bool {
    resource.group == "certificates.k8s.io" && resource.kind == "CertificateSigningRequest"
}

/// Kinds whose `/status` also takes labels, annotations and finalizers; others take the status only.
const STATUS_TAKES_METADATA: &[(&str, &str)] = &[
    ("", "Node"),
    ("", "Namespace"),
    ("", "PersistentVolume"),
    ("", "PersistentVolumeClaim"),
    ("", "Pod"),
    ("", "ReplicationController"),
    ("", "ResourceQuota"),
    ("", "Service"),
    ("apps", "DaemonSet"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("batch", "CronJob"),
    ("batch", "Job"),
    ("networking.k8s.io", "Ingress"),
    ("policy", "PodDisruptionBudget"),
];

fn status_takes_metadata(resource: &Resource) -> bool {
    let kind = (resource.group.as_str(), resource.kind.as_str());
    resource.custom.is_none() && STATUS_TAKES_METADATA.contains(&kind)
}

fn restrict_to_status(resource: &Resource, live: &Value, new: &mut Value) {
    let mut status = new.get("status").cloned();
    if is_csr(resource) {
        // Approval has its own subresource.
        if let Some(status) = &mut status {
            keep_approval(&live["status"], status);
        }
    }
    let mut metadata = if status_takes_metadata(resource) {
        let mut metadata = new["metadata"].take();
        // Deployments keep their labels, and only those.
        if resource.kind == "Deployment"
            && let Some(metadata) = metadata.as_object_mut()
        {
            metadata.remove("labels");
            if let Some(labels) = live["metadata"].get("labels") {
                metadata.insert("labels".into(), labels.clone());
            }
        }
        metadata
    } else {
        let mut metadata = live["metadata"].clone();
        // Managed fields are tracked, and the resourceVersion is the caller's precondition.
        for field in ["managedFields", "resourceVersion"] {
            match new["metadata"].get(field) {
                Some(value) => metadata[field] = value.clone(),
                None => {
                    if let Some(metadata) = metadata.as_object_mut() {
                        metadata.remove(field);
                    }
                }
            }
        }
        metadata
    };
    if let Some(owners) = live["metadata"].get("ownerReferences") {
        metadata["ownerReferences"] = owners.clone();
    } else if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("ownerReferences");
    }
    new.clone_from(live);
    new["metadata"] = metadata;
    match (status, new.as_object_mut()) {
        (Some(status), _) => new["status"] = status,
        (None, Some(new)) => {
            new.remove("status");
        }
        (None, None) => {}
    }
}

fn keep_approval(live: &Value, status: &mut Value) {
    let is_approval = |c: &&Value| c["type"] == "Approved" || c["type"] == "Denied";
    let list = |s: &Value| s["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions: Vec<Value> = list(live).iter().filter(is_approval).cloned().collect();
    conditions.extend(list(status).into_iter().filter(|c| !is_approval(&c)));
    if conditions.is_empty() {
        if let Some(status) = status.as_object_mut() {
            status.remove("conditions");
        }
    } else {
        status["conditions"] = conditions.into();
    }
}

fn container_resources(spec: &Value) -> Vec<(String, Value)> {
    spec["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| Some((c["name"].as_str()?.to_owned(), c["resources"].clone())))
        .collect()
}

fn set_container_resources(spec: &mut Value, resources: &[(String, Value)]) {
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        let found = resources
            .iter()
            .find(|(name, _)| container["name"] == **name);
        if let Some((_, wanted)) = found {
            container["resources"] = wanted.clone();
        }
    }
}

/// Whether anything but metadata (and status, where it is written apart) differs.
fn desired_state_differs(resource: &Resource, live: &Value, new: &Value) -> bool {
    let empty = Map::new();
    let desired = |object: &'_ Value| {
        let fields = object.as_object().unwrap_or(&empty).clone();
        let ignored = |field: &str| {
            matches!(field, "apiVersion" | "kind" | "metadata")
                || (field == "status" && resource.has_status())
        };
        fields
            .into_iter()
            .filter(|(field, _)| !ignored(field))
            .collect::<Map<_, _>>()
    };
    desired(live) != desired(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Catalog;

    fn resource(group: &str, plural: &str) -> Resource {
        let catalog = Catalog::new(&[]);
        Resource::clone(
            catalog
                .find(group, "v1", plural)
                .expect("a built-in resource"),
        )
    }

    fn deployment(replicas: i64, ready: i64) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "d", "uid": "u", "generation": 4},
            "spec": {"replicas": replicas}, "status": {"readyReplicas": ready}})
    }

    #[test]
    fn spec_and_status_are_written_apart() {
        let resource = resource("apps", "deployments");
        let live = deployment(1, 1);
        let mut new = deployment(2, 2);
        prepare_update(&resource, "", &live, &mut new);
        count_generation(&resource, &live, &mut new);
        assert_eq!(new["spec"]["replicas"], 2);
        assert_eq!(new["status"]["readyReplicas"], 1);
        assert_eq!(new["metadata"]["generation"], 5);

        let mut new = deployment(2, 2);
        new["metadata"]["labels"] = json!({"a": "b"});
        prepare_update(&resource, "status", &live, &mut new);
        count_generation(&resource, &live, &mut new);
        assert_eq!(new["spec"]["replicas"], 1);
        assert_eq!(new["status"]["readyReplicas"], 2);
        assert_eq!(new["metadata"]["generation"], 4);
        assert!(new["metadata"].get("labels").is_none());

        // The controller notes the revision together with the status.
        let mut new = deployment(1, 2);
        new["metadata"]["annotations"] = json!({"deployment.kubernetes.io/revision": "2"});
        prepare_update(&resource, "status", &live, &mut new);
        assert!(new["metadata"].get("annotations").is_some());
    }

    #[test]
    fn a_node_keeps_the_status_it_registers_with() {
        let mut node = json!({"metadata": {"name": "n"}, "status": {"phase": "x"}});
        prepare_create(&resource("", "nodes"), &mut node);
        initial_state(&resource("", "nodes"), &mut node, &User::server());
        assert_eq!(node["status"]["phase"], "x");
        let mut pod =
            json!({"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Running"}});
        prepare_create(&resource("", "pods"), &mut pod);
        initial_state(&resource("", "pods"), &mut pod, &User::server());
        assert_eq!(pod["status"]["phase"], "Pending");
    }

    #[test]
    fn approval_changes_conditions_and_status_does_not() {
        let resource = resource("certificates.k8s.io", "certificatesigningrequests");
        let live = json!({"metadata": {"name": "c"}, "spec": {"request": "r"}, "status": {}});
        let mut new = live.clone();
        new["status"] = json!({"certificate": "x", "conditions": [{"type": "Approved"}]});
        let mut approved = new.clone();
        prepare_update(&resource, "approval", &live, &mut approved);
        let condition = &approved["status"]["conditions"][0];
        assert_eq!(condition["type"], "Approved");
        assert!(condition["lastTransitionTime"].is_string());
        assert!(approved["status"].get("certificate").is_none());
        prepare_update(&resource, "status", &live, &mut new);
        assert_eq!(new["status"], json!({"certificate": "x"}));
    }
}
