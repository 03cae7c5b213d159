//! The few calls that certificates need of the API, beneath the proxy's pipeline: none of it is for the cache.

use crate::{
    caller::Caller,
    identity,
    upstream::{Outgoing, OutgoingBody, SendError, Upstreams},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use rustls::ClientConfig;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use yurt_transport::{Client, ClientError, ClientOptions};

/// Largest answer that is read.
const MOST: usize = 1 << 20;
/// For one answer.
const WAIT: Duration = Duration::from_secs(15);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Under whose name a call goes.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    /// The node's certificate.
    Node,
    /// A bearer token.
    Token(String),
    /// Nobody's.
    Anonymous,
}

/// Why a call has no object to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No answer.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The answer broke off.
    #[error("the answer broke off")]
    Broken,
    /// The server refused.
    #[error("{message} ({code})")]
    Refused {
        /// HTTP code.
        code: StatusCode,
        /// The Status' message.
        message: String,
    },
}

impl CallError {
    /// The HTTP code, when the server answered.
    pub(super) fn code(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Asks one server over a connection of its own: whatever is known of its link, and under whatever certificate.
pub(super) async fn ask(
    server: &str,
    tls: Arc<ClientConfig>,
    path: &str,
) -> Result<(StatusCode, Bytes), ClientError> {
    let client = Client::new(server, Some(tls), ClientOptions::default());
    let mut request = Request::new(yurt_transport::empty());
    *request.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    let headers = request.headers_mut();
    headers.insert(header::ACCEPT, JSON);
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(crate::USER_AGENT),
    );
    let response = client.send(request, WAIT).await?;
    let status = response.status();
    let broken = |source: yurt_transport::BoxError| ClientError::Broken {
        authority: server.to_owned(),
        source,
    };
    let body = tokio::time::timeout(WAIT, yurt_transport::collect(response.into_body(), MOST))
        .await
        .map_err(|_| broken("the answer did not end".into()))?
        .map_err(|error| broken(error.into()))?;
    Ok((status, body))
}

/// Makes a call.
pub(super) async fn call(
    upstreams: &Upstreams,
    credential: &Credential,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, CallError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, JSON);
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(crate::USER_AGENT),
    );
    if body.is_some() {
        headers.insert(header::CONTENT_TYPE, JSON);
    }
    let caller = match credential {
        Credential::Node => Caller::Node,
        Credential::Anonymous => Caller::Bearer(String::new()),
        Credential::Token(token) => {
            if let Ok(mut value) = HeaderValue::try_from(format!("Bearer {token}")) {
                value.set_sensitive(true);
                headers.insert(header::AUTHORIZATION, value);
            }
            Caller::Bearer(identity::hash(token))
        }
    };
    let outgoing = Outgoing {
        safe: method.is_safe(),
        method,
        uri: path.parse().unwrap_or_else(|_| Uri::from_static("/")),
        headers,
        body: OutgoingBody::Held(body.map_or_else(Bytes::new, |body| body.to_string().into())),
        wait: WAIT,
    };
    let (response, server) = upstreams.send(&caller, outgoing).await?;
    let code = response.status();
    let body = tokio::time::timeout(WAIT, yurt_transport::collect(response.into_body(), MOST))
        .await
        .map_err(|_| CallError::Broken)?
        .map_err(|_| CallError::Broken)?;
    server.heard();
    let object: Value = serde_json::from_slice(&body).unwrap_or_default();
    if code.is_success() {
        return Ok(object);
    }
    let message = object["message"].as_str().unwrap_or("no message");
    Err(CallError::Refused {
        code,
        message: message.to_owned(),
    })
}
