//! A job's pods, counted.

use super::{
    super::pod,
    failure_policy::{self, Verdict},
    indexes::{self, Indexes},
    is_tracked, new_pod, uid,
};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// As the fields of a status count.
pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A job and its pods, counted.
pub(super) struct Tally<'t> {
    pub(super) job: &'t Value,
    pub(super) now: Timestamp,
    pub(super) pods: &'t [Arc<Value>],
    pub(super) active: Vec<Arc<Value>>,
    pub(super) terminating: i64,
    /// Counted before, and noted pods whose finalizer is gone since.
    pub(super) counted: [i64; 2],
    /// UIDs that are noted and still carry the finalizer: of pods that succeeded, and that failed.
    pub(super) noted: [Vec<String>; 2],
    /// What all in all succeeded and failed.
    pub(super) succeeded: i64,
    pub(super) failed: i64,
    pub(super) succeeded_indexes: Indexes,
    pub(super) failed_indexes: Indexes,
}

impl<'t> Tally<'t> {
    pub(super) fn new(job: &'t Value, pods: &'t [Arc<Value>], now: Timestamp) -> Self {
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

    pub(super) fn spec(&self, field: &str) -> &'t Value {
        &self.job["spec"][field]
    }

    pub(super) fn is_indexed(&self) -> bool {
        *self.spec("completionMode") == "Indexed"
    }

    pub(super) fn completions(&self) -> Option<i64> {
        self.spec("completions").as_i64()
    }

    pub(super) fn is_suspended(&self) -> bool {
        *self.spec("suspend") == true
    }

    pub(super) fn limit_per_index(&self) -> Option<i64> {
        self.spec("backoffLimitPerIndex").as_i64()
    }

    /// Whether a pod carries the finalizer and is not noted yet.
    pub(super) fn is_new(&self, p: &Value, which: usize) -> bool {
        is_tracked(p) && !self.noted[which].iter().any(|noted| noted == uid(p))
    }

    /// Whether a pod failed. One that is being deleted has, unless only those that ended are replaced.
    pub(super) fn has_failed(&self, p: &Value) -> bool {
        match pod::phase(p) {
            "Failed" => true,
            "Succeeded" => false,
            "Pending" => pod::is_deleting(p),
            _ => pod::is_deleting(p) && !self.replaces_ended_only(),
        }
    }

    pub(super) fn replaces_ended_only(&self) -> bool {
        *self.spec("podReplacementPolicy") == "Failed"
    }

    pub(super) fn verdict(&self, p: &Value) -> Verdict {
        failure_policy::judge(self.job, p)
    }

    pub(super) fn counts(&self, p: &Value) -> bool {
        self.verdict(p) != Verdict::Ignore
    }

    /// The index of a pod, when it is one of this job's.
    pub(super) fn index(&self, p: &Value) -> Option<i64> {
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
    pub(super) fn last_failures(&self) -> BTreeMap<i64, Arc<Value>> {
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
}
