//! The status of a deployment, and whether its rollout gets on.

use super::{
    super::{condition as conditions, pod},
    size::{counted, max_unavailable, wanted},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// No deadline, said as the largest number.
const NO_DEADLINE: i64 = i32::MAX as i64;

fn deadline(deployment: &Value) -> Option<i64> {
    let seconds = deployment["spec"]["progressDeadlineSeconds"].as_i64()?;
    (seconds != NO_DEADLINE).then_some(seconds)
}

/// Whether a rollout that does not get on is told.
pub(super) fn has_deadline(deployment: &Value) -> bool {
    deadline(deployment).is_some()
}

/// A condition of a deployment, which also tells when it was last updated.
pub(super) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Value {
    let mut condition = conditions::new(kind, status, reason, message, now);
    condition["lastUpdateTime"] = pod::stamp(now).into();
    condition
}

/// The status by the counts of the replica sets. `new` is among `sets` when there is one.
pub(super) fn status(
    deployment: &Value,
    sets: &[&Value],
    new: Option<&Value>,
    now: Timestamp,
) -> Value {
    let sum = |field: &str| sets.iter().map(|set| counted(set, field)).sum::<i64>();
    let available = sum("availableReplicas");
    let all: i64 = sets.iter().map(|set| wanted(set)).sum();
    let mut status = json!({});
    for (field, count) in [
        (
            "observedGeneration",
            deployment["metadata"]["generation"].as_i64().unwrap_or(0),
        ),
        ("replicas", sum("replicas")),
        (
            "updatedReplicas",
            new.map_or(0, |set| counted(set, "replicas")),
        ),
        ("readyReplicas", sum("readyReplicas")),
        ("availableReplicas", available),
        ("unavailableReplicas", (all - available).max(0)),
    ] {
        if count != 0 {
            status[field] = count.into();
        }
    }
    let terminating = sets
        .iter()
        .map(|s| s["status"]["terminatingReplicas"].as_i64());
    if let Some(terminating) = terminating.sum::<Option<i64>>() {
        status["terminatingReplicas"] = terminating.into();
    }
    for field in ["collisionCount", "conditions"] {
        if let Some(value) = deployment["status"].get(field) {
            status[field] = value.clone();
        }
    }
    let (holds, reason, message) = if available >= wanted(deployment) - max_unavailable(deployment)
    {
        let message = "Deployment has minimum availability.";
        ("True", "MinimumReplicasAvailable", message)
    } else {
        let message = "Deployment does not have minimum availability.";
        ("False", "MinimumReplicasUnavailable", message)
    };
    conditions::set(
        &mut status,
        condition("Available", holds, reason, message, now),
    );
    status
}

/// Whether everything is as wanted.
pub(super) fn is_complete(deployment: &Value, status: &Value) -> bool {
    let replicas = wanted(deployment);
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    ["updatedReplicas", "replicas", "availableReplicas"]
        .iter()
        .all(|field| count(field) == replicas)
        && count("observedGeneration") >= deployment["metadata"]["generation"].as_i64().unwrap_or(0)
}

/// Whether the rollout got on between two statuses.
fn got_on(before: &Value, after: &Value) -> bool {
    let count = |status: &Value, field: &str| status[field].as_i64().unwrap_or(0);
    let old = |status: &Value| count(status, "replicas") - count(status, "updatedReplicas");
    let more = |field: &str| count(after, field) > count(before, field);
    more("updatedReplicas")
        || old(after) < old(before)
        || more("readyReplicas")
        || more("availableReplicas")
}

/// When the rollout counts as stuck, by its last sign of progress.
fn stuck_at(deployment: &Value, progressing: &Value) -> Option<Timestamp> {
    let since = pod::instant(&progressing["lastUpdateTime"])?;
    let at = since.as_second().saturating_add(deadline(deployment)?);
    Timestamp::from_second(at).ok()
}

/// Tells in `status` whether the rollout of `new` gets on.
pub(super) fn judge(deployment: &Value, new: Option<&Value>, status: &mut Value, now: Timestamp) {
    if !has_deadline(deployment) {
        conditions::remove(status, "Progressing");
        return;
    }
    let current = conditions::find(&deployment["status"], "Progressing");
    let told = current.is_some_and(|c| c["reason"] == "NewReplicaSetAvailable");
    if told && status["replicas"] == status["updatedReplicas"] {
        // Rolled out: what happens to its pods now is no rollout.
        return;
    }
    let name = |object: &Value| {
        object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let subject = match new {
        Some(set) => format!("ReplicaSet \"{}\"", name(set)),
        None => format!("Deployment \"{}\"", name(deployment)),
    };
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        let done = condition(
            "Progressing",
            "True",
            "NewReplicaSetAvailable",
            &message,
            now,
        );
        conditions::set(status, done);
    } else if got_on(&deployment["status"], status) {
        let message = format!("{subject} is progressing.");
        let mut going = condition("Progressing", "True", "ReplicaSetUpdated", &message, now);
        if let Some(current) = current.filter(|c| c["status"] == "True") {
            going["lastTransitionTime"] = current["lastTransitionTime"].clone();
        }
        conditions::put(status, going);
    } else if let Some(current) = current
        && !told
        && (current["reason"] == "ProgressDeadlineExceeded"
            || stuck_at(deployment, current).is_some_and(|at| at < now))
    {
        let message = format!("{subject} has timed out progressing.");
        let stuck = condition(
            "Progressing",
            "False",
            "ProgressDeadlineExceeded",
            &message,
            now,
        );
        conditions::set(status, stuck);
    }
}

/// Takes over the replica sets' trouble, the new one's first.
pub(super) fn tell_trouble(sets: &[&Value], new: Option<&Value>, status: &mut Value) {
    let trouble = new
        .into_iter()
        .chain(sets.iter().copied())
        .find_map(|set| conditions::find(&set["status"], "ReplicaFailure"));
    match trouble {
        Some(trouble) => {
            let mut trouble = trouble.clone();
            trouble["lastUpdateTime"] = trouble["lastTransitionTime"].clone();
            conditions::set(status, trouble);
        }
        None => {
            conditions::remove(status, "ReplicaFailure");
        }
    }
}

/// When to look whether the rollout is stuck.
pub(super) fn next_look(deployment: &Value, status: &Value, now: Timestamp) -> Option<Duration> {
    let progressing = conditions::find(status, "Progressing")?;
    if is_complete(deployment, status)
        || matches!(
            progressing["reason"].as_str(),
            Some("ProgressDeadlineExceeded" | "NewReplicaSetAvailable")
        )
    {
        return None;
    }
    let left = stuck_at(deployment, progressing)?.as_second() - now.as_second();
    Some(Duration::from_secs(left.max(0).unsigned_abs() + 1))
}
