//! Users as the authentication API tells of them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What the name of a service account's user begins with.
const ACCOUNT: &str = "system:serviceaccount:";
/// Names the credential, not the user.
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";
/// Bytes of one user that are remembered.
const MAX_USER: usize = 16 << 10;

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User name.
    #[serde(rename = "username")]
    pub name: String,
    /// Unique identity, `""` when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// More that the method of authentication knows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The user name of a service account.
pub fn account_name(namespace: &str, name: &str) -> String {
    format!("{ACCOUNT}{namespace}:{name}")
}

/// The user that a service account is.
pub fn account_user(namespace: &str, name: &str, uid: &str) -> User {
    User {
        name: account_name(namespace, name),
        uid: uid.to_owned(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".into(),
        ],
        extra: BTreeMap::new(),
    }
}

impl User {
    /// From `status.user` of a TokenReview; `None` when it names nobody or is larger than is remembered.
    pub fn of_review(user: &Value) -> Option<Self> {
        let user: Self = serde_json::from_value(user.clone()).ok()?;
        let size = user.name.len()
            + user.groups.iter().map(String::len).sum::<usize>()
            + user
                .extra
                .iter()
                .map(|(key, values)| key.len() + values.iter().map(String::len).sum::<usize>())
                .sum::<usize>();
        (!user.name.is_empty() && size <= MAX_USER).then_some(user)
    }

    /// As `UserInfo`.
    pub fn to_json(&self) -> Value {
        json!(self)
    }

    /// Namespace and name, when the user is a service account.
    pub fn account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix(ACCOUNT)?.split_once(':')
    }

    /// Under what name the rights of the user are kept. A service account's groups follow from its name. Others get theirs
    /// with each token: what one with more groups (or another scope) may read, one with fewer must not be given.
    pub fn rights_key(&self) -> String {
        if self.account().is_some() {
            return self.name.clone();
        }
        let mut groups: Vec<&str> = self.groups.iter().map(String::as_str).collect();
        groups.sort_unstable();
        let mut digest = Sha256::new();
        let mut part = |text: &str| {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text.as_bytes());
        };
        groups.iter().for_each(|group| part(group));
        for (key, values) in self.extra.iter().filter(|(key, _)| *key != CREDENTIAL) {
            part(key);
            values.iter().for_each(|value| part(value));
        }
        format!("{}#{}", self.name, hex(&digest.finalize()[..8]))
    }
}

/// Bytes in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_kept_apart_where_groups_differ() {
        let user = |name: &str, groups: &[&str], credential: &str| User {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            extra: [(CREDENTIAL.to_owned(), vec![credential.to_owned()])].into(),
            ..User::default()
        };
        let admin = user("alice", &["admins", "all"], "1");
        assert_eq!(
            admin.rights_key(),
            user("alice", &["all", "admins"], "2").rights_key()
        );
        assert_ne!(
            admin.rights_key(),
            user("alice", &["all"], "1").rights_key()
        );
        assert_ne!(
            user("alice", &["ab", "c"], "1").rights_key(),
            user("alice", &["a", "bc"], "1").rights_key()
        );
        let scoped = User {
            extra: [("scopes".to_owned(), vec!["user:info".to_owned()])].into(),
            ..admin.clone()
        };
        assert_ne!(admin.rights_key(), scoped.rights_key());
        let account = account_user("a", "b", "u");
        assert_eq!(account.rights_key(), "system:serviceaccount:a:b");
        assert_eq!(account.account(), Some(("a", "b")));
    }

    #[test]
    fn a_review_tells_a_user() {
        let user = User::of_review(
            &json!({"username": "a", "groups": ["b"], "extra": {"c": ["d"]}, "new": 1}),
        );
        assert_eq!(user.unwrap().to_json()["extra"]["c"][0], "d");
        assert!(User::of_review(&json!({})).is_none());
        assert!(User::of_review(&json!({"username": ""})).is_none());
        assert!(
            User::of_review(&json!({"username": "a", "groups": ["g".repeat(MAX_USER)]})).is_none()
        );
    }
}
