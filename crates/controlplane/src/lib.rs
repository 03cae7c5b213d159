//! The native controllers: what kube-controller-manager and kube-scheduler do in a real cluster, as far as an edge platform
//! needs it.
//!
//! Each controller is one file with a pure core (a plan computed from values) and a thin [`Controller`] around it. They share
//! one watch per collection ([`yurt_controller::Objects`]), write through one [`Context`], and are known by the names that
//! kube-controller-manager uses, so that [`Selection`] (`--controllers`) can leave any of them to the real one.

mod certificates;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod garbage;
mod job;
mod node_lifecycle;
mod pod_gc;
mod replicaset;
mod resource_quota;
mod scheduler;
pub mod selection;
mod settings;
pub mod stage;
mod statefulset;
mod taint_eviction;
mod volumes;

pub use selection::Selection;
pub use settings::{NodeMonitor, Settings};

use certificates::{approving::Approving, cleaning::Cleaning, signing::Signing};
use endpoints::{legacy::Endpoints, mirroring::Mirroring, slices::EndpointSlices};
use resource_quota::ResourceQuotas;
use std::sync::Arc;
use taint_eviction::TaintEviction;
use volumes::{
    binder::Binder,
    protection::{ClaimProtection, VolumeProtection},
};
use yurt_controller::{
    Change, Collection, Context, Controller, Failure, Key, Next, Objects, Watch, batch, claim,
    collections, condition, controller_of, fields, node_affinity, pod, pod_control, revision, run,
    share, taint, template_hash,
};

/// One controller: its name and how it is started.
pub(crate) struct Entry {
    /// The name in kube-controller-manager's `--controllers`.
    pub(crate) name: &'static str,
    /// Starts it; it ends with the context.
    pub(crate) start: fn(&Arc<Context>, &Settings),
}

impl Entry {
    const fn new(name: &'static str, start: fn(&Arc<Context>, &Settings)) -> Self {
        Self { name, start }
    }

    /// Runs a controller that needs nothing but the context.
    const fn of<C: Controller + Default>() -> Self {
        Self::new(C::NAME, |context, _| run(context, C::default()))
    }

    /// The API server does this one's work, as [`Selection::within_server`] tells it.
    const fn in_the_server(name: &'static str) -> Self {
        Self::new(name, |_, _| {})
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
    Entry::new("kube-scheduler", |context, _| scheduler::start(context)),
    Entry::in_the_server(selection::NAMESPACE),
    Entry::in_the_server(selection::SERVICE_ACCOUNT),
    Entry::in_the_server(selection::ROOT_CA_PUBLISHER),
    Entry::in_the_server(selection::CLUSTER_ROLE_AGGREGATION),
    Entry::in_the_server(selection::SERVICE_ACCOUNT_TOKEN),
    Entry::in_the_server(selection::BOOTSTRAP_SIGNER),
    Entry::in_the_server(selection::TOKEN_CLEANER),
    Entry::new(garbage::NAME, |context, _| garbage::start(context)),
    Entry::new(node_lifecycle::NAME, node_lifecycle::start),
    Entry::of::<TaintEviction>(),
    Entry::new(pod_gc::NAME, |context, _| pod_gc::start(context)),
    Entry::of::<ResourceQuotas>(),
    Entry::of::<Binder>(),
    Entry::of::<ClaimProtection>(),
    Entry::of::<VolumeProtection>(),
    Entry::of::<Approving>(),
    Entry::new(Signing::NAME, |context, settings| {
        if let Some(signing) = Signing::new(settings.signing.as_ref()) {
            run(context, signing);
        }
    }),
    Entry::of::<Cleaning>(),
    Entry::of::<EndpointSlices>(),
    Entry::of::<Endpoints>(),
    Entry::of::<Mirroring>(),
];

/// Starts the selected controllers; they work until the context ends.
pub fn start_in(selection: &Selection, settings: &Settings, context: &Arc<Context>) {
    for entry in CONTROLLERS {
        if selection.includes(entry.name) {
            tracing::debug!(controller = entry.name, "started");
            (entry.start)(context, settings);
        }
    }
}
