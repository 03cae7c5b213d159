//! cronjob-controller: starts jobs by the clock.
//!
//! [`decide`] is pure: from a cron job, its jobs and the time to what is due.

mod history;
mod schedule;

use super::{
    Context, Controller, Failure, Key, Next, Watch, claim,
    collections::{CRON_JOBS, JOBS},
    condition, controller_of,
    job::is_finished,
    pod,
    pod_control::is_going,
};
use jiff::{Timestamp, tz::TimeZone};
use schedule::Schedule;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const COMPONENT: &str = "cronjob-controller";
/// When the job was due, in the cron job's time zone.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// A little after the full minute, so that clocks that differ a little do no harm.
const DELTA: Duration = Duration::from_millis(100);
/// More missed times than these are worth a warning.
const MANY_MISSED: i64 = 100;

/// `cronjob-controller`.
#[derive(Default)]
pub(super) struct CronJobs;

/// An event: type, reason, message.
type Told = (&'static str, &'static str, String);

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// What is due.
#[derive(Clone, Debug, PartialEq)]
enum Due {
    /// Nothing more than to wait for the next time, if there is one.
    Nothing,
    /// A job for this time; the active ones are replaced by it if `replace`.
    Start { at: Timestamp, replace: bool },
}

/// A decision, and what is told of it.
#[derive(Clone, Debug, PartialEq)]
struct Decision {
    due: Due,
    told: Vec<Told>,
    /// When the next time comes.
    next: Option<Duration>,
}

fn active(cron: &Value) -> &[Value] {
    cron["status"]["active"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

fn job_name(cron: &Value, at: Timestamp) -> String {
    format!("{}-{}", name(cron), at.as_second() / 60)
}

/// The last time that was due and not served, and how many were missed, roughly.
fn last_due(cron: &Value, schedule: &Schedule, now: Timestamp) -> Option<(Timestamp, i64)> {
    let last = pod::instant(&cron["status"]["lastScheduleTime"]);
    let mut from = last.or_else(|| pod::instant(&cron["metadata"]["creationTimestamp"]))?;
    if let Some(deadline) = cron["spec"]["startingDeadlineSeconds"].as_i64() {
        let earliest = now.as_second().saturating_sub(deadline);
        from = from.max(Timestamp::from_second(earliest).unwrap_or(from));
    }
    let first = schedule.next(from)?;
    if now < first {
        return None;
    }
    let Some(second) = schedule.next(first).filter(|second| *second <= now) else {
        return Some((first, 1));
    };
    let between = (second.as_second() - first.as_second()).max(1);
    let missed = (now.as_second() - first.as_second()) / between + 1;
    // Near the end, so that few steps are left however long nobody looked.
    let near = first.as_second() + (missed - 2).max(0) * between;
    let mut at = Timestamp::from_second(near).ok()?;
    let mut due = first;
    while let Some(next) = schedule.next(at).filter(|next| *next <= now) {
        (at, due) = (next, next);
    }
    Some((due, missed))
}

fn decide(cron: &Value, schedule: &Schedule, now: Timestamp) -> Decision {
    let next = schedule.next(now).map(|next| {
        let left = next.as_nanosecond() - now.as_nanosecond();
        Duration::from_nanos(u64::try_from(left).unwrap_or(0)) + DELTA
    });
    let mut decision = Decision {
        due: Due::Nothing,
        told: Vec::new(),
        next,
    };
    let Some((at, missed)) = last_due(cron, schedule, now) else {
        return decision;
    };
    if missed > MANY_MISSED {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        decision
            .told
            .push(("Warning", "TooManyMissedTimes", message.into()));
    }
    let deadline = cron["spec"]["startingDeadlineSeconds"].as_i64();
    if deadline.is_some_and(|seconds| at.as_second().saturating_add(seconds) < now.as_second()) {
        let when = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let message = format!("Missed scheduled time to start a job: {when}");
        decision.told.push(("Warning", "MissSchedule", message));
        return decision;
    }
    let this = job_name(cron, at);
    let served = pod::instant(&cron["status"]["lastScheduleTime"]) == Some(at);
    if served || active(cron).iter().any(|job| job["name"] == this.as_str()) {
        return decision;
    }
    let policy = cron["spec"]["concurrencyPolicy"].as_str();
    if policy == Some("Forbid") && !active(cron).is_empty() {
        let message =
            "Not starting job because prior execution is running and concurrency policy is Forbid";
        decision
            .told
            .push(("Normal", "JobAlreadyActive", message.into()));
        return decision;
    }
    decision.due = Due::Start {
        at,
        replace: policy == Some("Replace"),
    };
    decision
}

/// The job for a time.
fn new_job(cron: &Value, at: Timestamp, zone: &TimeZone) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let mut metadata = json!({"name": job_name(cron, at), "namespace": cron["metadata"]["namespace"],
        "ownerReferences": [claim::reference(&CRON_JOBS, cron)]});
    for field in ["labels", "annotations"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let local = at.to_zoned(zone.clone());
    let offset = if local.offset().is_zero() {
        "Z".to_owned()
    } else {
        local.strftime("%:z").to_string()
    };
    let local = local.strftime("%Y-%m-%dT%H:%M:%S");
    metadata["annotations"][SCHEDULED] = format!("{local}{offset}").into();
    json!({"metadata": metadata, "spec": template["spec"]})
}

/// The status as the jobs there are make it, before anything is started.
fn status(cron: &Value, jobs: &[Arc<Value>]) -> (Value, Vec<Told>) {
    let (mut told, mut kept) = (Vec::new(), Vec::new());
    let mut last = cron["status"]["lastSuccessfulTime"].clone();
    for entry in active(cron) {
        let job = jobs
            .iter()
            .find(|job| job["metadata"]["uid"] == entry["uid"]);
        let entry_name = entry["name"].as_str().unwrap_or_default();
        match job {
            Some(job) if is_finished(job) => {
                let kind = if condition::holds(&job["status"], "Complete") {
                    "Complete"
                } else {
                    "Failed"
                };
                let message = format!("Saw completed job: {entry_name}, condition: {kind}");
                told.push(("Normal", "SawCompletedJob", message));
            }
            Some(_) => kept.push(entry.clone()),
            None => told.push((
                "Normal",
                "MissingJob",
                format!("Active job went missing: {entry_name}"),
            )),
        }
    }
    for job in jobs {
        let known = active(cron)
            .iter()
            .any(|entry| entry["uid"] == job["metadata"]["uid"]);
        if !known && !is_finished(job) {
            let message = format!(
                "Saw a job that the controller did not create or forgot: {}",
                name(job)
            );
            told.push(("Warning", "UnexpectedJob", message));
        }
        let ended = &job["status"]["completionTime"];
        if condition::holds(&job["status"], "Complete") && pod::instant(ended) > pod::instant(&last)
        {
            last = ended.clone();
        }
    }
    let mut status = json!({});
    if !kept.is_empty() {
        status["active"] = kept.into();
    }
    if let Some(at) = cron["status"].get("lastScheduleTime") {
        status["lastScheduleTime"] = at.clone();
    }
    if !last.is_null() {
        status["lastSuccessfulTime"] = last;
    }
    (status, told)
}

impl Controller for CronJobs {
    const NAME: &'static str = "cronjob-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(CRON_JOBS), Watch::owned(JOBS, "CronJob")]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(cron) = context.objects(&CRON_JOBS).get(key) else {
            return Ok(Next::Done);
        };
        let uid = cron["metadata"]["uid"].as_str().unwrap_or_default();
        let mut jobs = context.objects(&JOBS).owned_by(uid);
        jobs.retain(|job| controller_of(job).is_some_and(|owner| owner["uid"] == uid));
        let (seen, told) = status(&cron, &jobs);
        for (kind, reason, message) in &told {
            context.event(COMPONENT, &cron, kind, reason, message);
        }
        let mut new = Value::clone(&cron);
        new["status"] = seen;
        let outcome = serve(&mut new, context).await;
        if new["status"] != cron["status"] {
            context.update_status(&CRON_JOBS, &new).await?;
        }
        for job in history::beyond(&cron, &jobs) {
            delete(&cron, &job, context).await?;
        }
        Ok(outcome?.map_or(Next::Done, Next::After))
    }
}

/// Starts what is due and notes it; when the next time comes.
async fn serve(cron: &mut Value, context: &Context) -> Result<Option<Duration>, Failure> {
    if pod::is_deleting(cron) || cron["spec"]["suspend"] == true {
        return Ok(None);
    }
    let zone = match cron["spec"]["timeZone"].as_str().map(schedule::zone) {
        None => TimeZone::UTC,
        Some(Ok(zone)) => zone,
        Some(Err(error)) => {
            let message = format!("invalid timeZone: {}: {error}", cron["spec"]["timeZone"]);
            context.event(COMPONENT, cron, "Warning", "UnknownTimeZone", &message);
            return Ok(None);
        }
    };
    let text = cron["spec"]["schedule"].as_str().unwrap_or_default();
    let schedule = match Schedule::parse(text, zone.clone()) {
        Ok(schedule) => schedule,
        Err(error) => {
            let message = format!("unparseable schedule: \"{text}\" : {error}");
            context.event(COMPONENT, cron, "Warning", "UnparseableSchedule", &message);
            return Ok(None);
        }
    };
    let decision = decide(cron, &schedule, Timestamp::now());
    for (kind, reason, message) in &decision.told {
        context.event(COMPONENT, cron, kind, reason, message);
    }
    if let Due::Start { at, replace } = decision.due {
        if replace {
            stop_active(cron, context).await?;
        }
        start(cron, at, &zone, context).await?;
    }
    Ok(decision.next)
}

async fn stop_active(cron: &mut Value, context: &Context) -> Result<(), Failure> {
    let namespace = cron["metadata"]["namespace"].as_str().unwrap_or_default();
    for entry in active(cron) {
        let key = Key::new(namespace, entry["name"].as_str().unwrap_or_default());
        if let Some(job) = context.objects(&JOBS).get(&key) {
            delete(cron, &job, context).await?;
        }
    }
    if let Some(status) = cron["status"].as_object_mut() {
        status.remove("active");
    }
    Ok(())
}

async fn start(
    cron: &mut Value,
    at: Timestamp,
    zone: &TimeZone,
    context: &Context,
) -> Result<(), Failure> {
    let new = new_job(cron, at, zone);
    let job = match context.create(&JOBS, new.clone()).await {
        Ok(job) => {
            let message = format!("Created job {}", name(&job));
            context.event(COMPONENT, cron, "Normal", "SuccessfulCreate", &message);
            job
        }
        // Made before, and not noted: another process was killed in between.
        Err(error) if error.code() == Some(409) => {
            let there = context
                .kube()
                .get(&JOBS.object_path(&Key::of(&new)))
                .await?;
            let ours =
                controller_of(&there).is_some_and(|owner| owner["uid"] == cron["metadata"]["uid"]);
            if !ours {
                return Err(error.into());
            }
            Arc::new(there)
        }
        Err(error) if is_going(&error) => return Ok(()),
        Err(error) => {
            let message = format!("Error creating job: {}", error.message());
            context.event(COMPONENT, cron, "Warning", "FailedCreate", &message);
            return Err(error.into());
        }
    };
    if !is_finished(&job) {
        let entry = json!({"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"],
            "namespace": job["metadata"]["namespace"], "uid": job["metadata"]["uid"],
            "resourceVersion": job["metadata"]["resourceVersion"]});
        match cron["status"]["active"].as_array_mut() {
            Some(active) => active.push(entry),
            None => cron["status"]["active"] = json!([entry]),
        }
    }
    cron["status"]["lastScheduleTime"] = pod::stamp(at).into();
    Ok(())
}

async fn delete(cron: &Value, job: &Value, context: &Context) -> Result<(), Failure> {
    let options = json!({"propagationPolicy": "Background"});
    context.delete_with(&JOBS, job, &options).await?;
    let message = format!("Deleted job {}", name(job));
    context.event(COMPONENT, cron, "Normal", "SuccessfulDelete", &message);
    Ok(())
}

#[cfg(test)]
mod tests;
