//! The flags of `yurt manager`: OpenYurt's names and defaults.

use clap::{Arg, ArgAction, ArgMatches, Command};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use yurt_api::autonomy::parse_go_duration;
use yurt_telemetry::LoggingArgs;

fn go_duration(text: &str) -> Result<Duration, String> {
    parse_go_duration(text).ok_or_else(|| "is no duration as 15s or 1m30s".into())
}

/// Flags of `yurt manager`. Names and defaults are OpenYurt's; those without a meaning any more are accepted with a warning.
#[derive(Clone, Debug, clap::Args)]
pub struct ManagerArgs {
    /// Kubeconfig of the cluster; without it the pod's service account is used.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the manager, its lease, secrets and service accounts, and of the config maps of hubs.
    #[arg(long, default_value = "kube-system", value_name = "NAMESPACE")]
    pub working_namespace: String,
    /// Which controllers run: * for all, NAME for one, -NAME for not that one; names or aliases, separated by commas.
    #[arg(
        long,
        default_value = "*",
        value_name = "LIST",
        allow_hyphen_values = true
    )]
    pub controllers: Vec<String>,
    /// Webhooks of Kubernetes' own kinds that are not served: endpoints, endpointslice, node, pod, or *.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub disable_independent_webhooks: Vec<String>,
    /// Let controllers write with the manager's own identity instead of a service account each (yurt-manager-NAME).
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub disable_independent_service_accounts: bool,
    /// Features (NAME=true|false, separated by commas): RavenL7Proxy.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub feature_gates: Vec<String>,

    /// Address of the metrics (/metrics); 0: not served.
    #[arg(
        long,
        default_value = ":10271",
        value_name = "ADDRESS",
        help_heading = "Listeners"
    )]
    pub metrics_addr: String,
    /// Address of the health probes (/healthz, /readyz); 0: not served.
    #[arg(
        long,
        default_value = ":10272",
        value_name = "ADDRESS",
        help_heading = "Listeners"
    )]
    pub health_probe_addr: String,
    /// Port of the webhooks.
    #[arg(
        long,
        env = "WEBHOOK_PORT",
        default_value_t = 10273,
        value_name = "PORT",
        help_heading = "Listeners"
    )]
    pub webhook_port: u16,

    /// Work only while holding a lease, so that several managers can stand by for each other.
    #[arg(long, alias = "enable-leader-election", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Leader election")]
    pub leader_elect: bool,
    /// How long others wait for a holder of the lease that says nothing.
    #[arg(long, default_value = "15s", value_parser = go_duration, value_name = "DURATION", help_heading = "Leader election")]
    pub leader_elect_lease_duration: Duration,
    /// After so long without a renewal the holder stops; less than the lease duration.
    #[arg(long, default_value = "10s", value_parser = go_duration, value_name = "DURATION", help_heading = "Leader election")]
    pub leader_elect_renew_deadline: Duration,
    /// How long is waited between tries; less than the renew deadline.
    #[arg(long, default_value = "2s", value_parser = go_duration, value_name = "DURATION", help_heading = "Leader election")]
    pub leader_elect_retry_period: Duration,
    /// What is locked: leases.
    #[arg(
        long,
        default_value = "leases",
        value_name = "KIND",
        help_heading = "Leader election"
    )]
    pub leader_elect_resource_lock: String,
    /// Name of the lease.
    #[arg(
        long,
        default_value = "yurt-manager",
        value_name = "NAME",
        help_heading = "Leader election"
    )]
    pub leader_elect_resource_name: String,
    /// The lease is always in the working namespace, as in OpenYurt.
    #[arg(long, hide = true, value_name = "NAMESPACE")]
    pub leader_elect_resource_namespace: Option<String>,

    /// Requests per second to the API server, of all controllers together.
    #[arg(
        long,
        default_value_t = 50.0,
        value_name = "NUMBER",
        help_heading = "API server"
    )]
    pub rest_config_qps: f64,
    /// Requests that may be sent at once after a time of silence.
    #[arg(
        long,
        default_value_t = 100,
        value_name = "NUMBER",
        help_heading = "API server"
    )]
    pub rest_config_burst: u32,

    /// Give labels, annotations and taints of pools to their nodes.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Controllers")]
    pub enable_sync_nodepool_configurations: bool,
    /// The most nodes in a NodeBucket.
    #[arg(
        long,
        default_value_t = 100,
        value_name = "NUMBER",
        help_heading = "Controllers"
    )]
    pub max_nodes_per_bucket: usize,
    /// Image of what runs on nodes to upgrade static pods and to convert nodes.
    #[arg(
        long,
        default_value = "openyurt/node-servant:latest",
        value_name = "IMAGE",
        help_heading = "Controllers"
    )]
    pub node_servant_image: String,

    /// How long a new node may say nothing before it counts as not ready.
    #[arg(long, default_value = "60s", value_parser = go_duration, value_name = "DURATION", help_heading = "Node life cycle")]
    pub node_startup_grace_period: Duration,
    /// How long a running node may say nothing before it counts as not ready.
    #[arg(long, default_value = "40s", value_parser = go_duration, value_name = "DURATION", help_heading = "Node life cycle")]
    pub node_monitor_grace_period: Duration,
    /// Nodes of a healthy zone whose pods are evicted, per second.
    #[arg(
        long,
        default_value_t = 0.1,
        value_name = "NUMBER",
        help_heading = "Node life cycle"
    )]
    pub node_eviction_rate: f64,
    /// The same in a large zone that is unhealthy.
    #[arg(
        long,
        default_value_t = 0.01,
        value_name = "NUMBER",
        help_heading = "Node life cycle"
    )]
    pub secondary_node_eviction_rate: f64,
    /// A zone of more nodes is large.
    #[arg(
        long,
        default_value_t = 50,
        value_name = "NUMBER",
        help_heading = "Node life cycle"
    )]
    pub large_cluster_size_threshold: usize,
    /// The share of nodes that are not ready that makes a zone unhealthy.
    #[arg(
        long,
        default_value_t = 0.55,
        value_name = "NUMBER",
        help_heading = "Node life cycle"
    )]
    pub unhealthy_zone_threshold: f64,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub workers: WorkerArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub logging: LoggingArgs,
}

/// How many objects a controller works on at once: flag (`concurrent-<...>-workers`), the controller, its default.
pub const WORKER_FLAGS: &[(&str, &str, usize)] = &[
    (
        "concurrent-csr-approver-workers",
        "csr-approver-controller",
        3,
    ),
    (
        "concurrent-daemonpod-updater-workers",
        "daemon-pod-updater-controller",
        3,
    ),
    (
        "concurrent-endpoints-workers",
        "service-topology-endpoints-controller",
        3,
    ),
    (
        "concurrent-endpointslice-workers",
        "service-topology-endpointslice-controller",
        3,
    ),
    (
        "concurrent-gateway-dns-workers",
        "gateway-dns-controller",
        1,
    ),
    (
        "concurrent-gateway-internal-svc-workers",
        "gateway-internal-service-controller",
        1,
    ),
    (
        "concurrent-gateway-pickup-workers",
        "gateway-pickup-controller",
        1,
    ),
    (
        "concurrent-gateway-public-svc-workers",
        "gateway-public-service-controller",
        1,
    ),
    ("concurrent-hubleader-workers", "hubleader-controller", 3),
    (
        "concurrent-hubleaderconfig-workers",
        "hubleaderconfig-controller",
        3,
    ),
    (
        "concurrent-hubleaderrbac-workers",
        "hubleaderrbac-controller",
        1,
    ),
    (
        "concurrent-load-balancer-set-workers",
        "load-balancer-set-controller",
        3,
    ),
    (
        "concurrent-node-bucket-workers",
        "node-bucket-controller",
        3,
    ),
    ("concurrent-nodepool-workers", "nodepool-controller", 3),
    (
        "concurrent-platform-administrator-workers",
        "platform-admin-controller",
        3,
    ),
    ("concurrent-podbinding-workers", "pod-binding-controller", 5),
    (
        "concurrent-yurtappdaemon-workers",
        "yurt-app-daemon-controller",
        3,
    ),
    (
        "concurrent-yurtappoverrider-workers",
        "yurt-app-overrider-controller",
        3,
    ),
    (
        "concurrent-yurtappset-workers",
        "yurt-app-set-controller",
        3,
    ),
    (
        "concurrent-yurtnodeconversion-workers",
        "yurt-node-conversion-controller",
        3,
    ),
    (
        "concurrent-yurtstaticset-workers",
        "yurt-static-set-controller",
        3,
    ),
];

/// How many objects each controller works on at once, by the controller's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerArgs(pub BTreeMap<&'static str, usize>);

impl clap::Args for WorkerArgs {
    fn augment_args(command: Command) -> Command {
        command.args(WORKER_FLAGS.iter().map(|(flag, controller, default)| {
            Arg::new(*flag)
                .long(*flag)
                .value_name("NUMBER")
                .help(format!(
                    "Objects that {controller} works on at once [default: {default}]"
                ))
                .help_heading("Workers")
                .value_parser(clap::value_parser!(u16).range(1..=1000))
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for WorkerArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let of = |(flag, controller, default): &(&str, &'static str, usize)| {
            let given = matches.get_one::<u16>(flag).copied().map(usize::from);
            (*controller, given.unwrap_or(*default))
        };
        Ok(Self(WORKER_FLAGS.iter().map(of).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args;

    /// A row per flag, as `--help` has them.
    fn table() -> String {
        let command = ManagerArgs::augment_args(Command::new("manager"));
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let row = |arg: &Arg| {
            let default = arg.get_default_values().first();
            let default = default.map_or(String::new(), |text| format!("`{}`", text.display()));
            let help = arg
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default()
                .replace('|', "\\|");
            let flag = arg.get_long().unwrap_or_default();
            format!("| `--{flag}` | {default} | {help} |\n")
        };
        let rows: String = shown.map(row).collect();
        format!("| flag | default | what |\n|---|---|---|\n{rows}")
    }

    #[test]
    fn the_documentation_has_all_flags() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/manager.md");
        let text = std::fs::read_to_string(file).expect("docs/manager.md");
        let written = text
            .split_once("<!-- flags: made of --help, kept true by a test -->\n")
            .and_then(|(_, rest)| rest.split_once("<!-- end of flags -->"))
            .map(|(table, _)| table);
        let table = table();
        assert!(
            written == Some(table.as_str()),
            "docs/manager.md should have these flags:\n{table}"
        );
    }
}
