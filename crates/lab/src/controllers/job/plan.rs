//! What a job needs next, as a function of it and its pods.

use super::{
    super::{condition as conditions, pod, replicaset::ranking},
    backoff,
    failure_policy::{self, Verdict},
    indexes::{self, Indexes},
    is_tracked, new_pod, uid,
};
use crate::controllers::batch;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn set_count(status: &mut Value, field: &str, count: i64) {
    if count > 0 {
        status[field] = count.into();
    } else if let Some(status) = status.as_object_mut() {
        status.remove(field);
    }
}

/// How a job ends: the condition that announces it, with reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ending {
    /// Well; otherwise it failed.
    well: bool,
    reason: String,
    message: String,
}

impl Ending {
    fn failed(reason: &str, message: &str) -> Self {
        Self {
            well: false,
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// The condition that says so while pods still run or are uncounted, and the one at the end.
    fn kinds(&self) -> (&'static str, &'static str) {
        if self.well {
            ("SuccessCriteriaMet", "Complete")
        } else {
            ("FailureTarget", "Failed")
        }
    }

    fn condition(&self, kind: &str, now: Timestamp) -> Value {
        let mut condition = conditions::new(kind, "True", &self.reason, &self.message, now);
        condition["lastProbeTime"] = pod::stamp(now).into();
        condition
    }
}

/// A job and its pods, counted.
struct Tally<'t> {
    job: &'t Value,
    now: Timestamp,
    pods: &'t [Arc<Value>],
    active: Vec<Arc<Value>>,
    terminating: i64,
    /// Counted before, and noted pods whose finalizer is gone since.
    counted: [i64; 2],
    /// UIDs that are noted and still carry the finalizer: of pods that succeeded, and that failed.
    noted: [Vec<String>; 2],
    /// What all in all succeeded and failed.
    succeeded: i64,
    failed: i64,
    succeeded_indexes: Indexes,
    failed_indexes: Indexes,
}

impl<'t> Tally<'t> {
    fn new(job: &'t Value, pods: &'t [Arc<Value>], now: Timestamp) -> Self {
        let status = &job["status"];
        let tracked: BTreeSet<&str> = pods
            .iter()
            .filter(|p| is_tracked(p))
            .map(|p| uid(p))
            .collect();
        let (mut counted, mut noted) = ([0, 0], [Vec::new(), Vec::new()]);
        for (at, field) in ["succeeded", "failed"].iter().enumerate() {
            counted[at] = status[*field].as_i64().unwrap_or(0);
            let uids = status["uncountedTerminatedPods"][*field].as_array();
            for uid in uids.into_iter().flatten().filter_map(Value::as_str) {
                if tracked.contains(uid) {
                    noted[at].push(uid.to_owned());
                } else {
                    counted[at] += 1;
                }
            }
        }
        let mut tally = Self {
            job,
            now,
            pods,
            active: pods.iter().filter(|p| pod::is_active(p)).cloned().collect(),
            terminating: count(pods.iter().filter(|p| pod::is_terminating(p)).count()),
            counted,
            noted,
            succeeded: 0,
            failed: 0,
            succeeded_indexes: Indexes::default(),
            failed_indexes: Indexes::default(),
        };
        let new_failures = pods
            .iter()
            .filter(|p| tally.is_new(p, 1) && tally.has_failed(p) && tally.counts(p));
        let new_failures = count(new_failures.count());
        tally.failed = tally.counted[1] + count(tally.noted[1].len()) + new_failures;
        if tally.is_indexed() {
            tally.succeeded_indexes = tally.all_succeeded_indexes();
            tally.failed_indexes = tally.all_failed_indexes();
            tally.succeeded = tally.succeeded_indexes.count();
        } else {
            let new = pods
                .iter()
                .filter(|p| tally.is_new(p, 0) && pod::phase(p) == "Succeeded");
            let new = count(new.count());
            tally.succeeded = tally.counted[0] + count(tally.noted[0].len()) + new;
        }
        tally
    }

    fn spec(&self, field: &str) -> &'t Value {
        &self.job["spec"][field]
    }

    fn is_indexed(&self) -> bool {
        *self.spec("completionMode") == "Indexed"
    }

    fn completions(&self) -> Option<i64> {
        self.spec("completions").as_i64()
    }

    fn is_suspended(&self) -> bool {
        *self.spec("suspend") == true
    }

    fn limit_per_index(&self) -> Option<i64> {
        self.spec("backoffLimitPerIndex").as_i64()
    }

    /// Whether a pod carries the finalizer and is not noted yet.
    fn is_new(&self, p: &Value, which: usize) -> bool {
        is_tracked(p) && !self.noted[which].iter().any(|noted| noted == uid(p))
    }

    /// Whether a pod failed. One that is being deleted has, unless only those that ended are replaced.
    fn has_failed(&self, p: &Value) -> bool {
        match pod::phase(p) {
            "Failed" => true,
            "Succeeded" => false,
            "Pending" => pod::is_deleting(p),
            _ => pod::is_deleting(p) && !self.replaces_ended_only(),
        }
    }

    fn replaces_ended_only(&self) -> bool {
        *self.spec("podReplacementPolicy") == "Failed"
    }

    fn verdict(&self, p: &Value) -> Verdict {
        failure_policy::judge(self.job, p)
    }

    fn counts(&self, p: &Value) -> bool {
        self.verdict(p) != Verdict::Ignore
    }

    /// The index of a pod, when it is one of this job's.
    fn index(&self, p: &Value) -> Option<i64> {
        let index = indexes::of(p)?;
        (0..self.completions()?).contains(&index).then_some(index)
    }

    fn all_succeeded_indexes(&self) -> Indexes {
        let completions = self.completions().unwrap_or(0);
        let known = self.job["status"]["completedIndexes"]
            .as_str()
            .unwrap_or_default();
        let mut all = Indexes::parse(known, completions);
        let new = self
            .pods
            .iter()
            .filter(|p| pod::phase(p) == "Succeeded" && is_tracked(p));
        all.0.extend(new.filter_map(|p| self.index(p)));
        all
    }

    fn all_failed_indexes(&self) -> Indexes {
        let Some(limit) = self.limit_per_index() else {
            return Indexes::default();
        };
        let completions = self.completions().unwrap_or(0);
        let known = self.job["status"]["failedIndexes"]
            .as_str()
            .unwrap_or_default();
        let mut all = Indexes::parse(known, completions);
        for p in self
            .pods
            .iter()
            .filter(|p| is_tracked(p) && self.has_failed(p))
        {
            let verdict = self.verdict(p);
            let over = new_pod::failures(p) >= limit && verdict != Verdict::Ignore;
            if let Some(index) = self
                .index(p)
                .filter(|_| over || verdict == Verdict::FailIndex)
            {
                all.0.insert(index);
            }
        }
        all
    }

    /// By index, the failed pod that tells how often the index failed. It stays until the next pod of the index is there.
    fn last_failures(&self) -> BTreeMap<i64, Arc<Value>> {
        let mut last: BTreeMap<i64, Arc<Value>> = BTreeMap::new();
        if self.limit_per_index().is_none() {
            return last;
        }
        let running: BTreeSet<i64> = self.active.iter().filter_map(|p| self.index(p)).collect();
        for p in self
            .pods
            .iter()
            .filter(|p| is_tracked(p) && self.has_failed(p))
        {
            let Some(index) = self.index(p) else {
                continue;
            };
            let settled = running.contains(&index)
                || self.succeeded_indexes.has(index)
                || self.failed_indexes.has(index);
            let newer = last
                .get(&index)
                .is_none_or(|known| new_pod::all_failures(known) <= new_pod::all_failures(p));
            if !settled && newer {
                last.insert(index, p.clone());
            }
        }
        last
    }

    /// The ending that was announced before.
    fn announced(&self) -> Option<Ending> {
        [("SuccessCriteriaMet", true), ("FailureTarget", false)]
            .iter()
            .find_map(|(kind, well)| {
                let status = &self.job["status"];
                let condition = conditions::find(status, kind).filter(|c| c["status"] == "True")?;
                let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
                Some(Ending {
                    well: *well,
                    reason: text("reason"),
                    message: text("message"),
                })
            })
    }

    fn ending(&self) -> Option<Ending> {
        self.announced()
            .or_else(|| self.failed_by_policy())
            .or_else(|| self.failed_by_limits())
            .or_else(|| self.failed_by_indexes())
            .or_else(|| self.succeeded_by_policy())
    }

    fn failed_by_policy(&self) -> Option<Ending> {
        let mut failed = self.pods.iter().filter(|p| self.has_failed(p));
        failed.find_map(|p| match self.verdict(p) {
            Verdict::FailJob(message) => Some(Ending::failed("PodFailurePolicy", &message)),
            _ => None,
        })
    }

    fn failed_by_limits(&self) -> Option<Ending> {
        let limit = self.spec("backoffLimit").as_i64().unwrap_or(6);
        if self.failed > limit || self.restarted_too_often(limit) {
            let message = "Job has reached the specified backoff limit";
            return Some(Ending::failed("BackoffLimitExceeded", message));
        }
        if self.deadline_in().is_some_and(|left| left.is_zero()) {
            let message = "Job was active longer than specified deadline";
            return Some(Ending::failed("DeadlineExceeded", message));
        }
        None
    }

    /// Containers that are restarted in place count as failures of pods.
    fn restarted_too_often(&self, limit: i64) -> bool {
        if self.job["spec"]["template"]["spec"]["restartPolicy"] != "OnFailure" {
            return false;
        }
        let running = self
            .pods
            .iter()
            .filter(|p| matches!(pod::phase(p), "Pending" | "Running"));
        let containers = running.flat_map(|p| {
            ["initContainerStatuses", "containerStatuses"]
                .iter()
                .filter_map(|kind| p["status"][*kind].as_array())
                .flatten()
        });
        let restarts: i64 = containers.filter_map(|c| c["restartCount"].as_i64()).sum();
        if limit == 0 {
            restarts > 0
        } else {
            restarts >= limit
        }
    }

    /// In how long the job will have run for too long.
    fn deadline_in(&self) -> Option<Duration> {
        let most = self
            .spec("activeDeadlineSeconds")
            .as_i64()
            .filter(|_| !self.is_suspended())?;
        let started = pod::instant(&self.job["status"]["startTime"])?;
        let left = started.as_second().saturating_add(most) - self.now.as_second();
        Some(Duration::from_secs(left.max(0).unsigned_abs()))
    }

    fn failed_by_indexes(&self) -> Option<Ending> {
        let failed = self.failed_indexes.count();
        if let Some(most) = self.spec("maxFailedIndexes").as_i64()
            && failed > most
        {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Ending::failed("MaxFailedIndexesExceeded", message));
        }
        let all = self.succeeded_indexes.count() + failed >= self.completions()?;
        (failed > 0 && all).then(|| Ending::failed("FailedIndexes", "Job has failed indexes"))
    }

    fn succeeded_by_policy(&self) -> Option<Ending> {
        let rules = self.spec("successPolicy")["rules"]
            .as_array()
            .filter(|_| self.is_indexed())?;
        let met = rules.iter().position(|rule| {
            let least = rule["succeededCount"].as_i64();
            match rule["succeededIndexes"].as_str() {
                Some(indexes) => {
                    let named = Indexes::parse(indexes, self.completions().unwrap_or(0));
                    let succeeded = named.0.iter().filter(|i| self.succeeded_indexes.has(**i));
                    count(succeeded.count()) >= least.unwrap_or(named.count())
                }
                None => least.is_some_and(|least| self.succeeded_indexes.count() >= least),
            }
        })?;
        Some(Ending {
            well: true,
            reason: "SuccessPolicy".into(),
            message: format!("Matched rules at index {met}"),
        })
    }

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
