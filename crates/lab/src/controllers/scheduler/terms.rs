//! What pods say about nodes and about other pods: node terms, taints and tolerations, pod terms.

use super::snapshot::Node;
use serde_json::Value;
use std::collections::BTreeSet;
use yurt_wire::selector::{LabelSelector, Op, Requirement};

/// Labels in any order.
pub(super) type Labels = Vec<(String, String)>;

/// Reads a map of strings.
pub(super) fn labels(map: &Value) -> Labels {
    let entries = map.as_object().into_iter().flatten();
    entries
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The value of a label.
pub(super) fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    let (_, value) = labels.iter().find(|(name, _)| name == key)?;
    Some(value)
}

/// Text of a field, empty when absent.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Items of a list, none when absent.
pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A `NodeSelectorTerm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeTerm {
    /// `None` when it cannot match: empty terms, and what does not parse.
    labels: Option<LabelSelector>,
    /// Requirements on `metadata.name`, the only field there is: whether it must be among the names.
    names: Vec<(bool, Vec<String>)>,
}

impl NodeTerm {
    pub(super) fn parse(term: &Value) -> Self {
        let names: Vec<_> = items(&term["matchFields"])
            .map(|field| {
                let values = items(&field["values"]).map(text).collect();
                (field["operator"] == "In", values)
            })
            .collect();
        let requirements: Option<Vec<_>> =
            items(&term["matchExpressions"]).map(requirement).collect();
        let labels = requirements
            .filter(|requirements| !requirements.is_empty() || !names.is_empty())
            .map(LabelSelector::of);
        Self { labels, names }
    }

    pub(super) fn matches(&self, node: &Node) -> bool {
        let named = |(among, names): &(bool, Vec<String>)| names.contains(&node.name) == *among;
        self.names.iter().all(named)
            && self
                .labels
                .as_ref()
                .is_some_and(|l| l.matches(&node.labels))
    }

    /// The nodes that alone can match, when the term names them.
    pub(super) fn names(&self) -> Option<&[String]> {
        let (_, names) = self.names.iter().find(|(among, _)| *among)?;
        Some(names)
    }
}

fn requirement(expression: &Value) -> Option<Requirement> {
    let op = match expression["operator"].as_str()? {
        "In" => Op::In,
        "NotIn" => Op::NotIn,
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        "Gt" => Op::GreaterThan,
        "Lt" => Op::LessThan,
        _ => return None,
    };
    let values = items(&expression["values"]).map(text).collect();
    Requirement::new(expression["key"].as_str()?, op, values).ok()
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taint {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) effect: String,
}

impl Taint {
    pub(super) fn parse(taint: &Value) -> Self {
        Self {
            key: text(&taint["key"]),
            value: text(&taint["value"]),
            effect: text(&taint["effect"]),
        }
    }

    /// Whether it keeps pods away that do not tolerate it.
    pub(super) fn keeps_away(&self) -> bool {
        matches!(self.effect.as_str(), "NoSchedule" | "NoExecute")
    }
}

/// A toleration of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Toleration {
    key: String,
    exists: bool,
    value: String,
    effect: String,
}

impl Toleration {
    pub(super) fn parse(toleration: &Value) -> Self {
        Self {
            key: text(&toleration["key"]),
            exists: toleration["operator"] == "Exists",
            value: text(&toleration["value"]),
            effect: text(&toleration["effect"]),
        }
    }

    pub(super) fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key == taint.key || self.key.is_empty() && self.exists)
            && (self.exists || self.value == taint.value)
    }
}

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
