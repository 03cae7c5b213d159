//! Facts in memory, with the indexes that questions need.

use super::{Directory, Endpoint, NodeFacts};
use crate::network::Network;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use tokio::sync::watch;
use yurt_controller::Key;

/// What is known of a pod that is bound to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// The node.
    pub node: String,
    /// Its own addresses while it runs; none when it uses its node's.
    pub addresses: Vec<IpAddr>,
}

/// What is known of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Its cluster IPs.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports by number, with their names.
    pub ports: Vec<(u16, String)>,
}

/// What is known of an endpoint slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceFacts {
    /// The service, in the slice's namespace.
    pub service: String,
    /// TCP ports by name.
    pub ports: Vec<(String, u16)>,
    /// Addresses of ready endpoints, and their nodes.
    pub endpoints: Vec<(IpAddr, Option<String>)>,
}

/// Values by key, with those of one key found by the addresses that they have.
#[derive(Debug, Default)]
struct ByAddress<K>(HashMap<IpAddr, BTreeSet<K>>);

impl<K: Ord + Clone> ByAddress<K> {
    fn put(&mut self, addresses: &[IpAddr], key: &K) {
        for address in addresses {
            self.0.entry(*address).or_default().insert(key.clone());
        }
    }

    fn take(&mut self, addresses: &[IpAddr], key: &K) {
        for address in addresses {
            if let Some(keys) = self.0.get_mut(address) {
                keys.remove(key);
                if keys.is_empty() {
                    self.0.remove(address);
                }
            }
        }
    }

    fn at(&self, address: IpAddr) -> impl Iterator<Item = &K> {
        self.0.get(&address).into_iter().flatten()
    }
}

#[derive(Debug, Default)]
struct Facts {
    nodes: BTreeMap<String, Arc<NodeFacts>>,
    node_at: ByAddress<String>,
    /// By the blocks of their pods.
    node_of: BTreeMap<Network, BTreeSet<String>>,
    /// How many blocks there are of each length: those that have to be tried.
    lengths: BTreeMap<u8, usize>,
    pods: HashMap<Key, PodFacts>,
    pod_at: ByAddress<Key>,
    services: HashMap<Key, ServiceFacts>,
    service_at: ByAddress<Key>,
    slices: HashMap<Key, SliceFacts>,
    slices_of: HashMap<Key, BTreeSet<Key>>,
}

impl Facts {
    /// Whether anything is different now.
    fn put_node(&mut self, name: &str, new: Option<NodeFacts>) -> bool {
        let old = self.nodes.get(name).cloned();
        if old.as_deref() == new.as_ref() {
            return false;
        }
        let name = name.to_owned();
        let addresses = |node: &NodeFacts| [node.internal.as_slice(), &node.external].concat();
        if let Some(old) = old {
            self.node_at.take(&addresses(&old), &name);
            for network in &old.networks {
                if let Some(names) = self.node_of.get_mut(network) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.node_of.remove(network);
                        let left = self.lengths.entry(network.prefix()).or_default();
                        *left = left.saturating_sub(1);
                    }
                }
            }
            self.nodes.remove(&name);
        }
        if let Some(new) = new {
            self.node_at.put(&addresses(&new), &name);
            for network in &new.networks {
                let names = self.node_of.entry(*network).or_default();
                if names.is_empty() {
                    *self.lengths.entry(network.prefix()).or_default() += 1;
                }
                names.insert(name.clone());
            }
            self.nodes.insert(name, Arc::new(new));
        }
        true
    }

    fn put_pod(&mut self, key: &Key, new: Option<PodFacts>) {
        if let Some(old) = self.pods.remove(key) {
            self.pod_at.take(&old.addresses, key);
        }
        if let Some(new) = new {
            self.pod_at.put(&new.addresses, key);
            self.pods.insert(key.clone(), new);
        }
    }

    fn put_service(&mut self, key: &Key, new: Option<ServiceFacts>) {
        if let Some(old) = self.services.remove(key) {
            self.service_at.take(&old.addresses, key);
        }
        if let Some(new) = new {
            self.service_at.put(&new.addresses, key);
            self.services.insert(key.clone(), new);
        }
    }

    fn put_slice(&mut self, key: &Key, new: Option<SliceFacts>) {
        if let Some(old) = self.slices.remove(key) {
            let service = Key::new(&key.namespace, &old.service);
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.remove(key);
                if slices.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
        }
        if let Some(new) = new {
            let service = Key::new(&key.namespace, &new.service);
            self.slices_of
                .entry(service)
                .or_default()
                .insert(key.clone());
            self.slices.insert(key.clone(), new);
        }
    }

    fn network_at(&self, address: IpAddr) -> Option<String> {
        let lengths = self.lengths.iter().rev().filter(|(_, blocks)| **blocks > 0);
        let mut holding = lengths.filter_map(|(prefix, _)| {
            let block = Network::new(address, *prefix)?;
            self.node_of.get(&block)
        });
        only(holding.next()?.iter())
    }

    fn service_at(&self, address: IpAddr, port: u16) -> Option<Vec<Endpoint>> {
        let key = self.service_at.at(address).next()?;
        let ports = &self.services.get(key)?.ports;
        let (_, name) = ports.iter().find(|(number, _)| *number == port)?;
        let slices = self.slices_of.get(key).into_iter().flatten();
        let slices = slices.filter_map(|slice| self.slices.get(slice));
        let of_family = |found: &IpAddr| found.is_ipv4() == address.is_ipv4();
        let mut endpoints = Vec::new();
        for slice in slices {
            let Some((_, port)) = slice.ports.iter().find(|(known, _)| known == name) else {
                continue;
            };
            let ready = slice.endpoints.iter().filter(|(at, _)| of_family(at));
            endpoints.extend(ready.map(|(address, node)| Endpoint {
                address: *address,
                port: *port,
                node: node.clone(),
            }));
        }
        Some(endpoints)
    }
}

/// The one name that all say.
fn only<'a>(mut names: impl Iterator<Item = &'a String>) -> Option<String> {
    let first = names.next()?;
    names.all(|name| name == first).then(|| first.clone())
}

/// A [`Directory`] in memory.
#[derive(Debug)]
pub struct Known {
    facts: RwLock<Facts>,
    changes: watch::Sender<u64>,
    /// Of which kinds not everything has been told yet.
    pub(super) awaited: watch::Sender<BTreeSet<&'static str>>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            facts: RwLock::default(),
            changes: watch::Sender::new(0),
            awaited: watch::Sender::default(),
        }
    }
}

impl Known {
    fn read(&self) -> RwLockReadGuard<'_, Facts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Facts> {
        self.facts.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns of a node, or that it is gone.
    pub fn put_node(&self, name: &str, node: Option<NodeFacts>) {
        let changed = self.write().put_node(name, node);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Learns of a pod, or that it is gone.
    pub fn put_pod(&self, key: &Key, pod: Option<PodFacts>) {
        self.write().put_pod(key, pod);
    }

    /// Learns of a service, or that it is gone.
    pub fn put_service(&self, key: &Key, service: Option<ServiceFacts>) {
        self.write().put_service(key, service);
    }

    /// Learns of an endpoint slice, or that it is gone.
    pub fn put_slice(&self, key: &Key, slice: Option<SliceFacts>) {
        self.write().put_slice(key, slice);
    }

    pub(super) fn pod_keys(&self) -> Vec<Key> {
        self.read().pods.keys().cloned().collect()
    }

    pub(super) fn service_keys(&self) -> Vec<Key> {
        self.read().services.keys().cloned().collect()
    }

    pub(super) fn slice_keys(&self) -> Vec<Key> {
        self.read().slices.keys().cloned().collect()
    }

    /// Waits until everything has been told that there was at the start.
    pub async fn complete(&self) {
        // The sender lives as long as `self`.
        let _ = self.awaited.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// As if nodes were still being told, or all were.
    #[cfg(test)]
    pub(crate) fn set_complete(&self, complete: bool) {
        let left = Some("nodes").filter(|_| !complete);
        self.awaited.send_replace(left.into_iter().collect());
    }
}

impl Directory for Known {
    fn node(&self, name: &str) -> Option<Arc<NodeFacts>> {
        self.read().nodes.get(name).cloned()
    }

    fn nodes(&self) -> Vec<Arc<NodeFacts>> {
        self.read().nodes.values().cloned().collect()
    }

    fn nodes_at(&self, address: IpAddr) -> Vec<Arc<NodeFacts>> {
        let facts = self.read();
        let names = facts.node_at.at(address);
        names
            .filter_map(|name| facts.nodes.get(name).cloned())
            .collect()
    }

    fn node_of_pod(&self, namespace: &str, name: &str) -> Option<String> {
        let facts = self.read();
        let pod = facts.pods.get(&Key::new(namespace, name))?;
        Some(pod.node.clone())
    }

    fn pod_at(&self, address: IpAddr) -> Option<String> {
        let facts = self.read();
        let pods = facts.pod_at.at(address);
        only(pods.filter_map(|key| Some(&facts.pods.get(key)?.node)))
    }

    fn network_at(&self, address: IpAddr) -> Option<String> {
        self.read().network_at(address)
    }

    fn service_at(&self, address: IpAddr, port: u16) -> Option<Vec<Endpoint>> {
        self.read().service_at(address, port)
    }

    fn service(&self, namespace: &str, name: &str) -> Option<IpAddr> {
        let facts = self.read();
        let service = facts.services.get(&Key::new(namespace, name))?;
        service.addresses.first().copied()
    }

    fn service_of(&self, address: IpAddr) -> Option<(String, String)> {
        let facts = self.read();
        let key = facts.service_at.at(address).next()?;
        Some((key.namespace.clone(), key.name.clone()))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn is_complete(&self) -> bool {
        self.awaited.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(name: &str, internal: &str, networks: &[&str]) -> NodeFacts {
        NodeFacts {
            name: name.into(),
            internal: vec![ip(internal)],
            networks: networks.iter().map(|n| n.parse().unwrap()).collect(),
            ..NodeFacts::default()
        }
    }

    #[test]
    fn addresses_lead_to_nodes_as_long_as_they_are_theirs() {
        let known = Known::default();
        known.put_node("a", Some(node("a", "192.168.0.1", &["10.1.0.0/24"])));
        known.put_node("b", Some(node("b", "192.168.0.2", &["10.1.0.0/16"])));
        assert_eq!(known.node_for(ip("192.168.0.1")).as_deref(), Some("a"));
        assert_eq!(known.node_for(ip("10.1.0.9")).as_deref(), Some("a"));
        assert_eq!(known.node_for(ip("10.1.9.9")).as_deref(), Some("b"));
        assert_eq!(known.node_for(ip("10.2.0.1")), None);
        let pod = PodFacts {
            node: "b".into(),
            addresses: vec![ip("10.1.0.9")],
        };
        let key = Key::new("default", "p");
        known.put_pod(&key, Some(pod));
        assert_eq!(
            known.node_for(ip("10.1.0.9")).as_deref(),
            Some("b"),
            "where the pod is beats whose block it is"
        );
        assert_eq!(known.node_of_pod("default", "p").as_deref(), Some("b"));
        known.put_pod(&key, None);
        assert_eq!(known.node_for(ip("10.1.0.9")).as_deref(), Some("a"));
        known.put_node("a", Some(node("a", "192.168.0.3", &[])));
        assert_eq!(known.node_for(ip("192.168.0.1")), None);
        assert_eq!(known.node_for(ip("192.168.0.3")).as_deref(), Some("a"));
        assert_eq!(known.node_for(ip("10.1.0.9")).as_deref(), Some("b"));
        known.put_node("b", None);
        assert_eq!(known.node_for(ip("10.1.0.9")), None);
    }

    #[test]
    fn an_address_of_two_nodes_is_nobodys() {
        let known = Known::default();
        for name in ["a", "b"] {
            known.put_node(name, Some(node(name, "192.168.0.1", &["10.0.0.0/24"])));
        }
        assert_eq!(known.nodes_at(ip("192.168.0.1")).len(), 2);
        assert_eq!(known.node_for(ip("192.168.0.1")), None);
        assert_eq!(known.node_for(ip("10.0.0.1")), None);
    }

    #[test]
    fn only_changes_count() {
        let known = Known::default();
        let changes = known.changes();
        known.put_node("a", Some(node("a", "192.168.0.1", &[])));
        known.put_node("a", Some(node("a", "192.168.0.1", &[])));
        known.put_node("b", None);
        assert_eq!(*changes.borrow(), 1);
        known.put_node("a", None);
        assert_eq!(*changes.borrow(), 2);
    }

    #[test]
    fn a_service_has_the_ready_endpoints_of_its_port() {
        let known = Known::default();
        let service = Key::new("shop", "cart");
        known.put_service(
            &service,
            Some(ServiceFacts {
                addresses: vec![ip("10.96.0.7"), ip("fd00::7")],
                ports: vec![(80, "web".into()), (81, "admin".into())],
            }),
        );
        let slice = |name: &str, port: u16, endpoints: &[(&str, &str)]| {
            let endpoints = endpoints
                .iter()
                .map(|(address, node)| (ip(address), Some((*node).to_owned())));
            let slice = SliceFacts {
                service: "cart".into(),
                ports: vec![("web".into(), port)],
                endpoints: endpoints.collect(),
            };
            known.put_slice(&Key::new("shop", name), Some(slice));
        };
        slice("cart-1", 8080, &[("10.1.0.1", "a")]);
        slice("cart-2", 8081, &[("10.1.0.2", "b")]);
        slice("cart-6", 8080, &[("fd01::1", "a")]);
        let found = known.service_at(ip("10.96.0.7"), 80).unwrap();
        let shown: Vec<_> = found.iter().map(|e| (e.address, e.port)).collect();
        assert_eq!(shown, [(ip("10.1.0.1"), 8080), (ip("10.1.0.2"), 8081)]);
        assert_eq!(known.service_at(ip("fd00::7"), 80).unwrap().len(), 1);
        assert_eq!(known.service_at(ip("10.96.0.7"), 81), Some(vec![]));
        assert_eq!(known.service_at(ip("10.96.0.7"), 82), None);
        assert_eq!(known.service("shop", "cart"), Some(ip("10.96.0.7")));
        known.put_slice(&Key::new("shop", "cart-1"), None);
        assert_eq!(known.service_at(ip("10.96.0.7"), 80).unwrap().len(), 1);
        known.put_service(&service, None);
        assert_eq!(known.service_at(ip("10.96.0.7"), 80), None);
    }
}
