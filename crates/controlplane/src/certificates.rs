//! CertificateSigningRequests: approval of kubelets' and hubs', the built-in signers, cleaning up.

pub(super) mod approving;
pub(super) mod cleaning;
pub(super) mod hubs;
mod rules;
pub(super) mod signing;

use super::pod::stamp;
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use yurt_pki::SigningRequest;

/// The condition of a type, when it holds.
fn condition<'v>(csr: &'v Value, kind: &str) -> Option<&'v Value> {
    let mut conditions = csr["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == kind && condition["status"] != "False")
}

/// Whether the certificate has been issued.
fn is_issued(csr: &Value) -> bool {
    csr["status"]["certificate"]
        .as_str()
        .is_some_and(|pem| !pem.is_empty())
}

/// Whether it waits for somebody to approve or deny it.
fn is_open(csr: &Value) -> bool {
    condition(csr, "Approved").is_none() && condition(csr, "Denied").is_none() && !is_issued(csr)
}

/// What is requested; `None` when that cannot be read, which no second look changes.
fn parse(csr: &Value) -> Option<SigningRequest> {
    let request = csr["spec"]["request"].as_str().unwrap_or_default();
    let pem = STANDARD.decode(request).ok()?;
    let read = SigningRequest::from_pem(&String::from_utf8(pem).ok()?);
    read.inspect_err(|error| {
        let csr = csr["metadata"]["name"].as_str().unwrap_or_default();
        tracing::debug!(csr, %error, "not a request");
    })
    .ok()
}

fn usages(csr: &Value) -> Vec<&str> {
    let usages = csr["spec"]["usages"].as_array().into_iter().flatten();
    usages.filter_map(Value::as_str).collect()
}

/// A patch that adds a condition to exactly this version of the request.
fn with_condition(csr: &Value, kind: &str, reason: &str, message: &str, now: Timestamp) -> Value {
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

#[cfg(test)]
mod tests;
