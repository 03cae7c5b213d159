//! Pods and pod templates.

use super::{child, empty, items, set, set_if_absent, text};
use serde_json::{Map, Value};

/// `rw-r--r--`, the mode of projected files.
const FILE_MODE: u32 = 0o644;

/// A Pod.
pub(super) fn pod(pod: &mut Value) {
    let Some(spec) = child(pod, "spec") else {
        return;
    };
    set_if_absent(spec, "enableServiceLinks", true);
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            requests_from_limits(container);
        }
    }
    pod_spec(spec);
}

/// An object with a pod template at `template`.
pub(super) fn template(object: &mut Value) {
    if let Some(spec) = child(object, "template").and_then(|template| child(template, "spec")) {
        pod_spec(spec);
    }
}

/// A limit without a request is also the request.
fn requests_from_limits(container: &mut Value) {
    let Some(resources) = child(container, "resources") else {
        return;
    };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    set_if_absent(resources, "requests", empty());
    if let Some(Value::Object(requests)) = resources.get_mut("requests") {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

pub(super) fn pod_spec(spec: &mut Value) {
    set(spec, "restartPolicy", "Always");
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "schedulerName", "default-scheduler");
    set_if_absent(spec, "terminationGracePeriodSeconds", 30);
    set_if_absent(spec, "securityContext", empty());
    // The old name and the new one are the same field.
    let account = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount"),
        name => name,
    }
    .to_owned();
    if !account.is_empty() {
        spec["serviceAccountName"] = Value::from(account.as_str());
        spec["serviceAccount"] = Value::from(account);
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(spec, list) {
            self::container(container, host_network);
        }
    }
    for volume in items(spec, "volumes") {
        self::volume(volume);
    }
}

fn container(container: &mut Value, host_network: bool) {
    let policy = pull_policy(text(container, "image"));
    set(container, "imagePullPolicy", policy);
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, probe) {
            for (name, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                set(probe, name, value);
            }
            http_get(probe);
            if let Some(grpc) = child(probe, "grpc") {
                set_if_absent(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = child(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
    for variable in items(container, "env") {
        if let Some(source) = child(variable, "valueFrom") {
            field_ref(source);
        }
    }
    if host_network {
        for port in items(container, "ports") {
            if let Some(number) = port.get("containerPort").cloned() {
                set(port, "hostPort", number);
            }
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = child(handler, "httpGet") {
        set(get, "path", "/");
        set(get, "scheme", "HTTP");
    }
}

fn field_ref(source: &mut Value) {
    if let Some(field) = child(source, "fieldRef") {
        set(field, "apiVersion", "v1");
    }
}

/// `Always` for images whose tag may move: `latest`, or none and no digest.
fn pull_policy(image: &str) -> &'static str {
    let (image, digest) = match image.split_once('@') {
        Some((image, _)) => (image, true),
        None => (image, false),
    };
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn volume(volume: &mut Value) {
    let sourceless = volume
        .as_object()
        .is_some_and(|fields: &Map<String, Value>| fields.keys().all(|name| name == "name"));
    if sourceless {
        set(volume, "emptyDir", empty());
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, source) {
            set_if_absent(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(downward) = child(volume, "downwardAPI") {
        items(downward, "items").for_each(field_ref);
    }
    if let Some(projected) = child(volume, "projected") {
        for source in items(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                set_if_absent(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = child(source, "downwardAPI") {
                items(downward, "items").for_each(field_ref);
            }
        }
    }
    if let Some(path) = child(volume, "hostPath") {
        set_if_absent(path, "type", "");
    }
    if let Some(image) = child(volume, "image") {
        let policy = pull_policy(text(image, "reference"));
        set(image, "pullPolicy", policy);
    }
    if let Some(spec) = child(volume, "ephemeral")
        .and_then(|ephemeral| child(ephemeral, "volumeClaimTemplate"))
        .and_then(|template| child(template, "spec"))
    {
        set(spec, "volumeMode", "Filesystem");
    }
}
