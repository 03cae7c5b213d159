//! Pod specs: of pods and of templates.

use super::names::{
    DNS1123_LABEL, DNS1123_SUBDOMAIN, is_dns1123_label, is_dns1123_subdomain, is_env_name,
    is_port_name,
};
use super::{given, join, list, metadata, one_of, text};
use crate::causes::{duplicate, forbidden, invalid, not_found, required};
use serde_json::Value;
use std::collections::BTreeSet;
use yurt_wire::quantity::Quantity;
use yurt_wire::status::Cause;

const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const PORT_NAME: &str = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), at least one letter, at most 15 characters, no two hyphens in a row";
/// The kinds of things a probe or a hook can do.
const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

pub(super) fn is_port(number: &Value) -> bool {
    number.as_i64().is_some_and(|n| (1..=65535).contains(&n))
}

/// A port number, or the name of one.
pub(super) fn port_or_name(value: &Value, at: &str, causes: &mut Vec<Cause>) {
    match value {
        Value::String(name) if is_port_name(name) => {}
        Value::String(_) => causes.push(invalid(at, value, PORT_NAME)),
        number if is_port(number) => {}
        other => causes.push(invalid(at, other, PORT_RANGE)),
    }
}

/// A pod spec at `at`.
pub(super) fn pod_spec(spec: &Value, at: &str, causes: &mut Vec<Cause>) {
    let volumes = volumes(spec, at, causes);
    let mut names = BTreeSet::new();
    if list(spec, "containers").is_empty() {
        causes.push(required(&join(at, "containers"), ""));
    }
    let mut host_ports = BTreeSet::new();
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, container) in list(spec, kind).iter().enumerate() {
            let at = format!("{}[{i}]", join(at, kind));
            let name = text(container, "name");
            if name.is_empty() {
                causes.push(required(&join(&at, "name"), ""));
            } else if !is_dns1123_label(name) {
                causes.push(invalid(
                    &join(&at, "name"),
                    &Value::from(name),
                    DNS1123_LABEL,
                ));
            } else if !names.insert(name) {
                causes.push(duplicate(&join(&at, "name"), &Value::from(name)));
            }
            self::container(container, kind, &at, &volumes, causes);
            if kind == "containers" {
                for (j, port) in list(container, "ports").iter().enumerate() {
                    let host = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
                    let key = (host, text(port, "protocol"), text(port, "hostIP"));
                    if host != 0 && !host_ports.insert(key) {
                        let at = format!("{at}.ports[{j}].hostPort");
                        causes.push(duplicate(&at, &Value::from(host)));
                    }
                }
            }
        }
    }
    one_of(
        spec,
        "restartPolicy",
        at,
        &["Always", "Never", "OnFailure"],
        true,
        causes,
    );
    one_of(
        spec,
        "dnsPolicy",
        at,
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        true,
        causes,
    );
    if text(spec, "dnsPolicy") == "None" && list(&spec["dnsConfig"], "nameservers").is_empty() {
        causes.push(required(
            &format!("{}.nameservers", join(at, "dnsConfig")),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    if let Some(seconds) = given(spec, "activeDeadlineSeconds")
        && seconds.as_i64().is_none_or(|n| n < 1)
    {
        causes.push(invalid(
            &join(at, "activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    for (name, label) in [
        ("hostname", true),
        ("subdomain", true),
        ("serviceAccountName", false),
    ] {
        let value = text(spec, name);
        if value.is_empty() {
            continue;
        }
        if label && !is_dns1123_label(value) {
            causes.push(invalid(&join(at, name), &Value::from(value), DNS1123_LABEL));
        } else if !label && !is_dns1123_subdomain(value) {
            causes.push(invalid(
                &join(at, name),
                &Value::from(value),
                DNS1123_SUBDOMAIN,
            ));
        }
    }
    metadata::labels(&join(at, "nodeSelector"), spec.get("nodeSelector"), causes);
    tolerations(spec, at, causes);
    spread(spec, at, causes);
}

/// Checks the volumes and returns their names.
fn volumes<'v>(spec: &'v Value, at: &str, causes: &mut Vec<Cause>) -> BTreeSet<&'v str> {
    let mut names = BTreeSet::new();
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let at = format!("{}[{i}]", join(at, "volumes"));
        let name = text(volume, "name");
        if name.is_empty() {
            causes.push(required(&join(&at, "name"), ""));
        } else if !is_dns1123_label(name) {
            causes.push(invalid(
                &join(&at, "name"),
                &Value::from(name),
                DNS1123_LABEL,
            ));
        } else if !names.insert(name) {
            causes.push(duplicate(&join(&at, "name"), &Value::from(name)));
        }
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, source)| *name != "name" && !source.is_null())
            .map(|(name, _)| name)
            .collect();
        match sources.as_slice() {
            [] => causes.push(required(&at, "must specify a volume type")),
            [_] => {}
            [_, more @ ..] => {
                for source in more {
                    causes.push(forbidden(
                        &join(&at, source),
                        "may not specify more than 1 volume type",
                    ));
                }
            }
        }
        if let Some(path) = given(volume, "hostPath") {
            if text(path, "path").is_empty() {
                causes.push(required(&format!("{at}.hostPath.path"), ""));
            } else if text(path, "path").split('/').any(|part| part == "..") {
                causes.push(invalid(
                    &format!("{at}.hostPath.path"),
                    &path["path"],
                    "must not contain '..'",
                ));
            }
        }
        if let Some(secret) = given(volume, "secret")
            && text(secret, "secretName").is_empty()
        {
            causes.push(required(&format!("{at}.secret.secretName"), ""));
        }
        if let Some(map) = given(volume, "configMap")
            && text(map, "name").is_empty()
        {
            causes.push(required(&format!("{at}.configMap.name"), ""));
        }
    }
    names
}

fn container(
    container: &Value,
    kind: &str,
    at: &str,
    volumes: &BTreeSet<&str>,
    causes: &mut Vec<Cause>,
) {
    if text(container, "image").trim().is_empty() {
        // Templates may leave the image to whoever fills them in; kube-apiserver does not let them.
        causes.push(required(&join(at, "image"), ""));
    }
    one_of(
        container,
        "imagePullPolicy",
        at,
        &["Always", "IfNotPresent", "Never"],
        true,
        causes,
    );
    one_of(
        container,
        "terminationMessagePolicy",
        at,
        &["FallbackToLogsOnError", "File"],
        true,
        causes,
    );
    ports(container, at, causes);
    environment(container, at, causes);
    mounts(container, at, volumes, causes);
    resources(&container["resources"], &join(at, "resources"), causes);
    let sidecar = text(container, "restartPolicy") == "Always";
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = given(container, name) else {
            continue;
        };
        let at = join(at, name);
        if kind == "ephemeralContainers" || (kind == "initContainers" && !sidecar) {
            let what = "may not be set for init containers without restartPolicy=Always";
            causes.push(forbidden(&at, what));
            continue;
        }
        handler(probe, &at, causes);
        for count in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            if let Some(number) = given(probe, count)
                && number.as_i64().is_none_or(|n| n < 0)
            {
                causes.push(invalid(
                    &join(&at, count),
                    number,
                    "must be greater than or equal to 0",
                ));
            }
        }
        if name != "readinessProbe" && given(probe, "successThreshold").is_some_and(|n| *n != 1) {
            causes.push(invalid(
                &join(&at, "successThreshold"),
                &probe["successThreshold"],
                "must be 1",
            ));
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(action) = given(&container["lifecycle"], hook) {
            handler(action, &format!("{}.{hook}", join(at, "lifecycle")), causes);
        }
    }
}

fn handler(action: &Value, at: &str, causes: &mut Vec<Cause>) {
    let mut chosen = HANDLERS.iter().filter(|name| given(action, name).is_some());
    match (chosen.next(), chosen.next()) {
        (None, _) => causes.push(required(at, "must specify a handler type")),
        (Some(_), Some(second)) => causes.push(forbidden(
            &join(at, second),
            "may not specify more than 1 handler type",
        )),
        _ => {}
    }
    for name in ["httpGet", "tcpSocket"] {
        if let Some(target) = given(action, name) {
            port_or_name(&target["port"], &format!("{}.port", join(at, name)), causes);
        }
    }
    if let Some(get) = given(action, "httpGet") {
        one_of(
            get,
            "scheme",
            &join(at, "httpGet"),
            &["HTTP", "HTTPS"],
            true,
            causes,
        );
    }
    if let Some(exec) = given(action, "exec")
        && list(exec, "command").is_empty()
    {
        causes.push(required(&format!("{}.command", join(at, "exec")), ""));
    }
}

fn ports(container: &Value, at: &str, causes: &mut Vec<Cause>) {
    let mut names = BTreeSet::new();
    for (i, port) in list(container, "ports").iter().enumerate() {
        let at = format!("{}[{i}]", join(at, "ports"));
        let name = text(port, "name");
        if !name.is_empty() {
            if !is_port_name(name) {
                causes.push(invalid(&join(&at, "name"), &Value::from(name), PORT_NAME));
            } else if !names.insert(name) {
                causes.push(duplicate(&join(&at, "name"), &Value::from(name)));
            }
        }
        match &port["containerPort"] {
            number if number.is_null() || *number == 0 => {
                causes.push(required(&join(&at, "containerPort"), ""));
            }
            number if !is_port(number) => {
                causes.push(invalid(&join(&at, "containerPort"), number, PORT_RANGE));
            }
            _ => {}
        }
        if let Some(number) = given(port, "hostPort")
            && *number != 0
            && !is_port(number)
        {
            causes.push(invalid(&join(&at, "hostPort"), number, PORT_RANGE));
        }
        one_of(port, "protocol", &at, &["SCTP", "TCP", "UDP"], true, causes);
    }
}

fn environment(container: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (i, variable) in list(container, "env").iter().enumerate() {
        let at = format!("{}[{i}]", join(at, "env"));
        let name = text(variable, "name");
        if name.is_empty() {
            causes.push(required(&join(&at, "name"), ""));
        } else if !is_env_name(name) {
            causes.push(invalid(
                &join(&at, "name"),
                &Value::from(name),
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            ));
        }
        let Some(source) = given(variable, "valueFrom") else {
            continue;
        };
        let at = join(&at, "valueFrom");
        let count = source
            .as_object()
            .map_or(0, |fields| fields.values().filter(|v| !v.is_null()).count());
        if !text(variable, "value").is_empty() {
            causes.push(invalid(
                &at,
                &Value::from(""),
                "may not be specified when `value` is not empty",
            ));
        }
        match count {
            0 => causes.push(invalid(
                &at,
                &Value::from(""),
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            )),
            1 => {}
            _ => causes.push(invalid(
                &at,
                &Value::from(""),
                "may not have more than one field specified at a time",
            )),
        }
    }
}

fn mounts(container: &Value, at: &str, volumes: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let mut paths = BTreeSet::new();
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let at = format!("{}[{i}]", join(at, "volumeMounts"));
        let name = text(mount, "name");
        if name.is_empty() {
            causes.push(required(&join(&at, "name"), ""));
        } else if !volumes.contains(name) {
            causes.push(not_found(&join(&at, "name"), &Value::from(name)));
        }
        let path = text(mount, "mountPath");
        if path.is_empty() {
            causes.push(required(&join(&at, "mountPath"), ""));
        } else if !paths.insert(path) {
            causes.push(invalid(
                &join(&at, "mountPath"),
                &Value::from(path),
                "must be unique",
            ));
        }
        let inner = text(mount, "subPath");
        if inner.starts_with('/') || inner.split('/').any(|part| part == "..") {
            causes.push(invalid(
                &join(&at, "subPath"),
                &Value::from(inner),
                "must be a relative path without '..'",
            ));
        }
    }
}

fn resources(resources: &Value, at: &str, causes: &mut Vec<Cause>) {
    let limits = &resources["limits"];
    for (name, wanted) in resources["requests"].as_object().into_iter().flatten() {
        let Some(limit) = given(limits, name) else {
            continue;
        };
        let amount = |value: &Value| value.as_str().and_then(Quantity::parse);
        if let (Some(w), Some(l)) = (amount(wanted), amount(limit))
            && w > l
        {
            causes.push(invalid(
                &join(at, "requests"),
                wanted,
                &format!(
                    "must be less than or equal to {name} limit of {}",
                    limit.as_str().unwrap_or_default()
                ),
            ));
        }
    }
}

fn tolerations(spec: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (i, toleration) in list(spec, "tolerations").iter().enumerate() {
        let at = format!("{}[{i}]", join(at, "tolerations"));
        let operator = text(toleration, "operator");
        one_of(
            toleration,
            "operator",
            &at,
            &["Equal", "Exists", "Gt", "Lt"],
            false,
            causes,
        );
        one_of(
            toleration,
            "effect",
            &at,
            &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            false,
            causes,
        );
        if text(toleration, "key").is_empty() && operator != "Exists" {
            causes.push(invalid(
                &join(&at, "operator"),
                &Value::from(operator),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if operator == "Exists" && !text(toleration, "value").is_empty() {
            causes.push(invalid(
                &join(&at, "operator"),
                &Value::from(operator),
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        if given(toleration, "tolerationSeconds").is_some()
            && text(toleration, "effect") != "NoExecute"
        {
            causes.push(invalid(
                &join(&at, "effect"),
                &Value::from(text(toleration, "effect")),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
    }
}

fn spread(spec: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (i, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let at = format!("{}[{i}]", join(at, "topologySpreadConstraints"));
        if constraint["maxSkew"].as_i64().is_none_or(|skew| skew <= 0) {
            causes.push(invalid(
                &join(&at, "maxSkew"),
                &constraint["maxSkew"],
                "must be greater than 0",
            ));
        }
        one_of(
            constraint,
            "whenUnsatisfiable",
            &at,
            &["DoNotSchedule", "ScheduleAnyway"],
            true,
            causes,
        );
    }
}
