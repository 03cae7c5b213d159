//! `certificatesigningrequest-cleaner-controller`: requests that nobody needs any more.

use super::signing_request::{condition, is_issued};
use crate::{Context, Controller, Failure, Key, Next, Watch, collections::CSRS, pod::instant};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::{sync::Arc, time::Duration};

/// How long one is kept that has been decided, and one that has not.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// The controller.
#[derive(Debug, Default)]
pub(crate) struct Cleaning;

impl Controller for Cleaning {
    const NAME: &'static str = "certificatesigningrequest-cleaner-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(CSRS)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(csr) = context.objects(&CSRS).get(key) else {
            return Ok(Next::Done);
        };
        let Some(due) = due(&csr) else {
            return Ok(Next::Done);
        };
        match Duration::try_from(due.duration_since(Timestamp::now())) {
            Ok(left) if !left.is_zero() => Ok(Next::After(left)),
            _ => {
                context.delete(&CSRS, &csr).await?;
                Ok(Next::Done)
            }
        }
    }
}

/// When a request is to go. Pure.
fn due(csr: &Value) -> Option<Timestamp> {
    let decided = ["Approved", "Denied", "Failed"]
        .iter()
        .filter_map(|kind| {
            instant(&condition(csr, kind)?["lastUpdateTime"])?
                .checked_add(DECIDED)
                .ok()
        })
        .min();
    let created = instant(&csr["metadata"]["creationTimestamp"]);
    let undecided = ["Approved", "Denied", "Failed"]
        .iter()
        .all(|kind| condition(csr, kind).is_none());
    let pending = created
        .filter(|_| undecided)
        .and_then(|created| created.checked_add(PENDING).ok());
    [decided, pending, expiry(csr)].into_iter().flatten().min()
}

/// When the issued certificate ends.
fn expiry(csr: &Value) -> Option<Timestamp> {
    if !is_issued(csr) {
        return None;
    }
    let pem = STANDARD
        .decode(csr["status"]["certificate"].as_str()?)
        .ok()?;
    let certificates = yurt_pki::certs_from_pem(&String::from_utf8(pem).ok()?).ok()?;
    let end = yurt_pki::not_after(certificates.first()?).ok()?;
    Timestamp::from_second(end).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn decided_requests_go_after_an_hour_and_others_after_a_day() {
        let csr = |conditions: Value| json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": conditions}});
        let at = |csr: &Value| due(csr).map(|due| due.to_string());
        assert_eq!(at(&csr(json!([]))).as_deref(), Some("2026-01-02T00:00:00Z"));
        for kind in ["Approved", "Denied", "Failed"] {
            let decided = csr(
                json!([{"type": kind, "status": "True", "lastUpdateTime": "2026-01-01T05:00:00Z"}]),
            );
            assert_eq!(
                at(&decided).as_deref(),
                Some("2026-01-01T06:00:00Z"),
                "{kind}"
            );
        }
    }
}
