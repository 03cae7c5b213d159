//! What the two ends of a tunnel tell each other about themselves, and how they agree on a protocol.

use std::net::IpAddr;

/// ALPN of our own protocol, cloud to edge: on a connection that the agent dialled, the server is the HTTP/2 client and opens a
/// CONNECT stream per proxied connection.
pub const ALPN_MUX: &[u8] = b"yurt-tunnel/1";
/// ALPN of our own protocol, edge to cloud: the agent is the HTTP/2 client and asks the server for cloud addresses by CONNECT.
pub const ALPN_CLOUD: &[u8] = b"yurt-cloud/1";
/// ALPN of konnectivity: gRPC.
pub const ALPN_GRPC: &[u8] = b"h2";

/// What an agent says of itself when it connects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentHello {
    /// Its id: the node's name, unless it is not one of Yurt's.
    pub id: String,
    /// By what it can be asked for.
    pub identifiers: Identifiers,
    /// Program and version, for people; empty for konnectivity's.
    pub version: String,
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// Differs between instances.
    pub id: String,
    /// How many instances there are, as far as it knows; at least 1.
    pub count: u32,
}

/// What an agent can be asked for by: `agentidentifiers` on konnectivity's wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identifiers {
    /// Addresses of the node, of both families.
    pub addresses: Vec<IpAddr>,
    /// Names of the node.
    pub hosts: Vec<String>,
    /// Networks behind the agent: base address and prefix length.
    pub networks: Vec<(IpAddr, u8)>,
    /// Whether it takes what nobody else does.
    pub default_route: bool,
}
