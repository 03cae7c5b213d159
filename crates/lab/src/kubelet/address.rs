//! Addresses of a node's pods.

use super::lock;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};

/// A `/24`; its first two and its last address are nobody's.
#[derive(Debug)]
pub(crate) struct Addresses {
    network: [u8; 3],
    used: Mutex<BTreeSet<u8>>,
}

/// A pod's address, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct PodAddress {
    pub(crate) ip: IpAddr,
    /// Where it came from; `None` for an address that is not ours to give.
    taken: Option<(Arc<Addresses>, u8)>,
}

impl Addresses {
    pub(crate) fn new(network: [u8; 3]) -> Self {
        Self {
            network,
            used: Mutex::default(),
        }
    }

    /// A free address; `None` when all are taken.
    pub(crate) fn take(self: &Arc<Self>) -> Option<PodAddress> {
        let mut used = lock(&self.used);
        let number = (2..=254).find(|number| !used.contains(number))?;
        used.insert(number);
        let [a, b, c] = self.network;
        Some(PodAddress {
            ip: Ipv4Addr::new(a, b, c, number).into(),
            taken: Some((Arc::clone(self), number)),
        })
    }

    /// An address that a pod has already.
    pub(crate) fn adopt(self: &Arc<Self>, ip: IpAddr) -> PodAddress {
        let number = match ip {
            IpAddr::V4(v4) if v4.octets()[..3] == self.network => Some(v4.octets()[3]),
            _ => None,
        };
        // One that is taken twice is given back by whoever took it first.
        let taken = number
            .filter(|number| lock(&self.used).insert(*number))
            .map(|number| (Arc::clone(self), number));
        PodAddress { ip, taken }
    }
}

impl Drop for PodAddress {
    fn drop(&mut self) {
        if let Some((addresses, number)) = &self.taken {
            lock(&addresses.used).remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_come_back() {
        let addresses = Arc::new(Addresses::new([10, 1, 2]));
        let adopted = addresses.adopt("10.1.2.2".parse().unwrap());
        let host = addresses.adopt("127.0.0.1".parse().unwrap());
        let first = addresses.take().unwrap();
        assert_eq!(first.ip.to_string(), "10.1.2.3");
        drop((adopted, host));
        let rest: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(rest.len(), 252);
        assert_eq!(rest[0].ip.to_string(), "10.1.2.2");
        drop(first);
        assert_eq!(addresses.take().unwrap().ip.to_string(), "10.1.2.3");
    }
}
