//! The last turns of a link, for those who ask why the node was offline.

use crate::link::{Input, State};
use serde::Serialize;
use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

/// Turns that are kept of each server.
const MOST: usize = 64;

/// One turn of a link.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Turn {
    /// When, by the node's clock (RFC 3339).
    pub at: String,
    /// The state since then.
    pub to: &'static str,
    /// Seconds that the state before lasted.
    pub after_seconds: f64,
    /// What tipped the scales.
    pub cause: &'static str,
    /// What the last refusal said, when there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The last turns, oldest first.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Turn>);

impl History {
    pub(super) fn note(
        &mut self,
        now: SystemTime,
        to: State,
        lasted: Duration,
        cause: Input,
        error: Option<String>,
    ) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Turn {
            at: jiff::Timestamp::try_from(now)
                .map(|at| format!("{at:.3}"))
                .unwrap_or_default(),
            to: to.as_str(),
            after_seconds: lasted.as_secs_f64(),
            cause: match cause {
                Input::Heard => "bytes came",
                Input::Answered { .. } => "a probe was answered",
                Input::Missed => "probes were not answered",
                Input::Refused => "probes were refused",
                Input::Suspicion => "requests failed",
            },
            error,
        });
    }

    pub(super) fn turns(&self) -> Vec<Turn> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_turns_are_forgotten() {
        let mut history = History::default();
        for i in 0..MOST as u64 + 3 {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(i);
            let lasted = Duration::from_secs(i);
            history.note(at, State::Down, lasted, Input::Missed, None);
        }
        let turns = history.turns();
        assert_eq!(turns.len(), MOST);
        assert_eq!(turns[0].at, "1970-01-01T00:00:03.000Z");
        assert_eq!(turns[0].after_seconds, 3.0);
        assert_eq!(turns[MOST - 1].cause, "probes were not answered");
    }
}
