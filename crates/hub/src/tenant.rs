//! Isolation of tenants (section 12 of OpenYurt's hub): on a node of a tenant, service accounts of `kube-system` act as the `default`
//! account of the tenant's namespace. [`decide`] is pure; [`Tenant`] has the account's token.
//!
//! Only who is proven to be such an account gets the tenant's token: what a token says of itself is enough to keep it from the
//! cloud, never to be given another one.

use crate::{
    caller::Caller,
    follow::{Objects, follow},
    proxy::Hub,
    tokens::account_name,
};
use base64::Engine;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use serde_json::{Value, json};
use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, watch};
use yurt_wire::{Reason, Status};

/// Before the tenant's namespace, among the organizations of the hub's certificate.
const ORGANIZATION: &str = "openyurt:tenant:";
const SYSTEM: &str = "kube-system";
const DEFAULT: &str = "default";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const TOKEN_SECRETS: &str = "fieldSelector=type%3Dkubernetes.io%2Fservice-account-token";
/// Life of a token that is asked for, in seconds.
const LIFE: u64 = 3600;
/// A token is not used when it ends sooner.
const MARGIN: Duration = Duration::from_secs(300);
/// After a failure the cloud is not asked again for this long.
const PAUSE: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(10);
const MOST_BYTES: usize = 64 << 10;

/// The namespace that the first tenant organization names.
pub fn namespace_of(organizations: &[String]) -> Option<&str> {
    organizations
        .iter()
        .find_map(|organization| organization.strip_prefix(ORGANIZATION))
        .filter(|namespace| !namespace.is_empty())
}

/// What becomes of a request on a node of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes as it is.
    Keep,
    /// It goes with the tenant's token.
    Exchange,
    /// It does not go: its token says that it is one to be exchanged, and nobody proves it.
    Refuse,
}

/// Decides on a caller; `claimed` is the subject that an unproven token names.
pub fn decide(tenant: &str, caller: &Caller, claimed: Option<&str>) -> Decision {
    let system = |user: &str| user.starts_with(&account_name(SYSTEM, ""));
    match caller {
        _ if tenant == SYSTEM => Decision::Keep,
        Caller::User(user) if system(user) => Decision::Exchange,
        Caller::Bearer(_) if claimed.is_some_and(system) => Decision::Refuse,
        _ => Decision::Keep,
    }
}

/// The user that a token says it is of. Nobody has proven it: good only for what speaks against the token.
pub fn claimed_user(token: &str) -> Option<String> {
    let mut parts = token.split('.').skip(1);
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(parts.next()?.trim_end_matches('='))
        .ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    Some(claims.get("sub")?.as_str()?.to_owned())
}

/// The tenant of this node.
#[derive(Debug)]
pub struct Tenant {
    namespace: String,
    secrets: OnceLock<watch::Receiver<Option<Objects>>>,
    requested: Mutex<Requested>,
}

#[derive(Default)]
struct Requested {
    token: Option<(String, Instant)>,
    failed: Option<Instant>,
}

/// Tokens are in no log.
impl std::fmt::Debug for Requested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requested")
            .field("token", &self.token.is_some())
            .finish()
    }
}

impl Tenant {
    /// The tenant that the organizations of the hub's certificate name.
    pub fn of(organizations: &[String]) -> Option<Self> {
        Some(Self {
            namespace: namespace_of(organizations)?.to_owned(),
            secrets: OnceLock::new(),
            requested: Mutex::default(),
        })
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Begins to follow the secrets that may hold the token.
    pub fn start(&self, hub: &Arc<Hub>) {
        let path = format!("/api/v1/namespaces/{}/secrets", self.namespace);
        self.secrets
            .get_or_init(|| follow(hub, &path, TOKEN_SECRETS));
    }

    /// The token of the namespace's default account: that of its secret, or one that the cloud gives to the node. `403` when there
    /// is none.
    pub async fn token(&self, hub: &Arc<Hub>) -> Result<String, Box<Status>> {
        if let Some(token) = self.of_secret() {
            return Ok(token);
        }
        let mut requested = self.requested.lock().await;
        let now = Instant::now();
        if let Some((token, ends)) = &requested.token
            && now + MARGIN < *ends
        {
            return Ok(token.clone());
        }
        if requested.failed.is_none_or(|at| at.elapsed() >= PAUSE) {
            if let Some((token, life)) = self.request(hub).await {
                requested.token = Some((token.clone(), now + life));
                requested.failed = None;
                return Ok(token);
            }
            requested.failed = Some(Instant::now());
        }
        Err(Box::new(Status::new(
            Reason::Forbidden,
            format!(
                "service accounts of {SYSTEM} act as {} on this node of the tenant {:?}, and there is no token of it: neither a \
                 secret of type kubernetes.io/service-account-token for it is known here, nor does the cloud give the node one",
                account_name(&self.namespace, DEFAULT),
                self.namespace
            ),
        )))
    }

    fn of_secret(&self) -> Option<String> {
        let secrets = self.secrets.get()?.borrow().clone()?;
        secrets.values().find_map(|secret| {
            let secret = secret.to_json_value().ok()?;
            token_in(&secret)
        })
    }

    async fn request(&self, hub: &Arc<Hub>) -> Option<(String, Duration)> {
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "audiences": [], "expirationSeconds": LIFE },
        });
        let mut request = Request::new(Bytes::from(body.to_string()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!(
            "/api/v1/namespaces/{}/serviceaccounts/{DEFAULT}/token",
            self.namespace
        )
        .parse()
        .ok()?;
        for (name, value) in [
            (header::ACCEPT, "application/json"),
            (header::CONTENT_TYPE, "application/json"),
            (header::USER_AGENT, crate::USER_AGENT),
        ] {
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        let answer = async {
            let response = hub.own(request).await;
            if !response.status().is_success() {
                return None;
            }
            let body = yurt_transport::collect(response.into_body(), MOST_BYTES);
            serde_json::from_slice::<Value>(&body.await.ok()?).ok()
        };
        let answer = tokio::time::timeout(WAIT, answer).await.ok()??;
        let token = answer.pointer("/status/token")?.as_str()?;
        (!token.is_empty()).then(|| (token.to_owned(), Duration::from_secs(LIFE)))
    }
}

/// The token of a secret for the default account.
fn token_in(secret: &Value) -> Option<String> {
    let annotations = secret.pointer("/metadata/annotations")?;
    if annotations.get(ACCOUNT_NAME)?.as_str()? != DEFAULT {
        return None;
    }
    let token = secret.pointer("/data/token")?.as_str()?;
    let token = base64::engine::general_purpose::STANDARD
        .decode(token)
        .ok()?;
    String::from_utf8(token)
        .ok()
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tenant_counts() {
        let of = |organizations: &[&str]| {
            let organizations: Vec<String> =
                organizations.iter().map(|o| (*o).to_owned()).collect();
            namespace_of(&organizations).map(str::to_owned)
        };
        assert_eq!(of(&["openyurt:yurthub"]), None);
        assert_eq!(of(&["openyurt:tenant:"]), None);
        let two = of(&["x", "openyurt:tenant:a", "openyurt:tenant:b"]);
        assert_eq!(two.as_deref(), Some("a"));
    }

    #[test]
    fn system_accounts_are_exchanged_when_proven_and_kept_back_when_not() {
        let system = "system:serviceaccount:kube-system:coredns";
        let bearer = Caller::Bearer("ab".into());
        let user = |name: &str| Caller::User(name.into());
        for (tenant, caller, claimed, expected) in [
            ("a", user(system), None, Decision::Exchange),
            (
                "a",
                user("system:serviceaccount:a:web"),
                None,
                Decision::Keep,
            ),
            (
                "a",
                user("system:serviceaccount:kube-system2:x"),
                None,
                Decision::Keep,
            ),
            ("a", user("admin"), Some(system), Decision::Keep),
            ("a", bearer.clone(), None, Decision::Keep),
            (
                "a",
                bearer.clone(),
                Some("system:serviceaccount:a:web"),
                Decision::Keep,
            ),
            // Whoever says so must not get the tenant's token for it.
            ("a", bearer.clone(), Some(system), Decision::Refuse),
            ("a", Caller::Node, None, Decision::Keep),
            (SYSTEM, user(system), None, Decision::Keep),
            (SYSTEM, bearer, Some(system), Decision::Keep),
        ] {
            assert_eq!(
                decide(tenant, &caller, claimed),
                expected,
                "{caller:?} {claimed:?}"
            );
        }
    }

    #[test]
    fn what_tokens_say_of_themselves() {
        // {"sub":"system:serviceaccount:kube-system:a"}: without an end, as old tokens are.
        let old = "e30.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6a3ViZS1zeXN0ZW06YSJ9.x";
        assert_eq!(
            claimed_user(old).as_deref(),
            Some("system:serviceaccount:kube-system:a")
        );
        for other in ["", "abc", "a.b.c", "e30.e30.x", "a.eyJzdWIiOjV9.c"] {
            assert_eq!(claimed_user(other), None, "{other}");
        }
    }

    #[test]
    fn the_secret_of_the_default_account_has_the_token() {
        let secret = |account: &str, token: &str| json!({"metadata": {"annotations": {ACCOUNT_NAME: account}}, "data": {"token": token}});
        assert_eq!(token_in(&secret("default", "YWJj")).as_deref(), Some("abc"));
        assert_eq!(token_in(&secret("web", "YWJj")), None);
        assert_eq!(token_in(&secret("default", "")), None);
        assert_eq!(token_in(&secret("default", "*")), None);
        assert_eq!(token_in(&json!({"data": {"token": "YWJj"}})), None);
    }
}
