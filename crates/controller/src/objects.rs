//! A collection kept up to date by one watch, for all controllers that read it.

use crate::{
    collection::{Collection, Key, Scope},
    collections::NODES,
    feed::{self, Phase, Sink},
    kube::{Kube, KubeError},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What became of an object. At least one of the two is there.
#[derive(Clone, Debug)]
pub struct Change {
    /// As it was; `None` when it is new.
    pub old: Option<Arc<Value>>,
    /// As it is; `None` when it is gone.
    pub new: Option<Arc<Value>>,
}

impl Change {
    /// The object's key.
    pub fn key(&self) -> Key {
        self.new
            .as_ref()
            .or(self.old.as_ref())
            .map(|o| Key::of(o))
            .unwrap_or_default()
    }
}

/// The owner reference with `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"]
        .as_array()?
        .iter()
        .find(|owner| owner["controller"] == true)
}

pub(crate) fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    /// By the UIDs of all owners.
    owned: HashMap<String, BTreeSet<Key>>,
    /// By `spec.nodeName`.
    on_node: HashMap<String, BTreeSet<Key>>,
    /// By the values of those labels that somebody has asked for.
    labelled: HashMap<&'static str, HashMap<String, BTreeSet<Key>>>,
    /// Up to which revision the watch has told everything.
    told: u64,
}

impl State {
    fn terms(object: &Value) -> (Vec<&str>, Option<&str>) {
        let owners = object["metadata"]["ownerReferences"].as_array();
        let owners = owners
            .into_iter()
            .flatten()
            .filter_map(|owner| owner["uid"].as_str());
        (owners.collect(), object["spec"]["nodeName"].as_str())
    }

    /// Puts what there is under the values of a label, which is kept so from now on.
    fn index_label(&mut self, label: &'static str) {
        let mut index: HashMap<String, BTreeSet<Key>> = HashMap::new();
        for (key, object) in &self.objects {
            if let Some(value) = object["metadata"]["labels"][label].as_str() {
                index.entry(value.into()).or_default().insert(key.clone());
            }
        }
        self.labelled.insert(label, index);
    }

    fn unindex(&mut self, key: &Key, object: &Value) {
        fn drop_from(index: &mut HashMap<String, BTreeSet<Key>>, term: &str, key: &Key) {
            if let Some(keys) = index.get_mut(term) {
                keys.remove(key);
                if keys.is_empty() {
                    index.remove(term);
                }
            }
        }
        let (owners, node) = Self::terms(object);
        for owner in owners {
            drop_from(&mut self.owned, owner, key);
        }
        if let Some(node) = node {
            drop_from(&mut self.on_node, node, key);
        }
        for (label, index) in &mut self.labelled {
            if let Some(value) = object["metadata"]["labels"][label].as_str() {
                drop_from(index, value, key);
            }
        }
    }

    /// Takes in an object, or `None` that it is gone.
    fn put(&mut self, key: &Key, new: Option<Arc<Value>>) -> Change {
        let old = match &new {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(key),
        };
        if let Some(old) = &old {
            self.unindex(key, old);
        }
        if let Some(new) = &new {
            let (owners, node) = Self::terms(new);
            for owner in owners {
                self.owned
                    .entry(owner.into())
                    .or_default()
                    .insert(key.clone());
            }
            if let Some(node) = node {
                self.on_node
                    .entry(node.into())
                    .or_default()
                    .insert(key.clone());
            }
            for (label, index) in &mut self.labelled {
                if let Some(value) = new["metadata"]["labels"][label].as_str() {
                    index.entry(value.into()).or_default().insert(key.clone());
                }
            }
        }
        Change { old, new }
    }
}

/// Where an object comes from.
#[derive(Clone, Copy)]
enum Source {
    /// The state at one time, in no order.
    List,
    /// The watch, in order.
    Watch,
    /// The answer of a write.
    Write,
}

type Subscriber = Arc<dyn Fn(&Change) + Send + Sync>;

/// What is known of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet, or not everything.
    #[default]
    Filling,
    /// The API server does not serve it: its definition is not installed.
    Absent,
    /// The API server refuses; what it says.
    Refused(String),
    /// Everything that there was, and what changed since.
    Complete,
}

/// The objects of a collection, everywhere.
pub struct Objects {
    collection: Collection,
    scope: Scope,
    state: RwLock<State>,
    subscribers: Mutex<Vec<Subscriber>>,
    standing: watch::Sender<Standing>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects")
            .field("collection", &self.collection)
            .finish_non_exhaustive()
    }
}

impl Objects {
    /// An empty cache; [`Objects::follow`] fills it.
    pub fn new(collection: Collection, scope: Scope) -> Self {
        Self {
            collection,
            scope,
            state: RwLock::default(),
            subscribers: Mutex::default(),
            standing: watch::Sender::default(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What these are.
    pub fn collection(&self) -> &Collection {
        &self.collection
    }

    /// Which part of them.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// What is known of them.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.read().objects.get(key).cloned()
    }

    /// All objects of a namespace (`""`: everywhere), by name.
    pub fn list(&self, namespace: &str) -> Vec<Arc<Value>> {
        let state = self.read();
        if namespace.is_empty() {
            return state.objects.values().cloned().collect();
        }
        let first = Key::new(namespace, "");
        let of_namespace = state.objects.range(first..);
        of_namespace
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The objects that name this UID in their owner references.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<Value>> {
        let state = self.read();
        let keys = state.owned.get(uid).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned())
            .collect()
    }

    /// The objects with this `spec.nodeName`.
    pub fn on_node(&self, node: &str) -> Vec<Arc<Value>> {
        let state = self.read();
        let keys = state.on_node.get(node).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned())
            .collect()
    }

    /// The objects with this value of a label, by name. The first who asks for a label has them indexed by it.
    pub fn labelled(&self, label: &'static str, value: &str) -> Vec<Arc<Value>> {
        let found = |state: &State| -> Option<Vec<Arc<Value>>> {
            let keys = state.labelled.get(label)?.get(value);
            let keys = keys.into_iter().flatten();
            Some(
                keys.filter_map(|key| state.objects.get(key).cloned())
                    .collect(),
            )
        };
        if let Some(found) = found(&self.read()) {
            return found;
        }
        let mut state = self.write();
        // Another may have been as quick.
        if !state.labelled.contains_key(label) {
            state.index_label(label);
        }
        found(&state).unwrap_or_default()
    }

    /// Waits until everything that was there has been told.
    pub async fn synced(&self) {
        // The sender lives as long as `self`.
        let mut standing = self.standing.subscribe();
        let _ = standing
            .wait_for(|standing| *standing == Standing::Complete)
            .await;
    }

    /// Calls `tell` for all there is and for every change. It must be quick and must not block: put a key into a queue.
    pub fn subscribe(&self, tell: impl Fn(&Change) + Send + Sync + 'static) {
        let tell: Subscriber = Arc::new(tell);
        let objects = {
            let mut subscribers = self
                .subscribers
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            subscribers.push(tell.clone());
            self.list("")
        };
        for object in objects {
            tell(&Change {
                old: None,
                new: Some(object),
            });
        }
    }

    fn tell(&self, change: &Change) {
        if change.old.is_none() && change.new.is_none() {
            return;
        }
        let subscribers = self
            .subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for tell in subscribers {
            tell(change);
        }
    }

    /// Takes in an object, unless something newer is known.
    pub fn observe(&self, object: Value) -> Arc<Value> {
        self.take_in(object, Source::List)
    }

    /// Takes in an object as a write answered it, so that a controller always reads what it wrote. When the watch is past
    /// this write already, it knows better: the object may be gone by now.
    pub fn observe_written(&self, object: Value) -> Arc<Value> {
        self.take_in(object, Source::Write)
    }

    /// [`Objects::observe_written`] of a whole object, where only a part of the collection is kept.
    pub(crate) fn observe_written_elsewhere(&self, object: &Value) {
        if !self.scope.takes(object) {
            // Who reads this part is told by the watch as well, later.
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            return self.observe_gone(&Key::of(object), uid);
        }
        let object = if self.scope.metadata_only {
            json!({"metadata": object["metadata"]})
        } else {
            object.clone()
        };
        self.take_in(object, Source::Write);
    }

    /// Takes away what no controller reads and many objects have much of.
    fn trim(&self, object: &mut Value) {
        // Who owns which field is the server's business, and half of many objects.
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        // 50 images of two names each: more than the rest of a Node. Nobody writes a whole status of a Node.
        if self.collection == NODES
            && let Some(status) = object["status"].as_object_mut()
        {
            status.remove("images");
        }
        // It is told as a `PartialObjectMetadata`, or as an item of a list, which does not say what it is.
        if self.scope.metadata_only || object["kind"].is_null() {
            self.collection.name(object);
        }
    }

    fn take_in(&self, mut object: Value, source: Source) -> Arc<Value> {
        self.trim(&mut object);
        let (key, at) = (Key::of(&object), revision(&object));
        let object = Arc::new(object);
        let change = {
            let mut state = self.write();
            match source {
                Source::List => {}
                Source::Watch => state.told = state.told.max(at),
                Source::Write if at <= state.told => return object,
                Source::Write => {}
            }
            if let Some(known) = state.objects.get(&key)
                && known["metadata"]["uid"] == object["metadata"]["uid"]
                && revision(known) >= at
            {
                return object;
            }
            state.put(&key, Some(object.clone()))
        };
        self.tell(&change);
        object
    }

    /// An object is gone; one with another UID under its name is not meant.
    pub fn observe_gone(&self, key: &Key, uid: &str) {
        self.take_out(key, uid, 0);
    }

    /// [`Objects::observe_gone`], told by the watch at a revision (0: not by the watch).
    fn take_out(&self, key: &Key, uid: &str, told: u64) {
        let change = {
            let mut state = self.write();
            state.told = state.told.max(told);
            match state.objects.get(key) {
                Some(known) if uid.is_empty() || known["metadata"]["uid"] == uid => {
                    state.put(key, None)
                }
                _ => return,
            }
        };
        self.tell(&change);
    }

    /// Watches until `shutdown`.
    pub async fn follow(&self, kube: &Kube, shutdown: CancellationToken) {
        feed::follow(kube, &self.collection, &self.scope, self, shutdown).await;
    }
}

impl Sink for Objects {
    fn observe(&self, object: Value, phase: Phase) {
        let source = match phase {
            // The initial events come in no order.
            Phase::Initial => Source::List,
            Phase::Live => Source::Watch,
        };
        self.take_in(object, source);
    }

    fn observe_gone(&self, object: &Value, phase: Phase) {
        let at = match phase {
            Phase::Initial => 0,
            Phase::Live => revision(object),
        };
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        self.take_out(&Key::of(object), uid, at);
    }

    /// What was there and was not told again at revision `at` went while nobody watched; what was written later is still to come.
    fn complete(&self, told: &BTreeSet<Key>, at: u64) {
        let gone: Vec<Key> = {
            let state = self.read();
            let known = state.objects.iter();
            known
                .filter(|(key, object)| !told.contains(key) && revision(object) <= at)
                .map(|(key, _)| key.clone())
                .collect()
        };
        for key in gone {
            Self::observe_gone(self, &key, "");
        }
        {
            let mut state = self.write();
            state.told = state.told.max(at);
        }
        self.standing.send_replace(Standing::Complete);
    }

    fn troubled(&self, error: &KubeError) {
        let standing = match error.code() {
            Some(404) => Standing::Absent,
            Some(400..=499) => Standing::Refused(error.to_string()),
            _ => return,
        };
        // What was there once goes on as it was.
        self.standing.send_if_modified(|now| {
            let news = *now != Standing::Complete && *now != standing;
            if news {
                *now = standing;
            }
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, revision: u64, node: &str) -> Value {
        json!({"metadata": {"namespace": "default", "name": name, "uid": uid,
            "resourceVersion": revision.to_string(),
            "ownerReferences": [{"uid": "owner", "kind": "ReplicaSet", "name": "rs", "controller": true}]},
            "spec": {"nodeName": node}})
    }

    #[test]
    fn indexes_follow_the_objects() {
        let pods = Objects::new(
            Collection::namespaced("v1", "pods", "Pod"),
            Scope::default(),
        );
        pods.observe(pod("a", "1", 5, "n1"));
        pods.observe(pod("b", "2", 6, "n1"));
        assert_eq!(pods.on_node("n1").len(), 2);
        pods.observe(pod("a", "1", 7, "n2"));
        assert_eq!(pods.on_node("n1").len(), 1);
        assert_eq!(pods.on_node("n2").len(), 1);
        assert_eq!(pods.owned_by("owner").len(), 2);
        pods.observe_gone(&Key::new("default", "a"), "1");
        assert!(pods.on_node("n2").is_empty());
        assert_eq!(pods.owned_by("owner").len(), 1);
    }

    #[test]
    fn labels_are_indexed_once_somebody_asks() {
        let nodes = Objects::new(Collection::cluster("v1", "nodes", "Node"), Scope::default());
        let node = |name: &str, revision: u64, pool: Option<&str>| {
            let mut node = json!({"metadata": {"name": name, "uid": name, "resourceVersion": revision.to_string()}});
            if let Some(pool) = pool {
                node["metadata"]["labels"]["pool"] = pool.into();
            }
            node
        };
        let of = |pool: &str| -> Vec<Value> {
            let nodes = nodes.labelled("pool", pool);
            nodes
                .iter()
                .map(|n| n["metadata"]["name"].clone())
                .collect()
        };
        nodes.observe(node("b", 1, Some("p")));
        assert_eq!(of("p"), ["b"]);
        nodes.observe(node("a", 2, Some("p")));
        nodes.observe(node("c", 3, None));
        assert_eq!(of("p"), ["a", "b"]);
        nodes.observe(node("b", 4, Some("q")));
        assert_eq!((of("p"), of("q")), (vec!["a".into()], vec!["b".into()]));
        nodes.observe(node("a", 5, None));
        nodes.observe_gone(&Key::new("", "b"), "b");
        assert!(of("p").is_empty() && of("q").is_empty());
    }

    #[test]
    fn parts_of_a_collection_know_at_once_what_was_written() {
        let config = |revision: u64, label: &str| {
            json!({"metadata": {"namespace": "default", "name": "a", "uid": "1", "labels": {"of": label},
                "resourceVersion": revision.to_string()}, "data": {"key": "value"}})
        };
        let part = |scope: Scope| {
            Objects::new(
                Collection::namespaced("v1", "configmaps", "ConfigMap"),
                scope,
            )
        };
        let (key, metadata) = (Key::new("default", "a"), Scope::metadata());
        let labelled = part(metadata.clone().labelled("of in (x, y)"));
        let elsewhere = part(metadata.clone().within("other"));
        let named = part(Scope {
            fields: "metadata.name=b".into(),
            ..Scope::default()
        });
        for objects in [&labelled, &elsewhere, &named] {
            objects.observe_written_elsewhere(&config(5, "x"));
        }
        assert!(elsewhere.get(&key).is_none() && named.get(&key).is_none());
        let known = labelled.get(&key).expect("taken in");
        assert_eq!(known["data"], Value::Null, "metadata only");
        assert_eq!(known["kind"], "ConfigMap");
        labelled.observe_written_elsewhere(&config(6, "z"));
        assert!(labelled.get(&key).is_none(), "it is none of these any more");
    }

    #[test]
    fn what_no_controller_reads_is_not_kept() {
        let nodes = Objects::new(NODES, Scope::default());
        let node = json!({"metadata": {"name": "n", "managedFields": [{}]},
            "status": {"images": [{"names": ["a"]}], "addresses": []}});
        let node = nodes.observe(node);
        assert_eq!(node["status"], json!({"addresses": []}));
        assert_eq!(node["metadata"], json!({"name": "n"}));
        assert_eq!(node["apiVersion"], "v1");
    }

    #[test]
    fn what_is_older_or_about_another_object_changes_nothing() {
        let pods = Objects::new(
            Collection::namespaced("v1", "pods", "Pod"),
            Scope::default(),
        );
        pods.observe(pod("a", "1", 7, "n2"));
        pods.observe(pod("a", "1", 6, "n1"));
        assert_eq!(pods.on_node("n2").len(), 1, "an event that was on its way");
        pods.observe_gone(&Key::new("default", "a"), "0");
        assert_eq!(pods.list("default").len(), 1, "the one of that name before");
        pods.observe(pod("a", "2", 8, "n3"));
        assert_eq!(pods.on_node("n3").len(), 1);
    }

    #[test]
    fn an_answer_that_comes_after_the_object_went_does_not_bring_it_back() {
        let pods = Objects::new(
            Collection::namespaced("v1", "pods", "Pod"),
            Scope::default(),
        );
        pods.observe_written(pod("a", "1", 5, "n1"));
        assert_eq!(pods.list("").len(), 1, "ahead of the watch");
        pods.take_out(&Key::new("default", "a"), "1", 7);
        pods.observe_written(pod("a", "1", 6, "n1"));
        assert!(pods.list("").is_empty());
    }

    #[test]
    fn a_new_start_of_the_watch_forgets_what_went_and_keeps_what_is_newer() {
        let pods = Objects::new(
            Collection::namespaced("v1", "pods", "Pod"),
            Scope::default(),
        );
        pods.observe(pod("gone", "1", 5, "n1"));
        pods.observe_written(pod("new", "2", 9, "n1"));
        Sink::complete(&pods, &BTreeSet::new(), 8);
        let left = pods.list("");
        assert_eq!(left.len(), 1);
        assert_eq!(left[0]["metadata"]["name"], "new");
    }
}
