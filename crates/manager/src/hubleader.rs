//! `hubleader-controller`, `hubleaderconfig-controller` and `hubleaderrbac-controller` of OpenYurt: who leads each pool, told to the
//! hubs by the config map `leader-hub-POOL`, and what nodes may read of what pools share.
//!
//! Choosing is sticky: who leads goes on as long as he can, and candidates keep their rank as long as they are there.

pub(crate) mod config;
pub(crate) mod rbac;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{NODE_POOLS, NODES},
    condition,
    fields::{items, labels, text},
    nodepool::{is_ready, members, pool_of, watch_members},
    pod::{self, stamp},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use yurt_api::names::conditions::LEADER_READY;
use yurt_controller::policy::Rule;

/// The label of nodes that have no hub.
const LIGHT: &str = "lab.yurt.dev/light";

pub(crate) const ENTRY: Entry = Entry::of::<HubLeaders>(
    "hubleader",
    &[
        Rule::new("apps.openyurt.io", &["nodepools/status"], &["patch"]),
        Rule::EVENTS,
    ],
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

/// Whether the pool's nodes elect leaders.
fn elects(pool: &Value) -> bool {
    pool["spec"]["enableLeaderElection"] == true
}

/// Whether only those lead that are marked.
fn is_by_mark(pool: &Value) -> bool {
    pool["spec"]["leaderElectionStrategy"] == "mark"
}

/// Whether a node has the labels of those that may lead. No labels mark nobody.
fn is_marked(pool: &Value, node: &Value) -> bool {
    let has = &node["metadata"]["labels"];
    let wanted = labels(&pool["spec"]["leaderNodeLabelSelector"]);
    !wanted.is_empty() && wanted.iter().all(|(key, value)| has[key] == value.as_str())
}

/// Who may lead a pool now: ready, reachable and, with the strategy `mark`, marked.
fn may_lead(pool: &Value, node: &Value) -> bool {
    elects(pool) && has_hub(node) && is_ready(node) && (!is_by_mark(pool) || is_marked(pool, node))
}

/// `status.leaderEndpoints` as it should be: those there are as long as they may, then others by name. Pure.
fn leaders(pool: &Value, members: &[Arc<Value>]) -> Vec<Value> {
    let able: BTreeMap<&str, &str> = members
        .iter()
        .filter(|node| may_lead(pool, node))
        .filter_map(|node| Some((node["metadata"]["name"].as_str()?, address(node)?)))
        .collect();
    let mut chosen: Vec<&str> = Vec::new();
    let current =
        items(&pool["status"]["leaderEndpoints"]).filter_map(|leader| leader["nodeName"].as_str());
    for name in current
        .filter(|name| able.contains_key(name))
        .chain(able.keys().copied())
    {
        if !chosen.contains(&name) {
            chosen.push(name);
        }
        if chosen.len() >= wanted(pool) {
            break;
        }
    }
    let endpoint = |name: &&str| json!({"nodeName": name, "address": able.get(name)});
    chosen.iter().map(endpoint).collect()
}

/// How many leaders a pool is to have.
fn wanted(pool: &Value) -> usize {
    let replicas = pool["spec"]["leaderReplicas"].as_u64().unwrap_or(1).max(1);
    usize::try_from(replicas).unwrap_or(usize::MAX)
}

/// `LeaderReady` of a pool with so many leaders; nothing where none are elected. Pure.
fn judge(pool: &Value, leaders: usize, members: usize, now: Timestamp) -> Option<Value> {
    if !elects(pool) {
        return None;
    }
    let marked = if is_by_mark(pool) { ", marked" } else { "" };
    let (status, reason, message) = if is_by_mark(pool)
        && labels(&pool["spec"]["leaderNodeLabelSelector"]).is_empty()
    {
        let message =
            "the strategy mark needs spec.leaderNodeLabelSelector: without it nobody is marked";
        ("False", "NoLeaderSelector", message.to_owned())
    } else if leaders == 0 {
        let message = format!("of {members} nodes none is ready{marked} and has an internal IP");
        ("False", "NoCandidates", message)
    } else if leaders < wanted(pool) {
        let message = format!(
            "{leaders} of {} leaders: no more nodes are ready{marked} and have an internal IP",
            wanted(pool)
        );
        ("False", "NotEnoughCandidates", message)
    } else {
        ("True", "LeadersElected", format!("{leaders} leaders"))
    };
    Some(condition::new(LEADER_READY, status, reason, &message, now))
}

/// What of a pool's status is to be written. Pure.
fn plan(pool: &Value, members: &[Arc<Value>], now: Timestamp) -> Option<Value> {
    let leaders = leaders(pool, members);
    let mut known = pool["status"].clone();
    let judged = judge(pool, leaders.len(), members.len(), now);
    let renewed = condition::settle(&mut known, LEADER_READY, judged);
    let mut patch = json!({});
    if renewed {
        // The list is written by others as well: only at this version of the pool.
        patch["metadata"]["resourceVersion"] = pool["metadata"]["resourceVersion"].clone();
        patch["status"]["conditions"] = known["conditions"].clone();
    }
    if !items(&pool["status"]["leaderEndpoints"]).eq(&leaders) {
        patch["status"]["leaderNum"] = leaders.len().into();
        patch["status"]["leaderEndpoints"] = leaders.into();
        patch["status"]["leaderLastElectedTime"] = stamp(now).into();
    }
    patch.get("status").is_some().then_some(patch)
}

/// Tells of leaders that have changed.
fn tell(pool: &Value, patch: &Value, context: &Context) {
    let Some(leaders) = patch["status"]["leaderEndpoints"].as_array() else {
        return;
    };
    let names: Vec<&str> = leaders
        .iter()
        .filter_map(|leader| leader["nodeName"].as_str())
        .collect();
    if !names.is_empty() {
        let message = format!("{} leads", names.join(", "));
        context.event(HubLeaders::NAME, pool, "Normal", "LeadersElected", &message);
    } else if elects(pool) {
        let found = condition::find(&patch["status"], LEADER_READY);
        let why = found
            .map(|condition| text(&condition["message"]))
            .unwrap_or_default();
        context.event(HubLeaders::NAME, pool, "Warning", "NoLeader", &why);
    }
}

impl Controller for HubLeaders {
    const NAME: &'static str = "hubleader-controller";
    const WORKERS: usize = 3;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let pools = context.objects(&NODE_POOLS);
        let matters = move |node: &Value| {
            let pool = pool_of(node).and_then(|pool| pools.get(&Key::new("", pool)));
            let may_lead = pool.is_some_and(|pool| may_lead(&pool, node));
            json!([may_lead, address(node)])
        };
        vec![Watch::own(NODE_POOLS), watch_members(matters)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let pool = context.objects(&NODE_POOLS).get(key);
        let Some(pool) = pool.filter(|pool| !pod::is_deleting(pool)) else {
            return Ok(Next::Done);
        };
        let members = members(&context.objects(&NODES), &key.name);
        if let Some(patch) = plan(&pool, &members, Timestamp::now()) {
            context.merge(&NODE_POOLS, key, "status", &patch).await?;
            tell(&pool, &patch, context);
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests;
