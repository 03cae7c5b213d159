//! What a kubelet does with a pod, as functions of values.

mod run;
mod script;
mod status;

pub(crate) use run::{Facts, Occurrence, Run};
#[cfg(test)]
pub(super) use status::TOUCHED;
pub(crate) use status::{adopted, count_restarts};

use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

/// What to do next with a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing until something changes.
    Rest,
    /// Start its containers.
    Start,
    /// Stop them.
    Stop,
    /// Patch its status.
    Report(Value),
    /// Tell the API server that nothing of it is left.
    Delete,
}

/// Decides. `run` is what the runtime has, `touches` how often the lab touched the pod.
pub(crate) fn next_step(
    pod: &Value,
    run: Option<&Run>,
    host: IpAddr,
    touches: u64,
    now: Timestamp,
) -> Step {
    let deleting = is_deleting(pod);
    match run {
        None if deleting => Step::Delete,
        None if is_finished(pod) => Step::Rest,
        None => Step::Start,
        Some(run) if deleting && !run.is_over(pod) => Step::Stop,
        Some(run) => match status::patch(pod, run, host, touches, now) {
            Some(patch) => Step::Report(patch),
            None if deleting => Step::Delete,
            None => Step::Rest,
        },
    }
}

pub(crate) fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().unwrap_or_default()
}

fn is_deleting(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_string()
}

/// Succeeded or failed: its containers do not start again.
pub(crate) fn is_finished(pod: &Value) -> bool {
    matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

/// Whether the API server shows it running.
pub(super) fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && !is_deleting(pod)
}

pub(crate) fn uses_host_network(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] == true
}

/// How long the containers' `preStop` hooks sleep; other hooks are done at once.
pub(super) fn pre_stop(pod: &Value) -> Duration {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let seconds = containers.filter_map(|c| c["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64());
    Duration::from_secs(seconds.max().unwrap_or(0))
}

/// A ConfigMap or Secret that a pod reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Reference {
    /// `configmaps` or `secrets`.
    pub(super) resource: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What a pod reads: a kubelet watches each of them.
pub(super) fn references(pod: &Value) -> BTreeSet<Reference> {
    let spec = &pod["spec"];
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let mut found = BTreeSet::new();
    let mut add = |resource: &'static str, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.insert(Reference {
                resource,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            });
        }
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for volume in list(&spec["volumes"]) {
        add("configmaps", &volume["configMap"]["name"]);
        add("secrets", &volume["secret"]["secretName"]);
        for source in list(&volume["projected"]["sources"]) {
            add("configmaps", &source["configMap"]["name"]);
            add("secrets", &source["secret"]["name"]);
        }
    }
    for container in ["initContainers", "containers"]
        .iter()
        .flat_map(|c| list(&spec[c]))
    {
        for from in list(&container["envFrom"]) {
            add("configmaps", &from["configMapRef"]["name"]);
            add("secrets", &from["secretRef"]["name"]);
        }
        for variable in list(&container["env"]) {
            add(
                "configmaps",
                &variable["valueFrom"]["configMapKeyRef"]["name"],
            );
            add("secrets", &variable["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    for secret in list(&spec["imagePullSecrets"]) {
        add("secrets", &secret["name"]);
    }
    found
}

/// The token a kubelet asks for before it starts a pod: path and body, when the pod wants one.
pub(super) fn token_request(pod: &Value) -> Option<(String, Value)> {
    let sources = pod["spec"]["volumes"]
        .as_array()?
        .iter()
        .flat_map(|volume| {
            volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten()
        });
    let token = sources
        .map(|source| &source["serviceAccountToken"])
        .find(|token| token.is_object())?;
    let meta = &pod["metadata"];
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{}/token",
        meta["namespace"].as_str()?,
        pod["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or("default"),
    );
    let audiences: Vec<&str> = token["audience"].as_str().into_iter().collect();
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": {},
        "spec": {
            "audiences": audiences,
            "expirationSeconds": token["expirationSeconds"].as_i64().unwrap_or(3600),
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"],
            },
        },
    });
    Some((path, request))
}

#[cfg(test)]
mod tests;
