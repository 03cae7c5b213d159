//! What a kubelet asks for that just started on this node, as recorded of a real one (1.36), asked through the hub's own pipeline.

use crate::{doctor::needs, proxy::Hub};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use yurt_wire::{
    Encoding,
    watch::{FrameDecoder, is_initial_events_end},
};

/// How long one answer, or the initial events of a watch, may take.
const WAIT: Duration = Duration::from_secs(10);
/// Largest frame of a watch.
const MOST_FRAME: usize = 8 << 20;
const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What for, in words.
    pub(super) purpose: String,
    /// Path and query.
    pub(super) target: String,
    /// Whether it is a watch with initial events.
    pub(super) watch: bool,
    /// What is sent, if anything.
    body: Option<Value>,
    /// Whether 404 is as good an answer.
    absent_is_fine: bool,
    /// Whether the node can do without.
    pub(super) tolerable: bool,
}

impl Request {
    pub(super) fn verb(&self) -> &'static str {
        match (&self.body, self.watch) {
            (Some(_), _) => "create",
            (None, true) => "watch",
            (None, false) => "get",
        }
    }
}

fn get(purpose: impl Into<String>, target: String) -> Request {
    Request {
        purpose: purpose.into(),
        target,
        watch: false,
        body: None,
        absent_is_fine: false,
        tolerable: false,
    }
}

/// A list and watch, as clients since 1.35 ask for it.
fn watch(purpose: impl Into<String>, path: &str, selector: &str) -> Request {
    let joint = if selector.is_empty() { "" } else { "&" };
    Request {
        watch: true,
        ..get(
            purpose,
            format!(
                "{path}?allowWatchBookmarks=true{joint}{selector}&resourceVersionMatch=NotOlderThan&sendInitialEvents=true\
                 &timeoutSeconds=60&watch=true"
            ),
        )
    }
}

/// Everything asked for, by the node's name and the pods that are to run. `volume_of` knows the volume of a claim.
pub(super) fn requests(
    node: &str,
    pods: &[Value],
    volume_of: impl Fn((&str, &str)) -> Option<String>,
) -> Vec<Request> {
    let at_start = "to start";
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
    let classes = pods
        .iter()
        .any(|pod| pod.pointer("/spec/runtimeClassName").is_some());
    let drivers = pods.iter().any(needs::uses_csi);
    let mut out = vec![
        get(at_start, format!("/api/v1/nodes/{node}")),
        watch(
            at_start,
            "/api/v1/nodes",
            &format!("fieldSelector=metadata.name%3D{node}"),
        ),
        watch(
            at_start,
            "/api/v1/pods",
            &format!("fieldSelector=spec.nodeName%3D{node}"),
        ),
        watch(
            at_start,
            "/api/v1/services",
            "fieldSelector=spec.clusterIP%21%3DNone",
        ),
        Request {
            absent_is_fine: true,
            ..get("to tell that it lives", lease)
        },
        Request {
            tolerable: !classes,
            ..watch(at_start, "/apis/node.k8s.io/v1/runtimeclasses", "")
        },
        Request {
            tolerable: !drivers,
            ..watch(at_start, "/apis/storage.k8s.io/v1/csidrivers", "")
        },
    ];
    for pod in pods {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        let (Some(namespace), Some(name)) = (text("/metadata/namespace"), text("/metadata/name"))
        else {
            continue;
        };
        if needs::is_static(pod) {
            continue;
        }
        let purpose = format!("for pod {namespace}/{name}");
        let objects = format!("/api/v1/namespaces/{namespace}");
        out.push(get(purpose.clone(), format!("{objects}/pods/{name}")));
        for reference in needs::references(pod) {
            let wanted = &reference.name;
            match reference.kind {
                needs::Kind::ConfigMap | needs::Kind::Secret => {
                    let resource = reference.kind.gvr().resource;
                    let one = get(purpose.clone(), format!("{objects}/{resource}/{wanted}"));
                    out.push(Request {
                        absent_is_fine: reference.optional,
                        ..one
                    });
                }
                needs::Kind::Claim => {
                    let claims = format!("{objects}/persistentvolumeclaims/{wanted}");
                    out.push(get(purpose.clone(), claims));
                    if let Some(volume) = volume_of((namespace, wanted)) {
                        let volume = format!("/api/v1/persistentvolumes/{volume}");
                        out.push(get(purpose.clone(), volume));
                    }
                }
                // In the list of all of them.
                needs::Kind::RuntimeClass => {}
            }
        }
        for wish in needs::tokens(pod) {
            let tokens = format!("{objects}/serviceaccounts/{}/token", wish.account);
            out.push(Request {
                body: Some(wish.to_json()),
                ..get(purpose.clone(), tokens)
            });
        }
    }
    // Pods share what they need; it is asked for once, and missed for the first.
    let mut seen = std::collections::HashSet::new();
    out.retain(|request| request.body.is_some() || seen.insert(request.target.clone()));
    out
}

/// Asks; the answer's code, or 504 when it does not come whole in time.
pub(super) async fn ask(hub: &Arc<Hub>, request: &Request) -> StatusCode {
    match tokio::time::timeout(WAIT, answer(hub, request)).await {
        Ok(StatusCode::NOT_FOUND) if request.absent_is_fine => StatusCode::OK,
        Ok(status) => status,
        Err(_) => StatusCode::GATEWAY_TIMEOUT,
    }
}

async fn answer(hub: &Arc<Hub>, request: &Request) -> StatusCode {
    let (method, body) = match &request.body {
        Some(body) => (Method::POST, Bytes::from(body.to_string())),
        None => (Method::GET, Bytes::new()),
    };
    let asked = http::Request::builder()
        .method(method)
        .uri(&request.target)
        .header(header::ACCEPT, ACCEPT)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, crate::USER_AGENT)
        .body(body);
    let Ok(asked) = asked else {
        return StatusCode::BAD_REQUEST;
    };
    let response = hub.own(asked).await;
    let status = response.status();
    if !status.is_success() {
        return status;
    }
    let encoding = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| Encoding::from_content_type(value.to_str().ok()?));
    let mut body = response.into_body();
    let mut frames = match encoding {
        Some(encoding) if request.watch => FrameDecoder::new(encoding, MOST_FRAME),
        _ => {
            return match yurt_transport::collect(body, MOST_FRAME).await {
                Ok(_) => status,
                Err(_) => StatusCode::BAD_GATEWAY,
            };
        }
    };
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            frames.push(data);
        }
        while let Ok(Some(frame)) = frames.next_frame() {
            match frame.event {
                Ok(event) if is_initial_events_end(&event.object) => return status,
                Ok(_) => {}
                Err(_) => return StatusCode::BAD_GATEWAY,
            }
        }
    }
    // It ended before everything was there.
    StatusCode::BAD_GATEWAY
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kubelet_asks_for_what_its_pods_need_once() {
        let pod = |name: &str| {
            json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"runtimeClassName": "kata",
                "containers": [{"envFrom": [{"secretRef": {"name": "s"}}, {"configMapRef": {"name": "c", "optional": true}}]}],
                "volumes": [{"persistentVolumeClaim": {"claimName": "v"}}]}})
        };
        let mut of_a_file = pod("static");
        of_a_file["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "h"});
        let asked = requests("edge-1", &[pod("a"), pod("b"), of_a_file], |claim| {
            assert_eq!(claim, ("d", "v"));
            Some("pv-1".into())
        });
        let targets: Vec<&str> = asked.iter().map(|r| r.target.as_str()).collect();
        for wanted in [
            "/api/v1/nodes/edge-1",
            "/api/v1/namespaces/d/pods/a",
            "/api/v1/namespaces/d/pods/b",
            "/api/v1/namespaces/d/secrets/s",
            "/api/v1/namespaces/d/configmaps/c",
            "/api/v1/namespaces/d/persistentvolumeclaims/v",
            "/api/v1/persistentvolumes/pv-1",
        ] {
            let times = targets.iter().filter(|target| **target == wanted).count();
            assert_eq!(times, 1, "{wanted}: {targets:?}");
        }
        assert!(!targets.iter().any(|target| target.contains("static")));
        let find = |part: &str| asked.iter().find(|r| r.target.contains(part)).unwrap();
        assert!(find("configmaps/c").absent_is_fine && !find("secrets/s").absent_is_fine);
        assert!(!find("runtimeclasses").tolerable && find("csidrivers").tolerable);
        // As recorded of a kubelet, but for how long it watches.
        let recorded = include_str!("../../tests/fixtures/node-client-requests.jsonl");
        for part in ["/api/v1/nodes?", "/api/v1/pods?", "/api/v1/services?"] {
            let (path, query) = find(part).target.split_once('?').unwrap();
            let line = recorded
                .lines()
                .find(|line| line.contains(&format!("{path}?")))
                .unwrap();
            for pair in query.split('&').filter(|pair| !pair.starts_with("timeout")) {
                assert!(line.contains(pair), "{pair} in {line}");
            }
        }
    }
}
