//! The node's own objects: the Node, its status and its Lease.

use super::{
    KubeletConfig,
    clock::{micro_time, time},
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

const KUBELET_VERSION: &str = "v1.36.0";
/// What a kubelet writes into its lease by default, in seconds.
const LEASE_SECONDS: u64 = 40;

/// Type, status, reason and message of the conditions of a healthy node, in a kubelet's order.
const CONDITIONS: [[&str; 4]; 4] = [
    [
        "MemoryPressure",
        "False",
        "KubeletHasSufficientMemory",
        "kubelet has sufficient memory available",
    ],
    [
        "DiskPressure",
        "False",
        "KubeletHasNoDiskPressure",
        "kubelet has no disk pressure",
    ],
    [
        "PIDPressure",
        "False",
        "KubeletHasSufficientPID",
        "kubelet has sufficient PID available",
    ],
    [
        "Ready",
        "True",
        "KubeletReady",
        "kubelet is posting ready status",
    ],
];

/// What a kubelet registers: not ready yet.
pub(crate) fn registration(config: &KubeletConfig, now: Timestamp) -> Value {
    let name = &config.node_name;
    let mut labels = Map::new();
    for (key, value) in [
        ("beta.kubernetes.io/arch", "amd64"),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
    ] {
        labels.insert(key.into(), value.into());
    }
    for (key, value) in &config.labels {
        labels.insert(key.clone(), value.as_str().into());
    }
    let conditions: Vec<Value> = CONDITIONS
        .iter()
        .map(|[kind, status, reason, message]| {
            let [status, reason, message] = match *kind {
                "Ready" => ["False", "KubeletNotReady", "kubelet is starting"],
                _ => [*status, *reason, *message],
            };
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": time(now), "lastTransitionTime": time(now),
            })
        })
        .collect();
    let resources = config.capacity();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "labels": labels,
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
        "spec": {},
        "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": config.address.to_string()},
                {"type": "Hostname", "address": name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": config.port}},
            "nodeInfo": {
                "machineID": format!("{:032x}", super::fingerprint(&[name, "machine"])),
                "systemUUID": format!("{:032x}", super::fingerprint(&[name, "machine"])),
                "bootID": format!("{:032x}", super::fingerprint(&[name, "boot", &time(now)])),
                "kernelVersion": "6.1.0", "osImage": "Yurt lab",
                "containerRuntimeVersion": "simulated://1.0",
                "kubeletVersion": KUBELET_VERSION, "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    })
}

/// The patch of `status` that makes the node ready and renews its heartbeats, and whether anything but heartbeats changes. As in
/// the recording: a condition that stays gets a heartbeat only.
pub(crate) fn status_patch(node: &Value, now: Timestamp) -> (Value, bool) {
    let old = node["status"]["conditions"].as_array();
    let mut changed = false;
    let mut order = Vec::new();
    let mut conditions = Vec::new();
    for [kind, status, reason, message] in CONDITIONS {
        let was = old
            .and_then(|conditions| conditions.iter().find(|c| c["type"] == kind))
            .unwrap_or(&Value::Null);
        let mut condition = json!({"type": kind, "lastHeartbeatTime": time(now)});
        if was["status"] != status {
            condition["lastTransitionTime"] = time(now).into();
        }
        for (field, value) in [("status", status), ("reason", reason), ("message", message)] {
            if was[field] != value {
                condition[field] = value.into();
                changed = true;
            }
        }
        order.push(json!({"type": kind}));
        conditions.push(condition);
    }
    let patch = json!({
        "status": {"$setElementOrder/conditions": order, "conditions": conditions},
    });
    (patch, changed)
}

/// The node's first lease. It belongs to the node once its UID is known.
pub(crate) fn lease(name: &str, node_uid: Option<&str>, now: Timestamp) -> Value {
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {
            "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": micro_time(now),
        },
    });
    own(&mut lease, name, node_uid);
    lease
}

/// The same lease, renewed.
pub(super) fn renewed(
    mut lease: Value,
    name: &str,
    node_uid: Option<&str>,
    now: Timestamp,
) -> Value {
    lease["spec"]["holderIdentity"] = name.into();
    lease["spec"]["leaseDurationSeconds"] = LEASE_SECONDS.into();
    lease["spec"]["renewTime"] = micro_time(now).into();
    if !is_owned(&lease) {
        own(&mut lease, name, node_uid);
    }
    lease
}

/// Whether a lease goes when its node goes.
pub(super) fn is_owned(lease: &Value) -> bool {
    lease["metadata"]["ownerReferences"]
        .as_array()
        .is_some_and(|owners| !owners.is_empty())
}

fn own(lease: &mut Value, name: &str, node_uid: Option<&str>) {
    if let Some(uid) = node_uid {
        lease["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid},
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::{Encoding, Object};

    fn now() -> Timestamp {
        Timestamp::new(1_795_287_982, 43_543_999).unwrap()
    }

    fn config() -> KubeletConfig {
        let mut config = KubeletConfig::new("edge-1", "http://127.10.0.1:10261");
        config
            .labels
            .push(("apps.openyurt.io/nodepool".into(), "hangzhou".into()));
        config
    }

    /// What is written must be expressible in protobuf and come back the same.
    fn round_trip(value: &Value) -> Value {
        Object::from_json_value(value, Encoding::Protobuf)
            .unwrap()
            .to_json_value()
            .unwrap()
    }

    #[test]
    fn registers_a_node_that_is_not_ready() {
        let node = round_trip(&registration(&config(), now()));
        assert_eq!(
            node["metadata"]["labels"]["apps.openyurt.io/nodepool"],
            "hangzhou"
        );
        assert_eq!(
            node["metadata"]["labels"]["kubernetes.io/hostname"],
            "edge-1"
        );
        assert_eq!(node["status"]["conditions"][3]["status"], "False");
        assert_eq!(node["status"]["capacity"]["pods"], "110");
        assert_eq!(
            node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"],
            10250
        );
    }

    #[test]
    fn patches_what_changed_and_heartbeats() {
        let mut node = registration(&config(), now());
        let later = now() + jiff::SignedDuration::from_secs(10);
        let (patch, changed) = status_patch(&node, later);
        assert!(changed);
        let conditions = &patch["status"]["conditions"];
        assert_eq!(
            conditions[0],
            json!({"type": "MemoryPressure", "lastHeartbeatTime": "2026-11-21T19:06:32Z"})
        );
        assert_eq!(
            conditions[3],
            json!({"type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "kubelet is posting ready status",
                "lastHeartbeatTime": "2026-11-21T19:06:32Z",
                "lastTransitionTime": "2026-11-21T19:06:32Z"})
        );
        let kind = yurt_wire::Gvk::from_api_version("v1", "Node");
        yurt_wire::patch::strategic_merge_patch(&kind, &mut node, &patch).unwrap();
        assert_eq!(node["status"]["conditions"].as_array().unwrap().len(), 4);
        let (_, changed) = status_patch(&node, later);
        assert!(!changed);
        assert!(
            status_patch(&Value::Null, later).1,
            "a node without status gets one"
        );
    }

    #[test]
    fn leases_are_owned_and_renewed() {
        let first = round_trip(&lease("edge-1", None, now()));
        assert_eq!(first["spec"]["renewTime"], "2026-11-21T19:06:22.043543Z");
        assert!(first["metadata"].get("ownerReferences").is_none());
        let later = now() + jiff::SignedDuration::from_secs(10);
        let second = round_trip(&renewed(first, "edge-1", Some("u"), later));
        assert_eq!(second["spec"]["renewTime"], "2026-11-21T19:06:32.043543Z");
        assert_eq!(second["spec"]["leaseDurationSeconds"], 40);
        assert_eq!(second["metadata"]["ownerReferences"][0]["uid"], "u");
    }
}
