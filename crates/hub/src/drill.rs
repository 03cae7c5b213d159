//! Being cut off on purpose, for a bounded time, to see what would be missed. For the hub and everybody behind it the link is down:
//! connections end, watches go on locally, writes are kept for later. The cluster notices nothing: probes go on, and so does the node's
//! heartbeat. `rehearsal` asks what a kubelet asks that just started; what real callers could not get is noted as well.
//!
//! The cut is a value that the drill's task holds: however the task ends, the link is back.

mod rehearsal;

use crate::{autonomy::resync::own_pods, caller::Caller, doctor::needs, proxy::Hub, route::Mode};
use http::{StatusCode, header, request::Parts};
use serde::Serialize;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use yurt_wire::{RequestInfo, Verb};

/// Bounds of a drill, in seconds.
pub const LEAST_SECONDS: u64 = 5;
/// See there.
pub const MOST_SECONDS: u64 = 600;
/// Where nothing is said.
pub const SECONDS: u64 = 30;
/// Different misses kept; more are counted.
const MOST_MISSES: usize = 200;
/// Longest text of a miss.
const MOST_TEXT: usize = 256;
/// How long the hub may take to go local.
const GO_LOCAL: Duration = Duration::from_secs(5);

/// Something that was asked for and could not be answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Miss {
    /// Who asked: the user agent's name, or what was rehearsed for whom.
    pub who: String,
    /// Verb.
    pub verb: String,
    /// Path.
    pub what: String,
    /// The answer's code.
    pub code: u16,
    /// How often.
    pub times: u64,
    /// Whether the node can do without it: a write that only the cloud can decide, something a person looked for.
    pub tolerable: bool,
}

/// A drill as `GET /v1/drill` tells it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// `none`, `running` or `done`.
    pub state: &'static str,
    /// How long it was to last.
    pub seconds: u64,
    /// What is left of it.
    pub seconds_left: u64,
    /// How long the hub took to go local.
    pub local_after_milliseconds: Option<u64>,
    /// Requests of a rehearsed kubelet, and those of them that were answered.
    pub rehearsed: usize,
    /// See there.
    pub answered: usize,
    /// Requests of real callers meanwhile.
    pub requests: u64,
    /// Whether it lasted to its end.
    pub complete: bool,
    /// Whether the node would have gone on; `null` while it runs.
    pub survived: Option<bool>,
    /// What could not be answered.
    pub misses: Vec<Miss>,
    /// Misses that there was no room to name.
    pub more_misses: u64,
}

/// Why a drill does not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrillError {
    /// Too short or too long.
    #[error("a drill takes {LEAST_SECONDS} to {MOST_SECONDS} seconds, not {0}")]
    Length(u64),
    /// One at a time.
    #[error("a drill is under way")]
    UnderWay,
    /// It is serious already.
    #[error("the cloud is away: this is no drill")]
    Offline,
}

/// The drill of a hub, if any. The default has none.
#[derive(Debug, Default)]
pub struct Drill {
    running: AtomicBool,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    progress: Progress,
    until: Option<Instant>,
    stop: CancellationToken,
}

/// Who asked for what, kept for the length of a request.
#[derive(Debug)]
pub struct Asked {
    who: String,
    verb: &'static str,
    what: String,
    tolerable: bool,
}

impl Drill {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is.
    pub fn progress(&self) -> Progress {
        let told = self.told();
        let mut progress = told.progress.clone();
        if progress.state.is_empty() {
            progress.state = "none";
        }
        progress.seconds_left = told.until.map_or(0, |until| {
            until.saturating_duration_since(Instant::now()).as_secs()
        });
        progress
    }

    /// Ends the drill that runs; it takes a moment.
    pub fn stop(&self) {
        self.told().stop.cancel();
    }

    /// Notes who asks for what; `None` when there is no drill.
    pub(crate) fn ask(&self, parts: &Parts) -> Option<Asked> {
        if !self.running.load(Ordering::Relaxed) {
            return None;
        }
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query());
        let text = |name| {
            let value = parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok());
            value.unwrap_or_default()
        };
        let write = !matches!(info.verb, Verb::Get | Verb::List | Verb::Watch);
        // People ask for Tables.
        let person = text(header::ACCEPT).contains("as=Table");
        Some(Asked {
            who: crate::metrics::component(text(header::USER_AGENT)),
            verb: info.verb.as_str(),
            what: bounded(&info.path),
            tolerable: write || person,
        })
    }

    /// Notes what came of it.
    pub(crate) fn answered(&self, asked: Asked, status: StatusCode) {
        let mut told = self.told();
        told.progress.requests += 1;
        if is_miss(status) {
            told.miss(asked, status);
        }
    }
}

/// Whether an answer is one that the cloud would have given otherwise.
fn is_miss(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 401 | 403)
}

fn bounded(text: &str) -> String {
    text.chars().take(MOST_TEXT).collect()
}

impl Told {
    fn miss(&mut self, asked: Asked, status: StatusCode) {
        let progress = &mut self.progress;
        let code = status.as_u16();
        let full = progress.misses.len() >= MOST_MISSES;
        let known = progress.misses.iter_mut().find(|miss| {
            (&miss.who, miss.verb.as_str(), &miss.what, miss.code)
                == (&asked.who, asked.verb, &asked.what, code)
        });
        match known {
            Some(miss) => miss.times += 1,
            None if full => progress.more_misses += 1,
            None => progress.misses.push(Miss {
                who: asked.who,
                verb: asked.verb.into(),
                what: asked.what,
                code,
                times: 1,
                tolerable: asked.tolerable,
            }),
        }
    }
}

/// Ends the drill in the books, however its task ends.
struct Books(Arc<Hub>);

impl Drop for Books {
    fn drop(&mut self) {
        let drill = &self.0.drill;
        let mut told = drill.told();
        told.until = None;
        let progress = &mut told.progress;
        progress.state = "done";
        let harm = progress.misses.iter().any(|miss| !miss.tolerable) || progress.more_misses > 0;
        progress.survived = Some(!harm);
        tracing::warn!(
            misses = progress.misses.len(),
            survived = !harm,
            "the drill is over: the link is as it is"
        );
        drill.running.store(false, Ordering::Relaxed);
    }
}

/// Begins a drill.
pub fn begin(hub: &Arc<Hub>, seconds: u64) -> Result<Progress, DrillError> {
    if !(LEAST_SECONDS..=MOST_SECONDS).contains(&seconds) {
        return Err(DrillError::Length(seconds));
    }
    if hub.drill.running.load(Ordering::Relaxed) {
        return Err(DrillError::UnderWay);
    }
    if hub.mode() == Mode::Offline {
        return Err(DrillError::Offline);
    }
    // What a kubelet would ask for is read before, so that looking does not count as asking.
    let requests = rehearsal::requests(&hub.node_name, &own(hub), |claim| volume_of(hub, claim));
    let cut = hub.upstreams.cut().ok_or(DrillError::UnderWay)?;
    let stop = hub.shutdown.child_token();
    let until = Instant::now() + Duration::from_secs(seconds);
    *hub.drill.told() = Told {
        progress: Progress {
            state: "running",
            seconds,
            ..Progress::default()
        },
        until: Some(until),
        stop: stop.clone(),
    };
    hub.drill.running.store(true, Ordering::Relaxed);
    tracing::warn!(
        seconds,
        "a drill: the hub goes local as if the link were cut"
    );
    let books = Books(hub.clone());
    hub.tasks.spawn(async move {
        // Dropped in this order: first the link is back, then the drill is over.
        let hub = books.0.clone();
        let _books = books;
        let _cut = cut;
        let course = async {
            rehearse(&hub, requests).await;
            tokio::time::sleep_until(until).await;
        };
        tokio::select! {
            () = course => hub.drill.told().progress.complete = true,
            () = stop.cancelled() => {}
        }
    });
    Ok(hub.drill.progress())
}

async fn rehearse(hub: &Arc<Hub>, requests: Vec<rehearsal::Request>) {
    let began = Instant::now();
    let mut modes = hub.modes();
    let local = modes.wait_for(|mode| *mode == Mode::Offline);
    if tokio::time::timeout(GO_LOCAL, local).await.is_ok() {
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        hub.drill.told().progress.local_after_milliseconds = Some(took);
    }
    for request in requests {
        let status = rehearsal::ask(hub, &request).await;
        let mut told = hub.drill.told();
        told.progress.rehearsed += 1;
        if status.is_success() {
            told.progress.answered += 1;
            continue;
        }
        let asked = Asked {
            who: format!("a kubelet, {}", request.purpose),
            verb: request.verb(),
            what: bounded(&request.target),
            tolerable: request.tolerable,
        };
        told.miss(asked, status);
    }
}

/// The node's pods that are to run.
fn own(hub: &Hub) -> Vec<serde_json::Value> {
    let listing = own_pods(&hub.node_name).and_then(|query| hub.cache.list(&Caller::Node, &query));
    let pods = listing.into_iter().flat_map(|listing| listing.items);
    pods.filter_map(|pod| pod.to_json_value().ok())
        .filter(needs::is_to_run)
        .collect()
}

/// The volume of a claim (namespace, name).
fn volume_of(hub: &Hub, (namespace, name): (&str, &str)) -> Option<String> {
    let claim = hub
        .cache
        .view(&needs::Kind::Claim.gvr(), namespace, name)?
        .to_json_value()
        .ok()?;
    let volume = claim.pointer("/spec/volumeName")?.as_str()?;
    Some(volume.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str, accept: &str) -> Parts {
        let request = http::Request::builder()
            .uri(path)
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, "kubelet/v1.36 (x)");
        request.body(()).unwrap().into_parts().0
    }

    fn asked(drill: &Drill, path: &str, accept: &'static str) -> Asked {
        drill.ask(&parts(path, accept)).expect("a drill runs")
    }

    #[test]
    fn misses_are_counted_once_each_and_bounded() {
        let drill = Drill::default();
        assert!(drill.ask(&parts("/api/v1/pods", "*/*")).is_none());
        drill.running.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            let one = asked(&drill, "/api/v1/pods", "application/json");
            drill.answered(one, StatusCode::SERVICE_UNAVAILABLE);
        }
        drill.answered(asked(&drill, "/api/v1/pods", "*/*"), StatusCode::OK);
        drill.answered(asked(&drill, "/api/v1/pods", "*/*"), StatusCode::NOT_FOUND);
        let progress = drill.progress();
        assert_eq!((progress.misses.len(), progress.requests), (1, 5));
        assert_eq!(
            (progress.misses[0].times, progress.misses[0].who.as_str()),
            (3, "kubelet")
        );
        assert!(!progress.misses[0].tolerable);
        let person = asked(
            &drill,
            "/api/v1/x",
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        );
        drill.answered(person, StatusCode::SERVICE_UNAVAILABLE);
        assert!(drill.progress().misses[1].tolerable);
        for i in 0..2 * MOST_MISSES {
            let one = asked(&drill, &format!("/api/v1/namespaces/n{i}"), "*/*");
            drill.answered(one, StatusCode::UNAUTHORIZED);
        }
        let progress = drill.progress();
        assert_eq!(progress.misses.len(), MOST_MISSES);
        assert_eq!(progress.more_misses, 2 * MOST_MISSES as u64 - 198);
    }
}
