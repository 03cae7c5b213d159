//! Services, endpoints and what routes to them.

use super::{
    AGE, BuiltIn, Fields, NAME, SELECTOR, Spec, built_in,
    fields::{first_of, or_none},
    text,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Addresses, ports and hosts that are shown of a list.
const SHOWN: usize = 3;

pub(super) const PRINTERS: &[BuiltIn] = &[
    built_in(
        "",
        "Service",
        &[
            NAME,
            text("Type", "How the service is exposed."),
            text("Cluster-IP", "Address inside the cluster."),
            text("External-IP", "Addresses outside the cluster."),
            text("Port(s)", "Ports of the service."),
            AGE,
            SELECTOR,
        ],
        service,
    ),
    built_in(
        "",
        "Endpoints",
        &[NAME, text("Endpoints", "Addresses that are ready."), AGE],
        endpoints,
    ),
    built_in(
        "discovery.k8s.io",
        "EndpointSlice",
        &[
            NAME,
            text("AddressType", "Family of the addresses."),
            text("Ports", "Ports of the endpoints."),
            text("Endpoints", "Addresses of the endpoints."),
            AGE,
        ],
        endpoint_slice,
    ),
    built_in(
        "networking.k8s.io",
        "Ingress",
        &[
            NAME,
            text("Class", "The class that implements the ingress."),
            text("Hosts", "Hosts that the rules are for."),
            text("Address", "Addresses of the load balancer."),
            text("Ports", "Ports that are open."),
            AGE,
        ],
        ingress,
    ),
    built_in(
        "networking.k8s.io",
        "IngressClass",
        &[
            NAME,
            text("Controller", "The controller of the class."),
            text("Parameters", "Object with parameters of the class."),
            AGE,
        ],
        ingress_class,
    ),
    built_in(
        "networking.k8s.io",
        "NetworkPolicy",
        &[
            NAME,
            text("Pod-Selector", "Labels of the pods that the policy is for."),
            AGE,
        ],
        network_policy,
    ),
    built_in(
        "networking.k8s.io",
        "ServiceCIDR",
        &[NAME, text("CIDRs", "Ranges of service addresses."), AGE],
        service_cidr,
    ),
    built_in("networking.k8s.io", "IPAddress", IP_ADDRESS, ip_address),
];

const IP_ADDRESS: &[Spec] = &[
    NAME,
    text("ParentRef", "The object that uses the address."),
    AGE,
];

/// Addresses of a load balancer, sorted.
fn load_balancer(object: Fields<'_>) -> BTreeSet<String> {
    object
        .list("status.loadBalancer.ingress")
        .map(|ingress| match ingress.text("ip") {
            ip if ip.is_empty() => ingress.text("hostname"),
            ip => ip,
        })
        .filter(|address| !address.is_empty())
        .collect()
}

fn external_addresses(service: Fields<'_>) -> String {
    let external: Vec<String> = service
        .list("spec.externalIPs")
        .map(Fields::as_text)
        .collect();
    match service.text_or("spec.type", "ClusterIP").as_str() {
        "ClusterIP" | "NodePort" => or_none(external.join(",")),
        "LoadBalancer" => {
            let all: Vec<String> = load_balancer(service).into_iter().chain(external).collect();
            match all.as_slice() {
                [] => "<pending>".to_owned(),
                all => all.join(","),
            }
        }
        "ExternalName" => service.text("spec.externalName"),
        _ => "<unknown>".to_owned(),
    }
}

fn service(object: Fields<'_>, now: i64) -> Vec<Value> {
    // Servers before 1.20 give only `clusterIP`.
    let address = object
        .list("spec.clusterIPs")
        .next()
        .map_or_else(|| object.text("spec.clusterIP"), Fields::as_text);
    let ports: Vec<String> = object
        .list("spec.ports")
        .map(|port| {
            let protocol = port.text_or("protocol", "TCP");
            match port.int("nodePort") {
                0 => format!("{}/{protocol}", port.int("port")),
                node => format!("{}:{node}/{protocol}", port.int("port")),
            }
        })
        .collect();
    vec![
        object.name(),
        json!(object.text_or("spec.type", "ClusterIP")),
        json!(or_none(address)),
        json!(external_addresses(object)),
        json!(or_none(ports.join(","))),
        object.age(now),
        json!(object.labels("spec.selector")),
    ]
}

/// `host:port`, with brackets around IPv6 addresses.
fn host_port(host: &str, port: i64) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn endpoints(object: Fields<'_>, now: i64) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in object.list("subsets") {
        let addresses = || subset.list("addresses").map(|address| address.text("ip"));
        if subset.count("ports") == 0 {
            all.extend(addresses());
        }
        for port in subset.list("ports") {
            all.extend(addresses().map(|ip| host_port(&ip, port.int("port"))));
        }
    }
    let shown = match object.count("subsets") {
        0 => "<none>".to_owned(),
        _ => first_of(all.into_iter(), SHOWN),
    };
    vec![object.name(), json!(shown), object.age(now)]
}

fn endpoint_slice(object: Fields<'_>, now: i64) -> Vec<Value> {
    let or_unset = |text: String| match text.is_empty() {
        true => "<unset>".to_owned(),
        false => text,
    };
    let ports = object
        .list("ports")
        .map(|port| match (port.exists("port"), port.exists("name")) {
            (true, _) => port.int("port").to_string(),
            (false, true) => port.text("name"),
            (false, false) => "*".to_owned(),
        });
    let addresses = object
        .list("endpoints")
        .flat_map(|endpoint| endpoint.list("addresses").map(Fields::as_text));
    vec![
        object.name(),
        json!(object.text("addressType")),
        json!(or_unset(first_of(ports, SHOWN))),
        json!(or_unset(first_of(addresses, SHOWN))),
        object.age(now),
    ]
}

fn ingress(object: Fields<'_>, now: i64) -> Vec<Value> {
    let mut hosts = Vec::new();
    let mut more = false;
    for rule in object.list("spec.rules") {
        more |= hosts.len() == SHOWN;
        let host = rule.text("host");
        if !more && !host.is_empty() {
            hosts.push(host);
        }
    }
    let hosts = match (hosts.as_slice(), more) {
        ([], _) => "*".to_owned(),
        (hosts, false) => hosts.join(","),
        (hosts, true) => format!(
            "{} + {} more...",
            hosts.join(","),
            object.count("spec.rules") - SHOWN
        ),
    };
    let addresses: Vec<String> = load_balancer(object).into_iter().collect();
    let ports = match object.count("spec.tls") {
        0 => "80",
        _ => "80, 443",
    };
    vec![
        object.name(),
        json!(object.text_or("spec.ingressClassName", "<none>")),
        json!(hosts),
        json!(addresses.join(",")),
        json!(ports),
        object.age(now),
    ]
}

fn ingress_class(object: Fields<'_>, now: i64) -> Vec<Value> {
    let parameters = object.at("spec.parameters");
    let shown = if !object.exists("spec.parameters") {
        "<none>".to_owned()
    } else if parameters.exists("apiGroup") {
        format!(
            "{}.{}/{}",
            parameters.text("kind"),
            parameters.text("apiGroup"),
            parameters.text("name")
        )
    } else {
        format!("{}/{}", parameters.text("kind"), parameters.text("name"))
    };
    vec![
        object.name(),
        json!(object.text("spec.controller")),
        json!(shown),
        object.age(now),
    ]
}

fn network_policy(object: Fields<'_>, now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(object.selector("spec.podSelector")),
        object.age(now),
    ]
}

fn service_cidr(object: Fields<'_>, now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(object.joined("spec.cidrs", ",")),
        object.age(now),
    ]
}

fn ip_address(object: Fields<'_>, now: i64) -> Vec<Value> {
    let parent = object.at("spec.parentRef");
    let shown = if object.exists("spec.parentRef") {
        let mut resource = parent.text("resource").to_lowercase();
        for (separator, field) in [(".", "group"), ("/", "namespace")] {
            let part = parent.text(field);
            if !part.is_empty() {
                resource = format!("{resource}{separator}{part}");
            }
        }
        format!("{resource}/{}", parent.text("name"))
    } else {
        "<none>".to_owned()
    };
    vec![object.name(), json!(shown), object.age(now)]
}
