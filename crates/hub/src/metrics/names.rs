//! What each metric is called, and what it says.

use super::Metrics;

impl Metrics {
    /// Metrics registered in `registry`.
    pub fn registered(registry: &mut prometheus_client::registry::Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics.inner;
        let hub = registry.sub_registry_with_prefix("node_yurthub");
        hub.register(
            "in_flight_requests_collector",
            "Requests under way",
            m.in_flight.clone(),
        );
        hub.register(
            "in_flight_requests_total",
            "Requests under way, all together",
            m.in_flight_total.clone(),
        );
        // A gauge by type, because a counter's name would get a `_total` that OpenYurt's has not.
        hub.register(
            "proxy_traffic_collector",
            "Bytes of response bodies sent to clients; only grows",
            m.traffic.clone(),
        );
        hub.register(
            "server_healthy_status",
            "1 while the API server answers",
            m.server_healthy.clone(),
        );
        hub.register(
            "server_round_trip_seconds",
            "Smoothed round trip of probes",
            m.server_rtt.clone(),
        );
        hub.register(
            "server_down_transitions",
            "How often the link to the API server went down",
            m.server_down.clone(),
        );
        hub.register(
            "closable_conns_collector",
            "Connections to the API server",
            m.connections.clone(),
        );
        hub.register(
            "error_keys_persistency_status",
            "1 while what the cache is to keep reaches the disk",
            m.cache_healthy.clone(),
        );
        hub.register(
            "error_keys_count",
            "Objects and batches that the cache could not keep since start",
            m.cache_failures.clone(),
        );
        m.pool.register(hub);
        m.filters.register(hub);
        m.ota.register(hub);
        m.rules.register(hub);
        hub.register(
            "offline",
            "1 while no API server answers",
            m.offline.clone(),
        );
        hub.register(
            "offline_seconds",
            "Time spent without any API server",
            m.offline_seconds.clone(),
        );
        hub.register(
            "local_answers",
            "Requests answered by the node itself",
            m.local.clone(),
        );
        hub.register(
            "refused_requests",
            "Requests refused by the hub",
            m.refused.clone(),
        );
        hub.register(
            "requests",
            "Requests let in, by listener and kind of caller (lent: not the node, and acts as it by --unsafe-open-proxy)",
            m.entered.clone(),
        );
        hub.register(
            "callers_refused",
            "Requests turned away for who sent them, by listener and reason",
            m.turned_away.clone(),
        );
        hub.register(
            "retried_requests",
            "Requests sent to another API server after one failed",
            m.retries.clone(),
        );
        hub.register(
            "unlearned_answers",
            "Answers passed on to the client that the cache could not take",
            m.unlearned.clone(),
        );
        hub.register("watches", "Watches of clients", m.watches.clone());
        hub.register(
            "watches_local",
            "Watches of clients that are served by the node itself now",
            m.watches_local.clone(),
        );
        hub.register(
            "watches_resumed",
            "Watches resumed in the cloud without the client's notice",
            m.watches_resumed.clone(),
        );
        hub.register(
            "watches_cut",
            "Watches ended because the client took nothing any more",
            m.watches_cut.clone(),
        );
        hub.register(
            "clients_cut",
            "Clients cut because they took nothing of an answer any more",
            m.clients_cut.clone(),
        );
        hub.register(
            "answers_cut",
            "Answers broken off because the API server sent nothing more of them",
            m.answers_cut.clone(),
        );
        hub.register(
            "upgrades",
            "Upgraded connections (exec, ...)",
            m.upgrades.clone(),
        );
        hub.register(
            "replayed_writes",
            "Writes of offline times brought to the cloud",
            m.replayed.clone(),
        );
        hub.register(
            "dropped_writes",
            "Writes of offline times that the cloud had no use for any more",
            m.dropped.clone(),
        );
        hub.register(
            "pending_writes",
            "Writes waiting for the cloud",
            m.pending.clone(),
        );
        hub.register(
            "cache_records",
            "Records in the cache",
            m.cache_records.clone(),
        );
        hub.register(
            "cache_live_bytes",
            "Bytes of live records in the cache",
            m.cache_bytes.clone(),
        );
        hub.register(
            "cache_disk_bytes",
            "Bytes of the cache on disk",
            m.cache_disk_bytes.clone(),
        );
        hub.register(
            "cache_corrupt_records",
            "Cached records that did not match their checksum and were left out",
            m.cache_corrupt.clone(),
        );
        hub.register(
            "cache_read_errors",
            "Reads that the cache's disk refused",
            m.cache_read_errors.clone(),
        );
        hub.register(
            "cache_write_errors",
            "Writes that the cache's disk refused",
            m.cache_write_errors.clone(),
        );
        hub.register(
            "cache_overflowed_objects",
            "Objects not learned because too much waited for the disk",
            m.cache_overflowed.clone(),
        );
        hub.register(
            "heartbeats",
            "Rounds of renewing the node's lease in the cloud, by how they ended",
            m.heartbeats.clone(),
        );
        hub.register(
            "status_resyncs",
            "Statuses of pods and of the Node told to the cloud again after the link was away",
            m.resyncs.clone(),
        );
        hub.register(
            "cache_evicted_objects",
            "Objects given up to keep the cache's budget",
            m.cache_evicted.clone(),
        );
        hub.register(
            "bearer_tokens",
            "Bearer tokens looked at, by how their user is known or why it is not",
            m.tokens.clone(),
        );
        hub.register(
            "tokens_given",
            "Tokens of service accounts given without the cloud, by whose they are",
            m.tokens_given.clone(),
        );
        hub.register(
            "tokens_exchanged",
            "Tokens of this node exchanged for tokens of the cloud, by what came of it",
            m.tokens_exchanged.clone(),
        );
        hub.register(
            "certificate_expiration_timestamp_seconds",
            "When the certificate ends, in seconds since the epoch",
            m.certificate_end.clone(),
        );
        hub.register(
            "certificate_expiry_seconds",
            "Seconds until the certificate ends; negative when it has",
            m.certificate_left.clone(),
        );
        hub.register(
            "certificate_rotations",
            "New certificates taken into use",
            m.certificate_rotations.clone(),
        );
        hub.register(
            "certificate_failures",
            "Attempts to have a certificate signed that failed",
            m.certificate_failures.clone(),
        );
        hub.register(
            "token_issuer_keys",
            "Keys of the cloud's token issuer that this node verifies with; 0: tokens that the cloud never saw are refused offline",
            m.token_issuer_keys.clone(),
        );
        hub.register(
            "settings_ignored",
            "Entries of the hub's config maps that are ignored because they make no sense",
            m.settings_ignored.clone(),
        );
        metrics
    }
}
