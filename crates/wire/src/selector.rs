//! Label and field selectors.
//!
//! Grammar, validation and error texts follow `k8s.io/apimachinery/pkg/{labels,fields}`. Selectors are kept in a
//! canonical form (sorted, without duplicates), so that equal selectors compare and hash equal.

use std::fmt;

mod grammar;
mod label_syntax;

pub use label_syntax::{label_key_errors, label_value_errors};

/// Comparisons that deciding on coverage may take; selectors so large that it would take more only cover themselves.
const MAX_COMPARISONS: usize = 1_000_000;

/// Why a selector does not parse; the text is what kube-apiserver's clients expect in a 400 Status.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// The operator of one label requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Requirement {
    pub key: String,
    pub op: Op,
    /// Sorted, each once: one for (in)equality and comparison, at least one for sets, none for existence.
    pub values: Vec<String>,
}

impl Requirement {
    /// A valid requirement.
    pub fn new(key: &str, op: Op, values: Vec<String>) -> Result<Self, SelectorError> {
        let mut values = values;
        values.sort_unstable();
        values.dedup();
        label_syntax::check_requirement(key, op, &values)?;
        Ok(Self {
            key: key.into(),
            op,
            values,
        })
    }

    fn has(&self, value: &str) -> bool {
        self.values.iter().any(|v| v == value)
    }

    fn matches(&self, value: Option<&str>) -> bool {
        match self.op {
            Op::Equals | Op::In => value.is_some_and(|v| self.has(v)),
            Op::NotEquals | Op::NotIn => value.is_none_or(|v| !self.has(v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::GreaterThan => self.compares(value, |label, bound| label > bound),
            Op::LessThan => self.compares(value, |label, bound| label < bound),
        }
    }

    fn compares(&self, value: Option<&str>, holds: impl Fn(i64, i64) -> bool) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        match (value.and_then(number), self.bound()) {
            (Some(label), Some(bound)) => holds(label, bound),
            _ => false,
        }
    }

    fn bound(&self) -> Option<i64> {
        self.values.first()?.parse().ok()
    }

    /// Whether labels that satisfy `self` surely satisfy `weaker`.
    fn implies(&self, weaker: &Self) -> bool {
        if self.key != weaker.key {
            return false;
        }
        match self.op {
            // The label has one of the values.
            Op::Equals | Op::In => self.values.iter().all(|v| weaker.matches(Some(v))),
            // The label is absent.
            Op::DoesNotExist => weaker.matches(None),
            // The label is absent or has none of the values.
            Op::NotEquals | Op::NotIn => {
                matches!(weaker.op, Op::NotEquals | Op::NotIn)
                    && weaker.values.iter().all(|v| self.has(v))
            }
            Op::Exists => weaker.op == Op::Exists,
            Op::GreaterThan | Op::LessThan => {
                weaker.op == Op::Exists
                    || (weaker.op == self.op
                        && match (self.bound(), weaker.bound()) {
                            (Some(own), Some(other)) if self.op == Op::GreaterThan => own >= other,
                            (Some(own), Some(other)) => own <= other,
                            _ => false,
                        })
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let values = self.values.join(",");
        match self.op {
            Op::Equals => write!(f, "{key}={values}"),
            Op::NotEquals => write!(f, "{key}!={values}"),
            Op::In => write!(f, "{key} in ({values})"),
            Op::NotIn => write!(f, "{key} notin ({values})"),
            Op::Exists => write!(f, "{key}"),
            Op::DoesNotExist => write!(f, "!{key}"),
            Op::GreaterThan => write!(f, "{key}>{values}"),
            Op::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A label selector: all requirements must hold; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    /// The requirements, sorted by key.
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// From valid requirements, in any order.
    pub fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_unstable();
        requirements.dedup();
        Self { requirements }
    }
    /// Parses `a=b,c!=d,e in (f,g),h,!i,j>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        grammar::parse_labels(text).map(Self::of)
    }
    /// From a `metav1.LabelSelector` JSON value (`matchLabels`, `matchExpressions`). `null` selects nothing, which no
    /// list of requirements says: it is an error, for the caller to decide on.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, SelectorError> {
        use serde_json::Value;
        let error = |text: &str| SelectorError(text.to_owned());
        let object = value
            .as_object()
            .ok_or_else(|| error("a label selector must be an object"))?;
        let mut requirements = Vec::new();
        match object.get("matchLabels") {
            None | Some(Value::Null) => {}
            Some(Value::Object(labels)) => {
                for (key, value) in labels {
                    let value = value
                        .as_str()
                        .ok_or_else(|| error("values of matchLabels must be strings"))?;
                    requirements.push(Requirement::new(key, Op::Equals, vec![value.into()])?);
                }
            }
            Some(_) => return Err(error("matchLabels must be an object")),
        }
        match object.get("matchExpressions") {
            None | Some(Value::Null) => {}
            Some(Value::Array(expressions)) => {
                for expression in expressions {
                    requirements.push(requirement_from_json(expression)?);
                }
            }
            Some(_) => return Err(error("matchExpressions must be a list")),
        }
        Ok(Self::of(requirements))
    }
    /// Whether the labels match.
    pub fn matches(&self, labels: &[(String, String)]) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels
                .iter()
                .find_map(|(key, value)| (*key == requirement.key).then_some(value.as_str()));
            requirement.matches(value)
        })
    }
    /// Requirements and their values, counted.
    fn values(&self) -> usize {
        self.requirements.iter().map(|r| 1 + r.values.len()).sum()
    }
    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
    /// Whether every object matched by `other` is surely matched by `self` (sound, not complete):
    /// each requirement of `self` follows from one of `other`.
    pub fn covers(&self, other: &Self) -> bool {
        if self.values().saturating_mul(other.values()) > MAX_COMPARISONS {
            return self == other;
        }
        self.requirements
            .iter()
            .all(|own| other.requirements.iter().any(|theirs| theirs.implies(own)))
    }
}

fn requirement_from_json(expression: &serde_json::Value) -> Result<Requirement, SelectorError> {
    let text = |name: &str| expression.get(name).and_then(|v| v.as_str());
    let operator = text("operator").unwrap_or_default();
    let op = match operator {
        "In" => Op::In,
        "NotIn" => Op::NotIn,
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        other => {
            return Err(SelectorError(format!(
                "{} is not a valid label selector operator",
                crate::status::quoted(other)
            )));
        }
    };
    let values = match expression.get("values") {
        None | Some(serde_json::Value::Null) => Vec::new(),
        Some(values) => values
            .as_array()
            .and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect())
            .ok_or_else(|| SelectorError("values must be a list of strings".into()))?,
    };
    Requirement::new(text("key").unwrap_or_default(), op, values)
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, &self.requirements)
    }
}

fn join(f: &mut fmt::Formatter<'_>, terms: &[impl fmt::Display]) -> fmt::Result {
    for (at, term) in terms.iter().enumerate() {
        if at > 0 {
            f.write_str(",")?;
        }
        term.fmt(f)?;
    }
    Ok(())
}

/// One field requirement `path=value` or `path!=value`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct FieldRequirement {
    pub path: String,
    pub equals: bool,
    pub value: String,
}

impl fmt::Display for FieldRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = if self.equals { "=" } else { "!=" };
        write!(f, "{}{op}", self.path)?;
        for c in self.value.chars() {
            if matches!(c, '\\' | ',' | '=') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        Ok(())
    }
}

/// A field selector: all requirements must hold; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    /// The requirements, sorted by path.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// From requirements in any order.
    pub fn of(mut requirements: Vec<FieldRequirement>) -> Self {
        requirements.sort_unstable();
        requirements.dedup();
        Self { requirements }
    }
    /// Parses `metadata.name=a,spec.nodeName!=b` with `\\`, `\,` and `\=` escapes.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        grammar::parse_fields(text).map(Self::of)
    }
    /// Whether the fields match; `field` gives the value at a path (`""` when absent).
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.requirements
            .iter()
            .all(|r| (field(&r.path) == r.value) == r.equals)
    }
    /// The value a path must equal exactly, when there is one.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find_map(|r| (r.equals && r.path == path).then_some(r.value.as_str()))
    }
    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
    /// As [`LabelSelector::covers`].
    pub fn covers(&self, other: &Self) -> bool {
        if self
            .requirements
            .len()
            .saturating_mul(other.requirements.len())
            > MAX_COMPARISONS
        {
            return self == other;
        }
        let implies = |theirs: &FieldRequirement, own: &FieldRequirement| {
            theirs == own
                || (theirs.path == own.path
                    && theirs.equals
                    && !own.equals
                    && theirs.value != own.value)
        };
        self.requirements
            .iter()
            .all(|own| other.requirements.iter().any(|theirs| implies(theirs, own)))
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, &self.requirements)
    }
}

#[cfg(test)]
mod tests;
