//! `garbage-collector-controller`: what nobody owns any more goes; deletions in the foreground wait for dependents; orphaned
//! dependents are set free.
//!
//! It watches the metadata of everything that is served ([`discovery`]), as CRDs come and go, and keeps a few words per object
//! ([`graph`]). Before anything is deleted, the object and its owners are asked for live.

mod discovery;
mod graph;

use super::{Collection, Context, Failure, Key, collections::CRDS};
use discovery::Served;
use graph::{
    Absent, FOREGROUND, Graph, Node, ORPHAN, Owner, OwnerState, Plan, Work, blocking, plan,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use yurt_controller::kube::KubeError;
use yurt_controller::{
    Scope,
    feed::{self, Accept, Phase, Sink},
    queue::Queue,
};

/// kube-controller-manager's name of this controller.
pub(super) const NAME: &str = "garbage-collector-controller";
/// How many objects are worked on at once.
const WORKERS: usize = 8;
/// How often the served kinds are asked for, beside whenever a CRD changes.
const REDISCOVER: Duration = Duration::from_secs(30);
/// How long a CRD's change is left alone: definitions come in numbers, and the last objects of one that goes are still told.
const SETTLE: Duration = Duration::from_millis(200);
/// The pause until a failed discovery is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Discovery in one document per root.
const DISCOVERY: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// Queues hold keys; this one's are a task and a UID.
const EXAMINE: &str = "examine";
const SET_FREE: &str = "orphan";

struct Collector {
    context: Arc<Context>,
    graph: Mutex<Graph>,
    served: RwLock<Served>,
    queue: Queue,
}

/// Starts the controller.
pub(super) fn start(context: &Arc<Context>) {
    let collector = Arc::new(Collector {
        context: context.clone(),
        graph: Mutex::default(),
        served: RwLock::default(),
        queue: Queue::default(),
    });
    let shutdown = context.shutdown().clone();
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = collector.clone().discover() => {}
        }
    });
}

/// The watch of one collection.
struct Monitor {
    collector: Arc<Collector>,
    collection: Arc<Collection>,
    complete: watch::Sender<bool>,
}

impl Sink for Monitor {
    fn observe(&self, object: Value, _: Phase) {
        let node = Node::of(self.collection.clone(), &object);
        let work = self.collector.graph().observe(node);
        self.collector.enqueue(work);
    }

    fn observe_gone(&self, object: &Value, _: Phase) {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let key = Key::of(object);
        let work = self.collector.graph().gone(&self.collection, &key, uid);
        self.collector.enqueue(work);
    }

    fn complete(&self, told: &BTreeSet<Key>, _: u64) {
        let work = self.collector.graph().only(&self.collection, told);
        self.collector.enqueue(work);
        self.complete.send_replace(true);
    }
}

/// A monitor at work: whether it has seen everything, and how to stop it.
struct Watching {
    complete: watch::Receiver<bool>,
    stop: CancellationToken,
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, work: Vec<Work>) {
        for work in work {
            match work {
                Work::Examine(uid) => self.queue.add(Key::new(EXAMINE, &uid)),
                Work::Orphan(uid) => self.queue.add(Key::new(SET_FREE, &uid)),
                Work::Misplaced(uid, owner) => self.tell_misplaced(&uid, &owner),
            }
        }
    }

    fn tell_misplaced(&self, uid: &str, owner: &str) {
        let Some(node) = self.graph().get(uid).cloned() else {
            return;
        };
        let Some(reference) = node.owners.iter().find(|o| o.uid == owner) else {
            return;
        };
        let Owner {
            api_version,
            kind,
            name,
            uid: owner,
            ..
        } = reference;
        let namespace = &node.key.namespace;
        let about = json!({"apiVersion": node.collection.api_version, "kind": node.collection.kind,
            "metadata": {"namespace": namespace, "name": node.key.name, "uid": uid}});
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {owner}] does not exist in namespace \"{namespace}\""
        );
        self.context.event(
            NAME,
            &about,
            "Warning",
            "OwnerRefInvalidNamespace",
            &message,
        );
    }

    /// Follows what is served. The work begins when all that is served at first has been told.
    async fn discover(self: Arc<Self>) {
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        let crds = self.context.objects(&CRDS);
        crds.subscribe(move |_| notify.notify_one());
        crds.synced().await;
        let mut watching: HashMap<Arc<Collection>, Watching> = HashMap::new();
        let mut working = false;
        loop {
            let pause = match self.ask_served().await {
                Ok(served) => {
                    self.watch_all(&served, &mut watching);
                    *self.served.write().unwrap_or_else(PoisonError::into_inner) = served;
                    if !working {
                        for watching in watching.values_mut() {
                            // An error means that the monitor has ended: with the context.
                            let _ = watching.complete.wait_for(|complete| *complete).await;
                        }
                        let work = self.graph().set_complete();
                        self.enqueue(work);
                        self.work();
                        working = true;
                    }
                    REDISCOVER
                }
                Err(error) => {
                    tracing::debug!(controller = NAME, %error, "discovery");
                    RETRY
                }
            };
            tokio::select! {
                () = changed.notified() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn ask_served(&self) -> Result<Served, KubeError> {
        let mut served = Served::default();
        for root in ["/api", "/apis"] {
            served.add(&self.context.kube().get_as(root, DISCOVERY).await?);
        }
        Ok(served)
    }

    fn watch_all(
        self: &Arc<Self>,
        served: &Served,
        watching: &mut HashMap<Arc<Collection>, Watching>,
    ) {
        watching.retain(|collection, watching| {
            let keep = served.watched.contains(collection);
            if !keep {
                watching.stop.cancel();
                self.graph().forget(collection);
            }
            keep
        });
        for collection in &served.watched {
            if watching.contains_key(collection) {
                continue;
            }
            let (complete, completed) = watch::channel(false);
            let stop = self.context.shutdown().child_token();
            let monitor = Monitor {
                collector: self.clone(),
                collection: collection.clone(),
                complete,
            };
            watching.insert(
                collection.clone(),
                Watching {
                    complete: completed,
                    stop: stop.clone(),
                },
            );
            tokio::spawn(async move {
                let kube = monitor.collector.context.kube();
                feed::follow(
                    kube,
                    &monitor.collection,
                    &Scope::metadata(),
                    &monitor,
                    stop,
                )
                .await;
            });
        }
    }

    fn work(self: &Arc<Self>) {
        for _ in 0..WORKERS {
            let collector = self.clone();
            let shutdown = self.context.shutdown().clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = collector.work_on() => {}
                }
            });
        }
    }

    async fn work_on(&self) {
        loop {
            let key = self.queue.next().await;
            let done = match key.namespace.as_str() {
                EXAMINE => self.examine(&key.name).await,
                _ => self.set_free(&key.name).await,
            };
            match done {
                Ok(()) => self.queue.forget(&key),
                Err(failure) => {
                    let pause = self.queue.retry(&key);
                    tracing::debug!(controller = NAME, uid = key.name, %failure, ?pause, "again");
                }
            }
            self.queue.done(&key);
        }
    }

    /// The metadata of an object as it is now; `None` when it is gone, or another has its name.
    async fn live(
        &self,
        collection: &Collection,
        key: &Key,
        uid: &str,
    ) -> Result<Option<Value>, KubeError> {
        let path = collection.object_path(key);
        match self
            .context
            .kube()
            .get_as(&path, Accept::Metadata.header())
            .await
        {
            Ok(object) if object["metadata"]["uid"] == uid => Ok(Some(object)),
            Ok(_) => Ok(None),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks whether an object is garbage, or can go on with its deletion.
    async fn examine(&self, uid: &str) -> Result<(), Failure> {
        let Some(known) = self.graph().get(uid).cloned() else {
            return Ok(());
        };
        if known.is_deleting() && !known.waits_for_dependents() {
            return Ok(());
        }
        let Some(object) = self.live(&known.collection, &known.key, uid).await? else {
            let work = self.graph().gone(&known.collection, &known.key, uid);
            self.enqueue(work);
            return Ok(());
        };
        let node = Node::of(known.collection, &object);
        let dependents: Vec<Node> = self.graph().dependents(uid).cloned().collect();
        let dependents: Vec<&Node> = dependents.iter().collect();
        if node.waits_for_dependents() {
            let blocking = blocking(uid, &dependents);
            if blocking.is_empty() {
                return self.drop_finalizer(&node, &object, FOREGROUND).await;
            }
            let idle = blocking.iter().filter(|d| !d.waits_for_dependents());
            self.enqueue(idle.map(|d| Work::Examine(d.uid.clone())).collect());
            return Ok(());
        }
        let mut states = Vec::with_capacity(node.owners.len());
        for owner in &node.owners {
            states.push(self.owner_state(&node, owner).await?);
        }
        match plan(&node, &states, &dependents) {
            Plan::Keep => Ok(()),
            Plan::Disown(owners) => self.disown(&node, &object, &owners).await,
            Plan::Delete(policy) => self.delete(&node, &object, policy).await,
            Plan::UnblockAndDelete => {
                let object = self.unblock(&node, &object).await?;
                self.delete(&node, &object, "Foreground").await
            }
        }
    }

    async fn owner_state(&self, node: &Node, owner: &Owner) -> Result<OwnerState, Failure> {
        let here = Absent::new(&node.key.namespace, owner);
        let anywhere = Absent::new("", owner);
        {
            let graph = self.graph();
            if graph.is_absent(&here) || graph.is_absent(&anywhere) {
                return Ok(OwnerState::Gone);
            }
        }
        let collection = {
            let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
            served.find(&owner.api_version, &owner.kind)
        };
        let Some(collection) = collection else {
            let Owner {
                api_version, kind, ..
            } = owner;
            return Err(Failure::Object(format!("no kind {kind} in {api_version}")));
        };
        if collection.namespaced && node.key.namespace.is_empty() {
            // The reference cannot be resolved. Nothing is ever deleted because of that.
            return Ok(OwnerState::Solid);
        }
        let (namespace, absent) = if collection.namespaced {
            (node.key.namespace.as_str(), here)
        } else {
            ("", anywhere)
        };
        match self
            .live(&collection, &Key::new(namespace, &owner.name), &owner.uid)
            .await?
        {
            None => {
                self.graph().remember_absent(absent);
                Ok(OwnerState::Gone)
            }
            Some(object) => {
                if Node::of(collection, &object).waits_for_dependents() {
                    Ok(OwnerState::Waiting)
                } else {
                    Ok(OwnerState::Solid)
                }
            }
        }
    }

    /// Changes the metadata of exactly this version of an object.
    async fn change(
        &self,
        node: &Node,
        object: &Value,
        mut metadata: Value,
    ) -> Result<Value, Failure> {
        metadata["uid"] = node.uid.as_str().into();
        metadata["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
        let path = node.collection.object_path(&node.key);
        let changed = self
            .context
            .kube()
            .merge(&path, &json!({"metadata": metadata}))
            .await;
        Ok(changed?)
    }

    async fn drop_finalizer(
        &self,
        node: &Node,
        object: &Value,
        finalizer: &str,
    ) -> Result<(), Failure> {
        let all = object["metadata"]["finalizers"]
            .as_array()
            .into_iter()
            .flatten();
        let left: Vec<&Value> = all.filter(|f| *f != finalizer).collect();
        match self.change(node, object, json!({"finalizers": left})).await {
            Err(Failure::Kube(error)) if error.code() == Some(404) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn disown(&self, node: &Node, object: &Value, owners: &[String]) -> Result<(), Failure> {
        let all = object["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten();
        let left: Vec<&Value> = all
            .filter(|reference| !owners.iter().any(|uid| reference["uid"] == *uid))
            .collect();
        self.change(node, object, json!({"ownerReferences": left}))
            .await?;
        Ok(())
    }

    async fn unblock(&self, node: &Node, object: &Value) -> Result<Value, Failure> {
        let mut references = object["metadata"]["ownerReferences"].clone();
        for reference in references.as_array_mut().into_iter().flatten() {
            if reference["blockOwnerDeletion"] == true {
                reference["blockOwnerDeletion"] = false.into();
            }
        }
        self.change(node, object, json!({"ownerReferences": references}))
            .await
    }

    async fn delete(&self, node: &Node, object: &Value, policy: &str) -> Result<(), Failure> {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy,
            "preconditions": {"uid": node.uid, "resourceVersion": object["metadata"]["resourceVersion"]}});
        let path = node.collection.object_path(&node.key);
        tracing::debug!(controller = NAME, %path, policy, "delete");
        match self.context.kube().delete_with(&path, &options).await {
            Err(error) if error.code() == Some(404) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Sets the dependents of an object free, then lets it go.
    async fn set_free(&self, uid: &str) -> Result<(), Failure> {
        let (node, dependents): (Node, Vec<Node>) = {
            let graph = self.graph();
            let Some(node) = graph.get(uid).cloned() else {
                return Ok(());
            };
            (node, graph.dependents(uid).cloned().collect())
        };
        for dependent in dependents {
            let live = self
                .live(&dependent.collection, &dependent.key, &dependent.uid)
                .await?;
            if let Some(object) = live {
                self.disown(&dependent, &object, &[uid.to_owned()]).await?;
            }
        }
        match self.live(&node.collection, &node.key, uid).await? {
            Some(object) if Node::of(node.collection.clone(), &object).waits_for_orphans() => {
                self.drop_finalizer(&node, &object, ORPHAN).await
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
