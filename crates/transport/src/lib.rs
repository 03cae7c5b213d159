//! Connections: listeners that drain, and HTTP clients that notice a dead peer.
//!
//! What the parts promise:
//!
//! - [`serve`]: HTTP/1.1 (with upgrades) and HTTP/2, plain or TLS. Every wait and every queue has a bound: the TLS handshake, the
//!   first bytes, the request head, the number of connections and streams, what is buffered for a peer that stops reading, and for how long.
//! - [`Client`]: shares few connections among many long streams, opens another one when the peer's stream limit is reached, pings
//!   them so that a black hole is noticed, and can break all of them at once ([`Client::reset`]).
//! - [`Dialer`]: opens streams where only somebody else knows the way; [`Client::through`] pools them, [`exchange`] uses one for one
//!   request.
//! - [`pump`](pump::pump): bytes both ways between two streams, with half-close; [`join_upgraded`]: between what upgrades leave.
//! - [`body`]-functions [`full`], [`empty`], [`chunks`], [`channel`] and [`collect`]: the bodies all components use.

pub mod body;
mod client;
mod dial;
mod hop;
mod lingering;
mod minded;
pub mod pump;
mod server;
mod severable;
mod stalling;
mod switched;

pub use body::{Body, BoxError, CollectError, channel, chunks, collect, empty, full, next_joined};
pub use client::{
    Channel, Client, ClientError, ClientOptions, ExchangeError, ResponseBody, exchange,
};
pub use dial::{BoxStream, Destination, Dialer, Dialing, InvalidDestination, Stream, TcpDialer};
pub use hop::{is_upgrade, strip_hop_by_hop};
pub use server::{Findings, Listening, Peer, Process, ServeOptions, Unhurried, serve};
pub use switched::join_upgraded;
