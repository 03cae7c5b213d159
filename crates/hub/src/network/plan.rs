//! What to do about the interfaces that are there. Pure.

use crate::config::DummyInterface;
use std::net::IpAddr;

/// Index of the loopback interface in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;
/// Marks a link as made by a hub (`ifalias`), so that a hub that comes after one that was killed knows.
pub(crate) const ALIAS: &str = "yurt hub";
/// The same for an IPv4 address on the loopback interface.
pub(crate) const LABEL: &str = "lo:yurthub";

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Of the type dummy.
    pub(crate) dummy: bool,
    pub(crate) up: bool,
    /// A hub made it.
    pub(crate) ours: bool,
}

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    /// A hub put it there.
    pub(crate) ours: bool,
}

/// What matters of the node's interfaces: the loopback interface, that of the wanted name, those with the wanted address; and all
/// addresses of the second and all wanted addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make the dummy interface, up and marked.
    Create,
    /// Set an interface up.
    Up { link: u32 },
    /// Put the wanted address on an interface.
    Add { link: u32 },
    /// Take an address away.
    Remove(Address),
    /// Take an interface away.
    Delete { link: u32 },
}

/// The prefix of a host.
pub(crate) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn own<'a>(wanted: &DummyInterface, seen: &'a Seen) -> Option<&'a Link> {
    seen.links.iter().find(|link| link.name == wanted.name)
}

/// The kernel's own addresses on any IPv6 interface.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// What is to be done next; then look again. Nothing when all is well.
pub(crate) fn plan(wanted: &DummyInterface, seen: &Seen, dummies: bool) -> Vec<Step> {
    let prefix = host_prefix(wanted.address);
    let is_right = |a: &&Address| a.address == wanted.address && a.prefix == prefix;
    let Some(own) = own(wanted, seen) else {
        // Somebody else put it somewhere: as good.
        if seen.addresses.iter().any(|a| a.address == wanted.address) {
            return Vec::new();
        }
        return vec![if dummies {
            Step::Create
        } else {
            Step::Add { link: LOOPBACK }
        }];
    };
    let on_it = || seen.addresses.iter().filter(|a| a.link == own.index);
    let mut steps = Vec::new();
    if !own.up {
        steps.push(Step::Up { link: own.index });
    }
    // What is no dummy interface is somebody else's, and only lends its name.
    if own.dummy {
        let wrong = on_it().filter(|a| !is_right(a) && !is_link_local(a.address));
        steps.extend(wrong.cloned().map(Step::Remove));
        // Left on the loopback interface by a hub of before.
        let left = seen.addresses.iter();
        let left = left.filter(|a| a.link == LOOPBACK && a.ours && a.address == wanted.address);
        steps.extend(left.cloned().map(Step::Remove));
    }
    let there = if own.dummy {
        on_it().any(|a| is_right(&a))
    } else {
        on_it().any(|a| a.address == wanted.address)
    };
    if !there {
        steps.push(Step::Add { link: own.index });
    }
    steps
}

/// The interface that the address is on.
pub(crate) fn place<'a>(wanted: &DummyInterface, seen: &'a Seen) -> Option<&'a str> {
    let holders = seen.addresses.iter();
    let holder = holders
        .filter(|a| a.address == wanted.address)
        .filter_map(|a| seen.links.iter().find(|link| link.index == a.link));
    holder
        .max_by_key(|link| link.name == wanted.name)
        .map(|link| link.name.as_str())
}

/// What is to be done when the hub ends: what a hub made goes. `added`: this process put the address where it is.
pub(crate) fn removal(wanted: &DummyInterface, seen: &Seen, added: bool) -> Vec<Step> {
    let own = own(wanted, seen);
    let mut steps: Vec<Step> = seen
        .addresses
        .iter()
        .filter(|a| a.address == wanted.address)
        .filter(|a| {
            let on_own = own.is_some_and(|own| own.index == a.link);
            a.ours || added && (on_own || a.link == LOOPBACK)
        })
        .cloned()
        .map(Step::Remove)
        .collect();
    if let Some(own) = own.filter(|own| own.ours && own.dummy) {
        steps.push(Step::Delete { link: own.index });
    }
    steps
}
