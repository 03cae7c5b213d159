//! What is counted of a pool's sharing and of filters. Their names stand in dashboards of OpenYurt; what feeds them is the
//! coordinator and the filters, so that they rest at zero on a node that shares and filters nothing.

use super::{
    Held,
    labels::{MAX_RESOURCES, ReasonLabel, RequestLabels, bounded},
};
use crate::pool::Distrust;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use yurt_wire::Gvr;

/// Servers that feed shared streams and get a label of their own.
const MAX_SERVERS: usize = 64;

/// A request that was answered out of a shared stream, and by whom that stream is fed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SourceLabels {
    verb: &'static str,
    resource: String,
    subresources: String,
    client: String,
    server: String,
}

/// A resource that is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FeedLabel {
    resource: String,
}

/// Metrics of one shared resource.
#[derive(Debug)]
pub struct FeedMetrics {
    synced: Gauge,
    watchers: Gauge,
    resumes: Counter,
    lists: Counter,
}

impl FeedMetrics {
    /// Whether its state is known completely.
    pub fn synced(&self, synced: bool) {
        self.synced.set(i64::from(synced));
    }

    /// Watches that follow it.
    pub fn watchers(&self, count: usize) {
        self.watchers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Its upstream watch goes on.
    pub fn resumed(&self) {
        self.resumes.inc();
    }

    /// Its state was listed.
    pub fn listed(&self) {
        self.lists.inc();
    }

    /// How often its upstream watch was opened so far.
    pub fn resumes(&self) -> u64 {
        self.resumes.get()
    }

    /// How often its state was listed so far.
    pub fn lists(&self) -> u64 {
        self.lists.get()
    }
}

/// A request under way that is answered out of what is shared.
#[derive(Debug)]
pub struct Aggregated {
    _one: Held,
    _total: Held,
}

/// Seconds that a pool may be without the leader that it had.
const TAKE_OVER: [f64; 7] = [0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 10.0];

/// How long they were.
#[derive(Debug)]
struct TakeOver(Histogram);

impl Default for TakeOver {
    fn default() -> Self {
        Self(Histogram::new(TAKE_OVER))
    }
}

/// Metrics of sharing within the pool.
#[derive(Debug, Default)]
pub struct PoolMetrics {
    aggregated: Family<RequestLabels, Gauge>,
    aggregated_total: Gauge,
    sources: Family<SourceLabels, Gauge>,
    given_bytes: Counter,
    taken_bytes: Counter,
    saved_bytes: Counter,
    /// Bytes given and not taken, since they were last counted as saved; below zero when more was taken.
    balance: Mutex<i64>,
    resources: Mutex<HashSet<String>>,
    servers: Mutex<HashSet<String>>,
    synced: Family<FeedLabel, Gauge>,
    watchers: Family<FeedLabel, Gauge>,
    resumes: Family<FeedLabel, Counter>,
    lists: Family<FeedLabel, Counter>,
    leader: Gauge,
    distrusts: Family<ReasonLabel, Counter>,
    roles: Family<ReasonLabel, Counter>,
    take_over: TakeOver,
    sessions: Gauge,
    listeners: Gauge,
    alive: Gauge,
    delegated: Family<ReasonLabel, Counter>,
    leases_refused: Family<ReasonLabel, Counter>,
}

impl PoolMetrics {
    /// Under the names of OpenYurt's hub, and new ones.
    pub(super) fn register(&self, hub: &mut Registry) {
        hub.register(
            "aggregated_in_flight_requests_collector",
            "Requests under way that share a stream with others",
            self.aggregated.clone(),
        );
        hub.register(
            "aggregated_in_flight_requests_total",
            "Requests under way that share a stream with others, all together",
            self.aggregated_total.clone(),
        );
        hub.register(
            "target_for_multiplexer_requests_collector",
            "Shared streams by the server that feeds them",
            self.sources.clone(),
        );
        hub.register(
            "pool_saved_bytes",
            "Bytes given to components and other nodes out of what is shared, less those taken to be able to; over a pool, what its link \
             to the cloud was spared",
            self.saved_bytes.clone(),
        );
        hub.register(
            "pool_given_bytes",
            "Bytes of answers given to components and other nodes out of what is shared",
            self.given_bytes.clone(),
        );
        hub.register(
            "pool_taken_bytes",
            "Bytes of answers taken from the cloud or the pool's leader to share them",
            self.taken_bytes.clone(),
        );
        hub.register(
            "pool_feed_synced",
            "1 while the state of a shared resource is known completely",
            self.synced.clone(),
        );
        hub.register(
            "pool_feed_watchers",
            "Watches of components and other nodes that follow a shared resource",
            self.watchers.clone(),
        );
        hub.register(
            "pool_feed_watches",
            "Watches opened to follow a shared resource at its source; after the first one, each resumes",
            self.resumes.clone(),
        );
        hub.register(
            "pool_feed_lists",
            "Times that the state of a shared resource was listed at its source",
            self.lists.clone(),
        );
        hub.register(
            "pool_leader",
            "1 while this node leads its pool",
            self.leader.clone(),
        );
        hub.register(
            "pool_distrusts",
            "Times that another node of the pool was set aside",
            self.distrusts.clone(),
        );
        hub.register(
            "pool_role_changes",
            "Changes of what this node is to its pool, by what it became",
            self.roles.clone(),
        );
        hub.register(
            "pool_takeover_seconds",
            "From the last sign of a leader that was lost to the next one",
            self.take_over.0.clone(),
        );
        hub.register(
            "pool_sessions",
            "Candidates that this node keeps in touch with",
            self.sessions.clone(),
        );
        hub.register(
            "pool_listeners",
            "Nodes that keep in touch with this one",
            self.listeners.clone(),
        );
        hub.register(
            "pool_peers_alive",
            "Nodes of the pool that are alive by the leases that they told this one",
            self.alive.clone(),
        );
        hub.register(
            "pool_delegated_renewals",
            "Leases that this node was to renew in the cloud for others, by what came of it",
            self.delegated.clone(),
        );
        hub.register(
            "pool_leases_refused",
            "Leases of other nodes that were not taken",
            self.leases_refused.clone(),
        );
    }

    /// Whether this node is a leader of its pool.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Bytes went to somebody out of what is shared.
    pub fn given(&self, bytes: usize) {
        self.given_bytes.inc_by(bytes as u64);
        self.settle(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Bytes came from a source.
    pub fn taken(&self, bytes: usize) {
        self.taken_bytes.inc_by(bytes as u64);
        self.settle(-i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn settle(&self, bytes: i64) {
        let mut balance = self.balance.lock().unwrap_or_else(PoisonError::into_inner);
        *balance = balance.saturating_add(bytes);
        if *balance > 0 {
            self.saved_bytes.inc_by(balance.unsigned_abs());
            *balance = 0;
        }
    }

    /// Metrics of one resource.
    pub(super) fn feed(&self, gvr: &Gvr) -> FeedMetrics {
        let label = FeedLabel {
            resource: self.resource(gvr),
        };
        FeedMetrics {
            synced: self.synced.get_or_create(&label).clone(),
            watchers: self.watchers.get_or_create(&label).clone(),
            resumes: self.resumes.get_or_create(&label).clone(),
            lists: self.lists.get_or_create(&label).clone(),
        }
    }

    fn resource(&self, gvr: &Gvr) -> String {
        let name = match gvr.group.as_str() {
            "" => gvr.resource.clone(),
            group => format!("{}.{group}", gvr.resource),
        };
        bounded(&self.resources, name, MAX_RESOURCES)
    }

    /// The streams of a resource that a server feeds.
    pub(super) fn source(&self, gvr: &Gvr, client: &str, server: &str) -> Gauge {
        let label = SourceLabels {
            verb: "watch",
            resource: self.resource(gvr),
            subresources: String::new(),
            client: client.to_owned(),
            server: bounded(&self.servers, server.to_owned(), MAX_SERVERS),
        };
        self.sources.get_or_create(&label).clone()
    }

    /// A request under way that is answered out of what is shared.
    pub(super) fn aggregated(&self, labels: &RequestLabels) -> Aggregated {
        Aggregated {
            _one: Held::new(&self.aggregated.get_or_create(labels).clone()),
            _total: Held::new(&self.aggregated_total),
        }
    }

    /// This node became something else to its pool.
    pub fn role_changed(&self, role: &'static str) {
        self.roles
            .get_or_create(&ReasonLabel { reason: role })
            .inc();
    }

    /// A leader that was lost is replaced.
    pub fn took_over(&self, took: Duration) {
        self.take_over.0.observe(took.as_secs_f64());
    }

    /// Sessions with candidates, and of other nodes with this one.
    pub fn sessions(&self, sessions: usize, listeners: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.sessions.set(number(sessions));
        self.listeners.set(number(listeners));
    }

    /// Nodes that are alive.
    pub fn alive(&self, nodes: u32) {
        self.alive.set(nodes.into());
    }

    /// A lease was to be renewed for another node.
    pub fn delegated(&self, outcome: &'static str) {
        let label = ReasonLabel { reason: outcome };
        self.delegated.get_or_create(&label).inc();
    }

    /// A lease was not taken.
    pub fn lease_refused(&self, reason: &'static str) {
        let label = ReasonLabel { reason };
        self.leases_refused.get_or_create(&label).inc();
    }

    /// A peer was set aside.
    pub fn distrusted(&self, reason: Distrust) {
        let label = ReasonLabel {
            reason: reason.as_str(),
        };
        self.distrusts.get_or_create(&label).inc();
    }
}
