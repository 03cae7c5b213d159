//! The endpoints of services while the cloud does not look after them. After a reboot without a link the pods of a node have other
//! addresses than the EndpointSlices that the node knows, and services would lead nowhere until the link is back. So the slices
//! and Endpoints that the node shows follow the statuses that its kubelet reports: [`slice`] and [`legacy`] work out how they would
//! look if the cloud knew them (pure), this module decides which pods count, and for how long.
//!
//! A pod counts from when its kubelet says something that shows in endpoints and the cloud does not know, until the cloud has had
//! time to act on it. What is worked out lies on top of the cloud's state in the cache; it is never journalled and never sent. It
//! is worked out anew after a start.

mod legacy;
mod pod;
mod service;
mod slice;
#[cfg(test)]
mod tests;

use crate::{
    cache::{
        Cache,
        record::{self, Stored, split_index_key},
    },
    journal::Journal,
    route::Mode,
};
use memchr::memmem::Finder;
use pod::{LocalPod, facts};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{broadcast::error::RecvError, watch};
use tokio_util::sync::CancellationToken;
use yurt_wire::{Gvr, Object};

/// Changes that come together are worked on together: a pod that starts reports several times.
const TOGETHER: Duration = Duration::from_millis(30);
/// Between looks at the time that the cloud has left.
const TICK: Duration = Duration::from_secs(2);
/// Labels: the service of a slice, the zone of a node.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Where this node is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    node: String,
    zone: Option<String>,
}

/// A pod that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    uid: String,
    /// How much longer the cloud may take to act on what it was told, in seconds with a link. `None` while it was not told.
    left: Option<u64>,
}

/// Pods that count, by `NAMESPACE/NAME`.
type Unsettled = BTreeMap<Box<str>, Known>;

/// Keeps the endpoints that the node shows in step with its pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoints {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cache: Cache,
    journal: Journal,
    node: String,
    grace: Duration,
    unsettled: Mutex<Unsettled>,
}

fn pods() -> Gvr {
    Gvr::new("", "v1", "pods")
}

fn slices() -> [Gvr; 2] {
    ["v1", "v1beta1"].map(|version| Gvr::new("discovery.k8s.io", version, "endpointslices"))
}

fn endpoints() -> Gvr {
    Gvr::new("", "v1", "endpoints")
}

impl Endpoints {
    /// What is shown at once follows what was reported before a restart. `grace` is how long the cloud may take to act on what it
    /// was told about a pod, before its word about the endpoints holds. Reads the disk.
    pub fn open(cache: &Cache, journal: &Journal, node_name: &str, grace: Duration) -> Self {
        let unsettled = cache
            .note(record::UNSETTLED)
            .and_then(|note| serde_json::from_slice(&note).ok())
            .unwrap_or_default();
        let endpoints = Self {
            inner: Arc::new(Inner {
                cache: cache.clone(),
                journal: journal.clone(),
                node: node_name.to_owned(),
                grace,
                unsettled: Mutex::new(unsettled),
            }),
        };
        endpoints.reconcile(Duration::ZERO);
        endpoints
    }

    /// Keeps in step until `shutdown`.
    pub async fn run(self, mut modes: watch::Receiver<Mode>, shutdown: CancellationToken) {
        let mut changes = self.inner.cache.changes();
        let learned = self.inner.cache.endpoints_changed();
        let mut looked = Instant::now();
        let mut had_link = false;
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) if change.gvr != pods() => continue,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                () = learned.notified() => {}
                changed = modes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(TICK), if self.counts_any() => {}
                () = shutdown.cancelled() => return,
            }
            tokio::time::sleep(TOGETHER).await;
            let with_link = if had_link {
                looked.elapsed()
            } else {
                Duration::ZERO
            };
            had_link = *modes.borrow_and_update() == Mode::Online;
            // Parts of a second add up.
            if with_link.as_secs() > 0 || with_link.is_zero() {
                looked = Instant::now();
            }
            let this = self.clone();
            // Records are read: not on a thread that serves others.
            let done = tokio::task::spawn_blocking(move || this.reconcile(with_link)).await;
            if let Err(error) = done {
                tracing::error!(%error, "the endpoints of services were not worked out");
            }
        }
    }

    fn counts_any(&self) -> bool {
        !self.unsettled().is_empty()
    }

    fn unsettled(&self) -> MutexGuard<'_, Unsettled> {
        self.inner
            .unsettled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Works everything out anew, `with_link` later than the last time. Reads the disk.
    pub fn reconcile(&self, with_link: Duration) {
        let mut unsettled = self.unsettled();
        let before = unsettled.clone();
        self.settle(&mut unsettled, with_link);
        let changed = |known: &Unsettled| -> Vec<_> {
            known
                .iter()
                .map(|(key, known)| (key.clone(), known.uid.clone()))
                .collect()
        };
        if changed(&before) != changed(&unsettled) {
            self.write_down(&unsettled);
        }
        let local: Vec<LocalPod> = unsettled
            .iter()
            .filter_map(|(key, known)| self.local_pod(key, known))
            .collect();
        let mut namespaces: BTreeSet<String> =
            local.iter().map(|pod| pod.namespace.clone()).collect();
        for gvr in slices().into_iter().chain([endpoints()]) {
            for key in self.inner.cache.derived(&gvr) {
                namespaces.insert(split_index_key(&key).0.to_owned());
            }
        }
        if namespaces.is_empty() {
            return;
        }
        let place = self.place();
        for namespace in namespaces {
            let local: Vec<LocalPod> = local
                .iter()
                .filter(|pod| pod.namespace == namespace)
                .cloned()
                .collect();
            self.reconcile_namespace(&namespace, &local, &place);
        }
    }

    /// Which pods count now.
    fn settle(&self, unsettled: &mut Unsettled, with_link: Duration) {
        let (cache, gvr) = (&self.inner.cache, pods());
        let mut waiting = BTreeSet::new();
        for key in self.inner.journal.waiting_keys(&gvr) {
            let (namespace, name) = split_index_key(&key);
            let here = cache.view(&gvr, namespace, name).and_then(decoded);
            let cloud = cache.stored(&gvr, &key);
            let cloud = cloud.and_then(|stored| decoded(stored.object));
            let Some(any) = cloud.as_ref().or(here.as_ref()) else {
                continue;
            };
            let same = match (&here, &cloud) {
                (Some(here), Some(cloud)) => facts(here) == facts(cloud),
                _ => false,
            };
            if same || any["spec"]["nodeName"] != self.inner.node.as_str() {
                continue;
            }
            let uid = any["metadata"]["uid"].as_str().unwrap_or_default();
            let known = Known {
                uid: uid.to_owned(),
                left: None,
            };
            unsettled.insert(key.clone(), known);
            waiting.insert(key);
        }
        unsettled.retain(|key, known| {
            if waiting.contains(key) {
                return true;
            }
            match known.left {
                None => known.left = Some(self.inner.grace.as_secs()),
                Some(left) => {
                    known.left = left
                        .checked_sub(with_link.as_secs())
                        .filter(|left| *left > 0);
                    if known.left.is_none() {
                        return false;
                    }
                }
            }
            true
        });
    }

    fn write_down(&self, unsettled: &Unsettled) {
        let written = serde_json::to_vec(unsettled)
            .map_err(|error| error.to_string())
            .and_then(|note| {
                let set = self.inner.cache.set_note(record::UNSETTLED, note.into());
                set.map_err(|error| error.to_string())
            });
        if let Err(error) = written {
            // The journal tells the same as long as the cloud was not told.
            tracing::warn!(%error, "which pods' endpoints the cloud may lack is not on disk");
        }
    }

    /// `None` when nobody knows what became of it.
    fn local_pod(&self, key: &str, known: &Known) -> Option<LocalPod> {
        let (cache, gvr) = (&self.inner.cache, pods());
        let (namespace, name) = split_index_key(key);
        let created_here = cache.is_created_here(&gvr, key);
        let here = cache.view(&gvr, namespace, name).and_then(decoded);
        if here.is_none() && !cache.is_gone(&gvr, key) {
            return None;
        }
        let same = |pod: &Value| created_here || pod["metadata"]["uid"] == known.uid.as_str();
        Some(LocalPod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: known.uid.clone(),
            pod: here.filter(same),
            created_here,
        })
    }

    fn place(&self) -> Place {
        let nodes = Gvr::new("", "v1", "nodes");
        let node = self.inner.cache.view(&nodes, "", &self.inner.node);
        let labels = node
            .and_then(|node| node.meta().ok())
            .unwrap_or_default()
            .labels;
        Place {
            node: self.inner.node.clone(),
            zone: labels
                .into_iter()
                .find(|(name, zone)| name == ZONE && !zone.is_empty())
                .map(|(_, zone)| zone),
        }
    }

    fn reconcile_namespace(&self, namespace: &str, local: &[LocalPod], place: &Place) {
        let services = self.services(namespace, local);
        let names = Names::of(local);
        for gvr in slices() {
            self.reconcile_slices(&gvr, namespace, local, &names, &services, place);
        }
        let gvr = endpoints();
        for key in self.inner.cache.keys_in(&gvr, namespace) {
            let Some(stored) = self.inner.cache.stored(&gvr, &key) else {
                continue;
            };
            let name = split_index_key(&key).1;
            let selected = services.get(name);
            if selected.is_none() && !names.are_in(&stored.object) {
                self.inner.cache.end_derived(&gvr, &key);
                continue;
            }
            let Some(before) = decoded(stored.object.clone()) else {
                continue;
            };
            let service = selected.cloned().or_else(|| self.service(namespace, name));
            let after = legacy::derive(&before, service.as_ref(), local, place);
            self.show(&gvr, &key, &stored, &before, &after);
        }
    }

    fn reconcile_slices(
        &self,
        gvr: &Gvr,
        namespace: &str,
        local: &[LocalPod],
        names: &Names<'_>,
        services: &BTreeMap<String, Value>,
        place: &Place,
    ) {
        let cache = &self.inner.cache;
        // By service; a slice of none is alone.
        let mut groups: BTreeMap<String, Vec<(Box<str>, Stored)>> = BTreeMap::new();
        let mut concerned: BTreeSet<String> = services.keys().cloned().collect();
        for key in cache.keys_in(gvr, namespace) {
            let Some(stored) = cache.stored(gvr, &key) else {
                continue;
            };
            let labels = stored.object.meta().map(|meta| meta.labels);
            let of = labels.unwrap_or_default().into_iter();
            let service = of.into_iter().find(|(name, _)| name == SERVICE_NAME);
            let group = service.map_or_else(|| format!("/{key}"), |(_, service)| service);
            if names.are_in(&stored.object) {
                concerned.insert(group.clone());
            }
            groups.entry(group).or_default().push((key, stored));
        }
        for (group, members) in groups {
            if !concerned.contains(&group) {
                for (key, _) in members {
                    cache.end_derived(gvr, &key);
                }
                continue;
            }
            let before: Vec<Value> = members
                .iter()
                .map(|(_, stored)| decoded(stored.object.clone()).unwrap_or_default())
                .collect();
            let service = services
                .get(&group)
                .cloned()
                .or_else(|| self.service(namespace, &group));
            let after = slice::derive(&before, service.as_ref(), local, place);
            for ((key, stored), (before, after)) in members.iter().zip(before.iter().zip(&after)) {
                self.show(gvr, key, stored, before, after);
            }
        }
    }

    /// Shows what was worked out, or the cloud's state where that is the same.
    fn show(&self, gvr: &Gvr, key: &str, stored: &Stored, before: &Value, after: &Value) {
        let cache = &self.inner.cache;
        if before == after {
            cache.end_derived(gvr, key);
            return;
        }
        match Object::from_json_value(after, stored.object.encoding) {
            Ok(object) => cache.show_derived(gvr, key, stored.revision, object),
            Err(error) => {
                tracing::warn!(resource = %gvr, object = key, %error, "endpoints that cannot be encoded");
                cache.end_derived(gvr, key);
            }
        }
    }

    /// The services that select one of the pods.
    fn services(&self, namespace: &str, local: &[LocalPod]) -> BTreeMap<String, Value> {
        let alive: Vec<&Value> = local.iter().filter_map(LocalPod::alive).collect();
        if alive.is_empty() {
            return BTreeMap::new();
        }
        let gvr = Gvr::new("", "v1", "services");
        let keys = self.inner.cache.keys_in(&gvr, namespace);
        let services = keys.iter().filter_map(|key| {
            let name = split_index_key(key).1;
            let service = self.service(namespace, name)?;
            let selects = alive.iter().any(|pod| service::selects(&service, pod));
            selects.then(|| (name.to_owned(), service))
        });
        services.collect()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Value> {
        let gvr = Gvr::new("", "v1", "services");
        self.inner
            .cache
            .view(&gvr, namespace, name)
            .and_then(decoded)
    }
}

fn decoded(object: Object) -> Option<Value> {
    object.to_json_value().ok()
}

/// The names of pods, to be found in the bytes of objects: decoding them all would cost more.
struct Names<'a>(Vec<Finder<'a>>);

impl<'a> Names<'a> {
    fn of(local: &'a [LocalPod]) -> Self {
        Self(local.iter().map(|pod| Finder::new(&pod.name)).collect())
    }

    fn are_in(&self, object: &Object) -> bool {
        self.0.iter().any(|name| name.find(&object.bytes).is_some())
    }
}
