//! What is to be done for a set: which workloads to make, change, leave and delete. Pure.

use super::{
    child::{Child, Record, Size, covers, fitted},
    pools::Pool,
    render::{Fault, Rendered},
    rollout::{Held, Stage, Turn},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use yurt_api::names::labels;
use yurt_controller::fields::items;

/// What is to be done in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Make its workload.
    Create,
    /// Apply what is rendered.
    Update,
    /// Only set the replicas: the rest waits for its turn.
    Scale(i64),
    /// All is as it is to be, or waits for its turn.
    Leave,
    /// Wait until a workload that is being deleted is gone.
    Await,
    /// Nothing can be done before the set is changed.
    Refuse,
}

/// A pool of a set.
#[derive(Debug)]
pub(crate) struct Place {
    /// The pool.
    pub(crate) pool: Pool,
    /// Its workload.
    pub(crate) child: Option<Child>,
    /// What that is to be.
    pub(crate) rendered: Result<Rendered, Fault>,
}

/// How a workload differs from what is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Not at all.
    None,
    /// Its pods would be replaced, or may be.
    Pods,
    /// In what replaces no pods, as far as the set knows.
    Rest,
}

impl Place {
    /// How its workload differs. `is_settled` says that the server knows no difference of the spec, whatever it looks like.
    pub(crate) fn difference(&self, is_settled: impl Fn(&Child, &Rendered) -> bool) -> Difference {
        let (Some(child), Ok(rendered)) = (&self.child, &self.rendered) else {
            return Difference::None;
        };
        let Some(record) = &child.record else {
            return Difference::Pods;
        };
        if record.template != rendered.template {
            return Difference::Pods;
        }
        let sized = match child.size(rendered.replicas) {
            Size::Ours(wanted) => {
                wanted == child.replicas() && record.replicas == rendered.replicas
            }
            Size::Theirs(_) | Size::Unsaid => record.replicas == rendered.replicas,
            Size::Contested => false,
        };
        let as_written = || {
            let wanted = fitted(rendered, &child.object, true);
            let wanted = labelled(wanted, &record.revision);
            covers(&child.object["metadata"], &wanted["metadata"])
                && (covers(&child.object["spec"], &wanted["spec"]) || is_settled(child, rendered))
        };
        let same = record.workload == rendered.workload && sized && as_written();
        if same {
            Difference::None
        } else {
            Difference::Rest
        }
    }

    /// How far it is, by what the status told of it last: a pool that was ready since its pods were replaced is not waited for when
    /// it is not any more.
    pub(crate) fn stage(&self, difference: Difference, told: &Value) -> Stage {
        let Some(child) = &self.child else {
            return Stage::Settled;
        };
        let since = child.record.as_ref().and_then(|record| record.since);
        let since = since.and_then(|since| Timestamp::from_second(since).ok());
        match (difference, since) {
            (Difference::Pods, _) => Stage::Behind,
            (_, Some(since)) if !child.is_healthy() && !was_ready(child, told) => {
                Stage::Underway(since)
            }
            _ => Stage::Settled,
        }
    }

    /// What is to be done, given whose turn it is.
    pub(crate) fn act(&self, difference: Difference, turn: &Turn) -> Act {
        let (child, rendered) = match (&self.child, &self.rendered) {
            (Some(child), _) if child.is_deleting() => return Act::Await,
            (_, Err(_)) => return Act::Refuse,
            (None, Ok(_)) => return Act::Create,
            (Some(child), Ok(rendered)) => (child, rendered),
        };
        match difference {
            Difference::None => Act::Leave,
            Difference::Rest => Act::Update,
            Difference::Pods if turn.go.contains(&self.pool.name) => Act::Update,
            Difference::Pods => match (&child.record, rendered.replicas) {
                (Some(record), Some(wanted)) if record.replicas != Some(wanted) => {
                    Act::Scale(wanted)
                }
                _ => Act::Leave,
            },
        }
    }
}

fn labelled(mut wanted: Value, revision: &str) -> Value {
    wanted["metadata"]["labels"][labels::CONTROLLER_REVISION_HASH] = revision.into();
    wanted["spec"]["template"]["metadata"]["labels"][labels::CONTROLLER_REVISION_HASH] =
        revision.into();
    wanted
}

/// Whether a status told of a workload that it was ready with the template that it has.
pub(crate) fn was_ready(child: &Child, told: &Value) -> bool {
    let entry = items(&told["pools"]).find(|entry| entry["pool"] == *child.pool);
    entry.is_some_and(|entry| {
        let phase = entry["phase"].as_str();
        entry["revision"].as_str() == child.revision()
            && matches!(phase, Some("Ready" | "NotReady"))
    })
}

/// The merge patch of [`Act::Scale`].
pub(crate) fn scaling(record: &Record, replicas: i64) -> Value {
    let record = Record {
        replicas: Some(replicas),
        scaled: None,
        ..record.clone()
    };
    json!({"metadata": {"annotations": {yurt_api::names::annotations::RENDERED: record.to_text()}}, "spec": {"replicas": replicas}})
}

/// Why a workload is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its pool is not selected, or is gone.
    PoolGone,
    /// Its pool has another one that is kept.
    Duplicate,
}

/// The workload of each pool, and those that are to go. Of several of a pool the readiest is kept, then the oldest.
pub(crate) fn placed(
    children: Vec<Child>,
    selected: impl Fn(&str) -> bool,
) -> (BTreeMap<String, Child>, Vec<(Child, Reason)>) {
    let mut kept: BTreeMap<String, Child> = BTreeMap::new();
    let mut going = Vec::new();
    let worth = |child: &Child| {
        let created = child.object["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let ready = std::cmp::Reverse(child.count("readyReplicas"));
        (child.is_deleting(), ready, created, child.name().to_owned())
    };
    let mut children: Vec<_> = children
        .into_iter()
        .map(|child| (worth(&child), child))
        .collect();
    children.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (_, child) in children {
        if !selected(&child.pool) {
            going.push((child, Reason::PoolGone));
        } else if kept.contains_key(&child.pool) {
            going.push((child, Reason::Duplicate));
        } else {
            kept.insert(child.pool.clone(), child);
        }
    }
    going.retain(|(child, _)| !child.is_deleting());
    (kept, going)
}

/// Why a pool that is behind waits, for people.
pub(crate) fn waits(held: Option<&Held>) -> String {
    match held {
        Some(Held::Paused) => "the rollout is paused".into(),
        Some(Held::Overdue(pools)) => {
            format!("{} did not become ready in time", some(pools))
        }
        _ => "other pools are updated first".into(),
    }
}

/// The first of many.
pub(crate) fn some(texts: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = texts
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match texts.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
