//! Reads fields of objects; what is absent, or not what it should be, is empty.

use serde_json::Value;

/// Labels in any order.
pub type Labels = Vec<(String, String)>;

/// Reads a map of strings.
pub fn labels(map: &Value) -> Labels {
    let entries = map.as_object().into_iter().flatten();
    entries
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The value of a label.
pub fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    let (_, value) = labels.iter().find(|(name, _)| name == key)?;
    Some(value)
}

/// Text of a field.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Items of a list.
pub fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether an object has all of this, whatever else it has; of a list, every item in any place.
pub fn has_all(object: &Value, wanted: &Value) -> bool {
    match (object, wanted) {
        (Value::Object(object), Value::Object(wanted)) => wanted.iter().all(|(field, wanted)| {
            object
                .get(field)
                .is_some_and(|value| has_all(value, wanted))
        }),
        (Value::Array(list), Value::Array(wanted)) => wanted
            .iter()
            .all(|wanted| list.iter().any(|value| has_all(value, wanted))),
        (value, wanted) => value == wanted,
    }
}
