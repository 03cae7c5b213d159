//! One look at a subject: what is there and what is wanted are made out, what follows is done, and told.

use super::{
    Subject, WORKLOADS,
    child::Child,
    plan::{self, Act, Difference, Place, Reason},
    pools::{BadSelector, Choice, Pool, Tweak, shares},
    render::{Blueprint, Owner},
    revision::{self, Mark},
    rollout::{Stage, Turn, turn},
    status::{PoolReport, Report},
    workload_scope,
    write::{self, Done, Writer},
};
use crate::{Context, Failure, Key, Next, pod};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use yurt_api::{
    apps::{
        yurtappoverrider::YurtAppOverrider,
        yurtappset::{Rollout, Workload, WorkloadTweak, YurtAppSetSpec},
    },
    meta::Object,
    translation,
};
use yurt_controller::{
    Collection,
    collections::{NODE_POOLS, YURT_APP_OVERRIDERS},
    controller_of, fields,
    revision::History,
};

/// How long what the server refused is left alone, where it may be allowed by then (quota, rights).
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Looks after subjects.
#[derive(Debug)]
pub(crate) struct Engine {
    writer: Writer,
}

/// Why a look ends before anything is written.
enum Stop {
    /// The subject asks for something that cannot be: reason and message. To look again is of no use.
    Fault(&'static str, String),
    /// The API server's.
    Failure(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<BadSelector> for Stop {
    fn from(bad: BadSelector) -> Self {
        let message = format!("{bad}; its workloads stay as they are");
        Self::Fault("InvalidSelector", message)
    }
}

/// What is to be done, in the order of the places.
struct Plan<'p> {
    differences: Vec<Difference>,
    acts: Vec<Act>,
    /// By pool.
    stages: BTreeMap<&'p str, Stage>,
    turn: Turn,
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
        let outcome = match self.try_look(subject, context, &mut report).await {
            Ok(next) => Ok(next),
            Err(Stop::Fault(reason, message)) => {
                report.fault = Some((reason, message));
                Ok(Next::Done)
            }
            Err(Stop::Failure(failure)) => {
                if report.pools.is_empty() {
                    report.fault = Some(("FailedRevisionProvision", failure.to_string()));
                }
                Err(failure)
            }
        };
        (report, outcome)
    }

    async fn try_look(
        &self,
        subject: &Subject,
        context: &Context,
        report: &mut Report,
    ) -> Result<Next, Stop> {
        let (owner, told) = (&subject.owner, &subject.object["status"]);
        let fault = |error: &String| Stop::Fault("InvalidSpec", error.clone());
        let spec = subject.spec.as_ref().map_err(fault)?;
        let Some((kind, template)) = spec.workload.workload_template.only() else {
            let message = "workloadTemplate must have exactly one of deploymentTemplate and statefulSetTemplate; its workloads stay as they are";
            return Err(Stop::Fault("InvalidTemplate", message.into()));
        };
        report.kind = kind;
        let pools = chosen(spec, context)?;
        let children = children(subject, context).await?;
        same_kind(subject, kind, &children)?;
        let (overrides, overrider) = overrides(subject, context, &pools);
        report.overrider = overrider;

        let mut history = revision::history(context, owner, &subject.object).await?;
        report.revision = revision::name(&history.current).to_owned();
        report.collisions = history.collisions;
        // What all goes back to.
        let good = match Mark::of(&history.current) {
            Some(Mark::Failed) => revision::last_good(&history).cloned(),
            _ => None,
        };
        let target = good.as_ref().unwrap_or(&history.current).clone();
        let target = revision::name(&target);
        let workload = match &good {
            Some(good) => workload_of(owner, good),
            None => spec.workload.clone(),
        };
        let template = workload
            .workload_template
            .only()
            .map_or(template, |(_, t)| t);
        let tweaks = Tweak::all(workload.workload_tweaks.iter().chain(&overrides))?;
        let (shares, sized) = shares(spec.replicas, &pools, &tweaks);
        report.sized = sized.iter().map(|pool| (*pool).to_owned()).collect();
        let blueprint = Blueprint {
            owner,
            kind,
            template,
            tweaks,
        };
        let (mut places, going) = places(&blueprint, &pools, &shares, children);

        let now = Timestamp::now();
        // What goes back goes back at once.
        let rollout = spec.rollout.as_ref().filter(|_| good.is_none());
        let plan = self.plan(&pools, &places, rollout, told, now);
        // Deletions first: what a duplicate holds (volumes, ports) may be what the kept one needs.
        let mut troubles = Troubles::default();
        let deleted = self.writer.delete(context, &going).await;
        tell_deleted(subject, context, &going, &deleted, report, &mut troubles);
        let entries = fields::items(&told["pools"]).filter(|entry| entry["phase"] == "Failed");
        let failed: BTreeSet<&str> = entries.filter_map(|entry| entry["pool"].as_str()).collect();
        let done = self
            .writer
            .write(
                context, kind, owner, &places, &plan.acts, &failed, target, now,
            )
            .await;
        tell_written(
            subject,
            context,
            &mut places,
            &plan,
            done,
            report,
            &mut troubles,
        );

        let settled = settle(subject, context, &mut history, &plan, report).await;
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
            Next::Done => Ok(plan.turn.recheck.map_or(Next::Done, Next::After)),
            later => Ok(later),
        }
    }

    /// Decides whose turn it is, and what is done in each place.
    fn plan<'p>(
        &self,
        pools: &'p [Pool],
        places: &[Place],
        rollout: Option<&Rollout>,
        told: &Value,
        now: Timestamp,
    ) -> Plan<'p> {
        let is_settled = |child: &Child, rendered: &_| self.writer.is_settled(child, rendered);
        let differences: Vec<Difference> = places
            .iter()
            .map(|place| place.difference(is_settled))
            .collect();
        let stages: BTreeMap<&str, Stage> = pools
            .iter()
            .zip(places.iter().zip(&differences))
            .map(|(pool, (place, difference))| (&*pool.name, place.stage(*difference, told)))
            .collect();
        let turn = turn(rollout, &stages, now);
        let acts = places
            .iter()
            .zip(&differences)
            .map(|(place, difference)| place.act(*difference, &turn))
            .collect();
        Plan {
            differences,
            acts,
            stages,
            turn,
        }
    }
}

/// The pools that a subject is for.
fn chosen(spec: &YurtAppSetSpec, context: &Context) -> Result<Vec<Pool>, BadSelector> {
    let choice = Choice::of(spec)?;
    let pools = context.objects(&NODE_POOLS).list("");
    let pools = pools.iter().map(|pool| Pool::of(pool));
    Ok(pools.filter(|pool| choice.has(pool)).collect())
}

/// The kind of a subject's workloads is for good.
fn same_kind(subject: &Subject, kind: &str, children: &[Child]) -> Result<(), Stop> {
    let Some(other) = children.iter().find(|child| child.kind != kind) else {
        return Ok(());
    };
    let message = format!(
        "its workloads are of kind {}: to change the kind, delete the {} and create it anew",
        other.kind, subject.collection.kind
    );
    Err(Stop::Fault("TemplateKindChanged", message))
}

/// What is to be in each pool, in their order, and the workloads that are to go.
fn places(
    blueprint: &Blueprint<'_>,
    pools: &[Pool],
    shares: &BTreeMap<&str, i64>,
    children: Vec<Child>,
) -> (Vec<Place>, Vec<(Child, Reason)>) {
    let names: BTreeSet<&str> = pools.iter().map(|pool| &*pool.name).collect();
    let (mut kept, going) = plan::placed(children, |pool| names.contains(pool));
    let place = |pool: &Pool| {
        let child = kept.remove(&pool.name);
        let identity = child.as_ref().and_then(Child::identity);
        let identity = identity.unwrap_or(&pool.name);
        let rendered = blueprint.render(pool, identity, shares.get(&*pool.name).copied());
        Place {
            pool: pool.clone(),
            child,
            rendered,
        }
    };
    (pools.iter().map(place).collect(), going)
}

/// Takes in what was written, and tells how it is in each place.
fn tell_written(
    subject: &Subject,
    context: &Context,
    places: &mut [Place],
    plan: &Plan<'_>,
    done: Vec<Done>,
    report: &mut Report,
    troubles: &mut Troubles,
) {
    let told = &subject.object["status"];
    let held = plan.turn.held.as_ref();
    let (mut created, mut updated) = (0, 0);
    let planned = plan.acts.iter().zip(&plan.differences);
    for ((place, (act, difference)), done) in places.iter_mut().zip(planned).zip(done) {
        let trouble = match done {
            Done::Nothing => None,
            Done::Written(object) => {
                match act {
                    Act::Create => created += 1,
                    _ => updated += 1,
                }
                place.child = Some(Child::of(object, report.kind));
                None
            }
            Done::Postponed => {
                let message = "tried again when the API server is well";
                Some(("Waiting", message.into()))
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
                let trouble = (phase, error.message());
                troubles.add(error);
                Some(trouble)
            }
        };
        if let Err(fault) = &place.rendered {
            match place.child {
                None => report.creating.push(fault.to_string()),
                Some(_) => report.updating.push(fault.to_string()),
            }
        }
        let told = PoolReport::of(place, *act, *difference, trouble, held, told);
        report.pools.push(told);
    }
    for (count, what) in [(created, "CreateWorkload"), (updated, "UpdateWorkload")] {
        if count > 0 {
            let verb = what.trim_end_matches("Workload");
            subject.event(
                context,
                &format!("Successful {what}"),
                &format!("{verb} {count} {}", report.kind),
            );
        }
    }
    report.held = plan.turn.held.clone();
}

/// Notes how the rollout of the present revision ended. The note brings the next look, in which everything goes back.
async fn settle(
    subject: &Subject,
    context: &Context,
    history: &mut History,
    plan: &Plan<'_>,
    report: &Report,
) -> Result<(), Failure> {
    let is_gated = subject
        .spec
        .as_ref()
        .is_ok_and(|spec| spec.rollout.is_some());
    if !is_gated || Mark::of(&history.current).is_some() {
        return Ok(());
    }
    if !plan.turn.failed.is_empty() && revision::last_good(history).is_some() {
        let message = format!(
            "{} did not become ready in time with revision {}",
            plan::some(&plan.turn.failed),
            report.revision
        );
        revision::mark(context, history, Mark::Failed).await?;
        subject.warn(context, "RolloutFailed", &message);
        return Ok(());
    }
    let all_settled = plan.stages.values().all(|stage| *stage == Stage::Settled);
    let all_ready = report.pools.iter().all(|pool| pool.phase == "Ready");
    if all_settled && all_ready && !report.pools.is_empty() {
        revision::mark(context, history, Mark::Complete).await?;
    }
    Ok(())
}

/// The workloads of a subject, after orphans of it were found to be its own.
async fn children(subject: &Subject, context: &Context) -> Result<Vec<Child>, Failure> {
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
