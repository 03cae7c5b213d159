//! Sets of field paths, and their wire form FieldsV1.

use super::path::{MalformedFields, PathElement};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Deepest FieldsV1 that is read; far deeper than any schema, shallow enough for the stack.
const MAX_DEPTH: usize = 200;

/// A set of paths, as a tree: every node says whether the path that ends at it is a member.
///
/// Invariant: no node is both a non-member and without members below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    nodes: BTreeMap<PathElement, Node>,
}

/// A path's membership and what lies below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) member: bool,
    pub(crate) below: FieldSet,
}

impl Node {
    fn is_void(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    /// Whether no path is a member.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds a path. The empty path is no member of any set.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let node = self.nodes.entry(first.clone()).or_default();
        if rest.is_empty() {
            node.member = true;
        } else {
            node.below.insert(rest);
        }
    }

    /// Whether exactly this path is a member.
    pub fn contains(&self, path: &[PathElement]) -> bool {
        match path.split_first() {
            None => false,
            Some((first, rest)) => self.nodes.get(first).is_some_and(|node| {
                if rest.is_empty() {
                    node.member
                } else {
                    node.below.contains(rest)
                }
            }),
        }
    }

    /// All member paths, in order.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        fn walk(set: &FieldSet, at: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
            for (element, node) in &set.nodes {
                at.push(element.clone());
                if node.member {
                    out.push(at.clone());
                }
                walk(&node.below, at, out);
                at.pop();
            }
        }
        let mut out = Vec::new();
        walk(self, &mut Vec::new(), &mut out);
        out
    }

    /// The node of one step.
    pub(crate) fn node(&self, element: &PathElement) -> Option<&Node> {
        self.nodes.get(element)
    }

    /// The steps that begin the member paths.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&PathElement, &Node)> {
        self.nodes.iter()
    }

    /// Replaces what is known of one step; void nodes are dropped.
    pub(crate) fn put(&mut self, element: PathElement, node: Node) {
        if node.is_void() {
            self.nodes.remove(&element);
        } else {
            self.nodes.insert(element, node);
        }
    }

    /// Paths in either.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        for (element, theirs) in &other.nodes {
            match self.nodes.entry(element.clone()) {
                Entry::Vacant(slot) => {
                    slot.insert(theirs.clone());
                }
                Entry::Occupied(mut slot) => {
                    let ours = slot.get_mut();
                    ours.member |= theirs.member;
                    ours.below = std::mem::take(&mut ours.below).union(&theirs.below);
                }
            }
        }
        self
    }

    /// Paths in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self::default();
        for (element, ours) in &self.nodes {
            if let Some(theirs) = other.nodes.get(element) {
                out.put(
                    element.clone(),
                    Node {
                        member: ours.member && theirs.member,
                        below: ours.below.intersection(&theirs.below),
                    },
                );
            }
        }
        out
    }

    /// Paths in `self` that are not in `other` (exact paths: a member below a member of `other` stays).
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::default();
        for (element, ours) in &self.nodes {
            let node = match other.nodes.get(element) {
                None => ours.clone(),
                Some(theirs) => Node {
                    member: ours.member && !theirs.member,
                    below: ours.below.difference(&theirs.below),
                },
            };
            out.put(element.clone(), node);
        }
        out
    }

    /// As `fieldsV1`.
    pub fn to_fields_v1(&self) -> Value {
        let mut out = Map::new();
        for (element, node) in &self.nodes {
            let mut inner = node.below.to_fields_v1();
            if node.member
                && !node.below.is_empty()
                && let Value::Object(inner) = &mut inner
            {
                inner.insert(".".into(), Value::Object(Map::new()));
            }
            out.insert(element.to_fields_key(), inner);
        }
        Value::Object(out)
    }

    /// From `fieldsV1`.
    pub fn from_fields_v1(fields: &Value) -> Result<Self, MalformedFields> {
        Self::read(fields, 0)
    }

    fn read(fields: &Value, depth: usize) -> Result<Self, MalformedFields> {
        if depth > MAX_DEPTH {
            return Err(MalformedFields("nested too deeply".into()));
        }
        let Value::Object(fields) = fields else {
            return Err(MalformedFields("expected an object".into()));
        };
        let mut out = Self::default();
        for (key, inner) in fields {
            if key == "." {
                continue;
            }
            let below = Self::read(inner, depth + 1)?;
            let member = below.is_empty() || inner.get(".").is_some();
            let element = PathElement::from_fields_key(key)?;
            out.put(element, Node { member, below });
        }
        Ok(out)
    }
}
