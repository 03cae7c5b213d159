//! The native controllers: what kube-controller-manager and kube-scheduler do in a real cluster, as far as an edge platform needs it.
//!
//! Each controller is one file with a pure core (a plan computed from values) and a thin [`Controller`] around it. They share
//! one watch per collection ([`Objects`]), write through one [`Context`], and are known by the names that kube-controller-manager
//! uses, so that [`Selection`] (`--controllers`) can leave any of them to the real one.

mod batch;
mod certificates;
mod claim;
pub(crate) mod collections;
mod condition;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod feed;
mod garbage;
mod job;
mod node_lifecycle;
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
use certificates::{approving::Approving, cleaning::Cleaning, signing::Signing};
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

/// The API server does this one's work, as [`Selection::within_server`] tells it.
fn in_the_server(_: &Arc<Context>) {}

/// Every controller there is, in the order in which they start.
pub(crate) const CONTROLLERS: &[Entry] = &[
    Entry {
        name: "daemonset-controller",
        start: |context| runner::run(context, daemonset::DaemonSets::default()),
    },
    Entry {
        name: "statefulset-controller",
        start: |context| runner::run(context, statefulset::StatefulSets),
    },
    Entry {
        name: "disruption-controller",
        start: |context| runner::run(context, disruption::Disruption),
    },
    Entry {
        name: "job-controller",
        start: |context| runner::run(context, job::Jobs),
    },
    Entry {
        name: "ttl-after-finished-controller",
        start: |context| runner::run(context, job::TtlAfterFinished),
    },
    Entry {
        name: "cronjob-controller",
        start: |context| runner::run(context, cronjob::CronJobs),
    },
    Entry {
        name: "deployment-controller",
        start: |context| runner::run(context, deployment::Deployments),
    },
    Entry {
        name: "replicaset-controller",
        start: |context| runner::run(context, replicaset::ReplicaSets),
    },
    Entry {
        name: "replicationcontroller-controller",
        start: |context| runner::run(context, replicaset::ReplicationControllers),
    },
    Entry {
        name: "kube-scheduler",
        start: scheduler::start,
    },
    Entry {
        name: selection::NAMESPACE,
        start: in_the_server,
    },
    Entry {
        name: selection::SERVICE_ACCOUNT,
        start: in_the_server,
    },
    Entry {
        name: selection::ROOT_CA_PUBLISHER,
        start: in_the_server,
    },
    Entry {
        name: selection::CLUSTER_ROLE_AGGREGATION,
        start: in_the_server,
    },
    Entry {
        name: garbage::NAME,
        start: garbage::start,
    },
    Entry {
        name: node_lifecycle::NAME,
        start: node_lifecycle::start,
    },
    Entry {
        name: TaintEviction::NAME,
        start: |context| runner::run(context, TaintEviction::default()),
    },
    Entry {
        name: pod_gc::NAME,
        start: pod_gc::start,
    },
    Entry {
        name: ResourceQuotas::NAME,
        start: |context| runner::run(context, ResourceQuotas::default()),
    },
    Entry {
        name: Binder::NAME,
        start: |context| runner::run(context, Binder),
    },
    Entry {
        name: ClaimProtection::NAME,
        start: |context| runner::run(context, ClaimProtection),
    },
    Entry {
        name: VolumeProtection::NAME,
        start: |context| runner::run(context, VolumeProtection),
    },
    Entry {
        name: Approving::NAME,
        start: |context| runner::run(context, Approving),
    },
    Entry {
        name: Signing::NAME,
        start: |context| {
            if let Some(signing) = Signing::new(context.settings().signing.as_ref()) {
                runner::run(context, signing);
            }
        },
    },
    Entry {
        name: Cleaning::NAME,
        start: |context| runner::run(context, Cleaning),
    },
    Entry {
        name: EndpointSlices::NAME,
        start: |context| runner::run(context, EndpointSlices::default()),
    },
    Entry {
        name: Endpoints::NAME,
        start: |context| runner::run(context, Endpoints::default()),
    },
    Entry {
        name: Mirroring::NAME,
        start: |context| runner::run(context, Mirroring),
    },
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
