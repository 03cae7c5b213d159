//! Flags of steering.

use super::{Backend, Pods, Ports, Tools};
use crate::network::Network;
use clap::Args;
use std::{net::IpAddr, time::Duration};

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

    /// Lead TCP connections to pods on nodes with an agent to the tunnel, to all of their ports or to these (80,8000-8100): those of this
    /// host and its pods, and of other nodes of the cloud and their pods as far as they are routed here [default: not].
    #[arg(long, value_name = "PORTS", num_args = 0..=1, require_equals = true, default_missing_value = "1-65535")]
    pub steer_pods: Option<Ports>,

    /// The port of the listener that they are led to [default: any that is free].
    #[arg(long, value_name = "PORT", requires = "steer_pods")]
    pub steer_pods_port: Option<u16>,

    /// Networks of the cloud's pods, whose connections are led away too, where its nodes do not name them (spec.podCIDRs).
    #[arg(
        long,
        value_name = "NETWORK,...",
        value_delimiter = ',',
        requires = "steer_pods"
    )]
    pub steer_pods_from: Vec<Network>,
}

impl SteeringArgs {
    /// Time between looks at the rules.
    pub fn rules_period(&self) -> Duration {
        Duration::from_secs(self.iptables_sync_period.max(15))
    }

    /// How pods are led to the tunnel, on a host with these addresses.
    pub fn pods(&self, own: Vec<IpAddr>) -> Option<Pods> {
        Some(Pods {
            ports: self.steer_pods.clone()?,
            port: self.steer_pods_port.unwrap_or(0),
            own,
            cloud: self.steer_pods_from.clone(),
            backend: self.steering_backend,
            tools: Tools::default(),
        })
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
        assert!(flags.steering.pods(Vec::new()).is_none());
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
    fn pods_are_led_away_only_if_that_was_said() {
        let parse = |arguments: &[&str]| Flags::try_parse_from([&["x"], arguments].concat());
        let pods = |arguments: &[&str]| parse(arguments).unwrap().steering.pods(Vec::new());
        let all = pods(&["--steer-pods"]).unwrap();
        assert_eq!(all.ports, "1-65535".parse().unwrap());
        assert!(all.port == 0 && all.cloud.is_empty());
        let some = pods(&[
            "--steer-pods=80,8000-8100",
            "--steer-pods-port=10261",
            "--steer-pods-from=172.20.0.0/16,fd00::/48",
        ]);
        let some = some.unwrap();
        assert_eq!(some.ports, "80,8000-8100".parse().unwrap());
        assert_eq!((some.port, some.cloud.len()), (10261, 2));
        for wrong in [
            "--steer-pods=",
            "--steer-pods=0",
            "--steer-pods=9-1",
            "--steer-pods-port=1",
            "--steer-pods-from=10.0.0.0/8",
        ] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
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
