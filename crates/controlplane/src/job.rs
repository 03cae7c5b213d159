//! job-controller: runs pods until enough of them succeeded, or too many failed. ttl-after-finished-controller: clears jobs away.
//!
//! [`plan::plan`] is pure: from a job and its pods to the pods to make and stop and the status. Every pod carries a finalizer
//! until it is counted: its UID is noted in the status, the finalizer goes, and only then it moves to the count, so that each
//! pod is counted once whatever happens in between.

mod backoff;
mod ending;
mod failure_policy;
mod indexes;
mod new_pod;
mod plan;
mod tally;
mod ttl;

pub(super) use ttl::TtlAfterFinished;

use super::{
    Context, Controller, Failure, Key, Next, Watch, batch, claim,
    collections::{JOBS, PODS},
    controller_of,
    pod_control::{PodControl, is_going},
};
use jiff::Timestamp;
use plan::Plan;
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_controller::kube::KubeError;

const COMPONENT: &str = "job-controller";
/// Keeps a pod until it is counted.
const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Who manages jobs that name nobody.
const SELF: &str = "kubernetes.io/job-controller";

/// `job-controller`.
#[derive(Default)]
pub(super) struct Jobs;

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

fn is_tracked(p: &Value) -> bool {
    let finalizers = p["metadata"]["finalizers"].as_array();
    finalizers.into_iter().flatten().any(|f| f == FINALIZER)
}

/// Whether a job is over, well or not.
pub(super) fn is_finished(job: &Value) -> bool {
    ["Complete", "Failed"]
        .iter()
        .any(|kind| super::condition::holds(&job["status"], kind))
}

impl Controller for Jobs {
    const NAME: &'static str = "job-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let jobs = context.objects(&JOBS);
        vec![Watch::own(JOBS), Watch::claimed(PODS, "Job", jobs)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let job = context.objects(&JOBS).get(key);
        release_orphans(key, job.as_deref(), context).await?;
        let Some(job) = job else {
            return Ok(Next::Done);
        };
        let manager = job["spec"]["managedBy"].as_str().unwrap_or(SELF);
        let Some(selector) = claim::selector_of(&job).filter(|_| manager == SELF) else {
            return Ok(Next::Done);
        };
        let pods = context.objects(&PODS).list(&key.namespace);
        let pods = claim::claim(context, &JOBS, &job, &selector, &PODS, pods).await?;
        if is_finished(&job) {
            let left = pods.iter().filter(|p| is_tracked(p)).cloned().collect();
            release(left, context).await?;
            return Ok(Next::Done);
        }
        let mut plan = plan::plan(&job, &pods, Timestamp::now());
        let outcome = carry_out(&job, &plan, context).await;
        if let Err((made, _)) = &outcome {
            // What could not be made does not run.
            plan.made_only(*made);
        }
        if plan.status != job["status"] {
            let mut new = Value::clone(&job);
            new["status"] = plan.status;
            context.update_status(&JOBS, &new).await?;
        }
        for (kind, reason, message) in &plan.events {
            context.event(COMPONENT, &job, kind, reason, message);
        }
        // They are noted by now.
        release(plan.release, context).await?;
        outcome.map_err(|(_, error)| error)?;
        Ok(plan.next.map_or(Next::Done, Next::After))
    }
}

/// Takes the finalizer from pods whose job is gone.
async fn release_orphans(
    key: &Key,
    job: Option<&Value>,
    context: &Context,
) -> Result<(), KubeError> {
    let orphan = |p: &Arc<Value>| {
        is_tracked(p)
            && controller_of(p).is_some_and(|owner| {
                owner["kind"] == "Job"
                    && owner["name"] == key.name.as_str()
                    && job.is_none_or(|job| owner["uid"] != job["metadata"]["uid"])
            })
    };
    let mut pods = context.objects(&PODS).list(&key.namespace);
    pods.retain(orphan);
    release(pods, context).await
}

/// Takes the finalizer from pods.
async fn release(pods: Vec<Arc<Value>>, context: &Context) -> Result<(), KubeError> {
    let releases = pods.iter().map(|p| untrack(p, context)).collect();
    batch::all(releases).await.into_iter().collect()
}

async fn untrack(p: &Value, context: &Context) -> Result<(), KubeError> {
    if !is_tracked(p) {
        return Ok(());
    }
    let patch =
        json!({"metadata": {"uid": uid(p), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
    match context.patch(&PODS, &Key::of(p), "", &patch).await {
        // Gone, or another of that name.
        Err(error) if !matches!(error.code(), Some(404 | 409 | 422)) => Err(error),
        _ => Ok(()),
    }
}

/// Makes and stops pods; on a failure also how many were made.
async fn carry_out(job: &Value, plan: &Plan, context: &Context) -> Result<(), (usize, Failure)> {
    let control = PodControl {
        context,
        component: COMPONENT,
        owner: job,
    };
    let none = |error: KubeError| (0, Failure::from(error));
    // Whoever is stopped because fewer are wanted has not failed.
    release(plan.discard.clone(), context).await.map_err(none)?;
    let going = plan.discard.iter().chain(&plan.stop);
    let deletions = going.map(|p| control.delete(p)).collect();
    for deleted in batch::all(deletions).await {
        deleted.map_err(none)?;
    }
    let made = std::sync::atomic::AtomicUsize::new(0);
    let create = |at: usize| {
        let (made, new) = (&made, plan.create[at].clone());
        async move {
            control.create(new).await?;
            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, KubeError>(())
        }
    };
    match batch::slow_start(plan.create.len(), create).await {
        Err(error) if !is_going(&error) => Err((made.into_inner(), error.into())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
