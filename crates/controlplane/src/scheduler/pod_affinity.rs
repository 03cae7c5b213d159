//! What pods say about other pods.

use crate::fields::{Labels, items, label, text};
use serde_json::Value;
use std::collections::BTreeSet;
use yurt_wire::selector::{LabelSelector, Op, Requirement};

/// A `PodAffinityTerm`: which pods it is about, and what counts as one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodTerm {
    selector: Option<LabelSelector>,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
    pub(super) topology_key: String,
}

impl PodTerm {
    /// A term of a pod with these labels in this namespace.
    pub(super) fn parse(term: &Value, namespace: &str, own: &Labels) -> Self {
        let namespace_selector = &term["namespaceSelector"];
        let mut namespaces: BTreeSet<String> = items(&term["namespaces"]).map(text).collect();
        if namespaces.is_empty() && namespace_selector.is_null() {
            namespaces.insert(namespace.to_owned());
        }
        let extra = [("matchLabelKeys", Op::In), ("mismatchLabelKeys", Op::NotIn)];
        Self {
            selector: extra.iter().fold(
                LabelSelector::from_json(&term["labelSelector"]).ok(),
                |selector, (field, op)| with_own(selector?, &term[*field], *op, own),
            ),
            namespaces,
            namespace_selector: LabelSelector::from_json(namespace_selector).ok(),
            topology_key: text(&term["topologyKey"]),
        }
    }

    /// Whether it is about a pod; `of_namespace` are the labels of the pod's namespace.
    pub(super) fn is_about(&self, namespace: &str, labels: &Labels, of_namespace: &Labels) -> bool {
        let there = self.namespaces.contains(namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|selector| selector.matches(of_namespace));
        there && self.selector.as_ref().is_some_and(|s| s.matches(labels))
    }
}

/// Narrows a selector to the values that the pod itself has for `keys` (`matchLabelKeys`).
pub(super) fn with_own(
    selector: LabelSelector,
    keys: &Value,
    op: Op,
    own: &Labels,
) -> Option<LabelSelector> {
    let mut requirements = selector.requirements;
    for key in items(keys).filter_map(Value::as_str) {
        if let Some(value) = label(own, key) {
            requirements.push(Requirement::new(key, op, vec![value.to_owned()]).ok()?);
        }
    }
    Some(LabelSelector::of(requirements))
}
