//! `endpointslice-controller`: the slices of services with a selector.

use super::{
    HEADLESS, MANAGED_BY, SERVICE_NAME, backend, labels, of_pods,
    plan::{Changes, Template, Wanted},
    selected, selector,
    trigger::TriggerTimes,
    without,
};
use crate::{
    Collection, Context, Controller, Failure, Key, Next, Watch,
    collections::{ENDPOINT_SLICES, NODES, PODS, SERVICES},
    fields::items,
    pod,
    pod_control::is_going,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use yurt_controller::kube::KubeError;

/// The most endpoints in a slice.
const MOST: usize = 100;
/// Who these slices are managed by.
const MANAGER: &str = "endpointslice-controller.k8s.io";
const COMPONENT: &str = "endpoint-slice-controller";
/// When a service is looked at again that has pods of unknown nodes.
const NODE_COMES: Duration = Duration::from_secs(5);

/// The controller.
#[derive(Debug, Default)]
pub(crate) struct EndpointSlices {
    times: TriggerTimes,
}

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let services = context.objects(&SERVICES);
        vec![
            Watch::own(SERVICES),
            of_pods(services),
            // Nodes are only read.
            Watch::of(NODES, |_| Vec::new()),
            of_slices(MANAGER),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(service) = context.objects(&SERVICES).get(key) else {
            self.times.forget(key);
            return Ok(Next::Done);
        };
        let Some(selector) = selector(&service) else {
            return Ok(Next::Done);
        };
        let pods = selected(&context.objects(&PODS), &service, selector);
        let trigger = self.times.since_last(&service, &pods);
        let nodes = context.objects(&NODES);
        let mut homeless = false;
        let mut placed: Vec<(Arc<Value>, Arc<Value>)> = Vec::new();
        for pod in pods {
            if !backend::is_reachable(&pod) {
                continue;
            }
            // A pod on a node that is not there is about to be collected.
            match nodes.get(&Key::new(
                "",
                pod["spec"]["nodeName"].as_str().unwrap_or_default(),
            )) {
                Some(node) => placed.push((pod, node)),
                None => homeless = true,
            }
        }
        let existing = managed(context, &key.namespace, &key.name, MANAGER);
        let template = template(&service, trigger);
        let changes = changes(&template, &service, &placed, &existing);
        if let Err(error) = write(context, changes).await {
            let message = format!(
                "Error updating Endpoint Slices for Service {}/{}: {error}",
                key.namespace, key.name
            );
            context.event(
                COMPONENT,
                &service,
                "Warning",
                "FailedToUpdateEndpointSlices",
                &message,
            );
            return Err(error.into());
        }
        Ok(if homeless {
            Next::After(NODE_COMES)
        } else {
            Next::Done
        })
    }
}

/// A change of a slice concerns the service that it names.
pub(super) fn of_slices(manager: &'static str) -> Watch {
    Watch::of(ENDPOINT_SLICES, move |change| {
        let slices = [&change.old, &change.new].into_iter().flatten();
        let ours = slices.filter(|slice| slice["metadata"]["labels"][MANAGED_BY] == manager);
        let keys: BTreeSet<Key> = ours
            .filter_map(|slice| {
                let service = slice["metadata"]["labels"][SERVICE_NAME].as_str()?;
                Some(Key::new(&Key::of(slice).namespace, service))
            })
            .collect();
        keys.into_iter().collect()
    })
}

/// The slices of a service that `manager` looks after.
pub(super) fn managed(
    context: &Context,
    namespace: &str,
    service: &str,
    manager: &str,
) -> Vec<Arc<Value>> {
    let mut slices = context.objects(&ENDPOINT_SLICES).list(namespace);
    slices.retain(|slice| {
        let meta = &slice["metadata"];
        meta["deletionTimestamp"].is_null()
            && meta["labels"][SERVICE_NAME] == service
            && meta["labels"][MANAGED_BY] == manager
    });
    slices
}

/// Writes changes of slices. A namespace that is going takes no new ones, which is as it should be.
pub(super) async fn write(context: &Context, changes: Changes) -> Result<(), KubeError> {
    const SLICES: &Collection = &ENDPOINT_SLICES;
    for slice in changes.create {
        match context.create(SLICES, slice).await {
            Err(error) if is_going(&error) => return Ok(()),
            other => other.map(drop)?,
        }
    }
    for slice in changes.update {
        context.update(SLICES, &slice).await?;
    }
    for slice in changes.delete {
        context.delete(SLICES, &slice).await?;
    }
    Ok(())
}

fn template(service: &Value, trigger: Option<String>) -> Template {
    let meta = &service["metadata"];
    let name = meta["name"].as_str().unwrap_or_default();
    let mut labels = without(labels(service), &[SERVICE_NAME, MANAGED_BY, HEADLESS]);
    labels.insert(SERVICE_NAME.into(), name.into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if backend::is_headless(service) {
        labels.insert(HEADLESS.into(), "".into());
    }
    Template {
        namespace: meta["namespace"].as_str().unwrap_or_default().into(),
        parent: name.into(),
        owner: json!({"apiVersion": "v1", "kind": "Service", "name": name, "uid": meta["uid"],
            "controller": true, "blockOwnerDeletion": true}),
        labels,
        annotations: None,
        trigger,
        most: MOST,
        creates: meta["deletionTimestamp"].is_null(),
        placeholder: true,
    }
}

/// The address types of a service's slices.
fn address_types(service: &Value) -> BTreeSet<&'static str> {
    let families = service["spec"]["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten();
    let mut types: BTreeSet<&str> = families
        .filter_map(|family| match family.as_str() {
            Some("IPv4") => Some("IPv4"),
            Some("IPv6") => Some("IPv6"),
            _ => None,
        })
        .collect();
    if types.is_empty() {
        match service["spec"]["clusterIP"].as_str() {
            Some(ip) if !backend::is_headless(service) => {
                types.insert(backend::family(ip));
            }
            _ => types.extend(["IPv4", "IPv6"]),
        }
    }
    types
}

/// What is to be written so that the slices show these pods.
fn changes(
    template: &Template,
    service: &Value,
    pods: &[(Arc<Value>, Arc<Value>)],
    existing: &[Arc<Value>],
) -> Changes {
    let types = address_types(service);
    let mut wanted = Wanted::of_types(types.iter().copied());
    for address_type in types {
        for (pod, node) in pods {
            if let Some(endpoint) = endpoint(service, pod, node, address_type) {
                wanted.add(address_type, ports(service, pod), endpoint);
            }
        }
    }
    wanted.changes(template, existing)
}

/// The service's ports that the pod has.
fn ports(service: &Value, pod: &Value) -> Vec<Value> {
    items(&service["spec"]["ports"])
        .filter_map(|port| {
            Some(backend::endpoint_port(
                port,
                backend::target_port(pod, port)?,
            ))
        })
        .collect()
}

fn endpoint(service: &Value, pod: &Value, node: &Value, address_type: &str) -> Option<Value> {
    let mut addresses = backend::addresses(pod);
    addresses.retain(|address| backend::family(address) == address_type);
    if addresses.is_empty() {
        return None;
    }
    let serving = pod::is_ready(pod);
    let terminating = pod::is_deleting(pod);
    let ready = service["spec"]["publishNotReadyAddresses"] == true || (serving && !terminating);
    let mut endpoint = json!({"addresses": addresses, "targetRef": backend::target_ref(pod),
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
    let node_name = pod["spec"]["nodeName"].as_str();
    let zone = node["metadata"]["labels"]["topology.kubernetes.io/zone"]
        .as_str()
        .filter(|zone| !zone.is_empty());
    if let Some(name) = node_name {
        endpoint["nodeName"] = name.into();
    }
    if let Some(zone) = zone {
        endpoint["zone"] = zone.into();
    }
    if let Some(hostname) = backend::hostname(pod, service) {
        endpoint["hostname"] = hostname.into();
    }
    let distribution = service["spec"]["trafficDistribution"].as_str();
    if ready && let Some(hints) = hints(distribution, node_name, zone) {
        endpoint["hints"] = hints;
    }
    Some(endpoint)
}

/// For whom an endpoint is meant, when the service wants its traffic near.
fn hints(distribution: Option<&str>, node: Option<&str>, zone: Option<&str>) -> Option<Value> {
    let mut hints = json!({});
    match distribution {
        Some("PreferClose" | "PreferSameZone") => {}
        Some("PreferSameNode") => {
            if let Some(node) = node {
                hints["forNodes"] = json!([{"name": node}]);
            }
        }
        _ => return None,
    }
    if let Some(zone) = zone {
        hints["forZones"] = json!([{"name": zone}]);
    }
    hints
        .as_object()
        .is_some_and(|hints| !hints.is_empty())
        .then_some(hints)
}

#[cfg(test)]
mod tests;
