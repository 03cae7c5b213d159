//! `matchConditions`: expressions that all must hold before anybody is asked.

use crate::{
    causes::{duplicate, invalid, required, too_many},
    validation::names::qualified_name,
};
use serde_json::Value;
use yurt_cel::{Budget, Error, Expression, Type, Val};
use yurt_wire::status::Cause;

/// Conditions of one webhook or policy.
const MAX_CONDITIONS: usize = 64;

/// Expressions that have been read.
#[derive(Debug, Default)]
pub(super) struct Conditions(Vec<Expression>);

/// What conditions say of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Match {
    Yes,
    No,
    /// None is false, but some have no value.
    Unknown(String),
}

/// The names every expression of admission knows.
pub(crate) const VARIABLES: &[&str] = &["object", "oldObject", "request"];

/// Reads an expression over some names of unknown types.
pub(crate) fn compile<'s>(
    source: &str,
    names: &[&'s str],
) -> Result<(Expression, Type<'s>), String> {
    let variables: Vec<(&str, Type<'s>)> = names.iter().map(|name| (*name, Type::Any)).collect();
    Expression::compile(source, &variables)
}

impl Conditions {
    /// Reads conditions that were validated when they were stored; otherwise why they make no sense now.
    pub(super) fn read(conditions: &Value, names: &[&str]) -> Result<Self, String> {
        let conditions = conditions.as_array().into_iter().flatten();
        conditions
            .map(|condition| {
                let source = condition["expression"].as_str().unwrap_or_default();
                compile(source, names).map(|(expression, _)| expression)
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn evaluate(&self, variables: &[(&str, Val<'_>)], budget: &mut Budget) -> Match {
        let mut errors = Vec::new();
        for expression in &self.0 {
            match expression.evaluate(variables, budget) {
                Ok(Val::Bool(false)) => return Match::No,
                Ok(Val::Bool(true)) => {}
                Ok(_) => errors.push("must evaluate to bool".to_owned()),
                Err(error @ (Error::Budget | Error::Failed(_))) => errors.push(error.to_string()),
            }
        }
        match errors.as_slice() {
            [] => Match::Yes,
            [one] => Match::Unknown(one.clone()),
            many => Match::Unknown(format!("[{}]", many.join(", "))),
        }
    }
}

/// What is wrong with an expression that must be a bool (or a string).
pub(crate) fn check_expression(
    at: &str,
    source: &Value,
    names: &[&str],
    wanted: &'static str,
    causes: &mut Vec<Cause>,
) {
    let text = source.as_str().unwrap_or_default();
    if text.trim().is_empty() {
        causes.push(required(at, ""));
        return;
    }
    match compile(text, names) {
        Ok((_, Type::Any)) => {}
        Ok((_, Type::Plain(found))) if found == wanted || wanted.is_empty() => {}
        Ok(_) if wanted.is_empty() => {}
        Ok(_) => causes.push(invalid(at, source, &format!("must evaluate to {wanted}"))),
        Err(why) => causes.push(invalid(at, source, &format!("compilation failed: {why}"))),
    }
}

/// What is wrong with conditions.
pub(crate) fn check(at: &str, conditions: &Value, names: &[&str], causes: &mut Vec<Cause>) {
    let conditions = conditions.as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.len() > MAX_CONDITIONS {
        causes.push(too_many(at, conditions.len(), MAX_CONDITIONS as u64));
        return;
    }
    let mut seen = std::collections::BTreeSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = condition["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            causes.push(required(&format!("{at}.name"), ""));
        } else if let Some(why) = qualified_name(name).first() {
            causes.push(invalid(&format!("{at}.name"), &condition["name"], why));
        } else if !seen.insert(name) {
            causes.push(duplicate(&format!("{at}.name"), &condition["name"]));
        }
        check_expression(
            &format!("{at}.expression"),
            &condition["expression"],
            names,
            "bool",
            causes,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn false_wins_over_errors_and_errors_over_true() {
        let object = json!({"a": 1});
        let run = |sources: &[&str]| {
            let list: Vec<Value> = sources
                .iter()
                .map(|s| json!({"name": "n", "expression": s}))
                .collect();
            let conditions = Conditions::read(&json!(list), VARIABLES).expect("readable");
            let variables = [("object", Val::of(&object, None))];
            conditions.evaluate(&variables, &mut Budget::default())
        };
        assert_eq!(run(&["object.a == 1", "true"]), Match::Yes);
        assert_eq!(run(&["object.b == 1", "object.a == 2"]), Match::No);
        assert_eq!(
            run(&["object.b == 1", "true"]),
            Match::Unknown("no such key: b".into())
        );
    }

    #[test]
    fn bad_conditions_are_refused() {
        let check = |conditions: Value| {
            let mut causes = Vec::new();
            check("c", &conditions, VARIABLES, &mut causes);
            let said: Vec<String> = causes
                .iter()
                .map(|c| format!("{}: {}", c.field, c.message))
                .collect();
            said.join(" ")
        };
        assert_eq!(check(json!([{"name": "a", "expression": "true"}])), "");
        for (conditions, why) in [
            (
                json!([{"name": "a", "expression": "..."}]),
                "c[0].expression: Invalid value: \"...\": compilation failed",
            ),
            (
                json!([{"name": "", "expression": "true"}]),
                "c[0].name: Required value",
            ),
            (
                json!([{"name": "a", "expression": "1"}]),
                "must evaluate to bool",
            ),
            (
                json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": "true"}]),
                "Duplicate value",
            ),
        ] {
            let said = check(conditions);
            assert!(said.contains(why), "{said}");
        }
    }
}
