//! What can be asked of an agent on its own port: health, readiness, metrics, status.

use super::{connector::Connections, metrics::AgentMetrics};
use crate::{
    allow::{AllowList, AllowedDialer},
    certificates::Kept,
};
use arc_swap::ArcSwap;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;
use std::sync::Arc;
use yurt_telemetry::Metrics;
use yurt_transport::{Body, full};

/// What there is to be told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) node: String,
    pub(super) identifiers: String,
    pub(super) connections: Connections,
    pub(super) dialer: Arc<AllowedDialer>,
    pub(super) list: Arc<ArcSwap<AllowList>>,
    pub(super) kept: Kept,
    pub(super) metrics: Metrics,
    pub(super) own: AgentMetrics,
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

impl Told {
    pub(super) fn answer(&self, method: &Method, path: &str) -> Response<Body> {
        let text =
            |status, body: &str| answer(status, "text/plain; charset=utf-8", format!("{body}\n"));
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        match path {
            "/healthz" | "/livez" => text(StatusCode::OK, "ok"),
            "/readyz" | "/ready" => match self.connections.count() {
                0 => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "no server is connected; /v1/status says why",
                ),
                _ => text(StatusCode::OK, "ok"),
            },
            "/metrics" => {
                self.own.endpoints(self.dialer.open());
                let (rendered, kind) = self.metrics.render();
                answer(StatusCode::OK, kind, rendered)
            }
            "/v1/status" => answer(StatusCode::OK, "application/json", self.status()),
            _ => text(
                StatusCode::NOT_FOUND,
                "/healthz /readyz /metrics /v1/status",
            ),
        }
    }

    fn status(&self) -> String {
        let credentials = self.kept.current();
        let pair = credentials.pair.as_ref();
        let mut status = self.connections.describe();
        if let Some(status) = status.as_object_mut() {
            status.insert("node".into(), json!(self.node));
            status.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
            status.insert("identifiers".into(), json!(self.identifiers));
            status.insert("ready".into(), json!(self.connections.count() > 0));
            status.insert("openConnections".into(), json!(self.dialer.open()));
            status.insert("allowed".into(), json!(self.list.load().rules()));
            status.insert(
                "certificate".into(),
                json!(pair.map(|pair| json!({
                    "subject": pair.leaf.identity.user, "names": pair.leaf.dns, "addresses": pair.leaf.ips,
                    "notAfter": yurt_pki::renewal::moment(pair.leaf.not_after),
                }))),
            );
        }
        format!("{status:#}\n")
    }
}
