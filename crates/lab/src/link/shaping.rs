//! Delay, capacity and loss of a link.

use super::LinkState;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The least time after which TCP sends a lost packet again (Linux' TCP_RTO_MIN).
const MIN_RETRANSMISSION: Duration = Duration::from_millis(200);
/// Consecutive losses of one chunk that are modelled: each doubles the time-out, as TCP does.
const MAX_LOSSES: u32 = 5;
/// What may wait before the bottleneck of a slow link.
const MAX_QUEUE: Duration = Duration::from_millis(50);

/// How a link state treats bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Added to a round trip.
    pub(super) delay: Duration,
    rate: Option<u64>,
    loss_percent: u8,
}

impl Shape {
    pub(super) fn of(state: LinkState) -> Self {
        let (delay, rate, loss_percent) = match state {
            LinkState::Up | LinkState::Cut | LinkState::Reset => (Duration::ZERO, None, 0),
            LinkState::Slow {
                delay,
                bytes_per_second,
            } => (delay, bytes_per_second, 0),
            LinkState::Lossy {
                delay,
                loss_percent,
            } => (delay, None, loss_percent.min(95)),
        };
        Self {
            delay,
            rate,
            loss_percent,
        }
    }

    /// Whether its capacity is limited.
    pub(super) fn is_thin(&self) -> bool {
        self.rate.is_some()
    }

    /// How much to send at once: on a thin link no connection may occupy it for long.
    pub(super) fn chunk(&self, most: usize) -> usize {
        match self.rate {
            None => most,
            Some(rate) => usize::try_from(rate / 50).unwrap_or(most).clamp(64, most),
        }
    }

    /// How long a chunk takes to pass the bottleneck.
    fn transmission(&self, length: usize) -> Duration {
        match self.rate {
            None => Duration::ZERO,
            Some(rate) => Duration::from_secs_f64(length as f64 / rate.max(1) as f64),
        }
    }

    /// How long a chunk stalls because packets of it get lost.
    pub(super) fn stall(&self, random: &mut fastrand::Rng) -> Duration {
        let mut timeout = MIN_RETRANSMISSION.max(self.delay * 2);
        let mut stall = Duration::ZERO;
        for _ in 0..MAX_LOSSES {
            if random.u8(0..100) >= self.loss_percent {
                break;
            }
            stall += timeout;
            timeout *= 2;
        }
        stall
    }
}

/// The bottleneck of one direction, shared by all connections of a link.
#[derive(Default)]
pub(super) struct Pacer {
    /// When everything sent so far has passed.
    free: Mutex<Option<Instant>>,
    /// Held while waiting for room: in the order of asking, so that no connection starves another.
    turn: tokio::sync::Mutex<()>,
}

impl Pacer {
    /// Waits until little is queued before the bottleneck.
    pub(super) async fn room(&self, shape: Shape) {
        if shape.rate.is_none() {
            return;
        }
        let _turn = self.turn.lock().await;
        loop {
            let free = *self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let queued = free.map_or(Duration::ZERO, |free| {
                free.saturating_duration_since(Instant::now())
            });
            if queued <= MAX_QUEUE {
                return;
            }
            sleep(queued - MAX_QUEUE).await;
        }
    }

    /// Takes the bottleneck for a chunk: when it has passed.
    pub(super) fn pass(&self, shape: Shape, length: usize) -> Instant {
        let now = Instant::now();
        if shape.rate.is_none() {
            return now;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = free.map_or(now, |free| free.max(now));
        let through = begin + shape.transmission(length);
        *free = Some(through);
        through
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(delay: u64, rate: u64) -> Shape {
        Shape::of(LinkState::Slow {
            delay: Duration::from_millis(delay),
            bytes_per_second: (rate > 0).then_some(rate),
        })
    }

    #[test]
    fn an_open_link_costs_nothing() {
        let shape = Shape::of(LinkState::Up);
        assert_eq!(shape.delay, Duration::ZERO);
        assert_eq!(shape.chunk(16_384), 16_384);
        assert_eq!(shape.transmission(1 << 20), Duration::ZERO);
        assert_eq!(
            shape.stall(&mut fastrand::Rng::with_seed(1)),
            Duration::ZERO
        );
    }

    #[test]
    fn chunks_fit_the_rate() {
        assert_eq!(slow(0, 1_000_000).chunk(16_384), 16_384);
        assert_eq!(slow(0, 100_000).chunk(16_384), 2_000);
        assert_eq!(slow(0, 1).chunk(16_384), 64);
        assert_eq!(slow(0, u64::MAX).chunk(16_384), 16_384);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_for_all_together() {
        let pacer = Pacer::default();
        let shape = slow(0, 10_000);
        let begin = Instant::now();
        let send = || async {
            for _ in 0..20 {
                pacer.room(shape).await;
                pacer.pass(shape, 200);
            }
        };
        tokio::join!(send(), send(), send());
        let through = pacer.pass(shape, 0) - begin;
        assert_eq!(
            through.as_millis(),
            1_200,
            "60 chunks of 200 bytes at 10 kB/s"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let pacer = Pacer::default();
        let shape = slow(0, 1_000);
        pacer.pass(shape, 100);
        sleep(Duration::from_secs(60)).await;
        let now = Instant::now();
        assert_eq!(pacer.pass(shape, 500) - now, Duration::from_millis(500));
    }

    #[test]
    fn losses_stall_for_doubling_timeouts() {
        let shape = Shape::of(LinkState::Lossy {
            delay: Duration::from_millis(300),
            loss_percent: 30,
        });
        let mut random = fastrand::Rng::with_seed(7);
        let mut hit = 0;
        for _ in 0..10_000 {
            let stall = shape.stall(&mut random).as_millis();
            // 600, 600 + 1200, ...
            assert!(
                [0, 600, 1_800, 4_200, 9_000, 18_600].contains(&stall),
                "{stall}"
            );
            hit += u32::from(stall > 0);
        }
        assert!((2_700..3_300).contains(&hit), "{hit} of 10000");
        let hopeless = Shape::of(LinkState::Lossy {
            delay: Duration::ZERO,
            loss_percent: 255,
        });
        assert_eq!(hopeless.loss_percent, 95);
    }
}
