//! Ports 10263 and 10264: an HTTP proxy to kubelets for callers that know of no tunnel, brought here by `steering`.
//!
//! - `callers` (pure): who may ask, and as whom the kubelet is asked.
//! - `target` (pure): which address behind which node a request is for.
//! - `kubelets`: clients whose connections go by the tunnel and are kept; kubelets' certificates are verified.
//! - `forward`: one request. HTTP/1.1, HTTP/2, gRPC with trailers; upgrades are passed on byte by byte. Nothing is read that the
//!   caller does not read, and a caller that goes ends what it asked for.

mod arguments;
mod callers;
mod forward;
mod kubelets;
mod metrics;
mod target;
#[cfg(test)]
mod tests;

use crate::{directory::Directory, link::Tunnels, steering::settings::Settings};
use arc_swap::ArcSwap;
pub use arguments::{InterceptorArgs, KubeletTlsError};
pub use callers::Callers;
use forward::Interceptor;
pub use kubelets::KubeletTls;
pub use metrics::Metrics;
use std::{io, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use yurt_transport::{ServeOptions, serve};

/// How often unused connections are looked for.
const SWEEP: Duration = Duration::from_secs(15);

/// Where callers come in.
#[derive(Debug)]
pub struct Listeners {
    /// TLS.
    pub secure: TcpListener,
    /// Plain text.
    pub insecure: TcpListener,
}

/// What the interceptor is told.
#[derive(Debug)]
pub struct Config {
    /// Where callers come in.
    pub listeners: Listeners,
    /// TLS for callers; read anew for every connection. Must ask for client certificates (`yurt_pki::Callers::Invited`), and should
    /// offer HTTP/2.
    pub tls: Arc<ArcSwap<rustls::ServerConfig>>,
    /// TLS towards kubelets; read anew for every request.
    pub kubelets: Arc<ArcSwap<KubeletTls>>,
    /// Who may ask.
    pub callers: Callers,
    /// Which ports are served on the loopback address of nodes.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// What is counted.
    pub metrics: Metrics,
    /// Requests and upgraded connections under way at once; more are answered with 503.
    pub max_requests: usize,
    /// How long requests that are under way may take to end at shutdown.
    pub drain: Duration,
}

impl Config {
    /// Requests under way at once, unless told otherwise.
    pub const MAX_REQUESTS: usize = 20_000;
}

/// Serves until `shutdown`, then lets requests end for [`Config::drain`].
pub async fn run(
    config: Config,
    tunnels: Arc<dyn Tunnels>,
    directory: Arc<dyn Directory>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let interceptor = Arc::new(Interceptor::new(&config, tunnels, directory));
    let options = ServeOptions {
        drain: config.drain,
        max_connections: config.max_requests,
        ..ServeOptions::default()
    };
    let handler = {
        let interceptor = interceptor.clone();
        move |request| interceptor.clone().handle(request)
    };
    let sweeping = {
        let interceptor = interceptor.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                interceptor.kubelets.sweep();
                let connections = interceptor.kubelets.connections();
                let connections = i64::try_from(connections).unwrap_or(i64::MAX);
                interceptor.metrics.connections.set(connections);
            }
        })
    };
    let Listeners { secure, insecure } = config.listeners;
    let (tls, plain_options) = (Some(config.tls), options.clone());
    let served = tokio::try_join!(
        serve(secure, tls, options, shutdown.clone(), handler.clone()),
        serve(insecure, None, plain_options, shutdown.clone(), handler),
    );
    sweeping.abort();
    // Their callers' connections are broken by now.
    interceptor.tasks.close();
    interceptor.tasks.wait().await;
    served.map(drop)
}
