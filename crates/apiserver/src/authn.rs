//! Who is asking: client certificates, static bearer tokens, service account tokens, or nobody.

mod accounts;
pub(crate) mod bootstrap;
pub mod tokens;

use crate::storage::Storage;
use bytes::Bytes;
use http::HeaderMap;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Mutex, PoisonError},
};
use yurt_transport::Peer;
use yurt_wire::{Status, request::percent_decode};

/// The group of everyone who has shown who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everyone who has not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// The group of kubelets.
pub const NODES: &str = "system:nodes";
/// The name of somebody without credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// What a node's user name begins with.
const NODE_PREFIX: &str = "system:node:";

/// Who is asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User name.
    pub name: String,
    /// Unique identity, `""` when the method gives none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// More that the method knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user with groups; `system:authenticated` is added.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..Self::default()
        }
        .authenticated()
    }
    /// Somebody without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.into(),
            groups: vec![UNAUTHENTICATED.into()],
            ..Self::default()
        }
    }
    /// The server itself.
    pub fn server() -> Self {
        Self::new("system:apiserver", &[MASTERS])
    }
    /// Whether this is nobody in particular.
    pub fn is_anonymous(&self) -> bool {
        self.in_group(UNAUTHENTICATED)
    }
    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
    /// Whether this is a kubelet, by name and group; [`User::node`] says which.
    pub fn is_node(&self) -> bool {
        self.name.starts_with(NODE_PREFIX) && self.in_group(NODES)
    }
    /// The node a kubelet speaks for.
    pub fn node(&self) -> Option<&str> {
        let node = self.name.strip_prefix(NODE_PREFIX)?;
        (!node.is_empty() && self.in_group(NODES)).then_some(node)
    }
    fn authenticated(mut self) -> Self {
        if !self.in_group(AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.into());
        }
        self
    }
    /// As the `UserInfo` of the authentication API.
    pub fn to_json(&self) -> serde_json::Value {
        let mut info = serde_json::json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.clone().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = serde_json::json!(self.extra);
        }
        info
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Whom a request asks to act as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonation {
    /// What the headers name; each part needs the right to lend it.
    pub asked: User,
    /// With the groups that come with the name.
    pub user: User,
}

/// Whom the headers of a request ask to act as (`Impersonate-User` and friends); `None` when they do not ask. Whether the
/// caller may is for authorisation to say.
pub fn impersonated(headers: &HeaderMap) -> Result<Option<Impersonation>, Box<Status>> {
    let text = |value: &http::HeaderValue| value.to_str().ok().map(str::to_owned);
    let mut asked = User::default();
    let mut asks = false;
    for (name, value) in headers {
        let Some(what) = name.as_str().strip_prefix("impersonate-") else {
            continue;
        };
        asks = true;
        let Some(value) = text(value) else {
            return Err(Box::new(Status::bad_request(format!("{name} is not text"))));
        };
        match what {
            "user" => asked.name = value,
            "group" => asked.groups.push(value),
            "uid" => asked.uid = value,
            what => match what.strip_prefix("extra-") {
                // Keys are percent-encoded where a header's name cannot hold them.
                Some(key) => {
                    let key = percent_decode(key, false).unwrap_or_else(|| key.to_owned());
                    asked.extra.entry(key).or_default().push(value);
                }
                None => {
                    return Err(Box::new(Status::bad_request(format!(
                        "unknown header {name}"
                    ))));
                }
            },
        }
    }
    if !asks {
        return Ok(None);
    }
    if asked.name.is_empty() {
        return Err(Box::new(Status::internal_error(
            "requested groups, uid or extra without impersonating a user",
        )));
    }
    let mut user = asked.clone();
    let account = user.name.strip_prefix("system:serviceaccount:");
    if let Some((namespace, _)) = account.and_then(|account| account.split_once(':'))
        && user.groups.is_empty()
    {
        user.groups = vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    if user.name == ANONYMOUS {
        if !user.in_group(UNAUTHENTICATED) {
            user.groups.push(UNAUTHENTICATED.into());
        }
    } else if !user.in_group(UNAUTHENTICATED) {
        user = user.authenticated();
    }
    Ok(Some(Impersonation { asked, user }))
}

/// The methods a server accepts.
#[derive(Debug)]
pub struct Authenticator {
    tokens: HashMap<String, User>,
    service_accounts: tokens::Issuer,
    /// Certificates read before: a connection sends many requests.
    certificates: Mutex<HashMap<Bytes, Certified>>,
}

/// What a verified certificate says.
#[derive(Clone, Debug)]
struct Certified {
    user: User,
    /// Seconds since the epoch.
    not_after: i64,
}

/// Certificates remembered at most; beyond it, reading begins anew.
const MAX_CERTIFICATES: usize = 4096;

impl Authenticator {
    /// From static tokens and the issuer of service account tokens.
    pub fn new(tokens: impl IntoIterator<Item = (String, User)>, issuer: tokens::Issuer) -> Self {
        Self {
            tokens: tokens
                .into_iter()
                .map(|(token, user)| (token, user.authenticated()))
                .collect(),
            service_accounts: issuer,
            certificates: Mutex::default(),
        }
    }

    /// The issuer of service account tokens.
    pub fn issuer(&self) -> &tokens::Issuer {
        &self.service_accounts
    }

    /// Who a bearer token speaks for with the audiences it is meant for (none: any), `None` when it is not ours or no
    /// longer good.
    pub fn token(&self, storage: &Storage, token: &str, now: i64) -> Option<(User, Vec<String>)> {
        if let Some(user) = self.tokens.get(token) {
            return Some((user.clone(), Vec::new()));
        }
        if let Some(user) = bootstrap::user(storage, token, now) {
            return Some((user.authenticated(), Vec::new()));
        }
        let issuer = &self.service_accounts;
        if let Ok(claims) = issuer.verify(token, now) {
            return accounts::still_bound(storage, &claims)
                .then(|| (claims.user().authenticated(), claims.audiences.clone()));
        }
        let claims = issuer.verify_legacy(token).ok()?;
        accounts::still_kept(storage, &claims, token).then(|| {
            (
                claims.user().authenticated(),
                vec![issuer.audience().to_owned()],
            )
        })
    }

    /// Who a certificate is for; `None` when it names nobody.
    fn certified(&self, der: &Bytes) -> Option<Certified> {
        let lock = || {
            self.certificates
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(known) = lock().get(der) {
            return Some(known.clone());
        }
        let identity = yurt_pki::identity_of(der).ok()?;
        let not_after = yurt_pki::not_after(der).ok()?;
        if identity.user.is_empty() {
            return None;
        }
        let user = User {
            name: identity.user,
            groups: identity.groups,
            ..User::default()
        };
        let certified = Certified {
            user: user.authenticated(),
            not_after,
        };
        let mut known = lock();
        if known.len() >= MAX_CERTIFICATES {
            known.clear();
        }
        known.insert(der.clone(), certified.clone());
        Some(certified)
    }

    /// Who sent a request. A certificate wins over a token; wrong credentials are refused, none are anonymous.
    pub fn request(
        &self,
        peer: Option<&Peer>,
        headers: &HeaderMap,
        now: i64,
        storage: &Storage,
    ) -> Result<User, Box<Status>> {
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        if let Some(certified) = certificate.and_then(|der| self.certified(der)) {
            // A connection may be older than the end of its certificate.
            if now > certified.not_after {
                return Err(Box::new(Status::unauthorized()));
            }
            return Ok(certified.user);
        }
        let Some(header) = headers.get(http::header::AUTHORIZATION) else {
            return Ok(User::anonymous());
        };
        let token = header
            .to_str()
            .ok()
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let user = match token {
            Some(token) => self
                .token(storage, token, now)
                .filter(|(_, audiences)| {
                    audiences.is_empty()
                        || audiences
                            .iter()
                            .any(|a| a == self.service_accounts.audience())
                })
                .map(|(user, _)| user),
            // Schemes we do not know are no credentials, as for kube-apiserver.
            None => return Ok(User::anonymous()),
        };
        user.ok_or_else(|| Box::new(Status::unauthorized()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_pki::{Ca, Profile, certs_from_pem};

    fn authenticator() -> Authenticator {
        let key = tokens::Issuer::generate_key().expect("a key");
        let issuer = tokens::Issuer::new("https://here", &key).expect("an issuer");
        Authenticator::new([("secret".into(), User::new("static", &[]))], issuer)
    }

    fn empty() -> Storage {
        Storage::memory(crate::storage::WindowLimits::default())
    }

    fn peer(common_name: &str, organizations: &[&str]) -> Peer {
        let ca = Ca::new("ca", 2).expect("a CA");
        let pem = ca
            .issue(&Profile {
                common_name: common_name.into(),
                organizations: organizations.iter().map(|o| (*o).to_owned()).collect(),
                client: true,
                days: 1,
                ..Profile::default()
            })
            .expect("a certificate");
        let der = certs_from_pem(&pem.cert).expect("PEM").remove(0);
        Peer {
            addr: ([127, 0, 0, 1], 1).into(),
            local: ([127, 0, 0, 1], 2).into(),
            certificate: Some(Bytes::copy_from_slice(&der)),
            tls: true,
            process: None,
            findings: Default::default(),
        }
    }

    fn bearer(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {token}").parse().expect("a header");
        headers.insert(http::header::AUTHORIZATION, value);
        headers
    }

    #[test]
    fn a_certificate_names_its_bearer_until_it_ends() {
        let authenticator = authenticator();
        let peer = peer("system:node:a", &["system:nodes", "edge"]);
        let now = jiff::Timestamp::now().as_second();
        let ask = |now| authenticator.request(Some(&peer), &bearer("secret"), now, &empty());
        for _ in 0..2 {
            let user = ask(now).expect("a user");
            assert_eq!(user.name, "system:node:a");
            assert_eq!(user.groups, ["system:nodes", "edge", AUTHENTICATED]);
        }
        assert!(ask(now + 3 * 86_400).is_err(), "the connection outlived it");
    }

    #[test]
    fn wrong_credentials_are_refused_and_none_are_anonymous() {
        let authenticator = authenticator();
        let ask = |headers: &HeaderMap| {
            authenticator
                .request(None, headers, 1000, &empty())
                .map(|user| user.name)
        };
        assert_eq!(ask(&bearer("secret")).ok().as_deref(), Some("static"));
        assert_eq!(
            ask(&HeaderMap::new()).ok().as_deref(),
            Some("system:anonymous")
        );
        assert!(ask(&bearer("wrong")).is_err());
        assert!(ask(&bearer("")).is_err());
    }

    #[test]
    fn impersonation_needs_a_user() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().expect("a header"));
            }
            headers
        };
        assert_eq!(impersonated(&headers(&[])).ok(), Some(None));
        assert!(impersonated(&headers(&[("impersonate-group", "g")])).is_err());
        assert!(
            impersonated(&headers(&[
                ("impersonate-user", "u"),
                ("impersonate-x", "y")
            ]))
            .is_err()
        );
        let other = impersonated(&headers(&[
            ("impersonate-user", "system:serviceaccount:ns:sa"),
            ("impersonate-extra-example.com%2fscope", "a"),
            ("impersonate-extra-example.com%2fscope", "b"),
        ]))
        .ok()
        .flatten()
        .expect("a user");
        assert!(other.asked.groups.is_empty(), "they come with the name");
        assert!(other.user.in_group("system:serviceaccounts:ns"));
        assert_eq!(other.user.extra["example.com/scope"], ["a", "b"]);
    }
}
