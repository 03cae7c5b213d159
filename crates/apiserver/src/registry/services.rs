//! Cluster IPs and node ports of services.

mod ports;

use super::{Registry, Reply, Target};
use ports::node_ports;
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    net::Ipv4Addr,
    sync::{Arc, LazyLock},
};
use tokio::sync::{Mutex, MutexGuard};
use yurt_wire::status::Cause;

pub(crate) static SERVICES: LazyLock<Arc<str>> = LazyLock::new(|| "/services".into());

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

/// Gives `service` what it needs and keeps what it had.
fn assign(
    range: ServiceRange,
    others: &[Value],
    live: Option<&Value>,
    service: &mut Value,
) -> Result<(), Vec<Cause>> {
    if let Some(live) = live {
        drop_what_went_with_the_type(live, service);
    }
    if service["spec"]["type"] != "ExternalName" {
        families(service, live.is_none())?;
        cluster_ip(range, others, live, service)?;
    } else if let Some(spec) = service["spec"].as_object_mut() {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    node_ports(others, live, service)
}

/// A service's type, and what only some types have.
#[derive(Clone, Copy)]
struct Kind {
    load_balancer: bool,
    node_ports: bool,
    health_check: bool,
    /// It can be reached from outside, so that it has a policy for that.
    external: bool,
}

impl Kind {
    fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        let load_balancer = spec["type"] == "LoadBalancer";
        let with_ports = load_balancer || spec["type"] == "NodePort";
        let external_ips = spec["externalIPs"]
            .as_array()
            .is_some_and(|ips| !ips.is_empty());
        Self {
            load_balancer,
            node_ports: with_ports
                && !(load_balancer && spec["allocateLoadBalancerNodePorts"] == false),
            health_check: load_balancer && spec["externalTrafficPolicy"] == "Local",
            external: with_ports || (external_ips && spec["type"] != "ExternalName"),
        }
    }
}

/// A change of the type takes away what came with the old one, unless the writer says otherwise.
fn drop_what_went_with_the_type(live: &Value, service: &mut Value) {
    let (was, is) = (Kind::of(live), Kind::of(service));
    let lost = [
        ("externalTrafficPolicy", was.external && !is.external),
        ("healthCheckNodePort", was.health_check && !is.health_check),
        (
            "allocateLoadBalancerNodePorts",
            was.load_balancer && !is.load_balancer,
        ),
        ("loadBalancerClass", was.load_balancer && !is.load_balancer),
    ];
    for (field, lost) in lost {
        let same = service["spec"][field] == live["spec"][field];
        if lost
            && same
            && let Some(spec) = service["spec"].as_object_mut()
        {
            spec.remove(field);
        }
    }
}

/// The families of a cluster that has one: IPv4.
fn families(service: &Value, new: bool) -> Result<(), Vec<Cause>> {
    let spec = &service["spec"];
    let invalid = |field: &str, value: &Value, why: &str| {
        Err(vec![Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {value}: {why}"),
            field: field.into(),
        }])
    };
    let headless = spec["clusterIP"] == "None";
    let selects = spec["selector"].as_object().is_some_and(|s| !s.is_empty());
    // Endpoints of these are written by hand: they may be anything.
    if headless && !selects {
        return Ok(());
    }
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        return invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], why);
    }
    for (i, family) in spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if family != "IPv4" {
            let why = "not configured on this cluster";
            return invalid(&format!("spec.ipFamilies[{i}]"), family, why);
        }
    }
    // Of one that exists the address does not change, whatever the list says.
    if !new {
        return Ok(());
    }
    let addresses = spec["clusterIPs"].as_array().map_or(&[][..], Vec::as_slice);
    match (
        addresses,
        spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()),
    ) {
        ([_, _, ..], _) => {
            let why = "may only hold up to 1 values on a single-stack cluster";
            invalid("spec.clusterIPs", &spec["clusterIPs"], why)
        }
        ([first], Some(address)) if first != address => invalid(
            "spec.clusterIPs",
            &spec["clusterIPs"],
            "first value must match `clusterIP`",
        ),
        ([_], None) => {
            let why = "must be empty when `clusterIP` is not specified";
            invalid("spec.clusterIPs", &spec["clusterIPs"], why)
        }
        _ => Ok(()),
    }
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
    fn what_came_with_a_type_goes_with_it() -> Result<(), Vec<Cause>> {
        let mut balancer = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "externalTrafficPolicy": "Local",
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "example.com/lb"}});
        assign(range(), &[], None, &mut balancer)?;
        let mut plain = balancer.clone();
        plain["spec"]["type"] = "ClusterIP".into();
        assign(range(), &[], Some(&balancer), &mut plain)?;
        let spec = plain["spec"].as_object().expect("an object");
        let left: Vec<&str> = spec.keys().map(String::as_str).collect();
        assert!(
            [
                "externalTrafficPolicy",
                "healthCheckNodePort",
                "allocateLoadBalancerNodePorts",
                "loadBalancerClass"
            ]
            .iter()
            .all(|gone| !left.contains(gone)),
            "{left:?}"
        );
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        let mut external = plain.clone();
        external["spec"]["type"] = "ExternalName".into();
        assign(range(), &[], Some(&plain), &mut external)?;
        assert!(
            external["spec"].get("clusterIP").is_none(),
            "the address is released"
        );
        Ok(())
    }

    #[test]
    fn a_cluster_of_one_family_says_so() {
        let refused = |spec: Value| {
            let mut service = json!({"spec": spec});
            let causes = assign(range(), &[], None, &mut service).expect_err("refused");
            format!("{}: {}", causes[0].field, causes[0].message)
        };
        assert_eq!(
            refused(json!({"ipFamilyPolicy": "RequireDualStack"})),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
        );
        assert_eq!(
            refused(json!({"ipFamilies": ["IPv6"]})),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"
        );
        assert!(
            refused(json!({"clusterIP": "10.0.0.3", "clusterIPs": ["10.0.0.4"]}))
                .contains("first value must match")
        );
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
