//! Does what [`Fleet`] decides: dials doors, keeps sessions, tells what became of them.

use super::{
    fleet::{Action, Door, Fleet, Policy, Verdict},
    metrics::AgentMetrics,
    reach::{Reach, ReachError},
};
use crate::{Session, session::Live};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// The longest time without a look at the clock, which may jump.
const DOZE: Duration = Duration::from_secs(10);
/// Events that wait to be handled.
const QUEUE: usize = 64;
/// How much longer than its drain a session is waited for.
const MARGIN: Duration = Duration::from_secs(2);

enum Event {
    Drains(u64),
    Ended(u64, String),
}

/// A session that is kept.
struct Kept {
    protocol: &'static str,
    live: Arc<Live>,
    /// Lets it end when it is idle.
    drain: CancellationToken,
}

/// What others may look at.
struct Shown {
    fleet: Fleet,
    kept: BTreeMap<u64, Kept>,
}

/// The connections of an agent. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    shown: Arc<Mutex<Shown>>,
    /// Servers connected that can be asked for something.
    serving: Arc<watch::Sender<usize>>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Connections({})", self.count())
    }
}

impl Connections {
    /// None yet.
    pub fn new(policy: Policy) -> Self {
        Self {
            shown: Arc::new(Mutex::new(Shown {
                fleet: Fleet::new(policy),
                kept: BTreeMap::new(),
            })),
            serving: Arc::new(watch::channel(0).0),
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        // Valid after every statement.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Servers that are connected and not about to stop.
    pub fn count(&self) -> usize {
        *self.serving.borrow()
    }

    /// Follows [`Connections::count`].
    pub fn watch(&self) -> watch::Receiver<usize> {
        self.serving.subscribe()
    }

    /// The doors of servers that are connected.
    pub fn doors(&self) -> Vec<Door> {
        let shown = self.shown();
        let serving = shown
            .fleet
            .connections()
            .filter(|(_, c)| !c.server_drains && !c.retired);
        serving.map(|(_, c)| c.door.clone()).collect()
    }

    /// Proxied connections that are open.
    pub fn open(&self) -> usize {
        self.shown()
            .kept
            .values()
            .map(|kept| kept.live.count())
            .sum()
    }

    /// So many instances hold leases.
    pub fn set_leases(&self, count: u32) {
        self.shown().fleet.set_leases(count);
    }

    /// Everything, for people.
    pub fn describe(&self) -> Value {
        let (shown, now) = (self.shown(), Instant::now());
        let servers: Vec<Value> = shown
            .fleet
            .connections()
            .map(|(number, connected)| {
                let kept = shown.kept.get(&number);
                json!({
                    "address": connected.door.to_string(), "name": connected.door.name,
                    "serverID": connected.server, "serverCount": connected.count,
                    "protocol": kept.map(|kept| kept.protocol),
                    "connections": kept.map(|kept| kept.live.count()),
                    "connectedSeconds": now.saturating_duration_since(connected.since).as_secs(),
                    "serverDrains": connected.server_drains, "givenUp": connected.retired,
                })
            })
            .collect();
        let addresses: Vec<Value> = shown
            .fleet
            .doors()
            .map(|(door, state)| {
                let wait = state.not_before.map(|time| time.saturating_duration_since(now).as_secs_f64());
                json!({
                    "address": door.to_string(), "name": door.name, "priority": door.priority,
                    "leadsTo": state.leads_to, "failures": state.failures, "error": state.trouble,
                    "dialling": state.dialling.is_some(), "retryInSeconds": wait.filter(|wait| *wait > 0.0),
                })
            })
            .collect();
        json!({"serverCount": shown.fleet.count(), "servers": servers, "addresses": addresses})
    }

    fn tell(&self, metrics: &AgentMetrics) {
        let (serving, count) = {
            let shown = self.shown();
            (shown.fleet.serving().len(), shown.fleet.count())
        };
        metrics.servers(serving, count);
        self.serving
            .send_if_modified(|before| std::mem::replace(before, serving) != serving);
    }

    /// Keeps connections to the servers behind `doors` until `shutdown`, then drains them.
    pub async fn run(
        &self,
        reach: Arc<Reach>,
        mut doors: watch::Receiver<Vec<Door>>,
        metrics: AgentMetrics,
        shutdown: CancellationToken,
    ) {
        let (tell, mut events) = mpsc::channel(QUEUE);
        let mut dials: JoinSet<(Door, CancellationToken, Result<Session, ReachError>)> =
            JoinSet::new();
        let mut aborts: BTreeMap<Door, AbortHandle> = BTreeMap::new();
        let mut certificates = reach.kept.clone();
        let mut doors_end = false;
        doors.mark_changed();
        loop {
            let now = Instant::now();
            let actions = self.shown().fleet.plan(now);
            for action in actions {
                match action {
                    Action::Dial(door) => {
                        let (reach, drain) = (reach.clone(), CancellationToken::new());
                        let key = door.clone();
                        let handle = dials.spawn(async move {
                            let session = reach.session(&door, drain.clone()).await;
                            (door, drain, session)
                        });
                        aborts.insert(key, handle);
                    }
                    Action::Abort(door) => {
                        if let Some(handle) = aborts.remove(&door) {
                            handle.abort();
                        }
                    }
                    Action::Retire(number) => {
                        if let Some(kept) = self.shown().kept.get(&number) {
                            kept.drain.cancel();
                        }
                    }
                }
            }
            self.tell(&metrics);
            let look = self.shown().fleet.next_look(now);
            let pause = look.map_or(DOZE, |time| time.saturating_duration_since(now).min(DOZE));
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = doors.changed(), if !doors_end => {
                    doors_end = changed.is_err();
                    let listed = doors.borrow_and_update().clone();
                    self.shown().fleet.set_doors(listed);
                }
                Some(ended) = dials.join_next() => {
                    // An aborted one is known already.
                    if let Ok((door, drain, result)) = ended {
                        aborts.remove(&door);
                        self.dialled(&door, drain, result, &tell, &metrics);
                    }
                }
                Some(event) = events.recv() => self.happened(event),
                () = certificates.changed() => {
                    self.shown().fleet.encourage(Instant::now(), fastrand::f64());
                }
                () = tokio::time::sleep(pause.max(Duration::from_millis(5))) => {}
            }
        }
        dials.abort_all();
        self.drain(&mut events, reach.options.drain + MARGIN).await;
        self.tell(&metrics);
    }

    fn dialled(
        &self,
        door: &Door,
        drain: CancellationToken,
        result: Result<Session, ReachError>,
        tell: &mpsc::Sender<Event>,
        metrics: &AgentMetrics,
    ) {
        let (now, luck) = (Instant::now(), fastrand::f64());
        let session = match result {
            Ok(session) => session,
            Err(error) => {
                metrics.server_failed();
                let text = error.to_string();
                let mut shown = self.shown();
                let before = shown.fleet.doors().find(|(other, _)| *other == door);
                if before.is_none_or(|(_, state)| state.trouble.as_deref() != Some(&text)) {
                    tracing::warn!(server = %door, name = door.name, error = text, "not connected");
                }
                shown.fleet.failed(door, text, now, luck);
                return;
            }
        };
        let server = session.server.clone();
        let mut shown = self.shown();
        let verdict = shown
            .fleet
            .opened(door, &server.id, server.count, now, luck);
        let Verdict::Keep(number) = verdict else {
            tracing::debug!(server = %door, id = server.id, "there is a connection to this server");
            return;
        };
        tracing::info!(server = %door, id = server.id, protocol = session.protocol, "connected");
        let kept = Kept {
            protocol: session.protocol,
            live: session.live.clone(),
            drain,
        };
        shown.kept.insert(number, kept);
        drop(shown);
        tokio::spawn(attend(session, number, tell.clone()));
    }

    fn happened(&self, event: Event) {
        let (now, luck) = (Instant::now(), fastrand::f64());
        let mut shown = self.shown();
        match event {
            Event::Drains(number) => {
                tracing::info!(number, "the server stops: another is looked for");
                shown.fleet.drains(number, now, luck);
            }
            Event::Ended(number, why) => {
                tracing::info!(number, why, "connection to a server ended");
                shown.kept.remove(&number);
                shown.fleet.ended(number, why, now, luck);
            }
        }
    }

    /// Asks servers for nothing more, and waits until what is open has ended; not for ever.
    async fn drain(&self, events: &mut mpsc::Receiver<Event>, limit: Duration) {
        for kept in self.shown().kept.values() {
            kept.drain.cancel();
        }
        let ended = tokio::time::timeout(limit, async {
            while !self.shown().kept.is_empty() {
                match events.recv().await {
                    Some(event) => self.happened(event),
                    None => return,
                }
            }
        });
        if ended.await.is_err() {
            tracing::warn!(open = self.open(), "connections did not end in time");
        }
    }
}

/// Follows a session to its end.
async fn attend(mut session: Session, number: u64, tell: mpsc::Sender<Event>) {
    let drains = session.server_drains().clone();
    let why = tokio::select! {
        why = session.ended() => why,
        () = drains.cancelled() => {
            // Whoever listened is gone when the process ends.
            let _ = tell.send(Event::Drains(number)).await;
            session.ended().await
        }
    };
    let _ = tell.send(Event::Ended(number, why.to_string())).await;
}
