//! Whose a token is, or why it says nothing.

use super::{jwt::MAX_TOKEN, known::Known};
use std::sync::Arc;

/// Why a token says nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token does not say what a service account's says")]
    Malformed,
    #[error("the token is signed in a way that is not accepted")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the cloud refused the token")]
    Denied,
    #[error("the token is not a web token, and the cloud never accepted it through this node")]
    Opaque,
    #[error("the token is of an issuer whose keys this node does not know")]
    Issuer,
    #[error("the token is signed by a key that this node does not know")]
    Key,
    #[error("the token is for other audiences than the API server")]
    Audience,
}

impl Refusal {
    /// Whether the node knows that the token is bad, rather than not knowing that it is good: the cloud may have accepted it all
    /// the same (another authenticator, a token of a secret, which never ends).
    pub fn is_certain(self) -> bool {
        matches!(
            self,
            Self::TooLong | Self::Signature | Self::Expired | Self::NotYet | Self::Denied
        )
    }

    /// As a label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYet => "not_yet_valid",
            Self::Denied => "denied",
            Self::Opaque => "opaque",
            Self::Issuer => "issuer",
            Self::Key => "key",
            Self::Audience => "audience",
        }
    }
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This user's.
    Known(Arc<Known>),
    /// The node cannot tell.
    Unknown(Refusal),
    /// It is good for nothing.
    Refused(Refusal),
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        if refusal.is_certain() {
            Self::Refused(refusal)
        } else {
            Self::Unknown(refusal)
        }
    }
}
