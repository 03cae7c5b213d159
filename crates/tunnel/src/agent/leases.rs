//! How many servers there are, by the leases that konnectivity's servers (and ours) hold.

use super::connector::Connections;
use crate::cluster::Cluster;
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

/// The label of servers' leases.
const LABEL: &str = "k8s-app%3Dkonnectivity-server";
/// Half of what a lease is renewed in.
const LOOK: Duration = Duration::from_secs(15);

/// Leases of a list that are held at `now`; konnectivity counts so.
fn held(list: &Value, now: Timestamp) -> u32 {
    let leases = list["items"].as_array().into_iter().flatten();
    let is_held = |lease: &&Value| {
        let spec = &lease["spec"];
        let time = spec["renewTime"].as_str().or(spec["acquireTime"].as_str());
        let renewed = time.and_then(|text| text.parse::<Timestamp>().ok());
        let seconds = spec["leaseDurationSeconds"].as_i64().unwrap_or(0);
        renewed.is_some_and(|renewed| renewed.as_second().saturating_add(seconds) > now.as_second())
    };
    u32::try_from(leases.filter(is_held).count()).unwrap_or(u32::MAX)
}

/// Counts again and again. What cannot be counted is left as it was.
pub(super) async fn count(cluster: Cluster, namespace: String, connections: Connections) {
    let path =
        format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases?labelSelector={LABEL}");
    loop {
        if let Ok(kube) = cluster.client() {
            match kube.get(&path).await {
                Ok(list) => connections.set_leases(held(&list, Timestamp::now())),
                Err(error) => tracing::debug!(%error, "servers' leases are not counted"),
            }
        }
        tokio::time::sleep(LOOK.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn leases_count_while_they_are_held() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let list = json!({"items": [
            {"spec": {"renewTime": "2026-01-01T00:00:45.5Z", "leaseDurationSeconds": 30}},
            {"spec": {"acquireTime": "2026-01-01T00:00:50Z", "leaseDurationSeconds": 30}},
            {"spec": {"renewTime": "2026-01-01T00:00:15Z", "leaseDurationSeconds": 30}},
            {"spec": {"renewTime": "x", "leaseDurationSeconds": 30}}, {}]});
        assert_eq!(held(&list, now), 2);
        assert_eq!(held(&Value::Null, now), 0);
    }
}
