//! CertificateSigningRequests as those see them who ask, approve, sign and clear them away.

mod obtain;

use crate::pod::stamp;
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use yurt_pki::SigningRequest;

pub use obtain::{Asks, Refusal, SigningError, Wanted, obtain};

/// The signer of clients of the API server.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// The signer of kubelets as clients of the API server.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// The signer of what serves on nodes.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// Whether usages are `what` (`client auth`, `server auth`) and what goes with it: `key encipherment` or not, which only RSA keys need.
pub fn are(usages: &[&str], what: &str) -> bool {
    let mut usages: BTreeSet<&str> = usages.iter().copied().collect();
    usages.remove("key encipherment");
    usages == BTreeSet::from(["digital signature", what])
}

/// The condition of a type, when it holds.
pub fn condition<'v>(csr: &'v Value, kind: &str) -> Option<&'v Value> {
    let mut conditions = csr["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == kind && condition["status"] != "False")
}

/// Whether the certificate has been issued.
pub fn is_issued(csr: &Value) -> bool {
    csr["status"]["certificate"]
        .as_str()
        .is_some_and(|pem| !pem.is_empty())
}

/// Whether it waits for somebody to approve or deny it.
pub fn is_open(csr: &Value) -> bool {
    condition(csr, "Approved").is_none() && condition(csr, "Denied").is_none() && !is_issued(csr)
}

/// What is requested; `None` when that cannot be read, which no second look changes.
pub fn parse(csr: &Value) -> Option<SigningRequest> {
    let request = csr["spec"]["request"].as_str().unwrap_or_default();
    let pem = STANDARD.decode(request).ok()?;
    let read = SigningRequest::from_pem(&String::from_utf8(pem).ok()?);
    read.inspect_err(|error| {
        let csr = csr["metadata"]["name"].as_str().unwrap_or_default();
        tracing::debug!(csr, %error, "not a request");
    })
    .ok()
}

/// What the key is to be used for.
pub fn usages(csr: &Value) -> Vec<&str> {
    let usages = csr["spec"]["usages"].as_array().into_iter().flatten();
    usages.filter_map(Value::as_str).collect()
}

/// A patch that adds a condition to exactly this version of the request.
pub fn with_condition(
    csr: &Value,
    kind: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Value {
    let mut conditions = csr["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions.push(
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
        "lastUpdateTime": stamp(now), "lastTransitionTime": stamp(now)}),
    );
    json!({"metadata": {"resourceVersion": csr["metadata"]["resourceVersion"]}, "status": {"conditions": conditions}})
}
