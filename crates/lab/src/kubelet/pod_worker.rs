//! The task that takes one pod through its life.

use super::{
    Kubelet,
    address::PodAddress,
    api::CallError,
    pod::{self, Reference, Run, Step, next_step},
};
use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use yurt_controller::resources::{Resources, requests};

/// The task of one pod; ends when this is dropped.
pub(super) struct Worker {
    uid: String,
    input: watch::Sender<Input>,
    running: Arc<AtomicBool>,
    /// Nothing of it runs any more.
    finished: Arc<AtomicBool>,
    requests: Resources,
    references: BTreeSet<Reference>,
    known: Arc<ArcSwap<Value>>,
    _task: AbortOnDropHandle<()>,
}

/// What a worker is told.
#[derive(Clone)]
struct Input {
    pod: Arc<Value>,
    touches: u64,
}

impl Worker {
    /// Begins with a pod; with a `rejection` (reason and message) it is not started, unless it was before.
    pub(super) fn start(
        kubelet: &Arc<Kubelet>,
        pod: Value,
        rejection: Option<(String, String)>,
    ) -> Self {
        let requests = requests(&pod);
        let references = pod::references(&pod);
        let uid = pod::uid(&pod).to_owned();
        let pod = Arc::new(pod);
        let (input, told) = watch::channel(Input {
            pod: Arc::clone(&pod),
            touches: 0,
        });
        let running = Arc::new(AtomicBool::new(false));
        let finished = Arc::new(AtomicBool::new(pod::is_finished(&pod)));
        // After a boot nothing runs that ran before it.
        let booted = kubelet.boot_id().is_some();
        let adopted = match booted {
            true => None,
            false => pod::adopted(&pod, Timestamp::now()),
        };
        let address = adopted.as_ref().and_then(|run| run.ip());
        let address = address.map(|ip| kubelet.addresses.adopt(ip));
        let known = Arc::new(ArcSwap::from(Arc::clone(&pod)));
        let life = Life {
            known: Arc::clone(&known),
            kubelet: Arc::clone(kubelet),
            running: Arc::clone(&running),
            finished: Arc::clone(&finished),
            rejection,
            current: Arc::clone(&pod),
            seen: pod,
            run: adopted,
            address,
            token: None,
        };
        Self {
            uid,
            input,
            running,
            finished,
            requests,
            references,
            known,
            _task: AbortOnDropHandle::new(tokio::spawn(life.go(told))),
        }
    }

    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// What it takes of the node, as long as it does.
    pub(super) fn requests(&self) -> Option<&Resources> {
        let finished = self.finished.load(Ordering::Relaxed);
        (!finished).then_some(&self.requests)
    }

    pub(super) fn references(&self) -> &BTreeSet<Reference> {
        &self.references
    }

    /// The pod as it is known: from the watch, or from the answer to a report.
    pub(super) fn pod(&self) -> Arc<Value> {
        self.known.load_full()
    }

    /// The pod as the watch shows it now.
    pub(super) fn tell(&self, pod: Value) {
        self.input.send_modify(|input| input.pod = Arc::new(pod));
    }

    pub(super) fn touch(&self) {
        self.input.send_modify(|input| input.touches += 1);
    }
}

struct Life {
    known: Arc<ArcSwap<Value>>,
    kubelet: Arc<Kubelet>,
    running: Arc<AtomicBool>,
    finished: Arc<AtomicBool>,
    rejection: Option<(String, String)>,
    /// The pod as we know it: from the watch, or from the answer to our own patch.
    current: Arc<Value>,
    /// What the watch showed last.
    seen: Arc<Value>,
    run: Option<Run>,
    /// Held for as long as the pod may use it.
    address: Option<PodAddress>,
    token: Option<AbortOnDropHandle<()>>,
}

impl Life {
    async fn go(mut self, mut input: watch::Receiver<Input>) {
        let mut backoff = self.kubelet.backoff();
        // Reports since the status was as it should be: a server that takes patches and changes nothing must not be asked for ever
        // in a tight loop.
        let mut reports = 0;
        let mut facts = self.kubelet.told.subscribe();
        loop {
            facts.borrow_and_update();
            let told = input.borrow_and_update().clone();
            if !Arc::ptr_eq(&told.pod, &self.seen) {
                self.seen = Arc::clone(&told.pod);
                if !is_older(&told.pod, &self.current) {
                    self.current = told.pod;
                }
            }
            let shown = self.run.is_some() && pod::is_running(&self.current);
            self.running.store(shown, Ordering::Relaxed);
            self.known.store(Arc::clone(&self.current));
            let kubelet = &self.kubelet;
            kubelet.containers.observe(&self.current, &kubelet.api);
            let due = self.advance();
            let done = match self.step(&self.current, told.touches) {
                Step::Rest => {
                    backoff.reset();
                    reports = 0;
                    None
                }
                Step::Start => self.start(),
                Step::Stop => {
                    self.stop().await;
                    Some(Ok(()))
                }
                Step::Report(_) => {
                    reports += 1;
                    let reported = self.report(told.touches).await;
                    Some(match reported {
                        Ok(_) if reports > 2 => Err("the status does not stay".to_owned()),
                        Ok(Some(pod)) => {
                            self.current = Arc::new(pod);
                            Ok(())
                        }
                        // The watch will say that the pod is gone.
                        Ok(None) => Err("no such pod any more".to_owned()),
                        Err(error) => Err(error.to_string()),
                    })
                }
                Step::Delete => match self.delete().await {
                    Ok(()) => None,
                    Err(error) => Some(Err(error.to_string())),
                },
            };
            match done {
                Some(Ok(())) => {}
                None => tokio::select! {
                    changed = input.changed() => if changed.is_err() { return },
                    // The sender lives as long as the kubelet.
                    _ = facts.changed() => {}
                    () = until(due) => {}
                },
                Some(Err(why)) => {
                    let pause = backoff.pause();
                    tracing::debug!(pod = %self.path(), %why, ?pause, "pod");
                    tokio::select! {
                        () = sleep(pause) => {}
                        changed = input.changed() => if changed.is_err() { return },
                    }
                }
            }
        }
    }

    fn step(&self, pod: &Value, touches: u64) -> Step {
        let host = self.kubelet.config.address;
        next_step(pod, self.run.as_ref(), host, touches, Timestamp::now())
    }

    fn path(&self) -> String {
        let meta = &self.current["metadata"];
        format!(
            "/api/v1/namespaces/{}/pods/{}",
            meta["namespace"].as_str().unwrap_or_default(),
            meta["name"].as_str().unwrap_or_default(),
        )
    }

    /// Lets time do its work; when there is more of it.
    fn advance(&mut self) -> Option<Timestamp> {
        let run = self.run.as_mut()?;
        let mut told = Vec::new();
        let due = run.advance(&self.current, Timestamp::now(), &*self.kubelet, &mut told);
        self.finished
            .store(run.is_over(&self.current), Ordering::Relaxed);
        for what in told {
            self.kubelet.recorder.occurrence(&self.current, what);
        }
        due
    }

    fn start(&mut self) -> Option<Result<(), String>> {
        let now = Timestamp::now();
        if let Some((reason, message)) = self.rejection.take() {
            self.run = Some(Run::rejected(now, reason, message));
            return Some(Ok(()));
        }
        let kubelet = &self.kubelet;
        let address = if pod::uses_host_network(&self.current) {
            Some(kubelet.addresses.adopt(kubelet.config.address))
        } else {
            kubelet.addresses.take()
        };
        let Some(address) = address else {
            return Some(Err("all pod addresses are taken".to_owned()));
        };
        let preparing = SignedDuration::try_from(kubelet.config.start_time);
        let preparing = preparing.unwrap_or(SignedDuration::ZERO);
        let mut run = Run::new(&self.current, address.ip, now, preparing);
        // What ran before the node was booted counts as ended by that.
        pod::count_restarts(&mut run, &self.current, now);
        self.run = Some(run);
        self.address = Some(address);
        if let Some((path, request)) = pod::token_request(&self.current) {
            let kubelet = Arc::clone(kubelet);
            // A simulated container does without its token; a real one would wait for it.
            self.token = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                if let Err(error) = kubelet.api.create(&path, &request).await {
                    tracing::debug!(%path, %error, "no token");
                }
            })));
        }
        Some(Ok(()))
    }

    async fn stop(&mut self) {
        let Some(run) = &mut self.run else {
            return;
        };
        for name in run.running(&self.current) {
            let message = format!("Stopping container {name}");
            let recorder = &self.kubelet.recorder;
            recorder.container(&self.current, name, "Killing", message);
        }
        let grace = self.current["metadata"]["deletionGracePeriodSeconds"].as_u64();
        let grace = Duration::from_secs(grace.unwrap_or(30));
        let stopping = self.kubelet.config.stop_time + pod::pre_stop(&self.current);
        sleep(stopping.min(grace)).await;
        run.stop(Timestamp::now(), 0, None);
    }

    /// Writes the status as a kubelet does: reads the pod, and patches what differs. `None`: the pod is not there any more.
    async fn report(&self, touches: u64) -> Result<Option<Value>, CallError> {
        let api = &self.kubelet.api;
        let path = self.path();
        let fresh = match api.get(&path).await {
            Ok(pod) => pod,
            Err(error) if error.code() == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        };
        if pod::uid(&fresh) != pod::uid(&self.current) {
            return Ok(None);
        }
        match self.step(&fresh, touches) {
            Step::Report(patch) => api.patch(&format!("{path}/status"), &patch).await.map(Some),
            _ => Ok(Some(fresh)),
        }
    }

    async fn delete(&self) -> Result<(), CallError> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": pod::uid(&self.current)},
        });
        match self.kubelet.api.delete(&self.path(), &options).await {
            Ok(_) => Ok(()),
            // Gone, or another pod of the same name: the watch will tell.
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether the watch is behind an answer we had. Offline the hub keeps the cloud's revision, so equal ones are news.
fn is_older(pod: &Value, than: &Value) -> bool {
    let revision =
        |pod: &Value| -> Option<u64> { pod["metadata"]["resourceVersion"].as_str()?.parse().ok() };
    matches!((revision(pod), revision(than)), (Some(pod), Some(than)) if pod < than)
}

/// Sleeps until then, or for ever.
async fn until(due: Option<Timestamp>) {
    match due {
        None => std::future::pending().await,
        Some(due) => {
            let left = due.duration_since(Timestamp::now());
            // A little later rather than a little earlier: clocks are not exact.
            let pause = Duration::try_from(left).unwrap_or(Duration::ZERO);
            sleep(pause + Duration::from_millis(1)).await;
        }
    }
}
