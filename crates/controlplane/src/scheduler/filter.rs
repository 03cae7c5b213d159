//! Which nodes a pod can run on. Plugins, their order and their messages are kube-scheduler's.

use super::{
    pod::{Counts, Pod, Spread},
    pod_affinity::PodTerm,
    snapshot::{Node, Snapshot},
};
use crate::{
    fields::label,
    taint::{self, Taint},
};
use std::{collections::HashMap, sync::Arc};

/// What rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Plugin {
    NodeUnschedulable,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    Volumes,
    PodTopologySpread,
    InterPodAffinity,
}

/// Why a node does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) plugin: Plugin,
    pub(super) reasons: Vec<String>,
    /// Whether it would do without some of its pods.
    pub(super) resolvable: bool,
}

fn never(plugin: Plugin, reason: impl Into<String>) -> Result<(), Rejection> {
    Err(Rejection {
        plugin,
        reasons: vec![reason.into()],
        resolvable: false,
    })
}

fn not_now(plugin: Plugin, reason: impl Into<String>) -> Result<(), Rejection> {
    Err(Rejection {
        plugin,
        reasons: vec![reason.into()],
        resolvable: true,
    })
}

/// Counts by label key and value: how many pods are in a place.
#[derive(Clone, Debug, Default)]
struct Places(HashMap<String, HashMap<String, i64>>);

impl Places {
    fn change(&mut self, key: &str, node: &Node, by: i64) {
        let Some(value) = label(&node.labels, key) else {
            return;
        };
        let values = match self.0.get_mut(key) {
            Some(values) => values,
            None => self.0.entry(key.to_owned()).or_default(),
        };
        match values.get_mut(value) {
            Some(count) => *count += by,
            None => {
                values.insert(value.to_owned(), by);
            }
        }
    }

    fn count(&self, key: &str, value: &str) -> i64 {
        let values = self.0.get(key);
        values.and_then(|v| v.get(value)).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0
            .values()
            .flat_map(HashMap::values)
            .all(|count| *count <= 0)
    }
}

/// How many pods a hard spread constraint counts in each domain.
#[derive(Clone, Debug)]
struct Domains {
    constraint: Spread,
    counts: HashMap<String, i64>,
}

/// What is known about the cluster as a whole before nodes are looked at one by one.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Places with pods that satisfy all of the pod's affinity terms.
    drawn: Places,
    /// Places with pods that one of its anti-affinity terms is about.
    shunned: Places,
    /// Places from which pods there keep it away.
    guarded: Places,
    domains: Vec<Domains>,
}

impl State {
    pub(super) fn new(pod: &Pod, snapshot: &Snapshot) -> Self {
        let mut state = Self::default();
        for constraint in pod.spread.iter().filter(|c| c.hard) {
            state.domains.push(Domains {
                constraint: constraint.clone(),
                counts: HashMap::new(),
            });
        }
        for (node, other) in snapshot.averse() {
            state.guard(pod, node, other, 1, snapshot);
        }
        let about_pods = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        if about_pods || !state.domains.is_empty() {
            for node in snapshot.nodes() {
                for domain in &mut state.domains {
                    // A domain without pods counts too: as the emptiest.
                    if let Some(value) = domain.value(pod, node) {
                        domain.counts.entry(value.to_owned()).or_default();
                    }
                }
                for other in node.pods.values() {
                    state.count(pod, node, other, 1, snapshot);
                }
            }
        }
        state
    }

    /// A pod comes to a node (`by` is 1) or leaves it (-1).
    pub(super) fn change(&mut self, pod: &Pod, node: &Node, other: &Pod, by: i64, of: &Snapshot) {
        self.guard(pod, node, other, by, of);
        self.count(pod, node, other, by, of);
    }

    fn guard(&mut self, pod: &Pod, node: &Node, other: &Pod, by: i64, of: &Snapshot) {
        for term in &other.anti_affinity {
            if term.is_about(
                &pod.key.namespace,
                &pod.labels,
                of.namespace(&pod.key.namespace),
            ) {
                self.guarded.change(&term.topology_key, node, by);
            }
        }
    }

    fn count(&mut self, pod: &Pod, node: &Node, other: &Pod, by: i64, of: &Snapshot) {
        let namespace = of.namespace(&other.key.namespace);
        let about = |term: &PodTerm| term.is_about(&other.key.namespace, &other.labels, namespace);
        if !pod.affinity.is_empty() && pod.affinity.iter().all(about) {
            for term in &pod.affinity {
                self.drawn.change(&term.topology_key, node, by);
            }
        }
        for term in pod.anti_affinity.iter().filter(|term| about(term)) {
            self.shunned.change(&term.topology_key, node, by);
        }
        for domain in &mut self.domains {
            if domain.constraint.counts(pod, other)
                && let Some(value) = domain.value(pod, node)
            {
                let value = value.to_owned();
                *domain.counts.entry(value).or_default() += by;
            }
        }
    }
}

impl Domains {
    /// The node's domain, when it takes part.
    fn value<'a>(&self, pod: &Pod, node: &'a Node) -> Option<&'a str> {
        // As in kube-scheduler a node takes part when it has the keys of all the pod's constraints.
        let complete = pod
            .spread
            .iter()
            .filter(|c| c.hard)
            .all(|c| label(&node.labels, &c.topology_key).is_some());
        let value = label(&node.labels, &self.constraint.topology_key)?;
        (complete && self.constraint.regards(pod, node)).then_some(value)
    }
}

/// Whether a pod can run on a node as it is, and beside those of at least its priority that wait for room there.
pub(super) fn fits(
    pod: &Pod,
    node: &Node,
    state: &State,
    snapshot: &Snapshot,
) -> Result<(), Rejection> {
    let before_us = |other: &&Arc<Pod>| other.priority >= pod.priority && other.key != pod.key;
    let mut nominated = snapshot.nominated(&node.name).filter(before_us).peekable();
    if nominated.peek().is_some() {
        let (mut node, mut state) = (node.clone(), state.clone());
        for other in nominated {
            state.change(pod, &node, other, 1, snapshot);
            node.add(other.clone());
        }
        check(pod, &node, &state, snapshot)?;
    }
    check(pod, node, state, snapshot)
}

/// All plugins in their order; the first that rejects speaks.
pub(super) fn check(
    pod: &Pod,
    node: &Node,
    state: &State,
    snapshot: &Snapshot,
) -> Result<(), Rejection> {
    unschedulable(pod, node)?;
    taints(pod, node)?;
    node_affinity(pod, node)?;
    ports(pod, node)?;
    resources(pod, node)?;
    super::volumes::check(pod, node, snapshot).or_else(|reason| never(Plugin::Volumes, reason))?;
    spread(pod, node, state)?;
    pod_affinity(pod, node, state, snapshot)
}

fn unschedulable(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let taint = Taint {
        key: taint::UNSCHEDULABLE.into(),
        value: String::new(),
        effect: "NoSchedule".into(),
    };
    if node.unschedulable && !pod.tolerates(&taint) {
        return never(Plugin::NodeUnschedulable, "node(s) were unschedulable");
    }
    Ok(())
}

fn taints(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let untolerated = |taint: &&Taint| taint.keeps_away() && !pod.tolerates(taint);
    match node.taints.iter().find(untolerated) {
        None => Ok(()),
        Some(taint) => never(
            Plugin::TaintToleration,
            format!(
                "node(s) had untolerated taint {{{}: {}}}",
                taint.key, taint.value
            ),
        ),
    }
}

fn node_affinity(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    match pod.wants(node) {
        true => Ok(()),
        false => never(
            Plugin::NodeAffinity,
            "node(s) didn't match Pod's node affinity/selector",
        ),
    }
}

fn ports(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let taken = |port| node.ports().any(|other| other.collides(port));
    match pod.ports.iter().any(taken) {
        false => Ok(()),
        true => not_now(
            Plugin::NodePorts,
            "node(s) didn't have free ports for the requested pod ports",
        ),
    }
}

fn resources(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let mut reasons = Vec::new();
    let room = node.allocatable.get("pods");
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= room {
        reasons.push("Too many pods".to_owned());
    }
    let missing = pod.requests.missing(&node.allocatable, &node.requested);
    let resolvable = room > 0
        && missing
            .iter()
            .all(|name| pod.requests.get(name) <= node.allocatable.get(name));
    reasons.extend(missing.iter().map(|name| format!("Insufficient {name}")));
    if reasons.is_empty() {
        return Ok(());
    }
    Err(Rejection {
        plugin: Plugin::NodeResourcesFit,
        reasons,
        resolvable,
    })
}

fn spread(pod: &Pod, node: &Node, state: &State) -> Result<(), Rejection> {
    const REASON: &str = "node(s) didn't match pod topology spread constraints";
    for domain in &state.domains {
        let constraint = &domain.constraint;
        let Some(value) = label(&node.labels, &constraint.topology_key) else {
            return never(
                Plugin::PodTopologySpread,
                format!("{REASON} (missing required label)"),
            );
        };
        let known = i64::try_from(domain.counts.len()).unwrap_or(i64::MAX);
        let fewest = match known < constraint.min_domains {
            true => 0,
            false => domain.counts.values().copied().min().unwrap_or(0),
        };
        let own = match &constraint.counts {
            Counts::Labels(selector) => i64::from(selector.matches(&pod.labels)),
            Counts::Controller => 1,
        };
        let here = domain.counts.get(value).copied().unwrap_or(0);
        if here + own - fewest > constraint.max_skew {
            return not_now(Plugin::PodTopologySpread, REASON);
        }
    }
    Ok(())
}

fn pod_affinity(
    pod: &Pod,
    node: &Node,
    state: &State,
    snapshot: &Snapshot,
) -> Result<(), Rejection> {
    let drawn = || {
        let mut all = true;
        for term in &pod.affinity {
            match label(&node.labels, &term.topology_key) {
                None => return false,
                Some(value) => all &= state.drawn.count(&term.topology_key, value) > 0,
            }
        }
        // The first of a group that wants to be together may begin anywhere.
        let namespace = &pod.key.namespace;
        all || state.drawn.is_empty()
            && pod
                .affinity
                .iter()
                .all(|term| term.is_about(namespace, &pod.labels, snapshot.namespace(namespace)))
    };
    if !drawn() {
        return never(
            Plugin::InterPodAffinity,
            "node(s) didn't match pod affinity rules",
        );
    }
    let shunned = pod.anti_affinity.iter().any(|term| {
        label(&node.labels, &term.topology_key)
            .is_some_and(|value| state.shunned.count(&term.topology_key, value) > 0)
    });
    if shunned {
        return not_now(
            Plugin::InterPodAffinity,
            "node(s) didn't match pod anti-affinity rules",
        );
    }
    let guarded = state.guarded.0.iter().any(|(key, values)| {
        label(&node.labels, key)
            .is_some_and(|value| values.get(value).is_some_and(|count| *count > 0))
    });
    if guarded {
        return not_now(
            Plugin::InterPodAffinity,
            "node(s) didn't satisfy existing pods anti-affinity rules",
        );
    }
    Ok(())
}
