//! Durations as Go writes them (`1h30m`, `-5s`, `300ms`), in flags and annotations.

use jiff::SignedDuration;
use std::time::Duration;

/// Nanoseconds of a unit.
fn unit(name: &str) -> Option<f64> {
    Some(match name {
        "h" => 3.6e12,
        "m" => 6e10,
        "s" => 1e9,
        "ms" => 1e6,
        "us" | "µs" | "μs" => 1e3,
        "ns" => 1.0,
        _ => return None,
    })
}

/// Reads a duration; `None` when it is none, or does not fit into Go's (292 years).
pub fn parse_signed(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanoseconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (name, tail) = tail.split_at(letters);
        nanoseconds += number.parse::<f64>().ok()? * unit(name)?;
        rest = tail;
    }
    if nanoseconds >= i64::MAX as f64 {
        return None;
    }
    let magnitude = SignedDuration::from_nanos(nanoseconds as i64);
    Some(if negative { -magnitude } else { magnitude })
}

/// Reads a duration that is not negative.
pub fn parse(text: &str) -> Option<Duration> {
    parse_signed(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        for (text, seconds) in [
            ("9m19s", 559.0),
            ("1.5h", 5400.0),
            ("300ms", 0.3),
            ("0", 0.0),
            ("+5s", 5.0),
            (".5s", 0.5),
        ] {
            let read = parse(text).expect(text);
            assert!((read.as_secs_f64() - seconds).abs() < 1e-9, "{text}");
        }
        assert_eq!(parse_signed("-2h"), Some(SignedDuration::from_hours(-2)));
        assert_eq!(parse("-2h"), None);
        for bad in ["", "-", "5", "5x", "s", "..s", "1e9h", "9999999h"] {
            assert_eq!(parse_signed(bad), None, "{bad}");
        }
    }
}
