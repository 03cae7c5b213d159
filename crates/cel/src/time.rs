//! Durations as Go writes them: `1h30m`, `1.5s`, `-2ms`.

const UNITS: &[(&str, i64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Nanoseconds; `None` for what is no duration or too long.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let part = number.parse::<f64>().ok()? * *nanos as f64;
        if !(part.is_finite() && part < 9.2e18) {
            return None;
        }
        total = total.checked_add(part.round() as i64)?;
        rest = tail;
    }
    Some(if negative { -total } else { total })
}

/// As `string(duration)` prints.
pub(crate) fn print(nanos: i64) -> String {
    format!("{}s", nanos as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_are_read() {
        for (text, nanos) in [
            ("0", Some(0)),
            ("1h30m", Some(5_400_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("-2ms", Some(-2_000_000)),
            ("", None),
            ("1", None),
            ("1x", None),
            ("s", None),
            ("99999999999999h", None),
        ] {
            assert_eq!(super::parse(text), nanos, "{text}");
        }
        assert_eq!(super::print(1_500_000_000), "1.5s");
    }
}
