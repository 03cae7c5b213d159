//! The embedded cluster: one API server, a hub per simulated node as its own process behind a breakable link, a
//! simulated kubelet per node.
//!
//! Start with [`cluster::Cluster`], which starts and commands it all; [`up`] leaves one running, [`demo`] tells a
//! story with one, [`bench`] measures with one.

pub mod apiserver;
pub mod bench;
pub mod cluster;
mod columns;
pub mod control;
mod control_plane;
pub mod controllers;
mod credentials;
pub mod demo;
pub mod directory;
mod egress;
pub mod hub_process;
pub mod kubelet;
mod light_nodes;
pub mod link;
mod manager;
pub mod plan;
mod pools;
mod rbac;
mod tunnel;
pub mod up;

use yurt_controller::{kube, kubeconfig};
