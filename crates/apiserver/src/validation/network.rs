//! Services, endpoints, ingresses, network policies.

use super::names::{DNS1123_LABEL, is_dns1123_label};
use super::pod::{is_port, port_or_name};
use super::{given, join, list, metadata, one_of, text};
use crate::causes::{duplicate, forbidden, invalid, required, too_many};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use yurt_wire::status::Cause;

const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// Limits of EndpointSlices.
const MAX_ENDPOINTS: u64 = 1000;
const MAX_ADDRESSES: u64 = 100;

pub(super) fn service(spec: &Value, causes: &mut Vec<Cause>) {
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(spec, "type", "spec", &kinds, true, causes);
    one_of(
        spec,
        "sessionAffinity",
        "spec",
        &["ClientIP", "None"],
        true,
        causes,
    );
    one_of(
        spec,
        "externalTrafficPolicy",
        "spec",
        &["Cluster", "Local"],
        false,
        causes,
    );
    one_of(
        spec,
        "internalTrafficPolicy",
        "spec",
        &["Cluster", "Local"],
        false,
        causes,
    );
    metadata::labels("spec.selector", spec.get("selector"), causes);
    let kind = text(spec, "type");
    let address = text(spec, "clusterIP");
    if kind == "ExternalName" {
        if text(spec, "externalName").is_empty() {
            causes.push(required("spec.externalName", ""));
        }
        if !address.is_empty() && address != "None" {
            causes.push(forbidden(
                "spec.clusterIPs",
                "may not be set when type is 'ExternalName'",
            ));
        }
    } else if !address.is_empty() && address != "None" && address.parse::<IpAddr>().is_err() {
        causes.push(invalid("spec.clusterIPs[0]", &Value::from(address), IP));
    }
    if address == "None" && matches!(kind, "NodePort" | "LoadBalancer") {
        causes.push(invalid(
            "spec.clusterIPs[0]",
            &Value::from(address),
            &format!("may not be set to 'None' for {kind} services"),
        ));
    }
    let ports = list(spec, "ports");
    if ports.is_empty() && address != "None" && kind != "ExternalName" {
        causes.push(required("spec.ports", ""));
    }
    service_ports(ports, kind, causes);
    for (i, address) in list(spec, "externalIPs").iter().enumerate() {
        if address
            .as_str()
            .is_none_or(|a| a.parse::<IpAddr>().is_err())
        {
            causes.push(invalid(&format!("spec.externalIPs[{i}]"), address, IP));
        }
    }
}

fn service_ports(ports: &[Value], kind: &str, causes: &mut Vec<Cause>) {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let name = text(port, "name");
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(required(&join(&at, "name"), ""));
            }
        } else if !is_dns1123_label(name) {
            causes.push(invalid(
                &join(&at, "name"),
                &Value::from(name),
                DNS1123_LABEL,
            ));
        } else if !names.insert(name) {
            causes.push(duplicate(&join(&at, "name"), &Value::from(name)));
        }
        if !is_port(&port["port"]) {
            causes.push(invalid(&join(&at, "port"), &port["port"], PORT_RANGE));
        }
        one_of(port, "protocol", &at, PROTOCOLS, true, causes);
        port_or_name(&port["targetPort"], &join(&at, "targetPort"), causes);
        let protocol = text(port, "protocol");
        let key = (port["port"].as_i64(), protocol);
        if !numbers.insert(key) {
            causes.push(duplicate(&at, port));
        }
        let node_port = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
        if node_port != 0 {
            let at = join(&at, "nodePort");
            if !matches!(kind, "NodePort" | "LoadBalancer") {
                causes.push(forbidden(
                    &at,
                    &format!("may not be used when `type` is '{kind}'"),
                ));
            } else if !node_ports.insert((node_port, protocol)) {
                causes.push(duplicate(&at, &Value::from(node_port)));
            }
        }
    }
}

fn endpoint_ports(ports: &[Value], at: &str, causes: &mut Vec<Cause>) {
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("{}[{i}]", join(at, "ports"));
        let name = text(port, "name");
        if !name.is_empty() && !is_dns1123_label(name) {
            causes.push(invalid(
                &join(&at, "name"),
                &Value::from(name),
                DNS1123_LABEL,
            ));
        } else if !names.insert(name) {
            causes.push(duplicate(&join(&at, "name"), &Value::from(name)));
        }
        if let Some(number) = given(port, "port")
            && !is_port(number)
        {
            causes.push(invalid(&join(&at, "port"), number, PORT_RANGE));
        }
        one_of(port, "protocol", &at, PROTOCOLS, false, causes);
    }
}

pub(super) fn endpoints(object: &Value, causes: &mut Vec<Cause>) {
    for (i, subset) in list(object, "subsets").iter().enumerate() {
        let at = format!("subsets[{i}]");
        let ready = list(subset, "addresses");
        let not_ready = list(subset, "notReadyAddresses");
        if ready.is_empty() && not_ready.is_empty() {
            causes.push(required(
                &at,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for (name, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            for (j, address) in addresses.iter().enumerate() {
                if text(address, "ip").parse::<IpAddr>().is_err() {
                    causes.push(invalid(&format!("{at}.{name}[{j}].ip"), &address["ip"], IP));
                }
            }
        }
        endpoint_ports(list(subset, "ports"), &at, causes);
    }
}

pub(super) fn endpoint_slice(slice: &Value, causes: &mut Vec<Cause>) {
    one_of(
        slice,
        "addressType",
        "",
        &["FQDN", "IPv4", "IPv6"],
        true,
        causes,
    );
    let endpoints = list(slice, "endpoints");
    if endpoints.len() as u64 > MAX_ENDPOINTS {
        causes.push(too_many("endpoints", endpoints.len(), MAX_ENDPOINTS));
        return;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let at = format!("endpoints[{i}].addresses");
        let addresses = list(endpoint, "addresses");
        if addresses.is_empty() {
            causes.push(required(&at, "must contain at least 1 address"));
        } else if addresses.len() as u64 > MAX_ADDRESSES {
            causes.push(too_many(&at, addresses.len(), MAX_ADDRESSES));
        }
        for (j, address) in addresses.iter().enumerate() {
            let parsed = address.as_str().and_then(|a| a.parse::<IpAddr>().ok());
            let fits = match text(slice, "addressType") {
                "IPv4" => matches!(parsed, Some(IpAddr::V4(_))),
                "IPv6" => matches!(parsed, Some(IpAddr::V6(_))),
                _ => true,
            };
            if !fits {
                causes.push(invalid(&format!("{at}[{j}]"), address, IP));
            }
        }
    }
    endpoint_ports(list(slice, "ports"), "", causes);
}

pub(super) fn networking(kind: &str, spec: &Value, causes: &mut Vec<Cause>) {
    match kind {
        "Ingress" => ingress(spec, causes),
        "NetworkPolicy" => {
            metadata::selector("spec.podSelector", &spec["podSelector"], causes);
            for (i, name) in list(spec, "policyTypes").iter().enumerate() {
                if !matches!(name.as_str(), Some("Ingress" | "Egress")) {
                    causes.push(crate::causes::not_supported(
                        &format!("spec.policyTypes[{i}]"),
                        name,
                        &["Egress", "Ingress"],
                    ));
                }
            }
        }
        _ => {}
    }
}

fn ingress(spec: &Value, causes: &mut Vec<Cause>) {
    let rules = list(spec, "rules");
    if rules.is_empty() && given(spec, "defaultBackend").is_none() {
        causes.push(invalid(
            "spec",
            spec,
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    for (i, rule) in rules.iter().enumerate() {
        for (j, path) in list(&rule["http"], "paths").iter().enumerate() {
            let at = format!("spec.rules[{i}].http.paths[{j}]");
            let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
            one_of(path, "pathType", &at, &kinds, true, causes);
            let route = text(path, "path");
            if !route.starts_with('/')
                && (matches!(text(path, "pathType"), "Exact" | "Prefix") || !route.is_empty())
            {
                causes.push(invalid(
                    &join(&at, "path"),
                    &Value::from(route),
                    "must be an absolute path",
                ));
            }
        }
    }
}
