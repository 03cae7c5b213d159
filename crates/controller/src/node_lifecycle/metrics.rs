//! What is counted of nodes, under kube-controller-manager's names.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;

/// Seconds: from a millisecond to 16, as kube-controller-manager's.
const BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];

type ByZone = [(&'static str, String); 1];

fn by(zone: &str) -> ByZone {
    [("zone", zone.to_owned())]
}

/// What is counted of nodes. Clones count together.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    health: Family<ByZone, Gauge>,
    size: Family<ByZone, Gauge>,
    unhealthy: Family<ByZone, Gauge>,
    evictions: Family<ByZone, Counter>,
    one: Histogram,
    all: Histogram,
}

impl Default for NodeMetrics {
    fn default() -> Self {
        Self {
            health: Family::default(),
            size: Family::default(),
            unhealthy: Family::default(),
            evictions: Family::default(),
            one: Histogram::new(BUCKETS),
            all: Histogram::new(BUCKETS),
        }
    }
}

impl NodeMetrics {
    /// Has them shown.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "node_collector_zone_health",
            "Percentage of ready nodes per zone",
            self.health.clone(),
        );
        registry.register(
            "node_collector_zone_size",
            "Nodes per zone",
            self.size.clone(),
        );
        registry.register(
            "node_collector_unhealthy_nodes_in_zone",
            "Nodes per zone that are not ready",
            self.unhealthy.clone(),
        );
        registry.register(
            "node_collector_evictions",
            "Nodes that were tainted for eviction, per zone",
            self.evictions.clone(),
        );
        registry.register(
            "node_collector_update_node_health_duration_seconds",
            "How long it takes to see to one node",
            self.one.clone(),
        );
        registry.register(
            "node_collector_update_all_nodes_health_duration_seconds",
            "How long a look at all nodes takes",
            self.all.clone(),
        );
    }

    /// All zones: name, nodes, ready nodes.
    pub(super) fn zones<'z>(&self, zones: impl Iterator<Item = (&'z str, usize, usize)>) {
        for gauges in [&self.health, &self.size, &self.unhealthy] {
            gauges.clear();
        }
        let set = |gauges: &Family<ByZone, Gauge>, zone: &str, value: usize| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            gauges.get_or_create_owned(&by(zone)).set(value);
        };
        for (zone, size, ready) in zones {
            set(&self.size, zone, size);
            set(&self.unhealthy, zone, size.saturating_sub(ready));
            set(&self.health, zone, 100 * ready / size.max(1));
        }
    }

    pub(super) fn evicted(&self, zone: &str) {
        self.evictions.get_or_create_owned(&by(zone)).inc();
    }

    pub(super) fn attended(&self, took: Duration) {
        self.one.observe(took.as_secs_f64());
    }

    pub(super) fn looked(&self, took: Duration) {
        self.all.observe(took.as_secs_f64());
    }
}
