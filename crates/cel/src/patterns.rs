//! Regular expressions that an expression has as literals, made when it is read: making one costs more than most matches.

use super::walk;
use cel::common::ast::{Expr, IdedExpr, LiteralValue};
use regex::Regex;
use std::sync::Arc;

/// Regular expressions larger than this are refused.
const MAX_REGEX: usize = 1 << 20;
/// Those of one expression that are prepared.
const MOST: usize = 16;
/// Steps for making one that was not prepared.
pub(super) const COST: u64 = 1_000;

pub(super) fn regex(pattern: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(pattern)
        .size_limit(MAX_REGEX)
        .build()
}

/// By their texts.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns(Arc<[(Box<str>, Regex)]>);

impl Patterns {
    /// Of a syntax tree. What is none is left out: evaluation says what is wrong with it.
    pub(super) fn of(tree: &IdedExpr) -> Self {
        let mut found: Vec<(Box<str>, Regex)> = Vec::new();
        walk::each(tree, &mut |expr| {
            let Expr::Call(call) = &expr.expr else { return };
            let takes_one = matches!(call.func_name.as_str(), "matches" | "find" | "findAll");
            // `matches(text, pattern)` is written as well as `text.matches(pattern)`.
            let at = usize::from(call.target.is_none());
            let Some(Expr::Literal(LiteralValue::String(text))) =
                call.args.get(at).filter(|_| takes_one).map(|arg| &arg.expr)
            else {
                return;
            };
            let text = text.inner();
            let known = found.iter().any(|(known, _)| **known == *text);
            if found.len() < MOST
                && !known
                && let Ok(regex) = regex(text)
            {
                found.push((text.into(), regex));
            }
        });
        Self(found.into())
    }

    pub(super) fn get(&self, pattern: &str) -> Option<&Regex> {
        let found = self.0.iter().find(|(known, _)| **known == *pattern);
        found.map(|(_, regex)| regex)
    }
}
