//! What a controller may do, as it declares it: RBAC is made of these.

use serde_json::{Value, json};

/// A rule of a ClusterRole or Role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The API group; `""` is the core group.
    pub group: &'static str,
    /// Resources, with subresources as `nodes/status`.
    pub resources: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// Only objects of these names; none: all.
    pub names: &'static [&'static str],
    /// Only in the namespace of the manager (`--working-namespace`).
    pub local: bool,
}

impl Rule {
    /// To tell events.
    pub const EVENTS: Self = Self::new("", &["events"], &["create"]);

    /// A rule for all objects of some resources.
    pub const fn new(
        group: &'static str,
        resources: &'static [&'static str],
        verbs: &'static [&'static str],
    ) -> Self {
        Self {
            group,
            resources,
            verbs,
            names: &[],
            local: false,
        }
    }

    /// The rule for objects of these names only.
    pub const fn named(self, names: &'static [&'static str]) -> Self {
        Self { names, ..self }
    }

    /// The rule in the namespace of the manager only.
    pub const fn local(self) -> Self {
        Self {
            local: true,
            ..self
        }
    }

    /// A `PolicyRule`.
    pub fn to_json(&self) -> Value {
        let mut rule =
            json!({"apiGroups": [self.group], "resources": self.resources, "verbs": self.verbs});
        if !self.names.is_empty() {
            rule["resourceNames"] = json!(self.names);
        }
        rule
    }
}
