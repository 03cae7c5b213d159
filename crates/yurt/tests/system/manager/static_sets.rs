//! YurtStaticSets as documented.

use super::name;
use crate::fixture::{Lab, eventually};

/// From OpenYurt's page on YurtStaticSet.
const SET: &str = "
apiVersion: apps.openyurt.io/v1alpha1
kind: YurtStaticSet
metadata:
  name: nginx
spec:
  staticPodManifest: nginx
  upgradeStrategy:
    type: OTA
  template:
    metadata:
      labels:
        app: nginx
    spec:
      containers:
      - name: nginx
        image: nginx:1.19.1
";

/// The mirror of a static pod, as a kubelet makes it.
fn mirror(node: &str, hash: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: nginx-{node}
  labels: {{app: nginx}}
  annotations:
    kubernetes.io/config.source: file
    kubernetes.io/config.mirror: "0"
    openyurt.io/static-pod-hash: "{hash}"
spec:
  nodeName: {node}
  containers: [{{name: nginx, image: "nginx:1.19.1"}}]
"#
    )
}

#[test]
fn a_set_carries_its_manifest_and_marks_pods_that_are_old() {
    let Some(lab) = Lab::start_with("a=1", &["--light-pool", "a=2"]) else {
        return;
    };
    let cloud = lab.cloud();
    lab.apply(SET);
    let carried = || {
        let maps = lab.items(&["configmaps"]);
        maps.into_iter()
            .find(|map| name(map) == "yurt-static-set-nginx")
    };
    let mut hash = String::new();
    eventually("the config map carries the manifest", || {
        let Some(map) = carried() else { return false };
        let told = &map["metadata"]["annotations"]["openyurt.io/static-pod-hash"];
        hash = told.as_str().unwrap_or_default().to_owned();
        map["data"]["nginx"]
            .as_str()
            .is_some_and(|manifest| manifest.contains("nginx:1.19.1") && manifest.contains(&hash))
    });
    assert!(!hash.is_empty());
    for node in ["a-light-1", "a-light-2"] {
        lab.apply(&mirror(node, &hash));
    }
    eventually("both nodes are counted", || {
        let status = &lab.json(&["yss", "nginx"])["status"];
        status["totalNumber"] == 2 && status["readyNumber"] == 2 && status["upgradedNumber"] == 2
    });
    // A new template: by OTA the pods are marked, and nothing else happens.
    lab.apply(&SET.replace("nginx:1.19.1", "nginx:1.19.2"));
    eventually("old pods are marked", || {
        let pods = lab.items(&["pods", "-l", "app=nginx"]);
        pods.len() == 2 && pods.iter().all(|pod| super::holds(pod, "PodNeedUpgrade"))
    });
    eventually("kubectl get yss", || {
        let row = cloud.rows(&["get", "yss", "nginx"]).remove(0);
        let numbers: Vec<&str> = row[2..].iter().map(String::as_str).collect();
        numbers == ["2", "2", "0"]
    });
    cloud.ok(&["delete", "yss", "nginx"]);
    eventually("the config map goes with the set", || carried().is_none());
}
