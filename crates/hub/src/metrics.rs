//! What the hub counts. Names of OpenYurt's hub are kept where they mean the same; label values are bounded.

mod filters;
mod labels;
mod names;
mod ota;
mod pool;
mod rules;

pub use filters::FilterMetrics;
pub use labels::component;
use labels::{
    CertificateLabel, EntryLabels, MAX_CLIENTS, MAX_RESOURCES, ReasonLabel, RequestLabels,
    ServerLabel, TurnedAwayLabels, bounded, subresource, verb,
};
pub use ota::OtaMetrics;
pub use pool::{Aggregated, FeedMetrics, PoolMetrics};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
pub use rules::RuleMetrics;
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use yurt_wire::RequestInfo;

/// All metrics of the hub. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    clients: Mutex<HashSet<String>>,
    resources: Mutex<HashSet<String>>,
    in_flight: Family<RequestLabels, Gauge>,
    in_flight_total: Gauge,
    traffic: Family<RequestLabels, Gauge<u64, AtomicU64>>,
    server_healthy: Family<ServerLabel, Gauge>,
    server_rtt: Family<ServerLabel, Gauge<f64, AtomicU64>>,
    server_down: Family<ServerLabel, Counter>,
    connections: Family<ServerLabel, Gauge>,
    cache_healthy: Gauge,
    cache_failures: Gauge,
    pool: PoolMetrics,
    filters: FilterMetrics,
    ota: OtaMetrics,
    rules: RuleMetrics,
    offline: Gauge,
    offline_seconds: Counter<f64, AtomicU64>,
    local: Family<ReasonLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    entered: Family<EntryLabels, Counter>,
    turned_away: Family<TurnedAwayLabels, Counter>,
    heartbeats: Family<ReasonLabel, Counter>,
    resyncs: Counter,
    retries: Counter,
    unlearned: Family<ReasonLabel, Counter>,
    watches: Gauge,
    watches_local: Gauge,
    watches_resumed: Counter,
    watches_cut: Counter,
    clients_cut: Counter,
    clients_cut_elsewhere: Arc<AtomicU64>,
    answers_cut: Counter,
    upgrades: Gauge,
    replayed: Counter,
    dropped: Counter,
    pending: Gauge,
    cache_records: Gauge,
    cache_bytes: Gauge,
    cache_disk_bytes: Gauge,
    cache_corrupt: Counter,
    cache_read_errors: Counter,
    cache_write_errors: Counter,
    cache_overflowed: Counter,
    cache_evicted: Counter,
    tokens: Family<ReasonLabel, Counter>,
    tokens_given: Family<ReasonLabel, Counter>,
    tokens_exchanged: Family<ReasonLabel, Counter>,
    certificate_end: Family<CertificateLabel, Gauge>,
    certificate_left: Family<CertificateLabel, Gauge>,
    certificate_rotations: Family<CertificateLabel, Counter>,
    certificate_failures: Family<CertificateLabel, Counter>,
    token_issuer_keys: Gauge,
    settings_ignored: Gauge,
}

/// Why an answer did not reach the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlearned {
    /// It is not what it says it is.
    Undecodable,
    /// It is larger than may be held.
    TooLarge,
    /// Too many answers wait to be learned.
    Busy,
}

impl Unlearned {
    fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
        }
    }
}

impl Metrics {
    /// When a certificate ends (seconds since the epoch), and how many seconds are left.
    pub fn certificate_ends(&self, certificate: &'static str, end: i64, left: i64) {
        let label = CertificateLabel { certificate };
        self.inner.certificate_end.get_or_create(&label).set(end);
        self.inner.certificate_left.get_or_create(&label).set(left);
    }

    /// A new certificate is in use.
    pub fn certificate_rotated(&self, certificate: &'static str) {
        let label = CertificateLabel { certificate };
        self.inner.certificate_rotations.get_or_create(&label).inc();
    }

    /// An attempt to have a certificate signed failed.
    pub fn certificate_failed(&self, certificate: &'static str) {
        let label = CertificateLabel { certificate };
        self.inner.certificate_failures.get_or_create(&label).inc();
    }

    /// Entries of config maps that are ignored now.
    pub fn settings_ignored(&self, entries: usize) {
        let entries = i64::try_from(entries).unwrap_or(i64::MAX);
        self.inner.settings_ignored.set(entries);
    }

    /// A request begins. It ends when the guard is dropped.
    pub fn begin(&self, info: &RequestInfo, user_agent: &str) -> InFlight {
        let labels = self.labels(info, user_agent);
        let gauge = self.inner.in_flight.get_or_create(&labels).clone();
        let traffic = self.inner.traffic.get_or_create(&labels).clone();
        gauge.inc();
        self.inner.in_flight_total.inc();
        InFlight(Arc::new(Begun {
            gauge,
            total: self.inner.in_flight_total.clone(),
            traffic,
        }))
    }

    fn labels(&self, info: &RequestInfo, user_agent: &str) -> RequestLabels {
        RequestLabels {
            client: bounded(&self.inner.clients, component(user_agent), MAX_CLIENTS),
            verb: verb(info.verb),
            resource: if info.is_resource {
                bounded(&self.inner.resources, info.resource.clone(), MAX_RESOURCES)
            } else {
                String::new()
            },
            subresources: subresource(&info.subresource).to_owned(),
        }
    }

    /// A request is answered out of what is shared within the pool, until what this gives is dropped.
    pub fn aggregated(&self, info: &RequestInfo, user_agent: &str) -> Aggregated {
        let labels = self.labels(info, user_agent);
        self.inner.pool.aggregated(&labels)
    }

    /// Metrics of a resource shared within the pool.
    pub fn feed(&self, gvr: &yurt_wire::Gvr) -> FeedMetrics {
        self.inner.pool.feed(gvr)
    }

    /// The streams of a shared resource that a server feeds.
    pub fn feed_source(&self, gvr: &yurt_wire::Gvr, server: &str) -> Gauge {
        self.inner.pool.source(gvr, "multiplexer-proxy", server)
    }

    /// Requests under way, all together.
    pub fn in_flight(&self) -> i64 {
        self.inner.in_flight_total.get()
    }

    /// The state of a server's link.
    pub fn server(&self, server: &str, up: bool) {
        let label = ServerLabel {
            server: server.to_owned(),
        };
        self.inner
            .server_healthy
            .get_or_create(&label)
            .set(i64::from(up));
        let down = self.inner.server_down.get_or_create(&label);
        if !up {
            down.inc();
        }
    }

    /// How many connections there are to a server.
    pub fn server_connections(&self, server: &str, connections: usize) {
        let label = ServerLabel {
            server: server.to_owned(),
        };
        self.inner
            .connections
            .get_or_create(&label)
            .set(i64::try_from(connections).unwrap_or(i64::MAX));
    }

    /// Of the pool.
    pub fn pool(&self) -> &PoolMetrics {
        &self.inner.pool
    }

    /// Of filters.
    pub fn filters(&self) -> &FilterMetrics {
        &self.inner.filters
    }

    /// Of upgrades.
    pub fn ota(&self) -> &OtaMetrics {
        &self.inner.ota
    }

    /// Of users' rules.
    pub fn rules(&self) -> &RuleMetrics {
        &self.inner.rules
    }

    /// The round trip to a server.
    pub fn server_rtt(&self, server: &str, seconds: f64) {
        let label = ServerLabel {
            server: server.to_owned(),
        };
        self.inner.server_rtt.get_or_create(&label).set(seconds);
    }

    /// The node went offline or came back; `seconds` were spent offline when it came back.
    pub fn offline(&self, offline: bool, seconds: f64) {
        self.inner.offline.set(i64::from(offline));
        self.inner.offline_seconds.inc_by(seconds);
    }

    /// A request was answered locally.
    pub fn local(&self, reason: &'static str) {
        self.inner
            .local
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// A request was refused by the hub itself.
    pub fn refused(&self, reason: &'static str) {
        self.inner
            .refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// A bearer token was looked at.
    pub fn token(&self, verdict: &'static str) {
        let label = ReasonLabel { reason: verdict };
        self.inner.tokens.get_or_create(&label).inc();
    }

    /// A token of a service account was given without the cloud.
    pub fn token_given(&self, whose: &'static str) {
        let label = ReasonLabel { reason: whose };
        self.inner.tokens_given.get_or_create(&label).inc();
    }

    /// A token of this node was to be exchanged for one of the cloud.
    pub fn token_exchanged(&self, outcome: &'static str) {
        let label = ReasonLabel { reason: outcome };
        self.inner.tokens_exchanged.get_or_create(&label).inc();
    }

    /// Keys of the cloud's token issuer are known.
    pub fn issuer_keys(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.inner.token_issuer_keys.set(count);
    }

    /// A request was let in.
    pub fn entered(&self, entrance: &'static str, caller: &'static str) {
        let labels = EntryLabels { entrance, caller };
        self.inner.entered.get_or_create(&labels).inc();
    }

    /// A request was turned away for who sent it.
    pub fn turned_away(&self, entrance: &'static str, reason: &'static str) {
        let labels = TurnedAwayLabels { entrance, reason };
        self.inner.turned_away.get_or_create(&labels).inc();
    }

    /// A round of renewing the node's lease ended: `renewed`, `refused` or `failed`.
    pub fn heartbeat(&self, reason: &'static str) {
        self.inner
            .heartbeats
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// A status that the cluster gave up was told again.
    pub fn resynced(&self) {
        self.inner.resyncs.inc();
    }

    /// A request goes to another server.
    pub fn retried(&self) {
        self.inner.retries.inc();
    }

    /// An answer passed the cache by.
    pub fn unlearned(&self, why: Unlearned) {
        self.inner
            .unlearned
            .get_or_create(&ReasonLabel {
                reason: why.as_str(),
            })
            .inc();
    }

    /// How many answers passed the cache by for this reason.
    pub fn unlearned_count(&self, why: Unlearned) -> u64 {
        self.inner
            .unlearned
            .get_or_create(&ReasonLabel {
                reason: why.as_str(),
            })
            .get()
    }

    /// Watches of clients.
    pub fn watches(&self) -> &Gauge {
        &self.inner.watches
    }

    /// Watches served locally now.
    pub fn watches_local(&self) -> &Gauge {
        &self.inner.watches_local
    }

    /// Watches resumed.
    pub fn watches_resumed(&self) -> &Counter {
        &self.inner.watches_resumed
    }

    /// Watches cut.
    pub fn watches_cut(&self) -> &Counter {
        &self.inner.watches_cut
    }

    /// Counts clients that took nothing of an answer, where they are cut.
    pub fn clients_cut(&self) -> &Arc<AtomicU64> {
        &self.inner.clients_cut_elsewhere
    }

    /// Answers broken off because the cloud sent nothing more of them.
    pub fn answers_cut(&self) -> &Counter {
        &self.inner.answers_cut
    }

    /// Upgraded connections.
    pub fn upgrades(&self) -> &Gauge {
        &self.inner.upgrades
    }

    /// A replay brought `sent` writes to the cloud and dropped `dropped`.
    pub fn replayed(&self, sent: u64, dropped: u64) {
        self.inner.replayed.inc_by(sent);
        self.inner.dropped.inc_by(dropped);
    }

    /// Sizes, read when metrics are asked for.
    pub fn sizes(&self, pending: usize, usage: yurt_store::Usage, stats: &crate::cache::Stats) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.inner.pending.set(number(pending as u64));
        self.inner.cache_records.set(number(usage.records));
        self.inner.cache_bytes.set(number(usage.live_bytes));
        self.inner.cache_disk_bytes.set(number(usage.disk_bytes));
        let failures = stats.write_errors.get() + stats.overflowed.get();
        // Healthy again when a look finds no new failure.
        let before = self.inner.cache_failures.set(number(failures));
        self.inner
            .cache_healthy
            .set(i64::from(before == number(failures)));
        // Counted elsewhere; they only grow there too.
        for (counter, count) in [
            (&self.inner.cache_corrupt, stats.corrupt.get()),
            (&self.inner.cache_read_errors, stats.read_errors.get()),
            (&self.inner.cache_write_errors, stats.write_errors.get()),
            (&self.inner.cache_overflowed, stats.overflowed.get()),
            (&self.inner.cache_evicted, stats.evicted.get()),
            (
                &self.inner.clients_cut,
                self.inner.clients_cut_elsewhere.load(Ordering::Relaxed),
            ),
        ] {
            counter.inner().store(count, Ordering::Relaxed);
        }
    }
}

/// One request under way: until its last clone is dropped.
#[derive(Clone, Debug)]
pub struct InFlight(Arc<Begun>);

#[derive(Debug)]
struct Begun {
    gauge: Gauge,
    total: Gauge,
    traffic: Gauge<u64, AtomicU64>,
}

impl InFlight {
    /// Bytes went to the client.
    pub fn sent(&self, bytes: usize) {
        self.0.traffic.inc_by(bytes as u64);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.gauge.dec();
        self.total.dec();
    }
}

/// A gauge held up by one while this lives.
#[derive(Debug)]
pub struct Held(Gauge);

impl Held {
    /// Raises the gauge until dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Milliseconds since an origin, kept in an atomic: when something was last seen.
#[derive(Debug, Default)]
pub(crate) struct LastSeen(AtomicU64);

impl LastSeen {
    pub(crate) fn set(&self, since_origin: std::time::Duration) {
        let millis = u64::try_from(since_origin.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_max(millis, Ordering::Relaxed);
    }
    pub(crate) fn get(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::{labels::MAX_LABEL, *};

    #[test]
    fn components() {
        assert_eq!(component("kubelet/v1.36.0 (linux/amd64)"), "kubelet");
        assert_eq!(component("Go-http-client/2.0"), "go-http-client");
        assert_eq!(component(""), "");
        assert_eq!(component(&"x".repeat(500)).len(), MAX_LABEL);
    }

    #[test]
    fn labels_are_bounded_whatever_clients_send() {
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = Metrics::registered(&mut registry);
        for i in 0..1000 {
            let path = format!("/api/v1/namespaces/a/things{i}/b/sub{i}");
            let info = RequestInfo::parse(&http::Method::GET, &path, None);
            metrics.begin(&info, &format!("agent{i}/1"));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let series = text
            .lines()
            .filter(|l| l.starts_with("node_yurthub_in_flight_requests_collector{"))
            .count();
        assert!(
            (2..=MAX_CLIENTS + MAX_RESOURCES + 2).contains(&series),
            "{series}"
        );
        assert!(text.contains("client=\"other\""));
        assert!(
            text.contains("\nnode_yurthub_in_flight_requests_total 0\n"),
            "{text}"
        );
    }
}
