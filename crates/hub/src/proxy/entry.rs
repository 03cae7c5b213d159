//! How a request comes in: who it is from, and whether they may ask for this at all.

use super::{Hub, upload::Upload};
use crate::{
    caller::{Caller, Entrance},
    identity::Identity,
    pool::{self, Permission},
};
use http::{HeaderValue, header, request::Parts};
use hyper::body::Incoming;
use yurt_wire::{Encoding, Object, RequestInfo, Status};

/// Said with every answer to a caller that the node's identity is lent to. `Warning` headers are shown to users by kubectl and
/// logged by client-go.
pub(super) const LENT: HeaderValue = HeaderValue::from_static(
    "299 - \"this caller has no credentials and acts with the node's rights, because the hub runs with --unsafe-open-proxy\"",
);

impl Hub {
    /// Finds out who is calling.
    pub(super) async fn enter(
        &self,
        entrance: Entrance,
        parts: &Parts,
        body: Incoming,
    ) -> Result<(Identity, Upload), Box<Status>> {
        let turn_away = |label| self.metrics.turned_away(entrance.as_str(), label);
        let identity = self
            .gate
            .identify(entrance, parts)
            .await
            .map_err(|refusal| {
                turn_away(refusal.label());
                refusal.status()
            })?;
        let identity = self.recognize(identity, &parts.headers);
        let body = match &identity.caller {
            Caller::Peer(peer) => {
                let admitted = self.admit_peer(peer, parts, body).await;
                admitted.inspect_err(|_| turn_away("not_for_peers"))?
            }
            _ => Upload::Stream(body),
        };
        let kind = if identity.lent {
            "lent"
        } else {
            identity.caller.kind()
        };
        self.metrics.entered(entrance.as_str(), kind);
        Ok((identity, body))
    }

    /// Whether another node of the pool may ask for this.
    async fn admit_peer(
        &self,
        peer: &str,
        parts: &Parts,
        body: Incoming,
    ) -> Result<Upload, Box<Status>> {
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query());
        match pool::permission(&self.pool_scope, peer, &info) {
            Permission::Given => Ok(Upload::Stream(body)),
            Permission::Refused => Err(pool::refusal(peer, &info)),
            Permission::OwnName => {
                let body = self.hold(&parts.headers, body).await?;
                let kind = super::text(&parts.headers, header::CONTENT_TYPE);
                let object = Object {
                    encoding: Encoding::from_content_type(kind).unwrap_or(Encoding::Json),
                    bytes: body.clone(),
                };
                let own = object.key().is_ok_and(|key| key.name == peer);
                if own {
                    Ok(Upload::Held(body))
                } else {
                    Err(pool::refusal(peer, &info))
                }
            }
        }
    }
}
