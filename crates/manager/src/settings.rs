//! What controllers are told besides the API.

use std::collections::BTreeMap;
use yurt_api::names::objects::MANAGER_NAMESPACE;

/// What controllers are told besides the API.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: MANAGER_NAMESPACE.into(),
            workers: BTreeMap::new(),
            sync_nodepool_configurations: true,
            max_nodes_per_bucket: 100,
            node_servant_image: "openyurt/node-servant:latest".into(),
        }
    }
}

impl Settings {
    /// The number of workers of a controller.
    pub fn workers(&self, name: &str, default: usize) -> usize {
        self.workers.get(name).copied().unwrap_or(default)
    }
}
