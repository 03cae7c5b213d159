//! What is counted of upgrades (OTA). Labels are states and reasons of the code: few.

use super::labels::ReasonLabel;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// What an upgrade is at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// Metrics of upgrades.
#[derive(Debug, Default)]
pub struct OtaMetrics {
    jobs: Family<StateLabel, Gauge>,
    ended: Family<StateLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    pulls: Counter,
}

impl OtaMetrics {
    pub(super) fn register(&self, hub: &mut Registry) {
        hub.register(
            "ota_jobs",
            "Upgrades that are kept, by state",
            self.jobs.clone(),
        );
        hub.register(
            "ota_upgrades",
            "Upgrades that are over, by the state they ended in",
            self.ended.clone(),
        );
        hub.register(
            "ota_refused",
            "Requests about upgrades that were refused, by why",
            self.refused.clone(),
        );
        hub.register(
            "ota_image_pulls",
            "Pulls of images that were asked for",
            self.pulls.clone(),
        );
    }

    /// Upgrades in a state now.
    pub fn jobs(&self, state: &'static str, jobs: usize) {
        let jobs = i64::try_from(jobs).unwrap_or(i64::MAX);
        self.jobs.get_or_create(&StateLabel { state }).set(jobs);
    }

    /// An upgrade is over.
    pub fn ended(&self, state: &'static str) {
        self.ended.get_or_create(&StateLabel { state }).inc();
    }

    /// A request is refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Images are to be pulled.
    pub fn pulled(&self) {
        self.pulls.inc();
    }
}
