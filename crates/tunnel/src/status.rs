//! What `yurt tunnel status` and `yurt tunnel explain` show: told by a server as JSON (`/v1/status`, `/v1/explain?target=`), printed as
//! tables.

use crate::{
    peers::PeerStatus,
    registry::AgentStatus,
    routing::{Plan, Strategy},
    server::switchboard::Switchboard,
};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use yurt_inspect::{plain, table};
use yurt_transport::Destination;

/// The port of a target that names none: a kubelet's.
const KUBELET: u16 = 10250;

/// A server, its agents and the other instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// The instance's id.
    pub id: String,
    /// The program's version.
    pub version: String,
    /// Since when (RFC 3339, UTC).
    pub since: String,
    /// Whether it stops.
    pub draining: bool,
    /// How many instances there are, as agents are told.
    pub count: u32,
    /// How agents are found.
    pub strategies: Vec<String>,
    /// What the server dials itself: `never`, `cloud`, `any`.
    pub direct: String,
    /// Proxied connections that are open.
    pub connections: usize,
    /// Its agents.
    pub agents: Vec<AgentStatus>,
    /// The other instances.
    pub peers: Vec<PeerStatus>,
}

/// What a strategy makes of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which; empty where the caller named the node.
    pub strategy: String,
    /// Agents that it finds, the best first.
    pub agents: Vec<String>,
    /// What the best of them dials.
    pub dials: String,
}

/// What becomes of a dial, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked for.
    pub target: String,
    /// The instance that says this.
    pub instance: String,
    /// `agent`, `direct`, `peer` or `nobody`.
    pub by: String,
    /// One sentence.
    pub verdict: String,
    /// By strategy, in their order.
    pub findings: Vec<Finding>,
    /// What the server would dial itself.
    #[serde(default)]
    pub direct: Vec<String>,
    /// Nodes that the cluster says the target is on, whose agents are not connected to this instance.
    #[serde(default)]
    pub missing: Vec<String>,
    /// The instance (address) that reached it last.
    #[serde(default)]
    pub remembered: Option<String>,
    /// What the other instances say.
    #[serde(default)]
    pub peers: Vec<Explanation>,
}

/// A target as people write it: `NODE`, `ADDRESS`, `HOST:PORT`.
pub fn target(text: &str) -> Option<Destination> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let host = |host: &str| Destination {
        node: None,
        host: host.to_owned(),
        port: KUBELET,
    };
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return Some(host(bare));
    }
    match text.parse() {
        Ok(to) => Some(to),
        Err(_) if text.contains([':', '/', ' ']) || text.is_empty() => None,
        Err(_) => Some(host(text)),
    }
}

/// What this instance would do for a target.
pub fn explain(switchboard: &Switchboard, instance: &str, to: &Destination) -> Explanation {
    use crate::server::switchboard::Direct;
    let ways = switchboard.ways();
    let finding = |strategy: &Strategy| {
        let plan = switchboard.plan(to, &[*strategy]);
        Finding {
            strategy: strategy.to_string(),
            agents: plan.routes.iter().map(|r| r.agent.to_string()).collect(),
            dials: plan
                .routes
                .first()
                .map(|r| r.to.to_string())
                .unwrap_or_default(),
        }
    };
    let plan: Plan = switchboard.plan(to, &ways.strategies);
    let (by, verdict) = match (plan.routes.first(), plan.direct.first()) {
        (Some(route), _) => {
            let found = route.by.map_or("its name", Strategy::name);
            let agent = &route.agent;
            let verdict = format!("agent {agent} dials {} (found by {found})", route.to);
            ("agent", verdict)
        }
        (None, Some(there)) if ways.direct != Direct::Never => (
            "direct",
            format!("this server dials {there} itself: its node has no agent"),
        ),
        (None, Some(there)) => (
            "nobody",
            format!("{there} is on a node without an agent, and --direct=never"),
        ),
        (None, None) => {
            let agents = switchboard.registry().len();
            let why = match plan.elsewhere.first().and_then(|there| there.node.as_ref()) {
                Some(node) => format!("the agent of {node} is not connected to this instance"),
                None if agents == 0 => "no agent is connected to this instance".to_owned(),
                None => format!("none of the {agents} agents of this instance is for it"),
            };
            ("nobody", why)
        }
    };
    let mut missing: Vec<_> = plan
        .elsewhere
        .iter()
        .filter_map(|there| there.node.clone())
        .collect();
    missing.dedup();
    Explanation {
        target: to.to_string(),
        instance: instance.to_owned(),
        by: by.to_owned(),
        verdict,
        findings: ways.strategies.iter().map(finding).collect(),
        direct: plan.direct.iter().map(ToString::to_string).collect(),
        missing,
        remembered: switchboard.peers().remembered(to),
        peers: Vec::new(),
    }
}

impl Explanation {
    /// Takes what the other instances say into the verdict.
    pub fn with_peers(mut self, peers: Vec<Self>) -> Self {
        if self.by == "nobody"
            && let Some(able) = peers.iter().find(|peer| peer.by != "nobody")
        {
            self.by = "peer".into();
            self.verdict = format!("instance {}: {}", able.instance, able.verdict);
        }
        self.peers = peers;
        self
    }

    /// For people.
    pub fn show(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}: {}", plain(&self.target), plain(&self.verdict));
        let rows = self.findings.iter().map(|finding| {
            [
                finding.strategy.clone(),
                finding.agents.join(","),
                finding.dials.clone(),
            ]
        });
        let _ = write!(out, "\n{}", table(["STRATEGY", "AGENTS", "DIALS"], rows));
        for node in &self.missing {
            let _ = writeln!(out, "not connected here: the agent of {}", plain(node));
        }
        if let Some(address) = &self.remembered {
            let _ = writeln!(
                out,
                "reached last through the instance at {}",
                plain(address)
            );
        }
        if !self.peers.is_empty() {
            let rows = self
                .peers
                .iter()
                .map(|peer| [peer.instance.clone(), peer.by.clone(), peer.verdict.clone()]);
            let _ = write!(out, "\n{}", table(["INSTANCE", "BY", "SAYS"], rows));
        }
        out
    }
}

impl ServerStatus {
    /// For people.
    pub fn show(&self) -> String {
        let mut out = String::new();
        let draining = if self.draining { ", draining" } else { "" };
        let _ = writeln!(
            out,
            "{} (yurt {}) since {}{draining}: {} agents, {} connections, {} instances; strategies {}; direct {}\n",
            plain(&self.id),
            plain(&self.version),
            plain(&self.since),
            self.agents.len(),
            self.connections,
            self.count,
            self.strategies.join(","),
            self.direct,
        );
        let rows = self.agents.iter().flat_map(|agent| {
            let first = std::iter::once((agent.id.clone(), agent.identifiers.join(" ")));
            let names = first.chain(std::iter::repeat_with(Default::default));
            names.zip(&agent.links).map(|((id, identifiers), link)| {
                let draining = if link.draining { " draining" } else { "" };
                [
                    id,
                    format!("{}{draining}", link.protocol),
                    link.connections.to_string(),
                    link.from.clone(),
                    link.since.clone(),
                    agent.version.clone(),
                    identifiers,
                ]
            })
        });
        let head = [
            "AGENT",
            "PROTOCOL",
            "OPEN",
            "FROM",
            "SINCE",
            "VERSION",
            "IDENTIFIERS",
        ];
        out.push_str(&table(head, rows));
        if !self.peers.is_empty() {
            let rows = self.peers.iter().map(|peer| {
                let state = if peer.connected {
                    "connected"
                } else {
                    "not connected"
                };
                [
                    peer.id.clone(),
                    peer.address.clone(),
                    state.into(),
                    peer.why.clone(),
                ]
            });
            let _ = write!(
                out,
                "\n{}",
                table(["INSTANCE", "ADDRESS", "STATE", "WHY"], rows)
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_targets_as_they_like() {
        for (text, target_is) in [
            ("edge-1", "edge-1:10250"),
            ("10.0.0.1", "10.0.0.1:10250"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("fd00::1", "[fd00::1]:10250"),
            ("[fd00::1]", "[fd00::1]:10250"),
            ("[fd00::1]:22", "[fd00::1]:22"),
        ] {
            let to = target(text).expect("a target");
            assert_eq!(to.to_string(), target_is);
        }
        for wrong in ["", "a:", "a b", "a:0", "http://a"] {
            assert!(target(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn what_another_instance_can_do_is_the_verdict() {
        let said = |instance: &str, by: &str, verdict: &str| Explanation {
            target: "edge-1:10250".into(),
            instance: instance.into(),
            by: by.into(),
            verdict: verdict.into(),
            findings: Vec::new(),
            direct: Vec::new(),
            missing: Vec::new(),
            remembered: None,
            peers: Vec::new(),
        };
        let us = said(
            "a",
            "nobody",
            "the agent of edge-1 is not connected to this instance",
        );
        let peers = vec![
            said("b", "nobody", "no"),
            said("c", "agent", "agent edge-1 dials it"),
        ];
        let all = us.clone().with_peers(peers);
        assert_eq!(all.by, "peer");
        let shown = all.show();
        assert!(shown.contains("instance c: agent edge-1"), "{shown}");
        assert!(shown.contains("INSTANCE   BY       SAYS"), "{shown}");
        assert_eq!(us.with_peers(Vec::new()).by, "nobody");
    }
}
