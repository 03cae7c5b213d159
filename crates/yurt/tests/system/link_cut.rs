//! The product's main job, with an unmodified kubectl: a node that outlives its cloud link.

use crate::fixture::{Lab, eventually};

fn pod(name: &str, node: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"web","site":"{node}"}}}},
        "spec":{{"nodeName":"{node}","containers":[{{"name":"main","image":"registry.lab/app:1"}}]}}}}"#
    )
}

const NODES: [&str; 3] = ["hangzhou-1", "hangzhou-2", "beijing-1"];

fn lab_with_pods() -> Option<Lab> {
    let lab = Lab::start("hangzhou=2,beijing=1")?;
    for node in NODES {
        lab.node("hangzhou-1")
            .feed(&["apply", "-f", "-"], &pod(&format!("web-{node}"), node));
    }
    lab.cloud().ok(&[
        "wait",
        "pod",
        "-l",
        "app=web",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);
    Some(lab)
}

#[test]
fn kubectl_reads_on_through_cut_kill_and_heal() {
    let Some(lab) = lab_with_pods() else { return };
    let node = || lab.node("hangzhou-1");
    let mut follow = node().follow(&["get", "pods", "-A", "-w"]);
    eventually("the watch lists three pods", || {
        follow.lines().iter().filter(|l| l.contains("web-")).count() >= 3
    });
    // Make sure the watch itself is open: a change shows.
    lab.cloud()
        .ok(&["label", "pod", "web-beijing-1", "seen=yes"]);
    eventually("the watch shows a change", || {
        follow
            .lines()
            .iter()
            .filter(|l| l.contains("web-beijing-1"))
            .count()
            >= 2
    });
    let online = node().ok(&["get", "pods", "-A", "-o", "name"]);

    lab.lab(&["cut", "hangzhou-1"]);
    lab.wait_hub("hangzhou-1", "offline");
    reads_answer(&lab, &online);
    assert!(follow.runs(), "the watch ended with the link");

    // A status written while cut: seen by the open watch, not by the cloud.
    let before = follow.lines().len();
    lab.lab(&["touch", "default/web-hangzhou-1"]);
    eventually("the watch shows the local status", || {
        follow.lines().len() > before
    });
    let path = [
        "get",
        "pod",
        "web-hangzhou-1",
        "-o",
        "jsonpath={.status.conditions}",
    ];
    let local = node().ok(&path);
    assert_ne!(lab.cloud().ok(&path), local);

    // Other writes are refused with the reason.
    for args in [
        &["create", "configmap", "x"][..],
        &["label", "pod", "web-hangzhou-1", "a=b"],
        &["delete", "pod", "web-hangzhou-1", "--wait=false"],
        &["scale", "deployment", "none", "--replicas=2"],
    ] {
        let said = node().refused(args);
        assert!(said.contains("offline"), "{args:?}: {said}");
    }

    // The hub is killed and comes back while the link is cut.
    let pid = lab.lab(&["status", "hangzhou-1"])[0]["hub_pid"].clone();
    lab.lab(&["kill", "hangzhou-1"]);
    eventually("the hub is back", || {
        let status = lab.lab(&["status", "hangzhou-1"]);
        status[0]["hub"] == "offline" && status[0]["hub_pid"] != pid
    });
    reads_answer(&lab, &online);
    assert_eq!(node().ok(&path), local, "the local status is lost");

    lab.lab(&["heal", "hangzhou-1"]);
    lab.wait_hub("hangzhou-1", "online");
    eventually("the local status is in the cloud", || {
        lab.cloud().ok(&path) == local
    });
    assert_eq!(lab.lab(&["status", "hangzhou-1"])[0]["journal"], 0);
}

/// What a person at a cut-off node asks.
fn reads_answer(lab: &Lab, online: &str) {
    let node = || lab.node("hangzhou-1").without_cache();
    assert_eq!(node().ok(&["get", "pods", "-A", "-o", "name"]), online);
    let table = node().ok(&["get", "pods"]);
    assert!(table.contains("READY") && table.contains("1/1"), "{table}");
    let yaml = node().ok(&["get", "pod", "web-beijing-1", "-o", "yaml"]);
    assert!(
        yaml.contains("nodeName: beijing-1") && yaml.contains("seen: \"yes\""),
        "{yaml}"
    );
    let selected = node().ok(&["get", "pods", "-l", "site=hangzhou-2", "-o", "name"]);
    assert_eq!(selected.trim(), "pod/web-hangzhou-2");
    let described = node().ok(&["describe", "pod", "web-hangzhou-1"]);
    assert!(described.contains("Ready             True"), "{described}");
    let resources = node().ok(&["api-resources"]);
    assert!(
        resources.contains("deploy") && resources.contains("Pod"),
        "{resources}"
    );
    let version = node().ok(&["version"]);
    assert!(version.contains("Server Version"), "{version}");
    let mut watch = node().follow(&["get", "pods", "--watch"]);
    eventually("a new watch answers", || watch.lines().len() >= 4);
    assert!(watch.runs());
    let said = node().refused(&["get", "jobs", "-n", "kube-system"]);
    assert!(said.contains("offline") && said.contains("never"), "{said}");
}

#[test]
fn an_open_watch_shows_what_changed_in_the_cloud_without_a_relist() {
    let Some(lab) = lab_with_pods() else { return };
    for how in [&["cut", "hangzhou"][..], &["cut", "hangzhou", "--reset"]] {
        let mut follow = lab.node("hangzhou-1").follow(&[
            "get",
            "pods",
            "-w",
            "--output-watch-events",
            "-o",
            "jsonpath={.type} {.object.metadata.name} {.object.metadata.labels.tier}{\"\\n\"}",
        ]);
        eventually("the watch lists", || follow.lines().len() >= 3);
        lab.lab(how);
        lab.wait_hub("hangzhou-1", "offline");
        let tier = if how.len() == 2 {
            "tier=gold"
        } else {
            "tier=silver"
        };
        lab.cloud()
            .ok(&["label", "--overwrite", "pod", "web-beijing-1", tier]);
        let listed = follow.lines().len();
        lab.lab(&["heal", "hangzhou"]);
        eventually("the change", || {
            follow
                .lines()
                .iter()
                .any(|l| l.ends_with(&tier["tier=".len()..]))
        });
        let after = follow.lines().split_off(listed);
        assert!(
            after.iter().all(|l| !l.starts_with("ADDED")),
            "relisted: {after:?}"
        );
        assert!(follow.runs());
    }
}
