//! What the two ends of a tunnel tell each other about themselves, and how they agree on a protocol.

use std::{fmt, net::IpAddr, str::FromStr};

/// ALPN of our own protocol, cloud to edge: on a connection that the agent dialled, the server is the HTTP/2 client and opens a
/// CONNECT stream per proxied connection.
pub const ALPN_MUX: &[u8] = b"yurt-tunnel/1";
/// ALPN of our own protocol, edge to cloud: the agent is the HTTP/2 client and asks the server for cloud addresses by CONNECT.
pub const ALPN_CLOUD: &[u8] = b"yurt-cloud/1";
/// ALPN of the first of them over QUIC.
pub const ALPN_QUIC: &[u8] = b"yurt-tunnel-quic/1";
/// ALPN of konnectivity: gRPC.
pub const ALPN_GRPC: &[u8] = b"h2";

/// What an agent says of itself when it connects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentHello {
    /// Its id: the node's name, unless it is not one of Yurt's.
    pub id: String,
    /// By what it can be asked for.
    pub identifiers: Identifiers,
    /// Program and version, for people; empty for konnectivity's.
    pub version: String,
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// Differs between instances.
    pub id: String,
    /// How many instances there are, as far as it knows; at least 1.
    pub count: u32,
    /// The UDP port on which it takes QUIC, if it does; 0: of the same number as the port that was dialled.
    pub quic: Option<u16>,
}

/// What an agent can be asked for by: `agentidentifiers` on konnectivity's wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identifiers {
    /// Addresses of the node, of both families.
    pub addresses: Vec<IpAddr>,
    /// Names of the node.
    pub hosts: Vec<String>,
    /// Networks behind the agent: base address and prefix length.
    pub networks: Vec<(IpAddr, u8)>,
    /// Whether it takes what nobody else does.
    pub default_route: bool,
}

/// More of them are ignored: they would be held for every agent, and asked for by nobody.
const MAX_IDENTIFIERS: usize = 256;

/// The form on the wire: `ipv4=10.0.0.1&host=node-1&cidr=10.244.1.0/24&default-route=true`.
impl fmt::Display for Identifiers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut put = |key: &str, value: &dyn fmt::Display| {
            write!(formatter, "{separator}{key}={value}")?;
            separator = "&";
            Ok(())
        };
        for address in &self.addresses {
            match address {
                IpAddr::V4(v4) => put("ipv4", v4)?,
                IpAddr::V6(v6) => put("ipv6", &Escaped(&v6.to_string()))?,
            }
        }
        for host in &self.hosts {
            put("host", &Escaped(host))?;
        }
        for (base, length) in &self.networks {
            put("cidr", &Escaped(&format!("{base}/{length}")))?;
        }
        if self.default_route {
            put("default-route", &true)?;
        }
        Ok(())
    }
}

impl FromStr for Identifiers {
    type Err = std::convert::Infallible;

    /// Never fails: what is unknown or malformed is left out, so that newer agents reach older servers. A comma separates as `&`
    /// does, since people write lists so.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::default();
        for pair in text.split(['&', ',']).take(MAX_IDENTIFIERS) {
            let Some((key, value)) = pair.split_once('=') else {
                continue;
            };
            let value = unescape(value.trim());
            match key.trim() {
                "ipv4" | "ipv6" => all.addresses.extend(value.parse::<IpAddr>()),
                "host" if !value.is_empty() => all.hosts.push(value),
                "cidr" => all.networks.extend(network(&value)),
                "default-route" => all.default_route |= value == "true",
                _ => {}
            }
        }
        Ok(all)
    }
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (base, length) = text.split_once('/')?;
    let base: IpAddr = base.parse().ok()?;
    let length = length.parse().ok()?;
    (length <= if base.is_ipv4() { 32 } else { 128 }).then_some((base, length))
}

/// A value in the form of a URL's query.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' | b'~' => {
                write!(formatter, "{}", char::from(byte))
            }
            other => write!(formatter, "%{other:02X}"),
        })
    }
}

/// The value itself; what is no escape stands for itself, and what is then no UTF-8 is replaced.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                digit(*high).zip(digit(*low))
            }
            _ => None,
        };
        match (escaped, first) {
            (Some((high, low)), _) => {
                out.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            (None, b'+') => out.push(b' '),
            (None, other) => out.push(*other),
        }
    }
    String::from_utf8(out)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn identifiers() -> impl Strategy<Value = Identifiers> {
        let network = any::<IpAddr>()
            .prop_flat_map(|base| (Just(base), 0..=if base.is_ipv4() { 32u8 } else { 128 }));
        (
            vec(any::<IpAddr>(), 0..3),
            vec("[^\\s]{1,20}", 0..3),
            vec(network, 0..3),
            any::<bool>(),
        )
            .prop_map(|(mut addresses, hosts, networks, default_route)| {
                addresses.sort_by_key(IpAddr::is_ipv6);
                Identifiers {
                    addresses,
                    hosts,
                    networks,
                    default_route,
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_said_is_understood(all in identifiers()) {
            prop_assert_eq!(all.to_string().parse::<Identifiers>().unwrap(), all);
        }

        #[test]
        fn any_text_is_understood_somehow(text in "\\PC{0,200}") {
            let all: Identifiers = text.parse().unwrap();
            prop_assert_eq!(&all.to_string().parse::<Identifiers>().unwrap().hosts, &all.hosts);
        }
    }

    #[test]
    fn the_form_is_konnectivitys() {
        let text =
            "ipv4=10.0.0.1&ipv6=fd00%3A%3A1&host=node-1&cidr=10.244.1.0%2F24&default-route=true";
        let all: Identifiers = text.parse().unwrap();
        assert_eq!(all.to_string(), text);
        assert_eq!(all.networks, [("10.244.1.0".parse().unwrap(), 24)]);
    }

    #[test]
    fn commas_separate_and_what_is_unknown_is_left_out() {
        let all: Identifiers =
            "ipv4=10.0.0.1,host=a,uid=7&cidr=10.0.0.0/33&ipv4=x&host=&default-route=false&nothing"
                .parse()
                .unwrap();
        assert_eq!(all.to_string(), "ipv4=10.0.0.1&host=a");
    }
}
