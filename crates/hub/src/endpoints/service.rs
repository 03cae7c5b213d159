//! What a service says about its endpoints. Pure.

use super::pod::{family, is_deleting, is_ready, items};
use serde_json::{Map, Value, json};

/// The pod selector of a service whose endpoints are found by it.
fn selector(service: &Value) -> Option<&Map<String, Value>> {
    if service["spec"]["type"] == "ExternalName" {
        return None;
    }
    let selector = service["spec"]["selector"].as_object()?;
    (!selector.is_empty()).then_some(selector)
}

/// Whether a pod belongs to a service.
pub(super) fn selects(service: &Value, pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    service["metadata"]["namespace"] == pod["metadata"]["namespace"]
        && selector(service).is_some_and(|wanted| {
            wanted
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        })
}

/// Whether pods count as ready whatever they say.
pub(super) fn publishes_all(service: &Value) -> bool {
    service["spec"]["publishNotReadyAddresses"] == true
}

/// Whether a pod is to get new connections.
pub(super) fn is_usable(pod: &Value, publishes_all: bool) -> bool {
    publishes_all || (is_ready(pod) && !is_deleting(pod))
}

/// The service's ports as this pod offers them; `None` when one of them leads nowhere.
pub(super) fn ports(service: &Value, pod: &Value) -> Option<Vec<Value>> {
    items(&service["spec"]["ports"])
        .map(|port| {
            let mut shown = json!({
                "name": port["name"].as_str().unwrap_or_default(),
                "port": target_port(pod, port)?,
                "protocol": port["protocol"].as_str().unwrap_or("TCP"),
            });
            if let Some(protocol) = port["appProtocol"].as_str() {
                shown["appProtocol"] = protocol.into();
            }
            Some(shown)
        })
        .collect()
}

/// The number behind a service port: `targetPort` by number, or by the name of a container port.
fn target_port(pod: &Value, port: &Value) -> Option<u64> {
    let name = match &port["targetPort"] {
        Value::Number(number) if number.as_u64() != Some(0) => return number.as_u64(),
        Value::String(name) if !name.is_empty() => name.as_str(),
        _ => return port["port"].as_u64(),
    };
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let sidecars = items(&pod["spec"]["initContainers"])
        .filter(|container| container["restartPolicy"] == "Always");
    items(&pod["spec"]["containers"])
        .chain(sidecars)
        .flat_map(|container| items(&container["ports"]))
        .find(|offered| offered["name"] == name && protocol(offered) == protocol(port))
        .and_then(|offered| offered["containerPort"].as_u64())
}

/// Whether two lists of endpoint ports are the same; order and spelled-out defaults do not matter.
pub(super) fn same_ports(one: &Value, other: &[Value]) -> bool {
    let plain = |port: &Value| {
        (
            port["name"].as_str().unwrap_or_default().to_owned(),
            port["port"].as_u64(),
            port["protocol"].as_str().unwrap_or("TCP").to_owned(),
        )
    };
    let mut one: Vec<_> = items(one).map(plain).collect();
    let mut other: Vec<_> = other.iter().map(plain).collect();
    one.sort();
    other.sort();
    one == other
}

/// The reference to a pod.
pub(super) fn target_ref(pod: &Value) -> Value {
    let meta = &pod["metadata"];
    json!({"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]})
}

/// The name of a pod under a service (`hostname.service`), if it asks for one.
pub(super) fn hostname<'a>(service: &Value, pod: &'a Value) -> Option<&'a str> {
    let hostname = pod["spec"]["hostname"].as_str();
    hostname
        .filter(|name| !name.is_empty() && pod["spec"]["subdomain"] == service["metadata"]["name"])
}

/// The family of a service's Endpoints.
pub(super) fn first_family(service: &Value) -> &'static str {
    let spec = &service["spec"];
    match (spec["ipFamilies"][0].as_str(), spec["clusterIP"].as_str()) {
        (Some("IPv6"), _) => "IPv6",
        (None, Some(ip)) => family(ip),
        _ => "IPv4",
    }
}
