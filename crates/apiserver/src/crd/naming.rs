//! Which names of a definition are accepted: a name belongs to one definition of its group.

use super::{strings, text};
use serde_json::{Map, Value, json};

/// The verdict on the names of a definition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// `status.acceptedNames`.
    pub(crate) accepted: Value,
    /// Reason and message of the condition `NamesAccepted` when it is false.
    pub(crate) conflict: Option<(&'static str, String)>,
}

/// Judges the names of `definition` by what other definitions of its group have (`status.acceptedNames` of each).
pub(crate) fn judge(definition: &Value, others: &[Value]) -> Verdict {
    let wanted = &definition["spec"]["names"];
    let before = &definition["status"]["acceptedNames"];
    let resources: Vec<String> = others
        .iter()
        .flat_map(|names| {
            let mut taken = strings(names, "/shortNames");
            taken.push(text(names, "/plural").to_owned());
            taken.push(text(names, "/singular").to_owned());
            taken
        })
        .collect();
    let kinds: Vec<&str> = others
        .iter()
        .flat_map(|names| [text(names, "/kind"), text(names, "/listKind")])
        .collect();
    let is_taken = |field: &str, name: &str| {
        !name.is_empty()
            && match field {
                "kind" | "listKind" => kinds.contains(&name),
                _ => resources.iter().any(|taken| taken == name),
            }
    };
    let in_use = |name: &str| format!("{name:?} is already in use");
    let mut accepted = Map::new();
    let mut conflict = None;
    for (field, reason) in [
        ("plural", "PluralConflict"),
        ("singular", "SingularConflict"),
        ("shortNames", "ShortNamesConflict"),
        ("kind", "KindConflict"),
        ("listKind", "ListKindConflict"),
    ] {
        let clash = if field == "shortNames" {
            strings(wanted, "/shortNames").into_iter().find(|name| {
                let had = strings(before, "/shortNames");
                !had.contains(name) && is_taken(field, name)
            })
        } else {
            let name = wanted[field].as_str().unwrap_or_default();
            let has = before[field] == wanted[field];
            (!has && is_taken(field, name)).then(|| name.to_owned())
        };
        let value = match clash {
            None => &wanted[field],
            Some(name) => {
                // The last conflict is the one that is told.
                conflict = Some((reason, in_use(&name)));
                &before[field]
            }
        };
        if !value.is_null() {
            accepted.insert(field.to_owned(), value.clone());
        }
    }
    if !wanted["categories"].is_null() {
        accepted.insert("categories".into(), wanted["categories"].clone());
    }
    for needed in ["plural", "kind"] {
        accepted.entry(needed).or_insert_with(|| json!(""));
    }
    Verdict {
        accepted: Value::Object(accepted),
        conflict,
    }
}

/// Whether a condition of a definition is true.
pub(crate) fn has_condition(definition: &Value, name: &str) -> bool {
    definition["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == name && condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_one_definition() {
        let definition = json!({"spec": {"names": {"plural": "foos", "singular": "foo",
            "kind": "Foo", "listKind": "FooList", "shortNames": ["f"]}}});
        let free = judge(&definition, &[json!({"plural": "bars", "kind": "Bar"})]);
        assert_eq!(free.conflict, None);
        assert_eq!(free.accepted, definition["spec"]["names"]);
        for (other, reason) in [
            (json!({"plural": "foos"}), "PluralConflict"),
            (json!({"shortNames": ["foo"]}), "SingularConflict"),
            (json!({"singular": "f"}), "ShortNamesConflict"),
            (json!({"kind": "Foo"}), "KindConflict"),
            (json!({"listKind": "FooList"}), "ListKindConflict"),
        ] {
            let verdict = judge(&definition, &[other]);
            assert_eq!(verdict.conflict.map(|(reason, _)| reason), Some(reason));
        }
        let verdict = judge(&definition, &[json!({"kind": "Foo"})]);
        assert_eq!(verdict.accepted["plural"], "foos");
        assert_eq!(verdict.accepted["kind"], "");
        assert_eq!(
            verdict.conflict.map(|(_, message)| message).as_deref(),
            Some("\"Foo\" is already in use")
        );
    }
}
