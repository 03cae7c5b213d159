//! Who is asking: client certificates, static bearer tokens, service account tokens, or nobody.

pub mod tokens;

use http::HeaderMap;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};
use yurt_transport::Peer;
use yurt_wire::{Reason, Status};

/// The group of everyone who has shown who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everyone who has not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

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
            name: "system:anonymous".into(),
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

/// Whom the headers of a request ask to act as (`Impersonate-User` and friends); `None` when they do not ask. Whether the
/// caller may is for authorisation to say.
pub fn impersonated(headers: &HeaderMap) -> Result<Option<User>, Box<Status>> {
    let text = |value: &http::HeaderValue| value.to_str().ok().map(str::to_owned);
    let mut user = User::default();
    let mut asked = false;
    for (name, value) in headers {
        let Some(what) = name.as_str().strip_prefix("impersonate-") else {
            continue;
        };
        asked = true;
        let Some(value) = text(value) else {
            return Err(Box::new(Status::bad_request(format!("{name} is not text"))));
        };
        match what {
            "user" => user.name = value,
            "group" => user.groups.push(value),
            "uid" => user.uid = value,
            what => match what.strip_prefix("extra-") {
                Some(key) => user.extra.entry(key.to_owned()).or_default().push(value),
                None => {
                    return Err(Box::new(Status::bad_request(format!(
                        "unknown header {name}"
                    ))));
                }
            },
        }
    }
    if !asked {
        return Ok(None);
    }
    if user.name.is_empty() {
        return Err(Box::new(Status::internal_error(
            "requested groups, uid or extra without impersonating a user",
        )));
    }
    if user.name == "system:anonymous" {
        user.groups.push(UNAUTHENTICATED.into());
        return Ok(Some(user));
    }
    let account = user.name.strip_prefix("system:serviceaccount:");
    if let Some((namespace, _)) = account.and_then(|account| account.split_once(':'))
        && user.groups.is_empty()
    {
        user.groups = vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    Ok(Some(user.authenticated()))
}

/// The methods a server accepts.
#[derive(Debug)]
pub struct Authenticator {
    tokens: HashMap<String, User>,
    service_accounts: tokens::Issuer,
}

impl Authenticator {
    /// From static tokens and the issuer of service account tokens.
    pub fn new(tokens: impl IntoIterator<Item = (String, User)>, issuer: tokens::Issuer) -> Self {
        Self {
            tokens: tokens
                .into_iter()
                .map(|(token, user)| (token, user.authenticated()))
                .collect(),
            service_accounts: issuer,
        }
    }

    /// The issuer of service account tokens.
    pub fn issuer(&self) -> &tokens::Issuer {
        &self.service_accounts
    }

    /// Who a bearer token speaks for, `None` when it is not ours or no longer valid. `bound` says whether the
    /// objects a service account token is bound to still exist.
    pub fn token(
        &self,
        token: &str,
        now: i64,
        bound: impl Fn(&tokens::Claims) -> bool,
    ) -> Option<(User, Vec<String>)> {
        if let Some(user) = self.tokens.get(token) {
            return Some((user.clone(), Vec::new()));
        }
        let claims = self.service_accounts.verify(token, now).ok()?;
        bound(&claims).then(|| (claims.user().authenticated(), claims.audiences.clone()))
    }

    /// Who sent a request. A certificate wins over a token; wrong credentials are refused, none are anonymous.
    pub fn request(
        &self,
        peer: Option<&Peer>,
        headers: &HeaderMap,
        now: i64,
        bound: impl Fn(&tokens::Claims) -> bool,
    ) -> Result<User, Box<Status>> {
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        if let Some(identity) = certificate.and_then(|der| yurt_pki::identity_of(der).ok())
            && !identity.user.is_empty()
        {
            return Ok(User {
                name: identity.user,
                groups: identity.groups,
                ..User::default()
            }
            .authenticated());
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
                .token(token, now, bound)
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
        user.ok_or_else(|| Box::new(Status::new(Reason::Unauthorized, "Unauthorized")))
    }
}
