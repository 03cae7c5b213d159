//! statefulset-controller: pods with an identity of their own, in order.
//!
//! [`plan`] is pure: from a stateful set, its revisions and its pods to the writes, in order.

mod claims;
mod identity;

use super::{
    Context, Controller, Failure, Key, Next, Watch, claim,
    collections::{CONTROLLER_REVISIONS, PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS},
    pod,
    pod_control::is_going,
    revision::{self, HASH},
    share::{self, Round},
};
use identity::{ordinal, start};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{cmp::Reverse, sync::Arc, time::Duration};
use yurt_controller::kube::KubeError;

const COMPONENT: &str = "statefulset-controller";
/// The label by which revisions of stateful sets name their hash.
const REVISION_HASH: &str = "controller.kubernetes.io/hash";
/// How soon to look again at claims that somebody else takes away.
const CLAIMS_PAUSE: Duration = Duration::from_secs(1);

/// `statefulset-controller`.
#[derive(Default)]
pub(super) struct StatefulSets;

/// One write.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    /// Make the pod, and its claims before it.
    Create(Value),
    /// Make the claims that a pending pod waits for.
    Furnish(Arc<Value>),
    /// Give a pod its identity back.
    Identify(Value),
    Delete(Arc<Value>),
}

/// One look: a stateful set, its revisions by name, and its pods.
struct View<'v> {
    set: &'v Value,
    /// The set with the template it had before, and the one it has now.
    current: &'v Value,
    update: &'v Value,
    current_revision: &'v str,
    update_revision: &'v str,
    /// In order of their ordinals.
    pods: &'v [Arc<Value>],
    now: Timestamp,
}

fn replicas(set: &Value) -> i64 {
    set["spec"]["replicas"].as_i64().unwrap_or(1)
}

fn min_ready(set: &Value) -> i64 {
    set["spec"]["minReadySeconds"].as_i64().unwrap_or(0)
}

fn is_rolling(set: &Value) -> bool {
    set["spec"]["updateStrategy"]["type"] != "OnDelete"
}

/// How many of the lowest ordinals keep the template they had.
fn partition(set: &Value) -> i64 {
    let rolling = &set["spec"]["updateStrategy"]["rollingUpdate"];
    rolling["partition"].as_i64().unwrap_or(0)
}

fn revision_of(p: &Value) -> &str {
    p["metadata"]["labels"][HASH].as_str().unwrap_or_default()
}

fn runs_ready(p: &Value) -> bool {
    pod::phase(p) == "Running" && pod::is_ready(p)
}

impl View<'_> {
    fn is_available(&self, p: &Value) -> bool {
        runs_ready(p) && pod::is_available(p, min_ready(self.set), self.now)
    }

    fn is_healthy(&self, p: &Value) -> bool {
        runs_ready(p) && !pod::is_deleting(p)
    }

    fn in_order(&self) -> bool {
        self.set["spec"]["podManagementPolicy"] != "Parallel"
    }

    /// The pods by their places, and those that have none any more, the highest first.
    fn places(&self) -> (Vec<Option<&Arc<Value>>>, Vec<&Arc<Value>>) {
        let count = usize::try_from(replicas(self.set)).unwrap_or(0);
        let (mut places, mut condemned) = (vec![None; count], Vec::new());
        for p in self.pods {
            let place = ordinal(p).map(|ordinal| ordinal - start(self.set));
            match place.and_then(|place| places.get_mut(usize::try_from(place).ok()?)) {
                Some(place) => *place = Some(p),
                None => condemned.push(p),
            }
        }
        condemned.sort_by_key(|p| Reverse(ordinal(p)));
        (places, condemned)
    }

    /// The pod for a place that is empty.
    fn new_pod(&self, place: usize) -> Value {
        let place = i64::try_from(place).unwrap_or(i64::MAX);
        let (set, revision) = if is_rolling(self.set) && place < partition(self.set) {
            (self.current, self.current_revision)
        } else {
            (self.update, self.update_revision)
        };
        identity::new_pod(set, start(self.set) + place, revision)
    }

    fn status(&self, collisions: Option<i64>) -> Value {
        let count = |holds: &dyn Fn(&Value) -> bool| {
            let pods = self.pods.iter().filter(|p| holds(p)).count();
            i64::try_from(pods).unwrap_or(i64::MAX)
        };
        let of = |revision: &str| count(&|p| revision_of(p) == revision && !pod::is_deleting(p));
        let all = count(&|p| !pod::phase(p).is_empty());
        let ready = count(&runs_ready);
        let updated = of(self.update_revision);
        let wanted = replicas(self.set);
        // All of them have it: the update is over.
        let done = is_rolling(self.set) && [updated, ready, all].iter().all(|n| *n == wanted);
        let (current, current_revision) = if done {
            (updated, self.update_revision)
        } else {
            (of(self.current_revision), self.current_revision)
        };
        let mut status = json!({"observedGeneration": self.set["metadata"]["generation"], "replicas": all,
            "availableReplicas": count(&|p| self.is_available(p)),
            "currentRevision": current_revision, "updateRevision": self.update_revision,
            "collisionCount": collisions.unwrap_or(0)});
        for (field, number) in [
            ("readyReplicas", ready),
            ("currentReplicas", current),
            ("updatedReplicas", updated),
        ] {
            if number > 0 {
                status[field] = number.into();
            }
        }
        if let Some(conditions) = self.set["status"].get("conditions") {
            status["conditions"] = conditions.clone();
        }
        status
    }

    /// The pods that give way to the present template: the highest first, never more than may be missing.
    fn outdated(&self, places: &[Option<&Arc<Value>>]) -> Vec<Arc<Value>> {
        let wanted = replicas(self.set);
        let most = &self.set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
        let most = if most.is_null() {
            1
        } else {
            share::of(most, wanted, Round::Down).max(1)
        };
        let healthy = |p: &Value| self.is_healthy(p) && self.is_available(p);
        let missing = places.iter().filter(|p| !p.is_some_and(|p| healthy(p)));
        let missing = i64::try_from(missing.count()).unwrap_or(i64::MAX);
        let mut spare = most - missing;
        let lowest = usize::try_from(partition(self.set)).unwrap_or(0);
        let mut outdated = Vec::new();
        for p in places.iter().skip(lowest).rev().flatten() {
            if revision_of(p) == self.update_revision || pod::is_deleting(p) {
                continue;
            }
            if healthy(p) {
                if spare <= 0 {
                    break;
                }
                spare -= 1;
            }
            outdated.push(Arc::clone(p));
        }
        outdated
    }
}

/// What is to be done. In order, that is one thing at a time: nothing is started or stopped before what comes before it is
/// there for good.
fn plan(view: &View<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    if pod::is_deleting(view.set) {
        return actions;
    }
    let (places, condemned) = view.places();
    let in_order = view.in_order();
    for (place, there) in places.iter().enumerate() {
        let Some(p) = there else {
            actions.push(Action::Create(view.new_pod(place)));
            if in_order {
                return actions;
            }
            continue;
        };
        if pod::is_finished(p) {
            if !pod::is_deleting(p) {
                // It is made again when it is gone.
                actions.push(Action::Delete(Arc::clone(p)));
            }
            if in_order {
                return actions;
            }
            continue;
        }
        if pod::phase(p) == "Pending" {
            actions.push(Action::Furnish(Arc::clone(p)));
        }
        if in_order && (pod::is_deleting(p) || !view.is_available(p)) {
            return actions;
        }
        if let Some(fixed) = identity::fixed(view.set, p) {
            actions.push(Action::Identify(fixed));
        }
    }
    let unhealthy = |p: &&Arc<Value>| !view.is_healthy(p);
    let first_unhealthy = places
        .iter()
        .flatten()
        .copied()
        .chain(condemned.iter().rev().copied())
        .find(unhealthy);
    for p in &condemned {
        if pod::is_deleting(p) {
            if in_order {
                return actions;
            }
            continue;
        }
        let first = first_unhealthy.is_some_and(|first| Arc::ptr_eq(first, p));
        if in_order && !view.is_available(p) && !first {
            return actions;
        }
        actions.push(Action::Delete(Arc::clone(p)));
        if in_order {
            return actions;
        }
    }
    if is_rolling(view.set) {
        actions.extend(view.outdated(&places).into_iter().map(Action::Delete));
    }
    actions
}

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let sets = context.objects(&STATEFUL_SETS);
        vec![
            Watch::own(STATEFUL_SETS),
            Watch::claimed(PODS, "StatefulSet", sets.clone()),
            Watch::claimed(CONTROLLER_REVISIONS, "StatefulSet", sets),
            // Read, and no reason to act.
            Watch::of(PERSISTENT_VOLUME_CLAIMS, |_| Vec::new()),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(set) = context.objects(&STATEFUL_SETS).get(key) else {
            return Ok(Next::Done);
        };
        let Some(selector) = claim::selector_of(&set).filter(|_| !pod::is_deleting(&set)) else {
            return Ok(Next::Done);
        };
        let history =
            revision::history(context, &STATEFUL_SETS, &set, &selector, REVISION_HASH).await?;
        let candidates = context.objects(&PODS).list(&key.namespace);
        let candidates = candidates
            .into_iter()
            .filter(|p| identity::is_member(&set, p))
            .collect();
        let mut pods =
            claim::claim(context, &STATEFUL_SETS, &set, &selector, &PODS, candidates).await?;
        pods.sort_by_key(|p| ordinal(p));

        let current_name = set["status"]["currentRevision"]
            .as_str()
            .unwrap_or_default();
        let known = history
            .all
            .iter()
            .find(|r| revision::name(r) == current_name);
        let before = known.unwrap_or(&history.current);
        let view = View {
            set: &set,
            current: &revision::restored(&set, before),
            update: &set,
            current_revision: revision::name(before),
            update_revision: revision::name(&history.current),
            pods: &pods,
            now: Timestamp::now(),
        };
        let mut outcome = Ok(());
        let mut next = None;
        for action in plan(&view) {
            match carry_out(&view, &action, context).await {
                Ok(true) => {}
                Ok(false) => next = Some(CLAIMS_PAUSE),
                Err(error) if is_going(&error) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let (_, condemned) = view.places();
        if outcome.is_ok() {
            let keeper = claims::Keeper { context, set: &set };
            for p in &pods {
                let condemned = condemned.iter().any(|c| Arc::ptr_eq(c, p));
                keeper.settle_owners(p, condemned).await?;
            }
        }
        let status = view.status(history.collisions);
        if status != set["status"] {
            let mut new = Value::clone(&set);
            new["status"] = status;
            context.update_status(&STATEFUL_SETS, &new).await?;
        }
        outcome?;
        let used = |r: &Value| {
            let name = revision::name(r);
            name == view.current_revision || pods.iter().any(|p| revision_of(p) == name)
        };
        revision::truncate(context, &set, &history, used).await?;
        let ready = pod::next_available(pods.iter().map(|p| &**p), min_ready(&set), view.now);
        let next = ready.into_iter().chain(next).min();
        Ok(next.map_or(Next::Done, Next::After))
    }
}

/// Does it; false when it has to wait for claims to go.
async fn carry_out(view: &View<'_>, action: &Action, context: &Context) -> Result<bool, KubeError> {
    let keeper = claims::Keeper {
        context,
        set: view.set,
    };
    let (verb, about, written) = match action {
        Action::Create(new) => {
            if keeper.are_going(new) {
                return Ok(false);
            }
            keeper.make_missing(view.set, new).await?;
            let written = context.create(&PODS, new.clone()).await.map(drop);
            ("Create", new, written)
        }
        Action::Furnish(p) => {
            keeper.make_missing(view.set, p).await?;
            return Ok(true);
        }
        Action::Identify(p) => ("Update", p, context.update(&PODS, p).await.map(drop)),
        Action::Delete(p) => ("Delete", &**p, context.delete(&PODS, p).await),
    };
    let what = format!(
        "{} Pod {} in StatefulSet {}",
        verb.to_lowercase(),
        identity::name(about),
        identity::name(view.set)
    );
    tell(context, view.set, verb, &what, "successful", &written);
    written.map(|()| true)
}

/// Tells of a write, however it went.
fn tell(
    context: &Context,
    set: &Value,
    verb: &str,
    what: &str,
    success: &str,
    written: &Result<(), KubeError>,
) {
    match written {
        Ok(()) => {
            let reason = format!("Successful{verb}");
            context.event(
                COMPONENT,
                set,
                "Normal",
                &reason,
                &format!("{what} {success}"),
            );
        }
        Err(error) if is_going(error) => {}
        Err(error) => {
            let message = format!("{what} failed error: {}", error.message());
            context.event(
                COMPONENT,
                set,
                "Warning",
                &format!("Failed{verb}"),
                &message,
            );
        }
    }
}

#[cfg(test)]
mod tests;
