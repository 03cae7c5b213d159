//! What a Node and its lease tell together. Pure.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::{collections::HashMap, time::Duration};
use yurt_api::names::{annotations, labels};
use yurt_controller::condition;

/// How a node stands to the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Link {
    /// It says itself that it is ready.
    Ready,
    /// It is cut off, and the leader of its pool says that it lives.
    CutOff,
    /// It says itself that it is not ready.
    NotReady,
    /// Nobody has heard of it.
    Silent,
}

impl Link {
    /// As the Node and its lease have it.
    pub(crate) fn of(node: &Value, lease: Option<&Value>) -> Self {
        if lease.is_some_and(is_delegated) {
            return Self::CutOff;
        }
        let ready = condition::find(&node["status"], "Ready").map(|ready| &ready["status"]);
        match ready.and_then(Value::as_str) {
            Some("True") => Self::Ready,
            Some("False") => Self::NotReady,
            _ => Self::Silent,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::CutOff => "CutOff",
            Self::NotReady => "NotReady",
            Self::Silent => "Silent",
        }
    }
}

/// Whether another renewed a lease.
pub(crate) fn is_delegated(lease: &Value) -> bool {
    lease["metadata"]["annotations"][annotations::DELEGATE_HEARTBEAT] == "true"
}

/// How long ago a time of the API was; nothing where there is none.
pub(crate) fn ago(time: &Value, now: Timestamp) -> Option<Duration> {
    let time: Timestamp = time.as_str()?.parse().ok()?;
    // A clock that is behind the cluster's makes nothing negative.
    Some(Duration::try_from(now.duration_since(time)).unwrap_or_default())
}

/// Leases of nodes, by name.
pub(crate) type Leases = HashMap<String, Value>;

pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

pub(crate) fn label<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    object["metadata"]["labels"][key]
        .as_str()
        .filter(|value| !value.is_empty())
}

pub(crate) fn annotation<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    object["metadata"]["annotations"][key].as_str()
}

/// The pool that a node says it is in.
pub(crate) fn pool(node: &Value) -> Option<&str> {
    label(node, labels::NODE_POOL)
}

/// The nodes that lead a pool.
pub(crate) fn leaders(pool: &Value) -> Vec<String> {
    let leaders = pool["status"]["leaderEndpoints"]
        .as_array()
        .into_iter()
        .flatten();
    leaders
        .filter_map(|leader| leader["nodeName"].as_str().map(str::to_owned))
        .collect()
}
