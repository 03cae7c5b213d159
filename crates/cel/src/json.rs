//! Values back to JSON.

use super::{Budget, Error, Val};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value};

/// Deeper values have no JSON.
const MAX_DEPTH: usize = 64;

impl Val<'_> {
    /// As JSON: times, spans, quantities and addresses as texts, bytes in base64. What a value shares is written out, so every value
    /// counts against the budget.
    pub fn to_json(&self, budget: &mut Budget) -> Result<Value, Error> {
        to_json(self, budget, MAX_DEPTH)
    }
}

fn spend(budget: &mut Budget, text: usize) -> Result<(), Error> {
    let steps = 1 + text as u64 / 10;
    let left = budget.steps.checked_sub(steps);
    budget.steps = left.unwrap_or(0);
    left.map(|_| ()).ok_or(Error::Budget)
}

fn to_json(value: &Val<'_>, budget: &mut Budget, depth: usize) -> Result<Value, Error> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::Failed("nested too deeply".into()));
    };
    let mut text = |text: String| {
        spend(budget, text.len())?;
        Ok(Value::String(text))
    };
    match value {
        Val::String(inner) => text(inner.to_string()),
        Val::Bytes(inner) => text(STANDARD.encode(inner)),
        Val::Quantity(inner) => text(inner.to_string()),
        Val::Url(inner) => text(inner.to_string()),
        Val::Timestamp(_) | Val::Duration(_) | Val::Ip(_) | Val::Cidr(..) => {
            text(value.printed().unwrap_or_default())
        }
        Val::Null | Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Double(_) => {
            spend(budget, 0)?;
            Ok(match value {
                Val::Bool(inner) => Value::Bool(*inner),
                Val::Int(inner) => Value::from(*inner),
                Val::Uint(inner) => Value::from(*inner),
                Val::Double(inner) => match Number::from_f64(*inner) {
                    Some(number) => Value::Number(number),
                    None => return Err(Error::Failed(format!("{inner} has no JSON"))),
                },
                _ => Value::Null,
            })
        }
        Val::List(_) | Val::JsonList(..) => {
            spend(budget, 0)?;
            let items = value.items().unwrap_or_default();
            let items = items.iter().map(|item| to_json(item, budget, depth));
            items.collect::<Result<Vec<_>, _>>().map(Value::Array)
        }
        Val::Map(_) => {
            spend(budget, 0)?;
            let mut fields = Map::new();
            for key in value.items().unwrap_or_default() {
                let inner = value.entry(&key).unwrap_or(Val::Null);
                let name = key.printed().unwrap_or_default();
                spend(budget, name.len())?;
                fields.insert(name, to_json(&inner, budget, depth)?);
            }
            Ok(Value::Object(fields))
        }
        // Not through its entries: their names may be escaped.
        Val::JsonMap(fields, _) => {
            spend(budget, 0)?;
            let mut copied = Map::new();
            for (name, inner) in *fields {
                spend(budget, name.len())?;
                let inner = to_json(&Val::of(inner, None), budget, depth)?;
                copied.insert(name.clone(), inner);
            }
            Ok(Value::Object(copied))
        }
        Val::Type(_) | Val::Optional(_) => Err(Error::Failed(format!(
            "a value of type {} has no JSON",
            value.type_name()
        ))),
    }
}
