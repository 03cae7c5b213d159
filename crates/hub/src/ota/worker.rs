//! Carries upgrades out, one step after the other: whatever a step does, it is written down before, so that a hub that is killed
//! goes on where it was. How upgrades are seen through and taken back is in `outcome`, what the cluster is told of it in `told`.

mod outcome;
mod told;

use super::{
    access,
    asked::path_of,
    cloud::{self, As, Asking, CloudError},
    job::{Job, State},
    manifest::{self, Manifest, Place},
    pod::{self, Before, Due, Kind, Manifests},
    policy::{Decision, Policy, Standing, Wait, Wanted, decide},
};
use crate::{
    autonomy::resync::own_pods,
    caller::Caller,
    follow::{self, Objects},
    proxy::Hub,
    route::Mode,
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Looks after which the cache is not behind any more.
const SETTLED: u32 = 3;
/// Attempts at a step that the cloud does not answer well.
const TRIES: u32 = 10;
/// Between looks while something is under way.
const OFTEN: Duration = Duration::from_secs(1);
/// Other pods of a DaemonSet on one node; there should be none.
const MOST_BESIDE: usize = 64;
/// Deletions tried at once while others change the pod.
const RACES: usize = 5;

/// Carries out what is asked for, until shutdown.
pub(crate) async fn run(hub: Arc<Hub>) {
    let shutdown = hub.shutdown.clone();
    let worker = Worker {
        hub,
        since: HashMap::new(),
        tries: HashMap::new(),
        online_since: None,
        ready: HashMap::new(),
        pods: None,
    };
    tokio::select! {
        () = worker.run() => {}
        () = shutdown.cancelled() => {}
    }
}

struct Worker {
    hub: Arc<Hub>,
    /// Since when, as far as this process knows, a job is in its state.
    since: HashMap<String, (State, Instant)>,
    /// Failed attempts at the current step.
    tries: HashMap<String, u32>,
    online_since: Option<Instant>,
    /// Which pod of a job is ready, and since when.
    ready: HashMap<String, (String, Instant)>,
    /// The node's pods, followed while upgrades are under way.
    pods: Option<watch::Receiver<Option<Objects>>>,
}

/// Why a step is not taken now.
pub(super) enum Stop {
    /// Another attempt may be worth it.
    Later(String),
    /// It never will be.
    Never(String),
}

impl From<Asking> for Stop {
    fn from(asking: Asking) -> Self {
        match asking {
            Asking::Failed(error) => error.into(),
            Asking::Refused(answer) if answer.is_passing() => Self::Later(answer.message()),
            Asking::Refused(answer) => Self::Never(answer.message()),
        }
    }
}

impl From<CloudError> for Stop {
    fn from(error: CloudError) -> Self {
        Self::Later(error.to_string())
    }
}

/// Resolves when the node's pods change.
async fn moved(pods: &mut Option<watch::Receiver<Option<Objects>>>) {
    let told = match pods {
        Some(pods) => pods.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}

impl Worker {
    async fn run(mut self) {
        let ota = self.hub.ota.clone();
        let (mut changes, mut modes) = (ota.changed.subscribe(), self.hub.modes());
        loop {
            changes.borrow_and_update();
            modes.borrow_and_update();
            self.pass().await;
            let open = ota.lock().count(|state| !state.is_over()) > 0;
            let most = self.pods.as_ref().map_or(Duration::MAX, |_| OFTEN);
            let look = ota.config.look.min(most);
            let ended = tokio::select! {
                changed = changes.changed() => changed.is_err(),
                changed = modes.changed(), if open => changed.is_err(),
                () = moved(&mut self.pods) => false,
                () = tokio::time::sleep(look), if open => false,
            };
            if ended {
                return;
            }
        }
    }

    /// One step of every job, the oldest first.
    async fn pass(&mut self) {
        let online = self.hub.mode_of(&Caller::Node) == Mode::Online;
        self.online_since = match self.online_since {
            Some(since) if online => Some(since),
            _ => online.then(Instant::now),
        };
        let open: Vec<Job> = self
            .hub
            .ota
            .all()
            .into_iter()
            .filter(|job| !job.state.is_over())
            .collect();
        self.since
            .retain(|id, _| open.iter().any(|job| job.id == *id));
        self.tries
            .retain(|id, _| open.iter().any(|job| job.id == *id));
        self.ready
            .retain(|id, _| open.iter().any(|job| job.id == *id));
        if !open.iter().any(|job| job.state.is_under_way()) {
            self.pods = None;
        }
        let present = self.present(&open);
        for job in open {
            let known = self.since.get(&job.id);
            if known.is_none_or(|(state, _)| *state != job.state) {
                self.since
                    .insert(job.id.clone(), (job.state, Instant::now()));
                self.tries.remove(&job.id);
            }
            if self.is_void(&job, present.as_ref()) {
                self.end(job, State::Failed, "the pod is gone", None);
            } else {
                self.step(job).await;
            }
        }
        if self.pods.is_none() && self.hub.ota.lock().count(State::is_under_way) > 0 {
            let own = format!("fieldSelector=spec.nodeName%3D{}", self.hub.node_name);
            self.pods = Some(follow::follow(&self.hub, "/api/v1/pods", &own));
        }
    }

    /// Uids of the node's pods as its cache has them, where somebody waits and the cache can be relied on.
    fn present(&self, open: &[Job]) -> Option<HashSet<String>> {
        let waits = open.iter().any(|job| !job.state.is_under_way());
        if !waits || self.online_since.is_none() || !self.hub.autonomous {
            return None;
        }
        let pods = self
            .hub
            .cache
            .list(&Caller::Node, &own_pods(&self.hub.node_name)?)?;
        let uids = pods
            .items
            .iter()
            .filter_map(|pod| Some(pod.meta().ok()?.uid));
        Some(uids.collect())
    }

    /// Whether a job waits for something while its pod went: nobody need confirm it. The cache may be behind who asks.
    fn is_void(&self, job: &Job, present: Option<&HashSet<String>>) -> bool {
        let settled = self.hub.ota.config.look * SETTLED;
        !job.state.is_under_way()
            && job.state != State::Queued
            && present.is_some_and(|present| !present.contains(&job.uid))
            && self.in_state(job) >= settled
            && self
                .online_since
                .is_some_and(|since| since.elapsed() >= settled)
    }

    async fn step(&mut self, job: Job) {
        match job.state {
            State::Queued
            | State::WaitingForConfirmation
            | State::WaitingForWindow
            | State::WaitingForLink
            | State::WaitingForTurn => self.consider(job).await,
            State::Replacing => self.resume(job).await,
            State::WaitingForPod => self.look(job).await,
            State::RollingBack => self.roll_back(job).await,
            State::Done | State::RolledBack | State::Failed | State::Cancelled => {}
        }
    }

    /// The owner's policy; what was begun under one that became unusable is seen through as usual.
    fn policy(&self) -> Arc<Policy> {
        self.hub.ota.policy.current().unwrap_or_default()
    }

    /// Keeps a job's state; `false` when somebody else changed it.
    fn turn(&self, job: &mut Job, state: State, reason: impl Into<String>) -> bool {
        let ota = &self.hub.ota;
        if !job.turn(state, reason, ota.now()) {
            return true;
        }
        tracing::debug!(
            job = job.id,
            state = state.as_str(),
            reason = job.reason,
            "upgrade"
        );
        ota.put(job)
    }

    /// Whether it may begin, and if so, begins it.
    async fn consider(&mut self, mut job: Job) {
        let ota = self.hub.ota.clone();
        let policy = match ota.policy.current() {
            Ok(policy) => policy,
            Err(why) => {
                self.turn(&mut job, State::WaitingForWindow, why);
                return;
            }
        };
        let wanted = Wanted {
            namespace: &job.namespace,
            pod: &job.pod,
            confirmed: job.confirmed,
        };
        let standing = Standing {
            online: self.online_since.is_some(),
            under_way: ota.lock().count(State::is_under_way),
        };
        match decide(&policy, ota.now(), &wanted, &standing) {
            Decision::Now if self.in_state(&job) < self.pause(&job) => {}
            Decision::Now => self.begin(job, &policy).await,
            Decision::NeedsConfirmation if job.state == State::WaitingForConfirmation => {}
            Decision::NeedsConfirmation => {
                let how = format!("yurt node upgrade confirm {}", job.id);
                self.turn(&mut job, State::WaitingForConfirmation, how);
            }
            Decision::Refused { why } => self.end(job, State::Failed, why, None),
            Decision::Wait { what, until, why } => {
                let state = match what {
                    Wait::Window => State::WaitingForWindow,
                    Wait::Link => State::WaitingForLink,
                    Wait::Turn => State::WaitingForTurn,
                };
                if job.turn(state, why, ota.now()) {
                    job.until = until.map(super::seconds);
                    ota.put(&mut job);
                }
            }
        }
    }

    /// Sees whether what was asked for still applies, writes down what there is to go back to, and replaces the pod.
    async fn begin(&mut self, mut job: Job, policy: &Policy) {
        let (pod, due) = match self.applies(&job).await {
            Ok(checked) => checked,
            Err(stop) => return self.stop(job, State::WaitingForLink, stop),
        };
        if due.revision != job.revision {
            let asked = std::mem::replace(&mut job.revision, due.revision.clone());
            if policy.confirmation {
                job.confirmed = false;
                let why = format!(
                    "asked for revision {asked:?}, and it is {:?} now",
                    due.revision
                );
                self.turn(&mut job, State::WaitingForConfirmation, why);
                return;
            }
        }
        let mut before = Before::of(&pod);
        let manifest = match self.prepare(&job, &pod, &mut before).await {
            Ok(manifest) => manifest,
            Err(stop) => return self.stop(job, State::WaitingForLink, stop),
        };
        job.before = Some(before);
        job.unverified = None;
        if !self.turn(&mut job, State::Replacing, "") {
            return;
        }
        // Nothing is done that would be forgotten by a hub that is killed now.
        if let Err(error) = self.hub.ota.cache.flush().await {
            let why = format!("the node's disk does not keep it: {error}");
            return self.end(job, State::Failed, why, None);
        }
        self.since
            .insert(job.id.clone(), (job.state, Instant::now()));
        self.tries.remove(&job.id);
        self.tell(
            &job,
            "Normal",
            "UpgradeStarted",
            &format!("asked for by {}", job.asked_by),
        );
        self.replace(job, due, manifest).await;
    }

    /// The pod as the cloud has it, when what was asked for still applies to it.
    async fn applies(&self, job: &Job) -> Result<(Value, Due), Stop> {
        let pod = self
            .fetch(job)
            .await?
            .ok_or_else(|| Stop::Never("the pod is gone".into()))?;
        let due =
            pod::examine(&pod, &self.hub.node_name).map_err(|why| Stop::Never(why.to_string()))?;
        if due.uid != job.uid {
            return Err(Stop::Never("it is another pod of this name by now".into()));
        }
        if let Some(user) = &job.unverified {
            match access::still_may(&self.hub, user, &job.namespace, &job.pod).await {
                Ok(true) => {}
                Ok(false) => {
                    return Err(Stop::Never(format!(
                        "{} may not change this pod",
                        job.asked_by
                    )));
                }
                Err(why) => {
                    let by = &job.asked_by;
                    return Err(Stop::Later(format!(
                        "the cloud does not say whether {by} may: {why}"
                    )));
                }
            }
        }
        Ok((pod, due))
    }

    async fn fetch(&self, job: &Job) -> Result<Option<Value>, Stop> {
        Ok(cloud::pod(&self.hub, &job.namespace, &job.pod).await?)
    }

    /// A step that is not taken: it is tried again in `state`, or given up.
    fn stop(&mut self, mut job: Job, state: State, stop: Stop) {
        match stop {
            Stop::Never(why) => self.end(job, State::Failed, why, None),
            Stop::Later(why) => {
                // A link that is away is no attempt.
                if self.hub.mode_of(&Caller::Node) == Mode::Online {
                    let tries = self.tries.entry(job.id.clone()).or_default();
                    *tries += 1;
                    if *tries >= TRIES {
                        let why = format!("given up after {TRIES} attempts: {why}");
                        return self.end(job, State::Failed, why, None);
                    }
                }
                let id = job.id.clone();
                if self.turn(&mut job, state, why) {
                    // The attempts count on in the state that follows from them.
                    let since = self
                        .since
                        .get(&id)
                        .map_or_else(Instant::now, |known| known.1);
                    self.since.insert(id, (state, since));
                }
            }
        }
    }

    /// Of a static pod, the manifest that is to be put in place; of another, which of its DaemonSet's pods are there already.
    async fn prepare(
        &self,
        job: &Job,
        pod: &Value,
        before: &mut Before,
    ) -> Result<Option<Manifest>, Stop> {
        if job.kind == Kind::DaemonSet {
            let pods = cloud::pods(&self.hub, &job.namespace).await?;
            before.beside = pods
                .iter()
                .filter(|pod| pod::succeeds(pod, &job.uid, &job.owner))
                .map(|pod| pod::uid(pod).to_owned())
                .take(MOST_BESIDE)
                .collect();
            return Ok(None);
        }
        let manifest = wanted_manifest(&self.hub, &job.namespace, &job.pod).await?;
        let old_hash = pod::static_hash(pod).to_owned();
        if old_hash == manifest.hash {
            return Err(Stop::Never("this manifest runs already".into()));
        }
        before.manifest = Some(Manifests {
            stem: manifest.stem.clone(),
            old_hash,
            new_hash: manifest.hash.clone(),
            new_digest: pod::digest(manifest.text.as_bytes()),
        });
        Ok(Some(manifest))
    }

    /// Ends the old pod.
    async fn replace(&mut self, mut job: Job, due: Due, manifest: Option<Manifest>) {
        let replaced = match manifest {
            Some(manifest) => self.write(&job, manifest).await,
            None => self.delete(&job, due).await,
        };
        match replaced {
            Ok(()) => {
                let why = "the old pod ends, and a new one is to come";
                self.turn(&mut job, State::WaitingForPod, why);
            }
            Err(stop) => self.stop(job, State::Replacing, stop),
        }
    }

    async fn write(&self, job: &Job, manifest: Manifest) -> Result<(), Stop> {
        let (directory, namespace) = (
            self.hub.ota.config.static_pods.clone(),
            job.namespace.clone(),
        );
        let set = manifest::set_of(&job.pod, &self.hub.node_name)
            .unwrap_or_default()
            .to_owned();
        let writing = tokio::task::spawn_blocking(move || {
            Place::of(&directory, &manifest.stem)?.replace(&manifest, &namespace, &set)
        });
        match writing.await {
            Ok(written) => written.map_err(|error| Stop::Never(error.to_string())),
            Err(error) => Err(Stop::Later(error.to_string())),
        }
    }

    /// Deletes exactly this pod as it was looked at; looks again while others change it.
    async fn delete(&self, job: &Job, mut due: Due) -> Result<(), Stop> {
        let mut races = 0;
        loop {
            let options = json!({
                "apiVersion": "v1", "kind": "DeleteOptions",
                "preconditions": {"uid": due.uid, "resourceVersion": due.resource_version},
            });
            let uri = path_of(&job.namespace, &job.pod);
            let answer = cloud::call(
                &self.hub,
                &As::Node,
                Method::DELETE,
                &uri,
                cloud::JSON,
                Some(&options),
            )
            .await?;
            match answer.status {
                status if status.is_success() => return Ok(()),
                StatusCode::NOT_FOUND => return Ok(()),
                StatusCode::CONFLICT if races < RACES => races += 1,
                StatusCode::CONFLICT => return Err(Stop::Later(answer.message())),
                _ if answer.is_passing() => return Err(Stop::Later(answer.message())),
                _ => return Err(Stop::Never(answer.message())),
            }
            match self.still_there(job).await? {
                Some(again) => due = again,
                None => return Ok(()),
            }
        }
    }

    /// The pod of a job that is being replaced, when it is still to be ended.
    async fn still_there(&self, job: &Job) -> Result<Option<Due>, Stop> {
        match self.fetch(job).await? {
            Some(pod) if pod::uid(&pod) == job.uid && !pod::is_ending(&pod) => {
                pod::examine(&pod, &self.hub.node_name)
                    .map(Some)
                    .map_err(|why| Stop::Never(why.to_string()))
            }
            _ => Ok(None),
        }
    }

    /// Goes on with a replacement that was begun before a restart or a failed attempt.
    async fn resume(&mut self, mut job: Job) {
        if self.online_since.is_none() {
            return;
        }
        if self.in_state(&job) < self.pause(&job) {
            return;
        }
        match job.kind {
            Kind::DaemonSet => match self.still_there(&job).await {
                Ok(Some(due)) => self.replace(job, due, None).await,
                Ok(None) => {
                    let why = "the old pod ends, and a new one is to come";
                    self.turn(&mut job, State::WaitingForPod, why);
                }
                Err(stop) => self.stop(job, State::Replacing, stop),
            },
            Kind::StaticPod => self.resume_static(job).await,
        }
    }

    async fn resume_static(&mut self, mut job: Job) {
        let manifests = job
            .before
            .as_ref()
            .and_then(|before| before.manifest.clone());
        let Some(Manifests {
            stem, new_digest, ..
        }) = manifests
        else {
            return self.end(
                job,
                State::Failed,
                "what was to be written is not known",
                None,
            );
        };
        let directory = self.hub.ota.config.static_pods.clone();
        let digest = new_digest.clone();
        let looking =
            tokio::task::spawn_blocking(move || Place::of(&directory, &stem)?.holds(&digest));
        match looking.await {
            Ok(Ok(true)) => {
                let why = "the old pod ends, and a new one is to come";
                self.turn(&mut job, State::WaitingForPod, why);
            }
            Ok(Ok(false)) => {
                let wanted = wanted_manifest(&self.hub, &job.namespace, &job.pod).await;
                match wanted {
                    Ok(manifest) if pod::digest(manifest.text.as_bytes()) == new_digest => {
                        let due = Due {
                            uid: job.uid.clone(),
                            resource_version: String::new(),
                            kind: job.kind,
                            owner: job.owner.clone(),
                            revision: job.revision.clone(),
                        };
                        self.replace(job, due, Some(manifest)).await;
                    }
                    Ok(_) => {
                        let why = "the cluster wants another manifest by now: ask again";
                        self.end(job, State::Failed, why, None);
                    }
                    Err(stop) => self.stop(job, State::Replacing, stop),
                }
            }
            Ok(Err(error)) => self.end(job, State::Failed, error.to_string(), None),
            Err(error) => self.stop(job, State::Replacing, Stop::Later(error.to_string())),
        }
    }

    /// How long a job is to be in its state before another attempt at it.
    fn pause(&self, job: &Job) -> Duration {
        let tried = self.tries.get(&job.id).copied().unwrap_or(0);
        self.hub.ota.config.look * (tried * tried.saturating_add(1) / 2)
    }

    /// How long a job is in its state, as far as this process knows.
    fn in_state(&self, job: &Job) -> Duration {
        self.since
            .get(&job.id)
            .map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }
}

/// The manifest that the cluster wants of a static pod.
pub(super) async fn wanted_manifest(
    hub: &Hub,
    namespace: &str,
    name: &str,
) -> Result<Manifest, Stop> {
    let node = &hub.node_name;
    let set = manifest::set_of(name, node)
        .ok_or_else(|| Stop::Never(format!("static pod {name} is not named after node {node}")))?;
    let map = manifest::config_map_of(set);
    let uri = format!("/api/v1/namespaces/{namespace}/configmaps/{map}");
    let answer = cloud::get(hub, &uri).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(Stop::Never(format!(
                "config map {namespace}/{map} is not there"
            )));
        }
        _ if answer.is_passing() => return Err(Stop::Later(answer.message())),
        _ => return Err(Stop::Never(answer.message())),
    }
    manifest::choose(&answer.body, namespace, set).map_err(|why| Stop::Never(why.to_string()))
}
