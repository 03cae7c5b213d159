//! What the bench's cluster holds: pods, services with their endpoints, configuration.

use super::{
    BenchError,
    load::{self, Target, call},
};
use http::Method;
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Where the objects are.
pub(super) const NAMESPACE: &str = "bench";
/// Objects created at a time.
const CREATORS: usize = 16;

/// How many of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) pods: usize,
    /// With one EndpointSlice each.
    pub(super) services: usize,
    /// In each EndpointSlice.
    pub(super) endpoints: usize,
    pub(super) config_maps: usize,
}

impl Shape {
    /// All objects.
    pub(super) fn objects(&self) -> usize {
        self.pods + 2 * self.services + self.config_maps
    }

    /// The `n`th object, with the path of its collection.
    fn object(&self, n: usize) -> (String, Value) {
        let core = |plural: &str| format!("/api/v1/namespaces/{NAMESPACE}/{plural}");
        let Some(n) = n.checked_sub(self.pods) else {
            return (core("pods"), pod(NAMESPACE, &format!("pod-{n}"), n));
        };
        let Some(n) = n.checked_sub(self.services) else {
            return (core("services"), service(n));
        };
        let Some(n) = n.checked_sub(self.services) else {
            let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
            return (path, endpoint_slice(n, self.endpoints));
        };
        (
            core("configmaps"),
            config_map(NAMESPACE, &format!("config-{n}")),
        )
    }
}

/// Creates namespace and objects.
pub(super) async fn create(target: &Target, shape: Shape) -> Result<(), BenchError> {
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    post(target, "/api/v1/namespaces", &namespace).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let creators: Vec<_> = (0..CREATORS)
        .map(|_| {
            let (target, next) = (target.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= shape.objects() {
                        return Ok::<(), BenchError>(());
                    }
                    let (path, object) = shape.object(n);
                    post(&target, &path, &object).await?;
                }
            })
        })
        .collect();
    for creator in creators {
        creator
            .await
            .map_err(|error| call("creating the data set", error))??;
    }
    Ok(())
}

async fn post(target: &Target, path: &str, object: &Value) -> Result<(), BenchError> {
    target
        .call(
            Method::POST,
            path,
            Some(("application/json", load::json(object))),
        )
        .await
        .map(drop)
}

/// A pod as a Deployment makes it, on a node.
pub(super) fn pod(namespace: &str, name: &str, n: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": { "app": format!("app-{}", n % 5), "pod-template-hash": "6d4b75cb6d", "tier": "edge" },
            "annotations": { "prometheus.io/scrape": "true", "prometheus.io/port": "8080" },
        },
        "spec": {
            "nodeName": "bench-node",
            // Its volume would be added by some servers and not by others.
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "main",
                "image": "registry.example.com/team/application:1.27.3",
                "args": ["--config=/etc/app/config.yaml", "--listen=:8080"],
                "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
                "env": [
                    { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    { "name": "REGION", "value": "hangzhou" },
                ],
                "resources": {
                    "requests": { "cpu": "100m", "memory": "64Mi" },
                    "limits": { "cpu": "500m", "memory": "128Mi" },
                },
                "volumeMounts": [{ "name": "config", "mountPath": "/etc/app", "readOnly": true }],
                "livenessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 10 },
                "readinessProbe": { "httpGet": { "path": "/readyz", "port": 8080 }, "periodSeconds": 5 },
            }],
            "volumes": [{ "name": "config", "configMap": { "name": "config-0" } }],
            "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute" }],
        },
    })
}

fn service(n: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("service-{n}"), "namespace": NAMESPACE, "labels": { "app": format!("app-{n}") } },
        "spec": {
            "selector": { "app": format!("app-{n}") },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

/// The name of a service's EndpointSlice.
pub(super) fn slice_name(service: usize) -> String {
    format!("service-{service}-slice")
}

fn endpoint_slice(n: usize, endpoints: usize) -> Value {
    let endpoints: Vec<Value> = (0..endpoints)
        .map(|e| {
            json!({
                "addresses": [format!("10.{}.{}.{e}", 64 + n / 250, n % 250)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("node-{}", (n + e) % 100),
                "zone": "hangzhou-a",
                "targetRef": {
                    "kind": "Pod",
                    "namespace": NAMESPACE,
                    "name": format!("service-{n}-6d4b75cb6d-{e:05}"),
                    "uid": format!("8f14e45f-ceea-467f-a8d1-{n:06}{e:06}"),
                },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(n),
            "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": format!("service-{n}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

/// A ConfigMap with a `sent` entry of 0.
pub(super) fn config_map(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": namespace },
        "data": { "sent": "0", "config.yaml": "listen: 0.0.0.0:8080\nlog:\n  level: info\n  format: json\n" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_object_is_there_once() {
        let shape = Shape {
            pods: 3,
            services: 4,
            endpoints: 50,
            config_maps: 5,
        };
        let names: BTreeSet<_> = (0..shape.objects())
            .map(|n| {
                let (path, object) = shape.object(n);
                let plural = path.rsplit('/').next().unwrap_or_default().to_owned();
                (plural, object["metadata"]["name"].to_string())
            })
            .collect();
        assert_eq!(names.len(), shape.objects());
        let count = |plural: &str| names.iter().filter(|(p, _)| p == plural).count();
        assert_eq!(
            ["pods", "services", "endpointslices", "configmaps"].map(count),
            [3, 4, 4, 5]
        );
    }

    #[test]
    fn the_budget_tables_slice_has_fifty_endpoints() {
        let slice = endpoint_slice(999, 50);
        let addresses: BTreeSet<_> = slice["endpoints"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|endpoint| endpoint["addresses"][0].to_string())
            .collect();
        assert_eq!(addresses.len(), 50);
    }
}
