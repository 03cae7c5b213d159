//! Connections: listeners that drain, and HTTP clients that notice a dead peer.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The body type of every server response and client request of the project.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A whole body.
pub fn full(_bytes: impl Into<Bytes>) -> Body {
    unimplemented!()
}
/// No body.
pub fn empty() -> Body {
    unimplemented!()
}
/// A body of chunks known beforehand (sends `Content-Length`).
pub fn chunks(_chunks: Vec<Bytes>) -> Body {
    unimplemented!()
}
/// A body fed by a bounded channel: the receiver side of a stream. Dropping the sender ends it cleanly; sending `Err` aborts it.
pub fn channel(_capacity: usize) -> (tokio::sync::mpsc::Sender<Result<Bytes, BoxError>>, Body) {
    unimplemented!()
}
/// Reads a body up to `limit` bytes. `Err(TooLarge)` beyond it.
pub async fn collect<B>(_body: B, _limit: usize) -> Result<Bytes, CollectError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    unimplemented!()
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CollectError {
    #[error("body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("body broke off: {0}")]
    Broken(BoxError),
}

/// Who is at the other end of a server connection; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Remote address.
    pub addr: SocketAddr,
    /// Local address.
    pub local: SocketAddr,
    /// Verified client certificate (DER, leaf), when TLS and one was given.
    pub certificate: Option<Bytes>,
    /// Whether the connection is TLS.
    pub tls: bool,
}

/// Bounds of a listener.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ServeOptions {
    pub header_read_timeout: Duration,
    pub max_header_bytes: usize,
    pub max_connections: usize,
    pub h2_max_streams: u32,
    pub tls_handshake_timeout: Duration,
    /// How long open requests may go on after shutdown began.
    pub drain: Duration,
}

/// Serves HTTP/1.1 and HTTP/2 on a bound listener until `shutdown`, then drains. `tls: None` is plain text.
/// The TLS configuration is read anew for every connection.
pub async fn serve<H, F>(
    _listener: tokio::net::TcpListener,
    _tls: Option<Arc<arc_swap::ArcSwap<rustls::ServerConfig>>>,
    _options: ServeOptions,
    _shutdown: CancellationToken,
    _handler: H,
) -> std::io::Result<()>
where
    H: Fn(http::Request<hyper::body::Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = http::Response<Body>> + Send + 'static,
{
    unimplemented!()
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ClientError {
    /// No connection: nothing was sent, safe to retry elsewhere.
    #[error("connect {authority}: {source}")]
    Connect { authority: String, source: BoxError },
    /// TLS failed: the peer is not who it should be.
    #[error("tls {authority}: {source}")]
    Tls { authority: String, source: BoxError },
    /// The connection broke after the request may have been sent.
    #[error("request to {authority} broke: {source}")]
    Broken { authority: String, source: BoxError },
    /// No answer in time.
    #[error("{authority} did not answer within {after:?}")]
    Timeout { authority: String, after: Duration },
}

impl ClientError {
    /// Whether the request cannot have reached the peer's handler.
    pub fn not_sent(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Tls { .. })
    }
}

/// Settings of a client for one authority.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ClientOptions {
    pub connect_timeout: Duration,
    /// HTTP/2 ping interval and time-out; also TCP_USER_TIMEOUT on HTTP/1.1.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// HTTP/1.1 connections kept idle.
    pub max_idle: usize,
}

/// An HTTP client for one server (`host:port`), TLS or plain. Ordinary requests share an HTTP/2 connection with wide windows (a
/// stalled stream must not starve others) where TLS negotiates it, HTTP/1.1 otherwise. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    _inner: Arc<()>,
}

impl Client {
    /// A client for `authority` (`host:port`). `tls: None` is plain text.
    pub fn new(
        _authority: &str,
        _tls: Option<Arc<rustls::ClientConfig>>,
        _options: ClientOptions,
    ) -> Self {
        unimplemented!()
    }
    /// Sends a request; the URI may be a path only (authority and Host are set here). Waits for the response head
    /// at most `timeout`. The response body is not timed.
    pub async fn send(
        &self,
        _request: http::Request<Body>,
        _timeout: Duration,
    ) -> Result<http::Response<hyper::body::Incoming>, ClientError> {
        unimplemented!()
    }
    /// Sends an upgrade request (SPDY, WebSocket) on its own HTTP/1.1 connection; the response keeps its `OnUpgrade`.
    pub async fn send_upgrade(
        &self,
        _request: http::Request<Body>,
        _timeout: Duration,
    ) -> Result<http::Response<hyper::body::Incoming>, ClientError> {
        unimplemented!()
    }
    /// Drops every pooled connection and breaks those in use: their bodies end with an error at once.
    pub fn reset(&self) {
        unimplemented!()
    }
    /// Replaces the TLS configuration for new connections.
    pub fn set_tls(&self, _tls: Arc<rustls::ClientConfig>) {
        unimplemented!()
    }
}
