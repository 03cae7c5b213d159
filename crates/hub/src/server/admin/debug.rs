//! What somebody needs who asks why the hub does what it does.

use super::{Ask, answer, json, refuse};
use crate::{
    proxy::Hub,
    upstream::{ServerStatus, Turn},
};
use http::{Method, Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use std::net::IpAddr;
use yurt_telemetry::LogFilterError;
use yurt_transport::Body;

/// `/debug/loglevel`: the log filter in force as text; `PUT` puts the body in its place.
pub(super) fn log_level(ask: &Ask) -> Response<Body> {
    if ask.method == Method::PUT {
        let text = String::from_utf8_lossy(&ask.body);
        if let Err(error) = yurt_telemetry::set_log_filter(&text) {
            let status = match error {
                LogFilterError::Malformed { .. } => StatusCode::BAD_REQUEST,
                LogFilterError::NotSetUp => StatusCode::NOT_IMPLEMENTED,
            };
            return refuse(status, format!("{error}\n"));
        }
        let by = ask.peer.as_ref().map(|peer| peer.addr);
        tracing::info!(filter = text.trim(), ?by, "log level changed");
    }
    let filter = yurt_telemetry::log_filter().unwrap_or_default();
    answer(StatusCode::OK, "text/plain", filter + "\n")
}

/// `/debug/link`.
pub(super) fn links(hub: &Hub) -> Response<Body> {
    json(&link_state(hub))
}

/// Every API server, and how its link turned lately.
pub(super) fn link_state(hub: &Hub) -> Value {
    #[derive(Serialize)]
    struct Link {
        #[serde(flatten)]
        status: ServerStatus,
        turns: Vec<Turn>,
    }
    let links = hub.upstreams.history().into_iter();
    let links: Vec<Link> = links
        .map(|(status, turns)| Link { status, turns })
        .collect();
    json!({ "mode": hub.mode().as_str(), "servers": links })
}

/// `/debug/cache`: what the node knows, in numbers.
pub(super) fn cache(hub: &Hub) -> Response<Body> {
    json(&hub.cache.overview())
}

/// `/debug/settings`.
pub(super) fn settings(hub: &Hub) -> Response<Body> {
    json(&settings_state(hub))
}

/// What flags, config maps and the Node say, as it is in force.
pub(super) fn settings_state(hub: &Hub) -> Value {
    let settings = hub.settings.borrow().clone();
    let path = |gvr: &yurt_wire::Gvr| format!("{}/{}/{}", gvr.group, gvr.version, gvr.resource);
    let addresses = |named: &[(String, IpAddr)]| -> Vec<String> {
        let named = named.iter();
        named.map(|(node, ip)| format!("{node}/{ip}")).collect()
    };
    json!({
        "pool": settings.pool,
        "cacheAgents": settings.cache_agents,
        "filters": settings.filters,
        "poolScope": settings.pool_scope.iter().map(path).collect::<Vec<_>>(),
        "leaders": addresses(&settings.leaders),
        "candidates": addresses(&settings.candidates),
        "leaderElection": settings.leader_election,
        "interConnectivity": settings.inter_connectivity,
    })
}

/// `/debug/filters`: which are in force, in order, for whom, and what they know.
pub(super) fn filters(hub: &Hub) -> Response<Body> {
    json(&hub.filters.force().borrow().shown())
}
