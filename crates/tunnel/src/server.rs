//! The server: agents, frontends and other instances meet here.
//!
//! [`switchboard`] connects who asks to who can. [`callers`] and the rules of [`cloud`] decide who may do what, and are pure.

pub mod callers;
pub mod cloud;
mod counted;
pub mod metrics;
pub mod switchboard;
