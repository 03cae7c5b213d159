//! The labels of metrics, and what bounds their values, whatever clients send.

use prometheus_client::encoding::EncodeLabelSet;
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};
use yurt_wire::Verb;

/// Distinct client components that get a label of their own; later ones are counted as `other`.
pub(super) const MAX_CLIENTS: usize = 64;
/// Distinct resources that get a label of their own.
pub(super) const MAX_RESOURCES: usize = 128;
/// Longest label value.
pub(super) const MAX_LABEL: usize = 64;

/// Labels of one kind of request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(super) client: String,
    pub(super) verb: &'static str,
    pub(super) resource: String,
    pub(super) subresources: String,
}

/// A server of the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ServerLabel {
    pub(super) server: String,
}

/// A certificate of the hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CertificateLabel {
    pub(super) certificate: &'static str,
}

/// Why something happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    pub(super) reason: &'static str,
}

/// A request that came in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EntryLabels {
    pub(super) entrance: &'static str,
    pub(super) caller: &'static str,
}

/// A request that did not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TurnedAwayLabels {
    pub(super) entrance: &'static str,
    pub(super) reason: &'static str,
}

/// The component of a user agent: what stands before the first `/`, lower case, bounded.
pub fn component(user_agent: &str) -> String {
    user_agent
        .split('/')
        .next()
        .unwrap_or_default()
        .trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_LABEL)
        .flat_map(char::to_lowercase)
        .collect()
}

/// Registers a label value while there is room for new ones.
pub(super) fn bounded(known: &Mutex<HashSet<String>>, value: String, most: usize) -> String {
    let value: String = value.chars().take(MAX_LABEL).collect();
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if known.contains(&value) {
        value
    } else if known.len() < most {
        known.insert(value.clone());
        value
    } else {
        "other".to_owned()
    }
}

/// A label that is never empty.
pub(super) fn verb(verb: Verb) -> &'static str {
    match verb {
        Verb::Other => "other",
        verb => verb.as_str(),
    }
}

/// Subresources come from the path and so from the client: only the well-known ones get their own label.
pub(super) fn subresource(name: &str) -> &str {
    const KNOWN: [&str; 12] = [
        "",
        "status",
        "log",
        "exec",
        "attach",
        "portforward",
        "proxy",
        "scale",
        "token",
        "eviction",
        "binding",
        "approval",
    ];
    KNOWN
        .into_iter()
        .find(|known| *known == name)
        .unwrap_or("other")
}
