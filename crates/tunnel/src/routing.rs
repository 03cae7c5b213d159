//! Which agent is asked for a target: a pure choice from who is connected and what is known of the cluster.
//!
//! Strategies are konnectivity's (`destHost`, `defaultRoute`, `default`) and two of ours: `cluster`, which asks the [`Directory`] (node
//! names, addresses of pods, services), and `cidr`, the longest prefix among the networks that agents say are behind them.

use crate::{Identifiers, directory::Directory, network::Network};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};
use yurt_transport::Destination;

/// Ways that are tried for one target at most, of each kind.
const MOST_WAYS: usize = 4;

/// A way to find an agent for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strategy {
    /// The agent with an identifier that is the target.
    DestHost,
    /// The agent of the node that the target is on, as far as the cluster tells.
    Cluster,
    /// The agent with the longest network around the target.
    Cidr,
    /// An agent that takes what nobody else does, at random.
    DefaultRoute,
    /// Any agent, at random.
    Default,
}

impl Strategy {
    /// All of them, the most specific first.
    pub const ALL: [Self; 5] = [
        Self::DestHost,
        Self::Cluster,
        Self::Cidr,
        Self::DefaultRoute,
        Self::Default,
    ];

    /// As flags and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DestHost => "destHost",
            Self::Cluster => "cluster",
            Self::Cidr => "cidr",
            Self::DefaultRoute => "defaultRoute",
            Self::Default => "default",
        }
    }

    /// Whether it may give a target to an agent that has nothing to do with it.
    fn guesses(self) -> bool {
        matches!(self, Self::DefaultRoute | Self::Default)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A strategy that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no strategy: there are destHost, cluster, cidr, defaultRoute and default")]
pub struct UnknownStrategy(String);

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        let mut all = Self::ALL.into_iter();
        all.find(|strategy| strategy.name() == text)
            .ok_or_else(|| UnknownStrategy(text.to_owned()))
    }
}

/// Who is connected, by what they can be asked for.
#[derive(Debug, Default)]
pub struct Roster {
    agents: BTreeMap<Arc<str>, Identifiers>,
    /// Agents by id, name and address, who came last at the end.
    names: HashMap<String, Vec<Arc<str>>>,
    networks: Vec<(Network, Arc<str>)>,
    takers: Vec<Arc<str>>,
    /// Sorted.
    ids: Vec<Arc<str>>,
}

/// The form that hosts are compared in.
fn canonical(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.trim_end_matches('.').to_ascii_lowercase(),
    }
}

/// All that an agent answers to.
fn names(id: &str, identifiers: &Identifiers) -> impl Iterator<Item = String> {
    let hosts = identifiers.hosts.iter().map(|host| canonical(host));
    let addresses = identifiers.addresses.iter().map(IpAddr::to_string);
    hosts.chain(addresses).chain([canonical(id)])
}

impl Roster {
    /// An agent is there, or has other identifiers from now on.
    pub fn insert(&mut self, id: &Arc<str>, identifiers: &Identifiers) {
        self.remove(id);
        for name in names(id, identifiers) {
            let known = self.names.entry(name).or_default();
            if !known.contains(id) {
                known.push(id.clone());
            }
        }
        let networks = identifiers.networks.iter();
        self.networks.extend(
            networks.filter_map(|(base, bits)| Some((Network::new(*base, *bits)?, id.clone()))),
        );
        if identifiers.default_route {
            self.takers.push(id.clone());
        }
        if let Err(place) = self.ids.binary_search(id) {
            self.ids.insert(place, id.clone());
        }
        self.agents.insert(id.clone(), identifiers.clone());
    }

    /// An agent is gone.
    pub fn remove(&mut self, id: &str) {
        let Some(identifiers) = self.agents.remove(id) else {
            return;
        };
        for name in names(id, &identifiers) {
            if let Some(known) = self.names.get_mut(&name) {
                known.retain(|other| **other != *id);
                if known.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
        if !identifiers.networks.is_empty() {
            self.networks.retain(|(_, other)| **other != *id);
        }
        self.takers.retain(|other| **other != *id);
        if let Ok(place) = self.ids.binary_search_by(|other| (**other).cmp(id)) {
            self.ids.remove(place);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Who has a name or address, who came last first.
    pub fn named<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
        let known = self.names.get(&canonical(host));
        known.into_iter().flatten().rev()
    }

    /// How many agents a strategy has to choose from.
    pub fn choices(&self, strategy: Strategy) -> usize {
        match strategy {
            Strategy::Cidr => self.networks.len(),
            Strategy::DefaultRoute => self.takers.len(),
            Strategy::DestHost | Strategy::Cluster | Strategy::Default => self.len(),
        }
    }

    fn around(&self, address: IpAddr) -> Vec<&Arc<str>> {
        let mut around: Vec<_> = self
            .networks
            .iter()
            .filter(|(network, _)| network.contains(address))
            .collect();
        around.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix()));
        around.into_iter().map(|(_, id)| id).collect()
    }
}

/// Some of a list, beginning anywhere.
fn rotated<'a, T>(all: &'a [T], random: u64) -> impl Iterator<Item = &'a T> + use<'a, T> {
    let length = all.len().max(1);
    let first = usize::try_from(random % length as u64).unwrap_or(0);
    all.iter().cycle().skip(first).take(all.len())
}

/// An agent to ask, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The agent's id.
    pub agent: Arc<str>,
    /// What it is to dial.
    pub to: Destination,
    /// Who says so; `None`: the caller, who named the node.
    pub by: Option<Strategy>,
}

/// What can be done for a target, the best first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Agents that are connected here.
    pub routes: Vec<Route>,
    /// What this server itself is to dial: it is on a node without an agent.
    pub direct: Vec<Destination>,
    /// What is on a node whose agent is not connected here; other instances may have it.
    pub elsewhere: Vec<Destination>,
}

impl Plan {
    fn add(&mut self, agent: &Arc<str>, to: Destination, by: Option<Strategy>) {
        // The agent is the node.
        let to = Destination { node: None, ..to };
        let known = |route: &Route| route.agent == *agent && route.to == to;
        if self.routes.len() < MOST_WAYS && !self.routes.iter().any(known) {
            self.routes.push(Route {
                agent: agent.clone(),
                to,
                by,
            });
        }
    }

    /// Something is at `to`, on a node.
    fn on_node(
        &mut self,
        node: &str,
        to: Destination,
        by: Option<Strategy>,
        roster: &Roster,
        directory: &dyn Directory,
    ) {
        let before = self.routes.len();
        for agent in roster.named(node) {
            self.add(agent, to.clone(), by);
        }
        if self.routes.len() > before {
            return;
        }
        let list = match directory.node(node) {
            Some(facts) if !facts.runs_agent() => &mut self.direct,
            _ => &mut self.elsewhere,
        };
        let to = Destination {
            node: Some(node.to_owned()),
            ..to
        };
        if list.len() < MOST_WAYS && !list.contains(&to) {
            list.push(to);
        }
    }
}

/// What can be done for `to`. `random` decides between equals.
pub fn plan(
    to: &Destination,
    strategies: &[Strategy],
    roster: &Roster,
    directory: &dyn Directory,
    random: u64,
) -> Plan {
    let mut plan = Plan::default();
    if let Some(node) = &to.node {
        plan.on_node(node, to.clone(), None, roster, directory);
        return plan;
    }
    for strategy in strategies.iter().copied() {
        if strategy.guesses() && plan != Plan::default() {
            break;
        }
        let by = Some(strategy);
        let mut each = |agent| plan.add(agent, to.clone(), by);
        match strategy {
            Strategy::DestHost => roster.named(&to.host).for_each(&mut each),
            Strategy::Cidr => {
                if let Ok(address) = to.host.parse() {
                    roster.around(address).into_iter().for_each(&mut each);
                }
            }
            Strategy::DefaultRoute => rotated(&roster.takers, random).for_each(&mut each),
            Strategy::Default => rotated(&roster.ids, random)
                .take(MOST_WAYS)
                .for_each(&mut each),
            Strategy::Cluster => located(to, &mut plan, roster, directory, random),
        }
    }
    plan
}

/// The cluster's part of a plan.
fn located(
    to: &Destination,
    plan: &mut Plan,
    roster: &Roster,
    directory: &dyn Directory,
    random: u64,
) {
    let by = Some(Strategy::Cluster);
    let cluster_address = match to.host.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            if let Some(node) = directory.node(&to.host) {
                // Not every node can resolve its own name.
                let host = node
                    .address()
                    .map_or_else(|| to.host.clone(), |address| address.to_string());
                let to = Destination { host, ..to.clone() };
                return plan.on_node(&node.name, to, by, roster, directory);
            }
            service_name(&to.host)
                .and_then(|(namespace, name)| directory.service(&namespace, &name))
        }
    };
    let Some(address) = cluster_address else {
        return;
    };
    if let Some(endpoints) = directory.service_at(address, to.port) {
        for endpoint in rotated(&endpoints, random).take(MOST_WAYS) {
            let there = Destination {
                node: None,
                host: endpoint.address.to_string(),
                port: endpoint.port,
            };
            let of_address = || directory.node_for(endpoint.address);
            match endpoint.node.clone().or_else(of_address) {
                Some(node) => plan.on_node(&node, there, by, roster, directory),
                // An endpoint outside of the cluster.
                None => plan.direct.push(there),
            }
        }
    } else if let Some(node) = directory.node_for(address) {
        let to = Destination {
            host: address.to_string(),
            ..to.clone()
        };
        plan.on_node(&node, to, by, roster, directory);
    }
}

/// Namespace and name of `NAME.NAMESPACE.svc[.DOMAIN]`.
pub(crate) fn service_name(host: &str) -> Option<(String, String)> {
    let host = canonical(host);
    let mut parts = host.split('.');
    let (name, namespace) = (parts.next()?, parts.next()?);
    let is_service = parts.next() == Some("svc") && !name.is_empty() && !namespace.is_empty();
    is_service.then(|| (namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests;
