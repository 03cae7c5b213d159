//! NodePool: nodes that reach each other, and what they have in common. The stored version is v1beta2; the older ones are in
//! [`v1beta1`] and [`v1alpha1`].

use crate::{
    meta::{Condition, Taint, resource},
    schema::{Timestamp, types},
};
use std::collections::BTreeMap;

types! {
    /// A set of nodes that reach each other, and what they have in common.
    pub struct NodePool {
        /// What is wanted.
        [optional] spec: NodePoolSpec,
        /// What is observed.
        [optional] status: NodePoolStatus,
    }

    /// What is wanted of a pool.
    pub struct NodePoolSpec {
        /// Edge or Cloud. Immutable.
        pool_type as "type": Option<String> => {"default": "Edge"},
        /// Given to every node of the pool; what the node has under the same key is overwritten.
        labels: BTreeMap<String, String>,
        /// Given to every node of the pool; what the node has under the same key is overwritten.
        annotations: BTreeMap<String, String>,
        /// Given to every node of the pool.
        taints: Vec<Taint>,
        /// Whether the nodes have no container network: pods share the network of their node. Not for Cloud. Immutable.
        host_network: Option<bool>,
        /// Whether all nodes of the pool reach each other; then lists and watches of the pool's resources are shared. Immutable.
        inter_connectivity: Option<bool>,
        /// Whether leaders are elected among the hubs of the pool.
        enable_leader_election: Option<bool>,
        /// random for any ready node, mark for those of leaderNodeLabelSelector.
        leader_election_strategy: Option<String> => {"default": "random"},
        /// Labels of the nodes that may lead, for the strategy mark.
        leader_node_label_selector: BTreeMap<String, String>,
        /// How many leaders there are to be.
        leader_replicas: Option<i32> => {"default": 1},
        /// The resources that are the same for all nodes of the pool: they are fetched once for it.
        pool_scope_metadata: Vec<PoolScopeMetadata>,
    }

    /// A resource of the API.
    pub struct PoolScopeMetadata {
        /// Its group; empty for the core group.
        group: String,
        /// Its version.
        version: String,
        /// Its name in paths.
        resource: String,
    }

    /// What is observed of a pool.
    pub struct NodePoolStatus {
        /// How many nodes are ready.
        [optional] ready_node_num: i32,
        /// How many nodes are not ready.
        [optional] unready_node_num: i32,
        /// The names of the nodes, sorted.
        nodes: Vec<String>,
        /// The nodes whose hubs lead.
        leader_endpoints: Vec<Leader>,
        /// How many nodes lead.
        leader_num: Option<i32>,
        /// When the leaders last changed.
        leader_last_elected_time: Option<Timestamp>,
        /// LeaderReady, and what further is observed.
        conditions: Vec<Condition>,
    }

    /// A node whose hub leads.
    pub struct Leader {
        /// Its name.
        node_name: String,
        /// Where its hub listens: the node's internal IP.
        address: String,
    }
}

resource! {
    NodePool: super::GROUP, "v1beta2", "NodePool", "nodepools", false;
    v1beta1::NodePool: super::GROUP, "v1beta1", "NodePool", "nodepools", false;
    v1alpha1::NodePool: super::GROUP, "v1alpha1", "NodePool", "nodepools", false;
}

/// Pools of OpenYurt 1.4 to 1.6: without leaders.
pub mod v1beta1 {
    use super::{BTreeMap, Taint, types};

    types! {
        /// A set of nodes, and what they have in common.
        pub struct NodePool {
            /// What is wanted.
            [optional] spec: NodePoolSpec,
            /// What is observed.
            [optional] status: NodePoolStatus,
        }

        /// What is wanted of a pool.
        pub struct NodePoolSpec {
            /// Edge or Cloud. Immutable.
            pool_type as "type": Option<String> => {"default": "Edge"},
            /// Given to every node of the pool; what the node has under the same key is overwritten.
            labels: BTreeMap<String, String>,
            /// Given to every node of the pool; what the node has under the same key is overwritten.
            annotations: BTreeMap<String, String>,
            /// Given to every node of the pool.
            taints: Vec<Taint>,
            /// Whether the nodes have no container network: pods share the network of their node. Not for Cloud. Immutable.
            host_network: Option<bool>,
        }

        /// What is observed of a pool.
        pub struct NodePoolStatus {
            /// How many nodes are ready.
            [optional] ready_node_num: i32,
            /// How many nodes are not ready.
            [optional] unready_node_num: i32,
            /// The names of the nodes, sorted.
            nodes: Vec<String>,
        }
    }
}

/// Pools before OpenYurt 1.4: a host network is said by an annotation.
pub mod v1alpha1 {
    use super::{BTreeMap, Taint, types};
    use crate::meta::LabelSelector;

    types! {
        /// A set of nodes, and what they have in common.
        pub struct NodePool {
            /// What is wanted.
            [optional] spec: NodePoolSpec,
            /// What is observed.
            [optional] status: super::v1beta1::NodePoolStatus,
        }

        /// What is wanted of a pool.
        pub struct NodePoolSpec {
            /// Edge or Cloud. Immutable.
            pool_type as "type": Option<String> => {"default": "Edge"},
            /// Has no effect: nodes say to which pool they belong.
            selector: Option<LabelSelector>,
            /// Given to every node of the pool; what the node has under the same key is overwritten.
            labels: BTreeMap<String, String>,
            /// Given to every node of the pool; what the node has under the same key is overwritten.
            annotations: BTreeMap<String, String>,
            /// Given to every node of the pool.
            taints: Vec<Taint>,
        }
    }
}
