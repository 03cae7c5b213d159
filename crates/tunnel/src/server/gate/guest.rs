//! Who speaks konnectivity's protocol: agents and frontends over gRPC.

use super::{Gate, ended, over};
use crate::{
    AgentHello, Link, Tunnels, anp,
    frontend::{Grpc, Present},
    registry::Origin,
    server::callers::Refused,
};
use futures_util::future::BoxFuture;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use yurt_pki::Leaf;

impl Gate {
    /// Serves konnectivity's protocol: agents and frontends.
    pub(super) fn grpc(self: &Arc<Self>, leaf: Option<Leaf>, from: String, tls: bool) -> Grpc {
        let gate = self.clone();
        let guest = Arc::new(Guest {
            gate: self.clone(),
            leaf,
            from,
            tls,
            welcomed: Mutex::default(),
        });
        Box::new(move |io| {
            let (gate, guest) = (gate.clone(), guest.clone());
            Box::pin(async move {
                let _counted = Present::new(gate.metrics.grpc.clone());
                let (options, drain) = (gate.options.clone(), gate.drain.clone());
                let serving = anp::server::serve(io, gate.hello(), guest.clone(), options, drain);
                let why = tokio::select! {
                    why = Box::pin(serving) => why.to_string(),
                    () = ended(guest.leaf.as_ref(), gate.now) => {
                        gate.metrics.refused("expired");
                        over(guest.leaf.as_ref()).0
                    }
                };
                tracing::debug!(from = %guest.from, why, "a gRPC connection ended");
            })
        })
    }
}

/// Whoever is at the other end of a gRPC connection.
struct Guest {
    gate: Arc<Gate>,
    leaf: Option<Leaf>,
    from: String,
    tls: bool,
    /// As whom agents were let in that are not registered yet, by id.
    welcomed: Mutex<HashMap<String, String>>,
}

impl Guest {
    fn welcomed(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.welcomed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl anp::server::Welcome for Guest {
    fn agent<'a>(
        &'a self,
        hello: &'a AgentHello,
        bearer: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), anp::server::Refused>> {
        Box::pin(async move {
            let welcome = match self.tls {
                true => self.gate.welcome(hello, self.leaf.as_ref(), bearer).await,
                false => Err(Refused("agents come in by TLS".into())),
            };
            let identity = welcome.map_err(|refused| {
                self.gate.metrics.refused("agent");
                tracing::info!(from = %self.from, agent = %hello.id, why = %refused, "an agent is refused");
                anp::server::Refused(refused.0)
            })?;
            self.welcomed().insert(hello.id.clone(), identity);
            Ok(())
        })
    }

    fn registered(&self, link: Arc<dyn Link>) {
        let identity = self.welcomed().remove(&link.hello().id);
        let origin = Origin {
            address: self.from.clone(),
            identity: identity.unwrap_or_default(),
        };
        self.gate.switchboard.registry().register(link, origin);
    }

    fn frontend(&self) -> Option<Arc<dyn Tunnels>> {
        let allowed = self.gate.frontend(self.leaf.as_ref(), self.tls);
        allowed
            .inspect_err(|why| tracing::info!(from = %self.from, %why, "a frontend is refused"))
            .ok()
    }
}
