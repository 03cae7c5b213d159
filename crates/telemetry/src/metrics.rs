//! Metrics and how they are shown.

use crate::{ProcessUsage, process_usage};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};
use std::sync::{Arc, Mutex, PoisonError};

/// What Prometheus accepts OpenMetrics under.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry of metrics, with the process metrics (`process_resident_memory_bytes`, `process_cpu_seconds_total`,
/// `process_open_fds`, `process_start_time_seconds`) and `openyurt_version_info` in it.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The registry; register at start-up only.
    pub registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A new registry for a component (label `component_name`).
    pub fn new(component: &str) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        registry.register(
            "openyurt_version",
            "Which build of which component this is",
            Info::new(vec![
                ("component_name".to_owned(), component.to_owned()),
                (
                    "git_version".to_owned(),
                    format!("v{}", env!("CARGO_PKG_VERSION")),
                ),
                (
                    "git_commit".to_owned(),
                    option_env!("YURT_GIT_COMMIT")
                        .unwrap_or("unknown")
                        .to_owned(),
                ),
                (
                    "build_date".to_owned(),
                    option_env!("YURT_BUILD_DATE")
                        .unwrap_or("unknown")
                        .to_owned(),
                ),
                // Dashboards of the original group by it; there is no Go in this binary.
                ("go_version".to_owned(), "none".to_owned()),
                ("compiler".to_owned(), "rustc".to_owned()),
                (
                    "nodepoollabelkey".to_owned(),
                    "apps.openyurt.io/nodepool".to_owned(),
                ),
                ("platform".to_owned(), platform()),
            ]),
        );
        Self {
            registry: Arc::new(Mutex::new(registry)),
        }
    }

    /// OpenMetrics text and its content type.
    pub fn render(&self) -> (String, &'static str) {
        let mut rendered = String::with_capacity(4096);
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = text::encode(&mut rendered, &registry) {
            // Writing to a String does not fail; a collector can. A scraper must not take half of the metrics for all of them.
            tracing::warn!(%error, "metrics could not be rendered");
            rendered = "# EOF\n".to_owned();
        }
        (rendered, CONTENT_TYPE)
    }
}

/// As Go writes it (`linux/amd64`).
fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{architecture}", std::env::consts::OS)
}

/// The process metrics every Prometheus client library has.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(usage) = process_usage(None) else {
            return Ok(());
        };
        let ProcessUsage {
            resident_bytes,
            virtual_bytes,
            cpu_seconds,
            open_fds,
            start_time,
        } = usage;
        let gauge = |bytes: u64| ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
        let mut show = |name: &str, help: &str, unit: Option<&Unit>, metric: &dyn Show| {
            metric.show(encoder.encode_descriptor(name, help, unit, metric.kind())?)
        };
        show(
            "process_cpu",
            "User and system CPU time",
            Some(&Unit::Seconds),
            &ConstCounter::new(cpu_seconds),
        )?;
        show(
            "process_resident_memory",
            "Resident memory",
            Some(&Unit::Bytes),
            &gauge(resident_bytes),
        )?;
        show(
            "process_virtual_memory",
            "Virtual memory",
            Some(&Unit::Bytes),
            &gauge(virtual_bytes),
        )?;
        show(
            "process_open_fds",
            "Open file descriptors",
            None,
            &gauge(open_fds),
        )?;
        show(
            "process_start_time",
            "Start of the process since the epoch",
            Some(&Unit::Seconds),
            &ConstGauge::new(start_time),
        )
    }
}

/// [`EncodeMetric`] for a closure's argument.
trait Show {
    fn kind(&self) -> prometheus_client::metrics::MetricType;
    fn show(
        &self,
        encoder: prometheus_client::encoding::MetricEncoder<'_>,
    ) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Show for M {
    fn kind(&self) -> prometheus_client::metrics::MetricType {
        self.metric_type()
    }
    fn show(
        &self,
        encoder: prometheus_client::encoding::MetricEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        self.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn renders_what_scrapers_and_the_originals_dashboards_expect() {
        let metrics = Metrics::new("yurthub");
        let requests: Counter = Counter::default();
        metrics
            .registry
            .lock()
            .unwrap()
            .register("node_requests", "Requests", requests.clone());
        requests.inc_by(7);
        let (text, content_type) = metrics.render();
        assert!(content_type.starts_with("application/openmetrics-text; version=1.0.0"));
        for line in [
            "openyurt_version_info{component_name=\"yurthub\",",
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_open_fds ",
            "process_start_time_seconds ",
            "node_requests_total 7\n",
        ] {
            let found = text.starts_with(line) || text.contains(&format!("\n{line}"));
            assert!(found, "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
