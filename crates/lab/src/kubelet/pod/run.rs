//! The containers of a pod as the simulated runtime has them. Only time moves them: [`Run::advance`] does what is due and says when
//! something is due next.

use super::script;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::net::IpAddr;

/// A kubelet's pauses before it restarts what ends again and again, and before it pulls again.
const FIRST_BACKOFF: i64 = 10;
const LONGEST_BACKOFF: i64 = 300;
/// What has run for so long did not crash at the start.
const FORGIVEN: SignedDuration = SignedDuration::from_secs(600);
/// How long a failed pull is shown as such before it is shown as a pause.
const PULL_SHOWN: SignedDuration = SignedDuration::from_secs(2);
/// How long a container waits to learn whether what it reads is there. Offline nobody may know.
const FACTS_PATIENCE: SignedDuration = SignedDuration::from_secs(1);

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs to its end before the next starts.
    Init,
    /// An init container that goes on.
    Sidecar,
    Main,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(super) code: i64,
    pub(super) since: Timestamp,
    pub(super) at: Timestamp,
}

/// Why a container does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// Something that it reads is not there.
    Config(String),
    /// Its image cannot be pulled; when it was tried last.
    Pull { tried: Timestamp },
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Waiting(Option<Problem>),
    Running {
        since: Timestamp,
    },
    /// Ended for good.
    Ended(Exit),
    /// Ended, and will be started again.
    BackOff {
        until: Timestamp,
        pause: i64,
    },
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    pub(super) kind: Kind,
    pub(super) state: State,
    pub(super) restarts: i64,
    pub(super) last: Option<Exit>,
    /// Ends, or failed pulls, one after the other.
    pub(super) failures: u32,
}

/// The end of a pod as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    /// Reason and message of a failure that is the pod's.
    pub(super) failure: Option<(String, String)>,
}

/// A pod's containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// `None` for a pod that was not admitted.
    pub(super) ip: Option<IpAddr>,
    pub(super) started: Timestamp,
    /// When its network and volumes are there.
    pub(super) prepared: Timestamp,
    /// Init containers, then containers, as in the spec.
    pub(super) containers: Vec<Container>,
    pub(super) over: Option<Over>,
    /// A volume was missing, which was told.
    pub(super) unmounted: bool,
}

/// What happened, for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Occurrence {
    /// `spec.containers{main}`; empty when it is about the pod.
    pub(crate) field: String,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What is known about the objects that pods read.
pub(crate) trait Facts {
    /// `Some(true)` when it is there, `None` when nobody has told yet. `resource` is `configmaps` or `secrets`.
    fn exists(&self, resource: &'static str, namespace: &str, name: &str) -> Option<bool>;
}

/// Everything is there.
impl Facts for () {
    fn exists(&self, _: &'static str, _: &str, _: &str) -> Option<bool> {
        Some(true)
    }
}

/// The containers of a pod's spec in the order of [`Run::containers`].
pub(super) fn specs(pod: &Value) -> impl Iterator<Item = (Kind, &Value)> {
    let list = |field: &str| pod["spec"][field].as_array().into_iter().flatten();
    let init = list("initContainers").map(|container| {
        let sidecar = container["restartPolicy"] == "Always";
        (if sidecar { Kind::Sidecar } else { Kind::Init }, container)
    });
    init.chain(list("containers").map(|container| (Kind::Main, container)))
}

/// What one step needs.
struct Step<'a> {
    pod: &'a Value,
    now: Timestamp,
    facts: &'a dyn Facts,
    waited_for_facts: bool,
    next: Option<Timestamp>,
    told: &'a mut Vec<Occurrence>,
}

impl Step<'_> {
    fn due(&mut self, at: Timestamp) {
        if at > self.now {
            self.next = Some(self.next.map_or(at, |next| next.min(at)));
        }
    }

    fn tell(
        &mut self,
        kind: Kind,
        spec: &Value,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        let list = if kind == Kind::Main {
            "containers"
        } else {
            "initContainers"
        };
        let name = spec["name"].as_str().unwrap_or_default();
        self.told.push(Occurrence {
            field: format!("spec.{list}{{{name}}}"),
            warning,
            reason,
            message,
        });
    }
}

impl Run {
    /// A pod that was accepted at `now` and whose network takes `preparing`.
    pub(crate) fn new(pod: &Value, ip: IpAddr, now: Timestamp, preparing: SignedDuration) -> Self {
        let container = |(kind, _)| Container {
            kind,
            state: State::Waiting(None),
            restarts: 0,
            last: None,
            failures: 0,
        };
        Self {
            ip: Some(ip),
            started: now,
            prepared: now + preparing,
            containers: specs(pod).map(container).collect(),
            over: None,
            unmounted: false,
        }
    }

    /// A pod that the node does not take.
    pub(crate) fn rejected(now: Timestamp, reason: String, message: String) -> Self {
        Self {
            ip: None,
            started: now,
            prepared: now,
            containers: Vec::new(),
            over: Some(Over {
                failure: Some((reason, message)),
            }),
            unmounted: false,
        }
    }

    /// Its address.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// Whether nothing of it runs or will run.
    pub(crate) fn is_over(&self, pod: &Value) -> bool {
        self.over.is_some() || self.has_failed_init(pod) || self.mains_ended()
    }

    fn mains_ended(&self) -> bool {
        let mut mains = self.containers.iter().filter(|c| c.kind == Kind::Main);
        mains.all(|c| matches!(c.state, State::Ended(_)))
    }

    /// An init container ended badly and is not tried again.
    pub(super) fn has_failed_init(&self, pod: &Value) -> bool {
        pod["spec"]["restartPolicy"] == "Never"
            && self.containers.iter().any(|c| {
                c.kind == Kind::Init && matches!(c.state, State::Ended(exit) if exit.code != 0)
            })
    }

    /// Whether init containers are done and sidecars have started.
    pub(super) fn is_initialized(&self, pod: &Value, now: Timestamp) -> bool {
        let mut containers = self.containers.iter().zip(specs(pod));
        containers.all(|(container, (_, spec))| container.lets_others_start(spec, now))
    }

    /// Does what is due; when to look again.
    pub(crate) fn advance(
        &mut self,
        pod: &Value,
        now: Timestamp,
        facts: &dyn Facts,
        told: &mut Vec<Occurrence>,
    ) -> Option<Timestamp> {
        if self.over.is_some() {
            return None;
        }
        let patience = self.started + FACTS_PATIENCE;
        let mut step = Step {
            pod,
            now,
            facts,
            waited_for_facts: now >= patience,
            next: None,
            told,
        };
        if let Some(seconds) = pod["spec"]["activeDeadlineSeconds"].as_i64() {
            let deadline = self.started + SignedDuration::from_secs(seconds.clamp(0, 1 << 32));
            if now >= deadline && !self.mains_ended() {
                let message = "Pod was active on the node longer than the specified deadline";
                self.stop(now, 137, Some(("DeadlineExceeded".into(), message.into())));
                return None;
            }
            step.due(deadline);
        }
        if now < self.prepared {
            step.due(self.prepared);
            return step.next;
        }
        match missing_volume(&step) {
            Some(None) => {
                step.due(patience);
                return step.next;
            }
            Some(Some(message)) => {
                if !std::mem::replace(&mut self.unmounted, true) {
                    step.told.push(Occurrence {
                        field: String::new(),
                        warning: true,
                        reason: "FailedMount",
                        message,
                    });
                }
                // Its appearance will be told.
                return step.next;
            }
            None => self.unmounted = false,
        }
        let mut go_on = true;
        for (container, (_, spec)) in self.containers.iter_mut().zip(specs(pod)) {
            if go_on {
                container.advance(spec, patience, &mut step);
                go_on = container.lets_others_start(spec, now);
            }
        }
        let next = step.next;
        if self.mains_ended() || self.has_failed_init(pod) {
            self.stop_sidecars(now);
        }
        next
    }

    fn stop_sidecars(&mut self, now: Timestamp) {
        for container in self
            .containers
            .iter_mut()
            .filter(|c| c.kind == Kind::Sidecar)
        {
            container.stop(now, 0);
        }
    }

    /// Everything ends.
    pub(crate) fn stop(&mut self, now: Timestamp, code: i64, failure: Option<(String, String)>) {
        for container in &mut self.containers {
            container.stop(now, code);
        }
        self.over = Some(Over { failure });
    }

    /// Names of the containers that run.
    pub(crate) fn running<'a>(&'a self, pod: &'a Value) -> impl Iterator<Item = &'a str> {
        let containers = self.containers.iter().zip(specs(pod));
        containers
            .filter(|(container, _)| matches!(container.state, State::Running { .. }))
            .filter_map(|(_, (_, spec))| spec["name"].as_str())
    }
}

/// A volume that cannot be mounted: `Some(None)` when nobody knows yet, else what to say about it. Projected ones are made of what
/// there is: nothing reads them.
fn missing_volume(step: &Step<'_>) -> Option<Option<String>> {
    let namespace = step.pod["metadata"]["namespace"]
        .as_str()
        .unwrap_or_default();
    let mut unknown = false;
    for volume in step.pod["spec"]["volumes"].as_array().into_iter().flatten() {
        let sources = [
            ("configmaps", "configmap", &volume["configMap"], "name"),
            ("secrets", "secret", &volume["secret"], "secretName"),
        ];
        for (resource, kind, source, field) in sources {
            let (Some(name), false) = (source[field].as_str(), source["optional"] == true) else {
                continue;
            };
            match step.facts.exists(resource, namespace, name) {
                Some(true) => {}
                Some(false) => {
                    let volume = volume["name"].as_str().unwrap_or_default();
                    return Some(Some(format!(
                        "MountVolume.SetUp failed for volume \"{volume}\" : {kind} \"{name}\" not found"
                    )));
                }
                None => unknown |= !step.waited_for_facts,
            }
        }
    }
    unknown.then_some(None)
}

/// What a container's environment misses: `Some(None)` when nobody knows yet.
fn missing_environment(spec: &Value, step: &Step<'_>) -> Option<Option<String>> {
    let namespace = step.pod["metadata"]["namespace"]
        .as_str()
        .unwrap_or_default();
    let list = |field: &str| spec[field].as_array().into_iter().flatten();
    let from = list("envFrom").flat_map(|source| {
        [
            ("configmaps", "configmap", &source["configMapRef"]),
            ("secrets", "secret", &source["secretRef"]),
        ]
    });
    let single = list("env").flat_map(|variable| {
        let source = &variable["valueFrom"];
        [
            ("configmaps", "configmap", &source["configMapKeyRef"]),
            ("secrets", "secret", &source["secretKeyRef"]),
        ]
    });
    let mut unknown = false;
    for (resource, kind, source) in from.chain(single) {
        let (Some(name), false) = (source["name"].as_str(), source["optional"] == true) else {
            continue;
        };
        match step.facts.exists(resource, namespace, name) {
            Some(true) => {}
            Some(false) => return Some(Some(format!("{kind} \"{name}\" not found"))),
            None => unknown |= !step.waited_for_facts,
        }
    }
    unknown.then_some(None)
}

fn backoff(failures: u32) -> i64 {
    let doubled = 1i64.checked_shl(failures.min(20)).unwrap_or(i64::MAX);
    FIRST_BACKOFF.saturating_mul(doubled).min(LONGEST_BACKOFF)
}

impl Container {
    fn advance(&mut self, spec: &Value, patience: Timestamp, step: &mut Step<'_>) {
        loop {
            match &self.state {
                State::Ended(_) => return,
                State::Waiting(problem) => {
                    if script::pull_fails(step.pod, spec) {
                        let tried = match problem {
                            Some(Problem::Pull { tried }) => Some(*tried),
                            _ => None,
                        };
                        return self.pull_again(spec, tried, step);
                    }
                    match missing_environment(spec, step) {
                        None => self.start(spec, step),
                        Some(None) => return step.due(patience),
                        Some(Some(missing)) => {
                            let problem = Some(Problem::Config(missing.clone()));
                            if self.state != State::Waiting(problem.clone()) {
                                step.tell(
                                    self.kind,
                                    spec,
                                    true,
                                    "Failed",
                                    format!("Error: {missing}"),
                                );
                                self.state = State::Waiting(problem);
                            }
                            return;
                        }
                    }
                }
                State::BackOff { until, .. } => {
                    if step.now < *until {
                        return step.due(*until);
                    }
                    self.restarts += 1;
                    self.start(spec, step);
                }
                State::Running { since } => {
                    let since = *since;
                    step.due(since + startup(spec));
                    step.due(since + readiness(spec));
                    let Some(end) = script::end(step.pod, self.kind, spec) else {
                        return;
                    };
                    let due = since + end.after;
                    if step.now < due {
                        return step.due(due);
                    }
                    self.ended(
                        spec,
                        Exit {
                            code: end.code,
                            since,
                            at: step.now,
                        },
                        step,
                    );
                }
            }
        }
    }

    fn start(&mut self, spec: &Value, step: &mut Step<'_>) {
        let image = spec["image"].as_str().unwrap_or_default();
        let pulled = format!(
            "Container image \"{image}\" already present on machine and can be accessed by the pod"
        );
        step.tell(self.kind, spec, false, "Pulled", pulled);
        step.tell(
            self.kind,
            spec,
            false,
            "Created",
            "Container created".to_owned(),
        );
        step.tell(
            self.kind,
            spec,
            false,
            "Started",
            "Container started".to_owned(),
        );
        self.state = State::Running { since: step.now };
    }

    fn pull_again(&mut self, spec: &Value, tried: Option<Timestamp>, step: &mut Step<'_>) {
        let image = spec["image"].as_str().unwrap_or_default();
        let again = |failures: u32, tried: Timestamp| {
            tried + SignedDuration::from_secs(backoff(failures.saturating_sub(1)))
        };
        let tried = match tried {
            Some(tried) if step.now < again(self.failures, tried) => tried,
            _ => {
                self.failures = self.failures.saturating_add(1);
                step.tell(
                    self.kind,
                    spec,
                    false,
                    "Pulling",
                    format!("Pulling image \"{image}\""),
                );
                let failed = format!("Failed to pull image \"{image}\": not found");
                step.tell(self.kind, spec, true, "Failed", failed);
                self.state = State::Waiting(Some(Problem::Pull { tried: step.now }));
                step.now
            }
        };
        step.due(tried + PULL_SHOWN);
        step.due(again(self.failures, tried));
    }

    fn ended(&mut self, spec: &Value, exit: Exit, step: &mut Step<'_>) {
        let policy = step.pod["spec"]["restartPolicy"]
            .as_str()
            .unwrap_or("Always");
        let again = match (self.kind, policy) {
            (Kind::Sidecar, _) | (Kind::Main, "Always") => true,
            (_, "Never") => false,
            _ => exit.code != 0,
        };
        if !again {
            self.state = State::Ended(exit);
            return;
        }
        if exit.at.duration_since(exit.since) >= FORGIVEN {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = Some(exit);
        // The first time it is started again at once.
        if self.failures == 1 {
            self.restarts += 1;
            return self.start(spec, step);
        }
        let pause = backoff(self.failures - 2);
        let (name, meta) = (
            spec["name"].as_str().unwrap_or_default(),
            &step.pod["metadata"],
        );
        let message = format!(
            "Back-off restarting failed container {name} in pod {}_{}({})",
            meta["name"].as_str().unwrap_or_default(),
            meta["namespace"].as_str().unwrap_or_default(),
            super::uid(step.pod),
        );
        step.tell(self.kind, spec, true, "BackOff", message);
        self.state = State::BackOff {
            until: step.now + SignedDuration::from_secs(pause),
            pause,
        };
    }

    fn stop(&mut self, now: Timestamp, code: i64) {
        match (&self.state, self.last) {
            (State::Running { since }, _) => {
                self.state = State::Ended(Exit {
                    code,
                    since: *since,
                    at: now,
                });
            }
            (State::BackOff { .. }, Some(exit)) => self.state = State::Ended(exit),
            _ => {}
        }
    }

    /// Whether what comes after it in the pod may start.
    pub(super) fn lets_others_start(&self, spec: &Value, now: Timestamp) -> bool {
        match (self.kind, &self.state) {
            (Kind::Main, _) => true,
            (Kind::Init, State::Ended(exit)) => exit.code == 0,
            (Kind::Init, _) => false,
            (Kind::Sidecar, State::Ended(_)) => true,
            (Kind::Sidecar, _) => self.is_started(spec, now),
        }
    }

    pub(super) fn is_started(&self, spec: &Value, now: Timestamp) -> bool {
        matches!(self.state, State::Running { since } if now >= since + startup(spec))
    }

    pub(super) fn is_ready(&self, pod: &Value, spec: &Value, now: Timestamp) -> bool {
        match self.state {
            State::Running { since } => {
                now >= since + readiness(spec) && !script::never_ready(pod, spec)
            }
            State::Ended(exit) => self.kind == Kind::Init && exit.code == 0,
            _ => false,
        }
    }
}

fn seconds(value: &Value, default: i64) -> i64 {
    value.as_i64().unwrap_or(default).clamp(0, 1 << 32)
}

/// How long a probe needs to succeed: simulated ones do with their first attempts.
fn probed(probe: &Value) -> SignedDuration {
    if !probe.is_object() {
        return SignedDuration::ZERO;
    }
    let further = seconds(&probe["successThreshold"], 1).saturating_sub(1);
    let period = seconds(&probe["periodSeconds"], 10);
    SignedDuration::from_secs(
        seconds(&probe["initialDelaySeconds"], 0)
            .saturating_add(further.saturating_mul(period))
            .min(1 << 40),
    )
}

fn startup(spec: &Value) -> SignedDuration {
    probed(&spec["startupProbe"])
}

fn readiness(spec: &Value) -> SignedDuration {
    startup(spec).max(probed(&spec["readinessProbe"]))
}
