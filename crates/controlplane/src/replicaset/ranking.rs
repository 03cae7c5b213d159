//! Which of too many pods goes first.

use super::pod;
use jiff::Timestamp;
use serde_json::Value;
use std::{cmp::Ordering, collections::HashMap};

/// The annotation by which users say what a pod's loss costs.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// `Less` when `a` is the better one to lose. `crowds`: how many pods of this kind are on each node.
pub(in super::super) fn order(
    a: &Value,
    b: &Value,
    crowds: &HashMap<String, usize>,
    now: Timestamp,
) -> Ordering {
    let assigned = |p: &Value| !pod::node(p).is_empty();
    let crowd = |p: &Value| crowds.get(pod::node(p)).copied().unwrap_or(0);
    let by = |x: Ordering, y: &dyn Fn() -> Ordering| x.then_with(y);
    let order = by(assigned(a).cmp(&assigned(b)), &|| {
        (progress(a).cmp(&progress(b)))
            .then_with(|| pod::is_ready(a).cmp(&pod::is_ready(b)))
            .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
            .then_with(|| crowd(b).cmp(&crowd(a)))
    });
    if order != Ordering::Equal {
        return order;
    }
    if let (Some(since_a), Some(since_b)) = (pod::ready_since(a), pod::ready_since(b))
        && since_a != since_b
    {
        return younger(since_a, since_b, now).then_with(|| uid(a).cmp(uid(b)));
    }
    let order = restarts(b).cmp(&restarts(a));
    if order != Ordering::Equal {
        return order;
    }
    match (created(a), created(b)) {
        (Some(a_at), Some(b_at)) if a_at != b_at => {
            younger(a_at, b_at, now).then_with(|| uid(a).cmp(uid(b)))
        }
        (a_at, b_at) => a_at.is_some().cmp(&b_at.is_some()),
    }
}

fn progress(pod: &Value) -> u8 {
    match pod::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    }
}

fn deletion_cost(pod: &Value) -> i32 {
    let cost = pod["metadata"]["annotations"][DELETION_COST].as_str();
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().unwrap_or_default()
}

fn created(p: &Value) -> Option<Timestamp> {
    pod::instant(&p["metadata"]["creationTimestamp"])
}

fn restarts(pod: &Value) -> u64 {
    let containers = pod["status"]["containerStatuses"].as_array();
    let counts = containers.into_iter().flatten();
    counts
        .filter_map(|container| container["restartCount"].as_u64())
        .max()
        .unwrap_or(0)
}

/// The younger first, but ages are only told apart by powers of two, so that not always the same pods go.
fn younger(a: Timestamp, b: Timestamp, now: Timestamp) -> Ordering {
    let rank = |at: Timestamp| {
        let age = now.as_nanosecond() - at.as_nanosecond();
        if age <= 0 { None } else { Some(age.ilog2()) }
    };
    rank(a).cmp(&rank(b))
}
