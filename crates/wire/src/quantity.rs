//! Amounts of resources: `500m`, `1Gi`, `1e3`.

use std::fmt;

/// Which suffixes an amount is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `Ki`, `Mi`, ...
    Binary,
    /// `n`, `u`, `m`, `k`, `M`, ...
    Decimal,
    /// `e3`.
    Exponent,
}

/// An amount, exact to a billionth; finer digits are rounded up, as Kubernetes does.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

const NANOS: i128 = 1_000_000_000;
const BINARY: [(&str, u32); 7] = [
    ("", 0),
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
/// Kubernetes caps amounts at the largest 64-bit integer.
const MAX: i128 = (i64::MAX as i128) * NANOS;

impl Quantity {
    /// Reads an amount.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (format, power, shift) = suffix_of(suffix)?;

        // The digits as one integer, scaled by ten to `power` and two to `shift`.
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let fraction = i32::try_from(fraction.len()).ok()?;
        let mut exponent = power.checked_sub(fraction)?.checked_add(9)?;
        let mut nanos: i128 = 0;
        let mut inexact = false;
        for (i, digit) in digits.bytes().enumerate() {
            // Thirty digits are more than fit the cap; the rest only matters for rounding.
            if i < 30 {
                nanos = nanos * 10 + i128::from(digit - b'0');
            } else {
                inexact |= digit != b'0';
                exponent = exponent.checked_add(1)?;
            }
        }
        if shift > 0 {
            nanos = nanos
                .checked_shl(shift)
                .filter(|_| nanos < (1 << 66))
                .unwrap_or(MAX);
        }
        while exponent > 0 && nanos != 0 && nanos < MAX {
            nanos = nanos.saturating_mul(10);
            exponent -= 1;
        }
        while exponent < 0 && nanos != 0 {
            inexact |= nanos % 10 != 0;
            nanos /= 10;
            exponent += 1;
        }
        if inexact {
            nanos += 1;
        }
        nanos = nanos.min(MAX);
        Some(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Nothing at all.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::Decimal,
    };

    /// So many whole things.
    pub fn count(number: u32) -> Self {
        Self {
            nanos: i128::from(number) * NANOS,
            format: Format::Decimal,
        }
    }

    /// In thousandths, rounded up.
    pub fn milli(self) -> i64 {
        rounded_up(self.nanos, NANOS / 1000)
    }

    /// In whole ones, rounded up.
    pub fn whole(self) -> i64 {
        rounded_up(self.nanos, NANOS)
    }

    /// A whole amount.
    pub fn integer(number: i64) -> Self {
        Self {
            nanos: i128::from(number) * NANOS,
            format: Format::Decimal,
        }
    }

    /// The amount when it is whole and fits.
    pub fn to_integer(self) -> Option<i64> {
        (self.nanos % NANOS == 0)
            .then(|| i64::try_from(self.nanos / NANOS).ok())
            .flatten()
    }

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// The larger of two amounts.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.nanos > self.nanos {
            other
        } else {
            self
        }
    }

    /// How often `other` fits into it; infinite when `other` is nothing.
    pub fn ratio(self, other: Self) -> f64 {
        self.nanos as f64 / other.nanos as f64
    }

    fn with(self, nanos: i128, other: Self) -> Self {
        Self {
            nanos: nanos.clamp(-MAX, MAX),
            // As Kubernetes: a zero takes the form of what is added to it.
            format: if self.nanos == 0 {
                other.format
            } else {
                self.format
            },
        }
    }
}

fn rounded_up(nanos: i128, unit: i128) -> i64 {
    let whole = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    i64::try_from(whole).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

impl std::ops::Add for Quantity {
    type Output = Self;
    /// Capped at the largest amount there is.
    fn add(self, other: Self) -> Self {
        self.with(self.nanos + other.nanos, other)
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;
    /// Capped at the smallest amount there is.
    fn sub(self, other: Self) -> Self {
        self.with(self.nanos - other.nanos, other)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.nanos.partial_cmp(&other.nanos)
    }
}

fn suffix_of(suffix: &str) -> Option<(Format, i32, u32)> {
    if let Some((_, shift)) = BINARY[1..].iter().find(|(name, _)| *name == suffix) {
        return Some((Format::Binary, 0, *shift));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((Format::Decimal, *power, 0));
    }
    let power = suffix.strip_prefix(['e', 'E'])?;
    let power: i32 = power.parse().ok()?;
    (-100..=100)
        .contains(&power)
        .then_some((Format::Exponent, power, 0))
}

/// The canonical form: the largest suffix that leaves no fraction.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANOS == 0;
        if self.format == Format::Binary && whole && (self.nanos / NANOS).abs() >= 1024 {
            let mut units = self.nanos / NANOS;
            let mut step = 0;
            while units % 1024 == 0 && step + 1 < BINARY.len() {
                units /= 1024;
                step += 1;
            }
            return write!(f, "{units}{}", BINARY[step].0);
        }
        let mut units = self.nanos;
        let mut step = 0;
        while units % 1000 == 0 && step + 1 < DECIMAL.len() {
            units /= 1000;
            step += 1;
        }
        let (suffix, power) = DECIMAL[step];
        match (self.format, power) {
            (Format::Exponent, 0) => write!(f, "{units}"),
            (Format::Exponent, power) => write!(f, "{units}e{power}"),
            _ => write!(f, "{units}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms() {
        for (written, canonical) in [
            ("1", "1"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000Ki", "1000Ki"),
            ("1023", "1023"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("12E", "9223372036854775807"),
            ("100m", "100m"),
            ("-2.50", "-2500m"),
            ("0", "0"),
            ("0Mi", "0"),
            ("0.0000000001", "1n"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
        ] {
            let parsed = Quantity::parse(written).unwrap();
            assert_eq!(parsed.to_string(), canonical, "{written}");
        }
        for bad in ["", "-", "1.2.3", "1x", "Mi", "1 Gi", "1e", "1e999", "."] {
            assert!(Quantity::parse(bad).is_none(), "{bad}");
        }
        assert!(Quantity::parse("1Gi").unwrap() > Quantity::parse("1G").unwrap());
    }

    proptest! {
        #[test]
        fn canonical_is_stable(text in "[+-]?[0-9]{0,12}(\\.[0-9]{0,12})?(n|u|m|k|M|G|Ki|Mi|Gi|Ei|e[0-9]|)") {
            if let Some(quantity) = Quantity::parse(&text) {
                let canonical = quantity.to_string();
                let again = Quantity::parse(&canonical).unwrap();
                prop_assert_eq!(again, quantity);
                prop_assert_eq!(again.to_string(), canonical);
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text);
        }
    }
}
