//! Flags of steering.

use super::Backend;
use clap::Args;
use std::time::Duration;

/// Flags about how callers come to the tunnel.
#[derive(Args, Clone, Debug)]
pub struct SteeringArgs {
    /// Translate this host's connections to kubelets, so that its components reach them by the tunnel.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_iptables: bool,

    /// How: the first of nftables and iptables that works here, or one of them.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub steering_backend: Backend,

    /// Seconds between looks at the rules, which somebody may have changed. At least 15.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub iptables_sync_period: u64,

    /// Keep the names of nodes for the DNS, and the ports of the internal service.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_dns_controller: bool,

    /// Seconds between looks at the names. At least 30.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub dns_sync_period: u64,
}

impl SteeringArgs {
    /// Time between looks at the rules.
    pub fn rules_period(&self) -> Duration {
        Duration::from_secs(self.iptables_sync_period.max(15))
    }

    /// Time between looks at the names.
    pub fn names_period(&self) -> Duration {
        Duration::from_secs(self.dns_sync_period.max(30))
    }
}
