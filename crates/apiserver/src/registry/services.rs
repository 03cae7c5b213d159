//! Cluster IPs and node ports of services.

use super::{Registry, Reply, Target};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    net::Ipv4Addr,
    ops::RangeInclusive,
    sync::{Arc, LazyLock},
};
use tokio::sync::{Mutex, MutexGuard};
use yurt_wire::status::Cause;

pub(crate) static SERVICES: LazyLock<Arc<str>> = LazyLock::new(|| "/services".into());

/// Node ports, as kube-apiserver's default.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// The IPv4 range of cluster IPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    /// Network address.
    pub network: Ipv4Addr,
    /// Prefix length, at most 30.
    pub prefix: u8,
}

impl Default for ServiceRange {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 96, 0, 0),
            prefix: 12,
        }
    }
}

impl ServiceRange {
    fn size(self) -> u32 {
        1_u32
            .checked_shl(32 - u32::from(self.prefix.clamp(1, 30)))
            .unwrap_or(u32::MAX)
    }
    /// The address `n` after the network address.
    fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network).wrapping_add(n))
    }
    /// The first usable address: that of the `kubernetes` service.
    pub fn first(self) -> Ipv4Addr {
        self.nth(1)
    }
    fn contains(self, ip: Ipv4Addr) -> bool {
        u32::from(ip).wrapping_sub(u32::from(self.network)) < self.size()
    }
}

/// Gives out addresses. What is in use is read from the services themselves; the lock spans from choosing an address
/// to the service being published.
#[derive(Debug)]
pub(super) struct Allocator {
    range: ServiceRange,
    turn: Mutex<()>,
}

impl Allocator {
    pub(super) fn new(range: ServiceRange) -> Self {
        Self {
            range,
            turn: Mutex::new(()),
        }
    }
}

impl Registry {
    /// Fills in the addresses of a service. The guard must live until the service is written.
    pub(super) async fn allocate(
        &self,
        target: &Target,
        live: Option<&Value>,
        object: &mut Value,
    ) -> Reply<Option<MutexGuard<'_, ()>>> {
        let is_service = target.resource.storage == *SERVICES;
        if !is_service || !matches!(target.subresource.as_str(), "") {
            return Ok(None);
        }
        let guard = self.services.turn.lock().await;
        let (services, _) = self.storage.list(&SERVICES, "", None);
        let others: Vec<Value> = services
            .iter()
            .filter(|s| {
                live.is_none()
                    || *s.key.namespace != *target.namespace
                    || *s.key.name != *target.name
            })
            .map(|s| s.value())
            .collect();
        assign(self.services.range, &others, live, object)
            .map_err(|causes| target.invalid(crate::meta::name(object), causes))?;
        Ok(Some(guard))
    }
}

fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    service["spec"]["ports"].as_array().into_iter().flatten()
}

/// Gives `service` what it needs and keeps what it had.
fn assign(
    range: ServiceRange,
    others: &[Value],
    live: Option<&Value>,
    service: &mut Value,
) -> Result<(), Vec<Cause>> {
    let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
    let has_ip = kind != "ExternalName";
    let has_node_ports = match kind {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    };
    if has_ip {
        cluster_ip(range, others, live, service)?;
    } else if let Some(spec) = service["spec"].as_object_mut() {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    node_ports(others, live, service, has_node_ports)
}

fn cluster_ip(
    range: ServiceRange,
    others: &[Value],
    live: Option<&Value>,
    service: &mut Value,
) -> Result<(), Vec<Cause>> {
    let text = |s: &Value| {
        s["spec"]["clusterIP"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let mut wanted = text(service);
    if wanted.is_empty() {
        wanted = live.map(text).unwrap_or_default();
    }
    let invalid = |why: &str, value: &str| {
        Err(vec![Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: \"{value}\": {why}"),
            field: "spec.clusterIPs".into(),
        }])
    };
    if wanted != "None" {
        let used: HashSet<Ipv4Addr> = others.iter().filter_map(|s| text(s).parse().ok()).collect();
        if wanted.is_empty() {
            // Chosen addresses keep off the low end, which is left to those who ask for one.
            let size = range.size();
            let low = (size / 16).clamp(2, 256);
            let start = fastrand::u32(low..size - 1);
            let chosen = (0..size - low - 1)
                .map(|n| range.nth(low + (start - low + n) % (size - low - 1)))
                .find(|ip| !used.contains(ip));
            match chosen {
                Some(ip) => wanted = ip.to_string(),
                None => return invalid("failed to allocate a cluster IP: range is full", ""),
            }
        } else {
            let kept = live.map(text).is_some_and(|before| before == wanted);
            match wanted.parse::<Ipv4Addr>() {
                Ok(ip) if !range.contains(ip) => {
                    return invalid(
                        &format!(
                            "failed to allocate IP {wanted}: the provided network does not match the current range"
                        ),
                        &wanted,
                    );
                }
                Ok(ip) if !kept && used.contains(&ip) => {
                    return invalid(
                        &format!(
                            "failed to allocate IP {wanted}: provided IP is already allocated"
                        ),
                        &wanted,
                    );
                }
                Ok(_) => {}
                Err(_) => return invalid("must be a valid IPv4 address", &wanted),
            }
        }
    }
    let spec = &mut service["spec"];
    spec["clusterIPs"] = json!([wanted]);
    spec["clusterIP"] = wanted.into();
    if spec["ipFamilies"].is_null() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    Ok(())
}

fn node_ports(
    others: &[Value],
    live: Option<&Value>,
    service: &mut Value,
    wanted: bool,
) -> Result<(), Vec<Cause>> {
    let was: Vec<(Value, Value)> = live
        .into_iter()
        .flat_map(ports)
        .map(|p| (port_identity(p), p["nodePort"].clone()))
        .collect();
    let mut used: HashSet<u64> = others
        .iter()
        .flat_map(ports)
        .filter_map(|p| p["nodePort"].as_u64())
        .collect();
    let own: Vec<u64> = ports(service)
        .filter_map(|p| p["nodePort"].as_u64())
        .collect();
    let Some(Value::Array(list)) = service.pointer_mut("/spec/ports") else {
        return Ok(());
    };
    for (i, port) in list.iter_mut().enumerate() {
        if !wanted {
            // A service that no longer has node ports gives back those it was given.
            let kept = was.iter().any(|(_, number)| *number == port["nodePort"]);
            if kept && let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
            continue;
        }
        let given = port["nodePort"].as_u64().filter(|n| *n > 0);
        let before = was
            .iter()
            .find(|(identity, _)| *identity == port_identity(port))
            .and_then(|(_, number)| number.as_u64());
        let number = match given.or(before) {
            Some(number) => {
                if used.contains(&number) {
                    return Err(vec![Cause {
                        reason: "FieldValueInvalid".into(),
                        message: format!(
                            "Invalid value: {number}: provided port is already allocated"
                        ),
                        field: format!("spec.ports[{i}].nodePort"),
                    }]);
                }
                number
            }
            None => {
                let size = u64::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
                let first = u64::from(*NODE_PORTS.start());
                let start = fastrand::u64(..size);
                let free = (0..size)
                    .map(|n| first + (start + n) % size)
                    .find(|n| !used.contains(n) && !own.contains(n));
                let Some(free) = free else {
                    return Err(vec![Cause {
                        reason: "FieldValueInvalid".into(),
                        message: "Invalid value: 0: failed to allocate a nodePort: range is full"
                            .into(),
                        field: format!("spec.ports[{i}].nodePort"),
                    }]);
                };
                free
            }
        };
        used.insert(number);
        port["nodePort"] = number.into();
    }
    Ok(())
}

/// What makes a port the same port before and after a change.
fn port_identity(port: &Value) -> Value {
    let protocol = port["protocol"].as_str().unwrap_or("TCP");
    json!([port["port"], protocol])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> ServiceRange {
        ServiceRange {
            network: Ipv4Addr::new(10, 0, 0, 0),
            prefix: 28,
        }
    }

    #[test]
    fn addresses_are_unique_kept_and_run_out() -> Result<(), Vec<Cause>> {
        let mut services: Vec<Value> = Vec::new();
        loop {
            let mut service = json!({"spec": {"ports": [{"port": 80}]}});
            if assign(range(), &services, None, &mut service).is_err() {
                break;
            }
            services.push(service);
        }
        let ips: HashSet<String> = services
            .iter()
            .map(|s| s["spec"]["clusterIP"].to_string())
            .collect();
        assert_eq!(ips.len(), services.len());
        assert!(services.len() >= 12, "{}", services.len());

        let live = services[0].clone();
        let mut changed = json!({"spec": {"ports": [{"port": 81}]}});
        assign(range(), &services[1..], Some(&live), &mut changed)?;
        assert_eq!(changed["spec"]["clusterIP"], live["spec"]["clusterIP"]);
        Ok(())
    }

    #[test]
    fn node_ports_come_and_go_with_the_type() -> Result<(), Vec<Cause>> {
        let mut service =
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}});
        assign(range(), &[], None, &mut service)?;
        let number = service["spec"]["ports"][0]["nodePort"]
            .as_u64()
            .unwrap_or_default();
        assert!((30000..=32767).contains(&number));
        assert_ne!(
            service["spec"]["ports"][0]["nodePort"],
            service["spec"]["ports"][1]["nodePort"]
        );
        let mut other =
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]}});
        assert!(assign(range(), &[service.clone()], None, &mut other).is_err());

        let mut plain = service.clone();
        plain["spec"]["type"] = "ClusterIP".into();
        assign(range(), &[], Some(&service), &mut plain)?;
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        Ok(())
    }

    #[test]
    fn headless_and_external_services_get_no_address() -> Result<(), Vec<Cause>> {
        let mut headless = json!({"spec": {"clusterIP": "None"}});
        assign(range(), &[], None, &mut headless)?;
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let mut external = json!({"spec": {"type": "ExternalName", "clusterIP": "10.0.0.3"}});
        assign(range(), &[], None, &mut external)?;
        assert!(external["spec"].get("clusterIP").is_none());
        Ok(())
    }
}
