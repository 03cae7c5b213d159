//! How a connection is made: the dial, its handshakes, and what each protocol is told.

use super::{
    Inner, Way,
    error::{DialError, Witness},
    pool::{MAX_STREAMS, Own, Shared},
};
use crate::{BoxStream, severable::Severable};
use http::uri::Authority;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// What the server may have in flight on one stream before we read it: bounds what a stalled stream holds in memory.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for a connection. More than all streams together, or stalled streams would use it up and starve the live ones.
const CONNECTION_WINDOW: u32 = 128 << 20;
const _: () = assert!(MAX_STREAMS as u64 * (STREAM_WINDOW as u64) < CONNECTION_WINDOW as u64);
/// Request bodies buffered per stream.
const STREAM_SEND_BUFFER: usize = 256 << 10;
/// Response heads beyond it break the connection.
pub(super) const MAX_HEADER_BYTES: usize = 256 << 10;

/// Protocols offered to a TLS server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// What the configuration says.
    Configured,
    /// HTTP/1.1, with upgrades.
    UpgradesOnly,
}

/// A new connection.
pub(super) enum Dialed {
    Shared(Shared),
    Own(Own),
}

impl Inner {
    /// Opens a connection within the time for it.
    pub(super) async fn dial(
        &self,
        token: &CancellationToken,
        offer: Offer,
    ) -> Result<Dialed, DialError> {
        let dial = timeout(self.options.connect_timeout, self.open(token, offer));
        tokio::select! {
            () = token.cancelled() => Err(DialError::other("the client was reset")),
            opened = dial => opened.unwrap_or_else(|_| {
                Err(DialError::other(format!("no connection within {:?}", self.options.connect_timeout)))
            }),
        }
    }

    async fn open(&self, token: &CancellationToken, offer: Offer) -> Result<Dialed, DialError> {
        let Some(authority) = &self.authority else {
            return Err(DialError::other("the address is not host:port"));
        };
        let stream = match &self.way {
            Way::Named => TcpStream::connect(authority.as_str()).await,
            Way::At(address) => TcpStream::connect(address).await,
            Way::Through(dialer, to) => {
                let stream: BoxStream = dialer.dial(to).await.map_err(DialError::other)?;
                return self.greet(stream, authority, token, offer).await;
            }
        }
        .map_err(DialError::other)?;
        self.tune(&stream).map_err(DialError::other)?;
        self.greet(stream, authority, token, offer).await
    }

    /// The handshakes on a new connection.
    async fn greet<S>(
        &self,
        stream: S,
        authority: &Authority,
        token: &CancellationToken,
        offer: Offer,
    ) -> Result<Dialed, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(config) = self.tls.load_full() else {
            return match offer {
                Offer::Configured if self.prior_http2 => self.http2(stream, token).await,
                _ => self.http1(stream, token, offer).await,
            };
        };
        let config = match offer {
            Offer::Configured => config,
            Offer::UpgradesOnly => {
                let mut config = (*config).clone();
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Arc::new(config)
            }
        };
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(DialError::other)?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(DialError::handshake)?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.http2(stream, token).await
        } else {
            self.http1(stream, token, offer).await
        }
    }

    fn tune(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = socket2::SockRef::from(stream);
        let interval = self.options.keepalive_interval.max(Duration::from_secs(1));
        socket.set_tcp_keepalive(
            &socket2::TcpKeepalive::new()
                .with_time(interval)
                .with_interval(interval)
                .with_retries(3),
        )?;
        // Sent bytes that nobody acknowledges for this long end the connection.
        socket.set_tcp_user_timeout(Some(interval + self.options.keepalive_timeout))
    }

    async fn http1<S>(
        &self,
        stream: S,
        token: &CancellationToken,
        offer: Offer,
    ) -> Result<Dialed, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let witness = Witness::default();
        let stream = TokioIo::new(Severable::new(stream, token, witness.clone()));
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEADER_BYTES)
            .handshake(stream)
            .await
            .map_err(DialError::other)?;
        let upgrades = offer == Offer::UpgradesOnly;
        tokio::spawn(async move {
            let ended = if upgrades {
                connection.with_upgrades().await
            } else {
                connection.await
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "HTTP/1.1 connection ended");
            }
        });
        Ok(Dialed::Own(Own { sender, witness }))
    }

    async fn http2<S>(&self, stream: S, token: &CancellationToken) -> Result<Dialed, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let witness = Witness::default();
        let stream = TokioIo::new(Severable::new(stream, token, witness.clone()));
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            // Without a timer the pings below are silently left out.
            .timer(TokioTimer::new())
            .keep_alive_interval(self.options.keepalive_interval)
            .keep_alive_timeout(self.options.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(STREAM_SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .handshake(stream)
            .await
            .map_err(DialError::other)?;
        let allowed = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
        let seen = Arc::clone(&allowed);
        let authority = self.text.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let ended = poll_fn(|context| {
                let polled = connection.as_mut().poll(context);
                // The peer's SETTINGS arrive while the connection is driven.
                if polled.is_pending() {
                    seen.store(connection.current_max_send_streams(), Ordering::Release);
                }
                polled
            })
            .await;
            if let Err(error) = ended {
                tracing::debug!(%authority, %error, "HTTP/2 connection ended");
            }
        });
        Ok(Dialed::Shared(Shared::new(sender, allowed, witness)))
    }
}
