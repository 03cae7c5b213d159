//! Dropping the fields that a schema does not know.

use super::structural::{Additional, JsonType, Structural};
use serde_json::Value;
use yurt_wire::schema;

/// The type of every object's metadata.
pub(crate) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl Structural {
    /// Removes unknown fields from a custom resource and returns their paths.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        prune(self, object, true, "", &mut dropped);
        dropped
    }

    /// Removes unknown fields from a part of a custom resource.
    pub(crate) fn prune_part(&self, value: &mut Value) {
        prune(self, value, self.embedded_resource, "", &mut Vec::new());
    }

    /// The complaints of strict field validation: `unknown field "spec.foo"`.
    pub fn unknown_fields(&self, object: &Value) -> Vec<String> {
        let mut copy = object.clone();
        self.prune(&mut copy)
            .into_iter()
            .map(|path| format!("unknown field {path:?}"))
            .collect()
    }
}

/// `parent.name`, without a leading dot at the root.
pub(crate) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}.{name}")
    }
}

fn prune(
    schema: &Structural,
    value: &mut Value,
    resource: bool,
    path: &str,
    dropped: &mut Vec<String>,
) {
    match value {
        Value::Object(fields) => {
            let identity =
                |name: &str| resource && matches!(name, "apiVersion" | "kind" | "metadata");
            let keeps_all =
                schema.preserve_unknown || matches!(schema.additional, Some(Additional::Any));
            fields.retain(|name, _| {
                let keep = identity(name) || keeps_all || schema.property(name).is_some();
                if !keep {
                    dropped.push(join(path, name));
                }
                keep
            });
            for (name, inner) in fields.iter_mut() {
                if identity(name) {
                    if name == "metadata" {
                        prune_metadata(inner, &join(path, name), dropped);
                    }
                    continue;
                }
                if let Some(child) = schema.property(name) {
                    prune(
                        child,
                        inner,
                        child.embedded_resource,
                        &join(path, name),
                        dropped,
                    );
                }
            }
        }
        Value::Array(items) => {
            if let (Some(JsonType::Array), Some(child)) = (schema.json_type, &schema.items) {
                for (i, item) in items.iter_mut().enumerate() {
                    let at = format!("{path}[{i}]");
                    prune(child, item, child.embedded_resource, &at, dropped);
                }
            }
        }
        _ => {}
    }
}

/// metadata is ObjectMeta whatever the schema says.
fn prune_metadata(metadata: &mut Value, path: &str, dropped: &mut Vec<String>) {
    let Some(message) = schema::message(OBJECT_META) else {
        return;
    };
    if let Value::Object(fields) = metadata {
        fields.retain(|name, value| {
            let keep = schema::field(message, name).is_some();
            if !keep {
                dropped.push(join(path, name));
            }
            // Generated manifests are full of `creationTimestamp: null`.
            keep && !value.is_null()
        });
    }
}
