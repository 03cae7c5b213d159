//! What a list or watch asks for, apart from its representation.

use yurt_wire::{
    Gvr,
    selector::{FieldSelector, LabelSelector},
};

/// A set of objects: a resource, optionally one namespace, restricted by selectors. A single name is the field
/// selector `metadata.name=x`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// The resource.
    pub gvr: Gvr,
    /// `""` for all namespaces (or cluster scope).
    pub namespace: String,
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector.
    pub fields: FieldSelector,
}

impl Query {
    /// Whether a complete answer to `self` surely holds every object of `other` (sound, not complete).
    pub fn covers(&self, other: &Self) -> bool {
        self.gvr == other.gvr
            && (self.namespace.is_empty() || self.namespace == other.namespace)
            && self.labels.covers(&other.labels)
            && self.fields.covers(&other.fields)
    }
}
