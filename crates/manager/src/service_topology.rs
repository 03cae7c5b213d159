//! `service-topology-endpoints-controller` and `service-topology-endpointslice-controller` of OpenYurt: when the topology of a service
//! changes, its endpoints are touched, so that those who watch them filter them again. The filtering is the hubs'.
//!
//! What endpoints were last touched for stands on them: what changed while no manager ran is made up for, and a start touches nothing
//! else.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{ENDPOINT_SLICES, ENDPOINTS as ENDPOINTS_OBJECTS, SERVICES},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use yurt_api::names::annotations::{TOPOLOGY_KEYS, UPDATE_TRIGGER, UPDATE_TRIGGER_FOR};
use yurt_controller::{Change, Collection, Objects, Scope, policy::Rule};

/// The label of a slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(crate) const ENDPOINTS: Entry = Entry::of::<Topology<Endpoints>>(
    "servicetopologyendpoints",
    &[Rule::new("", &["endpoints"], &["patch"])],
);
pub(crate) const SLICES: Entry = Entry::of::<Topology<Slices>>(
    "servicetopologyendpointslices",
    &[Rule::new(
        "discovery.k8s.io",
        &["endpointslices"],
        &["patch"],
    )],
);

/// What is touched for a service.
pub(crate) trait Touched: Default + Send + Sync + 'static {
    const NAME: &'static str;
    const COLLECTION: Collection;
    /// Those of a service.
    fn of(objects: &Objects, service: &Key) -> Vec<Arc<Value>>;
}

#[derive(Debug, Default)]
pub(crate) struct Endpoints;

impl Touched for Endpoints {
    const NAME: &'static str = "service-topology-endpoints-controller";
    const COLLECTION: Collection = ENDPOINTS_OBJECTS;

    fn of(objects: &Objects, service: &Key) -> Vec<Arc<Value>> {
        objects.get(service).into_iter().collect()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Slices;

impl Touched for Slices {
    const NAME: &'static str = "service-topology-endpointslice-controller";
    const COLLECTION: Collection = ENDPOINT_SLICES;

    fn of(objects: &Objects, service: &Key) -> Vec<Arc<Value>> {
        let mut slices = objects.labelled(SERVICE_NAME, &service.name);
        slices.retain(|slice| slice["metadata"]["namespace"] == service.namespace.as_str());
        slices
    }
}

/// The controller of one kind of endpoints.
#[derive(Debug, Default)]
pub(crate) struct Topology<T> {
    /// Services whose topology was seen to change, until all their endpoints are touched.
    changed: Arc<Mutex<BTreeSet<Key>>>,
    kind: PhantomData<T>,
}

fn lock(changed: &Mutex<BTreeSet<Key>>) -> MutexGuard<'_, BTreeSet<Key>> {
    changed.lock().unwrap_or_else(PoisonError::into_inner)
}

fn topology(service: &Value) -> &str {
    let annotation = &service["metadata"]["annotations"][TOPOLOGY_KEYS];
    annotation.as_str().unwrap_or_default()
}

/// Whether the topology of a service that was known has changed.
fn is_seen(change: &Change) -> bool {
    matches!((&change.old, &change.new), (Some(old), Some(new)) if topology(old) != topology(new))
}

/// Whether endpoints are to be touched. Those that never were came to those who watch them as the topology was then: they are touched
/// only for a change that was seen. Pure.
fn is_due(endpoints: &Value, topology: &str, seen: bool) -> bool {
    match endpoints["metadata"]["annotations"][UPDATE_TRIGGER_FOR].as_str() {
        Some(touched_for) => touched_for != topology,
        None => seen,
    }
}

impl<T: Touched> Controller for Topology<T> {
    const NAME: &'static str = T::NAME;
    const WORKERS: usize = 3;

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let changed = self.changed.clone();
        let services = Watch::of(SERVICES, move |change| {
            let key = change.key();
            if change.new.is_none() {
                lock(&changed).remove(&key);
                return Vec::new();
            }
            let seen = is_seen(change);
            if seen {
                lock(&changed).insert(key.clone());
            }
            (seen || change.old.is_none())
                .then_some(key)
                .into_iter()
                .collect()
        });
        let endpoints = Watch::of(T::COLLECTION, |_| Vec::new());
        vec![
            services.scoped(Scope::metadata()),
            endpoints.scoped(Scope::metadata()),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(service) = context.scoped(&SERVICES, &Scope::metadata()).get(key) else {
            return Ok(Next::Done);
        };
        let topology = topology(&service);
        let seen = lock(&self.changed).contains(key);
        let objects = context.scoped(&T::COLLECTION, &Scope::metadata());
        let mut failed = None;
        for endpoints in T::of(&objects, key) {
            if !is_due(&endpoints, topology, seen) {
                continue;
            }
            let now = Timestamp::now().as_second().to_string();
            let patch = json!({"metadata": {"annotations": {UPDATE_TRIGGER: now, UPDATE_TRIGGER_FOR: topology}}});
            match context
                .merge(&T::COLLECTION, &Key::of(&endpoints), "", &patch)
                .await
            {
                Err(error) if !error.is_not_found() => failed = Some(error),
                _ => {}
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        lock(&self.changed).remove(key);
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    #[test]
    fn only_what_was_touched_for_another_topology_or_is_seen_to_change_is_touched() {
        let endpoints = |touched_for: Value| json!({"metadata": {"annotations": {UPDATE_TRIGGER_FOR: touched_for}}});
        assert!(
            !is_due(&endpoints(Value::Null), "a", false),
            "a start touches nothing"
        );
        assert!(is_due(&endpoints(Value::Null), "a", true));
        assert!(is_due(&endpoints("b".into()), "a", false), "made up for");
        assert!(
            is_due(&endpoints("a".into()), "", false),
            "the topology is taken away"
        );
        assert!(!is_due(&endpoints("a".into()), "a", true));
    }

    #[tokio::test]
    async fn endpoints_are_touched_when_the_topology_changes() {
        let both = [Endpoints::NAME, Slices::NAME].join(",");
        let mut stage = Stage::start_confined(&both, crate::Settings::default()).await;
        let path = |kind: &str, name: &str| match kind {
            "endpointslices" => {
                format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{name}")
            }
            kind => format!("/api/v1/namespaces/default/{kind}/{name}"),
        };
        for (name, topology) in [("web", None), ("near", Some("kubernetes.io/hostname"))] {
            let annotations = topology.map(|keys| json!({TOPOLOGY_KEYS: keys}));
            let service = json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"ports": [{"port": 80}]}});
            stage
                .create("/api/v1/namespaces/default/services", service)
                .await;
            stage
                .create(
                    "/api/v1/namespaces/default/endpoints",
                    json!({"metadata": {"name": name}}),
                )
                .await;
            for slice in ["1", "2"] {
                let slice = json!({"metadata": {"name": format!("{name}-{slice}"), "labels": {SERVICE_NAME: name}},
                    "addressType": "IPv4", "endpoints": []});
                stage
                    .create(
                        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
                        slice,
                    )
                    .await;
            }
        }
        let of_web = [
            path("endpoints", "web"),
            path("endpointslices", "web-1"),
            path("endpointslices", "web-2"),
        ];
        let set = async |stage: &Stage, keys: Value| {
            let patch = json!({"metadata": {"annotations": {TOPOLOGY_KEYS: keys}}});
            stage
                .kube
                .merge(&path("services", "web"), &patch)
                .await
                .expect("annotated");
        };
        let touched = async |stage: &Stage, topology: &str| {
            for path in &of_web {
                let has = |object: &Value| {
                    let annotations = &object["metadata"]["annotations"];
                    annotations[UPDATE_TRIGGER_FOR] == topology
                        && annotations[UPDATE_TRIGGER]
                            .as_str()
                            .is_some_and(|at| at.parse::<u64>().is_ok())
                };
                stage.until(path, has).await;
            }
        };
        // What is written before the controllers know the service is no change to them.
        for collection in [SERVICES, ENDPOINTS_OBJECTS, ENDPOINT_SLICES] {
            let objects = stage.context.scoped(&collection, &Scope::metadata());
            while objects
                .list("default")
                .iter()
                .filter(|o| o["metadata"]["name"] != "kubernetes")
                .count()
                < 2
            {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        set(&stage, "openyurt.io/nodepool".into()).await;
        touched(&stage, "openyurt.io/nodepool").await;
        stage.restart("nodepool-controller");
        set(&stage, Value::Null).await;
        stage.restart(&both);
        touched(&stage, "").await;
        for path in &of_web {
            stage.quiet(path).await;
        }
        let other = stage
            .kube
            .get(&path("endpointslices", "near-1"))
            .await
            .expect("there");
        assert!(
            other["metadata"]["annotations"].is_null(),
            "no start touched it: {other:#}"
        );
    }
}
