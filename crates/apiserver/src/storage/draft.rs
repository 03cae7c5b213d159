//! A write before its turn: everything but the revision, which only the one whose turn it is gets.

use super::stored::{Key, Stored, Traits};
use serde_json::{Map, Value};
use yurt_wire::watch::EventType;

/// An object that is ready to be written at whatever revision comes.
#[derive(Debug)]
pub(super) struct Draft {
    /// Without the digits of the revision.
    json: Vec<u8>,
    /// Where they go.
    gap: usize,
    traits: Traits,
}

/// Digits of a revision.
const DIGITS: usize = 20;

impl Draft {
    /// From an object with metadata; its resourceVersion does not matter.
    pub(super) fn new(partition: &str, object: &Value) -> serde_json::Result<Self> {
        let mut json = Vec::with_capacity(1024);
        let mut gap = 0;
        let empty = Map::new();
        let fields = object.as_object().unwrap_or(&empty);
        json.push(b'{');
        for (name, value) in fields {
            member(&mut json, name)?;
            match value.as_object().filter(|_| name == "metadata") {
                Some(metadata) => gap = write_metadata(&mut json, metadata)?,
                None => serde_json::to_writer(&mut json, value)?,
            }
        }
        if gap == 0 {
            member(&mut json, "metadata")?;
            gap = write_metadata(&mut json, &empty)?;
        }
        json.push(b'}');
        Ok(Self {
            json,
            gap,
            traits: Traits::of(partition, object),
        })
    }

    /// How long the JSON is at most.
    pub(super) fn len(&self) -> usize {
        self.json.len() + DIGITS
    }

    /// The object at its revision.
    pub(super) fn at(self, key: Key, revision: u64, event: EventType) -> Stored {
        let digits = revision.to_string();
        let (before, after) = self.json.split_at(self.gap);
        let json = [before, digits.as_bytes(), after].concat();
        Stored::new(key, revision, event, self.traits, json.into())
    }
}

fn member(json: &mut Vec<u8>, name: &str) -> serde_json::Result<()> {
    if json.last() != Some(&b'{') {
        json.push(b',');
    }
    serde_json::to_writer(&mut *json, name)?;
    json.push(b':');
    Ok(())
}

/// Writes metadata with an empty resourceVersion; where its digits go.
fn write_metadata(json: &mut Vec<u8>, metadata: &Map<String, Value>) -> serde_json::Result<usize> {
    json.push(b'{');
    for (name, value) in metadata.iter().filter(|(n, _)| *n != "resourceVersion") {
        member(json, name)?;
        serde_json::to_writer(&mut *json, value)?;
    }
    member(json, "resourceVersion")?;
    json.push(b'"');
    let gap = json.len();
    json.extend_from_slice(b"\"}");
    Ok(gap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_revision_is_filled_in() {
        for (object, expected) in [
            (
                json!({"kind": "A", "metadata": {"name": "a", "resourceVersion": "1", "uid": "u"}, "z": {"metadata": 1}}),
                json!({"kind": "A", "metadata": {"name": "a", "resourceVersion": "70", "uid": "u"}, "z": {"metadata": 1}}),
            ),
            (
                json!({"metadata": {}}),
                json!({"metadata": {"resourceVersion": "70"}}),
            ),
            (json!({}), json!({"metadata": {"resourceVersion": "70"}})),
            (
                json!({"data": "x"}),
                json!({"data": "x", "metadata": {"resourceVersion": "70"}}),
            ),
        ] {
            let draft = Draft::new("/things", &object).expect("serialises");
            let stored = draft.at(Key::new("n", "a"), 70, EventType::Added);
            assert_eq!(stored.value(), expected);
            assert_eq!(stored.revision, 70);
        }
    }
}
