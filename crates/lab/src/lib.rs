//! The embedded cluster: one API server, a hub per simulated node as its own process behind a breakable link, a
//! simulated kubelet per node.

pub mod bench;
pub mod kubelet;
pub mod link;
