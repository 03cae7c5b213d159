//! How much each proxied connection may have under way, as in `mux`: what was written and not read at the far end stays within a window
//! that shrinks as connections become many ([`windows`](crate::mux::windows)). QUIC's own windows are fixed per stream: they are as large as a few connections may
//! have, and would be too much for many. So each end tells the other, on a stream of its own, what its readers have read and what the window is now.
//!
//! A report is 16 bytes: the stream's id and the bytes of it that were read so far, both big-endian; the id of all ones is the window.

use futures_util::task::AtomicWaker;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};
use tokio::sync::Notify;

/// Says the window in place of a stream.
const WINDOW: u64 = u64::MAX;
/// The bytes of a report.
pub(super) const REPORT: usize = 16;
/// Bytes that are read before they are reported: less than half of the smallest window, so that nobody waits for a report that never comes.
const WORTH: u64 = crate::mux::windows::LEAST as u64 / 4;

/// What the far end's reader of one stream has read.
#[derive(Debug, Default)]
pub(super) struct Credit {
    read: AtomicU64,
    waker: AtomicWaker,
}

impl Credit {
    /// How much more may be written when so much was; who waits for more is woken.
    pub(super) fn left(
        &self,
        sent: u64,
        ledger: &Ledger,
        context: &mut std::task::Context<'_>,
    ) -> u64 {
        let left = || {
            let unread = sent.saturating_sub(self.read.load(SeqCst));
            ledger.window.load(SeqCst).saturating_sub(unread)
        };
        match left() {
            0 => {
                self.waker.register(context.waker());
                left()
            }
            some => some,
        }
    }
}

#[derive(Debug, Default)]
struct Open {
    /// By stream: those that are written to.
    credits: HashMap<u64, Arc<Credit>>,
    /// What is to be told; by stream, hence no more than there are streams.
    pending: HashMap<u64, u64>,
}

/// The accounts of one connection.
#[derive(Debug)]
pub(super) struct Ledger {
    open: Mutex<Open>,
    /// Of each of our streams, as the far end says.
    window: AtomicU64,
    /// Told when there is something to tell.
    told: Notify,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            window: u64::from(crate::mux::windows::LEAST).into(),
            told: Notify::default(),
        }
    }
}

impl Ledger {
    fn open(&self) -> MutexGuard<'_, Open> {
        // Valid after every statement.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream that will be written to.
    pub(super) fn enter(&self, stream: u64) -> Arc<Credit> {
        let credit = Arc::<Credit>::default();
        self.open().credits.insert(stream, credit.clone());
        credit
    }

    /// It is over.
    pub(super) fn leave(&self, stream: u64) {
        let mut open = self.open();
        open.credits.remove(&stream);
        open.pending.remove(&stream);
    }

    /// A reader here has read so much. Returns what the far end will know.
    pub(super) fn has_read(&self, stream: u64, read: u64, reported: u64) -> u64 {
        if read < reported + WORTH {
            return reported;
        }
        self.tell(stream, read);
        read
    }

    /// This is the window of each stream that we read.
    pub(super) fn grant(&self, window: u32) {
        self.tell(WINDOW, window.into());
    }

    fn tell(&self, stream: u64, value: u64) {
        self.open().pending.insert(stream, value);
        self.told.notify_one();
    }

    /// Waits until there is something to tell; all of it.
    pub(super) async fn reports(&self) -> Vec<u8> {
        loop {
            let pending = std::mem::take(&mut self.open().pending);
            if !pending.is_empty() {
                let reports = pending.into_iter();
                return reports
                    .flat_map(|(stream, value)| [stream.to_be_bytes(), value.to_be_bytes()])
                    .flatten()
                    .collect();
            }
            self.told.notified().await;
        }
    }

    /// The far end told something. Streams that are unknown are over.
    pub(super) fn hear(&self, report: &[u8; REPORT]) {
        let number = u128::from_be_bytes(*report);
        let (stream, value) = ((number >> 64) as u64, number as u64);
        let open = self.open();
        if stream == WINDOW {
            self.window.store(value, SeqCst);
            open.credits.values().for_each(|credit| credit.waker.wake());
        } else if let Some(credit) = open.credits.get(&stream) {
            credit.read.fetch_max(value, SeqCst);
            credit.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mux::windows::{LEAST, MOST};
    use futures_util::{FutureExt, task::noop_waker_ref};
    use proptest::{collection::vec, prelude::*};
    use std::task::Context;

    fn carry(from: &Ledger, to: &Ledger) {
        if let Some(reports) = from.reports().now_or_never() {
            for report in reports.chunks_exact(REPORT) {
                to.hear(report.try_into().unwrap());
            }
        }
    }

    proptest! {
        /// Whatever is written, read and granted in whatever order: no more than the widest window that was granted is unread, and a
        /// writer whose reader goes on reading always goes on writing.
        #[test]
        fn nobody_passes_the_window_and_nobody_waits_for_ever(
            steps in vec((0u8..4, 0u64..3_000_000), 1..200),
        ) {
            let (writer, reader) = (Ledger::default(), Ledger::default());
            let credit = writer.enter(4);
            let mut context = Context::from_waker(noop_waker_ref());
            let (mut sent, mut read, mut reported, mut widest) = (0u64, 0, 0, u64::from(LEAST));
            for (what, size) in steps {
                match what {
                    0 => sent += size.min(credit.left(sent, &writer, &mut context)),
                    1 => {
                        read += size.min(sent - read);
                        reported = reader.has_read(4, read, reported);
                    }
                    2 => {
                        let window = (size as u32).clamp(LEAST, MOST);
                        widest = widest.max(window.into());
                        reader.grant(window);
                    }
                    _ => carry(&reader, &writer),
                }
                prop_assert!(sent - read <= widest);
            }
            read = sent;
            reader.has_read(4, read, reported);
            carry(&reader, &writer);
            prop_assert!(credit.left(sent, &writer, &mut context) > 0);
        }
    }

    #[test]
    fn what_is_over_is_forgotten_and_what_is_unknown_ignored() {
        let ledger = Ledger::default();
        ledger.enter(4);
        ledger.has_read(4, WORTH, 0);
        ledger.leave(4);
        assert!(ledger.reports().now_or_never().is_none());
        ledger.hear(&[7; REPORT]);
        assert!(ledger.open().credits.is_empty());
    }
}
