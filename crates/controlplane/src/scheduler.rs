//! The scheduler: finds a node for every pod that names none, as kube-scheduler does with its default profile.
//!
//! One task looks for nodes, one pod at a time, on its own [`Snapshot`], which follows the shared caches change by change. A pod
//! counts on its node from the moment the node was found; telling the API server happens beside. What decides is pure:
//! [`placement::schedule`] finds a node, [`preemption::preempt`] makes room, [`queue::Queue`] says whose turn it is.
//!
//! Left out: image locality, volume limits, and the provisioning of volumes for claims that wait for their first pod.

mod filter;
mod placement;
mod pod;
mod pod_affinity;
mod preemption;
mod queue;
mod score;
mod snapshot;
#[cfg(test)]
mod tests;
mod volumes;

use super::{Change, Context, Key, Objects, collections};
use jiff::Timestamp;
use placement::{Placement, Unschedulable, schedule};
use pod::Pod;
use preemption::{Preemption, preempt};
use queue::{Event, Queue};
use serde_json::{Value, json};
use snapshot::Snapshot;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use yurt_controller::kube::KubeError;

/// What pods name in `spec.schedulerName`, and what its events come from.
const NAME: &str = "default-scheduler";
/// Pods whose results are being told to the API server at once.
const TELLING: usize = 32;
/// The longest rest when nothing happens.
const REST: Duration = Duration::from_secs(60);

/// Starts the scheduler.
pub(super) fn start(context: &Arc<Context>) {
    let sources: Vec<Arc<Objects>> = [
        // Nodes first: a pod's node should be known when the pod is looked at.
        collections::NODES,
        collections::PODS,
        collections::NAMESPACES,
        collections::PERSISTENT_VOLUME_CLAIMS,
        collections::PERSISTENT_VOLUMES,
        collections::STORAGE_CLASSES,
        collections::POD_DISRUPTION_BUDGETS,
    ]
    .iter()
    .map(|collection| context.objects(collection))
    .collect();
    let changes = Arc::new(Changes::default());
    for (source, objects) in sources.iter().enumerate() {
        let changes = changes.clone();
        objects.subscribe(move |change: &Change| changes.add(source, change.key()));
    }
    let (failed, failures) = mpsc::channel(TELLING);
    let scheduler = Scheduler {
        context: context.clone(),
        pods: sources[1].clone(),
        changes,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        assumed: HashMap::new(),
        start: 0,
        telling: Arc::new(Semaphore::new(TELLING)),
        failed,
    };
    let shutdown = context.shutdown().clone();
    tokio::spawn(async move {
        let work = async {
            for objects in &sources {
                objects.synced().await;
            }
            scheduler.run(&sources, failures).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    });
}

/// Keys of what changed, by source; each waits once.
#[derive(Default)]
struct Changes {
    keys: Mutex<BTreeSet<(usize, Key)>>,
    added: Notify,
}

impl Changes {
    fn add(&self, source: usize, key: Key) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert((source, key));
        self.added.notify_one();
    }

    fn take(&self) -> BTreeSet<(usize, Key)> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Scheduler {
    context: Arc<Context>,
    pods: Arc<Objects>,
    changes: Arc<Changes>,
    snapshot: Snapshot,
    queue: Queue,
    /// UIDs of pods whose node was found and has not been seen yet.
    assumed: HashMap<Key, String>,
    /// Where the next search begins.
    start: usize,
    telling: Arc<Semaphore>,
    failed: mpsc::Sender<(Key, String)>,
}

impl Scheduler {
    async fn run(mut self, sources: &[Arc<Objects>], mut failures: mpsc::Receiver<(Key, String)>) {
        loop {
            self.refresh(sources);
            while let Ok((key, uid)) = failures.try_recv() {
                self.not_bound(&key, &uid);
            }
            let now = Instant::now();
            self.queue.flush(now);
            if let Some(pod) = self.queue.pop(now) {
                let telling = self.telling.clone();
                // It is never closed.
                let Ok(permit) = telling.acquire_owned().await else {
                    return;
                };
                self.attempt(pod, permit);
                tokio::task::yield_now().await;
                continue;
            }
            let rest = self.queue.next_due().unwrap_or(now + REST).min(now + REST);
            tokio::select! {
                () = self.changes.added.notified() => {}
                failed = failures.recv() => if let Some((key, uid)) = failed {
                    self.not_bound(&key, &uid);
                },
                () = tokio::time::sleep_until(rest) => {}
            }
        }
    }

    /// Brings the snapshot and the queue up to date.
    fn refresh(&mut self, sources: &[Arc<Objects>]) {
        let mut events: Vec<Event> = Vec::new();
        for (source, key) in self.changes.take() {
            let Some(objects) = sources.get(source) else {
                continue;
            };
            let object = objects.get(&key);
            let event = match (&*objects.collection().kind, object) {
                ("Pod", Some(pod)) => self.pod_changed(&pod),
                ("Pod", None) => self.pod_gone(&key),
                ("Node", Some(node)) => match self.snapshot.set_node(&node) {
                    Some(true) => Some(Event::NodeAdded),
                    Some(false) => Some(Event::NodeChanged),
                    None => None,
                },
                ("Node", None) => {
                    self.snapshot.remove_node(&key.name);
                    None
                }
                (kind, object) => {
                    let changed = self.snapshot.set_other(kind, &key, object.as_deref());
                    changed.then_some(Event::Other)
                }
            };
            events.extend(event.filter(|event| !events.contains(event)));
        }
        for event in events {
            self.queue.wake(event);
        }
    }

    fn pod_gone(&mut self, key: &Key) -> Option<Event> {
        self.queue.remove(key);
        self.assumed.remove(key);
        self.snapshot.forget_nomination(key);
        self.snapshot.unplace(key).then_some(Event::PodGone)
    }

    fn pod_changed(&mut self, object: &Value) -> Option<Event> {
        let pod = Arc::new(Pod::parse(object));
        let phase = object["status"]["phase"].as_str();
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.pod_gone(&pod.key);
        }
        if pod.node.is_some() {
            self.queue.remove(&pod.key);
            self.assumed.remove(&pod.key);
            self.snapshot.forget_nomination(&pod.key);
            let known = self.snapshot.pod(&pod.key);
            let event = match known {
                Some(known) if known.node == pod.node && known.same_wishes(&pod) => None,
                // In what it asks for: others may find the room that it gave up.
                Some(known) if known.requests != pod.requests => Some(Event::PodGone),
                _ => Some(Event::PodPlaced),
            };
            if known != Some(&pod) {
                self.snapshot.place(pod);
            }
            return event;
        }
        // Our own decision is on its way.
        if self.assumed.get(&pod.key) == Some(&pod.uid) {
            return None;
        }
        // Perhaps a pod of that name was placed before.
        let gone = self.snapshot.unplace(&pod.key).then_some(Event::PodGone);
        let ours = object["spec"]["schedulerName"].as_str().unwrap_or(NAME) == NAME;
        if !ours || pod.deleting || pod.gated {
            self.queue.remove(&pod.key);
            self.snapshot.forget_nomination(&pod.key);
            if ours && pod.gated && !pod.deleting {
                self.tell_gated(&pod, object);
            }
            return gone;
        }
        self.snapshot.nominate(&pod);
        self.queue.put(pod, Instant::now());
        gone
    }

    /// Looks for a node and tells the result.
    fn attempt(&mut self, pod: Arc<Pod>, permit: OwnedSemaphorePermit) {
        match schedule(&pod, &self.snapshot, self.start) {
            Ok(Placement { node, next_start }) => {
                self.start = next_start;
                self.snapshot.forget_nomination(&pod.key);
                self.assumed.insert(pod.key.clone(), pod.uid.clone());
                self.snapshot.place(Arc::new(Pod {
                    node: Some(node.clone()),
                    ..(*pod).clone()
                }));
                let (context, failed) = (self.context.clone(), self.failed.clone());
                tokio::spawn(async move {
                    if let Err(error) = bind(&context, &pod, &node).await {
                        tracing::debug!(pod = %pod.key, %node, %error, "not bound");
                        // The scheduler ends with the process.
                        let _ = failed.send((pod.key.clone(), pod.uid.clone())).await;
                    }
                    drop(permit);
                });
            }
            Err(failure) => self.no_node(pod, failure, permit),
        }
    }

    fn no_node(&mut self, pod: Arc<Pod>, failure: Unschedulable, permit: OwnedSemaphorePermit) {
        let mut message = failure.to_string();
        let preemption = match preempt(&pod, &self.snapshot, &failure) {
            Ok(preemption) => Some(preemption),
            Err(_) if failure.nodes() == 0 => None,
            Err(why) => {
                message = format!("{message} preemption: {why}");
                None
            }
        };
        let key = pod.key.clone();
        if let Some(preemption) = &preemption {
            self.snapshot.nominate(&Arc::new(Pod {
                nominated: Some(preemption.node.clone()),
                ..(*pod).clone()
            }));
        }
        self.queue.park(&key, failure.plugins, Instant::now());
        let (context, pods) = (self.context.clone(), self.pods.clone());
        tokio::spawn(async move {
            if let Err(error) = tell_failure(&context, &pods, &pod, &message, preemption).await {
                tracing::debug!(pod = %pod.key, %error, "the pod's condition was not taken");
            }
            drop(permit);
        });
    }

    fn not_bound(&mut self, key: &Key, uid: &str) {
        if self.assumed.get(key).is_some_and(|assumed| assumed == uid) {
            self.assumed.remove(key);
            self.snapshot.unplace(key);
            self.queue.retry(key);
        }
    }

    fn tell_gated(&self, pod: &Pod, object: &Value) {
        const MESSAGE: &str = "Scheduling is blocked due to non-empty scheduling gates";
        let Some(condition) = condition(object, "SchedulingGated", MESSAGE) else {
            return;
        };
        let (context, key) = (self.context.clone(), pod.key.clone());
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
        tokio::spawn(async move {
            let told = context
                .patch(&collections::PODS, &key, "status", &patch)
                .await;
            if let Err(error) = told {
                tracing::debug!(pod = %key, %error, "the pod's condition was not taken");
            }
        });
    }
}

async fn bind(context: &Context, pod: &Pod, node: &str) -> Result<(), KubeError> {
    let Key { namespace, name } = &pod.key;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"namespace": namespace, "name": name, "uid": pod.uid},
        "target": {"kind": "Node", "name": node},
    });
    let path = format!("{}/binding", collections::PODS.object_path(&pod.key));
    context.kube().create(&path, &binding).await?;
    let message = format!("Successfully assigned {} to {node}", pod.key);
    context.event(NAME, &about(pod), "Normal", "Scheduled", &message);
    Ok(())
}

/// A pod as events name it.
fn about(pod: &Pod) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata":
        {"namespace": pod.key.namespace, "name": pod.key.name, "uid": pod.uid}})
}

/// The `PodScheduled` condition that says why not; `None` when the pod has it.
fn condition(pod: &Value, reason: &str, message: &str) -> Option<Value> {
    let conditions = pod["status"]["conditions"].as_array();
    let known = conditions.and_then(|all| all.iter().find(|c| c["type"] == "PodScheduled"));
    let known = known.unwrap_or(&Value::Null);
    if known["status"] == "False" && known["reason"] == reason && known["message"] == message {
        return None;
    }
    let mut condition = json!({"type": "PodScheduled", "status": "False",
        "reason": reason, "message": message, "lastProbeTime": null});
    if known["status"] != "False" {
        condition["lastTransitionTime"] = format!("{:.0}", Timestamp::now()).into();
    }
    Some(condition)
}

/// Says why a pod has no node, where it waits for room, and evicts those who are in its way.
async fn tell_failure(
    context: &Context,
    pods: &Objects,
    pod: &Pod,
    message: &str,
    preemption: Option<Preemption>,
) -> Result<(), KubeError> {
    let Some(object) = pods.get(&pod.key) else {
        return Ok(());
    };
    let mut status = json!({});
    if let Some(condition) = condition(&object, "Unschedulable", message) {
        status["conditions"] = json!([condition]);
        context.event(NAME, &about(pod), "Warning", "FailedScheduling", message);
    }
    if let Some(preemption) = &preemption {
        status["nominatedNodeName"] = preemption.node.clone().into();
    }
    if status != json!({}) {
        let patch = json!({"metadata": {"uid": pod.uid}, "status": status});
        context
            .patch(&collections::PODS, &pod.key, "status", &patch)
            .await?;
    }
    for victim in preemption.iter().flat_map(|p| &p.victims) {
        if let Some(object) = pods.get(&victim.key)
            && object["metadata"]["uid"] == victim.uid
            && !victim.deleting
        {
            evict(context, pod, victim, &object).await?;
        }
    }
    Ok(())
}

async fn evict(
    context: &Context,
    pod: &Pod,
    victim: &Pod,
    object: &Value,
) -> Result<(), KubeError> {
    let condition = json!({"type": "DisruptionTarget", "status": "True",
        "reason": "PreemptionByScheduler", "lastProbeTime": null,
        "lastTransitionTime": format!("{:.0}", Timestamp::now()),
        "message": format!("{NAME}: preempting to accommodate a higher priority pod")});
    let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
    match context
        .patch(&collections::PODS, &victim.key, "status", &patch)
        .await
    {
        Err(error) if error.code() == Some(404) => return Ok(()),
        patched => drop(patched?),
    }
    context.delete(&collections::PODS, object).await?;
    let node = victim.node.as_deref().unwrap_or_default();
    let message = format!("Preempted by pod {} on node {node}", pod.uid);
    context.event(NAME, &about(victim), "Normal", "Preempted", &message);
    Ok(())
}
