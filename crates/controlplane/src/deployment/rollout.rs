//! One look at a deployment: its replica sets as they are, then as the steps taken leave them.

use super::{
    super::{claim, collections::DEPLOYMENTS, condition as conditions, pod, template_hash},
    HASH, Plan, Step, annotations, progress, same_template,
    size::{self, counted, wanted},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) struct Rollout {
    /// With the conditions and annotations it gets.
    deployment: Value,
    /// The replica set of the present template.
    new: Option<Value>,
    /// The others, oldest first.
    old: Vec<Value>,
    steps: Vec<Step>,
    now: Timestamp,
}

fn age(set: &Value) -> (String, String) {
    let text = |field: &str| {
        set["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (text("creationTimestamp"), text("name"))
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn is_used(set: &Value) -> bool {
    wanted(set) > 0
}

impl Rollout {
    pub(super) fn new(deployment: &Value, sets: &[Arc<Value>], now: Timestamp) -> Self {
        let mut old: Vec<Value> = sets.iter().map(|set| Value::clone(set)).collect();
        old.sort_by_cached_key(age);
        let template = &deployment["spec"]["template"];
        // The oldest of equal ones, so that everybody chooses the same.
        let new = old
            .iter()
            .position(|set| same_template(&set["spec"]["template"], template))
            .map(|at| old.remove(at));
        Self {
            deployment: deployment.clone(),
            new,
            old,
            steps: Vec::new(),
            now,
        }
    }

    fn sets(&self) -> impl Iterator<Item = &Value> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i64 {
        self.sets().map(wanted).sum()
    }

    fn set_condition(&mut self, status: &str, reason: &str, message: &str) {
        let condition = progress::condition("Progressing", status, reason, message, self.now);
        conditions::set(&mut self.deployment["status"], condition);
    }

    /// Tells that the rollout was stopped or goes on, so that the time it stood still does not count.
    pub(super) fn note_pause(&mut self) {
        if !progress::has_deadline(&self.deployment) {
            return;
        }
        let reason = conditions::find(&self.deployment["status"], "Progressing")
            .and_then(|condition| condition["reason"].as_str())
            .unwrap_or_default();
        let told = reason == "DeploymentPaused";
        let paused = self.deployment["spec"]["paused"] == true;
        if reason == "ProgressDeadlineExceeded" || paused == told {
            return;
        }
        if paused {
            self.set_condition("Unknown", "DeploymentPaused", "Deployment is paused");
        } else {
            self.set_condition("Unknown", "DeploymentResumed", "Deployment is resumed");
        }
    }

    /// Whether the deployment was scaled since its replica sets were.
    pub(super) fn is_scaling(&self) -> bool {
        let replicas = wanted(&self.deployment);
        let mut used = self.sets().filter(|set| is_used(set));
        used.any(|set| annotations::desired(set).is_some_and(|desired| desired != replicas))
    }

    /// Brings the new replica set's annotations up to date, or makes one if there is none and `create`.
    pub(super) fn adopt_new_set(&mut self, create: bool) {
        let revision = self
            .old
            .iter()
            .map(annotations::revision)
            .max()
            .unwrap_or(0)
            + 1;
        let min_ready = self.deployment["spec"]["minReadySeconds"]
            .as_i64()
            .unwrap_or(0);
        match &mut self.new {
            Some(set) => {
                let before = set["spec"]["minReadySeconds"].as_i64().unwrap_or(0);
                let news = annotations::inherit(&self.deployment, set, revision);
                if before != min_ready {
                    set["spec"]["minReadySeconds"] = min_ready.into();
                }
                if news || before != min_ready {
                    self.steps.push(Step::Update(set.clone(), None));
                }
                let message = format!("Found new replica set \"{}\"", name(set));
                annotations::note_revision(&mut self.deployment, set);
                let known = conditions::find(&self.deployment["status"], "Progressing");
                if progress::has_deadline(&self.deployment) && known.is_none() {
                    self.set_condition("True", "FoundNewReplicaSet", &message);
                }
            }
            None if create => {
                let set = self.new_set(revision, min_ready);
                let count = wanted(&set);
                let told = (count > 0)
                    .then(|| format!("Scaled up replica set {} from 0 to {count}", name(&set)));
                annotations::note_revision(&mut self.deployment, &set);
                if progress::has_deadline(&self.deployment) {
                    let message = format!("Created new replica set \"{}\"", name(&set));
                    self.set_condition("True", "NewReplicaSetCreated", &message);
                }
                self.steps.push(Step::Create(set.clone(), told));
                self.new = Some(set);
            }
            None => {}
        }
    }

    fn new_set(&self, revision: i64, min_ready: i64) -> Value {
        let deployment = &self.deployment;
        let mut template = deployment["spec"]["template"].clone();
        let hash = template_hash::of(&template, deployment["status"]["collisionCount"].as_i64());
        template["metadata"]["labels"][HASH] = hash.clone().into();
        let mut selector = deployment["spec"]["selector"].clone();
        selector["matchLabels"][HASH] = hash.clone().into();
        let mut set = json!({
            "metadata": {
                "name": format!("{}-{hash}", name(deployment)),
                "namespace": deployment["metadata"]["namespace"],
                "labels": template["metadata"]["labels"],
                "ownerReferences": [claim::reference(&DEPLOYMENTS, deployment)],
            },
            "spec": {"replicas": size::of_new(deployment, self.total(), 0), "selector": selector, "template": template},
        });
        if min_ready > 0 {
            set["spec"]["minReadySeconds"] = min_ready.into();
        }
        annotations::inherit(deployment, &mut set, revision);
        annotations::note_size(deployment, &mut set);
        set
    }

    /// Gives a replica set a size; whether it changed. `at`: the index among the old ones, `None` for the new one.
    fn resize(&mut self, at: Option<usize>, size: i64) -> bool {
        let set = match at {
            Some(at) => self.old.get_mut(at),
            None => self.new.as_mut(),
        };
        let Some(set) = set else {
            return false;
        };
        let before = wanted(set);
        let news = annotations::note_size(&self.deployment, set);
        if before == size && !news {
            return false;
        }
        set["spec"]["replicas"] = size.into();
        let way = if size > before { "up" } else { "down" };
        let told = (size != before).then(|| {
            format!(
                "Scaled {way} replica set {} from {before} to {size}",
                name(set)
            )
        });
        // What was just created or updated is written once, with its last size.
        self.steps.push(Step::Update(set.clone(), told));
        size != before
    }

    /// Brings the replica sets to the deployment's size without going on with the rollout.
    pub(super) fn scale(&mut self) {
        let replicas = wanted(&self.deployment);
        let used: Vec<usize> = (0..self.old.len())
            .filter(|at| is_used(&self.old[*at]))
            .collect();
        let new_used = self.new.as_ref().is_some_and(is_used);
        match (used.as_slice(), new_used) {
            // None is used: the new one is, or the newest.
            ([], _) => {
                let newest = self.old.len().checked_sub(1);
                let at = if self.new.is_some() { None } else { newest };
                self.resize(at, replicas);
            }
            ([only], false) => {
                self.resize(Some(*only), replicas);
            }
            (used, _) if self.new.as_ref().is_some_and(|set| self.is_saturated(set)) => {
                for at in used {
                    self.resize(Some(*at), 0);
                }
            }
            (used, new_used) if size::is_rolling(&self.deployment) => {
                let mut places: Vec<Option<usize>> = used.iter().copied().map(Some).collect();
                let mut sets: Vec<&Value> = used.iter().map(|at| &self.old[*at]).collect();
                if let Some(new) = self.new.as_ref().filter(|_| new_used) {
                    places.push(None);
                    sets.push(new);
                }
                for (at, size) in size::proportional(&self.deployment, &sets) {
                    self.resize(places[at], size);
                }
            }
            _ => {}
        }
    }

    /// Whether a replica set is all that is wanted, and available.
    fn is_saturated(&self, set: &Value) -> bool {
        let replicas = wanted(&self.deployment);
        wanted(set) == replicas
            && annotations::desired(set) == Some(replicas)
            && counted(set, "availableReplicas") == replicas
    }

    /// Goes on with a rolling update.
    pub(super) fn roll(&mut self) {
        self.adopt_new_set(true);
        if self.grow_new() || self.shrink_old() {
            return;
        }
        if progress::is_complete(&self.deployment, &self.deployment["status"]) {
            self.clean_up();
        }
    }

    fn grow_new(&mut self) -> bool {
        let replicas = wanted(&self.deployment);
        let size = self.new.as_ref().map_or(0, wanted);
        if size == replicas {
            return false;
        }
        let size = if size > replicas {
            replicas
        } else {
            size::of_new(&self.deployment, self.total(), size)
        };
        self.resize(None, size)
    }

    fn shrink_old(&mut self) -> bool {
        let least = wanted(&self.deployment) - size::max_unavailable(&self.deployment);
        let new_missing = self
            .new
            .as_ref()
            .map_or(0, |set| wanted(set) - counted(set, "availableReplicas"));
        let may_go = self.total() - least - new_missing;
        if may_go <= 0 || self.old.iter().all(|set| !is_used(set)) {
            return false;
        }
        // Those that are not available anyway go first.
        let mut gone = 0;
        for at in 0..self.old.len() {
            let set = &self.old[at];
            let (size, available) = (wanted(set), counted(set, "availableReplicas"));
            let less = (may_go - gone).min(size - available);
            if size > 0 && less > 0 {
                self.resize(Some(at), size - less);
                gone += less;
            }
        }
        let available: i64 = self
            .sets()
            .map(|set| counted(set, "availableReplicas"))
            .sum();
        let mut spare = available - least;
        for at in 0..self.old.len() {
            let size = wanted(&self.old[at]);
            let less = size.min(spare);
            if less > 0 {
                self.resize(Some(at), size - less);
                spare -= less;
                gone += less;
            }
        }
        gone > 0
    }

    /// All old pods go before the first new one comes.
    pub(super) fn recreate(&mut self, pods: &[Arc<Value>]) {
        self.adopt_new_set(false);
        let mut shrunk = false;
        for at in 0..self.old.len() {
            if is_used(&self.old[at]) {
                shrunk |= self.resize(Some(at), 0);
            }
        }
        if shrunk || self.old_pods_run(pods) {
            return;
        }
        if self.new.is_none() {
            self.adopt_new_set(true);
        }
        self.resize(None, wanted(&self.deployment));
        if progress::is_complete(&self.deployment, &self.deployment["status"]) {
            self.clean_up();
        }
    }

    fn old_pods_run(&self, pods: &[Arc<Value>]) -> bool {
        let counted: i64 = self.old.iter().map(|set| counted(set, "replicas")).sum();
        let of_old = |p: &Value| {
            let owner = super::controller_of(p);
            let new = self.new.as_ref();
            owner.is_some_and(|owner| new.is_none_or(|new| new["metadata"]["uid"] != owner["uid"]))
        };
        counted > 0 || pods.iter().any(|p| of_old(p) && !pod::is_finished(p))
    }

    /// Old replica sets beyond the history limit go, the oldest revisions first.
    pub(super) fn clean_up(&mut self) {
        let limit = self.deployment["spec"]["revisionHistoryLimit"].as_i64();
        let Some(limit) = limit.filter(|limit| *limit != i64::from(i32::MAX)) else {
            return;
        };
        let mut sets: Vec<&Value> = self
            .old
            .iter()
            .filter(|set| !pod::is_deleting(set))
            .collect();
        sets.sort_by_key(|set| annotations::revision(set));
        let beyond = sets
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        for set in sets.into_iter().take(beyond) {
            let generation = set["metadata"]["generation"].as_i64().unwrap_or(0);
            let settled = generation <= counted(set, "observedGeneration");
            if counted(set, "replicas") == 0 && !is_used(set) && settled {
                self.steps.push(Step::Delete(set.clone()));
            }
        }
    }

    fn status(&self) -> Value {
        let sets: Vec<&Value> = self.sets().collect();
        progress::status(&self.deployment, &sets, self.new.as_ref(), self.now)
    }

    /// The plan without a judgement of the progress.
    pub(super) fn status_only(self) -> Plan {
        let status = self.status();
        self.plan(status)
    }

    /// The plan.
    pub(super) fn finish(self) -> Plan {
        let mut status = self.status();
        let sets: Vec<&Value> = self.sets().collect();
        progress::judge(&self.deployment, self.new.as_ref(), &mut status, self.now);
        progress::tell_trouble(&sets, self.new.as_ref(), &mut status);
        self.plan(status)
    }

    fn plan(mut self, status: Value) -> Plan {
        self.deployment["status"] = status;
        let paused = self.deployment["spec"]["paused"] == true;
        let next = progress::next_look(&self.deployment, &self.deployment["status"], self.now);
        Plan {
            steps: written_once(self.steps),
            deployment: self.deployment,
            next: next.filter(|_| !paused),
        }
    }
}

/// A replica set that changes twice in one look is written once (the second write would be refused, its version being gone);
/// what was told of the changes stays.
fn written_once(steps: Vec<Step>) -> Vec<Step> {
    let mut merged: Vec<Step> = Vec::new();
    for step in steps {
        let Step::Update(set, told) = &step else {
            merged.push(step);
            continue;
        };
        let earlier = merged.iter_mut().find_map(|step| match step {
            Step::Create(before, told) | Step::Update(before, told)
                if name(before) == name(set) =>
            {
                Some((before, told))
            }
            _ => None,
        });
        match earlier {
            Some((before, before_told)) => {
                before.clone_from(set);
                if told.is_some() {
                    before_told.clone_from(told);
                }
            }
            None => merged.push(step),
        }
    }
    merged
}
