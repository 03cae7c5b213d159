//! How webhooks are counted: under controller-runtime's names, so that dashboards of OpenYurt go on.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Unit,
};
use std::time::Duration;
use yurt_telemetry::Metrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Path {
    webhook: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    webhook: String,
    code: u16,
}

/// Counts of reviews by path and result.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    requests: Family<Outcome, Counter>,
    latency: Family<Path, Histogram>,
    pub(super) in_flight: Gauge,
    pub(super) expiry: Gauge,
}

impl Counts {
    pub(super) fn new(metrics: Option<&Metrics>) -> Self {
        let counts = Self {
            requests: Family::default(),
            // 0.25 ms to 8 s.
            latency: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.00025, 2.0, 16))
            }),
            in_flight: Gauge::default(),
            expiry: Gauge::default(),
        };
        if let Some(metrics) = metrics {
            let mut registry = metrics
                .registry
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            registry.register(
                "controller_runtime_webhook_requests",
                "Reviews by webhook and the code that the user was told",
                counts.requests.clone(),
            );
            registry.register_with_unit(
                "controller_runtime_webhook_latency",
                "Time that a review took",
                Unit::Seconds,
                counts.latency.clone(),
            );
            registry.register(
                "controller_runtime_webhook_requests_in_flight",
                "Reviews that are being worked on",
                counts.in_flight.clone(),
            );
            registry.register(
                "webhook_certificate_expiration_timestamp_seconds",
                "When the certificate that is served ends, since the epoch",
                counts.expiry.clone(),
            );
        }
        counts
    }

    /// A review at a path that is served.
    pub(super) fn answered(&self, path: &str, code: u16, took: Duration) {
        let webhook = path.to_owned();
        self.latency
            .get_or_create(&Path {
                webhook: webhook.clone(),
            })
            .observe(took.as_secs_f64());
        self.requests
            .get_or_create(&Outcome { webhook, code })
            .inc();
    }
}
