//! What a deployment and its replica sets know about each other, in annotations.

use super::size::{DESIRED_REPLICAS, MAX_REPLICAS, max_surge, wanted};
use serde_json::Value;

/// Counts the templates; `kubectl rollout history` shows it.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a replica set had before it was rolled back to.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The longest history kept, in characters.
const LONGEST_HISTORY: usize = 2000;
/// A deployment's annotations that are no business of its replica sets.
const OWN: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

fn annotation<'o>(object: &'o Value, key: &str) -> Option<&'o str> {
    object["metadata"]["annotations"][key].as_str()
}

fn annotate(object: &mut Value, key: &str, value: &str) -> bool {
    if annotation(object, key) == Some(value) {
        return false;
    }
    object["metadata"]["annotations"][key] = value.into();
    true
}

/// The revision of a replica set; 0 when it has none.
pub(super) fn revision(set: &Value) -> i64 {
    annotation(set, REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// What the deployment wanted when the replica set was last scaled.
pub(super) fn desired(set: &Value) -> Option<i64> {
    annotation(set, DESIRED_REPLICAS)?.parse().ok()
}

/// Notes the deployment's size; whether that was news.
pub(super) fn note_size(deployment: &Value, set: &mut Value) -> bool {
    let replicas = wanted(deployment);
    let desired = annotate(set, DESIRED_REPLICAS, &replicas.to_string());
    let most = (replicas + max_surge(deployment)).to_string();
    annotate(set, MAX_REPLICAS, &most) || desired
}

/// Makes the deployment's current revision that of its new replica set; whether that was news.
pub(super) fn note_revision(deployment: &mut Value, set: &Value) -> bool {
    match annotation(set, REVISION) {
        Some(revision) => annotate(deployment, REVISION, revision),
        None => false,
    }
}

/// Gives the new replica set the deployment's annotations and a revision; whether that was news. One that had an older revision
/// is being rolled back to, and remembers that one.
pub(super) fn inherit(deployment: &Value, set: &mut Value, new: i64) -> bool {
    let mut news = false;
    let annotations = deployment["metadata"]["annotations"].as_object();
    for (key, value) in annotations.into_iter().flatten() {
        if let Some(value) = value.as_str().filter(|_| !OWN.contains(&key.as_str())) {
            news |= annotate(set, key, value);
        }
    }
    let old = annotation(set, REVISION).map(str::to_owned);
    if revision(set) >= new {
        return news;
    }
    annotate(set, REVISION, &new.to_string());
    if let Some(old) = old {
        let history = annotation(set, REVISION_HISTORY).unwrap_or_default();
        let history = remember(history, &old);
        annotate(set, REVISION_HISTORY, &history);
    }
    true
}

fn remember(history: &str, revision: &str) -> String {
    let mut revisions: Vec<&str> = history.split(',').filter(|r| !r.is_empty()).collect();
    revisions.push(revision);
    let mut joined = revisions.join(",");
    while joined.len() > LONGEST_HISTORY && revisions.len() > 1 {
        revisions.remove(0);
        joined = revisions.join(",");
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_replica_set_inherits_what_concerns_it() {
        let deployment = json!({"metadata": {"annotations": {
            "kubernetes.io/change-cause": "because", "kubectl.kubernetes.io/last-applied-configuration": "{}"}}});
        let mut set = json!({"metadata": {}});
        assert!(inherit(&deployment, &mut set, 1));
        assert_eq!(
            set["metadata"]["annotations"],
            json!({"kubernetes.io/change-cause": "because", REVISION: "1"})
        );
        assert!(!inherit(&deployment, &mut set, 1), "no news");
        assert!(inherit(&deployment, &mut set, 3));
        assert!(inherit(&deployment, &mut set, 5));
        assert_eq!(annotation(&set, REVISION), Some("5"));
        assert_eq!(annotation(&set, REVISION_HISTORY), Some("1,3"));
    }

    #[test]
    fn the_history_forgets_the_oldest() {
        let mut history = String::new();
        for revision in 0..1000 {
            history = remember(&history, &revision.to_string());
        }
        assert!(history.len() <= LONGEST_HISTORY);
        assert!(history.ends_with(",998,999"));
    }
}
