//! What pods and volumes say about nodes: `nodeSelector`, node affinity and their terms.

use crate::fields::{Labels, items, label, labels, text};
use serde_json::Value;
use std::collections::BTreeSet;
use yurt_wire::selector::{LabelSelector, Op, Requirement};

/// A `NodeSelectorTerm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTerm {
    /// `None` when it cannot match: empty terms, and what does not parse.
    labels: Option<LabelSelector>,
    /// Requirements on `metadata.name`, the only field there is: whether it must be among the names.
    names: Vec<(bool, Vec<String>)>,
}

impl NodeTerm {
    /// Reads a term.
    pub fn parse(term: &Value) -> Self {
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

    /// Whether it is about the node of this name with these labels.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let named =
            |(among, names): &(bool, Vec<String>)| names.iter().any(|n| n == name) == *among;
        self.names.iter().all(named) && self.labels.as_ref().is_some_and(|l| l.matches(labels))
    }

    /// The nodes that alone can match, when the term names them.
    fn names(&self) -> Option<&[String]> {
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

/// The nodes that a pod can be on: its `nodeSelector` and required node affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredNodes {
    selector: Labels,
    /// One of them must match; `None` when the pod says nothing.
    terms: Option<Vec<NodeTerm>>,
}

impl RequiredNodes {
    /// Those of a pod's spec.
    pub fn of(spec: &Value) -> Self {
        let required =
            &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let terms = items(&required["nodeSelectorTerms"]).map(NodeTerm::parse);
        Self {
            selector: labels(&spec["nodeSelector"]),
            terms: (!required.is_null()).then(|| terms.collect()),
        }
    }

    /// Whether the node of this name with these labels is one of them.
    pub fn admit(&self, name: &str, labels: &Labels) -> bool {
        let mut selector = self.selector.iter();
        selector.all(|(key, value)| label(labels, key) == Some(value))
            && self
                .terms
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }

    /// The nodes that the terms name, when they do (as a DaemonSet's pods do): no other needs to be looked at.
    pub fn names(&self) -> Option<BTreeSet<&str>> {
        let terms = self.terms.as_ref().filter(|terms| !terms.is_empty())?;
        let names: Option<Vec<&[String]>> = terms.iter().map(NodeTerm::names).collect();
        Some(names?.into_iter().flatten().map(String::as_str).collect())
    }
}
