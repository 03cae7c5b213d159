//! What is led to the tunnel, and the rules for it. Pure.

use super::MARK;
use crate::{
    allow::{AllowList, Rule},
    network::Network,
    steering::{Family, Owner, PRIORITY, Ruleset, family_of},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    net::SocketAddr,
    ops::RangeInclusive,
};

/// Whose rules they are, and how its chains of iptables are named.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) owner: Owner,
    /// What is led away.
    pub(crate) chain: &'static str,
    /// The way there for pods.
    pub(crate) pods: &'static str,
    /// What asks for it.
    pub(crate) flag: &'static str,
}

/// What of one family is led to a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) family: Family,
    /// Where to.
    pub(crate) port: u16,
    networks: AllowList,
    parts: Vec<(Network, Vec<RangeInclusive<u16>>)>,
    /// What is left alone.
    except: BTreeSet<Network>,
    /// Whose connections these are, beside the node's own, and of nobody else who comes by. What goes to them is left alone, too.
    pods: BTreeSet<Network>,
}

fn is_of(family: Family, network: &Network) -> bool {
    network.base().is_ipv4() == (family == Family::V4)
}

impl Plan {
    /// `networks` without those in `except` and without `pods`, whose connections are led away.
    pub(crate) fn new(
        family: Family,
        networks: &[Rule],
        except: impl IntoIterator<Item = Network>,
        pods: impl IntoIterator<Item = Network>,
        port: u16,
    ) -> Self {
        let mine = |rule: &&Rule| {
            let network = rule.network();
            network.is_some_and(|(network, _)| is_of(family, &network))
        };
        let rules: Vec<Rule> = networks.iter().filter(mine).cloned().collect();
        let parts = rules.iter().filter_map(Rule::network);
        let parts: Vec<_> = parts
            .map(|(network, ports)| (network, ports.to_vec()))
            .collect();
        Self {
            family,
            port,
            networks: AllowList::of(rules),
            parts,
            except: except.into_iter().filter(|it| is_of(family, it)).collect(),
            pods: pods.into_iter().filter(|it| is_of(family, it)).collect(),
        }
    }

    /// Whether nothing is led away.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether connections to an address are led away.
    pub(crate) fn leads(&self, to: SocketAddr) -> bool {
        let address = to.ip().to_canonical();
        let mut spared = self.except.iter().chain(&self.pods);
        self.networks.permits(address, to.port())
            && !address.is_loopback()
            && !spared.any(|network| network.contains(address))
    }

    /// The rules. Both languages say: not what is local, not what is excepted, not to whoever's connections these are; then networks.
    pub(crate) fn ruleset(&self, leader: &Leader) -> Ruleset {
        Ruleset {
            nftables: self.nftables(),
            iptables: self.iptables(leader),
        }
    }

    fn nftables(&self) -> String {
        let family = family_of(self.family);
        let (kind, loopback) = match self.family {
            Family::V4 => ("ipv4_addr", "127.0.0.0/8"),
            Family::V6 => ("ipv6_addr", "::1"),
        };
        // Networks with the same ports are one lookup.
        let mut together: BTreeMap<String, Vec<&Network>> = BTreeMap::new();
        for (network, ports) in &self.parts {
            let ports: Vec<String> = ports.iter().map(|range| shown(range, '-')).collect();
            together.entry(ports.join(", ")).or_default().push(network);
        }
        let mut sets = vec![
            ("except".to_owned(), self.except.iter().collect()),
            ("pods".to_owned(), self.pods.iter().collect()),
        ];
        let mut led = String::new();
        for (place, (ports, networks)) in together.into_iter().enumerate() {
            sets.push((format!("led{place}"), networks));
            // Writing to a String does not fail.
            let _ = writeln!(
                led,
                "\t\t{family} daddr @led{place} tcp dport {{ {ports} }} redirect to :{}",
                self.port
            );
        }
        let mut text = String::new();
        for (name, networks) in sets {
            let _ = writeln!(
                text,
                "\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval\n\t\tauto-merge"
            );
            if !networks.is_empty() {
                let all: Vec<String> = networks.iter().map(ToString::to_string).collect();
                let _ = writeln!(text, "\t\telements = {{ {} }}", all.join(", "));
            }
            text.push_str("\t}\n");
        }
        let _ = write!(
            text,
            "\tchain led {{\n\t\t{family} daddr {loopback} return\n\t\tfib daddr type local return\n\t\t{family} daddr @except return\n\t\t{family} daddr @pods return\n{led}"
        );
        let _ = writeln!(
            text,
            "\t}}\n\tchain prerouting {{\n\t\ttype nat hook prerouting priority {PRIORITY}; policy accept;\n\t\t{family} saddr @pods jump led\n\t}}\n\tchain output {{\n\t\ttype nat hook output priority {PRIORITY}; policy accept;\n\t\tmeta mark {MARK:#x} return\n\t\tjump led\n\t}}"
        );
        text
    }

    fn iptables(&self, leader: &Leader) -> Vec<(String, String)> {
        let (chain, pods) = (leader.chain, leader.pods);
        let loopback = match self.family {
            Family::V4 => "127.0.0.0/8",
            Family::V6 => "::1/128",
        };
        let mut rules = vec![
            (chain, format!("-d {loopback} -j RETURN")),
            (chain, "-m addrtype --dst-type LOCAL -j RETURN".to_owned()),
        ];
        for network in self.except.iter().chain(&self.pods) {
            rules.push((chain, format!("-d {network} -j RETURN")));
        }
        for (network, ports) in &self.parts {
            for range in ports {
                let to = format!(
                    "-p tcp -d {network} --dport {} -j REDIRECT --to-ports {}",
                    shown(range, ':'),
                    self.port
                );
                rules.push((chain, to));
            }
        }
        for network in &self.pods {
            rules.push((pods, format!("-s {network} -j {chain}")));
        }
        let rules = rules.into_iter();
        rules
            .map(|(chain, rule)| (chain.to_owned(), rule))
            .collect()
    }
}

fn shown(range: &RangeInclusive<u16>, between: char) -> String {
    match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}{between}{last}"),
    }
}

/// The first few of many.
fn some<T: ToString>(all: impl ExactSizeIterator<Item = T>) -> String {
    const SAID: usize = 16;
    let more = all.len().saturating_sub(SAID);
    let mut said: Vec<String> = all.take(SAID).map(|one| one.to_string()).collect();
    if more > 0 {
        said.push(format!("and {more} more"));
    }
    said.join(" ")
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} but {}; of this node and {}",
            some(self.networks.rules().into_iter()),
            some(self.except.iter()),
            some(self.pods.iter())
        )
    }
}
