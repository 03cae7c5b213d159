//! A node loses power while it is cut off (W4): hub and kubelet begin anew without a cloud, every pod comes up with another address,
//! and services follow, for watchers in protobuf and JSON and for kubectl. Afterwards the cloud knows, and nothing is lost.

use crate::{
    fixture::{Lab, eventually},
    slices::{Watcher, ready},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use yurt_wire::Encoding;

const NODE: &str = "edge-1";

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: main, image: "registry.lab/app:1", ports: [{containerPort: 80, name: http}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
"#;

fn pod_addresses(lab: &Lab) -> BTreeSet<String> {
    let path = "jsonpath={.items[*].status.podIP}";
    let said = lab
        .cloud()
        .ok(&["get", "pods", "-l", "app=web", "-o", path]);
    said.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn w4_services_follow_pods_over_a_reboot_without_a_link() {
    let Some(lab) = Lab::start("edge=1") else {
        return;
    };
    lab.cloud().feed(&["apply", "-f", "-"], WEB);
    lab.cloud()
        .ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let before = pod_addresses(&lab);
    assert_eq!(before.len(), 3);
    let address = lab.lab(&["status", NODE])[0]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut watchers = [Encoding::Protobuf, Encoding::Json].map(|e| Watcher::new(&address, e));
    runtime.block_on(async {
        for watcher in &mut watchers {
            watcher
                .until("as in the cloud", |slice| ready(slice) == before)
                .await;
        }
    });
    // What kubectl needs to ask offline.
    lab.node(NODE).ok(&["get", "endpointslices,pods,services"]);
    let pid = lab.lab(&["status", NODE])[0]["hub_pid"].clone();

    lab.lab(&["cut", NODE]);
    lab.wait_hub(NODE, "offline");
    lab.lab(&["reboot", NODE]);
    eventually("the hub is back", || {
        let status = lab.lab(&["status", NODE]);
        status[0]["hub"] == "offline" && status[0]["hub_pid"] != pid
    });
    let is_new = |slice: &Value| {
        let addresses = ready(slice);
        addresses.len() == 3 && addresses.is_disjoint(&before)
    };
    runtime.block_on(async {
        for watcher in &mut watchers {
            watcher.until("of other addresses", is_new).await;
        }
    });
    let after = ready(&watchers[0].slice);
    assert_eq!(ready(&watchers[1].slice), after);
    let told = |lab: &Lab| {
        let args = [
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "json",
        ];
        let list: Value = serde_json::from_str(&lab.node(NODE).ok(&args)).unwrap();
        ready(&list["items"][0])
    };
    assert_eq!(told(&lab), after);
    let path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let restarts = lab
        .node(NODE)
        .ok(&["get", "pods", "-l", "app=web", "-o", path]);
    assert_eq!(restarts, "1 1 1");
    assert_eq!(pod_addresses(&lab), before, "the cloud does not know yet");
    let mut follow = lab.node(NODE).follow(&[
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=web",
        "-w",
    ]);
    eventually("kubectl's watch shows the new addresses", || {
        follow
            .lines()
            .iter()
            .any(|line| after.iter().all(|address| line.contains(address)))
    });

    lab.lab(&["heal", NODE]);
    eventually("everything reported is in the cloud", || {
        let status = lab.lab(&["status", NODE]);
        status[0]["hub"] == "online" && status[0]["journal"] == 0
    });
    assert_eq!(pod_addresses(&lab), after);
    let cloud = || {
        let args = [
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "json",
        ];
        let list: Value = serde_json::from_str(&lab.cloud().ok(&args)).unwrap();
        list["items"][0].clone()
    };
    eventually("the cloud's slice converges", || ready(&cloud()) == after);
    // Everybody ends with the cloud's slice, in the streams that they had.
    let want = cloud();
    let revision = want["metadata"]["resourceVersion"].clone();
    runtime.block_on(async {
        for watcher in &mut watchers {
            let is_clouds = |slice: &Value| {
                slice["metadata"]["resourceVersion"] == revision && ready(slice) == after
            };
            watcher.until("the cloud's", is_clouds).await;
            assert_eq!(watcher.lists, 1, "{:?} had to list again", watcher.encoding);
        }
    });
    assert!(follow.runs(), "kubectl's watch ended");
    let restarts = lab
        .cloud()
        .ok(&["get", "pods", "-l", "app=web", "-o", path]);
    assert_eq!(restarts, "1 1 1");
    assert_eq!(json!(told(&lab)), json!(after));
}
