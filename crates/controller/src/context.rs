//! What controllers share: caches, writes, events.

use crate::{
    Collection, Key, Objects, Scope,
    kube::{Kube, KubeError},
    metrics::Metrics,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events on their way at once; more are dropped, as client-go does.
const EVENTS: usize = 100;

/// The caches of one process, filled by one client.
#[derive(Debug)]
struct Caches {
    reader: Kube,
    /// Ends the watches.
    shutdown: CancellationToken,
    known: Mutex<HashMap<(Collection, Scope), Arc<Objects>>>,
}

impl Caches {
    fn known(&self) -> MutexGuard<'_, HashMap<(Collection, Scope), Arc<Objects>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caches that hold objects of a collection, all of it or a part.
    fn of(&self, collection: &Collection) -> Vec<Arc<Objects>> {
        let known = self.known();
        let of = known.iter().filter(|((known, _), _)| known == collection);
        of.map(|(_, objects)| objects.clone()).collect()
    }
}

/// Caches and writes of one set of controllers.
#[derive(Debug)]
pub struct Context {
    kube: Kube,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    caches: Arc<Caches>,
    events: Arc<Semaphore>,
    metrics: Metrics,
}

impl Context {
    /// A context; everything it starts ends with `shutdown`.
    pub fn new(kube: Kube, shutdown: CancellationToken) -> Arc<Self> {
        Self::counted(kube, shutdown, Metrics::default())
    }

    /// A context whose controllers are counted; so are the answers of the server.
    pub fn counted(kube: Kube, shutdown: CancellationToken, metrics: Metrics) -> Arc<Self> {
        let kube = kube.with_metrics(metrics.clone());
        let caches = Caches {
            reader: kube.clone(),
            shutdown: shutdown.clone(),
            known: Mutex::default(),
        };
        Arc::new(Self {
            kube,
            shutdown,
            tasks: TaskTracker::new(),
            caches: Arc::new(caches),
            events: Arc::new(Semaphore::new(EVENTS)),
            metrics,
        })
    }

    /// The same caches, with writes (and direct reads) under another identity.
    pub fn writing_as(&self, kube: Kube) -> Arc<Self> {
        Arc::new(Self {
            kube: kube.with_metrics(self.metrics.clone()),
            shutdown: self.shutdown.clone(),
            tasks: self.tasks.clone(),
            caches: self.caches.clone(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
        })
    }

    /// The same caches for controllers that end earlier: while this process leads.
    pub fn during(&self, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            kube: self.kube.clone(),
            shutdown,
            tasks: TaskTracker::new(),
            caches: self.caches.clone(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
        })
    }

    /// The workers of controllers, so that one can wait for their end.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Everything that is kept of the API, in no order.
    pub fn caches(&self) -> Vec<Arc<Objects>> {
        self.caches.known().values().cloned().collect()
    }

    /// The client.
    pub fn kube(&self) -> &Kube {
        &self.kube
    }

    /// Ends everything.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// The objects of a collection. The first who asks starts the watch.
    pub fn objects(&self, collection: &Collection) -> Arc<Objects> {
        self.scoped(collection, &Scope::default())
    }

    /// A part of the objects of a collection, or only their metadata. The first who asks starts the watch.
    pub fn scoped(&self, collection: &Collection, scope: &Scope) -> Arc<Objects> {
        let mut known = self.caches.known();
        let known = known.entry((collection.clone(), scope.clone()));
        let objects = known.or_insert_with(|| {
            let objects = Arc::new(Objects::new(collection.clone(), scope.clone()));
            let (kube, shutdown) = (self.caches.reader.clone(), self.caches.shutdown.clone());
            let following = objects.clone();
            tokio::spawn(async move { following.follow(&kube, shutdown).await });
            objects
        });
        objects.clone()
    }

    /// What is written is known at once, if anybody reads that collection or a part of it.
    fn wrote(&self, collection: &Collection, object: Value) -> Arc<Value> {
        let mut written = None;
        for objects in self.caches.of(collection) {
            if objects.scope() == &Scope::default() {
                written = Some(objects);
            } else {
                objects.observe_written_elsewhere(&object);
            }
        }
        match written {
            Some(objects) => objects.observe_written(object),
            None => Arc::new(object),
        }
    }

    /// Creates an object; `apiVersion` and `kind` are filled in.
    pub async fn create(
        &self,
        collection: &Collection,
        mut object: Value,
    ) -> Result<Arc<Value>, KubeError> {
        collection.name(&mut object);
        let path = collection.path(&Key::of(&object).namespace);
        let created = self.kube.create(&path, &object).await?;
        Ok(self.wrote(collection, created))
    }

    /// Replaces an object (at its resourceVersion, so that another's change is not lost: 409 then).
    pub async fn update(
        &self,
        collection: &Collection,
        object: &Value,
    ) -> Result<Arc<Value>, KubeError> {
        self.replace(collection, object, "").await
    }

    /// Replaces an object's status.
    pub async fn update_status(
        &self,
        collection: &Collection,
        object: &Value,
    ) -> Result<Arc<Value>, KubeError> {
        self.replace(collection, object, "status").await
    }

    async fn replace(
        &self,
        collection: &Collection,
        object: &Value,
        subresource: &str,
    ) -> Result<Arc<Value>, KubeError> {
        let mut object = object.clone();
        collection.name(&mut object);
        let path = path_of(collection, &Key::of(&object), subresource);
        let written = self.kube.replace(&path, &object).await?;
        Ok(self.wrote(collection, written))
    }

    /// JSON merge patch of an object, or of its `subresource` (`"status"`; `""` for the object).
    pub async fn merge(
        &self,
        collection: &Collection,
        key: &Key,
        subresource: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, KubeError> {
        let path = path_of(collection, key, subresource);
        let written = self.kube.merge(&path, patch).await?;
        Ok(self.wrote(collection, written))
    }

    /// Strategic merge patch of an object or its `subresource`, for built-in kinds.
    pub async fn patch(
        &self,
        collection: &Collection,
        key: &Key,
        subresource: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, KubeError> {
        let path = path_of(collection, key, subresource);
        let written = self.kube.strategic(&path, patch).await?;
        Ok(self.wrote(collection, written))
    }

    /// Server-side apply of an object under a field manager of its own; `force` takes fields over from others.
    pub async fn apply(
        &self,
        collection: &Collection,
        mut object: Value,
        manager: &str,
        force: bool,
    ) -> Result<Arc<Value>, KubeError> {
        collection.name(&mut object);
        let path = collection.object_path(&Key::of(&object));
        let written = self.kube.apply(&path, &object, manager, force).await?;
        Ok(self.wrote(collection, written))
    }

    /// Deletes exactly this object (by UID). One that is gone already, or has been replaced, is no failure.
    pub async fn delete(&self, collection: &Collection, object: &Value) -> Result<(), KubeError> {
        self.delete_with(collection, object, &json!({})).await
    }

    /// [`Context::delete`] with further DeleteOptions (`gracePeriodSeconds`, `propagationPolicy`).
    pub async fn delete_with(
        &self,
        collection: &Collection,
        object: &Value,
        options: &Value,
    ) -> Result<(), KubeError> {
        let key = Key::of(object);
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let mut options = options.clone();
        options["apiVersion"] = "v1".into();
        options["kind"] = "DeleteOptions".into();
        options["preconditions"]["uid"] = uid.into();
        let path = collection.object_path(&key);
        match self.kube.delete_with(&path, &options).await {
            // Still there, with a deletion timestamp: finalizers or a grace period.
            Ok(left) if left["metadata"]["deletionTimestamp"].is_string() => {
                self.wrote(collection, left);
                Ok(())
            }
            Ok(_) => {
                self.observe_gone(collection, &key, uid);
                Ok(())
            }
            Err(error) if error.code() == Some(404) => {
                self.observe_gone(collection, &key, uid);
                Ok(())
            }
            // Another object has the name by now.
            Err(error) if error.code() == Some(409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn observe_gone(&self, collection: &Collection, key: &Key, uid: &str) {
        for objects in self.caches.of(collection) {
            objects.observe_gone(key, uid);
        }
    }

    /// Records an event about an object (`type` is `Normal` or `Warning`) without waiting for it.
    pub fn event(
        &self,
        component: &'static str,
        about: &Value,
        kind: &str,
        reason: &str,
        message: &str,
    ) {
        let Ok(permit) = self.events.clone().try_acquire_owned() else {
            return;
        };
        let meta = &about["metadata"];
        let namespace = meta["namespace"].as_str().unwrap_or("default").to_owned();
        let name = meta["name"].as_str().unwrap_or_default();
        let now = Timestamp::now();
        let seconds = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"namespace": namespace, "name": format!("{name}.{:x}{:04x}", now.as_nanosecond(), fastrand::u16(..))},
            "involvedObject": {"apiVersion": about["apiVersion"], "kind": about["kind"],
                "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"]},
            "type": kind, "reason": reason, "message": message,
            "firstTimestamp": seconds, "lastTimestamp": seconds, "count": 1,
            "source": {"component": component}, "reportingComponent": component, "reportingInstance": "",
        });
        let kube = self.kube.clone();
        tokio::spawn(async move {
            let path = format!("/api/v1/namespaces/{namespace}/events");
            if let Err(error) = kube.create(&path, &event).await {
                tracing::debug!(%error, "event");
            }
            drop(permit);
        });
    }
}

/// The path of an object, or of its `subresource` (`""` for the object).
fn path_of(collection: &Collection, key: &Key, subresource: &str) -> String {
    let path = collection.object_path(key);
    match subresource {
        "" => path,
        subresource => format!("{path}/{subresource}"),
    }
}
