//! Services and what else routes traffic.

use super::{child, empty, items, set, set_if_absent, text};
use serde_json::{Value, json};

pub(super) fn service(service: &mut Value) {
    let Some(spec) = child(service, "spec") else {
        return;
    };
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => {
            if let Value::Object(fields) = spec {
                fields.remove("sessionAffinityConfig");
            }
        }
        "ClientIP" => {
            set_if_absent(spec, "sessionAffinityConfig", empty());
            if let Some(config) = child(spec, "sessionAffinityConfig") {
                set_if_absent(config, "clientIP", empty());
                if let Some(client) = child(config, "clientIP") {
                    set_if_absent(client, "timeoutSeconds", 10800);
                }
            }
        }
        _ => {}
    }
    for port in items(spec, "ports") {
        set(port, "protocol", "TCP");
        let target = port.get("targetPort");
        if target.is_none_or(|target| target.is_null() || target == 0 || target == "") {
            port["targetPort"] = port.get("port").cloned().unwrap_or(Value::from(0));
        }
    }
    let kind = text(spec, "type").to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_if_absent(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// What the cluster IP allocator of a single-stack cluster decides beside the address itself: `ipFamilies`,
/// `ipFamilyPolicy`, and `clusterIPs` that agree with `clusterIP`. To be called when storing a service, after its
/// address is known.
pub fn service_ip_families(service: &mut Value) {
    let Some(spec) = child(service, "spec") else {
        return;
    };
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let address = text(spec, "clusterIP").to_owned();
    if !address.is_empty() {
        set_if_absent(spec, "clusterIPs", json!([address]));
    }
    let family = if address.contains(':') {
        "IPv6"
    } else {
        "IPv4"
    };
    set_if_absent(spec, "ipFamilies", json!([family]));
    set(spec, "ipFamilyPolicy", "SingleStack");
}

pub(super) fn network(kind: &str, object: &mut Value) {
    match kind {
        "EndpointSlice" => {
            for port in items(object, "ports") {
                set_if_absent(port, "name", "");
                set(port, "protocol", "TCP");
            }
        }
        "NetworkPolicy" => {
            if let Some(spec) = child(object, "spec") {
                network_policy(spec);
            }
        }
        "IngressClass" => {
            if let Some(parameters) =
                child(object, "spec").and_then(|spec| child(spec, "parameters"))
            {
                set(parameters, "scope", "Cluster");
            }
        }
        _ => {}
    }
}

fn network_policy(spec: &mut Value) {
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                set(port, "protocol", "TCP");
            }
        }
    }
    let egress = spec
        .get("egress")
        .and_then(Value::as_array)
        .is_some_and(|rules| !rules.is_empty());
    let types = if egress {
        json!(["Ingress", "Egress"])
    } else {
        json!(["Ingress"])
    };
    set_if_absent(spec, "policyTypes", types);
}
