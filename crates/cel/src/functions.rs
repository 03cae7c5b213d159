//! The functions of expressions: CEL's own and those Kubernetes adds.

mod network;
mod text;

use super::{
    Error,
    eval::{Meter, equal, no_overload},
    time,
    value::Val,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Timestamp, tz::TimeZone};
use network::{address, block, url_part};
use std::{cmp::Ordering, sync::Arc};
use text::string;
use yurt_wire::quantity::Quantity;

type Outcome<'v> = Result<Val<'v>, Error>;

/// Everything that may be called, so that other names are refused when a rule is read.
const KNOWN: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "bytes",
    "dyn",
    "type",
    "duration",
    "timestamp",
    "getFullYear",
    "getMonth",
    "getDayOfYear",
    "getDayOfMonth",
    "getDate",
    "getDayOfWeek",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "lowerAscii",
    "upperAscii",
    "replace",
    "split",
    "join",
    "substring",
    "trim",
    "reverse",
    "format",
    "isSorted",
    "sum",
    "min",
    "max",
    "find",
    "findAll",
    "url",
    "isURL",
    "getScheme",
    "getHost",
    "getHostname",
    "getPort",
    "getEscapedPath",
    "getQuery",
    "quantity",
    "isQuantity",
    "isInteger",
    "asInteger",
    "asApproximateFloat",
    "sign",
    "add",
    "sub",
    "isGreaterThan",
    "isLessThan",
    "compareTo",
    "ip",
    "isIP",
    "cidr",
    "isCIDR",
    "family",
    "isUnspecified",
    "isLoopback",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isGlobalUnicast",
    "containsIP",
    "containsCIDR",
    "prefixLength",
    "masked",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "optional.of",
    "optional.none",
    "optional.ofNonZeroValue",
    "hasValue",
    "value",
    "or",
    "orValue",
    "ip.isCanonical",
    "base64.encode",
    "base64.decode",
];

pub(super) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

pub(super) fn is_namespace(name: &str) -> bool {
    matches!(name, "sets" | "optional" | "base64" | "ip")
}

/// Types that have a name in expressions.
pub(super) fn type_named(name: &str) -> Option<&'static str> {
    [
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
    ]
    .into_iter()
    .find(|known| *known == name)
}

fn failed<'v>(why: impl Into<String>) -> Outcome<'v> {
    Err(Error::Failed(why.into()))
}

fn count<'v>(n: usize) -> Outcome<'v> {
    Ok(Val::Int(i64::try_from(n).unwrap_or(i64::MAX)))
}

/// Calls a function; a method has its target as the first argument.
pub(super) fn call<'v>(name: &str, args: &[Val<'v>], meter: &mut Meter<'_>) -> Outcome<'v> {
    for arg in args {
        if let Val::String(text) = arg {
            meter.text(text.len())?;
        }
    }
    match (name, args) {
        ("size", [a]) => match a.size() {
            Some(size) => count(size),
            None => no_overload(),
        },
        ("dyn", [a]) => Ok(a.clone()),
        ("type", [a]) => Ok(Val::Type(a.type_name())),
        (
            "string" | "int" | "uint" | "double" | "bool" | "bytes" | "duration" | "timestamp",
            [a],
        ) => convert(name, a),
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("optional.of", [a]) => Ok(Val::Optional(Some(Arc::new(a.clone())))),
        ("optional.ofNonZeroValue", [a]) => {
            let zero = matches!(a, Val::Null | Val::Bool(false))
                || a.size() == Some(0)
                || a.as_double() == Some(0.0);
            Ok(Val::Optional((!zero).then(|| Arc::new(a.clone()))))
        }
        ("hasValue", [Val::Optional(inner)]) => Ok(Val::Bool(inner.is_some())),
        ("value", [Val::Optional(inner)]) => match inner {
            Some(inner) => Ok((**inner).clone()),
            None => failed("optional.none() dereference"),
        },
        ("base64.encode", [Val::Bytes(bytes)]) => Ok(Val::text(&STANDARD.encode(bytes))),
        ("base64.decode", [Val::String(text)]) => match STANDARD.decode(text.as_bytes()) {
            Ok(bytes) => Ok(Val::Bytes(bytes.into())),
            Err(error) => failed(error.to_string()),
        },
        (_, [Val::Timestamp(at), rest @ ..]) if name.starts_with("get") => {
            calendar(name, *at, rest)
        }
        (_, [Val::Duration(nanos)]) if name.starts_with("get") => {
            let unit = match name {
                "getHours" => 3_600_000_000_000,
                "getMinutes" => 60_000_000_000,
                "getSeconds" => 1_000_000_000,
                "getMilliseconds" => 1_000_000,
                _ => return no_overload(),
            };
            Ok(Val::Int(nanos / unit))
        }
        (_, [Val::Url(url)]) => url_part(name, url),
        (_, [Val::Quantity(a), rest @ ..]) => amount(name, *a, rest),
        (_, [Val::Ip(a)]) => Ok(address(name, *a)),
        (_, [Val::Cidr(a, bits), rest @ ..]) => block(name, *a, *bits, rest),
        ("sets.contains" | "sets.equivalent" | "sets.intersects", [a, b]) => {
            sets(name, a, b, meter)
        }
        (_, [Val::String(text), rest @ ..]) => string(name, text, rest, meter),
        (_, [list @ (Val::List(_) | Val::JsonList(..)), rest @ ..]) => {
            self::list(name, &list.items().unwrap_or_default(), rest, meter)
        }
        _ => no_overload(),
    }
}

fn convert<'v>(to: &str, a: &Val<'v>) -> Outcome<'v> {
    let bad = || {
        Error::Failed(format!(
            "type conversion error from '{}' to '{to}'",
            a.type_name()
        ))
    };
    let found = match (to, a) {
        ("string", a) => a.printed().map(|text| Val::text(&text)),
        ("int", Val::Int(n)) => Some(Val::Int(*n)),
        ("int", Val::Uint(n)) => i64::try_from(*n).ok().map(Val::Int),
        ("int", Val::Double(n)) if n.abs() < 9.2e18 => Some(Val::Int(*n as i64)),
        ("int", Val::String(text)) => text.parse().ok().map(Val::Int),
        ("int", Val::Timestamp(at)) => Some(Val::Int(at.as_second())),
        ("uint", Val::Uint(n)) => Some(Val::Uint(*n)),
        ("uint", Val::Int(n)) => u64::try_from(*n).ok().map(Val::Uint),
        ("uint", Val::Double(n)) if (0.0..1.8e19).contains(n) => Some(Val::Uint(*n as u64)),
        ("uint", Val::String(text)) => text.parse().ok().map(Val::Uint),
        ("double", Val::String(text)) => text.parse().ok().map(Val::Double),
        ("double", a) => a.as_double().map(Val::Double),
        ("bool", Val::Bool(b)) => Some(Val::Bool(*b)),
        ("bool", Val::String(text)) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(Val::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(Val::Bool(false)),
            _ => None,
        },
        ("bytes", Val::Bytes(bytes)) => Some(Val::Bytes(bytes.clone())),
        ("bytes", Val::String(text)) => Some(Val::Bytes(text.as_bytes().into())),
        ("duration", Val::Duration(d)) => Some(Val::Duration(*d)),
        ("duration", Val::String(text)) => time::parse(text).map(Val::Duration),
        ("timestamp", Val::Timestamp(at)) => Some(Val::Timestamp(*at)),
        ("timestamp", Val::String(text)) => text.parse().ok().map(Val::Timestamp),
        ("timestamp", Val::Int(n)) => Timestamp::from_second(*n).ok().map(Val::Timestamp),
        _ => None,
    };
    found.ok_or_else(bad)
}

fn calendar<'v>(name: &str, at: Timestamp, rest: &[Val<'v>]) -> Outcome<'v> {
    let zone = match rest {
        [] => TimeZone::UTC,
        [Val::String(zone)] => match zone_of(zone) {
            Some(zone) => zone,
            None => return failed(format!("unknown time zone {zone}")),
        },
        _ => return no_overload(),
    };
    let at = at.to_zoned(zone);
    Ok(Val::Int(match name {
        "getFullYear" => at.year().into(),
        "getMonth" => i64::from(at.month()) - 1,
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDate" => at.day().into(),
        "getDayOfWeek" => at.weekday().to_sunday_zero_offset().into(),
        "getHours" => at.hour().into(),
        "getMinutes" => at.minute().into(),
        "getSeconds" => at.second().into(),
        "getMilliseconds" => at.millisecond().into(),
        _ => return no_overload(),
    }))
}

/// `UTC` or an offset such as `-08:00`; names of places need a database that is not carried along.
fn zone_of(text: &str) -> Option<TimeZone> {
    if text == "UTC" {
        return Some(TimeZone::UTC);
    }
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let seconds = hours.parse::<i32>().ok()?.checked_mul(3600)?
        + minutes
            .parse::<i32>()
            .ok()
            .filter(|m| (0..60).contains(m))?
            * 60;
    let offset = jiff::tz::Offset::from_seconds(sign * seconds).ok()?;
    Some(TimeZone::fixed(offset))
}

fn amount<'v>(name: &str, a: Quantity, rest: &[Val<'v>]) -> Outcome<'v> {
    let ordering = |b: &Quantity| a.partial_cmp(b).unwrap_or(Ordering::Equal);
    let whole = || a.to_integer();
    Ok(match (name, rest) {
        ("isGreaterThan", [Val::Quantity(b)]) => Val::Bool(ordering(b) == Ordering::Greater),
        ("isLessThan", [Val::Quantity(b)]) => Val::Bool(ordering(b) == Ordering::Less),
        ("compareTo", [Val::Quantity(b)]) => Val::Int(ordering(b) as i64),
        ("add", [Val::Quantity(b)]) => Val::Quantity(a + *b),
        ("sub", [Val::Quantity(b)]) => Val::Quantity(a - *b),
        ("add", [Val::Int(n)]) => Val::Quantity(a + Quantity::integer(*n)),
        ("sub", [Val::Int(n)]) => Val::Quantity(a - Quantity::integer(*n)),
        ("sign", []) => Val::Int(
            ordering(&Quantity::ZERO) as i64 * {
                // Nothing has no sign.
                i64::from(!a.is_zero())
            },
        ),
        ("isInteger", []) => Val::Bool(whole().is_some()),
        ("asInteger", []) => match whole() {
            Some(n) => Val::Int(n),
            None => return failed("cannot convert value to integer"),
        },
        ("asApproximateFloat", []) => Val::Double(a.ratio(Quantity::count(1))),
        _ => return no_overload(),
    })
}

fn sets<'v>(name: &str, a: &Val<'v>, b: &Val<'v>, meter: &mut Meter<'_>) -> Outcome<'v> {
    let (Some(a), Some(b)) = (a.items(), b.items()) else {
        return no_overload();
    };
    let mut within = |all: &[Val<'v>], one: &Val<'v>| -> Result<bool, Error> {
        for item in all {
            if equal(item, one, meter)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let mut holds = name != "sets.intersects";
    for one in &b {
        let found = within(&a, one)?;
        match name {
            "sets.intersects" => holds |= found,
            _ => holds &= found,
        }
    }
    if name == "sets.equivalent" {
        for one in &a {
            holds &= within(&b, one)?;
        }
    }
    Ok(Val::Bool(holds))
}

fn list<'v>(name: &str, items: &[Val<'v>], rest: &[Val<'v>], meter: &mut Meter<'_>) -> Outcome<'v> {
    meter.charge(items.len() as u64)?;
    match (name, rest) {
        ("join", [] | [Val::String(_)]) => {
            let separator = rest.first().and_then(Val::as_str).unwrap_or_default();
            let mut parts = Vec::with_capacity(items.len());
            for item in items {
                match item.as_str() {
                    Some(part) => parts.push(part),
                    None => return no_overload(),
                }
            }
            let length: usize = parts.iter().map(|part| part.len()).sum();
            meter.text(length.saturating_add(separator.len().saturating_mul(parts.len())))?;
            Ok(Val::String(parts.join(separator).into()))
        }
        ("isSorted", []) => {
            let mut sorted = true;
            for pair in items.windows(2) {
                match pair[0].order(&pair[1]) {
                    Some(order) => sorted &= order != Ordering::Greater,
                    None => return no_overload(),
                }
            }
            Ok(Val::Bool(sorted))
        }
        ("min" | "max", []) => {
            let wanted = match name {
                "min" => Ordering::Less,
                _ => Ordering::Greater,
            };
            let mut best: Option<&Val<'v>> = None;
            for item in items {
                best = match best {
                    Some(best) if item.order(best) != Some(wanted) => Some(best),
                    _ => Some(item),
                };
            }
            match best {
                Some(best) => Ok(best.clone()),
                None => failed(format!("{name} called on empty list")),
            }
        }
        ("sum", []) => {
            let mut sum: Option<Val<'v>> = None;
            for item in items {
                sum = Some(match (sum, item) {
                    (None, item) => item.clone(),
                    (Some(Val::Int(a)), Val::Int(b)) => match a.checked_add(*b) {
                        Some(sum) => Val::Int(sum),
                        None => return failed("integer overflow"),
                    },
                    (Some(Val::Double(a)), Val::Double(b)) => Val::Double(a + b),
                    (Some(Val::Duration(a)), Val::Duration(b)) => {
                        Val::Duration(a.saturating_add(*b))
                    }
                    _ => return no_overload(),
                });
            }
            Ok(sum.unwrap_or(Val::Int(0)))
        }
        ("indexOf" | "lastIndexOf", [wanted]) => {
            let mut found = None;
            for (i, item) in items.iter().enumerate() {
                if equal(item, wanted, meter)? && (name == "lastIndexOf" || found.is_none()) {
                    found = Some(i);
                }
            }
            match found {
                Some(found) => count(found),
                None => Ok(Val::Int(-1)),
            }
        }
        ("reverse", []) => Ok(Val::List(Arc::new(items.iter().rev().cloned().collect()))),
        _ => no_overload(),
    }
}
