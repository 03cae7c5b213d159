//! What is left of a namespace that is being deleted, and how its status tells: the conditions of Kubernetes' namespace
//! controller.

use crate::{meta, resources::Resource, storage::Stored};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// What could not be deleted yet, and what failed.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Objects left, by `PLURAL.GROUP`.
    left: BTreeMap<String, usize>,
    /// Objects held, by finalizer.
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Contents {
    /// Counts the objects of a resource that are left.
    pub(super) fn count(&mut self, resource: &Resource, objects: &[Arc<Stored>]) {
        if objects.is_empty() {
            return;
        }
        let name = format!("{}.{}", resource.plural, resource.group);
        self.left.insert(name, objects.len());
        for object in objects {
            for finalizer in meta::finalizers(&object.value()) {
                *self.finalizers.entry(finalizer).or_default() += 1;
            }
        }
    }

    /// Notes why a resource was not deleted.
    pub(super) fn failed(&mut self, why: String) {
        self.failures.push(why);
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty() && self.failures.is_empty()
    }

    /// Brings the conditions of a namespace's status up to date. A condition keeps its time while it keeps its status.
    pub(super) fn report(&self, namespace: &mut Value, now: &str) {
        let mut conditions = namespace["status"]["conditions"].take();
        if !conditions.is_array() {
            conditions = json!([]);
        }
        if let Some(list) = conditions.as_array_mut() {
            for mut condition in self.conditions() {
                let known = list.iter_mut().find(|c| c["type"] == condition["type"]);
                match known {
                    Some(known) => {
                        condition["lastTransitionTime"] = if known["status"] == condition["status"]
                        {
                            known["lastTransitionTime"].take()
                        } else {
                            now.into()
                        };
                        *known = condition;
                    }
                    None => {
                        condition["lastTransitionTime"] = now.into();
                        list.push(condition);
                    }
                }
            }
        }
        namespace["status"]["conditions"] = conditions;
    }

    /// The conditions in the controller's order, without times.
    fn conditions(&self) -> [Value; 5] {
        let condition = |kind: &str, trouble: Option<(&str, String)>, fine: (&str, &str)| {
            let status = if trouble.is_some() { "True" } else { "False" };
            let (reason, message) = trouble.unwrap_or((fine.0, fine.1.to_owned()));
            json!({"type": kind, "status": status, "reason": reason, "message": message})
        };
        let listed = |counts: &BTreeMap<String, usize>, verb: &str| {
            let parts: Vec<String> = counts
                .iter()
                .map(|(name, n)| format!("{name} {verb} {n} resource instances"))
                .collect();
            parts.join(", ")
        };
        let failed = (!self.failures.is_empty()).then(|| {
            let message = format!(
                "Failed to delete all resource types, {} remaining: {}",
                self.failures.len(),
                self.failures.join(", ")
            );
            ("ContentDeletionFailed", message)
        });
        let left = (!self.left.is_empty()).then(|| {
            let message = format!(
                "Some resources are remaining: {}",
                listed(&self.left, "has")
            );
            ("SomeResourcesRemain", message)
        });
        let held = (!self.finalizers.is_empty()).then(|| {
            let message = format!(
                "Some content in the namespace has finalizers remaining: {}",
                listed(&self.finalizers, "in")
            );
            ("SomeFinalizersRemain", message)
        });
        [
            condition(
                "NamespaceDeletionDiscoveryFailure",
                None,
                (
                    "ResourcesDiscovered",
                    "All resources successfully discovered",
                ),
            ),
            condition(
                "NamespaceDeletionGroupVersionParsingFailure",
                None,
                (
                    "ParsedGroupVersions",
                    "All legacy kube types successfully parsed",
                ),
            ),
            condition(
                "NamespaceDeletionContentFailure",
                failed,
                (
                    "ContentDeleted",
                    "All content successfully deleted, may be waiting on finalization",
                ),
            ),
            condition(
                "NamespaceContentRemaining",
                left,
                ("ContentRemoved", "All content successfully removed"),
            ),
            condition(
                "NamespaceFinalizersRemaining",
                held,
                (
                    "ContentHasNoFinalizers",
                    "All content-preserving finalizers finished",
                ),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'v>(namespace: &'v Value, kind: &str) -> &'v Value {
        namespace["status"]["conditions"]
            .as_array()
            .and_then(|list| list.iter().find(|c| c["type"] == kind))
            .unwrap_or(&Value::Null)
    }

    #[test]
    fn what_remains_is_told_and_times_move_with_the_status() {
        let mut contents = Contents::default();
        contents.left.insert("pods.".into(), 2);
        contents.finalizers.insert("example.com/held".into(), 1);
        let mut namespace = json!({"status": {"phase": "Terminating"}});
        contents.report(&mut namespace, "t1");
        let remaining = find(&namespace, "NamespaceContentRemaining");
        assert_eq!(
            remaining["message"],
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(remaining["status"], "True");
        assert_eq!(
            find(&namespace, "NamespaceFinalizersRemaining")["message"],
            "Some content in the namespace has finalizers remaining: example.com/held in 1 resource instances"
        );
        let before = namespace.clone();
        contents.report(&mut namespace, "t2");
        assert_eq!(namespace, before, "nothing changed, nothing is written");

        Contents::default().report(&mut namespace, "t3");
        let remaining = find(&namespace, "NamespaceContentRemaining");
        assert_eq!(remaining["status"], "False");
        assert_eq!(remaining["lastTransitionTime"], "t3");
        let failure = find(&namespace, "NamespaceDeletionContentFailure");
        assert_eq!(failure["lastTransitionTime"], "t1");
    }
}
