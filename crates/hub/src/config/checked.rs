//! From flags to the configuration: what is given is checked, what is not is filled in.

use super::{
    Bootstrap, Bounds, Config, ConfigError, DummyInterface, Heartbeat, HubArgs, KeyPairFiles,
    LbMode, WorkingMode,
};
use crate::{
    certificates::{discovery::Pin, token::Token},
    deadline::parse_go_duration,
    ota::OtaConfig,
};
use clap::Parser;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use yurt_wire::Gvr;

/// What to say of a flag that was given in vain.
fn in_vain(flag: &str) -> String {
    match flag {
        "v" | "vmodule" => {
            format!("flag --{flag} has no effect and is ignored: --log says what is logged")
        }
        flag if flag.starts_with("coordinator-") || flag == "enable-coordinator" => {
            format!(
                "flag --{flag} has no effect and is ignored: the coordinator is part of the hub and needs no server of its own"
            )
        }
        _ => format!("flag --{flag} has no effect and is ignored"),
    }
}

fn refuse(flag: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError {
        flag,
        why: why.into(),
    }
}

/// OpenYurt's address of the hub for pods.
const DUMMY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
const DUMMY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1);
/// Longest name of a network interface that Linux takes.
const INTERFACE_NAME: usize = 15;

impl TryFrom<HubArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: HubArgs) -> Result<Self, ConfigError> {
        let mut warnings: Vec<String> = args.unused.given().into_iter().map(in_vain).collect();
        if args.node_name.is_empty() {
            return Err(refuse("node-name", "must not be empty"));
        }
        let working_mode = match args.working_mode.as_str() {
            "edge" => WorkingMode::Edge,
            "cloud" => WorkingMode::Cloud,
            "local" => WorkingMode::Local,
            other => {
                return Err(refuse(
                    "working-mode",
                    format!("{other:?} is none of edge, cloud, local"),
                ));
            }
        };
        if working_mode == WorkingMode::Local && args.host_control_plane_address.is_none() {
            return Err(refuse(
                "host-control-plane-address",
                "is needed in local mode: address and port of the host cluster's API server",
            ));
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
        for server in trimmed(&args.server_addr) {
            let server = server_authority(server).map_err(|why| refuse("server-addr", why))?;
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        if servers.is_empty() {
            return Err(refuse("server-addr", "names no API server"));
        }
        let node_certificate = pair(
            args.client_cert,
            args.client_key,
            "client-cert",
            "client-key",
        )?;
        let serving_certificate = pair(args.tls_cert, args.tls_key, "tls-cert", "tls-key")?;
        let by_others = node_certificate.is_some() && serving_certificate.is_some();
        let bootstrap = match args.bootstrap_mode.as_str() {
            _ if by_others => None,
            "token" => {
                let ca_hashes: Vec<String> = trimmed(&args.discovery_token_ca_cert_hash)
                    .map(str::to_owned)
                    .collect();
                let skip = args.discovery_token_unsafe_skip_ca_verification;
                if args
                    .join_token
                    .as_deref()
                    .is_some_and(|token| Token::parse(token).is_none())
                {
                    return Err(refuse(
                        "join-token",
                        "is not of the form abcdef.0123456789abcdef",
                    ));
                }
                if let Some(bad) = ca_hashes.iter().find(|hash| Pin::parse(hash).is_none()) {
                    return Err(refuse(
                        "discovery-token-ca-cert-hash",
                        format!("{bad:?} is not sha256: and 64 hexadecimal digits"),
                    ));
                }
                if args.join_token.is_some() && ca_hashes.is_empty() && !skip {
                    return Err(refuse(
                        "discovery-token-ca-cert-hash",
                        "is needed with --join-token, so that no other cluster is joined by mistake: sha256:HEX of the CA's \
                         public key (or --discovery-token-unsafe-skip-ca-verification)",
                    ));
                }
                if skip {
                    warnings.push(
                        "--discovery-token-unsafe-skip-ca-verification: whatever CA the cluster shows is trusted".into(),
                    );
                }
                Some(Bootstrap::Token {
                    token: args.join_token,
                    ca_hashes,
                    unsafe_skip_ca_verification: skip,
                    file: args
                        .bootstrap_file
                        .unwrap_or_else(|| args.root_dir.join("bootstrap-hub.conf")),
                })
            }
            "kubeletcertificate" => Some(Bootstrap::Kubelet),
            other => {
                return Err(refuse(
                    "bootstrap-mode",
                    format!("{other:?} is neither token nor kubeletcertificate"),
                ));
            }
        };
        let dummy = match (args.enable_dummy_if, working_mode) {
            (true, WorkingMode::Edge | WorkingMode::Cloud) => Some(dummy_interface(
                args.dummy_if_name,
                args.dummy_if_ip,
                args.bind_address,
            )?),
            _ => None,
        };
        let pod_address = dummy
            .as_ref()
            .map_or(args.bind_proxy_address, |d| d.address);
        let mut pool_scope = Vec::new();
        for text in ["/v1/services", "discovery.k8s.io/v1/endpointslices"]
            .into_iter()
            .chain(trimmed(&args.pool_scope_resources))
        {
            let gvr = pool_scope_resource(text).ok_or_else(|| {
                refuse(
                    "pool-scope-resources",
                    format!("{text:?} is not GROUP/VERSION/RESOURCE"),
                )
            })?;
            if !pool_scope.contains(&gvr) {
                pool_scope.push(gvr);
            }
        }
        if args.unsafe_open_proxy {
            warnings.push(
                "--unsafe-open-proxy: every process and pod that reaches a plain listener acts with this node's rights; take it \
                 away as soon as your callers bring tokens"
                    .into(),
            );
        }
        if args.ota_allow_anonymous_loopback {
            warnings.push(
                "--ota-allow-anonymous-loopback: every process and pod that reaches the admin port on this node's loopback may have \
                 pods upgraded; take it away as soon as your callers bring the owner's token"
                    .into(),
            );
        }
        let min_request_timeout = parse_go_duration(&args.min_request_timeout)
            .filter(|d| *d >= Duration::from_secs(1))
            .ok_or_else(|| {
                refuse(
                    "min-request-timeout",
                    "must be a duration of at least 1s, e.g. 1800s",
                )
            })?;
        let kubelet_grace = parse_go_duration(&args.kubelet_health_grace_period)
            .filter(|d| *d >= Duration::from_secs(1))
            .ok_or_else(|| {
                refuse(
                    "kubelet-health-grace-period",
                    "must be a duration of at least 1s, e.g. 40s",
                )
            })?;
        let seconds = |flag: &'static str, value: u32| match value {
            0 => Err(refuse(flag, "must be at least 1")),
            value => Ok(Duration::from_secs(value.into())),
        };
        if args.cache_budget < 1 << 20 {
            return Err(refuse("cache-budget", "must be at least 1048576 bytes"));
        }
        let port = |ip, port, flag| address(ip, port, flag);
        Ok(Self {
            working_mode,
            node_name: args.node_name,
            pool: args.nodepool_name,
            node_ip: args.node_ip,
            namespace: args.namespace,
            host_control_plane: args
                .host_control_plane_address
                .map(|text| server_authority(&text))
                .transpose()
                .map_err(|why| refuse("host-control-plane-address", why))?,
            servers,
            lb_mode,
            admin: port(args.bind_address, args.serve_port, "serve-port")?,
            proxy: port(args.bind_proxy_address, args.proxy_port, "proxy-port")?,
            bind_proxy: args.bind_proxy_address,
            secure_proxy: port(pod_address, args.proxy_secure_port, "proxy-secure-port")?,
            dummy_proxy: match &dummy {
                Some(dummy) => port(dummy.address, args.proxy_port, "proxy-port")?,
                None => None,
            },
            dummy,
            pool_port: port(args.bind_address, args.multiplexer_port, "multiplexer-port")?
                .map(|address| address.port()),
            unsafe_open_proxy: args.unsafe_open_proxy,
            cache_dir: args.disk_cache_path,
            ca_file: args
                .ca_file
                .unwrap_or_else(|| args.root_dir.join("pki/ca.crt")),
            root_dir: args.root_dir,
            cache_budget: args.cache_budget,
            gc_frequency: seconds("gc-frequency", args.gc_frequency)? * 60,
            node_certificate,
            serving_certificate,
            bootstrap,
            organizations: trimmed(&args.hub_cert_organizations)
                .map(str::to_owned)
                .collect(),
            heartbeat: Heartbeat {
                interval: seconds(
                    "heartbeat-interval-seconds",
                    args.heartbeat_interval_seconds,
                )?,
                timeout: seconds("heartbeat-timeout-seconds", args.heartbeat_timeout_seconds)?,
                tries: args.heartbeat_failed_retry.max(1),
                kubelet_grace,
            },
            filters: args.enable_resource_filter,
            disabled_filters: trimmed(&args.disabled_resource_filters)
                .map(str::to_owned)
                .collect(),
            rules_file: args.filter_rules,
            node_buckets: args.enable_pool_service_topology,
            pool_scope,
            profiling: args.profiling,
            ota: OtaConfig {
                token_file: args.ota_token_file,
                policy_file: args.ota_policy,
                rollback_token_file: args.ota_rollback_token_file,
                anonymous_loopback: args.ota_allow_anonymous_loopback,
                static_pods: args.static_pod_path,
                ..OtaConfig::default()
            },
            min_request_timeout,
            bounds: Bounds::default(),
            warnings,
        })
    }
}

impl Config {
    /// The configuration of a command line (without the program's name), for those who run a hub within their own process.
    pub fn parse<'a>(flags: impl IntoIterator<Item = &'a str>) -> Result<Self, ConfigError> {
        #[derive(clap::Parser)]
        struct CommandLine {
            #[command(flatten)]
            hub: HubArgs,
        }
        let line = CommandLine::try_parse_from(["hub"].into_iter().chain(flags))
            .map_err(|error| refuse("", error.to_string()))?;
        Self::try_from(line.hub)
    }
}

fn trimmed(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().map(|s| s.trim()).filter(|s| !s.is_empty())
}

/// `GROUP/VERSION/RESOURCE`; the group is empty for the core.
pub(crate) fn pool_scope_resource(text: &str) -> Option<Gvr> {
    let mut parts = text.split('/');
    let (group, version, resource) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && !version.is_empty() && !resource.is_empty();
    whole.then(|| Gvr::new(group, version, resource))
}

/// The rules of OpenYurt for the dummy interface: a link-local address that no cloud and no kube-proxy uses.
fn dummy_interface(
    name: String,
    address: Option<IpAddr>,
    bind: IpAddr,
) -> Result<DummyInterface, ConfigError> {
    if name.is_empty() || name.len() > INTERFACE_NAME || name.contains(['/', ' ']) {
        return Err(refuse(
            "dummy-if-name",
            format!("{name:?} is no name of an interface (1 to {INTERFACE_NAME} characters)"),
        ));
    }
    let address = address.unwrap_or(match bind {
        IpAddr::V4(_) => DUMMY_V4.into(),
        IpAddr::V6(_) => DUMMY_V6.into(),
    });
    if let IpAddr::V4(v4) = address {
        let octets = v4.octets();
        if !v4.is_link_local() {
            return Err(refuse(
                "dummy-if-ip",
                format!("{v4} is not in 169.254.0.0/16"),
            ));
        }
        if octets[2] == 31 || v4 == Ipv4Addr::new(169, 254, 1, 1) {
            return Err(refuse(
                "dummy-if-ip",
                format!("{v4} is taken by others (169.254.31.0/24 and 169.254.1.1 are)"),
            ));
        }
    }
    Ok(DummyInterface { name, address })
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
pub(super) fn server_authority(text: &str) -> Result<String, String> {
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
