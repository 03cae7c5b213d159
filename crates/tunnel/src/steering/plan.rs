//! What is to go through the tunnel: a function of settings and nodes.

use super::settings::{Scheme, Settings};
use crate::directory::NodeFacts;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

/// Where the interceptor is reached on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    secure: SocketAddr,
    insecure: SocketAddr,
}

impl Targets {
    /// By the addresses that it listens on; one that means every address is reached at the loopback address.
    pub fn new(secure: SocketAddr, insecure: SocketAddr) -> Self {
        let reached = |address: SocketAddr| match address.ip() {
            ip if !ip.is_unspecified() => address,
            IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
            IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
        };
        Self {
            secure: reached(secure),
            insecure: reached(insecure),
        }
    }

    fn of(&self, scheme: Scheme) -> SocketAddr {
        match scheme {
            Scheme::Https => self.secure,
            Scheme::Http => self.insecure,
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Its loopback address.
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// What this host's connections are to come to. Of one family: the secure address's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The family of everything in it.
    pub family: Family,
    /// By destination port, where connections go instead.
    pub ports: BTreeMap<u16, SocketAddr>,
    /// Destinations that are left alone: nodes without an agent, whether they are ready or not, and this host.
    pub direct: BTreeSet<IpAddr>,
}

impl Plan {
    /// What settings and nodes ask for. Ports whose target is of another family are left out.
    pub fn new(settings: &Settings, nodes: &[Arc<NodeFacts>], targets: &Targets) -> Self {
        let family = Family::of(targets.secure.ip());
        let ports = settings.all_ports().into_iter();
        let without_agent = nodes.iter().filter(|node| !node.runs_agent());
        let direct = without_agent.flat_map(|node| node.internal.iter().copied());
        Self {
            family,
            ports: ports
                .map(|(port, scheme)| (port, targets.of(scheme)))
                .filter(|(_, target)| Family::of(target.ip()) == family)
                .collect(),
            direct: direct
                .filter(|address| Family::of(*address) == family)
                .chain([family.loopback()])
                .collect(),
        }
    }

    /// What the kernel has to forget of connections that are tracked, when this plan takes the place of `old`.
    pub fn forget(&self, old: &Self) -> Forget {
        let moved = old.direct.symmetric_difference(&self.direct).copied();
        let changed = |port: &&u16| self.ports.get(port) != old.ports.get(port);
        let all: BTreeSet<u16> = old.ports.keys().chain(self.ports.keys()).copied().collect();
        Forget {
            ports: all.iter().filter(changed).copied().collect(),
            kept: all.iter().filter(|port| !changed(port)).copied().collect(),
            addresses: moved.collect(),
        }
    }
}

/// Tracked connections whose translation is not what it should be any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forget {
    /// All of these destination ports.
    pub ports: Vec<u16>,
    /// Those to `addresses` at these ports.
    pub kept: Vec<u16>,
    /// Destinations.
    pub addresses: Vec<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], edge: bool, ready: bool) -> Arc<NodeFacts> {
        Arc::new(NodeFacts {
            name: name.into(),
            internal: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            edge,
            ready,
            ..NodeFacts::default()
        })
    }

    fn targets(secure: &str, insecure: &str) -> Targets {
        Targets::new(secure.parse().unwrap(), insecure.parse().unwrap())
    }

    #[test]
    fn nodes_without_an_agent_are_left_alone_ready_or_not() {
        let nodes = [
            node("c1", &["10.0.0.1", "fd00::1"], false, true),
            node("c2", &["10.0.0.2"], false, false),
            node("e1", &["192.168.0.1"], true, true),
        ];
        let mut settings = Settings::default();
        settings.ports.insert(9443, Scheme::Https);
        let plan = Plan::new(
            &settings,
            &nodes,
            &targets("0.0.0.0:10263", "127.0.0.1:10264"),
        );
        let direct: Vec<_> = plan.direct.iter().map(ToString::to_string).collect();
        assert_eq!(direct, ["10.0.0.1", "10.0.0.2", "127.0.0.1"]);
        let ports: Vec<_> = plan.ports.iter().map(|(p, t)| format!("{p}>{t}")).collect();
        assert_eq!(
            ports,
            [
                "9443>127.0.0.1:10263",
                "10250>127.0.0.1:10263",
                "10255>127.0.0.1:10264"
            ]
        );
        let plan = Plan::new(&settings, &nodes, &targets("[::]:10263", "127.0.0.1:10264"));
        let direct: Vec<_> = plan.direct.iter().map(ToString::to_string).collect();
        assert_eq!(direct, ["::1", "fd00::1"]);
        assert_eq!(
            plan.ports.len(),
            2,
            "the plain target is of the other family"
        );
        let own = Plan::new(
            &settings,
            &nodes,
            &targets("10.0.0.9:10263", "10.0.0.9:10264"),
        );
        assert_eq!(own.ports[&10250].to_string(), "10.0.0.9:10263");
    }

    #[test]
    fn what_changed_is_forgotten() {
        let targets = targets("0.0.0.0:10263", "127.0.0.1:10264");
        let mut settings = Settings::default();
        settings.ports.insert(9443, Scheme::Http);
        let old = Plan::new(
            &settings,
            &[node("c", &["10.0.0.1"], false, true)],
            &targets,
        );
        settings.ports = [(9443, Scheme::Https)].into();
        let new = Plan::new(
            &settings,
            &[node("c", &["10.0.0.2"], false, true)],
            &targets,
        );
        let forget = new.forget(&old);
        assert_eq!(
            (forget.ports, forget.kept),
            (vec![9443], vec![10250, 10255])
        );
        assert_eq!(forget.addresses.len(), 2);
        assert_eq!(
            new.forget(&new),
            Forget {
                kept: vec![9443, 10250, 10255],
                ..Forget::default()
            }
        );
    }
}
