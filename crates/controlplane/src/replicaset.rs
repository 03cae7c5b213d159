//! replicaset-controller and replicationcontroller-controller: as many pods of a template as are wanted.

pub(super) mod ranking;

use super::{
    Collection, Context, Controller, Failure, Key, Next, Watch, batch, claim,
    collections::{PODS, REPLICA_SETS, REPLICATION_CONTROLLERS},
    condition, controller_of, pod,
    pod_control::{PodControl, is_going},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc};
use yurt_controller::kube::KubeError;

/// What the two kinds differ in.
#[derive(Debug)]
struct Kind {
    collection: Collection,
    component: &'static str,
    /// Whether its status counts pods on their way out.
    counts_terminating: bool,
}

const REPLICA_SET: Kind = Kind {
    collection: REPLICA_SETS,
    component: "replicaset-controller",
    counts_terminating: true,
};
const REPLICATION_CONTROLLER: Kind = Kind {
    collection: REPLICATION_CONTROLLERS,
    component: "replication-controller",
    counts_terminating: false,
};

/// `replicaset-controller`.
#[derive(Default)]
pub(super) struct ReplicaSets;
/// `replicationcontroller-controller`.
#[derive(Default)]
pub(super) struct ReplicationControllers;

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        watches(&REPLICA_SET, context)
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        reconcile(&REPLICA_SET, key, context).await
    }
}

impl Controller for ReplicationControllers {
    const NAME: &'static str = "replicationcontroller-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        watches(&REPLICATION_CONTROLLER, context)
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        reconcile(&REPLICATION_CONTROLLER, key, context).await
    }
}

fn watches(kind: &Kind, context: &Arc<Context>) -> Vec<Watch> {
    let owners = context.objects(&kind.collection);
    let owner_kind = if kind.counts_terminating {
        "ReplicaSet"
    } else {
        "ReplicationController"
    };
    vec![
        Watch::own(kind.collection.clone()),
        Watch::claimed(PODS, owner_kind, owners),
    ]
}

/// What brings the number of pods in order.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Value>>),
}

fn replicas(set: &Value) -> usize {
    let wanted = set["spec"]["replicas"].as_u64().unwrap_or(1);
    usize::try_from(wanted).unwrap_or(usize::MAX)
}

fn min_ready(set: &Value) -> i64 {
    set["spec"]["minReadySeconds"].as_i64().unwrap_or(0)
}

/// `crowds`: how many pods like these are on each node.
fn plan(
    set: &Value,
    active: &[Arc<Value>],
    crowds: &HashMap<String, usize>,
    now: Timestamp,
) -> Plan {
    let wanted = replicas(set);
    if pod::is_deleting(set) || active.len() == wanted {
        return Plan::Nothing;
    }
    if active.len() < wanted {
        return Plan::Create((wanted - active.len()).min(batch::MOST));
    }
    let mut ranked: Vec<_> = active.to_vec();
    let count = (active.len() - wanted).min(batch::MOST);
    ranked.sort_by(|a, b| ranking::order(a, b, crowds, now));
    ranked.truncate(count);
    Plan::Delete(ranked)
}

/// Why the pods could not be brought to the wanted number: reason and message of the condition `ReplicaFailure`.
type Trouble = (&'static str, String);

fn status(
    kind: &Kind,
    set: &Value,
    active: &[Arc<Value>],
    terminating: usize,
    trouble: Option<&Trouble>,
    now: Timestamp,
) -> Value {
    let template_labels = claim::labels(&set["spec"]["template"]);
    let labelled = |pod: &Value| {
        let labels = claim::labels(pod);
        template_labels.iter().all(|label| labels.contains(label))
    };
    let count = |holds: &dyn Fn(&Value) -> bool| active.iter().filter(|pod| holds(pod)).count();
    let seconds = min_ready(set);
    let mut status = json!({"replicas": active.len()});
    for (field, number) in [
        ("fullyLabeledReplicas", count(&labelled)),
        ("readyReplicas", count(&pod::is_ready)),
        (
            "availableReplicas",
            count(&|p| pod::is_available(p, seconds, now)),
        ),
    ] {
        if number > 0 {
            status[field] = number.into();
        }
    }
    if kind.counts_terminating {
        status["terminatingReplicas"] = terminating.into();
    }
    status["observedGeneration"] = set["metadata"]["generation"].clone();
    if let Some(conditions) = set["status"].get("conditions") {
        status["conditions"] = conditions.clone();
    }
    match (trouble, condition::find(&set["status"], "ReplicaFailure")) {
        (Some((reason, message)), None) => condition::set(
            &mut status,
            condition::new("ReplicaFailure", "True", reason, message, now),
        ),
        (None, Some(_)) => condition::remove(&mut status, "ReplicaFailure"),
        _ => {}
    }
    status
}

async fn reconcile(kind: &Kind, key: &Key, context: &Context) -> Result<Next, Failure> {
    let Some(set) = context.objects(&kind.collection).get(key) else {
        return Ok(Next::Done);
    };
    let Some(selector) = claim::selector_of(&set) else {
        return Ok(Next::Done);
    };
    let all = context.objects(&PODS);
    let candidates = all.list(&key.namespace);
    let candidates = candidates
        .into_iter()
        .filter(|p| !pod::is_finished(p))
        .collect();
    let own = claim::claim(
        context,
        &kind.collection,
        &set,
        &selector,
        &PODS,
        candidates,
    )
    .await?;
    let (active, leaving): (Vec<_>, Vec<_>) = own.into_iter().partition(|p| pod::is_active(p));

    let now = Timestamp::now();
    let plan = plan(&set, &active, &crowds(kind, &set, context), now);
    let outcome = carry_out(kind, &set, &plan, context).await;
    let trouble = outcome.as_ref().err().map(|error| {
        let reason = match plan {
            Plan::Delete(_) => "FailedDelete",
            _ => "FailedCreate",
        };
        (reason, error.message())
    });
    // As it was before: what has been created or deleted comes as changes of pods.
    let status = status(kind, &set, &active, leaving.len(), trouble.as_ref(), now);
    if status != set["status"] {
        let mut new = Value::clone(&set);
        new["status"] = status;
        context.update_status(&kind.collection, &new).await?;
    }
    outcome?;
    let next = pod::next_available(active.iter().map(|pod| &**pod), min_ready(&set), now);
    Ok(next.map_or(Next::Done, Next::After))
}

/// How many active pods on each node belong to this set, or to sets of the same controller.
fn crowds(kind: &Kind, set: &Value, context: &Context) -> HashMap<String, usize> {
    let siblings = match controller_of(set) {
        Some(controller) => {
            let uid = controller["uid"].as_str().unwrap_or_default();
            context.objects(&kind.collection).owned_by(uid)
        }
        None => vec![Arc::new(set.clone())],
    };
    let mut crowds = HashMap::new();
    let pods = context.objects(&PODS);
    for sibling in siblings {
        let uid = sibling["metadata"]["uid"].as_str().unwrap_or_default();
        for pod in pods.owned_by(uid).iter().filter(|p| pod::is_active(p)) {
            *crowds.entry(pod::node(pod).to_owned()).or_default() += 1;
        }
    }
    crowds
}

async fn carry_out(
    kind: &Kind,
    set: &Value,
    plan: &Plan,
    context: &Context,
) -> Result<(), KubeError> {
    let control = PodControl {
        context,
        component: kind.component,
        owner: set,
    };
    match plan {
        Plan::Nothing => Ok(()),
        Plan::Create(count) => {
            let owner = claim::reference(&kind.collection, set);
            let namespace = set["metadata"]["namespace"].as_str().unwrap_or_default();
            let new = pod::from_template(&set["spec"]["template"], &owner, namespace);
            let made = batch::slow_start(*count, |_| control.create(new.clone())).await;
            made.or_else(|error| if is_going(&error) { Ok(()) } else { Err(error) })
        }
        Plan::Delete(pods) => {
            let deletions = pods.iter().map(|pod| control.delete(pod)).collect();
            batch::all(deletions).await.into_iter().collect()
        }
    }
}

#[cfg(test)]
mod tests;
