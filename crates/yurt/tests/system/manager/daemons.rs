//! DaemonSets with OpenYurt's annotations: upgraded past nodes that are away, or by the owners of nodes.

use super::{holds, image, name, uid};
use crate::{
    fixture::{Lab, eventually},
    ota::Owner,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const AWAY: [&str; 3] = ["b-1", "b-2", "b-3"];

fn daemons(strategy: &str, image: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: agent
  annotations:
    apps.openyurt.io/update-strategy: {strategy}
    apps.openyurt.io/max-unavailable: "30%"
spec:
  selector: {{matchLabels: {{app: agent}}}}
  updateStrategy: {{type: OnDelete}}
  template:
    metadata: {{labels: {{app: agent}}}}
    spec:
      containers: [{{name: main, image: "{image}"}}]
"#
    )
}

/// The pods of the set that are not being deleted, by node.
fn pods(lab: &Lab) -> BTreeMap<String, Value> {
    let pods = lab.items(&["pods", "-l", "app=agent"]);
    let node = |pod: &Value| {
        pod["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let kept = pods
        .into_iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    kept.map(|pod| (node(&pod), pod)).collect()
}

/// The nodes whose pod has an image and, if `ready`, is ready.
fn with(pods: &BTreeMap<String, Value>, wanted: &str, ready: bool) -> BTreeSet<String> {
    let has = |pod: &Value| image(pod) == wanted && (!ready || holds(pod, "Ready"));
    pods.iter()
        .filter(|(_, pod)| has(pod))
        .map(|(node, _)| node.clone())
        .collect()
}

fn is_ready(lab: &Lab, node: &str) -> bool {
    holds(&lab.json(&["node", node]), "Ready")
}

/// Ten nodes, of which three are cut off with their whole pool: nobody vouches for them.
#[test]
fn an_update_passes_nodes_that_are_away_and_each_gets_it_on_return() {
    let quick = [
        "--light-pool",
        "a=6",
        "--heartbeat-interval-seconds",
        "2",
        "--node-monitor-grace-period",
        "8s",
    ];
    let Some(lab) = Lab::start_with("a=1,b=3", &quick) else {
        return;
    };
    lab.apply(&daemons("Auto", "registry.lab/agent:1"));
    eventually("ten pods", || {
        with(&pods(&lab), "registry.lab/agent:1", true).len() == 10
    });
    lab.lab(&["cut", "b"]);
    eventually("three nodes are lost", || {
        AWAY.iter().all(|node| !is_ready(&lab, node))
    });
    let before = pods(&lab);

    lab.apply(&daemons("Auto", "registry.lab/agent:2"));
    eventually("the seven others are updated", || {
        with(&pods(&lab), "registry.lab/agent:2", true).len() == 7
    });
    let after = pods(&lab);
    for node in AWAY {
        assert_eq!(
            uid(&after[node]),
            uid(&before[node]),
            "{node} was not to be touched"
        );
    }
    for (back, node) in AWAY.iter().enumerate() {
        lab.lab(&["heal", node]);
        eventually("who is back gets it", || {
            with(&pods(&lab), "registry.lab/agent:2", true).contains(*node)
        });
        // Who is back vouches for the others: they are Ready again, and still not there to be updated.
        let still = AWAY.get(back + 1..).unwrap_or_default();
        eventually("the others are vouched for", || {
            still.iter().all(|other| is_ready(&lab, other))
        });
        let pods = pods(&lab);
        for other in still {
            assert_eq!(
                uid(&pods[*other]),
                uid(&before[*other]),
                "{other} is still away"
            );
        }
    }
    assert_eq!(with(&pods(&lab), "registry.lab/agent:2", true).len(), 10);

    // By OTA none is updated until its node is asked.
    lab.apply(&daemons("OTA", "registry.lab/agent:3"));
    eventually("every pod is marked", || {
        let pods = pods(&lab);
        pods.len() == 10 && pods.values().all(|pod| holds(pod, "PodNeedUpgrade"))
    });
    let marked = pods(&lab);
    assert_eq!(with(&marked, "registry.lab/agent:2", true).len(), 10);
    let path = format!(
        "/openyurt.io/v1/namespaces/default/pods/{}/upgrade",
        name(&marked["b-2"])
    );
    let owner = Owner::of(&lab, "b-2");
    eventually("the node knows", || {
        owner.get("/pods").1.contains("PodNeedUpgrade")
    });
    let (code, said) = owner.post(&path);
    assert_eq!(code, 200, "{said}");
    eventually("the one that was asked is updated", || {
        with(&pods(&lab), "registry.lab/agent:3", true) == BTreeSet::from(["b-2".to_owned()])
    });
    let after = pods(&lab);
    let others = marked.iter().filter(|(node, _)| *node != "b-2");
    for (node, pod) in others {
        assert_eq!(uid(&after[node]), uid(pod), "{node} was not asked");
    }
}
