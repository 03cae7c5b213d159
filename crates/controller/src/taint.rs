//! Taints of nodes and the tolerations of pods.

use crate::kube::KubeError;
use crate::{
    Context, Key,
    collections::NODES,
    fields::{items, text},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// How often a write is tried on a fresh node.
const TRIES: usize = 5;

/// Kubernetes\' taint `disk-pressure`.
pub const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
/// Kubernetes\' taint `memory-pressure`.
pub const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
/// Kubernetes\' taint `network-unavailable`.
pub const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
/// Kubernetes\' taint `not-ready`.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Kubernetes\' taint `pid-pressure`.
pub const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
/// Kubernetes\' taint `unreachable`.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Kubernetes\' taint `unschedulable`.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, or empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl Taint {
    fn parse(taint: &Value) -> Self {
        Self {
            key: text(&taint["key"]),
            value: text(&taint["value"]),
            effect: text(&taint["effect"]),
        }
    }

    /// The taints of a node.
    pub fn of(node: &Value) -> Vec<Self> {
        items(&node["spec"]["taints"]).map(Self::parse).collect()
    }

    /// Whether it keeps pods away that do not tolerate it.
    pub fn keeps_away(&self) -> bool {
        matches!(self.effect.as_str(), "NoSchedule" | "NoExecute")
    }
}

/// How a toleration compares values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    Exists,
    /// One that is not known: it tolerates nothing.
    Other,
}

/// A toleration of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    key: String,
    operator: Operator,
    value: String,
    effect: String,
    /// How long a NoExecute taint is tolerated, if not forever.
    pub period: Option<Duration>,
}

impl Toleration {
    fn parse(toleration: &Value) -> Self {
        let seconds = toleration["tolerationSeconds"].as_i64();
        Self {
            key: text(&toleration["key"]),
            operator: match toleration["operator"].as_str() {
                None | Some("" | "Equal") => Operator::Equal,
                Some("Exists") => Operator::Exists,
                Some(_) => Operator::Other,
            },
            value: text(&toleration["value"]),
            effect: text(&toleration["effect"]),
            period: seconds.map(|seconds| Duration::from_secs(seconds.max(0).unsigned_abs())),
        }
    }

    /// The tolerations of a pod's spec.
    pub fn of(spec: &Value) -> Vec<Self> {
        items(&spec["tolerations"]).map(Self::parse).collect()
    }

    /// Whether it is about this taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let key = match self.operator {
            Operator::Equal => self.key == taint.key && self.value == taint.value,
            Operator::Exists => self.key.is_empty() || self.key == taint.key,
            Operator::Other => false,
        };
        key && (self.effect.is_empty() || self.effect == taint.effect)
    }
}

/// The taints of a node as they are written.
pub fn taints(node: &Value) -> Vec<Value> {
    items(&node["spec"]["taints"]).cloned().collect()
}

/// Whether it is this taint.
pub fn is(taint: &Value, key: &str, effect: &str) -> bool {
    taint["key"] == key && taint["effect"] == effect
}

/// Whether a node has a taint.
pub fn has(node: &Value, key: &str, effect: &str) -> bool {
    items(&node["spec"]["taints"]).any(|taint| is(taint, key, effect))
}

/// Writes the taints that `wanted` says for the node, on a fresh one when somebody else wrote meanwhile.
pub async fn write(
    context: &Context,
    node: &Arc<Value>,
    wanted: impl Fn(&Value) -> Option<Vec<Value>>,
) -> Result<(), KubeError> {
    let key = Key::of(node);
    let mut node = node.clone();
    for _ in 0..TRIES {
        let Some(taints) = wanted(&node) else {
            return Ok(());
        };
        // The key in front keeps the list from being merged by key: it is one list, written by one.
        let patch = json!({"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": taints}});
        match context.merge(&NODES, &key, "", &patch).await {
            Err(error) if error.code() == Some(409) => {
                node = Arc::new(context.kube().get(&NODES.object_path(&key)).await?);
            }
            Err(error) if error.code() == Some(404) => return Ok(()),
            other => return other.map(drop),
        }
    }
    // The next look comes soon.
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations_match_by_operator_value_and_effect() {
        let taint = Taint::parse(&json!({"key": "a", "value": "v", "effect": "NoExecute"}));
        for (toleration, tolerates) in [
            (json!({"key": "a", "value": "v"}), true),
            (json!({"key": "a", "value": "w"}), false),
            (json!({"key": "a", "operator": "Equal", "value": "v"}), true),
            (json!({"key": "a", "operator": "Exists"}), true),
            (json!({"key": "b", "operator": "Exists"}), false),
            (json!({"operator": "Exists"}), true),
            (
                json!({"key": "a", "operator": "Exists", "effect": "NoSchedule"}),
                false,
            ),
            // An empty key with Equal matches nothing.
            (json!({"value": "v"}), false),
            (json!({"key": "a", "operator": "Near", "value": "v"}), false),
        ] {
            let parsed = Toleration::parse(&toleration);
            assert_eq!(parsed.tolerates(&taint), tolerates, "{toleration}");
        }
    }
}
