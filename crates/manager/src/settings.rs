//! What controllers are told besides the API.

use std::{collections::BTreeMap, time::Duration};
use yurt_api::names::objects::MANAGER_NAMESPACE;

/// What controllers are told besides the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the manager and what it makes for hubs are (`--working-namespace`).
    pub namespace: String,
    /// How many objects a controller (by its name) works on at once, where it is not its default.
    pub workers: BTreeMap<&'static str, usize>,
    /// Whether pools give labels, annotations and taints to their nodes (`--enable-sync-nodepool-configurations`).
    pub sync_nodepool_configurations: bool,
    /// The most nodes in a NodeBucket (`--max-nodes-per-bucket`).
    pub max_nodes_per_bucket: usize,
    /// The image of what runs on nodes to upgrade and convert (`--node-servant-image`).
    pub node_servant_image: String,
    /// What `node-life-cycle-controller` goes by.
    pub node_life_cycle: NodeLifeCycle,
}

/// What `node-life-cycle-controller` goes by.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeLifeCycle {
    /// How long a new node may say nothing (`--node-startup-grace-period`).
    pub startup_grace: Duration,
    /// How long a running node may say nothing (`--node-monitor-grace-period`).
    pub monitor_grace: Duration,
    /// Nodes of a healthy zone whose pods are evicted, per second (`--node-eviction-rate`).
    pub eviction_rate: f64,
    /// The same in a large unhealthy zone (`--secondary-node-eviction-rate`); in a small one there are none.
    pub secondary_eviction_rate: f64,
    /// A zone of more nodes is large (`--large-cluster-size-threshold`).
    pub large_cluster: usize,
    /// The share of not-ready nodes, at least 3, that makes a zone unhealthy (`--unhealthy-zone-threshold`).
    pub unhealthy_zone: f64,
}

impl Default for NodeLifeCycle {
    fn default() -> Self {
        Self {
            startup_grace: Duration::from_secs(60),
            monitor_grace: Duration::from_secs(40),
            eviction_rate: 0.1,
            secondary_eviction_rate: 0.01,
            large_cluster: 50,
            unhealthy_zone: 0.55,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: MANAGER_NAMESPACE.into(),
            workers: BTreeMap::new(),
            sync_nodepool_configurations: true,
            max_nodes_per_bucket: 100,
            node_servant_image: "openyurt/node-servant:latest".into(),
            node_life_cycle: NodeLifeCycle::default(),
        }
    }
}

impl Settings {
    /// The number of workers of a controller.
    pub fn workers(&self, name: &str, default: usize) -> usize {
        self.workers.get(name).copied().unwrap_or(default)
    }
}
