//! `apps.openyurt.io`: pools of nodes and what runs in them.

pub mod nodebucket;
pub mod nodepool;
pub mod workload;
pub mod yurtappdaemon;
pub mod yurtappoverrider;
pub mod yurtappset;
pub mod yurtstaticset;

/// The API group.
pub const GROUP: &str = "apps.openyurt.io";
