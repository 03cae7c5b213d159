//! Whether one API server can be reached: a pure state machine over what traffic and probes show.
//!
//! Any byte from the server is life. After [`PERIOD`] of silence the server is probed; when [`MISSES`] probes in a row
//! stay unanswered while everything else is silent too, the link is down. A dropped packet delays an answer by a few
//! retransmissions, so the probes go over two connections and late answers still count: a lossy link stays up. Where answers
//! come fast the second probe follows soon, beside the first: a link that is cut is found out within 2.2 s then, and within
//! 2.7 s where they are slow; a packet now and then that is lost costs a probe and no more. A refusal
//! (connection refused or reset, TLS failed) is an answer of another kind and needs no waiting. Coming back takes
//! a few answered probes in a row, more when the link was up only shortly.

use std::time::{Duration, Instant};

/// Silence after which the server is asked for a sign of life.
pub const PERIOD: Duration = Duration::from_millis(900);
/// Unanswered probes in a row that make a link down.
const MISSES: u32 = 2;
/// With probes missed, silence shorter than this is still not down.
const LEAST_SILENCE: Duration = Duration::from_millis(1600);
/// Bounds of how long one probe is waited for. The first of a silence need not be answered by the least of them, it is only not
/// waited for any longer before the next: loss shows in the round trip, and the wait grows with it.
const LEAST_WAIT: Duration = Duration::from_millis(350);
const MOST_WAIT: Duration = Duration::from_millis(900);
/// Pause between probes of a link that is down and refuses at once.
const DOWN_PAUSE: Duration = Duration::from_millis(700);
/// Pause between the confirming probes of a link that comes back.
const CONFIRM_PAUSE: Duration = Duration::from_millis(100);
/// A link that was up for less than this before it went down must confirm more before it is up again.
const STEADY: Duration = Duration::from_secs(30);

/// What is known about the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is known yet; requests try, and are answered locally as soon as the first probe fails.
    Starting,
    /// The server answers.
    Up,
    /// The server does not answer; nothing is sent to it but probes.
    Down,
}

impl State {
    /// Lower case, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What happened on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes of a response came.
    Heard,
    /// A probe was answered.
    Answered {
        /// From sending it to its answer.
        rtt: Duration,
    },
    /// A probe was not answered in the time [`Plan`] gave it.
    Missed,
    /// A probe was refused at once.
    Refused,
    /// A request or a stream failed: worth a probe now.
    Suspicion,
}

/// When to probe next, and how long to wait for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// When the probe is due.
    pub at: Instant,
    /// How long to wait for its answer before reporting [`Input::Missed`].
    pub wait: Duration,
    /// Whether a second connection should be asked beside the first.
    pub second_opinion: bool,
}

/// The state machine of one server's link.
#[derive(Clone, Debug)]
pub struct Link {
    state: State,
    since: Instant,
    heard: Instant,
    misses: u32,
    confirmed: u32,
    needed: u32,
    rtt: Option<Duration>,
    probe_at: Instant,
}

impl Link {
    /// A link about which nothing is known; its first probe is due at once.
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Starting,
            since: now,
            heard: now,
            misses: 0,
            confirmed: 0,
            needed: 1,
            rtt: None,
            probe_at: now,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when it is in this state.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The smoothed round trip of probes.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Whether a probe went unanswered since the last sign of life.
    pub fn suspect(&self) -> bool {
        self.misses > 0
    }

    /// When and how to probe next.
    pub fn plan(&self) -> Plan {
        let wait = match self.rtt {
            Some(rtt) if self.state == State::Up && self.misses == 0 => {
                (rtt * 4 + Duration::from_millis(250)).clamp(LEAST_WAIT, MOST_WAIT)
            }
            _ => MOST_WAIT,
        };
        Plan {
            at: self.probe_at,
            wait,
            second_opinion: self.state == State::Up && self.misses > 0,
        }
    }

    /// Takes in what happened; gives the new state when it changed.
    pub fn input(&mut self, now: Instant, input: Input) -> Option<State> {
        // Probes of a link that is not up pay for connecting too.
        if let (State::Up, Input::Answered { rtt }) = (self.state, input) {
            self.rtt = Some(match self.rtt {
                Some(old) => (old * 7 + rtt) / 8,
                None => rtt,
            });
        }
        match (self.state, input) {
            (State::Up, Input::Heard | Input::Answered { .. }) => {
                self.heard = self.heard.max(now);
                self.misses = 0;
                self.probe_at = now + PERIOD;
                None
            }
            (State::Starting, Input::Heard | Input::Answered { .. }) => self.turn(now, State::Up),
            // A late byte of an old connection proves nothing about a new one: ask.
            (State::Down, Input::Heard | Input::Suspicion) => {
                self.probe_at = self.probe_at.min(now);
                None
            }
            (State::Down, Input::Answered { .. }) => {
                self.confirmed += 1;
                self.probe_at = now + CONFIRM_PAUSE;
                (self.confirmed >= self.needed)
                    .then(|| self.turn(now, State::Up))
                    .flatten()
            }
            (State::Starting, Input::Missed | Input::Refused) => self.turn(now, State::Down),
            (State::Up, Input::Missed) => {
                self.misses += 1;
                self.probe_at = now;
                let silent = now.saturating_duration_since(self.heard) >= LEAST_SILENCE;
                (self.misses >= MISSES && silent)
                    .then(|| self.turn(now, State::Down))
                    .flatten()
            }
            (State::Up, Input::Refused) => {
                self.misses += 1;
                self.probe_at = now + CONFIRM_PAUSE;
                (self.misses >= MISSES)
                    .then(|| self.turn(now, State::Down))
                    .flatten()
            }
            (State::Down, Input::Missed) => {
                self.confirmed = 0;
                // It has been waited for already.
                self.probe_at = now;
                None
            }
            (State::Down, Input::Refused) => {
                self.confirmed = 0;
                self.probe_at = now + DOWN_PAUSE;
                None
            }
            (State::Starting | State::Up, Input::Suspicion) => {
                self.probe_at = self.probe_at.min(now);
                None
            }
        }
    }

    fn turn(&mut self, now: Instant, to: State) -> Option<State> {
        if to == State::Down {
            let shortly_up =
                self.state == State::Up && now.saturating_duration_since(self.since) < STEADY;
            self.needed = if shortly_up {
                (self.needed + 1).clamp(2, 5)
            } else {
                2
            };
            self.probe_at = now;
        } else {
            self.heard = now;
            self.probe_at = now + PERIOD;
        }
        self.state = to;
        self.since = now;
        self.misses = 0;
        self.confirmed = 0;
        Some(to)
    }
}

#[cfg(test)]
mod tests;
