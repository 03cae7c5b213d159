//! The Job that converts a node, as OpenYurt makes it. Pure.

use super::plan::Direction;
use crate::{
    condition,
    fields::{items, text},
    fitting::fitting,
};
use serde_json::{Value, json};
use yurt_api::names::{
    finalizers::NODE_CONVERSION, labels::CONVERSION_NODE, objects::CONVERSION_JOB_PREFIX,
};

/// How long a job is kept after its end, in seconds.
const KEPT: u32 = 7200;

/// How a job goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Running,
    Succeeded,
    Failed(String),
}

/// The name of a node's job.
pub(super) fn name(node: &str) -> String {
    fitting(CONVERSION_JOB_PREFIX, node)
}

/// The job.
pub(super) fn job(
    node: &str,
    pool: &str,
    direction: Direction,
    image: &str,
    namespace: &str,
) -> Value {
    let pool = match direction {
        Direction::Convert => format!(" --nodepool-name={pool}"),
        Direction::Revert => String::new(),
    };
    let command = format!("/usr/local/bin/entry.sh {direction} --node-name={node}{pool}");
    let labels = json!({CONVERSION_NODE: fitting("", node)});
    let tolerations = json!([{"operator": "Exists", "effect": "NoSchedule"}, {"operator": "Exists", "effect": "NoExecute"}]);
    json!({
        "metadata": {"name": name(node), "namespace": namespace, "labels": labels, "finalizers": [NODE_CONVERSION]},
        "spec": {"backoffLimit": 3, "ttlSecondsAfterFinished": KEPT, "template": {"metadata": {"labels": labels}, "spec": {
            "hostPID": true, "hostNetwork": true, "restartPolicy": "OnFailure", "nodeName": node, "tolerations": tolerations,
            "automountServiceAccountToken": false,
            "containers": [{"name": "node-servant", "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c"], "args": [command], "securityContext": {"privileged": true},
                "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                "volumeMounts": [{"name": "host-root", "mountPath": "/openyurt"}]}],
            "volumes": [{"name": "host-root", "hostPath": {"path": "/", "type": "Directory"}}]}}},
    })
}

/// What it runs.
fn command(job: &Value) -> String {
    let containers = items(&job["spec"]["template"]["spec"]["containers"]);
    let words = containers.flat_map(|c| items(&c["command"]).chain(items(&c["args"])));
    let words: Vec<String> = words.map(text).collect();
    words.join(" ")
}

/// Which way it goes, by what it runs.
pub(super) fn direction(job: &Value) -> Direction {
    if command(job).contains(" revert ") {
        Direction::Revert
    } else {
        Direction::Convert
    }
}

/// The pool it converts for, or `""`.
pub(super) fn pool(job: &Value) -> String {
    let command = command(job);
    let mut words = command.split_whitespace();
    let pool = words.find_map(|word| word.strip_prefix("--nodepool-name="));
    pool.unwrap_or_default().to_owned()
}

/// The node it is for.
pub(super) fn node(job: &Value) -> Option<&str> {
    job["spec"]["template"]["spec"]["nodeName"].as_str()
}

/// How it goes.
pub(super) fn outcome(job: &Value) -> Outcome {
    if condition::holds(&job["status"], "Complete") {
        return Outcome::Succeeded;
    }
    let failed = condition::find(&job["status"], "Failed").filter(|c| c["status"] == "True");
    failed.map_or(Outcome::Running, |failed| {
        let said = format!("{} {}", text(&failed["reason"]), text(&failed["message"]));
        Outcome::Failed(format!(
            "job {} failed: {}",
            text(&job["metadata"]["name"]),
            said.trim()
        ))
    })
}

/// Whether its end has been told: the finalizer is gone.
pub(super) fn is_told(job: &Value) -> bool {
    items(&job["metadata"]["finalizers"]).all(|finalizer| finalizer != NODE_CONVERSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fitting::LONGEST;

    #[test]
    fn a_job_is_one_of_openyurt() {
        let convert = job("n1", "p", Direction::Convert, "i", "kube-system");
        assert_eq!(convert["metadata"]["name"], "node-servant-conversion-n1");
        let args = &convert["spec"]["template"]["spec"]["containers"][0]["args"];
        assert_eq!(
            *args,
            json!(["/usr/local/bin/entry.sh convert --node-name=n1 --nodepool-name=p"])
        );
        assert_eq!(
            (direction(&convert), pool(&convert).as_str(), node(&convert)),
            (Direction::Convert, "p", Some("n1"))
        );
        let revert = job("n1", "", Direction::Revert, "i", "kube-system");
        assert_eq!(
            (direction(&revert), pool(&revert).as_str()),
            (Direction::Revert, "")
        );
        assert!(!is_told(&convert) && is_told(&json!({})));
        let long = "n".repeat(100);
        for other in [long.clone(), format!("{long}x")] {
            let job = job(&other, "p", Direction::Convert, "i", "ns");
            let fits = |value: &Value| text(value).len() <= LONGEST;
            assert!(
                fits(&job["metadata"]["name"]) && fits(&job["metadata"]["labels"][CONVERSION_NODE])
            );
            assert_eq!(node(&job), Some(other.as_str()));
        }
        assert_ne!(name(&long), name(&format!("{long}x")));
    }
}
