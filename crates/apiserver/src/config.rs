//! How a server is set up.

use crate::{
    ServiceResolver, authn::User, authz::AuthorizationMode, registry::ServiceRange,
    storage::WindowLimits,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use yurt_pki::KeyPairPem;
use yurt_transport::{Dialer, TcpDialer};

/// TLS of the listener.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The server's certificate and key.
    pub serving: KeyPairPem,
    /// PEM of the CA whose client certificates are accepted (CN is the user, O are the groups).
    pub client_ca: Option<String>,
}

/// Requests at work at once; others wait a moment and are then sent away with 429. Watches do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Requests that write.
    pub mutating: usize,
    /// Requests that read.
    pub reading: usize,
}

impl Default for InFlight {
    /// As kube-apiserver.
    fn default() -> Self {
        Self {
            mutating: 200,
            reading: 400,
        }
    }
}

/// How kubelets are reached, and pods and services behind them.
#[derive(Clone, Debug)]
pub struct Kubelets {
    /// PEM of the CA of kubelets' serving certificates; `None`: they are not verified, as by kube-apiserver.
    pub ca: Option<String>,
    /// What the server shows to kubelets.
    pub client: Option<KeyPairPem>,
    /// Types of node addresses, best first.
    pub preferred_addresses: Vec<String>,
    /// For a connection to be opened.
    pub connect_timeout: Duration,
    /// For an answer to begin, anew with every piece of a request that is taken.
    pub answer_timeout: Duration,
    /// Who knows the way to nodes and pods.
    pub dialer: Arc<dyn Dialer>,
}

impl Default for Kubelets {
    /// As kube-apiserver.
    fn default() -> Self {
        Self {
            ca: None,
            client: None,
            preferred_addresses: [
                "Hostname",
                "InternalDNS",
                "InternalIP",
                "ExternalDNS",
                "ExternalIP",
            ]
            .map(str::to_owned)
            .into(),
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(30),
            dialer: Arc::new(TcpDialer),
        }
    }
}

/// Which controllers of kube-controller-manager the server does the work of, so that it is whole without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltinControllers {
    /// Empties and releases namespaces that are being deleted (`namespace-controller`).
    pub namespace: bool,
    /// Keeps the service account `default` in every namespace (`serviceaccount-controller`).
    pub service_account: bool,
    /// Keeps the config map `kube-root-ca.crt` in every namespace (`root-ca-certificate-publisher-controller`).
    pub root_ca_publisher: bool,
    /// Keeps aggregated cluster roles up to date (`clusterrole-aggregation-controller`).
    pub cluster_role_aggregation: bool,
    /// Fills token secrets of service accounts in (`serviceaccount-token-controller`).
    pub service_account_tokens: bool,
    /// Signs `cluster-info` with bootstrap tokens (`bootstrap-signer-controller`).
    pub bootstrap_signer: bool,
    /// Removes bootstrap tokens that have expired (`token-cleaner-controller`).
    pub token_cleaner: bool,
}

impl Default for BuiltinControllers {
    /// All.
    fn default() -> Self {
        Self {
            namespace: true,
            service_account: true,
            root_ca_publisher: true,
            cluster_role_aggregation: true,
            service_account_tokens: true,
            bootstrap_signer: true,
            token_cleaner: true,
        }
    }
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects are kept; `None` keeps them in memory only.
    pub data_dir: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// TLS; `None` is plain HTTP, for tests.
    pub tls: Option<Tls>,
    /// Static bearer tokens.
    pub tokens: Vec<(String, User)>,
    /// How requests are authorized.
    pub authorization: AuthorizationMode,
    /// PEM of the CA that pods verify the server with (`kube-root-ca.crt` in every namespace).
    pub root_ca: Option<String>,
    /// What the server does that may be left to controllers.
    pub controllers: BuiltinControllers,
    /// The issuer named in service account tokens.
    pub issuer: String,
    /// The range of cluster IPs.
    pub services: ServiceRange,
    /// Where webhooks that are services of the cluster are reached; by default at the endpoints of the service.
    pub service_resolver: Option<ServiceResolver>,
    /// How much of the past watches can catch up on.
    pub window: WindowLimits,
    /// How much is done at once.
    pub in_flight: InFlight,
    /// How kubelets are reached.
    pub kubelets: Kubelets,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: None,
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: None,
            tokens: Vec::new(),
            authorization: AuthorizationMode::default(),
            root_ca: None,
            controllers: BuiltinControllers::default(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            services: ServiceRange::default(),
            service_resolver: None,
            window: WindowLimits::default(),
            in_flight: InFlight::default(),
            kubelets: Kubelets::default(),
        }
    }
}
