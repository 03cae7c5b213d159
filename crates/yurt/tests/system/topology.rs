//! Services that end where their pool does, as a kube-proxy sees them through its node's hub.

use crate::{
    fixture::Lab,
    slices::{Watcher, ready},
};
use std::collections::BTreeSet;
use yurt_wire::Encoding;

/// A pod on every node, and a service that leads to those of the caller's pool.
pub(crate) const WEB: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: main, image: "registry.lab/app:1", ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations: {openyurt.io/topologyKeys: openyurt.io/nodepool}
spec:
  selector: {app: web}
  ports: [{port: 80}]
"#;

#[test]
fn a_service_of_its_pool_ends_there_until_the_annotation_goes() {
    let Some(lab) = Lab::start("a=3,b=2") else {
        return;
    };
    lab.cloud().feed(&["apply", "-f", "-"], WEB);
    lab.cloud()
        .ok(&["rollout", "status", "daemonset/web", "--timeout=60s"]);
    let addresses = |nodes: &[&str]| -> BTreeSet<String> {
        let of = |node: &&str| {
            let field = format!("spec.nodeName={node}");
            let path = "jsonpath={.items[*].status.podIP}";
            lab.cloud().ok(&[
                "get",
                "pods",
                "-l",
                "app=web",
                "--field-selector",
                &field,
                "-o",
                path,
            ])
        };
        nodes.iter().map(of).collect()
    };
    let (here, everywhere) = (
        addresses(&["a-1", "a-2", "a-3"]),
        addresses(&["a-1", "a-2", "a-3", "b-1", "b-2"]),
    );
    assert_eq!((here.len(), everywhere.len()), (3, 5));
    let hub = lab.lab(&["status", "a-2"])[0]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // As kube-proxy asks.
    let mut proxies =
        [Encoding::Protobuf, Encoding::Json].map(|encoding| Watcher::new(&hub, encoding));
    let mut until = |what: &str, wanted: &BTreeSet<String>| {
        runtime.block_on(async {
            for proxy in &mut proxies {
                proxy.until(what, |slice| ready(slice) == *wanted).await;
            }
        });
    };
    until("the endpoints of the pool", &here);
    // Nobody else sees less.
    let path = "jsonpath={.items[*].endpoints[*].addresses[0]}";
    let of_web = "kubernetes.io/service-name=web";
    let seen = lab
        .node("a-2")
        .ok(&["get", "endpointslices", "-l", of_web, "-o", path]);
    assert_eq!(seen.split_whitespace().count(), 5, "{seen}");

    lab.cloud()
        .ok(&["annotate", "service", "web", "openyurt.io/topologyKeys-"]);
    until("all endpoints, told again", &everywhere);
    lab.cloud().ok(&[
        "annotate",
        "service",
        "web",
        "openyurt.io/topologyKeys=kubernetes.io/hostname",
    ]);
    until("the node's own endpoint", &addresses(&["a-2"]));
    lab.cloud().ok(&[
        "annotate",
        "service",
        "web",
        "--overwrite",
        "openyurt.io/topologyKeys=openyurt.io/nodepool",
    ]);
    until("those of the pool again", &here);
    for proxy in &proxies {
        assert_eq!(proxy.lists, 1, "{:?} had to list again", proxy.encoding);
    }
}
