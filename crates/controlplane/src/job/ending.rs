//! How a job ends: by its policies, its limits, or because enough succeeded.

use super::{
    super::{condition as conditions, pod},
    failure_policy::Verdict,
    indexes::Indexes,
    tally::{Tally, count},
};
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

/// How a job ends: the condition that announces it, with reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// Well; otherwise it failed.
    pub(super) well: bool,
    pub(super) reason: String,
    pub(super) message: String,
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
    pub(super) fn kinds(&self) -> (&'static str, &'static str) {
        if self.well {
            ("SuccessCriteriaMet", "Complete")
        } else {
            ("FailureTarget", "Failed")
        }
    }

    pub(super) fn condition(&self, kind: &str, now: Timestamp) -> Value {
        let mut condition = conditions::new(kind, "True", &self.reason, &self.message, now);
        condition["lastProbeTime"] = pod::stamp(now).into();
        condition
    }
}

impl Tally<'_> {
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

    pub(super) fn ending(&self) -> Option<Ending> {
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
    pub(super) fn deadline_in(&self) -> Option<Duration> {
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
}
