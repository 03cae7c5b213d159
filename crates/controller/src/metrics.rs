//! What controllers, queues and clients count, under the names that controller-runtime and client-go gave it, so that dashboards and
//! alerts made for them go on working.

use crate::node_lifecycle::NodeMetrics;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{fmt, time::Duration};

/// Seconds; controller-runtime's.
const RECONCILE_BUCKETS: [f64; 24] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5,
    2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0,
];
/// Seconds; client-go's.
const QUEUE_BUCKETS: [f64; 11] = [
    1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0,
];

type ByController = [(&'static str, &'static str); 1];
type ByResult = [(&'static str, &'static str); 2];
type ByQueue = [(&'static str, &'static str); 2];
type ByAnswer = [(&'static str, String); 2];
type ByName = [(&'static str, String); 1];
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn reconcile_histogram() -> Histogram {
    Histogram::new(RECONCILE_BUCKETS)
}

fn queue_histogram() -> Histogram {
    Histogram::new(QUEUE_BUCKETS)
}

/// How a reconciliation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// Well; it is looked at again later.
    RequeueAfter,
    /// Another writer was there first; it is looked at again at once.
    Requeue,
    /// It failed.
    Error,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::RequeueAfter => "requeue_after",
            Self::Requeue => "requeue",
            Self::Error => "error",
        }
    }
}

/// The metrics of one process. Clones count together.
#[derive(Clone)]
pub struct Metrics {
    reconciles: Family<ByResult, Counter>,
    errors: Family<ByController, Counter>,
    times: Histograms<ByController>,
    most: Family<ByController, Gauge>,
    active: Family<ByController, Gauge>,
    depth: Family<ByQueue, Gauge>,
    adds: Family<ByQueue, Counter>,
    retries: Family<ByQueue, Counter>,
    waits: Histograms<ByQueue>,
    works: Histograms<ByQueue>,
    requests: Family<ByAnswer, Counter>,
    leading: Family<ByName, Gauge>,
    nodes: NodeMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reconciles: Family::default(),
            errors: Family::default(),
            times: Family::new_with_constructor(reconcile_histogram),
            most: Family::default(),
            active: Family::default(),
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            waits: Family::new_with_constructor(queue_histogram),
            works: Family::new_with_constructor(queue_histogram),
            requests: Family::default(),
            leading: Family::default(),
            nodes: NodeMetrics::default(),
        }
    }
}

impl Metrics {
    /// Has them shown.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "controller_runtime_reconcile",
            "Reconciliations per controller and result",
            self.reconciles.clone(),
        );
        registry.register(
            "controller_runtime_reconcile_errors",
            "Reconciliations that failed",
            self.errors.clone(),
        );
        registry.register(
            "controller_runtime_reconcile_time_seconds",
            "How long a reconciliation takes",
            self.times.clone(),
        );
        registry.register(
            "controller_runtime_max_concurrent_reconciles",
            "Workers of a controller",
            self.most.clone(),
        );
        registry.register(
            "controller_runtime_active_workers",
            "Workers of a controller that are at work",
            self.active.clone(),
        );
        registry.register(
            "workqueue_depth",
            "Objects that wait for a worker",
            self.depth.clone(),
        );
        registry.register(
            "workqueue_adds",
            "Objects that were added to a queue",
            self.adds.clone(),
        );
        registry.register(
            "workqueue_retries",
            "Objects that came back after a failure",
            self.retries.clone(),
        );
        registry.register(
            "workqueue_queue_duration_seconds",
            "How long an object waits for a worker",
            self.waits.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "How long a worker has an object",
            self.works.clone(),
        );
        registry.register(
            "rest_client_requests",
            "Answers of the API server by code and method",
            self.requests.clone(),
        );
        registry.register(
            "leader_election_master_status",
            "1 where this process holds the lease",
            self.leading.clone(),
        );
        self.nodes.register(registry);
    }

    /// What is counted of nodes.
    pub(crate) fn nodes(&self) -> &NodeMetrics {
        &self.nodes
    }

    /// What the queue of a controller counts.
    pub(crate) fn queue(&self, controller: &'static str) -> QueueMetrics {
        let labels = [("name", controller), ("controller", controller)];
        QueueMetrics {
            depth: self.depth.get_or_create_owned(&labels),
            adds: self.adds.get_or_create_owned(&labels),
            retries: self.retries.get_or_create_owned(&labels),
            waits: self.waits.get_or_create_owned(&labels),
            works: self.works.get_or_create_owned(&labels),
        }
    }

    /// What a controller with so many workers counts.
    pub(crate) fn controller(&self, controller: &'static str, workers: usize) -> Reconciles {
        let label = [("controller", controller)];
        let most = self.most.get_or_create_owned(&label);
        most.set(i64::try_from(workers).unwrap_or(i64::MAX));
        Reconciles {
            controller,
            all: self.clone(),
            time: self.times.get_or_create_owned(&label),
            active: self.active.get_or_create_owned(&label),
        }
    }

    /// An answer came, or none (`<error>`, as client-go says).
    pub(crate) fn answered(&self, method: &http::Method, code: Option<u16>) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        let labels = [("code", code), ("method", method.as_str().to_owned())];
        self.requests.get_or_create(&labels).inc();
    }

    /// Whether this process holds a lease.
    pub fn leads(&self, lease: &str, leads: bool) {
        let label = [("name", lease.to_owned())];
        self.leading.get_or_create(&label).set(leads.into());
    }
}

/// What one controller counts.
#[derive(Debug)]
pub(crate) struct Reconciles {
    controller: &'static str,
    all: Metrics,
    time: Histogram,
    active: Gauge,
}

impl Reconciles {
    /// A worker begins; it has ended when what is returned is dropped, however that comes.
    pub(crate) fn begin(&self) -> impl Drop + use<> {
        struct Active(Gauge);
        impl Drop for Active {
            fn drop(&mut self) {
                self.0.dec();
            }
        }
        self.active.inc();
        Active(self.active.clone())
    }

    pub(crate) fn ended(&self, outcome: Outcome, took: Duration) {
        self.time.observe(took.as_secs_f64());
        let label = ("controller", self.controller);
        let result = ("result", outcome.label());
        self.all.reconciles.get_or_create(&[label, result]).inc();
        if outcome == Outcome::Error {
            self.all.errors.get_or_create(&[label]).inc();
        }
    }
}

/// What one queue counts.
#[derive(Clone, Debug)]
pub(crate) struct QueueMetrics {
    pub(crate) depth: Gauge,
    pub(crate) adds: Counter,
    pub(crate) retries: Counter,
    pub(crate) waits: Histogram,
    pub(crate) works: Histogram,
}

impl Default for QueueMetrics {
    /// Shown nowhere.
    fn default() -> Self {
        Self {
            depth: Gauge::default(),
            adds: Counter::default(),
            retries: Counter::default(),
            waits: queue_histogram(),
            works: queue_histogram(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text;

    #[test]
    fn the_names_are_controller_runtimes() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        let reconciles = metrics.controller("a-controller", 3);
        let active = reconciles.begin();
        reconciles.ended(Outcome::Error, Duration::from_millis(20));
        reconciles.ended(Outcome::RequeueAfter, Duration::from_millis(20));
        metrics.queue("a-controller").adds.inc();
        metrics.answered(&http::Method::PATCH, Some(200));
        metrics.answered(&http::Method::GET, None);
        metrics.leads("yurt-manager", true);
        let mut shown = String::new();
        text::encode(&mut shown, &registry).expect("text");
        for line in [
            "controller_runtime_reconcile_total{controller=\"a-controller\",result=\"error\"} 1",
            "controller_runtime_reconcile_total{controller=\"a-controller\",result=\"requeue_after\"} 1",
            "controller_runtime_reconcile_errors_total{controller=\"a-controller\"} 1",
            "controller_runtime_reconcile_time_seconds_count{controller=\"a-controller\"} 2",
            "controller_runtime_max_concurrent_reconciles{controller=\"a-controller\"} 3",
            "controller_runtime_active_workers{controller=\"a-controller\"} 1",
            "workqueue_depth{name=\"a-controller\",controller=\"a-controller\"} 0",
            "workqueue_adds_total{name=\"a-controller\",controller=\"a-controller\"} 1",
            "workqueue_retries_total{name=\"a-controller\",controller=\"a-controller\"} 0",
            "workqueue_queue_duration_seconds_count{name=\"a-controller\",controller=\"a-controller\"} 0",
            "workqueue_work_duration_seconds_count{name=\"a-controller\",controller=\"a-controller\"} 0",
            "rest_client_requests_total{code=\"200\",method=\"PATCH\"} 1",
            "rest_client_requests_total{code=\"<error>\",method=\"GET\"} 1",
            "leader_election_master_status{name=\"yurt-manager\"} 1",
        ] {
            assert!(
                shown.contains(&format!("\n{line}\n")),
                "{line} is missing in\n{shown}"
            );
        }
        drop(active);
        let active = metrics
            .active
            .get_or_create(&[("controller", "a-controller")]);
        assert_eq!(active.get(), 0);
    }
}
