//! Who leads the pool, as this node goes by it: keeps sessions with candidates, decides whenever something is seen to change, and tells
//! the others about itself.

use super::{
    delegation::Readiness,
    leases::Leases,
    membership::Membership,
    presence::{BEAT, Beat, Link, Presence},
    rank::{self, Election, Sight, View},
    role::{PeerNode, Role},
    session::{self, Report, Reports, Session},
};
use crate::{caller::Caller, proxy::Hub, route::Mode, settings::Settings};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

/// Reports that may wait; sessions wait for room.
const REPORTS: usize = 64;

/// What the parts of a pool's coordination know, shared. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Coordination {
    /// What this node tells of itself.
    pub presence: Presence,
    /// The leases of the pool's nodes that they told this one.
    pub leases: Leases,
    told: Arc<Mutex<Told>>,
    readiness: Arc<Mutex<Readiness>>,
}

/// What is told of the election.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) role: Role,
    pub(super) why: String,
    pub(super) since: Option<Instant>,
    pub(super) changes: u64,
    pub(super) last_takeover: Option<Duration>,
    pub(super) link: Link,
    pub(super) revision: u64,
    pub(super) candidates: Vec<Seen>,
}

/// A candidate as it is seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) peer: PeerNode,
    pub(super) sight: Sight,
    pub(super) openyurt: bool,
    pub(super) beat: Option<Beat>,
    pub(super) heard: Option<Instant>,
    /// Why it does not answer.
    pub(super) why: String,
}

impl Coordination {
    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        // Replaced as a whole.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this node renews leases for others.
    pub(super) fn readiness(&self) -> Readiness {
        let readiness = self
            .readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        readiness.clone()
    }

    pub(super) fn set_readiness(&self, now: Readiness) {
        *self
            .readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Whether a candidate speaks more than OpenYurt's leaders do, as far as is known.
    pub(super) fn is_ours(&self, peer: &PeerNode) -> bool {
        let told = self.told();
        let mut seen = told.candidates.iter();
        seen.any(|seen| seen.peer == *peer && !seen.openyurt)
    }
}

/// Decides until shutdown. `serves`: other nodes can reach this one.
pub(crate) async fn run(
    hub: Arc<Hub>,
    serves: bool,
    mut members: watch::Receiver<Membership>,
    role: watch::Sender<Role>,
) {
    let (report, mut reports) = mpsc::channel(REPORTS);
    let mut coordinator = Coordinator {
        hub: hub.clone(),
        serves,
        role,
        election: Election::default(),
        tracked: Vec::new(),
        next: 0,
        report,
        told: Told::default(),
        beat: None,
        lost: None,
    };
    let mut settings = hub.settings.clone();
    let mut modes = hub.modes();
    let mut links = hub.upstreams.changes();
    let mut tick = tokio::time::interval(BEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        modes.borrow_and_update();
        links.borrow_and_update();
        {
            let settings = settings.borrow_and_update().clone();
            coordinator.turn(&settings, &members.borrow_and_update());
        }
        let due = coordinator.election.due();
        tokio::select! {
            Some((id, report)) = reports.recv() => coordinator.take(id, report),
            _ = tick.tick() => {}
            () = until(due) => {}
            changed = settings.changed() => if changed.is_err() { return },
            Ok(()) = members.changed() => {}
            Ok(()) = modes.changed() => {}
            Ok(()) = links.changed() => {}
            () = hub.shutdown.cancelled() => return,
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

struct Tracked {
    seen: Seen,
    session: Option<Session>,
}

impl Tracked {
    fn new(peer: PeerNode) -> Self {
        Self {
            seen: Seen {
                peer,
                sight: Sight::Unknown,
                openyurt: false,
                beat: None,
                heard: None,
                why: String::new(),
            },
            session: None,
        }
    }
}

struct Coordinator {
    hub: Arc<Hub>,
    serves: bool,
    role: watch::Sender<Role>,
    election: Election,
    tracked: Vec<Tracked>,
    next: u64,
    report: Reports,
    told: Told,
    /// What was told last, and when.
    beat: Option<(Beat, Instant)>,
    /// When the leader was heard last that was lost, until there is another one.
    lost: Option<Instant>,
}

impl Coordinator {
    fn take(&mut self, id: u64, report: Report) {
        let mut tracked = self.tracked.iter_mut();
        // One of a session that was closed meanwhile says nothing.
        let Some(tracked) = tracked.find(|t| t.session.as_ref().is_some_and(|s| s.id == id)) else {
            return;
        };
        let seen = &mut tracked.seen;
        match report {
            Report::Beat(beat) => {
                seen.sight = Sight::Answers {
                    link: beat.link == Link::Online,
                    revision: beat.revision,
                };
                seen.openyurt = false;
                seen.beat = Some(beat);
                seen.heard = Some(Instant::now());
                seen.why.clear();
            }
            Report::OpenYurt => {
                // It tells nothing of its link; the others of its pool would take it for their leader as well.
                seen.sight = Sight::Answers {
                    link: true,
                    revision: 0,
                };
                seen.openyurt = true;
                seen.beat = None;
                seen.heard = Some(Instant::now());
                seen.why.clear();
            }
            Report::Gone(why) => {
                if seen.sight != Sight::Silent {
                    tracing::info!(peer = %seen.peer, why, "a candidate does not answer");
                }
                seen.sight = Sight::Silent;
                seen.why = why;
            }
        }
    }

    /// Decides anew on what is known now.
    fn turn(&mut self, settings: &Settings, members: &Membership) {
        let hub = self.hub.clone();
        let me = &*hub.node_name;
        let link = hub.mode_of(&Caller::Node) == Mode::Online && hub.upstreams.up();
        let known = hub.cache.shared_revision(&settings.pool_scope);
        let revision = known.max(hub.share.newest());
        let port = hub.config.pool_port.unwrap_or(rank::PORT);
        self.reconcile(rank::candidates(settings, members, port));
        for tracked in &mut self.tracked {
            let seen = &mut tracked.seen;
            if *seen.peer.node == *me {
                seen.sight = match self.serves {
                    true => Sight::Answers { link, revision },
                    false => Sight::Silent,
                };
            } else if let Some((reason, _)) = hub.peers.set_aside(&seen.peer.node) {
                seen.sight = Sight::Silent;
                seen.why = format!("set aside: {}", reason.as_str());
            }
        }
        let candidates: Vec<PeerNode> = self.tracked.iter().map(|t| t.seen.peer.clone()).collect();
        let sights: Vec<Sight> = self.tracked.iter().map(|t| t.seen.sight).collect();
        let now = Instant::now();
        let role = self.election.decide(
            now,
            &View {
                me,
                link,
                candidates: &candidates,
                sights: &sights,
            },
        );
        let chosen = self
            .election
            .current()
            .and_then(|name| candidates.iter().position(|c| *c.node == *name));
        self.keep_in_touch(me, rank::reach(&sights, chosen));
        if let Some(nodes) = &members.nodes {
            hub.coordination.leases.keep(nodes);
        }
        let alive = hub.coordination.leases.alive(now);
        self.tell(
            Beat {
                node: me.to_owned(),
                link: if link { Link::Online } else { Link::Offline },
                leads: role == Role::Leader,
                leader: self.election.current().map(str::to_owned),
                revision,
                alive,
            },
            now,
        );
        let metrics = hub.metrics.pool();
        metrics.leads(role == Role::Leader);
        metrics.alive(alive);
        let sessions = self.tracked.iter().filter(|t| t.session.is_some()).count();
        metrics.sessions(sessions, hub.coordination.presence.listeners());
        let why = self.why(settings, members, link, &role, chosen);
        self.told.link = if link { Link::Online } else { Link::Offline };
        self.told.revision = revision;
        self.told.candidates = self.tracked.iter().map(|t| t.seen.clone()).collect();
        self.told.why = why;
        self.change(now, role);
        hub.coordination.told().clone_from(&self.told);
        self.role.send_if_modified(|known| {
            let changed = *known != self.told.role;
            known.clone_from(&self.told.role);
            changed
        });
    }

    /// Tells the others: at once what they decide by, the rest with the next beat.
    fn tell(&mut self, beat: Beat, now: Instant) {
        if let Some((last, at)) = &self.beat {
            let same =
                (last.link, last.leads, &last.leader) == (beat.link, beat.leads, &beat.leader);
            if same && now.saturating_duration_since(*at) < BEAT.mul_f32(0.9) {
                return;
            }
        }
        self.hub.coordination.presence.tell(&beat);
        self.beat = Some((beat, now));
    }

    fn reconcile(&mut self, ranked: Vec<PeerNode>) {
        let unchanged = self.tracked.len() == ranked.len()
            && self
                .tracked
                .iter()
                .zip(&ranked)
                .all(|(t, peer)| t.seen.peer == *peer);
        if unchanged {
            return;
        }
        let mut before = std::mem::take(&mut self.tracked);
        for peer in ranked {
            let known = before.iter().position(|tracked| tracked.seen.peer == peer);
            let tracked = match known {
                Some(index) => before.swap_remove(index),
                None => Tracked::new(peer),
            };
            self.tracked.push(tracked);
        }
    }

    fn keep_in_touch(&mut self, me: &str, reach: usize) {
        for (rank, tracked) in self.tracked.iter_mut().enumerate() {
            let wanted = rank < reach && *tracked.seen.peer.node != *me;
            if !wanted {
                if tracked.session.take().is_some() {
                    tracked.seen.sight = Sight::Unknown;
                }
            } else if tracked.session.is_none() {
                self.next += 1;
                let hub = &self.hub;
                let peer = &tracked.seen.peer;
                let (tasks, shutdown) = (&hub.tasks, &hub.shutdown);
                let opened =
                    session::open(tasks, shutdown, &hub.peers, peer, self.next, &self.report);
                tracked.session = Some(opened);
            }
        }
    }

    /// Notes a change of the role, and how long the pool was without the leader before.
    fn change(&mut self, now: Instant, role: Role) {
        if self.told.since.is_some() && role == self.told.role {
            return;
        }
        let before = std::mem::replace(&mut self.told.role, role);
        let metrics = self.hub.metrics.pool();
        let lost = before.leader().and_then(|before| {
            let mut seen = self.tracked.iter().map(|tracked| &tracked.seen);
            seen.find(|seen| seen.peer == *before && !seen.sight.links())?
                .heard
        });
        self.lost = lost.or(self.lost);
        if self.told.role != Role::Alone
            && let Some(heard) = self.lost.take()
        {
            let took = now.saturating_duration_since(heard);
            metrics.took_over(took);
            self.told.last_takeover = Some(took);
        }
        if self.told.since.replace(now).is_some() {
            self.told.changes += 1;
            metrics.role_changed(self.told.role.as_str());
            let leader = self.told.role.leader().map(ToString::to_string);
            tracing::info!(
                role = self.told.role.as_str(),
                leader,
                why = self.told.why,
                "role in the pool"
            );
        }
    }

    fn why(
        &self,
        settings: &Settings,
        members: &Membership,
        link: bool,
        role: &Role,
        chosen: Option<usize>,
    ) -> String {
        let chosen = chosen.and_then(|rank| Some((rank, &self.tracked.get(rank)?.seen)));
        match (role, chosen) {
            (Role::Leader, Some((rank, _))) if link => {
                format!(
                    "rank {}: the first of those that answer and have a link",
                    rank + 1
                )
            }
            (Role::Leader, _) => {
                "nobody has a link; this node has the newest data of those that answer".into()
            }
            (Role::Follower(_), Some((rank, seen))) if seen.sight.links() => {
                format!(
                    "rank {}: the first of those that answer and have a link",
                    rank + 1
                )
            }
            (Role::Follower(_), _) => {
                "nobody has a link; it has the newest data of those that answer".into()
            }
            (Role::Alone, Some(_)) => {
                "this node has a link and the candidates that answer have none".into()
            }
            (Role::Alone, None) if settings.pool.is_empty() => "the node is of no pool".into(),
            (Role::Alone, None) if self.tracked.is_empty() => {
                if settings.leader_election || members.leader_election {
                    "no candidates are named".into()
                } else {
                    "leaders are not enabled for the pool".into()
                }
            }
            (Role::Alone, None) => "no candidate answers".into(),
        }
    }
}
