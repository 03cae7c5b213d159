//! What is served where, and when API servers ask it.

use super::{Options, review::VERSIONS};
use serde_json::{Value, json};

/// What a webhook is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Endpoints,
    EndpointSlice,
    Node,
    Pod,
    NodePool,
    YurtAppSet,
    YurtAppDaemon,
    YurtAppOverrider,
    YurtStaticSet,
}

/// A webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) subject: Subject,
    /// Whether it may change the object; otherwise it only judges.
    pub(super) mutating: bool,
    /// Its name, as OpenYurt's.
    pub(super) name: &'static str,
    operations: &'static [&'static str],
}

const CREATE: &str = "CREATE";
const UPDATE: &str = "UPDATE";
const DELETE: &str = "DELETE";

const fn mutating(
    subject: Subject,
    name: &'static str,
    operations: &'static [&'static str],
) -> Hook {
    Hook {
        subject,
        mutating: true,
        name,
        operations,
    }
}

const fn validating(
    subject: Subject,
    name: &'static str,
    operations: &'static [&'static str],
) -> Hook {
    Hook {
        mutating: false,
        ..mutating(subject, name, operations)
    }
}

/// All webhooks, in the order in which they are asked. Those of Raven's Gateway and of PlatformAdmin come with their components.
#[rustfmt::skip]
pub(super) const HOOKS: &[Hook] = &[
    mutating(Subject::Endpoints, "mutate.core.v1.endpoints.openyurt.io", &[CREATE, UPDATE]),
    mutating(Subject::EndpointSlice, "mutate.discovery.v1.endpointslice.k8s.io", &[CREATE, UPDATE]),
    mutating(Subject::Node, "mutate.core.v1.node.openyurt.io", &[CREATE, UPDATE]),
    mutating(Subject::Pod, "mutate.core.v1.pod.openyurt.io", &[CREATE]),
    mutating(Subject::NodePool, "m.v1beta2.nodepool.kb.io", &[CREATE, UPDATE]),
    mutating(Subject::YurtAppSet, "myurtappset.kb.io", &[CREATE, UPDATE]),
    mutating(Subject::YurtAppDaemon, "mutate.apps.v1alpha1.yurtappdaemon.openyurt.io", &[CREATE, UPDATE]),
    mutating(Subject::YurtStaticSet, "mutate.apps.v1alpha1.yurtstaticset.openyurt.io", &[CREATE, UPDATE]),
    validating(Subject::Node, "validate.core.v1.node.openyurt.io", &[UPDATE]),
    validating(Subject::NodePool, "v.v1beta2.nodepool.kb.io", &[CREATE, UPDATE, DELETE]),
    validating(Subject::YurtAppSet, "vyurtappset.kb.io", &[CREATE, UPDATE]),
    validating(Subject::YurtAppDaemon, "validate.apps.v1alpha1.yurtappdaemon.openyurt.io", &[CREATE, UPDATE]),
    validating(Subject::YurtAppOverrider, "validate.apps.v1alpha1.yurtappoverrider.openyurt.io", &[CREATE, UPDATE, DELETE]),
    validating(Subject::YurtStaticSet, "validate.apps.v1alpha1.yurtstaticset.openyurt.io", &[CREATE, UPDATE]),
];

impl Subject {
    /// Group (empty for the core group), version, plural and kind.
    fn names(self) -> [&'static str; 4] {
        const APPS: &str = "apps.openyurt.io";
        match self {
            Self::Endpoints => ["", "v1", "endpoints", "Endpoints"],
            Self::EndpointSlice => ["discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"],
            Self::Node => ["", "v1", "nodes", "Node"],
            Self::Pod => ["", "v1", "pods", "Pod"],
            Self::NodePool => [APPS, "v1beta2", "nodepools", "NodePool"],
            Self::YurtAppSet => [APPS, "v1beta1", "yurtappsets", "YurtAppSet"],
            Self::YurtAppDaemon => [APPS, "v1alpha1", "yurtappdaemons", "YurtAppDaemon"],
            Self::YurtAppOverrider => [APPS, "v1alpha1", "yurtappoverriders", "YurtAppOverrider"],
            Self::YurtStaticSet => [APPS, "v1alpha1", "yurtstaticsets", "YurtStaticSet"],
        }
    }

    /// Its name in [`super::INDEPENDENT`].
    fn independent(self) -> Option<&'static str> {
        match self {
            Self::Endpoints => Some("endpoints"),
            Self::EndpointSlice => Some("endpointslice"),
            Self::Node => Some("node"),
            Self::Pod => Some("pod"),
            _ => None,
        }
    }

    /// The controllers of which one must run for it to be asked.
    fn controllers(self) -> &'static [&'static str] {
        match self {
            Self::NodePool => &["nodepool-controller"],
            Self::YurtAppSet => &["yurt-app-set-controller"],
            Self::YurtAppDaemon => &["yurt-app-daemon-controller"],
            Self::YurtAppOverrider => &["yurt-app-set-controller", "yurt-app-daemon-controller"],
            Self::YurtStaticSet => &["yurt-static-set-controller"],
            Self::Endpoints | Self::EndpointSlice | Self::Node | Self::Pod => &[],
        }
    }

    /// Whether API servers ask.
    pub(super) fn is_enabled(self, options: &Options) -> bool {
        match self.independent() {
            Some(name) => !options.disabled.contains(name),
            None => self
                .controllers()
                .iter()
                .any(|name| options.controllers.includes(name)),
        }
    }
}

impl Hook {
    /// Where it is served: `/mutate-` or `/validate-`, then group, version and kind.
    pub(super) fn path(&self) -> String {
        let [group, version, _, kind] = self.subject.names();
        let group = if group.is_empty() {
            "core.openyurt.io"
        } else {
            group
        };
        let verb = if self.mutating { "mutate" } else { "validate" };
        format!(
            "/{verb}-{}-{version}-{}",
            group.replace('.', "-"),
            kind.to_lowercase()
        )
    }

    /// Whether requests go on without an answer: always, where Kubernetes itself would stand still otherwise.
    fn ignores_failures(&self) -> bool {
        self.subject.independent().is_some()
    }

    /// Its entry in a configuration, with everything said that has a default, so that a change of it is seen.
    pub(super) fn render(&self, client: &Value) -> Value {
        let [group, version, plural, _] = self.subject.names();
        let (policy, patience) = if self.ignores_failures() {
            ("Ignore", 3)
        } else {
            ("Fail", 5)
        };
        let mut entry = json!({
            "name": self.name, "clientConfig": client, "failurePolicy": policy, "timeoutSeconds": patience,
            "matchPolicy": "Equivalent", "sideEffects": "None", "admissionReviewVersions": VERSIONS,
            "namespaceSelector": {}, "objectSelector": {},
            "rules": [{"apiGroups": [group], "apiVersions": [version], "resources": [plural],
                "operations": self.operations, "scope": "*"}],
        });
        if self.mutating {
            entry["reinvocationPolicy"] = "Never".into();
        }
        entry
    }
}

/// The webhook at a path.
pub(super) fn at(path: &str) -> Option<&'static Hook> {
    HOOKS.iter().find(|hook| hook.path() == path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn paths_are_openyurts() {
        let paths: Vec<String> = HOOKS.iter().map(Hook::path).collect();
        for known in [
            "/mutate-core-openyurt-io-v1-endpoints",
            "/mutate-discovery-k8s-io-v1-endpointslice",
            "/mutate-core-openyurt-io-v1-node",
            "/validate-core-openyurt-io-v1-node",
            "/mutate-core-openyurt-io-v1-pod",
            "/mutate-apps-openyurt-io-v1beta2-nodepool",
            "/validate-apps-openyurt-io-v1beta2-nodepool",
            "/mutate-apps-openyurt-io-v1beta1-yurtappset",
            "/validate-apps-openyurt-io-v1beta1-yurtappset",
            "/mutate-apps-openyurt-io-v1alpha1-yurtstaticset",
            "/validate-apps-openyurt-io-v1alpha1-yurtstaticset",
        ] {
            assert!(paths.iter().any(|path| path == known), "{known}");
        }
        let names: BTreeSet<&str> = HOOKS.iter().map(|hook| hook.name).collect();
        let different: BTreeSet<&String> = paths.iter().collect();
        assert_eq!((names.len(), different.len()), (HOOKS.len(), HOOKS.len()));
        assert!(HOOKS.iter().all(|hook| at(&hook.path()) == Some(hook)));
    }

    #[test]
    fn nothing_of_kubernetes_waits_for_the_manager() {
        for hook in HOOKS {
            let entry = hook.render(&json!({}));
            let group = entry["rules"][0]["apiGroups"][0].as_str().expect("a group");
            let ours = group.ends_with("openyurt.io");
            let policy = if ours { "Fail" } else { "Ignore" };
            assert_eq!(entry["failurePolicy"], policy, "{}", hook.name);
            // Subresources, as a node's status, are nobody's here.
            let resource = entry["rules"][0]["resources"][0].as_str().expect("one");
            assert!(!resource.contains(['/', '*']), "{resource}");
        }
    }

    #[test]
    fn the_controllers_are_there() {
        let known: Vec<&str> = crate::names().map(|names| names.name).collect();
        for controller in HOOKS.iter().flat_map(|hook| hook.subject.controllers()) {
            assert!(known.contains(controller), "{controller}");
        }
    }

    #[test]
    fn what_is_switched_off_is_not_asked() {
        let enabled = |options: &Options| -> Vec<&str> {
            let hooks = HOOKS.iter();
            hooks
                .filter(|hook| hook.subject.is_enabled(options))
                .map(|hook| hook.name)
                .collect()
        };
        let mut options = Options::default();
        assert_eq!(enabled(&options).len(), HOOKS.len());
        options.disable("node,endpoints").expect("known");
        let left = enabled(&options);
        assert_eq!(left.len(), HOOKS.len() - 3);
        assert!(!left.iter().any(|name| name.contains(".node.")));
        options.disable("*").expect("all");
        options.controllers = yurt_controller::selection::Selection::none();
        assert!(enabled(&options).is_empty());
    }
}
