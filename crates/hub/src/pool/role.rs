//! What this node is to its pool.

use std::net::SocketAddr;

/// Another node of the pool, as a candidate for leading it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerNode {
    /// The node's name.
    pub node: Box<str>,
    /// Where its hub serves the pool.
    pub address: SocketAddr,
}

impl std::fmt::Display for PeerNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.node, self.address)
    }
}

/// Where what the pool shares comes from, for this node. Two leaders for a moment cost bandwidth, never correctness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Nothing is shared: this node asks the cloud itself.
    #[default]
    Alone,
    /// The others ask this node. It asks the cloud, and answers from its cache while it has no link.
    Leader,
    /// This node asks another one, whatever its own link.
    Follower(PeerNode),
}

impl Role {
    /// Its name in status, metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Leader => "leader",
            Self::Follower(_) => "follower",
        }
    }

    /// Who leads, as far as this node goes by it: `None` when nobody does or it does itself.
    pub fn leader(&self) -> Option<&PeerNode> {
        match self {
            Self::Follower(peer) => Some(peer),
            Self::Alone | Self::Leader => None,
        }
    }
}
