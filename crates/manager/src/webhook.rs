//! The webhooks of OpenYurt: admission of its kinds and of the nodes, pods and endpoints that it has a say in, and conversion.
//!
//! Every replica serves them. Start with `hooks`, the table of what is served where; what each decides is a pure function in the
//! module of its kind, and `admission` finds out what these functions need. `certificates` keeps the certificate and its CA in a
//! Secret that all replicas share, `configuration` keeps what API servers are told. Whatever happens here, writes of nodes, pods
//! and endpoints go on without it.

mod admission;
mod certificates;
mod configuration;
mod endpoints;
mod facts;
mod fault;
mod hooks;
#[cfg(test)]
mod hostile;
mod metrics;
mod node;
mod nodepool;
mod pod;
mod review;
#[cfg(test)]
mod served;
mod server;
mod workload;
mod yurtappdaemon;
mod yurtappoverrider;
mod yurtappset;
mod yurtstaticset;

use crate::Context;
use certificates::{Clock, Keeper, Names, Store};
use configuration::Configurations;
use facts::Facts;
use jiff::Timestamp;
use metrics::Counts;
use server::Server;
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use yurt_api::names::objects::{
    CONTROLLER_ACCOUNT_PREFIX, MANAGER_NAMESPACE, MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS,
    WEBHOOK_CERTIFICATES, WEBHOOK_SERVICE,
};
use yurt_controller::{policy::Rule, selection::Selection};
use yurt_pki::PkiError;

/// Webhooks that belong to no controller, as `--disable-independent-webhooks` names them.
pub const INDEPENDENT: [&str; 4] = ["endpoints", "endpointslice", "node", "pod"];

/// Where the certificate and its CA are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificateStore {
    /// In the Secret that all replicas share.
    #[default]
    Secret,
    /// In [`Options::certificate_directory`]: one replica, or a directory that all of them share.
    Directory,
}

/// How long certificates are valid and how a new CA comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Days that a CA is valid. Another takes its place long before the end.
    pub ca_days: u32,
    /// Days that a certificate is valid.
    pub certificate_days: u32,
    /// How long API servers are told of a new CA before it is used, and of an old one after.
    pub overlap: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            ca_days: 3650,
            certificate_days: 365,
            overlap: Duration::from_secs(15 * 60),
        }
    }
}

/// What the webhooks are told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the manager is (`--working-namespace`): its Service, its Secret, its service accounts.
    pub namespace: String,
    /// The Service that leads to the port (`SERVICE_NAME`).
    pub service: String,
    /// The Secret with the certificates (`SECRET_NAME`).
    pub secret: String,
    /// Where it listens.
    pub address: IpAddr,
    /// Its port (`--webhook-port`, `WEBHOOK_PORT`); 0 is any.
    pub port: u16,
    /// A DNS name or address by which API servers reach the port, instead of the Service (`WEBHOOK_HOST`).
    pub host: Option<String>,
    /// Where the certificates are kept (`WEBHOOK_CERT_WRITER`).
    pub store: CertificateStore,
    /// The directory, if they are kept in one (`WEBHOOK_CERT_DIR`).
    pub certificate_directory: PathBuf,
    /// How long they are valid.
    pub terms: Terms,
    /// Which controllers run: the webhooks of others are not called.
    pub controllers: Selection,
    /// Those of [`INDEPENDENT`] that are not called.
    pub disabled: BTreeSet<&'static str>,
    /// The service account (a name in [`Options::namespace`]) of the controller that converts nodes.
    pub conversion_account: String,
    /// Where they are counted.
    pub metrics: Option<yurt_telemetry::Metrics>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: MANAGER_NAMESPACE.into(),
            service: WEBHOOK_SERVICE.into(),
            secret: WEBHOOK_CERTIFICATES.into(),
            address: Ipv6Addr::UNSPECIFIED.into(),
            port: 10273,
            host: None,
            store: CertificateStore::Secret,
            certificate_directory: "/tmp/yurt-manager-webhook-certs".into(),
            terms: Terms::default(),
            controllers: Selection::default(),
            disabled: BTreeSet::new(),
            conversion_account: format!(
                "{CONTROLLER_ACCOUNT_PREFIX}yurt-node-conversion-controller"
            ),
            metrics: None,
        }
    }
}

impl Options {
    /// Takes over what the environment says, under OpenYurt's names of variables; what is empty says nothing.
    pub fn from_environment(
        mut self,
        read: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, WebhookError> {
        let read = |name: &str| read(name).filter(|value| !value.is_empty());
        let wrong = |variable, value: String, wanted| WebhookError::Setting {
            variable,
            value,
            wanted,
        };
        if let Some(host) = read("WEBHOOK_HOST") {
            self.host = Some(host);
        }
        if let Some(name) = read("SECRET_NAME") {
            self.secret = name;
        }
        if let Some(name) = read("SERVICE_NAME") {
            self.service = name;
        }
        if let Some(port) = read("WEBHOOK_PORT") {
            self.port = port
                .parse()
                .map_err(|_| wrong("WEBHOOK_PORT", port, "a port"))?;
        }
        if let Some(directory) = read("WEBHOOK_CERT_DIR") {
            self.certificate_directory = directory.into();
        }
        if let Some(store) = read("WEBHOOK_CERT_WRITER") {
            self.store = match store.as_str() {
                "secret" => CertificateStore::Secret,
                "fs" => CertificateStore::Directory,
                _ => return Err(wrong("WEBHOOK_CERT_WRITER", store, "`secret` or `fs`")),
            };
        }
        Ok(self)
    }

    /// Reads `--disable-independent-webhooks`: names of [`INDEPENDENT`], `*` for all of them.
    pub fn disable(&mut self, list: &str) -> Result<(), WebhookError> {
        for name in list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            match INDEPENDENT.iter().find(|known| **known == name) {
                _ if name == "*" => self.disabled.extend(INDEPENDENT),
                Some(known) => {
                    self.disabled.insert(known);
                }
                None => {
                    return Err(WebhookError::Setting {
                        variable: "--disable-independent-webhooks",
                        value: name.into(),
                        wanted: "a list of endpoints, endpointslice, node and pod, or `*`",
                    });
                }
            }
        }
        Ok(())
    }
}

/// Why there are no webhooks: who runs the manager is at fault.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The port cannot be listened on.
    #[error("webhooks cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No TLS.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A setting that means nothing.
    #[error("{variable}: {value:?} is not {wanted}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        wanted: &'static str,
    },
}

/// What the service account of the webhooks may do everywhere.
pub const RULES: &[Rule] = &[
    // What API servers are told.
    Rule::new(
        ADMISSION,
        &["mutatingwebhookconfigurations"],
        &["get", "patch", "update"],
    )
    .named(&[MUTATING_WEBHOOKS]),
    Rule::new(
        ADMISSION,
        &["validatingwebhookconfigurations"],
        &["get", "patch", "update"],
    )
    .named(&[VALIDATING_WEBHOOKS]),
    Rule::new(
        ADMISSION,
        &[
            "mutatingwebhookconfigurations",
            "validatingwebhookconfigurations",
        ],
        &["create"],
    ),
    Rule::new(
        "apiextensions.k8s.io",
        &["customresourcedefinitions"],
        &["get", "patch"],
    )
    .named(CONVERTED),
    // What decisions need to be exact about.
    Rule::new("", &["nodes"], &["list"]),
    Rule::new("", &["pods"], &["list"]),
    Rule::new("apps.openyurt.io", &["nodepools"], &["get"]),
    Rule::new(
        "apps.openyurt.io",
        &["yurtappsets", "yurtappdaemons"],
        &["get"],
    ),
    Rule::new("apps.openyurt.io", &["yurtappoverriders"], &["list"]),
];

const ADMISSION: &str = "admissionregistration.k8s.io";

/// Definitions that are converted here.
const CONVERTED: &[&str] = &["nodepools.apps.openyurt.io", "yurtappsets.apps.openyurt.io"];

/// What the service account of the webhooks may do in the namespace of the manager.
pub const NAMESPACED_RULES: &[Rule] = &[
    Rule::new("", &["secrets"], &["get", "update"]).named(&[WEBHOOK_CERTIFICATES]),
    Rule::new("", &["secrets"], &["create"]),
];

/// Asks for what the webhooks keep of the API, as [`start`] does: to know what is to be allowed.
pub(crate) fn ask_for_caches(options: &Options, context: &Context) {
    Configurations::new(options, options.port, context);
    Facts::new(context, options);
}

/// Webhooks that are served until the manager ends.
#[derive(Debug)]
pub struct Webhooks {
    address: SocketAddr,
    certificate: watch::Receiver<Option<Arc<certificates::Bundle>>>,
    serving: JoinHandle<io::Result<()>>,
}

impl Webhooks {
    /// Where they listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether they can be called: there is a certificate.
    pub fn is_ready(&self) -> bool {
        self.certificate.borrow().is_some()
    }

    /// Whether they can be called, for who does not hold them.
    pub fn readiness(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let certificate = self.certificate.clone();
        move || certificate.borrow().is_some()
    }

    /// Waits until they can be called; `false`: they ended before.
    pub async fn ready(&self) -> bool {
        let mut certificate = self.certificate.clone();
        certificate.wait_for(Option::is_some).await.is_ok()
    }

    /// Waits, after the shutdown began, until what was asked is answered.
    pub async fn stopped(self) {
        if let Ok(Err(error)) = self.serving.await {
            tracing::warn!(%error, "webhooks");
        }
    }
}

/// Starts the webhooks; they end with `shutdown`. `context` is their identity ([`RULES`], [`NAMESPACED_RULES`]). They are called
/// as soon as there is a certificate ([`Webhooks::ready`]); until the API server can be reached there may be none.
pub async fn start(
    options: Options,
    context: &Arc<Context>,
    shutdown: CancellationToken,
) -> Result<Webhooks, WebhookError> {
    let clock = Arc::new(|| Timestamp::now().as_second());
    start_at(options, context, shutdown, clock).await
}

/// [`start`] by a clock, in seconds since the epoch, by which certificates are renewed.
async fn start_at(
    options: Options,
    context: &Arc<Context>,
    shutdown: CancellationToken,
    clock: Clock,
) -> Result<Webhooks, WebhookError> {
    let wanted = SocketAddr::new(options.address, options.port);
    let listen = |source| WebhookError::Listen {
        address: wanted,
        source,
    };
    let listener = TcpListener::bind(wanted).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let store = match options.store {
        CertificateStore::Secret => {
            Store::secret(context.kube(), &options.namespace, &options.secret)
        }
        CertificateStore::Directory => Store::Directory(options.certificate_directory.clone()),
    };
    let keeper = Keeper::new(store, Names::of(&options), options.terms, clock)?;
    let (tls, certificate) = (keeper.tls(), keeper.bundle());
    let counts = Counts::new(options.metrics.as_ref());
    let configurations = Configurations::new(&options, address.port(), context);
    tokio::spawn(configurations.keep(certificate.clone(), counts.clone(), shutdown.clone()));
    tokio::spawn(keeper.keep(shutdown.clone()));
    let server = Server::new(Facts::new(context, &options), counts);
    let serving = tokio::spawn(server.serve(listener, tls, shutdown));
    Ok(Webhooks {
        address,
        certificate,
        serving,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_openyurts_names() {
        let said = [
            ("WEBHOOK_HOST", "10.0.0.1"),
            ("SECRET_NAME", "secret"),
            ("SERVICE_NAME", ""),
            ("WEBHOOK_PORT", "443"),
            ("WEBHOOK_CERT_DIR", "/var/certs"),
            ("WEBHOOK_CERT_WRITER", "fs"),
        ];
        let read = |name: &str| {
            let (_, value) = said.iter().find(|(known, _)| *known == name)?;
            Some((*value).to_owned())
        };
        let options = Options::default().from_environment(read).expect("options");
        assert_eq!(options.host.as_deref(), Some("10.0.0.1"));
        assert_eq!(options.secret, "secret");
        assert_eq!(options.service, "yurt-manager-webhook-service");
        assert_eq!(options.port, 443);
        assert_eq!(options.store, CertificateStore::Directory);
        assert_eq!(options.certificate_directory, PathBuf::from("/var/certs"));
        for (name, value) in [("WEBHOOK_PORT", "https"), ("WEBHOOK_CERT_WRITER", "none")] {
            let read = |asked: &str| (asked == name).then(|| value.to_owned());
            let error = Options::default().from_environment(read).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }

    #[test]
    fn independent_webhooks_are_switched_off_by_name() {
        let mut options = Options::default();
        options.disable(" node, pod ,").expect("known");
        assert_eq!(options.disabled, BTreeSet::from(["node", "pod"]));
        assert!(options.disable("nodepool").is_err());
        options.disable("*").expect("all");
        assert_eq!(options.disabled, BTreeSet::from(INDEPENDENT));
    }
}
