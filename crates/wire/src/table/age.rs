//! Ages as people read them.

use super::Fields;
use serde_json::{Value, json};

/// A span of seconds with two or three significant figures, as `duration.HumanDuration` of `k8s.io/apimachinery`
/// prints it: `90s`, `5m30s`, `3h15m`, `2d4h`, `400d`, `3y100d`. A second in the future counts as now, for clocks that
/// differ a little; more is `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    // The greater unit, with the rest in the lesser one unless that is zero.
    let two = |great: i64, unit: &str, less: i64, rest: &str| match less {
        0 => format!("{great}{unit}"),
        less => format!("{great}{unit}{less}{rest}"),
    };
    match seconds {
        i64::MIN..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..=119 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 2 * 365 => format!("{days}d"),
        _ if days < 8 * 365 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

pub(super) fn parse(time: &str) -> Option<jiff::Timestamp> {
    time.parse().ok()
}

/// Whole seconds from one time to another, cut towards zero.
fn seconds_between(from: jiff::Timestamp, to: jiff::Timestamp) -> i64 {
    let nanoseconds = to.as_nanosecond() - from.as_nanosecond();
    i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX)
}

/// The time since an RFC 3339 time; `<unknown>` when there is none.
pub(super) fn human_since(time: &str, now: i64) -> String {
    match (parse(time), jiff::Timestamp::from_second(now)) {
        (Some(time), Ok(now)) => human_duration(seconds_between(time, now)),
        _ => "<unknown>".to_owned(),
    }
}

/// The time between two RFC 3339 times, when both are known.
pub(super) fn human_between(from: &str, to: &str) -> Option<String> {
    Some(human_duration(seconds_between(parse(from)?, parse(to)?)))
}

impl Fields<'_> {
    /// The `Age` cell.
    pub(super) fn age(self, now: i64) -> Value {
        json!(human_since(&self.text("metadata.creationTimestamp"), now))
    }
    /// The `Created At` cell: the creation time itself.
    pub(super) fn created_at(self) -> Value {
        json!(self.text("metadata.creationTimestamp"))
    }
    /// The time since the time at a path.
    pub(super) fn since(self, path: &str, now: i64) -> String {
        human_since(&self.text(path), now)
    }
}
