//! Having a certificate of the hub signed.

use super::{
    api::{self, CallError, Credential},
    plan::Kind,
};
use crate::upstream::{SendError, Upstreams};
use http::Method;
use serde_json::Value;
use yurt_controller::signing_request::{Asks, Refusal, SigningError, Wanted, obtain};

/// The cloud, under one identity of the hub.
struct Asker<'a> {
    upstreams: &'a Upstreams,
    credential: &'a Credential,
}

impl Asks for Asker<'_> {
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refusal> {
        let asked = api::call(self.upstreams, self.credential, method, path, body).await;
        asked.map_err(|error| Refusal {
            code: error.code().map(|code| code.as_u16()),
            message: match error {
                CallError::Send(SendError::NoServer) => "no API server can be reached".into(),
                CallError::Refused { message, .. } => message,
                error => error.to_string(),
            },
        })
    }

    fn who(&self) -> (&'static str, &'static str) {
        match self.credential {
            Credential::Node => (
                "the node's certificate",
                "; its CA is no client CA of the cloud any more, or the clocks differ",
            ),
            _ => (
                "the bootstrap token",
                "; `kubeadm token create` makes another, POST /v1/token takes it",
            ),
        }
    }
}

/// Has a request signed. `told` hears what is being waited for.
pub(super) async fn sign(
    upstreams: &Upstreams,
    credential: &Credential,
    kind: Kind,
    request: &str,
    told: impl Fn(&str),
) -> Result<String, SigningError> {
    let wanted = Wanted {
        certificate: kind.as_str(),
        prefix: "yurthub",
        signer: kind.signer(),
        usages: kind.usages(),
        request,
    };
    let asker = Asker {
        upstreams,
        credential,
    };
    obtain(&asker, &wanted, told).await
}
