//! What expressions of rules know: the object, the node, its pool.

use crate::filter::{Context, Inputs};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use yurt_cel::{Budget, Declared, Error, Expression, Form, Key, Type, Val};

/// Steps that the expressions of one rule may take for one object. A comparison of a thousand endpoints with a hundred nodes takes half
/// of them; in time they are some milliseconds.
const STEPS: u64 = 250_000;

static TEXT: Declared = Declared::TEXT;
static TEXTS: Declared = Declared::of(Form::List, &TEXT);
static LABELS: Declared = Declared::of(Form::Map, &TEXT);
static NODE: Declared = Declared::object(&[("name", &TEXT), ("labels", &LABELS)]);
static POOL: Declared = Declared::object(&[("name", &TEXT), ("nodes", &TEXTS)]);

/// The names that expressions may use, with their types.
pub(super) fn types() -> [(&'static str, Type<'static>); 3] {
    [
        ("object", Type::Any),
        ("node", Type::of(&NODE, false)),
        ("pool", Type::of(&POOL, false)),
    ]
}

/// What else than the object an expression depends on.
pub(super) fn inputs(expression: &Expression) -> Inputs {
    let input = |name, input| match expression.mentions(name) {
        true => input,
        false => Inputs::NONE,
    };
    input("node", Inputs::NODE) | input("pool", Inputs::POOL)
}

/// Evaluates expressions of one rule for one object.
pub(super) struct Environment<'v> {
    object: &'v Value,
    context: &'v Context,
    budget: Budget,
}

impl<'v> Environment<'v> {
    pub(super) fn new(object: &'v Value, context: &'v Context) -> Self {
        Self {
            object,
            context,
            budget: Budget::of(STEPS),
        }
    }

    fn evaluate(&mut self, expression: &Expression) -> Result<Val<'v>, Error> {
        let mut variables = vec![("object", Val::of(self.object, None))];
        if expression.mentions("node") {
            variables.push(("node", node(self.context)));
        }
        if expression.mentions("pool") {
            variables.push(("pool", pool(self.context)));
        }
        expression.evaluate(&variables, &mut self.budget)
    }

    /// Whether a condition holds.
    pub(super) fn holds(&mut self, condition: &Expression) -> Result<bool, Error> {
        let value = self.evaluate(condition)?;
        value.as_bool().ok_or_else(|| {
            let is = value.type_name();
            Error::Failed(format!("is of type {is}, neither true nor false"))
        })
    }

    /// A value as JSON; `None` for `optional.none()`.
    pub(super) fn value(&mut self, expression: &Expression) -> Result<Option<Value>, Error> {
        match self.evaluate(expression)? {
            Val::Optional(None) => Ok(None),
            Val::Optional(Some(inner)) => inner.to_json(&mut self.budget).map(Some),
            value => value.to_json(&mut self.budget).map(Some),
        }
    }
}

fn map<'v, const N: usize>(fields: [(&str, Val<'v>); N]) -> Val<'v> {
    let field = |(name, value): (&str, Val<'v>)| (Key::String(name.into()), value);
    Val::Map(Arc::new(fields.into_iter().map(field).collect()))
}

fn node<'v>(context: &Context) -> Val<'v> {
    let label =
        |(name, value): (&String, &String)| (Key::String(name.as_str().into()), Val::text(value));
    let labels: BTreeMap<_, _> = context.node_labels.iter().map(label).collect();
    map([
        ("name", Val::text(&context.node)),
        ("labels", Val::Map(Arc::new(labels))),
    ])
}

/// While its nodes are not known, `pool.nodes` is an error, rather than a pool of none.
fn pool<'v>(context: &Context) -> Val<'v> {
    let name = Val::text(&context.pool);
    let nodes = match &context.membership.nodes {
        Some(nodes) => nodes.iter().map(|name| Val::text(name)).collect(),
        None if context.pool.is_empty() => Vec::new(),
        None => return map([("name", name)]),
    };
    map([("name", name), ("nodes", Val::List(Arc::new(nodes)))])
}
