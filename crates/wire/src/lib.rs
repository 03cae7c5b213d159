//! Kubernetes on the wire.
//!
//! Everything in this crate is a pure function of bytes and values: no sockets, no clocks, no
//! files. Start with [`request::RequestInfo`] (what a request asks for), [`media`] (in which
//! representation), [`object`] (an object as bytes with its metadata), [`list`] and [`watch`]
//! (many objects as bytes), then [`transcode`] (JSON <-> protobuf by the tables of [`schema`]).

pub mod gvk;
mod json;
pub mod list;
pub mod media;
pub mod object;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod request;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod transcode;
pub mod watch;

pub use gvk::{Gvk, Gvr};
pub use media::Encoding;
pub use object::{Object, ObjectKey, ObjectMeta};
pub use request::{RequestInfo, Verb};
pub use status::{Reason, Status};
