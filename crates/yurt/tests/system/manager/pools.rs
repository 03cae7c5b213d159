//! NodePools as documented.

use super::name;
use crate::fixture::{Lab, eventually};

/// From OpenYurt's page on node pools.
const HANGZHOU: &str = "
apiVersion: apps.openyurt.io/v1beta1
kind: NodePool
metadata:
  name: hangzhou
spec:
  type: Edge
  annotations:
    apps.openyurt.io/example: test-hangzhou
  labels:
    apps.openyurt.io/example: test-hangzhou
  taints:
    - key: apps.openyurt.io/example
      value: test-hangzhou
      effect: NoSchedule
";
const BEIJING: &str = "
apiVersion: apps.openyurt.io/v1beta2
kind: NodePool
metadata:
  name: beijing
spec:
  type: Cloud
";
const EXAMPLE: &str = "apps.openyurt.io/example";

#[test]
fn a_pool_gives_its_nodes_what_it_says_and_takes_it_back() {
    let Some(lab) = Lab::start_with("a=1", &["--light-nodes", "3"]) else {
        return;
    };
    let cloud = lab.cloud();
    lab.apply(HANGZHOU);
    lab.apply(BEIJING);
    for node in ["light-1", "light-2"] {
        cloud.ok(&["label", "node", node, "apps.openyurt.io/nodepool=hangzhou"]);
    }
    eventually("the pool counts its nodes", || {
        let rows = cloud.rows(&["get", "np", "hangzhou"]);
        rows[0][..4] == ["hangzhou", "Edge", "2", "0"]
    });
    let has = |node: &str| {
        let node = lab.json(&["node", node]);
        let taints = node["spec"]["taints"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        [
            node["metadata"]["labels"][EXAMPLE] == "test-hangzhou",
            node["metadata"]["annotations"][EXAMPLE] == "test-hangzhou",
            taints
                .iter()
                .any(|taint| taint["key"] == EXAMPLE && taint["effect"] == "NoSchedule"),
        ]
    };
    eventually("nodes have what it gives", || {
        has("light-1") == [true; 3] && has("light-2") == [true; 3]
    });
    // What somebody takes away comes back.
    cloud.ok(&["label", "node", "light-1", "apps.openyurt.io/example-"]);
    cloud.ok(&[
        "label",
        "node",
        "light-2",
        "--overwrite",
        "apps.openyurt.io/example=other",
    ]);
    eventually("drift is repaired", || {
        has("light-1") == [true; 3] && has("light-2") == [true; 3]
    });
    // Who leaves gives it back; a move is leaving and joining.
    cloud.ok(&["label", "node", "light-2", "apps.openyurt.io/nodepool-"]);
    eventually("who left has nothing of it", || {
        has("light-2") == [false; 3]
    });
    cloud.ok(&[
        "label",
        "node",
        "light-2",
        "apps.openyurt.io/nodepool=beijing",
    ]);
    eventually("both pools count anew", || {
        let pools = lab.items(&["nodepools"]);
        let nodes = |of: &str| {
            let pool = pools.iter().find(|pool| name(pool) == of).unwrap();
            pool["status"]["nodes"].clone()
        };
        nodes("hangzhou") == serde_json::json!(["light-1"])
            && nodes("beijing") == serde_json::json!(["light-2"])
    });
    // What the pool stops to give goes.
    cloud.ok(&[
        "patch",
        "np",
        "hangzhou",
        "--type=merge",
        "-p",
        r#"{"spec": {"taints": null}}"#,
    ]);
    eventually("the taint goes, the rest stays", || {
        has("light-1") == [true, true, false]
    });
    // A node that falls silent is counted; it is gone from its pool with its Node.
    cloud.ok(&["delete", "node", "light-1", "--wait=false"]);
    let all = cloud.ok(&["get", "yurt"]);
    assert!(all.contains("nodepool.apps.openyurt.io/hangzhou"), "{all}");
    for version in ["v1alpha1", "v1beta1", "v1beta2"] {
        let kind = format!("nodepools.{version}.apps.openyurt.io");
        let pool = lab.json(&[&kind, "beijing"]);
        assert_eq!(pool["spec"]["type"], "Cloud", "{version}");
    }
    eventually("a leader is elected among the nodes of pool a", || {
        lab.json(&["np", "a"])["status"]["leaderEndpoints"][0]["nodeName"] == "a-1"
    });
}
