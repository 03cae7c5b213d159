//! Blocks of addresses (CIDR).

use std::{fmt, net::IpAddr, str::FromStr};

/// A block of addresses: `10.0.0.0/8`, `fd00::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

/// What is no block of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no block of addresses (ADDRESS/BITS)")]
pub struct NotANetwork(String);

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with only its first bits.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl Network {
    /// The block of this many leading bits that an address is in; `None` when the family has fewer.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= bits(address)).then(|| Self {
            base: masked(address, prefix),
            prefix,
        })
    }

    /// The block of one address.
    pub fn host(address: IpAddr) -> Self {
        Self {
            base: address,
            prefix: bits(address),
        }
    }

    /// Its first address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// Leading bits that all its addresses share; the block with most is the most specific.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.base.is_ipv4() && masked(address, self.prefix) == self.base
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    /// A block, or an address as the block of itself.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let wrong = || NotANetwork(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        Self::new(address, prefix.unwrap_or(bits(address))).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_contain_what_begins_like_them() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(network("10.1.2.3/8").contains(address("10.200.0.1")));
        assert_eq!(network("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert!(!network("10.0.0.0/8").contains(address("11.0.0.1")));
        assert!(!network("10.0.0.0/8").contains(address("::a00:1")));
        assert!(network("0.0.0.0/0").contains(address("255.1.1.1")));
        assert!(network("fd00::/64").contains(address("fd00::1:2")));
        assert!(!network("fd00::/64").contains(address("fd00:0:0:1::")));
        assert_eq!(network("::1"), Network::host(address("::1")));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "::/-1", "a/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
