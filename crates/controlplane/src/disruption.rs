//! disruption-controller: how many pods of each PodDisruptionBudget may be evicted now.
//!
//! [`status`] is pure: from a budget, its pods and what their controllers want to the budget's status.

mod scale;

use super::{
    Change, Context, Controller, Failure, Key, Next, Watch, claim,
    collections::{
        DEPLOYMENTS, POD_DISRUPTION_BUDGETS, PODS, REPLICA_SETS, REPLICATION_CONTROLLERS,
        STATEFUL_SETS,
    },
    fields::{items, text},
    pod,
    share::{self, Round},
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use yurt_wire::selector::LabelSelector;

const COMPONENT: &str = "controllermanager";
/// How long an evicted pod may take until its deletion begins; then it counts again.
const DELETION_TIMEOUT: i64 = 2 * 60;

/// `disruption-controller`.
#[derive(Default)]
pub(super) struct Disruption;

/// What the controllers of the pods want in sum, and how many pods have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Expected {
    replicas: i64,
    unmanaged: usize,
}

fn selector(budget: &Value) -> Option<LabelSelector> {
    LabelSelector::from_json(&budget["spec"]["selector"]).ok()
}

/// Whether the budget counts relative to what the controllers want.
fn is_relative(budget: &Value) -> bool {
    let spec = &budget["spec"];
    !spec["maxUnavailable"].is_null() || spec["minAvailable"].is_string()
}

/// How many pods there should be, and how many of them healthy.
fn wanted(budget: &Value, pods: usize, expected: &Expected) -> (i64, i64) {
    let spec = &budget["spec"];
    let (most, least) = (&spec["maxUnavailable"], &spec["minAvailable"]);
    if !most.is_null() {
        let missing = share::of(most, expected.replicas, Round::Up);
        (expected.replicas, (expected.replicas - missing).max(0))
    } else if least.is_string() {
        let healthy = share::of(least, expected.replicas, Round::Up);
        (expected.replicas, healthy)
    } else {
        (
            i64::try_from(pods).unwrap_or(i64::MAX),
            least.as_i64().unwrap_or(0),
        )
    }
}

/// Evictions that are allowed and not seen as deletions yet, by pod, and those that never came.
fn evictions(
    budget: &Value,
    pods: &[Arc<Value>],
    now: Timestamp,
) -> (Map<String, Value>, Vec<Arc<Value>>) {
    let noted = &budget["status"]["disruptedPods"];
    let (mut pending, mut overdue) = (Map::new(), Vec::new());
    for p in pods.iter().filter(|p| !pod::is_deleting(p)) {
        let name = p["metadata"]["name"].as_str().unwrap_or_default();
        let Some(at) = pod::instant(&noted[name]) else {
            continue;
        };
        if at.as_second() + DELETION_TIMEOUT < now.as_second() {
            overdue.push(p.clone());
        } else {
            pending.insert(name.to_owned(), noted[name].clone());
        }
    }
    (pending, overdue)
}

/// The status.
fn status(
    budget: &Value,
    pods: &[Arc<Value>],
    expected: &Expected,
    pending: Map<String, Value>,
    now: Timestamp,
) -> Value {
    let (count, healthy) = wanted(budget, pods.len(), expected);
    let counts = |p: &Value| {
        let name = p["metadata"]["name"].as_str().unwrap_or_default();
        pod::is_ready(p) && !pod::is_deleting(p) && !pending.contains_key(name)
    };
    let current = pods.iter().filter(|p| counts(p)).count();
    let current = i64::try_from(current).unwrap_or(i64::MAX);
    // A budget without pods allows nothing, so that it is safe when the first of them come.
    let allowed = if count <= 0 {
        0
    } else {
        (current - healthy).max(0)
    };
    let mut status = json!({"observedGeneration": budget["metadata"]["generation"],
        "currentHealthy": current, "desiredHealthy": healthy, "expectedPods": count, "disruptionsAllowed": allowed});
    if !pending.is_empty() {
        status["disruptedPods"] = pending.into();
    }
    let (holds, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    tell(budget, &mut status, holds, reason, "", now);
    status
}

/// The status of a budget that cannot be reckoned: nothing may go.
fn failed(budget: &Value, why: &str, now: Timestamp) -> Value {
    let mut status = budget["status"].clone();
    for field in ["currentHealthy", "desiredHealthy", "expectedPods"] {
        if status[field].is_null() {
            status[field] = 0.into();
        }
    }
    status["disruptionsAllowed"] = 0.into();
    status["observedGeneration"] = budget["metadata"]["generation"].clone();
    tell(budget, &mut status, "False", "SyncFailed", why, now);
    status
}

/// A selector as Go prints it in events.
fn printed(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels: String = labels
        .map(|(key, value)| format!("{key}: {},", text(value)))
        .collect();
    let expressions: String = items(&selector["matchExpressions"])
        .map(|expression| {
            let values: Vec<_> = items(&expression["values"]).map(text).collect();
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
                text(&expression["key"]),
                text(&expression["operator"]),
                values.join(" ")
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

fn tell(
    budget: &Value,
    status: &mut Value,
    holds: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let known = budget["status"]["conditions"].as_array();
    let known = known.into_iter().flatten();
    let (mine, mut conditions): (Vec<_>, Vec<_>) = known
        .cloned()
        .partition(|c| c["type"] == "DisruptionAllowed");
    let since = mine.first().filter(|c| c["status"] == holds);
    let since = since.map_or_else(
        || pod::stamp(now).into(),
        |c| c["lastTransitionTime"].clone(),
    );
    conditions.push(
        json!({"type": "DisruptionAllowed", "status": holds, "reason": reason, "message": message,
        "lastTransitionTime": since, "observedGeneration": budget["metadata"]["generation"]}),
    );
    status["conditions"] = conditions.into();
}

impl Controller for Disruption {
    const NAME: &'static str = "disruption-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let budgets = context.objects(&POD_DISRUPTION_BUDGETS);
        let of_pods = Watch::of(PODS, move |change: &Change| {
            let namespace = change.key().namespace;
            let versions = [&change.old, &change.new].into_iter().flatten();
            let labels: Vec<_> = versions.map(|p| claim::labels(p)).collect();
            let budgets = budgets.list(&namespace);
            budgets
                .iter()
                .filter(|budget| {
                    let selector = selector(budget);
                    selector.is_some_and(|s| labels.iter().any(|labels| s.matches(labels)))
                })
                .map(|budget| Key::of(budget))
                .collect()
        });
        // What the controllers want is read; that it changed shows in their pods.
        let read = [
            DEPLOYMENTS,
            REPLICA_SETS,
            REPLICATION_CONTROLLERS,
            STATEFUL_SETS,
        ];
        let mut watches = vec![Watch::own(POD_DISRUPTION_BUDGETS), of_pods];
        watches.extend(read.map(|of| Watch::of(of, |_| Vec::new())));
        watches
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(budget) = context.objects(&POD_DISRUPTION_BUDGETS).get(key) else {
            return Ok(Next::Done);
        };
        let selector = selector(&budget);
        let mut pods = context.objects(&PODS).list(&key.namespace);
        pods.retain(|p| selector.as_ref().is_some_and(|s| claim::selects(s, p)));
        let now = Timestamp::now();
        let expected = if is_relative(&budget) {
            scale::expected(context, &pods).await
        } else {
            Ok(Expected::default())
        };
        let (pending, overdue) = evictions(&budget, &pods, now);
        let next = pending.values().filter_map(pod::instant).min().map(|at| {
            let left = at.as_second() + DELETION_TIMEOUT + 1 - now.as_second();
            Duration::from_secs(left.max(1).unsigned_abs())
        });
        for p in &overdue {
            let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            context.event(COMPONENT, p, "Warning", "NotDeleted", &message);
        }
        let unmanaged = expected
            .as_ref()
            .is_ok_and(|expected| expected.unmanaged > 0);
        let (status, trouble) = match expected {
            Ok(expected) => (status(&budget, &pods, &expected, pending, now), None),
            Err(why) => (failed(&budget, &why, now), Some(why)),
        };
        if status != budget["status"] {
            if pods.is_empty() {
                context.event(
                    COMPONENT,
                    &budget,
                    "Normal",
                    "NoPods",
                    "No matching pods found",
                );
            }
            if unmanaged {
                let message = format!(
                    "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                    printed(&budget["spec"]["selector"])
                );
                context.event(COMPONENT, &budget, "Warning", "UnmanagedPods", &message);
            }
            if let Some(why) = trouble {
                let message = format!("Failed to calculate the number of expected pods: {why}");
                let reason = "CalculateExpectedPodCountFailed";
                context.event(COMPONENT, &budget, "Warning", reason, &message);
            }
            let mut new = Value::clone(&budget);
            new["status"] = status;
            context.update_status(&POD_DISRUPTION_BUDGETS, &new).await?;
        }
        Ok(next.map_or(Next::Done, Next::After))
    }
}

#[cfg(test)]
mod tests;
