//! Configuration, storage, identities: everything that is neither a workload nor a route nor admission.

use super::admission;
use super::names::{is_config_key, is_dns1123_subdomain};
use super::{given, join, list, metadata, one_of, text};
use crate::causes::{invalid, required, too_long};
use base64::Engine;
use serde_json::Value;
use yurt_wire::status::Cause;

/// Everything in a ConfigMap or Secret together.
const MAX_DATA_BYTES: u64 = 1024 * 1024;
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn entries<'v>(object: &'v Value, name: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    object
        .get(name)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

pub(super) fn core(kind: &str, object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    match kind {
        "ConfigMap" | "Secret" => data(kind, object, causes),
        "Node" => {
            for (i, taint) in list(spec, "taints").iter().enumerate() {
                let effects = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
                one_of(
                    taint,
                    "effect",
                    &format!("spec.taints[{i}]"),
                    &effects,
                    true,
                    causes,
                );
            }
        }
        "PersistentVolumeClaim" => {
            access_modes(spec, causes);
            if given(&spec["resources"]["requests"], "storage").is_none() {
                causes.push(required("spec.resources[storage]", ""));
            }
            metadata::selector("spec.selector", &spec["selector"], causes);
        }
        "PersistentVolume" => {
            access_modes(spec, causes);
            if given(spec, "capacity").is_none() {
                causes.push(required("spec.capacity", ""));
            }
            one_of(
                spec,
                "persistentVolumeReclaimPolicy",
                "spec",
                &["Delete", "Recycle", "Retain"],
                false,
                causes,
            );
        }
        "ServiceAccount" => {
            for (i, secret) in list(object, "imagePullSecrets").iter().enumerate() {
                if text(secret, "name").is_empty() {
                    causes.push(required(&format!("imagePullSecrets[{i}].name"), ""));
                }
            }
        }
        "ReplicationController" => {
            super::workload::template(spec, "spec", causes);
            let labels = &spec["template"]["metadata"]["labels"];
            let selector = spec.get("selector").and_then(Value::as_object);
            if selector.is_none_or(serde_json::Map::is_empty) {
                causes.push(required("spec.selector", ""));
            } else if !selector
                .into_iter()
                .flatten()
                .all(|(key, value)| labels.get(key) == Some(value))
            {
                causes.push(invalid(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                ));
            }
        }
        "Event" => {
            let about = text(&object["involvedObject"], "namespace");
            let own = text(&object["metadata"], "namespace");
            // Events about cluster-scoped objects live in the default namespace.
            let fits = about == own || (about.is_empty() && matches!(own, "" | "default"));
            if !fits {
                causes.push(invalid(
                    "involvedObject.namespace",
                    &Value::from(about),
                    "does not match event.namespace",
                ));
            }
        }
        _ => {}
    }
}

fn access_modes(spec: &Value, causes: &mut Vec<Cause>) {
    let modes = list(spec, "accessModes");
    if modes.is_empty() {
        causes.push(required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    let known = [
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOnce",
        "ReadWriteOncePod",
    ];
    for mode in modes {
        if !mode.as_str().is_some_and(|mode| known.contains(&mode)) {
            causes.push(crate::causes::not_supported(
                "spec.accessModes",
                mode,
                &known,
            ));
        }
    }
}

fn data(kind: &str, object: &Value, causes: &mut Vec<Cause>) {
    let mut bytes = 0u64;
    for part in ["data", "binaryData"] {
        for (key, value) in entries(object, part) {
            let at = format!("{part}[{key}]");
            if !is_config_key(key) {
                causes.push(invalid(&at, &Value::from(key.as_str()), CONFIG_KEY));
            }
            if part == "binaryData" && entries(object, "data").any(|(other, _)| other == key) {
                causes.push(invalid(
                    &at,
                    &Value::from(key.as_str()),
                    "duplicate of key present in data",
                ));
            }
            let length = value.as_str().map_or(0, str::len) as u64;
            let encoded = kind == "Secret" || part == "binaryData";
            bytes += if encoded { length / 4 * 3 } else { length };
        }
    }
    if bytes > MAX_DATA_BYTES {
        // kube-apiserver blames a ConfigMap as a whole.
        let field = if kind == "Secret" { "data" } else { "" };
        causes.push(too_long(field, MAX_DATA_BYTES));
    }
    if kind == "Secret" {
        secret(object, causes);
    }
}

/// What each type of secret must hold.
fn secret(object: &Value, causes: &mut Vec<Cause>) {
    let needed: &[&str] = match text(object, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/service-account-token" => {
            let account = object
                .pointer("/metadata/annotations")
                .and_then(|annotations| annotations.get("kubernetes.io/service-account.name"))
                .and_then(Value::as_str)
                .unwrap_or_default();
            if account.is_empty() {
                causes.push(required(
                    "metadata.annotations[kubernetes.io/service-account.name]",
                    "",
                ));
            }
            &[]
        }
        _ => &[],
    };
    for key in needed {
        let Some(value) = given(&object["data"], key) else {
            causes.push(required(&format!("data[{key}]"), ""));
            continue;
        };
        if key.starts_with(".docker") {
            let text = value.as_str().unwrap_or_default();
            let json = base64::engine::general_purpose::STANDARD
                .decode(text)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            if json.is_none() {
                causes.push(invalid(
                    &format!("data[{key}]"),
                    &Value::from("<secret contents redacted>"),
                    "invalid character in JSON",
                ));
            }
        }
    }
}

pub(super) fn other(group: &str, kind: &str, object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    match (group, kind) {
        ("rbac.authorization.k8s.io", _) => rbac(kind, object, causes),
        ("coordination.k8s.io", "Lease") => lease(spec, causes),
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            if text(spec, "request").is_empty() {
                causes.push(required("spec.request", ""));
            }
            if list(spec, "usages").is_empty() {
                causes.push(required("spec.usages", ""));
            }
            let signer = text(spec, "signerName");
            if !signer.is_empty()
                && !signer
                    .split_once('/')
                    .is_some_and(|(domain, path)| is_dns1123_subdomain(domain) && !path.is_empty())
            {
                causes.push(invalid(
                    "spec.signerName",
                    &Value::from(signer),
                    "must be a fully qualified domain and path of the form 'example.com/signer-name'",
                ));
            }
        }
        ("storage.k8s.io", "StorageClass") => {
            one_of(
                object,
                "reclaimPolicy",
                "",
                &["Delete", "Retain"],
                true,
                causes,
            );
            let modes = ["Immediate", "WaitForFirstConsumer"];
            one_of(object, "volumeBindingMode", "", &modes, true, causes);
        }
        ("admissionregistration.k8s.io", kind) if kind.ends_with("WebhookConfiguration") => {
            admission::webhooks(object, causes);
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            admission::policy(&object["spec"], causes);
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            admission::policy_binding(&object["spec"], causes);
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            if let Err(more) = crate::crd::Crd::parse(object) {
                causes.extend(more);
            }
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            let name = text(&object["metadata"], "name");
            let value = object["value"].as_i64().unwrap_or(0);
            if value > 1_000_000_000 && !name.starts_with("system-") {
                causes.push(crate::causes::forbidden(
                    "value",
                    "maximum allowed value of a user defined priority is 1000000000",
                ));
            }
        }
        _ => {}
    }
}

fn lease(spec: &Value, causes: &mut Vec<Cause>) {
    if let Some(seconds) = given(spec, "leaseDurationSeconds")
        && seconds.as_i64().is_none_or(|n| n <= 0)
    {
        causes.push(invalid(
            "spec.leaseDurationSeconds",
            seconds,
            "must be greater than 0",
        ));
    }
    if let Some(count) = given(spec, "leaseTransitions")
        && count.as_i64().is_none_or(|n| n < 0)
    {
        causes.push(invalid(
            "spec.leaseTransitions",
            count,
            "must be greater than or equal to 0",
        ));
    }
}

fn rbac(kind: &str, object: &Value, causes: &mut Vec<Cause>) {
    match kind {
        "Role" | "ClusterRole" => {
            for (i, rule) in list(object, "rules").iter().enumerate() {
                let at = format!("rules[{i}]");
                if list(rule, "verbs").is_empty() {
                    causes.push(required(
                        &join(&at, "verbs"),
                        "verbs must contain at least one value",
                    ));
                }
                let urls = !list(rule, "nonResourceURLs").is_empty();
                if urls && kind == "Role" {
                    causes.push(invalid(
                        &join(&at, "nonResourceURLs"),
                        &rule["nonResourceURLs"],
                        "namespaced rules cannot apply to non-resource URLs",
                    ));
                }
                if !urls && list(rule, "apiGroups").is_empty() {
                    causes.push(required(
                        &join(&at, "apiGroups"),
                        "resource rules must supply at least one api group",
                    ));
                }
                if !urls && list(rule, "resources").is_empty() {
                    causes.push(required(
                        &join(&at, "resources"),
                        "resource rules must supply at least one resource",
                    ));
                }
            }
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let roles: &[&str] = if kind == "RoleBinding" {
                &["ClusterRole", "Role"]
            } else {
                &["ClusterRole"]
            };
            one_of(&object["roleRef"], "kind", "roleRef", roles, false, causes);
            let group = ["rbac.authorization.k8s.io"];
            one_of(
                &object["roleRef"],
                "apiGroup",
                "roleRef",
                &group,
                true,
                causes,
            );
            for (i, subject) in list(object, "subjects").iter().enumerate() {
                let at = format!("subjects[{i}]");
                let kinds = ["Group", "ServiceAccount", "User"];
                one_of(subject, "kind", &at, &kinds, false, causes);
                if text(subject, "kind") == "ServiceAccount"
                    && text(subject, "namespace").is_empty()
                    && kind == "ClusterRoleBinding"
                {
                    causes.push(required(&join(&at, "namespace"), ""));
                }
            }
        }
        _ => {}
    }
}
