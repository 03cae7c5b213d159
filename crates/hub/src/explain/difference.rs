//! What differs between two JSON values, path by path.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Differences that are told.
const MOST: usize = 256;

/// One place that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// JSON pointer.
    pub path: String,
    /// What was there; absent when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What is there now; absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// What differs, in the order of the paths. Lists are compared place by place; where they differ in length the rest is told as added or
/// removed.
pub fn changes(before: &Value, after: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare(String::new(), Some(before), Some(after), &mut found);
    found
}

fn compare(path: String, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Change>) {
    if before == after || found.len() >= MOST {
        return;
    }
    match (before, after) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            for (name, value) in a {
                compare(below(&path, name), Some(value), b.get(name), found);
            }
            for (name, value) in b {
                if !a.contains_key(name) {
                    compare(below(&path, name), None, Some(value), found);
                }
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for index in 0..a.len().max(b.len()) {
                let at = below(&path, &index.to_string());
                compare(at, a.get(index), b.get(index), found);
            }
        }
        _ => found.push(Change {
            path,
            before: before.cloned(),
            after: after.cloned(),
        }),
    }
}

fn below(path: &str, name: &str) -> String {
    format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn places_that_differ_are_told() {
        let before = json!({"a": 1, "b": {"c/d": [1, 2, 3], "e": "x"}, "same": [{}]});
        let after = json!({"a": 1, "b": {"c/d": [1, 5], "f": null}, "same": [{}]});
        let told = changes(&before, &after);
        let lines: Vec<String> = told
            .iter()
            .map(|change| format!("{} {:?} {:?}", change.path, change.before, change.after))
            .collect();
        assert_eq!(
            lines,
            [
                "/b/c~1d/1 Some(Number(2)) Some(Number(5))",
                "/b/c~1d/2 Some(Number(3)) None",
                "/b/e Some(String(\"x\")) None",
                "/b/f None Some(Null)",
            ]
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<u8>().prop_map(Value::from)];
        leaf.prop_recursive(3, 20, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[ab/~]{1,2}", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Every path leads to what it says, and no difference is kept back.
        #[test]
        fn paths_lead_to_what_they_say(before in value(), after in value()) {
            let told = changes(&before, &after);
            prop_assert_eq!(told.is_empty(), before == after);
            for change in &told {
                prop_assert_eq!(before.pointer(&change.path), change.before.as_ref());
                prop_assert_eq!(after.pointer(&change.path), change.after.as_ref());
            }
        }
    }
}
