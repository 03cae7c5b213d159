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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interceptor::InterceptorArgs;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        steering: SteeringArgs,
        #[command(flatten)]
        interceptor: InterceptorArgs,
    }

    #[test]
    fn flags_are_openyurts() {
        Flags::command().debug_assert();
        let flags = Flags::parse_from(["x"]);
        assert!(flags.steering.enable_iptables && flags.steering.enable_dns_controller);
        assert_eq!(flags.steering.rules_period(), Duration::from_secs(60));
        assert_eq!(flags.steering.names_period(), Duration::from_secs(1800));
        let bind = "0.0.0.0".parse().unwrap();
        let addresses = (
            flags.interceptor.secure_address(bind).to_string(),
            flags.interceptor.insecure_address(bind).to_string(),
        );
        assert_eq!(
            addresses,
            ("0.0.0.0:10263".into(), "127.0.0.1:10264".into())
        );
        let flags = Flags::parse_from([
            "x",
            "--enable-iptables=false",
            "--enable-dns-controller",
            "--iptables-sync-period=1",
            "--dns-sync-period=1",
            "--steering-backend=iptables",
            "--interceptor-callers=a,b",
            "--insecure-bind-address=10.0.0.1",
        ]);
        assert!(!flags.steering.enable_iptables && flags.steering.enable_dns_controller);
        assert_eq!(flags.steering.rules_period(), Duration::from_secs(15));
        assert_eq!(flags.steering.names_period(), Duration::from_secs(30));
        assert_eq!(flags.steering.steering_backend, Backend::Iptables);
        assert_eq!(flags.interceptor.callers().only.len(), 2);
        let insecure = flags.interceptor.insecure_address(bind);
        assert_eq!(insecure.to_string(), "10.0.0.1:10264");
    }

    #[test]
    fn kubelets_are_only_spoken_to_by_a_ca_or_if_that_was_said() {
        let parse =
            |arguments: &[&str]| Flags::parse_from([&["x"], arguments].concat()).interceptor;
        let ca = yurt_pki::Ca::new("cluster", 1).unwrap().cert_pem();
        assert!(parse(&[]).kubelet_tls(None, None).is_err());
        parse(&[]).kubelet_tls(Some(&ca), None).unwrap();
        parse(&["--kubelet-insecure"])
            .kubelet_tls(None, None)
            .unwrap();
        let missing = parse(&["--kubelet-certificate-authority=/nowhere/ca.pem"]);
        let error = missing.kubelet_tls(Some(&ca), None).unwrap_err();
        assert!(
            error.to_string().starts_with("/nowhere/ca.pem: "),
            "{error}"
        );
    }
}
