//! Whether a node still reports, by its heartbeats and its lease. Pure.

use crate::{
    condition,
    pod::{instant, stamp},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// The conditions that a silent node does not vouch for any more.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// How often nodes are looked at, and how long they may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How often nodes are looked at.
    pub period: Duration,
    /// How long a node may be silent until it counts as not ready.
    pub grace: Duration,
    /// The same for a node that has only just registered.
    pub startup_grace: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(5),
            grace: Duration::from_secs(50),
            startup_grace: Duration::from_secs(60),
        }
    }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    fn of(condition: &Value) -> Self {
        match condition["status"].as_str() {
            Some("True") => Self::True,
            Some("False") => Self::False,
            _ => Self::Unknown,
        }
    }
}

/// When a node was last heard of. Times are this controller's, so that clocks need not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Health {
    /// The last heartbeat of the Ready condition, as the node wrote it.
    heartbeat: Option<String>,
    /// The last renewal of the lease, as the node wrote it.
    renewal: Option<String>,
    /// When one of the two last moved.
    heard: Timestamp,
}

impl Health {
    /// The silence begins anew: nobody was heard because it was us who could not hear.
    pub(super) fn pardon(&mut self, now: Timestamp) {
        self.heard = now;
    }
}

/// What a look at a node shows.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    /// Its readiness as it was reported.
    pub(super) observed: Status,
    /// Its readiness as it counts.
    pub(super) current: Status,
    /// Conditions to write, because the node has been silent for too long.
    pub(super) write: Vec<Value>,
}

/// Looks at a node. `health` is what the last look left (`None` at the first), `renewal` its lease's renewTime.
pub(super) fn look(
    health: &mut Option<Health>,
    node: &Value,
    renewal: Option<&str>,
    times: &Times,
    now: Timestamp,
) -> Verdict {
    let status = &node["status"];
    let ready = condition::find(status, "Ready");
    let created = instant(&node["metadata"]["creationTimestamp"]).unwrap_or(now);
    let heartbeat = ready.map(|ready| {
        ready["lastHeartbeatTime"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    });
    let (observed, grace) = match ready {
        Some(ready) => (Status::of(ready), times.grace),
        None => (Status::Unknown, times.startup_grace),
    };
    let health = health.get_or_insert_with(|| Health {
        heartbeat: heartbeat.clone(),
        renewal: None,
        heard: if ready.is_some() { now } else { created },
    });
    if heartbeat.is_some() && health.heartbeat != heartbeat {
        health.heard = now;
    }
    health.heartbeat = heartbeat;
    // Renewals are written with a fixed number of digits: later ones sort behind.
    if let Some(renewal) = renewal
        && health
            .renewal
            .as_deref()
            .is_none_or(|known| known < renewal)
    {
        health.heard = now;
        health.renewal = Some(renewal.to_owned());
    }
    let silent = now.duration_since(health.heard);
    if silent <= grace.try_into().unwrap_or(jiff::SignedDuration::MAX) {
        return Verdict {
            observed,
            current: observed,
            write: Vec::new(),
        };
    }
    let write = VOUCHED
        .iter()
        .filter_map(|kind| unknown(status, kind, node, now))
        .collect();
    Verdict {
        observed,
        current: Status::Unknown,
        write,
    }
}

/// The condition of a silent node, unless it says so already.
fn unknown(status: &Value, kind: &str, node: &Value, now: Timestamp) -> Option<Value> {
    let Some(known) = condition::find(status, kind) else {
        return Some(
            json!({"type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
            "message": "Kubelet never posted node status.",
            "lastHeartbeatTime": node["metadata"]["creationTimestamp"], "lastTransitionTime": stamp(now)}),
        );
    };
    if known["status"] == "Unknown" {
        return None;
    }
    Some(
        json!({"type": kind, "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.",
        "lastHeartbeatTime": known["lastHeartbeatTime"], "lastTransitionTime": stamp(now)}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn node(heartbeat: &str) -> Value {
        json!({"metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:00:00Z"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat},
            {"type": "DiskPressure", "status": "Unknown"}, {"type": "NetworkUnavailable", "status": "False"}]}})
    }

    #[test]
    fn a_node_that_falls_silent_becomes_unknown_after_the_grace_period() {
        let times = Times::default();
        let mut health = None;
        let mut seen = |heartbeat: &str, renewal: Option<&str>, second: i64| {
            look(&mut health, &node(heartbeat), renewal, &times, at(second))
        };
        assert_eq!(
            seen("a", None, 1000).current,
            Status::True,
            "the first look starts the clock"
        );
        assert_eq!(seen("a", None, 1050).current, Status::True);
        let silent = seen("a", None, 1051);
        assert_eq!(
            (silent.observed, silent.current),
            (Status::True, Status::Unknown)
        );
        let written: Vec<(&Value, &Value)> = silent
            .write
            .iter()
            .map(|c| (&c["type"], &c["reason"]))
            .collect();
        assert_eq!(
            written,
            [
                (&json!("Ready"), &json!("NodeStatusUnknown")),
                (&json!("MemoryPressure"), &json!("NodeStatusNeverUpdated")),
                (&json!("PIDPressure"), &json!("NodeStatusNeverUpdated")),
            ]
        );
        assert_eq!(silent.write[0]["lastHeartbeatTime"], "a");
        assert_eq!(seen("b", None, 1052).current, Status::True, "a heartbeat");
        assert_eq!(
            seen("b", Some("1"), 1102).current,
            Status::True,
            "a renewal"
        );
        assert_eq!(seen("b", Some("1"), 1152).current, Status::True);
        assert_eq!(seen("b", Some("1"), 1153).current, Status::Unknown);
    }

    #[test]
    fn a_node_that_never_reported_has_its_startup_grace() {
        let new = json!({"metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:10:00Z"}});
        let mut health = None;
        let times = Times::default();
        let early = look(&mut health, &new, None, &times, at(660));
        assert_eq!((early.current, early.write.len()), (Status::Unknown, 0));
        let late = look(&mut health, &new, None, &times, at(661));
        assert_eq!(late.write.len(), 4);
        assert!(
            late.write
                .iter()
                .all(|c| c["message"] == "Kubelet never posted node status.")
        );
    }

    #[test]
    fn after_a_pardon_the_clock_starts_again() {
        let times = Times::default();
        let mut health = None;
        look(&mut health, &node("a"), None, &times, at(0));
        health.as_mut().expect("known").pardon(at(100));
        assert_eq!(
            look(&mut health, &node("a"), None, &times, at(150)).current,
            Status::True
        );
    }
}
