//! JSON patches (RFC 6902) whose values may be expressions.

use super::{
    Failure,
    document::Fields,
    environment::{self, Environment},
    guard,
    matching::expression,
};
use crate::filter::{Inputs, Verdict};
use serde_json::{Value, json};
use yurt_cel::Expression;
use yurt_wire::patch::json_patch;

/// Operations of one rule.
const MOST_OPERATIONS: usize = 32;
/// Longest path.
const LONGEST_PATH: usize = 512;
/// Deepest path.
const MAX_DEPTH: usize = 32;

/// What is done to objects, in order.
#[derive(Clone, Debug)]
pub(super) struct Patch(Vec<Operation>);

#[derive(Clone, Debug)]
struct Operation {
    op: &'static str,
    path: String,
    from: Option<String>,
    operand: Operand,
    /// Whether objects on the way that are missing are made.
    create_parents: bool,
}

#[derive(Clone, Debug)]
enum Operand {
    None,
    Value(Value),
    Expression(Box<Expression>),
}

impl Patch {
    /// Reads `patch`; what makes no sense is complained of.
    pub(super) fn read(rule: &mut Fields<'_>) -> Self {
        let nodes = rule.list("patch", MOST_OPERATIONS).unwrap_or_default();
        let mut operations = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            if let Some(mut fields) = rule.element("patch", i, node) {
                operations.extend(Operation::read(&mut fields));
                fields.end();
            }
        }
        Self(operations)
    }

    /// What else than the object it depends on.
    pub(super) fn inputs(&self) -> Inputs {
        let expressions = self.0.iter().filter_map(|op| match &op.operand {
            Operand::Expression(expression) => Some(environment::inputs(expression)),
            _ => None,
        });
        expressions.fold(Inputs::NONE, |all, inputs| all | inputs)
    }

    /// The operations for an object, with the values of their expressions. These see the object as it was before all of them.
    pub(super) fn operations(
        &self,
        object: &Value,
        environment: &mut Environment<'_>,
    ) -> Result<Vec<Value>, Failure> {
        let mut made = Vec::with_capacity(self.0.len());
        for (i, operation) in self.0.iter().enumerate() {
            let mut told = json!({ "op": operation.op, "path": operation.path });
            match &operation.operand {
                Operand::None => {}
                Operand::Value(value) => told["value"] = value.clone(),
                Operand::Expression(expression) => match environment.value(expression) {
                    Ok(Some(value)) => told["value"] = value,
                    Ok(None) => continue,
                    Err(error) => {
                        return Err(Failure::of(error, &format!("patch[{i}].expression")));
                    }
                },
            }
            if let Some(from) = &operation.from {
                told["from"] = from.as_str().into();
            }
            if operation.create_parents {
                parents(&operation.path, object, &mut made);
            }
            made.push(told);
        }
        Ok(made)
    }
}

/// Applies operations all together, or none of them.
pub(super) fn apply(object: &mut Value, operations: Vec<Value>) -> Result<Verdict, Failure> {
    let changes = |operation: &Value| has_effect(object, operation);
    if !operations.iter().any(changes) {
        return Ok(Verdict::Kept);
    }
    json_patch(object, &Value::Array(operations))
        .map_err(|error| Failure::DoesNotApply(error.to_string()))?;
    Ok(Verdict::Changed)
}

impl Operation {
    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let op = match fields.text("op") {
            Some(op) => match ["add", "replace", "remove", "move", "copy"]
                .into_iter()
                .find(|known| *known == op)
            {
                Some(op) => Some(op),
                None => {
                    let why = match op {
                        "test" => {
                            "is said by match.expression: a rule is for the objects for which that holds"
                        }
                        _ => "is not add, replace, remove, move or copy",
                    };
                    fields.complain("op", why);
                    None
                }
            },
            None => {
                fields.complain("op", "is missing");
                None
            }
        };
        let path = path(fields, "path", true);
        let takes_from = matches!(op, Some("move" | "copy"));
        let from = match (op, fields.any("from").is_some()) {
            (Some(_), false) if takes_from => {
                fields.complain("from", "is missing");
                None
            }
            (_, true) => {
                if op.is_some() && !takes_from {
                    fields.complain("from", "is only for move and copy");
                }
                // Moving takes away what is moved.
                self::path(fields, "from", op == Some("move"))
            }
            _ => None,
        };
        let takes_value = matches!(op, Some("add" | "replace"));
        let operand = operand(fields, op.is_some().then_some(takes_value));
        let create_parents = fields.truth("createParents");
        if create_parents && op.is_some_and(|op| op != "add") {
            fields.complain("createParents", "is only for add");
        }
        Some(Self {
            op: op?,
            path: path?,
            from,
            operand,
            create_parents,
        })
    }
}

fn operand(fields: &mut Fields<'_>, wanted: Option<bool>) -> Operand {
    // `value: null` is a value.
    let value = fields.any("value").map(|node| node.to_value());
    let source = fields.text("expression");
    match (wanted, value, source) {
        (Some(true), None, None) => {
            fields.complain_of_all("has neither value nor expression");
            Operand::None
        }
        (_, Some(_), Some(_)) => {
            fields.complain("expression", "excludes value");
            Operand::None
        }
        (Some(false), value, source) => {
            if value.is_some() || source.is_some() {
                let name = if value.is_some() {
                    "value"
                } else {
                    "expression"
                };
                fields.complain(name, "is only for add and replace");
            }
            Operand::None
        }
        (_, Some(value), None) => Operand::Value(value),
        (_, None, Some(source)) => match expression(source) {
            Ok((expression, _)) => Operand::Expression(Box::new(expression)),
            Err(why) => {
                fields.complain("expression", why);
                Operand::None
            }
        },
        (None, None, None) => Operand::None,
    }
}

/// Reads a JSON pointer.
fn path(fields: &mut Fields<'_>, name: &'static str, is_written: bool) -> Option<String> {
    if fields.any(name).is_none() {
        fields.complain(name, "is missing");
        return None;
    }
    let text = fields.text(name)?;
    let why = match parts(text) {
        None => {
            "is no path below the object (/spec/ports/0; ~1 stands for a slash, ~0 for ~)".into()
        }
        Some(_) if text.len() > LONGEST_PATH => format!("is longer than {LONGEST_PATH} bytes"),
        Some(parts) if parts.len() > MAX_DEPTH => format!("is deeper than {MAX_DEPTH} levels"),
        Some(parts) if is_written => match guard::forbids(&parts) {
            Some(why) => why,
            None => return Some(text.to_owned()),
        },
        Some(_) => return Some(text.to_owned()),
    };
    fields.complain(name, why);
    None
}

/// The parts of a JSON pointer, unescaped; `None` for the whole document and for what is none.
fn parts(path: &str) -> Option<Vec<String>> {
    let unescaped = |part: &str| {
        let mut tildes = part.split('~').skip(1);
        tildes
            .all(|rest| rest.starts_with(['0', '1']))
            .then(|| part.replace("~1", "/").replace("~0", "~"))
    };
    path.strip_prefix('/')?.split('/').map(unescaped).collect()
}

/// Makes the objects that are missing on the way to a path, as far as no operation before does.
fn parents(path: &str, object: &Value, made: &mut Vec<Value>) {
    let slashes: Vec<usize> = path.match_indices('/').map(|(at, _)| at).skip(1).collect();
    for at in slashes {
        let parent = &path[..at];
        let is_made = made.iter().any(|operation| {
            let made = operation["path"].as_str().unwrap_or_default();
            made == parent
                || made
                    .strip_prefix(parent)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
        let is_there = object.pointer(parent).is_some_and(|value| !value.is_null());
        if !is_made && !is_there {
            made.push(json!({ "op": "add", "path": parent, "value": {} }));
        }
    }
}

/// Whether an operation may change the object as it is.
fn has_effect(object: &Value, operation: &Value) -> bool {
    let path = operation["path"].as_str().unwrap_or_default();
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    // Adding to a list makes it longer.
    let in_list = object.pointer(parent).is_some_and(Value::is_array);
    match operation["op"].as_str() {
        Some("add") if in_list => true,
        Some("add" | "replace") => object.pointer(path) != operation.get("value"),
        _ => true,
    }
}
