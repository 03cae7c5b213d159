//! Pods: one word for the state of all their containers.

use super::{
    AGE, BuiltIn, Fields, NAME, Spec,
    age::{human_since, parse},
    built_in, text,
};
use serde_json::{Value, json};

pub(super) const PRINTERS: &[BuiltIn] = &[built_in("", "Pod", COLUMNS, cells)];

const COLUMNS: &[Spec] = &[
    NAME,
    text("Ready", "Containers that are ready, of all."),
    text("Status", "The state of the containers in one word."),
    text(
        "Restarts",
        "Restarts of the containers, and how long ago the last one was.",
    ),
    AGE,
    text("IP", "Address of the pod.").wide(),
    text("Node", "Node the pod is bound to.").wide(),
    text(
        "Nominated Node",
        "Node on which other pods make room for this one.",
    )
    .wide(),
    text(
        "Readiness Gates",
        "Conditions of the readiness gates that hold, of all.",
    )
    .wide(),
];

/// Restarts and the time of the last one.
#[derive(Clone, Default)]
struct Restarts {
    count: i64,
    last: String,
}

impl Restarts {
    fn add(&mut self, status: Fields<'_>) {
        self.count = self.count.saturating_add(status.int("restartCount"));
        let finished = status.text("lastState.terminated.finishedAt");
        if parse(&finished) > parse(&self.last) {
            self.last = finished;
        }
    }
    fn show(&self, now: i64) -> String {
        if self.count != 0 && !self.last.is_empty() {
            format!("{} ({} ago)", self.count, human_since(&self.last, now))
        } else {
            self.count.to_string()
        }
    }
}

/// What the columns tell of the containers.
struct Summary {
    status: String,
    ready: usize,
    total: usize,
    restarts: Restarts,
}

/// Why a terminated container ended.
fn termination(terminated: Fields<'_>) -> String {
    let reason = terminated.text("reason");
    if !reason.is_empty() {
        reason
    } else if terminated.int("signal") != 0 {
        format!("Signal:{}", terminated.int("signal"))
    } else {
        format!("ExitCode:{}", terminated.int("exitCode"))
    }
}

/// Init containers that go on running beside the others (sidecars).
fn is_sidecar(pod: Fields<'_>, name: &str) -> bool {
    pod.list("spec.initContainers")
        .any(|container| container.is("name", name) && container.is("restartPolicy", "Always"))
}

fn summarize(pod: Fields<'_>) -> Summary {
    let sidecars = pod
        .list("spec.initContainers")
        .filter(|container| container.is("restartPolicy", "Always"))
        .count();
    let mut summary = Summary {
        status: pod.text_or("status.reason", &pod.text("status.phase")),
        ready: 0,
        total: pod.count("spec.containers") + sidecars,
        restarts: Restarts::default(),
    };
    const GATED: &str = "SchedulingGated";
    if pod
        .condition("PodScheduled")
        .is_some_and(|c| c.is("reason", GATED))
    {
        summary.status = GATED.to_owned();
    }
    let mut sidecar_restarts = Restarts::default();
    let initializing = read_init_containers(pod, &mut summary, &mut sidecar_restarts);
    if !initializing || pod.condition_is_true("Initialized") {
        // Restarts during initialization that is over are of no interest any more.
        summary.restarts = sidecar_restarts;
        read_containers(pod, &mut summary);
    }
    if pod.is_being_deleted() {
        let terminal = ["Succeeded", "Failed"]
            .iter()
            .any(|phase| pod.is("status.phase", phase));
        if pod.is("status.reason", "NodeLost") {
            summary.status = "Unknown".to_owned();
        } else if !terminal {
            summary.status = "Terminating".to_owned();
        }
    }
    summary
}

/// Goes through the init containers up to the one that holds up the pod; tells whether there is one.
fn read_init_containers(
    pod: Fields<'_>,
    summary: &mut Summary,
    sidecar_restarts: &mut Restarts,
) -> bool {
    for (at, container) in pod.list("status.initContainerStatuses").enumerate() {
        let sidecar = is_sidecar(pod, &container.text("name"));
        summary.restarts.add(container);
        if sidecar {
            sidecar_restarts.add(container);
        }
        let state = container.at("state");
        let waiting = state.text("waiting.reason");
        if state.exists("terminated") {
            if state.int("terminated.exitCode") == 0 {
                continue;
            }
            if sidecar && container.bool_or("started", false) {
                summary.ready += usize::from(container.bool_or("ready", false));
                continue;
            }
            summary.status = format!("Init:{}", termination(state.at("terminated")));
        } else if sidecar && container.bool_or("started", false) {
            summary.ready += usize::from(container.bool_or("ready", false));
            continue;
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            summary.status = format!("Init:{waiting}");
        } else {
            summary.status = format!("Init:{at}/{}", pod.count("spec.initContainers"));
        }
        return true;
    }
    false
}

/// The first container that is not running gives the pod its status.
fn read_containers(pod: Fields<'_>, summary: &mut Summary) {
    let mut running = false;
    for container in pod.list("status.containerStatuses").rev() {
        summary.restarts.add(container);
        let state = container.at("state");
        let waiting = state.text("waiting.reason");
        if !waiting.is_empty() {
            summary.status = waiting;
        } else if state.exists("terminated") {
            summary.status = termination(state.at("terminated"));
        } else if container.bool_or("ready", false) && state.exists("running") {
            running = true;
            summary.ready += 1;
        }
    }
    // Some containers may be done while others still run.
    if summary.status == "Completed" && running {
        summary.status = match pod.condition_is_true("Ready") {
            true => "Running".to_owned(),
            false => "NotReady".to_owned(),
        };
    }
}

fn readiness_gates(pod: Fields<'_>) -> String {
    let all = pod.count("spec.readinessGates");
    if all == 0 {
        return "<none>".to_owned();
    }
    let holding = pod
        .list("spec.readinessGates")
        .filter(|gate| pod.condition_is_true(&gate.text("conditionType")))
        .count();
    format!("{holding}/{all}")
}

fn cells(pod: Fields<'_>, now: i64) -> Vec<Value> {
    let summary = summarize(pod);
    let ip = pod
        .list("status.podIPs")
        .next()
        .map_or(String::new(), |first| first.text("ip"));
    vec![
        pod.name(),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.status),
        json!(summary.restarts.show(now)),
        pod.age(now),
        json!(super::fields::or_none(ip)),
        json!(pod.text_or("spec.nodeName", "<none>")),
        json!(pod.text_or("status.nominatedNodeName", "<none>")),
        json!(readiness_gates(pod)),
    ]
}

/// The row condition that marks a pod as done.
pub(super) fn row_conditions(pod: Fields<'_>) -> Option<Value> {
    let phase = pod.text("status.phase");
    let message = match phase.as_str() {
        "Succeeded" => "All containers of the pod ended without an error.",
        "Failed" => "A container of the pod ended with an error.",
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]))
}
