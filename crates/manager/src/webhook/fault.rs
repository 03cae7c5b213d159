//! What is wrong with an object, and where.

use super::review::{Answer, Denial};
use serde_json::Value;
use std::fmt;
use yurt_wire::selector::{LabelSelector, label_key_errors, label_value_errors};

/// More are not told at once.
const MOST: usize = 16;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    field: String,
    why: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            why: why.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

/// What is found while an object is looked through.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) faults: Vec<Fault>,
    /// What is allowed and yet probably not what its user wants.
    pub(super) warnings: Vec<String>,
}

impl Findings {
    pub(super) fn fault(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.faults.push(Fault::new(field, why));
    }

    pub(super) fn warning(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Keys and values of labels.
    pub(super) fn labels(&mut self, at: &str, labels: &Value) {
        for (key, value) in labels.as_object().into_iter().flatten() {
            let field = format!("{at}[{key}]");
            self.key(&field, key);
            match value.as_str() {
                Some(value) => {
                    for why in label_value_errors(value) {
                        self.fault(&field, format!("{value:?}: {why}"));
                    }
                }
                None => self.fault(&field, "must be a string"),
            }
        }
    }

    /// The key of a label, annotation or taint.
    pub(super) fn key(&mut self, field: &str, key: &str) {
        for why in label_key_errors(key) {
            self.fault(field, why);
        }
    }

    /// A label selector; `None`: it is no good.
    pub(super) fn selector(&mut self, at: &str, selector: &Value) -> Option<LabelSelector> {
        match LabelSelector::from_json(selector) {
            Ok(selector) => Some(selector),
            Err(error) => {
                self.fault(at, error.to_string());
                None
            }
        }
    }

    /// What is wrong with an object that takes the place of another: what was wrong before, and is as it was, may stay so that
    /// the object can be changed for the better.
    pub(super) fn verdict(mut self, before: Option<Self>) -> Result<Answer, Denial> {
        let before = before.unwrap_or_default();
        self.faults.retain(|fault| !before.faults.contains(fault));
        if self.faults.is_empty() {
            return Ok(Answer {
                object: None,
                warnings: self.warnings,
            });
        }
        self.faults.truncate(MOST);
        Err(Denial::Invalid(self.faults))
    }
}

/// Whether a text is a DNS label: what containers and ports are called, and what names of pods are made of.
pub(super) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_subdomain(text)
}

/// Whether a text is a DNS subdomain: what objects are called.
pub(super) fn is_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = label.as_bytes();
        bytes.first().is_some_and(|b| inner(*b))
            && bytes.last().is_some_and(|b| inner(*b))
            && bytes.iter().all(|b| inner(*b) || *b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrong_before_may_stay() {
        let findings = |faults: &[&str]| {
            let mut findings = Findings::default();
            for fault in faults {
                findings.fault(*fault, "wrong");
            }
            findings
        };
        assert!(
            findings(&["a"])
                .verdict(Some(findings(&["a", "b"])))
                .is_ok()
        );
        assert_eq!(
            findings(&["a", "c"]).verdict(Some(findings(&["a"]))),
            Err(Denial::Invalid(vec![Fault::new("c", "wrong")]))
        );
        assert!(findings(&["a"]).verdict(None).is_err());
    }

    #[test]
    fn names_are_kubernetes_names() {
        for (text, label, subdomain) in [
            ("a", true, true),
            ("a-1", true, true),
            ("a.b", false, true),
            ("A", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("", false, false),
            ("a..b", false, false),
        ] {
            assert_eq!(
                (is_dns_label(text), is_subdomain(text)),
                (label, subdomain),
                "{text}"
            );
        }
        assert!(!is_dns_label(&"a".repeat(64)) && is_subdomain(&"a".repeat(64)));
    }
}
