//! Which servers to dial and which connections to give up. Pure: time and luck are handed in.
//!
//! A [`Door`] is one address; behind it is a server, or a balancer that leads to any of several. Servers are told apart by the id
//! that they say. New addresses are connected before old ones are given up.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Pauses before a door is tried again: full jitter between the shortest and a bound that doubles to the longest.
const SHORTEST: Duration = Duration::from_millis(200);
const FIRST_BOUND: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// A connection that lasted so long ends a row of failures.
const LASTED: Duration = Duration::from_secs(30);
/// Most doors that are knocked at together.
const MOST_DIALS: usize = 16;
/// Most servers that are believed to exist.
const MOST_SERVERS: u32 = 64;
/// Failures in a row after which a door is not waited for.
const HOPELESS: u32 = 3;
/// How long a door is tried alone where not all are wanted.
const STAGGER: Duration = Duration::from_millis(250);

/// An address at which a server is to be had.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Door {
    /// Lower ones are preferred where not all are wanted.
    pub priority: u16,
    /// What is dialled: an address; a name only where a proxy resolves it.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Who must be at the other end: the name that its certificate is for.
    pub name: String,
}

impl std::fmt::Display for Door {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// How many servers to be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// All there are.
    All,
    /// So many, by priority.
    Some(usize),
}

/// How a door is.
#[derive(Clone, Debug, Default)]
pub struct DoorState {
    /// Failures in a row.
    pub failures: u32,
    /// Not to be tried before.
    pub not_before: Option<Instant>,
    /// Since when it is being tried.
    pub dialling: Option<Instant>,
    /// The server that was there last.
    pub leads_to: Option<String>,
    /// Why it failed last.
    pub trouble: Option<String>,
}

/// A connection to a server.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Where.
    pub door: Door,
    /// The server's id.
    pub server: String,
    /// How many servers it says there are.
    pub count: u32,
    /// Since when.
    pub since: Instant,
    /// It asked to look elsewhere.
    pub server_drains: bool,
    /// We gave it up.
    pub retired: bool,
    /// A newer one is to take its place: its certificate ends.
    pub aged: bool,
}

impl Connected {
    fn serves(&self) -> bool {
        !self.server_drains && !self.retired
    }

    /// Whether nothing is to take its place.
    fn lasts(&self) -> bool {
        self.serves() && !self.aged
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Knock at a door.
    Dial(Door),
    /// Nobody waits for this door any more.
    Abort(Door),
    /// Let a connection end when it is idle.
    Retire(u64),
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is used, under this number.
    Keep(u64),
    /// There is one to this server, or there are enough.
    Close,
}

/// The doors, and the connections there are.
#[derive(Clone, Debug)]
pub struct Fleet {
    policy: Policy,
    doors: BTreeMap<Door, DoorState>,
    listed: BTreeSet<Door>,
    connections: BTreeMap<u64, Connected>,
    /// Instances by leases, when somebody counts them.
    leases: u32,
    next: u64,
}

/// How long to wait after so many failures in a row.
pub fn pause(failures: u32, luck: f64) -> Duration {
    let bound = FIRST_BOUND
        .saturating_mul(2u32.saturating_pow(failures.min(16)))
        .min(LONGEST);
    SHORTEST + bound.saturating_sub(SHORTEST).mul_f64(luck.clamp(0.0, 1.0))
}

impl Fleet {
    /// No doors yet.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            doors: BTreeMap::new(),
            listed: BTreeSet::new(),
            connections: BTreeMap::new(),
            leases: 0,
            next: 0,
        }
    }

    /// These are the doors now. None at all is no news: those of before stay.
    pub fn set_doors(&mut self, doors: impl IntoIterator<Item = Door>) {
        let listed: BTreeSet<Door> = doors.into_iter().collect();
        if listed.is_empty() {
            return;
        }
        for door in &listed {
            self.doors.entry(door.clone()).or_default();
        }
        self.listed = listed;
        self.forget_doors();
    }

    /// So many instances hold leases; 0: nobody counts.
    pub fn set_leases(&mut self, count: u32) {
        self.leases = count;
    }

    /// Doors that are neither listed nor in use.
    fn forget_doors(&mut self) {
        let (listed, connections) = (&self.listed, &self.connections);
        self.doors.retain(|door, state| {
            listed.contains(door)
                || state.dialling.is_some()
                || connections.values().any(|c| c.door == *door)
        });
    }

    /// The doors and how they are.
    pub fn doors(&self) -> impl Iterator<Item = (&Door, &DoorState)> {
        self.doors.iter()
    }

    /// The connections, by number.
    pub fn connections(&self) -> impl Iterator<Item = (u64, &Connected)> {
        self.connections
            .iter()
            .map(|(number, connected)| (*number, connected))
    }

    /// Servers that can be asked for something, each once.
    pub fn serving(&self) -> BTreeSet<&str> {
        let serving = self.connections.values().filter(|c| c.serves());
        serving.map(|c| c.server.as_str()).collect()
    }

    /// How many servers there are, as far as is known.
    pub fn count(&self) -> u32 {
        let told = self
            .connections
            .values()
            .filter(|c| c.serves())
            .map(|c| c.count)
            .max();
        told.unwrap_or(0).max(self.leases).clamp(1, MOST_SERVERS)
    }

    /// Servers whose connections last, each once.
    fn lasting(&self) -> usize {
        let lasting = self.connections.values().filter(|c| c.lasts());
        let lasting: BTreeSet<&str> = lasting.map(|c| c.server.as_str()).collect();
        lasting.len()
    }

    /// Whether no more servers are wanted.
    fn is_enough(&self) -> bool {
        matches!(self.policy, Policy::Some(most) if self.lasting() >= most)
    }

    fn is_covered(&self, door: &Door) -> bool {
        let leads_to = self
            .doors
            .get(door)
            .and_then(|state| state.leads_to.as_deref());
        self.connections.values().any(|connected| {
            connected.lasts()
                && (connected.door == *door
                    || (leads_to == Some(&connected.server)
                        && self.listed.contains(&connected.door)))
        })
    }

    fn may_dial(&self, door: &Door, now: Instant) -> bool {
        self.doors.get(door).is_some_and(|state| {
            state.dialling.is_none() && state.not_before.is_none_or(|time| time <= now)
        })
    }

    /// What is to be done at `now`. Doors to be dialled count as being dialled from now on.
    pub fn plan(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let dialling: Vec<Door> = self
            .doors
            .iter()
            .filter(|(_, state)| state.dialling.is_some())
            .map(|(door, _)| door.clone())
            .collect();
        for door in &dialling {
            let enough = self.is_enough();
            if !self.listed.contains(door) || enough {
                actions.push(Action::Abort(door.clone()));
                self.aborted(door);
            }
        }
        for door in self.wanted(now) {
            if let Some(state) = self.doors.get_mut(&door) {
                state.dialling = Some(now);
            }
            actions.push(Action::Dial(door));
        }
        actions.extend(self.outdated().into_iter().map(Action::Retire));
        actions
    }

    fn aborted(&mut self, door: &Door) {
        if let Some(state) = self.doors.get_mut(door) {
            state.dialling = None;
        }
        self.forget_doors();
    }

    fn wanted(&self, now: Instant) -> Vec<Door> {
        let in_flight = self.doors.values().filter_map(|state| state.dialling);
        let room = MOST_DIALS.saturating_sub(in_flight.clone().count());
        let open = |door: &&Door| !self.is_covered(door) && self.may_dial(door, now);
        match self.policy {
            Policy::All => {
                let mut wanted: Vec<Door> = self
                    .listed
                    .iter()
                    .filter(open)
                    .take(room)
                    .cloned()
                    .collect();
                // A balancer has more behind it than it has addresses. First comes who was there a moment ago.
                let known = u32::try_from(self.lasting()).unwrap_or(u32::MAX);
                let missed = self.listed.iter().any(|door| {
                    let failures = self.doors.get(door).map_or(0, |state| state.failures);
                    failures < HOPELESS && !self.is_covered(door)
                });
                let idle = wanted.is_empty() && in_flight.count() == 0 && !missed;
                if idle && known > 0 && known < self.count() {
                    let any = self.listed.iter().filter(|door| self.may_dial(door, now));
                    let longest_ago =
                        any.min_by_key(|door| self.doors.get(door).and_then(|s| s.not_before));
                    wanted.extend(longest_ago.cloned());
                }
                wanted
            }
            Policy::Some(most) => {
                let fresh =
                    in_flight.filter(|since| now.saturating_duration_since(*since) < STAGGER);
                let lacking = most.saturating_sub(self.lasting() + fresh.count());
                // Doors are in the order of their priority, then of the failures.
                let mut open: Vec<&Door> = self.listed.iter().filter(open).collect();
                open.sort_by_key(|door| {
                    (
                        door.priority,
                        self.doors.get(door).map_or(0, |s| s.failures),
                    )
                });
                open.into_iter().take(lacking.min(room)).cloned().collect()
            }
        }
    }

    /// Connections to addresses that are not listed any more, as soon as there is one to an address that is; and those that another
    /// has taken the place of.
    fn outdated(&mut self) -> Vec<u64> {
        let listed = &self.listed;
        let has_listed = self
            .connections
            .values()
            .any(|c| c.serves() && listed.contains(&c.door));
        if !has_listed {
            return Vec::new();
        }
        let lasting = self.connections.values().filter(|c| c.lasts());
        let lasting: BTreeSet<String> = lasting.map(|c| c.server.clone()).collect();
        let enough = self.is_enough();
        let mut outdated = Vec::new();
        for (number, connected) in &mut self.connections {
            let replaced = connected.aged && (enough || lasting.contains(&connected.server));
            if connected.serves() && (replaced || !listed.contains(&connected.door)) {
                connected.retired = true;
                outdated.push(*number);
            }
        }
        outdated
    }

    /// Whether a connection to a server by a door is one to keep: there is none yet, or it replaces one, and there are not enough.
    pub fn wants(&self, door: &Door, server: &str) -> bool {
        let same = |c: &Connected| c.server == server && !c.retired;
        let mut twins = self.connections.values().filter(|c| same(c)).peekable();
        let is_known = twins.peek().is_some();
        // The same server at its new address, or with a newer certificate, replaces the connection of before.
        let replaces = is_known
            && twins.all(|c| c.aged || (!self.listed.contains(&c.door) && !c.server_drains));
        let is_duplicate = is_known && !replaces;
        let enough = self.is_enough() && !replaces;
        !is_duplicate && !enough && self.listed.contains(door)
    }

    /// A door led to a server that is not wanted.
    pub fn declined(&mut self, door: &Door, server: &str, now: Instant, luck: f64) {
        if let Some(state) = self.doors.get_mut(door) {
            state.dialling = None;
            state.trouble = None;
            state.leads_to = Some(server.to_owned());
            // A balancer may lead elsewhere next time.
            state.failures = state.failures.saturating_add(1);
            state.not_before = Some(now + pause(state.failures, luck));
        }
        self.forget_doors();
    }

    /// A door was opened by a server.
    pub fn opened(
        &mut self,
        door: &Door,
        server: &str,
        count: u32,
        now: Instant,
        luck: f64,
    ) -> Verdict {
        if !self.wants(door, server) || !self.doors.contains_key(door) {
            self.declined(door, server, now, luck);
            return Verdict::Close;
        }
        if let Some(state) = self.doors.get_mut(door) {
            state.dialling = None;
            state.trouble = None;
            state.leads_to = Some(server.to_owned());
        }
        self.next += 1;
        self.connections.insert(
            self.next,
            Connected {
                door: door.clone(),
                server: server.to_owned(),
                count,
                since: now,
                server_drains: false,
                retired: false,
                aged: false,
            },
        );
        Verdict::Keep(self.next)
    }

    /// Nobody opened.
    pub fn failed(&mut self, door: &Door, trouble: String, now: Instant, luck: f64) {
        if let Some(state) = self.doors.get_mut(door) {
            state.dialling = None;
            state.leads_to = None;
            state.trouble = Some(trouble);
            state.failures = state.failures.saturating_add(1);
            state.not_before = Some(now + pause(state.failures, luck));
        }
        self.forget_doors();
    }

    /// What kept doors shut may be over, as when there is a certificate at last: they are tried soon, though not all agents at once.
    pub fn encourage(&mut self, now: Instant, luck: f64) {
        let soon = now + pause(0, luck);
        for state in self.doors.values_mut() {
            state.failures = 0;
            state.not_before = state.not_before.map(|time| time.min(soon));
        }
    }

    /// A connection is to be replaced by a newer one before it is given up.
    pub fn age(&mut self, number: u64) {
        if let Some(connected) = self.connections.get_mut(&number) {
            connected.aged = true;
        }
    }

    /// A server asked to look elsewhere.
    pub fn drains(&mut self, number: u64, now: Instant, luck: f64) {
        if let Some(connected) = self.connections.get_mut(&number) {
            connected.server_drains = true;
            if let Some(state) = self.doors.get_mut(&connected.door) {
                state.not_before = Some(now + pause(0, luck));
            }
        }
    }

    /// A connection ended.
    pub fn ended(&mut self, number: u64, trouble: String, now: Instant, luck: f64) {
        let Some(connected) = self.connections.remove(&number) else {
            return;
        };
        if let Some(state) = self.doors.get_mut(&connected.door) {
            state.leads_to = None;
            if connected.serves() {
                state.failures = match now.saturating_duration_since(connected.since) >= LASTED {
                    true => 0,
                    false => state.failures.saturating_add(1),
                };
                state.not_before = Some(now + pause(state.failures, luck));
                state.trouble = Some(trouble);
            }
        }
        self.forget_doors();
    }

    /// When there may be something to do that nobody tells of.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        let waiting = self
            .listed
            .iter()
            .filter_map(|door| self.doors.get(door)?.not_before)
            .filter(|time| *time > now);
        let staggered = self
            .doors
            .values()
            .filter_map(|state| Some(state.dialling? + STAGGER))
            .filter(|time| *time > now);
        waiting.chain(staggered).min()
    }
}

#[cfg(test)]
mod tests;
