//! How a request comes in: who it is from, and whether they may ask for this at all.

use super::{Hub, upload::Upload};
use crate::{
    caller::{Caller, Entrance},
    identity::{self, Identity},
    offline::now,
    pool::{self, Permission},
    tenant::{self, Decision},
};
use http::{HeaderValue, request::Parts};
use hyper::body::Incoming;
use std::sync::Arc;
use yurt_wire::{Reason, RequestInfo, Status};

/// Said with every answer to a caller that the node's identity is lent to. `Warning` headers are shown to users by kubectl and
/// logged by client-go.
pub(super) const LENT: HeaderValue = HeaderValue::from_static(
    "299 - \"this caller has no credentials and acts with the node's rights, because the hub runs with --unsafe-open-proxy\"",
);

impl Hub {
    /// Finds out who is calling.
    pub(super) async fn enter(
        self: &Arc<Self>,
        entrance: Entrance,
        parts: &mut Parts,
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
        let identity = self
            .isolate(identity, parts)
            .await
            .inspect_err(|_| turn_away("tenant"))?;
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

    /// On a node of a tenant, service accounts of the system act as the tenant's.
    async fn isolate(
        self: &Arc<Self>,
        mut identity: Identity,
        parts: &mut Parts,
    ) -> Result<Identity, Box<Status>> {
        let (Some(tenant), true) = (&self.tenant, identity.caller.has_token()) else {
            return Ok(identity);
        };
        let Some(token) = identity::token(&parts.headers) else {
            return Ok(identity);
        };
        let claimed = tenant::claimed_user(&token);
        let decide = |identity: &Identity| {
            tenant::decide(tenant.namespace(), &identity.caller, claimed.as_deref())
        };
        if decide(&identity) == Decision::Refuse {
            // It may be known whose the token is as soon as the cloud is asked.
            self.vouch(&token).await;
            identity = self.recognize_again(identity, &token);
        }
        match decide(&identity) {
            Decision::Keep => Ok(identity),
            Decision::Refuse => Err(Box::new(Status::new(
                Reason::Forbidden,
                format!(
                    "this node is one of the tenant {:?}: a token of the system's service accounts does not leave it, and it could \
                     not be verified that this one is what it says",
                    tenant.namespace()
                ),
            ))),
            Decision::Exchange => {
                let token = tenant.token(self).await?;
                if !identity::set_token(&mut parts.headers, &token) {
                    return Err(Box::new(Status::internal_error(
                        "the tenant's token cannot be carried by a header",
                    )));
                }
                Ok(self.recognize_again(identity, &token))
            }
        }
    }

    fn recognize_again(&self, identity: Identity, token: &str) -> Identity {
        Identity {
            caller: self.tokens.caller(token, now()),
            ..identity
        }
    }

    /// Whether another node of the pool may ask for this.
    async fn admit_peer(
        &self,
        peer: &str,
        parts: &Parts,
        body: Incoming,
    ) -> Result<Upload, Box<Status>> {
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query());
        match pool::permission(&self.settings.borrow().pool_scope, peer, &info) {
            Permission::Given => {}
            Permission::Refused => return Err(pool::refusal(peer, &info)),
        }
        if parts.method.is_safe() {
            return Ok(Upload::Stream(body));
        }
        // Leases are all that they write.
        let held = self.hold_up_to(pool::MOST_BYTES, &parts.headers, body);
        Ok(Upload::Held(held.await?))
    }
}
