//! What may not change.

use super::{given, list, text};
use crate::causes::{forbidden, invalid};
use serde_json::Value;
use yurt_wire::Gvk;
use yurt_wire::status::Cause;

const IMMUTABLE: &str = "field is immutable";

/// The value at a pointer; null and absent are the same.
fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// Fields (dotted) that keep their value.
fn immutable(old: &Value, new: &Value, fields: &[&str], causes: &mut Vec<Cause>) {
    for field in fields {
        let pointer = format!("/{}", field.replace('.', "/"));
        let (old, new) = (at(old, &pointer), at(new, &pointer));
        if old != new {
            causes.push(invalid(field, new, IMMUTABLE));
        }
    }
}

/// `value` without some fields.
fn without(value: &Value, names: &[&str]) -> Value {
    let mut copy = value.clone();
    if let Value::Object(fields) = &mut copy {
        for name in names {
            fields.remove(*name);
        }
    }
    copy
}

pub(super) fn check(gvk: &Gvk, old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => pod(&old["spec"], &new["spec"], causes),
        ("", "Service") => service(&old["spec"], &new["spec"], causes),
        ("", "ConfigMap" | "Secret") => data(gvk, old, new, causes),
        ("", "PersistentVolumeClaim") => claim(old, new, causes),
        ("", "PersistentVolume") => volume(&old["spec"], &new["spec"], causes),
        ("", "Node") => node(&old["spec"], &new["spec"], causes),
        ("apps", "Deployment" | "ReplicaSet" | "DaemonSet") => {
            immutable(old, new, &["spec.selector"], causes);
        }
        ("apps", "StatefulSet") => stateful_set(&old["spec"], &new["spec"], causes),
        ("apps", "ControllerRevision") => immutable(old, new, &["data"], causes),
        ("batch", "Job") => job(old, new, causes),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding")
            if old["roleRef"] != new["roleRef"] =>
        {
            causes.push(invalid("roleRef", &new["roleRef"], "cannot change roleRef"));
        }
        ("storage.k8s.io", "StorageClass") => {
            for field in [
                "parameters",
                "provisioner",
                "reclaimPolicy",
                "volumeBindingMode",
            ] {
                if at(old, &format!("/{field}")) != at(new, &format!("/{field}")) {
                    causes.push(forbidden(
                        field,
                        &format!("updates to {field} are forbidden."),
                    ));
                }
            }
        }
        ("discovery.k8s.io", "EndpointSlice") => immutable(old, new, &["addressType"], causes),
        ("networking.k8s.io", "IngressClass") => {
            immutable(old, new, &["spec.controller"], causes);
        }
        ("node.k8s.io", "RuntimeClass") => immutable(old, new, &["handler"], causes),
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            immutable(
                old,
                new,
                &[
                    "spec.request",
                    "spec.signerName",
                    "spec.username",
                    "spec.usages",
                ],
                causes,
            );
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            if old["value"] != new["value"] {
                causes.push(forbidden("value", "may not be changed in an update."));
            }
            if old["preemptionPolicy"] != new["preemptionPolicy"] {
                causes.push(invalid(
                    "preemptionPolicy",
                    &new["preemptionPolicy"],
                    IMMUTABLE,
                ));
            }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            immutable(
                old,
                new,
                &[
                    "spec.group",
                    "spec.names.plural",
                    "spec.names.kind",
                    "spec.scope",
                ],
                causes,
            );
            stored_versions(old, new, causes);
        }
        _ => {}
    }
}

/// A version in which objects may be stored cannot go.
fn stored_versions(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    for (i, stored) in list(&old["status"], "storedVersions").iter().enumerate() {
        let kept = list(&new["spec"], "versions")
            .iter()
            .any(|version| version.get("name") == Some(stored));
        if !kept {
            let name = stored.as_str().unwrap_or_default();
            causes.push(invalid(
                &format!("status.storedVersions[{i}]"),
                stored,
                &format!("missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"),
            ));
        }
    }
}

fn pod(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old == new {
        return;
    }
    for kind in ["containers", "initContainers"] {
        if list(old, kind).len() != list(new, kind).len() {
            causes.push(forbidden(
                &format!("spec.{kind}"),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    let but_seconds = |spec| {
        let all = list(spec, "tolerations").iter();
        all.map(|toleration| without(toleration, &["tolerationSeconds"]))
            .collect::<Vec<_>>()
    };
    let now = but_seconds(new);
    let added_only = but_seconds(old)
        .iter()
        .all(|toleration| now.contains(toleration));
    if !added_only {
        causes.push(forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let deadline = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    if let Some(before) = deadline(old)
        && deadline(new).is_none_or(|after| after > before)
    {
        causes.push(invalid(
            "spec.activeDeadlineSeconds",
            at(new, "/activeDeadlineSeconds"),
            "must be less than or equal to previous value",
        ));
    }
    // Pods that wait for their gates may lose them and narrow where they go.
    let gated = !list(old, "schedulingGates").is_empty();
    let comparable = |spec: &Value| {
        let mut spec = without(spec, &["activeDeadlineSeconds", "tolerations"]);
        if gated && let Value::Object(fields) = &mut spec {
            for name in ["schedulingGates", "nodeSelector", "affinity"] {
                fields.remove(name);
            }
        }
        let grace = spec
            .get("terminationGracePeriodSeconds")
            .and_then(Value::as_i64);
        let negative = old["terminationGracePeriodSeconds"]
            .as_i64()
            .is_some_and(|n| n < 0);
        if negative && matches!(grace, Some(i64::MIN..=1)) {
            spec["terminationGracePeriodSeconds"] = Value::from(1);
        }
        for kind in ["containers", "initContainers"] {
            for container in spec
                .get_mut(kind)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                *container = without(container, &["image"]);
            }
        }
        spec
    };
    if comparable(old) != comparable(new) {
        causes.push(forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

/// Ephemeral containers come and stay as they are.
pub(super) fn ephemeral_containers(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    for container in list(old, "ephemeralContainers") {
        let name = text(container, "name");
        let known = list(new, "ephemeralContainers")
            .iter()
            .find(|other| text(other, "name") == name);
        let what = match known {
            None => "removed",
            Some(known) if known != container => "changed",
            Some(_) => continue,
        };
        causes.push(forbidden(
            "spec.ephemeralContainers",
            &format!("existing ephemeral containers {name:?} may not be {what}"),
        ));
    }
    let free = ["ephemeralContainers"];
    if without(old, &free) != without(new, &free) {
        causes.push(forbidden(
            "spec",
            "only ephemeral containers may be changed through this subresource",
        ));
    }
}

/// A resize changes amounts, and nothing else.
pub(super) fn resize(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let fixed = |spec: &Value| {
        let mut spec = without(spec, &["resources"]);
        for kind in ["containers", "initContainers"] {
            for container in spec
                .get_mut(kind)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                *container = without(container, &["resources", "resizePolicy"]);
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        causes.push(forbidden(
            "spec",
            "only cpu and memory resources are mutable",
        ));
    }
}

fn service(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let external = |spec: &Value| text(spec, "type") == "ExternalName";
    if external(old) || external(new) {
        return;
    }
    let (before, after) = (text(old, "clusterIP"), text(new, "clusterIP"));
    if !before.is_empty() && before != after {
        causes.push(invalid(
            "spec.clusterIPs[0]",
            &Value::from(after),
            "may not change once set",
        ));
    }
}

fn data(gvk: &Gvk, old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if gvk.kind == "Secret" && old["type"] != new["type"] {
        causes.push(invalid("type", &new["type"], IMMUTABLE));
    }
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    let frozen = "field is immutable when `immutable` is set";
    if new.get("immutable") != Some(&Value::Bool(true)) {
        causes.push(forbidden("immutable", frozen));
    }
    for part in ["data", "binaryData"] {
        if at(old, &format!("/{part}")) != at(new, &format!("/{part}")) {
            causes.push(forbidden(part, frozen));
        }
    }
}

fn claim(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let bound = text(&old["status"], "phase") == "Bound";
    let mut free = vec!["volumeAttributesClassName"];
    if text(&old["spec"], "volumeName").is_empty() {
        free.push("volumeName");
    }
    if bound {
        free.push("resources");
    }
    if given(&old["spec"], "storageClassName").is_none() {
        // A default class may be filled in later.
        free.push("storageClassName");
    }
    if without(&old["spec"], &free) != without(&new["spec"], &free) {
        causes.push(forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
}

fn volume(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let free = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    if without(old, &free) != without(new, &free) {
        causes.push(forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    if old["volumeMode"] != new["volumeMode"] {
        causes.push(invalid("spec.volumeMode", &new["volumeMode"], IMMUTABLE));
    }
}

fn node(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    for (name, what) in [
        (
            "podCIDR",
            "node updates may not change podCIDR except from \"\" to valid",
        ),
        (
            "providerID",
            "node updates may not change providerID except from \"\" to valid",
        ),
    ] {
        let before = text(old, name);
        if !before.is_empty() && before != text(new, name) {
            causes.push(forbidden(&format!("spec.{name}"), what));
        }
    }
}

fn stateful_set(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let free = [
        "minReadySeconds",
        "ordinals",
        "persistentVolumeClaimRetentionPolicy",
        "replicas",
        "revisionHistoryLimit",
        "template",
        "updateStrategy",
    ];
    if without(old, &free) != without(new, &free) {
        causes.push(forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

fn job(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    immutable(
        old,
        new,
        &[
            "spec.selector",
            "spec.completionMode",
            "spec.podFailurePolicy",
        ],
        causes,
    );
    // An indexed job may be resized: completions together with parallelism.
    let indexed = text(&new["spec"], "completionMode") == "Indexed"
        && new["spec"]["completions"] == new["spec"]["parallelism"];
    if !indexed {
        immutable(old, new, &["spec.completions"], causes);
    }
    // Where the pods of a job go may change until the first of them starts.
    let waits = old["spec"]["suspend"] == true && at(old, "/status/startTime").is_null();
    let template = |object: &Value| {
        let mut template = object["spec"]["template"].clone();
        if waits {
            if let Some(Value::Object(metadata)) = template.get_mut("metadata") {
                metadata.remove("labels");
                metadata.remove("annotations");
            }
            if let Some(Value::Object(spec)) = template.get_mut("spec") {
                for name in ["nodeSelector", "tolerations", "schedulingGates", "affinity"] {
                    spec.remove(name);
                }
            }
        }
        template
    };
    if template(old) != template(new) {
        causes.push(invalid(
            "spec.template",
            at(new, "/spec/template"),
            IMMUTABLE,
        ));
    }
}
