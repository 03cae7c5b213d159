//! YurtAppSet and YurtAppDaemon as documented.

use super::{holds, image, name, uid};
use crate::fixture::{Lab, eventually};
use serde_json::Value;
use std::collections::BTreeMap;

/// From OpenYurt's page on YurtAppSet: the same Deployment in two pools, with what is different in one.
const SET: &str = "
apiVersion: apps.openyurt.io/v1beta1
kind: YurtAppSet
metadata:
  name: example
  namespace: default
spec:
  revisionHistoryLimit: 5
  pools:
  - beijing
  - hangzhou
  workload:
    workloadTemplate:
      deploymentTemplate:
        metadata:
          labels:
            app: example
        spec:
          replicas: 2
          selector:
            matchLabels:
              app: example
          template:
            metadata:
              labels:
                app: example
            spec:
              containers:
              - name: nginx
                image: nginx:1.19.1
                ports:
                - containerPort: 80
    workloadTweaks:
    - pools:
      - beijing
      tweaks:
        replicas: 3
        containerImages:
        - name: nginx
          targetImage: nginx:1.20.1
        patches:
        - path: /metadata/annotations/pool
          operation: add
          value: '{{nodepool-name}}'
";
/// From OpenYurt's page on YurtAppDaemon.
const DAEMON: &str = r#"
apiVersion: apps.openyurt.io/v1alpha1
kind: YurtAppDaemon
metadata:
  name: daemon-1
  namespace: default
spec:
  selector:
    matchLabels:
      app: daemon-1
  workloadTemplate:
    deploymentTemplate:
      metadata:
        labels:
          app: daemon-1
      spec:
        replicas: 1
        selector:
          matchLabels:
            app: daemon-1
        template:
          metadata:
            labels:
              app: daemon-1
          spec:
            containers:
            - image: nginx:1.18.0
              imagePullPolicy: Always
              name: nginx
  nodepoolSelector:
    matchLabels:
      yurtappdaemon.openyurt.io/type: "nginx"
"#;

/// The Deployments of an app by their pool.
fn workloads(lab: &Lab, app: &str) -> BTreeMap<String, Value> {
    let all = lab.items(&[
        "deployments",
        "-l",
        &format!("app={app},apps.openyurt.io/pool-name"),
    ]);
    let pool = |d: &Value| {
        d["metadata"]["labels"]["apps.openyurt.io/pool-name"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    all.into_iter().map(|d| (pool(&d), d)).collect()
}

/// Pods of an app that are ready, by uid, with their pool.
fn pods(lab: &Lab, app: &str) -> BTreeMap<String, String> {
    let pods = lab.items(&["pods", "-l", &format!("app={app}")]);
    let ready = pods
        .iter()
        .filter(|pod| holds(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null());
    ready
        .map(|pod| {
            let node = pod["spec"]["nodeName"].as_str().unwrap();
            (
                uid(pod).to_owned(),
                node.split('-').next().unwrap().to_owned(),
            )
        })
        .collect()
}

fn in_pool(pods: &BTreeMap<String, String>, pool: &str) -> Vec<String> {
    pods.iter()
        .filter(|(_, of)| *of == pool)
        .map(|(uid, _)| uid.clone())
        .collect()
}

#[test]
fn a_set_is_a_workload_per_pool_and_a_change_restarts_only_what_it_changes() {
    let Some(lab) = Lab::start_with("beijing=1,hangzhou=1", &["--light-pool", "shanghai=1"]) else {
        return;
    };
    let cloud = lab.cloud();
    lab.apply(SET);
    eventually("all pods are ready, on the nodes of their pools", || {
        let pods = pods(&lab, "example");
        in_pool(&pods, "beijing").len() == 3 && in_pool(&pods, "hangzhou").len() == 2
    });
    let made = workloads(&lab, "example");
    assert_eq!(made.keys().collect::<Vec<_>>(), ["beijing", "hangzhou"]);
    assert_eq!(image(&made["beijing"]), "nginx:1.20.1");
    assert_eq!(image(&made["hangzhou"]), "nginx:1.19.1");
    assert_eq!(
        made["beijing"]["metadata"]["annotations"]["pool"],
        "beijing"
    );
    assert!(name(&made["beijing"]).starts_with("example-beijing-"));
    eventually("kubectl get yas", || {
        cloud.rows(&["get", "yas", "example"])[0][..4] == ["example", "2", "2", "2"]
    });
    for word in [
        "yurtappset.apps.openyurt.io/example",
        "nodepool.apps.openyurt.io/beijing",
    ] {
        let all = cloud.ok(&["get", "yurt"]);
        assert!(all.contains(word), "{all}");
    }
    let set = lab.json(&["yas", "example"]);
    for condition in ["PoolFound", "AppDispatched", "AppReady"] {
        assert!(holds(&set, condition), "{condition}: {:#}", set["status"]);
    }

    // One pool's pods: nobody restarts.
    let before = pods(&lab, "example");
    let replicas = r#"[{"op": "replace", "path": "/spec/workload/workloadTweaks/0/tweaks/replicas", "value": 2}]"#;
    cloud.ok(&["patch", "yas", "example", "--type=json", "-p", replicas]);
    eventually("two pods in beijing", || {
        in_pool(&pods(&lab, "example"), "beijing").len() == 2
    });
    let after = pods(&lab, "example");
    assert!(
        after.keys().all(|uid| before.contains_key(uid)),
        "{before:?} {after:?}"
    );

    // One pool's image: the other pool's pods stay.
    let images = r#"[{"op": "replace", "path": "/spec/workload/workloadTweaks/0/tweaks/containerImages/0/targetImage", "value": "nginx:1.21.0"}]"#;
    cloud.ok(&["patch", "yas", "example", "--type=json", "-p", images]);
    eventually("the new image in beijing", || {
        let set = lab.json(&["yas", "example"]);
        image(&workloads(&lab, "example")["beijing"]) == "nginx:1.21.0"
            && set["status"]["updatedWorkloads"] == 2
            && in_pool(&pods(&lab, "example"), "beijing")
                .iter()
                .all(|uid| !before.contains_key(uid))
            && in_pool(&pods(&lab, "example"), "beijing").len() == 2
    });
    assert_eq!(
        in_pool(&pods(&lab, "example"), "hangzhou"),
        in_pool(&before, "hangzhou")
    );

    // A pool more, by its label; drift in a workload; a pool less.
    let selector = r#"{"spec": {"nodepoolSelector": {"matchLabels": {"region": "east"}}}}"#;
    cloud.ok(&["patch", "yas", "example", "--type=merge", "-p", selector]);
    cloud.ok(&["label", "np", "shanghai", "region=east"]);
    eventually("a workload in the third pool", || {
        in_pool(&pods(&lab, "example"), "shanghai").len() == 2
    });
    let drifted = name(&workloads(&lab, "example")["hangzhou"]).to_owned();
    cloud.ok(&[
        "set",
        "image",
        &format!("deployment/{drifted}"),
        "nginx=other:1",
    ]);
    eventually("drift is repaired", || {
        image(&workloads(&lab, "example")["hangzhou"]) == "nginx:1.19.1"
    });
    cloud.ok(&["label", "np", "shanghai", "region-"]);
    eventually("the workload goes with the label", || {
        !workloads(&lab, "example").contains_key("shanghai")
    });

    cloud.ok(&["delete", "yas", "example"]);
    eventually("everything goes with the set", || {
        workloads(&lab, "example").is_empty()
    });
}

#[test]
fn a_set_is_scaled_and_what_contradicts_itself_is_told() {
    let Some(lab) = Lab::start("beijing=1,hangzhou=1") else {
        return;
    };
    let cloud = lab.cloud();
    let plain = &SET[..SET.find("    workloadTweaks:").unwrap()];
    lab.apply(plain);
    eventually("two pods in each pool", || pods(&lab, "example").len() == 4);
    cloud.ok(&["scale", "yas", "example", "--replicas=6"]);
    eventually("three in each", || {
        let pods = pods(&lab, "example");
        in_pool(&pods, "beijing").len() == 3 && in_pool(&pods, "hangzhou").len() == 3
    });
    let scale = cloud.ok(&[
        "get",
        "yas",
        "example",
        "--subresource=scale",
        "-o",
        "jsonpath={.status.replicas} {.status.selector}",
    ]);
    assert!(
        scale.starts_with("6 ") && scale.contains("app=example"),
        "{scale}"
    );

    // A patch that does not apply is told; other pools, and what runs, stay.
    let before = pods(&lab, "example");
    let wrong = r#"{"spec": {"workload": {"workloadTweaks": [{"pools": ["beijing"], "tweaks": {"patches": [{"path": "/spec/none/0", "operation": "remove"}]}}]}}}"#;
    let out = cloud.output(&["patch", "yas", "example", "--type=merge", "-p", wrong]);
    if out.status.success() {
        eventually("a condition says what is wrong", || {
            let status = lab.json(&["yas", "example"])["status"].to_string();
            status.contains("/spec/none/0") || status.contains("none")
        });
    }
    assert_eq!(pods(&lab, "example"), before);

    // Pools that do not exist are left out.
    lab.apply(&plain.replace("- hangzhou", "- nowhere"));
    eventually("one pool is left", || {
        workloads(&lab, "example").keys().collect::<Vec<_>>() == ["beijing"]
    });
    lab.apply(
        &plain
            .replace("- hangzhou", "- nowhere")
            .replace("- beijing", "- neither"),
    );
    eventually("no pool is found", || {
        let set = lab.json(&["yas", "example"]);
        let conditions = set["status"]["conditions"].as_array().unwrap();
        conditions.iter().any(|c| {
            c["type"] == "PoolFound" && c["status"] == "False" && c["reason"] == "NoFindPools"
        })
    });
}

#[test]
fn a_daemon_of_pools_follows_their_labels() {
    let Some(lab) = Lab::start_with("a=1", &["--light-pool", "b=1"]) else {
        return;
    };
    let cloud = lab.cloud();
    lab.apply(DAEMON);
    cloud.ok(&["label", "np", "a", "yurtappdaemon.openyurt.io/type=nginx"]);
    eventually("a workload in the pool", || {
        in_pool(&pods(&lab, "daemon-1"), "a").len() == 1
    });
    // Pods of the app tolerate what its pools are tainted with.
    let taint =
        r#"{"spec": {"taints": [{"key": "edge", "value": "yes", "effect": "NoSchedule"}]}}"#;
    cloud.ok(&["patch", "np", "b", "--type=merge", "-p", taint]);
    cloud.ok(&["label", "np", "b", "yurtappdaemon.openyurt.io/type=nginx"]);
    eventually("and in the next one, taint or not", || {
        in_pool(&pods(&lab, "daemon-1"), "b").len() == 1
    });
    eventually("kubectl get yad", || {
        cloud.rows(&["get", "yad", "daemon-1"])[0][..2] == ["daemon-1", "Deployment"]
    });
    let app = lab.json(&["yad", "daemon-1"]);
    assert_eq!(
        app["status"]["nodepools"],
        serde_json::json!(["a", "b"]),
        "{:#}",
        app["status"]
    );
    cloud.ok(&["label", "np", "a", "yurtappdaemon.openyurt.io/type-"]);
    eventually("it goes with the label", || {
        workloads(&lab, "daemon-1").keys().collect::<Vec<_>>() == ["b"]
    });
}
