//! Listeners that drain.

use crate::{Body, lingering::Lingering, minded::Minded, severable::Severable, stalling::Stalling};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    any::Any,
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// What a client may have in flight to us on one HTTP/2 stream before the handler reads it.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection. Sixteen uploads may stall before others on the connection feel it.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// What is buffered per HTTP/2 stream for a client that reads slowly.
const STREAM_SEND_BUFFER: usize = 128 << 10;
/// hyper's lower bound for an HTTP/1.1 read buffer.
const MIN_HEADER_BYTES: usize = 8 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than any connection lives.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Time for connections to notice that the drain is over.
const HARD_STOP: Duration = Duration::from_secs(1);

/// Who is at the other end of a server connection; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Remote address; unspecified on a Unix socket.
    pub addr: SocketAddr,
    /// Local address; unspecified on a Unix socket.
    pub local: SocketAddr,
    /// Verified client certificate (DER, leaf), when TLS and one was given.
    pub certificate: Option<Bytes>,
    /// Whether the connection is TLS.
    pub tls: bool,
    /// The process that connected, on a Unix socket.
    pub process: Option<Process>,
    /// What handlers found out about the connection.
    pub findings: Findings,
}

/// The process at the other end of a Unix socket, when it connected (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its user.
    pub uid: u32,
    /// Its id, in the server's PID namespace; `None` when it is not in it.
    pub pid: Option<u32>,
}

/// One thing that is found out about a connection by the first request that needs it, for all requests on it.
#[derive(Clone, Debug, Default)]
pub struct Findings(Arc<Mutex<Option<Box<dyn Any + Send + Sync>>>>);

impl Findings {
    /// What was found out, or what `find` finds now; requests that ask meanwhile wait for it. An error is not kept. A finding of
    /// another type takes the place of the one before.
    pub async fn once<T, E>(&self, find: impl Future<Output = Result<T, E>>) -> Result<T, E>
    where
        T: Clone + Send + Sync + 'static,
    {
        let mut found = self.0.lock().await;
        if let Some(known) = found.as_ref().and_then(|known| known.downcast_ref::<T>()) {
            return Ok(known.clone());
        }
        let new = find.await?;
        *found = Some(Box::new(new.clone()));
        Ok(new)
    }
}

/// What is listened on: made from either kind of listener.
#[derive(Debug)]
pub enum Listening {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket: plain HTTP/1.1.
    Unix(UnixListener),
}

impl From<TcpListener> for Listening {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listening {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Listening {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, addr) = listener.accept().await?;
                Ok(Accepted::Tcp(stream, addr))
            }
            Self::Unix(listener) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Unix(_) => Ok(NOWHERE),
        }
    }
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Accepted {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp(_, addr) => *addr,
            Self::Unix(_) => NOWHERE,
        }
    }

    /// Says what fits into a fresh socket's buffer.
    fn say(&self, text: &[u8]) {
        let _ = match self {
            Self::Tcp(stream, _) => stream.try_write(text),
            Self::Unix(stream) => stream.try_write(text),
        };
    }
}

/// The address of what has none.
const NOWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0);

/// Bounds of a listener.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// From the first byte awaited to the end of a request head; also how long an idle HTTP/1.1 connection is kept.
    pub header_read_timeout: Duration,
    /// A longer request head is answered with 431. At least 8 KiB.
    pub max_header_bytes: usize,
    /// Connections beyond it are told 503 (plain text) or closed (TLS). Upgraded connections count until they end.
    pub max_connections: usize,
    /// Concurrent requests on one HTTP/2 connection.
    pub h2_max_streams: u32,
    /// From accept to the end of the TLS handshake.
    pub tls_handshake_timeout: Duration,
    /// How long open requests may go on after shutdown began.
    pub drain: Duration,
    /// A connection whose client takes nothing of what it is sent for this long is broken, and an HTTP/2 stream that stalls for
    /// so long loses its answer; `None`: they may stall as long as the kernel lets them. Upgraded connections and [`Unhurried`]
    /// answers may stall anyway.
    pub stalled_client: Option<Duration>,
    /// Counts the connections and answers given up for that.
    pub clients_cut: Arc<AtomicU64>,
}

/// In the extensions of a response: its handler itself minds a client that takes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unhurried;

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(30),
            max_header_bytes: 64 << 10,
            max_connections: 4096,
            h2_max_streams: 1000,
            tls_handshake_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            stalled_client: None,
            clients_cut: Arc::default(),
        }
    }
}

/// Serves HTTP/1.1 and HTTP/2 on a bound listener until `shutdown`, then drains: open requests may end within
/// [`ServeOptions::drain`], after which every connection, upgraded ones too, is broken. `tls: None` is plain text. The TLS
/// configuration is read anew for every connection.
///
/// Long-lived responses (watches, tunnels) do not know of the drain: their handlers should end them when the same token is
/// cancelled. Errors of single connections are logged, never returned; an error means that the listener itself is of no use.
pub async fn serve<H, F>(
    listener: impl Into<Listening>,
    tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    options: ServeOptions,
    shutdown: CancellationToken,
    handler: H,
) -> io::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = listener.into();
    let local = listener.address()?;
    let server = Arc::new(Server {
        tls,
        permits: Arc::new(Semaphore::new(
            options.max_connections.min(Semaphore::MAX_PERMITS),
        )),
        options,
        shutdown: shutdown.clone(),
        kill: CancellationToken::new(),
        tracker: TaskTracker::new(),
    });
    let mut failures = 0u32;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                failures = 0;
                server.admit(accepted, &handler);
            }
            Err(error) if is_connection_error(&error) => {
                tracing::debug!(%local, %error, "a connection went away before it was accepted");
            }
            Err(error) => {
                // Out of descriptors or memory: what is open goes on, and accepting resumes when something was closed.
                let pause = Duration::from_millis(20 << failures.min(5));
                failures = failures.saturating_add(1);
                tracing::warn!(%local, %error, ?pause, "cannot accept connections");
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
    // Who the kernel has let in is told by the protocol that we go; closing the listener would reset them.
    while let Some(Ok(accepted)) = accept_waiting(&listener).await {
        server.admit(accepted, &handler);
    }
    drop(listener);
    server.tracker.close();
    let began = Instant::now();
    if timeout(server.options.drain, server.tracker.wait())
        .await
        .is_err()
    {
        tracing::info!(%local, open = server.tracker.len(), after = ?began.elapsed(), "breaking connections that did not drain");
    }
    server.kill.cancel();
    // Only a handler that blocks its thread can hold this up.
    let _ = timeout(HARD_STOP, server.tracker.wait()).await;
    Ok(())
}

/// The next connection, if there is one already.
async fn accept_waiting(listener: &Listening) -> Option<io::Result<Accepted>> {
    tokio::select! {
        biased;
        accepted = listener.accept() => Some(accepted),
        () = std::future::ready(()) => None,
    }
}

/// Errors that belong to one connection, not to the listener.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

struct Server {
    tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    options: ServeOptions,
    permits: Arc<Semaphore>,
    shutdown: CancellationToken,
    kill: CancellationToken,
    tracker: TaskTracker,
}

/// What a connection occupies until its stream is dropped.
struct Admission {
    _permit: OwnedSemaphorePermit,
    _tracked: TaskTrackerToken,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    Http1,
    Http2,
}

impl Server {
    /// Starts a connection, or turns it away when there are too many.
    fn admit<H, F>(self: &Arc<Self>, accepted: Accepted, handler: &H)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let addr = accepted.address();
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            tracing::warn!(%addr, max = self.options.max_connections, "too many connections, turning one away");
            if self.tls.is_none() {
                // A fresh socket takes so little without waiting.
                accepted.say(
                    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                );
            }
            return;
        };
        let admission = Admission {
            _permit: permit,
            _tracked: self.tracker.token(),
        };
        let server = Arc::clone(self);
        let handler = handler.clone();
        tokio::spawn(async move {
            let ended = match accepted {
                Accepted::Tcp(stream, addr) => {
                    server.connection(stream, addr, admission, handler).await
                }
                Accepted::Unix(stream) => server.local(stream, admission, handler).await,
            };
            if let Err(error) = ended {
                tracing::debug!(%addr, %error, "connection ended");
            }
        });
    }

    async fn connection<H, F>(
        &self,
        stream: TcpStream,
        addr: SocketAddr,
        admission: Admission,
        handler: H,
    ) -> Result<(), crate::BoxError>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        tune(&stream)?;
        let mut peer = Peer {
            addr,
            local: stream.local_addr()?,
            certificate: None,
            tls: self.tls.is_some(),
            process: None,
            findings: Findings::default(),
        };
        let unhurried = Arc::new(AtomicBool::new(false));
        let Some(tls) = &self.tls else {
            let detected = tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                detected = timeout(self.options.header_read_timeout, detect(&stream)) => detected,
            };
            let Ok(protocol) = detected else {
                return Err("nothing was asked in time".into());
            };
            let Some(protocol) = protocol? else {
                return Ok(());
            };
            let stream = self.stalling(stream, &unhurried);
            let stream = Severable::new(Lingering::new(stream, admission), &self.kill, ());
            return self.http(stream, protocol, peer, unhurried, handler).await;
        };
        // Beneath TLS, where every byte that is taken shows.
        let stream = self.stalling(stream, &unhurried);
        let acceptor = tokio_rustls::TlsAcceptor::from(tls.load_full());
        let handshake = timeout(self.options.tls_handshake_timeout, acceptor.accept(stream));
        // Also when a drain begins meanwhile: the client is then told by the protocol instead of being cut off.
        let handshake = Box::pin(handshake).await;
        // Apart: every layer that it is handed on through would have a place for it.
        let stream = Box::new(handshake.map_err(|_| "TLS handshake took too long")??);
        let session = stream.get_ref().1;
        peer.certificate = session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|leaf| Bytes::copy_from_slice(leaf));
        let protocol = match session.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let stream = Severable::new(Lingering::new(stream, admission), &self.kill, ());
        self.http(stream, protocol, peer, unhurried, handler).await
    }

    /// A connection on a Unix socket.
    async fn local<H, F>(
        &self,
        stream: UnixStream,
        admission: Admission,
        handler: H,
    ) -> Result<(), crate::BoxError>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        if self.tls.is_some() {
            return Err("TLS is not served on a Unix socket".into());
        }
        let credentials = stream.peer_cred()?;
        let peer = Peer {
            addr: NOWHERE,
            local: NOWHERE,
            certificate: None,
            tls: false,
            process: Some(Process {
                uid: credentials.uid(),
                // 0 stands for a process of another namespace.
                pid: credentials
                    .pid()
                    .and_then(|pid| u32::try_from(pid).ok())
                    .filter(|pid| *pid > 0),
            }),
            findings: Findings::default(),
        };
        let unhurried = Arc::new(AtomicBool::new(false));
        let stream = self.stalling(stream, &unhurried);
        let stream = Severable::new(Lingering::new(stream, admission), &self.kill, ());
        self.http(stream, Protocol::Http1, peer, unhurried, handler)
            .await
    }

    fn stalling<T>(&self, stream: T, unhurried: &Arc<AtomicBool>) -> Stalling<T> {
        Stalling::new(
            stream,
            self.options.stalled_client.unwrap_or(NEVER),
            unhurried.clone(),
            self.options.clients_cut.clone(),
        )
    }

    async fn http<I, H, F>(
        &self,
        stream: I,
        protocol: Protocol,
        peer: Peer,
        unhurried: Arc<AtomicBool>,
        handler: H,
    ) -> Result<(), crate::BoxError>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let (limit, cut) = (
            self.options.stalled_client,
            self.options.clients_cut.clone(),
        );
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            // Apart until it has answered: hyper keeps a handler's place for as long as its answer's body lives, a watch's for hours.
            let response = Box::pin(handler(request));
            let (unhurried, cut) = (unhurried.clone(), cut.clone());
            async move {
                let response = response.await;
                let may_stall = response.status() == StatusCode::SWITCHING_PROTOCOLS
                    || response.extensions().get::<Unhurried>().is_some();
                Ok::<_, Infallible>(match (protocol, limit) {
                    // On HTTP/2 the connection belongs to others as well.
                    (Protocol::Http2, Some(limit)) if !may_stall => {
                        response.map(|body| Minded::new(body, limit, cut).boxed_unsync())
                    }
                    (Protocol::Http2, _) => response,
                    (Protocol::Http1, _) => {
                        unhurried.store(may_stall, Ordering::Relaxed);
                        response
                    }
                })
            }
        });
        let stream = TokioIo::new(stream);
        let max_header_bytes = self.options.max_header_bytes.max(MIN_HEADER_BYTES);
        match protocol {
            Protocol::Http1 => {
                let mut connection = pin!(
                    hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(self.options.header_read_timeout)
                        .max_buf_size(max_header_bytes)
                        .serve_connection(stream, service)
                        .with_upgrades()
                );
                tokio::select! {
                    ended = connection.as_mut() => return Ok(ended?),
                    () = self.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
                }
                Ok(connection.await?)
            }
            Protocol::Http2 => {
                let mut connection = pin!(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .timer(TokioTimer::new())
                        .max_concurrent_streams(self.options.h2_max_streams)
                        .max_header_list_size(u32::try_from(max_header_bytes).unwrap_or(u32::MAX))
                        .initial_stream_window_size(STREAM_WINDOW)
                        .initial_connection_window_size(CONNECTION_WINDOW)
                        .max_send_buf_size(STREAM_SEND_BUFFER)
                        .keep_alive_interval(PING_INTERVAL)
                        .keep_alive_timeout(PING_TIMEOUT)
                        .serve_connection(stream, service)
                );
                tokio::select! {
                    ended = connection.as_mut() => return Ok(ended?),
                    () = self.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
                }
                Ok(connection.await?)
            }
        }
    }
}

/// Small writes go out at once, and the kernel notices peers that vanished while nothing is said.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_keepalive(
        &socket2::TcpKeepalive::new()
            .with_time(PING_INTERVAL)
            .with_interval(Duration::from_secs(10))
            .with_retries(3),
    )
}

/// Which protocol a plain-text client speaks (RFC 9113 section 3.4: HTTP/2 begins with a preface that is no HTTP/1.1 request).
/// `None`: it went away without a word.
async fn detect(stream: &TcpStream) -> io::Result<Option<Protocol>> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut seen = [0u8; PREFACE.len()];
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 {
            return Ok(None);
        }
        if seen[..length] != PREFACE[..length] {
            return Ok(Some(Protocol::Http1));
        }
        if length == PREFACE.len() {
            return Ok(Some(Protocol::Http2));
        }
        // The socket stays readable, so wait a little instead of asking again at once.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
