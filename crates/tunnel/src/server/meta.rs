//! Pages: metrics, health, status, explanations.

use super::{process::way, switchboard::Switchboard};
use crate::{
    certificates::Kept,
    frontend::Page,
    status::{Explanation, ServerStatus, explain, target},
};
use futures_util::{StreamExt, future::BoxFuture, stream};
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use jiff::Timestamp;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_telemetry::Metrics;
use yurt_transport::{Body, full};

/// How long other instances may take to explain.
const OTHERS: Duration = Duration::from_secs(3);
/// Instances that are asked at a time.
const AT_A_TIME: usize = 8;

/// What can be asked of a server.
#[derive(Debug)]
pub(super) struct Pages {
    id: String,
    switchboard: Arc<Switchboard>,
    count: Arc<AtomicU32>,
    draining: CancellationToken,
    since: String,
    /// What is shown to other instances.
    client: (Kept, Option<String>),
}

fn json(value: &impl serde::Serialize) -> (StatusCode, String) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => (StatusCode::OK, text + "\n"),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

impl Pages {
    pub(super) fn new(
        id: String,
        switchboard: Arc<Switchboard>,
        count: Arc<AtomicU32>,
        draining: CancellationToken,
        client: (Kept, Option<String>),
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            switchboard,
            count,
            draining,
            since: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            client,
        })
    }

    /// The pages that frontends are given.
    pub(super) fn page(self: Arc<Self>) -> Page {
        Box::new(move |path| -> BoxFuture<'static, _> {
            let (pages, path) = (self.clone(), path.to_owned());
            Box::pin(async move { pages.find(&path).await })
        })
    }

    async fn find(&self, path: &str) -> Option<(StatusCode, String)> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        match path {
            "/healthz" | "/livez" => Some((StatusCode::OK, "ok".into())),
            "/readyz" | "/ready" => Some(self.ready()),
            "/v1/status" => Some(json(&self.status())),
            "/v1/explain" => Some(self.explain(query).await),
            _ => None,
        }
    }

    /// Ready is who can reach something: konnectivity's rule, and who does not stop.
    fn ready(&self) -> (StatusCode, String) {
        let registry = self.switchboard.registry();
        let trouble = if self.draining.is_cancelled() {
            "draining"
        } else if registry.is_empty() && self.switchboard.peers().connected() == 0 {
            "no agent is connected"
        } else {
            return (StatusCode::OK, "ok".into());
        };
        (StatusCode::INTERNAL_SERVER_ERROR, trouble.into())
    }

    fn status(&self) -> ServerStatus {
        let ways = self.switchboard.ways();
        ServerStatus {
            id: self.id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            since: self.since.clone(),
            draining: self.draining.is_cancelled(),
            count: self.count.load(Ordering::Relaxed),
            strategies: ways.strategies.iter().map(ToString::to_string).collect(),
            direct: ways.direct.to_string(),
            connections: self.switchboard.connections(),
            agents: self.switchboard.registry().agents(),
            peers: self.switchboard.peers().status(),
        }
    }

    async fn explain(&self, query: &str) -> (StatusCode, String) {
        let mut asked = None;
        let mut alone = false;
        for (key, value) in yurt_wire::request::query_pairs(query) {
            match key.as_str() {
                "target" => asked = target(&value),
                "alone" => alone = value == "true",
                _ => {}
            }
        }
        let Some(to) = asked else {
            let why = "target=NODE, ADDRESS or HOST:PORT is missing or wrong\n";
            return (StatusCode::BAD_REQUEST, why.into());
        };
        let ours = explain(&self.switchboard, &self.id, &to);
        if alone {
            return json(&ours);
        }
        let wanted = to.to_string();
        let path = format!(
            "/v1/explain?alone=true&target={}",
            yurt_wire::request::encode_query_value(&wanted)
        );
        let asking = self.switchboard.peers().status().into_iter().map(|peer| {
            let (path, wanted) = (&path, &wanted);
            async move {
                let asked = tokio::time::timeout(OTHERS, self.other(&peer.address, path)).await;
                let said = asked.unwrap_or_else(|_| Err(format!("no answer in {OTHERS:?}")));
                said.unwrap_or_else(|why| Explanation {
                    target: wanted.clone(),
                    instance: peer.address.clone(),
                    by: "nobody".into(),
                    verdict: why,
                    findings: Vec::new(),
                    direct: Vec::new(),
                    missing: Vec::new(),
                    remembered: None,
                    peers: Vec::new(),
                })
            }
        });
        // Boxed, else the compiler asks too much of the borrow.
        let asking: Vec<BoxFuture<'_, Explanation>> = asking
            .map(|one| Box::pin(one) as BoxFuture<'_, _>)
            .collect();
        let said = stream::iter(asking).buffered(AT_A_TIME).collect().await;
        json(&ours.with_peers(said))
    }

    /// What another instance explains.
    async fn other(&self, address: &str, path: &str) -> Result<Explanation, String> {
        let (client, name) = &self.client;
        let way = way(client, name.as_deref(), address, &[b"http/1.1"])?;
        let (status, text) = way.get(path).await.map_err(|error| error.to_string())?;
        if status != StatusCode::OK {
            return Err(format!("{status}: {}", text.trim()));
        }
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// The port for people and scrapers.
    pub(super) async fn answer(
        self: Arc<Self>,
        metrics: Metrics,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let (status, kind, text) = if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            (status, "text/plain", "GET only".to_owned())
        } else if path == "/metrics" {
            let (text, kind) = metrics.render();
            (StatusCode::OK, kind, text)
        } else {
            match self.find(path).await {
                Some((status, text)) if text.starts_with('{') => (status, "application/json", text),
                Some((status, text)) => (status, "text/plain", text),
                None => (
                    StatusCode::NOT_FOUND,
                    "text/plain",
                    "there are /healthz, /readyz, /metrics, /v1/status and /v1/explain?target=\n"
                        .to_owned(),
                ),
            }
        };
        let mut response = Response::new(full(text));
        *response.status_mut() = status;
        if let Ok(kind) = kind.parse() {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        response
    }
}
