//! What a job needs next, as a function of it and its pods.

use super::{
    super::{condition as conditions, pod, replicaset::ranking},
    backoff,
    ending::Ending,
    is_tracked, new_pod,
    tally::{Tally, count},
    uid,
};
use crate::batch;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

/// Pods that are noted and not counted yet, at most.
const MOST_UNCOUNTED: usize = 500;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Pods to make.
    pub(super) create: Vec<Value>,
    /// Running pods to delete without counting them: fewer are wanted, or none any more.
    pub(super) discard: Vec<Arc<Value>>,
    /// Running pods to delete: the job failed.
    pub(super) stop: Vec<Arc<Value>>,
    /// Pods that lose their finalizer once the status is written.
    pub(super) release: Vec<Arc<Value>>,
    /// The status.
    pub(super) status: Value,
    /// Type, reason and message.
    pub(super) events: Vec<(&'static str, String, String)>,
    /// When to look again although nothing changed.
    pub(super) next: Option<Duration>,
}

impl Plan {
    /// Only so many of the pods could be made.
    pub(super) fn made_only(&mut self, made: usize) {
        let missing = count(self.create.len().saturating_sub(made));
        let active = self.status["active"].as_i64().unwrap_or(0) - missing;
        set_count(&mut self.status, "active", active);
    }

    fn look_in(&mut self, pause: Duration) {
        self.next = Some(self.next.map_or(pause, |next| next.min(pause)));
    }
}

fn set_count(status: &mut Value, field: &str, count: i64) {
    if count > 0 {
        status[field] = count.into();
    } else if let Some(status) = status.as_object_mut() {
        status.remove(field);
    }
}

impl Tally<'_> {
    /// How many pods are to run.
    fn wanted(&self) -> i64 {
        if self.is_suspended() {
            return 0;
        }
        let parallelism = self.spec("parallelism").as_i64().unwrap_or(1);
        match self.completions() {
            Some(completions) => (completions - self.succeeded).clamp(0, parallelism.max(0)),
            // Once one succeeded, the others finish and nothing new starts.
            None if self.succeeded > 0 => count(self.active.len()),
            None => parallelism,
        }
    }

    /// The running pods that are too many: two of an index, indexes that are not wanted, then whoever is missed least.
    fn surplus(&self, wanted: i64) -> Vec<Arc<Value>> {
        let too_many = usize::try_from(count(self.active.len()) - wanted).unwrap_or(0);
        let mut ranked = self.active.clone();
        ranked.sort_by(|a, b| ranking::order(a, b, &HashMap::new(), self.now));
        let mut surplus = Vec::new();
        if self.is_indexed() && !self.is_suspended() {
            // The one that is missed most keeps the index.
            let mut taken = BTreeSet::new();
            ranked.reverse();
            ranked.retain(|p| {
                let keeps = self.index(p).is_some_and(|index| taken.insert(index));
                if !keeps {
                    surplus.push(p.clone());
                }
                keeps
            });
            ranked.reverse();
        }
        let more = too_many.saturating_sub(surplus.len());
        surplus.extend(ranked.into_iter().take(more));
        surplus.truncate(batch::MOST);
        surplus
    }

    /// Makes and discards pods so that as many run as are wanted.
    fn manage(&self, plan: &mut Plan) {
        let wanted = self.wanted();
        plan.discard = self.surplus(wanted);
        if !plan.discard.is_empty() || pod::is_deleting(self.job) {
            return;
        }
        let mut missing = wanted - count(self.active.len());
        if self.replaces_ended_only() {
            missing -= self.terminating;
        }
        let missing = usize::try_from(missing).unwrap_or(0).min(batch::MOST);
        if missing == 0 {
            return;
        }
        if self.limit_per_index().is_none() {
            let succeeded = self.pods.iter().filter(|p| pod::phase(p) == "Succeeded");
            let failed = self.pods.iter().filter(|p| self.has_failed(p));
            let left = backoff::left(succeeded.map(|p| &**p), failed.map(|p| &**p), self.now);
            if let Some(left) = left {
                plan.look_in(left);
                return;
            }
        }
        if self.is_indexed() {
            self.create_indexed(missing, plan);
        } else {
            plan.create = vec![new_pod::plain(self.job); missing];
        }
    }

    fn create_indexed(&self, missing: usize, plan: &mut Plan) {
        let mut running: BTreeSet<i64> = self.active.iter().filter_map(|p| self.index(p)).collect();
        if self.replaces_ended_only() {
            let leaving = self.pods.iter().filter(|p| pod::is_terminating(p));
            running.extend(leaving.filter_map(|p| self.index(p)));
        }
        let last = self.last_failures();
        let free = (0..self.completions().unwrap_or(0)).filter(|index| {
            !running.contains(index)
                && !self.succeeded_indexes.has(*index)
                && !self.failed_indexes.has(*index)
        });
        for index in free {
            if plan.create.len() == missing {
                break;
            }
            let failed = last.get(&index).map(|p| &**p);
            let before = self
                .limit_per_index()
                .map(|_| (failed, failed.is_some_and(|p| self.counts(p))));
            let pause = failed
                .and_then(|p| backoff::left_of_index(p, new_pod::all_failures(p) + 1, self.now));
            match pause {
                Some(pause) => plan.look_in(pause),
                None => plan.create.push(new_pod::indexed(self.job, index, before)),
            }
        }
    }

    /// Notes the pods that ended and lets them go. `ending`: with it everybody else has failed, too.
    fn note(&mut self, failing: bool, plan: &mut Plan) {
        let kept: BTreeSet<String> = if failing {
            BTreeSet::new()
        } else {
            self.last_failures()
                .values()
                .map(|p| uid(p).to_owned())
                .collect()
        };
        for p in self.pods.iter().filter(|p| is_tracked(p)) {
            let uncounted = self.noted[0].len() + self.noted[1].len();
            if pod::phase(p) == "Succeeded" {
                if !self.is_indexed() && self.is_new(p, 0) {
                    if uncounted >= MOST_UNCOUNTED {
                        continue;
                    }
                    self.noted[0].push(uid(p).to_owned());
                }
            } else if self.has_failed(p) || (failing && pod::is_deleting(p)) {
                if kept.contains(uid(p)) {
                    continue;
                }
                if self.counts(p) && self.is_new(p, 1) {
                    if uncounted >= MOST_UNCOUNTED {
                        continue;
                    }
                    self.noted[1].push(uid(p).to_owned());
                }
            } else {
                continue;
            }
            plan.release.push(p.clone());
        }
    }

    fn status(&self, plan: &Plan) -> Value {
        let mut status = json!({});
        for field in ["conditions", "startTime"] {
            if let Some(value) = self.job["status"].get(field) {
                status[field] = value.clone();
            }
        }
        let stopped = plan.discard.len() + plan.stop.len();
        let active = count(self.active.len()) + count(plan.create.len()) - count(stopped);
        set_count(&mut status, "active", active);
        let succeeded = if self.is_indexed() {
            self.succeeded
        } else {
            self.counted[0]
        };
        set_count(&mut status, "succeeded", succeeded);
        set_count(&mut status, "failed", self.counted[1]);
        let ready = self.active.iter().filter(|p| pod::is_ready(p));
        status["ready"] = count(ready.count()).into();
        status["terminating"] = self.terminating.into();
        let mut noted = json!({});
        for (uids, field) in self.noted.iter().zip(["succeeded", "failed"]) {
            if !uids.is_empty() {
                noted[field] = json!(uids);
            }
        }
        status["uncountedTerminatedPods"] = noted;
        if self.is_indexed() {
            let completed = self.succeeded_indexes.to_string();
            if !completed.is_empty() {
                status["completedIndexes"] = completed.into();
            }
            if self.limit_per_index().is_some() {
                status["failedIndexes"] = self.failed_indexes.to_string().into();
            }
        }
        status
    }
}

/// What an unfinished job needs.
pub(super) fn plan(job: &Value, pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut tally = Tally::new(job, pods, now);
    let mut plan = Plan::default();
    let mut ending = tally.ending();
    if let Some(ending) = &ending {
        let mut running = tally.active.clone();
        running.truncate(batch::MOST);
        // Who is stopped because the job failed has failed with it.
        if ending.well {
            plan.discard = running;
        } else {
            plan.stop = running;
        }
    } else {
        tally.manage(&mut plan);
        ending = completed(&tally, &plan);
        if let Some(left) = tally.deadline_in() {
            plan.look_in(left);
        }
    }
    let failing = ending.as_ref().is_some_and(|ending| !ending.well);
    tally.note(failing, &mut plan);
    let mut status = tally.status(&plan);
    if let Some(ending) = &ending {
        end(&tally, ending, &mut plan, &mut status);
    } else {
        tell_suspension(&tally, &mut plan, &mut status);
    }
    plan.status = status;
    plan
}

/// Enough succeeded, and nobody runs.
fn completed(tally: &Tally<'_>, plan: &Plan) -> Option<Ending> {
    let running = count(tally.active.len() + plan.create.len());
    let enough = match tally.completions() {
        Some(completions) => tally.succeeded >= completions,
        None => tally.succeeded > 0,
    };
    let all_discarded = plan.discard.len() == tally.active.len();
    let over = plan.create.is_empty() && (running == 0 || all_discarded);
    (enough && over).then(|| Ending {
        well: true,
        reason: "CompletionsReached".into(),
        message: "Reached expected number of succeeded pods".into(),
    })
}

/// Announces the ending; with the last pod counted it is one.
fn end(tally: &Tally<'_>, ending: &Ending, plan: &mut Plan, status: &mut Value) {
    let (announced, kind) = ending.kinds();
    conditions::set(status, ending.condition(announced, tally.now));
    let over = tally.active.is_empty()
        && tally.terminating == 0
        && plan.release.is_empty()
        && tally.noted.iter().all(Vec::is_empty);
    if !over {
        return;
    }
    conditions::set(status, ending.condition(kind, tally.now));
    if status["startTime"].is_null() {
        status["startTime"] = pod::stamp(tally.now).into();
    }
    if ending.well {
        status["completionTime"] = pod::stamp(tally.now).into();
        plan.events
            .push(("Normal", "Completed".into(), "Job completed".into()));
    } else {
        plan.events
            .push(("Warning", ending.reason.clone(), ending.message.clone()));
    }
}

/// Tells of a suspension and its end; a job starts, or starts again, when it is not suspended.
fn tell_suspension(tally: &Tally<'_>, plan: &mut Plan, status: &mut Value) {
    let now = pod::stamp(tally.now);
    let told = conditions::holds(status, "Suspended");
    let condition = |holds: &str, reason: &str, message: &str| {
        let mut condition = conditions::new("Suspended", holds, reason, message, tally.now);
        condition["lastProbeTime"] = now.clone().into();
        condition
    };
    match (tally.is_suspended(), told) {
        (true, false) => {
            conditions::set(status, condition("True", "JobSuspended", "Job suspended"));
            plan.events
                .push(("Normal", "Suspended".into(), "Job suspended".into()));
        }
        (false, true) => {
            conditions::set(status, condition("False", "JobResumed", "Job resumed"));
            plan.events
                .push(("Normal", "Resumed".into(), "Job resumed".into()));
            status["startTime"] = now.into();
        }
        (false, false) if status["startTime"].is_null() => status["startTime"] = now.into(),
        _ => {}
    }
}
