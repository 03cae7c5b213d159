//! Tokens that the node signed itself mean nothing to the cloud: on their way there they are exchanged for real ones, which the
//! node asks for as the kubelet would, bound to the same pod.

use super::{Outgoing, OutgoingBody, SendError, Server, Upstreams};
use crate::{
    caller::Caller,
    identity,
    offline::now,
    tokens::issued::{Issued, Wish},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use std::time::Duration;
use yurt_wire::{Encoding, Status};

/// How long the cloud may take to give a token.
const WAIT: Duration = Duration::from_secs(10);
/// Largest answer with a token.
const MAX_ANSWER: usize = 256 << 10;

/// A real token in the place of one of the node's.
#[derive(Debug)]
pub(super) struct Exchanged {
    wish: Wish,
    token: String,
}

impl Upstreams {
    /// Puts a real token in the place of one of the node's own; `None` when there is none of those.
    pub(super) async fn exchange(
        &self,
        caller: &Caller,
        headers: &mut HeaderMap,
    ) -> Result<Option<Exchanged>, SendError> {
        if !caller.has_token() {
            return Ok(None);
        }
        let Some(own) = identity::token(headers).filter(|token| self.tokens.is_own(token)) else {
            return Ok(None);
        };
        let bound = self
            .tokens
            .own_bound(&own, now())
            .map_err(|refusal| SendError::Refused(refusal.to_string()))?;
        let wish = Wish::for_api(&bound)
            .ok_or_else(|| SendError::Refused("the token is bound to no pod".into()))?;
        let issued = match self.tokens.issued(&wish, now()) {
            Some(issued) => issued,
            None => Box::pin(self.ask_for(&wish, &own)).await?,
        };
        if !identity::set_token(headers, &issued.token) {
            return Err(SendError::Refused("the token cannot be exchanged".into()));
        }
        Ok(Some(Exchanged {
            wish,
            token: issued.token,
        }))
    }

    /// The cloud did not take the token that it gave: the next request asks for another one.
    pub(super) fn exchanged_in_vain(&self, exchanged: &Exchanged) {
        self.tokens.deny(&exchanged.token, now());
        self.tokens.forget_issued(&exchanged.wish);
    }

    async fn ask_for(&self, wish: &Wish, own: &str) -> Result<Issued, SendError> {
        // One at a time: a pod that comes online asks for much at once.
        let Ok(_asking) = tokio::time::timeout(WAIT, self.exchanging.lock()).await else {
            self.metrics.token_exchanged("failed");
            return Err(SendError::NotExchanged(format!(
                "others were asked for first, for {WAIT:?}"
            )));
        };
        if let Some(issued) = self.tokens.issued(wish, now()) {
            return Ok(issued);
        }
        let path = format!(
            "/api/v1/namespaces/{}/serviceaccounts/{}/token",
            wish.namespace, wish.account
        );
        let uri: Uri = path
            .parse()
            .map_err(|_| SendError::Refused("the token names no service account".into()))?;
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json.clone());
        headers.insert(header::ACCEPT, json);
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(crate::USER_AGENT),
        );
        let outgoing = Outgoing {
            method: Method::POST,
            uri,
            headers,
            body: OutgoingBody::Held(wish.to_json().to_string().into()),
            wait: WAIT,
            // A token more does no harm.
            safe: true,
        };
        let (response, _) = self
            .send_as_is(
                self.candidates(Server::state),
                &Caller::Node,
                outgoing,
                false,
            )
            .await?;
        let status = response.status();
        let body = tokio::time::timeout(
            WAIT,
            yurt_transport::collect(response.into_body(), MAX_ANSWER),
        )
        .await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        let issued = status
            .is_success()
            .then(|| serde_json::from_slice(&body).ok())
            .flatten()
            .and_then(|answer| self.tokens.learn_issued(wish, &answer, now()));
        if let Some(issued) = issued {
            self.metrics.token_exchanged("done");
            return Ok(issued);
        }
        let why = Status::from_bytes(&body, Encoding::Json)
            .map_or_else(|| status.to_string(), |status| status.message);
        let account = format!("{}/{}", wish.namespace, wish.account);
        tracing::warn!(
            account,
            why,
            "the cloud gives no token in exchange for the node's own"
        );
        if status.is_server_error()
            || status == StatusCode::TOO_MANY_REQUESTS
            || status.is_success()
        {
            self.metrics.token_exchanged("failed");
            return Err(SendError::NotExchanged(why));
        }
        // The account or the pod is gone.
        self.metrics.token_exchanged("refused");
        self.tokens.deny(own, now());
        Err(SendError::Refused(format!(
            "the cloud gives no token for service account {account}: {why}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cache::{Cache, CacheConfig},
        config::LbMode,
        metrics::Metrics,
        tokens::Tokens,
        upstream::CloudTls,
    };

    /// The cloud answers nothing for long: who comes later must not wait for all who came before.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_others_without_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, _) = Cache::open(dir.path(), CacheConfig::default()).expect("a cache");
        let bearer = yurt_pki::distrustful_client_config().expect("a configuration");
        let tls = CloudTls { node: None, bearer };
        let servers = ["127.0.0.1:1".to_owned()];
        let tokens = Tokens::blank(&cache, "edge-1");
        let upstreams =
            Upstreams::new(&servers, LbMode::Priority, &tls, Metrics::default(), tokens);
        let _others = upstreams.exchanging.lock().await;
        let wish = Wish {
            namespace: "default".into(),
            account: "web".into(),
            audiences: Vec::new(),
            seconds: 3600,
            bound: None,
        };
        let begun = tokio::time::Instant::now();
        let asked = upstreams.ask_for(&wish, "own").await;
        assert!(matches!(asked, Err(SendError::NotExchanged(_))));
        assert_eq!(begun.elapsed(), WAIT);
    }
}
