//! What the manager's webhooks stand for, as kubectl meets it: older versions, completed specs, refusals.

use super::{holds, name};
use crate::fixture::{Lab, eventually, text};
use serde_json::{Value, json};

/// From OpenYurt's page on YurtAppSet before 1.5.
const OLD_SET: &str = "
apiVersion: apps.openyurt.io/v1alpha1
kind: YurtAppSet
metadata:
  labels:
    controller-tools.k8s.io: '1.0'
  name: yas-test
spec:
  selector:
    matchLabels:
      app: yas-test
  workloadTemplate:
    deploymentTemplate:
      metadata:
        labels:
          app: yas-test
      spec:
        selector:
          matchLabels:
            app: yas-test
        template:
          metadata:
            labels:
              app: yas-test
          spec:
            containers:
            - name: nginx
              image: nginx:1.19.3
  topology:
    pools:
    - name: beijing
      nodeSelectorTerm:
        matchExpressions:
        - key: apps.openyurt.io/nodepool
          operator: In
          values:
          - beijing
      replicas: 1
      patch:
        spec:
          template:
            spec:
              containers:
              - name: nginx
                image: nginx:1.19.0
    - name: hangzhou
      nodeSelectorTerm:
        matchExpressions:
        - key: apps.openyurt.io/nodepool
          operator: In
          values:
          - hangzhou
      replicas: 2
      tolerations:
      - effect: NoSchedule
        key: apps.openyurt.io/example
        operator: Exists
  revisionHistoryLimit: 5
";

#[test]
fn older_versions_are_served_and_what_they_cannot_say_survives_their_clients() {
    let Some(lab) = Lab::start("beijing=1,hangzhou=1") else {
        return;
    };
    let cloud = lab.cloud();
    // A set of the old kind: a pool with a patch, one with tolerations.
    lab.apply(OLD_SET);
    let ready = |pool: &str, image: &str| {
        let pods = lab.items(&[
            "pods",
            "-l",
            &format!("app=yas-test,apps.openyurt.io/pool-name={pool}"),
        ]);
        let of = |pod: &&Value| super::image(pod) == image && holds(pod, "Ready");
        pods.iter().filter(of).count()
    };
    eventually("the pods of both pools, one patched", || {
        ready("beijing", "nginx:1.19.0") == 1 && ready("hangzhou", "nginx:1.19.3") == 2
    });
    let old = lab.json(&["yurtappsets.v1alpha1.apps.openyurt.io", "yas-test"]);
    let given: Value = json!([
        old["spec"]["topology"]["pools"][0]["patch"],
        old["spec"]["topology"]["pools"][1]["tolerations"][0]["key"]
    ]);
    assert_eq!(
        given[1], "apps.openyurt.io/example",
        "{:#}",
        old["spec"]["topology"]
    );
    assert!(
        given[0]["spec"]["template"].is_object(),
        "{:#}",
        old["spec"]["topology"]
    );

    // A pool of now, edited by a client of then.
    let before = lab.json(&["np", "hangzhou"]);
    assert_eq!(before["spec"]["enableLeaderElection"], true);
    let mut of_then = lab.json(&["nodepools.v1alpha1.apps.openyurt.io", "hangzhou"]);
    assert!(
        of_then["spec"]["enableLeaderElection"].is_null(),
        "{of_then:#}"
    );
    of_then["spec"]["labels"] = json!({"region": "east"});
    cloud.feed(&["replace", "-f", "-"], &of_then.to_string());
    let after = lab.json(&["np", "hangzhou"]);
    assert_eq!(after["spec"]["labels"], json!({"region": "east"}));
    for field in [
        "enableLeaderElection",
        "interConnectivity",
        "leaderReplicas",
        "poolScopeMetadata",
        "type",
    ] {
        assert_eq!(after["spec"][field], before["spec"][field], "{field}");
    }
}

#[test]
fn specs_are_completed_and_what_must_not_be_is_refused_with_the_reason() {
    let Some(lab) = Lab::start("a=1") else { return };
    let cloud = lab.cloud();
    lab.apply(
        "{apiVersion: apps.openyurt.io/v1beta2, kind: NodePool, metadata: {name: new}, spec: {}}",
    );
    let pool = lab.json(&["np", "new"]);
    assert_eq!(
        pool["metadata"]["labels"]["nodepool.openyurt.io/type"],
        "edge"
    );
    assert_eq!(pool["spec"]["type"], "Edge");
    assert_eq!(
        pool["spec"]["poolScopeMetadata"].as_array().map(Vec::len),
        Some(2),
        "{pool:#}"
    );
    let out = cloud.refused(&[
        "patch",
        "np",
        "new",
        "--type=merge",
        "-p",
        r#"{"spec": {"type": "Cloud"}}"#,
    ]);
    assert!(out.contains("type"), "{out}");
    // A pool that has nodes stays.
    let out = cloud.refused(&["delete", "np", "a"]);
    assert!(out.contains("nodes"), "{out}");
    assert_eq!(name(&lab.json(&["np", "a"])), "a");
    cloud.ok(&["delete", "np", "new"]);
    // A node leaves its pool, but does not change it in place; an administrator who calls it a node of the cloud is warned.
    let moved = "apps.openyurt.io/nodepool=other";
    let out = cloud.refused(&["label", "node", "a-1", "--overwrite", moved]);
    assert!(out.contains("apps.openyurt.io/nodepool"), "{out}");
    let of_cloud = "openyurt.io/is-edge-worker=false";
    let out = cloud.output(&["label", "node", "a-1", "--overwrite", of_cloud]);
    let said = text(&out.stderr);
    assert!(
        out.status.success() && said.contains("changed by hand"),
        "{said}"
    );
    let both = "{apiVersion: apps.openyurt.io/v1beta1, kind: YurtAppSet, metadata: {name: none}, spec: {workload: {workloadTemplate: {}}}}";
    let file = lab.dir().join("none.yaml");
    std::fs::write(&file, both).unwrap();
    let out = cloud.refused(&["apply", "-f", &file.to_string_lossy()]);
    assert!(out.contains("emplate"), "{out}");
}
