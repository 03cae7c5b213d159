//! `network.openyurt.io`: load balancers per pool.

pub mod poolservice;

/// The API group.
pub const GROUP: &str = "network.openyurt.io";
