//! An embeddable Kubernetes API server.
//!
//! [`ApiServer::start`] serves [`Config`] until it is told to stop. A request goes through `server` (routing,
//! authentication, bounds, representations) to [`registry`] (what the verbs mean), which reads and writes
//! [`storage`] (objects, revisions, the past for watches). What is served is data: [`resources`] and [`crd`].

mod account_tokens;
pub mod authn;
pub mod authz;
mod bootstrap;
mod causes;
mod cluster_info;
mod config;
mod conversion;
pub mod crd;
pub mod defaults;
mod discovery;
mod lifecycle;
pub mod managed;
mod meta;
mod metrics;
pub mod openapi;
pub mod quota;
#[cfg(test)]
mod recorded;
pub mod registry;
pub mod resources;
mod reviews;
mod roles;
mod selectable;
mod server;
pub mod storage;
mod subresources;
mod types;
pub mod validation;
mod webhook;

pub use authz::AuthorizationMode;
pub use config::{BuiltinControllers, Config, InFlight, Kubelets, Tls};
pub use webhook::ServiceResolver;

use arc_swap::ArcSwap;
use authn::{Authenticator, tokens::Issuer};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use metrics::ServerMetrics;
use registry::Registry;
use server::Server;
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use storage::Storage;
use subresources::connect::Connector;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use yurt_telemetry::Metrics;
use yurt_transport::{Body, BoxError, ServeOptions};

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] storage::OpenError),
    /// The address cannot be listened on.
    #[error("listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates or keys are not usable.
    #[error(transparent)]
    Tls(#[from] yurt_pki::PkiError),
    /// The key of service account tokens is not usable.
    #[error(transparent)]
    Key(#[from] authn::tokens::KeyError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The first objects cannot be created.
    #[error("bootstrap objects: {0}")]
    Bootstrap(Box<yurt_wire::Status>),
}

/// An API server.
#[derive(Debug)]
pub struct ApiServer;

/// A server at work.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    server: Arc<Server>,
    serving: JoinHandle<io::Result<()>>,
    shutdown: CancellationToken,
}

/// Asks a server in the same process: the same requests and answers without connections.
#[derive(Clone, Debug)]
pub struct InProcess(Arc<Server>);

impl InProcess {
    /// Answers a request (credentials as over HTTP: put a token into its headers).
    pub async fn call<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.0.clone().handle(request).await
    }

    /// A function that does.
    pub fn into_call(
        self,
    ) -> Arc<dyn Fn(Request<Body>) -> BoxFuture<'static, Response<Body>> + Send + Sync> {
        Arc::new(move |request| {
            let server = self.clone();
            Box::pin(async move { server.call(request).await })
        })
    }
}

impl ApiServer {
    /// Opens the storage, creates the first objects, and serves until `shutdown`.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Running, StartError> {
        let storage = match &config.data_dir {
            None => Storage::memory(config.window),
            Some(dir) => {
                let (storage, recovery) = Storage::open(&dir.join("objects"), config.window)?;
                tracing::info!(?recovery, dir = %dir.display(), "storage open");
                storage
            }
        };
        let key = match &config.data_dir {
            None => Issuer::generate_key()?,
            Some(dir) => signing_key(&dir.join("service-account.key"))?,
        };
        let tls = match &config.tls {
            None => None,
            Some(tls) => Some(Arc::new(ArcSwap::from(yurt_pki::server_config(
                &tls.serving,
                tls.client_ca.as_deref(),
                true,
            )?))),
        };
        let listen_error = |source| StartError::Listen {
            addr: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(listen_error)?;
        let addr = listener.local_addr().map_err(listen_error)?;

        let registry = Arc::new(Registry::new(
            storage,
            config.services,
            config.authorization,
            config.service_resolver,
        ));
        let client_ca = config.tls.as_ref().and_then(|tls| tls.client_ca.as_deref());
        bootstrap::run(&registry, config.services, addr, client_ca)
            .await
            .map_err(StartError::Bootstrap)?;
        roles::reconcile(&registry)
            .await
            .map_err(StartError::Bootstrap)?;
        if let Some(ca) = &config.root_ca {
            cluster_info::publish(&registry, addr, ca)
                .await
                .map_err(StartError::Bootstrap)?;
            tokio::spawn(cluster_info::keep_signed(
                registry.clone(),
                config.controllers,
                shutdown.child_token(),
            ));
        }
        if config.controllers.service_account_tokens {
            tokio::spawn(account_tokens::keep_filled(
                registry.clone(),
                Issuer::new(&config.issuer, &key)?,
                config.root_ca.clone(),
                shutdown.child_token(),
            ));
        }
        let server = Arc::new(Server::new(
            registry.clone(),
            Authenticator::new(config.tokens, Issuer::new(&config.issuer, &key)?),
            addr.to_string(),
            ServerMetrics::new(Metrics::new("apiserver")),
            config.in_flight,
            Connector::new(config.kubelets, shutdown.clone())?,
            shutdown.clone(),
        ));
        if config.controllers.cluster_role_aggregation {
            tokio::spawn(roles::keep_aggregated(
                registry.clone(),
                shutdown.child_token(),
            ));
        }
        let keeper = lifecycle::Keeper::new(registry, config.controllers, config.root_ca);
        tokio::spawn(keeper.run(shutdown.child_token()));
        let handler = server.clone();
        let serving = tokio::spawn(yurt_transport::serve(
            listener,
            tls,
            ServeOptions::default(),
            shutdown.clone(),
            move |request| handler.clone().handle(request),
        ));
        tracing::info!(%addr, "API server is listening");
        Ok(Running {
            addr,
            server,
            serving,
            shutdown,
        })
    }
}

impl Running {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A way to ask it without a connection.
    pub fn in_process(&self) -> InProcess {
        InProcess(self.server.clone())
    }

    /// Answers a request without a connection (credentials as over HTTP: put a token into its headers).
    pub async fn call<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.in_process().call(request).await
    }

    /// The objects, for embedding programs that write them without a request.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.server.registry
    }

    /// Waits until the server has stopped and everything acknowledged is on disk.
    pub async fn stopped(self) -> io::Result<()> {
        let served = self.serving.await;
        self.shutdown.cancel();
        let closed = self.server.registry.storage.close().await;
        served.map_err(io::Error::other)??;
        closed.map_err(io::Error::other)
    }
}

/// Reads the signing key, or makes one.
fn signing_key(path: &Path) -> Result<Vec<u8>, StartError> {
    use std::os::unix::fs::OpenOptionsExt;
    let file_error = |source| StartError::File {
        path: path.to_owned(),
        source,
    };
    match std::fs::read(path) {
        Ok(key) => return Ok(key),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error(error)),
    }
    let key = Issuer::generate_key()?;
    // Written beside and moved into place: a crash leaves no half a key.
    let beside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(file_error)?;
    io::Write::write_all(&mut file, &key)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(file_error)?;
    Ok(key)
}
