//! What both protocols have in common: bounds, why a connection ended, and what the agent's end of one looks like.

mod asking;
pub(crate) mod congestion;
#[cfg(test)]
mod delivery;
mod live;
mod liveness;

pub(crate) use asking::answer_about;
pub(crate) use live::{Live, Occupied};
pub(crate) use liveness::{Heard, Pulse, Question, until_silent};

use crate::hello::ServerHello;
use futures_util::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use std::{io, sync::Arc, time::Duration};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the kernel may hold that it has not sent: what is written next waits behind it, however small and urgent.
const UNSENT: u32 = 128 << 10;
/// Silence after which the kernel gives a connection up, should we be too stuck to do so.
const KERNEL_PATIENCE: Duration = Duration::from_secs(30);

/// Bounds of a connection between an agent and a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the other end may take to say who it is.
    pub hello: Duration,
    /// How long opening one proxied connection may take at the end that dials. Who waits for it there allows a little more.
    pub dial: Duration,
    /// Silence after which the other end is asked whether it lives.
    pub quiet: Duration,
    /// How long it may then stay silent before it counts as dead.
    pub patience: Duration,
    /// Proxied connections at a time.
    pub max_connections: usize,
    /// Bytes that may wait for readers which do not read, of all proxied connections together.
    pub memory: usize,
    /// How long open connections may go on after shutdown began.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            dial: Duration::from_secs(10),
            quiet: Duration::from_secs(4),
            patience: Duration::from_secs(4),
            max_connections: 16_384,
            memory: 64 << 20,
            drain: Duration::from_secs(30),
        }
    }
}

impl Options {
    /// How long the asking end waits for a connection: longer than the dialling end, whose reason is the better one.
    pub(crate) fn await_dial(&self) -> Duration {
        self.dial + Duration::from_secs(2)
    }
}

/// Why a connection between an agent and a server ended, or did not come to be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SessionError {
    /// The network or the other end broke it. Connect again.
    #[error("connection broke: {0}")]
    Broken(String),
    /// Nothing was heard for so long. Connect again.
    #[error("nothing heard for {0:?}")]
    Silent(Duration),
    /// The other end does not want us, and says why. Connect again later: its mind changes with certificates and configuration.
    #[error("refused: {0}")]
    Refused(String),
    /// The other end does not speak the protocol. Nothing to be had from it before it is updated.
    #[error("the other end does not keep to the protocol: {0}")]
    Protocol(String),
    /// We did not want it, now that we know which server it is.
    #[error("server {} is connected already, or there are enough", .0.id)]
    Unwanted(ServerHello),
    /// We ended it.
    #[error("closed")]
    Closed,
}

impl From<io::Error> for SessionError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<h2::Error> for SessionError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR)
                if error.is_library() =>
            {
                Self::Protocol(error.to_string())
            }
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// An agent's connection to a server. Dropping it ends it.
#[derive(Debug)]
pub struct Session {
    /// Who is at the other end.
    pub server: ServerHello,
    /// `mux`, `quic` or `anp`.
    pub protocol: &'static str,
    /// How long a round trip took when the server was connected, where that is known.
    pub(crate) round_trip: Option<Duration>,
    pub(crate) live: Arc<Live>,
    pub(crate) draining: CancellationToken,
    pub(crate) ended: Ended,
    pub(crate) _ends: DropGuard,
}

/// A future that tells why something ended.
pub(crate) struct Ended(BoxFuture<'static, SessionError>);

impl Ended {
    /// With the task that drives it.
    pub(crate) fn with(running: JoinHandle<SessionError>) -> Self {
        Self(Box::pin(async move {
            running
                .await
                .unwrap_or_else(|error| SessionError::Broken(error.to_string()))
        }))
    }
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Ended")
    }
}

impl Session {
    /// Waits until the connection has ended. Not to be awaited again after that.
    pub async fn ended(&mut self) -> SessionError {
        (&mut self.ended.0).await
    }

    /// Cancelled when the server asks to look elsewhere: it stops. Open connections go on.
    pub fn server_drains(&self) -> &CancellationToken {
        &self.draining
    }

    /// Proxied connections that are open.
    pub fn connections(&self) -> usize {
        self.live.count()
    }
}

/// Readies a TCP connection between agent and server: small messages leave at once and wait behind little, and the kernel gives up
/// on a dead peer by itself.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KERNEL_PATIENCE / 3)
            .with_interval(KERNEL_PATIENCE / 3)
            .with_retries(2),
    )?;
    socket.set_tcp_user_timeout(Some(KERNEL_PATIENCE))
}
