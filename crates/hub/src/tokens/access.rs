//! Answers to SubjectAccessReviews, remembered by what was asked. Pure but for the shelf.

use super::{Tokens, user::hex};
use crate::cache::Shelf;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// What the keys of answers begin with on the shelf of reviews.
const ACCESS: &str = "a/";
/// Names the credential, not the user: another token of the same user asks the same.
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";
/// Longest question that is remembered, in bytes.
const MAX_QUESTION: usize = 64 << 10;

/// The question apart from how it is written: members in order, nothing empty, groups sorted, no credential.
fn canonical(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(extra) = spec.get_mut("extra").and_then(Value::as_object_mut) {
        extra.retain(|key, _| key != CREDENTIAL);
    }
    if let Some(groups) = spec.get_mut("groups").and_then(Value::as_array_mut) {
        groups.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        groups.dedup();
    }
    bare(&spec).unwrap_or_default()
}

fn bare(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(list) if list.is_empty() => None,
        Value::Object(map) => {
            let mut members: Vec<_> = map
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), bare(value)?)))
                .collect();
            members.sort_by(|(a, _), (b, _)| a.cmp(b));
            (!members.is_empty()).then(|| Value::Object(Map::from_iter(members)))
        }
        other => Some(other.clone()),
    }
}

fn key(spec: &Value) -> Option<String> {
    let text = canonical(spec).to_string();
    (text.len() <= MAX_QUESTION)
        .then(|| format!("{ACCESS}{}", hex(&Sha256::digest(text.as_bytes())[..16])))
}

impl Tokens {
    /// Remembers what the cloud answered to a SubjectAccessReview. Only permissions are kept; a refusal takes one back.
    pub fn learn_access(&self, spec: &Value, status: &Value) {
        let Some(key) = key(spec) else { return };
        let cache = &self.inner.cache;
        if status["allowed"] == true {
            let answer = json!({"allowed": true, "reason": status["reason"]});
            cache.keep(Shelf::Reviews, &key, answer.to_string().into());
        } else {
            cache.discard(Shelf::Reviews, &key);
        }
    }

    /// The status that the cloud gave to the same question before, when it allowed it.
    pub fn access(&self, spec: &Value) -> Option<Value> {
        let kept = self.inner.cache.kept(Shelf::Reviews, &key(spec)?)?;
        let status: Value = serde_json::from_slice(&kept).ok()?;
        (status["allowed"] == true).then_some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_question_has_the_same_key() {
        let ask = |credential: &str, groups: Value, verb: &str| {
            key(&json!({
                "user": "u", "uid": "", "groups": groups,
                "extra": {CREDENTIAL: [credential], "scope": ["s"]},
                "resourceAttributes": {"verb": verb, "resource": "nodes", "subresource": "log", "name": "n", "namespace": null},
            }))
            .unwrap()
        };
        let one = ask("JTI=1", json!(["a", "b"]), "get");
        assert_eq!(one, ask("JTI=2", json!(["b", "a"]), "get"));
        assert_ne!(one, ask("JTI=1", json!(["a"]), "get"));
        assert_ne!(one, ask("JTI=1", json!(["a", "b"]), "create"));
        let bare = json!({"resourceAttributes": {"name": "n", "subresource": "log", "resource": "nodes", "verb": "get"},
            "extra": {"scope": ["s"]}, "groups": ["a", "b"], "user": "u"});
        assert_eq!(key(&bare).unwrap(), one);
        assert!(key(&json!({"user": "u".repeat(MAX_QUESTION)})).is_none());
    }
}
