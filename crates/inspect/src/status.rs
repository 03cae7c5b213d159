//! `kubectl yurt status`: components, definitions, pools, what waits. Pure.

use crate::{
    View,
    node::{ago, name},
    pools::{Counts, PoolLine, PoolsObserved, counted, rows, unseen},
    table::{plain, span, table},
    why::{Finding, Level, render},
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use yurt_controller::pod;

/// A manager that renewed nothing for so long leads no more, unless its lease says otherwise.
const LEASE: Duration = Duration::from_secs(15);
/// Certificates wait for their approval no longer than this, where all is well.
const APPROVAL: Duration = Duration::from_secs(60);

/// Read for the whole.
pub(crate) struct StatusObserved {
    pub(crate) version: Value,
    /// Definitions by name, with what the cluster has.
    pub(crate) definitions: Vec<(String, Option<Value>)>,
    pub(crate) manager_pods: Vec<Value>,
    pub(crate) manager_lease: Option<Value>,
    /// How many webhooks are configured.
    pub(crate) mutating: Option<usize>,
    pub(crate) validating: Option<usize>,
    pub(crate) pools: PoolsObserved,
    pub(crate) requests: Vec<Value>,
    pub(crate) unseen: Vec<String>,
}

/// The whole.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    api_server: String,
    manager: Manager,
    /// Nodes by the version of their kubelet.
    kubelets: BTreeMap<String, usize>,
    /// Versions that are served, by definition; none where it is missing.
    definitions: BTreeMap<String, Vec<String>>,
    nodes: Counts,
    pools: Vec<PoolLine>,
    certificates_pending: Vec<Pending>,
    findings: Vec<Finding>,
    unseen: Vec<String>,
}

/// The manager.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manager {
    leader: Option<Leader>,
    images: Vec<String>,
    ready_pods: usize,
    pods: usize,
    mutating_webhooks: Option<usize>,
    validating_webhooks: Option<usize>,
}

/// Who leads.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Leader {
    holder: String,
    lease: String,
    renewed_seconds_ago: u64,
    alive: bool,
    since_seconds: Option<u64>,
}

/// A certificate that nobody has decided about.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pending {
    name: String,
    requester: String,
    signer: String,
    seconds: u64,
}

fn leader(lease: &Value, now: Timestamp) -> Option<Leader> {
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"]
        .as_str()
        .filter(|holder| !holder.is_empty())?;
    let renewed = ago(&spec["renewTime"], now)?;
    let lasts = spec["leaseDurationSeconds"]
        .as_u64()
        .map_or(LEASE, Duration::from_secs);
    Some(Leader {
        holder: holder.to_owned(),
        lease: name(lease).to_owned(),
        renewed_seconds_ago: renewed.as_secs(),
        alive: renewed <= lasts,
        since_seconds: ago(&spec["acquireTime"], now).map(|since| since.as_secs()),
    })
}

/// Requests for certificates that nobody has decided about.
pub(crate) fn pending(requests: &[Value]) -> impl Iterator<Item = &Value> {
    requests.iter().filter(|request| {
        let decided = request["status"]["conditions"]
            .as_array()
            .is_some_and(|c| !c.is_empty());
        !decided
    })
}

impl StatusObserved {
    pub(crate) fn judge(self, now: Timestamp) -> Status {
        let (pools, astray, unpooled) = counted(&self.pools);
        let mut nodes = unpooled;
        for counts in pools.iter().map(|pool| &pool.counts).chain(astray.values()) {
            nodes.nodes += counts.nodes;
            nodes.ready += counts.ready;
            nodes.cut_off += counts.cut_off;
            nodes.not_ready += counts.not_ready;
        }
        let mut kubelets = BTreeMap::new();
        for node in &self.pools.nodes {
            let version = node["status"]["nodeInfo"]["kubeletVersion"]
                .as_str()
                .unwrap_or("unknown");
            *kubelets.entry(version.to_owned()).or_default() += 1;
        }
        let served = |definition: &Value| {
            let versions = definition["spec"]["versions"]
                .as_array()
                .into_iter()
                .flatten();
            let served = versions.filter(|version| version["served"] == true);
            served
                .filter_map(|v| v["name"].as_str().map(str::to_owned))
                .collect()
        };
        let mut images: Vec<String> = self
            .manager_pods
            .iter()
            .flat_map(|pod| pod["spec"]["containers"].as_array().into_iter().flatten())
            .filter_map(|container| container["image"].as_str().map(str::to_owned))
            .collect();
        images.sort();
        images.dedup();
        let certificates_pending = pending(&self.requests).map(|request| Pending {
            name: name(request).to_owned(),
            requester: request["spec"]["username"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            signer: request["spec"]["signerName"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            seconds: ago(&request["metadata"]["creationTimestamp"], now)
                .unwrap_or_default()
                .as_secs(),
        });
        let mut status = Status {
            api_server: self.version["gitVersion"]
                .as_str()
                .unwrap_or("unknown")
                .to_owned(),
            manager: Manager {
                leader: self
                    .manager_lease
                    .as_ref()
                    .and_then(|lease| leader(lease, now)),
                images,
                ready_pods: self
                    .manager_pods
                    .iter()
                    .filter(|pod| pod::is_ready(pod))
                    .count(),
                pods: self.manager_pods.len(),
                mutating_webhooks: self.mutating,
                validating_webhooks: self.validating,
            },
            kubelets,
            definitions: self
                .definitions
                .iter()
                .map(|(name, found)| (name.clone(), found.as_ref().map(served).unwrap_or_default()))
                .collect(),
            nodes,
            certificates_pending: certificates_pending.collect(),
            pools,
            findings: Vec::new(),
            unseen: self.unseen,
        };
        status.findings = status.found(&astray);
        status
    }
}

impl Status {
    fn found(&self, astray: &BTreeMap<String, Counts>) -> Vec<Finding> {
        let mut found = Vec::new();
        let missing: Vec<&str> = self
            .definitions
            .iter()
            .filter(|(_, versions)| versions.is_empty())
            .map(|(name, _)| name.as_str())
            .collect();
        if !missing.is_empty() {
            found.push(
                Finding::problem("definitions", format!("missing: {}", missing.join(", ")))
                    .todo("yurt crds | kubectl apply -f -"),
            );
        }
        match &self.manager.leader {
            None => found.push(
                Finding::problem("manager", "no yurt-manager has ever led: pools, apps and upgrades stay as they are")
                    .todo("install it with the chart, or `yurt manifests | kubectl apply -f -`"),
            ),
            Some(leader) if !leader.alive => found.push(
                Finding::problem(
                    "manager",
                    format!(
                        "{} led until {} ago, and nobody took over: pools, apps and upgrades stay as they are",
                        leader.holder,
                        span(Duration::from_secs(leader.renewed_seconds_ago))
                    ),
                )
                .todo("look at the manager's pods and log"),
            ),
            Some(_) => {}
        }
        if self.manager.mutating_webhooks.is_none() || self.manager.validating_webhooks.is_none() {
            found.push(Finding::note(
                "webhooks",
                "not configured: specs are neither completed nor checked when they are written",
            ));
        }
        for (pool, counts) in astray {
            found.push(
                Finding::problem(
                    "pools",
                    format!(
                        "{} nodes say they are in pool {pool}, which does not exist",
                        counts.nodes
                    ),
                )
                .todo(format!(
                    "create the NodePool {pool}, or take the label off the nodes"
                )),
            );
        }
        for pool in self.pools.iter().filter(|pool| pool.counts.not_ready > 0) {
            found.push(
                Finding::note(
                    "nodes",
                    format!(
                        "pool {}: {} of {} nodes are not ready, and nobody vouches for them",
                        pool.name, pool.counts.not_ready, pool.counts.nodes
                    ),
                )
                .todo(format!("kubectl yurt pools {}", pool.name)),
            );
        }
        for pool in self.pools.iter().filter(|pool| pool.counts.cut_off > 0) {
            found.push(Finding::note(
                "nodes",
                format!(
                    "pool {}: {} of {} nodes are cut off; their pool says that they live",
                    pool.name, pool.counts.cut_off, pool.counts.nodes
                ),
            ));
        }
        let long = |pending: &&Pending| Duration::from_secs(pending.seconds) > APPROVAL;
        let waiting = self.certificates_pending.iter().filter(long).count();
        if waiting > 0 {
            found.push(
                Finding::problem("certificates", format!("{waiting} requests wait for longer than {}", span(APPROVAL)))
                    .todo("is csr-approver-controller running? else: kubectl certificate approve NAME, where the requester may have that name"),
            );
        }
        found
    }
}

impl View for Status {
    fn text(&self) -> String {
        let manager = &self.manager;
        let webhooks =
            |number: Option<usize>| number.map_or_else(|| "none".to_owned(), |n| n.to_string());
        let leads = match &manager.leader {
            None => "nobody leads".to_owned(),
            Some(leader) => format!(
                "{} {}{}, lease {} renewed {} ago",
                leader.holder,
                if leader.alive { "leads" } else { "led" },
                match leader.since_seconds {
                    Some(since) if leader.alive =>
                        format!(" for {}", span(Duration::from_secs(since))),
                    _ => String::new(),
                },
                leader.lease,
                span(Duration::from_secs(leader.renewed_seconds_ago))
            ),
        };
        let kubelets = self
            .kubelets
            .iter()
            .map(|(version, nodes)| format!("{version} ({nodes})"));
        let head = ["COMPONENT", "VERSION", "STATE"];
        let pods = match manager.pods {
            0 => String::new(),
            all => format!("; {} of {all} pods ready", manager.ready_pods),
        };
        let mut out = table(
            head,
            [
                [
                    "API server".into(),
                    self.api_server.clone(),
                    "answers".into(),
                ],
                [
                    "manager".into(),
                    manager.images.join(","),
                    format!("{leads}{pods}"),
                ],
                [
                    "webhooks".into(),
                    String::new(),
                    format!(
                        "{} mutating, {} validating",
                        webhooks(manager.mutating_webhooks),
                        webhooks(manager.validating_webhooks)
                    ),
                ],
                [
                    "nodes".into(),
                    kubelets.collect::<Vec<_>>().join(","),
                    format!(
                        "{} of {} ready, {} cut off, {} not ready",
                        self.nodes.ready,
                        self.nodes.nodes,
                        self.nodes.cut_off,
                        self.nodes.not_ready
                    ),
                ],
            ],
        );
        out.push('\n');
        let definitions = self
            .definitions
            .iter()
            .map(|(name, versions)| [name.clone(), versions.join(",")]);
        out += &table(["DEFINITION", "SERVED"], definitions);
        if !self.pools.is_empty() {
            out.push('\n');
            out += &rows(&self.pools);
        }
        if !self.certificates_pending.is_empty() {
            out.push('\n');
            let rows = self.certificates_pending.iter().map(|pending| {
                [
                    pending.name.clone(),
                    plain(&pending.requester),
                    pending.signer.clone(),
                    span(Duration::from_secs(pending.seconds)),
                ]
            });
            out += &table(
                ["CERTIFICATE REQUEST", "REQUESTER", "SIGNER", "WAITS"],
                rows,
            );
        }
        if !self.findings.is_empty() {
            out.push('\n');
            out += &render(&self.findings);
        }
        out + &unseen(&self.unseen)
    }

    fn is_alarming(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.level == Level::Problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Leases;
    use crate::pools::tests::{lease, node, now, pool};
    use serde_json::json;

    fn observed() -> StatusObserved {
        let served = json!({"spec": {"versions": [{"name": "v1alpha1", "served": true}, {"name": "v1beta2", "served": true}, {"name": "v0", "served": false}]}});
        StatusObserved {
            version: json!({"gitVersion": "v1.34.1"}),
            definitions: vec![("nodepools.apps.openyurt.io".into(), Some(served))],
            manager_pods: vec![
                json!({"metadata": {"name": "m"}, "spec": {"containers": [{"image": "yurt:0.1"}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            ],
            manager_lease: Some(
                json!({"metadata": {"name": "yurt-manager"}, "spec": {"holderIdentity": "m_1",
                "renewTime": "2026-11-22T09:59:58.000000Z", "acquireTime": "2026-11-22T09:00:00.000000Z", "leaseDurationSeconds": 15}}),
            ),
            mutating: Some(5),
            validating: Some(4),
            pools: PoolsObserved {
                pools: vec![pool("a")],
                nodes: vec![node("a-1", "a", "True")],
                leases: Leases::from([lease("a-1", "2026-11-22T09:59:58Z", false)]),
                unseen: Vec::new(),
            },
            requests: vec![
                json!({"metadata": {"name": "done"}, "status": {"conditions": [{"type": "Approved"}]}}),
            ],
            unseen: Vec::new(),
        }
    }

    #[test]
    fn a_healthy_cluster_is_told_in_two_tables() {
        let status = observed().judge(now());
        assert!(!status.is_alarming());
        assert_eq!(
            status.text(),
            "\
COMPONENT    VERSION       STATE
API server   v1.34.1       answers
manager      yurt:0.1      m_1 leads for 60m, lease yurt-manager renewed 2s ago; 1 of 1 pods ready
webhooks     -             5 mutating, 4 validating
nodes        v1.34.1 (1)   1 of 1 ready, 0 cut off, 0 not ready

DEFINITION                   SERVED
nodepools.apps.openyurt.io   v1alpha1,v1beta2

POOL   TYPE   NODES   READY   CUT OFF   NOT READY   LEADERS   SHARES
a      Edge   1       1       0         0           a-1       services
"
        );
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let mut observed = observed();
        observed
            .definitions
            .push(("yurtappsets.apps.openyurt.io".into(), None));
        observed.mutating = None;
        if let Some(lease) = &mut observed.manager_lease {
            lease["spec"]["renewTime"] = json!("2026-11-22T09:30:00Z");
        }
        observed.pools.nodes.push(node("a-2", "a", "Unknown"));
        observed.pools.nodes.push(node("z-1", "z", "True"));
        observed.requests.push(json!({"metadata": {"name": "csr-x", "creationTimestamp": "2026-11-22T09:55:00Z"},
            "spec": {"username": "system:node:a-1", "signerName": "kubernetes.io/kubelet-serving"}}));
        let status = observed.judge(now());
        assert!(status.is_alarming());
        let text = status.text();
        for part in [
            "PROBLEM   definitions    missing: yurtappsets.apps.openyurt.io",
            "PROBLEM   manager        m_1 led until 30m ago",
            "note      webhooks       not configured",
            "PROBLEM   pools          1 nodes say they are in pool z",
            "note      nodes          pool a: 1 of 2 nodes are not ready",
            "PROBLEM   certificates   1 requests wait",
            "csr-x                 system:node:a-1   kubernetes.io/kubelet-serving   5m",
            "-> yurt crds | kubectl apply -f -",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
