//! How certificates are, for Prometheus.

use super::{Credentials, Identity};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    identity: &'static str,
}

/// Metrics of the certificates of one process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct CertificateMetrics {
    end: Family<Label, Gauge>,
    rotations: Family<Label, Counter>,
    failures: Family<Label, Counter>,
}

impl CertificateMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self::default();
        let registry = registry.sub_registry_with_prefix("yurttunnel");
        registry.register(
            "certificate_expiration_timestamp_seconds",
            "When the certificate ends, in seconds since the epoch; 0: there is none",
            this.end.clone(),
        );
        registry.register(
            "certificate_rotations",
            "Certificates taken into use",
            this.rotations.clone(),
        );
        registry.register(
            "certificate_failures",
            "Attempts to have or read a certificate that failed",
            this.failures.clone(),
        );
        this
    }

    pub(crate) fn shown(&self, identity: Identity, credentials: &Credentials, is_new: bool) {
        let label = Label {
            identity: identity.as_str(),
        };
        let end = credentials.pair.as_ref();
        self.end
            .get_or_create(&label)
            .set(end.map_or(0, |pair| pair.leaf.not_after));
        if is_new {
            self.rotations.get_or_create(&label).inc();
        }
    }

    #[cfg(test)]
    pub(crate) fn failures_of(&self, identity: Identity) -> u64 {
        let label = Label {
            identity: identity.as_str(),
        };
        self.failures.get_or_create(&label).get()
    }

    pub(crate) fn failed(&self, identity: Identity) {
        let label = Label {
            identity: identity.as_str(),
        };
        self.failures.get_or_create(&label).inc();
    }
}
