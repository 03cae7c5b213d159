//! OpenYurt's controllers and webhooks: pools, workloads per pool, upgrades, autonomy.
//!
//! Each controller is a module with a pure core (a plan computed from values) and a thin [`yurt_controller::Controller`] around
//! it; its [`Entry`] says its names, what it may do, and how it starts. [`CONTROLLERS`] lists them all.

mod csr_approver;
mod daemon_pod_updater;
mod delegate_lease;
pub mod deploy;
mod fitting;
mod hubleader;
mod image_preheat;
mod load_balancer_set;
#[cfg(test)]
mod monitoring;
mod node_bucket;
mod node_conversion;
mod node_life_cycle;
mod nodepool;
mod pod_binding;
mod presence;
pub mod process;
mod registry;
#[cfg(test)]
mod regressions;
mod service_topology;
mod settings;
#[cfg(test)]
mod stage;
mod told;
pub mod webhook;
mod yurt_static_set;
mod yurtappdaemon;
mod yurtappset;

pub use process::{Config, ManagerArgs, ManagerError, run};
pub use registry::{CONTROLLERS, Entry, names, start_in};
pub use settings::{NodeLifeCycle, Settings};

use yurt_controller::{
    Context, Controller, Failure, Key, Next, Watch, collections, condition, controller_of, fields,
    pod, revision, taint,
};
