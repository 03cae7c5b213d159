//! Logs, metrics, process usage: one way for all components.

mod logging;
mod metrics;
mod process;

pub use logging::init_logging;
pub use metrics::Metrics;
pub use process::{ProcessUsage, process_usage};
