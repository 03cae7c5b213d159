//! What keys and values of labels may be, with the error texts of `k8s.io/apimachinery` (clients show them).

use super::{Op, SelectorError};
use crate::status::quoted;

const NAME_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const NAME_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const SUBDOMAIN_FORMAT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
/// Longest name part of a key, and longest value, in bytes.
const MAX_NAME: usize = 63;
/// Wrong values that one requirement's error tells of: each takes some hundred bytes, and a value of one byte may be
/// wrong.
const MAX_WRONG_VALUES: usize = 16;
/// Longest prefix of a key, in bytes.
const MAX_SUBDOMAIN: usize = 253;

fn pattern_error(rule: &str, format: &str, examples: &str) -> String {
    format!("{rule} (e.g. {examples}, regex used for validation is '{format}')")
}

fn length_error(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

/// `NAME_FORMAT`.
fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `SUBDOMAIN_FORMAT`.
fn is_subdomain(text: &str) -> bool {
    let lower = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.split('.').all(|label| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(lower)
            && bytes.last().is_some_and(lower)
            && bytes.iter().all(|b| lower(b) || *b == b'-')
    })
}

/// What is wrong with a label key (`[prefix/]name`); empty when it is valid.
pub fn label_key_errors(key: &str) -> Vec<String> {
    let name_examples = "'MyName',  or 'my.name',  or '123-abc'";
    let mut errors = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                pattern_error(NAME_RULE, NAME_FORMAT, name_examples)
            )];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                if prefix.len() > MAX_SUBDOMAIN {
                    errors.push(format!("prefix part {}", length_error(MAX_SUBDOMAIN)));
                }
                if !is_subdomain(prefix) {
                    errors.push(format!(
                        "prefix part {}",
                        pattern_error(SUBDOMAIN_RULE, SUBDOMAIN_FORMAT, "'example.com'")
                    ));
                }
            }
            name
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > MAX_NAME {
        errors.push(format!("name part {}", length_error(MAX_NAME)));
    }
    if !is_name(name) {
        errors.push(format!(
            "name part {}",
            pattern_error(NAME_RULE, NAME_FORMAT, name_examples)
        ));
    }
    errors
}

/// What is wrong with a label value; empty when it is valid.
pub fn label_value_errors(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > MAX_NAME {
        errors.push(length_error(MAX_NAME));
    }
    if !value.is_empty() && !is_name(value) {
        errors.push(pattern_error(
            VALUE_RULE,
            &format!("({NAME_FORMAT})?"),
            "'MyValue',  or 'my_value',  or '12345'",
        ));
    }
    errors
}

/// The error for a key outside any requirement (its field path is empty, which Go prints as `<nil>`).
pub(super) fn check_key(key: &str) -> Result<(), SelectorError> {
    let errors = label_key_errors(key);
    if errors.is_empty() {
        return Ok(());
    }
    Err(SelectorError(format!(
        "<nil>: Invalid value: {}: {}",
        quoted(key),
        errors.join("; ")
    )))
}

pub(super) fn check_requirement(key: &str, op: Op, values: &[String]) -> Result<(), SelectorError> {
    let mut errors = Vec::new();
    let key_errors = label_key_errors(key);
    if !key_errors.is_empty() {
        errors.push(format!(
            "key: Invalid value: {}: {}",
            quoted(key),
            key_errors.join("; ")
        ));
    }
    let count_error = match op {
        Op::In | Op::NotIn if values.is_empty() => {
            Some("for 'in', 'notin' operators, values set can't be empty")
        }
        Op::Equals | Op::NotEquals if values.len() != 1 => {
            Some("exact-match compatibility requires one single value")
        }
        Op::Exists | Op::DoesNotExist if !values.is_empty() => {
            Some("values set must be empty for exists and does not exist")
        }
        Op::GreaterThan | Op::LessThan if values.len() != 1 => {
            Some("for 'Gt', 'Lt' operators, exactly one value is required")
        }
        _ => None,
    };
    if let Some(error) = count_error {
        let shown: Vec<String> = values.iter().map(|v| quoted(v)).collect();
        errors.push(format!(
            "values: Invalid value: [{}]: {error}",
            shown.join(",")
        ));
    }
    if matches!(op, Op::GreaterThan | Op::LessThan) {
        for (at, value) in values.iter().enumerate() {
            if value.parse::<i64>().is_err() {
                errors.push(format!(
                    "values[{at}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                    quoted(value)
                ));
            }
        }
    }
    let mut wrong = 0;
    for (at, value) in values.iter().enumerate() {
        let value_errors = label_value_errors(value);
        if !value_errors.is_empty() {
            wrong += 1;
            if wrong > MAX_WRONG_VALUES {
                break;
            }
            errors.push(format!(
                "values[{at}][{key}]: Invalid value: {}: {}",
                quoted(value),
                value_errors.join("; ")
            ));
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(SelectorError(one.clone())),
        many => Err(SelectorError(format!("[{}]", many.join(", ")))),
    }
}
