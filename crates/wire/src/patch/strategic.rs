//! Strategic merge: maps merge by field, lists by the strategy and merge key that the type declares.

use super::PatchError;
use crate::schema::{self, Field, Message};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

type Object = Map<String, Value>;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

/// What is known of the type of a value.
#[derive(Clone, Copy)]
enum Shape {
    Message(&'static Message),
    /// A map from strings to messages.
    Map(&'static Message),
    /// Scalars, free-form JSON and fields that the tables do not know: merged like any JSON.
    Unknown,
}

/// How one field merges.
struct Rule {
    /// Of the field's value, or of the elements of a list.
    shape: Shape,
    /// `merge`, `replace` or none; `retainKeys` is a directive of patches and needs no support by type.
    strategy: Option<&'static str>,
    merge_key: Option<&'static str>,
}

impl Shape {
    fn rule(self, key: &str) -> Rule {
        let plain = |shape| Rule {
            shape,
            strategy: None,
            merge_key: None,
        };
        match self {
            Self::Message(message) => match schema::field(message, key) {
                Some(field) => Rule {
                    shape: Self::of_field(field),
                    strategy: field.patch_strategy.and_then(|strategies| {
                        strategies
                            .split(',')
                            .map(str::trim)
                            .find(|s| !s.is_empty() && *s != "retainKeys")
                    }),
                    merge_key: field.patch_merge_key,
                },
                None => plain(Self::Unknown),
            },
            Self::Map(values) => plain(Self::Message(values)),
            Self::Unknown => plain(Self::Unknown),
        }
    }

    fn of_field(field: &Field) -> Self {
        match field.message() {
            Some(message) if field.map => Self::Map(message),
            Some(message) => Self::Message(message),
            None => Self::Unknown,
        }
    }
}

/// Applies a patch to a whole object; the target is replaced only on success.
pub(super) fn apply(
    message: &'static Message,
    target: &mut Value,
    patch: &Value,
) -> Result<(), PatchError> {
    let (Value::Object(original), Value::Object(patch)) = (&*target, patch) else {
        return Err(malformed("invalid JSON document"));
    };
    let merged = merge_map(original.clone(), patch.clone(), Shape::Message(message))?;
    *target = Value::Object(merged);
    Ok(())
}

fn merge_map(mut original: Object, mut patch: Object, shape: Shape) -> Result<Object, PatchError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(clean_object(patch)),
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(&directive)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, shape)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            delete_from_list(&mut original, list, value)?;
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(own)), Value::Object(theirs)) => {
                let rule = shape.rule(&key);
                Some(Value::Object(if rule.strategy == Some("replace") {
                    clean_object(theirs)
                } else {
                    merge_map(own, theirs, rule.shape)?
                }))
            }
            (Some(Value::Array(own)), Value::Array(theirs)) => {
                let rule = shape.rule(&key);
                Some(Value::Array(merge_list_field(own, theirs, &rule)?))
            }
            (_, value) => clean(value),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

fn unknown_directive(directive: &Value) -> PatchError {
    malformed(format!("unknown patch type: {directive}"))
}

/// `$retainKeys`: the original keeps only these keys, and the patch may set no others.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || malformed("invalid patch format of retainKeys");
    let keep: HashSet<&str> = directive
        .as_array()
        .ok_or_else(bad)?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let sets_others = patch.iter().any(|(key, value)| {
        !value.is_null()
            && !key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
            && !key.starts_with(SET_ELEMENT_ORDER)
            && !keep.contains(key.as_str())
    });
    if sets_others {
        return Err(bad());
    }
    original.retain(|key, _| keep.contains(key.as_str()));
    Ok(())
}

/// `$deleteFromPrimitiveList/<field>`: takes the values out of a list of scalars; `null` takes the field.
fn delete_from_list(original: &mut Object, key: &str, values: Value) -> Result<(), PatchError> {
    match (original.get_mut(key), values) {
        (_, Value::Null) => {
            original.remove(key);
        }
        (Some(Value::Array(items)), Value::Array(values)) => {
            let gone: HashSet<String> = values.iter().map(Value::to_string).collect();
            items.retain(|item| !gone.contains(&item.to_string()));
        }
        // Nothing there to delete from.
        (_, Value::Array(_)) => {}
        _ => return Err(malformed("invalid patch format of primitive list")),
    }
    Ok(())
}

/// `$setElementOrder/<field>`: merges each such list and puts it in the order given, elements that only the server
/// has keeping their place relative to those they share the server's list with.
fn set_element_orders(
    original: &mut Object,
    patch: &mut Object,
    shape: Shape,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|key| key.starts_with(SET_ELEMENT_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let order = as_list(patch.remove(&directive), "setElementOrder")?.unwrap_or_default();
        let key = &directive[SET_ELEMENT_ORDER.len()..];
        let rule = shape.rule(key);
        // A null in the patch removes the field, whatever its order.
        if patch.get(key).is_some_and(Value::is_null) {
            continue;
        }
        let theirs = as_list(patch.remove(key), "setElementOrder")?;
        let own = as_list(original.remove(key), "setElementOrder")?;
        let identity = Identity::of(rule.merge_key, own.iter().chain(&theirs).flatten())?;
        if let Some(theirs) = &theirs {
            check_order(theirs, &order, &identity)?;
        }
        let server_order = match (&own, &theirs) {
            (Some(own), Some(theirs)) => server_order(own, theirs, &identity)?,
            (Some(own), None) => own.clone(),
            (None, _) => Vec::new(),
        };
        let merged = match (own, theirs) {
            (Some(own), None) => own,
            (None, Some(theirs)) => theirs.into_iter().filter_map(clean).collect(),
            (Some(own), Some(theirs)) => merge_list_field(own, theirs, &rule)?,
            (None, None) => continue,
        };
        let sorted = in_order(merged, &order, &server_order, &identity)?;
        original.insert(key.to_owned(), Value::Array(sorted));
    }
    Ok(())
}

/// The server's order for the final sort. kube-apiserver merges in place: the places that deleted elements leave are
/// taken by elements new in the patch, which from then on count as the server's.
fn server_order(
    own: &[Value],
    theirs: &[Value],
    identity: &Identity,
) -> Result<Vec<Value>, PatchError> {
    let mut deleted = HashSet::new();
    for element in theirs.iter().filter(|e| deletes(e)) {
        deleted.insert(identity.read(element)?);
    }
    let mut order = Vec::with_capacity(own.len());
    let mut known = HashSet::new();
    for element in own {
        let value = identity.read(element)?;
        if !deleted.contains(&value) {
            known.insert(value);
            order.push(element.clone());
        }
    }
    for element in theirs.iter().filter(|element| !is_directive(element)) {
        if order.len() < own.len() && known.insert(identity.read(element)?) {
            order.push(element.clone());
        }
    }
    Ok(order)
}

fn as_list(value: Option<Value>, what: &str) -> Result<Option<Vec<Value>>, PatchError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(malformed(format!("invalid patch format of {what} list"))),
    }
}

/// What makes two elements of a list the same: the value of the merge key, or the scalar itself.
enum Identity {
    Scalar,
    Key(&'static str),
}

impl Identity {
    /// All elements of a list must be of one sort.
    fn of<'a>(
        merge_key: Option<&'static str>,
        elements: impl Iterator<Item = &'a Value>,
    ) -> Result<Self, PatchError> {
        let mut first: Option<&Value> = None;
        for element in elements {
            if element.is_array() {
                return Err(PatchError::DoesNotApply(
                    "lists of lists are not supported".into(),
                ));
            }
            match first {
                None => first = Some(element),
                Some(first) if std::mem::discriminant(first) != std::mem::discriminant(element) => {
                    return Err(malformed("list element types are not identical"));
                }
                Some(_) => {}
            }
        }
        match (first, merge_key) {
            (Some(Value::Object(_)), Some(key)) => Ok(Self::Key(key)),
            (Some(Value::Object(_)), None) => {
                Err(malformed("cannot merge lists without merge key"))
            }
            // An empty list is of either sort; its order directive tells which.
            (None, Some(key)) => Ok(Self::Key(key)),
            _ => Ok(Self::Scalar),
        }
    }

    fn read(&self, element: &Value) -> Result<String, PatchError> {
        match self {
            Self::Scalar => Ok(element.to_string()),
            Self::Key(key) => element.get(key).map(Value::to_string).ok_or_else(|| {
                malformed(format!(
                    "map: {element} does not contain declared merge key: {key}"
                ))
            }),
        }
    }

    /// The first position of each identity.
    fn positions(&self, elements: &[Value]) -> Result<HashMap<String, usize>, PatchError> {
        let mut positions = HashMap::with_capacity(elements.len());
        for (at, element) in elements.iter().enumerate() {
            positions.entry(self.read(element)?).or_insert(at);
        }
        Ok(positions)
    }
}

fn is_directive(element: &Value) -> bool {
    element.get(DIRECTIVE).is_some()
}

fn deletes(element: &Value) -> bool {
    element.get(DIRECTIVE).and_then(Value::as_str) == Some("delete")
}

/// The elements that a patch sets must stand in the order that its directive gives.
fn check_order(patch: &[Value], order: &[Value], identity: &Identity) -> Result<(), PatchError> {
    if order.is_empty() {
        return Ok(());
    }
    let mut order_left = order.iter();
    for element in patch.iter().filter(|element| !is_directive(element)) {
        let wanted = identity.read(element)?;
        loop {
            let Some(next) = order_left.next() else {
                return Err(malformed(
                    "the order in patch list doesn't match $setElementOrder list",
                ));
            };
            if identity.read(next)? == wanted {
                break;
            }
        }
    }
    Ok(())
}

fn merge_list_field(
    own: Vec<Value>,
    theirs: Vec<Value>,
    rule: &Rule,
) -> Result<Vec<Value>, PatchError> {
    if rule.strategy != Some("merge") {
        return Ok(theirs.into_iter().filter_map(clean).collect());
    }
    if own.is_empty() && theirs.is_empty() {
        return Ok(own);
    }
    let identity = Identity::of(rule.merge_key, own.iter().chain(&theirs))?;
    match identity {
        Identity::Scalar => {
            let mut seen = HashSet::new();
            let merged = own
                .iter()
                .chain(&theirs)
                .filter(|item| seen.insert(item.to_string()))
                .cloned()
                .collect();
            in_order(merged, &theirs, &own, &identity)
        }
        Identity::Key(_) => merge_objects(own, theirs, rule.shape, &identity),
    }
}

fn merge_objects(
    mut own: Vec<Value>,
    theirs: Vec<Value>,
    shape: Shape,
    identity: &Identity,
) -> Result<Vec<Value>, PatchError> {
    let mut set = Vec::with_capacity(theirs.len());
    let mut deleted = HashSet::new();
    let mut replace = false;
    for element in theirs {
        match element.get(DIRECTIVE) {
            None => set.push(element),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    deleted.insert(identity.read(&element)?);
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(malformed(
                        "merging lists cannot yet be specified in the patch",
                    ));
                }
                _ => return Err(unknown_directive(directive)),
            },
        }
    }
    if replace {
        return Ok(set.into_iter().filter_map(clean).collect());
    }
    if !deleted.is_empty() {
        // An element of the original without the key cannot be meant.
        own.retain(|element| {
            identity
                .read(element)
                .map_or(true, |value| !deleted.contains(&value))
        });
    }
    let mut positions = identity.positions(&own)?;
    let mut merged = own.clone();
    for element in &set {
        let value = identity.read(element)?;
        match positions.get(&value) {
            Some(&at) => {
                let (Value::Object(before), Value::Object(change)) =
                    (std::mem::take(&mut merged[at]), element.clone())
                else {
                    return Err(malformed("list element types are not identical"));
                };
                merged[at] = Value::Object(merge_map(before, change, shape)?);
            }
            None => {
                if let Some(new) = clean(element.clone()) {
                    positions.insert(value, merged.len());
                    merged.push(new);
                }
            }
        }
    }
    in_order(merged, &set, &own, identity)
}

/// Orders a merged list: the elements named by the patch in the patch's order, those that only the server has in the
/// server's, and both woven together so that a server's element stays before one of the patch where it was before
/// it already.
fn in_order(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    identity: &Identity,
) -> Result<Vec<Value>, PatchError> {
    struct Placed {
        value: Value,
        in_patch: Option<usize>,
        on_server: Option<usize>,
    }
    let in_patch = identity.positions(patch_order)?;
    let on_server = identity.positions(server_order)?;
    let mut patched = Vec::new();
    let mut server_only = Vec::new();
    for value in merged {
        let key = identity.read(&value)?;
        let placed = Placed {
            value,
            in_patch: in_patch.get(&key).copied(),
            on_server: on_server.get(&key).copied(),
        };
        if placed.in_patch.is_some() {
            patched.push(placed);
        } else {
            server_only.push(placed);
        }
    }
    patched.sort_by_key(|placed| placed.in_patch);
    server_only.sort_by_key(|placed| placed.on_server.unwrap_or(usize::MAX));

    let mut out = Vec::with_capacity(patched.len() + server_only.len());
    let mut patched = patched.into_iter().peekable();
    let mut server_only = server_only.into_iter().peekable();
    loop {
        let server_first = match (server_only.peek(), patched.peek()) {
            (None, None) => return Ok(out),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => matches!(
                (left.on_server, right.on_server),
                (Some(left), Some(right)) if left < right
            ),
        };
        let next = if server_first {
            server_only.next()
        } else {
            patched.next()
        };
        out.extend(next.map(|placed| placed.value));
    }
}

/// A new value without the nulls and directives of the patch; `None` when a directive says that there is none.
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(fields) if fields.contains_key(DIRECTIVE) => None,
        Value::Object(fields) => Some(Value::Object(clean_object(fields))),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(clean).collect())),
        scalar => Some(scalar),
    }
}

fn clean_object(fields: Object) -> Object {
    fields
        .into_iter()
        .filter(|(key, value)| {
            !value.is_null()
                && key != RETAIN_KEYS
                && !key.starts_with(SET_ELEMENT_ORDER)
                && !key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
        })
        .filter_map(|(key, value)| Some((key, clean(value)?)))
        .collect()
}
