//! NodeBucket: some of the nodes of a large pool, so that a change of one node is a small event for the others.

use crate::{meta::resource, schema::types};

types! {
    /// Some of the nodes of a pool, which the label openyurt.io/pool-name names.
    pub struct NodeBucket {
        /// How many nodes are in the bucket.
        num_nodes: i32,
        /// The nodes.
        nodes: Vec<BucketNode>,
    }

    /// A node in a bucket.
    pub struct BucketNode {
        /// Its name.
        name: String,
    }
}

resource! {
    NodeBucket: super::GROUP, "v1alpha1", "NodeBucket", "nodebuckets", false;
}
