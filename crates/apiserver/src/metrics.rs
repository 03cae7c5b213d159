//! What the server counts, under kube-apiserver's names.

use crate::{registry::Registry, resources::Resource};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use std::{sync::PoisonError, time::Duration};
use yurt_telemetry::Metrics;
use yurt_wire::{RequestInfo, Verb};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    verb: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchLabels {
    group: String,
    version: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

/// The server's metrics.
#[derive(Debug)]
pub(crate) struct ServerMetrics {
    metrics: Metrics,
    requests: Family<RequestLabels, Counter>,
    durations: Family<VerbLabels, Histogram>,
    sizes: Family<ReadLabels, Histogram>,
    events: Family<WatchLabels, Histogram>,
    objects: Family<ResourceLabels, Gauge>,
    revision: Gauge,
}

/// Seconds.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];

/// Bytes: of answers to reads from 1 kB to 1 GB, of events of watches from 1 KiB to 128 KiB; kube-apiserver's.
const ANSWER_BUCKETS: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
const EVENT_BUCKETS: [f64; 8] = [
    1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0,
];

impl ServerMetrics {
    pub(crate) fn new(metrics: Metrics) -> Self {
        let requests = Family::default();
        let durations: Family<VerbLabels, Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let sizes: Family<ReadLabels, Histogram> =
            Family::new_with_constructor(|| Histogram::new(ANSWER_BUCKETS));
        let events: Family<WatchLabels, Histogram> =
            Family::new_with_constructor(|| Histogram::new(EVENT_BUCKETS));
        let objects = Family::default();
        let revision = Gauge::default();
        {
            let mut registry = metrics
                .registry
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            registry.register(
                "apiserver_request",
                "Requests by what they asked for and how they were answered",
                requests.clone(),
            );
            registry.register(
                "apiserver_request_duration_seconds",
                "Seconds from the head of a request to the head of its response",
                durations.clone(),
            );
            registry.register(
                "apiserver_response_sizes",
                "Bytes of answers to GET and LIST, as sent",
                sizes.clone(),
            );
            registry.register(
                "apiserver_watch_events_sizes",
                "Bytes of events sent to watches",
                events.clone(),
            );
            registry.register(
                "apiserver_storage_objects",
                "Objects stored, by resource",
                objects.clone(),
            );
            registry.register(
                "apiserver_storage_revision",
                "The newest revision",
                revision.clone(),
            );
        }
        Self {
            metrics,
            requests,
            durations,
            sizes,
            events,
            objects,
            revision,
        }
    }

    /// Counts one answer, of so many bytes where that is known at its head. What does not exist is not named: labels come from what is
    /// served.
    pub(crate) fn observe(
        &self,
        info: &RequestInfo,
        code: u16,
        bytes: Option<u64>,
        took: Duration,
    ) {
        let named = info.is_resource && code != 404 && code != 401 && code != 403;
        let text = |text: &str| {
            if named {
                text.to_owned()
            } else {
                String::new()
            }
        };
        let verb = info.verb.as_str().to_ascii_uppercase();
        self.requests
            .get_or_create(&RequestLabels {
                verb: verb.clone(),
                group: text(&info.group),
                version: text(&info.version),
                resource: text(&info.resource),
                subresource: text(&info.subresource),
                code,
            })
            .inc();
        if let (Verb::Get | Verb::List, true, Some(bytes)) = (info.verb, info.is_resource, bytes) {
            self.sizes
                .get_or_create(&ReadLabels {
                    verb: verb.clone(),
                    group: text(&info.group),
                    version: text(&info.version),
                    resource: text(&info.resource),
                    subresource: text(&info.subresource),
                })
                .observe(bytes as f64);
        }
        if info.verb != Verb::Watch {
            self.durations
                .get_or_create(&VerbLabels { verb })
                .observe(took.as_secs_f64());
        }
    }

    /// Where a watch of a resource counts the bytes of its events.
    pub(crate) fn events(&self, resource: &Resource) -> Histogram {
        let labels = WatchLabels {
            group: resource.group.clone(),
            version: resource.version.clone(),
            resource: resource.plural.clone(),
        };
        self.events.get_or_create(&labels).clone()
    }

    /// Reads the sizes of the storage.
    pub(crate) fn storage(&self, registry: &Registry) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.revision.set(number(registry.storage.revision()));
        for resource in registry.catalog().stored() {
            let count = registry.storage.partition(&resource.storage).len();
            self.objects
                .get_or_create(&ResourceLabels {
                    resource: resource.storage.trim_start_matches('/').to_owned(),
                })
                .set(number(count as u64));
        }
    }

    pub(crate) fn render(&self) -> (String, &'static str) {
        self.metrics.render()
    }
}
