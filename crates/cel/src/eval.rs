//! Evaluation of syntax trees, with every step counted: work is bounded by the budget, memory by the work.

use super::{
    Error, functions,
    patterns::{self, Patterns},
    value::{Key, Val, no_such_key},
};
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op,
};
use regex::Regex;
use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

type Outcome<'v> = Result<Val<'v>, Error>;

/// Names in sight: those of the caller, then those of comprehensions.
pub(super) enum Scope<'s, 'v> {
    Root(&'s [(&'s str, Val<'v>)]),
    Inner {
        name: &'s str,
        value: Val<'v>,
        parent: &'s Scope<'s, 'v>,
    },
}

impl<'v> Scope<'_, 'v> {
    fn get(&self, name: &str) -> Option<&Val<'v>> {
        let mut scope = self;
        loop {
            match scope {
                Scope::Root(variables) => {
                    return variables
                        .iter()
                        .rev()
                        .find(|(known, _)| *known == name)
                        .map(|(_, value)| value);
                }
                Scope::Inner {
                    name: known, value, ..
                } if *known == name => return Some(value),
                Scope::Inner { parent, .. } => scope = parent,
            }
        }
    }
}

/// Counts steps, and has at hand what was prepared for the expression.
pub(super) struct Meter<'e> {
    pub(super) left: u64,
    pub(super) patterns: &'e Patterns,
}

impl Meter<'_> {
    pub(super) fn charge(&mut self, steps: u64) -> Result<(), Error> {
        if steps > self.left {
            self.left = 0;
            return Err(Error::Budget);
        }
        self.left -= steps;
        Ok(())
    }

    /// A regular expression: prepared, or else made for a price.
    pub(super) fn regex(&mut self, pattern: &str) -> Result<Regex, Error> {
        if let Some(regex) = self.patterns.get(pattern) {
            return Ok(regex.clone());
        }
        self.charge(patterns::COST)?;
        patterns::regex(pattern).map_err(|error| Error::Failed(error.to_string()))
    }

    /// What reading or making a text costs, as in kube-apiserver a tenth of its length.
    pub(super) fn text(&mut self, length: usize) -> Result<(), Error> {
        self.charge(length as u64 / 10 + 1)
    }
}

pub(super) fn no_overload<'v>() -> Outcome<'v> {
    Err(Error::Failed("no such overload".into()))
}

fn failed<'v>(why: impl Into<String>) -> Outcome<'v> {
    Err(Error::Failed(why.into()))
}

pub(super) fn eval<'v>(
    expr: &IdedExpr,
    scope: &Scope<'_, 'v>,
    meter: &mut Meter<'_>,
) -> Outcome<'v> {
    meter.charge(1)?;
    match &expr.expr {
        Expr::Literal(literal) => Ok(constant(literal)),
        Expr::Ident(name) => match scope.get(name.trim_start_matches('.')) {
            Some(value) => Ok(value.clone()),
            None => match functions::type_named(name) {
                Some(name) => Ok(Val::Type(name)),
                None => failed(format!("undeclared reference to '{name}'")),
            },
        },
        Expr::Select(select) => {
            let operand = eval(&select.operand, scope, meter)?;
            if let Val::Optional(inner) = operand {
                let found = inner.and_then(|inner| inner.field(&select.field));
                return Ok(if select.test {
                    Val::Bool(found.is_some())
                } else {
                    Val::Optional(found.map(Arc::new))
                });
            }
            if operand.size().is_none() || matches!(operand, Val::String(_) | Val::Bytes(_)) {
                return no_overload();
            }
            let found = operand.field(&select.field);
            if select.test {
                return Ok(Val::Bool(found.is_some()));
            }
            found.ok_or_else(|| no_such_key(&select.field))
        }
        Expr::List(list) => {
            let mut items = Vec::with_capacity(list.elements.len());
            for (i, element) in list.elements.iter().enumerate() {
                match eval(element, scope, meter)? {
                    Val::Optional(inner) if list.optional_indices.contains(&i) => {
                        items.extend(inner.map(|inner| (*inner).clone()));
                    }
                    item => items.push(item),
                }
            }
            Ok(Val::List(Arc::new(items)))
        }
        Expr::Map(map) => {
            let mut fields = BTreeMap::new();
            for entry in &map.entries {
                let EntryExpr::MapEntry(entry) = &entry.expr else {
                    return no_overload();
                };
                let key = eval(&entry.key, scope, meter)?;
                let key =
                    Key::of(&key).ok_or_else(|| Error::Failed("unsupported key type".into()))?;
                let value = match eval(&entry.value, scope, meter)? {
                    Val::Optional(None) if entry.optional => continue,
                    Val::Optional(Some(inner)) if entry.optional => (*inner).clone(),
                    value => value,
                };
                fields.insert(key, value);
            }
            Ok(Val::Map(Arc::new(fields)))
        }
        Expr::Call(call) => apply(call, scope, meter),
        Expr::Comprehension(comprehension) => comprehend(comprehension, scope, meter),
        Expr::Struct(_) | Expr::Unspecified => no_overload(),
    }
}

fn constant<'v>(literal: &LiteralValue) -> Val<'v> {
    match literal {
        LiteralValue::Boolean(value) => Val::Bool(*value.inner()),
        LiteralValue::Bytes(value) => Val::Bytes(value.inner().into()),
        LiteralValue::Double(value) => Val::Double(*value.inner()),
        LiteralValue::Int(value) => Val::Int(*value.inner()),
        LiteralValue::Null => Val::Null,
        LiteralValue::String(value) => Val::text(value.inner()),
        LiteralValue::UInt(value) => Val::Uint(*value.inner()),
    }
}

fn comprehend<'v>(
    it: &ComprehensionExpr,
    scope: &Scope<'_, 'v>,
    meter: &mut Meter<'_>,
) -> Outcome<'v> {
    let range = eval(&it.iter_range, scope, meter)?;
    meter.charge(range.size().unwrap_or_default() as u64)?;
    let items = match &range {
        Val::String(_) | Val::Bytes(_) => None,
        range => range.items(),
    };
    let Some(items) = items else {
        return no_overload();
    };
    let is_map = matches!(range, Val::Map(_) | Val::JsonMap(..));
    let mut result = eval(&it.accu_init, scope, meter)?;
    for (i, item) in items.into_iter().enumerate() {
        // With two variables the second is the value; over a list the first is then the position.
        let (first, second) = match &it.iter_var2 {
            None => (item, None),
            Some(_) if is_map => {
                let value = range.entry(&item).unwrap_or(Val::Null);
                (item, Some(value))
            }
            Some(_) => (Val::Int(i64::try_from(i).unwrap_or(i64::MAX)), Some(item)),
        };
        let inner = Scope::Inner {
            name: &it.iter_var,
            value: first,
            parent: scope,
        };
        let inner = match (&it.iter_var2, second) {
            (Some(name), Some(value)) => Scope::Inner {
                name,
                value,
                parent: &inner,
            },
            _ => Scope::Inner {
                name: "",
                value: Val::Null,
                parent: &inner,
            },
        };
        let frame = Scope::Inner {
            name: &it.accu_var,
            value: result.clone(),
            parent: &inner,
        };
        if eval(&it.loop_cond, &frame, meter)?.as_bool() != Some(true) {
            break;
        }
        let grown = grow(&it.loop_step, &it.accu_var, &frame, meter)?;
        drop(frame);
        match grown {
            Grown::Unchanged => {}
            Grown::By(more) => {
                let more = more.items().unwrap_or_default();
                meter.charge(more.len() as u64)?;
                match &mut result {
                    Val::List(items) => Arc::make_mut(items).extend(more),
                    _ => return no_overload(),
                }
            }
            Grown::To(value) => result = value,
        }
    }
    let frame = Scope::Inner {
        name: &it.accu_var,
        value: result,
        parent: scope,
    };
    eval(&it.result, &frame, meter)
}

/// What a step does to the accumulated value; appending is told apart, so that it need not copy.
enum Grown<'v> {
    Unchanged,
    By(Val<'v>),
    To(Val<'v>),
}

fn grow<'v>(
    step: &IdedExpr,
    accumulator: &str,
    scope: &Scope<'_, 'v>,
    meter: &mut Meter<'_>,
) -> Result<Grown<'v>, Error> {
    let is_own = |expr: &IdedExpr| matches!(&expr.expr, Expr::Ident(name) if name == accumulator);
    match &step.expr {
        Expr::Ident(name) if name == accumulator => Ok(Grown::Unchanged),
        Expr::Call(call) if call.func_name == op::CONDITIONAL && call.args.len() == 3 => {
            match eval(&call.args[0], scope, meter)?.as_bool() {
                Some(true) => grow(&call.args[1], accumulator, scope, meter),
                Some(false) => grow(&call.args[2], accumulator, scope, meter),
                None => no_overload().map(Grown::To),
            }
        }
        Expr::Call(call)
            if call.func_name == op::ADD
                && call.args.len() == 2
                && is_own(&call.args[0])
                && matches!(call.args[1].expr, Expr::List(_)) =>
        {
            eval(&call.args[1], scope, meter).map(Grown::By)
        }
        _ => eval(step, scope, meter).map(Grown::To),
    }
}

fn apply<'v>(call: &CallExpr, scope: &Scope<'_, 'v>, meter: &mut Meter<'_>) -> Outcome<'v> {
    let name = call.func_name.as_str();
    match (name, call.args.as_slice()) {
        (op::CONDITIONAL, [condition, yes, no]) => {
            return match eval(condition, scope, meter)?.as_bool() {
                Some(true) => eval(yes, scope, meter),
                Some(false) => eval(no, scope, meter),
                None => no_overload(),
            };
        }
        // Either side decides alone, whatever becomes of the other.
        (op::LOGICAL_OR, [left, right]) => return either(left, right, true, scope, meter),
        (op::LOGICAL_AND, [left, right]) => return either(left, right, false, scope, meter),
        (op::NOT_STRICTLY_FALSE, [value]) => {
            return match eval(value, scope, meter) {
                Err(Error::Budget) => Err(Error::Budget),
                Ok(Val::Bool(false)) => Ok(Val::Bool(false)),
                _ => Ok(Val::Bool(true)),
            };
        }
        ("or" | "orValue", [other]) if call.target.is_some() => {
            if let Some(target) = &call.target {
                return match (eval(target, scope, meter)?, name) {
                    (Val::Optional(None), _) => eval(other, scope, meter),
                    (Val::Optional(Some(inner)), "orValue") => Ok((*inner).clone()),
                    (Val::Optional(inner), _) => Ok(Val::Optional(inner)),
                    _ => no_overload(),
                };
            }
        }
        _ => {}
    }
    // `sets.contains(a, b)`: a function in a namespace, not a method.
    let qualified = call
        .target
        .as_deref()
        .and_then(|target| match &target.expr {
            Expr::Ident(space) if scope.get(space).is_none() && functions::is_namespace(space) => {
                Some(format!("{space}.{name}"))
            }
            _ => None,
        });
    let mut args = Vec::with_capacity(call.args.len() + 1);
    if qualified.is_none()
        && let Some(target) = &call.target
    {
        args.push(eval(target, scope, meter)?);
    }
    for arg in &call.args {
        args.push(eval(arg, scope, meter)?);
    }
    if let Some(qualified) = qualified {
        return functions::call(&qualified, &args, meter);
    }
    operator(name, &args, meter).unwrap_or_else(|| functions::call(name, &args, meter))
}

fn either<'v>(
    left: &IdedExpr,
    right: &IdedExpr,
    decisive: bool,
    scope: &Scope<'_, 'v>,
    meter: &mut Meter<'_>,
) -> Outcome<'v> {
    let left = eval(left, scope, meter);
    match &left {
        Err(Error::Budget) => return left,
        Ok(Val::Bool(value)) if *value == decisive => return left,
        _ => {}
    }
    match eval(right, scope, meter)? {
        Val::Bool(value) if value == decisive => Ok(Val::Bool(value)),
        Val::Bool(value) => match left? {
            Val::Bool(_) => Ok(Val::Bool(value)),
            _ => no_overload(),
        },
        _ => no_overload(),
    }
}

/// Operators; `None` for what is none.
fn operator<'v>(name: &str, args: &[Val<'v>], meter: &mut Meter<'_>) -> Option<Outcome<'v>> {
    Some(match (name, args) {
        (op::EQUALS, [a, b]) => equal(a, b, meter).map(Val::Bool),
        (op::NOT_EQUALS, [a, b]) => equal(a, b, meter).map(|equal| Val::Bool(!equal)),
        (op::LESS, [a, b]) => compared(a, b, meter, |o| o == Ordering::Less),
        (op::LESS_EQUALS, [a, b]) => compared(a, b, meter, |o| o != Ordering::Greater),
        (op::GREATER, [a, b]) => compared(a, b, meter, |o| o == Ordering::Greater),
        (op::GREATER_EQUALS, [a, b]) => compared(a, b, meter, |o| o != Ordering::Less),
        (op::LOGICAL_NOT, [Val::Bool(a)]) => Ok(Val::Bool(!a)),
        (op::NEGATE, [Val::Int(a)]) => checked(a.checked_neg().map(Val::Int)),
        (op::NEGATE, [Val::Double(a)]) => Ok(Val::Double(-a)),
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => {
            arithmetic(name, a, b, meter)
        }
        (op::IN, [a, b]) => contained(a, b, meter).map(Val::Bool),
        (op::INDEX, [of, at]) => index(of, at),
        (op::OPT_INDEX | op::OPT_SELECT, [of, at]) => {
            let of = match of {
                Val::Optional(None) => return Some(Ok(Val::Optional(None))),
                Val::Optional(Some(inner)) => inner,
                of => of,
            };
            Ok(Val::Optional(index(of, at).ok().map(Arc::new)))
        }
        (op::LOGICAL_NOT | op::NEGATE, _) => no_overload(),
        _ => return None,
    })
}

pub(super) fn equal<'v>(a: &Val<'v>, b: &Val<'v>, meter: &mut Meter<'_>) -> Result<bool, Error> {
    let mut steps = 0;
    let equal = a.equals(b, &mut steps);
    meter.charge(steps)?;
    Ok(equal)
}

fn compared<'v>(
    a: &Val<'v>,
    b: &Val<'v>,
    meter: &mut Meter<'_>,
    holds: impl Fn(Ordering) -> bool,
) -> Outcome<'v> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        meter.text(a.len().min(b.len()))?;
    }
    match a.order(b) {
        Some(order) => Ok(Val::Bool(holds(order))),
        // Nothing compares with NaN, which is no error.
        None if a.as_double().is_some() && b.as_double().is_some() => Ok(Val::Bool(false)),
        None => no_overload(),
    }
}

fn checked(value: Option<Val<'_>>) -> Outcome<'_> {
    value.ok_or_else(|| Error::Failed("integer overflow".into()))
}

fn arithmetic<'v>(name: &str, a: &Val<'v>, b: &Val<'v>, meter: &mut Meter<'_>) -> Outcome<'v> {
    match (name, a, b) {
        (op::DIVIDE | op::MODULO, _, Val::Int(0) | Val::Uint(0)) => {
            return failed(if name == op::DIVIDE {
                "division by zero"
            } else {
                "modulus by zero"
            });
        }
        (op::ADD, Val::String(a), Val::String(b)) => {
            meter.text(a.len() + b.len())?;
            return Ok(Val::String(format!("{a}{b}").into()));
        }
        (op::ADD, Val::Bytes(a), Val::Bytes(b)) => {
            meter.text(a.len() + b.len())?;
            return Ok(Val::Bytes([&**a, &**b].concat().into()));
        }
        (op::ADD, Val::List(_) | Val::JsonList(..), Val::List(_) | Val::JsonList(..)) => {
            let size = a.size().unwrap_or_default() + b.size().unwrap_or_default();
            meter.charge(size as u64 + 1)?;
            let mut items = a.items().unwrap_or_default();
            items.extend(b.items().unwrap_or_default());
            return Ok(Val::List(Arc::new(items)));
        }
        _ => {}
    }
    use Val::{Double, Duration, Int, Timestamp, Uint};
    checked(match (name, a, b) {
        (op::ADD, Int(a), Int(b)) => a.checked_add(*b).map(Int),
        (op::SUBSTRACT, Int(a), Int(b)) => a.checked_sub(*b).map(Int),
        (op::MULTIPLY, Int(a), Int(b)) => a.checked_mul(*b).map(Int),
        (op::DIVIDE, Int(a), Int(b)) => a.checked_div(*b).map(Int),
        (op::MODULO, Int(a), Int(b)) => a.checked_rem(*b).map(Int),
        (op::ADD, Uint(a), Uint(b)) => a.checked_add(*b).map(Uint),
        (op::SUBSTRACT, Uint(a), Uint(b)) => a.checked_sub(*b).map(Uint),
        (op::MULTIPLY, Uint(a), Uint(b)) => a.checked_mul(*b).map(Uint),
        (op::DIVIDE, Uint(a), Uint(b)) => a.checked_div(*b).map(Uint),
        (op::MODULO, Uint(a), Uint(b)) => a.checked_rem(*b).map(Uint),
        (op::ADD, Double(a), Double(b)) => Some(Double(a + b)),
        (op::SUBSTRACT, Double(a), Double(b)) => Some(Double(a - b)),
        (op::MULTIPLY, Double(a), Double(b)) => Some(Double(a * b)),
        (op::DIVIDE, Double(a), Double(b)) => Some(Double(a / b)),
        (op::ADD, Duration(a), Duration(b)) => a.checked_add(*b).map(Duration),
        (op::SUBSTRACT, Duration(a), Duration(b)) => a.checked_sub(*b).map(Duration),
        (op::ADD, Timestamp(a), Duration(b)) | (op::ADD, Duration(b), Timestamp(a)) => a
            .checked_add(jiff::SignedDuration::from_nanos(*b))
            .ok()
            .map(Timestamp),
        (op::SUBSTRACT, Timestamp(a), Duration(b)) => a
            .checked_sub(jiff::SignedDuration::from_nanos(*b))
            .ok()
            .map(Timestamp),
        (op::SUBSTRACT, Timestamp(a), Timestamp(b)) => {
            i64::try_from(a.duration_since(*b).as_nanos())
                .ok()
                .map(Duration)
        }
        _ => return no_overload(),
    })
}

fn contained<'v>(a: &Val<'v>, b: &Val<'v>, meter: &mut Meter<'_>) -> Result<bool, Error> {
    match b {
        Val::Map(_) | Val::JsonMap(..) => Ok(b.entry(a).is_some()),
        Val::List(_) | Val::JsonList(..) => {
            for item in b.items().unwrap_or_default() {
                if equal(a, &item, meter)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Err(Error::Failed("no such overload".into())),
    }
}

fn index<'v>(of: &Val<'v>, at: &Val<'v>) -> Outcome<'v> {
    let number = match at {
        Val::Int(n) => Some(*n),
        Val::Uint(n) => i64::try_from(*n).ok(),
        Val::Double(n) if n.fract() == 0.0 => Some(*n as i64),
        _ => None,
    };
    match of {
        Val::List(_) | Val::JsonList(..) => {
            let Some(number) = number else {
                return no_overload();
            };
            let found = usize::try_from(number).ok().and_then(|n| match of {
                Val::List(items) => items.get(n).cloned(),
                Val::JsonList(items, schema) => items.get(n).map(|item| Val::of(item, *schema)),
                _ => None,
            });
            found.ok_or_else(|| Error::Failed(format!("index out of bounds: {number}")))
        }
        Val::Map(_) | Val::JsonMap(..) => of
            .entry(at)
            .ok_or_else(|| no_such_key(&at.printed().unwrap_or_default())),
        _ => no_overload(),
    }
}
