//! Flags of konnectivity's processes and of klog that have no effect here, so that existing manifests go on working.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use yurt_telemetry::LoggingArgs;

/// Of `proxy-server`.
const SERVER: &[&str] = &[
    "enable-contention-profiling",
    "enable-profiling",
    "frontend-keepalive-time",
    "frontend-write-channel-size",
    "kube-api-content-type",
    "kubeconfig-burst",
    "kubeconfig-qps",
    "warn-on-channel-limit",
    "xfr-channel-size",
];
/// Of `proxy-agent`.
const AGENT: &[&str] = &[
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
                "cipher-suites" => {
                    ": the server chooses, and suites without forward secrecy are never spoken"
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

    fn repository(path: &str) -> String {
        let path = format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[test]
    fn the_units_of_systemd_start_a_server_and_an_agent() {
        let directory = tempfile::tempdir().unwrap();
        let settings = directory.path().join("agent.yaml");
        std::fs::write(&settings, repository("deploy/systemd/agent.yaml")).unwrap();
        for which in ["server", "agent"] {
            let unit = repository(&format!("deploy/systemd/yurt-tunnel-{which}.service"));
            let command = unit
                .lines()
                .find_map(|line| line.strip_prefix("ExecStart="));
            let command = command
                .expect("a command")
                .replace("${STATE_DIRECTORY}", "/var/lib/x")
                .replace("${RUNTIME_DIRECTORY}", "/run/x")
                .replace(
                    "$YURT_TUNNEL_SERVER_ARGS",
                    "--cloud-allow db.example.com:5432",
                )
                .replace("/etc/yurt-tunnel/agent.yaml", settings.to_str().unwrap());
            let words: Vec<&str> = command.split_whitespace().collect();
            assert_eq!(words[..2], ["/usr/local/bin/yurt", "tunnel"]);
            let parsed = understood(&words[2..]);
            // Of the agent also what its file says is read for it.
            assert!(parsed.meta().is_some(), "{command}");
            // As systemd sees it, where there is one. The command need not be installed.
            let copy = directory
                .path()
                .join(format!("yurt-tunnel-{which}.service"));
            let unit = unit.replace("/usr/local/bin/yurt ", "/bin/sh ");
            std::fs::write(&copy, unit).unwrap();
            let verify = std::process::Command::new("systemd-analyze")
                .args(["verify", "--man=no"])
                .arg(&copy)
                .output();
            match verify {
                Ok(said) => assert!(
                    said.status.success() && said.stderr.is_empty(),
                    "{}",
                    String::from_utf8_lossy(&said.stderr)
                ),
                Err(_) => eprintln!("SKIPPED: systemd-analyze is not installed"),
            }
        }
    }

    /// The flags of the manifests that Kubernetes' documentation has for konnectivity, and what distributions add.
    #[test]
    fn konnectivitys_manifests_are_understood() {
        let server = understood(&[
            "server",
            "--logtostderr=true",
            "--uds-name=/etc/kubernetes/konnectivity-server/konnectivity-server.socket",
            "--delete-existing-uds-file",
            "--cluster-cert=/etc/kubernetes/pki/apiserver.crt",
            "--cluster-key=/etc/kubernetes/pki/apiserver.key",
            "--mode=grpc",
            "--server-port=0",
            "--server-bind-address=127.0.0.1",
            "--agent-bind-address=10.0.0.1",
            "--agent-port=8132",
            "--health-port=8134",
            "--admin-port=8133",
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
            "--health-server-port=8134",
            "--admin-server-port=8133",
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
