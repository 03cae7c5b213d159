//! What makes a Deployment, a StatefulSet or a pod template one that the API server would take.
//!
//! Kubernetes' own validation is not to be had here, and a dry run of the workload would need an identity that may create workloads
//! everywhere, inside a request that waits for it. So every field is checked for its type, by Kubernetes' own schema, and what
//! people get wrong is checked for its meaning; what is left the controller tells in the status.

use super::fault::{Findings, is_dns_label};
use serde_json::Value;
use std::collections::BTreeSet;
use yurt_controller::fields::{items, labels, text};
use yurt_wire::{Gvk, quantity::Quantity, transcode};

/// Looks through a whole workload of a kind of apps/v1. `at` is where the workload is, as the user sees it (`""` or `a.b`).
pub(super) fn workload(kind: &str, workload: &Value, at: &str, found: &mut Findings) {
    let field = |name: &str| join(at, name);
    if let Err(error) = transcode::from_json(&Gvk::from_api_version("apps/v1", kind), workload) {
        found.fault(if at.is_empty() { "spec" } else { at }, error.what);
        return;
    }
    found.labels(&field("metadata.labels"), &workload["metadata"]["labels"]);
    let spec = &workload["spec"];
    if spec["replicas"].as_i64().is_some_and(|n| n < 0) {
        found.fault(field("spec.replicas"), "must not be negative");
    }
    let template = &spec["template"];
    let template_labels = &template["metadata"]["labels"];
    found.labels(&field("spec.template.metadata.labels"), template_labels);
    let at_selector = field("spec.selector");
    match found.selector(&at_selector, &spec["selector"]) {
        Some(selector) if selector.is_empty() => {
            found.fault(
                at_selector,
                "is needed, and must match the labels of the template",
            );
        }
        Some(selector) if !selector.matches(&labels(template_labels)) => {
            found.fault(
                at_selector,
                "does not match the labels of the template (spec.template.metadata.labels)",
            );
        }
        _ => {}
    }
    let claims: Vec<String> = items(&spec["volumeClaimTemplates"])
        .map(|claim| text(&claim["metadata"]["name"]))
        .collect();
    let pods = &template["spec"];
    pod_spec(pods, &field("spec.template.spec"), &claims, found);
    if !["", "Always"].contains(&text(&pods["restartPolicy"]).as_str()) {
        found.fault(
            field("spec.template.spec.restartPolicy"),
            "must be Always in a workload",
        );
    }
}

/// Looks through a pod template.
pub(super) fn pod_template(template: &Value, at: &str, found: &mut Findings) {
    if let Err(error) = transcode::from_json(&Gvk::from_api_version("v1", "Pod"), template) {
        found.fault(at, error.what);
        return;
    }
    found.labels(
        &join(at, "metadata.labels"),
        &template["metadata"]["labels"],
    );
    pod_spec(&template["spec"], &join(at, "spec"), &[], found);
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    }
}

/// Says so where a text is given that is none of these.
fn one_of(value: &Value, at: &str, choice: &[&str], found: &mut Findings) {
    let value = text(value);
    if !value.is_empty() && !choice.contains(&value.as_str()) {
        found.fault(at, format!("{value:?} is none of {}", choice.join(", ")));
    }
}

fn pod_spec(spec: &Value, at: &str, claims: &[String], found: &mut Findings) {
    let mut volumes: BTreeSet<String> = BTreeSet::new();
    for (i, volume) in items(&spec["volumes"]).enumerate() {
        let at = format!("{at}.volumes[{i}]");
        let name = text(&volume["name"]);
        named(&name, &at, &mut volumes, found);
        let fields = volume.as_object().into_iter().flatten();
        let sources = fields.filter(|(field, source)| *field != "name" && !source.is_null());
        match sources.count() {
            0 => found.fault(at, "says not what it is (configMap, hostPath, ...)"),
            1 => {}
            _ => found.fault(at, "is more than one thing"),
        }
    }
    volumes.extend(claims.iter().cloned());
    if items(&spec["containers"]).next().is_none() {
        found.fault(format!("{at}.containers"), "at least one is needed");
    }
    let mut names = BTreeSet::new();
    for kind in ["initContainers", "containers"] {
        for (i, container) in items(&spec[kind]).enumerate() {
            let at = format!("{at}.{kind}[{i}]");
            named(&text(&container["name"]), &at, &mut names, found);
            self::container(container, &at, &volumes, found);
        }
    }
    let field = |name: &str| join(at, name);
    one_of(
        &spec["restartPolicy"],
        &field("restartPolicy"),
        &["Always", "OnFailure", "Never"],
        found,
    );
    one_of(
        &spec["dnsPolicy"],
        &field("dnsPolicy"),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        found,
    );
    found.labels(&field("nodeSelector"), &spec["nodeSelector"]);
    for (i, toleration) in items(&spec["tolerations"]).enumerate() {
        let at = format!("{at}.tolerations[{i}]");
        let key = text(&toleration["key"]);
        if !key.is_empty() {
            found.key(&format!("{at}.key"), &key);
        } else if toleration["operator"] != "Exists" {
            found.fault(&at, "without a key the operator must be Exists");
        }
        if toleration["operator"] == "Exists" && !text(&toleration["value"]).is_empty() {
            found.fault(&at, "has no value with the operator Exists");
        }
        one_of(
            &toleration["operator"],
            &format!("{at}.operator"),
            &["Exists", "Equal", "Lt", "Gt"],
            found,
        );
        one_of(
            &toleration["effect"],
            &format!("{at}.effect"),
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            found,
        );
    }
}

/// A name that is there once.
fn named(name: &str, at: &str, known: &mut BTreeSet<String>, found: &mut Findings) {
    let at = format!("{at}.name");
    if name.is_empty() {
        found.fault(at, "is needed");
    } else if !is_dns_label(name) {
        found.fault(
            at,
            format!(
                "{name:?} is no DNS label: at most 63 lower-case letters, digits and hyphens, no hyphen at either end"
            ),
        );
    } else if !known.insert(name.to_owned()) {
        found.fault(at, format!("{name:?} is there before"));
    }
}

fn container(container: &Value, at: &str, volumes: &BTreeSet<String>, found: &mut Findings) {
    let image = text(&container["image"]);
    if image.is_empty() {
        found.fault(format!("{at}.image"), "is needed");
    } else if image.trim() != image {
        found.fault(
            format!("{at}.image"),
            "must not have leading or trailing whitespace",
        );
    }
    one_of(
        &container["imagePullPolicy"],
        &format!("{at}.imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        found,
    );
    for (i, port) in items(&container["ports"]).enumerate() {
        let at = format!("{at}.ports[{i}]");
        let is_port = |port: &Value| port.as_i64().is_some_and(|n| (1..=65535).contains(&n));
        if !is_port(&port["containerPort"]) {
            found.fault(format!("{at}.containerPort"), "must be between 1 and 65535");
        }
        if !port["hostPort"].is_null() && port["hostPort"] != 0 && !is_port(&port["hostPort"]) {
            found.fault(format!("{at}.hostPort"), "must be between 1 and 65535");
        }
        let name = text(&port["name"]);
        if name.len() > 15 || !name.is_empty() && !is_dns_label(&name) {
            found.fault(
                format!("{at}.name"),
                format!(
                    "{name:?} is no name of a port: at most 15 lower-case letters, digits and hyphens"
                ),
            );
        }
        one_of(
            &port["protocol"],
            &format!("{at}.protocol"),
            &["TCP", "UDP", "SCTP"],
            found,
        );
    }
    for (i, variable) in items(&container["env"]).enumerate() {
        let name = text(&variable["name"]);
        if name.is_empty() || name.contains('=') {
            found.fault(
                format!("{at}.env[{i}].name"),
                "is needed, and has no `=` in it",
            );
        }
    }
    for (i, mount) in items(&container["volumeMounts"]).enumerate() {
        let at = format!("{at}.volumeMounts[{i}]");
        let name = text(&mount["name"]);
        if !volumes.contains(&name) {
            found.fault(format!("{at}.name"), format!("there is no volume {name:?}"));
        }
        if text(&mount["mountPath"]).is_empty() {
            found.fault(format!("{at}.mountPath"), "is needed");
        }
    }
    resources(&container["resources"], &format!("{at}.resources"), found);
}

fn resources(resources: &Value, at: &str, found: &mut Findings) {
    let quantity = |amount: &Value| match amount {
        Value::String(text) => Quantity::parse(text),
        Value::Number(number) => Quantity::parse(&number.to_string()),
        _ => None,
    };
    for list in ["limits", "requests"] {
        for (name, amount) in resources[list].as_object().into_iter().flatten() {
            let field = format!("{at}.{list}[{name}]");
            match quantity(amount) {
                None => found.fault(field, format!("{amount} is no quantity, as 100m or 64Mi")),
                Some(amount) if amount.is_negative() => {
                    found.fault(field, "must not be negative");
                }
                Some(request) if list == "requests" => {
                    if let Some(limit) = quantity(&resources["limits"][name])
                        && request > limit
                    {
                        found.fault(field, "must be at most the limit");
                    }
                }
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment() -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"labels": {"app": "web"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                    "volumes": [{"name": "data", "emptyDir": {}}],
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "web", "image": "web:1", "ports": [{"containerPort": 80, "name": "http"}],
                        "env": [{"name": "A", "value": "b"}], "volumeMounts": [{"name": "data", "mountPath": "/d"}],
                        "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": 1, "memory": "64Mi"}}}]}}}})
    }

    fn faults(kind: &str, object: &Value) -> Vec<String> {
        let mut found = Findings::default();
        workload(kind, object, "", &mut found);
        found.faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_usual_workload_is_good() {
        assert_eq!(faults("Deployment", &deployment()), Vec::<String>::new());
        let mut set = deployment();
        set["spec"]["serviceName"] = "web".into();
        set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "claim"}, "spec": {}}]);
        set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["name"] =
            "claim".into();
        assert_eq!(faults("StatefulSet", &set), Vec::<String>::new());
    }

    #[test]
    fn what_the_api_server_would_refuse_is_named() {
        let wrong = [
            ("/spec/replicas", json!("two"), "replicas"),
            ("/spec/replicas", json!(-1), "spec.replicas: must not"),
            ("/spec/selector", json!({}), "spec.selector: is needed"),
            (
                "/spec/selector",
                json!({"matchLabels": {"app": "x"}}),
                "spec.selector: does not match",
            ),
            (
                "/spec/selector",
                json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}),
                "spec.selector",
            ),
            (
                "/spec/template/metadata/labels",
                json!({"app": "web", "b": "c d"}),
                "spec.template.metadata.labels[b]",
            ),
            (
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                "spec.template.spec.restartPolicy",
            ),
            (
                "/spec/template/spec/dnsPolicy",
                json!("Mine"),
                "spec.template.spec.dnsPolicy",
            ),
            (
                "/spec/template/spec/containers",
                json!([]),
                "spec.template.spec.containers: at least",
            ),
            ("/spec/template/spec/containers", json!("web"), "containers"),
            (
                "/spec/template/spec/containers/0/name",
                json!("Web"),
                "containers[0].name",
            ),
            (
                "/spec/template/spec/containers/0/image",
                json!(""),
                "containers[0].image",
            ),
            (
                "/spec/template/spec/containers/0/image",
                json!(" a"),
                "containers[0].image",
            ),
            (
                "/spec/template/spec/containers/0/imagePullPolicy",
                json!("Often"),
                "containers[0].imagePullPolicy",
            ),
            (
                "/spec/template/spec/containers/0/ports/0/containerPort",
                json!(70000),
                "ports[0].containerPort",
            ),
            (
                "/spec/template/spec/containers/0/ports/0/name",
                json!("a-very-long-name-of-a-port"),
                "ports[0].name",
            ),
            (
                "/spec/template/spec/containers/0/env/0/name",
                json!(""),
                "env[0].name",
            ),
            (
                "/spec/template/spec/containers/0/volumeMounts/0/name",
                json!("other"),
                "there is no volume \"other\"",
            ),
            (
                "/spec/template/spec/containers/0/resources/requests/cpu",
                json!("2"),
                "requests[cpu]: must be at most",
            ),
            (
                "/spec/template/spec/containers/0/resources/limits/memory",
                json!("lots"),
                "limits[memory]",
            ),
            (
                "/spec/template/spec/volumes/0/emptyDir",
                Value::Null,
                "volumes[0]: says not",
            ),
            (
                "/spec/template/spec/tolerations/0/operator",
                json!("Equal"),
                "tolerations[0]",
            ),
            (
                "/spec/template/spec/nodeSelector",
                json!({"a": "b c"}),
                "nodeSelector[a]",
            ),
        ];
        for (pointer, value, wanted) in wrong {
            let mut object = deployment();
            let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
            object.pointer_mut(parent).expect(parent)[field] = value.clone();
            let found = faults("Deployment", &object);
            assert!(
                found.iter().any(|fault| fault.contains(wanted)),
                "{pointer} {value}: {found:?}"
            );
        }
    }

    #[test]
    fn anything_can_be_looked_at() {
        for odd in [
            json!(null),
            json!([]),
            json!("x"),
            json!({"spec": []}),
            json!({"spec": {"template": 1}}),
        ] {
            assert!(!faults("Deployment", &odd).is_empty(), "{odd}");
            let mut found = Findings::default();
            pod_template(&odd, "spec.template", &mut found);
            assert!(!found.faults.is_empty(), "{odd}");
        }
    }
}
