//! The grammars of both selectors.

use super::{FieldRequirement, Op, Requirement, SelectorError, label_syntax};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// An identifier, or one of the words `in` and `notin`, which are operators only behind a key.
    Word(&'a str),
    /// `=`, `==`, `!=`, `!`, `<`, `>`, `(`, `)`, `,`.
    Symbol(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) | Self::Symbol(text) => text,
            Self::End => "",
        }
    }
}

/// The text of a failed expectation.
fn unexpected(found: Token<'_>, expected: &str) -> String {
    format!("found '{}', expected: {expected}", found.text())
}

struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn split(&self) -> (Token<'a>, &'a str) {
        let text = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if text.is_empty() {
            return (Token::End, text);
        }
        for symbol in ["==", "!=", "=", "!", "<", ">", "(", ")", ","] {
            if let Some(tail) = text.strip_prefix(symbol) {
                return (Token::Symbol(&text[..symbol.len()]), tail);
            }
        }
        let end = text
            .find([' ', '\t', '\r', '\n', '=', '!', '(', ')', ',', '>', '<'])
            .unwrap_or(text.len());
        let (word, tail) = text.split_at(end);
        (Token::Word(word), tail)
    }
    fn peek(&self) -> Token<'a> {
        self.split().0
    }
    fn next(&mut self) -> Token<'a> {
        let (token, rest) = self.split();
        self.rest = rest;
        token
    }
}

pub(super) fn parse_labels(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut lexer = Lexer { rest: text };
    let mut requirements = Vec::with_capacity(terms(text));
    match lexer.peek() {
        Token::End => return Ok(requirements),
        Token::Word(_) | Token::Symbol("!") => {}
        other => {
            return Err(SelectorError(unexpected(
                other,
                "!, identifier, or 'end of string'",
            )));
        }
    }
    loop {
        let requirement = requirement(&mut lexer)
            .map_err(|error| SelectorError(format!("unable to parse requirement: {error}")))?;
        requirements.push(requirement);
        match lexer.next() {
            Token::End => return Ok(requirements),
            Token::Symbol(",") => {}
            other => {
                return Err(SelectorError(unexpected(other, "',' or 'end of string'")));
            }
        }
        match lexer.peek() {
            Token::Word(_) | Token::Symbol("!") => {}
            other => return Err(SelectorError(unexpected(other, "identifier after ','"))),
        }
    }
}

/// The requirements that a selector can have at most, so that room is made for them once: separators outside sets.
fn terms(text: &str) -> usize {
    let mut in_set = false;
    let separators = text.bytes().filter(|byte| {
        in_set = *byte == b'(' || (in_set && *byte != b')');
        *byte == b',' && !in_set
    });
    // None is empty, so that there are no more than half as many as bytes.
    separators.count().min(text.len() / 2) + 1
}

fn requirement(lexer: &mut Lexer<'_>) -> Result<Requirement, String> {
    let checked = |key: &str, op, values| Requirement::new(key, op, values).map_err(|e| e.0);
    let mut token = lexer.next();
    let negated = token == Token::Symbol("!");
    if negated {
        token = lexer.next();
    }
    let Token::Word(key) = token else {
        return Err(unexpected(token, "identifier"));
    };
    label_syntax::check_key(key).map_err(|e| e.0)?;
    if negated {
        return checked(key, Op::DoesNotExist, Vec::new());
    }
    if matches!(lexer.peek(), Token::End | Token::Symbol(",")) {
        return checked(key, Op::Exists, Vec::new());
    }
    let op = match lexer.next() {
        Token::Word("in") => Op::In,
        Token::Word("notin") => Op::NotIn,
        Token::Symbol("=" | "==") => Op::Equals,
        Token::Symbol("!=") => Op::NotEquals,
        Token::Symbol(">") => Op::GreaterThan,
        Token::Symbol("<") => Op::LessThan,
        other => return Err(unexpected(other, "in, notin, =, ==, !=, gt, lt")),
    };
    let values = if matches!(op, Op::In | Op::NotIn) {
        value_set(lexer)?
    } else {
        vec![exact_value(lexer)?]
    };
    checked(key, op, values)
}

/// The value behind a comparison; nothing at all means the empty value.
fn exact_value(lexer: &mut Lexer<'_>) -> Result<String, String> {
    if matches!(lexer.peek(), Token::End | Token::Symbol(",")) {
        return Ok(String::new());
    }
    match lexer.next() {
        Token::Word(value) => Ok(value.to_owned()),
        other => Err(unexpected(other, "identifier")),
    }
}

/// `(a,b)`. Nothing between two separators means the empty value.
fn value_set(lexer: &mut Lexer<'_>) -> Result<Vec<String>, String> {
    match lexer.next() {
        Token::Symbol("(") => {}
        other => return Err(format!("found '{}' expected: '('", other.text())),
    }
    let set = lexer.rest.split(')').next().unwrap_or_default();
    let mut values = Vec::with_capacity(1 + set.bytes().filter(|&b| b == b',').count());
    loop {
        let value = match lexer.peek() {
            Token::Word(value) => {
                lexer.next();
                value
            }
            Token::Symbol("," | ")") => "",
            other => return Err(unexpected(other, "',', ')' or identifier")),
        };
        values.push(value.to_owned());
        match lexer.next() {
            Token::Symbol(",") => {}
            Token::Symbol(")") => return Ok(values),
            other => return Err(unexpected(other, "',' or ')'")),
        }
    }
}

pub(super) fn parse_fields(text: &str) -> Result<Vec<FieldRequirement>, SelectorError> {
    let some = split_terms(text).filter(|term| !term.is_empty());
    let mut requirements = Vec::with_capacity(some.count());
    for term in split_terms(text) {
        if term.is_empty() {
            continue;
        }
        let Some((path, equals, value)) = split_term(term) else {
            return Err(SelectorError(format!(
                "invalid selector: '{text}'; can't understand '{term}'"
            )));
        };
        let value = unescape(value)?;
        // `=` and `!=` alone say nothing.
        if path.is_empty() && value.is_empty() {
            continue;
        }
        requirements.push(FieldRequirement {
            path: path.to_owned(),
            equals,
            value,
        });
    }
    Ok(requirements)
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        if escaped {
            escaped = false;
            return false;
        }
        escaped = c == '\\';
        c == ','
    })
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in term.char_indices() {
        let (path, rest) = term.split_at(at);
        for (op, equals) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(op) {
                return Some((path, equals, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let invalid = |sequence: String| {
        SelectorError(format!(
            "invalid field selector: invalid escape sequence: {sequence}"
        ))
    };
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                Some(other) => return Err(invalid(format!("\\{other}"))),
                None => return Err(invalid("\\".to_owned())),
            },
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {}",
                    u32::from(c)
                )));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}
