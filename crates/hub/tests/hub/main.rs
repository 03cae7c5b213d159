//! A whole hub between scripted API servers, a breakable link and plain clients.

mod admin;
mod autonomy;
mod cache;
mod callers;
mod certificates;
mod cloud;
mod cut;
mod doctor;
mod filters;
mod hostile;
mod leader;
mod link;
mod local_mode;
mod modes;
mod netns;
mod network;
mod node;
mod online;
mod pool;
mod recorded;
mod services;
mod settings;
mod sharing;
mod tokens;

/// A pod as the scripted cloud tells it.
fn pod(name: &str, revision: u64) -> String {
    format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"default","uid":"uid-{name}","resourceVersion":"{revision}","labels":{{"app":"{name}"}}}},"spec":{{"nodeName":"edge-1","containers":[{{"name":"c","image":"i"}}]}},"status":{{"phase":"Running"}}}}"#
    )
}

fn pod_list(revision: u64, pods: &[String]) -> String {
    format!(
        r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"{revision}"}},"items":[{}]}}"#,
        pods.join(",")
    )
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn bookmark(revision: u64, end: bool) -> String {
    let annotations = if end {
        r#","annotations":{"k8s.io/initial-events-end":"true"}"#
    } else {
        ""
    };
    event(
        "BOOKMARK",
        &format!(
            r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"resourceVersion":"{revision}"{annotations}}}}}"#
        ),
    )
}
