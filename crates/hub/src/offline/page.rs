//! Lists in pages. Pure.
//!
//! The continue token has the form of kube-apiserver's (base64url of `{"v":"meta.k8s.io/v1","rv":N,"start":"KEY\0"}`, KEY relative
//! to the listed prefix), so that a list begun with the cloud goes on here at the same revision, and the other way round.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use yurt_wire::Status;

#[derive(Debug, Serialize, Deserialize)]
struct Token {
    v: String,
    #[serde(default)]
    rv: i64,
    #[serde(default)]
    start: String,
}

const VERSION: &str = "meta.k8s.io/v1";

/// The token for going on after `last` (an index key, `NAMESPACE/NAME`) in a list of `namespace` at `revision`.
pub(crate) fn encode(namespace: &str, last: &str, revision: u64) -> String {
    let relative = relative(namespace, last);
    let token = Token {
        v: VERSION.into(),
        rv: i64::try_from(revision).unwrap_or(i64::MAX),
        start: format!("{relative}\0"),
    };
    let json = serde_json::to_vec(&token).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(json)
}

fn relative<'a>(namespace: &str, key: &'a str) -> &'a str {
    let (of, name) = key.split_once('/').unwrap_or(("", key));
    if of.is_empty() || of == namespace {
        name
    } else {
        key
    }
}

/// The place among `keys` (sorted) where a list of `namespace` at `revision` goes on. A token of another revision is expired: what
/// it showed before cannot be told from what changed since.
pub(crate) fn resume<K: AsRef<str>>(
    token: &str,
    namespace: &str,
    revision: u64,
    keys: &[K],
) -> Result<usize, Box<Status>> {
    let invalid = || Box::new(Status::bad_request("continue key is not valid"));
    let json = URL_SAFE_NO_PAD
        .decode(token.trim_end_matches('='))
        .map_err(|_| invalid())?;
    let token: Token = serde_json::from_slice(&json).map_err(|_| invalid())?;
    if token.v != VERSION || token.start.is_empty() {
        return Err(invalid());
    }
    if u64::try_from(token.rv).ok() != Some(revision) {
        return Err(Box::new(Status::expired(
            "The provided continue parameter is too old to display a consistent list result from the node's cache. You must \
             start a new list without the continue parameter.",
        )));
    }
    let start = token.start.trim_start_matches('/');
    Ok(keys.partition_point(|key| relative(namespace, key.as_ref()) < start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_of_the_cloud_is_understood() {
        // as kube-apiserver makes it for a list of one namespace
        let token = URL_SAFE_NO_PAD.encode(br#"{"v":"meta.k8s.io/v1","rv":7,"start":"b\u0000"}"#);
        let keys = ["n/a", "n/b", "n/c"];
        assert_eq!(resume(&token, "n", 7, &keys).ok(), Some(2));
        assert_eq!(
            resume(&token, "n", 8, &keys).map_err(|s| s.code()),
            Err(410)
        );
        assert_eq!(resume("%%", "n", 7, &keys).map_err(|s| s.code()), Err(400));
        assert_eq!(resume("e30", "n", 7, &keys).map_err(|s| s.code()), Err(400));
    }

    proptest! {
        #[test]
        fn pages_join_to_the_whole(mut names in prop::collection::btree_set("[a-c]{1,2}/[a-c.-]{1,3}", 0..20), limit in 1usize..5, one in any::<bool>()) {
            let namespace = if one { "a" } else { "" };
            if one {
                names.retain(|key| key.starts_with("a/"));
            }
            let keys: Vec<String> = names.into_iter().collect();
            let mut seen = Vec::new();
            let mut at = 0;
            while at < keys.len() {
                let end = (at + limit).min(keys.len());
                seen.extend_from_slice(&keys[at..end]);
                let token = encode(namespace, &keys[end - 1], 5);
                at = resume(&token, namespace, 5, &keys).map_err(|s| TestCaseError::fail(s.message))?;
            }
            prop_assert_eq!(seen, keys);
        }
    }
}
