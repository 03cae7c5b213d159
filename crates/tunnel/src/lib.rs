//! The cloud reaches every edge node, though nodes only dial out: logs, commands, port-forwards, metrics and any TCP.
//!
//! An agent on each node keeps a connection to every tunnel server. Whoever wants an address behind a node asks a server for it:
//! kube-apiserver by its egress selector (`CONNECT` or konnectivity's gRPC), other components through ports 10263/10264, people by
//! `yurt tunnel forward`.
//!
//! Begin with [`link`]: the seams between protocols, server and agent. Protocols are `anp` (konnectivity's) and `mux` (ours, between
//! our agent and our server); which one a connection speaks is settled by ALPN ([`hello`]).

pub mod agent;
pub mod allow;
pub mod anp;
pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod directory;
pub mod frontend;
pub(crate) mod grpc;
pub mod hello;
pub mod interceptor;
pub mod link;
#[cfg(test)]
mod monitoring;
pub mod mux;
pub mod network;
pub mod peers;
pub mod published;
pub mod quic;
mod redirect;
pub mod registry;
pub mod reverse;
pub mod routing;
pub mod server;
pub mod session;
pub mod standalone;
pub mod status;
pub mod steering;
#[cfg(test)]
pub(crate) mod twin;
mod wrapping;

pub use cli::{TunnelArgs, TunnelError, run};
pub use directory::Directory;
pub use hello::{AgentHello, Identifiers, ServerHello};
pub use link::{DialError, Link, Opening, Tunnels};
pub use session::{Options, Session, SessionError};
pub(crate) use yurt_transport::pump;
