//! Pods as their controllers see them.

use crate::condition;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// `status.phase`.
pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// Whether it ended, well or not.
pub fn is_finished(pod: &Value) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether its deletion has begun.
pub fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Whether it counts as a replica: neither finished nor being deleted.
pub fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

/// Whether it is being deleted and still runs.
pub fn is_terminating(pod: &Value) -> bool {
    !is_finished(pod) && is_deleting(pod)
}

/// Whether its condition `Ready` holds.
pub fn is_ready(pod: &Value) -> bool {
    condition::holds(&pod["status"], "Ready")
}

/// Since when it is ready.
pub fn ready_since(pod: &Value) -> Option<Timestamp> {
    let ready = condition::find(&pod["status"], "Ready").filter(|c| c["status"] == "True")?;
    instant(&ready["lastTransitionTime"])
}

/// In how long it will have been ready for `min_ready` seconds: zero when it is available now, `None` when it is not ready.
pub fn available_in(pod: &Value, min_ready: i64, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready <= 0 {
        return Some(Duration::ZERO);
    }
    let since = ready_since(pod)?;
    let left = since.as_second().saturating_add(min_ready) - now.as_second();
    Some(Duration::from_secs(left.max(0).unsigned_abs()))
}

/// Whether it has been ready for `min_ready` seconds.
pub fn is_available(pod: &Value, min_ready: i64, now: Timestamp) -> bool {
    available_in(pod, min_ready, now).is_some_and(|left| left.is_zero())
}

/// When the next of these pods becomes available, if one waits for that.
pub fn next_available<'p>(
    pods: impl IntoIterator<Item = &'p Value>,
    min_ready: i64,
    now: Timestamp,
) -> Option<Duration> {
    let waits = pods
        .into_iter()
        .filter_map(|pod| available_in(pod, min_ready, now));
    waits.filter(|left| !left.is_zero()).min()
}

/// The node it is bound to, or `""`.
pub fn node(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

/// A `metav1.Time`.
pub fn instant(time: &Value) -> Option<Timestamp> {
    time.as_str()?.parse().ok()
}

/// As `metav1.Time` is written: whole seconds.
pub fn stamp(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second())
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}

/// A pod of a template for the controller `owner` (an owner reference), with a generated name.
pub fn from_template(template: &Value, owner: &Value, namespace: &str) -> Value {
    let mut metadata = json!({"namespace": namespace, "ownerReferences": [owner]});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let name = owner["name"].as_str().unwrap_or_default();
    // The dash is left out where it would make the prefix longer than a name may be.
    let dash = if name.len() < 253 { "-" } else { "" };
    metadata["generateName"] = format!("{name}{dash}").into();
    json!({"metadata": metadata, "spec": template["spec"]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready_pod(since: &str) -> Value {
        json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": since}]}})
    }

    #[test]
    fn a_pod_is_available_after_it_was_ready_for_long_enough() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let pod = ready_pod("2026-01-01T00:00:00Z");
        assert!(is_available(&pod, 0, now));
        assert!(is_available(&pod, 10, now));
        assert!(!is_available(&pod, 11, now));
        assert_eq!(available_in(&pod, 15, now), Some(Duration::from_secs(5)));
        assert_eq!(
            next_available([&pod, &json!({})], 15, now),
            Some(Duration::from_secs(5))
        );
        assert_eq!(next_available([&pod], 10, now), None);
        assert_eq!(available_in(&json!({}), 0, now), None);
    }

    #[test]
    fn a_pod_has_what_its_template_says_and_its_owner() {
        let template = json!({"metadata": {"labels": {"a": "b"}, "name": "ignored"}, "spec": {"nodeName": "n"}});
        let pod = from_template(&template, &json!({"name": "web-5d", "uid": "u"}), "default");
        assert_eq!(
            pod,
            json!({"metadata": {"namespace": "default", "generateName": "web-5d-", "labels": {"a": "b"},
                "ownerReferences": [{"name": "web-5d", "uid": "u"}]}, "spec": {"nodeName": "n"}})
        );
    }
}
