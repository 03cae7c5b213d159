//! `daemon-pod-updater-controller` of OpenYurt: DaemonSets with the strategy `OnDelete` and the annotation
//! `apps.openyurt.io/update-strategy`. With `OTA` each pod says whether it is of an older template, and the owner of its node decides;
//! with `AdvancedRollingUpdate` (or `Auto`, as it was called) old pods are deleted a few at a time, past nodes that are not ready.
//!
//! The present template is that of the newest ControllerRevision: its hash is the daemon set controller's own affair.

mod rolling;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{CONTROLLER_REVISIONS, DAEMON_SETS, PODS},
    condition, controller_of, pod,
    presence::{self, Presence},
    revision,
    told::Told,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use yurt_api::names::{
    annotations::{TEMPLATE_GENERATION, UPDATE_STRATEGY},
    conditions::{POD_NEED_UPGRADE, REVISION_PREFIX},
};
use yurt_controller::{pod_control::PodControl, policy::Rule};

/// The most pods that are written or deleted in one look, as in the daemon set controller.
const BURST: usize = 250;
/// Before the next look, where one was not enough.
const PAUSE: Duration = Duration::from_millis(50);
/// The label of a daemon's pod with the generation of its template.
const GENERATION_LABEL: &str = "pod-template-generation";

pub(crate) const ENTRY: Entry = Entry::of::<DaemonPodUpdater>(
    "daemonpodupdater",
    &[
        Rule::new("", &["pods"], &["delete"]),
        Rule::new("", &["pods/status"], &["patch"]),
        Rule::new("", &["events"], &["create"]),
    ],
);

/// `daemon-pod-updater-controller`.
#[derive(Debug, Default)]
pub(crate) struct DaemonPodUpdater {
    told: Told,
}

/// Who decides when a daemon's pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    /// The owner of the node.
    Ota,
    /// This controller.
    Rolling,
}

/// How a daemon set is updated, if by this controller.
fn strategy(set: &Value) -> Option<Strategy> {
    if set["spec"]["updateStrategy"]["type"] != "OnDelete" {
        return None;
    }
    let name = set["metadata"]["annotations"][UPDATE_STRATEGY].as_str()?;
    match name.to_ascii_lowercase().as_str() {
        "ota" => Some(Strategy::Ota),
        "advancedrollingupdate" | "auto" => Some(Strategy::Rolling),
        _ => None,
    }
}

/// Whether two values are the same but for members without a value, which some versions write and others leave out.
fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let every = a.keys().chain(b.keys());
            let of = |map: &serde_json::Map<String, Value>, key: &String| {
                map.get(key).cloned().unwrap_or_default()
            };
            every.into_iter().all(|key| alike(&of(a, key), &of(b, key)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        _ => one == other,
    }
}

/// The hash of a daemon set's template; `None` while its newest revision is still of an earlier one.
fn present_hash(set: &Value, revisions: &[Arc<Value>]) -> Option<String> {
    let own = revisions.iter().filter(|revision| {
        controller_of(revision).is_some_and(|owner| owner["uid"] == set["metadata"]["uid"])
    });
    let newest = own.max_by_key(|revision| revision::number(revision))?;
    let hash = newest["metadata"]["labels"][revision::HASH].as_str()?;
    // The server may show a template otherwise than its controller wrote it down (a newer version's defaults): then what
    // that controller has looked at is its newest revision.
    let generation = |value: &Value| value.as_i64().unwrap_or(0);
    let observed = generation(&set["status"]["observedGeneration"])
        >= generation(&set["metadata"]["generation"]).max(1);
    (observed || alike(&newest["data"], &revision::data(set))).then(|| hash.to_owned())
}

/// Whether a pod is of the present template: by its hash, or by the generation that the server counts.
fn is_current(set: &Value, hash: &str, p: &Value) -> bool {
    let labels = &p["metadata"]["labels"];
    let generation = &set["metadata"]["annotations"][TEMPLATE_GENERATION];
    labels[revision::HASH] == hash
        || generation.is_string() && labels[GENERATION_LABEL] == *generation
}

/// The condition of a pod, unless it says so already. Pure.
fn verdict(p: &Value, current: bool, hash: &str, now: Timestamp) -> Option<Value> {
    let (status, message) = (
        if current { "False" } else { "True" },
        format!("{REVISION_PREFIX}{hash}"),
    );
    let known = condition::find(&p["status"], POD_NEED_UPGRADE);
    if known.is_some_and(|known| known["status"] == status && known["message"] == message.as_str())
    {
        return None;
    }
    let mut condition = condition::new(POD_NEED_UPGRADE, status, "", &message, now);
    if let Some(known) = known.filter(|known| known["status"] == status) {
        condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
    }
    Some(condition)
}

/// Says on each pod whether its owner should upgrade it. What fails on one pod stops no other.
async fn tell_owners(
    context: &Context,
    set: &Value,
    hash: &str,
    pods: &[Arc<Value>],
) -> Result<Next, Failure> {
    let (mut written, mut failed) = (0, None);
    for p in pods.iter().filter(|p| pod::is_active(p)) {
        let current = is_current(set, hash, p);
        let Some(condition) = verdict(p, current, hash, Timestamp::now()) else {
            continue;
        };
        if written == BURST {
            return Ok(Next::After(PAUSE));
        }
        written += 1;
        let patch = json!({"metadata": {"uid": p["metadata"]["uid"]}, "status": {"conditions": [condition]}});
        match context.patch(&PODS, &Key::of(p), "status", &patch).await {
            // Gone, or another of that name.
            Err(error) if !matches!(error.code(), Some(404 | 409 | 422)) => failed = Some(error),
            _ => {}
        }
    }
    failed.map_or(Ok(Next::Done), |error| Err(error.into()))
}

impl DaemonPodUpdater {
    /// Deletes the pods whose turn it is.
    async fn roll(
        &self,
        context: &Context,
        set: &Value,
        hash: &str,
        pods: &[Arc<Value>],
    ) -> Result<Next, Failure> {
        let presence = Presence::of(context);
        let view = rolling::View {
            set,
            pods,
            is_current: &|p| is_current(set, hash, p),
            is_ready: &|node| presence.has(node),
            now: Timestamp::now(),
        };
        let plan = view.plan();
        let complaint = plan.complaint.unwrap_or_default();
        let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
        if self.told.is_news(uid, &complaint) {
            context.event(
                Self::NAME,
                set,
                "Warning",
                "InvalidMaxUnavailable",
                &complaint,
            );
        }
        let control = PodControl {
            context,
            component: Self::NAME,
            owner: set,
        };
        let (more, mut failed) = (plan.delete.len() > BURST, None);
        for p in plan.delete.into_iter().take(BURST) {
            if let Err(error) = control.delete(p).await {
                failed = Some(error);
            }
        }
        match (failed, plan.next) {
            (Some(error), _) => Err(error.into()),
            (None, _) if more => Ok(Next::After(PAUSE)),
            (None, Some(pause)) => Ok(Next::After(pause)),
            (None, None) => Ok(Next::Done),
        }
    }
}

impl Controller for DaemonPodUpdater {
    const NAME: &'static str = "daemon-pod-updater-controller";
    const WORKERS: usize = 3;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let pods = context.objects(&PODS);
        // A node that is ready again may be updated now, and counts again.
        let [nodes, leases] = presence::watches(move |node| {
            let pods = pods.on_node(node);
            let owners = pods.iter().filter_map(|p| {
                let owner =
                    controller_of(p).filter(|owner| owner["kind"] == DAEMON_SETS.kind.as_ref())?;
                Some(Key::new(
                    p["metadata"]["namespace"].as_str()?,
                    owner["name"].as_str()?,
                ))
            });
            owners.collect()
        });
        vec![
            Watch::own(DAEMON_SETS),
            Watch::owned(PODS, "DaemonSet"),
            Watch::owned(CONTROLLER_REVISIONS, "DaemonSet"),
            nodes,
            leases,
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let set = context.objects(&DAEMON_SETS).get(key);
        let Some(set) = set.filter(|set| !pod::is_deleting(set)) else {
            return Ok(Next::Done);
        };
        let Some(strategy) = strategy(&set) else {
            return Ok(Next::Done);
        };
        let revisions = context.objects(&CONTROLLER_REVISIONS).list(&key.namespace);
        let Some(hash) = present_hash(&set, &revisions) else {
            // Its revision will come.
            return Ok(Next::Done);
        };
        let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
        let mut pods = context.objects(&PODS).owned_by(uid);
        pods.retain(|p| controller_of(p).is_some_and(|owner| owner["uid"] == uid));
        match strategy {
            Strategy::Ota => tell_owners(context, &set, &hash, &pods).await,
            Strategy::Rolling => self.roll(context, &set, &hash, &pods).await,
        }
    }
}

#[cfg(test)]
mod tests;
