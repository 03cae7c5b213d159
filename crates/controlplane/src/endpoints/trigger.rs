//! When a change came about: the annotation by which programming latency is measured.

use crate::{Key, condition};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// What was known of a service when it was last looked at. Times are RFC 3339 with seconds, which sort as text.
#[derive(Debug, Default)]
struct State {
    pods: HashMap<String, String>,
    service: String,
}

/// The times of all services.
#[derive(Debug, Default)]
pub(super) struct TriggerTimes(Mutex<HashMap<Key, State>>);

impl TriggerTimes {
    /// The earliest change since the last call; at the first, when the service was created.
    pub(super) fn since_last(&self, service: &Value, pods: &[Arc<Value>]) -> Option<String> {
        let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Key::of(service);
        let created = service["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap_or_default();
        let times: HashMap<String, String> = pods
            .iter()
            .filter_map(|pod| {
                let time =
                    condition::find(&pod["status"], "Ready")?["lastTransitionTime"].as_str()?;
                Some((Key::of(pod).name, time.to_owned()))
            })
            .collect();
        let earliest = match services.get(&key) {
            None => Some(created.to_owned()),
            Some(state) => {
                let newer = |pod: &String, time: &String| {
                    state.pods.get(pod).is_none_or(|before| time > before)
                };
                let pods = times
                    .iter()
                    .filter(|(pod, time)| newer(pod, time))
                    .map(|(_, time)| time.as_str());
                let service = (created > state.service.as_str()).then_some(created);
                pods.chain(service).min().map(str::to_owned)
            }
        };
        let state = State {
            pods: times,
            service: created.to_owned(),
        };
        services.insert(key, state);
        earliest.filter(|time| !time.is_empty())
    }

    /// The service is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_earliest_change_since_the_last_look_counts() {
        let pod = |name: &str, second: u8| {
            Arc::new(
                json!({"metadata": {"name": name}, "status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": format!("2026-01-01T00:00:{second:02}Z")}]}}),
            )
        };
        let service = json!({"metadata": {"name": "s", "namespace": "d", "creationTimestamp": "2026-01-01T00:00:05Z"}});
        let times = TriggerTimes::default();
        let at = |second: u8| Some(format!("2026-01-01T00:00:{second:02}Z"));
        assert_eq!(
            times.since_last(&service, &[pod("a", 1)]),
            at(5),
            "first seen: since it exists"
        );
        assert_eq!(times.since_last(&service, &[pod("a", 1)]), None);
        assert_eq!(
            times.since_last(&service, &[pod("a", 9), pod("b", 8)]),
            at(8)
        );
        times.forget(&Key::new("d", "s"));
        assert_eq!(times.since_last(&service, &[pod("a", 9)]), at(5));
    }
}
