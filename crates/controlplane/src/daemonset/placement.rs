//! Which nodes take a daemon, and how its pod is bound to one.

use crate::{
    fields::{items, labels, text},
    node_affinity::RequiredNodes,
    taint::{self, Taint, Toleration},
};
use serde_json::{Value, json};

/// The field by which a pod of a daemon set names its node; the scheduler does the rest.
const NODE_NAME: &str = "metadata.name";

/// What a node means for a daemon set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// A daemon is started there.
    pub(super) starts: bool,
    /// One that runs there stays.
    pub(super) stays: bool,
}

pub(super) fn judge(set: &Value, node: &Value) -> Verdict {
    let never = Verdict {
        starts: false,
        stays: false,
    };
    let spec = &set["spec"]["template"]["spec"];
    let name = text(&node["metadata"]["name"]);
    let wanted = text(&spec["nodeName"]);
    let labels = labels(&node["metadata"]["labels"]);
    if (!wanted.is_empty() && wanted != name) || !RequiredNodes::of(spec).admit(&name, &labels) {
        return never;
    }
    let tolerations = Toleration::of(&json!({"tolerations": tolerations(spec)}));
    let taints = Taint::of(node);
    let tolerates = |effect: &str| {
        let mut taints = taints.iter().filter(|taint| taint.effect == effect);
        taints.all(|taint| tolerations.iter().any(|t| t.tolerates(taint)))
    };
    let stays = tolerates("NoExecute");
    Verdict {
        starts: stays && tolerates("NoSchedule"),
        stays,
    }
}

/// What daemons tolerate beside what their template says: they are there to repair nodes, too.
const TOLERATED: &[(&str, &str)] = &[
    (taint::NOT_READY, "NoExecute"),
    (taint::UNREACHABLE, "NoExecute"),
    (taint::DISK_PRESSURE, "NoSchedule"),
    (taint::MEMORY_PRESSURE, "NoSchedule"),
    (taint::PID_PRESSURE, "NoSchedule"),
    (taint::UNSCHEDULABLE, "NoSchedule"),
];
/// Tolerated by pods that use the node's own network.
const NO_NETWORK: (&str, &str) = (taint::NETWORK_UNAVAILABLE, "NoSchedule");

fn tolerations(spec: &Value) -> Vec<Value> {
    let mut tolerations: Vec<Value> = items(&spec["tolerations"]).cloned().collect();
    let no_network = Some(&NO_NETWORK).filter(|_| spec["hostNetwork"] == true);
    for (key, effect) in TOLERATED.iter().chain(no_network) {
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        let same = |known: &&mut Value| {
            ["key", "operator", "effect"]
                .iter()
                .all(|field| known[*field] == toleration[*field])
        };
        match tolerations.iter_mut().find(same) {
            Some(known) => *known = toleration,
            None => tolerations.push(toleration),
        }
    }
    tolerations
}

/// Makes a pod one for this node.
pub(super) fn bind(spec: &mut Value, node: &str) {
    spec["tolerations"] = tolerations(spec).into();
    // The controller has looked at the terms of the template; only the node is left to say.
    spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
        "nodeSelectorTerms": [{"matchFields": [{"key": NODE_NAME, "operator": "In", "values": [node]}]}]});
}

/// The node of a pod: the one it is bound to, or is meant for.
pub(super) fn node_of(pod: &Value) -> Option<&str> {
    let bound = super::pod::node(pod);
    if !bound.is_empty() {
        return Some(bound);
    }
    let required =
        &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let fields = items(&required["nodeSelectorTerms"]).flat_map(|term| items(&term["matchFields"]));
    let mut named = fields.filter(|field| field["key"] == NODE_NAME && field["operator"] == "In");
    named.next()?["values"].as_array()?.first()?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: Value) -> Value {
        json!({"metadata": {"name": "n1", "labels": {"zone": "a", "cores": "8"}}, "spec": {"taints": taints}})
    }

    fn set(spec: Value) -> Value {
        json!({"spec": {"template": {"spec": spec}}})
    }

    fn required(term: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
    }

    #[test]
    fn a_daemon_goes_where_its_template_fits() {
        let free = node(json!([]));
        let expression = |key: &str, op: &str, values: Value| {
            required(json!({"matchExpressions": [{"key": key, "operator": op, "values": values}]}))
        };
        for (spec, fits) in [
            (json!({}), true),
            (json!({"nodeName": "n1"}), true),
            (json!({"nodeName": "n2"}), false),
            (json!({"nodeSelector": {"zone": "a"}}), true),
            (json!({"nodeSelector": {"zone": "b"}}), false),
            (expression("zone", "In", json!(["a", "b"])), true),
            (expression("zone", "NotIn", json!(["a"])), false),
            (expression("cores", "Gt", json!(["4"])), true),
            (
                required(
                    json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}),
                ),
                true,
            ),
            (
                required(
                    json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}),
                ),
                false,
            ),
            (required(json!({})), false),
        ] {
            let verdict = judge(&set(spec.clone()), &free);
            assert_eq!((verdict.starts, verdict.stays), (fits, fits), "{spec}");
        }
    }

    #[test]
    fn taints_keep_daemons_away_or_drive_them_out() {
        let taint =
            |key: &str, effect: &str| node(json!([{"key": key, "effect": effect, "value": "v"}]));
        let plain = set(json!({}));
        for (node, starts, stays) in [
            (taint("mine", "NoSchedule"), false, true),
            (taint("mine", "NoExecute"), false, false),
            (taint("mine", "PreferNoSchedule"), true, true),
            (
                taint("node.kubernetes.io/unschedulable", "NoSchedule"),
                true,
                true,
            ),
            (
                taint("node.kubernetes.io/unreachable", "NoExecute"),
                true,
                true,
            ),
            (
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                false,
                true,
            ),
        ] {
            let verdict = judge(&plain, &node);
            assert_eq!((verdict.starts, verdict.stays), (starts, stays), "{node}");
        }
        let host = set(json!({"hostNetwork": true}));
        assert!(
            judge(
                &host,
                &taint("node.kubernetes.io/network-unavailable", "NoSchedule")
            )
            .starts
        );
        let tolerant =
            set(json!({"tolerations": [{"key": "mine", "operator": "Equal", "value": "v"}]}));
        assert!(judge(&tolerant, &taint("mine", "NoExecute")).starts);
        let all = set(json!({"tolerations": [{"operator": "Exists"}]}));
        assert!(judge(&all, &taint("mine", "NoExecute")).starts);
    }

    #[test]
    fn a_pod_is_bound_by_affinity() {
        let mut spec = json!({"nodeSelector": {"zone": "a"},
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
            "affinity": {"podAffinity": {}, "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}}});
        bind(&mut spec, "n7");
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 6);
        assert!(spec["tolerations"][0].get("tolerationSeconds").is_none());
        assert!(spec["affinity"].get("podAffinity").is_some());
        let pod = json!({"spec": spec});
        assert_eq!(node_of(&pod), Some("n7"));
        assert_eq!(node_of(&json!({"spec": {"nodeName": "n1"}})), Some("n1"));
        assert_eq!(node_of(&json!({"spec": {}})), None);
    }
}
