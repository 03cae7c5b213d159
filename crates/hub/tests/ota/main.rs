//! Upgrades decided by the node's owner, by REST: who may, when, and what comes of it.

#[allow(dead_code, reason = "shared with the hub's other tests")]
#[path = "../hub/cloud.rs"]
mod cloud;
mod daemon_set;
mod deletion;
mod edge;
#[path = "../hub/link.rs"]
mod link;
#[allow(dead_code, reason = "shared with the hub's other tests")]
#[path = "../hub/node.rs"]
mod node;
mod policy;
mod rights;
mod static_pod;
