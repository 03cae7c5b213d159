//! The native controllers: what kube-controller-manager, kube-scheduler and, for pools and upgrades, OpenYurt's manager do in a real
//! cluster, as far as an edge platform needs it.
//!
//! Each controller is one file with a pure core (a plan computed from values) and a thin [`Controller`] around it. They share
//! one watch per collection ([`Objects`]), write through one [`Context`], and are known by the names that kube-controller-manager
//! and OpenYurt use, so that [`Selection`] (`--controllers`) can leave any of them to the real one.

mod batch;
mod certificates;
mod claim;
pub(crate) mod collections;
pub(crate) mod condition;
mod context;
mod cronjob;
pub(crate) mod daemon_pod_updater;
mod daemonset;
pub(crate) mod delegate_lease;
mod deployment;
mod disruption;
mod endpoints;
mod feed;
mod fields;
mod garbage;
mod hubleader;
mod image_preheat;
mod job;
mod node_affinity;
mod node_lifecycle;
mod nodepool;
mod objects;
mod pod;
mod pod_control;
mod pod_gc;
mod queue;
mod replicaset;
mod resource_quota;
mod revision;
mod runner;
mod scheduler;
pub(crate) mod selection;
mod settings;
mod share;
#[cfg(test)]
pub(crate) mod stage;
mod statefulset;
mod taint;
mod taint_eviction;
mod template_hash;
mod volumes;

pub use context::Context;
pub use objects::{Change, Collection, Key, Objects};
pub(crate) use runner::run;
pub use runner::{Concerns, Controller, Failure, Next, Watch};
pub use selection::{Selection, UnknownController};
pub use settings::{NodeMonitor, Settings};

use crate::kube::Kube;
use certificates::{
    approving::Approving, cleaning::Cleaning, hubs::HubApproving, signing::Signing,
};
use endpoints::{legacy::Endpoints, mirroring::Mirroring, slices::EndpointSlices};
use resource_quota::ResourceQuotas;
use std::sync::Arc;
use taint_eviction::TaintEviction;
use tokio_util::sync::CancellationToken;
use volumes::{
    binder::Binder,
    protection::{ClaimProtection, VolumeProtection},
};

/// One controller: its name and how it is started.
pub(crate) struct Entry {
    /// The name in kube-controller-manager's `--controllers`.
    pub(crate) name: &'static str,
    /// Starts it; it ends with the context.
    pub(crate) start: fn(&Arc<Context>),
}

impl Entry {
    const fn new(name: &'static str, start: fn(&Arc<Context>)) -> Self {
        Self { name, start }
    }

    /// Runs a controller that needs nothing but the context.
    const fn of<C: Controller + Default>() -> Self {
        Self::new(C::NAME, |context| runner::run(context, C::default()))
    }

    /// The API server does this one's work, as [`Selection::within_server`] tells it.
    const fn in_the_server(name: &'static str) -> Self {
        Self::new(name, |_| {})
    }
}

/// Every controller there is, in the order in which they start.
pub(crate) const CONTROLLERS: &[Entry] = &[
    Entry::of::<daemonset::DaemonSets>(),
    Entry::of::<statefulset::StatefulSets>(),
    Entry::of::<disruption::Disruption>(),
    Entry::of::<job::Jobs>(),
    Entry::of::<job::TtlAfterFinished>(),
    Entry::of::<cronjob::CronJobs>(),
    Entry::of::<deployment::Deployments>(),
    Entry::of::<replicaset::ReplicaSets>(),
    Entry::of::<replicaset::ReplicationControllers>(),
    Entry::new("kube-scheduler", scheduler::start),
    Entry::in_the_server(selection::NAMESPACE),
    Entry::in_the_server(selection::SERVICE_ACCOUNT),
    Entry::in_the_server(selection::ROOT_CA_PUBLISHER),
    Entry::in_the_server(selection::CLUSTER_ROLE_AGGREGATION),
    Entry::in_the_server(selection::SERVICE_ACCOUNT_TOKEN),
    Entry::in_the_server(selection::BOOTSTRAP_SIGNER),
    Entry::in_the_server(selection::TOKEN_CLEANER),
    Entry::new(garbage::NAME, garbage::start),
    Entry::new(node_lifecycle::NAME, node_lifecycle::start),
    Entry::of::<TaintEviction>(),
    Entry::new(pod_gc::NAME, pod_gc::start),
    Entry::of::<ResourceQuotas>(),
    Entry::of::<Binder>(),
    Entry::of::<ClaimProtection>(),
    Entry::of::<VolumeProtection>(),
    Entry::of::<Approving>(),
    Entry::of::<HubApproving>(),
    Entry::new(Signing::NAME, |context| {
        if let Some(signing) = Signing::new(context.settings().signing.as_ref()) {
            runner::run(context, signing);
        }
    }),
    Entry::of::<Cleaning>(),
    Entry::of::<EndpointSlices>(),
    Entry::of::<Endpoints>(),
    Entry::of::<Mirroring>(),
    // OpenYurt's, until the manager takes them.
    Entry::of::<nodepool::NodePools>(),
    Entry::of::<hubleader::HubLeaders>(),
    Entry::of::<hubleader::HubLeaderConfig>(),
    Entry::of::<hubleader::HubLeaderRbac>(),
    Entry::of::<delegate_lease::DelegatedLeases>(),
    Entry::of::<daemon_pod_updater::DaemonPodUpdater>(),
    Entry::of::<image_preheat::ImagePreheat>(),
];

/// Starts the selected controllers; they work until `shutdown`.
pub fn start(
    selection: &Selection,
    settings: Settings,
    kube: Kube,
    shutdown: CancellationToken,
) -> Arc<Context> {
    let context = Context::new(kube, settings, shutdown);
    for entry in CONTROLLERS {
        if selection.includes(entry.name) {
            tracing::debug!(controller = entry.name, "started");
            (entry.start)(&context);
        }
    }
    context
}
