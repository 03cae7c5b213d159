//! Finding a node for a pod, or saying why there is none.

use super::{
    filter::{Plugin, State, fits},
    pod::Pod,
    score::score,
    snapshot::{Node, Snapshot},
    volumes,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Nodes that are enough to choose from, whatever the cluster's size.
const ENOUGH: usize = 100;

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) node: String,
    /// Where the next search begins, so that all nodes get their turn.
    pub(super) next_start: usize,
}

/// No node can run a pod. Displays as kube-scheduler's message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unschedulable {
    /// How many nodes there are.
    nodes: usize,
    /// How many nodes each reason was found on.
    reasons: BTreeMap<String, usize>,
    /// What keeps the pod from all nodes alike.
    obstacle: Option<String>,
    /// Who rejected.
    pub(super) plugins: BTreeSet<Plugin>,
    /// Nodes that would do without some of their pods.
    pub(super) resolvable: Vec<usize>,
}

impl Unschedulable {
    /// How many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }
}

/// `2 Insufficient cpu, 1 Too many pods`, as kube-scheduler sorts it: by the text.
pub(super) fn histogram(reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort_unstable();
    parts.join(", ")
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available", self.nodes)?;
        match &self.obstacle {
            Some(obstacle) => write!(f, ": {obstacle}."),
            None => write!(f, ": {}.", histogram(&self.reasons)),
        }
    }
}

/// How many fitting nodes are looked for: all of a small cluster, a share of a large one.
fn enough(nodes: usize) -> usize {
    if nodes <= ENOUGH {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(ENOUGH)
}

/// Finds the best node for a pod, looking at nodes from `start` on until there are enough to choose from.
pub(super) fn schedule(
    pod: &Pod,
    snapshot: &Snapshot,
    start: usize,
) -> Result<Placement, Unschedulable> {
    let nodes = snapshot.nodes();
    let mut failure = Unschedulable {
        nodes: nodes.len(),
        ..Unschedulable::default()
    };
    if nodes.is_empty() {
        return Err(failure);
    }
    if let Some(obstacle) = volumes::obstacle(pod, snapshot) {
        failure.obstacle = Some(obstacle);
        failure.plugins.insert(Plugin::Volumes);
        return Err(failure);
    }
    let state = State::new(pod, snapshot);
    // Room was made there for this pod.
    if let Some(node) = pod.nominated.as_ref().and_then(|name| snapshot.node(name))
        && fits(pod, node, &state, snapshot).is_ok()
    {
        return Ok(Placement {
            node: node.name.clone(),
            next_start: start,
        });
    }
    let named: Option<Vec<usize>> = pod.required_nodes.names().map(|names| {
        names
            .into_iter()
            .filter_map(|n| snapshot.index(n))
            .collect()
    });
    if let Some(named) = &named
        && named.len() < nodes.len()
    {
        let reason = "node(s) didn't satisfy plugin(s) [NodeAffinity]".to_owned();
        failure.reasons.insert(reason, nodes.len() - named.len());
        failure.plugins.insert(Plugin::NodeAffinity);
    }
    let order: Box<dyn Iterator<Item = usize>> = match named {
        Some(named) => Box::new(named.into_iter()),
        None => Box::new((0..nodes.len()).map(|at| (start + at) % nodes.len())),
    };
    let mut fitting: Vec<&Node> = Vec::new();
    let (enough, mut looked_at) = (enough(nodes.len()), 0);
    for at in order {
        let Some(node) = nodes.get(at) else { continue };
        looked_at += 1;
        match fits(pod, node, &state, snapshot) {
            Ok(()) => {
                fitting.push(node);
                if fitting.len() >= enough {
                    break;
                }
            }
            Err(rejection) => {
                failure.plugins.insert(rejection.plugin);
                for reason in rejection.reasons {
                    *failure.reasons.entry(reason).or_default() += 1;
                }
                if rejection.resolvable {
                    failure.resolvable.push(at);
                }
            }
        }
    }
    let scores = match fitting.len() {
        0 => return Err(failure),
        1 => vec![0],
        _ => score(pod, &fitting, snapshot),
    };
    let best = scores.iter().copied().max().unwrap_or(0);
    let ties: Vec<&&Node> = fitting
        .iter()
        .zip(&scores)
        .filter(|(_, score)| **score == best)
        .map(|(node, _)| node)
        .collect();
    match fastrand::choice(ties) {
        Some(node) => Ok(Placement {
            node: node.name.clone(),
            next_start: (start + looked_at) % nodes.len(),
        }),
        None => Err(failure),
    }
}
