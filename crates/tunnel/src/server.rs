//! The server: agents, frontends and other instances meet here.
//!
//! [`gate`] lets them in, [`switchboard`] connects who asks to who can, [`process`] is all of it. [`callers`] and the rules of
//! [`cloud`] decide who may do what, and are pure.

mod args;
pub mod callers;
pub mod cloud;
mod counted;
pub mod gate;
mod meta;
pub mod metrics;
pub mod process;
mod quic;
mod run;
pub mod switchboard;

pub use args::ServerArgs;
pub use process::{Config, FrontendPort, Server, ServerError, UnixSocket, start};
pub use run::{RunError, run};

#[cfg(test)]
pub(crate) mod tests;
