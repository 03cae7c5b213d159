//! YurtStaticSet v1alpha1: a static pod on many nodes, upgraded from the cloud.

use crate::{
    meta::{Condition, resource},
    schema::{IntOrString, types},
};
use serde_json::Value;

types! {
    /// A static pod on many nodes, and how it is upgraded.
    pub struct YurtStaticSet {
        /// What is wanted.
        [optional] spec: YurtStaticSetSpec,
        /// What is observed.
        [optional] status: YurtStaticSetStatus,
    }

    /// What is wanted of a static pod.
    pub struct YurtStaticSetSpec {
        /// The name of its manifest on the node, without .yaml.
        static_pod_manifest: Option<String>,
        /// How nodes come to a new template.
        [optional] upgrade_strategy: UpgradeStrategy => {"default": {}},
        /// How many old templates are kept, for a rollback.
        revision_history_limit: Option<i32> => {"default": 10},
        /// The pod.
        template: Value,
    }

    /// How nodes come to a new template.
    pub struct UpgradeStrategy {
        /// AdvancedRollingUpdate from the cloud, node by node; or OTA, when the node is asked to.
        strategy_type as "type": Option<String> => {"default": "AdvancedRollingUpdate"},
        /// How many nodes may be upgraded at once, for AdvancedRollingUpdate.
        max_unavailable: Option<IntOrString>,
    }

    /// What is observed of a static pod.
    pub struct YurtStaticSetStatus {
        /// How many nodes have the pod.
        total_number: i32,
        /// On how many nodes it is ready.
        ready_number: i32,
        /// On how many nodes it is of the current template.
        upgraded_number: i32,
        /// The generation of the spec that this is observed of.
        observed_generation: Option<i64>,
        /// How it goes: Upgraded says whether every node has the current template, and why not.
        conditions: Vec<Condition>,
        /// Nodes with the pod: those that are not upgraded and ready first, by name; at most 500.
        nodes: Vec<NodeStatus>,
    }

    /// What is observed of a static pod on one node.
    pub struct NodeStatus {
        /// The node.
        name: String,
        /// Upgraded; Pending, until its turn; Waiting, for the node to be ready or its owner to ask; Upgrading; Failed, to be tried again.
        phase: String,
        /// Whether the pod is ready.
        ready: bool,
        /// Why.
        message: Option<String>,
    }
}

resource! {
    YurtStaticSet: super::GROUP, "v1alpha1", "YurtStaticSet", "yurtstaticsets", true;
}
