//! Logs, metrics, process usage: one way for all components.

mod klog;
mod logging;
mod metrics;
mod process;

pub use klog::LoggingArgs;
pub use logging::{LogFilterError, init_logging, log_filter, set_log_filter};
pub use metrics::Metrics;
pub use process::{ProcessUsage, process_usage};
