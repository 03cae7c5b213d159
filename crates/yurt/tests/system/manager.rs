//! Pools, apps and upgrades as users of OpenYurt know them: what its documentation shows, with an unmodified kubectl.

mod apps;
mod daemons;
mod plugin;
mod pools;
mod static_sets;
pub(crate) mod takeover;
mod versions;

use crate::fixture::{Kubectl, Lab};
use serde_json::Value;

impl Lab {
    /// `kubectl apply` of a manifest, as the administrator.
    fn apply(&self, manifest: &str) {
        self.cloud().feed(&["apply", "-f", "-"], manifest);
    }

    /// `kubectl get -o json`.
    fn json(&self, args: &[&str]) -> Value {
        let args = [&["get", "-o", "json"], args].concat();
        serde_json::from_str(&self.cloud().ok(&args)).unwrap()
    }

    /// The items of `kubectl get -o json`.
    fn items(&self, args: &[&str]) -> Vec<Value> {
        self.json(args)["items"].as_array().cloned().unwrap()
    }
}

impl Kubectl {
    /// The cells of a table, without its head.
    fn rows(&self, args: &[&str]) -> Vec<Vec<String>> {
        let table = self.ok(args);
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        table.lines().skip(1).map(cells).collect()
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Whether a condition is `True`.
fn holds(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == kind && c["status"] == "True")
    })
}

fn image(object: &Value) -> &str {
    let spec = match &object["spec"]["template"] {
        Value::Null => &object["spec"],
        template => &template["spec"],
    };
    spec["containers"][0]["image"].as_str().unwrap_or_default()
}
