//! What an agent lets the cloud reach. Pure but for [`AllowedDialer`], which resolves names, checks every address and connects to what was
//! checked: never to a name, which may mean something else a moment later.
//!
//! By default: this node's kubelet, daemons of the node on agreed ports of its loopback, and its pods' networks. Flags add to it.

mod dialer;

pub use dialer::{AllowedDialer, Bounds, Resolve, SystemResolver};
pub(crate) use dialer::{Mark, connect_any};

use crate::network::Network;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    str::FromStr,
};

/// Ports of a kubelet: authenticated, and read-only.
pub const KUBELET_PORTS: [u16; 2] = [10250, 10255];
/// Daemons on a node's loopback that the cloud scrapes: the agent and the hub (`localhost-proxy-ports`).
pub const LOCALHOST_PORTS: [u16; 2] = [10266, 10267];

/// Which addresses or names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whom {
    Network(Network),
    /// A name as it is asked for; its addresses are its owner's business.
    Name(String),
}

/// One entry of an allow-list: addresses or a name, on some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    whom: Whom,
    ports: Vec<RangeInclusive<u16>>,
}

/// What is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not ADDRESS[/BITS][:PORTS] or NAME:PORTS, with PORTS as 22,8000-8100: {why}")]
pub struct NotARule {
    text: String,
    why: &'static str,
}

/// Ports and ranges of them: `22,8000-8100`.
pub(crate) fn parse_ports(text: &str) -> Result<Vec<RangeInclusive<u16>>, &'static str> {
    let number = |text: &str| match text.trim().parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("ports are 1 to 65535"),
    };
    let range = |text: &str| match text.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last)
                .then_some(first..=last)
                .ok_or("a range of ports ends before it begins")
        }
        None => number(text).map(|port| port..=port),
    };
    text.split(',').map(range).collect()
}

impl FromStr for Rule {
    type Err = NotARule;

    /// `10.0.0.0/8`, `192.168.1.7:22`, `[fd00::]/64:80,443`, `fd00::1`, `db.local:5432`.
    fn from_str(text: &str) -> Result<Self, NotARule> {
        let wrong = |why| NotARule {
            text: text.to_owned(),
            why,
        };
        let trimmed = text.trim();
        // Whole as an address first: IPv6 has colons of its own.
        let (host, given) =
            if trimmed.parse::<Network>().is_ok() || trimmed.parse::<IpAddr>().is_ok() {
                (trimmed.to_owned(), None)
            } else {
                match trimmed.rsplit_once(':') {
                    Some((host, ports)) => (host.replace(['[', ']'], ""), Some(ports)),
                    None => (trimmed.replace(['[', ']'], ""), None),
                }
            };
        let ports = given.map(parse_ports).transpose().map_err(wrong)?;
        let network = host
            .parse::<IpAddr>()
            .map(|ip| Network::host(ip.to_canonical()))
            .ok()
            .or_else(|| host.parse().ok());
        let whom = match network {
            Some(network) => Whom::Network(network),
            None if host.contains('/') || host.is_empty() || host.contains(':') => {
                return Err(wrong("no address, block or name before the ports"));
            }
            None if ports.is_none() => return Err(wrong("a name needs ports")),
            None => Whom::Name(canonical_name(&host)),
        };
        Ok(Self {
            whom,
            ports: ports.unwrap_or_else(|| vec![1..=u16::MAX]),
        })
    }
}

impl Rule {
    /// Of addresses.
    pub(crate) fn on(network: Network, ports: Vec<RangeInclusive<u16>>) -> Self {
        let whom = Whom::Network(network);
        Self { whom, ports }
    }

    /// The addresses and ports, unless it is about a name.
    pub(crate) fn network(&self) -> Option<(Network, &[RangeInclusive<u16>])> {
        match &self.whom {
            Whom::Network(network) => Some((*network, &self.ports)),
            Whom::Name(_) => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.whom {
            Whom::Network(network) => write!(formatter, "{network}")?,
            Whom::Name(name) => write!(formatter, "{name}")?,
        }
        for (index, range) in self.ports.iter().enumerate() {
            let before = if index == 0 { ':' } else { ',' };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(formatter, "{before}{first}")?,
                (first, last) => write!(formatter, "{before}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

fn canonical_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// What may be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    rules: Vec<Rule>,
}

/// What an agent knows of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeScope {
    /// Addresses of the node.
    pub addresses: Vec<IpAddr>,
    /// Where its pods have their addresses from.
    pub pod_networks: Vec<Network>,
    /// Ports of its loopback that the cloud may reach beside the kubelet's.
    pub localhost_ports: Vec<u16>,
}

impl AllowList {
    /// Exactly these.
    pub fn of(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// What is allowed by default on a node, then `more`.
    pub fn of_node(node: &NodeScope, more: &[Rule]) -> Self {
        let on = |network: Network, ports: &[u16]| {
            Rule::on(network, ports.iter().map(|port| *port..=*port).collect())
        };
        let loopback = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ];
        let mut rules = Vec::new();
        let mut local = KUBELET_PORTS.to_vec();
        local.extend(&node.localhost_ports);
        for address in loopback {
            rules.push(on(Network::host(address), &local));
        }
        for address in &node.addresses {
            rules.push(on(Network::host(address.to_canonical()), &KUBELET_PORTS));
        }
        for network in &node.pod_networks {
            rules.push(Rule::on(*network, vec![1..=u16::MAX]));
        }
        rules.extend_from_slice(more);
        Self { rules }
    }

    /// Whether an address may be reached on a port.
    pub fn permits(&self, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        // What is no single host's address never is: connecting to 0.0.0.0 reaches the node itself.
        if port == 0 || address.is_unspecified() || address.is_multicast() || is_broadcast(address)
        {
            return false;
        }
        self.rules.iter().any(|rule| {
            matches!(&rule.whom, Whom::Network(network) if network.contains(address))
                && rule.ports.iter().any(|range| range.contains(&port))
        })
    }

    /// Whether an address that a name stands for may be reached by that name. A name that is allowed does not open what every
    /// resolver could point it to: the node itself and its link.
    pub fn permits_by_name(&self, name: &str, address: IpAddr, port: u16) -> bool {
        if self.permits(address, port) {
            return true;
        }
        let address = address.to_canonical();
        let local = match address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        };
        let name = canonical_name(name);
        !local
            && port != 0
            && !address.is_unspecified()
            && !address.is_multicast()
            && self.rules.iter().any(|rule| {
                matches!(&rule.whom, Whom::Name(own) if *own == name)
                    && rule.ports.iter().any(|range| range.contains(&port))
            })
    }

    /// The rules in words.
    pub fn rules(&self) -> Vec<String> {
        self.rules.iter().map(Rule::to_string).collect()
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

#[cfg(test)]
mod tests;
