//! Which of several nodes is best: kube-scheduler's default plugins and weights, without image locality.

use super::{
    pod::{Counts, Pod, Spread},
    pod_affinity::PodTerm,
    snapshot::{Node, Snapshot},
};
use crate::fields::label;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

const MOST: i64 = 100;
/// What a required affinity of a pod that is there already counts for.
const HARD_AFFINITY: i64 = 1;

/// Scores of `nodes`, in their order; higher is better.
pub(super) fn score(pod: &Pod, nodes: &[&Node], snapshot: &Snapshot) -> Vec<i64> {
    let each = |score: &dyn Fn(&Node) -> i64| nodes.iter().map(|node| score(node)).collect();
    let mut total = vec![0; nodes.len()];
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (total, score) in total.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    add(1, each(&|node| least_allocated(pod, node)));
    add(1, each(&|node| balanced(pod, node)));
    let taints: Vec<i64> = each(&|node| untolerated_preferences(pod, node));
    if taints.iter().any(|count| *count > 0) {
        add(3, share_of_largest(taints, true));
    }
    if !pod.preferred_nodes.is_empty() {
        add(
            2,
            share_of_largest(each(&|node| preferred(pod, node)), false),
        );
    }
    if let Some(scores) = neighbours(pod, nodes, snapshot) {
        add(2, scores);
    }
    if let Some(scores) = spread(pod, nodes, snapshot) {
        add(2, scores);
    }
    total
}

/// The freer the better.
fn least_allocated(pod: &Pod, node: &Node) -> i64 {
    let (mut sum, mut resources) = (0, 0);
    for name in ["cpu", "memory"] {
        let all = node.allocatable.get(name);
        if all == 0 {
            continue;
        }
        let used = node.assumed.get(name).saturating_add(pod.assumed.get(name));
        resources += 1;
        if used <= all {
            let share = i128::from(all - used) * i128::from(MOST) / i128::from(all);
            sum += i64::try_from(share).unwrap_or(0);
        }
    }
    if resources == 0 { 0 } else { sum / resources }
}

/// The more alike the shares of CPU and memory in use the better.
fn balanced(pod: &Pod, node: &Node) -> i64 {
    let share = |name: &str| -> Option<f64> {
        let all = node.allocatable.get(name);
        let used = node
            .requested
            .get(name)
            .saturating_add(pod.requests.get(name));
        (all > 0).then(|| (used as f64 / all as f64).min(1.0))
    };
    match (share("cpu"), share("memory")) {
        (Some(cpu), Some(memory)) => ((1.0 - (cpu - memory).abs() / 2.0) * MOST as f64) as i64,
        _ => MOST,
    }
}

fn untolerated_preferences(pod: &Pod, node: &Node) -> i64 {
    let taints = node
        .taints
        .iter()
        .filter(|t| t.effect == "PreferNoSchedule");
    taints.filter(|taint| !pod.tolerates(taint)).count() as i64
}

fn preferred(pod: &Pod, node: &Node) -> i64 {
    let terms = pod.preferred_nodes.iter();
    terms
        .filter(|(_, term)| term.matches(&node.name, &node.labels))
        .map(|(weight, _)| weight)
        .sum()
}

/// Shares of the largest, or what is missing to it.
fn share_of_largest(scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let largest = scores.iter().copied().max().unwrap_or(0);
    let share = |score: i64| match largest {
        0 => 0,
        _ => MOST * score / largest,
    };
    let turned = |share: i64| if reverse { MOST - share } else { share };
    scores
        .into_iter()
        .map(|score| turned(share(score)))
        .collect()
}

/// How pods there and this one like each other.
fn neighbours<'a>(pod: &'a Pod, nodes: &[&Node], snapshot: &'a Snapshot) -> Option<Vec<i64>> {
    let mut liking: HashMap<&str, HashMap<&str, i64>> = HashMap::new();
    let mut like = |term: &'a PodTerm, node: &'a Node, weight: i64| {
        if let Some(value) = label(&node.labels, &term.topology_key) {
            let values = liking.entry(&term.topology_key).or_default();
            *values.entry(value).or_default() += weight;
        }
    };
    if !pod.preferred_pods.is_empty() {
        for node in snapshot.nodes() {
            for other in node.pods.values() {
                let namespace = snapshot.namespace(&other.key.namespace);
                for (weight, term) in &pod.preferred_pods {
                    if term.is_about(&other.key.namespace, &other.labels, namespace) {
                        like(term, node, *weight);
                    }
                }
            }
        }
    }
    let own = snapshot.namespace(&pod.key.namespace);
    for (node, other) in snapshot.fond() {
        let required = other.affinity.iter().map(|term| (HARD_AFFINITY, term));
        let preferred = other
            .preferred_pods
            .iter()
            .map(|(weight, term)| (*weight, term));
        for (weight, term) in required.chain(preferred) {
            if term.is_about(&pod.key.namespace, &pod.labels, own) {
                like(term, node, weight);
            }
        }
    }
    if liking.is_empty() {
        return None;
    }
    let scores: Vec<i64> = nodes
        .iter()
        .map(|node| {
            let places = liking
                .iter()
                .filter_map(|(key, values)| values.get(label(&node.labels, key)?).copied());
            places.sum()
        })
        .collect();
    let least = scores.iter().copied().min()?;
    let range = scores.iter().copied().max()? - least;
    let share = |score: i64| match range {
        0 => 0,
        _ => MOST * (score - least) / range,
    };
    Some(scores.into_iter().map(share).collect())
}

/// The fewer of its kind are near the better.
fn spread(pod: &Pod, nodes: &[&Node], snapshot: &Snapshot) -> Option<Vec<i64>> {
    let soft: Vec<&Spread> = pod.spread.iter().filter(|c| !c.hard).collect();
    if soft.is_empty() {
        return None;
    }
    // Nodes without the keys of the pod's own constraints come last; those of the default ones need not be there.
    let ignored = |node: &Node| {
        soft.iter().any(|c| {
            matches!(c.counts, Counts::Labels(_)) && label(&node.labels, &c.topology_key).is_none()
        })
    };
    // Pods by domain, and the weight of the constraint: many domains make a difference of one pod count more.
    let counted: Vec<(HashMap<&str, i64>, f64)> = soft
        .iter()
        .map(|constraint| {
            let domain = |node| of_node(node, &constraint.topology_key);
            let mut counts: HashMap<&str, i64> = HashMap::new();
            for (node, pods) in counted_pods(pod, constraint, snapshot) {
                if let Some(value) = domain(node)
                    && constraint.regards(pod, node)
                {
                    *counts.entry(value).or_default() += pods;
                }
            }
            let candidates = nodes.iter().filter(|node| !ignored(node));
            let domains: HashSet<&str> = candidates.filter_map(|node| domain(node)).collect();
            (counts, (domains.len() as f64 + 2.0).ln())
        })
        .collect();
    let scores: Vec<Option<i64>> = nodes
        .iter()
        .map(|node| {
            if ignored(node) {
                return None;
            }
            let constraints = soft.iter().zip(&counted);
            let score: f64 = constraints
                .filter_map(|(constraint, (counts, weight))| {
                    let value = label(&node.labels, &constraint.topology_key)?;
                    let count = counts.get(value).copied().unwrap_or(0);
                    Some(count as f64 * weight + (constraint.max_skew - 1) as f64)
                })
                .sum();
            Some(score.round() as i64)
        })
        .collect();
    let known = || scores.iter().copied().flatten();
    let (most, least) = (known().max().unwrap_or(0), known().min().unwrap_or(0));
    let turned = |score: Option<i64>| match score {
        None => 0,
        Some(_) if most == 0 => MOST,
        Some(score) => MOST * (most + least - score) / most,
    };
    Some(scores.into_iter().map(turned).collect())
}

/// A node's value of a label.
fn of_node<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    label(&node.labels, key)
}

/// How many pods a constraint counts on each node.
fn counted_pods<'a>(
    pod: &Pod,
    constraint: &Spread,
    snapshot: &'a Snapshot,
) -> Vec<(&'a Node, i64)> {
    match (&constraint.counts, &pod.controller) {
        (Counts::Controller, Some(controller)) => snapshot.siblings(controller).collect(),
        _ => {
            let counts = |other: &&Arc<Pod>| constraint.counts(pod, other);
            let nodes = snapshot.nodes().iter();
            nodes
                .map(|node| (node, node.pods.values().filter(counts).count() as i64))
                .collect()
        }
    }
}
