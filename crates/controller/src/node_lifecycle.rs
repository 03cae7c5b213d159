//! The life of nodes: those that fall silent become unknown, their pods not ready, and they are tainted so that pods leave. One work
//! for Kubernetes' `node-lifecycle-controller` and OpenYurt's `node-life-cycle-controller`, which replaces it where it runs.

mod health;
mod metrics;
mod taints;
mod zones;

pub use health::Times;
pub use metrics::NodeMetrics;
pub use zones::Rates;

use crate::{
    Context, Controller, Failure, Key, Next, Scope, Watch, batch,
    collections::{LEASES, NODES, PODS},
    condition,
    fields::items,
    kube::KubeError,
    pod, run_with,
};
use health::{Health, Status, Verdict};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    marker::PhantomData,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior};
use zones::{Consequence, Zones};

const COMPONENT: &str = "node-controller";
/// How often nodes that wait to be tainted are looked at.
const TAINTING: Duration = Duration::from_millis(100);
/// How many nodes are written at once.
const AT_ONCE: usize = 30;
/// Where nodes renew their leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Nodes that do not count in the judgement of their zone.
const NOT_COUNTED: &str = "node.kubernetes.io/exclude-disruption";

/// In what the two controllers differ.
pub trait Kind: Send + Sync + 'static {
    /// The name of the controller.
    const NAME: &'static str;

    /// Whether the pods of a silent node stay in service: somebody else knows that they may well live.
    fn spares_pods(node: &Value) -> bool;
}

/// The leases of nodes.
fn leases() -> Scope {
    Scope::default().within(LEASE_NAMESPACE)
}

/// Starts the controller.
pub fn start<K: Kind>(context: &Arc<Context>, workers: usize, times: Times, rates: Rates) {
    run_with(context, Settle::<K>(PhantomData), workers);
    let monitor = Monitor::<K> {
        context: context.clone(),
        times,
        known: HashMap::new(),
        zones: Zones::new(rates),
        to_retry: HashSet::new(),
        kind: PhantomData,
    };
    let shutdown = context.shutdown().clone();
    context.tasks().spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = monitor.run() => {}
        }
    });
}

/// Taints for scheduling and labels, at once when a node changes.
struct Settle<K>(PhantomData<K>);

impl<K: Kind> Controller for Settle<K> {
    const NAME: &'static str = K::NAME;

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
struct Monitor<K> {
    context: Arc<Context>,
    times: Times,
    known: HashMap<String, Known>,
    zones: Zones,
    /// Nodes whose pods could not be marked, or were spared.
    to_retry: HashSet<String>,
    kind: PhantomData<K>,
}

impl<K: Kind> Monitor<K> {
    async fn run(mut self) {
        self.context.objects(&NODES).synced().await;
        self.context.scoped(&LEASES, &leases()).synced().await;
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
        let began = Instant::now();
        let nodes = self.context.objects(&NODES).list("");
        self.take_attendance(&nodes);
        let times = self.times;
        let leases = self.context.scoped(&LEASES, &leases());
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
        let metrics = self.context.metrics().nodes();
        metrics.zones(zones.iter().map(|(zone, nodes)| {
            let ready = nodes.iter().filter(|status| **status == Status::True);
            (zone.as_str(), nodes.len(), ready.count())
        }));
        for chunk in judged.chunks(AT_ONCE) {
            let context = &self.context;
            let to_retry = &self.to_retry;
            let attended = chunk.iter().map(async |(node, verdict)| {
                let began = Instant::now();
                let retry = attend::<K>(context, node, verdict, to_retry).await;
                metrics.attended(began.elapsed());
                retry
            });
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
                    settle_no_execute(K::NAME, &self.context, node, Status::True).await;
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
        self.context.metrics().nodes().looked(began.elapsed());
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
            match tainted.await {
                Ok(()) => self.context.metrics().nodes().evicted(&zones::of(&node)),
                Err(error) => {
                    tracing::debug!(controller = K::NAME, node = name, %error, "taint");
                    self.zones.again(&name);
                }
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
async fn attend<K: Kind>(
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
        tracing::debug!(controller = K::NAME, node = key.name, %error, "conditions");
        return to_retry.contains(&key.name);
    }
    let has = |taint| taints::has(node, taint, "NoExecute");
    match verdict.observed {
        Status::True => settle_no_execute(K::NAME, context, node, Status::True).await,
        // From one taint to the other at once; to the first, in turn.
        Status::False if has(taints::UNREACHABLE) => {
            settle_no_execute(K::NAME, context, node, Status::False).await
        }
        Status::Unknown if has(taints::NOT_READY) => {
            settle_no_execute(K::NAME, context, node, Status::Unknown).await
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
    if K::spares_pods(node) {
        // Until it is not spared any more.
        return true;
    }
    match mark_pods(context, &key.name).await {
        Ok(()) => false,
        Err(error) => {
            tracing::debug!(controller = K::NAME, node = key.name, %error, "pods");
            true
        }
    }
}

async fn settle_no_execute(controller: &str, context: &Context, node: &Arc<Value>, status: Status) {
    let wanted = |node: &Value| taints::no_execute(node, status, Timestamp::now());
    if let Err(error) = taints::write(context, node, wanted).await {
        tracing::debug!(controller, node = Key::of(node).name, %error, "taints");
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
    // Nodes fall silent seldom enough not to keep all pods for it.
    let path = format!("{}?fieldSelector=spec.nodeName%3D{node}", PODS.path(""));
    let list = context.kube().get(&path).await?;
    let mut pods: Vec<Value> = items(&list["items"]).cloned().collect();
    pods.retain(pod::is_ready);
    for pod in &mut pods {
        // Items of a list do not say what they are.
        pod["apiVersion"] = PODS.api_version.as_ref().into();
        pod["kind"] = PODS.kind.as_ref().into();
    }
    for chunk in pods.chunks(AT_ONCE) {
        let marked = chunk.iter().map(async |pod: &Value| {
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
mod tests {
    use super::*;

    #[test]
    fn older_labels_follow_the_newer() {
        let node = json!({"metadata": {"labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64", "beta.kubernetes.io/arch": "arm64"}}});
        let missing = missing_labels(&node);
        assert_eq!(
            Value::Object(missing),
            json!({"beta.kubernetes.io/os": "linux"})
        );
    }
}
