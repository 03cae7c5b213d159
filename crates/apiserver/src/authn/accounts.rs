//! Service account tokens are good while what they are bound to is there.

use super::tokens::{Claims, LegacyClaims, Reference};
use crate::{
    meta,
    storage::{Key, Storage},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

fn object(storage: &Storage, partition: &str, namespace: &str, name: &str) -> Option<Value> {
    let stored = storage.get(&partition.into(), &Key::new(namespace, name))?;
    Some(stored.value())
}

fn exists(storage: &Storage, partition: &str, namespace: &str, reference: &Reference) -> bool {
    object(storage, partition, namespace, &reference.name)
        .is_some_and(|object| reference.uid.is_empty() || reference.uid == meta::uid(&object))
}

/// Whether what a token is bound to still exists.
pub(super) fn still_bound(storage: &Storage, claims: &Claims) -> bool {
    let bound = &claims.kubernetes;
    let namespace = &bound.namespace;
    let there = |partition: &str, namespace: &str, reference: &Option<Reference>| {
        let is = |reference| exists(storage, partition, namespace, reference);
        reference.as_ref().is_none_or(is)
    };
    exists(storage, "/serviceaccounts", namespace, &bound.serviceaccount)
        && there("/pods", namespace, &bound.pod)
        && there("/secrets", namespace, &bound.secret)
        // A pod's token names its node for information only.
        && (bound.pod.is_some() || there("/nodes", "", &bound.node))
}

/// Whether the secret that a token was put into still holds it, and its service account is there.
pub(super) fn still_kept(storage: &Storage, claims: &LegacyClaims, token: &str) -> bool {
    let account = Reference {
        name: claims.account.clone(),
        uid: claims.uid.clone(),
    };
    let kept =
        object(storage, "/secrets", &claims.namespace, &claims.secret).is_some_and(|secret| {
            let data = secret["data"]["token"].as_str().unwrap_or_default();
            !meta::is_deleting(&secret)
                && STANDARD
                    .decode(data)
                    .is_ok_and(|kept| kept == token.as_bytes())
        });
    kept && exists(storage, "/serviceaccounts", &claims.namespace, &account)
}
