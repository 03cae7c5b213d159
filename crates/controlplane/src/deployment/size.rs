//! How large replica sets may be.

use super::super::share::{self, Round};
use serde_json::Value;
use std::cmp::Reverse;

/// The annotations that tell how large a replica set's deployment was when it was last scaled.
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// `spec.replicas`.
pub(super) fn wanted(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

/// A count of a status; absent is 0.
pub(super) fn counted(object: &Value, field: &str) -> i64 {
    object["status"][field].as_i64().unwrap_or(0)
}

pub(super) fn is_rolling(deployment: &Value) -> bool {
    deployment["spec"]["strategy"]["type"] != "Recreate"
}

/// `maxSurge` and `maxUnavailable` as numbers of pods. They are never both 0, for then nothing could move.
fn limits(deployment: &Value) -> (i64, i64) {
    let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
    let replicas = wanted(deployment);
    let surge = share::of(&rolling["maxSurge"], replicas, Round::Up);
    let unavailable = share::of(&rolling["maxUnavailable"], replicas, Round::Down);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// How many pods there may be beyond the wanted ones.
pub(super) fn max_surge(deployment: &Value) -> i64 {
    if is_rolling(deployment) {
        limits(deployment).0
    } else {
        0
    }
}

/// How many of the wanted pods may be missing.
pub(super) fn max_unavailable(deployment: &Value) -> i64 {
    let replicas = wanted(deployment);
    if !is_rolling(deployment) || replicas == 0 {
        return 0;
    }
    limits(deployment).1.min(replicas)
}

/// The size of the new replica set, as far as the surge allows. `total`: what all replica sets want.
pub(super) fn of_new(deployment: &Value, total: i64, new: i64) -> i64 {
    let replicas = wanted(deployment);
    if !is_rolling(deployment) {
        return replicas;
    }
    let most = replicas + max_surge(deployment);
    if total >= most {
        return new;
    }
    new + (most - total).min(replicas - new)
}

/// The sizes of active replica sets after their deployment was scaled in the middle of a rollout: each gets its share, what is
/// left over goes to the largest. Pairs of the index in `sets` and the size.
pub(super) fn proportional(deployment: &Value, sets: &[&Value]) -> Vec<(usize, i64)> {
    let total: i64 = sets.iter().map(|set| wanted(set)).sum();
    let allowed = match wanted(deployment) {
        0 => 0,
        replicas => replicas + max_surge(deployment),
    };
    let to_add = allowed - total;
    let mut order: Vec<usize> = (0..sets.len()).collect();
    // The largest first; of equal ones the newer when there is something to give, the older when something is taken.
    let age = |at: usize| {
        let meta = &sets[at]["metadata"];
        let text = |field: &str| meta[field].as_str().unwrap_or_default();
        (text("creationTimestamp"), text("name"))
    };
    if to_add > 0 {
        order.sort_by_key(|at| Reverse((wanted(sets[*at]), age(*at))));
    } else {
        order.sort_by_key(|at| (Reverse(wanted(sets[*at])), age(*at)));
    }
    let mut added = 0;
    let mut sizes: Vec<(usize, i64)> = Vec::new();
    for at in order {
        let size = wanted(sets[at]);
        let share = share_of(deployment, sets[at], to_add, added);
        added += share;
        sizes.push((at, size + share));
    }
    if let Some((_, largest)) = sizes.first_mut() {
        *largest = (*largest + to_add - added).max(0);
    }
    sizes
}

fn share_of(deployment: &Value, set: &Value, to_add: i64, added: i64) -> i64 {
    if wanted(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, set);
    let left = to_add - added;
    if to_add > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

/// By how much a replica set grows with its deployment, or shrinks.
fn fraction(deployment: &Value, set: &Value) -> i64 {
    let size = wanted(set);
    if wanted(deployment) == 0 {
        return -size;
    }
    let after = wanted(deployment) + max_surge(deployment);
    let noted = set["metadata"]["annotations"][MAX_REPLICAS].as_str();
    let before = match noted.and_then(|text| text.parse().ok()) {
        None | Some(0) => counted(deployment, "replicas"),
        Some(before) => before,
    };
    if before <= 0 {
        return 0;
    }
    // Rounded to the nearest, halves up.
    (2 * size * after + before).div_euclid(2 * before) - size
}
