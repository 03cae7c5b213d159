//! How many proxied connections there are.

use futures_util::task::AtomicWaker;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::sync::Notify;

/// Counts the proxied connections of one connection between agent and server, and tells who drives it when there are more or fewer.
#[derive(Debug, Default)]
pub(crate) struct Live {
    count: AtomicUsize,
    idle: Notify,
    pub(crate) driver: AtomicWaker,
}

/// One proxied connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Occupied(Arc<Live>);

impl Live {
    pub(crate) fn count(&self) -> usize {
        self.count.load(SeqCst)
    }

    /// One more, unless there are `max`.
    pub(crate) fn enter(self: &Arc<Self>, max: usize) -> Option<Occupied> {
        let before = self
            .count
            .fetch_update(SeqCst, SeqCst, |count| (count < max).then_some(count + 1))
            .ok()?;
        self.changed(before + 1);
        Some(Occupied(Arc::clone(self)))
    }

    /// The driver shares its memory between powers of two.
    fn changed(&self, larger: usize) {
        if (larger - 1).is_power_of_two() {
            self.driver.wake();
        }
    }

    /// Waits until there is none.
    pub(crate) async fn idle(&self) {
        loop {
            let left = self.idle.notified();
            if self.count() == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let before = self.0.count.fetch_sub(1, SeqCst);
        self.0.changed(before);
        if before == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_counted_bounded_and_awaited() {
        let live = Arc::new(Live::default());
        live.idle().await;
        let held: Vec<_> = (0..3).map(|_| live.enter(3).unwrap()).collect();
        assert!(live.enter(3).is_none());
        assert_eq!(live.count(), 3);
        let waiting = tokio::spawn({
            let live = Arc::clone(&live);
            async move { live.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap();
        assert_eq!(live.count(), 0);
    }
}
