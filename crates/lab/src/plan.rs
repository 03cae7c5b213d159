//! Which nodes a lab has, how they are called and where they listen. Pure.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// Nodes per pool that one lab may have: the last two octets number pool and node.
const MOST_PER_POOL: u32 = 250;
/// Pools that one lab may have.
const MOST_POOLS: usize = 250;

/// Why a `--pools` value does not parse.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A clause is not `name=count`.
    #[error(
        "pools: `{0}` is not name=count with a count from 1 to {MOST_PER_POOL}, as in hangzhou=2,beijing=1"
    )]
    Clause(String),
    /// A pool name is not a DNS label.
    #[error(
        "pools: `{0}` is not a valid pool name: lower-case letters, digits and dashes, at most 40"
    )]
    Name(String),
    /// The same pool twice.
    #[error("pools: `{0}` is named twice")]
    Twice(String),
    /// A `--light-pool` is not `name=count`.
    #[error("light pool: `{0}` is not name=count, as in hangzhou=500")]
    LightClause(String),
    /// Too many light nodes, or no number.
    #[error("light nodes: `{0}` is not a number from 0 to {MOST_LIGHT}")]
    LightCount(String),
    /// None or too many.
    #[error("pools: between 1 and {MOST_POOLS} pools, as in hangzhou=2,beijing=1")]
    Count,
}

/// The value of `--pools`: `name=count[,name=count]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools(Vec<(String, u32)>);

impl Pools {
    /// Names and sizes, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }
}

impl FromStr for Pools {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut pools: Vec<(String, u32)> = Vec::new();
        for clause in text.split(',').map(str::trim).filter(|c| !c.is_empty()) {
            let bad = || PlanError::Clause(clause.to_owned());
            let (name, count) = clause.split_once('=').ok_or_else(bad)?;
            let count: u32 = count.trim().parse().map_err(|_| bad())?;
            if !(1..=MOST_PER_POOL).contains(&count) {
                return Err(bad());
            }
            let name = name.trim();
            if !is_dns_label(name) {
                return Err(PlanError::Name(name.to_owned()));
            }
            if pools.iter().any(|(known, _)| known == name) {
                return Err(PlanError::Twice(name.to_owned()));
            }
            pools.push((name.to_owned(), count));
        }
        if pools.is_empty() || pools.len() > MOST_POOLS {
            return Err(PlanError::Count);
        }
        Ok(Self(pools))
    }
}

impl fmt::Display for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, count)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{name}={count}")?;
        }
        Ok(())
    }
}

fn is_dns_label(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=40).contains(&name.len())
        && name.bytes().all(|b| plain(b) || b == b'-')
        && name.bytes().next().is_some_and(plain)
        && name.bytes().last().is_some_and(plain)
}

/// One planned node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// `<pool>-<number>`, numbered from 1.
    pub name: String,
    /// The pool.
    pub pool: String,
    /// The node's loopback address: its hub listens here on the ordinary ports, and its link to the cloud on the
    /// API server's port.
    pub address: Ipv4Addr,
}

/// Lays out the nodes in `127.<subnet>.0.0/16`: third octet the pool, fourth the node, both from 1.
pub fn nodes(pools: &Pools, subnet: u8) -> Vec<NodePlan> {
    let mut nodes = Vec::new();
    for (pool_number, (pool, count)) in (1u8..).zip(pools.iter()) {
        for (node_number, _) in (1u8..).zip(0..count) {
            nodes.push(NodePlan {
                name: format!("{pool}-{node_number}"),
                pool: pool.to_owned(),
                address: Ipv4Addr::new(127, subnet, pool_number, node_number),
            });
        }
    }
    nodes
}

/// The nodes a target names: one node, or all of a pool. Empty when neither.
pub fn select<'a>(nodes: &'a [NodePlan], target: &str) -> Vec<&'a NodePlan> {
    let node: Vec<_> = nodes.iter().filter(|n| n.name == target).collect();
    if node.is_empty() {
        nodes.iter().filter(|n| n.pool == target).collect()
    } else {
        node
    }
}

/// Light nodes that one lab may have: their pods' networks are numbered in two octets.
const MOST_LIGHT: u32 = 20_000;

/// The value of `--light-pool`: `name=count`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LightPool {
    name: String,
    count: u32,
}

impl FromStr for LightPool {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let bad = || PlanError::LightClause(text.to_owned());
        let (name, count) = text.split_once('=').ok_or_else(bad)?;
        let count = light_count(count).map_err(|_| bad())?;
        if !is_dns_label(name) {
            return Err(PlanError::Name(name.to_owned()));
        }
        let name = name.to_owned();
        Ok(Self { name, count })
    }
}

/// The value of `--light-nodes`.
pub fn light_count(text: &str) -> Result<u32, PlanError> {
    let count = text.trim().parse().ok();
    let count = count.filter(|count| *count <= MOST_LIGHT);
    count.ok_or_else(|| PlanError::LightCount(text.to_owned()))
}

/// One planned light node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LightNode {
    /// `light-<number>`, or `<pool>-light-<number>`.
    pub name: String,
    /// The pool, for those of one.
    pub pool: Option<String>,
    /// An address of the range for carriers' own networks: nothing answers there.
    pub address: Ipv4Addr,
    /// First three octets of its pods' addresses.
    pub pod_network: [u8; 3],
    /// Whether it passes for an ordinary node: it lacks the label of light ones, by which they are told to have no hub.
    pub passes_for_ordinary: bool,
}

/// Lays out light nodes: `alone` of them without a pool, and those of pools. No more than [`MOST_LIGHT`] in all.
pub fn light_nodes(alone: u32, pools: &[LightPool]) -> Vec<LightNode> {
    let of_pools = pools
        .iter()
        .map(|pool| (Some(pool.name.as_str()), pool.count));
    let names = std::iter::once((None, alone))
        .chain(of_pools)
        .flat_map(|(pool, count)| (1..=count).map(move |number| (pool, number)));
    (1u32..=MOST_LIGHT)
        .zip(names)
        .map(|(at, (pool, number))| {
            let [_, high, middle, low] = at.to_be_bytes();
            LightNode {
                name: match pool {
                    Some(pool) => format!("{pool}-light-{number}"),
                    None => format!("light-{number}"),
                },
                pool: pool.map(str::to_owned),
                address: Ipv4Addr::new(100, 64 + high, middle, low),
                pod_network: [10, 128 + middle, low],
                passes_for_ordinary: false,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_parse_and_print() {
        let pools: Pools = " hangzhou=2, beijing=1 ".parse().unwrap();
        assert_eq!(pools.to_string(), "hangzhou=2,beijing=1");
    }

    #[test]
    fn bad_pools_are_named() {
        for (text, want) in [
            ("", PlanError::Count),
            ("a", PlanError::Clause("a".into())),
            ("a=0", PlanError::Clause("a=0".into())),
            ("a=x", PlanError::Clause("a=x".into())),
            ("a=251", PlanError::Clause("a=251".into())),
            ("A=1", PlanError::Name("A".into())),
            ("-a=1", PlanError::Name("-a".into())),
            ("a=1,a=2", PlanError::Twice("a".into())),
        ] {
            assert_eq!(text.parse::<Pools>(), Err(want), "{text}");
        }
    }

    #[test]
    fn every_node_has_its_own_address() {
        let nodes = nodes(&"a=3,b=250".parse().unwrap(), 10);
        assert_eq!(nodes.len(), 253);
        assert_eq!(nodes[0].name, "a-1");
        assert_eq!(nodes[0].address, Ipv4Addr::new(127, 10, 1, 1));
        assert_eq!(nodes[252].address, Ipv4Addr::new(127, 10, 2, 250));
    }

    #[test]
    fn a_target_is_a_node_or_a_pool() {
        let nodes = nodes(&"a=2,b=1".parse().unwrap(), 10);
        let names = |t| {
            select(&nodes, t)
                .iter()
                .map(|n| n.name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("a"), ["a-1", "a-2"]);
        assert_eq!(names("b-1"), ["b-1"]);
        assert!(names("c").is_empty());
    }

    #[test]
    fn light_nodes_have_names_and_networks_of_their_own() {
        let pools: Vec<LightPool> = vec!["a=300".parse().unwrap(), "b=1".parse().unwrap()];
        let nodes = light_nodes(300, &pools);
        assert_eq!(nodes.len(), 601);
        assert_eq!(nodes[0].name, "light-1");
        assert_eq!(nodes[600].name, "b-light-1");
        assert_eq!(nodes[600].pool.as_deref(), Some("b"));
        assert_eq!(nodes[299].address, Ipv4Addr::new(100, 64, 1, 44));
        let networks: std::collections::HashSet<_> = nodes.iter().map(|n| n.pod_network).collect();
        assert_eq!(networks.len(), 601);
        assert_eq!(light_nodes(u32::MAX, &[]).len(), MOST_LIGHT as usize);
        for bad in ["a", "a=x", "a=20001", "A=1", "=1"] {
            assert!(bad.parse::<LightPool>().is_err(), "{bad}");
        }
    }
}
