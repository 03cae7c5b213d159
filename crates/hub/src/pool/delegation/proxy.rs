//! Who renews the leases of others: the identity that OpenYurt's coordinator used (1.3 to 1.6), which may read and write leases and
//! nothing else. It is a certificate in a Secret, followed through the hub's own pipeline.

use crate::{
    follow::{Objects, follow},
    proxy::Hub,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::Value;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::watch;
use yurt_pki::{KeyPairPem, Leaf, certs_from_pem};
use yurt_transport::{Client, ClientOptions};

/// The Secret, in the namespace of the hub's config maps.
const SECRET: &str = "yurt-coordinator-yurthub-certs";
const CERTIFICATE: &str = "node-lease-proxy-client.crt";
const KEY: &str = "node-lease-proxy-client.key";

/// Whether leases can be renewed for others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// `idle` (this node does not lead), `ready`, `unknown` or `noIdentity`.
    pub state: &'static str,
    /// What is wrong, and what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            state: "idle",
            why: String::new(),
        }
    }
}

/// The identity, as it stands.
pub(super) struct Proxy {
    secret: watch::Receiver<Option<Objects>>,
    /// What the clients were made of.
    made_of: Option<(KeyPairPem, u64)>,
    tls: Option<Arc<rustls::ClientConfig>>,
    clients: HashMap<String, Client>,
    readiness: Readiness,
}

impl Proxy {
    pub(super) fn follow(hub: &Arc<Hub>) -> Self {
        let path = format!("/api/v1/namespaces/{}/secrets", hub.config.namespace);
        let selector = format!("fieldSelector=metadata.name%3D{SECRET}");
        Self {
            secret: follow(hub, &path, &selector),
            made_of: None,
            tls: None,
            clients: HashMap::new(),
            readiness: Readiness::default(),
        }
    }

    /// Resolves when the Secret changes.
    pub(super) async fn changed(proxy: &mut Option<Self>) {
        if let Some(proxy) = proxy
            && proxy.secret.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Takes over what is new.
    pub(super) fn look(&mut self, hub: &Hub) -> Readiness {
        let read = {
            let secret = self.secret.borrow_and_update();
            pair_of(secret.as_ref(), &hub.config.namespace)
        };
        let epoch = hub.certificates.epoch();
        let readiness = match read {
            Err(readiness) => {
                (self.tls, self.made_of) = (None, None);
                self.clients.clear();
                readiness
            }
            Ok(pair) if self.is_made_of(&pair, epoch) => return self.readiness.clone(),
            Ok(pair) => {
                self.clients.clear();
                let tls = hub.certificates.cloud_as(&pair);
                self.made_of = Some((pair, epoch));
                match tls {
                    Ok(tls) => {
                        self.tls = tls;
                        Readiness {
                            state: "ready",
                            why: String::new(),
                        }
                    }
                    Err(error) => {
                        self.tls = None;
                        no_identity(format!("it cannot be used: {error}"), &hub.config.namespace)
                    }
                }
            }
        };
        if readiness != self.readiness {
            match readiness.state {
                "noIdentity" => tracing::warn!(
                    why = readiness.why,
                    "heartbeats of cut nodes cannot be passed on"
                ),
                state => tracing::info!(state, "passing on heartbeats of cut nodes"),
            }
            self.readiness.clone_from(&readiness);
        }
        readiness
    }

    fn is_made_of(&self, pair: &KeyPairPem, epoch: u64) -> bool {
        self.made_of.as_ref().is_some_and(|(made, of)| {
            made.cert == pair.cert && made.key == pair.key && *of == epoch
        })
    }

    /// A client of an API server that is up; `None` while there is no identity.
    pub(super) fn client(&mut self, hub: &Hub) -> Option<Client> {
        let authority = hub.upstreams.up_authority()?;
        let tls = self.tls.clone()?;
        let client = self
            .clients
            .entry(authority.to_owned())
            .or_insert_with(|| Client::new(authority, Some(tls), ClientOptions::default()));
        Some(client.clone())
    }
}

fn no_identity(what: String, namespace: &str) -> Readiness {
    Readiness {
        state: "noIdentity",
        why: format!("Secret {namespace}/{SECRET}: {what}"),
    }
}

fn pair_of(secret: Option<&Objects>, namespace: &str) -> Result<KeyPairPem, Readiness> {
    let Some(objects) = secret else {
        return Err(Readiness {
            state: "unknown",
            why: format!(
                "Secret {namespace}/{SECRET} is not known yet, or this node may not read it"
            ),
        });
    };
    let Some(secret) = objects.values().next() else {
        return Err(no_identity("there is none".into(), namespace));
    };
    let unusable = |what: String| no_identity(what, namespace);
    let value = secret
        .to_json_value()
        .map_err(|error| unusable(error.to_string()))?;
    let text = |key: &str| -> Result<String, Readiness> {
        let data = value.get("data").and_then(|data| data.get(key));
        let data = data.and_then(Value::as_str);
        let data = data.ok_or_else(|| unusable(format!("it has no {key}")))?;
        let bytes = STANDARD.decode(data).ok();
        bytes
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| unusable(format!("its {key} is no PEM")))
    };
    let pair = KeyPairPem {
        cert: text(CERTIFICATE)?,
        key: text(KEY)?,
    };
    let leaf = certs_from_pem(&pair.cert)
        .ok()
        .and_then(|certificates| Leaf::of(certificates.first()?).ok())
        .ok_or_else(|| unusable(format!("its {CERTIFICATE} is no certificate")))?;
    if leaf.not_after <= crate::offline::now() {
        return Err(unusable("its certificate has expired".into()));
    }
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_pki::{Ca, Profile};
    use yurt_wire::{Encoding, Object};

    fn secret(cert: &str, key: &str) -> Objects {
        let value = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET},
            "data": {CERTIFICATE: STANDARD.encode(cert), KEY: STANDARD.encode(key)}});
        let object = Object::from_json_value(&value, Encoding::Json).unwrap();
        Arc::new([("/s".into(), object)].into())
    }

    #[test]
    fn what_is_wrong_with_the_secret_is_said() {
        let ca = Ca::new("test", 1).unwrap();
        let profile = Profile {
            common_name: "openyurt:yurt-coordinator:node-lease-proxy-client".into(),
            client: true,
            days: 1,
            ..Profile::default()
        };
        let pair = ca.issue(&profile).unwrap();
        let read = pair_of(Some(&secret(&pair.cert, &pair.key)), "kube-system").unwrap();
        assert_eq!(read.cert, pair.cert);
        let why = |objects: Option<&Objects>| {
            let readiness = pair_of(objects, "kube-system").unwrap_err();
            format!("{}: {}", readiness.state, readiness.why)
        };
        assert!(why(None).starts_with("unknown: "));
        let none = Objects::default();
        assert_eq!(
            why(Some(&none)),
            "noIdentity: Secret kube-system/yurt-coordinator-yurthub-certs: there is none"
        );
        let broken = secret("nonsense", &pair.key);
        assert!(why(Some(&broken)).contains("is no certificate"));
    }
}
