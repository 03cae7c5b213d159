//! What is counted.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Counters of steering.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) cloud_nodes: Gauge,
    pub(super) writes: Counter,
    pub(super) failures: Counter,
    pub(super) names: Gauge,
    pub(super) name_writes: Counter,
    pub(super) name_failures: Counter,
}

impl Metrics {
    /// Has them shown.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "yurttunnel_server_cloud_nodes_counter",
            "Nodes without an agent, which are reached directly",
            self.cloud_nodes.clone(),
        );
        registry.register(
            "yurttunnel_server_steering_writes",
            "Times that rules had to be written",
            self.writes.clone(),
        );
        registry.register(
            "yurttunnel_server_steering_failures",
            "Times that rules could not be read or written",
            self.failures.clone(),
        );
        registry.register(
            "yurttunnel_server_node_names",
            "Names of nodes kept for the DNS by this instance",
            self.names.clone(),
        );
        registry.register(
            "yurttunnel_server_node_name_writes",
            "Times that names or ports of the service had to be written",
            self.name_writes.clone(),
        );
        registry.register(
            "yurttunnel_server_node_name_failures",
            "Times that names or ports of the service could not be written",
            self.name_failures.clone(),
        );
    }
}
