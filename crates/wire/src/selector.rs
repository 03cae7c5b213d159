//! Label and field selectors.

use std::fmt;

/// Why a selector does not parse; the text is what kube-apiserver's clients expect in a 400 Status.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// The operator of one label requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Op {
    Equals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One label requirement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Requirement {
    pub key: String,
    pub op: Op,
    pub values: Vec<String>,
}

/// A label selector: all requirements must hold; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    /// The requirements, sorted by key.
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h,!i,j>1`.
    pub fn parse(_text: &str) -> Result<Self, SelectorError> {
        unimplemented!()
    }
    /// From a `metav1.LabelSelector` JSON value (`matchLabels`, `matchExpressions`).
    pub fn from_json(_value: &serde_json::Value) -> Result<Self, SelectorError> {
        unimplemented!()
    }
    /// Whether the labels match.
    pub fn matches(&self, _labels: &[(String, String)]) -> bool {
        unimplemented!()
    }
    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
    /// Whether every object matched by `other` is surely matched by `self` (sound, not complete):
    /// each requirement of `self` appears in `other`.
    pub fn covers(&self, _other: &Self) -> bool {
        unimplemented!()
    }
}
impl fmt::Display for LabelSelector {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}

/// One field requirement `path=value` or `path!=value`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct FieldRequirement {
    pub path: String,
    pub equals: bool,
    pub value: String,
}

/// A field selector: all requirements must hold; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    /// The requirements, sorted by path.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Parses `metadata.name=a,spec.nodeName!=b` with `\\`, `\,` and `\=` escapes.
    pub fn parse(_text: &str) -> Result<Self, SelectorError> {
        unimplemented!()
    }
    /// Whether the fields match; `field` gives the value at a path (`""` when absent).
    pub fn matches(&self, _field: impl Fn(&str) -> String) -> bool {
        unimplemented!()
    }
    /// The value a path must equal exactly, when there is one.
    pub fn exact(&self, _path: &str) -> Option<&str> {
        unimplemented!()
    }
    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
    /// As [`LabelSelector::covers`].
    pub fn covers(&self, _other: &Self) -> bool {
        unimplemented!()
    }
}
impl fmt::Display for FieldSelector {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}
