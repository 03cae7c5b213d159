//! Where servers are to be had from outside, and what names their certificate needs for it: told by a Service, as OpenYurt publishes
//! its tunnel. [`published`] is pure; [`follow`] keeps it current.

use crate::{agent::address::ServerAddress, cluster::Cluster};
use serde_json::Value;
use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use yurt_api::names::labels::EDGE_WORKER;
use yurt_controller::{
    Collection, Key, Objects, Scope,
    collections::{ENDPOINT_SLICES, NODES, SERVICES},
};

/// The Service that agents reach servers by.
pub const SERVICE: &str = "x-tunnel-server-svc";
/// The Service that callers in the cluster reach them by.
pub const INTERNAL_SERVICE: &str = "x-tunnel-server-internal-svc";
/// On the Service: `host:port` (several by commas) where no type of Service says how it is reached.
pub const EXTERNAL_ADDRESS: &str = "x-tunnel-server-external-addr";
/// The port's name.
const PORT: &str = "tcp";
/// Changes come in groups.
const SETTLE: Duration = Duration::from_millis(200);
/// How often credentials are looked at that may have been rotated.
const LOOK: Duration = Duration::from_secs(60);

/// What is known of how servers are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// For agents, the best first.
    pub addresses: Vec<ServerAddress>,
    /// Names that servers are asked for by.
    pub dns: BTreeSet<String>,
    /// Addresses that they are asked for by.
    pub ips: BTreeSet<IpAddr>,
}

impl Published {
    fn put(&mut self, host: &str) {
        match host.parse() {
            Ok(ip) => {
                self.ips.insert(ip);
            }
            Err(_) if !host.is_empty() => {
                self.dns.insert(host.to_owned());
            }
            Err(_) => {}
        }
    }

    fn reach(&mut self, host: &str, port: &Value) {
        let Some(port) = port
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port > 0)
        else {
            return;
        };
        let address = ServerAddress {
            host: host.to_owned(),
            port: Some(port),
            name: None,
        };
        if !host.is_empty() && !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// How servers are reached: by the Service, the one inside the cluster (or null), the slices of the former and the nodes of the cloud.
pub fn published(
    service: &Value,
    internal: &Value,
    slices: &[Arc<Value>],
    nodes: &[Arc<Value>],
) -> Published {
    let mut all = Published::default();
    let spec = &service["spec"];
    let port = items(&spec["ports"])
        .find(|port| port["name"] == PORT)
        .or_else(|| items(&spec["ports"]).next())
        .unwrap_or(&Value::Null);
    // Who says it knows.
    let said = text(&service["metadata"]["annotations"][EXTERNAL_ADDRESS]);
    for address in said.split(',').filter(|text| !text.trim().is_empty()) {
        match address.parse::<ServerAddress>() {
            Ok(address) => {
                all.put(address.name.as_deref().unwrap_or(&address.host));
                all.put(&address.host);
                all.addresses.push(address);
            }
            Err(error) => {
                tracing::warn!(service = SERVICE, %error, "its annotation is not understood")
            }
        }
    }
    match text(&spec["type"]) {
        "LoadBalancer" => {
            for ingress in items(&service["status"]["loadBalancer"]["ingress"]) {
                for host in [&ingress["ip"], &ingress["hostname"]].map(text) {
                    all.put(host);
                    all.reach(host, &port["port"]);
                }
            }
        }
        "NodePort" => {
            for kind in ["ExternalIP", "InternalIP", "Hostname"] {
                let nodes = nodes
                    .iter()
                    .filter(|node| node["metadata"]["labels"][EDGE_WORKER] != "true");
                for address in nodes.flat_map(|node| items(&node["status"]["addresses"])) {
                    if address["type"] == kind {
                        all.put(text(&address["address"]));
                        // Names of nodes are seldom known outside.
                        if kind != "Hostname" {
                            all.reach(text(&address["address"]), &port["nodePort"]);
                        }
                    }
                }
            }
        }
        _ => {}
    }
    for ip in items(&spec["externalIPs"]).map(text) {
        all.put(ip);
        all.reach(ip, &port["port"]);
    }
    for service in [service, internal] {
        let name = text(&service["metadata"]["name"]);
        if name.is_empty() {
            continue;
        }
        let namespace = text(&service["metadata"]["namespace"]);
        for name in [
            name.to_owned(),
            format!("{name}.{namespace}"),
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}.svc.cluster.local"),
        ] {
            all.put(&name);
        }
        for ip in items(&service["spec"]["clusterIPs"]).chain([&service["spec"]["clusterIP"]]) {
            if text(ip) != "None" {
                all.put(text(ip));
            }
        }
    }
    for loopback in ["127.0.0.1", "::1"] {
        all.put(loopback);
    }
    for endpoint in slices.iter().flat_map(|slice| items(&slice["endpoints"])) {
        all.put(text(&endpoint["hostname"]));
        items(&endpoint["addresses"]).for_each(|address| all.put(text(address)));
    }
    all
}

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// An agent: where to dial.
    Agent,
    /// A server: what its certificate must be for.
    Server,
}

/// What is followed.
struct Followed {
    namespace: String,
    service: Arc<Objects>,
    internal: Option<Arc<Objects>>,
    slices: Option<Arc<Objects>>,
    nodes: Arc<Objects>,
}

impl Followed {
    fn new(namespace: &str, reader: Reader) -> Self {
        let named = |collection: Collection, name: &str| {
            let scope = Scope {
                fields: format!("metadata.name={name}"),
                ..Scope::default()
            };
            Arc::new(Objects::new(collection, scope.within(namespace)))
        };
        let slices = Scope::default()
            .within(namespace)
            .labelled(&format!("kubernetes.io/service-name={SERVICE}"));
        let cloud = Scope::default().labelled(&format!("{EDGE_WORKER}!=true"));
        let is_server = reader == Reader::Server;
        Self {
            namespace: namespace.to_owned(),
            service: named(SERVICES, SERVICE),
            internal: is_server.then(|| named(SERVICES, INTERNAL_SERVICE)),
            slices: is_server.then(|| Arc::new(Objects::new(ENDPOINT_SLICES, slices))),
            nodes: Arc::new(Objects::new(NODES, cloud)),
        }
    }

    fn service(&self) -> Option<Arc<Value>> {
        self.service.get(&Key::new(&self.namespace, SERVICE))
    }

    /// Nodes count only where their ports do: on others, thousands of agents need not follow them.
    fn by_nodes(&self) -> bool {
        self.service()
            .is_some_and(|service| service["spec"]["type"] == "NodePort")
    }

    fn published(&self) -> Option<Published> {
        let service = self.service()?;
        let internal = Key::new(&self.namespace, INTERNAL_SERVICE);
        let internal = self
            .internal
            .as_ref()
            .and_then(|objects| objects.get(&internal));
        let slices = self
            .slices
            .as_ref()
            .map(|objects| objects.list(""))
            .unwrap_or_default();
        let nodes = self.nodes.list("");
        Some(published(
            &service,
            internal.as_deref().unwrap_or(&Value::Null),
            &slices,
            &nodes,
        ))
    }

    fn always(&self) -> impl Iterator<Item = &Arc<Objects>> {
        [
            Some(&self.service),
            self.internal.as_ref(),
            self.slices.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    async fn synced(&self) {
        for objects in self.always() {
            objects.synced().await;
        }
        if self.by_nodes() {
            self.nodes.synced().await;
        }
    }
}

/// Keeps what is published in `namespace` current until `shutdown`. `None`: not known yet, or there is no such Service.
pub fn follow(
    cluster: Cluster,
    namespace: &str,
    reader: Reader,
    shutdown: CancellationToken,
) -> watch::Receiver<Option<Published>> {
    let followed = Arc::new(Followed::new(namespace, reader));
    let changed = Arc::new(Notify::new());
    let mut all: Vec<Arc<Objects>> = followed.always().cloned().collect();
    all.push(followed.nodes.clone());
    for objects in &all {
        let changed = changed.clone();
        objects.subscribe(move |_| changed.notify_one());
    }
    let (tell, told) = watch::channel(None);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned({
        let followed = followed.clone();
        async move {
            loop {
                followed.synced().await;
                let published = followed.published();
                tell.send_if_modified(|before| {
                    let is_new = *before != published;
                    *before = published;
                    is_new
                });
                changed.notified().await;
                tokio::time::sleep(SETTLE).await;
            }
        }
    }));
    tokio::spawn(
        shutdown
            .clone()
            .run_until_cancelled_owned(watch_all(cluster, followed, shutdown)),
    );
    told
}

/// Follows the objects, with the credentials of the moment.
async fn watch_all(cluster: Cluster, followed: Arc<Followed>, shutdown: CancellationToken) {
    loop {
        let epoch = cluster.epoch();
        let kube = match cluster.client() {
            Ok(kube) => kube,
            Err(error) => {
                tracing::warn!(%error, "the API server cannot be asked where tunnel servers are");
                tokio::time::sleep(LOOK.mul_f64(0.1 + 0.1 * fastrand::f64())).await;
                continue;
            }
        };
        let until = shutdown.child_token();
        let _end = until.clone().drop_guard();
        for objects in followed.always() {
            let (objects, kube, until) = (objects.clone(), kube.clone(), until.clone());
            tokio::spawn(async move { objects.follow(&kube, until).await });
        }
        let mut with_nodes = false;
        loop {
            // The Service tells soon after the start; its type seldom changes later.
            let pause = match followed.service().is_some() {
                true => LOOK,
                false => SETTLE,
            };
            if followed.by_nodes() && !with_nodes {
                with_nodes = true;
                let (kube, until, nodes) = (kube.clone(), until.clone(), followed.nodes.clone());
                tokio::spawn(async move { nodes.follow(&kube, until).await });
            }
            tokio::time::sleep(pause).await;
            if cluster.epoch() != epoch {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
