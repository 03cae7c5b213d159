//! Making room for a pod that fits nowhere by evicting pods of lower priority.

use super::{
    filter::{State, fits},
    placement::{Unschedulable, histogram},
    pod::Pod,
    snapshot::Snapshot,
};
use crate::Key;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Nodes on which evictions are tried at least, when there are so many.
const CANDIDATES: usize = 100;

/// Whom to evict, and where the pod then waits for its room.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Preemption {
    pub(super) node: String,
    pub(super) victims: Vec<Arc<Pod>>,
    /// Victims whose budget does not allow it.
    violations: usize,
}

/// Chooses victims, or says why evictions do not help.
pub(super) fn preempt(
    pod: &Pod,
    snapshot: &Snapshot,
    failure: &Unschedulable,
) -> Result<Preemption, String> {
    if !pod.preempts {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    let nominated = pod.nominated.as_ref().and_then(|name| snapshot.node(name));
    let leaving = |other: &&Arc<Pod>| other.deleting && other.priority < pod.priority;
    if nominated.is_some_and(|node| node.pods.values().any(|other| leaving(&other))) {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    let state = State::new(pod, snapshot);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let hopeless = failure.nodes().saturating_sub(failure.resolvable.len());
    if hopeless > 0 {
        let reason = "Preemption is not helpful for scheduling".to_owned();
        reasons.insert(reason, hopeless);
    }
    let most = (failure.nodes() / 10).max(CANDIDATES);
    let mut found: Vec<Preemption> = Vec::new();
    for at in &failure.resolvable {
        match on_node(pod, *at, snapshot, &state) {
            Ok(preemption) => found.push(preemption),
            Err(texts) => {
                for text in texts {
                    *reasons.entry(text).or_default() += 1;
                }
            }
        }
        if found.len() >= most {
            break;
        }
    }
    found.into_iter().min_by_key(cost).ok_or_else(|| {
        format!(
            "0/{} nodes are available: {}.",
            failure.nodes(),
            histogram(&reasons)
        )
    })
}

/// kube-scheduler's order: few broken budgets, unimportant victims, few, that have not run for long.
fn cost(preemption: &Preemption) -> impl Ord + use<> {
    let victims = &preemption.victims;
    let highest = victims.iter().map(|victim| victim.priority).max();
    let sum: i64 = victims
        .iter()
        .map(|victim| victim.priority.saturating_add(1 << 31))
        .sum();
    let important = victims.iter().filter(|v| Some(v.priority) == highest);
    let earliest = important.map(|victim| victim.started.clone()).min();
    (
        preemption.violations,
        highest,
        sum,
        victims.len(),
        Reverse(earliest),
    )
}

/// The fewest victims on one node.
fn on_node(
    pod: &Pod,
    at: usize,
    snapshot: &Snapshot,
    state: &State,
) -> Result<Preemption, Vec<String>> {
    let none = || vec!["No preemption victims found for incoming pod".to_owned()];
    let mut node = snapshot.nodes().get(at).ok_or_else(none)?.clone();
    let mut state = state.clone();
    let mut lower: Vec<Arc<Pod>> = node
        .pods
        .values()
        .filter(|other| other.priority < pod.priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return Err(none());
    }
    for other in &lower {
        node.remove(&other.key);
        state.change(pod, &node, other, -1, snapshot);
    }
    fits(pod, &node, &state, snapshot).map_err(|rejection| rejection.reasons)?;
    // The important ones, and of those the older ones, are the first to be spared; before them those that a budget guards.
    lower.sort_by(|a, b| (Reverse(a.priority), &a.started).cmp(&(Reverse(b.priority), &b.started)));
    let guarded = beyond_budget(&lower, snapshot);
    lower.sort_by_key(|other| !guarded.contains(&other.key));
    let mut victims = Vec::new();
    for other in lower {
        state.change(pod, &node, &other, 1, snapshot);
        node.add(other.clone());
        if fits(pod, &node, &state, snapshot).is_err() {
            node.remove(&other.key);
            state.change(pod, &node, &other, -1, snapshot);
            victims.push(other);
        }
    }
    victims.sort_by_key(|victim| Reverse(victim.priority));
    Ok(Preemption {
        node: node.name,
        violations: victims.iter().filter(|v| guarded.contains(&v.key)).count(),
        victims,
    })
}

/// The pods that cannot all be evicted within their budgets.
fn beyond_budget(pods: &[Arc<Pod>], snapshot: &Snapshot) -> Vec<Key> {
    let mut left: HashMap<&Key, i64> = HashMap::new();
    let mut beyond = Vec::new();
    for pod in pods {
        let mut broken = false;
        for (name, budget) in snapshot.budgets(&pod.key.namespace) {
            if budget.guards(pod) {
                let left = left.entry(name).or_insert(budget.allowed);
                *left -= 1;
                broken |= *left < 0;
            }
        }
        if broken {
            beyond.push(pod.key.clone());
        }
    }
    beyond
}
