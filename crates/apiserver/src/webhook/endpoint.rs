//! From the name of a service to an address of one of its endpoints.

use crate::storage::{Key, Storage};
use serde_json::Value;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

static SERVICES: LazyLock<Arc<str>> = LazyLock::new(|| "/services".into());
static ENDPOINTS: LazyLock<Arc<str>> = LazyLock::new(|| "/endpoints".into());
static SLICES: LazyLock<Arc<str>> = LazyLock::new(|| "discovery.k8s.io/endpointslices".into());

/// The label by which slices name their service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace, name and port of a service to an address.
type Resolve = dyn Fn(&str, &str, u16) -> Option<SocketAddr> + Send + Sync;

/// Says where the API server reaches a service of the cluster (namespace, name, port), for embedding programs whose pods
/// are not reachable at their addresses. `None` leaves the service to its endpoints.
#[derive(Clone)]
pub struct ServiceResolver(Arc<Resolve>);

impl ServiceResolver {
    /// From a function.
    pub fn new(
        resolve: impl Fn(&str, &str, u16) -> Option<SocketAddr> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(resolve))
    }

    /// Where a service is.
    pub fn resolve(&self, namespace: &str, name: &str, port: u16) -> Option<SocketAddr> {
        (self.0)(namespace, name, port)
    }
}

impl fmt::Debug for ServiceResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceResolver")
    }
}

/// One of the ready endpoints of a service, chosen at random; otherwise why there is none.
pub(super) fn of_service(
    storage: &Storage,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<SocketAddr, String> {
    let service = storage
        .get(&SERVICES, &Key::new(namespace, name))
        .ok_or_else(|| format!("service {name:?} not found"))?
        .value();
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let port_name = ports
        .filter(|p| p["port"].as_u64() == Some(port.into()))
        .map(|p| p["name"].as_str().unwrap_or_default())
        .next()
        .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let (slices, _) = storage.list(&SLICES, namespace, None);
    let mut found = Vec::new();
    for slice in slices {
        let own = |(key, value): &(String, String)| key == SERVICE_NAME && value == name;
        if slice.labels.iter().any(own) {
            in_slice(&slice.value(), port_name, &mut found);
        }
    }
    if found.is_empty()
        && let Some(endpoints) = storage.get(&ENDPOINTS, &Key::new(namespace, name))
    {
        in_endpoints(&endpoints.value(), port_name, &mut found);
    }
    if found.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    Ok(found[fastrand::usize(..found.len())])
}

fn list<'v>(value: &'v Value, field: &str) -> impl Iterator<Item = &'v Value> {
    value[field].as_array().into_iter().flatten()
}

/// The number of the port of a name.
fn port_of(ports: &Value, name: &str) -> Option<u16> {
    list(ports, "ports")
        .find(|p| p["name"].as_str().unwrap_or_default() == name)
        .and_then(|p| p["port"].as_u64())
        .and_then(|p| u16::try_from(p).ok())
}

fn in_slice(slice: &Value, port_name: &str, found: &mut Vec<SocketAddr>) {
    let Some(port) = port_of(slice, port_name) else {
        return;
    };
    for endpoint in list(slice, "endpoints") {
        if endpoint["conditions"]["ready"] != false {
            let addresses = list(endpoint, "addresses").filter_map(Value::as_str);
            let addresses = addresses.filter_map(|a| a.parse::<IpAddr>().ok());
            found.extend(addresses.map(|address| SocketAddr::new(address, port)));
        }
    }
}

fn in_endpoints(endpoints: &Value, port_name: &str, found: &mut Vec<SocketAddr>) {
    for subset in list(endpoints, "subsets") {
        let Some(port) = port_of(subset, port_name) else {
            continue;
        };
        let addresses = list(subset, "addresses").filter_map(|a| a["ip"].as_str());
        let addresses = addresses.filter_map(|a| a.parse::<IpAddr>().ok());
        found.extend(addresses.map(|address| SocketAddr::new(address, port)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_ready_endpoints_of_the_named_port_count() {
        let slice = json!({"ports": [{"name": "https", "port": 8443}, {"name": "http", "port": 80}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"]}]});
        let mut found = Vec::new();
        in_slice(&slice, "https", &mut found);
        let expected: Vec<SocketAddr> = vec![
            "10.0.0.1:8443".parse().unwrap(),
            "10.0.0.3:8443".parse().unwrap(),
        ];
        assert_eq!(found, expected);
        found.clear();
        in_slice(&slice, "other", &mut found);
        assert!(found.is_empty());
        let endpoints = json!({"subsets": [
            {"addresses": [{"ip": "10.0.0.4"}], "ports": [{"port": 1}]}]});
        in_endpoints(&endpoints, "", &mut found);
        assert_eq!(found, ["10.0.0.4:1".parse().unwrap()]);
    }
}
