//! What edges may reach in the cloud: a list, empty by default.

use crate::{DialError, Opening, Tunnels, directory::Directory, network::Network};
use std::{net::IpAddr, str::FromStr, sync::Arc};
use yurt_transport::{BoxStream, Destination, Dialer};

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whom {
    Network(Network),
    /// A name, or with a leading `*.` all below it.
    Name(String),
    /// A Service, by namespace and name; without a name all of the namespace.
    Service(String, Option<String>),
}

/// One entry of `--cloud-allow`: `NETWORK`, `ADDRESS`, `NAME`, `*.DOMAIN`, `NAMESPACE/SERVICE` or `NAMESPACE/*`, each with `:PORT` or
/// `:FROM-TO` behind it (IPv6 in brackets), or without: every port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    whom: Whom,
    ports: (u16, u16),
}

/// An entry that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no NETWORK, NAME, *.DOMAIN, NAMESPACE/SERVICE or NAMESPACE/* with an optional :PORT or :FROM-TO"
)]
pub struct NotARule(String);

impl FromStr for Rule {
    type Err = NotARule;

    fn from_str(text: &str) -> Result<Self, NotARule> {
        let wrong = || NotARule(text.to_owned());
        let (whom, ports) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((whom, "")) => (whom, None),
            Some((whom, rest)) => (whom, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            // An address of IPv6 without brackets has no port.
            None if text.matches(':').count() > 1 => (text, None),
            None => text
                .split_once(':')
                .map_or((text, None), |(whom, ports)| (whom, Some(ports))),
        };
        let ports = match ports {
            None => (1, u16::MAX),
            Some(ports) => {
                let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
                let port = |text: &str| text.parse::<u16>().map_err(|_| wrong());
                (port(from)?, port(to)?)
            }
        };
        if ports.0 == 0 || ports.0 > ports.1 {
            return Err(wrong());
        }
        let plain = |text: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            !text.is_empty() && text.bytes().all(fits)
        };
        let whom = match (whom.parse::<Network>(), whom.split_once('/')) {
            (Ok(network), _) => Whom::Network(network),
            (Err(_), Some((address, _))) if address.parse::<IpAddr>().is_ok() => {
                return Err(wrong());
            }
            (Err(_), Some((namespace, "*"))) if plain(namespace) => {
                Whom::Service(namespace.to_owned(), None)
            }
            (Err(_), Some((namespace, name))) if plain(namespace) && plain(name) => {
                Whom::Service(namespace.to_owned(), Some(name.to_owned()))
            }
            (Err(_), None) if plain(whom.strip_prefix("*.").unwrap_or(whom)) => {
                Whom::Name(whom.to_ascii_lowercase())
            }
            _ => return Err(wrong()),
        };
        Ok(Self { whom, ports })
    }
}

impl Rule {
    fn is_for_port(&self, port: u16) -> bool {
        (self.ports.0..=self.ports.1).contains(&port)
    }

    fn is_service(&self, (namespace, name): (String, String)) -> bool {
        matches!(&self.whom, Whom::Service(own, which)
            if *own == namespace && which.as_ref().is_none_or(|which| *which == name))
    }

    fn is_for_name(&self, host: &str) -> bool {
        match &self.whom {
            Whom::Name(name) => match name.strip_prefix('*') {
                Some(domain) => host.len() > domain.len() && host.ends_with(domain),
                None => host == name,
            },
            Whom::Service(..) => {
                crate::routing::service_name(host).is_some_and(|service| self.is_service(service))
            }
            Whom::Network(_) => false,
        }
    }

    fn is_for_address(&self, address: IpAddr, directory: &dyn Directory) -> bool {
        match &self.whom {
            // The server's own loopback and the link's addresses only when they are meant.
            Whom::Network(network) => {
                let meant = network.prefix() > 0 && is_local(network.base());
                network.contains(address) && (meant || !is_local(address))
            }
            Whom::Service(..) => directory
                .service_of(address)
                .is_some_and(|service| self.is_service(service)),
            Whom::Name(_) => false,
        }
    }
}

/// Whether an address is this host's, or its link's: cloud metadata services are there.
fn is_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// Opens connections in the cloud for edges, as far as the list allows.
#[derive(Debug)]
pub struct Cloud {
    rules: Vec<Rule>,
    directory: Arc<dyn Directory>,
    dialer: Arc<dyn Dialer>,
}

impl Cloud {
    /// By these rules.
    pub fn new(
        rules: Vec<Rule>,
        directory: Arc<dyn Directory>,
        dialer: Arc<dyn Dialer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            rules,
            directory,
            dialer,
        })
    }

    fn refused(&self, to: &Destination) -> DialError {
        DialError::Forbidden(match self.rules.as_slice() {
            [] => format!(
                "this server lets edges reach nothing in the cloud (its --cloud-allow is empty), so not {to}"
            ),
            _ => format!("{to} is not in this server's --cloud-allow"),
        })
    }

    /// What is dialled for a target, if it is allowed. A name that is not allowed itself is by its addresses, and then those are
    /// dialled that were looked at.
    async fn open(&self, to: &Destination) -> Result<BoxStream, DialError> {
        let rules: Vec<_> = self
            .rules
            .iter()
            .filter(|rule| rule.is_for_port(to.port))
            .collect();
        let host = to.host.trim_end_matches('.').to_ascii_lowercase();
        let allowed = |address: IpAddr| {
            let mut rules = rules.iter();
            rules.any(|rule| rule.is_for_address(address, &*self.directory))
        };
        let dial = |host: String| async move {
            let there = Destination {
                node: None,
                host,
                port: to.port,
            };
            Ok(self.dialer.dial(&there).await?)
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            return match allowed(address) {
                true => dial(address.to_string()).await,
                false => Err(self.refused(to)),
            };
        }
        // The server may not use the cluster's DNS.
        let known = cluster_address(&host, &*self.directory);
        let named = |rule: &&Rule| rule.is_for_name(&host);
        // A name that only begins like a Service's is somebody's who could have it lead anywhere.
        let is_meant = |rule: &Rule| {
            let by_service = matches!(rule.whom, Whom::Service(..));
            !by_service || known.is_some() || is_clusters(&host)
        };
        if rules.iter().copied().filter(named).any(is_meant) {
            return dial(known.map_or(host, |address| address.to_string())).await;
        }
        if let Some(address) = known {
            return match allowed(address) {
                true => dial(address.to_string()).await,
                false => Err(self.refused(to)),
            };
        }
        // Nobody has the server look up what could not be allowed anyway.
        let mut whoms = rules.iter().map(|rule| &rule.whom);
        if !whoms.any(|whom| matches!(whom, Whom::Network(_))) {
            return Err(self.refused(to));
        }
        let found = tokio::net::lookup_host((host.as_str(), to.port)).await;
        let found = found.map_err(|error| DialError::Failed(format!("{host}: {error}")))?;
        let mut last = self.refused(to);
        for address in found.map(|address| address.ip()).filter(|ip| allowed(*ip)) {
            match dial(address.to_string()).await {
                Err(error) => last = error,
                opened => return opened,
            }
        }
        Err(last)
    }
}

/// Whether only the cluster's DNS knows such a name.
fn is_clusters(host: &str) -> bool {
    host.ends_with(".svc") || host.ends_with(".svc.cluster.local")
}

fn cluster_address(host: &str, directory: &dyn Directory) -> Option<IpAddr> {
    let (namespace, name) = crate::routing::service_name(host)?;
    directory.service(&namespace, &name)
}

impl Tunnels for Cloud {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(Cloud::open(self, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::{Known, ServiceFacts},
        twin::{self, Answers},
    };
    use std::sync::Mutex;
    use yurt_controller::Key;

    /// What is dialled when edges ask for these, or why not.
    async fn asked(rules: &[&str], targets: &[&str]) -> Vec<String> {
        let known = Known::default();
        let service = ServiceFacts {
            addresses: ["10.96.0.9", "fd96::9"]
                .map(|text| text.parse().expect("an address"))
                .into(),
            ports: vec![(443, String::new())],
        };
        known.put_service(&Key::new("shop", "web"), Some(service));
        let other = ServiceFacts {
            addresses: vec!["10.96.0.11".parse().expect("an address")],
            ..ServiceFacts::default()
        };
        known.put_service(&Key::new("other", "db"), Some(other));
        let dialled = Arc::new(Mutex::new(Vec::new()));
        let record = dialled.clone();
        let rules = rules.iter().map(|rule| rule.parse().expect("a rule"));
        let cloud = Cloud {
            rules: rules.collect(),
            directory: Arc::new(known),
            dialer: Arc::new(Answers(move |to: Destination| {
                record.lock().unwrap().push(to.to_string());
                std::future::ready(Ok(Box::new(tokio::io::empty()) as BoxStream))
            })),
        };
        let mut said = Vec::new();
        for target in targets {
            said.push(match cloud.open(&twin::to(target)).await {
                Ok(_) => dialled.lock().unwrap().pop().expect("dialled"),
                Err(DialError::Forbidden(_)) => "no".to_owned(),
                Err(error) => panic!("{target}: {error}"),
            });
        }
        said
    }

    #[tokio::test]
    async fn nothing_is_reached_by_default_and_it_is_said_why() {
        let cloud = Cloud::new(
            Vec::new(),
            Arc::new(Known::default()),
            Arc::new(yurt_transport::TcpDialer),
        );
        let refused = cloud.open(&twin::to("10.0.0.1:80")).await.err();
        let refused = refused.expect("refused");
        assert!(refused.to_string().contains("--cloud-allow is empty"));
        assert_eq!(refused.status().as_u16(), 403);
    }

    #[tokio::test]
    async fn what_is_listed_is_reached_and_nothing_beside_it() {
        let rules = [
            "10.0.0.0/8:443",
            "[fd00::/16]:22",
            "api.example.com:80-90",
            "*.apps.example",
        ];
        let targets = [
            "10.1.2.3:443",
            "10.1.2.3:80",
            "11.0.0.1:443",
            "[fd00::7]:22",
            "API.example.com.:85",
            "api.example.com:91",
            "x.apps.example:1",
        ];
        assert_eq!(
            asked(&rules, &targets).await,
            [
                "10.1.2.3:443",
                "no",
                "no",
                "[fd00::7]:22",
                "api.example.com:85",
                "no",
                "x.apps.example:1",
            ]
        );
        let others = ["xapps.example:443", "apps.example:443"];
        assert_eq!(asked(&["*.apps.example"], &others).await, ["no"; 2]);
    }

    #[tokio::test]
    async fn services_are_reached_by_name_and_by_address() {
        let targets = [
            "web.shop.svc:443",
            "web.shop.svc.cluster.local:443",
            "10.96.0.9:443",
        ];
        assert_eq!(
            asked(&["shop/web:443"], &targets).await,
            ["10.96.0.9:443"; 3]
        );
        // The second of its addresses, and by namespace.
        assert_eq!(
            asked(&["shop/web:443"], &["[fd96::9]:443"]).await,
            ["[fd96::9]:443"]
        );
        assert_eq!(asked(&["shop/*:443"], &targets).await, ["10.96.0.9:443"; 3]);
        let elsewhere = ["db.other.svc:443", "10.96.0.11:443", "shop.svc:443"];
        assert_eq!(asked(&["shop/*"], &elsewhere).await, ["no"; 3]);
        assert_eq!(asked(&["other/*"], &targets).await, ["no"; 3]);
        // One without an address of its own is known by the cluster's DNS alone, and no other.
        let headless = ["db.shop.svc:443", "db.shop.svc.example.com:443"];
        assert_eq!(
            asked(&["shop/*"], &headless).await,
            ["db.shop.svc:443", "no"]
        );
        let by_network = ["db.other.svc:443", "web.shop.svc:443"];
        assert_eq!(
            asked(&["10.96.0.11"], &by_network).await,
            ["10.96.0.11:443", "no"]
        );
        let others = ["10.96.0.10:443", "10.96.0.9:80"];
        let said = asked(&["shop/web:443"], &others).await;
        assert_eq!(said, ["no", "no"]);
    }

    #[tokio::test]
    async fn the_servers_own_loopback_is_not_in_the_world() {
        let local = [
            "127.0.0.1:80",
            "169.254.169.254:80",
            "[::ffff:127.0.0.1]:80",
        ];
        assert_eq!(asked(&["0.0.0.0/0", "::/0"], &local).await, ["no"; 3]);
        assert_eq!(
            asked(&["127.0.0.0/8:80"], &local[..1]).await,
            ["127.0.0.1:80"]
        );
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for wrong in [
            "",
            ":80",
            "a:0",
            "a:9-1",
            "a:x",
            "10.0.0.0/33",
            "a b",
            "ns/",
            "/svc",
            "[fd00::1]80",
            "*",
            "a:70000",
        ] {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong}");
        }
    }
}
