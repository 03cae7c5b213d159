//! How many requests may be sent: a token bucket, as client-go has one per client.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A token bucket that gives turns in the order in which they were asked for.
#[derive(Debug)]
pub struct RateLimit {
    /// Between two turns.
    interval: Duration,
    /// How far turns may be taken in advance.
    ahead: Duration,
    /// When the bucket is full again.
    full_at: Mutex<Instant>,
}

impl RateLimit {
    /// `rate` requests per second (more than 0), `burst` (at least 1) at once after a silence.
    pub fn new(rate: f64, burst: u32) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / rate.max(1e-3)).unwrap_or(Duration::ZERO);
        Self {
            interval,
            ahead: interval.saturating_mul(burst.max(1) - 1),
            full_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes a turn: how long to wait for it.
    fn take(&self, now: Instant) -> Duration {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = full_at
            .saturating_duration_since(now)
            .saturating_sub(self.ahead);
        *full_at = (*full_at).max(now) + self.interval;
        wait
    }

    /// Waits for a turn.
    pub async fn turn(&self) {
        let wait = self.take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_the_rest_is_even() {
        let limit = RateLimit::new(10.0, 5);
        let began = Instant::now();
        for _ in 0..5 {
            limit.turn().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..20 {
            limit.turn().await;
        }
        let took = began.elapsed().as_millis();
        assert!((1990..=2050).contains(&took), "{took}");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let began = Instant::now();
        for _ in 0..6 {
            limit.turn().await;
        }
        assert!(
            began.elapsed() >= Duration::from_millis(99),
            "no more is saved up than the burst"
        );
    }

    proptest! {
        /// In no window are there more turns than burst and rate allow.
        #[test]
        fn the_rate_holds(
            rate in 1u32..100, burst in 1u32..20, pauses in proptest::collection::vec(0u64..200, 1..60),
        ) {
            let limit = RateLimit::new(f64::from(rate), burst);
            let mut now = Instant::now();
            let mut turns = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause);
                turns.push(now + limit.take(now));
            }
            prop_assert!(turns.is_sorted());
            for (first, from) in turns.iter().enumerate() {
                for (last, to) in turns.iter().enumerate().skip(first) {
                    let most = f64::from(burst) + (*to - *from).as_secs_f64() * f64::from(rate);
                    prop_assert!((last - first + 1) as f64 <= most + 1e-3);
                }
            }
        }
    }
}
