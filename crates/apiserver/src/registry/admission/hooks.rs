//! Webhook configurations, read once and kept until one of them changes.

use super::{
    conditions::{self, Conditions},
    policies::{self, Policy},
    review::Version,
    rules::{self, Rule},
};
use crate::storage::Storage;
use serde_json::Value;
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};
use yurt_wire::selector::LabelSelector;

static MUTATING: LazyLock<Arc<str>> =
    LazyLock::new(|| "admissionregistration.k8s.io/mutatingwebhookconfigurations".into());
static VALIDATING: LazyLock<Arc<str>> =
    LazyLock::new(|| "admissionregistration.k8s.io/validatingwebhookconfigurations".into());

/// What is configured now.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    /// In the order of their configurations' names.
    pub(super) mutating: Vec<Hook>,
    pub(super) validating: Vec<Hook>,
    pub(super) policies: Vec<Policy>,
}

/// One webhook of a configuration.
#[derive(Debug)]
pub(super) struct Hook {
    pub(super) name: String,
    pub(super) rules: Vec<Rule>,
    /// Requests for other versions of the same objects count too.
    pub(super) equivalent: bool,
    pub(super) namespaces: LabelSelector,
    pub(super) objects: LabelSelector,
    pub(super) ignores_failures: bool,
    pub(super) allows_dry_run: bool,
    pub(super) patience: Duration,
    /// Called again when the object changed after its turn.
    pub(super) reinvoked: bool,
    pub(super) conditions: Conditions,
    /// `clientConfig`.
    pub(super) client: Value,
    /// The first of its review versions that is spoken here.
    pub(super) version: Option<Version>,
}

impl Hooks {
    /// Whether nobody is to be asked.
    pub(crate) fn is_empty(&self) -> bool {
        self.mutating.is_empty() && self.validating.is_empty() && self.policies.is_empty()
    }

    /// Reads all configurations.
    pub(crate) fn read(storage: &Storage) -> Self {
        let of = |partition| {
            // Lists are in the order of names.
            let (configurations, _) = storage.list(partition, "", None);
            let configurations = configurations.iter().map(|stored| stored.value());
            configurations
                .flat_map(|configuration| match &configuration["webhooks"] {
                    Value::Array(hooks) => hooks.iter().filter_map(Hook::read).collect(),
                    _ => Vec::new(),
                })
                .collect()
        };
        Self {
            mutating: of(&MUTATING),
            validating: of(&VALIDATING),
            policies: policies::read(storage),
        }
    }
}

impl Hook {
    /// Reads a webhook that was validated and defaulted when it was stored.
    fn read(hook: &Value) -> Option<Self> {
        let text = |name: &str| hook[name].as_str().unwrap_or_default();
        let selectors = rules::selector(&hook["namespaceSelector"])
            .and_then(|namespaces| Ok((namespaces, rules::selector(&hook["objectSelector"])?)));
        let (namespaces, objects) = match selectors {
            Ok(selectors) => selectors,
            Err(error) => {
                tracing::error!(webhook = text("name"), %error, "a webhook is not called");
                return None;
            }
        };
        let conditions = match Conditions::read(&hook["matchConditions"], conditions::VARIABLES) {
            Ok(conditions) => conditions,
            Err(error) => {
                tracing::error!(webhook = text("name"), %error, "a webhook is not called");
                return None;
            }
        };
        let versions = hook["admissionReviewVersions"].as_array();
        let versions = versions.into_iter().flatten().filter_map(Value::as_str);
        Some(Self {
            name: text("name").to_owned(),
            rules: Rule::list_from_json(&hook["rules"]),
            equivalent: text("matchPolicy") != "Exact",
            namespaces,
            objects,
            ignores_failures: text("failurePolicy") == "Ignore",
            allows_dry_run: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            patience: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10)),
            reinvoked: text("reinvocationPolicy") == "IfNeeded",
            conditions,
            client: hook["clientConfig"].clone(),
            version: versions.filter_map(Version::parse).next(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_webhook_is_read_with_what_it_leaves_out() {
        let hook = Hook::read(&json!({"name": "a.b.c", "sideEffects": "None",
            "admissionReviewVersions": ["v7", "v1beta1", "v1"], "rules": [{"operations": ["*"]}],
            "clientConfig": {"url": "https://x"}}))
        .expect("readable");
        assert!(hook.equivalent && hook.allows_dry_run && !hook.ignores_failures);
        assert!(hook.namespaces.is_empty() && hook.objects.is_empty());
        assert_eq!(hook.version, Some(Version::V1beta1));
        assert_eq!(hook.patience, Duration::from_secs(10));
    }
}
