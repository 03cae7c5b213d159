//! Flags of `yurt tunnel server`: OpenYurt's and konnectivity's names where they have one.

use super::{
    RunError,
    callers::{Bearers, ServiceAccount},
    cloud::Rule,
    switchboard::{Direct, Ways},
};
use crate::{
    allow::Mark, cli::UnusedArgs, interceptor::InterceptorArgs, redirect::MARK, routing::Strategy,
    steering::SteeringArgs,
};
use clap::{ArgAction, Args};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use yurt_pki::{TlsPolicy, TlsSuite, TlsVersion};
use yurt_transport::TcpDialer;

/// Who may be a frontend unless told otherwise: API servers, administrators, and the server's own client certificate.
const FRONTENDS: [&str; 7] = [
    "kube-apiserver",
    "system:kube-apiserver",
    "kube-apiserver-kubelet-client",
    "tunnel-proxy-client",
    "O=system:masters",
    "O=kubeadm:cluster-admins",
    "system:konnectivity-server",
];

/// For metrics, health and status.
const META_PORT: u16 = 10265;
/// Konnectivity's for frontends.
const FRONTEND_PORT: u16 = 8090;

/// Runs an instance of the tunnel server.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The kubeconfig [default: the service account of the pod].
    #[arg(long, visible_alias = "kube-config", value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Without Kubernetes: certificates are of an authority in --data-dir, agents join by `yurt tunnel token`.
    #[arg(long, conflicts_with_all = ["kubeconfig", "steer_pods"])]
    pub(super) standalone: bool,
    /// Where a standalone server keeps its authority and tokens.
    #[arg(long, value_name = "DIR", default_value = crate::standalone::DATA)]
    pub(super) data_dir: PathBuf,
    /// Agents and frontends only: no ports for callers of kubelets, nothing steered, nothing asked of a cluster but reviews of
    /// tokens and, where they are on, leases; an agent with such a token may be any agent. So it is as `proxy-server`.
    #[arg(long, requires = "cluster_cert", conflicts_with = "steer_pods")]
    pub(super) egress_only: bool,
    /// Namespace of the Services that publish the server.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    pub(super) namespace: String,

    /// Address for agents, frontends and callers of the secure port.
    #[arg(long, visible_alias = "agent-bind-address", value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub(super) bind_address: IpAddr,
    /// Port for agents, other instances, and frontends with a client certificate.
    #[arg(
        long,
        visible_alias = "agent-port",
        overrides_with = "tunnel_agent_connect_port",
        value_name = "PORT",
        default_value_t = 10262
    )]
    pub(super) tunnel_agent_connect_port: u16,
    /// UDP port on which agents are taken by QUIC too, where they find it better [default: the number of agents' port; none with --egress-only]; 0: none.
    #[arg(long, value_name = "PORT")]
    pub(super) agent_quic_port: Option<u16>,
    /// Port for metrics, health and status; the last that is given counts [default: --admin-port, else 10265].
    #[arg(
        long,
        visible_alias = "health-port",
        overrides_with = "meta_port",
        value_name = "PORT"
    )]
    pub(super) meta_port: Option<u16>,
    /// Its address [default: --admin-bind-address, else the insecure bind address].
    #[arg(
        long,
        visible_alias = "health-bind-address",
        overrides_with = "meta_bind_address",
        value_name = "ADDRESS"
    )]
    pub(super) meta_bind_address: Option<IpAddr>,
    /// Another name of --meta-port, whose value wins: konnectivity has two ports.
    #[arg(long, hide = true, value_name = "PORT")]
    pub(super) admin_port: Option<u16>,
    #[arg(long, hide = true, value_name = "ADDRESS")]
    pub(super) admin_bind_address: Option<IpAddr>,
    /// Unix socket for frontends: CONNECT and gRPC; whoever may open the file may use it.
    #[arg(long, value_name = "PATH")]
    pub(super) uds_name: Option<PathBuf>,
    /// Replace a socket that was left over.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(super) delete_existing_uds_file: bool,
    /// Another port for frontends, by mTLS with --server-cert; 0: none [default: none; 8090 with --egress-only and no --uds-name].
    #[arg(long, value_name = "PORT")]
    pub(super) server_port: Option<u16>,
    /// Its address [default: the bind address].
    #[arg(long, value_name = "ADDRESS")]
    pub(super) server_bind_address: Option<IpAddr>,
    /// Certificate of --server-port [default: the one agents see].
    #[arg(long, value_name = "FILE", requires_all = ["server_key", "server_ca_cert"])]
    pub(super) server_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    pub(super) server_key: Option<PathBuf>,
    /// The CA of frontends at --server-port.
    #[arg(long, value_name = "FILE")]
    pub(super) server_ca_cert: Option<PathBuf>,
    /// Both kinds of frontends are served whatever this says.
    #[arg(long, hide = true, value_parser = ["grpc", "http-connect"])]
    pub(super) mode: Option<String>,

    /// Certificate that agents see, kept by somebody else [default: had by CSR, or of the own authority].
    #[arg(long, value_name = "FILE", requires = "cluster_key")]
    pub(super) cluster_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    pub(super) cluster_key: Option<PathBuf>,
    /// The CA of agents, other instances and frontends [default: the cluster's; with --cluster-cert: nobody's, and agents come by token].
    #[arg(long, value_name = "FILE")]
    pub(super) cluster_ca_cert: Option<PathBuf>,
    /// Client certificate towards kubelets and other instances [default: had by CSR; else --cluster-cert].
    #[arg(long, value_name = "FILE", requires = "proxy_client_key")]
    pub(super) proxy_client_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    pub(super) proxy_client_key: Option<PathBuf>,
    /// Where certificates are kept that are had by CSR.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/yurttunnel-server/pki"
    )]
    pub(super) cert_dir: PathBuf,
    /// Further names of the serving certificate.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(super) cert_dns_names: Vec<String>,
    /// Further addresses of the serving certificate.
    #[arg(long, value_name = "ADDRESS,...", value_delimiter = ',')]
    pub(super) cert_ips: Vec<IpAddr>,

    /// The oldest version of TLS that callers may speak: VersionTLS12 or VersionTLS13.
    #[arg(
        long,
        visible_alias = "tls-minimum-version",
        value_name = "VERSION",
        default_value = "VersionTLS12"
    )]
    pub(super) tls_min_version: TlsVersion,
    /// The cipher suites that callers may speak with TLS 1.2, by Go's names; those of TLS 1.3 are all spoken [default: all].
    #[arg(
        long,
        visible_alias = "tls-cipher-suites",
        value_name = "SUITE,...",
        value_delimiter = ','
    )]
    pub(super) cipher_suites: Vec<TlsSuite>,

    /// How agents are found; the first that finds one wins.
    #[arg(long, visible_alias = "proxy-strategy", overrides_with = "proxy_strategies", value_name = "STRATEGY,...", value_delimiter = ',',
          default_values_t = Ways::default().strategies)]
    pub(super) proxy_strategies: Vec<Strategy>,
    /// What the server dials itself: never; cloud: what is on nodes without agents; any: also what nobody knows.
    #[arg(long, overrides_with = "direct", default_value_t = Direct::Cloud)]
    pub(super) direct: Direct,
    /// Within so many seconds a dial has a connection or an error.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    pub(super) backend_dial_timeout: Duration,
    /// How long open connections may go on after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(super) graceful_shutdown_timeout: Duration,
    /// Silence after which an agent is asked whether it lives.
    #[arg(long, value_name = "SECONDS", default_value = "4", value_parser = seconds)]
    pub(super) keepalive_time: Duration,
    /// Proxied connections at a time.
    #[arg(long, value_name = "N", default_value_t = Ways::default().connections)]
    pub(super) max_connections: usize,

    /// Certificates whose bearers may be any agent: CN, or O=ORGANIZATION. Others are what their certificate is for.
    #[arg(long, value_name = "CN|O=ORG,...", value_delimiter = ',')]
    pub(super) trusted_agents: Vec<Bearers>,
    /// Certificates of frontends: CN, O=ORGANIZATION, or * for all of the CA.
    #[arg(long, value_name = "CN|O=ORG|*,...", value_delimiter = ',', default_values = FRONTENDS)]
    pub(super) frontends: Vec<Bearers>,
    /// Certificates of other instances.
    #[arg(
        long,
        value_name = "CN|O=ORG,...",
        value_delimiter = ',',
        default_value = "tunnel-proxy-client"
    )]
    pub(super) peer_identities: Vec<Bearers>,
    /// Namespace of the service account whose tokens let agents in.
    #[arg(long, value_name = "NAMESPACE", requires = "agent_service_account")]
    pub(super) agent_namespace: Option<String>,
    /// Its name.
    #[arg(long, value_name = "NAME", requires = "agent_namespace")]
    pub(super) agent_service_account: Option<String>,
    /// For what such a token must be.
    #[arg(long, value_name = "AUDIENCE")]
    pub(super) authentication_audience: Option<String>,
    /// What edges may reach in the cloud: NETWORK, NAME, *.DOMAIN, NAMESPACE/SERVICE or NAMESPACE/*, with :PORT or :FROM-TO [default: nothing].
    #[arg(long, value_name = "RULE,...", value_delimiter = ',')]
    pub(super) cloud_allow: Vec<Rule>,

    /// This instance's id [default: a random one].
    #[arg(long, env = "PROXY_SERVER_ID", value_name = "ID")]
    pub(super) server_id: Option<String>,
    /// How many instances there are, where leases do not tell.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) server_count: u32,
    /// Find other instances, and count them, by leases.
    #[arg(long, overrides_with = "enable_lease_controller", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(super) enable_lease_controller: bool,
    /// Where the leases are.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    pub(super) lease_namespace: String,
    /// The label of the leases.
    #[arg(long, value_name = "KEY=VALUE", default_value = "k8s-app=konnectivity-server", value_parser = label)]
    pub(super) lease_label: (String, String),
    /// Other instances, where leases do not tell.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    pub(super) peers: Vec<String>,
    /// Where other instances reach this one [default: $POD_IP, $NODE_IP or the bind address].
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) peer_address: Option<String>,
    /// The name that certificates of other instances are for [default: x-tunnel-server-svc in a cluster, else their host].
    #[arg(long, value_name = "NAME")]
    pub(super) peer_server_name: Option<String>,

    #[command(flatten)]
    pub(super) interceptor: InterceptorArgs,
    #[command(flatten)]
    pub(super) steering: SteeringArgs,
    #[command(flatten)]
    pub(crate) unused: UnusedArgs<true>,
}

/// Seconds, or with a unit as Go writes it: `90`, `500ms`, `30s`, `5m`, `1h`.
fn seconds(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is no time: 90, 500ms, 30s, 5m, 1h"))?;
    let millis = match text.get(digits.len()..).unwrap_or_default() {
        "" | "s" => number.checked_mul(1000),
        "ms" => Some(number),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        unit => return Err(format!("{unit:?} is no unit of time: ms, s, m, h")),
    };
    // A year is for ever.
    let within = millis.filter(|millis| (1..=31_536_000_000).contains(millis));
    within.map(Duration::from_millis).ok_or_else(|| {
        format!("{text:?} is not between a millisecond and a year: every wait here has an end")
    })
}

fn label(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is not KEY=VALUE"))
}

impl ServerArgs {
    /// What listeners speak.
    pub(super) fn policy(&self) -> TlsPolicy {
        TlsPolicy {
            minimum: self.tls_min_version,
            suites: self.cipher_suites.clone(),
        }
    }

    pub(super) fn agents(&self) -> SocketAddr {
        (self.bind_address, self.tunnel_agent_connect_port).into()
    }

    /// The UDP port for agents, as [`super::Config::quic`].
    pub(super) fn quic(&self) -> Option<u16> {
        match self.agent_quic_port {
            Some(0) => None,
            None if self.egress_only => None,
            port => Some(port.unwrap_or(0)),
        }
    }

    /// Where metrics, health and status are told.
    pub(crate) fn meta(&self) -> Option<SocketAddr> {
        let insecure = self.interceptor.insecure_address(self.bind_address).ip();
        let address = self.meta_bind_address.or(self.admin_bind_address);
        let port = self.meta_port.or(self.admin_port).unwrap_or(META_PORT);
        (port > 0).then(|| (address.unwrap_or(insecure), port).into())
    }

    /// Whether an API server is asked for anything.
    pub(super) fn asks_cluster(&self) -> bool {
        let asks = self.agent_service_account.is_some() || self.enable_lease_controller;
        !self.standalone && (!self.egress_only || asks)
    }

    /// The port of frontends by TCP; 0: none.
    pub(super) fn frontend_port(&self) -> u16 {
        let usual = match self.egress_only && self.uds_name.is_none() {
            true => FRONTEND_PORT,
            false => 0,
        };
        self.server_port.unwrap_or(usual)
    }

    /// Who may be any agent. To konnectivity, that is everybody with the service account's token.
    pub(super) fn trusted_agents(&self) -> Vec<Bearers> {
        let account = self.account().filter(|_| self.egress_only);
        let by_token = account.map(|account| Bearers::User(account.user()));
        self.trusted_agents
            .iter()
            .cloned()
            .chain(by_token)
            .collect()
    }

    /// Whether the certificates that are given are enough.
    pub(super) fn certificates_fit(&self) -> Result<(), RunError> {
        let wrong = |what: &str| Err(RunError::Flags(what.to_owned()));
        match &self.cluster_ca_cert {
            Some(_) => Ok(()),
            None if self.proxy_client_cert.is_some() => {
                wrong("--proxy-client-cert takes --cluster-ca-cert as well")
            }
            None if self.cluster_cert.is_some() && self.account().is_none() => wrong(
                "--cluster-cert takes --cluster-ca-cert, or tokens of --agent-service-account",
            ),
            None => Ok(()),
        }
    }

    pub(super) fn ways(&self) -> Ways {
        Ways {
            strategies: self.proxy_strategies.clone(),
            direct: self.direct,
            // What is not to be led to this server by its own rules.
            dialer: match self.steering.steer_pods {
                Some(_) => Arc::new(Mark(Some(MARK))),
                None => Arc::new(TcpDialer),
            },
            dial: self.backend_dial_timeout,
            connections: self.max_connections,
            ..Ways::default()
        }
    }

    pub(super) fn account(&self) -> Option<ServiceAccount> {
        Some(ServiceAccount {
            namespace: self.agent_namespace.clone()?,
            name: self.agent_service_account.clone()?,
            audiences: self.authentication_audience.iter().cloned().collect(),
        })
    }

    /// Where other instances reach this one.
    pub(super) fn peer_address(&self) -> Option<String> {
        if let Some(address) = &self.peer_address {
            return Some(address.clone());
        }
        let given = ["POD_IP", "NODE_IP"].into_iter().find_map(|name| {
            let text = std::env::var(name).ok()?;
            text.parse::<IpAddr>().ok()
        });
        let address = given.or(Some(self.bind_address).filter(|ip| !ip.is_unspecified()))?;
        Some(SocketAddr::new(address, self.tunnel_agent_connect_port).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ServerArgs,
    }

    #[test]
    fn flags_are_openyurts_and_konnectivitys() {
        Line::command().debug_assert();
        let args = Line::parse_from(["server"]).args;
        assert_eq!(args.agents().to_string(), "0.0.0.0:10262");
        assert_eq!(
            args.meta().map(|at| at.to_string()),
            Some("127.0.0.1:10265".into())
        );
        assert_eq!(args.ways().strategies, Ways::default().strategies);
        assert!(args.cloud_allow.is_empty() && args.account().is_none());
        // Where pods are led to the tunnel, what the server dials itself is marked.
        let dialer = |args: &ServerArgs| format!("{:?}", args.ways().dialer);
        let steering = Line::parse_from(["server", "--steer-pods=80"]).args;
        let dialers = (dialer(&args), dialer(&steering));
        assert_eq!(dialers, ("TcpDialer".into(), "Mark(Some(89))".into()));
        assert_eq!(args.policy(), TlsPolicy::default());
        let quic = |flag: &str| Line::parse_from(["server", flag]).args.quic();
        assert_eq!((args.quic(), quic("--agent-quic-port=0")), (Some(0), None));
        assert_eq!(quic("--agent-quic-port=443"), Some(443));
        let args = Line::parse_from([
            "server",
            "--kube-config=/a",
            "--proxy-strategy=destHost",
            "--agent-port=8091",
            "--mode=http-connect",
            "--uds-name=/run/s",
            "--delete-existing-uds-file=false",
            "--cluster-cert=c",
            "--cluster-key=k",
            "--cluster-ca-cert=ca",
            "--backend-dial-timeout=500ms",
            "--agent-namespace=kube-system",
            "--agent-service-account=konnectivity-agent",
            "--authentication-audience=system:konnectivity-server",
            "--cloud-allow=10.0.0.0/8:443,shop/web",
            "--tls-min-version=VersionTLS13",
            "--cipher-suites=TLS_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        ])
        .args;
        assert_eq!(args.policy().minimum, TlsVersion::Tls13);
        assert_eq!(args.policy().suites.len(), 2);
        assert_eq!(args.ways().strategies, [Strategy::DestHost]);
        assert_eq!(args.ways().dial, Duration::from_millis(500));
        assert_eq!((args.cloud_allow.len(), args.agents().port()), (2, 8091));
        assert!(args.account().is_some());
    }

    /// Also where its manifest says nothing: whatever it says itself wins over what its name means.
    #[test]
    fn egress_only_is_as_konnectivitys_server() {
        let preset = [
            "server",
            "--egress-only",
            "--agent-port=8091",
            "--proxy-strategies=default",
            "--direct=never",
            "--enable-lease-controller=false",
            "--cluster-cert=c",
            "--cluster-key=k",
        ];
        let parse = |more: &[&str]| Line::parse_from([&preset, more].concat()).args;
        let args = parse(&["--cluster-ca-cert=ca"]);
        assert_eq!((args.agents().port(), args.frontend_port()), (8091, 8090));
        assert_eq!(args.ways().strategies, [Strategy::Default]);
        assert!(!args.asks_cluster() && args.trusted_agents().is_empty());
        assert!(args.quic().is_none());
        args.certificates_fit().unwrap();
        assert!(parse(&[]).certificates_fit().is_err());
        let args = parse(&[
            "--uds-name=/run/s",
            "--agent-port=8132",
            "--proxy-strategies=destHost",
            "--direct=cloud",
            "--enable-lease-controller",
            "--agent-namespace=kube-system",
            "--agent-service-account=konnectivity-agent",
        ]);
        assert_eq!((args.agents().port(), args.frontend_port()), (8132, 0));
        assert_eq!(args.ways().strategies, [Strategy::DestHost]);
        assert_eq!(args.ways().direct, Direct::Cloud);
        assert!(args.enable_lease_controller && args.asks_cluster());
        let account = "system:serviceaccount:kube-system:konnectivity-agent";
        assert_eq!(args.trusted_agents(), [Bearers::User(account.into())]);
        args.certificates_fit().unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_refused_at_the_start() {
        for wrong in [
            "--proxy-strategies=destHost,luck",
            "--proxy-strategies=",
            "--direct=maybe",
            "--cloud-allow=10.0.0.0/99",
            "--backend-dial-timeout=0",
            "--graceful-shutdown-timeout=5y",
            "--lease-label=x",
            "--cluster-cert=only",
            "--egress-only",
            "--agent-namespace=only",
            "--mode=carrier-pigeon",
            "--tls-min-version=VersionTLS11",
            "--tls-min-version=true",
            "--cipher-suites=TLS_RSA_WITH_RC4_128_SHA",
        ] {
            assert!(Line::try_parse_from(["server", wrong]).is_err(), "{wrong}");
        }
        for other in ["--kubeconfig=x", "--steer-pods"] {
            assert!(Line::try_parse_from(["server", "--standalone", other]).is_err());
        }
    }
}
