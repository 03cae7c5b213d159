//! Whom a feed asks, and what came of it.

use crate::{
    caller::Caller,
    pool::{Distrust, PeerNode, Role},
    proxy::Hub,
    tee::inflate,
    upstream::{Outgoing, OutgoingBody, Server},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use std::{fmt, sync::Arc, time::Duration};
use yurt_transport::{CollectError, ResponseBody};
use yurt_wire::{
    Encoding,
    list::{self, SplitList},
};

/// The head of an answer is there by then.
const HEAD: Duration = Duration::from_secs(30);
/// A list, or a page of one, is there by then.
const WHOLE: Duration = Duration::from_secs(120);
/// How long the answer to a probe may take.
const PROBE: Duration = Duration::from_secs(5);
/// Largest list, or page of one.
const MOST_LIST: usize = 64 << 20;
/// As OpenYurt's multiplexers call themselves, before the node's name.
const AGENT: &str = "multiplexer-proxy-";
/// A list that is always empty: nothing but a revision.
const NOTHING: &str = "labelSelector=yurt.io%2Fprobe%3Dnone";

/// Who feeds a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Cloud,
    Peer(PeerNode),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cloud => f.write_str("cloud"),
            Self::Peer(peer) => f.write_str(&peer.node),
        }
    }
}

/// Why a source gave no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// As watches end.
    Cleanly,
    /// What comes after the revision asked for is not held there.
    Expired,
    /// Not now: no link, an overloaded server, one that is not ready.
    Later,
    /// This node does not get the resource.
    Refused,
    /// The source is not as far as this node, for too long.
    Behind,
    /// The source is at fault.
    Fault(Distrust),
}

/// An answer, and the server of the cloud that it is from.
pub(super) type Answer = (Response<ResponseBody>, Option<Arc<Server>>);

impl Source {
    /// Who feeds a node of that role. One that is alone shares nothing new; what goes on from before is fed by the cloud.
    pub(super) fn of(role: &Role) -> Self {
        match role {
            Role::Alone | Role::Leader => Self::Cloud,
            Role::Follower(peer) => Self::Peer(peer.clone()),
        }
    }

    /// Asks; anything but 200 is an end.
    pub(super) async fn ask(
        &self,
        hub: &Hub,
        target: &str,
        json_only: bool,
        gzip: bool,
    ) -> Result<Answer, Ended> {
        let accept = if json_only {
            "application/json"
        } else {
            "application/vnd.kubernetes.protobuf,application/json"
        };
        // Between two nodes the network is cheaper than the work.
        let coding = match self {
            Self::Cloud if gzip => "gzip",
            _ => "identity",
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(coding));
        if let Ok(agent) = HeaderValue::from_str(&format!("{AGENT}{}", hub.node_name)) {
            headers.insert(header::USER_AGENT, agent);
        }
        let uri = target.parse().map_err(|_| Ended::Refused)?;
        let (response, server) = match self {
            Self::Cloud => {
                let outgoing = Outgoing {
                    method: Method::GET,
                    uri,
                    headers,
                    body: OutgoingBody::Held(Bytes::new()),
                    wait: HEAD,
                    safe: true,
                };
                let sent = hub.upstreams.send(&Caller::Node, outgoing).await;
                let (response, server) = sent.map_err(|error| {
                    tracing::debug!(target, %error, "not fed by the cloud now");
                    Ended::Later
                })?;
                (response, Some(server))
            }
            Self::Peer(peer) => {
                let mut request = Request::new(Bytes::new());
                *request.uri_mut() = uri;
                *request.headers_mut() = headers;
                let response = hub.peers.send(peer, request).await.map_err(|error| {
                    tracing::debug!(target, %peer, %error, "not fed by a peer now");
                    Ended::Later
                })?;
                (response, None)
            }
        };
        let status = response.status();
        match status {
            StatusCode::OK => Ok((response, server)),
            StatusCode::GONE => Err(Ended::Expired),
            StatusCode::TOO_MANY_REQUESTS => Err(Ended::Later),
            _ if status.is_server_error() => Err(Ended::Later),
            _ => {
                tracing::debug!(target, source = %self, %status, "a feed is refused");
                Err(match self {
                    Self::Cloud => Ended::Refused,
                    // It may not have heard yet who is in the pool, or what is shared.
                    Self::Peer(_) => Ended::Later,
                })
            }
        }
    }

    /// One page of a list, and the encoding of its items.
    pub(super) async fn page(
        &self,
        hub: &Hub,
        target: &str,
        json_only: bool,
    ) -> Result<(SplitList, Encoding), Ended> {
        let (response, _) = self.ask(hub, target, json_only, true).await?;
        let gzip = match response.headers().get(header::CONTENT_ENCODING) {
            None => false,
            Some(coding) if coding == "gzip" => true,
            Some(coding) if coding == "identity" => false,
            Some(_) => return Err(Ended::Fault(Distrust::Garbage)),
        };
        let encoding = encoding_of(&response).ok_or(Ended::Fault(Distrust::Garbage))?;
        let collected = yurt_transport::collect(response.into_body(), MOST_LIST);
        let body = match tokio::time::timeout(WHOLE, collected).await {
            Ok(Ok(body)) => body,
            Ok(Err(CollectError::TooLarge(_))) => return Err(Ended::Fault(Distrust::Flood)),
            Ok(Err(_)) => return Err(Ended::Later),
            Err(_) => return Err(Ended::Fault(Distrust::Stalled)),
        };
        hub.metrics.pool().taken(body.len());
        let split = tokio::task::spawn_blocking(move || {
            let body = if gzip {
                inflate(vec![body], MOST_LIST).map_err(|_| ())?
            } else {
                body
            };
            list::split(&body, encoding).map_err(|_| ())
        });
        match split.await {
            Ok(Ok(list)) => Ok((list, encoding)),
            Ok(Err(())) => Err(Ended::Fault(Distrust::Garbage)),
            Err(_) => Err(Ended::Later),
        }
    }

    /// How far the source is.
    pub(super) async fn revision(&self, hub: &Hub, path: &str) -> Option<u64> {
        let target = match self {
            Self::Cloud => format!("{path}?{NOTHING}&limit=1"),
            Self::Peer(_) => format!("{path}?{NOTHING}&resourceVersion=0"),
        };
        let page = self.page(hub, &target, false);
        let (list, _) = tokio::time::timeout(PROBE, page).await.ok()?.ok()?;
        list.resource_version.parse().ok()
    }
}

pub(super) fn encoding_of<B>(response: &Response<B>) -> Option<Encoding> {
    let content_type = response.headers().get(header::CONTENT_TYPE)?;
    Encoding::from_content_type(content_type.to_str().ok()?)
}
