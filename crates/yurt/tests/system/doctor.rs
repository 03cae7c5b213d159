//! Would a node go on alone: asked with `yurt node doctor`, tried with `yurt node drill`.

use crate::fixture::{Lab, eventually, text, yurt};
use std::process::Output;

const NODE: &str = "hangzhou-1";

/// The admin address of a node's hub.
fn admin(lab: &Lab) -> String {
    let status = lab.lab(&["status", NODE]);
    format!("http://{}:10267", status[0]["address"].as_str().unwrap())
}

fn node(hub: &str, args: &[&str]) -> Output {
    let mut command = yurt();
    command.arg("node").args(args).args(["--hub", hub]);
    command.output().unwrap()
}

fn report(hub: &str) -> (Option<i32>, serde_json::Value) {
    let out = node(hub, &["doctor", "-o", "json"]);
    let report = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&out.stdout), text(&out.stderr)));
    (out.status.code(), report)
}

fn state(report: &serde_json::Value, id: &str) -> String {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["id"] == id).unwrap();
    check["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_node_that_lacks_a_secret_says_so_and_the_drill_proves_it() {
    let Some(lab) = Lab::start("hangzhou=1") else {
        return;
    };
    let hub = admin(&lab);
    lab.cloud().ok(&[
        "annotate",
        "node",
        NODE,
        "node.openyurt.io/autonomy-duration=2h",
    ]);
    lab.cloud().ok(&[
        "create",
        "secret",
        "generic",
        "db",
        "--from-literal=password=x",
    ]);
    lab.cloud().feed(
        &["apply", "-f", "-"],
        &format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"web"}},"spec":{{"nodeName":"{NODE}","volumes":[{{"name":"share","cephfs":{{"monitors":["m"],"secretRef":{{"name":"db"}}}}}}],
            "containers":[{{"name":"main","image":"registry.lab/app:1"}}]}}}}"#
        ),
    );
    eventually("the secret is the only thing missing", || {
        let (_, report) = report(&hub);
        state(&report, "objects") == "fail"
            && [
                "kubelet", "autonomy", "node", "pods", "lists", "tokens", "cache",
            ]
            .iter()
            .all(|id| state(&report, id) != "fail")
    });
    let (code, before) = report(&hub);
    assert_eq!(code, Some(1), "{before}");
    let said = node(&hub, &["doctor"]);
    assert_eq!(said.status.code(), Some(1));
    let said = text(&said.stdout);
    assert!(
        said.contains("FAIL  objects") && said.contains("default/db") && said.contains("-> "),
        "{said}"
    );
    // The cloud is told that the node may be trusted, by the annotation that OpenYurt's condition does not know.
    eventually("the condition Autonomy", || {
        let path = "jsonpath={.status.conditions[?(@.type==\"Autonomy\")].status}";
        lab.cloud().ok(&["get", "node", NODE, "-o", path]) == "True"
    });

    let drill = node(&hub, &["drill", "--for", "5s", "--yes"]);
    assert_eq!(drill.status.code(), Some(1), "{}", text(&drill.stderr));
    let said = text(&drill.stdout);
    assert!(
        said.contains("does not go on") && said.contains("/api/v1/namespaces/default/secrets/db"),
        "{said}"
    );

    // The simulated kubelet mounts nothing and so never reads it; another component of the node does.
    let component = lab.through(&hub.replace("10267", "10261"));
    let secret = component.ok(&["get", "secret", "db", "-o", "jsonpath={.data.password}"]);
    assert_eq!(secret, "eA==");
    eventually("it is cached, and the score rises", || {
        let (code, after) = report(&hub);
        code == Some(0) && after["score"].as_u64() > before["score"].as_u64()
    });
    let drill = node(&hub, &["drill", "--for", "5s", "--yes", "-o", "json"]);
    assert_eq!(
        drill.status.code(),
        Some(0),
        "{}{}",
        text(&drill.stdout),
        text(&drill.stderr)
    );
    // The cluster noticed nothing.
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    assert_eq!(lab.cloud().ok(&["get", "node", NODE, "-o", path]), "True");
}

#[test]
fn a_hub_that_is_not_there_cannot_be_asked() {
    let out = node("http://127.0.0.1:9", &["doctor"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(
        text(&out.stderr).contains("does the hub run"),
        "{}",
        text(&out.stderr)
    );
    // Nobody at a terminal agreed.
    let out = node("http://127.0.0.1:9", &["drill"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("--yes"), "{}", text(&out.stderr));
}
