//! Logs, metrics, health: one way for all components.

use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex};

/// Sets up logging to stderr once: `level` is an env-filter directive (`info`, `yurt_hub=debug`), `json` for machines.
/// `RUST_LOG` wins over `level`. Calling it twice does nothing.
pub fn init_logging(_level: &str, _json: bool) {
    unimplemented!()
}

/// A registry of metrics, with the process metrics (`process_resident_memory_bytes`, `process_cpu_seconds_total`,
/// `process_open_fds`, `process_start_time_seconds`) and `openyurt_version_info` in it.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The registry; register at start-up only.
    pub registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A new registry for a component (label `component_name`).
    pub fn new(_component: &str) -> Self {
        unimplemented!()
    }
    /// OpenMetrics text and its content type.
    pub fn render(&self) -> (String, &'static str) {
        unimplemented!()
    }
}

/// Reads this process' resident memory in bytes and CPU seconds from /proc (or another's by pid).
pub fn process_usage(_pid: Option<u32>) -> Option<ProcessUsage> {
    unimplemented!()
}
/// Memory and CPU of a process.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ProcessUsage {
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
    pub open_fds: u64,
}
