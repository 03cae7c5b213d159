//! The part of JSONPath that printer columns of CRDs use: `.spec.a`, `.a['b.c']`, `.a.b\.c`, `.list[0]`, `.list[-1]`,
//! `.list[*]` and `.list[?(@.type=="Ready")].status`.

use serde_json::Value;

/// Longest path and most steps that are taken; a CRD's own paths are far below.
const MAX_LENGTH: usize = 4096;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// Counted from the end when negative.
    Index(i64),
    /// Every element of a list, every value of a map.
    All,
    Filter(Filter),
}

/// `@.path <op> literal`, or `@.path` alone: the elements that have it.
#[derive(Clone, Debug, PartialEq)]
struct Filter {
    path: JsonPath,
    test: Option<(Comparison, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    /// Longest first, so that `<=` is not read as `<`.
    const ALL: [(&'static str, Self); 6] = [
        ("==", Self::Equal),
        ("!=", Self::NotEqual),
        ("<=", Self::LessOrEqual),
        (">=", Self::GreaterOrEqual),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    fn holds(self, left: &Value, right: &Value) -> bool {
        use std::cmp::Ordering;
        let order = match (left, right) {
            (Value::Number(left), Value::Number(right)) => left
                .as_f64()
                .zip(right.as_f64())
                .and_then(|(left, right)| left.partial_cmp(&right)),
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            (left, right) if left == right => Some(Ordering::Equal),
            _ => None,
        };
        match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::NotEqual => order != Some(Ordering::Equal),
            Self::Less => order == Some(Ordering::Less),
            Self::Greater => order == Some(Ordering::Greater),
            Self::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Self::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

impl JsonPath {
    /// Parses a path; `None` for what is malformed or goes beyond the subset.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_LENGTH {
            return None;
        }
        let mut rest = text.trim();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside.strip_suffix('}')?;
        }
        Self::steps(rest.strip_prefix('$').unwrap_or(rest), true)
    }

    fn steps(mut rest: &str, filters: bool) -> Option<Self> {
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, tail) = if let Some(after) = rest.strip_prefix('.') {
                field(after)?
            } else if let Some(after) = rest.strip_prefix('[') {
                brackets(after, filters)?
            } else if steps.is_empty() {
                // A path may start without a dot.
                field(rest)?
            } else {
                return None;
            };
            steps.extend(step);
            rest = tail;
        }
        Some(Self(steps))
    }

    /// The first value at the path.
    pub(super) fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        let mut found = vec![root];
        for step in &self.0 {
            found = found
                .into_iter()
                .flat_map(|value| step.apply(value))
                .collect();
        }
        found.first().copied()
    }
}

impl Step {
    fn apply<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Field(name), _) => value.get(name.as_str()).into_iter().collect(),
            (Self::Index(index), Value::Array(items)) => {
                let at = match usize::try_from(*index) {
                    Ok(at) => Some(at),
                    Err(_) => usize::try_from(index.unsigned_abs())
                        .ok()
                        .and_then(|back| items.len().checked_sub(back)),
                };
                at.and_then(|at| items.get(at)).into_iter().collect()
            }
            (Self::All, Value::Array(items)) => items.iter().collect(),
            (Self::All, Value::Object(fields)) => fields.values().collect(),
            (Self::Filter(filter), Value::Array(items)) => {
                items.iter().filter(|item| filter.admits(item)).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Filter {
    fn admits(&self, item: &Value) -> bool {
        match (self.path.first(item), &self.test) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(left), Some((comparison, right))) => comparison.holds(left, right),
        }
    }
}

/// A field name up to the next separator, `\` taking the next character as it is. No step for `*`-less empty names,
/// which stand between `.` and `[`.
fn field(text: &str) -> Option<(Option<Step>, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => {
                end = at;
                break;
            }
            ']' | '(' | ')' | '{' | '}' => return None,
            c if c.is_whitespace() => return None,
            c => name.push(c),
        }
    }
    let rest = &text[end..];
    match name.as_str() {
        // `..` descends, which is beyond the subset.
        "" if rest.starts_with('.') => None,
        "" => Some((None, rest)),
        "*" => Some((Some(Step::All), rest)),
        _ => Some((Some(Step::Field(name)), rest)),
    }
}

/// What stands in brackets; the text starts behind the opening one.
fn brackets(text: &str, filters: bool) -> Option<(Option<Step>, &str)> {
    let end = closing_bracket(text)?;
    let (inside, rest) = (text[..end].trim(), &text[end + 1..]);
    let step = if inside == "*" {
        Step::All
    } else if let Some(name) = quoted(inside) {
        Step::Field(name)
    } else if let Some(filter) = inside.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        // A filter inside a filter is beyond the subset.
        if !filters {
            return None;
        }
        Step::Filter(parse_filter(filter)?)
    } else {
        Step::Index(inside.parse().ok()?)
    };
    Some((Some(step), rest))
}

/// Where the bracket ends, quoted text and nested brackets passed over.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(q), c) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => open += 1,
            (None, ']') if open == 0 => return Some(at),
            (None, ']') => open -= 1,
            (None, _) => {}
        }
    }
    None
}

/// The text in a pair of quotes.
fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inside = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut out = String::with_capacity(inside.len());
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next()?),
            c if c == quote => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

fn parse_filter(text: &str) -> Option<Filter> {
    let text = text.trim().strip_prefix('@')?;
    let found = text.char_indices().find_map(|(at, _)| {
        Comparison::ALL
            .into_iter()
            .find(|(sign, _)| text[at..].starts_with(sign))
            .map(|(sign, comparison)| (at, sign, comparison))
    });
    let Some((at, sign, comparison)) = found else {
        let path = JsonPath::steps(text.trim(), false)?;
        return Some(Filter { path, test: None });
    };
    let path = JsonPath::steps(text[..at].trim(), false)?;
    let right = text[at + sign.len()..].trim();
    let literal = match quoted(right) {
        Some(text) => Value::String(text),
        None => match right {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            number => Value::Number(number.parse().ok()?),
        },
    };
    Some(Filter {
        path,
        test: Some((comparison, literal)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn at<'a>(path: &str, value: &'a Value) -> Option<&'a Value> {
        JsonPath::parse(path).and_then(|path| path.first(value))
    }

    #[test]
    fn finds_what_columns_ask_for() {
        let value = json!({
            "spec": {"a": {"b": 1}, "x.y": "dotted", "list": ["p", "q", "r"]},
            "status": {"conditions": [
                {"type": "Other", "status": "No", "n": 1},
                {"type": "Ready", "status": "True", "n": 2.5, "last": true},
            ]},
        });
        for (path, expected) in [
            (".spec.a.b", json!(1)),
            ("spec.a.b", json!(1)),
            ("$.spec.a.b", json!(1)),
            ("{.spec.a.b}", json!(1)),
            (".spec.a", json!({"b": 1})),
            (r".spec.x\.y", json!("dotted")),
            (".spec['x.y']", json!("dotted")),
            (".spec.[\"x.y\"]", json!("dotted")),
            (".spec.list[1]", json!("q")),
            (".spec.list[-1]", json!("r")),
            (".spec.list[*]", json!("p")),
            (".spec.a.*", json!(1)),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                json!("True"),
            ),
            (
                ".status.conditions[?(@.type == 'Ready')].status",
                json!("True"),
            ),
            (
                ".status.conditions[?(@.type!='Other')].status",
                json!("True"),
            ),
            (".status.conditions[?(@.n>=2)].type", json!("Ready")),
            (".status.conditions[?(@.n<2)].type", json!("Other")),
            (".status.conditions[?(@.last==true)].type", json!("Ready")),
            (".status.conditions[?(@.last)].type", json!("Ready")),
            (
                ".status.conditions[?(@['type']=='Ready')].status",
                json!("True"),
            ),
        ] {
            assert_eq!(at(path, &value), Some(&expected), "{path}");
        }
        for path in [
            ".spec.none",
            ".spec.list[3]",
            ".spec.list[-4]",
            ".spec.list.x",
            ".status.conditions[?(@.type=='None')].status",
        ] {
            assert!(JsonPath::parse(path).is_some(), "{path}");
            assert_eq!(at(path, &value), None, "{path}");
        }
    }

    #[test]
    fn refuses_what_is_malformed_or_beyond() {
        for path in [
            "..a",
            ".a..b",
            ".a[",
            ".a[x]",
            ".a[?(@.b==)]",
            ".a[?(b==1)]",
            ".a]",
            ".a['b]",
            ".a\\",
            ".a[0:2]",
            ".a b",
            ".a[?(@.b[?(@.c)])]",
        ] {
            assert_eq!(JsonPath::parse(path), None, "{path}");
        }
        assert_eq!(JsonPath::parse(&".a".repeat(MAX_LENGTH)), None);
    }

    proptest! {
        #[test]
        fn any_path_is_read_without_a_panic(pieces in prop::collection::vec(prop::sample::select(vec![
            ".", "a", "[", "]", "?(", ")", "@", "==", "<", "'", "\"", "\\", "*", "0", "-1", " ", "é", "{", "}", "$",
        ]), 0..16), text in ".{0,24}") {
            let value = json!({"a": [{"a": 0}, {"é": {"a": "0"}}]});
            let _ = (at(&pieces.concat(), &value), at(&text, &value));
        }
    }
}
