//! `kubernetes.io/service-account-token` secrets: whoever creates one for a service account gets a token in it that
//! lasts until the secret or the account goes.
//!
//! In Kubernetes kube-controller-manager does this, with the server's key; here the server does.

use crate::{
    authn::tokens::{Issuer, LegacyClaims},
    lifecycle::own_target,
    meta,
    registry::{DeleteOptions, Registry, Reply},
    storage::{Key, Stored},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_wire::{Reason, Status, watch::EventType};

/// The type of the secrets.
const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
/// The annotations that name the account.
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Changes taken over at once.
const BATCH: usize = 256;
/// How long a failed write waits for the next try.
const RETRY: Duration = Duration::from_secs(5);

static SECRETS: LazyLock<Arc<str>> = LazyLock::new(|| "/secrets".into());
static ACCOUNTS: LazyLock<Arc<str>> = LazyLock::new(|| "/serviceaccounts".into());

/// What is to be done about a secret.
#[derive(Clone, Debug, PartialEq)]
enum Due {
    /// Nothing.
    Nothing,
    /// Its account is gone, or was made anew.
    Remove,
    /// It lacks something: the uid of the account is here.
    Fill(String),
}

/// Fills secrets in until `shutdown`. `root_ca` is the PEM that goes with a token.
pub(crate) async fn keep_filled(
    registry: Arc<Registry>,
    issuer: Issuer,
    root_ca: Option<String>,
    shutdown: CancellationToken,
) {
    let keeper = Keeper {
        registry,
        issuer,
        root_ca,
    };
    let storage = &keeper.registry.storage;
    let mut secrets = storage.partition(&SECRETS).subscribe();
    let mut accounts = storage.partition(&ACCOUNTS).subscribe();
    // `None` until everything was looked at once.
    let mut seen: Option<(u64, u64)> = None;
    loop {
        secrets.borrow_and_update();
        accounts.borrow_and_update();
        let failed = match keeper.pass(&mut seen).await {
            Ok(()) => false,
            Err(status) => {
                tracing::warn!(%status, "service account token secrets");
                seen = None;
                true
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = secrets.changed() => if outcome.is_err() { return },
            outcome = accounts.changed() => if outcome.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

struct Keeper {
    registry: Arc<Registry>,
    issuer: Issuer,
    root_ca: Option<String>,
}

impl Keeper {
    /// Looks at what changed since `seen`: secrets that are new or different, and those of accounts that are.
    async fn pass(&self, seen: &mut Option<(u64, u64)>) -> Reply<()> {
        let storage = &self.registry.storage;
        let Some((mut secrets_seen, mut accounts_seen)) = *seen else {
            return self.look_at_all(seen).await;
        };
        loop {
            let secrets = storage
                .partition(&SECRETS)
                .changes_after(secrets_seen, BATCH);
            let accounts = storage
                .partition(&ACCOUNTS)
                .changes_after(accounts_seen, BATCH);
            let (Ok(secrets), Ok(accounts)) = (secrets, accounts) else {
                // Too far behind.
                return self.look_at_all(seen).await;
            };
            if secrets.is_empty() && accounts.is_empty() {
                return Ok(());
            }
            for change in &secrets {
                if change.kind != EventType::Deleted {
                    self.look_at(&change.object).await?;
                }
                secrets_seen = change.revision;
            }
            for change in &accounts {
                if change.kind != EventType::Modified {
                    let (of_namespace, _) =
                        storage.list(&SECRETS, &change.object.key.namespace, None);
                    for secret in of_namespace {
                        self.look_at(&secret).await?;
                    }
                }
                accounts_seen = change.revision;
            }
            *seen = Some((secrets_seen, accounts_seen));
        }
    }

    async fn look_at_all(&self, seen: &mut Option<(u64, u64)>) -> Reply<()> {
        let storage = &self.registry.storage;
        let (_, accounts_seen) = storage.list(&ACCOUNTS, "", None);
        let (secrets, secrets_seen) = storage.list(&SECRETS, "", None);
        for secret in secrets {
            self.look_at(&secret).await?;
        }
        *seen = Some((secrets_seen, accounts_seen));
        Ok(())
    }

    async fn look_at(&self, secret: &Stored) -> Reply<()> {
        let value = secret.value();
        let account = account_of(&value).map(|name| Key::new(&secret.key.namespace, name));
        let account = account.and_then(|key| self.registry.storage.get(&ACCOUNTS, &key));
        let account = account.map(|account| account.value());
        let (namespace, name) = (&*secret.key.namespace, &*secret.key.name);
        let Some(mut target) = own_target(&self.registry, "", "v1", "secrets", namespace, name)
        else {
            return Ok(());
        };
        target.options.field_manager = "kube-controller-manager".into();
        let outcome = match due(&value, account.as_ref(), self.root_ca.is_some()) {
            Due::Nothing => return Ok(()),
            Due::Remove => {
                let options = DeleteOptions {
                    uid: Some(meta::uid(&value).to_owned()),
                    ..DeleteOptions::default()
                };
                self.registry.delete(&target, &options).await.map(drop)
            }
            Due::Fill(uid) => {
                let account = account_of(&value).unwrap_or_default();
                let claims = LegacyClaims::new(namespace, account, &uid, name);
                let token = self.issuer.sign_legacy(&claims);
                let token = token.map_err(|e| Box::new(Status::internal_error(e)))?;
                let change = |secret: &mut Value| {
                    fill(secret, namespace, &uid, &token, self.root_ca.as_deref());
                    Ok(())
                };
                self.registry.modify(&target, &change).await.map(drop)
            }
        };
        match outcome {
            Err(status) if matches!(status.reason, Reason::NotFound | Reason::Conflict) => Ok(()),
            outcome => outcome,
        }
    }
}

/// The account that a secret of our type is for.
fn account_of(secret: &Value) -> Option<&str> {
    (secret["type"] == SECRET_TYPE)
        .then(|| secret["metadata"]["annotations"][ACCOUNT].as_str())
        .flatten()
        .filter(|name| !name.is_empty())
}

fn due(secret: &Value, account: Option<&Value>, has_ca: bool) -> Due {
    if account_of(secret).is_none() || meta::is_deleting(secret) {
        return Due::Nothing;
    }
    let Some(account) = account else {
        return Due::Remove;
    };
    let uid = meta::uid(account);
    match secret["metadata"]["annotations"][ACCOUNT_UID].as_str() {
        Some(of) if !of.is_empty() && of != uid => return Due::Remove,
        Some(of) if of == uid => {}
        _ => return Due::Fill(uid.to_owned()),
    }
    let has = |key: &str| {
        let data = secret["data"][key].as_str();
        data.is_some_and(|data| !data.is_empty())
    };
    if has("token") && has("namespace") && (has("ca.crt") || !has_ca) {
        Due::Nothing
    } else {
        Due::Fill(uid.to_owned())
    }
}

/// Adds what is missing; a token that is there stays.
fn fill(secret: &mut Value, namespace: &str, uid: &str, token: &str, ca: Option<&str>) {
    secret["metadata"]["annotations"][ACCOUNT_UID] = uid.into();
    if !secret["data"].is_object() {
        secret["data"] = json!({});
    }
    let parts = [
        ("token", Some(token)),
        ("namespace", Some(namespace)),
        ("ca.crt", ca),
    ];
    for (key, text) in parts {
        let missing = secret["data"][key].as_str().is_none_or(str::is_empty);
        if let (true, Some(text)) = (missing, text) {
            secret["data"][key] = STANDARD.encode(text).into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_filled_once_and_goes_with_its_account() {
        let account = json!({"metadata": {"name": "robot", "uid": "u"}});
        let mut secret = json!({"type": SECRET_TYPE,
            "metadata": {"name": "s", "annotations": {ACCOUNT: "robot"}}});
        assert_eq!(due(&secret, Some(&account), true), Due::Fill("u".into()));
        fill(&mut secret, "ns", "u", "token", Some("ca"));
        assert_eq!(due(&secret, Some(&account), true), Due::Nothing);
        let filled = secret.clone();
        fill(&mut secret, "ns", "u", "another", Some("ca"));
        assert_eq!(secret, filled);
        assert_eq!(due(&secret, None, true), Due::Remove);
        let anew = json!({"metadata": {"name": "robot", "uid": "v"}});
        assert_eq!(due(&secret, Some(&anew), true), Due::Remove);
        secret["type"] = "Opaque".into();
        assert_eq!(due(&secret, None, true), Due::Nothing);
    }
}
