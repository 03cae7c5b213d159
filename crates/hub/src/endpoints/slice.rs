//! The EndpointSlices of a service as they would be if the cloud knew what this node knows. Pure.

use super::{
    Place,
    pod::{LocalPod, addresses, is_deleting, is_ready, items},
    service::{hostname, is_usable, ports, publishes_all, same_ports, selects, target_ref},
};
use serde_json::{Value, json};

/// The label that names the controller of a slice, and the one that makes slices of selectors.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// The most endpoints that a slice may hold.
const MOST: usize = 1000;

/// The slices of one service (of one namespace and API version) with the present state of `pods`; nothing else changes.
pub(crate) fn derive(
    slices: &[Value],
    service: Option<&Value>,
    pods: &[LocalPod],
    place: &Place,
) -> Vec<Value> {
    let publish = match service {
        Some(service) => publishes_all(service),
        None => slices.iter().any(shows_publishing),
    };
    let mut derived: Vec<Value> = slices
        .iter()
        .map(|slice| follow(slice, pods, publish))
        .collect();
    if let Some(service) = service {
        for pod in pods.iter().filter_map(|local| add_for(local, service)) {
            for family in ["IPv4", "IPv6"] {
                add(&mut derived, slices, service, pod, family, place);
            }
        }
    }
    derived
}

/// Whether a slice shows that its service publishes what is not ready.
fn shows_publishing(slice: &Value) -> bool {
    items(&slice["endpoints"]).any(|endpoint| {
        let conditions = &endpoint["conditions"];
        conditions["ready"] == true
            && (conditions["serving"] == false || conditions["terminating"] == true)
    })
}

/// A slice whose endpoints follow their pods.
fn follow(slice: &Value, pods: &[LocalPod], publish: bool) -> Value {
    let namespace = slice["metadata"]["namespace"].as_str().unwrap_or_default();
    let Some(family) = slice["addressType"].as_str().filter(|of| *of != "FQDN") else {
        return slice.clone();
    };
    let target = |endpoint: &Value| {
        pods.iter()
            .find(|pod| pod.is_target(&endpoint["targetRef"], namespace))
    };
    if items(&slice["endpoints"]).all(|endpoint| target(endpoint).is_none()) {
        return slice.clone();
    }
    let mut out = slice.clone();
    let endpoints = items(&slice["endpoints"]).filter_map(|endpoint| match target(endpoint) {
        None => Some(endpoint.clone()),
        Some(local) => {
            let pod = local.alive()?;
            let mut endpoint = endpoint.clone();
            let now = addresses(pod, family);
            // On the host's network its address is the host's, told or not.
            if !now.is_empty() {
                endpoint["addresses"] = now.into();
            } else if pod["spec"]["hostNetwork"] != true {
                return None;
            }
            if local.created_here {
                endpoint["targetRef"]["uid"] = pod["metadata"]["uid"].clone();
            }
            set_conditions(&mut endpoint, pod, publish);
            Some(endpoint)
        }
    });
    out["endpoints"] = endpoints.collect();
    out
}

fn set_conditions(endpoint: &mut Value, pod: &Value, publish: bool) {
    let conditions = &mut endpoint["conditions"];
    if !conditions.is_object() {
        *conditions = json!({});
    }
    let ready = is_usable(pod, publish);
    conditions["ready"] = ready.into();
    // Older controllers tell only whether it is ready, and consumers take the others from that.
    for (name, value, implied) in [
        ("serving", is_ready(pod), ready),
        ("terminating", is_deleting(pod), false),
    ] {
        if value != implied || !conditions[name].is_null() {
            conditions[name] = value.into();
        } else if let Some(conditions) = conditions.as_object_mut() {
            conditions.remove(name);
        }
    }
}

/// A pod that is to have an endpoint of the service.
fn add_for<'a>(local: &'a LocalPod, service: &Value) -> Option<&'a Value> {
    let pod = local.alive()?;
    (selects(service, pod) && !is_deleting(pod)).then_some(pod)
}

/// Gives a pod that has none an endpoint in a slice of its ports, as the controller would.
fn add(
    derived: &mut [Value],
    slices: &[Value],
    service: &Value,
    pod: &Value,
    family: &str,
    place: &Place,
) {
    let now = addresses(pod, family);
    let is_ours = |slice: &&mut Value| {
        slice["addressType"] == family && slice["metadata"]["labels"][MANAGED_BY] == CONTROLLER
    };
    let uid = &pod["metadata"]["uid"];
    let listed = derived
        .iter()
        .filter(|slice| slice["addressType"] == family)
        .flat_map(|slice| items(&slice["endpoints"]))
        .any(|endpoint| endpoint["targetRef"]["uid"] == *uid);
    let Some(ports) = ports(service, pod) else {
        return;
    };
    if now.is_empty() || listed {
        return;
    }
    let length = |slice: &Value| slice["endpoints"].as_array().map_or(0, Vec::len);
    let mut candidates: Vec<&mut Value> = derived.iter_mut().filter(is_ours).collect();
    let chosen = candidates
        .iter()
        .position(|slice| same_ports(&slice["ports"], &ports) && length(slice) < MOST)
        // What stands for a service without endpoints has no ports.
        .or_else(|| {
            let blank =
                |slice: &&mut Value| length(slice) == 0 && items(&slice["ports"]).next().is_none();
            candidates.iter().position(blank)
        });
    let Some(slice) = chosen.map(|at| candidates.swap_remove(at)) else {
        return;
    };
    let neighbour = slices
        .iter()
        .flat_map(|slice| items(&slice["endpoints"]))
        .find(|endpoint| endpoint["nodeName"] == place.node.as_str());
    let mut endpoint = json!({
        "addresses": now,
        "conditions": {"ready": is_usable(pod, publishes_all(service)), "serving": is_ready(pod), "terminating": false},
        "nodeName": place.node,
        "targetRef": target_ref(pod),
    });
    let zone = neighbour.and_then(|neighbour| neighbour["zone"].as_str());
    if let Some(zone) = zone.or(place.zone.as_deref()) {
        endpoint["zone"] = zone.into();
    }
    // Of v1beta1.
    if let Some(topology) = neighbour.and_then(|neighbour| neighbour["topology"].as_object()) {
        endpoint["topology"] = topology.clone().into();
    }
    if let Some(hostname) = hostname(service, pod) {
        endpoint["hostname"] = hostname.into();
    }
    if items(&slice["ports"]).next().is_none() {
        slice["ports"] = ports.into();
    }
    match slice["endpoints"].as_array_mut() {
        Some(endpoints) => endpoints.push(endpoint),
        None => slice["endpoints"] = json!([endpoint]),
    }
}
