//! Reading fields of a JSON object without minding whether they are there.

use crate::selector::LabelSelector;
use serde_json::{Value, json};

/// A value that may be absent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(Option<&'a Value>);

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value) -> Self {
        Self(Some(value)).present()
    }
    /// Null is absence.
    fn present(self) -> Self {
        Self(self.0.filter(|value| !value.is_null()))
    }
    /// The value at a path of field names joined by dots.
    pub(super) fn at(self, path: &str) -> Self {
        path.split('.').fold(self, Self::field)
    }
    /// The value of one field, whose name may hold dots.
    pub(super) fn field(self, name: &str) -> Self {
        Self(self.0.and_then(|value| value.get(name))).present()
    }
    pub(super) fn exists(self, path: &str) -> bool {
        self.at(path).0.is_some()
    }
    /// The value as text: strings as they are, numbers and booleans printed, else empty.
    pub(super) fn as_text(self) -> String {
        match self.0 {
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
            _ => String::new(),
        }
    }
    pub(super) fn text(self, path: &str) -> String {
        self.at(path).as_text()
    }
    /// The text at a path, or another where it is empty.
    pub(super) fn text_or(self, path: &str, other: &str) -> String {
        match self.text(path) {
            text if text.is_empty() => other.to_owned(),
            text => text,
        }
    }
    pub(super) fn is(self, path: &str, expected: &str) -> bool {
        self.at(path).0.and_then(Value::as_str) == Some(expected)
    }
    pub(super) fn int(self, path: &str) -> i64 {
        self.at(path).0.and_then(Value::as_i64).unwrap_or(0)
    }
    pub(super) fn bool_or(self, path: &str, absent: bool) -> bool {
        self.at(path).0.and_then(Value::as_bool).unwrap_or(absent)
    }
    /// The elements of a list.
    pub(super) fn list(
        self,
        path: &str,
    ) -> impl DoubleEndedIterator<Item = Fields<'a>> + ExactSizeIterator {
        let items = self.at(path).0.and_then(Value::as_array);
        items.map_or(&[][..], Vec::as_slice).iter().map(Fields::of)
    }
    /// The entries of a map, sorted by key.
    pub(super) fn entries(self, path: &str) -> impl Iterator<Item = (&'a str, Fields<'a>)> {
        let map = self.at(path).0.and_then(Value::as_object);
        let mut entries: Vec<_> = map
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), Fields::of(value)))
            .collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        entries.into_iter()
    }
    /// How many elements or entries there are.
    pub(super) fn count(self, path: &str) -> usize {
        match self.at(path).0 {
            Some(Value::Array(items)) => items.len(),
            Some(Value::Object(entries)) => entries.len(),
            _ => 0,
        }
    }
    /// The texts of a list, joined.
    pub(super) fn joined(self, path: &str, separator: &str) -> String {
        let texts: Vec<String> = self.list(path).map(Fields::as_text).collect();
        texts.join(separator)
    }
    /// The name cell.
    pub(super) fn name(self) -> Value {
        json!(self.text("metadata.name"))
    }
    /// The condition of a type in `status.conditions`.
    pub(super) fn condition(self, kind: &str) -> Option<Fields<'a>> {
        self.list("status.conditions")
            .find(|condition| condition.is("type", kind))
    }
    pub(super) fn condition_is_true(self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| c.is("status", "True"))
    }
    pub(super) fn is_being_deleted(self) -> bool {
        self.exists("metadata.deletionTimestamp")
    }
    /// A map of labels as `a=b,c=d`; `<none>` when empty.
    pub(super) fn labels(self, path: &str) -> String {
        let labels: Vec<String> = self
            .entries(path)
            .map(|(key, value)| format!("{key}={}", value.as_text()))
            .collect();
        or_none(labels.join(","))
    }
    /// A `metav1.LabelSelector` as text: `<none>` when it is absent or empty, `<error>` when it is invalid.
    pub(super) fn selector(self, path: &str) -> String {
        match self.at(path).0.map(LabelSelector::from_json) {
            None => "<none>".to_owned(),
            Some(Ok(selector)) => or_none(selector.to_string()),
            Some(Err(_)) => "<error>".to_owned(),
        }
    }
}

/// `<none>` for the empty text.
pub(super) fn or_none(text: String) -> String {
    if text.is_empty() {
        "<none>".to_owned()
    } else {
        text
    }
}

/// Up to `max` texts of a list joined by commas, and how many more there are.
pub(super) fn first_of(texts: impl Iterator<Item = String>, max: usize) -> String {
    let mut shown = Vec::new();
    let mut count = 0usize;
    for text in texts {
        count += 1;
        if shown.len() < max {
            shown.push(text);
        }
    }
    let joined = shown.join(",");
    match count.saturating_sub(max) {
        0 => joined,
        more => format!("{joined} + {more} more..."),
    }
}
