//! What is counted, under konnectivity's names.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use std::{io::ErrorKind, sync::Arc, time::Instant};
use yurt_transport::{Destination, Dialer, Dialing};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Metrics of an agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AgentMetrics {
    dial_duration: Histogram,
    dial_failures: Family<Reason, Counter>,
    open_endpoints: Gauge,
    open_servers: Gauge,
    known_servers: Gauge,
    server_failures: Counter,
    transports: Family<By, Gauge>,
    quic: Family<Outcome, Counter>,
}

impl AgentMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self {
            dial_duration: Histogram::new(exponential_buckets(0.000_5, 2.0, 14)),
            dial_failures: Family::default(),
            open_endpoints: Gauge::default(),
            open_servers: Gauge::default(),
            known_servers: Gauge::default(),
            server_failures: Counter::default(),
            transports: Family::default(),
            quic: Family::default(),
        };
        let ours = registry.sub_registry_with_prefix("yurttunnel_agent");
        ours.register(
            "server_connections",
            "Connections to servers by transport: QUIC is beside TCP",
            this.transports.clone(),
        );
        ours.register(
            "quic",
            "What came of QUIC: used, not_better, failed (UDP does not pass), broke, left",
            this.quic.clone(),
        );
        let registry = registry.sub_registry_with_prefix("konnectivity_network_proxy_agent");
        registry.register(
            "dial_duration_seconds",
            "How long it took to reach a target",
            this.dial_duration.clone(),
        );
        registry.register(
            "endpoint_dial_failure",
            "Targets that were not reached, by reason",
            this.dial_failures.clone(),
        );
        registry.register(
            "open_endpoint_connections",
            "Connections to targets that are open",
            this.open_endpoints.clone(),
        );
        registry.register(
            "open_server_connections",
            "Servers that are connected",
            this.open_servers.clone(),
        );
        registry.register(
            "known_server_count",
            "Servers that there are, as far as is known",
            this.known_servers.clone(),
        );
        registry.register(
            "server_connection_failure_count",
            "Servers that were not reached",
            this.server_failures.clone(),
        );
        this
    }

    /// Has a sample in every family: one without is not told.
    #[cfg(test)]
    pub(crate) fn exercise(&self) {
        let reason = "refused";
        self.dial_failures.get_or_create(&Reason { reason }).inc();
        self.transports(0, 0);
        self.quic("used");
    }

    /// So many connections to servers there are.
    pub(super) fn transports(&self, tcp: usize, quic: usize) {
        for (transport, count) in [("tcp", tcp), ("quic", quic)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.transports.get_or_create(&By { transport }).set(count);
        }
    }

    /// What came of QUIC towards a server.
    pub(super) fn quic(&self, outcome: &'static str) {
        self.quic.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn servers(&self, open: usize, known: u32) {
        self.open_servers
            .set(i64::try_from(open).unwrap_or(i64::MAX));
        self.known_servers.set(known.into());
    }

    pub(super) fn server_failed(&self) {
        self.server_failures.inc();
    }

    pub(super) fn endpoints(&self, open: usize) {
        self.open_endpoints
            .set(i64::try_from(open).unwrap_or(i64::MAX));
    }
}

/// A dialler that counts.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) metrics: AgentMetrics,
}

impl Dialer for Measured {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(async move {
            let began = Instant::now();
            let dialled = self.dialer.dial(to).await;
            match &dialled {
                Ok(_) => self
                    .metrics
                    .dial_duration
                    .observe(began.elapsed().as_secs_f64()),
                Err(error) => {
                    let reason = match error.kind() {
                        ErrorKind::PermissionDenied => "forbidden",
                        ErrorKind::TimedOut => "timeout",
                        ErrorKind::ConnectionRefused => "refused",
                        ErrorKind::NotFound => "unknown_name",
                        ErrorKind::ResourceBusy => "busy",
                        _ => "other",
                    };
                    tracing::debug!(target = %to, %error, "not dialled");
                    self.metrics
                        .dial_failures
                        .get_or_create(&Reason { reason })
                        .inc();
                }
            }
            dialled
        })
    }
}
