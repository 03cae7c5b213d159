//! Namespaces, storage, identities, webhooks: everything that is neither a workload nor a route.

use super::{child, empty, items, set, set_if_absent, text};
use base64::Engine;
use serde_json::{Map, Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn core(kind: &str, object: &mut Value) {
    match kind {
        "Namespace" => namespace(object),
        "Node" => node(object),
        "Secret" => secret(object),
        "PersistentVolume" => {
            if let Some(spec) = child(object, "spec") {
                set(spec, "persistentVolumeReclaimPolicy", "Retain");
                set(spec, "volumeMode", "Filesystem");
                if let Some(path) = child(spec, "hostPath") {
                    set_if_absent(path, "type", "");
                }
            }
            phase(object, "Pending");
        }
        "PersistentVolumeClaim" => volume_claim(object),
        "LimitRange" => {
            if let Some(spec) = child(object, "spec") {
                items(spec, "limits").for_each(limits);
            }
        }
        _ => {}
    }
}

fn phase(object: &mut Value, phase: &str) {
    set_if_absent(object, "status", empty());
    if let Some(status) = child(object, "status") {
        set(status, "phase", phase);
    }
}

pub(super) fn volume_claim(claim: &mut Value) {
    if let Some(spec) = child(claim, "spec") {
        set(spec, "volumeMode", "Filesystem");
    }
    phase(claim, "Pending");
}

fn namespace(namespace: &mut Value) {
    let deleting = namespace
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|time| !time.is_null());
    let name = namespace.pointer("/metadata/name").cloned();
    if let (Some(name), Some(metadata)) = (name, child(namespace, "metadata"))
        && name.as_str().is_some_and(|name| !name.is_empty())
    {
        set_if_absent(metadata, "labels", empty());
        if let Some(labels) = child(metadata, "labels") {
            labels["kubernetes.io/metadata.name"] = name;
        }
    }
    // Only the deletion of a namespace takes its finalizer away.
    if !deleting && let Some(spec) = child(namespace, "spec") {
        set_if_absent(spec, "finalizers", json!(["kubernetes"]));
    }
    phase(namespace, "Active");
}

fn node(node: &mut Value) {
    if let Some(status) = child(node, "status")
        && let Some(capacity) = status.get("capacity").cloned()
    {
        set_if_absent(status, "allocatable", capacity);
    }
}

/// `stringData` is write-only: it goes into `data`.
fn secret(secret: &mut Value) {
    set(secret, "type", "Opaque");
    let Value::Object(fields) = secret else {
        return;
    };
    let Some(Value::Object(plain)) = fields.remove("stringData") else {
        return;
    };
    let data = fields
        .entry("data")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(data) = data {
        for (key, value) in plain {
            let bytes = value.as_str().unwrap_or_default().as_bytes();
            let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
            data.insert(key, Value::from(encoded));
        }
    }
}

/// Limits of containers imply each other: max, default, defaultRequest, then min.
fn limits(item: &mut Value) {
    if text(item, "type") != "Container" {
        return;
    }
    for (to, from) in [
        ("default", "max"),
        ("defaultRequest", "default"),
        ("defaultRequest", "min"),
    ] {
        if let Some(Value::Object(from)) = item.get(from).cloned()
            && !from.is_empty()
        {
            set_if_absent(item, to, empty());
            if let Some(Value::Object(to)) = item.get_mut(to) {
                for (name, amount) in from {
                    to.entry(name).or_insert(amount);
                }
            }
        }
    }
}

pub(super) fn other(group: &str, kind: &str, object: &mut Value) {
    match (group, kind) {
        (RBAC, "RoleBinding" | "ClusterRoleBinding") => binding(object),
        ("storage.k8s.io", "StorageClass") => {
            set(object, "reclaimPolicy", "Delete");
            set(object, "volumeBindingMode", "Immediate");
        }
        ("storage.k8s.io", "CSIDriver") => {
            if let Some(spec) = child(object, "spec") {
                csi_driver(spec);
            }
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            set(object, "preemptionPolicy", "PreemptLowerPriority");
        }
        ("admissionregistration.k8s.io", _) => admission(kind, object),
        ("apiregistration.k8s.io", "APIService") => {
            if let Some(service) = child(object, "spec").and_then(|spec| child(spec, "service")) {
                set_if_absent(service, "port", 443);
            }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => crate::crd::default_crd(object),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => {
            if let Some(spec) = child(object, "spec") {
                set(spec, "matchingPrecedence", 1000);
            }
        }
        ("authentication.k8s.io", "TokenRequest") => {
            if let Some(spec) = child(object, "spec") {
                set_if_absent(spec, "expirationSeconds", 3600);
            }
        }
        _ => {}
    }
}

fn binding(object: &mut Value) {
    if let Some(role) = child(object, "roleRef") {
        set(role, "apiGroup", RBAC);
    }
    for subject in items(object, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set(subject, "apiGroup", RBAC);
        }
    }
}

fn csi_driver(spec: &mut Value) {
    set_if_absent(spec, "attachRequired", true);
    set_if_absent(spec, "podInfoOnMount", false);
    set_if_absent(spec, "storageCapacity", false);
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    set_if_absent(spec, "volumeLifecycleModes", json!(["Persistent"]));
    set_if_absent(spec, "requiresRepublish", false);
    set_if_absent(spec, "seLinuxMount", false);
}

fn admission(kind: &str, object: &mut Value) {
    match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            for webhook in items(object, "webhooks") {
                set(webhook, "failurePolicy", "Fail");
                set(webhook, "matchPolicy", "Equivalent");
                set_if_absent(webhook, "namespaceSelector", empty());
                set_if_absent(webhook, "objectSelector", empty());
                set_if_absent(webhook, "timeoutSeconds", 10);
                if kind == "MutatingWebhookConfiguration" {
                    set(webhook, "reinvocationPolicy", "Never");
                }
                for rule in items(webhook, "rules") {
                    set(rule, "scope", "*");
                }
                if let Some(service) =
                    child(webhook, "clientConfig").and_then(|config| child(config, "service"))
                {
                    set_if_absent(service, "port", 443);
                }
            }
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            if let Some(spec) = child(object, "spec") {
                set(spec, "failurePolicy", "Fail");
                if let Some(constraints) = child(spec, "matchConstraints") {
                    set(constraints, "matchPolicy", "Equivalent");
                    set_if_absent(constraints, "namespaceSelector", empty());
                    set_if_absent(constraints, "objectSelector", empty());
                    for rule in items(constraints, "resourceRules") {
                        set(rule, "scope", "*");
                    }
                }
            }
        }
        _ => {}
    }
}
