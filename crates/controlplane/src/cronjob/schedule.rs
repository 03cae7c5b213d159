//! Schedules as `cron` writes them, in a time zone.

use jiff::{SignedDuration, Span, Timestamp, tz::TimeZone};
use std::path::Path;

/// Where the system keeps its time zones.
const ZONES: &[&str] = &[
    "/usr/share/zoneinfo",
    "/usr/lib/zoneinfo",
    "/usr/share/lib/zoneinfo",
    "/etc/zoneinfo",
];
/// How far ahead a next time is looked for: February 29th comes every eight years at worst.
const YEARS: i16 = 9;

/// Why there is no schedule, or no zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScheduleError {
    #[error("expected exactly 5 fields, found {0}: [{1}]")]
    Fields(usize, String),
    #[error("failed to parse {0}")]
    Field(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("unknown time zone {0}")]
    Zone(String),
}

/// A time zone of the IANA's by name, from the system's files.
pub(super) fn zone(name: &str) -> Result<TimeZone, ScheduleError> {
    let unknown = || ScheduleError::Zone(name.to_owned());
    if matches!(name, "UTC" | "Etc/UTC") {
        return Ok(TimeZone::UTC);
    }
    // A name, and no way out of the directory.
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+');
    let named = !name.is_empty()
        && name
            .split('/')
            .all(|part| !part.is_empty() && part.chars().all(safe));
    if !named || name.eq_ignore_ascii_case("local") {
        return Err(unknown());
    }
    let data = ZONES
        .iter()
        .find_map(|at| std::fs::read(Path::new(at).join(name)).ok());
    TimeZone::tzif(name, &data.ok_or_else(unknown)?).map_err(|_| unknown())
}

/// Values of a field as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// `*`: it says nothing.
    any: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits >> value & 1 == 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Every(SignedDuration),
    Times {
        minute: Field,
        hour: Field,
        day: Field,
        month: Field,
        weekday: Field,
    },
}

/// A schedule.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    rule: Rule,
    zone: TimeZone,
}

const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// `name` as a number; names count from `first`.
fn number(text: &str, names: &[&str], first: u32) -> Option<u32> {
    let named = names
        .iter()
        .position(|name| text.eq_ignore_ascii_case(name));
    match named {
        Some(at) => Some(first + u32::try_from(at).ok()?),
        None => text.parse().ok(),
    }
}

/// `*`, `?`, `5`, `1-5`, `*/15`, `10-40/10`, and lists of these.
fn field(text: &str, low: u32, high: u32, names: &[&str]) -> Result<Field, ScheduleError> {
    let wrong = || ScheduleError::Field(text.to_owned());
    let mut field = Field {
        bits: 0,
        any: false,
    };
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().map_err(|_| wrong())?)),
            None => (part, None),
        };
        let value = |text: &str| number(text, names, low).ok_or_else(wrong);
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => {
                field.any |= step.is_none_or(|step| step <= 1);
                (low, high)
            }
            Some((first, last)) => (value(first)?, value(last)?),
            None => {
                let first = value(range)?;
                // `5/15` goes on to the end.
                (first, if step.is_some() { high } else { first })
            }
        };
        let step = step.unwrap_or(1);
        if first < low || last > high || first > last || step == 0 {
            return Err(wrong());
        }
        for at in (first..=last).step_by(usize::try_from(step).unwrap_or(1)) {
            field.bits |= 1 << at;
        }
    }
    Ok(field)
}

/// `1h30m10s`.
fn duration(text: &str) -> Option<SignedDuration> {
    let mut seconds = 0_i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let unit = match tail.chars().next()? {
            'h' => 3600,
            'm' if !tail.starts_with("ms") => 60,
            's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
        rest = &tail[1..];
    }
    (seconds > 0).then(|| SignedDuration::from_secs(seconds))
}

impl Schedule {
    /// Reads five fields or `@hourly` and the like.
    pub(super) fn parse(text: &str, zone: TimeZone) -> Result<Self, ScheduleError> {
        let text = text.trim();
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => text,
        };
        if let Some(every) = fields.strip_prefix("@every ") {
            let every = duration(every.trim());
            let every = every.ok_or_else(|| ScheduleError::Descriptor(text.to_owned()))?;
            return Ok(Self {
                rule: Rule::Every(every),
                zone,
            });
        }
        if fields.starts_with('@') {
            return Err(ScheduleError::Descriptor(text.to_owned()));
        }
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts[..] else {
            return Err(ScheduleError::Fields(parts.len(), parts.join(" ")));
        };
        let rule = Rule::Times {
            minute: field(minute, 0, 59, &[])?,
            hour: field(hour, 0, 23, &[])?,
            day: field(day, 1, 31, &[])?,
            month: field(month, 1, 12, MONTHS)?,
            weekday: field(weekday, 0, 6, WEEKDAYS)?,
        };
        Ok(Self { rule, zone })
    }

    /// The first time after `after`. Times that a change of the clock skips do not come.
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let (minute, hour, day, month, weekday) = match &self.rule {
            Rule::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(*every).ok();
            }
            Rule::Times {
                minute,
                hour,
                day,
                month,
                weekday,
            } => (minute, hour, day, month, weekday),
        };
        let first = after.as_second().div_euclid(60) * 60 + 60;
        let mut at = Timestamp::from_second(first)
            .ok()?
            .to_zoned(self.zone.clone());
        let last = at.year() + YEARS;
        while at.year() < last {
            if !month.has(at.month()) {
                let next = at
                    .first_of_month()
                    .ok()?
                    .checked_add(Span::new().months(1))
                    .ok()?;
                at = next.start_of_day().ok()?;
                continue;
            }
            let by_day = day.has(at.day());
            let by_weekday = weekday.has(at.weekday().to_sunday_zero_offset());
            // Where both are given, either will do.
            let fits = if day.any || weekday.any {
                by_day && by_weekday
            } else {
                by_day || by_weekday
            };
            if !fits {
                at = at.tomorrow().ok()?.start_of_day().ok()?;
            } else if !hour.has(at.hour()) {
                let left = i64::from(60 - at.minute()) * 60;
                at = at.checked_add(SignedDuration::from_secs(left)).ok()?;
            } else if !minute.has(at.minute()) {
                at = at.checked_add(SignedDuration::from_secs(60)).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(schedule: &str, zone: TimeZone, at: &str) -> Option<String> {
        let schedule = Schedule::parse(schedule, zone).unwrap();
        let next = schedule.next(at.parse().unwrap());
        next.map(|next| next.to_string())
    }

    #[test]
    fn the_next_time_comes() {
        for (schedule, at, next) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            (
                "* * * * *",
                "2026-01-01T00:00:59.9Z",
                "2026-01-01T00:01:00Z",
            ),
            (
                "*/15 * * * *",
                "2026-01-01T00:16:00Z",
                "2026-01-01T00:30:00Z",
            ),
            (
                "5/20 * * * *",
                "2026-01-01T00:26:00Z",
                "2026-01-01T00:45:00Z",
            ),
            ("30 4 * * *", "2026-01-01T04:30:00Z", "2026-01-02T04:30:00Z"),
            ("0 0 1 * *", "2026-01-15T00:00:00Z", "2026-02-01T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-15T00:00:00Z", "2028-02-29T00:00:00Z"),
            (
                "0 9-17/4 * * mon-fri",
                "2026-01-02T18:00:00Z",
                "2026-01-05T09:00:00Z",
            ),
            // Either the 13th or a Friday.
            ("0 0 13 * 5", "2026-01-10T00:00:00Z", "2026-01-13T00:00:00Z"),
            ("0 0 13 * 5", "2026-01-13T00:00:00Z", "2026-01-16T00:00:00Z"),
            (
                "0 0 * JAN,dec ?",
                "2026-02-01T00:00:00Z",
                "2026-12-01T00:00:00Z",
            ),
            ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            (
                "@every 1h30m",
                "2026-01-01T00:00:05Z",
                "2026-01-01T01:30:05Z",
            ),
        ] {
            assert_eq!(
                after(schedule, TimeZone::UTC, at).as_deref(),
                Some(next),
                "{schedule}"
            );
        }
        assert_eq!(
            after("0 0 31 2 *", TimeZone::UTC, "2026-01-01T00:00:00Z"),
            None
        );
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for wrong in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 7",
            "*/0 * * * *",
            "5-1 * * * *",
            "x * * * *",
            "@never",
            "@every x",
            "@every 0s",
        ] {
            assert!(Schedule::parse(wrong, TimeZone::UTC).is_err(), "{wrong}");
        }
    }

    #[test]
    fn clocks_that_change_are_followed() {
        // A zone by its rules: 1 hour ahead, in summer 2, from the last Sunday of March to that of October.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let at = |schedule: &str, at: &str| after(schedule, zone.clone(), at).unwrap();
        assert_eq!(
            at("0 12 * * *", "2026-01-10T00:00:00Z"),
            "2026-01-10T11:00:00Z"
        );
        assert_eq!(
            at("0 12 * * *", "2026-07-10T00:00:00Z"),
            "2026-07-10T10:00:00Z"
        );
        // There is no 2:30 on March 29th.
        assert_eq!(
            at("30 2 * * *", "2026-03-28T12:00:00Z"),
            "2026-03-30T00:30:00Z"
        );
    }

    #[test]
    fn zones_are_names() {
        assert!(zone("Etc/UTC").is_ok());
        for wrong in [
            "",
            "../etc/passwd",
            "/etc/passwd",
            "Nowhere/Land",
            "Local",
            "a//b",
        ] {
            assert_eq!(zone(wrong).unwrap_err(), ScheduleError::Zone(wrong.into()));
        }
    }
}
