//! YurtAppSet: a workload per pool. The stored version is v1beta1; the older one is in [`v1alpha1`].

use super::workload::WorkloadTemplate;
use crate::{
    meta::{Condition, LabelSelector, resource},
    schema::types,
};
use serde_json::Value;

types! {
    /// The same workload in several pools, with what is different in some of them.
    pub struct YurtAppSet {
        /// What is wanted.
        [optional] spec: YurtAppSetSpec,
        /// What is observed.
        [optional] status: YurtAppSetStatus,
    }

    /// What is wanted of a set.
    pub struct YurtAppSetSpec {
        /// The workload of each pool.
        workload: Workload,
        /// The pools, by their labels; absent selects none, empty selects all.
        nodepool_selector: Option<LabelSelector> => {"x-kubernetes-map-type": "atomic"},
        /// Further pools, by name; those that do not exist are left out.
        pools: Vec<String>,
        /// Pods in all pools together whose replicas no tweak sets, spread over them evenly; absent: each pool has the replicas of
        /// the template. This is what the scale subresource sets.
        replicas: Option<i32> => {"minimum": 0},
        /// How pods are replaced, pool by pool; absent: in all pools at once.
        rollout: Option<Rollout>,
        /// How many old revisions are kept, for a rollback.
        revision_history_limit: Option<i32> => {"default": 10},
    }

    /// How pods are replaced, pool by pool. What replaces no pods (replicas, say) is done in all pools at once.
    pub struct Rollout {
        /// Pools that come first, in this order; the others follow by name.
        order: Vec<String>,
        /// In how many pools at once pods are replaced; the next follows when one is updated and ready. Absent: in all.
        max_parallel: Option<i32> => {"minimum": 1},
        /// Whether pods are replaced in no further pool.
        paused: Option<bool>,
        /// Seconds in which a pool must be updated and ready; 600 when absent.
        progress_deadline_seconds: Option<i32> => {"minimum": 1},
        /// What when a pool is not: Stop (nothing happens in further pools until it is; the default), Continue, or Rollback (all
        /// pools go back to the last revision that was rolled out, until the spec is changed).
        on_failure: Option<String> => {"enum": ["Stop", "Continue", "Rollback"]},
    }

    /// The workload of each pool.
    pub struct Workload {
        /// The same for all pools.
        workload_template: WorkloadTemplate,
        /// What is different in some pools; later ones win.
        workload_tweaks: Vec<WorkloadTweak>,
    }

    /// What is different in some pools.
    pub struct WorkloadTweak {
        /// The pools, by their labels.
        nodepool_selector: Option<LabelSelector> => {"x-kubernetes-map-type": "atomic"},
        /// Further pools, by name.
        pools: Vec<String>,
        /// What is different.
        tweaks: Tweaks,
    }

    /// What is different.
    pub struct Tweaks {
        /// How many pods the workload of each of these pools has.
        replicas: Option<i32>,
        /// Images of containers and init containers.
        container_images: Vec<ContainerImage>,
        /// What else is different; applied after all replicas and images.
        patches: Vec<Patch>,
    }

    /// The image of a container.
    pub struct ContainerImage {
        /// The container.
        name: String,
        /// The image that replaces the template's.
        target_image: String,
    }

    /// An operation of a JSON patch (RFC 6902) on the whole workload.
    pub struct Patch {
        /// What to do.
        operation: String => {"enum": ["add", "remove", "replace"]},
        /// Where: a JSON pointer.
        path: String,
        /// The value; {{nodepool-name}} in it stands for the name of the pool.
        value: Value,
    }

    /// What is observed of a set.
    pub struct YurtAppSetStatus {
        /// The generation of the spec that this is observed of.
        observed_generation: Option<i64>,
        /// How often the name of a revision was taken.
        collision_count: Option<i32>,
        /// The name of the newest revision.
        current_revision: String,
        /// How many workloads are ready.
        ready_workloads: i32,
        /// How many workloads are of the newest revision.
        updated_workloads: Option<i32>,
        /// How many workloads there are.
        total_workloads: i32,
        /// How many pods there are in the pools whose replicas no tweak sets, for the scale subresource.
        replicas: Option<i32>,
        /// Selects the pods of all pools, for the scale subresource.
        selector: Option<String>,
        /// The workload of each pool, by the names of the pools.
        pools: Vec<PoolStatus>,
        /// AppDispatched, AppDeleted, AppUpdated, AppReady, PoolFound, and what further is observed.
        conditions: Vec<Condition>,
    }

    /// The workload of a pool.
    pub struct PoolStatus {
        /// The pool.
        pool: String,
        /// Its workload.
        workload: Option<String>,
        /// How many pods it is to have.
        replicas: Option<i32>,
        /// How many pods are ready.
        ready_replicas: Option<i32>,
        /// How many pods are of the newest template.
        updated_replicas: Option<i32>,
        /// The revision that its template is of.
        revision: Option<String>,
        /// Ready, NotReady (any more), Updating (not ready yet), Waiting (for its turn), Deleting or Failed.
        phase: String,
        /// Why.
        message: Option<String>,
    }
}

resource! {
    YurtAppSet: super::GROUP, "v1beta1", "YurtAppSet", "yurtappsets", true;
    v1alpha1::YurtAppSet: super::GROUP, "v1alpha1", "YurtAppSet", "yurtappsets", true;
}

/// Sets before OpenYurt 1.5: a list of pools, each with its replicas and a patch.
pub mod v1alpha1 {
    use super::{Condition, LabelSelector, Value, WorkloadTemplate, types};
    use crate::meta::{NodeSelectorTerm, Toleration};
    use std::collections::BTreeMap;

    types! {
        /// The same workload in several pools, with what is different in some of them.
        pub struct YurtAppSet {
            /// What is wanted.
            [optional] spec: YurtAppSetSpec,
            /// What is observed.
            [optional] status: YurtAppSetStatus,
        }

        /// What is wanted of a set.
        pub struct YurtAppSetSpec {
            /// Selects the pods; the labels of the template must match it.
            selector: LabelSelector => {"x-kubernetes-map-type": "atomic"},
            /// The workload of each pool.
            [optional] workload_template: WorkloadTemplate,
            /// The pools.
            [optional] topology: Topology,
            /// How many old revisions are kept, for a rollback.
            revision_history_limit: Option<i32> => {"default": 10},
        }

        /// The pools of a set.
        pub struct Topology {
            /// The pools.
            pools: Vec<Pool>,
        }

        /// A pool, and what is different in it.
        pub struct Pool {
            /// Its name: a DNS label, once in the list.
            name: String,
            /// Which nodes are in it. Immutable.
            [optional] node_selector_term: NodeSelectorTerm => {"x-kubernetes-map-type": "atomic"},
            /// Further tolerations of its pods. Immutable.
            tolerations: Vec<Toleration>,
            /// How many pods it has.
            replicas: i32,
            /// A strategic merge patch of the workload; wins over replicas.
            patch: Value => {"type": "object"},
        }

        /// What is observed of a set.
        pub struct YurtAppSetStatus {
            /// The generation of the spec that this is observed of.
            observed_generation: Option<i64>,
            /// How often the name of a revision was taken.
            collision_count: Option<i32>,
            /// The name of the newest revision.
            current_revision: String,
            /// PoolProvisioned, PoolUpdated and PoolFailure.
            conditions: Vec<Condition>,
            /// The workloads.
            workload_summary: Vec<WorkloadSummary>,
            /// The name of the YurtAppOverrider of this set.
            overrider_ref: Option<String>,
            /// How many pods each pool has.
            pool_replicas: BTreeMap<String, i32>,
            /// How many pods are ready.
            ready_replicas: Option<i32>,
            /// How many pods there are.
            replicas: i32,
            /// Deployment or StatefulSet.
            template_type: String,
        }

        /// A workload of a set.
        pub struct WorkloadSummary {
            /// The status of its condition Available.
            available_condition: String,
            /// How many pods it has.
            replicas: i32,
            /// How many pods are ready.
            ready_replicas: i32,
            /// Its name.
            workload_name: String,
        }
    }
}
