//! `endpoints-controller`: Endpoints, the older form, of services with a selector.

use super::{
    HEADLESS, TRIGGER_TIME, backend, labels, of_pods, selected, selector, trigger::TriggerTimes,
    without,
};
use crate::{
    Context, Controller, Failure, Key, Next, Watch,
    collections::{ENDPOINTS, PODS, SERVICES},
    pod,
    pod_control::is_going,
};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};

const COMPONENT: &str = "endpoint-controller";
/// On Endpoints that this controller looks after.
pub(super) const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// On Endpoints that do not show all there are.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// The most addresses in Endpoints.
const MOST: usize = 1000;

/// The controller.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    times: TriggerTimes,
}

impl Controller for Endpoints {
    const NAME: &'static str = "endpoints-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let services = context.objects(&SERVICES);
        vec![
            Watch::own(SERVICES),
            of_pods(services),
            // What somebody deletes comes back; what somebody changes stays changed until the service does.
            Watch::of(ENDPOINTS, |change| match change.new {
                None => vec![change.key()],
                Some(_) => Vec::new(),
            }),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let current = context.objects(&ENDPOINTS).get(key);
        let Some(service) = context.objects(&SERVICES).get(key) else {
            self.times.forget(key);
            if let Some(current) = current {
                context.delete(&ENDPOINTS, &current).await?;
            }
            return Ok(Next::Done);
        };
        let Some(selector) = selector(&service) else {
            return Ok(Next::Done);
        };
        let pods = selected(&context.objects(&PODS), &service, selector);
        let trigger = self.times.since_last(&service, &pods);
        let Some(wanted) = wanted(&service, &pods, current.as_deref(), trigger.as_deref()) else {
            return Ok(Next::Done);
        };
        let (written, reason, what) = if current.is_some() {
            (
                context.update(&ENDPOINTS, &wanted).await,
                "FailedToUpdateEndpoint",
                "update",
            )
        } else if service["metadata"]["deletionTimestamp"].is_null() {
            (
                context.create(&ENDPOINTS, wanted).await,
                "FailedToCreateEndpoint",
                "create",
            )
        } else {
            return Ok(Next::Done);
        };
        match written {
            Ok(_) => Ok(Next::Done),
            Err(error) if is_going(&error) => Ok(Next::Done),
            Err(error) => {
                let message = format!(
                    "Failed to {what} endpoint for service {}/{}: {error}",
                    key.namespace, key.name
                );
                context.event(COMPONENT, &service, "Warning", reason, &message);
                Err(error.into())
            }
        }
    }
}

/// The Endpoints as they should be; `None` when they are.
fn wanted(
    service: &Value,
    pods: &[Arc<Value>],
    current: Option<&Value>,
    trigger: Option<&str>,
) -> Option<Value> {
    let (subsets, truncated) = subsets(service, pods);
    let mut wanted_labels = without(labels(service), &[HEADLESS]);
    wanted_labels.insert(MANAGED_BY.into(), COMPONENT.into());
    if backend::is_headless(service) {
        wanted_labels.insert(HEADLESS.into(), "".into());
    }
    let over = truncated.then_some("truncated");
    if let Some(current) = current {
        let same_labels = labels(current) == Some(&wanted_labels);
        let same_capacity = current["metadata"]["annotations"][OVER_CAPACITY].as_str() == over;
        if same_labels
            && same_capacity
            && sorted(&current["subsets"]) == sorted(&Value::Array(subsets.clone()))
        {
            return None;
        }
    }
    let meta = &service["metadata"];
    let mut wanted = current.cloned().unwrap_or_else(
        || json!({"metadata": {"namespace": meta["namespace"], "name": meta["name"]}}),
    );
    wanted["metadata"]["labels"] = wanted_labels.into();
    let mut annotations = without(
        wanted["metadata"]["annotations"].as_object(),
        &[TRIGGER_TIME, OVER_CAPACITY],
    );
    let marks = [(TRIGGER_TIME, trigger), (OVER_CAPACITY, over)];
    annotations.extend(
        marks
            .into_iter()
            .filter_map(|(key, value)| Some((key.into(), value?.into()))),
    );
    match (annotations.is_empty(), wanted["metadata"].as_object_mut()) {
        (true, Some(meta)) => {
            meta.remove("annotations");
        }
        _ => wanted["metadata"]["annotations"] = annotations.into(),
    }
    wanted["subsets"] = subsets.into();
    Some(wanted)
}

/// Subsets regardless of order.
fn sorted(subsets: &Value) -> Vec<String> {
    let mut all: Vec<String> = subsets
        .as_array()
        .into_iter()
        .flatten()
        .map(|subset| {
            let mut lists = Map::new();
            for field in ["addresses", "notReadyAddresses", "ports"] {
                let entries = subset[field].as_array().into_iter().flatten();
                let mut entries: Vec<Value> = entries.cloned().collect();
                for entry in &mut entries {
                    // A port without a name is stored without the field.
                    if entry["name"] == ""
                        && let Some(entry) = entry.as_object_mut()
                    {
                        entry.remove("name");
                    }
                }
                entries.sort_by_cached_key(Value::to_string);
                lists.insert(field.into(), entries.into());
            }
            Value::Object(lists).to_string()
        })
        .collect();
    all.sort();
    all
}

/// Addresses of a port: by IP, with whether they are ready.
type Addresses = BTreeMap<String, (Value, bool)>;

/// The addresses of the pods, those with the same ports together; and whether some are left out.
fn subsets(service: &Value, pods: &[Arc<Value>]) -> (Vec<Value>, bool) {
    let publish = service["spec"]["publishNotReadyAddresses"] == true;
    let mut by_port: BTreeMap<String, (Option<Value>, Addresses)> = BTreeMap::new();
    for pod in pods {
        if !backend::is_reachable(pod) || (pod::is_deleting(pod) && !publish) {
            continue;
        }
        let Some(ip) = address(service, pod) else {
            continue;
        };
        let mut address = json!({"ip": ip, "targetRef": backend::target_ref(pod)});
        if let Some(node) = pod["spec"]["nodeName"]
            .as_str()
            .filter(|node| !node.is_empty())
        {
            address["nodeName"] = node.into();
        }
        if let Some(hostname) = backend::hostname(pod, service) {
            address["hostname"] = hostname.into();
        }
        let ready = publish || pod::is_ready(pod);
        let ports = service["spec"]["ports"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let mut shown: Vec<Option<Value>> = Vec::new();
        for port in ports {
            if let Some(number) = backend::target_port(pod, port) {
                let mut port = backend::endpoint_port(port, number);
                if port["name"] == ""
                    && let Some(port) = port.as_object_mut()
                {
                    port.remove("name");
                }
                shown.push(Some(port));
            }
        }
        // A headless service need not name ports.
        if ports.is_empty() && backend::is_headless(service) {
            shown.push(None);
        }
        for port in shown {
            let key = port.as_ref().map(Value::to_string).unwrap_or_default();
            let (_, addresses) = by_port
                .entry(key)
                .or_insert_with(|| (port, Addresses::new()));
            addresses.insert(ip.to_owned(), (address.clone(), ready));
        }
    }
    let mut by_addresses: BTreeMap<String, (Vec<Value>, Addresses)> = BTreeMap::new();
    for (port, addresses) in by_port.into_values() {
        let key = format!("{addresses:?}");
        let (ports, _) = by_addresses
            .entry(key)
            .or_insert_with(|| (Vec::new(), addresses));
        ports.extend(port);
    }
    truncate(by_addresses.into_values().collect())
}

/// Builds the subsets with at most [`MOST`] addresses, ready ones first.
fn truncate(groups: Vec<(Vec<Value>, Addresses)>) -> (Vec<Value>, bool) {
    let all: usize = groups.iter().map(|(_, addresses)| addresses.len()).sum();
    let mut subsets: Vec<Value> = groups.iter().map(|_| json!({})).collect();
    let mut left = MOST;
    for (field, which) in [("addresses", true), ("notReadyAddresses", false)] {
        for (subset, (_, addresses)) in subsets.iter_mut().zip(&groups) {
            let some = addresses.values().filter(|(_, ready)| *ready == which);
            let taken: Vec<Value> = some
                .take(left)
                .map(|(address, _)| address.clone())
                .collect();
            left -= taken.len();
            if !taken.is_empty() {
                subset[field] = taken.into();
            }
        }
    }
    for (subset, (ports, _)) in subsets.iter_mut().zip(groups) {
        if !ports.is_empty() {
            subset["ports"] = ports.into();
        }
    }
    subsets
        .retain(|subset| subset["addresses"].is_array() || subset["notReadyAddresses"].is_array());
    (subsets, all > MOST)
}

/// The pod's address in the first family of the service.
fn address<'a>(service: &Value, pod: &'a Value) -> Option<&'a str> {
    let spec = &service["spec"];
    let mut addresses = backend::addresses(pod).into_iter();
    let family = spec["ipFamilies"][0]
        .as_str()
        .or_else(|| match spec["clusterIP"].as_str() {
            Some(ip) if !backend::is_headless(service) => Some(backend::family(ip)),
            _ => None,
        });
    match family {
        Some(family) => addresses.find(|address| backend::family(address) == family),
        None => addresses.next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    fn pod(name: &str, ip: &str, ready: bool, port: u16) -> Arc<Value> {
        let status = if ready { "True" } else { "False" };
        Arc::new(
            json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": status}]}}),
        )
    }

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "web", "namespace": "d", "labels": {"app": "web"}}, "spec": spec});
        service["spec"]["selector"] = json!({"app": "web"});
        service
    }

    #[test]
    fn addresses_with_the_same_ports_are_together() {
        let two = service(json!({"clusterIP": "10.96.0.9", "ports": [
            {"name": "http", "port": 80, "targetPort": "web"}, {"name": "fixed", "port": 81, "targetPort": 9}]}));
        let pods = [
            pod("a", "10.0.0.1", true, 8080),
            pod("b", "10.0.0.2", false, 8080),
            pod("c", "10.0.0.3", true, 8081),
        ];
        let (subsets, truncated) = subsets(&two, &pods);
        assert!(!truncated);
        let ready = |subset: &Value| subset["addresses"].as_array().map_or(0, Vec::len);
        let mut shapes: Vec<(usize, usize, usize)> = subsets
            .iter()
            .map(|s| {
                (
                    ready(s),
                    s["notReadyAddresses"].as_array().map_or(0, Vec::len),
                    s["ports"].as_array().map_or(0, Vec::len),
                )
            })
            .collect();
        shapes.sort_unstable();
        assert_eq!(shapes, [(1, 0, 1), (1, 1, 1), (2, 1, 1)], "{subsets:#?}");
    }

    #[test]
    fn nothing_is_wanted_when_nothing_differs() {
        let one = service(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}));
        let pods = [
            pod("a", "10.0.0.1", true, 80),
            pod("b", "10.0.0.2", true, 80),
        ];
        let first = wanted(&one, &pods, None, Some("2026-01-01T00:00:00Z")).expect("new");
        assert_eq!(
            first["metadata"]["labels"],
            json!({"app": "web", "endpoints.kubernetes.io/managed-by": "endpoint-controller"})
        );
        assert_eq!(
            first["metadata"]["annotations"][TRIGGER_TIME],
            "2026-01-01T00:00:00Z"
        );
        assert_eq!(wanted(&one, &pods, Some(&first), None), None);
        let fewer = wanted(&one, &pods[..1], Some(&first), None).expect("changed");
        assert!(fewer["metadata"].get("annotations").is_none());
        assert_eq!(
            fewer["subsets"][0]["addresses"].as_array().map(Vec::len),
            Some(1)
        );
    }

    #[test]
    fn there_is_room_for_a_thousand() {
        let one = service(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}));
        let pods: Vec<Arc<Value>> = (0..1001)
            .map(|n| {
                pod(
                    &format!("p{n}"),
                    &format!("10.1.{}.{}", n / 250, n % 250),
                    n != 7,
                    80,
                )
            })
            .collect();
        let all = wanted(&one, &pods, None, None).expect("new");
        assert_eq!(all["metadata"]["annotations"][OVER_CAPACITY], "truncated");
        assert_eq!(
            all["subsets"][0]["addresses"].as_array().map(Vec::len),
            Some(1000)
        );
        assert!(
            all["subsets"][0].get("notReadyAddresses").is_none(),
            "those that are not ready give way"
        );
    }

    #[test]
    fn headless_services_need_no_ports() {
        let headless = service(json!({"clusterIP": "None"}));
        let (subsets, _) = subsets(&headless, &[pod("a", "10.0.0.1", true, 80)]);
        assert_eq!(subsets.len(), 1);
        assert!(subsets[0].get("ports").is_none());
    }

    #[tokio::test]
    async fn endpoints_come_and_go_with_the_service() {
        let stage = Stage::start(Endpoints::NAME).await;
        let default = "/api/v1/namespaces/default";
        let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        stage.create(&format!("{default}/services"), service).await;
        let endpoints = format!("{default}/endpoints/web");
        stage
            .until(&endpoints, |e| {
                e["metadata"]["uid"].is_string() && e["subsets"].is_null()
            })
            .await;
        let pod = json!({"metadata": {"name": "p", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        stage.create(&format!("{default}/pods"), pod).await;
        stage.report("default", "p", "Running", false).await;
        stage
            .until(&endpoints, |e| {
                e["subsets"][0]["notReadyAddresses"][0]["ip"] == "10.0.0.1"
            })
            .await;
        stage.report("default", "p", "Running", true).await;
        let shown = stage
            .until(&endpoints, |e| {
                e["subsets"][0]["addresses"][0]["ip"] == "10.0.0.1"
            })
            .await;
        assert_eq!(
            shown["subsets"][0]["ports"],
            json!([{"port": 80, "protocol": "TCP"}])
        );
        stage.kube.delete(&endpoints).await.expect("deleted");
        stage
            .until(&endpoints, |e| {
                e["subsets"][0]["addresses"][0]["ip"] == "10.0.0.1"
            })
            .await;
        stage
            .kube
            .delete(&format!("{default}/services/web"))
            .await
            .expect("deleted");
        stage.until(&endpoints, |e| e["code"] == 404).await;
    }
}
