//! konnectivity's protocol, for agents, servers and frontends that are not ours: packets of all connections of an agent on one gRPC
//! stream (<https://github.com/kubernetes-sigs/apiserver-network-proxy>). Both dialects: its current one, and that of OpenYurt's
//! Yurt-Tunnel.
//!
//! The protocol has neither flow control nor half-close for a connection. What it gets here: a bound on what waits for a reader
//! ([`channel`]), past which only that connection is cut; control packets before data; everything delivered before a close; and a moment
//! for the answer between the end of a request and the close.
//!
//! [`core`] decides what packets mean, without any IO, for both roles: who asks for connections and who answers.

pub mod agent;
mod answering;
mod channel;
mod core;
mod packet;
pub mod server;

/// Where agents connect.
const CONNECT: &str = "/AgentService/Connect";
/// Where frontends connect.
const PROXY: &str = "/ProxyService/Proxy";
const AGENT_ID: &str = "agentid";
const AGENT_IDENTIFIERS: &str = "agentidentifiers";
const SERVER_ID: &str = "serverid";
const SERVER_COUNT: &str = "servercount";
/// Of the one stream of an agent, which is read without waiting for anybody.
const WINDOW: u32 = 4 << 20;
/// What may wait for sending in HTTP/2; control packets wait behind it.
const SEND_BUFFER: usize = 128 << 10;

#[cfg(test)]
mod recorded;
#[cfg(test)]
pub(crate) mod tests;
