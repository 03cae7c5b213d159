//! `kubectl yurt why`: from objects to what follows from them, and what to do about it. Pure.

mod node;
mod pod;

pub(crate) use node::NodeObserved;
pub(crate) use pod::PodObserved;

use crate::{View, pools::unseen, table::plain};
use serde::Serialize;
use std::{fmt::Write as _, str::FromStr};

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Node(String),
    Pod(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
        if name.is_empty() || name.contains('/') {
            return Err(format!("{text:?} is neither a pod nor node/NAME"));
        }
        match kind.to_ascii_lowercase().as_str() {
            "node" | "nodes" | "no" => Ok(Self::Node(name.to_owned())),
            "pod" | "pods" | "po" => Ok(Self::Pod(name.to_owned())),
            _ => Err(format!(
                "{kind:?} cannot be explained: pod/NAME or node/NAME"
            )),
        }
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Problem,
    Note,
    Ok,
}

/// Something that follows from what was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// What it is about: link, autonomy, binding, topology, upgrade ...
    pub(crate) topic: &'static str,
    pub(crate) what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    todo: Option<String>,
}

impl Finding {
    fn new(level: Level, topic: &'static str, what: impl Into<String>) -> Self {
        Self {
            level,
            topic,
            what: what.into(),
            todo: None,
        }
    }

    pub(crate) fn problem(topic: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Problem, topic, what)
    }

    pub(crate) fn note(topic: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Note, topic, what)
    }

    pub(crate) fn ok(topic: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, topic, what)
    }

    /// What to do about it.
    #[must_use]
    pub(crate) fn todo(mut self, todo: impl Into<String>) -> Self {
        self.todo = Some(todo.into());
        self
    }
}

/// Findings, problems first; within a level as they were found.
pub(crate) fn render(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.level);
    let width = sorted.iter().map(|f| f.topic.len()).max().unwrap_or(0);
    let mut out = String::new();
    for finding in sorted {
        let level = match finding.level {
            Level::Problem => "PROBLEM",
            Level::Note => "note",
            Level::Ok => "ok",
        };
        let _ = writeln!(
            out,
            "{level:<7}   {:<width$}   {}",
            finding.topic,
            plain(&finding.what)
        );
        if let Some(todo) = &finding.todo {
            let _ = writeln!(out, "{:7}   {:width$}   -> {}", "", "", plain(todo));
        }
    }
    out
}

/// What is known of a pod or node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    /// `node`, `pod`.
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    /// Where it is: the pool of a node, the node and pool of a pod.
    place: String,
    findings: Vec<Finding>,
    unseen: Vec<String>,
}

impl View for Explanation {
    fn text(&self) -> String {
        let name = match self.namespace.as_str() {
            "" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        };
        format!(
            "{} {}, {}\n\n{}{}",
            match self.kind {
                "node" => "Node",
                _ => "Pod",
            },
            plain(&name),
            plain(&self.place),
            render(&self.findings),
            unseen(&self.unseen)
        )
    }

    fn is_alarming(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.level == Level::Problem)
    }
}

#[cfg(test)]
mod tests;
