//! `yurt-node-conversion-controller` of OpenYurt: nodes become nodes of the edge, with a hub, when they come into a pool of the edge, and
//! go back when they leave it; a Job on the node does it.
//!
//! A conversion restarts what runs on the node, so it takes more than a label: an annotation of the node, or of the pool for nodes
//! that come, allows it (`plan::wish`). A few nodes at a time, one per pool; after some failures none more. A cordon of before stays.

mod conversion_job;
mod plan;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{JOBS, NODE_POOLS, NODES},
    condition,
    fields::{items, text},
    pod,
    presence::{Presence, is_here},
    told::Told,
};
use conversion_job::Outcome;
use jiff::Timestamp;
use plan::{Direction, Phase, State, Step, Wish, pool_of};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use yurt_api::names::{
    annotations::{NODE_CONVERSION, NODE_CONVERSION_STATE},
    conditions::NODE_CONVERSION_FAILED,
    finalizers,
    labels::{CONVERSION_NODE, EDGE_WORKER, NODE_POOL, ZONE},
};
use yurt_controller::{Objects, Scope, policy::Rule, run_with};

/// How many nodes are converted at once; one per pool.
const AT_ONCE: usize = 3;
/// After so many failures, as long as their jobs are kept, no other node begins.
const MOST_FAILURES: usize = 3;
/// How long a node that was let in may take to show its job.
const SHOWN: Duration = Duration::from_secs(60);
/// Before a node that found no room asks again.
const TURN: Duration = Duration::from_secs(15);

pub(crate) const ENTRY: Entry = Entry::new(
    NodeConversion::NAME,
    "yurtnodeconversion",
    &[
        Rule::new("", &["nodes", "nodes/status"], &["patch"]),
        Rule::new("batch", &["jobs"], &["create", "patch", "delete"]),
        Rule::new("", &["events"], &["create"]),
    ],
    |context, settings| {
        let controller = NodeConversion {
            image: settings.node_servant_image.clone(),
            namespace: settings.namespace.clone(),
            begun: Mutex::default(),
            told: Told::default(),
        };
        let workers = settings.workers(NodeConversion::NAME, 3);
        run_with(context, controller, workers);
    },
);

/// `yurt-node-conversion-controller`. Its keys are nodes.
#[derive(Debug)]
struct NodeConversion {
    image: String,
    namespace: String,
    /// Nodes that were let in and whose jobs may not show yet: their pool, and when. At most [`AT_ONCE`].
    begun: Mutex<BTreeMap<String, (String, Instant)>>,
    told: Told,
}

/// The jobs that convert nodes.
fn jobs(namespace: &str) -> Scope {
    Scope::default().within(namespace).labelled(CONVERSION_NODE)
}

/// What of a node decides.
fn matters(node: &Value) -> Value {
    let (labels, annotations) = (
        &node["metadata"]["labels"],
        &node["metadata"]["annotations"],
    );
    json!([
        labels[NODE_POOL],
        labels[EDGE_WORKER],
        annotations[NODE_CONVERSION],
        annotations[NODE_CONVERSION_STATE],
        is_here(node, None),
        condition::find(&node["status"], NODE_CONVERSION_FAILED).map(|c| &c["reason"]),
    ])
}

/// The pools of nodes that are at it (by node), and how many have failed lately. Pure.
fn at_work(jobs: &[Arc<Value>]) -> (BTreeMap<String, String>, usize) {
    let failed = jobs
        .iter()
        .filter(|job| matches!(conversion_job::outcome(job), Outcome::Failed(_)));
    let running = jobs
        .iter()
        .filter(|job| conversion_job::outcome(job) == Outcome::Running);
    let running = running.filter_map(|job| {
        Some((
            conversion_job::node(job)?.to_owned(),
            conversion_job::pool(job),
        ))
    });
    (running.collect(), failed.count())
}

/// Why a node cannot begin now, beside those that are at it. Pure.
fn no_room(
    is_here: bool,
    pool: &str,
    running: &BTreeMap<String, String>,
    failures: usize,
) -> Option<&'static str> {
    if !is_here {
        Some("the node is not ready")
    } else if failures >= MOST_FAILURES {
        Some("conversions of other nodes failed; none begins while their jobs are there")
    } else if running.len() >= AT_ONCE || running.values().any(|known| known == pool) {
        Some("other nodes are being converted")
    } else {
        None
    }
}

/// The labels that a conversion ends with. Pure.
fn labels(node: &Value, direction: Direction, pool: &str, is_pool: impl Fn(&str) -> bool) -> Value {
    let zone = node["metadata"]["labels"][ZONE]
        .as_str()
        .unwrap_or_default();
    match direction {
        Direction::Convert if zone.is_empty() && !pool.is_empty() => {
            json!({EDGE_WORKER: "true", ZONE: pool})
        }
        Direction::Convert => json!({EDGE_WORKER: "true"}),
        Direction::Revert if is_pool(zone) => json!({EDGE_WORKER: null, ZONE: null}),
        Direction::Revert => json!({EDGE_WORKER: null}),
    }
}

impl NodeConversion {
    /// Lets a node in, if there is room.
    fn admit(
        &self,
        node: &Value,
        pool: &str,
        jobs: &Objects,
        presence: &Presence,
    ) -> Result<(), &'static str> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut running, failures) = at_work(&jobs.list(&self.namespace));
        // What has a job counts by it.
        begun.retain(|name, (_, since)| {
            let job = jobs.get(&Key::new(&self.namespace, &conversion_job::name(name)));
            job.is_none() && since.elapsed() < SHOWN
        });
        let more = begun
            .iter()
            .map(|(name, (pool, _))| (name.clone(), pool.clone()));
        running.extend(more);
        let name = text(&node["metadata"]["name"]);
        running.remove(&name);
        if let Some(why) = no_room(presence.has(&name), pool, &running, failures) {
            return Err(why);
        }
        begun.insert(name, (pool.to_owned(), Instant::now()));
        Ok(())
    }

    async fn set_condition(
        &self,
        context: &Context,
        node: &Value,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), Failure> {
        let known = condition::find(&node["status"], NODE_CONVERSION_FAILED);
        let same = |known: &Value| known["status"] == status && known["reason"] == reason;
        if known.is_some_and(same) {
            return Ok(());
        }
        let condition = condition::new(
            NODE_CONVERSION_FAILED,
            status,
            reason,
            message,
            Timestamp::now(),
        );
        let patch = json!({"status": {"conditions": [condition]}});
        context
            .patch(&NODES, &Key::of(node), "status", &patch)
            .await?;
        Ok(())
    }

    /// Says on the node how it ended (the condition's status, reason and message), then notes that it did.
    async fn conclude(
        &self,
        context: &Context,
        node: &Value,
        (status, reason, message): (&str, &str, &str),
        state: &State,
        cordoned: bool,
        labels: Value,
    ) -> Result<(), Failure> {
        self.set_condition(context, node, status, reason, message)
            .await?;
        // With the condition it is another version.
        let known = context.objects(&NODES).get(&Key::of(node));
        let node = known.as_deref().unwrap_or(node);
        self.change(context, node, state, cordoned, labels).await
    }

    /// Changes the node at the version that was looked at.
    async fn change(
        &self,
        context: &Context,
        node: &Value,
        state: &State,
        cordoned: bool,
        labels: Value,
    ) -> Result<(), Failure> {
        let mut patch = json!({"metadata": {"resourceVersion": node["metadata"]["resourceVersion"],
            "annotations": {NODE_CONVERSION_STATE: state.to_text()}}});
        if !labels.is_null() {
            patch["metadata"]["labels"] = labels;
        }
        if (node["spec"]["unschedulable"] == true) != cordoned {
            patch["spec"]["unschedulable"] = if cordoned { true.into() } else { Value::Null };
        }
        context.merge(&NODES, &Key::of(node), "", &patch).await?;
        Ok(())
    }

    async fn make_job(
        &self,
        context: &Context,
        node: &Value,
        direction: Direction,
        pool: &str,
    ) -> Result<(), Failure> {
        let message = format!("A job is to {direction} the node.");
        self.set_condition(context, node, "False", direction.reasons()[0], &message)
            .await?;
        let name = text(&node["metadata"]["name"]);
        let job = conversion_job::job(&name, pool, direction, &self.image, &self.namespace);
        match context.create(&JOBS, job).await {
            // It is there already.
            Err(error) if error.code() != Some(409) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The end of a job has been told; it may go.
    async fn drop_finalizer(&self, context: &Context, job: &Value) -> Result<(), Failure> {
        let left: Vec<&Value> = items(&job["metadata"]["finalizers"])
            .filter(|finalizer| **finalizer != finalizers::NODE_CONVERSION)
            .collect();
        let patch = json!({"metadata": {"resourceVersion": job["metadata"]["resourceVersion"], "finalizers": left}});
        match context.merge(&JOBS, &Key::of(job), "", &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn carry_out(
        &self,
        context: &Context,
        node: &Value,
        job: Option<&Value>,
        step: Step,
    ) -> Result<Next, Failure> {
        let event = |kind: &str, reason: &str, message: &str| {
            context.event(Self::NAME, node, kind, reason, message)
        };
        match step {
            Step::Nothing => {}
            Step::Tell(why) => {
                if self.told.is_news(&text(&node["metadata"]["uid"]), &why) {
                    event("Warning", "NodeConversionNotAllowed", &why);
                }
            }
            Step::Begin(state, pool) => {
                let jobs = context.scoped(&JOBS, &jobs(&self.namespace));
                if let Err(why) = self.admit(node, &pool, &jobs, &Presence::of(context)) {
                    tracing::debug!(node = %Key::of(node), why, "conversion waits");
                    return Ok(Next::After(TURN));
                }
                self.change(context, node, &state, true, Value::Null)
                    .await?;
                event(
                    "Normal",
                    state.direction.reasons()[0],
                    "The node is cordoned, and a job is made for it.",
                );
                self.make_job(context, node, state.direction, &pool).await?;
            }
            Step::MakeJob(direction, pool) => {
                self.make_job(context, node, direction, &pool).await?
            }
            Step::Settle(state) => {
                let (reason, pool) = (
                    state.direction.reasons()[1],
                    job.map(conversion_job::pool).unwrap_or_default(),
                );
                let pools = context.objects(&NODE_POOLS);
                let labels = labels(node, state.direction, &pool, |zone| {
                    pools.get(&Key::new("", zone)).is_some()
                });
                let state = State {
                    phase: Phase::Done,
                    ..state
                };
                let said = ("False", reason, "");
                self.conclude(context, node, said, &state, state.cordoned, labels)
                    .await?;
                event("Normal", reason, "The node is as its labels say.");
                if let Some(job) = job {
                    self.drop_finalizer(context, job).await?;
                }
            }
            Step::Fail(state, why) => {
                let reason = state.direction.reasons()[2];
                let message = format!(
                    "{why}. The node stays cordoned. To try again, set annotation {NODE_CONVERSION} to another text after a colon \
                     ({direction}:2); to leave it, take the wish back.",
                    direction = state.direction
                );
                let state = State {
                    phase: Phase::Failed,
                    ..state
                };
                let said = ("True", reason, &*message);
                self.conclude(context, node, said, &state, true, Value::Null)
                    .await?;
                event("Warning", reason, &why);
                if let Some(job) = job {
                    self.drop_finalizer(context, job).await?;
                }
            }
            Step::DropJob => {
                if let Some(job) = job {
                    let options = json!({"propagationPolicy": "Background"});
                    context.delete_with(&JOBS, job, &options).await?;
                }
            }
            Step::Release(state, reason) => {
                let state = State {
                    phase: Phase::Done,
                    ..state
                };
                let said = ("False", reason, "");
                self.conclude(context, node, said, &state, state.cordoned, Value::Null)
                    .await?;
            }
        }
        Ok(Next::Done)
    }
}

impl Controller for NodeConversion {
    const NAME: &'static str = "yurt-node-conversion-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let nodes = Watch::of(NODES, |change| {
            let of = |node: &Option<Arc<Value>>| node.as_deref().map(matters);
            (of(&change.old) != of(&change.new))
                .then(|| change.key())
                .into_iter()
                .collect()
        });
        // A pool tells of its nodes itself; nobody looks through all there are.
        let pools = Watch::of(NODE_POOLS, |change| {
            let of = |pool: &Option<Arc<Value>>| {
                let pool = pool.as_deref()?;
                Some((
                    pool["metadata"]["annotations"][NODE_CONVERSION].clone(),
                    pool["spec"]["type"].clone(),
                ))
            };
            let new = change
                .new
                .as_deref()
                .filter(|_| of(&change.old) != of(&change.new));
            let names = new
                .into_iter()
                .flat_map(|pool| items(&pool["status"]["nodes"]));
            names
                .filter_map(|name| Some(Key::new("", name.as_str()?)))
                .collect()
        });
        let of_jobs = Watch::of(JOBS, |change| {
            let any = change.new.as_deref().or(change.old.as_deref());
            let node = any.and_then(conversion_job::node);
            node.map(|node| Key::new("", node)).into_iter().collect()
        });
        vec![nodes, pools, of_jobs.scoped(jobs(&self.namespace))]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let jobs = context.scoped(&JOBS, &jobs(&self.namespace));
        let job = jobs.get(&Key::new(&self.namespace, &conversion_job::name(&key.name)));
        let node = context.objects(&NODES).get(key);
        let Some(node) = node.filter(|node| !pod::is_deleting(node)) else {
            // Nobody is left to be told.
            if let Some(job) = job.filter(|job| !conversion_job::is_told(job)) {
                self.drop_finalizer(context, &job).await?;
            }
            return Ok(Next::Done);
        };
        let pool = context
            .objects(&NODE_POOLS)
            .get(&Key::new("", pool_of(&node)));
        let wish: Wish = plan::wish(&node, pool.as_deref());
        let step = plan::step(&node, &wish, job.as_deref());
        if !matches!(step, Step::Tell(_)) {
            self.told.is_news(&text(&node["metadata"]["uid"]), "");
        }
        self.carry_out(context, &node, job.as_deref(), step).await
    }
}

#[cfg(test)]
mod tests;
