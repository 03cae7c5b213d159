//! Where a request meets the schema of its kind: defaults, validation, unknown fields, managed fields.
//!
//! Built-in kinds go by the tables of `yurt_wire::schema`, custom resources by their CRD's structural schema.

use crate::{
    crd::{self, Crd, Structural, rules},
    defaults,
    managed::{self, Typing},
    meta,
    resources::Resource,
    storage::Storage,
    validation,
};
use serde_json::Value;
use std::sync::Arc;
use yurt_wire::{Status, schema, status::Cause};

/// The structural schema of a custom resource's version.
fn structural(resource: &Resource) -> Option<&Structural> {
    resource.crd_version()?.schema.as_ref()
}

fn is_crd(resource: &Resource) -> bool {
    resource.storage == *super::CRDS
}

fn typing(resource: &Resource) -> Typing<'_> {
    if let Some(structural) = structural(resource) {
        return Typing::Crd(structural);
    }
    match schema::message_of(&resource.gvk()) {
        Some(message) if resource.custom.is_none() => Typing::Builtin(message),
        _ => Typing::Deduced,
    }
}

/// The complaints about fields of `object` that its kind does not have, and about fields given twice. Those of custom
/// resources are removed; those of built-in kinds go with the defaults.
pub(super) fn unknown_fields(
    resource: &Resource,
    object: &mut Value,
    raw: Option<&[u8]>,
) -> Vec<String> {
    if resource.custom.is_none() {
        return validation::unknown_fields(&resource.gvk(), object, raw);
    }
    let mut complaints = raw.map(validation::duplicate_fields).unwrap_or_default();
    if let Some(structural) = structural(resource) {
        complaints.extend(structural.unknown_fields(object));
        structural.prune(object);
    }
    complaints
}

/// Fills in defaults.
pub(super) fn apply_defaults(resource: &Resource, object: &mut Value) {
    if let Some(structural) = structural(resource) {
        structural.apply_defaults(object);
    } else if resource.custom.is_none() {
        defaults::apply_defaults(&resource.gvk(), object);
    }
}

/// What is wrong with a new object.
pub(super) fn validate_create(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = validation::validate_create(&resource.gvk(), object);
    if let Some(structural) = structural(resource) {
        causes.extend(structural.validate(object, None));
    }
    distinct(causes)
}

/// Which of its definition's rules a custom resource breaks. `found` is what is wrong with it otherwise.
pub(super) async fn broken_rules(
    resource: &Arc<Resource>,
    object: &Value,
    old: Option<&Value>,
    found: &[Cause],
) -> Vec<Cause> {
    if !structural(resource).is_some_and(Structural::has_rules) {
        return Vec::new();
    }
    if found.iter().any(rules::is_blocking) {
        return vec![rules::not_run()];
    }
    // What a rule may do is bounded, but not little: other requests are not to wait for it.
    let (resource, object, old) = (resource.clone(), object.clone(), old.cloned());
    let checked = tokio::task::spawn_blocking(move || {
        structural(&resource)
            .map(|schema| schema.check_rules(&object, old.as_ref()))
            .unwrap_or_default()
    });
    checked.await.unwrap_or_else(|error| {
        tracing::error!(%error, "rules of a definition were not run");
        vec![Cause::forbidden(
            "<nil>",
            "validation rules could not be run",
        )]
    })
}

/// Changes through these subresources have rules of their own.
const OWN_RULES: &[&str] = &["binding", "ephemeralcontainers", "finalize", "resize"];

/// What is wrong with a changed object.
pub(super) fn validate_update(
    resource: &Resource,
    subresource: &str,
    old: &Value,
    new: &Value,
) -> Vec<Cause> {
    if OWN_RULES.contains(&subresource) {
        return validation::validate_subresource(&resource.gvk(), subresource, old, new);
    }
    let mut causes = validation::validate_update(&resource.gvk(), old, new);
    if let Some(structural) = structural(resource) {
        causes.extend(structural.validate(new, Some(old)));
    }
    distinct(causes)
}

/// The same complaint can come from the metadata and from the kind.
fn distinct(causes: Vec<Cause>) -> Vec<Cause> {
    let mut out: Vec<Cause> = Vec::with_capacity(causes.len());
    for cause in causes {
        if !out.contains(&cause) {
            out.push(cause);
        }
    }
    out
}

/// Who writes, for managed fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writer<'a> {
    pub(super) manager: &'a str,
    pub(super) subresource: &'a str,
    pub(super) now: &'a str,
}

impl<'a> Writer<'a> {
    fn in_version<'b>(self, api_version: &'b str) -> managed::Writer<'b>
    where
        'a: 'b,
    {
        managed::Writer {
            manager: self.manager,
            api_version,
            subresource: self.subresource,
            now: self.now,
        }
    }
}

/// Records in `metadata.managedFields` what a create, update or patch changed.
pub(super) fn track(
    resource: &Resource,
    live: Option<&Value>,
    new: &mut Value,
    writer: Writer<'_>,
) {
    let api_version = resource.api_version();
    managed::track_update(
        typing(resource),
        live,
        new,
        &writer.in_version(&api_version),
    );
}

/// Server-side apply.
pub(super) fn apply(
    resource: &Resource,
    live: Option<&Value>,
    config: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, Box<Status>> {
    let api_version = resource.api_version();
    let config = own_part(resource, config, writer.subresource);
    let writer = writer.in_version(&api_version);
    managed::apply(typing(resource), live, &config, &writer, force)
        .map_err(|error| Box::new(Status::from(error)))
}

/// The part of a configuration that the (sub)resource takes: the rest is not applied and not owned.
fn own_part(resource: &Resource, config: &Value, subresource: &str) -> Value {
    let mut config = config.clone();
    let Some(fields) = config.as_object_mut() else {
        return config;
    };
    match subresource {
        "" if resource.has_status() => {
            fields.remove("status");
        }
        "status" => {
            fields.retain(|name, _| {
                matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status")
            });
            if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|name, _| {
                    matches!(
                        name.as_str(),
                        "name" | "namespace" | "uid" | "resourceVersion"
                    )
                });
            }
        }
        _ => {}
    }
    config
}

/// The last word on an object before it is written: for CRDs, the status that follows from the definition.
pub(super) fn settle(storage: &Storage, resource: &Resource, object: &mut Value, now: &str) {
    if !is_crd(resource) || meta::is_deleting(object) {
        return;
    }
    let (definitions, _) = storage.list(&super::CRDS, "", None);
    let others: Vec<Value> = definitions
        .iter()
        .filter(|other| *other.key.name != *meta::name(object))
        .map(|other| other.value())
        .filter(|other| other["spec"]["group"] == object["spec"]["group"])
        .map(|mut other| other["status"]["acceptedNames"].take())
        .collect();
    object["status"] = crd::establish_status(object, &others, now);
}

/// A stored CRD in parsed form; `None` when its names are not accepted.
pub(super) fn established(definition: &Value) -> Option<Crd> {
    if !crd::naming::has_condition(definition, "Established") {
        return None;
    }
    match Crd::parse(definition) {
        Ok(parsed) => Some(parsed),
        Err(causes) => {
            tracing::error!(
                name = meta::name(definition),
                ?causes,
                "a stored CRD is not served"
            );
            None
        }
    }
}
