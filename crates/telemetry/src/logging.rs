//! Logging to stderr.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Sets up logging to stderr once: `level` is an env-filter directive (`info`, `yurt_hub=debug`), `json` for machines.
/// `RUST_LOG` wins over `level`. Calling it twice does nothing. A directive that cannot be read is reported, and `info` used.
pub fn init_logging(level: &str, json: bool) {
    let (filter, complaint) = filter(std::env::var("RUST_LOG").ok().as_deref(), level);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let done = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init()
    };
    if let (Ok(()), Some(complaint)) = (done, complaint) {
        tracing::warn!("{complaint}");
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
}
