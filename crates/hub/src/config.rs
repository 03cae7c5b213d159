//! What the hub is told: flags (`args`) and the checked configuration made of them.

mod args;
mod checked;

use crate::ota::OtaConfig;
pub use args::{HubArgs, UnusedArgs};
pub(crate) use checked::pool_scope_resource;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use yurt_wire::Gvr;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag}: {why}")]
pub struct ConfigError {
    /// The flag at fault.
    pub flag: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// How requests are spread over several API servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbMode {
    /// One after the other.
    RoundRobin,
    /// The first of the list that is up.
    Priority,
}

/// Where the hub stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkingMode {
    /// Behind a link that may be cut.
    Edge,
    /// Beside the API servers: nothing is cached, nothing answered without them.
    Cloud,
    /// On a node of a host cluster: forwards a tenant's service address, and is no proxy.
    Local,
}

/// The interface that pods reach the hub on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DummyInterface {
    /// Its name.
    pub name: String,
    /// Its address (a host prefix).
    pub address: IpAddr,
}

/// How the node proves itself to the cloud the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// By a bootstrap token or a kubeconfig with bootstrap credentials.
    Token {
        /// `id.secret`, when given by flag.
        token: Option<String>,
        /// `sha256:HEX` of the public keys of CAs that discovery may trust.
        ca_hashes: Vec<String>,
        /// Trust whatever CA is shown.
        unsafe_skip_ca_verification: bool,
        /// The kubeconfig; need not exist.
        file: PathBuf,
    },
    /// With the kubelet's own client certificate.
    Kubelet,
}

/// How the node's heartbeat is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Between renewals.
    pub interval: Duration,
    /// For one renewal.
    pub timeout: Duration,
    /// Renewals tried before a round has failed.
    pub tries: u32,
    /// A kubelet silent for so long is dead; also the duration of the lease.
    pub kubelet_grace: Duration,
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
    /// Largest answer that can be filtered.
    pub filtered_body: usize,
    /// Bytes of answers held at one time for filters, all together.
    pub filtering: usize,
    /// Requests under way at one time.
    pub in_flight: usize,
    /// How long the cloud may take to bring the endpoints of services in step with what it was told about pods.
    pub endpoints_grace: Duration,
    /// Bytes of events held of each resource shared within the pool, for watches that resume.
    pub pool_window: usize,
    /// A source of what is shared that sends nothing for this long, not even a bookmark, is asked whether it lives.
    pub pool_silence: Duration,
    /// How long a source of what is shared may be behind this node.
    pub pool_behind: Duration,
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
            filtered_body: 16 << 20,
            filtering: 32 << 20,
            in_flight: 2048,
            endpoints_grace: Duration::from_secs(60),
            pool_window: 2 << 20,
            // Twice as long as API servers take from one bookmark to the next.
            pool_silence: Duration::from_secs(120),
            pool_behind: Duration::from_secs(20),
        }
    }
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the hub stands.
    pub working_mode: WorkingMode,
    /// Name of this node.
    pub node_name: String,
    /// Its pool by flag; empty when only the Node's label says.
    pub pool: String,
    /// Its address by flag.
    pub node_ip: Option<IpAddr>,
    /// Of the hub's config maps.
    pub namespace: String,
    /// `host:port` of the host cluster's API server (local mode).
    pub host_control_plane: Option<String>,
    /// API servers as `host:port`, in the order of the flag.
    pub servers: Vec<String>,
    /// How they share the load.
    pub lb_mode: LbMode,
    /// Admin endpoints.
    pub admin: Option<SocketAddr>,
    /// Plain API proxy.
    pub proxy: Option<SocketAddr>,
    /// `--bind-proxy-address`.
    pub bind_proxy: IpAddr,
    /// TLS API proxy: on the dummy interface when there is one.
    pub secure_proxy: Option<SocketAddr>,
    /// The interface that pods reach the hub on.
    pub dummy: Option<DummyInterface>,
    /// Plain API proxy on the dummy interface.
    pub dummy_proxy: Option<SocketAddr>,
    /// Port for the other nodes of the pool, on the node's address.
    pub pool_port: Option<u16>,
    /// Callers without credentials act as the node, whoever they are.
    pub unsafe_open_proxy: bool,
    /// Directory of the cache.
    pub cache_dir: PathBuf,
    /// Directory of everything else.
    pub root_dir: PathBuf,
    /// Bytes of live objects the cache may hold.
    pub cache_budget: u64,
    /// Between looks for what nobody needs any more.
    pub gc_frequency: Duration,
    /// CA of the cloud.
    pub ca_file: PathBuf,
    /// The node's identity towards the cloud, when somebody else keeps it.
    pub node_certificate: Option<KeyPairFiles>,
    /// The identity of the TLS listeners, when somebody else keeps it.
    pub serving_certificate: Option<KeyPairFiles>,
    /// How certificates are had that nobody else keeps; `None` when both are given as files.
    pub bootstrap: Option<Bootstrap>,
    /// Organizations of the client certificate beside the usual.
    pub organizations: Vec<String>,
    /// The node's heartbeat.
    pub heartbeat: Heartbeat,
    /// Whether what comes back is filtered.
    pub filters: bool,
    /// Filters not to be applied; `*` for all.
    pub disabled_filters: Vec<String>,
    /// A file with rules of this node.
    pub rules_file: Option<PathBuf>,
    /// Whether NodeBuckets name the nodes of the pool, instead of the NodePool.
    pub node_buckets: bool,
    /// Resources shared within the pool until a config map says otherwise, as `GROUP/VERSION/RESOURCE`.
    pub pool_scope: Vec<Gvr>,
    /// Whether debugging endpoints are served.
    pub profiling: bool,
    /// Upgrades that the node's owner decides about.
    pub ota: OtaConfig,
    /// Length of a local watch that names none (doubled at random).
    pub min_request_timeout: Duration,
    /// Sizes and times.
    pub bounds: Bounds,
    /// Warnings to log at start-up.
    pub warnings: Vec<String>,
}

#[cfg(test)]
mod tests;
