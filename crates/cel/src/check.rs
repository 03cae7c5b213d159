//! What can be known of an expression before it runs: names, and types as far as schemas tell them. Where a type is not
//! known nothing is complained about.

use super::{functions, value::escaped};
use crate::schema::{Form, METADATA, Schema};
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};

/// Deeper trees are refused.
const MAX_DEPTH: usize = 200;

/// A type, as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub enum Type<'s> {
    /// Not known.
    Any,
    /// One without parts, by its name.
    Plain(&'static str),
    /// Of items of one type.
    List(Box<Type<'s>>),
    /// Of values of one type under any name.
    Map(Box<Type<'s>>),
    /// Fields by name.
    Object(Fields<'s>),
}

/// The fields of an object.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'s> {
    schema: &'s dyn Schema,
    /// Whether apiVersion, kind and metadata are there whatever the schema says.
    is_resource: bool,
}

impl PartialEq for Fields<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self.schema, other.schema)
    }
}

impl<'s> Type<'s> {
    /// Of values that fit a schema; `is_root` when they are whole objects.
    pub fn of(schema: &'s dyn Schema, is_root: bool) -> Self {
        let inner = || match schema.inner() {
            Some(inner) => Box::new(Self::of(inner, false)),
            None => Box::new(Self::Any),
        };
        match schema.form() {
            Form::Any => Self::Any,
            Form::Map => Self::Map(inner()),
            Form::List => Self::List(inner()),
            Form::Object => {
                let is_resource = is_root || schema.is_resource();
                match schema.fields().next() {
                    None if !is_resource => Self::Any,
                    _ => Self::Object(Fields {
                        schema,
                        is_resource,
                    }),
                }
            }
            Form::String => Self::Plain("string"),
            Form::Bytes => Self::Plain("bytes"),
            Form::Timestamp => Self::Plain("google.protobuf.Timestamp"),
            Form::Duration => Self::Plain("google.protobuf.Duration"),
            Form::Int => Self::Plain("int"),
            Form::Double => Self::Plain("double"),
            Form::Bool => Self::Plain("bool"),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Any => "dyn".into(),
            Self::Plain(name) => (*name).into(),
            Self::List(inner) => format!("list({})", inner.name()),
            Self::Map(inner) => format!("map(string, {})", inner.name()),
            Self::Object(_) => "object".into(),
        }
    }

    fn field(&self, name: &str) -> Option<Type<'s>> {
        match self {
            Self::Any => Some(Self::Any),
            Self::Map(inner) => Some((**inner).clone()),
            Self::Object(fields) => {
                if fields.is_resource {
                    match name {
                        "apiVersion" | "kind" => return Some(Self::Plain("string")),
                        "metadata" => return Some(Self::of(METADATA, false)),
                        _ => {}
                    }
                }
                let mut fields = fields.schema.fields();
                let (_, property) = fields.find(|(real, _)| escaped(real) == name)?;
                Some(Self::of(property, false))
            }
            _ => None,
        }
    }
}

/// The names in sight, with their types.
struct Names<'n, 's> {
    known: &'n [(&'n str, Type<'s>)],
    inner: Vec<(String, Type<'s>)>,
    source: &'n str,
}

/// The type of an expression, or what is wrong with it, as the compiler of kube-apiserver says it.
pub(super) fn check<'s>(
    expr: &IdedExpr,
    source: &str,
    known: &[(&str, Type<'s>)],
) -> Result<Type<'s>, String> {
    let mut names = Names {
        known,
        inner: Vec::new(),
        source,
    };
    names.infer(expr, 0)
}

impl<'s> Names<'_, 's> {
    /// An error at the first place where `what` is written.
    fn error(&self, what: &str, message: &str) -> String {
        let at = self.source.find(what).unwrap_or_default();
        let line_start = self.source[..at]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let line = self.source[line_start..].lines().next().unwrap_or_default();
        let number = self.source[..line_start].matches('\n').count() + 1;
        let column = self.source[line_start..at].chars().count();
        format!(
            "ERROR: <input>:{number}:{}: {message}\n | {line}\n | {}^",
            column + 1,
            ".".repeat(column)
        )
    }

    fn get(&self, name: &str) -> Option<Type<'s>> {
        let inner = self.inner.iter().rev();
        let inner = inner
            .filter(|(known, _)| known == name)
            .map(|(_, found)| found);
        let outer = self.known.iter().filter(|(known, _)| *known == name);
        inner
            .chain(outer.map(|(_, found)| found))
            .next()
            .cloned()
            .or_else(|| functions::type_named(name).map(|_| Type::Plain("type")))
    }

    fn infer(&mut self, expr: &IdedExpr, depth: usize) -> Result<Type<'s>, String> {
        if depth > MAX_DEPTH {
            return Err(self.error("", "expression recursion limit exceeded"));
        }
        let depth = depth + 1;
        match &expr.expr {
            Expr::Literal(literal) => Ok(Type::Plain(match literal {
                LiteralValue::Boolean(_) => "bool",
                LiteralValue::Bytes(_) => "bytes",
                LiteralValue::Double(_) => "double",
                LiteralValue::Int(_) => "int",
                LiteralValue::Null => "null",
                LiteralValue::String(_) => "string",
                LiteralValue::UInt(_) => "uint",
            })),
            Expr::Ident(name) => {
                let name = name.trim_start_matches('.');
                self.get(name).ok_or_else(|| {
                    self.error(
                        name,
                        &format!("undeclared reference to '{name}' (in container '')"),
                    )
                })
            }
            Expr::Select(select) => {
                let operand = self.infer(&select.operand, depth)?;
                let found = operand.field(&select.field);
                match found {
                    Some(_) if select.test => Ok(Type::Plain("bool")),
                    Some(found) => Ok(found),
                    None if matches!(operand, Type::Object(_)) => Err(self.error(
                        &format!(".{}", select.field),
                        &format!("undefined field '{}'", select.field),
                    )),
                    None => Err(self.error(
                        &format!(".{}", select.field),
                        &format!("type '{}' does not support field selection", operand.name()),
                    )),
                }
            }
            Expr::List(list) => {
                let mut common: Option<Type<'s>> = None;
                for element in &list.elements {
                    let found = self.infer(element, depth)?;
                    common = Some(match common {
                        Some(other) if other != found => Type::Any,
                        _ => found,
                    });
                }
                let known = list.optional_indices.is_empty();
                let inner = common.filter(|_| known).unwrap_or(Type::Any);
                Ok(Type::List(Box::new(inner)))
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.infer(&entry.key, depth)?;
                        self.infer(&entry.value, depth)?;
                    }
                }
                Ok(Type::Map(Box::new(Type::Any)))
            }
            Expr::Comprehension(it) => {
                let range = self.infer(&it.iter_range, depth)?;
                let item = match (&range, &it.iter_var2) {
                    (Type::List(inner), None) => (**inner).clone(),
                    (Type::Map(_) | Type::Object(_), None) => Type::Plain("string"),
                    (Type::Plain(name), _) => {
                        return Err(self.error(
                            "",
                            &format!(
                                "expression of type '{name}' cannot be range of a comprehension (must be list, map, or dynamic)"
                            ),
                        ));
                    }
                    _ => Type::Any,
                };
                let accumulated = self.infer(&it.accu_init, depth)?;
                // What a list collects is not known before it is collected.
                let accumulated = match accumulated {
                    Type::List(_) | Type::Map(_) => Type::Any,
                    plain => plain,
                };
                let outer = self.inner.len();
                self.inner.push((it.accu_var.clone(), accumulated));
                self.inner.push((it.iter_var.clone(), item));
                if let Some(second) = &it.iter_var2 {
                    self.inner.push((second.clone(), Type::Any));
                }
                self.infer(&it.loop_cond, depth)?;
                let step = self.infer(&it.loop_step, depth)?;
                self.inner.truncate(outer + 1);
                let result = self.infer(&it.result, depth)?;
                self.inner.truncate(outer);
                Ok(match (result, step) {
                    (Type::Any, step @ Type::List(_)) => step,
                    (result, _) => result,
                })
            }
            Expr::Call(call) => self.call(call, depth),
            Expr::Struct(made) => Err(self.error(
                &made.type_name,
                &format!(
                    "undeclared reference to '{}' (in container '')",
                    made.type_name
                ),
            )),
            Expr::Unspecified => Err(self.error("", "empty expression")),
        }
    }

    fn call(&mut self, call: &CallExpr, depth: usize) -> Result<Type<'s>, String> {
        let name = call.func_name.as_str();
        let qualified = match call.target.as_deref().map(|target| &target.expr) {
            Some(Expr::Ident(space))
                if functions::is_namespace(space) && self.get(space).is_none() =>
            {
                Some(format!("{space}.{name}"))
            }
            _ => None,
        };
        let mut args = Vec::new();
        if qualified.is_none()
            && let Some(target) = &call.target
        {
            args.push(self.infer(target, depth)?);
        }
        for arg in &call.args {
            args.push(self.infer(arg, depth)?);
        }
        let is_operator = name.starts_with(['_', '!', '-', '@']);
        let full = qualified.as_deref().unwrap_or(name);
        if !is_operator && !functions::is_known(full) {
            return Err(self.error(
                name,
                &format!("undeclared reference to '{full}' (in container '')"),
            ));
        }
        let mismatch = |args: &[Type<'s>]| {
            let types: Vec<String> = args.iter().map(Type::name).collect();
            let shown = if name == op::IN { "@in" } else { name };
            let sign = name.trim_matches(['_', '@']);
            self.error(
                sign,
                &format!(
                    "found no matching overload for '{shown}' applied to '({})'",
                    types.join(", ")
                ),
            )
        };
        let plain = |found: &Type<'s>| match found {
            Type::Plain(name) => Some(*name),
            _ => None,
        };
        let is_number = |name: &str| matches!(name, "int" | "uint" | "double");
        match (name, args.as_slice()) {
            (op::LOGICAL_AND | op::LOGICAL_OR | op::LOGICAL_NOT, _) => {
                if args
                    .iter()
                    .any(|arg| !matches!(arg, Type::Any | Type::Plain("bool")))
                {
                    return Err(mismatch(&args));
                }
                Ok(Type::Plain("bool"))
            }
            (op::EQUALS | op::NOT_EQUALS, [a, b]) => match (plain(a), plain(b)) {
                (Some("null"), _) | (_, Some("null")) => Ok(Type::Plain("bool")),
                (Some(a), Some(b)) if a != b && !(is_number(a) && is_number(b)) => {
                    Err(mismatch(&args))
                }
                (Some(_), None) if !matches!(b, Type::Any) => Err(mismatch(&args)),
                (None, Some(_)) if !matches!(a, Type::Any) => Err(mismatch(&args)),
                _ => Ok(Type::Plain("bool")),
            },
            (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [a, b]) => {
                match (plain(a), plain(b)) {
                    (Some(a), Some(b)) if a != b && !(is_number(a) && is_number(b)) => {
                        Err(mismatch(&args))
                    }
                    (None, _) if !matches!(a, Type::Any) => Err(mismatch(&args)),
                    (_, None) if !matches!(b, Type::Any) => Err(mismatch(&args)),
                    _ => Ok(Type::Plain("bool")),
                }
            }
            (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => {
                let timely = |name: &str| name.starts_with("google.protobuf.");
                match (plain(a), plain(b)) {
                    (Some(x), Some(y)) if timely(x) && timely(y) => Ok(Type::Any),
                    (Some(x), Some(y)) if x != y => Err(mismatch(&args)),
                    (Some(x @ ("string" | "bytes")), Some(_)) => {
                        if name == op::ADD {
                            Ok(Type::Plain(x))
                        } else {
                            Err(mismatch(&args))
                        }
                    }
                    (Some(x), Some(_)) if is_number(x) => Ok(Type::Plain(x)),
                    (Some(_), Some(_)) => Err(mismatch(&args)),
                    (None, None) => Ok(match (a, b) {
                        (Type::List(_), Type::List(_)) if a == b => a.clone(),
                        _ => Type::Any,
                    }),
                    (Some(_), None) if !matches!(b, Type::Any) => Err(mismatch(&args)),
                    (None, Some(_)) if !matches!(a, Type::Any) => Err(mismatch(&args)),
                    _ => Ok(Type::Any),
                }
            }
            (op::INDEX, [of, _]) => Ok(match of {
                Type::List(inner) | Type::Map(inner) => (**inner).clone(),
                _ => Type::Any,
            }),
            (op::CONDITIONAL, [_, yes, no]) => Ok(if yes == no { yes.clone() } else { Type::Any }),
            (op::IN, _) => Ok(Type::Plain("bool")),
            ("size" | "int" | "indexOf" | "lastIndexOf", _) => Ok(Type::Plain("int")),
            (
                "string" | "lowerAscii" | "upperAscii" | "trim" | "join" | "format" | "substring",
                _,
            ) => Ok(Type::Plain("string")),
            ("contains" | "startsWith" | "endsWith" | "matches", [target, ..]) => {
                if qualified.is_none() && !matches!(target, Type::Any | Type::Plain("string")) {
                    return Err(mismatch(&args));
                }
                Ok(Type::Plain("bool"))
            }
            ("isSorted" | "isURL" | "isQuantity" | "isIP" | "isCIDR" | "hasValue", _) => {
                Ok(Type::Plain("bool"))
            }
            _ => Ok(Type::Any),
        }
    }
}
