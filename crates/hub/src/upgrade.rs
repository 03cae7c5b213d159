//! Upgraded connections (SPDY and WebSocket: exec, attach, port-forward): bytes both ways, until either side ends or the link goes.

use crate::{
    caller::Caller,
    identity,
    metrics::Held,
    proxy::Hub,
    upstream::{Outgoing, OutgoingBody, SendError},
};
use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{sync::Arc, time::Duration};
use yurt_transport::Body;
use yurt_wire::{Reason, Status};

/// How long either side may take to switch protocols after the 101.
const SWITCH: Duration = Duration::from_secs(10);

pub use yurt_transport::is_upgrade;

/// Passes an upgrade on.
pub async fn serve(
    hub: &Arc<Hub>,
    caller: &Caller,
    mut parts: Parts,
    wait: Duration,
    in_flight: crate::metrics::InFlight,
) -> Result<Response<Body>, Box<Status>> {
    let Some(client) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(Box::new(Status::new(
            Reason::BadRequest,
            "this connection cannot be upgraded (HTTP/2?)",
        )));
    };
    let mut headers = parts.headers.clone();
    identity::clean_request(&mut headers, true);
    let outgoing = Outgoing {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        headers,
        body: OutgoingBody::Held(Bytes::new()),
        wait,
        safe: false,
    };
    let (mut response, server) = match hub.upstreams.send_upgrade(caller, outgoing).await {
        Ok(answer) => answer,
        Err(SendError::NoIdentity) => {
            return Err(identity::unauthorized(
                "Unauthorized: this node has no certificate",
            ));
        }
        Err(SendError::Refused(why)) => {
            return Err(identity::unauthorized(&format!("Unauthorized: {why}")));
        }
        Err(error) => {
            return Err(Box::new(Status::new(
                Reason::ServiceUnavailable,
                format!("the cloud could not be asked: {error}"),
            )));
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(hub.pass(response, server, None, in_flight, Some(hub.silence())));
    }
    let Some(upstream) = response.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Box::new(Status::new(
            Reason::InternalError,
            "the API server switched protocols without a connection to switch",
        )));
    };
    let (mut head, held_body) = response.into_parts();
    yurt_transport::strip_hop_by_hop(&mut head.headers, true);
    let metrics = hub.metrics.clone();
    let shutdown = hub.shutdown.clone();
    hub.tasks.spawn(async move {
        let _held = (Held::new(metrics.upgrades()), in_flight, held_body);
        let both = async { tokio::try_join!(client, upstream) };
        let (client, upstream) = match tokio::time::timeout(SWITCH, both).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => {
                tracing::debug!(%error, "upgrade failed");
                return;
            }
            Err(_) => return,
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut client, &mut upstream) => {
                if let Err(error) = copied {
                    tracing::debug!(%error, "upgraded connection ended");
                }
            }
            // Nothing comes any more; the client should know rather than wait.
            () = server.went_down() => tracing::debug!("upgraded connection ended by the link"),
            () = shutdown.cancelled() => {}
        }
    });
    let mut switched = Response::new(yurt_transport::empty());
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = head.headers;
    Ok(switched)
}
