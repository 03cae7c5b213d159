//! The dashboard and the alert rules speak of metrics that the hub has.

use http::Method;
use std::{collections::BTreeSet, path::Path, time::Duration};
use yurt_hub::{
    cache::{Cache, CacheConfig},
    filter::Verdict,
    metrics::Metrics,
    pool::Distrust,
};
use yurt_wire::{Gvr, RequestInfo};

/// Every word of a text that is the name of a metric of ours, without labels.
fn named(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("node_yurthub_") || word.starts_with("process_"))
        .collect()
}

/// The names that `/metrics` tells.
fn told() -> BTreeSet<String> {
    let directory = tempfile::tempdir().unwrap();
    let (cache, _) = Cache::open(&directory.path().join("cache"), CacheConfig::default()).unwrap();
    let telemetry = yurt_telemetry::Metrics::new("yurthub");
    {
        let mut registry = telemetry.registry.lock().unwrap();
        registry.register_collector(cache.collector());
        let metrics = Metrics::registered(&mut registry);
        // A family without a sample is not told.
        let pods = RequestInfo::parse(&Method::GET, "/api/v1/pods", None);
        drop(metrics.begin(&pods, "kubelet/v1.36.0"));
        metrics.server("cloud:6443", false);
        metrics.server_rtt("cloud:6443", 0.1);
        metrics.server_connections("cloud:6443", 1);
        metrics.local("read");
        metrics.entered("plain", "node");
        metrics.turned_away("pool", "stranger");
        metrics.certificate_ends("client", 2, 1);
        metrics.feed(&Gvr::new("", "v1", "services"));
        let pool = metrics.pool();
        pool.distrusted(Distrust::Lies);
        pool.role_changed("leader");
        pool.delegated("refused");
        metrics.filters().refused("undecodable");
        let (dropped, time) = (Verdict::Dropped, Duration::ZERO);
        metrics.filters().applied("masterservice", dropped, time);
        metrics.rules().failed("mine", "patch");
        metrics.rules().source("file", 1, 1);
        metrics.ota().jobs("replacing", 1);
        metrics.ota().ended("failed");
        metrics.ota().refused("denied");
    }
    let (text, _) = telemetry.render();
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("# TYPE ") else {
            continue;
        };
        let (name, kind) = rest.split_once(' ').unwrap();
        let told_as = match kind {
            "counter" => "_total",
            "histogram" => "_bucket",
            _ => "",
        };
        names.insert(format!("{name}{told_as}"));
    }
    names
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let told = told();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring");
    for file in ["grafana-hub.json", "prometheus-hub.rules.yaml"] {
        let text = std::fs::read_to_string(directory.join(file)).unwrap();
        let named = named(&text);
        assert!(named.len() > 5, "{file}: {named:?}");
        for name in named {
            assert!(told.contains(name), "{file}: {name} is not among {told:#?}");
        }
    }
    let dashboard = std::fs::read(directory.join("grafana-hub.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_slice(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 20);
    let places: BTreeSet<_> = panels
        .iter()
        .map(|panel| (panel["id"].as_u64(), panel["gridPos"].to_string()))
        .collect();
    let (ids, positions): (BTreeSet<_>, BTreeSet<_>) = places.into_iter().unzip();
    assert_eq!((ids.len(), positions.len()), (panels.len(), panels.len()));
    let rules = std::fs::read_to_string(directory.join("prometheus-hub.rules.yaml")).unwrap();
    let rules: serde_json::Value = serde_saphyr::from_str(&rules).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let mut alerts = BTreeSet::new();
    for rule in groups.iter().flat_map(|g| g["rules"].as_array().unwrap()) {
        assert!(alerts.insert(rule["alert"].as_str().unwrap()), "{rule}");
        assert!(rule["expr"].is_string() && rule["labels"]["severity"].is_string());
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
    }
}

/// OpenYurt's names are still told, so that dashboards made for it go on working. (`aggregated_in_flight_requests_collector` and
/// `target_for_multiplexer_requests_collector` have samples where streams are shared.)
#[test]
fn openyurts_names_are_kept() {
    let told = told();
    for name in [
        "server_healthy_status",
        "in_flight_requests_collector",
        "in_flight_requests_total",
        "aggregated_in_flight_requests_total",
        "closable_conns_collector",
        "proxy_traffic_collector",
        "error_keys_persistency_status",
        "error_keys_count",
    ] {
        assert!(
            told.contains(&format!("node_yurthub_{name}")),
            "{name}: {told:#?}"
        );
    }
}
