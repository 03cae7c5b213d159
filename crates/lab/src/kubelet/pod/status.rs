//! The status of a pod as a kubelet reports it.

use super::{
    super::{clock::time, fingerprint},
    run::{Container, Exit, Kind, Over, Problem, Run, State, specs},
    uid,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// The condition that shows how often a pod was touched by the lab's command.
pub(in crate::kubelet) const TOUCHED: &str = "lab.yurt.io/Touched";

/// What a runtime would still have of a pod after a restart of the kubelet.
pub(crate) fn adopted(pod: &Value, now: Timestamp) -> Option<Run> {
    let status = &pod["status"];
    if !matches!(status["phase"].as_str(), Some("Running" | "Pending")) {
        return None;
    }
    let ip = status["podIP"].as_str()?.parse().ok()?;
    let started: Timestamp = status["startTime"].as_str()?.parse().ok()?;
    let mut run = Run::new(pod, ip, started, SignedDuration::ZERO);
    for (container, (kind, spec)) in run.containers.iter_mut().zip(specs(pod)) {
        let field = match kind {
            Kind::Main => "containerStatuses",
            _ => "initContainerStatuses",
        };
        let mut statuses = status[field].as_array().into_iter().flatten();
        if let Some(known) = statuses.find(|known| known["name"] == spec["name"]) {
            adopt(container, known, now);
        }
    }
    Some(run)
}

/// A pod that ran is started again: its containers go on counting, those that ran were killed.
pub(crate) fn count_restarts(run: &mut Run, pod: &Value, now: Timestamp) {
    const KILLED: i64 = 255;
    for (container, (kind, spec)) in run.containers.iter_mut().zip(specs(pod)) {
        let field = match kind {
            Kind::Main => "containerStatuses",
            _ => "initContainerStatuses",
        };
        let mut statuses = pod["status"][field].as_array().into_iter().flatten();
        let Some(known) = statuses.find(|known| known["name"] == spec["name"]) else {
            continue;
        };
        container.restarts = known["restartCount"].as_i64().unwrap_or(0);
        container.last = exit(&known["lastState"]["terminated"]);
        let since = known["state"]["running"]["startedAt"].as_str();
        if let Some(since) = since.and_then(|since| since.parse().ok()) {
            let (code, at) = (KILLED, now);
            container.last = Some(Exit { code, since, at });
            container.restarts += 1;
        }
    }
}

fn exit(terminated: &Value) -> Option<Exit> {
    Some(Exit {
        code: terminated["exitCode"].as_i64().unwrap_or(0),
        since: terminated["startedAt"].as_str()?.parse().ok()?,
        at: terminated["finishedAt"].as_str()?.parse().ok()?,
    })
}

fn adopt(container: &mut Container, known: &Value, now: Timestamp) {
    let state = &known["state"];
    container.restarts = known["restartCount"].as_i64().unwrap_or(0);
    container.last = exit(&known["lastState"]["terminated"]);
    container.failures = u32::try_from(container.restarts).unwrap_or(0);
    let since = state["running"]["startedAt"].as_str();
    if let Some(since) = since.and_then(|since| since.parse().ok()) {
        container.state = State::Running { since };
    } else if let Some(exit) = exit(&state["terminated"]) {
        container.state = State::Ended(exit);
    } else if container.last.is_some() {
        container.state = State::BackOff {
            until: now,
            pause: 0,
        };
    }
}

/// The patch that makes the status say what is the case; `None` when it does.
pub(super) fn patch(
    pod: &Value,
    run: &Run,
    host: IpAddr,
    touches: u64,
    now: Timestamp,
) -> Option<Value> {
    let old = &pod["status"];
    let mut patch = Map::new();
    for (field, value) in plain_fields(pod, run, host, now) {
        if !covers(&old[field], &value) {
            patch.insert(field.to_owned(), value);
        }
    }
    // Merged by `ip`: a kubelet says which ones are to be left.
    let own = run.ip.filter(|_| now >= run.prepared);
    for (field, ip) in [("podIPs", own), ("hostIPs", Some(host))] {
        let Some(ip) = ip else { continue };
        let list = json!([{"ip": ip.to_string()}]);
        if !covers(&old[field], &list) {
            patch.insert(format!("$setElementOrder/{field}"), list.clone());
            let others = old[field].as_array().into_iter().flatten();
            let others = others.filter(|known| known["ip"] != ip.to_string().as_str());
            let gone = others.map(|known| json!({"ip": known["ip"], "$patch": "delete"}));
            let all = list.as_array().cloned().unwrap_or_default().into_iter();
            patch.insert(field.to_owned(), all.chain(gone).collect());
        }
    }
    let (conditions, changed) = conditions(pod, run, touches, now);
    if !changed.is_empty() {
        patch.insert("$setElementOrder/conditions".to_owned(), conditions.into());
        patch.insert("conditions".to_owned(), changed.into());
    }
    (!patch.is_empty()).then(|| json!({"metadata": {"uid": uid(pod)}, "status": patch}))
}

fn phase(pod: &Value, run: &Run, now: Timestamp) -> &'static str {
    let failed = matches!(&run.over, Some(Over { failure: Some(_) }));
    if failed || run.has_failed_init(pod) {
        return "Failed";
    }
    let mains = || run.containers.iter().filter(|c| c.kind == Kind::Main);
    let never_ran = |c: &Container| matches!(c.state, State::Waiting(_));
    if run.over.is_none() && !run.is_initialized(pod, now) || mains().any(never_ran) {
        return "Pending";
    }
    let exits: Option<Vec<&Exit>> = mains()
        .map(|container| match &container.state {
            State::Ended(exit) => Some(exit),
            _ => None,
        })
        .collect();
    match exits {
        None => "Running",
        Some(exits) if exits.iter().all(|exit| exit.code == 0) => "Succeeded",
        Some(_) => "Failed",
    }
}

fn plain_fields(
    pod: &Value,
    run: &Run,
    host: IpAddr,
    now: Timestamp,
) -> Vec<(&'static str, Value)> {
    let mut fields = vec![
        ("phase", phase(pod, run, now).into()),
        ("hostIP", host.to_string().into()),
        ("startTime", time(run.started).into()),
    ];
    if let Some(ip) = run.ip.filter(|_| now >= run.prepared) {
        fields.push(("podIP", ip.to_string().into()));
    }
    if let Some(Over {
        failure: Some((reason, message)),
    }) = &run.over
    {
        fields.push(("reason", reason.clone().into()));
        fields.push(("message", message.clone().into()));
    }
    if let Some(generation) = pod["metadata"]["generation"].as_i64() {
        fields.push(("observedGeneration", generation.into()));
    }
    let has_init = run.containers.iter().any(|c| c.kind != Kind::Main);
    let statuses = |main: bool| -> Vec<Value> {
        let containers = run.containers.iter().zip(specs(pod));
        containers
            .filter(|(container, _)| (container.kind == Kind::Main) == main)
            .map(|(container, (_, spec))| container_status(pod, container, spec, has_init, now))
            .collect()
    };
    for (field, main) in [
        ("initContainerStatuses", false),
        ("containerStatuses", true),
    ] {
        let statuses = statuses(main);
        if !statuses.is_empty() {
            fields.push((field, statuses.into()));
        }
    }
    fields
}

fn container_id(pod: &Value, name: &str, since: Timestamp) -> String {
    let since = time(since);
    format!(
        "simulated://{:032x}{:032x}",
        fingerprint(&[uid(pod), name, &since]),
        fingerprint(&[name, uid(pod), &since]),
    )
}

fn terminated(pod: &Value, name: &str, exit: &Exit) -> Value {
    json!({"terminated": {
        "exitCode": exit.code, "reason": if exit.code == 0 { "Completed" } else { "Error" },
        "containerID": container_id(pod, name, exit.since),
        "startedAt": time(exit.since), "finishedAt": time(exit.at),
    }})
}

fn container_status(
    pod: &Value,
    container: &Container,
    spec: &Value,
    has_init: bool,
    now: Timestamp,
) -> Value {
    let name = spec["name"].as_str().unwrap_or_default();
    let image = spec["image"].as_str().unwrap_or_default();
    let waiting = |reason: &str, message: String| {
        let mut waiting = json!({"reason": reason});
        if !message.is_empty() {
            waiting["message"] = message.into();
        }
        json!({"waiting": waiting})
    };
    let state = match &container.state {
        State::Running { since } => json!({"running": {"startedAt": time(*since)}}),
        State::Ended(exit) => terminated(pod, name, exit),
        State::Waiting(None) if has_init => waiting("PodInitializing", String::new()),
        State::Waiting(None) => waiting("ContainerCreating", String::new()),
        State::Waiting(Some(Problem::Config(missing))) => {
            waiting("CreateContainerConfigError", missing.clone())
        }
        State::Waiting(Some(Problem::Pull { tried }))
            if now < *tried + SignedDuration::from_secs(2) =>
        {
            waiting(
                "ErrImagePull",
                format!("failed to pull image \"{image}\": not found"),
            )
        }
        State::Waiting(Some(Problem::Pull { .. })) => waiting(
            "ImagePullBackOff",
            format!("Back-off pulling image \"{image}\""),
        ),
        State::BackOff { pause, .. } => {
            let meta = &pod["metadata"];
            waiting(
                "CrashLoopBackOff",
                format!(
                    "back-off {} restarting failed container={name} pod={}_{}({})",
                    go_duration(*pause),
                    meta["name"].as_str().unwrap_or_default(),
                    meta["namespace"].as_str().unwrap_or_default(),
                    uid(pod),
                ),
            )
        }
    };
    let since = match (&container.state, &container.last) {
        (State::Running { since }, _) => Some(*since),
        (State::Ended(exit), _) | (_, Some(exit)) => Some(exit.since),
        _ => None,
    };
    let last = container.last.as_ref().filter(|last| {
        // One that ended for good in its pause has only ended once.
        !matches!(&container.state, State::Ended(exit) if exit == *last)
    });
    let mut status = json!({
        "name": name, "state": state,
        "lastState": last.map_or_else(|| json!({}), |exit| terminated(pod, name, exit)),
        "restartCount": container.restarts,
        "ready": container.is_ready(pod, spec, now),
        "started": container.is_started(spec, now),
        "image": image, "imageID": "",
    });
    if let Some(since) = since {
        status["containerID"] = container_id(pod, name, since).into();
        let digest = [fingerprint(&[image]), fingerprint(&[image, image])];
        status["imageID"] = format!("sha256:{:032x}{:032x}", digest[0], digest[1]).into();
    }
    status
}

/// As Go writes whole seconds: `10s`, `2m40s`, `5m0s`.
fn go_duration(seconds: i64) -> String {
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{}s", seconds % 60),
    }
}

/// A condition as it should be: type, status, reason, message.
type Wanted = (&'static str, bool, Option<&'static str>, Option<String>);

fn wanted(pod: &Value, run: &Run, gate_open: impl Fn(&str) -> bool, now: Timestamp) -> Vec<Wanted> {
    let ended = match phase(pod, run, now) {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let names = |which: &dyn Fn(&Container, &Value) -> bool| -> Vec<&str> {
        let containers = run.containers.iter().zip(specs(pod));
        containers
            .filter(|(container, (_, spec))| which(container, spec))
            .filter_map(|(_, (_, spec))| spec["name"].as_str())
            .collect()
    };
    let incomplete = names(&|container, spec| !container.lets_others_start(spec, now));
    let unready = names(&|container, spec| {
        container.kind != Kind::Init && !container.is_ready(pod, spec, now)
    });
    let list = |what: &str, names: &[&str]| {
        Some(format!(
            "containers with {what} status: [{}]",
            names.join(" ")
        ))
    };
    let initialized: Wanted = match (ended, incomplete.is_empty()) {
        (Some("PodCompleted"), _) => ("Initialized", true, ended, None),
        (_, true) => ("Initialized", true, None, None),
        (_, false) => (
            "Initialized",
            false,
            Some("ContainersNotInitialized"),
            list("incomplete", &incomplete),
        ),
    };
    let containers = match (ended, unready.is_empty()) {
        (Some(reason), _) => (false, Some(reason), None),
        (None, true) => (true, None, None),
        (None, false) => (false, Some("ContainersNotReady"), list("unready", &unready)),
    };
    let closed_gate = gates(pod).find(|gate| !gate_open(gate));
    let ready = match closed_gate {
        Some(gate) if containers.0 => (
            false,
            Some("ReadinessGatesNotReady"),
            Some(format!("the readiness gate \"{gate}\" is not true")),
        ),
        _ => containers.clone(),
    };
    let up = run.ip.is_some()
        && now >= run.prepared
        && ended.is_none()
        && run.over.is_none()
        && !run.unmounted;
    vec![
        ("PodReadyToStartContainers", up, None, None),
        initialized,
        ("Ready", ready.0, ready.1, ready.2),
        ("ContainersReady", containers.0, containers.1, containers.2),
        ("PodScheduled", true, None, None),
    ]
}

/// The order of all conditions, and those that differ from what the API server has.
fn conditions(pod: &Value, run: &Run, touches: u64, now: Timestamp) -> (Vec<Value>, Vec<Value>) {
    let old = pod["status"]["conditions"].as_array();
    let find = |kind: &str| {
        old.and_then(|conditions| conditions.iter().find(|c| c["type"] == kind))
            .unwrap_or(&Value::Null)
    };
    let mut wanted = wanted(pod, run, |gate| find(gate)["status"] == "True", now);
    if touches > 0 {
        let message = format!("touched {touches} times");
        wanted.push((TOUCHED, true, Some("Touched"), Some(message)));
    }
    let generation = pod["metadata"]["generation"].as_i64();
    let (mut order, mut changed) = (Vec::new(), Vec::new());
    for (kind, status, reason, message) in wanted {
        order.push(json!({"type": kind}));
        let was = find(kind);
        let status = if status { "True" } else { "False" };
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
        (Value::Null, Value::String(text)) => text.is_empty(),
        (Value::Null, Value::Number(number)) => number.as_i64() == Some(0),
        _ => old == new,
    }
}
