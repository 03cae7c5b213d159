//! How soon a daemon that failed is tried again on its node: a kubelet that turns pods away must not be fought.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Failures by daemon set (its UID) and node. What is long over is forgotten.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: HashMap<(String, String), (Instant, Duration)>,
}

impl Backoff {
    /// How long the next try has to wait, if it has to.
    pub(super) fn left(&mut self, set: &str, node: &str) -> Option<Duration> {
        let now = Instant::now();
        self.failures
            .retain(|_, (at, pause)| now.duration_since(*at) < *pause * 2);
        let (at, pause) = self.failures.get(&(set.to_owned(), node.to_owned()))?;
        (*at + *pause)
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }

    /// A failed pod is being replaced: the next one has to wait longer.
    pub(super) fn note(&mut self, set: &str, node: &str) {
        let key = (set.to_owned(), node.to_owned());
        let pause = self
            .failures
            .get(&key)
            .map_or(FIRST, |(_, pause)| (*pause * 2).min(LONGEST));
        self.failures.insert(key, (Instant::now(), pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_for_each_node_by_itself() {
        let mut backoff = Backoff::default();
        assert_eq!(
            backoff.left("s", "n"),
            None,
            "the first failure is replaced at once"
        );
        backoff.note("s", "n");
        assert!(backoff.left("s", "n").unwrap() <= FIRST);
        assert_eq!(backoff.left("s", "m"), None);
        backoff.note("s", "n");
        assert!(backoff.left("s", "n").unwrap() > FIRST);
        for _ in 0..30 {
            backoff.note("s", "n");
        }
        assert!(backoff.left("s", "n").unwrap() <= LONGEST);
    }
}
