//! How soon a failed pod is replaced.

use super::super::pod;
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

const FIRST: u64 = 10;
const LONGEST: u64 = 10 * 60;

/// When a pod ended, by the best that is known.
fn ended(p: &Value) -> Option<Timestamp> {
    let containers = p["status"]["containerStatuses"].as_array();
    let finished = containers
        .into_iter()
        .flatten()
        .filter_map(|c| pod::instant(&c["state"]["terminated"]["finishedAt"]));
    finished
        .max()
        .or_else(|| {
            let ready = super::super::condition::find(&p["status"], "Ready")?;
            pod::instant(&ready["lastTransitionTime"])
        })
        .or_else(|| pod::instant(&p["metadata"]["deletionTimestamp"]))
        .or_else(|| pod::instant(&p["metadata"]["creationTimestamp"]))
}

fn left_after(failures: u32, last: Timestamp, now: Timestamp) -> Option<Duration> {
    let doubled = FIRST.saturating_mul(2_u64.saturating_pow(failures.saturating_sub(1).min(20)));
    let pause = i64::try_from(doubled.min(LONGEST)).unwrap_or(i64::MAX);
    let left = last.as_second().saturating_add(pause) - now.as_second();
    (failures > 0 && left > 0).then(|| Duration::from_secs(left.unsigned_abs()))
}

/// How long the next pod has to wait: pauses double with each failure since the last success.
pub(super) fn left<'p>(
    succeeded: impl Iterator<Item = &'p Value>,
    failed: impl Iterator<Item = &'p Value>,
    now: Timestamp,
) -> Option<Duration> {
    let success = succeeded.filter_map(ended).max();
    let failures: Vec<_> = failed
        .filter_map(ended)
        .filter(|at| success.is_none_or(|success| *at > success))
        .collect();
    let last = failures.iter().max()?;
    let count = u32::try_from(failures.len()).unwrap_or(u32::MAX);
    left_after(count, *last, now)
}

/// How long the next pod of an index has to wait after its last one, the `failures`-th, failed.
pub(super) fn left_of_index(last: &Value, failures: i64, now: Timestamp) -> Option<Duration> {
    left_after(
        u32::try_from(failures).unwrap_or(u32::MAX),
        ended(last)?,
        now,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pauses_double_from_the_last_success_on() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let pod = |second| json!({"metadata": {"creationTimestamp": at(second).to_string()}});
        let left = |succeeded: &[Value], failed: &[Value], now| {
            left(succeeded.iter(), failed.iter(), at(now)).map(|left| left.as_secs())
        };
        assert_eq!(left(&[], &[], 0), None);
        assert_eq!(left(&[], &[pod(100)], 104), Some(6));
        assert_eq!(left(&[], &[pod(100)], 110), None);
        assert_eq!(left(&[], &[pod(50), pod(80), pod(100)], 104), Some(36));
        assert_eq!(
            left(&[pod(90)], &[pod(50), pod(80), pod(100)], 104),
            Some(6)
        );
        let many: Vec<_> = (0..40).map(|n| pod(60 + n)).collect();
        assert_eq!(left(&[], &many, 99), Some(600));
    }
}
