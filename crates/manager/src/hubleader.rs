//! `hubleader-controller`, `hubleaderconfig-controller` and `hubleaderrbac-controller` of OpenYurt: who leads each pool, told to the
//! hubs by the config map `leader-hub-POOL`, and what nodes may read of what pools share. The manager replaces them
//! (`--controllers '*,-hubleader-controller,...'`).
//!
//! Choosing is sticky: who leads goes on as long as he can, and candidates keep their rank as long as they are there.

pub(crate) mod config;
pub(crate) mod rbac;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{NODE_POOLS, NODES},
    condition,
    fields::{items, labels},
    nodepool::{members, watch_members},
    pod::{self, stamp},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_controller::policy::Rule;

/// The label of nodes that have no hub.
const LIGHT: &str = "lab.yurt.dev/light";

pub(crate) const ENTRY: Entry = Entry::of::<HubLeaders>(
    "hubleader",
    &[Rule::new(
        "apps.openyurt.io",
        &["nodepools/status"],
        &["patch"],
    )],
);

/// `hubleader-controller`.
#[derive(Debug, Default)]
pub(crate) struct HubLeaders;

/// The address by which other nodes reach a node's hub.
fn address(node: &Value) -> Option<&str> {
    let mut addresses = items(&node["status"]["addresses"]);
    let internal = addresses.find(|address| address["type"] == "InternalIP")?;
    internal["address"].as_str()
}

/// Whether a node has a hub that could serve others.
fn has_hub(node: &Value) -> bool {
    node["metadata"]["labels"][LIGHT] != "true" && address(node).is_some()
}

/// What of a node decides about leading.
fn matters(node: &Value) -> Value {
    json!([
        condition::holds(&node["status"], "Ready"),
        address(node),
        node["metadata"]["labels"]
    ])
}

/// Whether the pool's nodes elect leaders.
fn elects(pool: &Value) -> bool {
    pool["spec"]["enableLeaderElection"] == true
}

/// Who may lead a pool now: ready, reachable and, with the strategy `mark`, marked.
fn may_lead(pool: &Value, node: &Value) -> bool {
    let marked = || {
        let has = &node["metadata"]["labels"];
        let wanted = labels(&pool["spec"]["leaderNodeLabelSelector"]);
        wanted.iter().all(|(key, value)| has[key] == value.as_str())
    };
    elects(pool)
        && has_hub(node)
        && condition::holds(&node["status"], "Ready")
        && (pool["spec"]["leaderElectionStrategy"] != "mark" || marked())
}

/// `status.leaderEndpoints` as it should be: those there are as long as they may, then others by name. Pure.
fn leaders(pool: &Value, members: &[Arc<Value>]) -> Vec<Value> {
    let able: Vec<Value> = members
        .iter()
        .filter(|node| may_lead(pool, node))
        .map(|node| json!({"nodeName": node["metadata"]["name"], "address": address(node)}))
        .collect();
    let current = items(&pool["status"]["leaderEndpoints"]).filter(|leader| able.contains(leader));
    let mut chosen: Vec<Value> = current.cloned().collect();
    for candidate in &able {
        if !chosen.contains(candidate) {
            chosen.push(candidate.clone());
        }
    }
    let replicas = pool["spec"]["leaderReplicas"].as_u64().unwrap_or(1).max(1);
    chosen.truncate(usize::try_from(replicas).unwrap_or(usize::MAX));
    chosen
}

impl Controller for HubLeaders {
    const NAME: &'static str = "hubleader-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(NODE_POOLS), watch_members(matters)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let pool = context.objects(&NODE_POOLS).get(key);
        let Some(pool) = pool.filter(|pool| !pod::is_deleting(pool)) else {
            return Ok(Next::Done);
        };
        let leaders = leaders(
            &pool,
            &members(&context.objects(&NODES), &key.name),
        );
        if items(&pool["status"]["leaderEndpoints"]).eq(&leaders) {
            return Ok(Next::Done);
        }
        let patch = json!({"status": {"leaderEndpoints": leaders, "leaderNum": leaders.len(),
            "leaderLastElectedTime": stamp(Timestamp::now())}});
        context.merge(&NODE_POOLS, key, "status", &patch).await?;
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests;
