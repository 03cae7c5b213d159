//! YurtAppDaemon v1alpha1: a workload in every pool that a selector matches. YurtAppSet v1beta1 covers it
//! ([`crate::translation::set_of`]).

use super::{workload::WorkloadTemplate, yurtappset::v1alpha1::WorkloadSummary};
use crate::{
    meta::{Condition, LabelSelector, resource},
    schema::types,
};

types! {
    /// The same workload in every pool that a selector matches.
    pub struct YurtAppDaemon {
        /// What is wanted.
        [optional] spec: YurtAppDaemonSpec,
        /// What is observed.
        [optional] status: YurtAppDaemonStatus,
    }

    /// What is wanted of a daemon.
    pub struct YurtAppDaemonSpec {
        /// Selects the pods; the labels of the template must match it.
        selector: LabelSelector => {"x-kubernetes-map-type": "atomic"},
        /// The pools, by their labels.
        nodepool_selector: LabelSelector => {"x-kubernetes-map-type": "atomic"},
        /// The workload of each pool.
        [optional] workload_template: WorkloadTemplate,
        /// How many old revisions are kept, for a rollback.
        revision_history_limit: Option<i32> => {"default": 10},
    }

    /// What is observed of a daemon.
    pub struct YurtAppDaemonStatus {
        /// The generation of the spec that this is observed of.
        observed_generation: Option<i64>,
        /// How often the name of a revision was taken.
        collision_count: Option<i32>,
        /// The name of the newest revision.
        current_revision: String,
        /// WorkLoadProvisioned, WorkLoadUpdated and WorkLoadFailure.
        conditions: Vec<Condition>,
        /// The name of the YurtAppOverrider of this daemon.
        overrider_ref: Option<String>,
        /// The workloads.
        workload_summary: Vec<WorkloadSummary>,
        /// Deployment or StatefulSet.
        template_type: String,
        /// The names of the pools.
        nodepools: Vec<String>,
    }
}

resource! {
    YurtAppDaemon: super::GROUP, "v1alpha1", "YurtAppDaemon", "yurtappdaemons", true;
}
