//! What is wrong with an object of a built-in kind.
//!
//! Objects come here decoded and defaulted: [`type_errors`] first (a 400), then
//! [`crate::defaults::apply_defaults`], then [`validate_create`] or [`validate_update`] (a 422 with causes).
//! [`unknown_fields`] serves field validation `Strict` and `Warn`. Custom resources have their metadata
//! checked here and the rest by [`crate::crd::Structural::validate`].

mod admission;
mod config;
mod decode;
mod fields;
pub(crate) mod metadata;
pub(crate) mod names;
mod network;
mod pod;
#[cfg(test)]
mod tests;
mod update;
mod workload;

pub(crate) use admission::webhook_client;
pub use decode::{duplicate_fields, type_errors, unknown_fields};

use crate::causes::{not_supported, required};
use serde_json::Value;
use yurt_wire::Gvk;
use yurt_wire::schema;
use yurt_wire::status::Cause;

/// `parent.name`, without a leading dot at the root.
pub(crate) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}.{name}")
    }
}

/// A string field; empty when absent.
pub(crate) fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The items of a list field.
pub(crate) fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value
        .get(name)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// A field that is there and not null.
pub(crate) fn given<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    value.get(name).filter(|value| !value.is_null())
}

/// A string that must be one of few; empty is an error only when `needed`.
pub(crate) fn one_of(
    value: &Value,
    name: &str,
    at: &str,
    allowed: &[&str],
    needed: bool,
    causes: &mut Vec<Cause>,
) {
    match text(value, name) {
        "" if needed => causes.push(required(&join(at, name), "")),
        "" => {}
        chosen if allowed.contains(&chosen) => {}
        chosen => causes.push(not_supported(
            &join(at, name),
            &Value::from(chosen),
            allowed,
        )),
    }
}

/// What is wrong with a new object; empty when nothing is.
pub fn validate_create(gvk: &Gvk, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if has_metadata(gvk) {
        metadata::validate(gvk, object, &mut causes);
    }
    if let Some(message) = schema::message_of(gvk) {
        fields::check_required(message, object, &mut causes);
    }
    kind_rules(gvk, object, &mut causes);
    causes
}

/// What is wrong with a change; empty when nothing is. Changes through subresources with rules of their own are for
/// [`validate_subresource`].
pub fn validate_update(gvk: &Gvk, old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if has_metadata(gvk) {
        metadata::validate(gvk, new, &mut causes);
        metadata::validate_update(old, new, &mut causes);
    }
    // What was stored once stays storable: rules that came later do not lock an object whose spec is not touched.
    if old.get("spec") != new.get("spec") || new.get("spec").is_none() {
        if let Some(message) = schema::message_of(gvk) {
            fields::check_required(message, new, &mut causes);
        }
        kind_rules(gvk, new, &mut causes);
    }
    update::check(gvk, old, new, &mut causes);
    causes
}

/// What is wrong with a change through a subresource that may touch what an ordinary update may not: `binding`,
/// `ephemeralcontainers`, `finalize`, `resize`.
pub fn validate_subresource(gvk: &Gvk, subresource: &str, old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if gvk.group.is_empty() && gvk.kind == "Pod" {
        let (old, new) = (&old["spec"], &new["spec"]);
        match subresource {
            "ephemeralcontainers" => {
                pod::pod_spec(new, "spec", &mut causes);
                update::ephemeral_containers(old, new, &mut causes);
            }
            "resize" => {
                pod::pod_spec(new, "spec", &mut causes);
                update::resize(old, new, &mut causes);
            }
            _ => {}
        }
    }
    causes
}

/// Reviews and requests are not stored and need no name.
fn has_metadata(gvk: &Gvk) -> bool {
    !matches!(
        gvk.group.as_str(),
        "authentication.k8s.io" | "authorization.k8s.io"
    ) && !matches!(gvk.kind.as_str(), "Binding" | "Eviction" | "Scale")
}

fn kind_rules(gvk: &Gvk, object: &Value, causes: &mut Vec<Cause>) {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => pod::pod_spec(&object["spec"], "spec", causes),
        ("", "PodTemplate") => workload::template(object, "", causes),
        ("", "Service") => network::service(&object["spec"], causes),
        ("", "Endpoints") => network::endpoints(object, causes),
        ("", kind) => config::core(kind, object, causes),
        ("apps" | "batch" | "autoscaling" | "policy", kind) => {
            workload::workload(kind, object, causes);
        }
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(object, causes),
        ("networking.k8s.io", kind) => network::networking(kind, &object["spec"], causes),
        (group, kind) => config::other(group, kind, object, causes),
    }
}
