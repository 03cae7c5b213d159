//! What admission is asked about.

use crate::registry::Target;
use serde_json::{Value, json};
use yurt_wire::Gvk;

/// What is done to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// A request as admission sees it, without its objects.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a> {
    pub(crate) target: &'a Target,
    pub(crate) operation: Operation,
    /// The kind of the request's body: the resource's own, or that of a subresource.
    pub(crate) kind: Gvk,
    /// The object's name; `""` when it is not known yet.
    pub(crate) name: &'a str,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`.
    pub(crate) options: Value,
    pub(crate) dry_run: bool,
}

impl<'a> Attributes<'a> {
    pub(crate) fn new(target: &'a Target, operation: Operation, name: &'a str) -> Self {
        let kind = match target.resource.subresource(&target.subresource) {
            Some(sub) => Gvk {
                group: sub.group.clone(),
                version: sub.version.clone(),
                kind: sub.kind.clone(),
            },
            None => target.resource.gvk(),
        };
        Self {
            target,
            operation,
            kind,
            name,
            options: write_options(target, operation),
            dry_run: target.options.dry_run,
        }
    }

    /// The namespace of the request; of a request about a namespace, that namespace.
    pub(crate) fn namespace(&self) -> &str {
        if self.is_about_namespace() {
            self.name
        } else {
            &self.target.namespace
        }
    }

    pub(crate) fn is_about_namespace(&self) -> bool {
        self.target.resource.storage == *crate::registry::NAMESPACES
    }
}

fn write_options(target: &Target, operation: Operation) -> Value {
    let kind = match operation {
        _ if target.options.patch => "PatchOptions",
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        // Those who delete or connect fill in their own.
        Operation::Delete | Operation::Connect => return Value::Null,
    };
    let written = &target.options;
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if written.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    if !written.field_manager.is_empty() {
        options["fieldManager"] = written.field_manager.clone().into();
    }
    if written.force {
        options["force"] = true.into();
    }
    options
}
