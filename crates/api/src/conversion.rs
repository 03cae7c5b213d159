//! Conversion between the versions of a kind, without a loss.
//!
//! Every kind has a hub: the stored version. Between it and an older one, a field is one of three:
//! - **shared**: both have it, maybe elsewhere; it is moved;
//! - part of a **facet**: both say the same differently; one is computed from the other;
//! - **alone**: only one version has it, or nobody knows it.
//!
//! What the target cannot hold is stashed in an annotation of the target that is named by the source's version
//! (`conversion.openyurt.io/v1beta2` on a v1beta1 object), and taken out of it on the way back. For fields that are alone this is
//! all. A facet is stashed where it could not be computed back, together with a digest of what the target shows instead: it is
//! restored as long as that is unchanged, and otherwise what the user changed is carried over. So a conversion to and fro changes
//! nothing, and a client of an old version that reads, changes and writes an object changes what it sees and nothing else.
//!
//! Everything is a pure function of JSON, because unknown fields must survive; nothing but the shape of an object can make it fail.

mod fields;
mod nodepool;
mod review;
mod stash;
#[cfg(test)]
mod tests;
mod yurtappset;

pub use review::{MAX_OBJECTS, PATH, REVIEW_VERSIONS, ReviewError, convert};

use crate::{crd, names};
use fields::{Fields, empty, get_all, set, set_all, take, take_all};
use serde_json::Value;
use stash::Stash;

/// Why an object was not converted: the caller is at fault, another try gives the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {fault}")]
pub struct ConversionError {
    /// `NodePool hangzhou`, `YurtAppSet default/web`.
    pub object: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Fault {
    #[error("{field}: must be {wanted}, is {found}")]
    Shape {
        field: &'static str,
        wanted: &'static str,
        found: &'static str,
    },
    #[error("apiVersion: {0:?} has no conversion to {1:?}")]
    NoConversion(String, String),
    #[error("kind: {0:?} is not a kind of {1}")]
    UnknownKind(String, String),
}

/// How the hub and an older version of a kind say the same.
struct Pair {
    /// The older version.
    older: &'static str,
    /// Pointers of fields that both have: in the older version, in the hub.
    shared: &'static [(&'static str, &'static str)],
    /// In the order in which they are computed.
    facets: &'static [Facet],
    /// Fields that only the hub has, as they are for an object that comes from the older version.
    hub_defaults: fn() -> Value,
}

/// What both versions say differently. The functions get the fields of the facet that there are, and the older object with at least
/// its shared fields and earlier facets, for what they need beside it.
struct Facet {
    name: &'static str,
    older: &'static [&'static str],
    hub: &'static [&'static str],
    up: fn(&Fields, &Value) -> Fields,
    down: fn(&Fields, &Value) -> Fields,
    /// What the hub says when the older object no longer says what it was given for these fields of the hub.
    merge: fn(&Fields, &Fields, &Value) -> Fields,
}

/// The hub version of a kind and its pairs with older ones.
fn pairs(kind: &str) -> &'static [Pair] {
    match kind {
        "NodePool" => nodepool::PAIRS,
        "YurtAppSet" => yurtappset::PAIRS,
        _ => &[],
    }
}

/// The object in another version (`apps.openyurt.io/v1beta1`) of its group.
pub fn to_version(object: Value, desired: &str) -> Result<Value, ConversionError> {
    let title = title(&object);
    let fail = |fault| ConversionError {
        object: title.clone(),
        fault,
    };
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    check(&object).map_err(fail)?;
    if api_version == desired {
        return Ok(object);
    }
    let none = || fail(Fault::NoConversion(api_version.clone(), desired.into()));
    let ((group, from), (wanted_group, to)) = api_version
        .split_once('/')
        .zip(desired.split_once('/'))
        .ok_or_else(none)?;
    let definition = crd::DEFINITIONS
        .iter()
        .find(|definition| definition.group == group && definition.kind == kind)
        .ok_or_else(|| fail(Fault::UnknownKind(kind.clone(), group.into())))?;
    let hub = definition
        .stored()
        .map(|version| version.name)
        .unwrap_or_default();
    let pair = |version: &str| pairs(&kind).iter().find(|pair| pair.older == version);
    if group != wanted_group {
        return Err(none());
    }
    let up = |object| match pair(from) {
        Some(pair) => Some(pair.to_hub(object, hub)),
        None => (from == hub).then_some(object),
    };
    let down = |object| match pair(to) {
        Some(pair) => Some(pair.to_older(object, hub)),
        None => (to == hub).then_some(object),
    };
    let mut converted = up(object).and_then(down).ok_or_else(none)?;
    converted["apiVersion"] = desired.into();
    Ok(converted)
}

/// What a client means that wrote an object as `written_as` (`apps.openyurt.io/v1beta1`): `old` and `new` are the object before and
/// after, in one version. What the version that it was written in cannot say is as it was, whether or not the client sent the stash
/// back; clients that build an object anew do not.
pub fn restored(old: &Value, new: Value, written_as: &str) -> Result<Value, ConversionError> {
    let version = new["apiVersion"].as_str().unwrap_or_default().to_owned();
    let stash = format!(
        "{}{}",
        names::annotations::STASH_PREFIX,
        version.rsplit('/').next().unwrap_or_default()
    );
    let pointer = format!("/metadata/annotations/{}", stash.replace('/', "~1"));
    let mut before = to_version(old.clone(), written_as)?;
    let mut written = to_version(new, written_as)?;
    take(&mut written, &pointer);
    if let Some(kept) = take(&mut before, &pointer) {
        set(&mut written, &pointer, kept);
    }
    to_version(written, &version)
}

/// How an object is called in messages.
fn title(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or("object");
    let name = text("/metadata/name")
        .or(text("/metadata/generateName"))
        .unwrap_or("without a name");
    match text("/metadata/namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// What is of a type that conversion cannot work on.
fn check(object: &Value) -> Result<(), Fault> {
    let must = |field, value: Option<&Value>, wanted, good: fn(&Value) -> bool| match value {
        Some(value) if !good(value) => Err(Fault::Shape {
            field,
            wanted,
            found: type_of(value),
        }),
        _ => Ok(()),
    };
    must("object", Some(object), "an object", Value::is_object)?;
    let absent = Some(&Value::Null);
    must(
        "apiVersion",
        object.get("apiVersion").or(absent),
        "a string",
        Value::is_string,
    )?;
    must(
        "kind",
        object.get("kind").or(absent),
        "a string",
        Value::is_string,
    )?;
    must(
        "metadata",
        object.get("metadata").or(absent),
        "an object",
        Value::is_object,
    )?;
    let optional: fn(&Value) -> bool = |value| value.is_object() || value.is_null();
    let annotations = object.pointer("/metadata/annotations");
    must("metadata.annotations", annotations, "an object", optional)?;
    must("spec", object.get("spec"), "an object", optional)?;
    must("status", object.get("status"), "an object", optional)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "absent",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Pair {
    fn to_older(&self, mut hub: Value, hub_version: &str) -> Value {
        let mut stash = Stash::take(&mut hub, self.older);
        let mut left = Stash::default();
        let mut older = stash.alone().unwrap_or_else(empty);
        let facets: Vec<Fields> = self
            .facets
            .iter()
            .map(|facet| take_all(&mut hub, facet.hub))
            .collect();
        let mut present = Vec::new();
        for (older_pointer, pointer) in self.shared() {
            if let Some(value) = take(&mut hub, pointer) {
                set(&mut older, older_pointer, value);
                present.push(pointer);
            }
        }
        for (facet, fields) in self.facets.iter().zip(&facets) {
            let shown = match stash.get(facet, fields) {
                Some((stashed, true)) => stashed.clone(),
                _ => (facet.down)(fields, &older),
            };
            if (facet.up)(&shown, &older) != *fields {
                left.put(facet, fields, &shown);
            }
            present.extend(fields.keys().map(String::as_str));
            set_all(&mut older, shown);
        }
        left.keep_alone(hub, (self.hub_defaults)(), &present);
        left.leave(&mut older, hub_version);
        older
    }

    fn to_hub(&self, mut older: Value, hub_version: &str) -> Value {
        let mut stash = Stash::take(&mut older, hub_version);
        let mut left = Stash::default();
        let mut hub = stash.alone().unwrap_or_else(self.hub_defaults);
        let mut facets = Vec::with_capacity(self.facets.len());
        for facet in self.facets {
            let shown = get_all(&older, facet.older);
            let fields = match stash.get(facet, &shown) {
                Some((stashed, true)) => stashed.clone(),
                Some((stashed, false)) => (facet.merge)(stashed, &shown, &older),
                None => (facet.up)(&shown, &older),
            };
            if (facet.down)(&fields, &older) != shown {
                left.put(facet, &shown, &fields);
            }
            facets.push((shown, fields));
        }
        for facet in self.facets {
            take_all(&mut older, facet.older);
        }
        let mut present = Vec::new();
        for (pointer, hub_pointer) in self.shared() {
            if let Some(value) = take(&mut older, pointer) {
                set(&mut hub, hub_pointer, value);
                present.push(pointer);
            }
        }
        for (shown, fields) in &facets {
            present.extend(shown.keys().map(String::as_str));
            set_all(&mut hub, fields.clone());
        }
        left.keep_alone(older, empty(), &present);
        left.leave(&mut hub, self.older);
        hub
    }

    /// Pointers of what both versions have, in the older one and in the hub.
    fn shared(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let always = [("/kind", "/kind"), ("/metadata", "/metadata")];
        always.into_iter().chain(self.shared.iter().copied())
    }
}
