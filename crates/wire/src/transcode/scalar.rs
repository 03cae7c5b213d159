//! The values that are messages in protobuf and scalars in JSON, and numbers as Go prints them.

use crate::protobuf::{Reader, WireError};
use jiff::Timestamp;
use std::fmt::Write as _;

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, the years that RFC 3339 can tell.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Go's zero time, which is an empty message on the wire and null in JSON.
pub(super) const ZERO: (i64, i32) = (*SECONDS.start(), 0);

/// Seconds and nanoseconds of a `Time` or `MicroTime` message; `None` for the zero time.
fn read_timestamp(message: &[u8]) -> Result<Option<Timestamp>, WireError> {
    if message.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut fields = Reader::new(message);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => seconds = field.int()?,
            2 => nanos = field.int()?,
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| WireError::Time)?;
    if !SECONDS.contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(WireError::Time);
    }
    if (seconds, nanos) == ZERO {
        return Ok(None);
    }
    Timestamp::new(seconds, nanos)
        .map(Some)
        .map_err(|_| WireError::Time)
}

/// `metav1.Time` in RFC 3339 and UTC; `None` for the zero time. Kubernetes ignores the nanoseconds of this type.
pub(crate) fn read_time(message: &[u8]) -> Result<Option<String>, WireError> {
    let time = read_timestamp(message)?;
    Ok(time.and_then(|time| Some(Timestamp::from_second(time.as_second()).ok()?.to_string())))
}

/// `metav1.MicroTime`: always six digits of a second.
pub(super) fn read_micro_time(message: &[u8]) -> Result<Option<String>, WireError> {
    Ok(read_timestamp(message)?.map(|time| format!("{time:.6}")))
}

/// Seconds and nanoseconds of an RFC 3339 time, as the message has them (nanoseconds count forward).
pub(super) fn parse_time(text: &str) -> Option<(i64, i32)> {
    let time: Timestamp = text.parse().ok()?;
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    SECONDS.contains(&seconds).then_some((seconds, nanos))
}

/// What an `IntOrString` message holds.
pub(super) enum IntOrString<'a> {
    Int(i32),
    String(&'a [u8]),
}

pub(super) fn read_int_or_string(message: &[u8]) -> Result<IntOrString<'_>, WireError> {
    let (mut kind, mut int, mut string): (i64, i64, &[u8]) = (0, 0, &[]);
    let mut fields = Reader::new(message);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => kind = field.int()?,
            2 => int = field.int()?,
            3 => string = field.bytes()?,
            _ => {}
        }
    }
    match kind {
        0 => Ok(IntOrString::Int(int as i32)),
        1 => Ok(IntOrString::String(string)),
        _ => Err(WireError::Unexpected(1)),
    }
}

/// The only field of a message that wraps one (Quantity's string, the raw bytes of RawExtension, FieldsV1, JSON).
pub(super) fn read_wrapped(message: &[u8]) -> Result<Option<&[u8]>, WireError> {
    let mut value = None;
    let mut fields = Reader::new(message);
    while let Some(field) = fields.next_field()? {
        if field.number == 1 {
            value = Some(field.bytes()?);
        }
    }
    Ok(value)
}

/// A duration in nanoseconds as Go prints it: `1h0m0s`, `1.5s`, `20ms`, `0s`.
pub(super) fn print_duration(nanos: i64) -> String {
    let mut out = String::new();
    if nanos < 0 {
        out.push('-');
    }
    let total = nanos.unsigned_abs();
    let (unit, name) = match total {
        0 => return "0s".to_owned(),
        1..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let mut whole = total / unit;
    let fraction = total % unit;
    if unit == 1_000_000_000 {
        let (hours, minutes) = (whole / 3600, whole / 60 % 60);
        whole %= 60;
        if hours > 0 {
            let _ = write!(out, "{hours}h");
        }
        if hours > 0 || minutes > 0 {
            let _ = write!(out, "{minutes}m");
        }
    }
    let _ = write!(out, "{whole}");
    if fraction > 0 {
        let digits = unit.ilog10() as usize;
        let text = format!("{fraction:0digits$}");
        let _ = write!(out, ".{}", text.trim_end_matches('0'));
    }
    out.push_str(name);
    out
}

/// Parses what [`print_duration`] prints, and whatever else Go's durations allow (`1.5h`, `-2m3s`, `+5us`).
pub(super) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || whole.len() > 19 {
            return None;
        }
        let digits = fraction.get(..fraction.len().min(18))?;
        let whole: i128 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        let part: i128 = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        total += whole * unit + part * unit / 10i128.pow(digits.len() as u32);
        if total > i128::from(i64::MAX) + 1 {
            return None;
        }
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// A double as Go prints it; `None` for what JSON cannot say.
pub(super) fn print_double(value: f64) -> Option<String> {
    if !value.is_finite() {
        return None;
    }
    let size = value.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{value:e}");
        // Rust prints 1e21 where Go prints 1e+21.
        return Some(match text.split_once('e') {
            Some((mantissa, exponent)) if !exponent.starts_with('-') => {
                format!("{mantissa}e+{exponent}")
            }
            _ => text,
        });
    }
    Some(format!("{value}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_go_durations() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (480_000_000_001, "8m0.000000001s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(print_duration(nanos), text);
            assert_eq!(parse_duration(text), Some(nanos));
        }
        assert_eq!(parse_duration("1.5h"), Some(5_400_000_000_000));
        assert_eq!(parse_duration("+5us"), Some(5_000));
        for bad in [
            "",
            "-",
            "3",
            "1d",
            "1.2.3s",
            "s",
            ".s",
            "99999999999999999999h",
            "1 s",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn doubles_are_go_doubles() {
        for (value, text) in [
            (100.0, "100"),
            (0.5, "0.5"),
            (-0.0, "-0"),
            (1e21, "1e+21"),
            (1e20, "100000000000000000000"),
            (1e-7, "1e-7"),
            (0.000001, "0.000001"),
        ] {
            assert_eq!(print_double(value).as_deref(), Some(text));
        }
        assert_eq!(print_double(f64::NAN), None);
    }

    proptest! {
        #[test]
        fn durations_round_trip(nanos: i64) {
            prop_assert_eq!(parse_duration(&print_duration(nanos)), Some(nanos));
        }
        #[test]
        fn any_text_is_no_panic(text: String) {
            let _ = parse_duration(&text);
            let _ = parse_time(&text);
        }
    }
}
