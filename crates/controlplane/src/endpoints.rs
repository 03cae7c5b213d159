//! Where the pods of services are: EndpointSlices, Endpoints, and slices that mirror Endpoints written by hand.

mod backend;
pub(super) mod legacy;
pub(super) mod mirroring;
mod plan;
pub(super) mod slices;
mod trigger;

use super::{Change, Key, Objects, Watch, collections::PODS, pod};
use serde_json::{Map, Value};
use std::sync::Arc;

/// The slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Who looks after a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// On what belongs to a service without a cluster IP.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// When the change came about that a slice or Endpoints show.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The labels of an object.
fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object["metadata"]["labels"].as_object()
}

/// A label or annotation map without the named keys.
fn without(map: Option<&Map<String, Value>>, keys: &[&str]) -> Map<String, Value> {
    let entries = map.into_iter().flatten();
    entries
        .filter(|(key, _)| !keys.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The pod selector of a service whose endpoints are found by it.
fn selector(service: &Value) -> Option<&Map<String, Value>> {
    if service["spec"]["type"] == "ExternalName" {
        return None;
    }
    let selector = service["spec"]["selector"].as_object()?;
    (!selector.is_empty()).then_some(selector)
}

fn selects(selector: &Map<String, Value>, pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    selector.iter().all(|(key, value)| labels[key] == *value)
}

/// The pods of a service.
fn selected(pods: &Objects, service: &Value, selector: &Map<String, Value>) -> Vec<Arc<Value>> {
    let mut selected = pods.list(&Key::of(service).namespace);
    selected.retain(|pod| selects(selector, pod));
    selected
}

/// Whether a change of a pod can be seen in endpoints.
fn matters(change: &Change) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else {
        return true;
    };
    let shown = |pod: &Value| {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let meta = &pod["metadata"];
        [
            meta["uid"].clone(),
            meta["labels"].clone(),
            Value::Bool(meta["deletionTimestamp"].is_null()),
            spec["nodeName"].clone(),
            spec["hostname"].clone(),
            spec["subdomain"].clone(),
            status["phase"].clone(),
            status["podIP"].clone(),
            status["podIPs"].clone(),
            Value::Bool(pod::is_ready(pod)),
        ]
    };
    shown(old) != shown(new)
}

/// A change of a pod concerns the services that select it, or did.
fn of_pods(services: Arc<Objects>) -> Watch {
    Watch::of(PODS, move |change| {
        if !matters(change) {
            return Vec::new();
        }
        let pods: Vec<&Arc<Value>> = [&change.old, &change.new].into_iter().flatten().collect();
        let services = services.list(&change.key().namespace);
        let concerned = services.iter().filter(|service| {
            selector(service).is_some_and(|selector| pods.iter().any(|pod| selects(selector, pod)))
        });
        concerned.map(|service| Key::of(service)).collect()
    })
}
