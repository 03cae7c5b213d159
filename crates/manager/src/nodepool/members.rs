//! Which nodes are in which pool: by the label of the node, which is the source of truth.

use crate::{Key, Watch, collections::NODES, pod};
use serde_json::Value;
use std::sync::Arc;
use yurt_api::names::labels::NODE_POOL;
use yurt_controller::Objects;

/// The pool that a node is in.
pub(crate) fn pool_of(node: &Value) -> Option<&str> {
    let pool = node["metadata"]["labels"][NODE_POOL].as_str()?;
    (!pool.is_empty()).then_some(pool)
}

/// The nodes of a pool, by name.
pub(crate) fn members(nodes: &Objects, pool: &str) -> Vec<Arc<Value>> {
    nodes.labelled(NODE_POOL, pool)
}

/// Whether a node says that it is ready.
pub(crate) fn is_ready(node: &Value) -> bool {
    pod::is_ready(node)
}

/// A watch of nodes that concerns their pools whenever what `matters` of a node changes, and on joining and leaving.
pub(crate) fn watch_members(matters: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Watch {
    Watch::of(NODES, move |change| {
        let seen = |node: &Option<Arc<Value>>| {
            let node = node.as_deref()?;
            Some((pool_of(node)?.to_owned(), matters(node)))
        };
        let (old, new) = (seen(&change.old), seen(&change.new));
        if old == new {
            return Vec::new();
        }
        let pools = [old, new].into_iter().flatten();
        pools.map(|(pool, _)| Key::new("", &pool)).collect()
    })
}
