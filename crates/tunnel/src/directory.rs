//! What is where: which node an address belongs to, which nodes run an agent, what is behind a service.
//!
//! [`Directory`] is what routing, the interceptor and steering ask. [`Known`] answers from memory; tests fill it by hand,
//! [`Known::follow`] from an API server, of whose objects only these facts are kept.

mod follow;
mod known;

use crate::network::Network;
pub use known::{Known, PodFacts, ServiceFacts, SliceFacts};
use std::{fmt, net::IpAddr, sync::Arc};
use tokio::sync::watch;

/// The port of a kubelet that does not say where it listens.
pub const KUBELET_PORT: u16 = 10250;

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Addresses of type InternalIP, the preferred one first.
    pub internal: Vec<IpAddr>,
    /// Addresses of type ExternalIP.
    pub external: Vec<IpAddr>,
    /// Names of type Hostname, InternalDNS and ExternalDNS.
    pub hosts: Vec<String>,
    /// Where its kubelet listens.
    pub kubelet_port: u16,
    /// Whether it is of the edge by the label `openyurt.io/is-edge-worker=true`.
    pub edge: bool,
    /// Whether it asks for an agent by a label although it is not of the edge (`openyurt.io/edge-enable-reverseTunnel-client`).
    pub opted_in: bool,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// Blocks that its pods have their addresses of.
    pub networks: Vec<Network>,
}

impl NodeFacts {
    /// Whether an agent runs there; other nodes are reached directly.
    pub fn runs_agent(&self) -> bool {
        self.edge || self.opted_in
    }

    /// The address to reach it by: its first InternalIP, else its first ExternalIP.
    pub fn address(&self) -> Option<IpAddr> {
        self.internal.first().or(self.external.first()).copied()
    }
}

/// One ready endpoint of a service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The node it is on, where the slice says so.
    pub node: Option<String>,
}

/// Cached facts about the cluster. Answers are immediate and may be a moment old.
pub trait Directory: fmt::Debug + Send + Sync {
    /// A node by its name.
    fn node(&self, name: &str) -> Option<Arc<NodeFacts>>;

    /// All nodes, by name.
    fn nodes(&self) -> Vec<Arc<NodeFacts>>;

    /// The nodes that have this address: more than one where edge sites use the same private network.
    fn nodes_at(&self, address: IpAddr) -> Vec<Arc<NodeFacts>>;

    /// The node that a pod is bound to.
    fn node_of_pod(&self, namespace: &str, name: &str) -> Option<String>;

    /// The node of the running pod that has this address of its own; `None` also when pods of two nodes claim it.
    fn pod_at(&self, address: IpAddr) -> Option<String>;

    /// The node whose block of pod addresses holds this one, the most specific block first; `None` also when two have the same.
    fn network_at(&self, address: IpAddr) -> Option<String>;

    /// The ready endpoints behind a service's cluster IP and (TCP) port. `None`: there is no such service or port.
    fn service_at(&self, address: IpAddr, port: u16) -> Option<Vec<Endpoint>>;

    /// The first cluster IP of a service.
    fn service(&self, namespace: &str, name: &str) -> Option<IpAddr>;

    /// Namespace and name of the service that has this cluster IP.
    fn service_of(&self, address: IpAddr) -> Option<(String, String)>;

    /// Counts changes of what is known of nodes.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Whether everything has been told that there was at the start; before, what is not known may yet exist.
    fn is_complete(&self) -> bool;

    /// The node to ask for an address: its own, that of one of its pods, or one of its pods' network.
    fn node_for(&self, address: IpAddr) -> Option<String> {
        match self.nodes_at(address).as_slice() {
            [node] => Some(node.name.clone()),
            // Which one is meant cannot be known.
            [_, _, ..] => None,
            [] => self.pod_at(address).or_else(|| self.network_at(address)),
        }
    }
}
