//! What the cloud's answers say about a caller: what it may do, and whose its token is (`vouching`).

use super::Hub;
use crate::{
    caller::Caller,
    identity,
    offline::now,
    query::Query,
    upstream::{Outgoing, OutgoingBody},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde_json::{Value, json};
use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use yurt_wire::{RequestInfo, Verb};

/// Between looks at what a bearer may do.
const REVIEW_EVERY: Duration = Duration::from_secs(600);
/// The same, when the cloud contradicts what is known.
const REVIEW_SOON: Duration = Duration::from_secs(30);
/// Bearers whose last review is remembered.
const MOST_REVIEWED: usize = 1024;
/// Reviewed for the rules that hold everywhere: no namespace can have this name.
const EVERYWHERE: &str = "*";
/// How long a request waits for what its sender may do; without it goes on to the cloud.
const REVIEW_WAIT: Duration = Duration::from_secs(3);
/// How long one question of the hub's own may take.
const WAIT: Duration = Duration::from_secs(10);
/// Largest answer to one.
const MAX_ANSWER: usize = 1 << 20;

/// The headers that may carry a token.
fn credentials_of(headers: &HeaderMap) -> HeaderMap {
    let mut own = HeaderMap::new();
    for name in [header::AUTHORIZATION, header::SEC_WEBSOCKET_PROTOCOL] {
        if let Some(value) = headers.get(&name) {
            own.insert(name, value.clone());
        }
    }
    own
}

impl Hub {
    /// What the status of an answer says about a bearer and its rights; asks once in a while what it may do at all, and once
    /// whose its token is.
    pub fn learn_acceptance(
        self: &Arc<Self>,
        caller: &Caller,
        status: StatusCode,
        info: &RequestInfo,
        headers: &HeaderMap,
    ) {
        let mut every = REVIEW_EVERY;
        if status == StatusCode::FORBIDDEN
            && info.is_resource
            && matches!(info.verb, Verb::Get | Verb::List | Verb::Watch)
            && let Ok(options) = info.list_options()
            && self
                .cache
                .learn_forbidden(caller, &Query::of_request(info, &options))
        {
            every = REVIEW_SOON;
        }
        if !caller.has_token() {
            return;
        }
        let Some(token) = identity::token(headers) else {
            return;
        };
        if status == StatusCode::UNAUTHORIZED {
            // The token ends, the rights of its user do not. What was exchanged for one of the node's own is seen to elsewhere.
            if !self.tokens.is_own(&token) {
                self.tokens.deny(&token, now());
            }
            if matches!(caller, Caller::Bearer(_)) {
                self.cache.forget_bearer(caller);
            }
            return;
        }
        // A server error says nothing about the token.
        if status.is_server_error() {
            return;
        }
        let due = self.is_due(caller, every);
        let unknown = self.tokens.wants_review(&token, now());
        if !due && !unknown && !self.tokens.keys_are_due(now()) {
            return;
        }
        self.cache.accept_bearer(caller);
        let (hub, caller) = (self.clone(), caller.clone());
        let own = credentials_of(headers);
        self.tasks.spawn(async move {
            let work = async {
                if unknown {
                    hub.vouch(&token).await;
                }
                hub.learn_issuer(&token, &own).await;
                if due {
                    hub.review(&caller, &own).await;
                }
            };
            tokio::select! {
                () = work => {}
                () = hub.shutdown.cancelled() => {}
            }
        });
    }

    /// Whether it is time to ask what a caller may do.
    fn is_due(&self, caller: &Caller, every: Duration) -> bool {
        let mut reviewed = self.reviewed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = reviewed
            .get(caller)
            .is_none_or(|at| now.saturating_duration_since(*at) >= every);
        if due {
            if reviewed.len() >= MOST_REVIEWED {
                reviewed.clear();
            }
            reviewed.insert(caller.clone(), now);
        }
        due
    }

    /// Asks the cloud, as the bearer itself, what it may do everywhere, and a service account in its own namespace.
    async fn review(&self, caller: &Caller, credentials: &HeaderMap) {
        let of_account = match caller {
            Caller::User(name) => name
                .strip_prefix("system:serviceaccount:")
                .and_then(|account| account.split_once(':'))
                .map(|(namespace, _)| namespace),
            _ => None,
        };
        for namespace in [Some(EVERYWHERE), of_account].into_iter().flatten() {
            if !self.review_in(caller, credentials, namespace).await {
                return;
            }
        }
    }

    /// Asks the cloud, as the bearer itself, what it may do in a namespace; whether the cloud told.
    async fn review_in(&self, caller: &Caller, credentials: &HeaderMap, namespace: &str) -> bool {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": { "namespace": namespace },
        });
        let uri = Uri::from_static("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews");
        let answer = self
            .ask(caller, Method::POST, uri, credentials, Some(review))
            .await;
        let Some((StatusCode::OK | StatusCode::CREATED, answer)) = answer else {
            return false;
        };
        let Some(status) = answer.get("status") else {
            return false;
        };
        if namespace == EVERYWHERE {
            self.cache.learn_rules(caller, status);
        } else {
            self.cache.learn_namespace_rules(caller, namespace, status);
        }
        true
    }

    /// Whether a bearer may read something by what the cloud told of it not long ago, asked now if need be. Rules that hold
    /// everywhere count first, then those of the namespace.
    pub(super) async fn permits_freshly(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        headers: &HeaderMap,
    ) -> bool {
        let Some(token) = identity::token(headers) else {
            return false;
        };
        let credentials = credentials_of(headers);
        let (verb, resource) = (info.verb.as_str(), (info.group.as_str(), &*info.resource));
        let name = (!info.name.is_empty()).then_some(info.name.as_str());
        let places = [(EVERYWHERE, ""), (&*info.namespace, &*info.namespace)];
        for (place, namespace) in places.into_iter().filter(|(place, _)| !place.is_empty()) {
            let key = (identity::hash(&token).into(), place.into());
            let told = {
                let mut told = self
                    .told_rules
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if told.len() >= MOST_REVIEWED && !told.contains_key(&key) {
                    told.clear();
                }
                told.entry(key).or_default().clone()
            };
            let ask = async {
                // Locked while the cloud is asked: of many requests that come at once, one asks.
                let mut told = told.lock().await;
                if told.is_none_or(|at| at.elapsed() >= REVIEW_EVERY) {
                    let answered = self.review_in(caller, &credentials, place).await;
                    *told = answered.then(Instant::now);
                }
                told.is_some()
            };
            if tokio::time::timeout(REVIEW_WAIT, ask).await != Ok(true) {
                return false;
            }
            if self.cache.permits(caller, verb, resource, namespace, name) {
                return true;
            }
        }
        false
    }

    /// A small question of the hub's own to the cloud: status and JSON of the answer; `None` when there is none.
    pub(super) async fn ask(
        &self,
        caller: &Caller,
        method: Method,
        uri: Uri,
        credentials: &HeaderMap,
        body: Option<Value>,
    ) -> Option<(StatusCode, Value)> {
        let json = HeaderValue::from_static("application/json");
        let mut headers = credentials.clone();
        headers.insert(header::CONTENT_TYPE, json.clone());
        headers.insert(header::ACCEPT, json);
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(crate::USER_AGENT),
        );
        let outgoing = Outgoing {
            method,
            uri,
            headers,
            body: OutgoingBody::Held(body.map(|body| body.to_string()).unwrap_or_default().into()),
            wait: WAIT,
            // Questions change nothing, whatever their method.
            safe: true,
        };
        let answer = async {
            let (response, _) = self.upstreams.send(caller, outgoing).await.ok()?;
            let status = response.status();
            let body = yurt_transport::collect(response.into_body(), MAX_ANSWER)
                .await
                .ok()?;
            Some((status, serde_json::from_slice(&body).ok()?))
        };
        tokio::time::timeout(2 * WAIT, answer).await.ok().flatten()
    }
}
