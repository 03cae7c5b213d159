//! What the cloud's answers say about a caller: whether its token holds, what it may do.

use super::Hub;
use crate::{
    caller::Caller,
    query::Query,
    upstream::{Outgoing, OutgoingBody},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use yurt_wire::{RequestInfo, Verb};

/// Between looks at what a bearer may do.
const REVIEW_EVERY: Duration = Duration::from_secs(600);
/// Bearers whose last review is remembered.
const MOST_REVIEWED: usize = 1024;
/// Reviewed for the rules that hold everywhere: no namespace can have this name.
const EVERYWHERE: &str = "*";

impl Hub {
    /// What the status of an answer says about a bearer and its rights; asks once in a while what it may do at all.
    pub fn learn_acceptance(
        self: &Arc<Self>,
        caller: &Caller,
        status: StatusCode,
        info: &RequestInfo,
        headers: &HeaderMap,
    ) {
        if status == StatusCode::FORBIDDEN
            && info.is_resource
            && matches!(info.verb, Verb::Get | Verb::List | Verb::Watch)
            && let Ok(options) = info.list_options()
        {
            self.cache
                .learn_forbidden(caller, &Query::of_request(info, &options));
        }
        if !caller.has_token() {
            return;
        }
        if status == StatusCode::UNAUTHORIZED {
            self.cache.forget_bearer(caller);
            return;
        }
        let due = {
            let mut reviewed = self.reviewed.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let due = reviewed
                .get(caller)
                .is_none_or(|at| now.saturating_duration_since(*at) >= REVIEW_EVERY);
            if due {
                if reviewed.len() >= MOST_REVIEWED {
                    reviewed.clear();
                }
                reviewed.insert(caller.clone(), now);
            }
            due
        };
        // A server error says nothing about the token.
        if !due || status.is_server_error() {
            return;
        }
        self.cache.accept_bearer(caller);
        let (hub, caller) = (self.clone(), caller.clone());
        let mut own = HeaderMap::new();
        if let Some(authorization) = headers.get(header::AUTHORIZATION) {
            own.insert(header::AUTHORIZATION, authorization.clone());
        }
        self.tasks.spawn(async move {
            tokio::select! {
                () = hub.review(&caller, own) => {}
                () = hub.shutdown.cancelled() => {}
            }
        });
    }

    /// Asks the cloud, as the bearer itself, what it may do everywhere.
    async fn review(&self, caller: &Caller, mut headers: HeaderMap) {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(crate::USER_AGENT),
        );
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": { "namespace": EVERYWHERE },
        });
        let outgoing = Outgoing {
            method: Method::POST,
            uri: http::Uri::from_static("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"),
            headers,
            body: OutgoingBody::Held(review.to_string().into()),
            wait: Duration::from_secs(10),
            safe: true,
        };
        let answer = async {
            let (response, _) = self.upstreams.send(caller, outgoing).await.ok()?;
            if !response.status().is_success() {
                return None;
            }
            let body = yurt_transport::collect(response.into_body(), 1 << 20)
                .await
                .ok()?;
            let review: serde_json::Value = serde_json::from_slice(&body).ok()?;
            review.get("status").cloned()
        };
        if let Ok(Some(status)) = tokio::time::timeout(Duration::from_secs(20), answer).await {
            self.cache.learn_rules(caller, &status);
        }
    }
}
