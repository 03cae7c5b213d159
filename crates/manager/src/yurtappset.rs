//! `yurt-app-set-controller`: the same workload in many pools, different where tweaks say so.
//!
//! A [`Subject`] (a YurtAppSet, or a YurtAppDaemon translated into one) is looked at as a whole: which pools it is for
//! ([`pools`]), what each workload is to be ([`render`]), what is there ([`child`]), whose turn it is ([`rollout`]), what follows
//! ([`plan`]); then it is done ([`write`]) and told ([`status`]). Everything but the writing is a function of values.

mod child;
pub(crate) mod plan;
pub(crate) mod pools;
pub(crate) mod render;
mod revision;
mod rollout;
pub(crate) mod status;
#[cfg(test)]
mod tests;
mod write;

use crate::{Context, Controller, Entry, Failure, Key, Next, Watch, pod};
use child::Child;
use jiff::Timestamp;
use plan::{Act, Difference, Place, Reason};
use pools::{Choice, Pool, Tweak, shares};
use render::{Blueprint, Owner};
use revision::Mark;
use rollout::turn;
use serde_json::{Value, json};
use status::{PoolReport, Report};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use write::{Done, Writer};
use yurt_api::{
    apps::{
        yurtappoverrider::YurtAppOverrider,
        yurtappset::{Workload, WorkloadTweak, YurtAppSetSpec},
    },
    meta::Object,
    names::labels,
    translation,
};
use yurt_controller::{
    Change, Collection, Scope,
    collections::{
        CONTROLLER_REVISIONS, DEPLOYMENTS, NODE_POOLS, STATEFUL_SETS, YURT_APP_OVERRIDERS,
        YURT_APP_SETS,
    },
    controller_of,
    fields::{self, Labels},
    policy::Rule,
    revision::History,
};
use yurt_wire::selector::LabelSelector;

/// How long what the server refused is left alone, where it may be allowed by then (quota, rights).
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// What both controllers may do besides what is their own.
pub(crate) const WORKLOAD_RULE: Rule = Rule::new(
    "apps",
    &["deployments", "statefulsets"],
    &["get", "create", "patch", "delete"],
);
/// What both controllers may do with revisions.
pub(crate) const REVISION_RULE: Rule = Rule::new(
    "apps",
    &["controllerrevisions"],
    &["get", "create", "update", "patch", "delete"],
);
/// Events.
pub(crate) const EVENT_RULE: Rule = Rule::new("", &["events"], &["create"]);

pub(crate) const ENTRY: Entry = Entry::of::<YurtAppSets>(
    "yurtappset",
    &[
        WORKLOAD_RULE,
        REVISION_RULE,
        EVENT_RULE,
        Rule::new("apps.openyurt.io", &["yurtappsets"], &["get"]),
        Rule::new("apps.openyurt.io", &["yurtappsets/status"], &["patch"]),
        // Owner references that block the deletion of the owner ask for it, where that is enforced.
        Rule::new("apps.openyurt.io", &["yurtappsets/finalizers"], &["update"]),
    ],
);

/// The kinds of workloads.
pub(crate) const WORKLOADS: [(&str, Collection); 2] =
    [("Deployment", DEPLOYMENTS), ("StatefulSet", STATEFUL_SETS)];

/// The workloads that are read: those of a pool.
pub(crate) fn workload_scope() -> Scope {
    Scope::default().labelled(labels::WORKLOAD_POOL)
}

/// Whose workloads are looked after: a YurtAppSet, or what is translated into one.
#[derive(Debug)]
pub(crate) struct Subject {
    /// What it is.
    pub(crate) collection: Collection,
    /// It.
    pub(crate) object: Arc<Value>,
    /// What is wanted, as a set; or what of it cannot be read.
    pub(crate) spec: Result<YurtAppSetSpec, String>,
    /// Whose the workloads are.
    pub(crate) owner: Owner,
    /// The events' source.
    pub(crate) component: &'static str,
}

/// Looks after subjects.
#[derive(Debug)]
pub(crate) struct Engine {
    writer: Writer,
}

impl Engine {
    /// Applies under the name of a field manager.
    pub(crate) fn new(manager: &'static str) -> Self {
        Self {
            writer: Writer::new(manager),
        }
    }

    /// Brings the workloads of a subject in order, as far as it can be, and says how all is.
    pub(crate) async fn look(
        &self,
        subject: &Subject,
        context: &Context,
    ) -> (Report, Result<Next, Failure>) {
        let mut report = Report::default();
        let outcome = self.try_look(subject, context, &mut report).await;
        if let Err(failure) = &outcome
            && report.fault.is_none()
            && report.pools.is_empty()
        {
            report.fault = Some(("FailedRevisionProvision", failure.to_string()));
        }
        (report, outcome)
    }

    async fn try_look(
        &self,
        subject: &Subject,
        context: &Context,
        report: &mut Report,
    ) -> Result<Next, Failure> {
        let owner = &subject.owner;
        let spec = match &subject.spec {
            Ok(spec) => spec,
            Err(error) => {
                report.fault = Some(("InvalidSpec", error.clone()));
                return Ok(Next::Done);
            }
        };
        let Some((kind, template)) = spec.workload.workload_template.only() else {
            let message = "workloadTemplate must have exactly one of deploymentTemplate and statefulSetTemplate; its workloads stay as they are";
            report.fault = Some(("InvalidTemplate", message.into()));
            return Ok(Next::Done);
        };
        report.kind = kind;
        let choice = match Choice::of(spec) {
            Ok(choice) => choice,
            Err(bad) => {
                report.fault = Some((
                    "InvalidSelector",
                    format!("{bad}; its workloads stay as they are"),
                ));
                return Ok(Next::Done);
            }
        };
        let pools: Vec<Pool> = context
            .objects(&NODE_POOLS)
            .list("")
            .iter()
            .map(|pool| Pool::of(pool))
            .filter(|pool| choice.has(pool))
            .collect();
        let children = self.children(subject, context).await?;
        if let Some(other) = children.iter().find(|child| child.kind != kind) {
            let message = format!(
                "its workloads are of kind {}: to change the kind, delete the {} and create it anew",
                other.kind, subject.collection.kind
            );
            report.fault = Some(("TemplateKindChanged", message));
            return Ok(Next::Done);
        }
        let (overrides, overrider) = overrides(subject, context, &pools);
        report.overrider = overrider;
        let mut history = revision::history(context, owner, &subject.object).await?;
        report.revision = revision::name(&history.current).to_owned();
        report.collisions = history.collisions;
        let good = match Mark::of(&history.current) {
            Some(Mark::Failed) => revision::last_good(&history).cloned(),
            _ => None,
        };
        let workload = match &good {
            Some(good) => workload_of(owner, good),
            None => spec.workload.clone(),
        };
        let target = good.as_ref().unwrap_or(&history.current).clone();
        let target = revision::name(&target);
        let template = workload
            .workload_template
            .only()
            .map_or(template, |(_, t)| t);
        let tweaks = match Tweak::all(workload.workload_tweaks.iter().chain(&overrides)) {
            Ok(tweaks) => tweaks,
            Err(bad) => {
                report.fault = Some((
                    "InvalidSelector",
                    format!("{bad}; its workloads stay as they are"),
                ));
                return Ok(Next::Done);
            }
        };
        let (shares, sized) = shares(spec.replicas, &pools, &tweaks);
        report.sized = sized.iter().map(|pool| (*pool).to_owned()).collect();
        let blueprint = Blueprint {
            owner,
            kind,
            template,
            tweaks,
        };
        let names: BTreeSet<&str> = pools.iter().map(|pool| &*pool.name).collect();
        let (mut kept, going) = plan::placed(children, |pool| names.contains(pool));
        let mut places: Vec<Place> = pools
            .iter()
            .map(|pool| {
                let child = kept.remove(&pool.name);
                let identity = child.as_ref().and_then(Child::identity);
                let identity = identity.unwrap_or(&pool.name);
                let rendered = blueprint.render(pool, identity, shares.get(&*pool.name).copied());
                Place {
                    pool: pool.clone(),
                    child,
                    rendered,
                }
            })
            .collect();

        let now = Timestamp::now();
        let told = &subject.object["status"];
        let differences: Vec<Difference> = places
            .iter()
            .map(|place| {
                place.difference(|child, rendered| self.writer.is_settled(child, rendered))
            })
            .collect();
        let stages: BTreeMap<&str, _> = pools
            .iter()
            .zip(places.iter().zip(&differences))
            .map(|(pool, (place, difference))| (&*pool.name, place.stage(*difference, told)))
            .collect();
        // What goes back goes back at once.
        let rollout = spec.rollout.as_ref().filter(|_| good.is_none());
        let turn = turn(rollout, &stages, now);
        let acts: Vec<Act> = places
            .iter()
            .zip(&differences)
            .map(|(place, difference)| place.act(*difference, &turn))
            .collect();

        // Deletions first: what a duplicate holds (volumes, ports) may be what the kept one needs.
        let mut troubles = Troubles::default();
        let deleted = self.writer.delete(context, &going).await;
        tell_deleted(subject, context, &going, &deleted, report, &mut troubles);
        let entries = fields::items(&told["pools"]).filter(|entry| entry["phase"] == "Failed");
        let failed: BTreeSet<&str> = entries.filter_map(|entry| entry["pool"].as_str()).collect();
        let done = self
            .writer
            .write(context, kind, owner, &places, &acts, &failed, target, now)
            .await;
        let mut created = 0;
        let mut updated = 0;
        for (((place, act), difference), done) in
            places.iter_mut().zip(&acts).zip(&differences).zip(done)
        {
            let mut trouble = None;
            match done {
                Done::Nothing => {}
                Done::Written(object) => {
                    match act {
                        Act::Create => created += 1,
                        _ => updated += 1,
                    }
                    place.child = Some(Child::of(object, kind));
                }
                Done::Postponed => {
                    let message = "tried again when the API server is well";
                    trouble = Some(("Waiting", message.into()));
                }
                Done::Failed(error) => {
                    let message = format!("{}: {}", place.pool.name, error.message());
                    let mut phase = "Failed";
                    match (act, &error) {
                        (Act::Create, _) => report.creating.push(message),
                        // It is tried again at once.
                        (_, write::Trouble::Conflict(_)) => phase = "Waiting",
                        _ => report.updating.push(message),
                    }
                    trouble = Some((phase, error.message()));
                    troubles.add(error);
                }
            }
            if let Err(fault) = &place.rendered {
                match place.child {
                    None => report.creating.push(fault.to_string()),
                    Some(_) => report.updating.push(fault.to_string()),
                }
            }
            report.pools.push(PoolReport::of(
                place,
                *act,
                *difference,
                trouble,
                turn.held.as_ref(),
                told,
            ));
        }
        for (count, what) in [(created, "CreateWorkload"), (updated, "UpdateWorkload")] {
            if count > 0 {
                let verb = what.trim_end_matches("Workload");
                subject.event(
                    context,
                    &format!("Successful {what}"),
                    &format!("{verb} {count} {kind}"),
                );
            }
        }
        report.held = turn.held.clone();
        let settled = self
            .settle(
                subject,
                context,
                &mut history,
                &turn.failed,
                &stages,
                report,
            )
            .await;
        if let Some(good) = &good {
            report.rolled_back = Some((report.revision.clone(), revision::name(good).to_owned()));
        }
        let used: BTreeSet<&str> = places
            .iter()
            .filter_map(|place| place.child.as_ref()?.revision())
            .chain([target])
            .collect();
        let limit = spec.revision_history_limit;
        let truncated = revision::truncate(context, &history, limit, &used).await;
        settled?;
        truncated?;
        match troubles.next()? {
            Next::Done => Ok(turn.recheck.map_or(Next::Done, Next::After)),
            later => Ok(later),
        }
    }

    /// Notes how the rollout of the present revision ended. The note brings the next look, in which everything goes back.
    async fn settle(
        &self,
        subject: &Subject,
        context: &Context,
        history: &mut History,
        failed: &[String],
        stages: &BTreeMap<&str, rollout::Stage>,
        report: &Report,
    ) -> Result<(), Failure> {
        let is_gated = subject
            .spec
            .as_ref()
            .is_ok_and(|spec| spec.rollout.is_some());
        if !is_gated || Mark::of(&history.current).is_some() {
            return Ok(());
        }
        if !failed.is_empty() && revision::last_good(history).is_some() {
            let message = format!(
                "{} did not become ready in time with revision {}",
                plan::some(failed),
                report.revision
            );
            revision::mark(context, history, Mark::Failed).await?;
            subject.warn(context, "RolloutFailed", &message);
            return Ok(());
        }
        let all_settled = stages
            .values()
            .all(|stage| *stage == rollout::Stage::Settled);
        let all_ready = report.pools.iter().all(|pool| pool.phase == "Ready");
        if all_settled && all_ready && !report.pools.is_empty() {
            revision::mark(context, history, Mark::Complete).await?;
        }
        Ok(())
    }

    /// The workloads of a subject, after orphans of it were found to be its own.
    async fn children(&self, subject: &Subject, context: &Context) -> Result<Vec<Child>, Failure> {
        let owner = &subject.owner;
        let mut children = Vec::new();
        let mut is_alive = false;
        for (kind, collection) in WORKLOADS {
            let known = context.scoped(&collection, &workload_scope());
            for object in known.owned_by(&owner.uid) {
                let ours = controller_of(&object).is_some_and(|c| c["uid"] == *owner.uid);
                if ours && belongs_elsewhere(owner, &object) {
                    release(context, &collection, owner, &object).await?;
                } else if ours {
                    children.push(Child::of(object, kind));
                }
            }
            let Some((label, value)) = &owner.label else {
                continue;
            };
            for object in known.labelled(label, value) {
                let orphan = controller_of(&object).is_none()
                    && object["metadata"]["namespace"] == *owner.namespace
                    && !pod::is_deleting(&object);
                if !orphan {
                    continue;
                }
                if !is_alive {
                    // Who is being deleted adopts nobody; the server knows better than the cache.
                    let key = Key::of(&subject.object);
                    let live = context
                        .kube()
                        .get(&subject.collection.object_path(&key))
                        .await?;
                    if live["metadata"]["uid"] != *owner.uid || pod::is_deleting(&live) {
                        return Err(Failure::Object(format!("{key} is being deleted")));
                    }
                    is_alive = true;
                }
                // To apply it adopts it.
                children.push(Child::of(object, kind));
            }
        }
        Ok(children)
    }
}

/// Whether an owned workload says that it is of another set: then it is released.
fn belongs_elsewhere(owner: &Owner, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    match &owner.label {
        Some((label, value)) => labels[*label].as_str().is_some_and(|said| said != value),
        None => false,
    }
}

async fn release(
    context: &Context,
    collection: &Collection,
    owner: &Owner,
    object: &Value,
) -> Result<(), Failure> {
    let patch = json!({"metadata": {"uid": object["metadata"]["uid"],
        "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}});
    match context
        .patch(collection, &Key::of(object), "", &patch)
        .await
    {
        Ok(_) => Ok(()),
        // Gone, or another of that name.
        Err(error) if matches!(error.code(), Some(404 | 409 | 422)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The workload that a revision kept.
fn workload_of(owner: &Owner, revision: &Value) -> Workload {
    let kept = revision::kept(owner, revision).clone();
    let kept = match owner.daemon {
        Some(_) => json!({"workloadTemplate": kept}),
        None => kept,
    };
    serde_json::from_value(kept).unwrap_or_default()
}

/// The tweaks of the subject's overrider, and its name. Of several, which the webhook does not allow, the oldest holds.
fn overrides(
    subject: &Subject,
    context: &Context,
    pools: &[Pool],
) -> (Vec<WorkloadTweak>, Option<String>) {
    let kind = &*subject.collection.kind;
    let mut overriders = context
        .objects(&YURT_APP_OVERRIDERS)
        .list(&subject.owner.namespace);
    overriders.retain(|overrider| {
        let about = &overrider["subject"];
        about["kind"] == kind
            && about["name"] == *subject.owner.name
            && !pod::is_deleting(overrider)
    });
    let oldest = overriders.iter().min_by_key(|overrider| {
        let created = overrider["metadata"]["creationTimestamp"].as_str();
        (created.map(str::to_owned), Key::of(overrider))
    });
    let Some(overrider) = oldest else {
        return (Vec::new(), None);
    };
    let names: Vec<&str> = pools.iter().map(|pool| &*pool.name).collect();
    let parsed = serde_json::from_value::<Object<YurtAppOverrider>>(Value::clone(overrider));
    let tweaks = parsed.map(|overrider| translation::tweaks_of(&overrider, &names));
    (tweaks.unwrap_or_default(), Some(Key::of(overrider).name))
}

fn tell_deleted(
    subject: &Subject,
    context: &Context,
    going: &[(Child, Reason)],
    deleted: &[Done],
    report: &mut Report,
    troubles: &mut Troubles,
) {
    let mut gone = 0;
    for ((child, reason), done) in going.iter().zip(deleted) {
        match done {
            Done::Failed(error) => {
                report
                    .deleting
                    .push(format!("{}: {}", child.name(), error.message()));
                troubles.add(error.clone());
            }
            Done::Postponed => report.deleting.push(format!("{}: later", child.name())),
            Done::Nothing | Done::Written(_) => {
                gone += 1;
                if *reason == Reason::Duplicate {
                    let message = format!(
                        "{} is not the only one of pool {}",
                        child.name(),
                        child.pool
                    );
                    subject.warn(context, "DuplicateWorkload", &message);
                }
            }
        }
    }
    if gone > 0 {
        subject.event(
            context,
            "Successful DeleteWorkload",
            &format!("Delete {gone} {}", report.kind),
        );
    }
}

/// What went wrong in one look: what may go well later is tried later.
#[derive(Debug, Default)]
struct Troubles {
    /// The API server's, and conflicts.
    passing: Option<write::Trouble>,
    /// It does not allow something now.
    refused: bool,
}

impl Troubles {
    fn add(&mut self, trouble: write::Trouble) {
        match trouble {
            write::Trouble::Refused(_) => self.refused = true,
            write::Trouble::Invalid(_) => {}
            passing => {
                self.passing.get_or_insert(passing);
            }
        }
    }

    fn next(self) -> Result<Next, Failure> {
        match self.passing {
            Some(trouble) => Err(trouble.into()),
            None if self.refused => Ok(Next::After(REFUSED_PAUSE)),
            None => Ok(Next::Done),
        }
    }
}

impl Subject {
    /// A subject whose spec is read by `read`; of a daemon, with the labels of its selector.
    pub(crate) fn new(
        collection: Collection,
        object: Arc<Value>,
        component: &'static str,
        daemon: Option<Labels>,
        read: impl Fn(&Value) -> serde_json::Result<YurtAppSetSpec>,
    ) -> Self {
        Self {
            owner: Owner::of(&collection, &object, daemon),
            spec: read(&object["spec"]).map_err(|error| error.to_string()),
            collection,
            object,
            component,
        }
    }

    fn event(&self, context: &Context, reason: &str, message: &str) {
        context.event(self.component, &self.object, "Normal", reason, message);
    }

    fn warn(&self, context: &Context, reason: &str, message: &str) {
        context.event(self.component, &self.object, "Warning", reason, message);
    }

    /// Writes the status when it differs, and then tells what became worse.
    pub(crate) async fn tell(&self, context: &Context, status: &Value) -> Result<(), Failure> {
        let known = &self.object["status"];
        if status::is_told(known, status) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": self.object["metadata"]["uid"]}, "status": status});
        let key = Key::of(&self.object);
        match context
            .merge(&self.collection, &key, "status", &patch)
            .await
        {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        for (reason, message) in status::news(known, status) {
            self.warn(context, &reason, &message);
        }
        Ok(())
    }
}

/// A watch of NodePools that concerns the subjects that a pool is or was selected by, when its labels or taints change.
pub(crate) fn watch_pools(context: &Arc<Context>, collection: Collection) -> Watch {
    let subjects = context.objects(&collection);
    Watch::of(NODE_POOLS, move |change: &Change| {
        let seen = |pool: &Option<Arc<Value>>| pool.as_deref().map(Pool::of);
        let (old, new) = (seen(&change.old), seen(&change.new));
        if old == new {
            return Vec::new();
        }
        let selects = |spec: &Value, pool: &Pool| {
            let named = fields::items(&spec["pools"]).any(|name| *name == *pool.name);
            let selector = LabelSelector::from_json(&spec["nodepoolSelector"]);
            named || selector.is_ok_and(|selector| selector.matches(&pool.labels))
        };
        let subjects = subjects.list("");
        let concerned = subjects.iter().filter(|subject| {
            let mut pools = [&old, &new].into_iter().flatten();
            pools.any(|pool| selects(&subject["spec"], pool))
        });
        concerned.map(|subject| Key::of(subject)).collect()
    })
}

/// Watches of the workloads of a kind of subject, by their owner or by `label`.
pub(crate) fn watch_workloads(
    kind: &'static str,
    label: Option<&'static str>,
) -> impl Iterator<Item = Watch> {
    WORKLOADS.into_iter().map(move |(_, collection)| {
        let owned = Watch::owned(collection.clone(), kind).concerns;
        let concerns = move |change: &Change| {
            let mut keys = owned(change);
            let orphan = change
                .new
                .as_deref()
                .filter(|object| controller_of(object).is_none());
            let said =
                |object: &Value| Some(object["metadata"]["labels"][label?].as_str()?.to_owned());
            if let Some(object) = orphan
                && let Some(name) = said(object)
            {
                keys.push(Key::new(&Key::of(object).namespace, &name));
            }
            keys
        };
        Watch::of(collection, concerns).scoped(workload_scope())
    })
}

/// A watch of overriders that concerns their subjects of a kind.
pub(crate) fn watch_overriders(kind: &'static str) -> Watch {
    Watch::of(YURT_APP_OVERRIDERS, move |change: &Change| {
        let versions = [&change.old, &change.new].into_iter().flatten();
        let about = versions.filter(|overrider| overrider["subject"]["kind"] == kind);
        let key = |overrider: &Arc<Value>| {
            let name = overrider["subject"]["name"].as_str().unwrap_or_default();
            Key::new(&Key::of(overrider).namespace, name)
        };
        about.map(key).collect()
    })
}

/// A watch of the revisions of a kind of subject.
pub(crate) fn watch_revisions(kind: &'static str) -> Watch {
    Watch::owned(CONTROLLER_REVISIONS, kind).scoped(revision::scope())
}

/// `yurt-app-set-controller`.
#[derive(Debug)]
pub(crate) struct YurtAppSets(Engine);

impl Default for YurtAppSets {
    fn default() -> Self {
        Self(Engine::new("yurt-manager/yurtappset"))
    }
}

impl Controller for YurtAppSets {
    const NAME: &'static str = "yurt-app-set-controller";
    const WORKERS: usize = 3;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let mut watches = vec![
            Watch::own(YURT_APP_SETS),
            watch_pools(context, YURT_APP_SETS),
            watch_overriders("YurtAppSet"),
            watch_revisions("YurtAppSet"),
        ];
        watches.extend(watch_workloads(
            "YurtAppSet",
            Some(labels::REF_YURT_APP_SET),
        ));
        watches
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let object = context.objects(&YURT_APP_SETS).get(key);
        let Some(object) = object.filter(|object| !pod::is_deleting(object)) else {
            return Ok(Next::Done);
        };
        let subject = Subject::new(YURT_APP_SETS, object, Self::NAME, None, |spec| {
            serde_json::from_value(spec.clone())
        });
        let (report, outcome) = self.0.look(&subject, context).await;
        let status = report.set_status(&subject.object, Timestamp::now());
        subject.tell(context, &status).await?;
        outcome
    }
}
