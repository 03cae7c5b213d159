//! The short hash of a template that names what is made of it.
//!
//! The suffix has Kubernetes' form (a 32 bit FNV-1a in an alphabet that forms no words), but not its value: that depends on how
//! Go prints its structs. Nobody relies on the value: what belongs to a template is found by comparing templates.

use serde_json::Value;

const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash; `collisions` counts how often another template had the same.
pub fn of(template: &Value, collisions: Option<i64>) -> String {
    let mut hash = 0x811c_9dc5_u32;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    // Keys are sorted: equal templates print the same.
    feed(template.to_string().as_bytes());
    if let Some(collisions) = collisions {
        feed(&collisions.to_le_bytes());
    }
    encode(&hash.to_string())
}

fn encode(text: &str) -> String {
    let letter = |byte: u8| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]);
    text.bytes().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn digits_are_encoded_as_kubernetes_encodes_them() {
        // k8s.io/apimachinery/pkg/util/rand: each byte picks a letter by its remainder.
        assert_eq!(encode("0123456789"), "456789bcdf");
    }

    #[test]
    fn equal_templates_have_equal_hashes() {
        let one: Value = serde_json::from_str(r#"{"a": 1, "b": {"c": 2, "d": 3}}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"b": {"d": 3, "c": 2}, "a": 1}"#).unwrap();
        assert_eq!(of(&one, None), of(&other, None));
        assert_ne!(of(&one, None), of(&one, Some(1)));
        assert_ne!(of(&one, None), of(&json!({"a": 2}), None));
        let hash = of(&one, None);
        assert!(hash.len() <= 10 && hash.bytes().all(|b| ALPHABET.contains(&b)));
    }
}
