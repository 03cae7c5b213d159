//! Who is calling.

/// The identity a request is answered under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Caller {
    /// A component of this node without credentials of its own: goes to the cloud with the node's client certificate.
    Node,
    /// A bearer token, by its SHA-256 (hex, first 32 digits); goes to the cloud with the token and no certificate.
    Bearer(String),
}

impl Caller {
    /// A short stable key (`node`, `b:<hash>`), as used in cache records and metrics.
    pub fn key(&self) -> String {
        match self {
            Self::Node => "node".into(),
            Self::Bearer(hash) => format!("b:{hash}"),
        }
    }

    /// The inverse of [`Caller::key`].
    pub fn from_key(key: &str) -> Option<Self> {
        match key {
            "node" => Some(Self::Node),
            _ => key.strip_prefix("b:").map(|hash| Self::Bearer(hash.into())),
        }
    }
}
