//! An HTTP client for one server.

mod connect;
mod error;
mod exchange;
mod head;
mod pool;

use crate::{Body, Destination, Dialer};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use connect::{Dialed, Offer};
pub use error::ClientError;
use error::{Fate, with_cause};
pub use exchange::{ExchangeError, exchange};
use head::{as_http1, as_http2, request_head};
use http::{Request, Response, uri::Authority};
use http_body::Body as _;
use hyper::client::conn::http1;
use pool::{Lease, Own, Pool, StreamSlot};
use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Connections tried for one request that was not processed on the one before.
const ATTEMPTS: usize = 5;

/// Settings of a client for one authority.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// From the name look-up to the end of the TLS and HTTP handshakes.
    pub connect_timeout: Duration,
    /// How long an HTTP/2 connection may be silent before it is pinged, also when no request is open; TCP keep-alive on HTTP/1.1.
    pub keepalive_interval: Duration,
    /// How long a ping may take before the connection counts as dead; with the interval, TCP_USER_TIMEOUT on HTTP/1.1.
    pub keepalive_timeout: Duration,
    /// HTTP/1.1 connections kept idle.
    pub max_idle: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(15),
            max_idle: 32,
        }
    }
}

/// What a client speaks on its connections.
#[derive(Clone, Debug)]
pub enum Channel {
    /// HTTP/1.1 in plain text.
    Plain,
    /// HTTP/2 in plain text, by prior knowledge: gRPC. Upgrades go by HTTP/1.1 all the same.
    PlainHttp2,
    /// What TLS negotiates, with the protocols that the configuration offers.
    Tls(Arc<rustls::ClientConfig>),
}

/// How a client comes to its server.
#[derive(Debug)]
enum Way {
    /// The authority is looked up.
    Named,
    /// There.
    At(SocketAddr),
    /// By whoever knows the way.
    Through(Arc<dyn Dialer>, Destination),
}

/// An HTTP client for one server (`host:port`), TLS or plain. Ordinary requests share an HTTP/2 connection with wide windows (a
/// stalled stream must not starve others) where TLS negotiates it, HTTP/1.1 otherwise. When the streams of a connection are used
/// up (watches live long), another one is opened. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    text: String,
    authority: Option<Authority>,
    way: Way,
    /// Without TLS: HTTP/2 all the same.
    prior_http2: bool,
    tls: ArcSwapOption<rustls::ClientConfig>,
    options: ClientOptions,
    pool: Mutex<Pool>,
}

impl Channel {
    fn of(tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        tls.map_or(Self::Plain, Self::Tls)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("authority", &self.inner.text)
            .field("tls", &self.inner.tls.load().is_some())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client for `authority` (`host:port`). `tls: None` is plain text. Connects when the first request is sent.
    pub fn new(
        authority: &str,
        tls: Option<Arc<rustls::ClientConfig>>,
        options: ClientOptions,
    ) -> Self {
        Self::reaching(authority, Way::Named, Channel::of(tls), options)
    }

    /// As [`Client::new`], for a server known by a name that is not looked up: connections go to `address`, while Host and
    /// TLS name `authority`.
    pub fn at(
        authority: &str,
        address: SocketAddr,
        tls: Option<Arc<rustls::ClientConfig>>,
        options: ClientOptions,
    ) -> Self {
        Self::reaching(authority, Way::At(address), Channel::of(tls), options)
    }

    /// As [`Client::new`], for a server that only `dialer` can reach: connections are streams that it opens to `to`, while Host and
    /// TLS name `authority`. What watches over TCP connections (keep-alive) is the dialer's.
    pub fn through(
        authority: &str,
        dialer: Arc<dyn Dialer>,
        to: Destination,
        channel: Channel,
        options: ClientOptions,
    ) -> Self {
        Self::reaching(authority, Way::Through(dialer, to), channel, options)
    }

    fn reaching(authority: &str, way: Way, channel: Channel, options: ClientOptions) -> Self {
        let prior_http2 = matches!(channel, Channel::PlainHttp2);
        let tls = match channel {
            Channel::Tls(config) => Some(config),
            Channel::Plain | Channel::PlainHttp2 => None,
        };
        Self {
            inner: Arc::new(Inner {
                text: authority.to_owned(),
                authority: authority
                    .parse::<Authority>()
                    .ok()
                    .filter(|parsed| parsed.port_u16().is_some()),
                way,
                prior_http2,
                tls: ArcSwapOption::new(tls),
                options,
                pool: Mutex::default(),
            }),
        }
    }

    /// `host:port` of the server.
    pub fn authority(&self) -> &str {
        &self.inner.text
    }

    /// Open connections that the next request could use: 0 when the server was never reached or all have gone.
    pub fn connections(&self) -> usize {
        self.inner.pool().connections()
    }

    /// Sends a request; the URI may be a path only (authority and Host are set here). Waits for the response head
    /// at most `timeout`. The response body is not timed.
    ///
    /// A request without a body that the server did not begin with is sent again on another connection; one that changes nothing
    /// also when the server closed the connection (without an error) before it answered.
    pub async fn send(
        &self,
        request: Request<Body>,
        timeout: Duration,
    ) -> Result<Response<ResponseBody>, ClientError> {
        let inner = &self.inner;
        let authority = inner.authority()?;
        let begin = Instant::now();
        let deadline = begin + timeout;
        let too_late = || ClientError::Timeout {
            authority: inner.text.clone(),
            after: timeout,
        };
        let repeatable = request.body().is_end_stream();
        let safe = request.method().is_safe();
        let mut request = request;
        for attempt in 1.. {
            let copy = (repeatable && attempt < ATTEMPTS).then(|| request_head(&request));
            let lease = match timeout_at(deadline, inner.lease()).await {
                Ok(lease) => lease?,
                Err(_) => return Err(ClientError::connect(&inner.text, "no connection in time")),
            };
            let (failure, unprocessed, witness) = match lease {
                Lease::Shared { mut shared, slot } => {
                    as_http2(&mut request, authority, inner.tls.load().is_some());
                    match timeout_at(deadline, shared.sender.try_send_request(request)).await {
                        Err(_) => return Err(too_late()),
                        Ok(Ok(response)) => {
                            return Ok(
                                response.map(|body| ResponseBody::new(body, Hold::Stream(slot)))
                            );
                        }
                        Ok(Err(failure)) => {
                            let fate = Fate::of(failure.error());
                            // It goes away: hyper may not have noticed yet.
                            if fate == Fate::LeftBehind || failure.message().is_some() {
                                inner.pool().retire_shared(&shared);
                            }
                            let unprocessed =
                                fate == Fate::Unprocessed || fate == Fate::LeftBehind && safe;
                            (failure, unprocessed, shared.witness)
                        }
                    }
                }
                Lease::Own { mut own, reused } => {
                    as_http1(&mut request, authority);
                    let epoch = inner.pool().epoch;
                    match timeout_at(deadline, own.sender.try_send_request(request)).await {
                        Err(_) => return Err(too_late()),
                        Ok(Ok(response)) => {
                            inner.give_back(own, epoch);
                            return Ok(response.map(|body| ResponseBody::new(body, Hold::Nothing)));
                        }
                        // The server closed an idle connection while the request was on its way (RFC 9112 section 9.5 allows
                        // to repeat safe requests then).
                        Ok(Err(failure)) => {
                            let unprocessed =
                                reused && safe && failure.error().is_incomplete_message();
                            (failure, unprocessed, own.witness)
                        }
                    }
                }
            };
            let mut failure = failure;
            request = match (failure.take_message(), copy) {
                (Some(request), _) if attempt < ATTEMPTS => request,
                (Some(_), _) => {
                    return Err(ClientError::connect(&inner.text, failure.into_error()));
                }
                (None, Some(head)) if unprocessed => Request::from_parts(head, crate::empty()),
                (None, _) => {
                    let error = failure.into_error();
                    return Err(ClientError::exchange(&inner.text, error, &witness));
                }
            };
            tracing::debug!(authority = %inner.text, attempt, "the connection closed before the request, trying another");
        }
        Err(ClientError::connect(&inner.text, "no usable connection"))
    }

    /// Sends an upgrade request (SPDY, WebSocket) on its own HTTP/1.1 connection; the response keeps its `OnUpgrade`.
    pub async fn send_upgrade(
        &self,
        mut request: Request<Body>,
        timeout: Duration,
    ) -> Result<Response<ResponseBody>, ClientError> {
        let inner = &self.inner;
        let authority = inner.authority()?;
        let deadline = Instant::now() + timeout;
        let token = inner.pool().token.clone();
        let dialed = match timeout_at(deadline, inner.dial(&token, Offer::UpgradesOnly)).await {
            Ok(dialed) => dialed.map_err(|error| error.for_authority(&inner.text))?,
            Err(_) => return Err(ClientError::connect(&inner.text, "no connection in time")),
        };
        let Dialed::Own(mut own) = dialed else {
            return Err(ClientError::connect(
                &inner.text,
                "the server insists on HTTP/2",
            ));
        };
        as_http1(&mut request, authority);
        match timeout_at(deadline, own.sender.send_request(request)).await {
            Err(_) => Err(ClientError::Timeout {
                authority: inner.text.clone(),
                after: timeout,
            }),
            Ok(Err(error)) => Err(ClientError::exchange(&inner.text, error, &own.witness)),
            Ok(Ok(response)) => {
                Ok(response.map(|body| ResponseBody::new(body, Hold::Connection(own.sender))))
            }
        }
    }

    /// Drops every pooled connection and breaks those in use, upgraded ones too: their bodies end with an error at once. Dials that
    /// are under way fail.
    pub fn reset(&self) {
        self.inner.pool().reset();
    }

    /// Replaces the TLS configuration for new connections. Requests that are under way end on their old connections (see
    /// [`Client::end_retired`]); no new ones are sent there. Does not turn a plain client into a TLS client.
    pub fn set_tls(&self, tls: Arc<rustls::ClientConfig>) {
        if self.inner.tls.load().is_some() {
            self.inner.tls.store(Some(tls));
            self.inner.pool().retire();
        }
    }

    /// Breaks connections that are in use only by requests from before the last [`Client::set_tls`]: their certificate ends.
    pub fn end_retired(&self) {
        self.inner.pool().end_retired();
    }
}

/// The body of a response. Holds its stream of the connection until it is dropped; dropping it before its end cancels the stream.
#[derive(Debug)]
pub struct ResponseBody {
    body: hyper::body::Incoming,
    _hold: Hold,
}

#[derive(Debug)]
#[allow(dead_code, reason = "held for their drop")]
enum Hold {
    Nothing,
    Stream(StreamSlot),
    Connection(http1::SendRequest<Body>),
}

impl ResponseBody {
    fn new(body: hyper::body::Incoming, hold: Hold) -> Self {
        Self { body, _hold: hold }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Inner {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        // The pool is valid after every statement, so a panic elsewhere does not spoil it.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn authority(&self) -> Result<&Authority, ClientError> {
        self.authority
            .as_ref()
            .ok_or_else(|| ClientError::connect(&self.text, "the address is not host:port"))
    }

    /// A connection with room for a request: pooled, or new.
    async fn lease(self: &Arc<Self>) -> Result<Lease, ClientError> {
        loop {
            let (token, dialing) = {
                let mut pool = self.pool();
                if let Some(lease) = pool.take() {
                    return Ok(lease);
                }
                // Only HTTP/2 connections are worth waiting for in company.
                let alone = pool.exclusive || self.tls.load().is_none() && !self.prior_http2;
                let dialing = (!alone).then(|| match &pool.dialing {
                    Some(dialing) => dialing.clone(),
                    None => self.dial_for_all(&mut pool),
                });
                (pool.token.clone(), dialing)
            };
            let Some(mut dialing) = dialing else {
                match self.dial(&token, Offer::Configured).await {
                    Ok(Dialed::Own(own)) => return Ok(Lease::Own { own, reused: false }),
                    // The server was restarted with HTTP/2.
                    Ok(Dialed::Shared(shared)) => {
                        let mut pool = self.pool();
                        pool.exclusive = false;
                        pool.put_shared(shared);
                        continue;
                    }
                    Err(error) => return Err(error.for_authority(&self.text)),
                }
            };
            // A dropped sender means that the dial was abandoned by a reset: look again.
            if let Ok(result) = dialing.wait_for(Option::is_some).await
                && let Some(Err(error)) = &*result
            {
                return Err(error.clone().for_authority(&self.text));
            }
        }
    }

    /// Starts a dial whose connection goes to the pool. It is a task of its own: the caller who started it may give up, others wait.
    fn dial_for_all(self: &Arc<Self>, pool: &mut Pool) -> pool::DialResult {
        let (sender, receiver) = watch::channel(None);
        pool.dialing = Some(receiver.clone());
        let (token, epoch) = (pool.token.clone(), pool.epoch);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let dialed = inner.dial(&token, Offer::Configured).await;
            let mut pool = inner.pool();
            let current = pool.epoch == epoch;
            if current {
                pool.dialing = None;
            }
            let result = match dialed {
                Ok(Dialed::Shared(shared)) => {
                    if current {
                        pool.put_shared(shared);
                    }
                    Ok(())
                }
                Ok(Dialed::Own(own)) => {
                    if current {
                        pool.exclusive = true;
                        pool.put_idle(own, inner.options.max_idle.max(1));
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            drop(pool);
            // Nobody waits any more: nothing to tell.
            let _ = sender.send(Some(result));
        });
        receiver
    }

    /// Puts an HTTP/1.1 connection back when its response has been read.
    fn give_back(self: &Arc<Self>, mut own: Own, epoch: u64) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            if own.sender.ready().await.is_ok() {
                let mut pool = inner.pool();
                if pool.epoch == epoch {
                    pool.put_idle(own, inner.options.max_idle);
                }
            }
        });
    }
}
