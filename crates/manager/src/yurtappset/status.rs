//! What is told of a set: conditions, counts, and how each pool is. Always written, also when something failed.

use super::{
    plan::{Act, Difference, Place, some, waits, was_ready},
    rollout::Held,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use yurt_api::names::{conditions, labels};
use yurt_controller::{condition, fields::items};

/// How a pool is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PoolReport {
    pub(crate) pool: String,
    /// Its workload, as it is.
    pub(crate) workload: Option<Value>,
    pub(crate) phase: &'static str,
    pub(crate) message: String,
    /// Whether its workload is of what is wanted now.
    pub(crate) is_current: bool,
    pub(crate) is_updated: bool,
    pub(crate) is_ready: bool,
    pub(crate) replicas: i64,
}

impl PoolReport {
    /// Of a place after what was done in it; `trouble`: the phase and reason where that failed; `told`: the status before.
    pub(crate) fn of(
        place: &Place,
        act: Act,
        difference: Difference,
        trouble: Option<(&'static str, String)>,
        held: Option<&Held>,
        told: &Value,
    ) -> Self {
        let child = place.child.as_ref();
        let is_current = trouble.is_none()
            && child.is_some()
            && matches!(
                (act, difference),
                (Act::Create | Act::Update, _) | (Act::Leave, Difference::None)
            );
        let fault = place.rendered.as_ref().err();
        let fault = fault.map(|fault| ("Failed", fault.to_string()));
        let (phase, message) = match (trouble.or(fault), child) {
            (Some(trouble), _) => trouble,
            (None, None) => ("Waiting", "its workload is not there yet".into()),
            (None, Some(child)) if child.is_deleting() => {
                ("Deleting", "a new workload is made when it is gone".into())
            }
            (None, Some(_)) if !is_current => ("Waiting", waits(held)),
            (None, Some(child)) if child.is_healthy() => ("Ready", String::new()),
            (None, Some(child)) if was_ready(child, told) => ("NotReady", String::new()),
            (None, Some(_)) => ("Updating", String::new()),
        };
        Self {
            pool: place.pool.name.clone(),
            workload: child.map(|child| Value::clone(&child.object)),
            phase,
            message,
            is_current,
            is_updated: is_current && child.is_some_and(super::child::Child::is_updated),
            is_ready: child.is_some_and(|child| {
                child.replicas() > 0 && child.count("readyReplicas") >= child.replicas()
            }),
            replicas: child.map_or(0, |child| child.replicas()),
        }
    }

    fn number(&self, field: &str) -> i64 {
        let workload = self.workload.as_ref();
        workload.map_or(0, |w| w["status"][field].as_i64().unwrap_or(0))
    }

    fn to_json(&self) -> Value {
        let mut report = json!({"pool": self.pool, "phase": self.phase});
        if !self.message.is_empty() {
            report["message"] = (*self.message).into();
        }
        if let Some(workload) = &self.workload {
            report["workload"] = workload["metadata"]["name"].clone();
            report["replicas"] = self.replicas.into();
            for field in ["readyReplicas", "updatedReplicas"] {
                report[field] = self.number(field).into();
            }
            let pods = &workload["spec"]["template"]["metadata"]["labels"];
            if let Some(revision) = pods[labels::CONTROLLER_REVISION_HASH].as_str() {
                report["revision"] = revision.into();
            }
        }
        report
    }

    /// As v1alpha1 kinds tell it.
    pub(crate) fn summary(&self) -> Option<Value> {
        let workload = self.workload.as_ref()?;
        let available = condition::find(&workload["status"], "Available");
        let available = available.and_then(|c| c["status"].as_str());
        Some(json!({
            "workloadName": workload["metadata"]["name"],
            "replicas": self.number("replicas"), "readyReplicas": self.number("readyReplicas"),
            "availableCondition": available.unwrap_or_default(),
        }))
    }
}

/// What one look at a set came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Why nothing could be done for any pool: reason and message.
    pub(crate) fault: Option<(&'static str, String)>,
    pub(crate) revision: String,
    pub(crate) collisions: Option<i64>,
    pub(crate) pools: Vec<PoolReport>,
    /// What could not be made, changed, deleted.
    pub(crate) creating: Vec<String>,
    pub(crate) updating: Vec<String>,
    pub(crate) deleting: Vec<String>,
    pub(crate) held: Option<Held>,
    /// The revision that failed, and the one that all pools are taken back to.
    pub(crate) rolled_back: Option<(String, String)>,
    /// Pools whose replicas tweaks say.
    pub(crate) sized: Vec<String>,
    /// Whether no pool is selected; not known when there is a fault.
    pub(crate) overrider: Option<String>,
    /// `Deployment` or `StatefulSet`.
    pub(crate) kind: &'static str,
}

/// A condition: status, reason, message.
type Told = (bool, &'static str, String);

impl Report {
    fn found(&self) -> Told {
        match (&self.fault, self.pools.len()) {
            (Some((reason, message)), 0) => (false, reason, message.clone()),
            (_, 0) => {
                let message = "no NodePool is selected by spec.pools or spec.nodepoolSelector";
                (false, "NoFindPools", message.into())
            }
            (_, count) => {
                let names: Vec<String> = self.pools.iter().map(|p| p.pool.clone()).collect();
                (
                    true,
                    "FindPools",
                    format!("{count} pools: {}", some(&names)),
                )
            }
        }
    }

    fn updated(&self) -> Told {
        let behind: Vec<String> = self
            .pools
            .iter()
            .filter(|pool| !pool.is_current)
            .map(|pool| pool.pool.clone())
            .collect();
        if let Some((reason, message)) = &self.fault {
            return (false, reason, message.clone());
        }
        if !self.updating.is_empty() {
            return (false, "UpdateWorkloadError", some(&self.updating));
        }
        if let Some((failed, good)) = &self.rolled_back {
            let message = format!(
                "revision {failed} failed, all pools are taken back to {good}; change the spec to go on"
            );
            return (false, "RolledBack", message);
        }
        match &self.held {
            Some(Held::Paused) => {
                let message = format!("the rollout is paused before {}", some(&behind));
                (false, "RolloutPaused", message)
            }
            Some(held @ Held::Overdue(_)) => {
                let message = format!("{}; {} wait", waits(Some(held)), some(&behind));
                (false, "ProgressDeadlineExceeded", message)
            }
            Some(Held::Turn) => {
                let message = format!("still to be updated: {}", some(&behind));
                (false, "RolloutInProgress", message)
            }
            None if behind.is_empty() => (true, "AllWorkloadsUpdated", String::new()),
            None => {
                let message = format!("still to be updated: {}", some(&behind));
                (false, "RolloutInProgress", message)
            }
        }
    }

    fn done(errors: &[String], good: &'static str, bad: &'static str) -> Told {
        if errors.is_empty() {
            (true, good, String::new())
        } else {
            (false, bad, some(errors))
        }
    }

    fn ready(&self) -> Told {
        let workloads = || self.pools.iter().filter(|pool| pool.workload.is_some());
        let unready: Vec<String> = workloads()
            .filter(|pool| !pool.is_ready && pool.replicas > 0)
            .map(|pool| pool.pool.clone())
            .collect();
        if workloads().next().is_none() {
            (false, "NoWorkloadFound", "there is no workload".into())
        } else if unready.is_empty() {
            (true, "AllWorkloadsReady", String::new())
        } else {
            let message = format!("not ready: {}", some(&unready));
            (false, "NotAllWorkloadsReady", message)
        }
    }

    /// The conditions of a YurtAppSet.
    fn of_set(&self) -> [(&'static str, Told); 5] {
        let created = Self::done(&self.creating, "AllWorkloadsCreated", "CreateWorkloadError");
        let deleted = Self::done(&self.deleting, "NoWorkloadToDelete", "DeleteWorkloadError");
        [
            (conditions::POOL_FOUND, self.found()),
            (conditions::APP_DISPATCHED, created),
            (conditions::APP_UPDATED, self.updated()),
            (conditions::APP_DELETED, deleted),
            (conditions::APP_READY, self.ready()),
        ]
    }

    /// The conditions of a YurtAppDaemon.
    fn of_daemon(&self) -> [(&'static str, Told); 3] {
        let made = match self.found() {
            (true, ..) => Self::done(&self.creating, "AllWorkloadsCreated", "CreateWorkloadError"),
            none => none,
        };
        let errors: Vec<String> = [&self.creating, &self.updating, &self.deleting]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let failed = match &self.fault {
            Some((reason, message)) => (true, *reason, message.clone()),
            None if errors.is_empty() => (false, "NoFailure", String::new()),
            None => (true, "WorkloadError", some(&errors)),
        };
        [
            (conditions::WORKLOAD_PROVISIONED, made),
            (conditions::WORKLOAD_UPDATED, self.updated()),
            (conditions::WORKLOAD_FAILURE, failed),
        ]
    }

    /// The status of a YurtAppSet after `known`.
    pub(crate) fn set_status(&self, object: &Value, now: Timestamp) -> Value {
        let count = |is: fn(&PoolReport) -> bool| self.pools.iter().filter(|p| is(p)).count();
        let free = self.pools.iter().filter(|p| !self.sized.contains(&p.pool));
        let replicas: i64 = free.map(|pool| pool.number("replicas")).sum();
        let pools: Vec<Value> = self.pools.iter().map(PoolReport::to_json).collect();
        let mut status = self.common(object, &self.of_set(), now);
        status.extend([
            (
                "totalWorkloads".into(),
                count(|p| p.workload.is_some()).into(),
            ),
            ("readyWorkloads".into(), count(|p| p.is_ready).into()),
            ("updatedWorkloads".into(), count(|p| p.is_updated).into()),
            ("replicas".into(), replicas.into()),
            (
                "selector".into(),
                self.selector(object).map_or(Value::Null, Value::String),
            ),
            ("pools".into(), pools.into()),
        ]);
        Value::Object(status)
    }

    /// The status of a YurtAppDaemon.
    pub(crate) fn daemon_status(&self, object: &Value, now: Timestamp) -> Value {
        let names: Vec<&str> = self.pools.iter().map(|pool| &*pool.pool).collect();
        let summaries: Vec<Value> = self.pools.iter().filter_map(PoolReport::summary).collect();
        let mut status = self.common(object, &self.of_daemon(), now);
        status.extend([
            ("templateType".into(), self.kind.into()),
            ("nodepools".into(), json!(names)),
            ("workloadSummary".into(), summaries.into()),
            ("overriderRef".into(), json!(self.overrider)),
        ]);
        Value::Object(status)
    }

    fn common(
        &self,
        object: &Value,
        told: &[(&'static str, Told)],
        now: Timestamp,
    ) -> Map<String, Value> {
        let known = &object["status"];
        let revision = match &*self.revision {
            "" => known["currentRevision"].as_str().unwrap_or_default(),
            revision => revision,
        };
        let collisions = match self.collisions {
            Some(count) => count.into(),
            None => known["collisionCount"].clone(),
        };
        Map::from_iter([
            (
                "observedGeneration".into(),
                object["metadata"]["generation"].clone(),
            ),
            ("currentRevision".into(), revision.into()),
            ("collisionCount".into(), collisions),
            ("conditions".into(), conditions(known, told, now).into()),
        ])
    }

    /// Selects the pods whose number the scale subresource tells.
    fn selector(&self, object: &Value) -> Option<String> {
        let template = &object["spec"]["workload"]["workloadTemplate"];
        let selector = ["deploymentTemplate", "statefulSetTemplate"]
            .iter()
            .map(|field| &template[field]["spec"]["selector"])
            .find(|selector| selector.is_object())?;
        let labels = selector["matchLabels"].as_object().into_iter().flatten();
        let mut terms: Vec<String> = labels
            .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
            .collect();
        for expression in items(&selector["matchExpressions"]) {
            let key = expression["key"].as_str()?;
            let values: Vec<&str> = items(&expression["values"])
                .filter_map(Value::as_str)
                .collect();
            terms.push(match expression["operator"].as_str()? {
                "In" => format!("{key} in ({})", values.join(",")),
                "NotIn" => format!("{key} notin ({})", values.join(",")),
                "Exists" => key.to_owned(),
                "DoesNotExist" => format!("!{key}"),
                _ => return None,
            });
        }
        if !self.sized.is_empty() {
            terms.push(format!(
                "{} notin ({})",
                labels::WORKLOAD_POOL,
                self.sized.join(",")
            ));
        }
        Some(terms.join(","))
    }
}

/// The conditions, in order, behind those of others; a time changes with the status only.
fn conditions(known: &Value, told: &[(&'static str, Told)], now: Timestamp) -> Vec<Value> {
    let ours = |condition: &&Value| told.iter().any(|(kind, _)| condition["type"] == *kind);
    let others = items(&known["conditions"])
        .filter(|condition| !ours(condition))
        .cloned();
    let told = told.iter().map(|(kind, (holds, reason, message))| {
        let status = if *holds { "True" } else { "False" };
        let mut next = condition::new(kind, status, reason, message, now);
        if let Some(before) = condition::find(known, kind).filter(|c| c["status"] == status)
            && before["lastTransitionTime"].is_string()
        {
            next["lastTransitionTime"] = before["lastTransitionTime"].clone();
        }
        next
    });
    others.chain(told).collect()
}

/// Whether `status` says nothing new beside `known`.
pub(crate) fn is_told(known: &Value, status: &Value) -> bool {
    let mut fields = status.as_object().into_iter().flatten();
    fields.all(|(field, value)| known[field] == *value)
}

/// What became worse between two statuses: the reason and message of an event each.
pub(crate) fn news(known: &Value, status: &Value) -> Vec<(String, String)> {
    let is_bad = |condition: &Value| {
        let bad = if condition["type"] == conditions::WORKLOAD_FAILURE {
            "True"
        } else {
            "False"
        };
        // Waiting is no trouble.
        let quiet = [
            "NotAllWorkloadsReady",
            "NoWorkloadFound",
            "RolloutInProgress",
            "RolloutPaused",
        ];
        condition["status"] == bad && !quiet.iter().any(|reason| condition["reason"] == *reason)
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let is_new = |next: &Value| {
        let before = condition::find(known, next["type"].as_str().unwrap_or_default());
        before.is_none_or(|before| {
            ["status", "reason", "message"]
                .iter()
                .any(|field| before[field] != next[field])
        })
    };
    let mut news = Vec::new();
    for next in items(&status["conditions"]).filter(|next| is_bad(next) && is_new(next)) {
        let reason = match next["reason"].as_str().unwrap_or_default() {
            "CreateWorkloadError" => "Failed CreateWorkload".into(),
            "UpdateWorkloadError" => "Failed UpdateWorkload".into(),
            "DeleteWorkloadError" => "Failed DeleteWorkload".into(),
            reason => reason.to_owned(),
        };
        let message = text(&next["message"]);
        // One event for what two conditions say.
        if !news.contains(&(reason.clone(), message.clone())) {
            news.push((reason, message));
        }
    }
    news
}
