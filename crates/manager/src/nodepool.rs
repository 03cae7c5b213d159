//! `nodepool-controller` of OpenYurt, as far as a lab needs it: which nodes a pool has, and how many of them are ready. The manager
//! replaces it (`--controllers '*,-nodepool-controller'`): it also gives the pool's labels, annotations and taints to the nodes.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{NODE_POOLS, NODES},
    condition, pod,
};
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_controller::policy::Rule;

/// The label of a node that names its pool.
pub(crate) const LABEL: &str = "apps.openyurt.io/nodepool";

pub(crate) const ENTRY: Entry = Entry::of::<NodePools>(
    "nodepool",
    &[Rule::new(
        "apps.openyurt.io",
        &["nodepools/status"],
        &["patch"],
    )],
);

/// `nodepool-controller`.
#[derive(Debug, Default)]
pub(crate) struct NodePools;

/// The pool that a node is in.
pub(crate) fn pool_of(node: &Value) -> Option<&str> {
    let pool = node["metadata"]["labels"][LABEL].as_str()?;
    (!pool.is_empty()).then_some(pool)
}

/// The nodes of a pool, by name.
pub(crate) fn members(nodes: &[Arc<Value>], pool: &str) -> Vec<Arc<Value>> {
    let of_pool = nodes.iter().filter(|node| pool_of(node) == Some(pool));
    of_pool.cloned().collect()
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

/// The status of a pool, as far as this controller writes it. Pure.
fn status(members: &[Arc<Value>]) -> Value {
    let ready = members
        .iter()
        .filter(|node| condition::holds(&node["status"], "Ready"))
        .count();
    let mut names: Vec<&str> = members
        .iter()
        .filter_map(|node| node["metadata"]["name"].as_str())
        .collect();
    names.sort_unstable();
    json!({"readyNodeNum": ready, "unreadyNodeNum": members.len() - ready, "nodes": names})
}

impl Controller for NodePools {
    const NAME: &'static str = "nodepool-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let ready = |node: &Value| condition::holds(&node["status"], "Ready").into();
        vec![Watch::own(NODE_POOLS), watch_members(ready)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let pool = context.objects(&NODE_POOLS).get(key);
        let Some(pool) = pool.filter(|pool| !pod::is_deleting(pool)) else {
            return Ok(Next::Done);
        };
        let status = status(&members(&context.objects(&NODES).list(""), &key.name));
        let written = status.as_object().is_some_and(|fields| {
            fields
                .iter()
                .all(|(field, value)| pool["status"][field] == *value)
        });
        if !written {
            let patch = json!({"status": status});
            context.merge(&NODE_POOLS, key, "status", &patch).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    pub(crate) fn node(name: &str, pool: &str, ready: bool) -> Value {
        let ready = if ready { "True" } else { "False" };
        json!({"metadata": {"name": name, "labels": {LABEL: pool}},
            "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}})
    }

    #[test]
    fn a_pool_counts_its_nodes() {
        let nodes = [
            node("b", "p", true),
            node("a", "p", false),
            node("c", "q", true),
        ]
        .map(Arc::new);
        assert_eq!(
            status(&members(&nodes, "p")),
            json!({"readyNodeNum": 1, "unreadyNodeNum": 1, "nodes": ["a", "b"]})
        );
        assert_eq!(
            status(&members(&nodes, "r")),
            json!({"readyNodeNum": 0, "unreadyNodeNum": 0, "nodes": []})
        );
    }

    #[tokio::test]
    async fn pools_follow_their_nodes() {
        let stage = Stage::start("nodepool-controller").await;
        stage.define_pools(&["p", "q"]).await;
        let pool = |name: &str| format!("/apis/apps.openyurt.io/v1beta2/nodepools/{name}");
        stage
            .until(&pool("p"), |p| p["status"]["nodes"] == json!([]))
            .await;
        stage.create("/api/v1/nodes", node("a", "p", true)).await;
        stage
            .until(&pool("p"), |p| p["status"]["nodes"] == json!(["a"]))
            .await;
        let ready = json!({"status": node("a", "p", true)["status"]});
        stage
            .kube
            .merge("/api/v1/nodes/a/status", &ready)
            .await
            .expect("ready");
        stage
            .until(&pool("p"), |p| p["status"]["readyNodeNum"] == 1)
            .await;
        let elsewhere = json!({"metadata": {"labels": {LABEL: "q"}}});
        stage
            .kube
            .merge("/api/v1/nodes/a", &elsewhere)
            .await
            .expect("moved");
        stage
            .until(&pool("q"), |p| p["status"]["nodes"] == json!(["a"]))
            .await;
        stage
            .until(&pool("p"), |p| p["status"]["readyNodeNum"] == 0)
            .await;
        stage.quiet(&pool("q")).await;
    }
}
