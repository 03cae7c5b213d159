//! Flags of konnectivity's processes and of klog that have no effect here, so that existing manifests go on working.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use yurt_telemetry::LoggingArgs;

/// Of `proxy-server`.
const SERVER: &[&str] = &[
    "cipher-suites",
    "enable-contention-profiling",
    "enable-profiling",
    "frontend-keepalive-time",
    "frontend-write-channel-size",
    "kube-api-content-type",
    "kubeconfig-burst",
    "kubeconfig-qps",
    "tls-min-version",
    "warn-on-channel-limit",
    "xfr-channel-size",
];
/// Of `proxy-agent`.
const AGENT: &[&str] = &[
    "alpn-proto",
    "cipher-suites",
    "enable-contention-profiling",
    "enable-profiling",
    "keepalive-time",
    "probe-interval",
    "sync-forever",
    "sync-interval",
    "sync-interval-cap",
    "warn-on-channel-limit",
    "xfr-channel-size",
];

/// What was given in vain, to the server or to the agent, and how loud klog was asked to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnusedArgs<const IS_SERVER: bool> {
    pub(crate) logging: LoggingArgs,
    given: Vec<&'static str>,
}

impl<const IS_SERVER: bool> UnusedArgs<IS_SERVER> {
    const FLAGS: &[&str] = if IS_SERVER { SERVER } else { AGENT };

    /// Says what was given in vain.
    pub(crate) fn warn(&self) {
        for flag in &self.given {
            let why = match *flag {
                // TLS 1.0 and 1.1, and suites without forward secrecy, are never spoken.
                "cipher-suites" | "tls-min-version" => {
                    ": TLS 1.2 and 1.3 are spoken, with the suites of TLS 1.3 and their likes"
                }
                _ => "",
            };
            tracing::warn!("flag --{flag} has no effect and is ignored{why}");
        }
        for flag in &self.logging.in_vain {
            tracing::warn!("flag --{flag} has no effect and is ignored: --log says what is logged");
        }
    }
}

impl<const IS_SERVER: bool> Args for UnusedArgs<IS_SERVER> {
    fn augment_args(command: Command) -> Command {
        // There are no positional arguments: whatever stands behind the flag is its value.
        let known = Self::FLAGS.iter().map(|flag| {
            let arg = Arg::new(*flag).long(*flag).hide(true);
            arg.num_args(0..=1).default_missing_value("true")
        });
        LoggingArgs::augment_args(command).args(known)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const IS_SERVER: bool> FromArgMatches for UnusedArgs<IS_SERVER> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = Self::FLAGS.iter().copied();
        Ok(Self {
            logging: LoggingArgs::from_arg_matches(matches)?,
            given: given.filter(|flag| matches.contains_id(flag)).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::TunnelArgs;
    use clap::{Args, Command, FromArgMatches};

    fn understood(line: &[&str]) -> TunnelArgs {
        let command = TunnelArgs::augment_args(Command::new("tunnel"));
        let matches = command
            .try_get_matches_from(["tunnel"].iter().chain(line))
            .unwrap_or_else(|error| panic!("{line:?}: {error}"));
        TunnelArgs::from_arg_matches(&matches).expect("a command")
    }

    /// The flags of the manifests that Kubernetes' documentation has for konnectivity (with `--cluster-ca-cert` and certificates),
    /// and what distributions add.
    #[test]
    fn konnectivitys_manifests_are_understood() {
        let server = understood(&[
            "server",
            "--logtostderr=true",
            "--uds-name=/etc/kubernetes/konnectivity-server/konnectivity-server.socket",
            "--delete-existing-uds-file",
            "--cluster-cert=/etc/kubernetes/pki/apiserver.crt",
            "--cluster-key=/etc/kubernetes/pki/apiserver.key",
            "--cluster-ca-cert=/etc/kubernetes/pki/ca.crt",
            "--mode=grpc",
            "--server-port=0",
            "--server-bind-address=127.0.0.1",
            "--agent-bind-address=10.0.0.1",
            "--agent-port=8132",
            "--admin-port=8133",
            "--health-port=8134",
            "--admin-bind-address=127.0.0.1",
            "--health-bind-address=127.0.0.2",
            "--agent-namespace=kube-system",
            "--agent-service-account=konnectivity-agent",
            "--kubeconfig=/etc/kubernetes/konnectivity-server.conf",
            "--authentication-audience=system:konnectivity-server",
            "--server-count=2",
            "--proxy-strategies=destHost,default",
            "--keepalive-time=1h",
            "--frontend-keepalive-time=1h",
            "--xfr-channel-size=150",
            "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "--tls-min-version",
            "VersionTLS12",
            "--enable-contention-profiling",
            "--kubeconfig-qps=75",
            "--v=5",
        ]);
        assert_eq!(
            (server.meta(), server.level()),
            (Some("127.0.0.2:8134".parse().unwrap()), "debug")
        );
        let agent = understood(&[
            "agent",
            "--logtostderr=true",
            "--ca-cert=/etc/ca.crt",
            "--agent-cert=/etc/agent.crt",
            "--agent-key=/etc/agent.key",
            "--proxy-server-host=35.225.206.7",
            "--proxy-server-port=8132",
            "--admin-server-port=8133",
            "--health-server-port=8134",
            "--service-account-token-path=/var/run/secrets/tokens/konnectivity-agent-token",
            "--agent-identifiers=ipv4=10.0.0.7",
            "--sync-interval=5s",
            "--sync-interval-cap=30s",
            "--probe-interval=5s",
            "--keepalive-time=30s",
            "--count-server-leases",
            "--v=2",
        ]);
        assert_eq!(
            (agent.meta(), agent.level()),
            (Some("127.0.0.1:8134".parse().unwrap()), "info")
        );
    }
}
