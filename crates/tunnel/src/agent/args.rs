//! Flags of the agent, and the file that may say the same.

#[cfg(test)]
mod tests;

use super::{
    AgentConfig, Authority, address::ServerAddress, beside::Transport, fleet::Policy, proxy::Proxy,
};
use crate::{
    Identifiers,
    allow::{Bounds, LOCALHOST_PORTS, NodeScope, Rule},
    certificates::GivenFiles,
    cli::UnusedArgs,
    cluster::Way,
    network::Network,
    reverse::{NameServer, Redirect, Reverse, Route},
    standalone::JoinToken,
    steering::Backend,
};
use clap::Args;
use serde::Deserialize;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use yurt_controller::election::uuid;
use yurt_pki::store::read_text;

const CERTIFICATES: &str = "/var/lib/yurttunnel-agent/pki";
const KUBELET_CONFIG: &str = "/etc/kubernetes/kubelet.conf";
const META_PORT: u16 = 10266;
/// The name server of clusters, and what it knows of.
const NAME_SERVER: &str = "kube-dns.kube-system.svc:53";
const ZONE: &str = "cluster.local";
/// Where konnectivity's agents look for its server.
const KONNECTIVITY_PORT: u16 = 8091;

/// Why an agent cannot be configured so. The caller's fault.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AgentArgsError(String);

fn wrong(what: impl std::fmt::Display) -> AgentArgsError {
    AgentArgsError(what.to_string())
}

/// Declares flags once, for the command line and for the file.
macro_rules! settings {
    ($($(#[$meta:meta])* $name:ident: $kind:ty,)*) => {
        /// What flags and the file say.
        #[derive(Args, Clone, Debug, Default, Deserialize)]
        #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
        struct Settings {
            $($(#[$meta])* $name: $kind,)*
        }

        impl Settings {
            /// What is said here, and of the rest what `file` says.
            fn over(self, file: Self) -> Self {
                let said = Self::default();
                Self { $($name: if self.$name == said.$name { file.$name } else { self.$name },)* }
            }
        }
    };
}

settings! {
    /// Name of this node, by which it is asked for [default: the host's name; a random id with nothing but a token].
    #[arg(long, visible_alias = "agent-id", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Addresses of this node, by which it is asked for.
    #[arg(long, env = "NODE_IP", value_delimiter = ',', value_name = "IP")]
    node_ip: Vec<IpAddr>,
    /// Servers: [NAME@]HOST[:PORT] or [NAME@]_service._tcp.DOMAIN (SRV); several by commas. Without any, the Service
    /// x-tunnel-server-svc says.
    #[arg(long, visible_alias = "server", value_delimiter = ',', value_name = "ADDRESS")]
    tunnelserver_addr: Vec<String>,
    /// One server, as konnectivity's agent is told it.
    #[arg(long, value_name = "HOST")]
    proxy_server_host: Option<String>,
    /// Its port [default: 8091].
    #[arg(long, value_name = "PORT")]
    proxy_server_port: Option<u16>,
    /// TLS protocols to offer beside h2, in place of our own: konnectivity's protocol is spoken.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    alpn_proto: Vec<String>,
    /// How many servers to be connected to: `all`, or a number.
    #[arg(long, value_name = "all|N")]
    server_connections: Option<String>,
    /// What carries the tunnel: auto (TCP, and QUIC where UDP passes and is better), tcp, quic (wherever UDP passes).
    #[arg(long, value_name = "auto|tcp|quic")]
    transport: Option<String>,
    /// On the way to servers: socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT.
    #[arg(long, env = "YURT_TUNNEL_PROXY", hide_env_values = true, value_name = "URL")]
    proxy: Option<String>,
    /// Kubeconfig for certificates and addresses [default: /etc/kubernetes/kubelet.conf].
    #[arg(long, visible_alias = "kubeconfig", value_name = "FILE")]
    kube_config: Option<PathBuf>,
    /// Ask the API server at HOST:PORT as a pod, by its service account.
    #[arg(long, value_name = "HOST:PORT")]
    apiserver_addr: Option<String>,
    /// Ask the API server as a pod, by its service account.
    #[arg(long)]
    in_cluster: bool,
    /// Ask the API server by the hub of this node at HOST:PORT (plain HTTP on loopback).
    #[arg(long, value_name = "HOST:PORT")]
    hub_addr: Option<String>,
    /// Namespace of the Service that publishes servers [default: kube-system].
    #[arg(long, value_name = "NAMESPACE")]
    service_namespace: Option<String>,
    /// Count the servers' leases in this namespace (true: in --lease-namespace), beside what servers say of their number.
    #[arg(long, value_name = "NAMESPACE", num_args = 0..=1, default_missing_value = "true")]
    count_server_leases: Option<String>,
    /// Namespace of the servers' leases, where it is not said there [default: kube-system].
    #[arg(long, value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// By what the agent is asked for: ipv4=, ipv6=, host=, cidr=, default-route=true, separated by & or commas.
    #[arg(long, value_name = "LIST")]
    agent_identifiers: Option<String>,
    /// Directory of the certificates and of what is kept over restarts [default: /var/lib/yurttunnel-agent/pki].
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// Certificate that somebody else keeps; read again when it changes.
    #[arg(long, visible_alias = "cert", value_name = "FILE")]
    agent_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, visible_alias = "key", value_name = "FILE")]
    agent_key: Option<PathBuf>,
    /// CAs that servers are verified with [default: the API server's].
    #[arg(long, visible_alias = "ca", value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// Token of a service account, for konnectivity's servers and those that review such; read anew for every connection. With
    /// --ca-cert and neither a certificate nor a way to an API server, it is all that is shown.
    #[arg(long, value_name = "FILE")]
    service_account_token_path: Option<PathBuf>,
    /// What the cloud may reach beside this node's kubelet and pods: ADDRESS[/BITS][:PORTS] or NAME:PORTS.
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// Only what --allow names may be reached.
    #[arg(long)]
    no_default_allow: bool,
    /// Networks of this node's pods, beside those that its Node object says.
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pod_cidr: Vec<String>,
    /// Ports of this node's loopback that the cloud may reach [default: 10266,10267].
    #[arg(long, value_delimiter = ',', value_name = "PORT")]
    localhost_proxy_ports: Vec<u16>,
    /// Seconds that a target may take to answer [default: 5].
    #[arg(long, value_name = "SECONDS")]
    dial_timeout: Option<u64>,
    /// Connections to targets at a time [default: 16384].
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,
    /// Seconds that open connections may go on after a signal to stop [default: 30].
    #[arg(long, value_name = "SECONDS")]
    drain_timeout: Option<u64>,
    /// Address of the port for health, metrics and status [default: 127.0.0.1].
    #[arg(long, value_name = "IP")]
    meta_host: Option<IpAddr>,
    /// That port; the last that is given counts [default: --admin-server-port, else 10266].
    #[arg(long, visible_alias = "health-server-port", overrides_with = "meta_port", value_name = "PORT")]
    meta_port: Option<u16>,
    /// Another name of --meta-port, whose value wins: konnectivity has two ports.
    #[arg(long, hide = true, value_name = "PORT")]
    admin_server_port: Option<u16>,
    /// Listen here for programs of this node that want the cloud: HTTP CONNECT and SOCKS5.
    #[arg(long, value_name = "IP:PORT")]
    reverse_listen: Vec<SocketAddr>,
    /// Lead connections of this node and its pods to these networks of the cloud to the tunnel: NETWORK[:PORTS].
    #[arg(long, value_name = "NETWORK[:PORTS]")]
    reverse_redirect: Vec<String>,
    /// What of them is left alone, beside the API server's Service.
    #[arg(long, value_delimiter = ',', value_name = "NETWORK")]
    reverse_redirect_except: Vec<String>,
    /// The port that they are led to [default: any].
    #[arg(long, value_name = "PORT")]
    reverse_redirect_port: Option<u16>,
    /// How they are led there: auto, nftables, iptables [default: auto].
    #[arg(long, value_enum, value_name = "BACKEND")]
    steering_backend: Option<Backend>,
    /// Tell names of the cloud here, by UDP and TCP.
    #[arg(long, value_name = "IP:PORT")]
    reverse_dns_listen: Vec<SocketAddr>,
    /// Which names: domains with all below them [default: cluster.local].
    #[arg(long, value_delimiter = ',', value_name = "DOMAIN")]
    reverse_dns_zone: Vec<String>,
    /// Whom in the cloud to ask for them [default: kube-dns.kube-system.svc:53].
    #[arg(long, value_name = "HOST:PORT")]
    reverse_dns_server: Option<String>,
    /// Connections to [IP:]PORT of this node go to HOST:PORT in the cloud: LISTEN=TARGET.
    #[arg(long, value_name = "LISTEN=TARGET")]
    route: Vec<String>,
    /// Without Kubernetes: the certificate is the server's, had by --token.
    #[arg(long)]
    standalone: bool,
    /// Join token of `yurt tunnel token`; needed until the agent has its certificate.
    #[arg(long, env = "YURT_TUNNEL_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// `yurt tunnel agent`: connects this node to the tunnel's servers.
#[derive(Args, Clone, Debug, Default)]
pub struct AgentArgs {
    /// YAML with any of the flags by name; flags win.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    pub(crate) unused: UnusedArgs<false>,
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname()
        .nodename()
        .to_str()
        .ok()?
        .to_ascii_lowercase();
    (!name.is_empty()).then_some(name)
}

impl AgentArgs {
    /// What the flags and their file mean.
    pub fn config(self) -> Result<AgentConfig, AgentArgsError> {
        let mut settings = self.settings;
        if let Some(path) = &self.config {
            let text = read_text(path)
                .map_err(|error| wrong(format_args!("{}: {error}", path.display())))?;
            let file: Settings = serde_saphyr::from_str(&text)
                .map_err(|error| wrong(format_args!("{}: {error}", path.display())))?;
            settings = settings.over(file);
        }
        let pod_ip = std::env::var("POD_IP").ok();
        settings.config(pod_ip.and_then(|text| text.parse().ok()))
    }
}

impl Settings {
    fn servers(&self) -> Result<Vec<ServerAddress>, AgentArgsError> {
        let mut texts: Vec<String> = self
            .tunnelserver_addr
            .iter()
            .filter(|t| !t.trim().is_empty())
            .cloned()
            .collect();
        if let Some(host) = &self.proxy_server_host {
            let port = self.proxy_server_port.unwrap_or(KONNECTIVITY_PORT);
            texts.push(match host.parse::<IpAddr>() {
                Ok(IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
                _ => format!("{host}:{port}"),
            });
        }
        texts
            .iter()
            .map(|text| text.parse().map_err(wrong))
            .collect()
    }

    fn authority(&self, directory: &Path) -> Result<Authority, AgentArgsError> {
        match (&self.agent_cert, &self.agent_key, &self.ca_cert) {
            (Some(cert), Some(key), Some(ca)) => {
                return Ok(Authority::Files(GivenFiles {
                    cert: cert.clone(),
                    key: key.clone(),
                    ca: ca.clone(),
                }));
            }
            (None, None, _) => {}
            _ => return Err(wrong("--agent-cert, --agent-key and --ca-cert go together")),
        }
        if self.standalone {
            let token = self
                .token
                .as_deref()
                .map(str::parse::<JoinToken>)
                .transpose()
                .map_err(wrong)?;
            return Ok(Authority::Standalone {
                token,
                directory: directory.to_owned(),
            });
        }
        if self.token.is_some() {
            return Err(wrong("--token is for --standalone"));
        }
        if let (true, Some(ca)) = (self.has_only_token(), &self.ca_cert) {
            return Ok(Authority::Token { ca: ca.clone() });
        }
        Ok(Authority::Cluster {
            directory: directory.to_owned(),
            ca: self.ca_cert.clone(),
        })
    }

    /// Where servers' leases are counted, if they are.
    fn leases(&self) -> Option<String> {
        let namespace = match self.count_server_leases.as_deref()? {
            "false" => return None,
            "true" => self.lease_namespace.as_deref().unwrap_or("kube-system"),
            namespace => namespace,
        };
        Some(namespace.to_owned())
    }

    /// Whether a token is all that is shown to servers: so konnectivity's agent is run.
    fn has_only_token(&self) -> bool {
        let asks_cluster = self.in_cluster || self.kube_config.is_some() || self.hub_addr.is_some();
        let has_more = self.standalone || self.agent_cert.is_some() || asks_cluster;
        self.service_account_token_path.is_some() && self.ca_cert.is_some() && !has_more
    }

    /// How the API server is asked; nothing standalone.
    fn way(&self) -> Option<Way> {
        if self.standalone {
            return None;
        }
        if self.has_only_token() {
            return self.leases().map(|_| Way::Pod);
        }
        if let Some(hub) = &self.hub_addr {
            return Some(Way::Hub(hub.clone()));
        }
        if let Some(address) = self.apiserver_addr.as_deref().filter(|a| !a.is_empty()) {
            let address = address.strip_prefix("https://").unwrap_or(address);
            return Some(Way::PodAt(address.trim_end_matches('/').to_owned()));
        }
        if self.in_cluster {
            return Some(Way::Pod);
        }
        let path = self.kube_config.clone();
        Some(Way::Kubeconfig(
            path.unwrap_or_else(|| KUBELET_CONFIG.into()),
        ))
    }

    fn reverse(&self) -> Result<Reverse, AgentArgsError> {
        let routes = self.route.iter();
        let routes = routes.map(|text| text.parse::<Route>().map_err(wrong));
        let except = self.reverse_redirect_except.iter();
        let except = except.map(|text| text.parse::<Network>().map_err(wrong));
        let except = except.collect::<Result<Vec<_>, _>>()?;
        let port = self.reverse_redirect_port.unwrap_or(0);
        let backend = self.steering_backend.unwrap_or_default();
        let redirect = match self.reverse_redirect.as_slice() {
            [] => None,
            networks => Some(Redirect::new(networks, except, port, backend).map_err(wrong)?),
        };
        Ok(Reverse {
            asked: self.reverse_listen.clone(),
            routes: routes.collect::<Result<_, _>>()?,
            redirect,
            names: self.names()?,
        })
    }

    fn names(&self) -> Result<Option<NameServer>, AgentArgsError> {
        if self.reverse_dns_listen.is_empty() {
            return Ok(None);
        }
        // An answer by UDP comes from where the question went only if that is one address.
        if let Some(any) = self
            .reverse_dns_listen
            .iter()
            .find(|a| a.ip().is_unspecified())
        {
            let why = format!("--reverse-dns-listen {any}: say which address of this node");
            return Err(AgentArgsError(why));
        }
        let zones = match self.reverse_dns_zone.is_empty() {
            true => vec![ZONE.to_owned()],
            false => self.reverse_dns_zone.clone(),
        };
        let zones = zones.iter().map(|text| text.parse().map_err(wrong));
        let server = self.reverse_dns_server.as_deref().unwrap_or(NAME_SERVER);
        Ok(Some(NameServer {
            listen: self.reverse_dns_listen.clone(),
            zones: zones.collect::<Result<_, _>>()?,
            server: server.parse().map_err(wrong)?,
        }))
    }

    fn config(self, pod_ip: Option<IpAddr>) -> Result<AgentConfig, AgentArgsError> {
        let directory = self.cert_dir.clone().unwrap_or_else(|| CERTIFICATES.into());
        let named = self.node_name.clone().filter(|name| !name.is_empty());
        let node = match &named {
            Some(name) => name.clone(),
            None if self.has_only_token() => uuid(),
            None => {
                host_name().ok_or_else(|| wrong("--node-name is needed: this host has no name"))?
            }
        };
        let servers = self.servers()?;
        let way = self.way();
        let authority = self.authority(&directory)?;
        if servers.is_empty() && way.is_none() {
            return Err(wrong(
                "--standalone, and --service-account-token-path without a way to an API server, need --server",
            ));
        }
        let policy = match self.server_connections.as_deref() {
            None | Some("all") => Policy::All,
            Some(text) => match text.parse() {
                Ok(count) if count > 0 => Policy::Some(count),
                _ => return Err(wrong("--server-connections is `all` or a number from 1")),
            },
        };
        let mut addresses: Vec<IpAddr> = self.node_ip.iter().map(IpAddr::to_canonical).collect();
        if addresses.is_empty() {
            // On the node's network, where OpenYurt's agents are told no more.
            addresses.extend(pod_ip);
        }
        addresses.dedup();
        let identifiers: Identifiers = match &self.agent_identifiers {
            Some(text) => text.parse().unwrap_or_default(),
            None => Identifiers {
                addresses: addresses.clone(),
                hosts: named
                    .or_else(|| (!self.has_only_token()).then(|| node.clone()))
                    .into_iter()
                    .collect(),
                ..Identifiers::default()
            },
        };
        if addresses.is_empty() {
            // What it can be asked for by is its own.
            addresses.clone_from(&identifiers.addresses);
        }
        let networks = self.pod_cidr.iter().map(|text| text.parse().map_err(wrong));
        let allow = self.allow.iter().map(|text| text.parse().map_err(wrong));
        let localhost = match self.localhost_proxy_ports.is_empty() {
            true => LOCALHOST_PORTS.to_vec(),
            false => self.localhost_proxy_ports.clone(),
        };
        let scope = NodeScope {
            addresses,
            pod_networks: networks.collect::<Result<_, _>>()?,
            localhost_ports: localhost,
        };
        let usual = Bounds::default();
        let bounds = Bounds {
            timeout: self.dial_timeout.map_or(usual.timeout, Duration::from_secs),
            connections: self.max_connections.unwrap_or(usual.connections),
            ..usual
        };
        let host = self.meta_host.unwrap_or(Ipv4Addr::LOCALHOST.into());
        Ok(AgentConfig {
            node,
            identifiers,
            servers,
            policy,
            transport: self
                .transport
                .as_deref()
                .map_or(Ok(Transport::default()), str::parse)
                .map_err(wrong)?,
            proxy: self
                .proxy
                .as_deref()
                .map(str::parse::<Proxy>)
                .transpose()
                .map_err(wrong)?,
            authority,
            way,
            namespace: self
                .service_namespace
                .clone()
                .unwrap_or_else(|| "kube-system".into()),
            leases: self.leases(),
            token: self.service_account_token_path.clone(),
            protocols: self.alpn_proto.clone(),
            scope,
            default_allow: !self.no_default_allow,
            allow: allow.collect::<Result<Vec<Rule>, _>>()?,
            bounds,
            drain: Duration::from_secs(self.drain_timeout.unwrap_or(30)),
            meta: {
                let port = self.meta_port.or(self.admin_server_port);
                SocketAddr::new(host, port.unwrap_or(META_PORT))
            },
            known: directory,
            reverse: self.reverse()?,
            beneath: None,
        })
    }
}
