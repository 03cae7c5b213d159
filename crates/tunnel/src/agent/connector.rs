//! Does what [`Fleet`] decides: dials doors, keeps sessions, tells what became of them.

use super::{
    beside::{self, Beside, Target, Transport},
    fleet::{Action, Door, Fleet, Policy, Verdict},
    metrics::AgentMetrics,
    reach::{Reach, ReachError},
};
use crate::{Session, SessionError, certificates::is_aged, session::Live};
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
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_pki::Leaf;

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

/// A session, and what the server was shown for it.
type Opened = (Session, Option<Leaf>);

/// A session that is kept.
struct Kept {
    protocol: &'static str,
    /// The server's UDP port, and a round trip as TCP took it.
    quic: Option<u16>,
    round_trip: Option<Duration>,
    live: Arc<Live>,
    /// What the server was shown.
    shown: Option<Leaf>,
    /// Lets it end when it is idle.
    drain: CancellationToken,
}

/// What others may look at.
struct Shown {
    fleet: Fleet,
    kept: BTreeMap<u64, Kept>,
    /// QUIC beside them, by the server's id.
    beside: BTreeMap<String, Beside>,
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
                beside: BTreeMap::new(),
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
        let shown = self.shown();
        let kept = shown.kept.values().map(|kept| kept.live.count());
        let used = shown
            .beside
            .values()
            .filter_map(|beside| beside.used.as_ref());
        kept.chain(used.map(|(live, ..)| live.count())).sum()
    }

    /// A server that is connected by TCP and takes QUIC.
    pub(super) fn target(&self, server: &str) -> Option<Target> {
        let shown = self.shown();
        let connections = shown.fleet.connections();
        let mut serving =
            connections.filter(|(_, c)| c.server == server && !c.server_drains && !c.retired);
        serving.find_map(|(number, connected)| {
            let kept = shown.kept.get(&number)?;
            Some(Target {
                port: match kept.quic? {
                    0 => connected.door.port,
                    port => port,
                },
                door: connected.door.clone(),
                round_trip: kept.round_trip,
            })
        })
    }

    /// Why QUIC is not used towards a server.
    pub(super) fn quic_state(&self, server: &str, door: &Door, state: String) {
        let beside = Beside {
            door: door.clone(),
            state,
            used: None,
            shown: None,
            drain: CancellationToken::new(),
        };
        self.shown().beside.insert(server.to_owned(), beside);
    }

    /// QUIC is used towards a server.
    pub(super) fn quic_used(&self, server: &str, beside: Beside) {
        self.shown().beside.insert(server.to_owned(), beside);
    }

    /// Nobody looks after QUIC towards a server any more.
    pub(super) fn quic_over(&self, server: &str) {
        self.shown().beside.remove(server);
    }

    /// A server that takes QUIC was connected: whether somebody is to look after that who does not yet.
    fn quic_begins(&self, server: &str, door: &Door) -> bool {
        if self.shown().beside.contains_key(server) {
            return false;
        }
        self.quic_state(server, door, "not looked at yet".to_owned());
        true
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
                    "quic": shown.beside.get(&connected.server).map(|beside| match &beside.used {
                        Some((live, connection, since)) => json!({
                            "inUse": true, "connections": live.count(), "roundTripSeconds": connection.rtt().as_secs_f64(),
                            "connectedSeconds": now.saturating_duration_since(*since).as_secs(),
                        }),
                        None => json!({"inUse": false, "why": beside.state}),
                    }),
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
        let (serving, count, tcp, quic) = {
            let shown = self.shown();
            let quic = shown.beside.values().filter(|beside| beside.used.is_some());
            let quic = quic.count();
            (
                shown.fleet.serving().len(),
                shown.fleet.count(),
                shown.kept.len(),
                quic,
            )
        };
        metrics.servers(serving, count);
        metrics.transports(tcp, quic);
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
        let mut dials: JoinSet<(Door, CancellationToken, Result<Opened, ReachError>)> =
            JoinSet::new();
        let mut aborts: BTreeMap<Door, AbortHandle> = BTreeMap::new();
        let mut certificates = reach.kept.clone();
        let besides = TaskTracker::new();
        let besides_end = CancellationToken::new();
        let _ends = besides_end.clone().drop_guard();
        let mut doors_end = false;
        doors.mark_changed();
        self.shown().fleet.set_doors(doors.borrow().clone());
        if reach.kept.awaits_certificate() {
            tracing::info!("servers are connected when there is a certificate");
            let ready = shutdown.run_until_cancelled(certificates.ready());
            ready.await;
        }
        loop {
            let now = Instant::now();
            self.look_at_certificates(&reach);
            let actions = self.shown().fleet.plan(now);
            for action in actions {
                match action {
                    Action::Dial(door) => {
                        let (reach, drain) = (reach.clone(), CancellationToken::new());
                        let (key, connections) = (door.clone(), self.clone());
                        let handle = dials.spawn(async move {
                            // If there is a newer one meanwhile, the session is only made anew too early.
                            let pair = reach.kept.current().pair.clone();
                            let shown = pair.map(|pair| pair.leaf);
                            let is_wanted =
                                |server: &str| connections.shown().fleet.wants(&door, server);
                            let session = reach.session(&door, drain.clone(), &is_wanted).await;
                            (door, drain, session.map(|session| (session, shown)))
                        });
                        aborts.insert(key, handle);
                    }
                    Action::Abort(door) => {
                        if let Some(handle) = aborts.remove(&door) {
                            handle.abort();
                        }
                    }
                    Action::Retire(number) => {
                        let shown = self.shown();
                        if let Some(kept) = shown.kept.get(&number) {
                            kept.drain.cancel();
                        }
                        // What led to the address that is given up, by QUIC.
                        let door = shown.fleet.connections().find(|(n, _)| *n == number);
                        let door = door.map(|(_, connected)| &connected.door);
                        let same = |beside: &&Beside| Some(&beside.door) == door;
                        if let Some(beside) = shown.beside.values().find(same) {
                            beside.drain.cancel();
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
                        let takes_quic = self.dialled(&door, drain, result, &tell, &metrics);
                        let wanted = reach.transport != Transport::Tcp && reach.proxy.is_none();
                        if let Some(server) = takes_quic.filter(|server| wanted && self.quic_begins(server, &door)) {
                            let (reach, metrics) = (reach.clone(), metrics.clone());
                            let end = besides_end.clone();
                            besides.spawn(beside::keep(self.clone(), reach, server, metrics, end));
                        }
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
        besides_end.cancel();
        besides.close();
        let limit = reach.options.drain + MARGIN;
        let drained = tokio::time::timeout(limit, besides.wait());
        let _ = tokio::join!(self.drain(&mut events, limit), drained);
        self.tell(&metrics);
    }

    /// Has sessions replaced whose certificates end.
    fn look_at_certificates(&self, reach: &Reach) {
        let current = reach.kept.current();
        let leaf = current.pair.as_ref().map(|pair| &pair.leaf);
        let (now, mut shown) = ((reach.now)(), self.shown());
        let Shown {
            fleet,
            kept,
            beside,
        } = &mut *shown;
        for (number, kept) in kept {
            if is_aged(kept.shown.as_ref(), leaf, now) {
                fleet.age(*number);
            }
        }
        for beside in beside.values() {
            if beside.used.is_some() && is_aged(beside.shown.as_ref(), leaf, now) {
                beside.drain.cancel();
            }
        }
    }

    /// The server's id, when it is connected now and takes QUIC.
    fn dialled(
        &self,
        door: &Door,
        drain: CancellationToken,
        result: Result<Opened, ReachError>,
        tell: &mpsc::Sender<Event>,
        metrics: &AgentMetrics,
    ) -> Option<String> {
        let (now, luck) = (Instant::now(), fastrand::f64());
        let (session, leaf) = match result {
            Ok(opened) => opened,
            Err(ReachError::Session(SessionError::Unwanted(server))) => {
                tracing::debug!(server = %door, id = server.id, "not wanted, there is one already");
                let mut shown = self.shown();
                shown.fleet.declined(door, &server.id, now, luck);
                return None;
            }
            Err(error) => {
                metrics.server_failed();
                let text = error.to_string();
                let mut shown = self.shown();
                let before = shown.fleet.doors().find(|(other, _)| *other == door);
                if before.is_none_or(|(_, state)| state.trouble.as_deref() != Some(&text)) {
                    tracing::warn!(server = %door, name = door.name, error = text, "not connected");
                }
                shown.fleet.failed(door, text, now, luck);
                return None;
            }
        };
        let server = session.server.clone();
        let mut shown = self.shown();
        let verdict = shown
            .fleet
            .opened(door, &server.id, server.count, now, luck);
        let Verdict::Keep(number) = verdict else {
            tracing::debug!(server = %door, id = server.id, "there is a connection to this server");
            return None;
        };
        tracing::info!(server = %door, id = server.id, protocol = session.protocol, "connected");
        let kept = Kept {
            protocol: session.protocol,
            quic: server.quic,
            round_trip: session.round_trip,
            live: session.live.clone(),
            shown: leaf,
            drain,
        };
        shown.kept.insert(number, kept);
        drop(shown);
        tokio::spawn(attend(session, number, tell.clone()));
        server.quic.is_some().then_some(server.id)
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
