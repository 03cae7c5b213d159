//! `nodepool-controller` of OpenYurt: which nodes a pool has and how many of them are ready; and every node has what its pool gives.
//!
//! Nodes and pools are brought in order apart from each other: one node that cannot be written delays neither the others nor the
//! status of the pool, and a node that has left is seen to as well.

mod attributes;
mod members;

pub(crate) use members::{is_ready, members, pool_of, watch_members};

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{NODE_POOLS, NODES},
    condition, pod,
};
use attributes::{Attributes, Plan, plan};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use yurt_api::names::labels::NODE_POOL;
use yurt_controller::{Objects, policy::Rule, run_with};

pub(crate) const ENTRY: Entry = Entry::new(
    NodePools::NAME,
    "nodepool",
    &[
        Rule::new("apps.openyurt.io", &["nodepools/status"], &["patch"]),
        Rule::new("", &["nodes"], &["patch"]),
        Rule::EVENTS,
    ],
    |context, settings| {
        let giving = Giving {
            sync: settings.sync_nodepool_configurations,
            troubles: Arc::default(),
        };
        let workers = settings.workers(NodePools::NAME, NodePools::WORKERS);
        run_with(context, PoolNodes(giving.clone()), workers);
        run_with(context, NodePools(giving), workers);
    },
);

/// The condition of a pool that says whether its nodes have what it gives.
const SYNCED: &str = "AttributesSynced";
/// The nodes that a condition names.
const NAMED: usize = 3;
/// When it is looked again whether nodes have been written.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// When a node is written again that the API server would not take.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// What is wrong with a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Trouble {
    /// What has been told.
    conflicts: Vec<String>,
    /// Why it could not be written.
    refused: Option<String>,
}

/// What both controllers go by.
#[derive(Clone, Debug)]
struct Giving {
    /// Whether pools give anything.
    sync: bool,
    /// By node, as long as there is any.
    troubles: Arc<Mutex<BTreeMap<String, Trouble>>>,
}

impl Giving {
    fn troubles(&self) -> MutexGuard<'_, BTreeMap<String, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node needs, whichever pool it is in.
    fn plan(&self, node: &Value, pools: &Objects) -> Plan {
        let pool = pool_of(node).and_then(|pool| pools.get(&Key::new("", pool)));
        let pool = pool.filter(|pool| !pod::is_deleting(pool));
        let (wanted, _) = pool.as_deref().map(Attributes::of_pool).unwrap_or_default();
        plan(
            node,
            self.sync.then_some(&wanted),
            has_host_network(pool.as_deref()),
        )
    }

    /// The condition of a pool with these nodes, and whether it is still to change by itself. Pure but for what is known of refusals.
    fn judge(&self, pool: &Value, members: &[Arc<Value>]) -> (Option<Value>, bool) {
        if !self.sync {
            return (None, false);
        }
        let (wanted, mut faults) = Attributes::of_pool(pool);
        let invalid = !faults.is_empty();
        let (mut conflicts, mut refused, mut pending) = (Vec::new(), Vec::new(), 0);
        let troubles = self.troubles();
        for node in members {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let plan = plan(node, Some(&wanted), has_host_network(Some(pool)));
            if !plan.conflicts.is_empty() {
                conflicts.push(format!("{name}: {}", plan.conflicts.join(", ")));
            }
            if plan.patch.is_some() {
                match troubles
                    .get(name)
                    .and_then(|trouble| trouble.refused.as_ref())
                {
                    Some(why) => refused.push(format!("{name}: {why}")),
                    None => pending += 1,
                }
            }
        }
        let (reason, what, list) = if invalid {
            ("InvalidAttributes", "no node can have", &mut faults)
        } else if !refused.is_empty() {
            (
                "WriteRefused",
                "nodes that cannot be written:",
                &mut refused,
            )
        } else if !conflicts.is_empty() {
            (
                "Conflict",
                "set otherwise by others and left so on",
                &mut conflicts,
            )
        } else if pending > 0 {
            let message = format!("{pending} nodes are to be written");
            let condition = condition::new(SYNCED, "False", "Pending", &message, Timestamp::now());
            return (Some(condition), true);
        } else {
            let condition = condition::new(SYNCED, "True", "Synced", "", Timestamp::now());
            return (Some(condition), false);
        };
        let more = list.len().saturating_sub(NAMED);
        list.truncate(NAMED);
        let mut message = format!("{what} {}", list.join("; "));
        if more > 0 {
            message.push_str(&format!("; and {more} more"));
        }
        let condition = condition::new(SYNCED, "False", reason, &message, Timestamp::now());
        (Some(condition), pending > 0)
    }
}

fn has_host_network(pool: Option<&Value>) -> bool {
    pool.is_some_and(|pool| pool["spec"]["hostNetwork"] == true)
}

/// `nodepool-controller`: the status of pools.
#[derive(Debug)]
struct NodePools(Giving);

/// What of a pool's status is to be written. Pure.
fn status(pool: &Value, members: &[Arc<Value>], synced: Option<Value>) -> Option<Value> {
    let ready = members.iter().filter(|node| is_ready(node)).count();
    let mut names: Vec<&str> = members
        .iter()
        .filter_map(|node| node["metadata"]["name"].as_str())
        .collect();
    names.sort_unstable();
    let mut fields =
        json!({"readyNodeNum": ready, "unreadyNodeNum": members.len() - ready, "nodes": names});
    let fields = fields.as_object_mut()?;
    fields.retain(|field, value| pool["status"][field.as_str()] != *value);
    let mut status = json!(fields);
    let mut known = pool["status"].clone();
    let changed = condition::settle(&mut known, SYNCED, synced);
    let mut patch = json!({});
    if changed {
        // The list is written by others as well: only at this version of the pool.
        status["conditions"] = known["conditions"].clone();
        patch["metadata"]["resourceVersion"] = pool["metadata"]["resourceVersion"].clone();
    }
    let nothing = status.as_object().is_none_or(serde_json::Map::is_empty);
    patch["status"] = status;
    (!nothing).then_some(patch)
}

impl Controller for NodePools {
    const NAME: &'static str = "nodepool-controller";
    const WORKERS: usize = 3;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let (giving, pools) = (self.0.clone(), context.objects(&NODE_POOLS));
        let matters = move |node: &Value| {
            let plan = giving.plan(node, &pools);
            json!([is_ready(node), plan.conflicts, plan.patch.is_some()])
        };
        vec![Watch::own(NODE_POOLS), watch_members(matters)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let pool = context.objects(&NODE_POOLS).get(key);
        let Some(pool) = pool.filter(|pool| !pod::is_deleting(pool)) else {
            return Ok(Next::Done);
        };
        let members = members(&context.objects(&NODES), &key.name);
        let (synced, unsettled) = self.0.judge(&pool, &members);
        if let Some(patch) = status(&pool, &members, synced) {
            context.merge(&NODE_POOLS, key, "status", &patch).await?;
        }
        Ok(match unsettled {
            true => Next::After(LOOK_AGAIN),
            false => Next::Done,
        })
    }
}

/// The other half of `nodepool-controller`: nodes have what their pools give.
#[derive(Debug)]
struct PoolNodes(Giving);

impl PoolNodes {
    /// Tells what is new, and notes it.
    fn tell(&self, node: &Value, plan: &Plan, refused: Option<String>, context: &Context) {
        let name = Key::of(node).name;
        let now = Trouble {
            conflicts: plan.conflicts.clone(),
            refused,
        };
        let before = {
            let mut troubles = self.0.troubles();
            match now == Trouble::default() {
                true => troubles.remove(&name),
                false => troubles.insert(name.clone(), now.clone()),
            }
        };
        let before = before.unwrap_or_default();
        let pool = pool_of(node).unwrap_or_default();
        if !now.conflicts.is_empty() && now.conflicts != before.conflicts {
            let message = format!(
                "not overwritten with what pool {pool} gives, as it is not the pool's: {}",
                now.conflicts.join(", ")
            );
            context.event(
                NodePools::NAME,
                node,
                "Warning",
                "AttributeConflict",
                &message,
            );
        }
        if let Some(why) = now
            .refused
            .filter(|why| before.refused.as_ref() != Some(why))
        {
            let message = format!("what pool {pool} gives cannot be written: {why}");
            context.event(
                NodePools::NAME,
                node,
                "Warning",
                "AttributesRefused",
                &message,
            );
        }
    }
}

impl Controller for PoolNodes {
    // Counted apart.
    const NAME: &'static str = "nodepool-controller-nodes";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let (nodes, pools) = (context.objects(&NODES), context.objects(&NODE_POOLS));
        // Who tells of a move lives as long as the caches do, which the context holds.
        let teller = Arc::downgrade(context);
        let giving = self.0.clone();
        let of_nodes = Watch::of(NODES, move |change| {
            let Some(node) = &change.new else {
                giving.troubles().remove(&change.key().name);
                return Vec::new();
            };
            let before = change.old.as_deref().and_then(pool_of);
            if let (Some(before), Some(now)) = (before, pool_of(node))
                && before != now
                && let Some(context) = teller.upgrade()
            {
                let message = format!("moved from pool {before} to pool {now}");
                context.event(NodePools::NAME, node, "Normal", "NodePoolChanged", &message);
            }
            let plan = giving.plan(node, &pools);
            let known = giving
                .troubles()
                .get(&change.key().name)
                .map(|t| t.conflicts.clone());
            let concerns = plan.patch.is_some() || plan.conflicts != known.unwrap_or_default();
            concerns.then(|| change.key()).into_iter().collect()
        });
        let of_pools = Watch::of(NODE_POOLS, move |change| {
            let gives = |pool: &Option<Arc<Value>>| {
                let pool = pool.as_deref().filter(|pool| !pod::is_deleting(pool))?;
                Some((Attributes::of_pool(pool).0, has_host_network(Some(pool))))
            };
            if gives(&change.old) == gives(&change.new) {
                return Vec::new();
            }
            let members = nodes.labelled(NODE_POOL, &change.key().name);
            members.iter().map(|node| Key::of(node)).collect()
        });
        vec![of_nodes, of_pools]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(node) = context.objects(&NODES).get(key) else {
            return Ok(Next::Done);
        };
        let plan = self.0.plan(&node, &context.objects(&NODE_POOLS));
        let Some(patch) = &plan.patch else {
            self.tell(&node, &plan, None, context);
            return Ok(Next::Done);
        };
        match context.merge(&NODES, key, "", patch).await {
            Ok(_) => self.tell(&node, &plan, None, context),
            Err(error) if error.is_not_found() => {}
            // It would not be taken a second time either, unless somebody else does something about it.
            Err(error) if matches!(error.code(), Some(400 | 403 | 422)) => {
                self.tell(&node, &plan, Some(error.message()), context);
                return Ok(Next::After(TRY_AGAIN));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests;
