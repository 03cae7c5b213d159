//! The field paths of a value, and those that differ between two values.

use super::path::PathElement;
use super::set::FieldSet;
use super::typing::{Shape, Type, item_element};
use serde_json::Value;
use std::collections::BTreeMap;

/// What differs between two values of one type.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

/// The paths that an applied configuration claims. A keyed list whose items lack their keys is an error.
pub(crate) fn claimed(root: Type<'_>, value: &Value) -> Result<FieldSet, String> {
    let mut out = FieldSet::default();
    claim(root, value, &mut Vec::new(), &mut out)?;
    Ok(out)
}

fn claim(
    of: Type<'_>,
    value: &Value,
    at: &mut Vec<PathElement>,
    out: &mut FieldSet,
) -> Result<(), String> {
    match (of.shape(Some(value)), value) {
        (Shape::Leaf, _) => out.insert(at),
        (Shape::Map, Value::Object(fields)) => {
            for (name, inner) in fields {
                let (declared, child) = of.child(name);
                at.push(PathElement::field(name));
                if of.forbids(name) {
                    return Err(format!("{}: field not declared in schema", print(at)));
                }
                claim(child, inner, at, out)?;
                let hollow =
                    inner.is_null() || inner.as_object().is_some_and(serde_json::Map::is_empty);
                if hollow || !declared {
                    out.insert(at);
                }
                at.pop();
            }
        }
        (shape @ (Shape::Set(element) | Shape::Keyed(_, element)), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                let step = item_element(shape, item).ok_or_else(|| {
                    format!(
                        "{}: element {index}: associative list with keys has an element that omits its key fields",
                        print(at)
                    )
                })?;
                if out.contains_below(at, &step) {
                    return Err(format!("{}: duplicate entries for key {step}", print(at)));
                }
                at.push(step);
                claim(element, item, at, out)?;
                out.insert(at);
                at.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

/// A path as kube-apiserver prints it.
pub(crate) fn print(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

impl FieldSet {
    fn contains_below(&self, at: &[PathElement], step: &PathElement) -> bool {
        let mut set = self;
        for element in at {
            match set.node(element) {
                Some(node) => set = &node.below,
                None => return false,
            }
        }
        set.node(step).is_some()
    }

    /// This set with every declared field that leads to a member made a member itself.
    #[must_use]
    pub(crate) fn with_named_fields(&self, of: Type<'_>, value: Option<&Value>) -> Self {
        let mut out = Self::default();
        let shape = of.shape(value);
        for (element, node) in self.nodes() {
            let mut node = node.clone();
            let (child, inner) = match (element, shape) {
                (PathElement::Field(name), _) => {
                    let (declared, child) = of.child(name);
                    if declared && !node.below.is_empty() {
                        node.member = true;
                    }
                    (child, value.and_then(|v| v.get(name)))
                }
                (_, Shape::Set(child) | Shape::Keyed(_, child)) => (child, None),
                _ => (Type::Deduced, None),
            };
            node.below = node.below.with_named_fields(child, inner);
            out.put(element.clone(), node);
        }
        out
    }
}

/// Compares two values of one type. `None` on the left: everything on the right is added.
pub(crate) fn compare(root: Type<'_>, left: Option<&Value>, right: Option<&Value>) -> Comparison {
    let mut out = Comparison::default();
    walk(root, left, right, &mut Vec::new(), &mut out);
    out
}

fn record(left: Option<&Value>, right: Option<&Value>, at: &[PathElement], out: &mut Comparison) {
    match (left, right) {
        (None, Some(_)) => out.added.insert(at),
        (Some(_), None) => out.removed.insert(at),
        (Some(left), Some(right)) if left != right => out.modified.insert(at),
        _ => {}
    }
}

fn is_hollow(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

fn walk(
    of: Type<'_>,
    left: Option<&Value>,
    right: Option<&Value>,
    at: &mut Vec<PathElement>,
    out: &mut Comparison,
) {
    let sample = match (left, right) {
        (_, Some(right)) if !right.is_null() => Some(right),
        (Some(left), _) if !left.is_null() => Some(left),
        _ => right.or(left),
    };
    let shape = of.shape(sample);
    // The other side may be of another form (an object where a list was): then the whole value changed.
    let same_form = match (left, right) {
        (Some(l), Some(r)) if !l.is_null() && !r.is_null() => {
            std::mem::discriminant(l) == std::mem::discriminant(r)
        }
        _ => true,
    };
    if matches!(shape, Shape::Leaf) || !same_form || (is_hollow(left) && is_hollow(right)) {
        record(left, right, at, out);
        return;
    }
    match shape {
        Shape::Leaf => {}
        Shape::Map => {
            let empty = serde_json::Map::new();
            let lefts = left.and_then(Value::as_object).unwrap_or(&empty);
            let rights = right.and_then(Value::as_object).unwrap_or(&empty);
            let only_left = lefts.keys().filter(|name| !rights.contains_key(*name));
            for name in rights.keys().chain(only_left) {
                let (_, child) = of.child(name);
                at.push(PathElement::field(name));
                walk(child, lefts.get(name), rights.get(name), at, out);
                at.pop();
            }
        }
        Shape::Set(element) | Shape::Keyed(_, element) => {
            let lefts = items(shape, left);
            let rights = items(shape, right);
            let only_left = lefts.keys().filter(|step| !rights.contains_key(*step));
            for step in rights.keys().chain(only_left) {
                at.push(step.clone());
                let none = Vec::new();
                let l = lefts.get(step).unwrap_or(&none);
                let r = rights.get(step).unwrap_or(&none);
                match (l.as_slice(), r.as_slice()) {
                    ([] | [_], [] | [_]) => {
                        walk(element, l.first().copied(), r.first().copied(), at, out);
                    }
                    // Duplicates: the items cannot be told apart, so they are one value.
                    ([], _) => out.added.insert(at),
                    (_, []) => out.removed.insert(at),
                    (l, r) if l != r => out.modified.insert(at),
                    _ => {}
                }
                at.pop();
            }
        }
    }
    if !at.is_empty() {
        match (left, right) {
            (None, Some(_)) => out.added.insert(at),
            (Some(_), None) => out.removed.insert(at),
            _ => {}
        }
    }
}

fn items<'v>(shape: Shape<'_>, list: Option<&'v Value>) -> BTreeMap<PathElement, Vec<&'v Value>> {
    let mut out: BTreeMap<PathElement, Vec<&Value>> = BTreeMap::new();
    for (index, item) in list
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        // An item without its key is possible in objects that were not applied: known by position then.
        let step = item_element(shape, item).unwrap_or(PathElement::Index(index));
        out.entry(step).or_default().push(item);
    }
    out
}
