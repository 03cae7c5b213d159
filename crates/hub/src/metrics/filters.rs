//! What is counted of filters.

use super::labels::{ReasonLabel, bounded};
use crate::filter::Verdict;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use std::{
    collections::HashSet,
    sync::{Mutex, atomic::AtomicU64},
    time::Duration,
};

/// Names of filters that are told apart; users' own among them.
const MAX_FILTERS: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FilterLabel {
    filter: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    filter: String,
    verdict: &'static str,
}

/// Metrics of filters.
#[derive(Debug, Default)]
pub struct FilterMetrics {
    names: Mutex<HashSet<String>>,
    seconds: Family<FilterLabel, Counter<f64, AtomicU64>>,
    objects: Family<VerdictLabels, Counter>,
    refused: Family<ReasonLabel, Counter>,
    unreadable: Counter,
    unready: Counter,
    retold: Counter,
}

impl FilterMetrics {
    pub(super) fn register(&self, hub: &mut Registry) {
        hub.register(
            "filter_seconds",
            "Time that filters took, by filter",
            self.seconds.clone(),
        );
        hub.register(
            "filtered_objects",
            "Objects that filters looked into, by filter and verdict",
            self.objects.clone(),
        );
        hub.register(
            "filter_refused_answers",
            "Answers that could not be filtered and were refused, by reason",
            self.refused.clone(),
        );
        hub.register(
            "filter_unreadable_objects",
            "Objects that could not be decoded for filters and were shown as they are",
            self.unreadable.clone(),
        );
        hub.register(
            "filter_unready_answers",
            "Answers served while filters did not know the services or the pool yet",
            self.unready.clone(),
        );
        hub.register(
            "filter_retold_objects",
            "Events sent to running watches because filters decide otherwise than before",
            self.retold.clone(),
        );
    }

    /// A filter looked into an object.
    pub fn applied(&self, filter: &str, verdict: Verdict, took: Duration) {
        let filter = bounded(&self.names, filter.to_owned(), MAX_FILTERS);
        let verdict = match verdict {
            Verdict::Kept => "kept",
            Verdict::Changed => "changed",
            Verdict::Dropped => "dropped",
        };
        let label = FilterLabel {
            filter: filter.clone(),
        };
        self.seconds
            .get_or_create(&label)
            .inc_by(took.as_secs_f64());
        let labels = VerdictLabels { filter, verdict };
        self.objects.get_or_create(&labels).inc();
    }

    /// An object could not be read.
    pub(crate) fn unreadable(&self) {
        self.unreadable.inc();
    }

    /// An answer was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An answer was served before what its filters ask for was known.
    pub(crate) fn unready(&self) {
        self.unready.inc();
    }

    /// A watch was told anew.
    pub(crate) fn retold(&self) {
        self.retold.inc();
    }
}
