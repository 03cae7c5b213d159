//! Reading and writing `metadata` of objects as JSON values.

use jiff::Timestamp;
use serde_json::{Value, json};

/// A string of `metadata`, `""` when absent.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// `metadata.name`.
pub(crate) fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.uid`.
pub(crate) fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> Vec<String> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|f| f.as_str().map(str::to_owned))
        .collect()
}

/// Replaces `metadata.finalizers`; none removes the field.
pub(crate) fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    if finalizers.is_empty() {
        remove(object, "finalizers");
    } else {
        object["metadata"]["finalizers"] = json!(finalizers);
    }
}

/// Whether deletion has begun.
pub(crate) fn is_deleting(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

/// Removes a field of `metadata`.
pub(crate) fn remove(object: &mut Value, field: &str) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove(field);
    }
}

/// Takes a field of `metadata` from another object, or removes it when that has none.
pub(crate) fn copy(from: &Value, to: &mut Value, field: &str) {
    match from["metadata"].get(field) {
        Some(value) => to["metadata"][field] = value.clone(),
        None => remove(to, field),
    }
}

/// Takes a top-level field from another object, or removes it when that has none.
pub(crate) fn copy_top(from: &Value, to: &mut Value, field: &str) {
    match (from.get(field), to.as_object_mut()) {
        (Some(value), Some(to)) => {
            to.insert(field.to_owned(), value.clone());
        }
        (None, Some(to)) => {
            to.remove(field);
        }
        (_, None) => {}
    }
}

/// RFC 3339 with whole seconds, as `metav1.Time` prints.
pub(crate) fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}

/// Seconds since the epoch.
pub(crate) fn now_seconds() -> i64 {
    Timestamp::now().as_second()
}

/// The time now, as `metav1.Time` prints.
pub(crate) fn now() -> String {
    rfc3339(now_seconds())
}

/// A random (version 4) UUID.
pub(crate) fn new_uid() -> String {
    let bits = fastrand::u128(..);
    let bits = bits & !(0xf << 76) | (0x4 << 76);
    let bits = bits & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// Letters and digits that form no words, as Kubernetes' name generator uses.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest prefix kept, so that prefix and suffix stay within 63 characters.
const MAX_PREFIX: usize = 58;

/// A name from `metadata.generateName`.
pub(crate) fn generate_name(prefix: &str) -> String {
    let mut name: String = prefix.chars().take(MAX_PREFIX).collect();
    for _ in 0..5 {
        name.push(char::from(
            NAME_ALPHABET[fastrand::usize(..NAME_ALPHABET.len())],
        ));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_have_the_form_of_version_4() {
        for _ in 0..100 {
            let uid = new_uid();
            assert_eq!(uid.len(), 36);
            assert_eq!(uid.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&uid.as_bytes()[19]));
        }
    }

    #[test]
    fn generated_names_fit_a_label() {
        assert_eq!(generate_name(&"a".repeat(80)).len(), 63);
        assert!(generate_name("web-").starts_with("web-"));
        assert_eq!(generate_name("web-").len(), 9);
    }

    #[test]
    fn time_prints_whole_seconds() {
        assert_eq!(rfc3339(1_795_287_991), "2026-11-21T19:06:31Z");
    }
}
