//! When the writing thread is to be woken. Pure.

use std::time::Instant;

/// Until when the writing thread sleeps, and whether it must be woken before. A wake-up costs more than most of what is learned.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    /// `None` while it is awake: it looks at everything again before it sleeps.
    asleep: Option<Asleep>,
    ringing: bool,
}

#[derive(Clone, Copy, Debug)]
struct Asleep {
    until: Instant,
    /// Nothing ordinary is written before.
    not_before: Instant,
}

impl Alarm {
    /// The thread goes to sleep.
    pub(crate) fn sleeps(&mut self, until: Instant, not_before: Instant) {
        self.asleep = Some(Asleep { until, not_before });
    }

    /// The thread is awake.
    pub(crate) fn awake(&mut self) {
        *self = Self::default();
    }

    /// Something is to be done at `due`.
    pub(crate) fn due(&mut self, due: Instant) {
        self.ringing |= self
            .asleep
            .is_some_and(|asleep| due.max(asleep.not_before) < asleep.until);
    }

    /// Something is to be done at once.
    pub(crate) fn ring(&mut self) {
        self.ringing |= self.asleep.is_some();
    }

    /// Whether the thread must be woken, told once.
    pub(crate) fn rings(&mut self) -> bool {
        std::mem::take(&mut self.ringing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_writer_is_woken_for_what_cannot_wait() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut alarm = Alarm::default();
        // Awake: it looks before it sleeps.
        alarm.due(now);
        alarm.ring();
        assert!(!alarm.rings());
        // Asleep until something is due in a while; its pass begins at 150.
        alarm.sleeps(after(5_000), after(150));
        alarm.due(after(6_000));
        assert!(!alarm.rings());
        alarm.due(now);
        assert!(alarm.rings());
        assert!(!alarm.rings(), "told once");
        // Asleep until its pass: what is due now waits for it, an overflow does not.
        alarm.awake();
        alarm.sleeps(after(150), after(150));
        alarm.due(now);
        assert!(!alarm.rings());
        alarm.ring();
        assert!(alarm.rings());
    }
}
