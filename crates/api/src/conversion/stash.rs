//! What one version cannot hold of another, in an annotation.

use super::{
    Facet,
    fields::{Fields, set, take},
};
use crate::names::annotations::STASH_PREFIX;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The key of the fields that are alone. Facets are beside it, by their names.
const ALONE: &str = "alone";
const ANNOTATIONS: &str = "/metadata/annotations";

/// What one version cannot hold of another.
#[derive(Default)]
pub(super) struct Stash(Map<String, Value>);

impl Stash {
    /// Takes the stash for a version out of an object. One that cannot be read is as good as none: the object must stay readable.
    pub(super) fn take(object: &mut Value, version: &str) -> Self {
        let text = take(object, &pointer(version));
        let read = text
            .as_ref()
            .and_then(Value::as_str)
            .and_then(|text| serde_json::from_str(text).ok());
        Self(read.unwrap_or_default())
    }

    /// Leaves the stash on the object that could not hold it. `version` is the one that can.
    pub(super) fn leave(self, object: &mut Value, version: &str) {
        if !self.0.is_empty() {
            let text = Value::Object(self.0).to_string();
            set(object, &pointer(version), text.into());
        }
        // What was taken out was the only one.
        let annotations = object.pointer(ANNOTATIONS).and_then(Value::as_object);
        if annotations.is_some_and(Map::is_empty) {
            take(object, ANNOTATIONS);
        }
    }

    /// The fields that are alone.
    pub(super) fn alone(&mut self) -> Option<Value> {
        self.0.remove(ALONE).filter(Value::is_object)
    }

    /// Keeps what is left of an object, unless the way back gives it anyhow: `defaults`, with the parents of the fields that were
    /// `present`.
    pub(super) fn keep_alone(&mut self, mut rest: Value, defaults: Value, present: &[&str]) {
        take(&mut rest, "/apiVersion");
        let mut given = defaults;
        // Metadata is moved as a whole.
        let present = || {
            present
                .iter()
                .filter(|pointer| !pointer.starts_with("/metadata"))
        };
        for pointer in present() {
            set(&mut given, pointer, Value::Null);
        }
        for pointer in present() {
            take(&mut given, pointer);
        }
        if rest != given {
            self.0.insert(ALONE.into(), rest);
        }
    }

    /// Keeps a facet, for as long as the other version shows this for it.
    pub(super) fn put(&mut self, facet: &Facet, fields: &Fields, shown: &Fields) {
        let mut entry = Map::new();
        entry.insert("fields".into(), fields.clone().into());
        entry.insert("for".into(), digest(shown).into());
        self.0.insert(facet.name.into(), entry.into());
    }

    /// The fields of a facet, and whether what is shown is still what they were stashed for.
    pub(super) fn get(&self, facet: &Facet, shown: &Fields) -> Option<(&Fields, bool)> {
        let entry = self.0.get(facet.name)?;
        let fields = entry.get("fields")?.as_object()?;
        // A pointer that is not of the facet was not written by `put`.
        let known = |pointer: &String| {
            facet.hub.contains(&pointer.as_str()) || facet.older.contains(&pointer.as_str())
        };
        let same = entry.get("for")? == digest(shown).as_str();
        fields.keys().all(known).then_some((fields, same))
    }
}

fn pointer(version: &str) -> String {
    let key = format!("{STASH_PREFIX}{version}").replace('/', "~1");
    format!("{ANNOTATIONS}/{key}")
}

/// Enough of a hash to see a change. It protects from nobody: who may write the stash may write the fields.
fn digest(fields: &Fields) -> String {
    let text = Value::Object(fields.clone()).to_string();
    let hash = Sha256::digest(text.as_bytes());
    hash.iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
