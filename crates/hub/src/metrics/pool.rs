//! What is counted of a pool's sharing and of filters. Their names stand in dashboards of OpenYurt; what feeds them is the
//! coordinator and the filters, so that they rest at zero on a node that shares and filters nothing.

use super::labels::{ReasonLabel, RequestLabels};
use crate::pool::Distrust;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// A request that was answered out of a shared stream, and by whom that stream is fed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SourceLabels {
    verb: &'static str,
    resource: String,
    subresources: String,
    client: String,
    server: String,
}

/// Metrics of sharing within the pool.
#[derive(Debug, Default)]
pub struct PoolMetrics {
    aggregated: Family<RequestLabels, Gauge>,
    aggregated_total: Gauge,
    sources: Family<SourceLabels, Gauge>,
    saved_bytes: Counter,
    leader: Gauge,
    distrusts: Family<ReasonLabel, Counter>,
}

impl PoolMetrics {
    /// Under the names of OpenYurt's hub, and new ones.
    pub(super) fn register(&self, hub: &mut Registry) {
        hub.register(
            "aggregated_in_flight_requests_collector",
            "Requests under way that share a stream with others",
            self.aggregated.clone(),
        );
        hub.register(
            "aggregated_in_flight_requests_total",
            "Requests under way that share a stream with others, all together",
            self.aggregated_total.clone(),
        );
        hub.register(
            "target_for_multiplexer_requests_collector",
            "Shared streams by the server that feeds them",
            self.sources.clone(),
        );
        hub.register(
            "pool_saved_bytes",
            "Bytes that the pool's leader spared the link to the cloud",
            self.saved_bytes.clone(),
        );
        hub.register(
            "pool_leader",
            "1 while config maps name this node as a leader of its pool",
            self.leader.clone(),
        );
        hub.register(
            "pool_distrusts",
            "Times that another node of the pool was set aside",
            self.distrusts.clone(),
        );
    }

    /// Whether this node is a leader of its pool.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// A peer was set aside.
    pub fn distrusted(&self, reason: Distrust) {
        let label = ReasonLabel {
            reason: reason.as_str(),
        };
        self.distrusts.get_or_create(&label).inc();
    }
}
