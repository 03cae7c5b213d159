//! The Common Expression Language, as Kubernetes uses it: rules of CRDs, match conditions of webhooks, admission policies,
//! rules of a hub's users.
//!
//! Parsing is the `cel` crate's. Evaluation is here, because that crate's has no limit of work or memory and panics on
//! trees that its parser accepts, which ends a server: here every step is counted against a [`Budget`].
//!
//! Begin with [`Expression::compile`]. What types values have is told by whoever knows their schemas ([`Schema`]).

mod check;
mod eval;
mod functions;
mod json;
mod patterns;
mod schema;
mod time;
mod value;
mod walk;

pub use check::{Fields, Type};
pub use schema::{Declared, Form, Schema};
pub use value::{Key, Val, escaped};

use cel::{
    common::ast::{Expr, IdedExpr},
    parser::PrattParser,
};
use eval::{Meter, Scope};
use patterns::Patterns;

/// Longer expressions are refused.
const MAX_SOURCE: usize = 64 << 10;
/// Trees with more nodes are refused.
const MAX_NODES: usize = 20_000;
/// Steps of one expression, as kube-apiserver's `PerCallLimit`.
const CALL_STEPS: u64 = 1_000_000;
/// Steps of all expressions of one request, as kube-apiserver's `RuntimeCELCostBudget`.
const REQUEST_STEPS: u64 = 10_000_000;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// It was too much work.
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
    /// It makes no sense for these values.
    #[error("{0}")]
    Failed(String),
}

/// The work that the expressions of one request may do together.
#[derive(Debug)]
pub struct Budget {
    steps: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            steps: REQUEST_STEPS,
        }
    }
}

impl Budget {
    /// So many steps: a node of a syntax tree that is looked at, an item that is copied, ten characters that are read.
    pub fn of(steps: u64) -> Self {
        Self { steps }
    }

    /// Nothing more may be done.
    pub fn spent() -> Self {
        Self { steps: 0 }
    }

    /// Whether nothing more may be done.
    pub fn is_spent(&self) -> bool {
        self.steps == 0
    }
}

/// An expression that has been read.
#[derive(Clone, Debug)]
pub struct Expression {
    tree: IdedExpr,
    patterns: Patterns,
}

impl Expression {
    /// Reads an expression over variables of known types; otherwise what is wrong with it.
    pub fn compile<'s>(
        source: &str,
        variables: &[(&str, Type<'s>)],
    ) -> Result<(Self, Type<'s>), String> {
        if source.len() > MAX_SOURCE {
            return Err(format!(
                "expression of {} bytes is longer than {MAX_SOURCE}",
                source.len()
            ));
        }
        let tree = PrattParser::new()
            .enable_optional_syntax(true)
            .max_expression_node_count(MAX_NODES)
            .parse(source)
            .map_err(|errors| errors.to_string())?;
        let found = check::check(&tree, source, variables)?;
        let patterns = Patterns::of(&tree);
        Ok((Self { tree, patterns }, found))
    }

    /// Whether it speaks of a variable.
    pub fn mentions(&self, variable: &str) -> bool {
        let mut found = false;
        walk::each(&self.tree, &mut |expr| {
            found |= matches!(&expr.expr, Expr::Ident(name) if name == variable);
        });
        found
    }

    /// Its value for these variables.
    pub fn evaluate<'v>(
        &self,
        variables: &[(&str, Val<'v>)],
        budget: &mut Budget,
    ) -> Result<Val<'v>, Error> {
        let allowed = budget.steps.min(CALL_STEPS);
        let mut meter = Meter {
            left: allowed,
            patterns: &self.patterns,
        };
        let outcome = eval::eval(&self.tree, &Scope::Root(variables), &mut meter);
        budget.steps = budget.steps.saturating_sub(allowed - meter.left);
        outcome
    }
}

#[cfg(test)]
mod tests;
