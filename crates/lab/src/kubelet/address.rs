//! Addresses of a node's pods.

use super::lock;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};

const LOWEST: u8 = 2;
const HIGHEST: u8 = 254;

/// A `/24`; its first two and its last address are nobody's.
#[derive(Debug)]
pub(crate) struct Addresses {
    network: [u8; 3],
    pool: Mutex<Pool>,
}

#[derive(Debug)]
struct Pool {
    used: BTreeSet<u8>,
    /// Where the search for a free one begins.
    first: u8,
    /// The last one that was given.
    last: u8,
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
            pool: Mutex::new(Pool {
                used: BTreeSet::new(),
                first: LOWEST,
                last: LOWEST - 1,
            }),
        }
    }

    /// What is given from now on was not given lately, as by a node's network plugin after a reboot.
    pub(crate) fn renew(&self) {
        let mut pool = lock(&self.pool);
        pool.first = match pool.last.max(pool.first - 1) {
            last if last >= HIGHEST / 2 => LOWEST,
            last => last + 1,
        };
        pool.last = pool.first - 1;
    }

    /// A free address; `None` when all are taken.
    pub(crate) fn take(self: &Arc<Self>) -> Option<PodAddress> {
        let mut pool = lock(&self.pool);
        let number = (pool.first..=HIGHEST)
            .chain(LOWEST..pool.first)
            .find(|number| !pool.used.contains(number))?;
        pool.used.insert(number);
        pool.last = pool.last.max(number);
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
            .filter(|number| {
                let mut pool = lock(&self.pool);
                pool.last = pool.last.max(*number);
                pool.used.insert(*number)
            })
            .map(|number| (Arc::clone(self), number));
        PodAddress { ip, taken }
    }
}

impl Drop for PodAddress {
    fn drop(&mut self) {
        if let Some((addresses, number)) = &self.taken {
            lock(&addresses.pool).used.remove(number);
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

    #[test]
    fn after_a_reboot_others_are_given() {
        let addresses = Arc::new(Addresses::new([10, 1, 2]));
        let adopted = addresses.adopt("10.1.2.7".parse().unwrap());
        drop((adopted, addresses.take().unwrap()));
        addresses.renew();
        let next = || addresses.take().unwrap().ip.to_string();
        assert_eq!((next(), next()), ("10.1.2.8".into(), "10.1.2.8".into()));
        for _ in 0..300 {
            let all: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
            assert_eq!(all.len(), 253);
            drop(all);
            addresses.renew();
        }
    }
}
