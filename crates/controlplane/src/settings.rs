//! What controllers need to be told besides the API.

use std::time::Duration;
use yurt_controller::node_lifecycle::Times;
use yurt_pki::KeyPairPem;

/// Times of the node controllers, with kube-controller-manager's names and defaults. Shorter ones make quick labs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct NodeMonitor {
    /// How often nodes are looked at.
    #[arg(long = "node-monitor-period", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub period: Duration,
    /// How long a node may be silent until it counts as not ready.
    #[arg(long = "node-monitor-grace-period", default_value = "50s", value_parser = duration, value_name = "DURATION")]
    pub grace: Duration,
    /// The same for a node that has only just registered.
    #[arg(long = "node-startup-grace-period", default_value = "1m", value_parser = duration, value_name = "DURATION")]
    pub startup_grace: Duration,
}

impl Default for NodeMonitor {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(5),
            grace: Duration::from_secs(50),
            startup_grace: Duration::from_secs(60),
        }
    }
}

impl From<NodeMonitor> for Times {
    fn from(monitor: NodeMonitor) -> Self {
        let NodeMonitor {
            period,
            grace,
            startup_grace,
        } = monitor;
        Self {
            period,
            grace,
            startup_grace,
        }
    }
}

/// What controllers need to be told besides the API.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Times of the node controllers.
    pub nodes: NodeMonitor,
    /// The CA that signs certificate requests; without it none is signed.
    pub signing: Option<KeyPairPem>,
}

/// `40s`, `1m30s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let length: jiff::SignedDuration = text.parse().map_err(|e: jiff::Error| e.to_string())?;
    match Duration::try_from(length) {
        Ok(length) if !length.is_zero() => Ok(length),
        _ => Err("longer than nothing, as in 40s or 1m30s".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        nodes: NodeMonitor,
    }

    #[test]
    fn the_flags_defaults_are_the_defaults() {
        let parsed = Command::parse_from(["lab"]).nodes;
        assert_eq!(parsed, NodeMonitor::default());
    }

    #[test]
    fn durations_are_written_as_in_go() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "5", "-5s", "0s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
