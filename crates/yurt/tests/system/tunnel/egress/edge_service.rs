//! What a pod at the edge serves to kube-apiserver: figures of nodes (`metrics.k8s.io`), and decisions about config maps. Beside it a
//! page on a node of the cloud.

use super::{
    super::pair::AGENT_NODE,
    cloud::{Cloud, apply},
};
use crate::fixture::Kubectl;
use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio_util::sync::CancellationToken;
use yurt_transport::{Body, ServeOptions};

const TLS: u16 = 8443;
const PLAIN: u16 = 8080;
/// The page `/hello`.
pub(super) const HELLO: &str = "hello\n";
/// A node without an agent.
const CLOUD_NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

/// The servers of the pod `service`, at its address.
pub(super) struct EdgeService {
    asked: Arc<AtomicUsize>,
    shutdown: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl EdgeService {
    /// Starts them, and tells the API server what they are for.
    pub(super) fn start(cloud: &Cloud, kubectl: &Kubectl) -> Self {
        let address = kubectl.ok(&["get", "pod", "service", "-o", "jsonpath={.status.podIP}"]);
        let address: IpAddr = address.parse().unwrap();
        let names = ["metrics-server.kube-system.svc", "guard.default.svc"];
        cloud.authority.services("edge-service", &names);
        let tls = yurt_pki::server_config(&cloud.authority.pair("edge-service"), None, true);
        let tls = Arc::new(ArcSwap::from(tls.unwrap()));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let shutdown = CancellationToken::new();
        let served = [
            (address, TLS, Some(tls)),
            (address, PLAIN, None),
            (CLOUD_NODE, PLAIN, None),
        ];
        for (address, port, tls) in served {
            let listener = std::net::TcpListener::bind(SocketAddr::new(address, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let _inside = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let asked = asked.clone();
            runtime.spawn(yurt_transport::serve(
                listener,
                tls,
                ServeOptions::default(),
                shutdown.clone(),
                move |request| {
                    asked.fetch_add(1, Ordering::Relaxed);
                    answer(request)
                },
            ));
        }
        apply(kubectl, &objects(address, &cloud.authority.ca()));
        Self {
            asked,
            shutdown,
            _runtime: runtime,
        }
    }

    /// Requests so far.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for EdgeService {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Services with their endpoints (nobody else makes slices here), and what kube-apiserver asks them for.
fn objects(address: IpAddr, ca: &str) -> Vec<Value> {
    let ca = STANDARD.encode(ca);
    let service = |namespace: &str, name: &str| {
        [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
                "spec": {"ports": [{"name": "https", "port": 443, "targetPort": TLS}]}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "https", "protocol": "TCP", "port": TLS}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}, "nodeName": AGENT_NODE}]}),
        ]
    };
    let mut objects = Vec::new();
    objects.extend(service("kube-system", "metrics-server"));
    objects.extend(service("default", "guard"));
    objects.push(json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "caBundle": ca, "service": {"namespace": "kube-system", "name": "metrics-server", "port": 443}}}));
    objects.push(json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "guard"},
        "webhooks": [{"name": "guard.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "timeoutSeconds": 10,
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "clientConfig": {"caBundle": ca,
                "service": {"namespace": "default", "name": "guard", "path": "/decide", "port": 443}}}]}));
    objects.push(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "cloud-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": CLOUD_NODE}]}}),
    );
    objects
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let group = "metrics.k8s.io/v1beta1";
    let answer = match head.uri.path() {
        "/apis/metrics.k8s.io/v1beta1" => {
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group,
                "resources": [{"name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"]}]})
        }
        "/apis/metrics.k8s.io/v1beta1/nodes" => {
            json!({"kind": "NodeMetricsList", "apiVersion": group, "metadata": {}, "items": [{
                "metadata": {"name": AGENT_NODE}, "timestamp": "2026-11-22T00:00:00Z", "window": "30s",
                "usage": {"cpu": "250m", "memory": "512Mi"}}]})
        }
        "/decide" => {
            let body = yurt_transport::collect(body, 1 << 20).await.unwrap();
            let review: Value = serde_json::from_slice(&body).unwrap();
            let asked = &review["request"];
            let name = asked["name"].as_str().unwrap_or_default();
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {
                "uid": asked["uid"], "allowed": !name.starts_with("bad"),
                "status": {"code": 403, "message": "says the pod at the edge"}}})
        }
        "/hello" => return Response::new(yurt_transport::full(HELLO)),
        _ => {
            let mut response = Response::new(yurt_transport::empty());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    let mut response = Response::new(yurt_transport::full(answer.to_string()));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
