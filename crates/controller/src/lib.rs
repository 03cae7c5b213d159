//! What controllers run on, as client-go and controller-runtime are for Go.
//!
//! Start with [`Controller`]: what it watches and how it brings one object in order. [`run`] gives it a queue and workers;
//! controllers of one process share one watch per collection ([`Objects`]) and write through a [`Context`]. The other modules
//! are what controllers of workloads have in common. Nothing here knows an API server but by its API.

pub mod access;
pub mod batch;
pub mod claim;
mod collection;
pub mod collections;
pub mod condition;
mod context;
pub mod election;
pub mod feed;
pub mod fields;
pub mod kube;
pub mod kubeconfig;
pub mod limit;
pub mod metrics;
pub mod node_affinity;
pub mod node_lifecycle;
mod objects;
pub mod pod;
pub mod pod_control;
pub mod policy;
pub mod queue;
pub mod resources;
pub mod revision;
mod runner;
pub mod selection;
pub mod share;
pub mod signing_request;
pub mod taint;
pub mod template_hash;

pub use collection::{Collection, Key, Scope};
pub use context::Context;
pub use objects::{Change, Objects, Standing, controller_of};
pub use runner::{Concerns, Controller, Failure, Next, Watch, run, run_with};
