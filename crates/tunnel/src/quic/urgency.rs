//! Which streams go first: those that say little, as people do.

use tokio::time::Instant;

/// What a stream may say at once before it counts as a transfer.
const BURST: f64 = 65_536.0;
/// And what it may say in a second for ever.
const PACE: f64 = 65_536.0;
/// Of streams that say little: QUIC's own default.
const URGENT: i32 = 0;
const BULK: i32 = -1;

/// Whether a stream says little.
#[derive(Debug)]
pub(super) struct Urgency {
    /// Bytes that may still be said.
    allowance: f64,
    since: Instant,
    bulk: bool,
}

impl Default for Urgency {
    fn default() -> Self {
        Self {
            allowance: BURST,
            since: Instant::now(),
            bulk: false,
        }
    }
}

impl Urgency {
    /// So many bytes were written. Its new priority, when that changes.
    pub(super) fn wrote(&mut self, count: usize) -> Option<i32> {
        self.wrote_at(count, Instant::now())
    }

    fn wrote_at(&mut self, count: usize, now: Instant) -> Option<i32> {
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        // A transfer that pauses is in debt for a second at most.
        let rested = (self.allowance + elapsed * PACE).min(BURST);
        self.allowance = (rested - count as f64).max(-PACE);
        let bulk = self.allowance < 0.0;
        (std::mem::replace(&mut self.bulk, bulk) != bulk).then_some(if bulk {
            BULK
        } else {
            URGENT
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn typing_stays_urgent_and_a_transfer_does_not() {
        let (mut typing, mut transfer) = (Urgency::default(), Urgency::default());
        let start = Instant::now();
        let mut at = start;
        for _ in 0..1000 {
            at += Duration::from_millis(10);
            assert_eq!(typing.wrote_at(200, at), None);
        }
        let changes: Vec<_> = (0..100)
            .filter_map(|_| transfer.wrote_at(10_000, start))
            .collect();
        assert_eq!(changes, [BULK]);
        // Once it says little again, it goes first again.
        let later = start + Duration::from_secs(2);
        assert_eq!(transfer.wrote_at(100, later), Some(URGENT));
    }
}
