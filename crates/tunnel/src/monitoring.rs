//! The dashboard and the alert rules in `deploy/monitoring` speak of metrics that server and agent tell (tests only).

use crate::{
    agent::AgentMetrics,
    certificates::{CertificateMetrics, Identity},
    interceptor, server, steering,
};
use std::{collections::BTreeSet, fs, path::Path};

const FILES: [&str; 2] = ["grafana-tunnel.json", "prometheus-tunnel.rules.yaml"];
/// How names of metrics begin.
const OURS: [&str; 3] = ["konnectivity_network_proxy_", "yurttunnel_", "process_"];

fn shipped(file: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring");
    fs::read_to_string(directory.join(file)).expect("it is shipped")
}

/// The names of all samples that a server and an agent tell, without labels.
fn told() -> BTreeSet<String> {
    let telemetry = yurt_telemetry::Metrics::new("yurt-tunnel");
    {
        let mut registry = telemetry.registry.lock().expect("a registry");
        server::metrics::exercised(&mut registry);
        AgentMetrics::new(&mut registry).exercise();
        let intercepted = interceptor::Metrics::default();
        intercepted.register(&mut registry);
        intercepted.exercise();
        steering::Metrics::default().register(&mut registry);
        let certificates = CertificateMetrics::new(&mut registry);
        certificates.shown(Identity::Agent, &Default::default(), true);
        certificates.failed(Identity::Agent);
    }
    let (text, _) = telemetry.render();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let told = told();
    for file in FILES {
        let text = shipped(file);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let named: BTreeSet<&str> = words
            .filter(|word| OURS.iter().any(|prefix| word.starts_with(prefix)))
            .collect();
        assert!(named.len() > 5, "{file}: {named:?}");
        for name in named {
            assert!(told.contains(name), "{file}: {name} is not among {told:#?}");
        }
    }
}

#[test]
fn the_dashboard_and_the_alerts_are_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&shipped(FILES[0])).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let distinct = |field: &str| {
        let all = panels.iter().map(|panel| panel[field].to_string());
        all.collect::<BTreeSet<_>>().len()
    };
    assert!(panels.len() > 10);
    assert_eq!(
        (distinct("id"), distinct("gridPos")),
        (panels.len(), panels.len())
    );
    let rules: serde_json::Value = serde_saphyr::from_str(&shipped(FILES[1])).expect("YAML");
    let groups = rules["groups"].as_array().expect("groups");
    let mut alerts = BTreeSet::new();
    for rule in groups
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("rules"))
    {
        assert!(
            alerts.insert(rule["alert"].as_str().expect("a name")),
            "{rule}"
        );
        assert!(
            rule["expr"].is_string() && rule["labels"]["severity"].is_string(),
            "{rule}"
        );
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
    }
    assert!(alerts.len() > 5);
}
