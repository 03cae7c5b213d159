//! The seams: what a connection to an agent can do, and what the server as a whole can.

use crate::hello::AgentHello;
use http::StatusCode;
use std::{fmt, future::Future, io, pin::Pin};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination};

/// A proxied connection that is being opened. Dropping it gives up, at the far end too.
///
/// The stream that comes of it: `shutdown` is half-close (the peer reads to the end and may still answer) where the protocol knows
/// it; dropping it without is a reset. Reads and writes wait for the far end's window, never for other streams.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<BoxStream, DialError>> + Send + 'a>>;

/// One live connection to one agent, in whatever protocol.
pub trait Link: fmt::Debug + Send + Sync {
    /// Who is at the other end, as it said (not what it may claim: that is for whoever registers it).
    fn hello(&self) -> &AgentHello;
    /// The protocol, for people and metrics: `mux`, `quic` or `anp`.
    fn protocol(&self) -> &'static str;
    /// Whether the agent made it beside others because it is better than they are: then it is dialled by.
    fn is_preferred(&self) -> bool {
        false
    }
    /// Another connection of the same agent came or ended: unless the agent proves now that this one lives, it is not preferred.
    fn doubt(&self) {}
    /// Has the agent dial `to`. Bounded in time by the link itself.
    fn dial<'a>(&'a self, to: &'a Destination) -> Opening<'a>;
    /// Whether the agent asked for no more dials.
    fn is_draining(&self) -> bool;
    /// Tells the agent to look elsewhere: this server stops. Open connections go on.
    fn drain(&self);
    /// Proxied connections that are open.
    fn connections(&self) -> usize;
    /// Cancelled when the connection to the agent has ended; cancelling it ends it.
    fn closed(&self) -> &CancellationToken;
}

/// Opens connections to what is behind agents, by whichever agent and server: the tunnel as its users see it.
pub trait Tunnels: fmt::Debug + Send + Sync {
    /// Opens a connection to `to`. [`Destination::node`] names the agent to use where the caller knows it. Bounded in time.
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a>;
}

/// Why there is no connection. The text is for the caller, and says what to look at.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DialError {
    /// The target cannot be one: no port, a name that is none.
    #[error("{0}")]
    Invalid(String),
    /// No agent is connected that reaches the target. Passing when the node comes back.
    #[error("No agent available: {0}")]
    NoAgent(String),
    /// The agent may not reach the target (its allow-list), or the caller may not ask for it.
    #[error("{0}")]
    Forbidden(String),
    /// The agent tried and could not: refused, unreachable, unknown name.
    #[error("{0}")]
    Failed(String),
    /// Nobody answered in time.
    #[error("{0}")]
    TimedOut(String),
    /// The connection to the agent ended meanwhile. Worth a try by another one.
    #[error("{0}")]
    Lost(String),
    /// A bound was reached: connections of an agent, open files. Passing.
    #[error("{0}")]
    Busy(String),
}

impl DialError {
    /// `most` connections are proxied already, as many as there may be.
    pub(crate) fn full(most: usize) -> Self {
        Self::Busy(format!("there are {most} connections already"))
    }

    /// The connection by which it was asked is over.
    pub(crate) fn over() -> Self {
        Self::Lost("the tunnel's connection ended".into())
    }

    /// What a CONNECT that failed so is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NoAgent(_) | Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(_) | Self::Lost(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What a status other than 200 means that answered a CONNECT: the kind that has this status, as far as a status tells.
    pub fn of_status(status: StatusCode, text: String) -> Self {
        match status {
            StatusCode::BAD_REQUEST => Self::Invalid(text),
            StatusCode::FORBIDDEN => Self::Forbidden(text),
            StatusCode::SERVICE_UNAVAILABLE => Self::Busy(text),
            StatusCode::GATEWAY_TIMEOUT => Self::TimedOut(text),
            _ => Self::Failed(text),
        }
    }

    /// Whether another way to the same target may work: the fault is not the target's.
    pub fn may_retry(&self) -> bool {
        matches!(self, Self::NoAgent(_) | Self::Lost(_) | Self::Busy(_))
    }
}

/// What the far end's dialler said.
impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        if let Some(inner) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Self>())
        {
            return inner.clone();
        }
        let text = error.to_string();
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut(text),
            io::ErrorKind::PermissionDenied => Self::Forbidden(text),
            io::ErrorKind::InvalidInput => Self::Invalid(text),
            // EMFILE, ENFILE
            _ if matches!(error.raw_os_error(), Some(23 | 24)) => Self::Busy(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        let kind = match &error {
            DialError::Invalid(_) => io::ErrorKind::InvalidInput,
            DialError::Forbidden(_) => io::ErrorKind::PermissionDenied,
            DialError::TimedOut(_) => io::ErrorKind::TimedOut,
            DialError::NoAgent(_) => io::ErrorKind::NotConnected,
            DialError::Failed(_) => io::ErrorKind::ConnectionRefused,
            DialError::Lost(_) => io::ErrorKind::ConnectionReset,
            DialError::Busy(_) => io::ErrorKind::ResourceBusy,
        };
        Self::new(kind, error)
    }
}
