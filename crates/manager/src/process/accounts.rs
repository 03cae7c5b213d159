//! The identities of controllers: a service account each, by tokens that are renewed while they are used.

use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_api::names::objects::CONTROLLER_ACCOUNT_PREFIX;
use yurt_controller::{
    access::Clients,
    kube::{Kube, KubeError, Token},
};

/// Seconds that a token is asked for; the server may give more or less.
const LIFETIME: u64 = 3600;
/// The part of its life after which a token is renewed: 70 to 80 %, so that not all are renewed at once.
const RENEWED_AT: (f64, f64) = (0.7, 0.8);
/// The shortest life that is believed, and the longest.
const BELIEVED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
/// The first pause after a failure, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A token as it was granted.
#[derive(Debug, PartialEq, Eq)]
struct Grant {
    token: String,
    life: Duration,
}

impl Grant {
    /// Reads an answered `TokenRequest`. How long it lives is taken from what the server says it granted, so that a wrong clock here
    /// does not matter.
    fn read(answer: &Value, now: Timestamp) -> Option<Self> {
        let token = answer["status"]["token"].as_str()?.to_owned();
        let granted = answer["spec"]["expirationSeconds"].as_u64();
        let life = match granted {
            Some(seconds) => Duration::from_secs(seconds),
            None => {
                let end: Timestamp = answer["status"]["expirationTimestamp"]
                    .as_str()?
                    .parse()
                    .ok()?;
                end.duration_since(now).try_into().unwrap_or_default()
            }
        };
        Some(Self {
            token,
            life: life.clamp(BELIEVED.0, BELIEVED.1),
        })
    }

    /// When to renew it; `chance` is between 0 and 1.
    fn renew_after(&self, chance: f64) -> Duration {
        let (from, to) = RENEWED_AT;
        self.life
            .mul_f64(from + (to - from) * chance.clamp(0.0, 1.0))
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum GrantError {
    #[error(transparent)]
    Kube(#[from] KubeError),
    #[error("the server's answer holds no token")]
    Empty,
}

/// The service accounts of controllers.
#[derive(Debug)]
pub(super) struct Accounts {
    clients: Clients,
    namespace: String,
    /// Those without a token, and why; `None` until the first try has failed.
    troubled: Mutex<Troubles>,
}

/// Controllers without an identity, and why; `None`: it has only been asked for.
pub(super) type Troubles = BTreeMap<&'static str, Option<String>>;

impl Accounts {
    /// Accounts in the manager's namespace.
    pub(super) fn new(clients: Clients, namespace: &str) -> Self {
        Self {
            clients,
            namespace: namespace.into(),
            troubled: Mutex::default(),
        }
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A controller is about to ask for its identity.
    pub(super) fn expect(&self, controller: &'static str) {
        self.troubles().insert(controller, None);
    }

    /// Controllers without an identity.
    pub(super) fn troubled(&self) -> Troubles {
        self.troubles().clone()
    }

    /// The name of a controller's account.
    fn name(controller: &str) -> String {
        format!("{CONTROLLER_ACCOUNT_PREFIX}{controller}")
    }

    /// The identity of a controller, however long it takes to have it; it is renewed until `shutdown`.
    pub(super) async fn identity(
        self: &Arc<Self>,
        controller: &'static str,
        shutdown: &CancellationToken,
    ) -> Kube {
        let grant = self.persist(controller).await;
        let token = Token::new(&grant.token);
        let (accounts, kept) = (self.clone(), token.clone());
        let keep = async move { accounts.keep(controller, kept, grant).await };
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(keep));
        self.clients.bare.with_token(token)
    }

    async fn keep(&self, controller: &'static str, token: Token, mut grant: Grant) {
        loop {
            let due = tokio::time::sleep(grant.renew_after(fastrand::f64()));
            tokio::select! {
                () = due => {}
                () = token.refused() => {
                    tracing::warn!(controller, "its token is refused; another is asked for");
                    // The account may be about to be made again.
                    tokio::time::sleep(PAUSES.0).await;
                }
            }
            grant = self.persist(controller).await;
            token.renew(&grant.token);
        }
    }

    /// Asks until there is a token.
    async fn persist(&self, controller: &'static str) -> Grant {
        let mut pause = PAUSES.0;
        loop {
            let error = match self.grant(controller).await {
                Ok(grant) => {
                    self.troubles().remove(controller);
                    return grant;
                }
                Err(error) => error.to_string(),
            };
            let before = self.troubles().insert(controller, Some(error.clone()));
            if before.flatten().as_ref() != Some(&error) {
                let account = Self::name(controller);
                tracing::error!(controller, account, error, "no token; trying again");
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Asks for a token; makes the account when there is none.
    async fn grant(&self, controller: &str) -> Result<Grant, GrantError> {
        let name = Self::name(controller);
        let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", self.namespace);
        let path = format!("{accounts}/{name}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": LIFETIME}});
        let base = &self.clients.base;
        let answer = match base.create(&path, &request).await {
            Err(error) if error.is_not_found() => {
                let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                    "metadata": {"name": name, "namespace": self.namespace}});
                base.ensure(&accounts, &account).await?;
                base.create(&path, &request).await?
            }
            answer => answer?,
        };
        Grant::read(&answer, Timestamp::now()).ok_or(GrantError::Empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_grant_lives_as_long_as_the_server_says() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let read = |spec: Value, end: &str| {
            let answer =
                json!({"spec": spec, "status": {"token": "t", "expirationTimestamp": end}});
            Grant::read(&answer, now).map(|grant| grant.life.as_secs())
        };
        let hour = "2026-01-01T01:00:00Z";
        assert_eq!(read(json!({"expirationSeconds": 600}), hour), Some(600));
        assert_eq!(read(json!({}), hour), Some(3600));
        assert_eq!(read(json!({}), "2025-01-01T00:00:00Z"), Some(60));
        assert_eq!(
            read(json!({"expirationSeconds": u64::MAX}), hour),
            Some(24 * 3600)
        );
        assert_eq!(read(json!({}), "soon"), None);
        assert_eq!(Grant::read(&json!({"status": {}}), now), None);
    }

    proptest! {
        #[test]
        fn a_token_is_renewed_before_it_ends(seconds in 60u64..86400, chance in -1.0f64..2.0) {
            let grant = Grant { token: String::new(), life: Duration::from_secs(seconds) };
            let after = grant.renew_after(chance);
            prop_assert!(after >= grant.life.mul_f64(0.699) && after <= grant.life.mul_f64(0.801));
        }
    }
}
