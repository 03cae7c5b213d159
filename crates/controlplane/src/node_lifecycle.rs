//! `node-lifecycle-controller`: nodes that fall silent become unknown, their pods not ready, and they are tainted so that pods leave.

mod health;
mod taints;
mod zones;

use super::{
    Context, Controller, Failure, Key, Next, Watch, batch,
    collections::{LEASES, NODES, PODS},
    condition, pod, run,
};
use crate::{NodeMonitor, Settings};
use health::{Health, Status, Verdict};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior};
use yurt_controller::kube::KubeError;
use zones::{Consequence, Zones};

/// kube-controller-manager's name of this controller.
pub(super) const NAME: &str = "node-lifecycle-controller";
const COMPONENT: &str = "node-controller";
/// How often nodes that wait to be tainted are looked at.
const TAINTING: Duration = Duration::from_millis(100);
/// How many nodes are written at once.
const AT_ONCE: usize = 30;
/// Where nodes renew their leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Nodes that do not count in the judgement of their zone.
const NOT_COUNTED: &str = "node.kubernetes.io/exclude-disruption";

/// Starts the controller.
pub(super) fn start(context: &Arc<Context>, settings: &Settings) {
    run(context, Settle);
    let monitor = Monitor {
        context: context.clone(),
        times: settings.nodes,
        known: HashMap::new(),
        zones: Zones::default(),
        to_retry: HashSet::new(),
    };
    let shutdown = context.shutdown().clone();
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = monitor.run() => {}
        }
    });
}

/// Taints for scheduling and labels, at once when a node changes.
struct Settle;

impl Controller for Settle {
    const NAME: &'static str = NAME;

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(NODES)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(node) = context.objects(&NODES).get(key) else {
            return Ok(Next::Done);
        };
        taints::write(context, &node, |node| {
            taints::no_schedule(node, Timestamp::now())
        })
        .await?;
        let labels = missing_labels(&node);
        if !labels.is_empty() {
            context
                .merge(&NODES, key, "", &json!({"metadata": {"labels": labels}}))
                .await?;
        }
        Ok(Next::Done)
    }
}

/// Older names of labels, kept equal to the newer ones.
fn missing_labels(node: &Value) -> Map<String, Value> {
    let labels = &node["metadata"]["labels"];
    let pairs = ["os", "arch"].map(|name| {
        (
            format!("kubernetes.io/{name}"),
            format!("beta.kubernetes.io/{name}"),
        )
    });
    pairs
        .into_iter()
        .filter(|(primary, secondary)| {
            labels[primary].is_string() && labels[primary] != labels[secondary]
        })
        .map(|(primary, secondary)| (secondary, labels[primary].clone()))
        .collect()
}

/// What is known of a node between looks.
struct Known {
    uid: String,
    node: Arc<Value>,
    health: Option<Health>,
}

/// Looks at all nodes once per period.
struct Monitor {
    context: Arc<Context>,
    times: NodeMonitor,
    known: HashMap<String, Known>,
    zones: Zones,
    /// Nodes whose pods could not be marked.
    to_retry: HashSet<String>,
}

impl Monitor {
    async fn run(mut self) {
        for collection in [&NODES, &PODS, &LEASES] {
            self.context.objects(collection).synced().await;
        }
        let mut looks = tokio::time::interval(self.times.period);
        let mut taintings = tokio::time::interval(TAINTING);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        taintings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => self.look().await,
                _ = taintings.tick() => self.taint().await,
            }
        }
    }

    /// One look at all nodes.
    async fn look(&mut self) {
        let nodes = self.context.objects(&NODES).list("");
        self.take_attendance(&nodes);
        let times = self.times;
        let leases = self.context.objects(&LEASES);
        let now = Timestamp::now();
        let mut judged = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let name = &Key::of(node).name;
            let Some(known) = self.known.get_mut(name) else {
                continue;
            };
            let lease = leases.get(&Key::new(LEASE_NAMESPACE, name));
            let renewal = lease
                .as_ref()
                .and_then(|lease| lease["spec"]["renewTime"].as_str());
            judged.push((
                node.clone(),
                health::look(&mut known.health, node, renewal, &times, now),
            ));
        }
        let mut zones: BTreeMap<String, Vec<Status>> = BTreeMap::new();
        for (node, verdict) in &judged {
            if node["metadata"]["labels"][NOT_COUNTED].is_null() {
                zones
                    .entry(zones::of(node))
                    .or_default()
                    .push(verdict.current);
            }
        }
        for chunk in judged.chunks(AT_ONCE) {
            let context = &self.context;
            let to_retry = &self.to_retry;
            let attended = chunk
                .iter()
                .map(|(node, verdict)| attend(context, node, verdict, to_retry));
            let attended = batch::all(attended.collect()).await;
            for ((node, verdict), retry) in chunk.iter().zip(attended) {
                let name = Key::of(node).name;
                match verdict.observed {
                    Status::True => self.zones.unmark(&name),
                    // One that is tainted already has been seen to.
                    Status::False | Status::Unknown => self.zones.mark(&zones::of(node), &name),
                }
                if retry {
                    self.to_retry.insert(name);
                } else {
                    self.to_retry.remove(&name);
                }
            }
        }
        match self.zones.judge(&zones) {
            Consequence::Nothing => {}
            Consequence::Spare => {
                for node in &nodes {
                    self.zones.unmark(&Key::of(node).name);
                    settle_no_execute(&self.context, node, Status::True).await;
                }
            }
            Consequence::Pardon => {
                let now = Timestamp::now();
                for known in self.known.values_mut() {
                    if let Some(health) = &mut known.health {
                        health.pardon(now);
                    }
                }
            }
        }
    }

    /// Notes which nodes are new and which are gone.
    fn take_attendance(&mut self, nodes: &[Arc<Value>]) {
        let present: HashMap<String, &Arc<Value>> = nodes
            .iter()
            .map(|node| (Key::of(node).name, node))
            .collect();
        let uid = |node: &Value| {
            node["metadata"]["uid"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let context = &self.context;
        let zones = &mut self.zones;
        let to_retry = &mut self.to_retry;
        self.known.retain(|name, known| {
            let stays = present.get(name).is_some_and(|node| uid(node) == known.uid);
            if !stays {
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                context.event(COMPONENT, &known.node, "Normal", "RemovingNode", &message);
                zones.unmark(name);
                to_retry.remove(name);
            }
            stays
        });
        for (name, node) in present {
            if self.known.contains_key(&name) {
                continue;
            }
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            self.context
                .event(COMPONENT, node, "Normal", "RegisteredNode", &message);
            self.zones.add(&zones::of(node));
            let known = Known {
                uid: uid(node),
                node: node.clone(),
                health: None,
            };
            self.known.insert(name, known);
        }
    }

    /// Taints the nodes whose turn it is.
    async fn taint(&mut self) {
        for name in self.zones.due(Instant::now()) {
            let Some(node) = self.context.objects(&NODES).get(&Key::new("", &name)) else {
                continue;
            };
            let tainted = taints::write(&self.context, &node, |node| match reported(node) {
                Status::True => None,
                status => taints::no_execute(node, status, Timestamp::now()),
            });
            if let Err(error) = tainted.await {
                tracing::debug!(controller = NAME, node = name, %error, "taint");
                self.zones.again(&name);
            }
        }
    }
}

/// The readiness that a node's status says.
fn reported(node: &Value) -> Status {
    match condition::find(&node["status"], "Ready").and_then(|c| c["status"].as_str()) {
        Some("True") => Status::True,
        Some("False") => Status::False,
        _ => Status::Unknown,
    }
}

/// Does for a node what a look calls for at once; whether its pods have to be marked again.
async fn attend(
    context: &Context,
    node: &Arc<Value>,
    verdict: &Verdict,
    to_retry: &HashSet<String>,
) -> bool {
    let key = Key::of(node);
    if !verdict.write.is_empty()
        && let Err(error) = write_conditions(context, node, &verdict.write).await
    {
        // The next look finds it silent still.
        tracing::debug!(controller = NAME, node = key.name, %error, "conditions");
        return to_retry.contains(&key.name);
    }
    let has = |taint| taints::has(node, taint, "NoExecute");
    match verdict.observed {
        Status::True => settle_no_execute(context, node, Status::True).await,
        // From one taint to the other at once; to the first, in turn.
        Status::False if has(taints::UNREACHABLE) => {
            settle_no_execute(context, node, Status::False).await
        }
        Status::Unknown if has(taints::NOT_READY) => {
            settle_no_execute(context, node, Status::Unknown).await
        }
        Status::False | Status::Unknown => {}
    }
    // Once per silence: a kubelet that lives and says otherwise is not contradicted again and again.
    if verdict.current == Status::True {
        return false;
    }
    if verdict.observed == Status::True {
        let message = format!("Node {} status is now: NodeNotReady", key.name);
        context.event(COMPONENT, node, "Normal", "NodeNotReady", &message);
    } else if !to_retry.contains(&key.name) {
        return false;
    }
    match mark_pods(context, &key.name).await {
        Ok(()) => false,
        Err(error) => {
            tracing::debug!(controller = NAME, node = key.name, %error, "pods");
            true
        }
    }
}

async fn settle_no_execute(context: &Context, node: &Arc<Value>, status: Status) {
    let wanted = |node: &Value| taints::no_execute(node, status, Timestamp::now());
    if let Err(error) = taints::write(context, node, wanted).await {
        tracing::debug!(controller = NAME, node = Key::of(node).name, %error, "taints");
    }
}

async fn write_conditions(
    context: &Context,
    node: &Value,
    conditions: &[Value],
) -> Result<(), KubeError> {
    // At this very version: a heartbeat that comes meanwhile wins.
    let patch = json!({"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "status": {"conditions": conditions}});
    context
        .patch(&NODES, &Key::of(node), "status", &patch)
        .await?;
    Ok(())
}

/// Marks the pods of a node as not ready, so that services leave them out.
async fn mark_pods(context: &Context, node: &str) -> Result<(), KubeError> {
    let mut pods = context.objects(&PODS).on_node(node);
    pods.retain(|pod| pod::is_ready(pod));
    for chunk in pods.chunks(AT_ONCE) {
        let marked = chunk.iter().map(async |pod: &Arc<Value>| {
            let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": pod::stamp(Timestamp::now())});
            let patch = json!({"status": {"conditions": [ready]}});
            match context.patch(&PODS, &Key::of(pod), "status", &patch).await {
                Err(error) if error.code() == Some(404) => Ok(()),
                Err(error) => Err(error),
                Ok(_) => {
                    context.event(COMPONENT, pod, "Warning", "NodeNotReady", "Node is not ready");
                    Ok(())
                }
            }
        });
        for result in batch::all(marked.collect()).await {
            result?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
