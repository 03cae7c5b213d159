//! Counts given as a number or as a percentage of the replicas (`IntOrString`).

use serde_json::Value;

/// Which way a part of a replica is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To more.
    Up,
    /// To less.
    Down,
}

/// What `value` (`5`, `"25%"`) is of `total`. What is neither is 0: the server does not let it in.
pub fn of(value: &Value, total: i64, round: Round) -> i64 {
    if let Some(number) = value.as_i64() {
        return number;
    }
    let percent = value.as_str().and_then(|text| text.strip_suffix('%'));
    let Some(percent) = percent.and_then(|digits| digits.parse::<i64>().ok()) else {
        return 0;
    };
    let hundredfold = percent.saturating_mul(total);
    match round {
        Round::Up => hundredfold.saturating_add(99).div_euclid(100),
        Round::Down => hundredfold.div_euclid(100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_as_told() {
        for (value, up, down) in [
            (Value::from(3), 3, 3),
            ("25%".into(), 3, 2),
            ("100%".into(), 10, 10),
            ("0%".into(), 0, 0),
            ("1%".into(), 1, 0),
            ("x".into(), 0, 0),
            (Value::Null, 0, 0),
        ] {
            assert_eq!(of(&value, 10, Round::Up), up, "{value}");
            assert_eq!(of(&value, 10, Round::Down), down, "{value}");
        }
    }
}
