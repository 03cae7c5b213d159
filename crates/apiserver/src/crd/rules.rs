//! `x-kubernetes-validations`: read with the schema, run on objects that fit their types.

use super::{
    prune::join,
    structural::{Additional, Structural},
};
use crate::causes::{duplicate, forbidden, invalid, not_supported, required};
use serde_json::{Map, Value};
use std::sync::Arc;
use yurt_cel::{Budget, Error, Expression, Type, Val};
use yurt_wire::status::Cause;

/// What rules may say of themselves.
const REASONS: &[&str] = &[
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

/// A rule that has been read.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    expression: Expression,
    source: String,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
    /// Below the schema's own path, `""` for itself.
    field_path: String,
    /// Whether it compares with the object before.
    transition: bool,
    /// Whether `oldSelf` is optional, so that the rule runs without an object before.
    optional_old: bool,
}

/// Reads the rules of a schema and of all below it. `correlatable` says whether a value here can be told to be the one it
/// was before.
pub(super) fn compile(
    schema: &mut Structural,
    path: &str,
    is_root: bool,
    correlatable: Result<(), &str>,
    causes: &mut Vec<Cause>,
) {
    for (name, property) in &mut schema.properties {
        let at = format!("{path}.properties[{name}]");
        compile(property, &at, false, correlatable, causes);
    }
    if let Some(Additional::Schema(inner)) = &mut schema.additional {
        let at = format!("{path}.additionalProperties");
        compile(inner, &at, false, correlatable, causes);
    }
    if let Some(items) = &mut schema.items {
        let keyed = schema.list_type.as_deref() == Some("map");
        let correlatable = if keyed { correlatable } else { Err(path) };
        compile(items, &format!("{path}.items"), false, correlatable, causes);
    }
    let rules: Vec<Rule> = schema
        .rules
        .iter()
        .enumerate()
        .filter_map(|(i, rule)| {
            let at = format!("{path}.x-kubernetes-validations[{i}]");
            read(schema, rule, &at, is_root, correlatable, causes)
        })
        .collect();
    schema.compiled = rules.into();
}

fn read(
    schema: &Structural,
    rule: &Value,
    path: &str,
    is_root: bool,
    correlatable: Result<(), &str>,
    causes: &mut Vec<Cause>,
) -> Option<Rule> {
    let before = causes.len();
    let text = |name: &str| rule[name].as_str().unwrap_or_default();
    let source = text("rule");
    let message = text("message");
    if source.trim().is_empty() {
        causes.push(required(&format!("{path}.rule"), "rule is not specified"));
        return None;
    }
    let at = format!("{path}.message");
    if rule["message"].is_string() && message.trim().is_empty() {
        causes.push(invalid(
            &at,
            &rule["message"],
            "message must be non-empty if specified",
        ));
    } else if message.trim().contains('\n') {
        causes.push(invalid(
            &at,
            &rule["message"],
            "message must not contain line breaks",
        ));
    } else if message.is_empty() && source.trim().contains('\n') {
        causes.push(required(
            &at,
            "message must be specified if rule contains line breaks",
        ));
    }
    let reason = text("reason");
    if !reason.is_empty() && !REASONS.contains(&reason) {
        causes.push(not_supported(
            &format!("{path}.reason"),
            &rule["reason"],
            REASONS,
        ));
    }
    let field_path = text("fieldPath");
    if !field_path.is_empty() && !leads_somewhere(schema, field_path) {
        causes.push(invalid(
            &format!("{path}.fieldPath"),
            &rule["fieldPath"],
            "fieldPath must be a valid path",
        ));
    }
    let own = Type::of(schema, is_root);
    let optional_old = rule["optionalOldSelf"] == true;
    let old = if optional_old { Type::Any } else { own.clone() };
    let alone = [("self", own.clone())];
    let both = [("self", own), ("oldSelf", old)];
    // A rule that only makes sense with `oldSelf` is a transition rule.
    let (compiled, transition) = match Expression::compile(source, &alone) {
        Err(_) => (Expression::compile(source, &both), true),
        compiled => (compiled, false),
    };
    let transition = transition && compiled.is_ok();
    let at = format!("{path}.rule");
    let refused = |why: &str| invalid(&at, &rule["rule"], why);
    let expression = match compiled {
        Ok((expression, Type::Any | Type::Plain("bool"))) => Some(expression),
        Ok(_) => {
            causes.push(refused("cel expression must evaluate to a bool"));
            None
        }
        Err(why) => {
            causes.push(refused(&format!("compilation failed: {why}")));
            None
        }
    };
    if transition && let Err(within) = correlatable {
        causes.push(refused(&format!(
            "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
        )));
    }
    if optional_old && !transition && expression.is_some() {
        causes.push(invalid(
            &format!("{path}.optionalOldSelf"),
            &rule["optionalOldSelf"],
            "may not be set if oldSelf is not used in rule",
        ));
    }
    let message_source = text("messageExpression");
    let message_expression = (!message_source.is_empty())
        .then(|| {
            let variables = if transition { &both[..] } else { &alone[..] };
            let at = format!("{path}.messageExpression");
            match Expression::compile(message_source, variables) {
                Ok((expression, Type::Any | Type::Plain("string"))) => Some(expression),
                Ok(_) => {
                    causes.push(invalid(
                        &at,
                        &rule["messageExpression"],
                        "messageExpression must evaluate to a string",
                    ));
                    None
                }
                Err(why) => {
                    let why = format!("messageExpression compilation failed: {why}");
                    causes.push(invalid(&at, &rule["messageExpression"], &why));
                    None
                }
            }
        })
        .flatten();
    let expression = expression.filter(|_| causes.len() == before)?;
    Some(Rule {
        expression,
        source: source.trim().to_owned(),
        message: message.trim().to_owned(),
        message_expression,
        reason: reason.to_owned(),
        field_path: field_path.to_owned(),
        transition,
        optional_old,
    })
}

/// Whether a `fieldPath` (`.a.b`, `.a['b']`) names a declared field.
fn leads_somewhere(schema: &Structural, path: &str) -> bool {
    let mut at = schema;
    let mut rest = path;
    while !rest.is_empty() {
        let (name, tail) = if let Some(quoted) = rest.strip_prefix("['") {
            match quoted.split_once("']") {
                Some(parts) => parts,
                None => return false,
            }
        } else if let Some(plain) = rest.strip_prefix('.') {
            let end = plain.find(['.', '[']).unwrap_or(plain.len());
            plain.split_at(end)
        } else {
            return false;
        };
        match at.property(name).filter(|_| !name.is_empty()) {
            Some(found) => at = found,
            None => return false,
        }
        rest = tail;
    }
    true
}

impl Structural {
    /// Whether a rule is anywhere in the schema.
    pub(crate) fn has_rules(&self) -> bool {
        !self.compiled.is_empty()
            || self.properties.values().any(Self::has_rules)
            || self.items.as_ref().is_some_and(|items| items.has_rules())
            || matches!(&self.additional, Some(Additional::Schema(inner)) if inner.has_rules())
    }

    /// Which rules an object breaks. Its types must have been validated.
    pub(crate) fn check_rules(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut run = Run {
            budget: Budget::default(),
            causes: Vec::new(),
        };
        run.walk(self, object, old, "");
        run.causes
    }
}

struct Run {
    budget: Budget,
    causes: Vec<Cause>,
}

impl Run {
    fn walk(&mut self, schema: &Structural, value: &Value, old: Option<&Value>, path: &str) {
        if value.is_null() || self.budget.is_spent() {
            return;
        }
        let unchanged = old == Some(value);
        for rule in schema.compiled.iter() {
            // Rules that came later do not lock what is not touched; transitions are always looked at.
            if !unchanged || rule.transition {
                self.apply(schema, rule, value, old, path);
            }
            if self.budget.is_spent() {
                return;
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, inner) in fields {
                    if let Some(child) = schema.property(name) {
                        let old = old.and_then(|old| old.get(name));
                        self.walk(child, inner, old, &join(path, name));
                    }
                }
            }
            Value::Array(items) => {
                let Some(child) = &schema.items else {
                    return;
                };
                let olds = old
                    .and_then(Value::as_array)
                    .filter(|_| schema.list_type.as_deref() == Some("map"));
                for (i, item) in items.iter().enumerate() {
                    let key = key_of(schema, item);
                    let old = olds.and_then(|olds| {
                        key.as_ref()?;
                        olds.iter().find(|old| key_of(schema, old) == key)
                    });
                    self.walk(child, item, old, &format!("{path}[{i}]"));
                }
            }
            _ => {}
        }
    }

    fn apply(
        &mut self,
        schema: &Structural,
        rule: &Rule,
        value: &Value,
        old: Option<&Value>,
        path: &str,
    ) {
        let mut variables = vec![("self", Val::of(value, Some(schema)))];
        if rule.transition {
            let before = old
                .filter(|old| !old.is_null())
                .map(|old| Val::of(old, Some(schema)));
            let before = match (rule.optional_old, before) {
                (true, before) => Val::Optional(before.map(Arc::new)),
                (false, Some(before)) => before,
                (false, None) => return,
            };
            variables.push(("oldSelf", before));
        }
        let shown = Value::from(schema.json_type.map_or("", super::JsonType::as_str));
        let at = match format!("{path}{}", rule.field_path) {
            path if path.is_empty() => "<nil>".to_owned(),
            path => path.trim_start_matches('.').to_owned(),
        };
        let message = match rule.message.as_str() {
            "" => format!("failed rule: {}", rule.source),
            message => message.to_owned(),
        };
        match rule.expression.evaluate(&variables, &mut self.budget) {
            Ok(Val::Bool(true)) => {}
            Ok(_) => {
                let made = rule.message_expression.as_ref().and_then(|expression| {
                    let made = expression.evaluate(&variables, &mut self.budget).ok()?;
                    let made = made.as_str()?.trim().to_owned();
                    (!made.is_empty() && !made.contains('\n')).then_some(made)
                });
                let message = made.unwrap_or(message);
                self.causes.push(match rule.reason.as_str() {
                    "FieldValueRequired" => required(&at, &message),
                    "FieldValueForbidden" => forbidden(&at, &message),
                    "FieldValueDuplicate" => duplicate(&at, &shown),
                    _ => invalid(&at, &shown, &message),
                });
            }
            Err(Error::Budget) => {
                let why = if self.budget.is_spent() {
                    "validation failed due to running out of cost budget, no further validation rules will be run".to_owned()
                } else {
                    format!(
                        "no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        rule.source
                    )
                };
                self.budget = Budget::spent();
                self.causes.push(invalid(&at, &shown, &why));
            }
            Err(Error::Failed(why)) => {
                let why = format!(
                    "{why} evaluating rule: {}",
                    match rule.message.as_str() {
                        "" => &rule.source,
                        message => message,
                    }
                );
                self.causes.push(invalid(&at, &shown, &why));
            }
        }
    }
}

/// What tells an item of a list of type map from others.
fn key_of(schema: &Structural, item: &Value) -> Option<Map<String, Value>> {
    let fields = item.as_object()?;
    let key = schema
        .list_map_keys
        .iter()
        .filter_map(|name| Some((name.clone(), fields.get(name)?.clone())))
        .collect();
    Some(key)
}

/// Whether complaints leave an object whose values can be relied on by rules.
pub(crate) fn is_blocking(cause: &Cause) -> bool {
    matches!(
        cause.reason.as_str(),
        "FieldValueRequired" | "FieldValueTooLong" | "FieldValueTooMany" | "FieldValueTypeInvalid"
    )
}

/// Said instead of running rules on an object that they could not rely on.
pub(crate) fn not_run() -> Cause {
    invalid(
        "<nil>",
        &Value::Null,
        "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(schema: Value) -> Structural {
        Structural::parse(&schema, "s").expect("a valid schema")
    }

    fn messages(causes: &[Cause]) -> Vec<String> {
        causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn broken_rules_are_named_with_their_messages() {
        let schema = schema(
            json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.x + self.y > 0"},
                {"rule": "self.x < 10", "messageExpression": "'x is ' + string(self.x)", "reason": "FieldValueForbidden", "fieldPath": ".x"}],
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}}}),
        );
        let check = |x, y| messages(&schema.check_rules(&json!({"spec": {"x": x, "y": y}}), None));
        assert!(check(1, 0).is_empty());
        assert_eq!(
            check(0, 0),
            ["spec: Invalid value: \"object\": failed rule: self.x + self.y > 0"]
        );
        assert_eq!(check(10, 0), ["spec.x: Forbidden: x is 10"]);
        let broken = schema.check_rules(&json!({"spec": {"x": 1}}), None);
        assert_eq!(
            messages(&broken),
            [
                "spec: Invalid value: \"object\": no such key: y evaluating rule: self.x + self.y > 0"
            ]
        );
    }

    #[test]
    fn transitions_are_found_through_keyed_lists() {
        let schema = schema(
            json!({"type": "object", "properties": {"items": {"type": "array",
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
                "type": "object", "required": ["k"],
                "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "only up"}],
                "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}}}}),
        );
        let old = json!({"items": [{"k": "a", "v": 1}, {"k": "b", "v": 5}]});
        let new = json!({"items": [{"k": "b", "v": 4}, {"k": "a", "v": 2}, {"k": "c", "v": 0}]});
        assert_eq!(
            messages(&schema.check_rules(&new, Some(&old))),
            ["items[0]: Invalid value: \"object\": only up"]
        );
        assert!(schema.check_rules(&new, None).is_empty());
    }

    #[test]
    fn unchanged_values_are_not_held_against_new_rules() {
        let schema = schema(json!({"type": "object", "properties": {
            "a": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]},
            "b": {"type": "string"}}}));
        let old = json!({"a": "bad", "b": "1"});
        let new = json!({"a": "bad", "b": "2"});
        assert!(schema.check_rules(&new, Some(&old)).is_empty());
        assert_eq!(schema.check_rules(&new, None).len(), 1);
    }

    #[test]
    fn bad_rules_refuse_the_schema() {
        let parse = |rule: Value, extra: Value| {
            let mut spec = json!({"type": "object", "x-kubernetes-validations": [rule],
                "properties": {"x": {"type": "integer"}}});
            for (field, value) in extra.as_object().into_iter().flatten() {
                spec[field] = value.clone();
            }
            let list =
                json!({"type": "object", "properties": {"l": {"type": "array", "items": spec}}});
            let causes = Structural::parse(&list, "s").expect_err("a bad rule");
            messages(&causes).join(" ")
        };
        for (rule, why) in [
            (
                json!({"rule": "self.z == 100"}),
                "compilation failed: ERROR: <input>:1:5: undefined field 'z'",
            ),
            (json!({"rule": "self.x +"}), "compilation failed: ERROR"),
            (
                json!({"rule": "self.x"}),
                "cel expression must evaluate to a bool",
            ),
            (json!({"rule": " "}), "rule is not specified"),
            (
                json!({"rule": "true", "message": " "}),
                "message must be non-empty",
            ),
            (
                json!({"rule": "true", "reason": "Odd"}),
                "Unsupported value: \"Odd\"",
            ),
            (
                json!({"rule": "true", "fieldPath": ".nope"}),
                "fieldPath must be a valid path",
            ),
            (
                json!({"rule": "true", "messageExpression": "self.x"}),
                "must evaluate to a string",
            ),
            (
                json!({"rule": "self.x > oldSelf.x"}),
                "oldSelf cannot be used on the uncorrelatable portion",
            ),
            (
                json!({"rule": "true", "optionalOldSelf": true}),
                "oldSelf is not used",
            ),
        ] {
            let said = parse(rule, Value::Null);
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn a_rule_that_does_too_much_stops_the_others() {
        let schema = schema(
            json!({"type": "object", "properties": {"l": {"type": "array",
            "items": {"type": "integer"},
            "x-kubernetes-validations": [
                {"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"},
                {"rule": "false"}]}}}),
        );
        let list: Vec<i64> = (0..500).collect();
        let causes = schema.check_rules(&json!({"l": list}), None);
        assert_eq!(causes.len(), 1);
        assert!(
            causes[0]
                .message
                .contains("no further validation rules will be run")
        );
    }
}
