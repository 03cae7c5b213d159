//! The flags of `yurt hub`: OpenYurt's names and defaults.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

/// Flags of `yurt hub`. Names and defaults are OpenYurt's; those without a meaning any more are accepted with a warning.
#[derive(Clone, Debug, clap::Args)]
pub struct HubArgs {
    /// edge (a node behind a link that may be cut), cloud (a node beside the API servers: no cache, no offline answers) or local
    /// (a node of a host cluster that only forwards a tenant's service address to its API servers).
    #[arg(long, default_value = "edge")]
    pub working_mode: String,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Pool of this node; empty: what the Node's label apps.openyurt.io/nodepool says.
    #[arg(long, default_value = "")]
    pub nodepool_name: String,
    /// Address of this node, for the other nodes of its pool; empty: the address of the default route.
    #[arg(long)]
    pub node_ip: Option<IpAddr>,
    /// Namespace of the config maps yurt-hub-cfg and leader-hub-POOL.
    #[arg(long, default_value = "kube-system")]
    pub namespace: String,
    /// API servers of the cloud, separated by commas (https only; a missing scheme means https). In local mode the address and
    /// port of the tenant's API server service.
    #[arg(long, value_delimiter = ',', required = true)]
    pub server_addr: Vec<String>,
    /// How requests are spread over several API servers: rr or priority.
    #[arg(long, default_value = "rr")]
    pub lb_mode: String,
    /// Address and port of the host cluster's API server (local mode).
    #[arg(long)]
    pub host_control_plane_address: Option<String>,

    /// Address of the admin endpoints (/v1/healthz, /v1/readyz, /v1/status, /metrics).
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), help_heading = "Listeners")]
    pub bind_address: IpAddr,
    /// Port of the admin endpoints; 0 or less: not served.
    #[arg(
        long,
        default_value_t = 10267,
        allow_negative_numbers = true,
        help_heading = "Listeners"
    )]
    pub serve_port: i32,
    /// Address of the API proxy.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), help_heading = "Listeners")]
    pub bind_proxy_address: IpAddr,
    /// Port of the plain API proxy; 0 or less: not served.
    #[arg(
        long,
        default_value_t = 10261,
        allow_negative_numbers = true,
        help_heading = "Listeners"
    )]
    pub proxy_port: i32,
    /// Port of the TLS API proxy; 0 or less: not served.
    #[arg(
        long,
        default_value_t = 10268,
        allow_negative_numbers = true,
        help_heading = "Listeners"
    )]
    pub proxy_secure_port: i32,
    /// Port on the node's address for the other nodes of the pool; 0 or less: not served.
    #[arg(
        long,
        default_value_t = 10269,
        allow_negative_numbers = true,
        help_heading = "Listeners"
    )]
    pub multiplexer_port: i32,
    /// Serve on a dummy interface as well, which pods can reach.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Listeners")]
    pub enable_dummy_if: bool,
    /// Name of the dummy interface (15 characters at most).
    #[arg(long, default_value = "hub-dummy0", help_heading = "Listeners")]
    pub dummy_if_name: String,
    /// Address of the dummy interface (169.254.2.1, or fd00::2:1 when --bind-address is IPv6).
    #[arg(long, help_heading = "Listeners")]
    pub dummy_if_ip: Option<IpAddr>,
    /// Let callers without credentials act as the node, whoever they are, as OpenYurt does: every pod that reaches the plain
    /// listeners then has the node's rights. For clusters that rely on it, until they do not.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Listeners")]
    pub unsafe_open_proxy: bool,

    /// How the node's certificate is had: token (by bootstrap credentials and a CSR) or kubeletcertificate (the kubelet's own).
    #[arg(long, default_value = "token", help_heading = "Certificates")]
    pub bootstrap_mode: String,
    /// Kubeconfig with bootstrap credentials; ROOT-DIR/bootstrap-hub.conf when not given.
    #[arg(long, help_heading = "Certificates")]
    pub bootstrap_file: Option<PathBuf>,
    /// Bootstrap token (id.secret).
    #[arg(
        long,
        env = "YURT_JOIN_TOKEN",
        hide_env_values = true,
        help_heading = "Certificates"
    )]
    pub join_token: Option<String>,
    /// Hashes of CA public keys that discovery by token may trust (sha256:HEX), separated by commas.
    #[arg(long, value_delimiter = ',', help_heading = "Certificates")]
    pub discovery_token_ca_cert_hash: Vec<String>,
    /// Trust whatever CA the cluster shows at discovery by token.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Certificates")]
    pub discovery_token_unsafe_skip_ca_verification: bool,
    /// More organizations (O) of the client certificate, separated by commas; openyurt:tenant:NAMESPACE isolates a tenant.
    #[arg(long, value_delimiter = ',', help_heading = "Certificates")]
    pub hub_cert_organizations: Vec<String>,
    /// Client certificate of the node (PEM) that somebody else renews; with --client-key, instead of a bootstrap.
    #[arg(long, help_heading = "Certificates")]
    pub client_cert: Option<PathBuf>,
    /// Private key of --client-cert (PEM).
    #[arg(long, help_heading = "Certificates")]
    pub client_key: Option<PathBuf>,
    /// CA of the API servers (PEM); ROOT-DIR/pki/ca.crt when not given.
    #[arg(long, help_heading = "Certificates")]
    pub ca_file: Option<PathBuf>,
    /// Certificate of the TLS listeners (PEM) that somebody else renews; with --tls-key, instead of a CSR.
    #[arg(long, help_heading = "Certificates")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM).
    #[arg(long, help_heading = "Certificates")]
    pub tls_key: Option<PathBuf>,

    /// Where the cache lives.
    #[arg(
        long,
        default_value = "/etc/kubernetes/cache/",
        help_heading = "Files and cache"
    )]
    pub disk_cache_path: PathBuf,
    /// Where the hub keeps everything else.
    #[arg(
        long,
        default_value = "/var/lib/yurthub",
        help_heading = "Files and cache"
    )]
    pub root_dir: PathBuf,
    /// Most bytes of objects the cache may hold on disk (the least valuable go first).
    #[arg(long, default_value_t = 512 << 20, help_heading = "Files and cache")]
    pub cache_budget: u64,
    /// Minutes between looks for what nobody needs any more.
    #[arg(long, default_value_t = 120, help_heading = "Files and cache")]
    pub gc_frequency: u32,
    /// Shortest length of a watch answered locally that names no timeout of its own (Go duration).
    #[arg(long, default_value = "1800s", help_heading = "Files and cache")]
    pub min_request_timeout: String,

    /// Seconds between renewals of the node's lease.
    #[arg(long, default_value_t = 10, help_heading = "Heartbeat")]
    pub heartbeat_interval_seconds: u32,
    /// Seconds that one renewal may take.
    #[arg(long, default_value_t = 2, help_heading = "Heartbeat")]
    pub heartbeat_timeout_seconds: u32,
    /// Renewals that are tried before a round counts as failed.
    #[arg(long, default_value_t = 3, help_heading = "Heartbeat")]
    pub heartbeat_failed_retry: u32,
    /// Successful rounds after which an API server counts as healthy again. The link's own signals decide that here.
    #[arg(long, default_value_t = 2, help_heading = "Heartbeat")]
    pub heartbeat_healthy_threshold: u32,
    /// A kubelet that renewed nothing for so long is dead: its node's lease is not renewed any more (Go duration).
    #[arg(long, default_value = "40s", help_heading = "Heartbeat")]
    pub kubelet_health_grace_period: String,

    /// Filter what components of the node read (see docs/filters.md).
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Pool")]
    pub enable_resource_filter: bool,
    /// Filters not to be applied, separated by commas; * for all.
    #[arg(long, value_delimiter = ',', help_heading = "Pool")]
    pub disabled_resource_filters: Vec<String>,
    /// File with rules (YAML or JSON, see docs/rules.md) beside those of the config map yurt-hub-cfg; read again when it changes.
    #[arg(long, value_name = "FILE", help_heading = "Pool")]
    pub filter_rules: Option<PathBuf>,
    /// Read the nodes of the pool from NodeBuckets instead of the NodePool.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Pool")]
    pub enable_pool_service_topology: bool,
    /// Resources (GROUP/VERSION/RESOURCE, separated by commas) shared within the pool, beside services and endpointslices.
    #[arg(long, value_delimiter = ',', help_heading = "Pool")]
    pub pool_scope_resources: Vec<String>,

    /// The owner's token for upgrades by REST; made when there is none. ROOT-DIR/ota.token when not given.
    #[arg(long, help_heading = "Upgrades")]
    pub ota_token_file: Option<PathBuf>,
    /// The owner's policy for upgrades: when, which, and whether they are to be confirmed. ROOT-DIR/ota-policy.yaml when not given.
    #[arg(long, value_name = "FILE", help_heading = "Upgrades")]
    pub ota_policy: Option<PathBuf>,
    /// Token of a service account that may patch pods: the hub sets old images again with it when an upgrade fails.
    #[arg(long, help_heading = "Upgrades")]
    pub ota_rollback_token_file: Option<PathBuf>,
    /// Let every caller on the node's loopback ask for upgrades, pods with hostNetwork too, as OpenYurt does. For clusters that
    /// rely on it, until they do not.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Upgrades")]
    pub ota_allow_anonymous_loopback: bool,
    /// Where the kubelet's static pods are.
    #[arg(
        long,
        default_value = "/etc/kubernetes/manifests",
        help_heading = "Upgrades"
    )]
    pub static_pod_path: PathBuf,

    /// Serve debugging endpoints beside the admin endpoints.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", help_heading = "Debugging")]
    pub profiling: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub unused: UnusedArgs,
}

/// Flags of OpenYurt's hub that have no effect here. Kept so that existing unit files and manifests go on working.
#[derive(Clone, Debug, Default, clap::Args)]
#[allow(missing_docs)]
pub struct UnusedArgs {
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_node_pool: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_iptables: Option<String>,
    #[arg(long, hide = true)]
    pub max_requests_in_flight: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub access_server_through_hub: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_coordinator: Option<String>,
    #[arg(long, hide = true)]
    pub coordinator_server_addr: Option<String>,
    #[arg(long, hide = true)]
    pub coordinator_storage_addr: Option<String>,
    #[arg(long, hide = true)]
    pub coordinator_storage_prefix: Option<String>,
    #[arg(long = "v", short = 'v', hide = true)]
    pub verbosity: Option<String>,
    #[arg(long, hide = true)]
    pub vmodule: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub logtostderr: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub alsologtostderr: Option<String>,
    #[arg(long, hide = true)]
    pub stderrthreshold: Option<String>,
    #[arg(long, hide = true)]
    pub log_dir: Option<String>,
    #[arg(long, hide = true)]
    pub log_file: Option<String>,
    #[arg(long, hide = true)]
    pub log_file_max_size: Option<String>,
    #[arg(long, hide = true)]
    pub log_flush_frequency: Option<String>,
    #[arg(long, hide = true)]
    pub log_backtrace_at: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub add_dir_header: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub one_output: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub skip_headers: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub skip_log_headers: Option<String>,
}

impl UnusedArgs {
    /// Names of the flags that were given.
    pub(super) fn given(&self) -> Vec<&'static str> {
        [
            ("enable-node-pool", &self.enable_node_pool),
            ("enable-iptables", &self.enable_iptables),
            ("max-requests-in-flight", &self.max_requests_in_flight),
            ("access-server-through-hub", &self.access_server_through_hub),
            ("enable-coordinator", &self.enable_coordinator),
            ("coordinator-server-addr", &self.coordinator_server_addr),
            ("coordinator-storage-addr", &self.coordinator_storage_addr),
            (
                "coordinator-storage-prefix",
                &self.coordinator_storage_prefix,
            ),
            ("v", &self.verbosity),
            ("vmodule", &self.vmodule),
            ("logtostderr", &self.logtostderr),
            ("alsologtostderr", &self.alsologtostderr),
            ("stderrthreshold", &self.stderrthreshold),
            ("log-dir", &self.log_dir),
            ("log-file", &self.log_file),
            ("log-file-max-size", &self.log_file_max_size),
            ("log-flush-frequency", &self.log_flush_frequency),
            ("log-backtrace-at", &self.log_backtrace_at),
            ("add-dir-header", &self.add_dir_header),
            ("one-output", &self.one_output),
            ("skip-headers", &self.skip_headers),
            ("skip-log-headers", &self.skip_log_headers),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.is_some().then_some(name))
        .collect()
    }
}
