//! daemonset-controller: one pod of a template on each node that takes it.
//!
//! [`plan`] is pure: from a daemon set, the nodes and its pods to those to create and delete.

mod backoff;
mod placement;

use super::{
    Context, Controller, Failure, Key, Next, Watch, batch, claim,
    collections::{CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS},
    pod,
    pod_control::{PodControl, is_going},
    revision,
    share::{self, Round},
};
use backoff::Backoff;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const COMPONENT: &str = "daemonset-controller";
/// The most that one look creates or deletes.
const BURST: usize = 250;
/// How the server counts templates for clients of before `apps/v1`.
const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";

/// `daemonset-controller`.
#[derive(Default)]
pub(super) struct DaemonSets {
    failures: Mutex<Backoff>,
}

type Pods = BTreeMap<String, Vec<Arc<Value>>>;
/// The pod of the present template on a node, and the one of another.
type Pair<'p> = (Option<&'p Arc<Value>>, Option<&'p Arc<Value>>);

/// One look: a daemon set and what there is.
struct View<'v> {
    set: &'v Value,
    /// The label value of the present template.
    hash: &'v str,
    nodes: &'v [Arc<Value>],
    /// By node; the older first.
    pods: &'v Pods,
    now: Timestamp,
}

/// Pods to create, by node, and to delete.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<String>,
    delete: Vec<Arc<Value>>,
    /// Of those to delete: the ones that ended although daemons do not end.
    ended: Vec<Arc<Value>>,
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

impl View<'_> {
    fn min_ready(&self) -> i64 {
        self.set["spec"]["minReadySeconds"].as_i64().unwrap_or(0)
    }

    fn is_available(&self, p: &Value) -> bool {
        pod::is_available(p, self.min_ready(), self.now)
    }

    /// Whether a pod is of the present template.
    fn is_updated(&self, p: &Value) -> bool {
        p["metadata"]["labels"][revision::HASH] == self.hash
    }

    fn on(&self, node: &str) -> &[Arc<Value>] {
        self.pods.get(node).map_or(&[], Vec::as_slice)
    }

    /// The nodes that take the daemon.
    fn desired(&self) -> Vec<&str> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|node| placement::judge(self.set, node).starts)
            .map(|node| name(node))
            .collect()
    }

    /// `maxSurge` and `maxUnavailable` as numbers of nodes.
    fn limits(&self) -> (usize, usize) {
        let desired = i64::try_from(self.desired().len()).unwrap_or(i64::MAX);
        let rolling = &self.set["spec"]["updateStrategy"]["rollingUpdate"];
        let of = |field: &str| {
            let count = share::of(&rolling[field], desired, Round::Up);
            usize::try_from(count).unwrap_or(0)
        };
        match (of("maxSurge"), of("maxUnavailable")) {
            (0, 0) if desired > 0 => (0, 1),
            limits => limits,
        }
    }

    fn is_rolling(&self) -> bool {
        self.set["spec"]["updateStrategy"]["type"] != "OnDelete"
    }

    fn surges(&self) -> bool {
        let rolling = &self.set["spec"]["updateStrategy"]["rollingUpdate"];
        self.is_rolling() && share::of(&rolling["maxSurge"], 100, Round::Up) > 0
    }

    /// A pod on each node that takes it, and none elsewhere. `held_off`: failed pods whose time has not come.
    fn place(&self, held_off: impl Fn(&Value) -> bool) -> Plan {
        let mut plan = Plan::default();
        for node in self.nodes {
            let verdict = placement::judge(self.set, node);
            let pods = self.on(name(node));
            let staying: Vec<_> = pods
                .iter()
                .filter(|p| !pod::is_deleting(p))
                .cloned()
                .collect();
            if verdict.starts && pods.is_empty() {
                plan.create.push(name(node).to_owned());
            } else if verdict.stays {
                let (ended, running): (Vec<_>, Vec<_>) =
                    staying.into_iter().partition(|p| pod::is_finished(p));
                let ended = ended.into_iter().filter(|p| !held_off(p));
                plan.ended.extend(ended);
                plan.delete.extend(self.too_many(&running));
            } else {
                plan.delete.extend(staying);
            }
        }
        // Pods that wait for a node that is gone.
        for (node, pods) in self.pods {
            if self.nodes.iter().all(|n| name(n) != node) {
                let waiting = pods.iter().filter(|p| pod::node(p).is_empty());
                plan.delete
                    .extend(waiting.filter(|p| !pod::is_deleting(p)).cloned());
            }
        }
        plan.delete.extend(plan.ended.iter().cloned());
        plan
    }

    /// The running pods of one node that are too many: all but the oldest; where a surge is allowed, an old one and a new one
    /// may be there together until the new one is available.
    fn too_many(&self, running: &[Arc<Value>]) -> Vec<Arc<Value>> {
        if running.len() <= 1 {
            return Vec::new();
        }
        if !self.surges() {
            return running[1..].to_vec();
        }
        let (mut new, mut old, mut surplus) = (None, None, Vec::new());
        for p in running {
            let place = if self.is_updated(p) {
                &mut new
            } else {
                &mut old
            };
            match place {
                None => *place = Some(p),
                Some(_) => surplus.push(p.clone()),
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!pod::is_ready(old) || self.is_available(new))
        {
            surplus.push(old.clone());
        }
        surplus
    }

    /// The pods of a node: of the present template and of another. `None` when there are two of either.
    fn pair(&self, node: &str) -> Option<Pair<'_>> {
        let (mut new, mut old) = (None, None);
        for p in self.on(node).iter().filter(|p| !pod::is_deleting(p)) {
            let place = if self.is_updated(p) {
                &mut new
            } else {
                &mut old
            };
            if place.replace(p).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    /// Replaces pods of other templates, as many as the strategy allows.
    fn roll(&self) -> Plan {
        let (surge, unavailable) = self.limits();
        let desired = self.desired();
        let others = self.pods.keys().map(String::as_str);
        let mut nodes: Vec<&str> = others.chain(desired).collect();
        nodes.sort_unstable();
        nodes.dedup();
        if surge == 0 {
            self.roll_in_place(&nodes, unavailable)
        } else {
            self.roll_by_surge(&nodes, surge)
        }
    }

    fn roll_in_place(&self, nodes: &[&str], most: usize) -> Plan {
        let (mut missing, mut broken, mut candidates) = (0, Vec::new(), Vec::new());
        for node in nodes {
            match self.pair(node) {
                Some((Some(new), None)) => missing += usize::from(!self.is_available(new)),
                Some((None, Some(old))) if self.is_available(old) => candidates.push(old.clone()),
                // Replacing it costs nothing.
                Some((None, Some(old))) => {
                    broken.push(old.clone());
                    missing += 1;
                }
                _ => missing += 1,
            }
        }
        candidates.truncate(most.saturating_sub(missing));
        broken.extend(candidates);
        Plan {
            delete: broken,
            ..Plan::default()
        }
    }

    fn roll_by_surge(&self, nodes: &[&str], most: usize) -> Plan {
        let mut plan = Plan::default();
        let (mut surging, mut candidates) = (0, Vec::new());
        for node in nodes {
            match self.pair(node) {
                None => surging += 1,
                Some((_, None)) => {}
                Some((None, Some(old))) if self.is_available(old) => {
                    candidates.push((*node).to_owned());
                }
                Some((None, Some(_))) => plan.create.push((*node).to_owned()),
                Some((Some(new), Some(old))) if self.is_available(new) => {
                    plan.delete.push(old.clone());
                }
                Some((Some(_), Some(_))) => surging += 1,
            }
        }
        candidates.truncate(most.saturating_sub(surging));
        plan.create.extend(candidates);
        plan
    }

    fn status(&self, collisions: Option<i64>) -> Value {
        let mut count = [0_u64; 6];
        let [desired, current, misplaced, ready, available, updated] = &mut count;
        for node in self.nodes {
            let pods = self.on(name(node));
            if !placement::judge(self.set, node).starts {
                *misplaced += u64::from(!pods.is_empty());
                continue;
            }
            *desired += 1;
            let Some(p) = pods.first() else {
                continue;
            };
            *current += 1;
            *ready += u64::from(pod::is_ready(p));
            *available += u64::from(self.is_available(p));
            *updated += u64::from(self.is_updated(p));
        }
        let [desired, current, misplaced, ready, available, updated] = count;
        let mut status = json!({"currentNumberScheduled": current, "numberMisscheduled": misplaced,
            "desiredNumberScheduled": desired, "numberReady": ready,
            "observedGeneration": self.set["metadata"]["generation"]});
        for (field, number) in [
            ("updatedNumberScheduled", updated),
            ("numberAvailable", available),
            ("numberUnavailable", desired - available),
        ] {
            if number > 0 {
                status[field] = number.into();
            }
        }
        if let Some(collisions) = collisions {
            status["collisionCount"] = collisions.into();
        }
        if let Some(conditions) = self.set["status"].get("conditions") {
            status["conditions"] = conditions.clone();
        }
        status
    }
}

/// What is to be done: first the right nodes, then the right template.
fn plan(view: &View<'_>, held_off: impl Fn(&Value) -> bool) -> Plan {
    let mut plan = view.place(held_off);
    if plan == Plan::default() && view.is_rolling() {
        plan = view.roll();
    }
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    plan
}

/// By node, the older first; pods that ended and are on their way out are not counted.
fn by_node(pods: Vec<Arc<Value>>) -> Pods {
    let mut by_node = Pods::new();
    for p in pods {
        let over = pod::is_finished(&p) && pod::is_deleting(&p);
        if let Some(node) = placement::node_of(&p).filter(|_| !over) {
            by_node.entry(node.to_owned()).or_default().push(p);
        }
    }
    for pods in by_node.values_mut() {
        pods.sort_by_cached_key(|p| {
            let created = p["metadata"]["creationTimestamp"].as_str();
            let created = created.unwrap_or_default().to_owned();
            (pod::node(p).is_empty(), created, name(p).to_owned())
        });
    }
    by_node
}

/// The pod for a node.
fn pod_for(set: &Value, hash: &str, node: &str) -> Value {
    let namespace = set["metadata"]["namespace"].as_str().unwrap_or_default();
    let owner = claim::reference(&DAEMON_SETS, set);
    let mut p = pod::from_template(&set["spec"]["template"], &owner, namespace);
    let labels = &mut p["metadata"]["labels"];
    labels[revision::HASH] = hash.into();
    if let Some(generation) = set["metadata"]["annotations"].get(GENERATION) {
        labels[GENERATION_LABEL] = generation.clone();
    }
    placement::bind(&mut p["spec"], node);
    p
}

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let sets = context.objects(&DAEMON_SETS);
        let all = sets.clone();
        let nodes = Watch::of(NODES, move |change| {
            // What kubelets report all the time changes nothing.
            let place = |node: &Option<Arc<Value>>| {
                let node = node.as_ref()?;
                Some((node["metadata"]["labels"].clone(), node["spec"].clone()))
            };
            if place(&change.old) == place(&change.new) {
                return Vec::new();
            }
            all.list("").iter().map(|set| Key::of(set)).collect()
        });
        vec![
            Watch::own(DAEMON_SETS),
            Watch::claimed(PODS, "DaemonSet", sets.clone()),
            Watch::claimed(CONTROLLER_REVISIONS, "DaemonSet", sets),
            nodes,
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(set) = context.objects(&DAEMON_SETS).get(key) else {
            return Ok(Next::Done);
        };
        let Some(selector) = claim::selector_of(&set).filter(|_| !pod::is_deleting(&set)) else {
            return Ok(Next::Done);
        };
        let history =
            revision::history(context, &DAEMON_SETS, &set, &selector, revision::HASH).await?;
        let hash = history.current["metadata"]["labels"][revision::HASH].as_str();
        let hash = hash.unwrap_or_default();
        let pods = context.objects(&PODS).list(&key.namespace);
        let pods = claim::claim(context, &DAEMON_SETS, &set, &selector, &PODS, pods).await?;
        let hashes: Vec<_> = pods
            .iter()
            .map(|p| p["metadata"]["labels"][revision::HASH].clone())
            .collect();
        let pods = by_node(pods);
        let nodes = context.objects(&NODES).list("");
        let view = View {
            set: &set,
            hash,
            nodes: &nodes,
            pods: &pods,
            now: Timestamp::now(),
        };

        let mut wait: Option<Duration> = None;
        let plan = {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
            let held: Vec<_> = pods
                .values()
                .flatten()
                .filter(|p| pod::phase(p) == "Failed" && !pod::is_deleting(p))
                .filter_map(|p| Some((p, failures.left(uid, placement::node_of(p)?)?)))
                .collect();
            wait = wait
                .into_iter()
                .chain(held.iter().map(|(_, left)| *left))
                .min();
            let plan = plan(&view, |p| {
                held.iter().any(|(held, _)| name(held) == name(p))
            });
            for p in plan.ended.iter().filter(|p| pod::phase(p) == "Failed") {
                failures.note(uid, placement::node_of(p).unwrap_or_default());
            }
            plan
        };
        let outcome = carry_out(&view, &plan, context).await;

        // What was just created is counted with the changes that tell of it.
        let status = view.status(history.collisions);
        if status != set["status"] {
            let mut new = Value::clone(&set);
            new["status"] = status;
            context.update_status(&DAEMON_SETS, &new).await?;
        }
        outcome?;
        revision::truncate(context, &set, &history, |revision| {
            hashes.contains(&revision["metadata"]["labels"][revision::HASH])
        })
        .await?;
        let all = pods.values().flatten().map(|p| &**p);
        let ready = pod::next_available(all, view.min_ready(), view.now);
        let next = ready.into_iter().chain(wait).min();
        Ok(next.map_or(Next::Done, Next::After))
    }
}

async fn carry_out(view: &View<'_>, plan: &Plan, context: &Context) -> Result<(), Failure> {
    let control = PodControl {
        context,
        component: COMPONENT,
        owner: view.set,
    };
    for p in &plan.ended {
        let (kind, reason, adjective, what) = match pod::phase(p) {
            "Failed" => ("Warning", "FailedDaemonPod", "failed", "kill"),
            _ => ("Normal", "SucceededDaemonPod", "succeeded", "delete"),
        };
        let node = placement::node_of(p).unwrap_or_default();
        let message = format!(
            "Found {adjective} daemon pod {} on node {node}, will try to {what} it",
            Key::of(p)
        );
        context.event(COMPONENT, view.set, kind, reason, &message);
    }
    let new = |at: usize| control.create(pod_for(view.set, view.hash, &plan.create[at]));
    match batch::slow_start(plan.create.len(), new).await {
        Err(error) if !is_going(&error) => return Err(error.into()),
        _ => {}
    }
    let deletions = plan.delete.iter().map(|p| control.delete(p)).collect();
    for deleted in batch::all(deletions).await {
        deleted?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
