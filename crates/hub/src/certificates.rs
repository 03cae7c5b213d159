//! The certificates of the hub: had, kept, renewed, followed (design rule R9). What certificates must say and when they are renewed is
//! in [`plan`], files in `files`, discovery of the cluster by token in [`discovery`], signing by CSR in `signing`, CAs in [`bundle`];
//! whom to believe in `trust`; `keeper` does the work beside the running hub.
//!
//! Nothing here is waited for: a hub without certificates, with ended or unreadable ones serves what the node knows, as it does
//! without a link. It has an identity again as soon as there is a certificate.

mod api;
pub mod bundle;
pub mod discovery;
mod files;
mod keeper;
pub mod kubeconfig;
pub mod plan;
mod signing;
mod status;
pub mod token;
mod trust;

use crate::{
    config::{Bootstrap, Config, KeyPairFiles},
    metrics::Metrics,
    upstream::{CloudTls, Upstreams},
};
use arc_swap::ArcSwap;
use bundle::Bundle;
use discovery::Pin;
use files::Files;
use plan::{Kind, Validity};
pub use status::CertificateStatus;
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use token::Token;
use tokio::sync::watch;
pub use trust::RejoinError;
use yurt_pki::{Callers, KeyPairPem, PkiError, Profile, store::Pair};

/// Protocols offered to API servers.
const ALPN: [&str; 2] = ["h2", "http/1.1"];
/// The kubelet's certificate and key, and the cluster's CA as kubeadm leaves it.
const KUBELET_PAIR: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
const KUBELET_CA: &str = "/etc/kubernetes/pki/ca.crt";

/// The TLS configuration of a listener, read anew for every connection.
pub type ServingTls = Arc<ArcSwap<rustls::ServerConfig>>;

/// Who keeps a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// Somebody else: the files are read, and read again when they change.
    Files(KeyPairFiles),
    /// The hub: it has them signed.
    Requested,
    /// There is to be none.
    Nothing,
}

/// What is needed to have certificates signed for the first time.
#[derive(Clone, Debug)]
struct Credentials {
    /// The flag's.
    token: Option<Token>,
    pins: Vec<Pin>,
    skip_verification: bool,
    /// The bootstrap kubeconfig.
    file: PathBuf,
}

/// One certificate as it stands.
#[derive(Debug, Default)]
struct Held {
    pair: Option<Pair>,
    /// What is being waited for.
    waiting: Option<String>,
    /// Why the last attempt to read or renew it failed.
    trouble: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    bundle: Bundle,
    bundle_trouble: Option<String>,
    client: Held,
    serving: Held,
    /// The newest bootstrap token, when one was posted.
    token: Option<Token>,
    /// Of the service `kubernetes`.
    service: Vec<IpAddr>,
    applied: Applied,
    /// When connections of the certificate before the present one must be gone.
    retire_at: Option<i64>,
    /// The client certificate that the cloud does not accept, and why.
    refused: Option<(String, String)>,
}

/// What is in use.
#[derive(Debug, Default)]
struct Applied {
    cloud: Option<(Bundle, Option<String>)>,
    bearer: Option<Arc<rustls::ClientConfig>>,
    listeners: Option<(Bundle, String)>,
    /// Counts changes of what the node shows and believes.
    epoch: u64,
}

impl State {
    /// Why the cloud does not accept a certificate, when it does not.
    fn refusal(&self, pair: &Pair) -> Option<&str> {
        let (cert, why) = self.refused.as_ref()?;
        (*cert == pair.pem.cert).then_some(why)
    }

    fn held(&mut self, kind: Kind) -> &mut Held {
        match kind {
            Kind::Client => &mut self.client,
            Kind::Serving => &mut self.serving,
        }
    }
}

/// The certificates of a hub. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificates {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: String,
    organizations: Vec<String>,
    namespace: String,
    servers: Vec<String>,
    /// Addresses that clients reach the hub at.
    addresses: Vec<IpAddr>,
    node_ip: Option<IpAddr>,
    client: Source,
    serving: Source,
    credentials: Option<Credentials>,
    ca_file: PathBuf,
    /// Whether the hub itself writes it.
    keeps_ca: bool,
    files: Files,
    state: Mutex<State>,
    secure: ServingTls,
    pool: ServingTls,
    upstreams: OnceLock<Arc<Upstreams>>,
    /// Files, tokens or CAs changed: what failed may succeed.
    nudged: watch::Sender<u64>,
    metrics: Metrics,
}

impl Certificates {
    /// Reads what is there. Files that are absent or cannot be used are no error: the hub then runs without.
    pub fn open(config: &Config, metrics: Metrics) -> Result<Self, PkiError> {
        let requested = |files: &Option<KeyPairFiles>| match (files, &config.bootstrap) {
            (Some(files), _) => Source::Files(files.clone()),
            (None, Some(_)) => Source::Requested,
            (None, None) => Source::Nothing,
        };
        let kubelet = KeyPairFiles {
            cert: KUBELET_PAIR.into(),
            key: KUBELET_PAIR.into(),
        };
        let own_ca = config.ca_file == config.root_dir.join("pki/ca.crt");
        let (client, ca_file) = match (&config.node_certificate, &config.bootstrap) {
            (None, Some(Bootstrap::Kubelet)) if own_ca => {
                (Source::Files(kubelet), PathBuf::from(KUBELET_CA))
            }
            (None, Some(Bootstrap::Kubelet)) => (Source::Files(kubelet), config.ca_file.clone()),
            (files, _) => (requested(files), config.ca_file.clone()),
        };
        let credentials = match &config.bootstrap {
            Some(Bootstrap::Token {
                token,
                ca_hashes,
                unsafe_skip_ca_verification,
                file,
            }) => Some(Credentials {
                token: token.as_deref().and_then(Token::parse),
                pins: Pin::parse_all(ca_hashes).unwrap_or_default(),
                skip_verification: *unsafe_skip_ca_verification,
                file: file.clone(),
            }),
            _ => None,
        };
        let listening = [config.admin, config.proxy, config.secure_proxy];
        let addresses = config
            .dummy
            .iter()
            .map(|dummy| dummy.address)
            .chain(listening.into_iter().flatten().map(|address| address.ip()))
            .collect();
        let without = yurt_pki::server_config_without_certificate()?;
        let this = Self {
            inner: Arc::new(Inner {
                node: config.node_name.clone(),
                organizations: config.organizations.clone(),
                namespace: config.namespace.clone(),
                servers: config.servers.clone(),
                addresses,
                node_ip: config.node_ip,
                serving: requested(&config.serving_certificate),
                keeps_ca: own_ca && credentials.is_some(),
                client,
                credentials,
                ca_file,
                files: Files::at(&config.root_dir),
                state: Mutex::default(),
                secure: Arc::new(ArcSwap::new(without.clone())),
                pool: Arc::new(ArcSwap::new(without)),
                upstreams: OnceLock::new(),
                nudged: watch::channel(0).0,
                metrics,
            }),
        };
        this.reload();
        this.write_kubeconfig();
        this.apply(plan::now());
        Ok(this)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Valid after every statement.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn source(&self, kind: Kind) -> &Source {
        match kind {
            Kind::Client => &self.inner.client,
            Kind::Serving => &self.inner.serving,
        }
    }

    /// Where a certificate is read from.
    fn pair_files(&self, kind: Kind) -> Option<KeyPairFiles> {
        match self.source(kind) {
            Source::Files(files) => Some(files.clone()),
            Source::Requested => {
                let current = self.inner.files.current(kind);
                Some(KeyPairFiles {
                    cert: current.clone(),
                    key: current,
                })
            }
            Source::Nothing => None,
        }
    }

    /// Reads all files. One that cannot be used leaves what was read before in use.
    fn reload(&self) {
        for kind in [Kind::Client, Kind::Serving] {
            let Some(files) = self.pair_files(kind) else {
                continue;
            };
            let read = Pair::read(&files.cert, &files.key);
            let mut state = self.state();
            let held = state.held(kind);
            match read {
                Ok(pair) => {
                    if held
                        .pair
                        .as_ref()
                        .is_none_or(|old| old.pem.cert != pair.pem.cert)
                    {
                        held.trouble = None;
                    }
                    held.pair = Some(pair);
                }
                // Not written yet.
                Err(PkiError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound
                        && *self.source(kind) == Source::Requested => {}
                Err(error) => {
                    tracing::warn!(certificate = kind.as_str(), %error, "files of a certificate cannot be used");
                    held.trouble = Some(error.to_string());
                }
            }
        }
        let read = files::read(&self.inner.ca_file)
            .map_err(|source| PkiError::Io {
                path: self.inner.ca_file.display().to_string(),
                source,
            })
            .and_then(|pem| Bundle::parse(&pem));
        let mut state = self.state();
        match read {
            Ok(bundle) => (state.bundle, state.bundle_trouble) = (bundle, None),
            Err(PkiError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && self.inner.keeps_ca => {}
            Err(error) => {
                tracing::warn!(%error, "the CA cannot be used");
                state.bundle_trouble = Some(error.to_string());
            }
        }
    }

    /// The hub's kubeconfig names the server of the flags, whatever it named before.
    fn write_kubeconfig(&self) {
        let inner = &self.inner;
        let (Source::Requested, Some(server)) = (&inner.client, inner.servers.first()) else {
            return;
        };
        let current = inner.files.current(Kind::Client);
        let text = kubeconfig::hub(server, &inner.ca_file, &current);
        if let Err(error) = inner.files.save_public(&inner.files.kubeconfig(), &text) {
            tracing::warn!(%error, "the hub's kubeconfig cannot be written; nothing here depends on it");
        }
    }

    /// Whether the node may go to the cloud with a certificate now.
    fn is_usable(&self, state: &State, pair: &Pair, now: i64) -> bool {
        self.is_own(pair)
            && state.refusal(pair).is_none()
            && plan::validity(&pair.leaf, now) != Validity::Expired
    }

    /// Whether it is this node's. Of one that somebody else keeps, he knows.
    fn is_own(&self, pair: &Pair) -> bool {
        let own = pair.leaf.identity.user == plan::user_of(&self.inner.node);
        own || self.inner.client != Source::Requested
    }

    /// Puts what is held at `now` to use: for connections to the cloud, and for the listeners.
    fn apply(&self, now: i64) {
        if let Err(error) = self.apply_cloud(now) {
            self.state().bundle_trouble = Some(error.to_string());
            tracing::warn!(%error, "the CA cannot be used");
        }
        if let Err(error) = self.apply_listeners() {
            self.state().serving.trouble = Some(error.to_string());
            tracing::warn!(%error, "the serving certificate cannot be used");
        }
        self.report(now);
    }

    fn apply_cloud(&self, now: i64) -> Result<(), PkiError> {
        let mut state = self.state();
        // Without a CA there is nobody to show it to.
        let trusts = !state.bundle.is_empty();
        let pair = state.client.pair.clone();
        let pair = pair.filter(|pair| trusts && self.is_usable(&state, pair, now));
        let wanted = (
            state.bundle.clone(),
            pair.as_ref().map(|pair| pair.pem.cert.clone()),
        );
        let before = &state.applied.cloud;
        if before.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let same_bundle = before.as_ref().is_some_and(|before| before.0 == wanted.0);
        let had_identity = before.as_ref().is_some_and(|before| before.1.is_some());
        let ca = wanted.0.pem();
        let tls = |own: Option<&KeyPairPem>| match wanted.0.is_empty() {
            true => yurt_pki::distrustful_client_config(),
            false => yurt_pki::client_config(&ca, own, &ALPN),
        };
        let bearer = match &state.applied.bearer {
            Some(bearer) if same_bundle => bearer.clone(),
            _ => tls(None)?,
        };
        let node = pair.as_ref().map(|pair| tls(Some(&pair.pem))).transpose()?;
        match &pair {
            Some(pair) => tracing::info!(
                until = plan::moment(pair.leaf.not_after),
                "the node's client certificate is in use"
            ),
            None if had_identity => tracing::warn!(
                "the node's client certificate is of no use any more: its components are served from what the node knows"
            ),
            None => {}
        }
        state.applied.bearer = Some(bearer.clone());
        state.applied.cloud = Some(wanted);
        state.applied.epoch += 1;
        drop(state);
        if let Some(upstreams) = self.inner.upstreams.get() {
            upstreams.set_tls(&CloudTls { node, bearer });
        }
        Ok(())
    }

    /// An ended serving certificate goes on being shown: a client that minds says so itself.
    fn apply_listeners(&self) -> Result<(), PkiError> {
        let mut state = self.state();
        let Some(pair) = state.serving.pair.clone() else {
            return Ok(());
        };
        let wanted = (state.bundle.clone(), pair.pem.cert.clone());
        if state.applied.listeners.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let ca = wanted.0.pem();
        let callers = match wanted.0.is_empty() {
            true => Callers::Unasked,
            false => Callers::Invited(&ca),
        };
        let secure = yurt_pki::server_config_for(&pair.pem, callers, true)?;
        self.inner.secure.store(secure);
        if !wanted.0.is_empty() {
            let pool = yurt_pki::server_config_for(&pair.pem, Callers::Certified(&ca), true)?;
            self.inner.pool.store(pool);
        }
        state.applied.listeners = Some(wanted);
        Ok(())
    }

    /// How API servers are reached now.
    pub fn cloud(&self) -> Result<CloudTls, PkiError> {
        let state = self.state();
        let ca = state.bundle.pem();
        let bearer = match &state.applied.bearer {
            Some(bearer) => bearer.clone(),
            None => yurt_pki::distrustful_client_config()?,
        };
        let pair = state.client.pair.as_ref();
        let usable = pair.filter(|pair| self.is_usable(&state, pair, plan::now()));
        let node = match usable {
            Some(pair) if !state.bundle.is_empty() => {
                Some(yurt_pki::client_config(&ca, Some(&pair.pem), &ALPN)?)
            }
            _ => None,
        };
        Ok(CloudTls { node, bearer })
    }

    /// How API servers are reached as somebody else, whose certificate and key these are; `None` while no CA is known.
    pub fn cloud_as(
        &self,
        pair: &KeyPairPem,
    ) -> Result<Option<Arc<rustls::ClientConfig>>, PkiError> {
        let bundle = self.state().bundle.clone();
        (!bundle.is_empty())
            .then(|| yurt_pki::client_config(&bundle.pem(), Some(pair), &ALPN))
            .transpose()
    }

    /// Counts changes of what the node shows to others, and of the CAs it believes.
    pub fn epoch(&self) -> u64 {
        self.state().applied.epoch
    }

    /// How another node is reached, as this one, if it shows a certificate of its own; `None` while this node has none.
    pub fn peer(&self, node: &str) -> Result<Option<Arc<rustls::ClientConfig>>, PkiError> {
        let state = self.state();
        let usable =
            state.client.pair.as_ref().filter(|pair| {
                !state.bundle.is_empty() && self.is_usable(&state, pair, plan::now())
            });
        usable
            .map(|pair| {
                let ca = state.bundle.pem();
                yurt_pki::client_config_for(&ca, &pair.pem, &plan::user_of(node), &ALPN)
            })
            .transpose()
    }

    /// How the TLS listener serves: with a certificate when there is one, asking for client certificates of the cluster's CA.
    /// `None` when it is not to be served at all.
    pub fn secure(&self) -> Option<ServingTls> {
        (self.inner.serving != Source::Nothing).then(|| self.inner.secure.clone())
    }

    /// How the port for other nodes serves: nobody gets in without a client certificate of the cluster's CA.
    pub fn pool(&self) -> Option<ServingTls> {
        (self.inner.serving != Source::Nothing).then(|| self.inner.pool.clone())
    }

    /// Whether the node is to have a certificate for the cloud.
    pub fn identity_wanted(&self) -> bool {
        self.inner.client != Source::Nothing
    }

    /// What a certificate should say now.
    fn wanted(&self, kind: Kind) -> Profile {
        let inner = &self.inner;
        match kind {
            Kind::Client => plan::client_profile(&inner.node, &inner.organizations),
            Kind::Serving => {
                let service = self.state().service.clone();
                let node_ip = inner.node_ip.or_else(|| default_address(&inner.servers));
                let addresses = inner.addresses.iter().copied();
                plan::serving_profile(
                    &inner.node,
                    service.into_iter().chain(addresses).chain(node_ip),
                )
            }
        }
    }

    fn nudge(&self) {
        self.inner
            .nudged
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The address by which this machine reaches an API server, or else anything. Asks the routing table; nothing is sent.
pub(crate) fn default_address(servers: &[String]) -> Option<IpAddr> {
    // Where servers are names: addresses of documentation (RFC 5737, RFC 3849), which every default route leads to.
    let anywhere = ["192.0.2.1:9", "[2001:db8::1]:9"];
    let servers = servers.iter().map(String::as_str).chain(anywhere);
    servers
        .filter_map(|server| server.parse().ok())
        .find_map(|server| {
            let any: SocketAddr = match server {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0u16; 8], 0).into(),
            };
            let socket = UdpSocket::bind(any).ok()?;
            socket.connect(server).ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
}
