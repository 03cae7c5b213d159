//! The node proxy: an edge node that outlives its cloud link.
//!
//! Start with [`query::Query`] (what a caller wants, apart from representation), then [`route`] (who answers),
//! [`upstream`] and [`link`] (the cloud side), [`cache`] (what the node knows), [`offline`] (answers without the cloud),
//! [`journal`] (what the node wrote meanwhile), [`endpoints`] (what that means for services), [`proxy`] (the pipeline that ties them together), [`relay`] (watches that go
//! on over a cut), [`server`] (listeners, and how it all starts). [`autonomy`] is the node's life as the cluster sees it,
//! [`doctor`] and [`drill`] tell whether it would go on alone; [`ota`] upgrades its pods
//! as its owner decides.

pub mod autonomy;
pub mod backing;
pub mod cache;
pub mod caller;
pub mod certificates;
pub mod config;
pub mod deadline;
pub mod doctor;
pub mod drill;
pub mod endpoints;
mod events;
pub mod explain;
pub mod filter;
pub mod follow;
pub mod identity;
pub mod journal;
pub mod link;
pub mod local_mode;
pub mod metrics;
pub mod network;
pub mod offline;
pub mod ota;
pub mod pool;
pub mod prefetch;
pub mod processes;
pub mod proxy;
pub mod query;
pub mod reconnect;
pub mod relay;
pub mod route;
pub mod rules;
pub mod server;
pub mod settings;
pub mod tee;
pub mod tenant;
pub mod tokens;
pub mod upgrade;
pub mod upstream;

pub use config::{Config, ConfigError, HubArgs};
pub use server::{HubError, run};

/// How the hub names itself to API servers.
pub const USER_AGENT: &str = concat!("yurthub/", env!("CARGO_PKG_VERSION"));
