//! Methods of strings.

use super::{
    Outcome, count, failed,
    network::{cidr, uri},
};
use crate::{
    Error,
    eval::{Meter, no_overload},
    value::Val,
};
use std::{net::IpAddr, sync::Arc};
use yurt_wire::quantity::Quantity;

/// A range of characters as text.
fn characters(text: &str, from: i64, to: i64) -> Result<String, Error> {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if from < 0 || to < from || to > length {
        return Err(Error::Failed(format!("index out of range: {from}, {to}")));
    }
    let skip = usize::try_from(from).unwrap_or_default();
    let take = usize::try_from(to - from).unwrap_or_default();
    Ok(text.chars().skip(skip).take(take).collect())
}

pub(super) fn string<'v>(
    name: &str,
    text: &Arc<str>,
    rest: &[Val<'v>],
    meter: &mut Meter<'_>,
) -> Outcome<'v> {
    let made = |text: String| Ok(Val::String(text.into()));
    // The position of a byte in characters.
    let position = |found: Option<usize>| match found {
        Some(byte) => count(text[..byte].chars().count()),
        None => Ok(Val::Int(-1)),
    };
    match (name, rest) {
        ("contains", [Val::String(part)]) => Ok(Val::Bool(text.contains(&**part))),
        ("startsWith", [Val::String(part)]) => Ok(Val::Bool(text.starts_with(&**part))),
        ("endsWith", [Val::String(part)]) => Ok(Val::Bool(text.ends_with(&**part))),
        ("matches", [Val::String(pattern)]) => {
            // Matching is linear in text and pattern together.
            meter.charge(text.len() as u64 / 10 * (pattern.len() as u64 / 4 + 1))?;
            Ok(Val::Bool(meter.regex(pattern)?.is_match(text)))
        }
        ("find", [Val::String(pattern)]) => {
            meter.charge(text.len() as u64 / 10 * (pattern.len() as u64 / 4 + 1))?;
            let regex = meter.regex(pattern)?;
            Ok(Val::text(
                regex.find(text).map_or("", |found| found.as_str()),
            ))
        }
        ("findAll", [Val::String(pattern), limit @ ..]) => {
            meter.charge(text.len() as u64 / 10 * (pattern.len() as u64 / 4 + 1))?;
            let limit = match limit {
                [] => usize::MAX,
                [Val::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => return no_overload(),
            };
            let regex = meter.regex(pattern)?;
            let found = regex.find_iter(text).take(limit);
            let found: Vec<Val<'v>> = found.map(|found| Val::text(found.as_str())).collect();
            meter.charge(found.len() as u64)?;
            Ok(Val::List(Arc::new(found)))
        }
        ("lowerAscii", []) => made(text.to_ascii_lowercase()),
        ("upperAscii", []) => made(text.to_ascii_uppercase()),
        ("trim", []) => made(text.trim().to_owned()),
        ("reverse", []) => made(text.chars().rev().collect()),
        ("charAt", [Val::Int(at)]) => {
            let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
            let end = at.saturating_add(1).min(length.max(*at));
            made(characters(text, *at, end)?)
        }
        ("substring", [Val::Int(from)]) => {
            let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
            made(characters(text, *from, length)?)
        }
        ("substring", [Val::Int(from), Val::Int(to)]) => made(characters(text, *from, *to)?),
        ("indexOf", [Val::String(part)]) => position(text.find(&**part)),
        ("lastIndexOf", [Val::String(part)]) => position(text.rfind(&**part)),
        ("indexOf", [Val::String(part), Val::Int(from)]) => {
            let before = characters(text, 0, *from)?.len();
            position(text[before..].find(&**part).map(|found| found + before))
        }
        ("lastIndexOf", [Val::String(part), Val::Int(to)]) => {
            let end = characters(text, 0, *to)?.len() + part.len();
            let mut end = end.min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            position(text[..end].rfind(&**part))
        }
        ("replace", [Val::String(from), Val::String(to), limit @ ..]) => {
            let limit = match limit {
                [] => usize::MAX,
                [Val::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => return no_overload(),
            };
            // The longest the result can become.
            let hits = text.matches(&**from).take(limit).count();
            meter.text(text.len().saturating_add(hits.saturating_mul(to.len())))?;
            made(text.replacen(&**from, to, limit))
        }
        ("split", [Val::String(separator), limit @ ..]) => {
            let limit = match limit {
                [] => usize::MAX,
                [Val::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => return no_overload(),
            };
            let parts: Vec<Val<'v>> = if limit == 0 {
                Vec::new()
            } else if separator.is_empty() {
                let parts = text.chars().map(|c| Val::text(c.encode_utf8(&mut [0; 4])));
                parts.take(limit).collect()
            } else {
                text.splitn(limit, &**separator).map(Val::text).collect()
            };
            meter.charge(parts.len() as u64)?;
            Ok(Val::List(Arc::new(parts)))
        }
        ("format", [args @ (Val::List(_) | Val::JsonList(..))]) => {
            made(format(text, &args.items().unwrap_or_default(), meter)?)
        }
        ("url", []) => match uri(text) {
            Some(uri) => Ok(Val::Url(Arc::new(uri))),
            None => failed(format!(
                "URL parse error during conversion from string: {text}"
            )),
        },
        ("isURL", []) => Ok(Val::Bool(uri(text).is_some())),
        ("quantity", []) => match Quantity::parse(text) {
            Some(amount) => Ok(Val::Quantity(amount)),
            None => failed(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        },
        ("isQuantity", []) => Ok(Val::Bool(Quantity::parse(text).is_some())),
        ("ip", []) => match text.parse() {
            Ok(address) => Ok(Val::Ip(address)),
            Err(_) => failed(format!(
                "IP Address {text:?} parse error during conversion from string"
            )),
        },
        ("isIP", []) => Ok(Val::Bool(text.parse::<IpAddr>().is_ok())),
        ("ip.isCanonical", []) => match text.parse::<IpAddr>() {
            Ok(address) => Ok(Val::Bool(address.to_string() == **text)),
            Err(_) => failed(format!(
                "IP Address {text:?} parse error during conversion from string"
            )),
        },
        ("cidr", []) => match cidr(text) {
            Some((address, bits)) => Ok(Val::Cidr(address, bits)),
            None => failed(format!(
                "network address parse error during conversion from string: {text}"
            )),
        },
        ("isCIDR", []) => Ok(Val::Bool(cidr(text).is_some())),
        _ => no_overload(),
    }
}

/// `%s`, `%d`, `%f` (with precision), `%b`, `%x`, `%e`, `%%`.
fn format(template: &str, args: &[Val<'_>], meter: &mut Meter<'_>) -> Result<String, Error> {
    /// More digits than a double has are noise.
    const MAX_PRECISION: usize = 30;
    let bad = |why: &str| Error::Failed(format!("error during formatting: {why}"));
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = template.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = String::new();
        let verb = loop {
            match chars.next() {
                Some(c) if c == '.' || c.is_ascii_digit() => precision.push(c),
                Some(c) => break c,
                None => return Err(bad("unexpected end of string")),
            }
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let arg = args.next().ok_or_else(|| bad("index out of range"))?;
        let digits = precision.trim_start_matches('.').parse().unwrap_or(6usize);
        if digits > MAX_PRECISION {
            return Err(bad("precision too large"));
        }
        let text = match (verb, arg) {
            ('s', arg) => shown(arg, meter, 0)?,
            ('d', Val::Int(_) | Val::Uint(_)) => arg.printed().unwrap_or_default(),
            ('f', arg) => match arg.as_double() {
                Some(number) => format!("{number:.digits$}"),
                None => return Err(bad("no such overload")),
            },
            ('e', arg) => match arg.as_double() {
                Some(number) => format!("{number:.digits$e}"),
                None => return Err(bad("no such overload")),
            },
            ('b', Val::Int(n)) => format!("{n:b}"),
            ('b', Val::Bool(b)) => u8::from(*b).to_string(),
            ('x', Val::Int(n)) => format!("{n:x}"),
            ('X', Val::Int(n)) => format!("{n:X}"),
            ('o', Val::Int(n)) => format!("{n:o}"),
            _ => return Err(bad(&format!("unrecognized formatting clause \"{verb}\""))),
        };
        meter.text(text.len())?;
        out.push_str(&text);
    }
    Ok(out)
}

/// A value inside of a text.
fn shown(value: &Val<'_>, meter: &mut Meter<'_>, depth: usize) -> Result<String, Error> {
    meter.charge(1)?;
    if depth > 64 {
        return Err(Error::Failed("nested too deeply".into()));
    }
    Ok(match value {
        Val::Null => "null".into(),
        Val::List(_) | Val::JsonList(..) => {
            let items = value.items().unwrap_or_default();
            let items: Result<Vec<String>, Error> = items
                .iter()
                .map(|item| shown(item, meter, depth + 1))
                .collect();
            format!("[{}]", items?.join(", "))
        }
        Val::Map(_) | Val::JsonMap(..) => {
            let mut entries = Vec::new();
            for key in value.items().unwrap_or_default() {
                let entry = value.entry(&key).unwrap_or(Val::Null);
                let key = shown(&key, meter, depth + 1)?;
                entries.push(format!("{key}: {}", shown(&entry, meter, depth + 1)?));
            }
            format!("{{{}}}", entries.join(", "))
        }
        Val::Type(name) => (*name).to_owned(),
        value => value.printed().unwrap_or_default(),
    })
}
