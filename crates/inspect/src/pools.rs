//! `kubectl yurt pools`: what the pools have, and one of them node by node. Pure.

use crate::{
    View,
    app::Workload,
    node::{self, Leases, Link, ago, leaders, name},
    table::{span, table},
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use yurt_api::autonomy::Autonomy;
use yurt_api::names::{annotations, conditions, labels};
use yurt_controller::condition;

/// Read for all pools.
pub(crate) struct PoolsObserved {
    pub(crate) pools: Vec<Value>,
    pub(crate) nodes: Vec<Value>,
    pub(crate) leases: Leases,
    pub(crate) unseen: Vec<String>,
}

/// Read for one pool.
pub(crate) struct PoolObserved {
    pub(crate) pool: Value,
    pub(crate) nodes: Vec<Value>,
    pub(crate) leases: Leases,
    pub(crate) workloads: Vec<Value>,
    pub(crate) unseen: Vec<String>,
}

/// How many nodes stand how to the cloud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counts {
    pub(crate) nodes: usize,
    pub(crate) ready: usize,
    pub(crate) cut_off: usize,
    /// That say so, or of which nobody has heard.
    pub(crate) not_ready: usize,
}

impl Counts {
    fn add(&mut self, link: Link) {
        self.nodes += 1;
        match link {
            Link::Ready => self.ready += 1,
            Link::CutOff => self.cut_off += 1,
            Link::NotReady | Link::Silent => self.not_ready += 1,
        }
    }
}

/// A pool in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolLine {
    pub(crate) name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    pub(crate) counts: Counts,
    leaders: Vec<String>,
    /// The resources that its nodes fetch once for all.
    shares: Vec<String>,
}

/// All pools.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pools {
    pools: Vec<PoolLine>,
    /// Nodes that say they are in a pool that there is not.
    astray: BTreeMap<String, Counts>,
    /// Nodes in no pool.
    unpooled: Counts,
    unseen: Vec<String>,
}

fn shares(pool: &Value) -> Vec<String> {
    if pool["spec"]["interConnectivity"] != true {
        return Vec::new();
    }
    let shared = pool["spec"]["poolScopeMetadata"]
        .as_array()
        .into_iter()
        .flatten();
    shared
        .filter_map(|r| r["resource"].as_str().map(str::to_owned))
        .collect()
}

/// Pools with their nodes counted, sorted; nodes that say they are elsewhere; nodes that say nothing.
pub(crate) fn counted(
    observed: &PoolsObserved,
) -> (Vec<PoolLine>, BTreeMap<String, Counts>, Counts) {
    let mut of_pools: BTreeMap<String, Counts> = BTreeMap::new();
    let mut unpooled = Counts::default();
    for node in &observed.nodes {
        let link = Link::of(node, observed.leases.get(name(node)));
        match node::pool(node) {
            Some(pool) => of_pools.entry(pool.to_owned()).or_default().add(link),
            None => unpooled.add(link),
        }
    }
    let mut pools: Vec<PoolLine> = observed
        .pools
        .iter()
        .map(|pool| PoolLine {
            name: name(pool).to_owned(),
            kind: pool["spec"]["type"].as_str().unwrap_or_default().to_owned(),
            counts: of_pools.remove(name(pool)).unwrap_or_default(),
            leaders: leaders(pool),
            shares: shares(pool),
        })
        .collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    (pools, of_pools, unpooled)
}

impl PoolsObserved {
    pub(crate) fn judge(self) -> Pools {
        let (pools, astray, unpooled) = counted(&self);
        Pools {
            pools,
            astray,
            unpooled,
            unseen: self.unseen,
        }
    }
}

/// The rows of pools.
pub(crate) fn rows(pools: &[PoolLine]) -> String {
    let head = [
        "POOL",
        "TYPE",
        "NODES",
        "READY",
        "CUT OFF",
        "NOT READY",
        "LEADERS",
        "SHARES",
    ];
    table(
        head,
        pools.iter().map(|pool| {
            let Counts {
                nodes,
                ready,
                cut_off,
                not_ready,
            } = pool.counts;
            [
                pool.name.clone(),
                pool.kind.clone(),
                nodes.to_string(),
                ready.to_string(),
                cut_off.to_string(),
                not_ready.to_string(),
                pool.leaders.join(","),
                pool.shares.join(","),
            ]
        }),
    )
}

/// What could not be read.
pub(crate) fn unseen(unseen: &[String]) -> String {
    let lines = unseen
        .iter()
        .map(|what| format!("Not seen: {}\n", crate::table::plain(what)));
    lines.collect()
}

impl View for Pools {
    fn text(&self) -> String {
        let mut out = match self.pools.is_empty() {
            true => "There are no pools.\n".to_owned(),
            false => rows(&self.pools),
        };
        for (pool, counts) in &self.astray {
            out += &format!(
                "{} nodes say that they are in pool {pool}, which does not exist.\n",
                counts.nodes
            );
        }
        if self.unpooled.nodes > 0 {
            out += &format!("Nodes in no pool: {}\n", self.unpooled.nodes);
        }
        out + &unseen(&self.unseen)
    }
}

/// One pool.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pool {
    #[serde(flatten)]
    line: PoolLine,
    host_network: bool,
    leader_ready: Option<String>,
    nodes: Vec<NodeLine>,
    workloads: Vec<Workload>,
    unseen: Vec<String>,
}

/// A node of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeLine {
    name: String,
    link: Link,
    leader: bool,
    /// Since its lease was renewed, seconds, and by whom.
    heartbeat_seconds: Option<u64>,
    /// How long its pods stay while it is cut off: `-`, `always`, or a span.
    autonomy: String,
    /// Its condition `Autonomy`: whether it would go on alone.
    would_go_on: Option<String>,
    cordoned: bool,
    version: String,
    /// What the pool gives to its nodes and this one does not have.
    lacks: Vec<String>,
}

/// What a pool gives and a node does not have.
pub(crate) fn lacking(pool: &Value, node: &Value) -> Vec<String> {
    let mut lacking = Vec::new();
    for (map, what) in [("labels", "label"), ("annotations", "annotation")] {
        let given = pool["spec"][map].as_object().into_iter().flatten();
        for (key, value) in given {
            if node["metadata"][map][key] != *value {
                lacking.push(format!("{what} {key}"));
            }
        }
    }
    let same = |a: &Value, b: &Value| a["key"] == b["key"] && a["effect"] == b["effect"];
    for taint in pool["spec"]["taints"].as_array().into_iter().flatten() {
        let mut has = node["spec"]["taints"].as_array().into_iter().flatten();
        if !has.any(|other| same(taint, other)) {
            lacking.push(format!(
                "taint {}",
                taint["key"].as_str().unwrap_or_default()
            ));
        }
    }
    lacking
}

/// How long the pods of a node stay while it is cut off.
pub(crate) fn autonomy(node: &Value) -> String {
    match Autonomy::of(node) {
        Autonomy::Off(_) => String::new(),
        Autonomy::Unlimited => "always".to_owned(),
        Autonomy::For(duration) => span(duration),
    }
}

impl PoolObserved {
    pub(crate) fn judge(self, now: Timestamp) -> Pool {
        let leading = leaders(&self.pool);
        let mut nodes: Vec<NodeLine> = self
            .nodes
            .iter()
            .map(|node| {
                let lease = self.leases.get(name(node));
                let renewed = lease.and_then(|lease| ago(&lease["spec"]["renewTime"], now));
                NodeLine {
                    name: name(node).to_owned(),
                    link: Link::of(node, lease),
                    leader: leading.iter().any(|leader| leader == name(node)),
                    heartbeat_seconds: renewed.map(|ago| ago.as_secs()),
                    autonomy: autonomy(node),
                    would_go_on: condition::find(&node["status"], conditions::AUTONOMY)
                        .and_then(|c| c["status"].as_str().map(str::to_owned)),
                    cordoned: node["spec"]["unschedulable"] == true,
                    version: node["status"]["nodeInfo"]["kubeletVersion"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                    lacks: lacking(&self.pool, node),
                }
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let leader_ready =
            condition::find(&self.pool["status"], conditions::LEADER_READY).map(|ready| {
                let field = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
                [field("status"), field("reason"), field("message")]
                    .join(" ")
                    .trim()
                    .to_owned()
            });
        let all = PoolsObserved {
            pools: vec![self.pool],
            nodes: self.nodes,
            leases: self.leases,
            unseen: Vec::new(),
        };
        let (mut lines, ..) = counted(&all);
        let mut workloads: Vec<Workload> = self.workloads.iter().map(Workload::of).collect();
        workloads.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Pool {
            line: lines.remove(0),
            host_network: all.pools.iter().any(|pool| {
                pool["spec"]["hostNetwork"] == true
                    || node::label(pool, labels::HOST_NETWORK) == Some("true")
                    || node::annotation(pool, labels::HOST_NETWORK) == Some("true")
            }),
            leader_ready,
            nodes,
            workloads,
            unseen: self.unseen,
        }
    }
}

impl View for Pool {
    fn text(&self) -> String {
        let mut out = rows(std::slice::from_ref(&self.line));
        if self.host_network {
            out += "The nodes have no container network: pods share the network of their node.\n";
        }
        if let Some(ready) = &self.leader_ready {
            out += &format!(
                "{}: {}\n",
                conditions::LEADER_READY,
                crate::table::plain(ready)
            );
        }
        out.push('\n');
        if self.nodes.is_empty() {
            out += &format!(
                "No node is in it: kubectl label node NODE {}={}\n",
                labels::NODE_POOL,
                self.line.name
            );
        } else {
            let head = [
                "NODE",
                "STATE",
                "HEARTBEAT",
                "LEADS",
                "PODS STAY",
                "WOULD GO ON",
                "VERSION",
            ];
            out += &table(
                head,
                self.nodes.iter().map(|node| {
                    let cordoned = if node.cordoned {
                        ",SchedulingDisabled"
                    } else {
                        ""
                    };
                    let heartbeat = node.heartbeat_seconds.map(|seconds| {
                        let ago = span(std::time::Duration::from_secs(seconds));
                        let by = if node.link == Link::CutOff {
                            " by the pool"
                        } else {
                            ""
                        };
                        format!("{ago} ago{by}")
                    });
                    [
                        node.name.clone(),
                        format!("{}{cordoned}", node.link.name()),
                        heartbeat.unwrap_or_default(),
                        if node.leader {
                            "yes".to_owned()
                        } else {
                            String::new()
                        },
                        node.autonomy.clone(),
                        node.would_go_on.clone().unwrap_or_default(),
                        node.version.clone(),
                    ]
                }),
            );
        }
        for node in self.nodes.iter().filter(|node| !node.lacks.is_empty()) {
            out += &format!(
                "{} lacks what the pool gives: {} (annotation {} says what it was given)\n",
                node.name,
                node.lacks.join(", "),
                annotations::PREVIOUS_ATTRIBUTES
            );
        }
        if !self.workloads.is_empty() {
            out.push('\n');
            let head = [
                "NAMESPACE",
                "WORKLOAD",
                "KIND",
                "DESIRED",
                "READY",
                "UPDATED",
                "IMAGES",
            ];
            out += &table(
                head,
                self.workloads.iter().map(|w| {
                    [
                        w.namespace.clone(),
                        w.name.clone(),
                        w.kind.clone(),
                        w.desired.to_string(),
                        w.ready.to_string(),
                        w.updated.to_string(),
                        w.images.join(","),
                    ]
                }),
            );
        }
        out + &unseen(&self.unseen)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn node(name: &str, pool: &str, ready: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {labels::NODE_POOL: pool, labels::EDGE_WORKER: "true"}, "annotations": {}},
            "spec": {}, "status": {"conditions": [{"type": "Ready", "status": ready}], "nodeInfo": {"kubeletVersion": "v1.34.1"}}})
    }

    pub(crate) fn lease(node: &str, renewed: &str, delegated: bool) -> (String, Value) {
        let mut lease = json!({"metadata": {"name": node}, "spec": {"renewTime": renewed}});
        if delegated {
            lease["metadata"]["annotations"] = json!({annotations::DELEGATE_HEARTBEAT: "true"});
        }
        (node.to_owned(), lease)
    }

    pub(crate) fn pool(name: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"type": "Edge", "interConnectivity": true,
            "poolScopeMetadata": [{"group": "", "version": "v1", "resource": "services"}]},
            "status": {"leaderEndpoints": [{"nodeName": format!("{name}-1"), "address": "10.0.0.1"}],
                "conditions": [{"type": "LeaderReady", "status": "True", "reason": "LeadersElected"}]}})
    }

    pub(crate) fn now() -> Timestamp {
        "2026-11-22T10:00:00Z".parse().expect("a time")
    }

    fn observed() -> PoolsObserved {
        PoolsObserved {
            pools: vec![pool("b"), pool("a")],
            nodes: vec![
                node("a-1", "a", "True"),
                node("a-2", "a", "True"),
                node("a-3", "a", "Unknown"),
                node("c-1", "c", "True"),
                node("d-1", "", "False"),
            ],
            leases: Leases::from([
                lease("a-1", "2026-11-22T09:59:58Z", false),
                lease("a-2", "2026-11-22T09:59:55Z", true),
                lease("a-3", "2026-11-22T09:00:00Z", false),
            ]),
            unseen: vec!["leases: forbidden".into()],
        }
    }

    #[test]
    fn pools_are_counted_by_how_their_nodes_stand_to_the_cloud() {
        let pools = observed().judge();
        assert_eq!(
            pools.text(),
            "\
POOL   TYPE   NODES   READY   CUT OFF   NOT READY   LEADERS   SHARES
a      Edge   3       1       1         1           a-1       services
b      Edge   0       0       0         0           b-1       services
1 nodes say that they are in pool c, which does not exist.
Nodes in no pool: 1
Not seen: leases: forbidden
"
        );
        let json = serde_json::to_value(&pools).expect("json");
        assert_eq!(json["pools"][0]["cutOff"], 1, "{json}");
        assert_eq!(json["astray"]["c"]["ready"], 1);
    }

    #[test]
    fn a_pool_is_told_node_by_node() {
        let PoolsObserved { nodes, leases, .. } = observed();
        let mut pool = pool("a");
        pool["spec"]["labels"] = json!({"region": "east"});
        pool["spec"]["taints"] = json!([{"key": "edge", "effect": "NoSchedule"}]);
        let mut nodes: Vec<Value> = nodes
            .into_iter()
            .filter(|n| node::pool(n) == Some("a"))
            .collect();
        for node in &mut nodes {
            node["metadata"]["labels"]["region"] = json!("east");
            node["spec"]["taints"] = json!([{"key": "edge", "effect": "NoSchedule"}]);
        }
        nodes[1]["metadata"]["labels"]["region"] = json!("west");
        nodes[1]["spec"] = json!({"unschedulable": true});
        nodes[1]["metadata"]["annotations"][annotations::AUTONOMY_DURATION] = json!("30m");
        let workload = json!({"kind": "Deployment", "metadata": {"namespace": "shop", "name": "web-a-x", "generation": 1},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "web:1"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 2, "observedGeneration": 1}});
        let told = PoolObserved {
            pool,
            nodes,
            leases,
            workloads: vec![workload],
            unseen: Vec::new(),
        }
        .judge(now());
        assert_eq!(
            told.text(),
            "\
POOL   TYPE   NODES   READY   CUT OFF   NOT READY   LEADERS   SHARES
a      Edge   3       1       1         1           a-1       services
LeaderReady: True LeadersElected

NODE   STATE                       HEARTBEAT            LEADS   PODS STAY   WOULD GO ON   VERSION
a-1    Ready                       2s ago               yes     -           -             v1.34.1
a-2    CutOff,SchedulingDisabled   5s ago by the pool   -       30m         -             v1.34.1
a-3    Silent                      60m ago              -       -           -             v1.34.1
a-2 lacks what the pool gives: label region, taint edge (annotation nodepool.openyurt.io/previous-attributes says what it was given)

NAMESPACE   WORKLOAD   KIND         DESIRED   READY   UPDATED   IMAGES
shop        web-a-x    Deployment   2         1       2         web:1
"
        );
    }
}
