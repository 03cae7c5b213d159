//! Merging a configuration into an object, and taking fields out of one.

use super::path::PathElement;
use super::set::FieldSet;
use super::typing::{Shape, Type, item_element};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// `live` with everything that `config` says. `config` is known to have keys in its keyed lists
/// (see [`super::compare::claimed`]).
pub(crate) fn merge(of: Type<'_>, live: Option<&Value>, config: Option<&Value>) -> Value {
    let (live, config) = match (live, config) {
        (None, None) => return Value::Null,
        (Some(only), None) | (None, Some(only)) => return only.clone(),
        (Some(live), Some(config)) => (live, config),
    };
    match (of.shape(Some(config)), live, config) {
        (Shape::Map, Value::Object(lives), Value::Object(configs)) => {
            let mut out = lives.clone();
            for (name, inner) in configs {
                let (_, child) = of.child(name);
                let merged = merge(child, lives.get(name), Some(inner));
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (
            shape @ (Shape::Set(element) | Shape::Keyed(_, element)),
            Value::Array(lives),
            Value::Array(configs),
        ) => Value::Array(merge_items(shape, element, lives, configs)),
        // A null says nothing about a map or list that exists.
        (Shape::Map | Shape::Set(_) | Shape::Keyed(..), live, Value::Null) => live.clone(),
        _ => config.clone(),
    }
}

/// The items of both lists. Configured items keep their order; an item that only the object has stays before the
/// shared item that it preceded.
fn merge_items(
    shape: Shape<'_>,
    element: Type<'_>,
    lives: &[Value],
    configs: &[Value],
) -> Vec<Value> {
    let step =
        |index: usize, item: &Value| item_element(shape, item).unwrap_or(PathElement::Index(index));
    let lives: Vec<(PathElement, &Value)> = lives
        .iter()
        .enumerate()
        .map(|(i, v)| (step(i, v), v))
        .collect();
    let configs: Vec<(PathElement, &Value)> = configs
        .iter()
        .enumerate()
        .map(|(i, v)| (step(i, v), v))
        .collect();
    let mut by_step: BTreeMap<&PathElement, &Value> = BTreeMap::new();
    for (step, item) in &lives {
        by_step.entry(step).or_insert(item);
    }
    let configured: BTreeSet<&PathElement> = configs.iter().map(|(step, _)| step).collect();

    let mut out = Vec::with_capacity(lives.len() + configs.len());
    let mut shared = configs
        .iter()
        .map(|(step, _)| step)
        .filter(|step| by_step.contains_key(step))
        .peekable();
    let mut rest = lives.iter().peekable();
    for (step, item) in &configs {
        while let Some((live_step, live)) = rest.peek() {
            if !configured.contains(live_step) {
                out.push((*live).clone());
            } else if shared.peek() == Some(&live_step) {
                break;
            }
            rest.next();
        }
        out.push(merge(element, by_step.get(step).copied(), Some(item)));
        if shared.peek() == Some(&step) {
            shared.next();
        }
    }
    out.extend(
        rest.filter(|(step, _)| !configured.contains(step))
            .map(|(_, item)| (*item).clone()),
    );
    out
}

/// `value` without the members of `set`. A map or list that loses its last entry goes away with it.
pub(crate) fn remove(of: Type<'_>, value: &Value, set: &FieldSet) -> Value {
    removed(of, value, set).unwrap_or_else(|| Value::Object(Map::new()))
}

fn removed(of: Type<'_>, value: &Value, set: &FieldSet) -> Option<Value> {
    if set.is_empty() {
        return Some(value.clone());
    }
    match (of.shape(Some(value)), value) {
        (Shape::Map, Value::Object(fields)) => {
            let mut out = Map::new();
            for (name, inner) in fields {
                let (_, child) = of.child(name);
                let kept = match set.node(&PathElement::field(name)) {
                    None => Some(inner.clone()),
                    Some(node) if node.member => None,
                    Some(node) => removed(child, inner, &node.below),
                };
                if let Some(kept) = kept {
                    out.insert(name.clone(), kept);
                }
            }
            (!out.is_empty() || fields.is_empty()).then_some(Value::Object(out))
        }
        (shape @ (Shape::Set(element) | Shape::Keyed(_, element)), Value::Array(items)) => {
            let mut out = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let step = item_element(shape, item).unwrap_or(PathElement::Index(index));
                let kept = match set.node(&step) {
                    None => Some(item.clone()),
                    Some(node) if node.member => None,
                    Some(node) => removed(element, item, &node.below),
                };
                out.extend(kept);
            }
            (!out.is_empty() || items.is_empty()).then_some(Value::Array(out))
        }
        _ => Some(value.clone()),
    }
}
