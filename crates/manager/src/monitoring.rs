//! The dashboard and the alert rules in `deploy/monitoring` speak of metrics that the manager tells (tests only).

use std::{collections::BTreeSet, fs, path::Path};

const FILES: [&str; 2] = ["grafana-manager.json", "prometheus-manager.rules.yaml"];
/// How names of metrics begin.
const OURS: [&str; 6] = [
    "controller_runtime_",
    "workqueue_",
    "rest_client_",
    "leader_election_",
    "webhook_certificate_",
    "process_",
];

fn shipped(file: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring");
    fs::read_to_string(directory.join(file)).expect("it is shipped")
}

/// The metrics that are named, of webhooks' reviews or all others.
fn named(text: &str, of_reviews: bool) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| OURS.iter().any(|prefix| word.starts_with(prefix)));
    ours.filter(|word| word.starts_with("controller_runtime_webhook_") == of_reviews)
        .collect()
}

/// Everything that is named is told by `/metrics` once there was something to tell. Reviews and all others are told by other tests.
pub(crate) fn assert_told(metrics: &str, of_reviews: bool) {
    let told = |name: &str| {
        let mut lines = metrics.lines().filter(|line| !line.starts_with('#'));
        lines.any(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
    };
    for file in FILES {
        let text = shipped(file);
        let named = named(&text, of_reviews);
        assert!(named.len() > 1, "{file}: {named:?}");
        for name in named {
            assert!(told(name), "{file}: {name} is not told in\n{metrics}");
        }
    }
}

#[test]
fn the_dashboard_and_the_alerts_are_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&shipped(FILES[0])).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let distinct = |field: &str| {
        let all: BTreeSet<String> = panels
            .iter()
            .map(|panel| panel[field].to_string())
            .collect();
        all.len()
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
        .flat_map(|group| group["rules"].as_array().into_iter().flatten())
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
