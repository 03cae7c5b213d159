//! Fills a directory from an API server. Of each object only the facts are kept, never the object.

use super::{Directory, KUBELET_PORT, Known, NodeFacts, PodFacts, ServiceFacts, SliceFacts};
use serde_json::Value;
use std::{collections::BTreeSet, net::IpAddr, sync::Arc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_api::names::labels;
use yurt_controller::{
    Collection, Key, Scope,
    collections::{ENDPOINT_SLICES, NODES, PODS, SERVICES},
    feed::{self, Phase, Sink},
    kube::Kube,
};

/// The label of a node outside the edge that wants an agent all the same.
const OPTED_IN: &str = "openyurt.io/edge-enable-reverseTunnel-client";
/// Addresses, ports and blocks kept of one object; more are nobody's.
const MOST: usize = 32;
/// Endpoints kept of one slice; Kubernetes allows 1,000.
const MOST_ENDPOINTS: usize = 1000;

impl Known {
    /// Follows an API server until `shutdown`, in tasks of `tasks`. From now on [`Directory::is_complete`] waits for it.
    pub fn follow(
        self: &Arc<Self>,
        kube: &Kube,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        self.awaited
            .send_modify(|awaited| awaited.extend(KINDS.iter().map(|kind| kind.collection_name())));
        for kind in KINDS {
            let (known, kube, shutdown) = (self.clone(), kube.clone(), shutdown.clone());
            tasks.spawn(async move {
                let sink = Taker { known, kind };
                feed::follow(
                    &kube,
                    &kind.collection(),
                    &Scope::default(),
                    &sink,
                    shutdown,
                )
                .await;
            });
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Node,
    Pod,
    Service,
    Slice,
}

const KINDS: [Kind; 4] = [Kind::Node, Kind::Pod, Kind::Service, Kind::Slice];

impl Kind {
    fn collection(self) -> Collection {
        match self {
            Self::Node => NODES,
            Self::Pod => PODS,
            Self::Service => SERVICES,
            Self::Slice => ENDPOINT_SLICES,
        }
    }

    fn collection_name(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::Slice => "endpointslices",
        }
    }
}

/// Takes in one kind.
struct Taker {
    known: Arc<Known>,
    kind: Kind,
}

impl Taker {
    fn put(&self, key: &Key, object: Option<&Value>) {
        match self.kind {
            Kind::Node => self.known.put_node(&key.name, object.map(node)),
            Kind::Pod => self.known.put_pod(key, object.and_then(pod)),
            Kind::Service => self.known.put_service(key, object.map(service)),
            Kind::Slice => self.known.put_slice(key, object.and_then(slice)),
        }
    }

    fn keys(&self) -> Vec<Key> {
        match self.kind {
            Kind::Node => {
                let nodes = self.known.nodes();
                nodes.iter().map(|node| Key::new("", &node.name)).collect()
            }
            Kind::Pod => self.known.pod_keys(),
            Kind::Service => self.known.service_keys(),
            Kind::Slice => self.known.slice_keys(),
        }
    }
}

impl Sink for Taker {
    fn observe(&self, object: Value, _: Phase) {
        self.put(&Key::of(&object), Some(&object));
    }

    fn observe_gone(&self, object: &Value, _: Phase) {
        self.put(&Key::of(object), None);
    }

    fn complete(&self, told: &BTreeSet<Key>, _: u64) {
        for key in self.keys().iter().filter(|key| !told.contains(key)) {
            self.put(key, None);
        }
        self.known
            .awaited
            .send_if_modified(|awaited| awaited.remove(self.kind.collection_name()));
    }
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten().take(MOST)
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn port(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok().filter(|port| *port > 0)
}

fn name(value: &Value) -> String {
    value["name"].as_str().unwrap_or_default().to_owned()
}

fn is_tcp(port: &Value) -> bool {
    matches!(port["protocol"].as_str(), None | Some("TCP"))
}

/// The facts of a Node.
pub(super) fn node(object: &Value) -> NodeFacts {
    let status = &object["status"];
    let of_type = |kinds: &'static [&'static str]| {
        let addresses = list(status, "addresses");
        addresses
            .filter(move |a| a["type"].as_str().is_some_and(|t| kinds.contains(&t)))
            .map(|a| &a["address"])
    };
    let label = |key: &str| object["metadata"]["labels"][key] == "true";
    let mut networks: Vec<_> = list(&object["spec"], "podCIDRs").collect();
    if networks.is_empty() {
        networks.push(&object["spec"]["podCIDR"]);
    }
    NodeFacts {
        name: name(&object["metadata"]),
        internal: of_type(&["InternalIP"]).filter_map(address).collect(),
        external: of_type(&["ExternalIP"]).filter_map(address).collect(),
        hosts: of_type(&["Hostname", "InternalDNS", "ExternalDNS"])
            .filter_map(|host| Some(host.as_str()?.to_owned()))
            .collect(),
        kubelet_port: port(&status["daemonEndpoints"]["kubeletEndpoint"]["Port"])
            .unwrap_or(KUBELET_PORT),
        edge: label(labels::EDGE_WORKER),
        opted_in: label(OPTED_IN),
        ready: list(status, "conditions").any(|c| c["type"] == "Ready" && c["status"] == "True"),
        networks: networks
            .into_iter()
            .filter_map(|network| network.as_str()?.parse().ok())
            .collect(),
    }
}

/// The facts of a Pod that is bound.
pub(super) fn pod(object: &Value) -> Option<PodFacts> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let node = spec["nodeName"].as_str().filter(|node| !node.is_empty())?;
    let over = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    let mut addresses: Vec<IpAddr> = Vec::new();
    if !over && spec["hostNetwork"] != true {
        addresses.extend(list(status, "podIPs").filter_map(|ip| address(&ip["ip"])));
        if addresses.is_empty() {
            addresses.extend(address(&status["podIP"]));
        }
    }
    Some(PodFacts {
        node: node.to_owned(),
        addresses,
    })
}

/// The facts of a Service.
pub(super) fn service(object: &Value) -> ServiceFacts {
    let spec = &object["spec"];
    let mut addresses: Vec<IpAddr> = list(spec, "clusterIPs").filter_map(address).collect();
    if addresses.is_empty() {
        addresses.extend(address(&spec["clusterIP"]));
    }
    let ports = spec["ports"].as_array().into_iter().flatten();
    ServiceFacts {
        addresses,
        ports: ports
            .filter(|p| is_tcp(p))
            .filter_map(|p| Some((port(&p["port"])?, name(p))))
            .collect(),
    }
}

/// The facts of an EndpointSlice of a service.
pub(super) fn slice(object: &Value) -> Option<SliceFacts> {
    let service = object["metadata"]["labels"]["kubernetes.io/service-name"].as_str()?;
    let ports = object["ports"].as_array().into_iter().flatten();
    let endpoints = object["endpoints"].as_array().into_iter().flatten();
    Some(SliceFacts {
        service: service.to_owned(),
        ports: ports
            .filter(|p| is_tcp(p))
            .filter_map(|p| Some((name(p), port(&p["port"])?)))
            .collect(),
        endpoints: endpoints
            .filter(|endpoint| endpoint["conditions"]["ready"] != false)
            .filter_map(|endpoint| {
                let node = endpoint["nodeName"].as_str().map(str::to_owned);
                // Consumers use the first address of an endpoint.
                Some((address(&endpoint["addresses"][0])?, node))
            })
            .take(MOST_ENDPOINTS)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;
    use yurt_controlplane::stage::Stage;

    #[test]
    fn facts_of_a_node() {
        let facts = node(&json!({
            "metadata": {"name": "e", "labels": {"openyurt.io/is-edge-worker": "true"}},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64", "rubbish"]},
            "status": {"addresses": [{"type": "Hostname", "address": "e.site"}, {"type": "InternalIP", "address": "192.168.0.7"},
                    {"type": "InternalIP", "address": "fd00::7"}, {"type": "ExternalIP", "address": "1.2.3.4"},
                    {"type": "InternalIP", "address": "not one"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10350}},
                "conditions": [{"type": "Ready", "status": "True"}]}}));
        assert!(facts.runs_agent() && facts.edge && facts.ready);
        assert_eq!(facts.internal.len(), 2);
        assert_eq!(facts.address(), Some("192.168.0.7".parse().unwrap()));
        assert_eq!((facts.kubelet_port, facts.hosts.len()), (10350, 1));
        assert_eq!(facts.networks.len(), 2);
        let bare = node(
            &json!({"metadata": {"name": "c", "labels": {"openyurt.io/edge-enable-reverseTunnel-client": "true"}},
            "spec": {"podCIDR": "10.2.0.0/24"}}),
        );
        assert!(bare.runs_agent() && !bare.edge && !bare.ready);
        assert_eq!((bare.kubelet_port, bare.networks.len()), (10250, 1));
    }

    #[test]
    fn a_pod_has_addresses_while_it_runs_and_if_they_are_its_own() {
        let object = |phase: &str, host: bool| {
            json!({"spec": {"nodeName": "e", "hostNetwork": host},
                "status": {"phase": phase, "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}]}})
        };
        assert_eq!(pod(&object("Running", false)).unwrap().addresses.len(), 1);
        assert!(
            pod(&object("Succeeded", false))
                .unwrap()
                .addresses
                .is_empty()
        );
        assert!(pod(&object("Running", true)).unwrap().addresses.is_empty());
        assert_eq!(pod(&json!({"spec": {}})), None);
    }

    #[tokio::test]
    async fn what_the_api_server_says_is_known() {
        let stage = Box::pin(Stage::of(|_| {})).await;
        let nodes = "/api/v1/nodes";
        let named =
            |name: &str| json!({"metadata": {"name": name}, "spec": {"podCIDR": "10.9.0.0/24"}});
        stage.create(nodes, named("first")).await;
        let known = Arc::new(Known::default());
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        known.follow(&stage.kube, &tasks, &shutdown);
        assert!(!known.is_complete());
        known.complete().await;
        assert!(known.is_complete() && known.node("first").is_some());
        let until = async |what: &dyn Fn(&Known) -> bool| {
            let patience = tokio::time::timeout(Duration::from_secs(30), async {
                while !what(&known) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            patience.await.expect("known in time");
        };
        let changes = known.changes();
        let before = *changes.borrow();
        let status =
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.7"}]}});
        stage
            .kube
            .merge(&format!("{nodes}/first/status"), &status)
            .await
            .unwrap();
        until(&|known| known.node_for("192.168.0.7".parse().unwrap()).as_deref() == Some("first"))
            .await;
        assert!(*changes.borrow() > before);
        let pod = json!({"metadata": {"name": "p", "namespace": "default"},
            "spec": {"nodeName": "first", "containers": [{"name": "c", "image": "i"}]}});
        stage.create("/api/v1/namespaces/default/pods", pod).await;
        until(&|known| known.node_of_pod("default", "p").as_deref() == Some("first")).await;
        stage.kube.delete(&format!("{nodes}/first")).await.unwrap();
        until(&|known| known.nodes().is_empty()).await;
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
