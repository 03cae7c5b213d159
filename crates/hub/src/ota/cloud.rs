//! What upgrades ask of the API server, always of it and never of what the node knows: an answer of before the cut does not decide
//! about a deletion.

use crate::{
    caller::Caller,
    identity,
    proxy::Hub,
    upstream::{Outgoing, OutgoingBody, SendError},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::Value;
use std::time::Duration;

/// How long one question may take.
const WAIT: Duration = Duration::from_secs(15);
/// Largest answer.
const MOST_ANSWER: usize = 4 << 20;
pub(super) const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(super) const JSON: &str = "application/json";

/// Under whose name something is asked.
#[derive(Clone)]
pub(super) enum As {
    /// The node's.
    Node,
    /// That of a bearer.
    Bearer(String),
}

/// Why there is no answer; another attempt may bring one.
#[derive(Debug, thiserror::Error)]
pub(super) enum CloudError {
    /// The cloud is away.
    #[error("the node is cut off from the cloud")]
    Away,
    /// It did not answer, or not well.
    #[error("{0}")]
    Failed(String),
}

/// What was answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Answer {
    /// What a Status says.
    pub(super) fn message(&self) -> String {
        let message = self.body.get("message").and_then(Value::as_str);
        message.map_or_else(|| self.status.to_string(), str::to_owned)
    }

    /// Whether asking again may help.
    pub(super) fn is_passing(&self) -> bool {
        self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS
    }
}

pub(super) async fn get(hub: &Hub, uri: &str) -> Result<Answer, CloudError> {
    call(hub, &As::Node, Method::GET, uri, JSON, None).await
}

/// A pod of this node; `None` when the node has none of this name. Listed, because of pods that are gone a node is only told that it
/// has nothing to do with them.
pub(super) async fn pod(hub: &Hub, namespace: &str, name: &str) -> Result<Option<Value>, Asking> {
    let mut pods = list(hub, namespace, &format!("%2Cmetadata.name%3D{name}")).await?;
    Ok(pods.pop())
}

/// The pods of a namespace on this node.
pub(super) async fn pods(hub: &Hub, namespace: &str) -> Result<Vec<Value>, Asking> {
    list(hub, namespace, "").await
}

async fn list(hub: &Hub, namespace: &str, more: &str) -> Result<Vec<Value>, Asking> {
    let node = &hub.node_name;
    let uri =
        format!("/api/v1/namespaces/{namespace}/pods?fieldSelector=spec.nodeName%3D{node}{more}");
    let mut answer = get(hub, &uri).await?;
    if answer.status != StatusCode::OK {
        return Err(Asking::Refused(answer));
    }
    let items = answer.body.get_mut("items").and_then(Value::as_array_mut);
    Ok(items.map(std::mem::take).unwrap_or_default())
}

/// Why something was not told.
pub(super) enum Asking {
    Failed(CloudError),
    Refused(Answer),
}

impl From<CloudError> for Asking {
    fn from(error: CloudError) -> Self {
        Self::Failed(error)
    }
}

/// Asks. Everything asked here may be said twice: it carries the uid that it means, or changes nothing.
pub(super) async fn call(
    hub: &Hub,
    who: &As,
    method: Method,
    uri: &str,
    content_type: &'static str,
    body: Option<&Value>,
) -> Result<Answer, CloudError> {
    let failed = |error: &dyn std::fmt::Display| CloudError::Failed(error.to_string());
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(JSON));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(crate::USER_AGENT),
    );
    let caller = match who {
        As::Node => Caller::Node,
        As::Bearer(token) => {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|error| failed(&error))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
            Caller::Bearer(identity::hash(token))
        }
    };
    let outgoing = Outgoing {
        method,
        uri: uri
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(&error))?,
        headers,
        body: OutgoingBody::Held(body.map(Value::to_string).unwrap_or_default().into()),
        wait: WAIT,
        safe: true,
    };
    let asking = async {
        let (response, _) =
            hub.upstreams
                .send(&caller, outgoing)
                .await
                .map_err(|error| match error {
                    SendError::NoServer => CloudError::Away,
                    error => failed(&error),
                })?;
        let status = response.status();
        let body = yurt_transport::collect(response.into_body(), MOST_ANSWER)
            .await
            .map_err(|error| failed(&error))?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Answer { status, body })
    };
    // Rare, and everybody who asks would hold the room for it.
    tokio::time::timeout(2 * WAIT, Box::pin(asking))
        .await
        .unwrap_or_else(|_| {
            Err(CloudError::Failed(format!(
                "no answer within {:?}",
                2 * WAIT
            )))
        })
}
