//! What a pod of this node offers to services, as its kubelet says. Pure.

use serde_json::Value;

/// A pod of this node of which the cloud knows less than the node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LocalPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// The pod as the node sees it; `None` when it is gone.
    pub(crate) pod: Option<Value>,
    /// Whether it was created here, so that another of its name is its predecessor.
    pub(crate) created_here: bool,
}

/// The items of a list that may be absent.
pub(super) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// `IPv4` or `IPv6`.
pub(super) fn family(address: &str) -> &'static str {
    if address.contains(':') {
        "IPv6"
    } else {
        "IPv4"
    }
}

impl LocalPod {
    /// Whether a reference in endpoints of `namespace` means this pod.
    pub(super) fn is_target(&self, target: &Value, namespace: &str) -> bool {
        let text = |field: &str| target[field].as_str().unwrap_or_default();
        let of = text("namespace");
        if target["kind"] != "Pod"
            || text("name") != self.name
            || (if of.is_empty() { namespace } else { of }) != self.namespace
        {
            return false;
        }
        let uid = text("uid");
        uid.is_empty() || self.uid.is_empty() || uid == self.uid || self.created_here
    }

    /// The pod when its containers may serve.
    pub(super) fn alive(&self) -> Option<&Value> {
        self.pod.as_ref().filter(|pod| !is_finished(pod))
    }
}

fn is_finished(pod: &Value) -> bool {
    matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

pub(super) fn is_deleting(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_string()
}

pub(super) fn is_ready(pod: &Value) -> bool {
    items(&pod["status"]["conditions"])
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The pod's addresses of one family.
pub(super) fn addresses<'a>(pod: &'a Value, of: &str) -> Vec<&'a str> {
    let mut all: Vec<&str> = items(&pod["status"]["podIPs"])
        .filter_map(|ip| ip["ip"].as_str())
        .collect();
    if all.is_empty() {
        all.extend(pod["status"]["podIP"].as_str());
    }
    all.retain(|address| !address.is_empty() && family(address) == of);
    all
}

/// What of a pod shows in endpoints. Two states with the same facts are the same to services.
pub(crate) fn facts(pod: &Value) -> impl PartialEq + '_ {
    let meta = &pod["metadata"];
    (
        &meta["uid"],
        &meta["labels"],
        (is_ready(pod), is_finished(pod), is_deleting(pod)),
        [addresses(pod, "IPv4"), addresses(pod, "IPv6")],
    )
}
