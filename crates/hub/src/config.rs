//! What the hub is told: flags (OpenYurt's names and defaults) and the checked configuration made of them.

use crate::deadline::parse_go_duration;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Flags of `yurt hub`. Names and defaults are OpenYurt's; those without a meaning any more are accepted with a warning.
#[derive(Clone, Debug, clap::Args)]
pub struct HubArgs {
    /// Address of the admin endpoints (/v1/healthz, /v1/readyz, /v1/status, /metrics).
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind_address: IpAddr,
    /// Port of the admin endpoints; 0 or less: not served.
    #[arg(long, default_value_t = 10267, allow_negative_numbers = true)]
    pub serve_port: i32,
    /// Address of the API proxy.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind_proxy_address: IpAddr,
    /// Port of the plain API proxy; 0 or less: not served.
    #[arg(long, default_value_t = 10261, allow_negative_numbers = true)]
    pub proxy_port: i32,
    /// Port of the TLS API proxy (needs --tls-cert and --tls-key); 0 or less: not served.
    #[arg(long, default_value_t = 10268, allow_negative_numbers = true)]
    pub proxy_secure_port: i32,
    /// API servers of the cloud, separated by commas (https only; a missing scheme means https).
    #[arg(long, value_delimiter = ',', required = true)]
    pub server_addr: Vec<String>,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Pool of this node. No effect yet: pools are not built.
    #[arg(long, default_value = "")]
    pub nodepool_name: String,
    /// How requests are spread over several API servers: rr or priority.
    #[arg(long, default_value = "rr")]
    pub lb_mode: String,
    /// Where the cache lives.
    #[arg(long, default_value = "/etc/kubernetes/cache/")]
    pub disk_cache_path: PathBuf,
    /// Where the hub keeps everything else.
    #[arg(long, default_value = "/var/lib/yurthub")]
    pub root_dir: PathBuf,
    /// Certificate of the node towards the cloud (PEM).
    #[arg(long)]
    pub client_cert: Option<PathBuf>,
    /// Private key of --client-cert (PEM, PKCS#8).
    #[arg(long)]
    pub client_key: Option<PathBuf>,
    /// CA that the API servers' certificates must be signed by (PEM).
    #[arg(long)]
    pub ca_file: Option<PathBuf>,
    /// Certificate of the TLS API proxy (PEM).
    #[arg(long)]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM, PKCS#8).
    #[arg(long)]
    pub tls_key: Option<PathBuf>,
    /// Most bytes of objects the cache may hold on disk (the least valuable go first).
    #[arg(long, default_value_t = 512 << 20)]
    pub cache_budget: u64,
    /// Shortest length of a watch answered locally that names no timeout of its own (Go duration).
    #[arg(long, default_value = "1800s")]
    pub min_request_timeout: String,
    /// edge, cloud or local; only edge is built.
    #[arg(long, default_value = "edge")]
    pub working_mode: String,
    /// Address of this node. No effect yet: it serves nothing to other nodes.
    #[arg(long)]
    pub node_ip: Option<String>,
    /// Serve on a dummy interface as well; not built yet: --bind-proxy-address is used.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_dummy_if: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub unused: UnusedArgs,
}

/// Flags of OpenYurt's hub that have no effect here (yet). Kept so that existing unit files and manifests go on working.
#[derive(Clone, Debug, Default, clap::Args)]
#[allow(missing_docs)]
pub struct UnusedArgs {
    #[arg(long, hide = true)]
    pub namespace: Option<String>,
    #[arg(long, hide = true)]
    pub multiplexer_port: Option<String>,
    #[arg(long, hide = true)]
    pub heartbeat_interval_seconds: Option<String>,
    #[arg(long, hide = true)]
    pub heartbeat_timeout_seconds: Option<String>,
    #[arg(long, hide = true)]
    pub heartbeat_failed_retry: Option<String>,
    #[arg(long, hide = true)]
    pub heartbeat_healthy_threshold: Option<String>,
    #[arg(long, hide = true)]
    pub kubelet_health_grace_period: Option<String>,
    #[arg(long, hide = true)]
    pub gc_frequency: Option<String>,
    #[arg(long, hide = true)]
    pub host_control_plane_address: Option<String>,
    #[arg(long, hide = true)]
    pub bootstrap_mode: Option<String>,
    #[arg(long, hide = true)]
    pub bootstrap_file: Option<String>,
    #[arg(long, hide = true)]
    pub join_token: Option<String>,
    #[arg(long, hide = true)]
    pub hub_cert_organizations: Option<String>,
    #[arg(long, hide = true)]
    pub discovery_token_ca_cert_hash: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub discovery_token_unsafe_skip_ca_verification: Option<String>,
    #[arg(long, hide = true)]
    pub dummy_if_name: Option<String>,
    #[arg(long, hide = true)]
    pub dummy_if_ip: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_resource_filter: Option<String>,
    #[arg(long, hide = true)]
    pub disabled_resource_filters: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_node_pool: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_pool_service_topology: Option<String>,
    #[arg(long, hide = true)]
    pub pool_scope_resources: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub profiling: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_iptables: Option<String>,
    #[arg(long, hide = true)]
    pub max_requests_in_flight: Option<String>,
    #[arg(long = "v", hide = true)]
    pub verbosity: Option<String>,
    #[arg(long, hide = true)]
    pub vmodule: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub logtostderr: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub alsologtostderr: Option<String>,
    #[arg(long, hide = true)]
    pub stderrthreshold: Option<String>,
}

impl UnusedArgs {
    /// Names of the flags that were given.
    fn given(&self) -> Vec<&'static str> {
        [
            ("namespace", &self.namespace),
            ("multiplexer-port", &self.multiplexer_port),
            (
                "heartbeat-interval-seconds",
                &self.heartbeat_interval_seconds,
            ),
            ("heartbeat-timeout-seconds", &self.heartbeat_timeout_seconds),
            ("heartbeat-failed-retry", &self.heartbeat_failed_retry),
            (
                "heartbeat-healthy-threshold",
                &self.heartbeat_healthy_threshold,
            ),
            (
                "kubelet-health-grace-period",
                &self.kubelet_health_grace_period,
            ),
            ("gc-frequency", &self.gc_frequency),
            (
                "host-control-plane-address",
                &self.host_control_plane_address,
            ),
            ("bootstrap-mode", &self.bootstrap_mode),
            ("bootstrap-file", &self.bootstrap_file),
            ("join-token", &self.join_token),
            ("hub-cert-organizations", &self.hub_cert_organizations),
            (
                "discovery-token-ca-cert-hash",
                &self.discovery_token_ca_cert_hash,
            ),
            (
                "discovery-token-unsafe-skip-ca-verification",
                &self.discovery_token_unsafe_skip_ca_verification,
            ),
            ("dummy-if-name", &self.dummy_if_name),
            ("dummy-if-ip", &self.dummy_if_ip),
            ("enable-resource-filter", &self.enable_resource_filter),
            ("disabled-resource-filters", &self.disabled_resource_filters),
            ("enable-node-pool", &self.enable_node_pool),
            (
                "enable-pool-service-topology",
                &self.enable_pool_service_topology,
            ),
            ("pool-scope-resources", &self.pool_scope_resources),
            ("profiling", &self.profiling),
            ("enable-iptables", &self.enable_iptables),
            ("max-requests-in-flight", &self.max_requests_in_flight),
            ("v", &self.verbosity),
            ("vmodule", &self.vmodule),
            ("logtostderr", &self.logtostderr),
            ("alsologtostderr", &self.alsologtostderr),
            ("stderrthreshold", &self.stderrthreshold),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.is_some().then_some(name))
        .collect()
    }
}

/// What to say of a flag that was given in vain.
fn in_vain(flag: &str) -> String {
    match flag {
        "v" | "vmodule" => {
            format!("flag --{flag} has no effect and is ignored: --log says what is logged")
        }
        "dummy-if-name" | "dummy-if-ip" => {
            format!(
                "flag --{flag} has no effect and is ignored: the dummy interface is not built yet"
            )
        }
        _ => format!("flag --{flag} has no effect and is ignored"),
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag}: {why}")]
pub struct ConfigError {
    /// The flag at fault.
    pub flag: &'static str,
    /// What is wrong with it.
    pub why: String,
}

fn refuse(flag: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError {
        flag,
        why: why.into(),
    }
}

/// How requests are spread over several API servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbMode {
    /// One after the other.
    RoundRobin,
    /// The first of the list that is up.
    Priority,
}

/// Where the PEM files of one identity are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPairFiles {
    /// Certificate.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// Sizes and times that bound the hub (design rule R10).
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Largest request body that is passed on.
    pub request_body: usize,
    /// Request bodies up to this size are held, so that they can be sent again to another server.
    pub replayable_body: usize,
    /// Largest answer that is looked at for the cache; larger ones pass by.
    pub learned_body: usize,
    /// Bytes of answers held at one time for the cache, all together.
    pub learning: usize,
    /// Largest frame of a watch.
    pub watch_frame: usize,
    /// A client that takes nothing for this long is cut.
    pub stalled_client: Duration,
    /// An answer of the cloud that is no followed stream is broken off when nothing of it came for this long.
    pub stalled_answer: Duration,
    /// Bytes of lists answered by the node itself that wait for their clients at one time.
    pub lists: usize,
    /// Requests under way at one time.
    pub in_flight: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            request_body: 16 << 20,
            replayable_body: 256 << 10,
            learned_body: 16 << 20,
            learning: 24 << 20,
            watch_frame: 8 << 20,
            stalled_client: Duration::from_secs(30),
            stalled_answer: Duration::from_secs(60),
            lists: 32 << 20,
            in_flight: 2048,
        }
    }
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node_name: String,
    /// API servers as `host:port`, in the order of the flag.
    pub servers: Vec<String>,
    /// How they share the load.
    pub lb_mode: LbMode,
    /// Admin endpoints.
    pub admin: Option<SocketAddr>,
    /// Plain API proxy.
    pub proxy: Option<SocketAddr>,
    /// TLS API proxy.
    pub secure_proxy: Option<SocketAddr>,
    /// Directory of the cache.
    pub cache_dir: PathBuf,
    /// Directory of everything else.
    pub root_dir: PathBuf,
    /// Bytes of live objects the cache may hold.
    pub cache_budget: u64,
    /// CA of the cloud.
    pub ca_file: PathBuf,
    /// The node's identity towards the cloud; without one only callers with credentials of their own are served.
    pub node_certificate: Option<KeyPairFiles>,
    /// The identity of the TLS API proxy.
    pub serving_certificate: Option<KeyPairFiles>,
    /// Length of a local watch that names none (doubled at random).
    pub min_request_timeout: Duration,
    /// Sizes and times.
    pub bounds: Bounds,
    /// Warnings to log at start-up.
    pub warnings: Vec<String>,
    /// What a usual command line asks for and is not built yet, to log at start-up.
    pub notes: Vec<String>,
}

impl TryFrom<HubArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: HubArgs) -> Result<Self, ConfigError> {
        let mut warnings: Vec<String> = args.unused.given().into_iter().map(in_vain).collect();
        let mut notes = Vec::new();
        if args.enable_dummy_if {
            notes.push(format!(
                "--enable-dummy-if: the dummy interface is not built yet; clients are served on {} only",
                args.bind_proxy_address
            ));
        }
        if !args.nodepool_name.is_empty() {
            notes.push("--nodepool-name has no effect yet: pools are not built".into());
        }
        if args.node_ip.is_some() {
            notes.push("--node-ip has no effect yet: nothing is served to other nodes".into());
        }
        if args.node_name.is_empty() {
            return Err(refuse("node-name", "must not be empty"));
        }
        match args.working_mode.as_str() {
            "edge" => {}
            "cloud" | "local" => {
                return Err(refuse(
                    "working-mode",
                    format!("{} is not built yet; only edge is", args.working_mode),
                ));
            }
            other => {
                return Err(refuse(
                    "working-mode",
                    format!("{other:?} is none of edge, cloud, local"),
                ));
            }
        }
        let lb_mode = match args.lb_mode.as_str() {
            "rr" => LbMode::RoundRobin,
            "priority" => LbMode::Priority,
            other => {
                return Err(refuse(
                    "lb-mode",
                    format!("{other:?} is neither rr nor priority"),
                ));
            }
        };
        let mut servers = Vec::new();
        for server in args
            .server_addr
            .iter()
            .map(|s| s.trim())
            .filter(|s| !s.is_empty())
        {
            let server = server_authority(server).map_err(|why| refuse("server-addr", why))?;
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        if servers.is_empty() {
            return Err(refuse("server-addr", "names no API server"));
        }
        let ca_file = args.ca_file.ok_or_else(|| {
            refuse(
                "ca-file",
                "is needed: the CA that signs the API servers' certificates",
            )
        })?;
        let node_certificate = pair(
            args.client_cert,
            args.client_key,
            "client-cert",
            "client-key",
        )?;
        if node_certificate.is_none() {
            warnings.push(
                "no --client-cert: only callers with a bearer token of their own are served".into(),
            );
        }
        let serving_certificate = pair(args.tls_cert, args.tls_key, "tls-cert", "tls-key")?;
        let secure_proxy = address(
            args.bind_proxy_address,
            args.proxy_secure_port,
            "proxy-secure-port",
        )?;
        if serving_certificate.is_none() && secure_proxy.is_some() {
            warnings.push("no --tls-cert: the TLS proxy is not served".into());
        }
        let min_request_timeout = parse_go_duration(&args.min_request_timeout)
            .filter(|d| *d >= Duration::from_secs(1))
            .ok_or_else(|| {
                refuse(
                    "min-request-timeout",
                    "must be a duration of at least 1s, e.g. 1800s",
                )
            })?;
        if args.cache_budget < 1 << 20 {
            return Err(refuse("cache-budget", "must be at least 1048576 bytes"));
        }
        Ok(Self {
            node_name: args.node_name,
            servers,
            lb_mode,
            admin: address(args.bind_address, args.serve_port, "serve-port")?,
            proxy: address(args.bind_proxy_address, args.proxy_port, "proxy-port")?,
            secure_proxy: secure_proxy.filter(|_| serving_certificate.is_some()),
            cache_dir: args.disk_cache_path,
            root_dir: args.root_dir,
            cache_budget: args.cache_budget,
            ca_file,
            node_certificate,
            serving_certificate,
            min_request_timeout,
            bounds: Bounds::default(),
            warnings,
            notes,
        })
    }
}

fn pair(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    cert_flag: &'static str,
    key_flag: &'static str,
) -> Result<Option<KeyPairFiles>, ConfigError> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(KeyPairFiles { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(refuse(key_flag, format!("is needed with --{cert_flag}"))),
        (None, Some(_)) => Err(refuse(cert_flag, format!("is needed with --{key_flag}"))),
    }
}

fn address(ip: IpAddr, port: i32, flag: &'static str) -> Result<Option<SocketAddr>, ConfigError> {
    if port <= 0 {
        return Ok(None);
    }
    let port = u16::try_from(port).map_err(|_| refuse(flag, format!("{port} is no port")))?;
    Ok(Some(SocketAddr::new(ip, port)))
}

/// `https://host[:port][/]`, `host:port` or `host` to `host:port`.
fn server_authority(text: &str) -> Result<String, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => ("https", text),
    };
    if !scheme.eq_ignore_ascii_case("https") {
        return Err(format!("{text}: only https is allowed, not {scheme}"));
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let authority: http::uri::Authority = rest
        .parse()
        .map_err(|_| format!("{text}: is not a host and port"))?;
    if authority.host().is_empty() || rest.contains('@') {
        return Err(format!("{text}: is not a host and port"));
    }
    match authority.port_u16() {
        Some(_) => Ok(authority.to_string()),
        None if authority.as_str() == authority.host() => Ok(format!("{}:443", authority.host())),
        None => Err(format!("{text}: the port is none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        hub: HubArgs,
    }

    fn config(extra: &[&str]) -> Result<Config, ConfigError> {
        let mut args = vec![
            "hub",
            "--node-name=edge-1",
            "--server-addr=https://a:6443",
            "--ca-file=ca.crt",
        ];
        args.extend(extra);
        Config::try_from(
            Cli::try_parse_from(args)
                .map_err(|e| refuse("parse", e.to_string()))?
                .hub,
        )
    }

    #[test]
    fn defaults_are_openyurts() {
        let config = config(&[
            "--client-cert=c",
            "--client-key=k",
            "--tls-cert=c",
            "--tls-key=k",
        ])
        .unwrap();
        assert_eq!(config.admin.unwrap().to_string(), "127.0.0.1:10267");
        assert_eq!(config.proxy.unwrap().to_string(), "127.0.0.1:10261");
        assert_eq!(config.secure_proxy.unwrap().to_string(), "127.0.0.1:10268");
        assert_eq!(config.servers, ["a:6443"]);
        assert_eq!(config.lb_mode, LbMode::RoundRobin);
        assert_eq!(config.min_request_timeout, Duration::from_secs(1800));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        // OpenYurt's default is to serve on a dummy interface.
        assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
        assert!(config.notes[0].contains("--enable-dummy-if"));
    }

    #[test]
    fn an_existing_unit_file_goes_on_working() {
        let config = config(&[
            "--v=2",
            "--heartbeat-interval-seconds=10",
            "--enable-iptables",
            "--max-requests-in-flight=250",
            "--enable-dummy-if=false",
            "--nodepool-name=hangzhou",
            "--bootstrap-file=/x",
            "--proxy-port=0",
            "--logtostderr",
        ])
        .unwrap();
        assert_eq!(config.proxy, None);
        for flag in [
            "--v ",
            "--heartbeat-interval-seconds",
            "--enable-iptables",
            "--bootstrap-file",
            "--logtostderr",
        ] {
            assert!(
                config.warnings.iter().any(|w| w.contains(flag)),
                "{flag}: {:?}",
                config.warnings
            );
        }
        assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
        assert!(config.notes[0].contains("--nodepool-name"));
    }

    #[test]
    fn every_hidden_flag_says_that_it_is_in_vain() {
        use clap::CommandFactory;
        let hidden: Vec<String> = Cli::command()
            .get_arguments()
            .filter(|flag| flag.is_hide_set())
            .filter_map(|flag| flag.get_long().map(str::to_owned))
            .collect();
        assert!(hidden.len() > 20, "{hidden:?}");
        for flag in hidden {
            let config = config(&[&format!("--{flag}=1")]).unwrap();
            assert!(
                config
                    .warnings
                    .iter()
                    .any(|w| w.contains(&format!("--{flag} "))),
                "{flag}: {:?}",
                config.warnings
            );
        }
    }

    #[test]
    fn servers() {
        let ok = |text| server_authority(text).unwrap();
        assert_eq!(ok("a"), "a:443");
        assert_eq!(ok("a:6443"), "a:6443");
        assert_eq!(ok("https://10.0.0.1:6443/"), "10.0.0.1:6443");
        assert_eq!(ok("https://[fd00::1]:6443"), "[fd00::1]:6443");
        assert_eq!(ok("HTTPS://a"), "a:443");
        for bad in [
            "http://a",
            "ftp://a",
            "https://",
            "https://u@a",
            "a:99999",
            "a/b",
            "a b",
            "",
        ] {
            assert!(server_authority(bad).is_err(), "{bad}");
        }
        let many = config(&["--server-addr=b,https://c:1,b:443"]).unwrap();
        assert_eq!(many.servers, ["a:6443", "b:443", "c:1"]);
    }

    #[test]
    fn refusals_name_the_flag() {
        for (extra, flag) in [
            (vec!["--lb-mode=random"], "lb-mode"),
            (vec!["--working-mode=cloud"], "working-mode"),
            (vec!["--client-cert=c"], "client-key"),
            (vec!["--tls-key=k"], "tls-cert"),
            (vec!["--proxy-port=70000"], "proxy-port"),
            (vec!["--min-request-timeout=soon"], "min-request-timeout"),
            (vec!["--server-addr=http://a"], "server-addr"),
            (vec!["--cache-budget=5"], "cache-budget"),
        ] {
            assert_eq!(config(&extra).unwrap_err().flag, flag);
        }
    }
}
