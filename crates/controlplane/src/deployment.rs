//! deployment-controller: rolls a template out by replica sets, one per template.
//!
//! [`plan`] is pure: from a deployment, its replica sets and their pods to the steps to take and the status that follows.

mod annotations;
mod progress;
mod rollout;
mod size;

use super::{
    Change, Context, Controller, Failure, Key, Next, Watch, claim,
    collections::{DEPLOYMENTS, PODS, REPLICA_SETS},
    controller_of, pod,
    pod_control::is_going,
};
use jiff::Timestamp;
use rollout::Rollout;
use serde_json::Value;
use std::{sync::Arc, time::Duration};

const COMPONENT: &str = "deployment-controller";
/// The label by which replica sets of one deployment are told apart.
const HASH: &str = "pod-template-hash";

/// `deployment-controller`.
#[derive(Default)]
pub(super) struct Deployments;

/// One write, and the event that tells of it.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Create(Value, Option<String>),
    Update(Value, Option<String>),
    Delete(Value),
}

/// What is to be done.
#[derive(Debug)]
struct Plan {
    steps: Vec<Step>,
    /// The deployment with the status and annotations it gets after the steps.
    deployment: Value,
    /// When to look again although nothing changed.
    next: Option<Duration>,
}

/// `pods`: those of the replica sets; only `Recreate` asks for them.
fn plan(deployment: &Value, sets: &[Arc<Value>], pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut rollout = Rollout::new(deployment, sets, now);
    if pod::is_deleting(deployment) {
        return rollout.status_only();
    }
    rollout.note_pause();
    if deployment["spec"]["paused"] == true {
        rollout.adopt_new_set(false);
        rollout.scale();
        rollout.clean_up();
        rollout.status_only()
    } else if rollout.is_scaling() {
        rollout.adopt_new_set(false);
        rollout.scale();
        rollout.status_only()
    } else {
        if deployment["spec"]["strategy"]["type"] == "Recreate" {
            rollout.recreate(pods);
        } else {
            rollout.roll();
        }
        rollout.finish()
    }
}

/// Whether two templates are the same but for the label that the controller itself adds.
fn same_template(one: &Value, other: &Value) -> bool {
    let plain = |template: &Value| {
        let mut template = template.clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove(HASH);
        }
        template
    };
    plain(one) == plain(other)
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let sets = context.objects(&REPLICA_SETS);
        // A deployment of strategy Recreate waits for its last old pod.
        let ended = Watch::of(PODS, move |change: &Change| {
            let ended = change.new.as_ref().is_none_or(|p| pod::is_finished(p));
            let Some(old) = change.old.as_ref().filter(|_| ended) else {
                return Vec::new();
            };
            let namespace = old["metadata"]["namespace"].as_str().unwrap_or_default();
            let owner = controller_of(old).and_then(|owner| owner["name"].as_str());
            let set = owner.and_then(|name| sets.get(&Key::new(namespace, name)));
            let deployment = set.as_ref().and_then(|set| controller_of(set));
            let name = deployment.and_then(|owner| owner["name"].as_str());
            name.map(|name| Key::new(namespace, name))
                .into_iter()
                .collect()
        });
        vec![
            Watch::own(DEPLOYMENTS),
            Watch::claimed(REPLICA_SETS, "Deployment", context.objects(&DEPLOYMENTS)),
            ended,
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(deployment) = context.objects(&DEPLOYMENTS).get(key) else {
            return Ok(Next::Done);
        };
        let Some(selector) = claim::selector_of(&deployment) else {
            return Ok(Next::Done);
        };
        let candidates = context.objects(&REPLICA_SETS).list(&key.namespace);
        let (of, owners) = (&REPLICA_SETS, &DEPLOYMENTS);
        let sets = claim::claim(context, owners, &deployment, &selector, of, candidates).await?;
        let cache = context.objects(&PODS);
        let uids = sets
            .iter()
            .filter_map(|set| set["metadata"]["uid"].as_str());
        let pods: Vec<_> = uids.flat_map(|uid| cache.owned_by(uid)).collect();

        let plan = plan(&deployment, &sets, &pods, Timestamp::now());
        for step in &plan.steps {
            carry_out(step, &deployment, context).await?;
        }
        let changed = plan.deployment["status"] != deployment["status"]
            || plan.deployment["metadata"] != deployment["metadata"];
        if changed {
            context
                .update_status(&DEPLOYMENTS, &plan.deployment)
                .await?;
        }
        Ok(plan.next.map_or(Next::Done, Next::After))
    }
}

async fn carry_out(step: &Step, deployment: &Value, context: &Context) -> Result<(), Failure> {
    let (written, told) = match step {
        Step::Create(set, told) => match context.create(&REPLICA_SETS, set.clone()).await {
            Err(error) if error.code() == Some(409) => {
                return collided(set, deployment, context).await;
            }
            Err(error) if !is_going(&error) => {
                let name = set["metadata"]["name"].as_str().unwrap_or_default();
                let message = format!(
                    "Failed to create new replica set \"{name}\": {}",
                    error.message()
                );
                return refused(&message, deployment, context)
                    .await
                    .and(Err(error.into()));
            }
            Err(_) => return Ok(()),
            created => (created, told),
        },
        Step::Update(set, told) => (context.update(&REPLICA_SETS, set).await, told),
        Step::Delete(set) => return Ok(context.delete(&REPLICA_SETS, set).await?),
    };
    written?;
    if let Some(message) = told {
        context.event(
            COMPONENT,
            deployment,
            "Normal",
            "ScalingReplicaSet",
            message,
        );
    }
    Ok(())
}

/// There is a replica set of the new one's name: ours (written before this process began to watch), or one of another template
/// with the same hash. Then the next name is tried.
async fn collided(set: &Value, deployment: &Value, context: &Context) -> Result<(), Failure> {
    let path = REPLICA_SETS.object_path(&Key::of(set));
    let there = context.kube().get(&path).await?;
    let ours = controller_of(&there)
        .is_some_and(|owner| owner["uid"] == deployment["metadata"]["uid"])
        && same_template(&there["spec"]["template"], &deployment["spec"]["template"]);
    if ours {
        return Ok(());
    }
    let mut counted = deployment.clone();
    let collisions = deployment["status"]["collisionCount"].as_i64().unwrap_or(0);
    counted["status"]["collisionCount"] = (collisions + 1).into();
    context.update_status(&DEPLOYMENTS, &counted).await?;
    Err(Failure::Object(format!(
        "the name {} is another's",
        Key::of(set)
    )))
}

/// Tells that the server does not take the new replica set.
async fn refused(message: &str, deployment: &Value, context: &Context) -> Result<(), Failure> {
    let reason = "ReplicaSetCreateError";
    context.event(COMPONENT, deployment, "Warning", reason, message);
    if !progress::has_deadline(deployment) {
        return Ok(());
    }
    let mut told = deployment.clone();
    let condition = progress::condition("Progressing", "False", reason, message, Timestamp::now());
    super::condition::set(&mut told["status"], condition);
    if told != *deployment {
        context.update_status(&DEPLOYMENTS, &told).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
