//! Bootstrap tokens: `bootstrap.kubernetes.io/token` secrets of `kube-system`, with which new nodes introduce
//! themselves.

use super::User;
use crate::{
    meta,
    storage::{Key, Storage},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde_json::Value;

/// The type of the secrets.
pub(crate) const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Where they are.
pub(crate) const NAMESPACE: &str = "kube-system";
/// What their names begin with; the token's id follows.
const NAME_PREFIX: &str = "bootstrap-token-";
/// The group of everyone with a bootstrap token, and the prefix of others.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// What a token's secret says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootstrapToken {
    /// The public half, six characters.
    pub(crate) id: String,
    /// The secret half, sixteen characters.
    pub(crate) secret: String,
    /// When it ends, seconds since the epoch.
    pub(crate) expires: Option<i64>,
    /// Whether it signs the `cluster-info` config map.
    pub(crate) signs: bool,
    authenticates: bool,
    groups: Vec<String>,
}

/// Id and secret of a token in its text form, `abcdef.0123456789abcdef`.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// Whether a group may be given by a token.
fn is_extra_group(group: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b':' || b == b'-';
    group
        .strip_prefix("system:bootstrappers:")
        .is_some_and(|rest| {
            rest.len() <= 256
                && rest.bytes().all(allowed)
                && rest
                    .bytes()
                    .last()
                    .is_some_and(|b| b.is_ascii_alphanumeric())
        })
}

impl BootstrapToken {
    /// From a secret; `None` when it is not one, is going away, or contradicts itself.
    pub(crate) fn of(secret: &Value) -> Option<Self> {
        if secret["type"] != SECRET_TYPE || meta::is_deleting(secret) {
            return None;
        }
        let data = |key: &str| -> Option<String> {
            let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let id = data("token-id")?;
        let token = format!("{id}.{}", data("token-secret")?);
        let (_, secret_half) = split(&token)?;
        if meta::name(secret).strip_prefix(NAME_PREFIX) != Some(id.as_str()) {
            return None;
        }
        let expires = match data("expiration") {
            Some(text) if !text.is_empty() => Some(text.parse::<Timestamp>().ok()?.as_second()),
            _ => None,
        };
        let mut groups = vec![BOOTSTRAPPERS.to_owned()];
        for group in data("auth-extra-groups").unwrap_or_default().split(',') {
            let group = group.trim();
            match group {
                "" => {}
                group if is_extra_group(group) => groups.push(group.to_owned()),
                _ => return None,
            }
        }
        Some(Self {
            secret: secret_half.to_owned(),
            expires,
            signs: data("usage-bootstrap-signing").as_deref() == Some("true"),
            authenticates: data("usage-bootstrap-authentication").as_deref() == Some("true"),
            groups,
            id,
        })
    }

    /// Whether it has ended.
    pub(crate) fn is_expired(&self, now: i64) -> bool {
        self.expires.is_some_and(|end| now >= end)
    }
}

/// Who a bootstrap token speaks for, `None` when it is not one that is good now.
pub(super) fn user(storage: &Storage, token: &str, now: i64) -> Option<User> {
    let (id, secret) = split(token)?;
    let key = Key::new(NAMESPACE, &format!("{NAME_PREFIX}{id}"));
    let stored = storage.get(&"/secrets".into(), &key)?;
    let known = BootstrapToken::of(&stored.value())?;
    // Digests are compared, so that the time it takes says nothing about the secret.
    let sum = |text: &str| digest(&SHA256, text.as_bytes());
    let good = sum(secret).as_ref() == sum(&known.secret).as_ref();
    (good && known.authenticates && !known.is_expired(now)).then(|| User {
        name: format!("system:bootstrap:{id}"),
        groups: known.groups,
        ..User::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(data: &[(&str, &str)]) -> Value {
        let mut secret = json!({"type": SECRET_TYPE, "metadata": {"name": "bootstrap-token-abcdef"}, "data": {}});
        let given = [("token-id", "abcdef"), ("token-secret", "0123456789abcdef")];
        for (key, value) in given.iter().chain(data) {
            secret["data"][*key] = STANDARD.encode(value).into();
        }
        secret
    }

    #[test]
    fn a_secret_says_what_its_token_is_good_for() {
        let token = BootstrapToken::of(&secret(&[
            ("expiration", "2026-11-21T19:06:31Z"),
            ("usage-bootstrap-signing", "true"),
            (
                "auth-extra-groups",
                "system:bootstrappers:a,system:bootstrappers:b:c",
            ),
        ]))
        .expect("a token");
        assert!(token.signs && !token.authenticates);
        assert!(token.is_expired(1_795_287_991) && !token.is_expired(1_795_287_990));
        assert_eq!(
            token.groups,
            [
                BOOTSTRAPPERS,
                "system:bootstrappers:a",
                "system:bootstrappers:b:c"
            ]
        );
    }

    #[test]
    fn contradictions_make_no_token() {
        for bad in [
            [("token-id", "ghijkl")],
            [("token-secret", "short")],
            [("token-secret", "0123456789ABCDEF")],
            [("expiration", "soon")],
            [("auth-extra-groups", "system:masters")],
            [("auth-extra-groups", "system:bootstrappers:")],
        ] {
            assert_eq!(BootstrapToken::of(&secret(&bad)), None, "{bad:?}");
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert_eq!(BootstrapToken::of(&other), None);
    }

    #[test]
    fn tokens_have_one_form() {
        assert!(split("abcdef.0123456789abcdef").is_some());
        for bad in [
            "",
            "abcdef",
            "abcde.0123456789abcdef",
            "abcdef.0123456789abcde",
            "Abcdef.0123456789abcdef",
            "abcdef.0123456789abcdef.",
        ] {
            assert!(split(bad).is_none(), "{bad}");
        }
    }
}
