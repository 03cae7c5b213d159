//! The admin endpoints: is it alive, is it ready, what does it see, what did it count.

use crate::{proxy::Hub, route::Mode, upstream::ServerStatus};
use http::{Method, Request, Response, StatusCode, header};
use serde::Serialize;
use std::{sync::Arc, time::Instant};
use yurt_transport::Body;

/// Serves the admin endpoints.
#[derive(Debug)]
pub struct Admin {
    hub: Arc<Hub>,
    telemetry: yurt_telemetry::Metrics,
    started: Instant,
}

/// The body of `/v1/status`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HubStatus {
    node: String,
    version: &'static str,
    uptime_seconds: f64,
    /// `online` or `offline`.
    mode: &'static str,
    servers: Vec<ServerStatus>,
    cache: CacheStatus,
    journal: JournalStatus,
    watches: WatchStatus,
    in_flight_requests: i64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CacheStatus {
    objects: usize,
    records: u64,
    live_bytes: u64,
    disk_bytes: u64,
    corrupt_records: u64,
    read_errors: u64,
    write_errors: u64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct JournalStatus {
    pending: usize,
    replayed: u64,
    dropped: u64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WatchStatus {
    open: i64,
    local: i64,
    resumed: u64,
}

impl Admin {
    /// Of a hub.
    pub fn new(hub: Arc<Hub>, telemetry: yurt_telemetry::Metrics) -> Self {
        Self {
            hub,
            telemetry,
            started: Instant::now(),
        }
    }

    /// Answers one request.
    pub fn handle<B>(&self, request: &Request<B>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return answer(
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain",
                "only GET is served here\n",
            );
        }
        match request.uri().path() {
            // yurtadm compares the body.
            "/v1/healthz" => answer(StatusCode::OK, "text/plain", "OK"),
            // Autonomy must not end with the link or a certificate: what is served here needs neither, and everything else
            // was opened before the listener.
            "/v1/readyz" => answer(StatusCode::OK, "text/plain", "OK"),
            "/metrics" => {
                let cache = &self.hub.cache;
                self.hub
                    .metrics
                    .sizes(self.hub.journal.pending(), cache.usage(), cache.stats());
                let (text, content_type) = self.telemetry.render();
                answer(StatusCode::OK, content_type, text)
            }
            "/v1/status" => match serde_json::to_vec_pretty(&self.status()) {
                Ok(mut body) => {
                    body.push(b'\n');
                    answer(StatusCode::OK, "application/json", body)
                }
                Err(error) => answer(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "text/plain",
                    error.to_string(),
                ),
            },
            _ => answer(
                StatusCode::NOT_FOUND,
                "text/plain",
                "there are /v1/healthz, /v1/readyz, /v1/status and /metrics\n",
            ),
        }
    }

    fn status(&self) -> HubStatus {
        let hub = &self.hub;
        let usage = hub.cache.usage();
        HubStatus {
            node: hub.node_name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            mode: match hub.mode() {
                Mode::Online => "online",
                Mode::Offline => "offline",
            },
            servers: hub.upstreams.status(),
            cache: CacheStatus {
                objects: hub.cache.object_count(),
                records: usage.records,
                live_bytes: usage.live_bytes,
                disk_bytes: usage.disk_bytes,
                corrupt_records: hub.cache.stats().corrupt.get(),
                read_errors: hub.cache.stats().read_errors.get(),
                write_errors: hub.cache.stats().write_errors.get(),
            },
            journal: JournalStatus {
                pending: hub.journal.pending(),
                replayed: hub.journal.replayed(),
                dropped: hub.journal.dropped(),
            },
            watches: WatchStatus {
                open: hub.metrics.watches().get(),
                local: hub.metrics.watches_local().get(),
                resumed: hub.metrics.watches_resumed().get(),
            },
            in_flight_requests: hub.metrics.in_flight(),
        }
    }
}

fn answer(status: StatusCode, content_type: &str, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(yurt_transport::full(body));
    *response.status_mut() = status;
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}
