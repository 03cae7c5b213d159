//! The node's life as the cluster sees it, with a link that comes and goes: the heartbeat ([`heartbeat`]), whether the node may be
//! trusted to go on alone ([`Autonomy`], [`condition`]), and pods and a Node that were given up while the link was away
//! ([`resync`]).

pub mod condition;
pub mod heartbeat;
pub mod resync;

use crate::{follow, proxy::Hub};
use bytes::Bytes;
use condition::{Observer, Troubles};
use http::{Method, Request, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use yurt_api::autonomy::Autonomy;
use yurt_wire::Gvr;

/// A disk with less room than this is as good as full.
pub(crate) const LEAST_DISK: u64 = 16 << 20;
/// The longest pause between attempts to write the condition.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How long a write of a status may take, and its answer be.
const WAIT: Duration = Duration::from_secs(30);
const MOST_ANSWER: usize = 4 << 20;

/// Starts everything, where the hub keeps a node alive at all.
pub(crate) fn start(hub: &Arc<Hub>) {
    let Some(heartbeat) = hub.heartbeat.clone() else {
        return;
    };
    let interval = heartbeat.interval();
    hub.tasks.spawn(heartbeat::run(hub.clone(), heartbeat));
    hub.tasks.spawn(keep_condition(hub.clone(), interval));
    hub.tasks.spawn(resync::run(hub.clone(), interval));
}

/// A Time as Kubernetes writes it: seconds.
pub(crate) fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second())
        .unwrap_or_default()
        .to_string()
}

/// The node's own Node as the hub knows it.
pub(crate) fn own_node(hub: &Hub) -> Option<Value> {
    let nodes = Gvr::new("", "v1", "nodes");
    hub.cache
        .view(&nodes, "", &hub.node_name)?
        .to_json_value()
        .ok()
}

/// Free bytes where the cache lies.
pub(crate) fn disk_free(hub: &Hub) -> Option<u64> {
    let stat = rustix::fs::statvfs(&hub.config.cache_dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Keeps the condition `Autonomy` of the Node true.
async fn keep_condition(hub: Arc<Hub>, interval: Duration) {
    let selector = format!("fieldSelector=metadata.name%3D{}", hub.node_name);
    let mut nodes = follow::follow(&hub, "/api/v1/nodes", &selector);
    let mut observer = Observer::new(Troubles::of(hub.cache.stats()));
    let mut look_at = tokio::time::Instant::now() + interval;
    let mut write_at = tokio::time::Instant::now();
    let mut pause = interval;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(look_at) => {
                look_at = tokio::time::Instant::now() + interval;
                let full = disk_free(&hub)
                    .filter(|free| *free < LEAST_DISK)
                    .map(|_| "the disk is full".to_owned());
                observer.look(Troubles::of(hub.cache.stats()), full);
                hub.trouble.send_replace(observer.trouble().map(str::to_owned));
            }
            changed = nodes.changed() => if changed.is_err() {
                return;
            },
            () = hub.shutdown.cancelled() => return,
        }
        let node = nodes
            .borrow_and_update()
            .as_ref()
            .and_then(|nodes| nodes.values().next().cloned());
        let Some(node) = node.and_then(|node| node.to_json_value().ok()) else {
            continue;
        };
        let Some(verdict) = observer.verdict(&Autonomy::of(&node)) else {
            continue;
        };
        let Some(condition) = condition::revise(&node, &verdict, Timestamp::now()) else {
            continue;
        };
        let now = tokio::time::Instant::now();
        // Another writer, or a cloud that refuses, does not make this loop hot; the next look comes.
        if now < write_at {
            continue;
        }
        let patch = json!({"status": {"conditions": [condition]}});
        let path = format!("/api/v1/nodes/{}/status", hub.node_name);
        match patch_status(&hub, &path, &patch).await {
            Ok(()) => {
                tracing::info!(
                    status = verdict.status,
                    message = verdict.message,
                    "condition Autonomy"
                );
                pause = interval;
            }
            Err(why) => {
                tracing::warn!(why, "the condition Autonomy cannot be written");
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        write_at = tokio::time::Instant::now() + pause;
    }
}

/// Writes a status as a component of the node does: to the cloud, or to the node's own view while that is away.
async fn patch_status(hub: &Arc<Hub>, path: &str, patch: &Value) -> Result<(), String> {
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(path)
        .header(
            header::CONTENT_TYPE,
            "application/strategic-merge-patch+json",
        )
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, crate::USER_AGENT)
        .body(Bytes::from(patch.to_string()))
        .map_err(|error| error.to_string())?;
    let asking = async {
        let response = hub.own(request).await;
        let code = response.status();
        let body = yurt_transport::collect(response.into_body(), MOST_ANSWER)
            .await
            .map_err(|error| error.to_string())?;
        if code.is_success() {
            return Ok(());
        }
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = status.get("message").and_then(Value::as_str);
        Err(message.map_or_else(|| code.to_string(), str::to_owned))
    };
    tokio::time::timeout(WAIT, asking)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {WAIT:?}")))
}
