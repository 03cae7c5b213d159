//! Where a request goes, as functions of the objects that say so.

use crate::{meta, registry::Reply};
use serde_json::Value;
use std::net::IpAddr;
use yurt_wire::{Reason, Status};

/// The port of a kubelet that does not say where it listens.
const KUBELET_PORT: u16 = 10250;

/// `name`, `name:port` or `scheme:name:port` of a proxy request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id<'a> {
    pub(super) https: bool,
    pub(super) name: &'a str,
    /// `""` when none is named.
    pub(super) port: &'a str,
}

impl<'a> Id<'a> {
    /// 400 when it has another form; `what` is what it names.
    pub(super) fn parse(text: &'a str, what: &str) -> Reply<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => ("", "", ""),
        };
        if name.is_empty() || !["", "http", "https"].contains(&scheme) {
            let text = Value::from(text);
            let message = format!("invalid {what} request {text}");
            return Err(Box::new(Status::bad_request(message)));
        }
        Ok(Self {
            https: scheme == "https",
            name,
            port,
        })
    }
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The kubelet of a node: host and port. `preferred` are the types of addresses, best first.
pub(super) fn kubelet(node: &Value, preferred: &[String]) -> Reply<(String, u16)> {
    let addresses = list(&node["status"], "addresses");
    let of_type = |kind: &String| {
        let mut found = addresses.iter().filter(|a| text(a, "type") == kind);
        found.find_map(|a| a["address"].as_str().filter(|a| !a.is_empty()))
    };
    let Some(host) = preferred.iter().find_map(of_type) else {
        let known: Vec<String> = addresses
            .iter()
            .map(|a| format!("{{{} {}}}", text(a, "type"), text(a, "address")))
            .collect();
        return Err(Box::new(Status::new(
            Reason::Unknown,
            format!(
                "no preferred addresses found; known addresses: [{}]",
                known.join(" ")
            ),
        )));
    };
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0);
    Ok((host.to_owned(), port.unwrap_or(KUBELET_PORT)))
}

/// The container a request is about: the one named, or the only one.
pub(super) fn container<'a>(pod: &'a Value, named: &'a str) -> Reply<&'a str> {
    let spec = &pod["spec"];
    let pod_name = meta::name(pod);
    let of = |field| list(spec, field).iter().map(|c| text(c, "name"));
    let mut all = of("initContainers")
        .chain(of("containers"))
        .chain(of("ephemeralContainers"));
    let bad = |message| Err(Box::new(Status::bad_request(message)));
    if !named.is_empty() {
        return match all.any(|name| name == named) {
            true => Ok(named),
            false => bad(format!("container {named} is not valid for pod {pod_name}")),
        };
    }
    match list(spec, "containers") {
        [only] => Ok(text(only, "name")),
        [] => bad(format!(
            "a container name must be specified for pod {pod_name}"
        )),
        _ => {
            let all: Vec<&str> = all.collect();
            bad(format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                all.join(" ")
            ))
        }
    }
}

/// The node a pod is on, if there is one.
pub(super) fn node_of(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty())
}

/// 400 for a pod that is not on a node.
pub(super) fn no_host(pod: &str) -> Box<Status> {
    Box::new(Status::bad_request(format!(
        "pod {pod} does not have a host assigned"
    )))
}

/// An address that requests may be passed to: not the server's own machine, nor a neighbour on its link.
pub(super) fn is_proxyable(address: &str) -> bool {
    match address.parse::<IpAddr>() {
        Err(_) => false,
        Ok(ip) => {
            let link_local = match ip {
                IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
        }
    }
}

/// 400 for an address that is not [proxyable](is_proxyable).
pub(super) fn not_allowed() -> Box<Status> {
    Box::new(Status::bad_request("address not allowed"))
}

/// Where a pod listens: its address, and the port named or its first one. Without any the scheme's own.
pub(super) fn pod<'a>(pod: &'a Value, id: &Id<'_>) -> Reply<(&'a str, u16)> {
    let address = pod["status"]["podIPs"][0]["ip"]
        .as_str()
        .or(pod["status"]["podIP"].as_str())
        .unwrap_or_default();
    if !is_proxyable(address) {
        return Err(not_allowed());
    }
    if !id.port.is_empty() {
        return Ok((address, port_number(id.port)?));
    }
    let ports = list(&pod["spec"], "containers")
        .iter()
        .find_map(|c| c["ports"][0]["containerPort"].as_u64());
    let port = ports.and_then(|port| u16::try_from(port).ok());
    Ok((address, port.unwrap_or(if id.https { 443 } else { 80 })))
}

/// 400 when it is none.
pub(super) fn port_number(text: &str) -> Reply<u16> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        let text = Value::from(text);
        Box::new(Status::bad_request(format!("invalid port {text}")))
    })
}

/// The name of the service's port that is asked for, by number or by name (`""` for the one without).
pub(super) fn service_port<'a>(service: &'a Value, id: &'a Id<'_>) -> Reply<&'a str> {
    let Ok(number) = id.port.parse::<i64>() else {
        return Ok(id.port);
    };
    let ports = list(&service["spec"], "ports");
    let found = ports.iter().find(|port| port["port"] == number);
    found.map(|port| text(port, "name")).ok_or_else(|| {
        let name = Value::from(id.name);
        Box::new(Status::service_unavailable(format!(
            "no service port {number} found for service {name}"
        )))
    })
}

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: String,
    pub(super) port: u16,
    /// The pod it must belong to.
    pub(super) pod: String,
    pub(super) node: Option<String>,
}

/// The ready endpoints for a port of a service in its slices, those of the service's first address family first. Only pods:
/// nobody is sent elsewhere through a hand-made slice.
pub(super) fn endpoints(service: &Value, slices: &[Value], port: &str) -> Vec<Endpoint> {
    let namespace = service["metadata"]["namespace"].as_str();
    let family = service["spec"]["ipFamilies"][0].as_str();
    let mut found = Vec::new();
    for slice in slices {
        let number = list(slice, "ports")
            .iter()
            .find(|candidate| text(candidate, "name") == port)
            .and_then(|candidate| u16::try_from(candidate["port"].as_u64()?).ok());
        let Some(number) = number else {
            continue;
        };
        for endpoint in list(slice, "endpoints") {
            let target = &endpoint["targetRef"];
            let elsewhere = target["namespace"]
                .as_str()
                .is_some_and(|n| Some(n) != namespace);
            if endpoint["conditions"]["ready"] == false || target["kind"] != "Pod" || elsewhere {
                continue;
            }
            let Some(address) = endpoint["addresses"][0].as_str() else {
                continue;
            };
            found.push((
                slice["addressType"].as_str() != family,
                Endpoint {
                    address: address.to_owned(),
                    port: number,
                    pod: text(target, "name").to_owned(),
                    node: endpoint["nodeName"].as_str().map(str::to_owned),
                },
            ));
        }
    }
    found.sort_by_key(|(other_family, _)| family.is_some() && *other_family);
    found.into_iter().map(|(_, endpoint)| endpoint).collect()
}

/// Whether a pod has an address.
pub(super) fn has_address(pod: &Value, address: &str) -> bool {
    pod["status"]["podIP"] == address
        || list(&pod["status"], "podIPs")
            .iter()
            .any(|ip| ip["ip"] == address)
}

/// The path behind `/proxy`, `""` or beginning with a slash, encoded again as Go's `URL.EscapedPath` does.
pub(super) fn proxied_path(parts: &[String], whole: &str) -> String {
    let mut path = parts.get(3..).unwrap_or_default().join("/");
    if !path.is_empty() {
        path.insert(0, '/');
    }
    if whole.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    }
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What a redirect of the backend says to the client: absolute paths on the backend are paths behind `prefix`.
pub(super) fn redirected(location: &str, backend: &str, asked: &str, prefix: &str) -> String {
    let path = match location.split_once("://") {
        None if location.starts_with("//") => return location.to_owned(),
        None => location,
        Some((_, rest)) => {
            let (host, _) = rest.split_once('/').unwrap_or((rest, ""));
            if host != backend && host != asked {
                return location.to_owned();
            }
            &rest[host.len()..]
        }
    };
    if path.starts_with('/') && !path.starts_with(prefix) {
        format!("{prefix}{path}")
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_have_three_forms() {
        let parse = |text| Id::parse(text, "pod").map(|id| (id.https, id.name, id.port));
        assert_eq!(parse("a").unwrap(), (false, "a", ""));
        assert_eq!(parse("a:http").unwrap(), (false, "a", "http"));
        assert_eq!(parse("https:a:1").unwrap(), (true, "a", "1"));
        assert_eq!(parse("http:a:").unwrap(), (false, "a", ""));
        for wrong in ["", "ftp:a:1", ":1", "a:b:c:d"] {
            let status = parse(wrong).unwrap_err();
            assert_eq!(status.code(), 400);
            assert_eq!(status.message, format!("invalid pod request \"{wrong}\""));
        }
    }

    #[test]
    fn a_kubelet_is_where_its_node_says() {
        let mut node = json!({"status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"},
        ]}});
        let prefer = |types: &[&str]| types.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let ip = prefer(&["InternalIP", "Hostname"]);
        assert_eq!(kubelet(&node, &ip).unwrap(), ("10.0.0.1".into(), 10250));
        node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] = 7.into();
        let name = prefer(&["InternalDNS", "Hostname"]);
        assert_eq!(kubelet(&node, &name).unwrap(), ("n".into(), 7));
        let none = kubelet(&node, &prefer(&["ExternalIP"])).unwrap_err();
        assert_eq!(none.code(), 500);
        assert_eq!(
            none.message,
            "no preferred addresses found; known addresses: [{Hostname n} {InternalIP 10.0.0.1}]"
        );
    }

    #[test]
    fn one_container_needs_no_name() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, "").unwrap(), "a");
        let two = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&two, "i").unwrap(), "i");
        let messages = [container(&two, ""), container(&two, "x")].map(|r| r.unwrap_err().message);
        assert_eq!(
            messages,
            [
                "a container name must be specified for pod p, choose one of: [i a b]",
                "container x is not valid for pod p"
            ]
        );
    }

    #[test]
    fn pods_are_reached_at_their_address() {
        let object = json!({"status": {"podIPs": [{"ip": "10.1.2.3"}]},
            "spec": {"containers": [{"name": "a"}, {"name": "b", "ports": [{"containerPort": 8080}]}]}});
        let at = |text: &'static str| pod(&object, &Id::parse(text, "pod").unwrap());
        assert_eq!(at("p").unwrap(), ("10.1.2.3", 8080));
        assert_eq!(at("p:81").unwrap(), ("10.1.2.3", 81));
        assert_eq!(at("p:http").unwrap_err().code(), 400);
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "::1",
            "0.0.0.0",
            "224.0.0.1",
            "n",
            "",
        ] {
            assert!(!is_proxyable(address), "{address}");
        }
        assert!(is_proxyable("10.0.0.1") && is_proxyable("fd00::1"));
    }

    #[test]
    fn endpoints_are_ready_pods_of_the_port() {
        let service = json!({"metadata": {"name": "s", "namespace": "d"},
            "spec": {"ipFamilies": ["IPv4"], "ports": [{"name": "web", "port": 80}, {"name": "dns", "port": 53}]}});
        let id = Id::parse("s:80", "service").unwrap();
        assert_eq!(service_port(&service, &id).unwrap(), "web");
        let unknown = Id::parse("s:81", "service").unwrap();
        assert_eq!(
            service_port(&service, &unknown).unwrap_err().message,
            "no service port 81 found for service \"s\""
        );
        let endpoint = |ip: &str, more: Value| {
            let mut endpoint = json!({"addresses": [ip], "targetRef": {"kind": "Pod", "name": ip, "namespace": "d"}});
            for (key, value) in more.as_object().unwrap() {
                endpoint[key] = value.clone();
            }
            endpoint
        };
        let ports = json!([{"name": "dns", "port": 5353}, {"name": "web", "port": 8080}]);
        let slices = [
            json!({"addressType": "IPv6", "ports": ports, "endpoints": [endpoint("fd00::1", json!({}))]}),
            json!({"addressType": "IPv4", "ports": ports, "endpoints": [
                endpoint("10.0.0.1", json!({"conditions": {"ready": false}})),
                endpoint("10.0.0.2", json!({"conditions": {"ready": true}, "nodeName": "n"})),
                endpoint("10.0.0.3", json!({"targetRef": null})),
                endpoint("10.0.0.4", json!({"targetRef": {"kind": "Pod", "name": "x", "namespace": "other"}})),
            ]}),
        ];
        let found = endpoints(&service, &slices, "web");
        let found: Vec<_> = found.iter().map(|e| (e.address.as_str(), e.port)).collect();
        assert_eq!(found, [("10.0.0.2", 8080), ("fd00::1", 8080)]);
        assert!(endpoints(&service, &slices, "other").is_empty());
    }

    #[test]
    fn paths_keep_their_slashes() {
        let path = |rest: &[&str], whole| {
            let parts: Vec<String> = ["services", "s", "proxy"]
                .iter()
                .chain(rest)
                .map(|p| (*p).to_owned())
                .collect();
            proxied_path(&parts, whole)
        };
        assert_eq!(path(&[], "/x/proxy"), "");
        assert_eq!(path(&[], "/x/proxy/"), "/");
        assert_eq!(path(&["a b", "ü?"], "/x/proxy/a b/ü"), "/a%20b/%C3%BC%3F");
        assert_eq!(path(&["a", "", "b"], "/x/proxy/a//b/"), "/a//b/");
    }

    #[test]
    fn redirects_stay_behind_the_proxy() {
        let to = |location| redirected(location, "10.0.0.1:80", "kube:6443", "/p/proxy");
        assert_eq!(to("/login"), "/p/proxy/login");
        assert_eq!(to("http://10.0.0.1:80/a?b"), "/p/proxy/a?b");
        assert_eq!(to("https://kube:6443/p/proxy/a"), "/p/proxy/a");
        assert_eq!(to("next"), "next");
        assert_eq!(to("https://example.org/a"), "https://example.org/a");
        assert_eq!(to("//example.org/a"), "//example.org/a");
    }
}
