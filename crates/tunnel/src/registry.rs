//! The agents that are connected to this server, and how they are reached.
//!
//! An agent may have several connections at once: a new one while an old one has not been noticed to be dead, or drains. They are kept
//! apart, so that nothing of one is taken for the other's; the newest that does not drain is dialled by, and one that the agent prefers
//! (QUIC beside TCP) before it.

use crate::{
    Identifiers, Link,
    directory::Directory,
    routing::{Plan, Roster, Strategy, plan},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use tokio_util::task::TaskTracker;
use yurt_transport::Destination;

/// Connections of one agent; when it opens more, the oldest is closed.
const MOST_LINKS: usize = 4;

/// Where a connection is from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The agent's address, or what stands for it.
    pub address: String,
    /// As whom it was let in: the certificate's common name, or the service account.
    pub identity: String,
}

#[derive(Debug)]
struct Registered {
    link: Arc<dyn Link>,
    origin: Origin,
    since: Timestamp,
    number: u64,
}

#[derive(Debug, Default)]
struct Inner {
    roster: Roster,
    /// By id; the newest last.
    agents: HashMap<Arc<str>, Vec<Registered>>,
    registered: u64,
    draining: bool,
}

/// The agents of a server.
#[derive(Debug, Default)]
pub struct Registry {
    inner: RwLock<Inner>,
    tasks: TaskTracker,
}

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection whose agent was let in; it is forgotten when it ends.
    pub fn register(self: &Arc<Self>, link: Arc<dyn Link>, origin: Origin) {
        let id: Arc<str> = link.hello().id.as_str().into();
        let (number, surplus, draining) = {
            let mut inner = self.write();
            inner.registered += 1;
            let number = inner.registered;
            let draining = inner.draining;
            let known = inner.agents.entry(id.clone()).or_default();
            known.iter().for_each(|other| other.link.doubt());
            known.push(Registered {
                link: link.clone(),
                origin: origin.clone(),
                since: Timestamp::now(),
                number,
            });
            let surplus = (known.len() > MOST_LINKS).then(|| known.remove(0));
            let Inner { roster, .. } = &mut *inner;
            roster.insert(&id, &link.hello().identifiers);
            (number, surplus, draining)
        };
        tracing::info!(agent = %id, from = %origin.address, identity = %origin.identity, protocol = link.protocol(), version = %link.hello().version, "an agent is connected");
        if let Some(surplus) = surplus {
            tracing::warn!(agent = %id, "it has too many connections: the oldest is closed");
            surplus.link.closed().cancel();
        }
        if draining {
            link.drain();
        }
        let closed = link.closed().clone();
        let registry = self.clone();
        self.tasks.spawn(async move {
            closed.cancelled().await;
            registry.forget(&id, number);
        });
    }

    fn forget(&self, id: &Arc<str>, number: u64) {
        let mut inner = self.write();
        let Inner { roster, agents, .. } = &mut *inner;
        let Some(known) = agents.get_mut(id) else {
            return;
        };
        known.retain(|registered| registered.number != number);
        known.iter().for_each(|other| other.link.doubt());
        match known.last() {
            // It may have told other identifiers than the one that is gone.
            Some(newest) => roster.insert(id, &newest.link.hello().identifiers),
            None => {
                agents.remove(id);
                roster.remove(id);
            }
        }
        let left = agents.len();
        drop(inner);
        tracing::info!(agent = %id, left, "a connection to an agent ended");
    }

    /// The connections of an agent, the best first: what lives and does not drain, what the agent prefers. Of ours the newest: an agent that comes again has
    /// noticed that the one before is dead. Of konnectivity's the oldest, as its servers do: an agent finds out by connecting that it is
    /// connected to this server already, and hangs up.
    pub fn links(&self, agent: &str) -> Vec<Arc<dyn Link>> {
        let inner = self.read();
        let known = inner.agents.get(agent).into_iter().flatten();
        let lives = |registered: &&Registered| !registered.link.closed().is_cancelled();
        let (theirs, mut links): (Vec<_>, Vec<_>) = known
            .filter(lives)
            .map(link_of)
            .partition(|link| link.protocol() == "anp");
        links.reverse();
        links.extend(theirs);
        links.sort_by_key(|link| (link.is_draining(), !link.is_preferred()));
        links
    }

    /// What can be done for a target.
    pub fn plan(
        &self,
        to: &Destination,
        strategies: &[Strategy],
        directory: &dyn Directory,
    ) -> Plan {
        plan(
            to,
            strategies,
            &self.read().roster,
            directory,
            fastrand::u64(..),
        )
    }

    /// How many agents are connected.
    pub fn len(&self) -> usize {
        self.read().roster.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many agents a strategy has to choose from.
    pub fn choices(&self, strategy: Strategy) -> usize {
        self.read().roster.choices(strategy)
    }

    /// How many connections to agents there are.
    pub fn connected(&self) -> usize {
        self.read().agents.values().map(Vec::len).sum()
    }

    /// How many connections there are by protocol.
    pub fn protocols(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<_, _> = ["anp", "mux", "quic"].map(|name| (name, 0)).into();
        for registered in self.read().agents.values().flatten() {
            *counts.entry(registered.link.protocol()).or_default() += 1;
        }
        counts
    }

    /// Tells all agents, and those that come from now on, to look elsewhere.
    pub fn drain(&self) {
        let mut inner = self.write();
        inner.draining = true;
        let links: Vec<_> = inner.agents.values().flatten().map(link_of).collect();
        drop(inner);
        for link in links {
            link.drain();
        }
    }

    /// Ends all connections, and waits until they are forgotten.
    pub async fn close(&self) {
        let links: Vec<_> = self.read().agents.values().flatten().map(link_of).collect();
        for link in links {
            link.closed().cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What there is, for people; by id.
    pub fn agents(&self) -> Vec<AgentStatus> {
        let inner = self.read();
        let mut agents: Vec<_> = inner
            .agents
            .iter()
            .filter_map(|(id, known)| {
                let newest = known.last()?;
                let hello = newest.link.hello();
                Some(AgentStatus {
                    id: id.to_string(),
                    version: hello.version.clone(),
                    identifiers: shown(&hello.identifiers),
                    links: known.iter().rev().map(status_of).collect(),
                })
            })
            .collect();
        agents.sort_by(|a, b| a.id.cmp(&b.id));
        agents
    }
}

fn link_of(registered: &Registered) -> Arc<dyn Link> {
    registered.link.clone()
}

fn status_of(registered: &Registered) -> LinkStatus {
    LinkStatus {
        protocol: registered.link.protocol().to_owned(),
        from: registered.origin.address.clone(),
        identity: registered.origin.identity.clone(),
        since: registered.since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        draining: registered.link.is_draining(),
        connections: registered.link.connections(),
    }
}

/// As konnectivity's agents write them, unescaped.
fn shown(identifiers: &Identifiers) -> Vec<String> {
    let hosts = identifiers.hosts.iter().map(|host| format!("host={host}"));
    let addresses = identifiers.addresses.iter().map(|address| {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        format!("{family}={address}")
    });
    let networks = identifiers.networks.iter();
    let networks = networks.map(|(base, bits)| format!("cidr={base}/{bits}"));
    let default = identifiers
        .default_route
        .then(|| "default-route=true".into());
    let all = hosts.chain(addresses).chain(networks);
    all.chain(default).collect()
}

/// An agent, as `/v1/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its id.
    pub id: String,
    /// Program and version; empty for konnectivity's.
    #[serde(default)]
    pub version: String,
    /// `host=…`, `ipv4=…`, `ipv6=…`, `cidr=…`, `default-route=true`.
    #[serde(default)]
    pub identifiers: Vec<String>,
    /// Its connections to this server, the newest first.
    #[serde(default)]
    pub links: Vec<LinkStatus>,
}

/// A connection to an agent, as `/v1/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// `mux` (over TCP), `quic` or `anp`.
    pub protocol: String,
    /// The agent's address.
    pub from: String,
    /// As whom it was let in.
    pub identity: String,
    /// Since when (RFC 3339, UTC).
    pub since: String,
    /// Whether the agent asked for no more dials.
    pub draining: bool,
    /// Proxied connections that are open.
    pub connections: usize,
}
