//! Pods: those that need a container network stay off pools that have none.

use serde_json::{Value, json};
use yurt_api::names::{annotations::EXCLUDE_HOST_NETWORK_POOL, labels::HOST_NETWORK};

/// What is made of a new pod.
pub(super) fn completed(mut pod: Value) -> Value {
    let asks = pod["metadata"]["annotations"].get(EXCLUDE_HOST_NETWORK_POOL);
    if asks.is_none_or(|asks| asks != "true") || !pod["spec"].is_object() {
        return pod;
    }
    let mut at = &mut pod["spec"];
    for field in [
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
    ] {
        at = &mut at[field];
        match at {
            Value::Object(_) => {}
            Value::Null => *at = json!({}),
            // The API server refuses it.
            _ => return pod,
        }
    }
    let terms = &mut at["nodeSelectorTerms"];
    if terms.as_array().is_none_or(Vec::is_empty) {
        *terms = json!([{}]);
    }
    let off = json!({"key": HOST_NETWORK, "operator": "NotIn", "values": ["true"]});
    for term in terms.as_array_mut().into_iter().flatten() {
        if !term.is_object() {
            continue;
        }
        match term["matchExpressions"].as_array_mut() {
            Some(known) if known.contains(&off) => {}
            Some(known) => known.push(off.clone()),
            None => term["matchExpressions"] = json!([off]),
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(asks: &str, affinity: Value) -> Value {
        json!({"metadata": {"annotations": {EXCLUDE_HOST_NETWORK_POOL: asks}}, "spec": {"affinity": affinity}})
    }

    fn terms(pod: &Value) -> &Value {
        &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    }

    #[test]
    fn a_pod_that_asks_stays_off_host_network_pools() {
        let off = json!({"key": HOST_NETWORK, "operator": "NotIn", "values": ["true"]});
        let bare = completed(pod("true", Value::Null));
        assert_eq!(terms(&bare), &json!([{"matchExpressions": [off]}]));
        assert_eq!(completed(bare.clone()), bare, "once is enough");
        let own = json!({"key": "a", "operator": "Exists"});
        let two = json!({"podAffinity": {}, "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [own]}, {"matchFields": [own]}]}}});
        let two = completed(pod("true", two));
        assert_eq!(
            terms(&two),
            &json!([{"matchExpressions": [own, off]}, {"matchFields": [own], "matchExpressions": [off]}])
        );
    }

    #[test]
    fn others_are_left_alone() {
        for asks in ["false", "", "True"] {
            let pod = pod(asks, Value::Null);
            assert_eq!(completed(pod.clone()), pod);
        }
        for odd in [
            json!({}),
            json!({"metadata": {}, "spec": {}}),
            pod("true", json!("x")),
        ] {
            assert_eq!(completed(odd.clone()), odd);
        }
    }
}
