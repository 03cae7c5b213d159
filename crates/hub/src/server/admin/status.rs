//! What the hub sees and counts.

use super::{Admin, answer, debug, json};
use crate::{
    caller::Caller, certificates::CertificateStatus, pool::share::FeedOverview,
    upstream::ServerStatus,
};
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use yurt_transport::Body;

/// `/v1/status`.
pub(super) fn status(admin: &Admin) -> Response<Body> {
    json(&look(admin))
}

/// `/metrics`.
pub(super) fn metrics(admin: &Admin) -> Response<Body> {
    let cache = &admin.hub.cache;
    admin.hub.upstreams.count_connections();
    admin
        .hub
        .metrics
        .sizes(admin.hub.journal.pending(), cache.usage(), cache.stats());
    let (text, content_type) = admin.telemetry.render();
    answer(StatusCode::OK, content_type, text)
}

/// Everything that tells what a hub is at: its status, the runtime, the requests under way by kind, the links' last turns, the
/// settings in force.
pub(super) fn state(admin: &Admin) -> Value {
    let hub = &admin.hub;
    let runtime = tokio::runtime::Handle::current().metrics();
    let (text, _) = admin.telemetry.render();
    let under_way: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with(IN_FLIGHT) && !line.ends_with(" 0"))
        .map(|line| line.strip_prefix(IN_FLIGHT).unwrap_or(line))
        .collect();
    json!({
        "at": jiff::Timestamp::now().to_string(),
        "pid": std::process::id(),
        "status": look(admin),
        "tasks": {
            "hub": hub.tasks.len(),
            "runtime": runtime.num_alive_tasks(),
            "workers": runtime.num_workers(),
            "queued": runtime.global_queue_depth(),
        },
        "inFlight": under_way,
        "links": debug::link_state(hub),
        "cache": hub.cache.overview(),
        "settings": debug::settings_state(hub),
    })
}

/// Before the labels of each kind of request in the metrics.
const IN_FLIGHT: &str = "node_yurthub_in_flight_requests_collector";

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
    certificates: Vec<CertificateStatus>,
    cache: CacheStatus,
    journal: JournalStatus,
    watches: WatchStatus,
    pool: PoolRole,
    /// What is shared within the pool.
    shared: Vec<FeedOverview>,
    in_flight_requests: i64,
}

/// What the node is to its pool; more tells `/v1/pool`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolRole {
    /// `alone`, `leader` or `follower`.
    role: &'static str,
    /// Whom it follows.
    leader: Option<String>,
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

fn look(admin: &Admin) -> HubStatus {
    let hub = &admin.hub;
    let usage = hub.cache.usage();
    let role = hub.role.borrow().clone();
    HubStatus {
        node: hub.node_name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: admin.started.elapsed().as_secs_f64(),
        // Of the node itself: a link is of no use to it without a certificate.
        mode: hub.mode_of(&Caller::Node).as_str(),
        servers: hub.upstreams.status(),
        certificates: hub.certificates.status(),
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
        shared: hub.share.overview(),
        watches: WatchStatus {
            open: hub.metrics.watches().get(),
            local: hub.metrics.watches_local().get(),
            resumed: hub.metrics.watches_resumed().get(),
        },
        pool: PoolRole {
            role: role.as_str(),
            leader: role.leader().map(|peer| peer.node.to_string()),
        },
        in_flight_requests: hub.metrics.in_flight(),
    }
}
