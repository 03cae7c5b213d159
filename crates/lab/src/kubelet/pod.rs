//! What a kubelet does with a pod, as functions of values.

use super::{clock::time, fingerprint};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, net::IpAddr};

/// The condition that shows how often a pod was touched by the lab's command.
pub(super) const TOUCHED: &str = "lab.yurt.io/Touched";

/// The containers of a pod as the (simulated) runtime knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) ip: IpAddr,
    /// RFC 3339.
    pub(super) started: String,
    /// RFC 3339; `None` while they run.
    pub(super) stopped: Option<String>,
}

/// What to do next with a pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing until something changes.
    Rest,
    /// Start its containers.
    Start,
    /// Stop them.
    Stop,
    /// Patch its status.
    Report(Value),
    /// Tell the API server that nothing of it is left.
    Delete,
}

/// Decides. `run` is what the runtime has, `touches` how often the lab touched the pod.
pub(super) fn next_step(
    pod: &Value,
    run: Option<&Run>,
    host: IpAddr,
    touches: u64,
    now: Timestamp,
) -> Step {
    let deleting = is_deleting(pod);
    match run {
        None if deleting => Step::Delete,
        None if is_finished(pod) => Step::Rest,
        None => Step::Start,
        Some(run) if deleting && run.stopped.is_none() => Step::Stop,
        Some(run) => match status_patch(pod, run, host, touches, now) {
            Some(patch) => Step::Report(patch),
            None if deleting => Step::Delete,
            None => Step::Rest,
        },
    }
}

pub(super) fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().unwrap_or_default()
}

fn is_deleting(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_string()
}

/// Succeeded or failed: its containers do not start again.
fn is_finished(pod: &Value) -> bool {
    matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

/// Whether the API server shows it running.
pub(super) fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && !is_deleting(pod)
}

pub(super) fn uses_host_network(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] == true
}

/// What a runtime would still have of a pod after a restart of the kubelet.
pub(super) fn adopted(pod: &Value) -> Option<Run> {
    let status = &pod["status"];
    let running = &status["containerStatuses"][0]["state"]["running"];
    if status["phase"] != "Running" {
        return None;
    }
    Some(Run {
        ip: status["podIP"].as_str()?.parse().ok()?,
        started: running["startedAt"].as_str()?.to_owned(),
        stopped: None,
    })
}

/// The patch that makes the status say what is the case; `None` when it does.
fn status_patch(
    pod: &Value,
    run: &Run,
    host: IpAddr,
    touches: u64,
    now: Timestamp,
) -> Option<Value> {
    let old = &pod["status"];
    let mut patch = Map::new();
    for (field, value) in plain_fields(pod, run, host) {
        if !covers(&old[field], &value) {
            patch.insert(field.to_owned(), value);
        }
    }
    // Merged by `ip`: a kubelet says which ones are to be left.
    for (field, ip) in [("podIPs", run.ip), ("hostIPs", host)] {
        let list = json!([{"ip": ip.to_string()}]);
        if !covers(&old[field], &list) {
            patch.insert(format!("$setElementOrder/{field}"), list.clone());
            patch.insert(field.to_owned(), list);
        }
    }
    let (conditions, changed) = conditions(pod, run, touches, now);
    if !changed.is_empty() {
        patch.insert("$setElementOrder/conditions".to_owned(), conditions.into());
        patch.insert("conditions".to_owned(), changed.into());
    }
    (!patch.is_empty()).then(|| json!({"metadata": {"uid": uid(pod)}, "status": patch}))
}

fn plain_fields(pod: &Value, run: &Run, host: IpAddr) -> Vec<(&'static str, Value)> {
    let phase = if run.stopped.is_some() {
        "Succeeded"
    } else {
        "Running"
    };
    let mut fields = vec![
        ("phase", phase.into()),
        ("hostIP", host.to_string().into()),
        ("podIP", run.ip.to_string().into()),
        ("startTime", run.started.clone().into()),
    ];
    if let Some(generation) = pod["metadata"]["generation"].as_i64() {
        fields.push(("observedGeneration", generation.into()));
    }
    for (kind, field) in [
        ("initContainers", "initContainerStatuses"),
        ("containers", "containerStatuses"),
    ] {
        let containers = pod["spec"][kind].as_array().map(Vec::as_slice);
        let statuses: Vec<Value> = containers
            .unwrap_or_default()
            .iter()
            .map(|container| container_status(pod, container, run, kind == "initContainers"))
            .collect();
        if !statuses.is_empty() {
            fields.push((field, statuses.into()));
        }
    }
    fields
}

fn container_status(pod: &Value, container: &Value, run: &Run, init: bool) -> Value {
    let name = container["name"].as_str().unwrap_or_default();
    let image = container["image"].as_str().unwrap_or_default();
    let id = format!(
        "simulated://{:032x}{:032x}",
        fingerprint(&[uid(pod), name, &run.started]),
        fingerprint(&[name, uid(pod), &run.started]),
    );
    // A sidecar is an init container that goes on.
    let sidecar = init && container["restartPolicy"] == "Always";
    let ended = match &run.stopped {
        Some(stopped) => Some(stopped),
        None if init && !sidecar => Some(&run.started),
        None => None,
    };
    let state = match ended {
        Some(finished) => json!({"terminated": {
            "exitCode": 0, "reason": "Completed", "containerID": id,
            "startedAt": run.started, "finishedAt": finished,
        }}),
        None => json!({"running": {"startedAt": run.started}}),
    };
    json!({
        "name": name, "state": state, "lastState": {}, "restartCount": 0,
        "ready": ended.is_none() || init && run.stopped.is_none(),
        "started": ended.is_none(),
        "image": image,
        "imageID": format!("sha256:{:032x}{:032x}", fingerprint(&[image]), fingerprint(&[image, image])),
        "containerID": id,
    })
}

/// The order of all conditions, and those that differ from what the API server has.
fn conditions(pod: &Value, run: &Run, touches: u64, now: Timestamp) -> (Vec<Value>, Vec<Value>) {
    let old = pod["status"]["conditions"].as_array();
    let find = |kind: &str| {
        old.and_then(|conditions| conditions.iter().find(|c| c["type"] == kind))
            .unwrap_or(&Value::Null)
    };
    let finished = run.stopped.is_some();
    let ended = |value| {
        if finished {
            Some("PodCompleted")
        } else {
            value
        }
    };
    let missing_gate = gates(pod).find(|gate| find(gate)["status"] != "True");
    let up = if finished { "False" } else { "True" };
    let ready = if missing_gate.is_some() { "False" } else { up };
    let mut wanted = vec![
        ("PodReadyToStartContainers", up, None, None),
        ("Initialized", "True", ended(None), None),
        (
            "Ready",
            ready,
            ended(missing_gate.map(|_| "ReadinessGatesNotReady")),
            missing_gate
                .filter(|_| !finished)
                .map(|gate| format!("the readiness gate \"{gate}\" is not true")),
        ),
        ("ContainersReady", up, ended(None), None),
        ("PodScheduled", "True", None, None),
    ];
    if touches > 0 {
        let message = format!("touched {touches} times");
        wanted.push((TOUCHED, "True", Some("Touched"), Some(message)));
    }
    let generation = pod["metadata"]["generation"].as_i64();
    let (mut order, mut changed) = (Vec::new(), Vec::new());
    for (kind, status, reason, message) in wanted {
        order.push(json!({"type": kind}));
        let was = find(kind);
        let mut condition = json!({"type": kind, "status": status});
        if let Some(reason) = reason {
            condition["reason"] = reason.into();
        }
        if let Some(message) = message {
            condition["message"] = message.into();
        }
        if let Some(generation) = generation {
            condition["observedGeneration"] = generation.into();
        }
        let same = ["status", "reason", "message", "observedGeneration"]
            .iter()
            .all(|field| was[field] == condition[field]);
        if same {
            continue;
        }
        // Null takes away what was said before.
        for field in ["reason", "message"] {
            if condition[field].is_null() && !was[field].is_null() {
                condition[field] = Value::Null;
            }
        }
        if was["status"] != status {
            condition["lastTransitionTime"] = time(now).into();
        }
        condition["lastProbeTime"] = Value::Null;
        changed.push(condition);
    }
    // Conditions of others stay where they are.
    for condition in old.into_iter().flatten() {
        let kind = json!({"type": condition["type"]});
        if !order.contains(&kind) {
            order.push(kind);
        }
    }
    (order, changed)
}

fn gates(pod: &Value) -> impl Iterator<Item = &str> {
    pod["spec"]["readinessGates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|gate| gate["conditionType"].as_str())
}

/// Whether `old` says all that `new` says: servers and encodings add defaults and leave empty things out.
fn covers(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (_, Value::Object(new)) if new.is_empty() => matches!(old, Value::Null | Value::Object(_)),
        (Value::Object(old), Value::Object(new)) => new
            .iter()
            .all(|(key, value)| covers(old.get(key).unwrap_or(&Value::Null), value)),
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| covers(old, new))
        }
        (Value::Null, Value::Bool(false)) => true,
        (Value::Null, Value::Number(number)) => number.as_i64() == Some(0),
        _ => old == new,
    }
}

/// A ConfigMap or Secret that a pod reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Reference {
    /// `configmaps` or `secrets`.
    pub(super) resource: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What a pod reads: a kubelet watches each of them.
pub(super) fn references(pod: &Value) -> BTreeSet<Reference> {
    let spec = &pod["spec"];
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let mut found = BTreeSet::new();
    let mut add = |resource: &'static str, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.insert(Reference {
                resource,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            });
        }
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for volume in list(&spec["volumes"]) {
        add("configmaps", &volume["configMap"]["name"]);
        add("secrets", &volume["secret"]["secretName"]);
        for source in list(&volume["projected"]["sources"]) {
            add("configmaps", &source["configMap"]["name"]);
            add("secrets", &source["secret"]["name"]);
        }
    }
    for container in ["initContainers", "containers"]
        .iter()
        .flat_map(|c| list(&spec[c]))
    {
        for from in list(&container["envFrom"]) {
            add("configmaps", &from["configMapRef"]["name"]);
            add("secrets", &from["secretRef"]["name"]);
        }
        for variable in list(&container["env"]) {
            add(
                "configmaps",
                &variable["valueFrom"]["configMapKeyRef"]["name"],
            );
            add("secrets", &variable["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    for secret in list(&spec["imagePullSecrets"]) {
        add("secrets", &secret["name"]);
    }
    found
}

/// The token a kubelet asks for before it starts a pod: path and body, when the pod wants one.
pub(super) fn token_request(pod: &Value) -> Option<(String, Value)> {
    let sources = pod["spec"]["volumes"]
        .as_array()?
        .iter()
        .flat_map(|volume| {
            volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten()
        });
    let token = sources
        .map(|source| &source["serviceAccountToken"])
        .find(|token| token.is_object())?;
    let meta = &pod["metadata"];
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{}/token",
        meta["namespace"].as_str()?,
        pod["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or("default"),
    );
    let audiences: Vec<&str> = token["audience"].as_str().into_iter().collect();
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": {},
        "spec": {
            "audiences": audiences,
            "expirationSeconds": token["expirationSeconds"].as_i64().unwrap_or(3600),
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"],
            },
        },
    });
    Some((path, request))
}

#[cfg(test)]
mod tests;
