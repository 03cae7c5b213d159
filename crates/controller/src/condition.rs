//! `status.conditions`.

use crate::pod::stamp;
use jiff::Timestamp;
use serde_json::{Value, json};

/// A condition of a status by its type.
pub fn find<'s>(status: &'s Value, kind: &str) -> Option<&'s Value> {
    let conditions = status["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// Whether a condition is `True`.
pub fn holds(status: &Value, kind: &str) -> bool {
    find(status, kind).is_some_and(|condition| condition["status"] == "True")
}

/// A condition that begins now.
pub fn new(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let mut condition = json!({"type": kind, "status": status, "lastTransitionTime": stamp(now)});
    for (field, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[field] = text.into();
        }
    }
    condition
}

/// Sets a condition unless one of its type has the same status and reason; where only the reason changes, the time of the
/// transition stays.
pub fn set(status: &mut Value, mut condition: Value) {
    if let Some(known) = condition["type"]
        .as_str()
        .and_then(|kind| find(status, kind))
        && known["status"] == condition["status"]
    {
        if known["reason"] == condition["reason"] {
            return;
        }
        condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
    }
    put(status, condition);
}

/// [`set`], but a new message counts as well; whether anything is new.
pub fn renew(status: &mut Value, mut condition: Value) -> bool {
    if let Some(known) = condition["type"]
        .as_str()
        .and_then(|kind| find(status, kind))
        && known["status"] == condition["status"]
    {
        if known["reason"] == condition["reason"] && known["message"] == condition["message"] {
            return false;
        }
        condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
    }
    put(status, condition);
    true
}

/// Puts a condition as it is at the end, in the place of the one of its type.
pub fn put(status: &mut Value, condition: Value) {
    remove(status, condition["type"].as_str().unwrap_or_default());
    match status["conditions"].as_array_mut() {
        Some(conditions) => conditions.push(condition),
        None => status["conditions"] = json!([condition]),
    }
}

/// Takes a condition away; an empty list goes with its last.
pub fn remove(status: &mut Value, kind: &str) {
    let Some(conditions) = status["conditions"].as_array_mut() else {
        return;
    };
    conditions.retain(|condition| condition["type"] != kind);
    if conditions.is_empty()
        && let Some(status) = status.as_object_mut()
    {
        status.remove("conditions");
    }
}

/// [`renew`], or [`remove`] where there is to be no condition of that type; whether anything is new.
pub fn settle(status: &mut Value, kind: &str, condition: Option<Value>) -> bool {
    match condition {
        Some(condition) => renew(status, condition),
        None => {
            let had = find(status, kind).is_some();
            remove(status, kind);
            had
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_is_a_change_of_the_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut status = json!({});
        set(&mut status, new("Available", "True", "A", "", at(1)));
        let first = status.clone();
        set(&mut status, new("Available", "True", "A", "other", at(2)));
        assert_eq!(status, first, "the same status and reason");
        set(&mut status, new("Available", "True", "B", "m", at(3)));
        let condition = find(&status, "Available").unwrap();
        assert_eq!(condition["lastTransitionTime"], "1970-01-01T00:00:01Z");
        assert_eq!(condition["reason"], "B");
        set(&mut status, new("Available", "False", "C", "", at(4)));
        let condition = find(&status, "Available").unwrap();
        assert_eq!(condition["lastTransitionTime"], "1970-01-01T00:00:04Z");
        assert!(!holds(&status, "Available"));
        assert!(settle(&mut status, "Available", None));
        assert_eq!(status, json!({}));
        assert!(!settle(&mut status, "Available", None));
    }
}
