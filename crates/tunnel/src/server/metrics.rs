//! What the server counts: under konnectivity's names where it has one, none of them by agent or by path.

use crate::{DialError, peers::Peers, registry::Registry, routing::Strategy};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::Counter, family::Family, gauge::ConstGauge, gauge::Gauge, histogram::Histogram,
    },
    registry,
};
use std::{sync::Arc, time::Instant};
use yurt_transport::BoxStream;

const PREFIX: &str = "konnectivity_network_proxy_server";
const OURS: &str = "yurttunnel_server";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Who {
    who: &'static str,
}

/// Counters of a server; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Proxied connections that are open.
    pub(super) established: Gauge,
    /// Seconds that proxied connections lasted.
    pub(super) connection_duration: Histogram,
    /// Frontends by CONNECT and by gRPC.
    pub(crate) http: Gauge,
    pub(crate) grpc: Gauge,
    dial_duration: Histogram,
    pending: Gauge,
    /// A gauge in type, since konnectivity's name for this counter has no `_total`.
    failures: Family<Reason, Gauge>,
    refused: Family<Who, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = [
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        ];
        let lifetimes = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86_400.0];
        Self {
            established: Gauge::default(),
            connection_duration: Histogram::new(lifetimes),
            http: Gauge::default(),
            grpc: Gauge::default(),
            dial_duration: Histogram::new(seconds),
            pending: Gauge::default(),
            failures: Family::default(),
            refused: Family::default(),
        }
    }
}

impl Metrics {
    /// Shows them in a registry.
    pub fn register(&self, registry: &mut registry::Registry) {
        let theirs = registry.sub_registry_with_prefix(PREFIX);
        theirs.register(
            "established_connections",
            "Proxied connections that are open",
            self.established.clone(),
        );
        theirs.register(
            "connection_duration_seconds",
            "How long proxied connections lasted",
            self.connection_duration.clone(),
        );
        theirs.register(
            "dial_duration_seconds",
            "From a frontend's request to the connection",
            self.dial_duration.clone(),
        );
        theirs.register(
            "pending_backend_dials",
            "Dials that wait for an answer",
            self.pending.clone(),
        );
        theirs.register(
            "dial_failure_count",
            "Dials that came to nothing",
            self.failures.clone(),
        );
        theirs.register(
            "http_connections",
            "Frontends by CONNECT",
            self.http.clone(),
        );
        theirs.register("grpc_connections", "Frontends by gRPC", self.grpc.clone());
        registry.sub_registry_with_prefix(OURS).register(
            "refused",
            "Connections of peers that may not do what they asked for",
            self.refused.clone(),
        );
    }

    /// Somebody was not let in: `agent`, `frontend`, `peer`, `cloud` or `handshake`.
    pub(crate) fn refused(&self, who: &'static str) {
        self.refused.get_or_create(&Who { who }).inc();
    }

    fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&Reason { reason }).inc();
    }
}

/// A dial under way.
pub(super) struct Pending<'a> {
    metrics: &'a Metrics,
    began: Instant,
    /// What is to be counted if nobody waits for the end.
    given_up: bool,
}

impl<'a> Pending<'a> {
    pub(super) fn new(metrics: &'a Metrics) -> Self {
        metrics.pending.inc();
        Self {
            metrics,
            began: Instant::now(),
            given_up: true,
        }
    }

    pub(super) fn ended(mut self, dialled: &Result<BoxStream, DialError>) {
        self.given_up = false;
        match dialled {
            Ok(_) => {
                let took = self.began.elapsed().as_secs_f64();
                self.metrics.dial_duration.observe(took);
            }
            Err(error) => self.metrics.failed(match error {
                DialError::Invalid(_) => "invalid",
                DialError::NoAgent(_) => "no_agent",
                DialError::Forbidden(_) => "forbidden",
                DialError::Failed(_) => "error_response",
                DialError::TimedOut(_) => "backend_dial_timeout",
                DialError::Lost(_) => "backend_close",
                DialError::Busy(_) => "busy",
            }),
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.metrics.pending.dec();
        if self.given_up {
            self.metrics.failed("frontend_close");
        }
    }
}

/// What is looked up when somebody asks.
#[derive(Debug)]
pub(super) struct Present {
    pub(super) registry: Arc<Registry>,
    pub(super) peers: Arc<Peers>,
    pub(super) strategies: Vec<Strategy>,
}

impl Collector for Present {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauge = |count: usize| ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        let mut show = |name: &str, help: &str, count: usize| {
            let gauge = gauge(count);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        show(
            &format!("{PREFIX}_ready_backend_connections"),
            "Connections to agents",
            self.registry.connected(),
        )?;
        show(
            &format!("{PREFIX}_total_registered_agents"),
            "Agents that are connected",
            self.registry.len(),
        )?;
        show(
            &format!("{OURS}_peers_connected"),
            "Other instances that are connected",
            self.peers.connected(),
        )?;
        let name = format!("{OURS}_agent_connections");
        let kind = gauge(0).metric_type();
        let mut family = encoder.encode_descriptor(
            &name,
            "Connections to agents by protocol: mux is ours over TCP",
            None,
            kind,
        )?;
        for (protocol, count) in self.registry.protocols() {
            gauge(count).encode(family.encode_family(&[("protocol", protocol)])?)?;
        }
        let name = format!("{PREFIX}_ready_backends");
        let kind = gauge(0).metric_type();
        let mut family =
            encoder.encode_descriptor(&name, "Agents that a strategy can choose", None, kind)?;
        for strategy in &self.strategies {
            let labels = [("proxy_strategy", strategy.name())];
            let ready = gauge(self.registry.choices(*strategy));
            ready.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// All of a server's metrics, each with a sample (a family without one is not told).
#[cfg(test)]
pub(crate) fn exercised(registry: &mut registry::Registry) {
    let metrics = Metrics::default();
    metrics.register(registry);
    metrics.refused("agent");
    metrics.failed("no_agent");
    registry.register_collector(Box::new(Present {
        registry: Arc::default(),
        peers: Peers::none(),
        strategies: crate::server::switchboard::Ways::default().strategies,
    }));
}
