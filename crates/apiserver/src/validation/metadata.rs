//! Names, labels, annotations, owners and finalizers.

use super::names::{
    self, DNS1123_LABEL, DNS1123_SUBDOMAIN, is_dns1123_label, is_dns1123_subdomain,
    is_path_segment, label_value, qualified_name,
};
use crate::causes::{forbidden, invalid, required, too_long};
use serde_json::Value;
use yurt_wire::Gvk;
use yurt_wire::status::Cause;

/// All keys and values of an object's annotations together.
const MAX_ANNOTATION_BYTES: u64 = 256 * 1024;

/// The grammar of a kind's names.
enum Grammar {
    Subdomain,
    Label,
    PathSegment,
}

fn grammar(gvk: &Gvk) -> Grammar {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Namespace" | "Service") => Grammar::Label,
        ("rbac.authorization.k8s.io", _) | ("networking.k8s.io", "IPAddress") => {
            Grammar::PathSegment
        }
        _ => Grammar::Subdomain,
    }
}

fn check_name(gvk: &Gvk, field: &str, name: &str, causes: &mut Vec<Cause>) {
    let value = Value::from(name);
    let (max, fits, what) = match grammar(gvk) {
        Grammar::Subdomain => (253, is_dns1123_subdomain(name), DNS1123_SUBDOMAIN),
        Grammar::Label => (63, is_dns1123_label(name), DNS1123_LABEL),
        Grammar::PathSegment => (
            usize::MAX,
            is_path_segment(name),
            "may not be '.' or '..' or contain '/' or '%'",
        ),
    };
    if name.len() > max {
        causes.push(invalid(
            field,
            &value,
            &format!("must be no more than {max} bytes"),
        ));
    } else if !fits {
        causes.push(invalid(field, &value, what));
    }
}

/// What is wrong with the metadata of an object that is to be created.
pub(crate) fn validate(gvk: &Gvk, object: &Value, causes: &mut Vec<Cause>) {
    let metadata = &object["metadata"];
    let text = |name: &str| {
        metadata
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let generate = text("generateName");
    if !generate.is_empty() {
        // What will be appended makes a trailing dash fine.
        let prefix = generate.trim_end_matches('-');
        if !prefix.is_empty() {
            check_name(gvk, "metadata.generateName", prefix, causes);
        }
    }
    match text("name") {
        "" if generate.is_empty() => causes.push(required(
            "metadata.name",
            "name or generateName is required",
        )),
        "" => {}
        name => check_name(gvk, "metadata.name", name, causes),
    }
    let namespace = text("namespace");
    if !namespace.is_empty() && !is_dns1123_label(namespace) {
        causes.push(invalid(
            "metadata.namespace",
            &Value::from(namespace),
            DNS1123_LABEL,
        ));
    }
    labels("metadata.labels", metadata.get("labels"), causes);
    annotations(metadata.get("annotations"), causes);
    owners(metadata.get("ownerReferences"), causes);
    for (i, finalizer) in list(metadata.get("finalizers")).enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        let at = format!("metadata.finalizers[{i}]");
        for what in qualified_name(name) {
            causes.push(invalid(&at, finalizer, &what));
        }
    }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn entries(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}

/// Label keys and values.
pub(crate) fn labels(field: &str, labels: Option<&Value>, causes: &mut Vec<Cause>) {
    for (key, value) in entries(labels) {
        for what in qualified_name(key) {
            causes.push(invalid(field, &Value::from(key.as_str()), &what));
        }
        for what in label_value(value.as_str().unwrap_or_default()) {
            causes.push(invalid(field, value, &what));
        }
    }
}

fn annotations(annotations: Option<&Value>, causes: &mut Vec<Cause>) {
    let field = "metadata.annotations";
    let mut bytes = 0;
    for (key, value) in entries(annotations) {
        for what in qualified_name(&key.to_lowercase()) {
            causes.push(invalid(field, &Value::from(key.as_str()), &what));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes as u64 > MAX_ANNOTATION_BYTES {
        causes.push(too_long(field, MAX_ANNOTATION_BYTES));
    }
}

fn owners(owners: Option<&Value>, causes: &mut Vec<Cause>) {
    let mut controllers = 0;
    for (i, owner) in list(owners).enumerate() {
        for name in ["apiVersion", "kind", "name", "uid"] {
            let text = owner.get(name).and_then(Value::as_str).unwrap_or_default();
            if text.is_empty() {
                causes.push(invalid(
                    &format!("metadata.ownerReferences[{i}].{name}"),
                    &Value::from(""),
                    &format!(
                        "{} must not be empty",
                        if name == "apiVersion" {
                            "version"
                        } else {
                            name
                        }
                    ),
                ));
            }
        }
        controllers += u32::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        causes.push(invalid(
            "metadata.ownerReferences",
            owners.unwrap_or(&Value::Null),
            "Only one reference can have Controller set to true. Found \"true\" in references",
        ));
    }
}

/// What may not change in metadata. Fields that the server itself fills count only when the writer sent them.
pub(crate) fn validate_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let (old, new) = (&old["metadata"], &new["metadata"]);
    for name in ["name", "namespace", "uid", "creationTimestamp"] {
        let sent = new
            .get(name)
            .filter(|value| !value.is_null() && *value != "");
        if let Some(sent) = sent
            && old.get(name).is_some_and(|known| known != sent)
        {
            causes.push(invalid(
                &format!("metadata.{name}"),
                sent,
                "field is immutable",
            ));
        }
    }
    if old.get("deletionTimestamp").is_some_and(|t| !t.is_null()) {
        let known: Vec<&Value> = list(old.get("finalizers")).collect();
        let added: Vec<String> = list(new.get("finalizers"))
            .filter(|finalizer| !known.contains(finalizer))
            .map(ToString::to_string)
            .collect();
        if !added.is_empty() {
            causes.push(forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
}

/// A label selector, `{matchLabels, matchExpressions}`.
pub(crate) fn selector(field: &str, selector: &Value, causes: &mut Vec<Cause>) {
    labels(
        &format!("{field}.matchLabels"),
        selector.get("matchLabels"),
        causes,
    );
    for (i, expression) in list(selector.get("matchExpressions")).enumerate() {
        let at = format!("{field}.matchExpressions[{i}]");
        let key = expression["key"].as_str().unwrap_or_default();
        for what in names::qualified_name(key) {
            causes.push(invalid(&format!("{at}.key"), &Value::from(key), &what));
        }
        let values = list(expression.get("values")).count();
        match expression["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if values == 0 => causes.push(required(
                &format!("{at}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if values > 0 => causes.push(forbidden(
                &format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => causes.push(invalid(
                &format!("{at}.operator"),
                &expression["operator"],
                "not a valid selector operator",
            )),
        }
    }
}

/// Whether a selector selects an object with these labels.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    entries(selector.get("matchLabels")).all(|(key, value)| labels.get(key) == Some(value))
        && list(selector.get("matchExpressions")).all(|expression| {
            let label = expression["key"].as_str().and_then(|key| labels.get(key));
            let listed = label
                .is_some_and(|label| list(expression.get("values")).any(|value| value == label));
            match expression["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => label.is_some(),
                Some("DoesNotExist") => label.is_none(),
                _ => false,
            }
        })
}
