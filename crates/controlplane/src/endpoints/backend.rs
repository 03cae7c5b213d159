//! What a pod offers to a service. Pure.

use crate::pod;
use serde_json::{Value, json};

/// Whether the pod has an address and will go on having one.
pub(super) fn is_reachable(pod: &Value) -> bool {
    !pod::is_finished(pod) && !addresses(pod).is_empty()
}

/// All addresses of a pod.
pub(super) fn addresses(pod: &Value) -> Vec<&str> {
    let ips = pod["status"]["podIPs"].as_array();
    let mut addresses: Vec<&str> = ips
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["ip"].as_str())
        .collect();
    if addresses.is_empty() {
        addresses.extend(pod["status"]["podIP"].as_str());
    }
    addresses.retain(|address| !address.is_empty());
    addresses
}

/// `IPv4` or `IPv6`.
pub(super) fn family(address: &str) -> &'static str {
    if address.contains(':') {
        "IPv6"
    } else {
        "IPv4"
    }
}

/// The number behind a service port, if the pod has it: `targetPort` by number, or by the name of a container port.
pub(super) fn target_port(pod: &Value, port: &Value) -> Option<u64> {
    let target = &port["targetPort"];
    let name = match target {
        Value::Number(number) => return number.as_u64(),
        Value::String(name) => name.as_str(),
        _ => return port["port"].as_u64(),
    };
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let list = |field: &str| pod["spec"][field].as_array().into_iter().flatten();
    let sidecars =
        list("initContainers").filter(|container| container["restartPolicy"] == "Always");
    list("containers")
        .chain(sidecars)
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .find(|offered| offered["name"] == name && protocol(offered) == protocol(port))
        .and_then(|offered| offered["containerPort"].as_u64())
}

/// A service port as slices and Endpoints show it.
pub(super) fn endpoint_port(port: &Value, number: u64) -> Value {
    let mut shown = json!({"name": port["name"].as_str().unwrap_or_default(), "port": number,
        "protocol": port["protocol"].as_str().unwrap_or("TCP")});
    if let Some(protocol) = port["appProtocol"].as_str() {
        shown["appProtocol"] = protocol.into();
    }
    shown
}

/// The reference to a pod.
pub(super) fn target_ref(pod: &Value) -> Value {
    let meta = &pod["metadata"];
    json!({"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]})
}

/// The name of a pod under a service (`hostname.service`), if it asks for one.
pub(super) fn hostname<'a>(pod: &'a Value, service: &Value) -> Option<&'a str> {
    let spec = &pod["spec"];
    let hostname = spec["hostname"].as_str().filter(|name| !name.is_empty())?;
    (spec["subdomain"] == service["metadata"]["name"]).then_some(hostname)
}

/// No cluster IP leads to the service.
pub(super) fn is_headless(service: &Value) -> bool {
    matches!(
        service["spec"]["clusterIP"].as_str(),
        None | Some("" | "None")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_ports_are_numbers_or_names_of_container_ports() {
        let pod = json!({"spec": {
            "containers": [{"ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [{"ports": [{"name": "setup", "containerPort": 1}]},
                {"restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15001}]}]}});
        let port = |target: Value, protocol: &str| json!({"port": 80, "targetPort": target, "protocol": protocol});
        assert_eq!(target_port(&pod, &port(9.into(), "TCP")), Some(9));
        assert_eq!(target_port(&pod, &port("web".into(), "TCP")), Some(8080));
        assert_eq!(
            target_port(&pod, &port("dns".into(), "TCP")),
            None,
            "another protocol"
        );
        assert_eq!(target_port(&pod, &port("dns".into(), "UDP")), Some(53));
        assert_eq!(target_port(&pod, &port("proxy".into(), "TCP")), Some(15001));
        assert_eq!(
            target_port(&pod, &port("setup".into(), "TCP")),
            None,
            "it ends before the pod serves"
        );
        assert_eq!(target_port(&pod, &port(Value::Null, "TCP")), Some(80));
    }

    #[test]
    fn pods_that_ended_or_have_no_address_are_not_reachable() {
        let pod = |phase: &str, ip: &str| json!({"status": {"phase": phase, "podIP": ip}});
        assert!(is_reachable(&pod("Running", "10.0.0.1")));
        assert!(!is_reachable(&pod("Succeeded", "10.0.0.1")));
        assert!(!is_reachable(&pod("Running", "")));
    }
}
