//! The functions of expressions: CEL's own and those Kubernetes adds.

use super::{
    Error,
    eval::{Meter, equal, no_overload},
    time,
    value::Val,
};
use crate::quantity::Quantity;
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Timestamp, tz::TimeZone};
use regex::Regex;
use std::{cmp::Ordering, net::IpAddr, sync::Arc};

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

/// Regular expressions larger than this are refused.
const MAX_REGEX: usize = 1 << 20;

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
pub(super) fn call<'v>(name: &str, args: &[Val<'v>], meter: &mut Meter) -> Outcome<'v> {
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

fn regex(pattern: &str) -> Result<Regex, Error> {
    regex::RegexBuilder::new(pattern)
        .size_limit(MAX_REGEX)
        .build()
        .map_err(|error| Error::Failed(error.to_string()))
}

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

fn string<'v>(name: &str, text: &Arc<str>, rest: &[Val<'v>], meter: &mut Meter) -> Outcome<'v> {
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
            Ok(Val::Bool(regex(pattern)?.is_match(text)))
        }
        ("find", [Val::String(pattern)]) => {
            meter.charge(text.len() as u64 / 10 * (pattern.len() as u64 / 4 + 1))?;
            let regex = regex(pattern)?;
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
            let regex = regex(pattern)?;
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

/// Absolute URIs and absolute paths.
fn uri(text: &str) -> Option<http::Uri> {
    let uri: http::Uri = text.parse().ok()?;
    (text.starts_with('/') || uri.scheme().is_some()).then_some(uri)
}

fn url_part<'v>(name: &str, url: &http::Uri) -> Outcome<'v> {
    let host = url.host().unwrap_or_default();
    let port = url.port().map(|port| port.to_string());
    Ok(match name {
        "getScheme" => Val::text(url.scheme_str().unwrap_or_default()),
        "getHost" => match port {
            Some(port) => Val::text(&format!("{host}:{port}")),
            None => Val::text(host),
        },
        "getHostname" => Val::text(host.trim_start_matches('[').trim_end_matches(']')),
        "getPort" => Val::text(&port.unwrap_or_default()),
        "getEscapedPath" => Val::text(url.path()),
        "getQuery" => {
            let mut fields = std::collections::BTreeMap::<_, Vec<Val<'v>>>::new();
            for (key, value) in yurt_wire::request::query_pairs(url.query().unwrap_or_default()) {
                let key = super::value::Key::String(key.into());
                fields.entry(key).or_default().push(Val::text(&value));
            }
            let fields = fields
                .into_iter()
                .map(|(key, values)| (key, Val::List(Arc::new(values))))
                .collect();
            Val::Map(Arc::new(fields))
        }
        _ => return no_overload(),
    })
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

fn address<'v>(name: &str, a: IpAddr) -> Val<'v> {
    let link_local = match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let link_local_multicast = match a {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => a.is_multicast() && a.segments()[0] & 0xf == 2,
    };
    match name {
        "family" => Val::Int(if a.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Val::Bool(a.is_unspecified()),
        "isLoopback" => Val::Bool(a.is_loopback()),
        "isLinkLocalUnicast" => Val::Bool(link_local),
        "isLinkLocalMulticast" => Val::Bool(link_local_multicast),
        "isGlobalUnicast" => Val::Bool(
            !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || link_local)
                && a != IpAddr::V4(std::net::Ipv4Addr::BROADCAST),
        ),
        _ => Val::text(&a.to_string()),
    }
}

fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= width(address)).then_some((address, bits))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all but the first bits cleared.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(bits.min(32)))
                .unwrap_or(0);
            IpAddr::V4((u32::from(a) & mask).into())
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(bits.min(128)))
                .unwrap_or(0);
            IpAddr::V6((u128::from(a) & mask).into())
        }
    }
}

fn block<'v>(name: &str, a: IpAddr, bits: u8, rest: &[Val<'v>]) -> Outcome<'v> {
    let inner = match rest {
        [Val::String(text)] if name == "containsIP" => text.parse().ok().map(|ip| (ip, width(ip))),
        [Val::String(text)] if name == "containsCIDR" => cidr(text),
        [Val::Ip(ip)] => Some((*ip, width(*ip))),
        [Val::Cidr(ip, bits)] => Some((*ip, *bits)),
        _ => None,
    };
    Ok(match (name, inner) {
        ("containsIP" | "containsCIDR", Some((ip, inner))) => Val::Bool(
            ip.is_ipv4() == a.is_ipv4() && inner >= bits && masked(ip, bits) == masked(a, bits),
        ),
        ("ip", _) => Val::Ip(a),
        ("masked", _) => Val::Cidr(masked(a, bits), bits),
        ("prefixLength", _) => Val::Int(bits.into()),
        _ => return no_overload(),
    })
}

fn sets<'v>(name: &str, a: &Val<'v>, b: &Val<'v>, meter: &mut Meter) -> Outcome<'v> {
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

fn list<'v>(name: &str, items: &[Val<'v>], rest: &[Val<'v>], meter: &mut Meter) -> Outcome<'v> {
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

/// `%s`, `%d`, `%f` (with precision), `%b`, `%x`, `%e`, `%%`.
fn format(template: &str, args: &[Val<'_>], meter: &mut Meter) -> Result<String, Error> {
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
fn shown(value: &Val<'_>, meter: &mut Meter, depth: usize) -> Result<String, Error> {
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
