//! Logging to stderr, with a filter that can be changed while the process runs.

use std::{io::IsTerminal, sync::OnceLock};
use tracing_subscriber::{EnvFilter, reload};

/// Longest filter that is taken.
const LONGEST_FILTER: usize = 4096;

/// Why a log filter is not put in force.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    /// It cannot be read.
    #[error("log filter {text:?}: {why}")]
    Malformed {
        /// What was given, shortened.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The process logs by a subscriber of its own, or not at all.
    #[error("logging was not set up by init_logging")]
    NotSetUp,
}

/// The filter in force, whatever the format of the lines is.
trait InForce: Send + Sync {
    fn text(&self) -> Option<String>;
    fn replace(&self, filter: EnvFilter) -> bool;
}

impl<S> InForce for reload::Handle<EnvFilter, S>
where
    Self: Send + Sync,
{
    fn text(&self) -> Option<String> {
        self.with_current(EnvFilter::to_string).ok()
    }
    fn replace(&self, filter: EnvFilter) -> bool {
        self.reload(filter).is_ok()
    }
}

static IN_FORCE: OnceLock<Box<dyn InForce>> = OnceLock::new();

/// Sets up logging to stderr once: `level` is an env-filter directive (`info`, `yurt_hub=debug`), `json` for machines.
/// `RUST_LOG` wins over `level`. Calling it twice does nothing. A directive that cannot be read is reported, and `info` used.
pub fn init_logging(level: &str, json: bool) {
    let (filter, complaint) = filter(std::env::var("RUST_LOG").ok().as_deref(), level);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let (done, in_force): (_, Box<dyn InForce>) = if json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), Box::new(handle))
    } else {
        let builder = builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), Box::new(handle))
    };
    if done.is_ok() {
        // Only the first set-up succeeds.
        let _ = IN_FORCE.set(in_force);
        if let Some(complaint) = complaint {
            tracing::warn!("{complaint}");
        }
    }
}

/// The filter in force; `None` before [`init_logging`].
pub fn log_filter() -> Option<String> {
    IN_FORCE.get()?.text()
}

/// Puts another filter in force, until the process ends or the next one.
pub fn set_log_filter(text: &str) -> Result<(), LogFilterError> {
    let text = text.trim();
    let malformed = |why: String| LogFilterError::Malformed {
        text: text.chars().take(80).collect(),
        why,
    };
    if text.is_empty() || text.len() > LONGEST_FILTER {
        return Err(malformed(format!(
            "must have between 1 and {LONGEST_FILTER} bytes"
        )));
    }
    let filter = EnvFilter::try_new(text).map_err(|error| malformed(error.to_string()))?;
    match IN_FORCE.get() {
        Some(in_force) if in_force.replace(filter) => Ok(()),
        _ => Err(LogFilterError::NotSetUp),
    }
}

/// The filter, and what is wrong with the directives that were not taken.
fn filter(environment: Option<&str>, level: &str) -> (EnvFilter, Option<String>) {
    let mut complaint = None;
    for directives in [environment.unwrap_or_default(), level] {
        if directives.trim().is_empty() {
            continue;
        }
        match EnvFilter::try_new(directives) {
            Ok(filter) => return (filter, complaint),
            Err(error) => complaint = Some(format!("log filter {directives:?}: {error}")),
        }
    }
    (EnvFilter::new("info"), complaint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_wins() {
        let (chosen, complaint) = filter(Some("yurt_hub=debug"), "warn");
        assert_eq!(chosen.to_string(), "yurt_hub=debug");
        assert_eq!(complaint, None);
        assert_eq!(filter(None, "warn").0.to_string(), "warn");
        assert_eq!(filter(Some(" "), "warn").0.to_string(), "warn");
    }

    #[test]
    fn nonsense_is_reported_and_logging_goes_on() {
        let (chosen, complaint) = filter(Some("a=b=c=loud"), "debug");
        assert_eq!(chosen.to_string(), "debug");
        assert!(complaint.is_some_and(|text| text.contains("a=b=c=loud")));
        assert_eq!(filter(None, "a=b=c").0.to_string(), "info");
    }

    #[test]
    fn the_filter_changes_while_the_process_runs() {
        init_logging("warn", true);
        set_log_filter(" yurt_hub=debug \n").unwrap();
        assert_eq!(log_filter().as_deref(), Some("yurt_hub=debug"));
        assert!(tracing::enabled!(target: "yurt_hub", tracing::Level::DEBUG));
        assert!(!tracing::enabled!(target: "yurt_lab", tracing::Level::INFO));
        for bad in ["", "a=b=c", &"x".repeat(LONGEST_FILTER + 1)] {
            assert!(matches!(
                set_log_filter(bad),
                Err(LogFilterError::Malformed { .. })
            ));
        }
        assert_eq!(log_filter().as_deref(), Some("yurt_hub=debug"));
    }
}
