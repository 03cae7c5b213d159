//! Addresses of servers as people write them, and the doors they stand for at the moment.

use super::{fleet::Door, srv};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    str::FromStr,
    time::Duration,
};
use tokio::time::timeout;
use yurt_transport::Destination;

/// Servers' port for agents.
pub const AGENT_PORT: u16 = 10262;
/// Most doors that one address stands for.
const MOST: usize = 32;
/// How long names may take to be resolved.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where servers are to be had: `host:port`, `host` (port 10262), `_service._proto.domain` (SRV), each with `NAME@` before it when
/// the certificate is for another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// Name or address.
    pub host: String,
    /// Port; `None`: SRV records say.
    pub port: Option<u16>,
    /// The name that certificates must be for; `None`: the host.
    pub name: Option<String>,
}

/// What is no address of servers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not [NAME@]HOST[:PORT] or [NAME@]_service._tcp.DOMAIN")]
pub struct NotAnAddress(String);

impl FromStr for ServerAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let wrong = || NotAnAddress(text.to_owned());
        let trimmed = text.trim();
        let (name, rest) = match trimmed.split_once('@') {
            Some((name, rest)) => (Some(name), rest),
            None => (None, trimmed),
        };
        let is_name = |name: &str| rustls::pki_types::ServerName::try_from(name.to_owned()).is_ok();
        if name.is_some_and(|name| !is_name(name)) {
            return Err(wrong());
        }
        let name = name.map(str::to_owned);
        if rest.starts_with('_') && !rest.contains(':') {
            let host = rest.trim_end_matches('.').to_owned();
            return match host.split('.').count() >= 3 {
                true => Ok(Self {
                    host,
                    port: None,
                    name,
                }),
                false => Err(wrong()),
            };
        }
        let bare = rest.trim_start_matches('[').trim_end_matches(']');
        let (host, port) = match bare.parse::<IpAddr>() {
            Ok(address) => (address.to_string(), AGENT_PORT),
            Err(_) if !rest.contains(':') => (rest.to_owned(), AGENT_PORT),
            Err(_) => {
                let to: Destination = rest.parse().map_err(|_| wrong())?;
                (to.host, to.port)
            }
        };
        if !is_name(&host) {
            return Err(wrong());
        }
        Ok(Self {
            host,
            port: Some(port),
            name,
        })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(formatter, "{name}@")?;
        }
        match self.port {
            None => formatter.write_str(&self.host),
            Some(port) if self.host.contains(':') => write!(formatter, "[{}]:{port}", self.host),
            Some(port) => write!(formatter, "{}:{port}", self.host),
        }
    }
}

/// What some addresses stand for at the moment.
#[derive(Debug, Default)]
pub struct Resolved {
    /// The doors.
    pub doors: Vec<Door>,
    /// Addresses that stand for none now, and why.
    pub failed: BTreeMap<String, String>,
}

/// The doors of some addresses. `by_name`: a proxy resolves host names.
pub async fn resolve(addresses: &[ServerAddress], by_name: bool) -> Resolved {
    let mut doors = BTreeSet::new();
    let mut failed = BTreeMap::new();
    for (index, address) in addresses.iter().enumerate() {
        let rank = u16::try_from(index).unwrap_or(u16::MAX);
        let found = timeout(PATIENCE, resolve_one(address, rank, by_name)).await;
        let why = match found {
            Ok(Ok(found)) => {
                doors.extend(found.into_iter().take(MOST));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        failed.insert(address.to_string(), why);
    }
    Resolved {
        doors: doors.into_iter().collect(),
        failed,
    }
}

async fn resolve_one(address: &ServerAddress, rank: u16, by_name: bool) -> io::Result<Vec<Door>> {
    let Some(port) = address.port else {
        let mut doors = Vec::new();
        for record in srv::lookup(&address.host).await? {
            let target = ServerAddress {
                name: Some(
                    address
                        .name
                        .clone()
                        .unwrap_or_else(|| record.target.clone()),
                ),
                host: record.target,
                port: Some(record.port),
            };
            let rank = rank.saturating_add(record.priority);
            // One target that is not known does not spoil the others.
            if let Ok(found) = Box::pin(resolve_one(&target, rank, by_name)).await {
                doors.extend(found);
            }
        }
        return match doors.is_empty() {
            true => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no SRV target has an address",
            )),
            false => Ok(doors),
        };
    };
    let door = |host: String| Door {
        priority: rank,
        host,
        port,
        name: address.name.clone().unwrap_or_else(|| address.host.clone()),
    };
    if by_name || address.host.parse::<IpAddr>().is_ok() {
        return Ok(vec![door(address.host.clone())]);
    }
    let found = tokio::net::lookup_host((address.host.as_str(), port)).await?;
    Ok(found.map(|found| door(found.ip().to_string())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_form() {
        for (text, shown) in [
            ("tunnel.example", "tunnel.example:10262"),
            ("10.0.0.1:443", "10.0.0.1:443"),
            ("fd00::1", "[fd00::1]:10262"),
            ("[fd00::1]:443", "[fd00::1]:443"),
            ("tunnel@10.0.0.1:443", "tunnel@10.0.0.1:443"),
            ("_tunnel._tcp.example.com", "_tunnel._tcp.example.com"),
        ] {
            let address: ServerAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address));
        }
        for bad in [
            "", ":1", "a:0", "a:70000", "a b", "@a", "a b@c", "_tcp.a", "a:1:2",
        ] {
            assert!(bad.parse::<ServerAddress>().is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn names_are_verified_as_they_are_written() {
        let addresses: Vec<ServerAddress> =
            ["tunnel@127.0.0.1:1", "localhost:2", "nowhere.invalid:3"]
                .map(|text| text.parse().unwrap())
                .into();
        let Resolved { doors, failed } = resolve(&addresses, false).await;
        assert_eq!(failed.keys().collect::<Vec<_>>(), ["nowhere.invalid:3"]);
        assert!(
            doors
                .iter()
                .any(|d| d.host == "127.0.0.1" && d.name == "tunnel" && d.port == 1)
        );
        assert!(
            doors
                .iter()
                .any(|d| d.name == "localhost" && d.host != "localhost" && d.priority == 1)
        );
        assert!(doors.iter().all(|d| d.port != 3));
        let by_name = resolve(&addresses[1..], true).await.doors;
        assert_eq!(by_name.len(), 2);
        assert!(by_name.iter().all(|d| d.host == d.name));
    }
}
