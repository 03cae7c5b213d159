//! The objects every cluster begins with.

use crate::{
    lifecycle::own_target,
    meta,
    registry::{Registry, Reply, ServiceRange},
    storage::Key,
};
use serde_json::{Value, json};
use std::net::SocketAddr;
use yurt_wire::{Reason, gvk::split_api_version};

const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Creates what is missing, points the `kubernetes` service at `address`, and tells other servers of the cluster whose
/// client certificates are accepted here (`client_ca`, PEM).
pub(crate) async fn run(
    registry: &Registry,
    range: ServiceRange,
    address: SocketAddr,
    client_ca: Option<&str>,
) -> Reply<()> {
    for name in NAMESPACES {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        put(registry, "namespaces", namespace, false).await?;
    }
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority"});
        put(registry, "priorityclasses", class, false).await?;
    }
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": range.first().to_string(),
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": address.port()}]}});
    put(registry, "services", service, false).await?;
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address.ip().to_string()}],
            "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}]}]});
    put(registry, "endpoints", endpoints, true).await?;
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}]});
    put(registry, "endpointslices", slice, true).await?;
    if let Some(pem) = client_ca {
        let authentication = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": {"client-ca-file": pem}});
        put(registry, "configmaps", authentication, true).await?;
    }
    Ok(())
}

/// Creates an object unless there is one; with `replace`, brings an old one up to date.
async fn put(registry: &Registry, plural: &str, object: Value, replace: bool) -> Reply<()> {
    let (group, version) = split_api_version(object["apiVersion"].as_str().unwrap_or_default());
    let (namespace, name) = (meta::text(&object, "namespace"), meta::name(&object));
    let Some(target) = own_target(registry, group, version, plural, namespace, name) else {
        return Ok(());
    };
    let key = Key::new(namespace, name);
    let outcome = match registry.storage.get(&target.resource.storage, &key) {
        None => registry.create(&target, object, None).await,
        Some(_) if replace => registry.update(&target, object, None).await,
        Some(_) => return Ok(()),
    };
    match outcome {
        Ok(_) => Ok(()),
        Err(status) if status.reason == Reason::AlreadyExists => Ok(()),
        Err(status) => Err(status),
    }
}
