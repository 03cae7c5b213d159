//! `cluster-info` in `kube-public`: where the cluster is and whom to trust, readable by anyone, signed with every
//! bootstrap token that may, so that a new node that holds a token can believe it (`kubeadm join`).
//!
//! In Kubernetes kubeadm creates it, and the controllers bootstrap-signer and token-cleaner keep it; here the server
//! does, so that it is whole without any.

use crate::{
    BuiltinControllers,
    authn::bootstrap::{BootstrapToken, NAMESPACE, SECRET_TYPE},
    lifecycle::own_target,
    meta,
    registry::{DeleteOptions, Registry, Reply},
    storage::Key,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::hmac;
use serde_json::{Map, Value, json};
use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_wire::Reason;

const PUBLIC: &str = "kube-public";
const NAME: &str = "cluster-info";
/// The key of the kubeconfig in the config map.
const KUBECONFIG: &str = "kubeconfig";
/// The keys of signatures; the token's id follows.
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";
/// The role by which anyone may read it, with the name kubeadm gives it.
const READER: &str = "kubeadm:bootstrap-signer-clusterinfo";
const RBAC: &str = "rbac.authorization.k8s.io";

/// How often expired tokens are looked for when nothing changes.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

static SECRETS: LazyLock<Arc<str>> = LazyLock::new(|| "/secrets".into());
static CONFIG_MAPS: LazyLock<Arc<str>> = LazyLock::new(|| "/configmaps".into());

/// Creates the config map and the right to read it, unless they are there.
pub(crate) async fn publish(registry: &Registry, address: SocketAddr, ca: &str) -> Reply<()> {
    let kubeconfig = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: https://{address}\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n",
        STANDARD.encode(ca)
    );
    let info = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": PUBLIC}, "data": {KUBECONFIG: kubeconfig}});
    let role = json!({"apiVersion": format!("{RBAC}/v1"), "kind": "Role",
        "metadata": {"name": READER, "namespace": PUBLIC},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get"]}]});
    let binding = json!({"apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding",
        "metadata": {"name": READER, "namespace": PUBLIC},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": READER},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": "system:anonymous"}]});
    for (group, plural, object) in [
        ("", "configmaps", info),
        (RBAC, "roles", role),
        (RBAC, "rolebindings", binding),
    ] {
        let name = meta::name(&object).to_owned();
        let Some(target) = own_target(registry, group, "v1", plural, PUBLIC, &name) else {
            continue;
        };
        let key = Key::new(PUBLIC, &name);
        let stored = registry.storage.get(&target.resource.storage, &key);
        let outcome = match stored {
            None => registry.create(&target, object, None).await.map(drop),
            // The server may have moved.
            Some(stored) if plural == "configmaps" => {
                let mut live = stored.value();
                if live["data"][KUBECONFIG] == object["data"][KUBECONFIG] {
                    continue;
                }
                live["data"][KUBECONFIG] = object["data"][KUBECONFIG].clone();
                registry.update(&target, live, None).await.map(drop)
            }
            Some(_) => Ok(()),
        };
        match outcome {
            Err(status) if status.reason != Reason::AlreadyExists => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

/// Signs the kubeconfig with the tokens there are, and removes tokens that have expired, until `shutdown`.
pub(crate) async fn keep_signed(
    registry: Arc<Registry>,
    controllers: BuiltinControllers,
    shutdown: CancellationToken,
) {
    if !controllers.bootstrap_signer && !controllers.token_cleaner {
        return;
    }
    let mut secrets = registry.storage.partition(&SECRETS).subscribe();
    let mut config_maps = registry.storage.partition(&CONFIG_MAPS).subscribe();
    loop {
        secrets.borrow_and_update();
        config_maps.borrow_and_update();
        if let Err(status) = pass(&registry, controllers, meta::now_seconds()).await {
            tracing::warn!(%status, "the signatures of {PUBLIC}/{NAME} are out of date");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = secrets.changed() => if outcome.is_err() { return },
            outcome = config_maps.changed() => if outcome.is_err() { return },
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// One look at the tokens.
async fn pass(registry: &Registry, controllers: BuiltinControllers, now: i64) -> Reply<()> {
    let (secrets, _) = registry.storage.list(&SECRETS, NAMESPACE, None);
    let mut tokens = Vec::new();
    for secret in secrets {
        // Most secrets are something else: look before reading.
        if !contains(secret.json(), SECRET_TYPE.as_bytes()) {
            continue;
        }
        let Some(token) = BootstrapToken::of(&secret.value()) else {
            continue;
        };
        if token.is_expired(now) {
            if controllers.token_cleaner {
                remove(registry, &secret.key.name).await?;
            }
        } else if token.signs {
            tokens.push(token);
        }
    }
    if !controllers.bootstrap_signer {
        return Ok(());
    }
    let key = Key::new(PUBLIC, NAME);
    let Some(info) = registry.storage.get(&CONFIG_MAPS, &key) else {
        return Ok(());
    };
    if signed(&info.value(), &tokens).is_none() {
        return Ok(());
    }
    let Some(mut target) = own_target(registry, "", "v1", "configmaps", PUBLIC, NAME) else {
        return Ok(());
    };
    target.options.field_manager = "bootstrap-signer".into();
    let change = |info: &mut Value| {
        if let Some(data) = signed(info, &tokens) {
            info["data"] = data;
        }
        Ok(())
    };
    match registry.modify(&target, &change).await {
        Err(status) if status.reason != Reason::NotFound => Err(status),
        _ => Ok(()),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

async fn remove(registry: &Registry, name: &str) -> Reply<()> {
    let Some(target) = own_target(registry, "", "v1", "secrets", NAMESPACE, name) else {
        return Ok(());
    };
    match registry.delete(&target, &DeleteOptions::default()).await {
        Err(status) if status.reason != Reason::NotFound => Err(status),
        _ => Ok(()),
    }
}

/// The data of the config map with the signatures it should have; `None` when it has them.
fn signed(info: &Value, tokens: &[BootstrapToken]) -> Option<Value> {
    let data = info["data"].as_object()?;
    let kubeconfig = data.get(KUBECONFIG)?.as_str()?;
    let mut wanted: Map<String, Value> = data
        .iter()
        .filter(|(key, _)| !key.starts_with(SIGNATURE_PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for token in tokens {
        let signature = detached_signature(kubeconfig, &token.id, &token.secret);
        wanted.insert(format!("{SIGNATURE_PREFIX}{}", token.id), signature.into());
    }
    (wanted != *data).then(|| wanted.into())
}

/// A JWS (HS256) without its payload.
fn detached_signature(payload: &str, id: &str, secret: &str) -> String {
    let header = format!(r#"{{"alg":"HS256","kid":"{id}"}}"#);
    let header = URL_SAFE_NO_PAD.encode(header);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: &str) -> BootstrapToken {
        let data = |text: &str| STANDARD.encode(text);
        let secret = json!({"type": SECRET_TYPE, "metadata": {"name": format!("bootstrap-token-{id}")},
            "data": {"token-id": data(id), "token-secret": data("0123456789abcdef")}});
        BootstrapToken::of(&secret).expect("a token")
    }

    /// Computed with another implementation (Python's hmac).
    #[test]
    fn the_signature_is_a_detached_jws() {
        assert_eq!(
            detached_signature("hello", "abcdef", "0123456789abcdef"),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..MxsnbCjBaYzcbNIFa06F-wuF9LX26rhMlrL4zA1511s"
        );
    }

    #[test]
    fn signatures_follow_the_tokens() {
        let mut info =
            json!({"data": {"kubeconfig": "x", "jws-kubeconfig-gone00": "y", "other": "z"}});
        info["data"] = signed(&info, &[token("abcdef")]).expect("a change");
        let keys: Vec<&String> = info["data"].as_object().expect("data").keys().collect();
        assert_eq!(keys, ["jws-kubeconfig-abcdef", "kubeconfig", "other"]);
        assert_eq!(signed(&info, &[token("abcdef")]), None);
        info["data"]["kubeconfig"] = "changed".into();
        assert!(signed(&info, &[token("abcdef")]).is_some());
        assert_eq!(signed(&json!({}), &[token("abcdef")]), None);
    }
}
