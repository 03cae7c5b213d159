//! What the packet filter holds: packets to the service go to one of its endpoints at random, of the node itself (OUTPUT) and of
//! its pods (PREROUTING). Texts for `nft -f -` and `iptables-restore --noflush`, which take them whole or not at all.

use serde_json::Value;
use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};
use yurt_wire::Object;

/// The table that is the hub's alone (nft).
const TABLE: &str = "yurt_hub_local";
/// The chain that is the hub's alone (iptables).
const CHAIN: &str = "YURT-HUB-LOCAL";
/// Chains whose packets are looked at.
const HOOKS: [&str; 2] = ["PREROUTING", "OUTPUT"];
/// Just before kube-proxy's, which would send packets to the service of that address in the host cluster.
const PRIORITY: &str = "-105";
/// Endpoints that are taken.
const MOST: usize = 64;

/// Where packets to a service go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    service: SocketAddr,
    endpoints: Vec<SocketAddr>,
}

impl Rules {
    /// From addresses; those of the other family are left out.
    pub fn new(service: SocketAddr, endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut endpoints: Vec<SocketAddr> = endpoints
            .into_iter()
            .filter(|endpoint| endpoint.is_ipv4() == service.is_ipv4())
            .collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints.truncate(MOST);
        Self { service, endpoints }
    }

    /// From an Endpoints object; none at all when there is none.
    pub fn of(service: SocketAddr, endpoints: Option<&Object>) -> Self {
        let value = endpoints.and_then(|object| object.to_json_value().ok());
        Self::new(service, value.iter().flat_map(addresses))
    }

    /// The service's address.
    pub fn service(&self) -> IpAddr {
        self.service.ip()
    }

    /// Where packets go.
    pub fn endpoints(&self) -> &[SocketAddr] {
        &self.endpoints
    }

    /// For `nft -f -`: the table as it should be, in place of what it was.
    pub fn nft(&self) -> String {
        let (family, service) = (family(self.service.ip()), self.service);
        let mut text = nft_gone(service.ip());
        // Writing to a String does not fail.
        let _ = writeln!(text, "table {family} {TABLE} {{");
        let _ = writeln!(text, "\tchain service {{");
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let left = self.endpoints.len() - index;
            let chance = if left > 1 {
                format!("numgen random mod {left} 0 ")
            } else {
                String::new()
            };
            let _ = writeln!(text, "\t\t{chance}meta l4proto tcp dnat to {endpoint}");
        }
        let _ = writeln!(text, "\t}}");
        for hook in HOOKS {
            let hook = hook.to_lowercase();
            let _ = writeln!(text, "\tchain {hook} {{");
            let _ = writeln!(
                text,
                "\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;"
            );
            let _ = writeln!(
                text,
                "\t\t{family} daddr {} tcp dport {} jump service",
                service.ip(),
                service.port()
            );
            let _ = writeln!(text, "\t}}");
        }
        text.push_str("}\n");
        text
    }

    /// For `iptables-restore --noflush` (or `ip6tables-restore`), when `iptables-save -t nat` says `present`: the chain as it should
    /// be, and the jumps to it where they are missing.
    pub fn iptables(&self, present: &str) -> String {
        let (ip, port) = (self.service.ip(), self.service.port());
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let left = self.endpoints.len() - index;
            let chance = if left > 1 {
                let probability = 1.0 / left as f64;
                format!("-m statistic --mode random --probability {probability:.10} ")
            } else {
                String::new()
            };
            let _ = writeln!(
                text,
                "-A {CHAIN} -d {ip}/{prefix} -p tcp -m tcp --dport {port} {chance}-j DNAT --to-destination {endpoint}"
            );
        }
        for hook in HOOKS {
            if !present.lines().any(|line| line.trim() == jump(hook)) {
                let _ = writeln!(text, "-I {hook} 1 -j {CHAIN}");
            }
        }
        text.push_str("COMMIT\n");
        text
    }
}

/// For `nft -f -`: the table is gone, whether it was there or not.
pub(super) fn nft_gone(service: IpAddr) -> String {
    let family = family(service);
    format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n")
}

/// For `iptables-restore --noflush`: chain and jumps are gone; `None` when they are not there.
pub(super) fn iptables_gone(present: &str) -> Option<String> {
    let chain = format!(":{CHAIN} ");
    if !present.lines().any(|line| line.starts_with(&chain)) {
        return None;
    }
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
    for hook in HOOKS {
        for _ in present.lines().filter(|line| line.trim() == jump(hook)) {
            let _ = writeln!(text, "-D {hook} -j {CHAIN}");
        }
    }
    let _ = write!(text, "-X {CHAIN}\nCOMMIT\n");
    Some(text)
}

fn jump(hook: &str) -> String {
    format!("-A {hook} -j {CHAIN}")
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}

/// Address and port of every ready address: the port that is named `https`, else the first one, as far as it is TCP.
fn addresses(endpoints: &Value) -> Vec<SocketAddr> {
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for subset in list(endpoints, "subsets") {
        let mut ports = list(&subset, "ports");
        ports.retain(|port| port["protocol"].as_str().is_none_or(|p| p == "TCP"));
        let https = ports.iter().find(|port| port["name"] == "https");
        let number = https
            .or(ports.first())
            .and_then(|port| port["port"].as_u64());
        let Some(port) = number.and_then(|number| u16::try_from(number).ok()) else {
            continue;
        };
        for address in list(&subset, "addresses") {
            let ip = address["ip"]
                .as_str()
                .and_then(|ip| ip.parse::<IpAddr>().ok());
            found.extend(ip.map(|ip| SocketAddr::new(ip, port)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_wire::Encoding;

    fn rules(service: &str, endpoints: &[&str]) -> Rules {
        let endpoints = endpoints.iter().map(|e| e.parse().unwrap());
        Rules::new(service.parse().unwrap(), endpoints)
    }

    #[test]
    fn for_nft() {
        let three = rules(
            "10.0.0.1:443",
            &[
                "1.1.1.3:6443",
                "1.1.1.1:6443",
                "1.1.1.2:6443",
                "[fd00::1]:6443",
                "1.1.1.1:6443",
            ],
        );
        assert_eq!(three.nft(), include_str!("rules/three.nft"));
        let six = rules("[fd00::a]:6443", &["[fd00::1]:6443"]);
        assert_eq!(six.nft(), include_str!("rules/ipv6.nft"));
        let none = rules("10.0.0.1:443", &[]).nft();
        assert!(!none.contains("dnat"), "{none}");
    }

    #[test]
    fn for_iptables() {
        let two = rules("10.0.0.1:443", &["1.1.1.1:6443", "1.1.1.2:6443"]);
        let empty = "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(two.iptables(empty), include_str!("rules/two.iptables"));
        let present = format!(
            "*nat\n:{CHAIN} - [0:0]\n-A PREROUTING -j {CHAIN}\n-A OUTPUT -m x -j KUBE-SERVICES\n-A OUTPUT -j {CHAIN}\n-A OUTPUT -j {CHAIN}\nCOMMIT\n"
        );
        assert!(!two.iptables(&present).contains("-I "));
        assert_eq!(iptables_gone(empty), None);
        assert_eq!(
            iptables_gone(&present).unwrap(),
            format!(
                "*nat\n:{CHAIN} - [0:0]\n-D PREROUTING -j {CHAIN}\n-D OUTPUT -j {CHAIN}\n-D OUTPUT -j {CHAIN}\n-X {CHAIN}\nCOMMIT\n"
            )
        );
    }

    #[test]
    fn endpoints_as_they_are_written() {
        let object = json!({
            "kind": "Endpoints", "apiVersion": "v1",
            "metadata": { "name": "tenant-apiserver", "namespace": "tenant-control-plane", "resourceVersion": "1" },
            "subsets": [
                { "addresses": [{ "ip": "10.1.0.2" }, { "ip": "10.1.0.1" }, { "ip": "nonsense" }, {}],
                  "notReadyAddresses": [{ "ip": "10.1.0.9" }],
                  "ports": [{ "name": "metrics", "port": 8080 }, { "name": "https", "port": 6443, "protocol": "TCP" }] },
                { "addresses": [{ "ip": "10.1.0.3" }], "ports": [{ "port": 53, "protocol": "UDP" }, { "port": 7443 }] },
                { "addresses": [{ "ip": "10.1.0.4" }] },
                { "addresses": [{ "ip": "10.1.0.5" }], "ports": [{ "port": 70000 }] },
                { "ports": [{ "port": 1 }] },
                7,
            ],
        });
        let object = Object {
            encoding: Encoding::Json,
            bytes: object.to_string().into(),
        };
        let rules = Rules::of("10.0.0.1:443".parse().unwrap(), Some(&object));
        let text: Vec<String> = rules.endpoints().iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.1.0.1:6443", "10.1.0.2:6443", "10.1.0.3:7443"]);
        assert_eq!(
            Rules::of("10.0.0.1:443".parse().unwrap(), None).endpoints(),
            []
        );
    }
}
