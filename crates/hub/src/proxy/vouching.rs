//! Whose the tokens of callers are, as the cloud tells: reviews of tokens that it just accepted, and the keys of its issuer.

use super::Hub;
use crate::{
    caller::Caller,
    identity::{self, Identity},
    offline::now,
    tokens::question::Question,
};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};
use yurt_wire::RequestInfo;

/// After the cloud refused to review tokens for this node, it is not asked again for this long.
const NOT_ALLOWED: Duration = Duration::from_secs(600);

impl Hub {
    /// The caller of a request with a token is a user, when the node knows whose the token is.
    pub(super) fn recognize(&self, mut identity: Identity, headers: &HeaderMap) -> Identity {
        if let Caller::Bearer(_) = identity.caller
            && let Some(token) = identity::token(headers)
        {
            identity.caller = self.tokens.caller(&token, now());
        }
        identity
    }

    /// Asks the cloud, as the node, whose a token is. Kubelets may ask, so the node may, unless its certificate is of another kind.
    pub(crate) async fn vouch(&self, token: &str) {
        {
            let refused = self.unvouched.lock();
            let refused = refused.unwrap_or_else(PoisonError::into_inner);
            if refused.is_some_and(|at: Instant| at.elapsed() < NOT_ALLOWED) {
                return;
            }
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token },
        });
        let uri = Uri::from_static("/apis/authentication.k8s.io/v1/tokenreviews");
        let none = HeaderMap::new();
        match self
            .ask(
                &Caller::Node,
                Method::POST,
                uri,
                &none,
                Some(review.clone()),
            )
            .await
        {
            Some((StatusCode::OK | StatusCode::CREATED, answer)) => {
                self.tokens
                    .learn_review(&review["spec"], &answer["status"], now());
            }
            Some((StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED, answer)) => {
                tracing::warn!(
                    why = %answer["message"],
                    "the cloud does not review tokens for this node: rights are kept by token, and end with it"
                );
                *self
                    .unvouched
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
            _ => {}
        }
    }

    /// Learns the keys of the cloud's issuer, when it is time: as the node, or as a service account whose token the cloud just
    /// accepted (every service account may read them).
    pub(super) async fn learn_issuer(&self, token: &str, credentials: &HeaderMap) {
        if !self.tokens.wants_keys(token, now()) {
            return;
        }
        let bearer = Caller::Bearer(identity::hash(token));
        let none = HeaderMap::new();
        for (caller, credentials) in [(&Caller::Node, &none), (&bearer, credentials)] {
            let read = async |path: &'static str| -> Option<Value> {
                let uri = Uri::from_static(path);
                match self
                    .ask(caller, Method::GET, uri, credentials, None)
                    .await?
                {
                    (StatusCode::OK, document) => Some(document),
                    _ => None,
                }
            };
            if let Some(configuration) = read("/.well-known/openid-configuration").await
                && let Some(keys) = read("/openid/v1/jwks").await
                && self.tokens.learn_issuer(&configuration, &keys, now())
            {
                return;
            }
        }
        tracing::debug!("the keys of the cloud's token issuer cannot be read");
    }

    /// What the answer to a question would teach; only what the node asks for its pods is kept of tokens.
    pub(super) fn remembers(caller: &Caller, info: &RequestInfo) -> Option<Question> {
        Question::of(info).filter(|question| match question {
            Question::Token { .. } => *caller == Caller::Node,
            question => question.is_remembered(),
        })
    }
}
