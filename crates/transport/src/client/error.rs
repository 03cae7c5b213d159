//! Why a request got no response.

use crate::{BoxError, severable::Watcher};
use std::{
    error::Error,
    fmt, io,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection: nothing was sent, safe to retry elsewhere.
    #[error("connect {authority}: {source}")]
    Connect {
        /// `host:port` of the server.
        authority: String,
        /// What went wrong.
        source: BoxError,
    },
    /// TLS failed: the peer is not who it should be, or does not accept who we are.
    #[error("tls {authority}: {source}")]
    Tls {
        /// `host:port` of the server.
        authority: String,
        /// What went wrong.
        source: BoxError,
    },
    /// The connection broke after the request may have been sent.
    #[error("request to {authority} broke: {source}")]
    Broken {
        /// `host:port` of the server.
        authority: String,
        /// What went wrong.
        source: BoxError,
    },
    /// No answer in time.
    #[error("{authority} did not answer within {after:?}")]
    Timeout {
        /// `host:port` of the server.
        authority: String,
        /// How long was waited.
        after: Duration,
    },
}

impl ClientError {
    /// Whether the request cannot have reached the peer's handler.
    pub fn not_sent(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Tls { .. })
    }

    /// Whether TLS failed because the peer does not accept who we are: it said so.
    pub fn is_refusal(&self) -> bool {
        let Self::Tls { source, .. } = self else {
            return false;
        };
        let error = match source.downcast_ref::<DialError>() {
            Some(dial) => dial.source.downcast_ref().and_then(rustls_error),
            None => source.downcast_ref(),
        };
        matches!(error, Some(rustls::Error::AlertReceived(_)))
    }

    pub(super) fn connect(authority: &str, source: impl Into<BoxError>) -> Self {
        Self::Connect {
            authority: authority.to_owned(),
            source: source.into(),
        }
    }

    /// A failed exchange on an open connection. A TLS 1.3 server refuses a client certificate only after the client's handshake is
    /// over, so that such an alert shows up here.
    pub(super) fn exchange(authority: &str, error: hyper::Error, witness: &Witness) -> Self {
        let authority = authority.to_owned();
        match witness.0.get() {
            Some(alert) => Self::Tls {
                authority,
                source: rustls::Error::AlertReceived(*alert).into(),
            },
            None => Self::Broken {
                authority,
                source: with_cause(error),
            },
        }
    }
}

/// Remembers with which alert a TLS peer refused us: the error does not come through h2 as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Witness(Arc<OnceLock<rustls::AlertDescription>>);

impl Watcher for Witness {
    fn read_failed(&self, error: &io::Error) {
        if let Some(rustls::Error::AlertReceived(alert)) = rustls_error(error)
            && is_refusal(*alert)
        {
            // The first alert is the one that counts.
            let _ = self.0.set(*alert);
        }
    }
}

/// A failed dial, shared by all who waited for it.
#[derive(Clone, Debug)]
pub(super) struct DialError {
    tls: bool,
    source: Arc<dyn Error + Send + Sync>,
}

impl DialError {
    pub(super) fn other(source: impl Into<BoxError>) -> Self {
        Self {
            tls: false,
            source: Arc::from(source.into()),
        }
    }

    pub(super) fn handshake(error: io::Error) -> Self {
        Self {
            tls: rustls_error(&error).is_some(),
            source: Arc::new(error),
        }
    }

    pub(super) fn for_authority(self, authority: &str) -> ClientError {
        let authority = authority.to_owned();
        if self.tls {
            ClientError::Tls {
                authority,
                source: Box::new(self),
            }
        } else {
            ClientError::Connect {
                authority,
                source: Box::new(self),
            }
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(formatter)
    }
}

impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// hyper's message names the place and its source the cause; logs want both.
pub(super) fn with_cause(error: hyper::Error) -> BoxError {
    match error.source() {
        Some(cause) => format!("{error}: {cause}").into(),
        None => error.into(),
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn is_refusal(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::HandshakeFailure
    )
}

/// What a server that closes a stream or connection says of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was not begun with: a refused stream (RFC 9113 section 8.7).
    Unprocessed,
    /// The connection was being closed without an error: most likely not begun with, but h2 does not tell whether the stream was
    /// above the last one that the server took.
    LeftBehind,
    /// Nothing is known.
    Unknown,
}

impl Fate {
    pub(super) fn of(error: &hyper::Error) -> Self {
        let cause = error.source().and_then(|cause| cause.downcast_ref());
        match cause {
            Some(error) => Self::of_h2(error),
            None => Self::Unknown,
        }
    }

    fn of_h2(error: &h2::Error) -> Self {
        match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) if error.is_remote() => Self::Unprocessed,
            Some(h2::Reason::NO_ERROR) if error.is_remote() && error.is_go_away() => {
                Self::LeftBehind
            }
            _ => Self::Unknown,
        }
    }
}
