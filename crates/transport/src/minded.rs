//! A body that does not wait for ever for a client that takes nothing.

use crate::{Body, BoxError};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};

/// The body of one of many streams of a connection. A stream that stalls does not show on the socket, and nobody asks its body for
/// anything: a task of its own gives the body up. The stream is broken when the client takes something again.
pub(crate) struct Minded {
    slot: Arc<Mutex<Slot>>,
    limit: Duration,
    cut: Arc<AtomicU64>,
    /// Begun with the first frame that is not the last.
    minder: Option<AbortHandle>,
    ended: bool,
}

struct Slot {
    /// `None`: over, or given up.
    body: Option<Body>,
    /// Since when the client has something to take; `None` while the body has nothing.
    idle: Option<Instant>,
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Minded {
    pub(crate) fn new(body: Body, limit: Duration, cut: Arc<AtomicU64>) -> Self {
        Self {
            ended: body.is_end_stream(),
            slot: Arc::new(Mutex::new(Slot {
                body: Some(body),
                idle: None,
            })),
            limit,
            cut,
            minder: None,
        }
    }

    fn mind(&mut self) {
        let (slot, limit, cut) = (self.slot.clone(), self.limit, self.cut.clone());
        let minder = tokio::spawn(async move {
            let mut next = Instant::now() + limit;
            loop {
                sleep_until(next).await;
                let now = Instant::now();
                let mut held = lock(&slot);
                next = held.idle.unwrap_or(now) + limit;
                if next > now {
                    continue;
                }
                let given_up = held.body.take();
                drop(held);
                if given_up.is_some() {
                    cut.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(?limit, "answer given up: its client takes nothing any more");
                }
                return;
            }
        });
        self.minder = Some(minder.abort_handle());
    }
}

impl http_body::Body for Minded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let slot = self.slot.clone();
        let mut held = lock(&slot);
        let Some(body) = &mut held.body else {
            drop(held);
            self.ended = true;
            return Poll::Ready(Some(Err("given up: nothing was taken of it".into())));
        };
        let polled = Pin::new(&mut *body).poll_frame(context);
        self.ended = match &polled {
            Poll::Ready(Some(Ok(_))) => body.is_end_stream(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        if self.ended {
            held.body = None;
        }
        held.idle = polled.is_ready().then(Instant::now);
        drop(held);
        if polled.is_ready() && !self.ended && self.minder.is_none() {
            self.mind();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        match &lock(&self.slot).body {
            Some(body) => body.size_hint(),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Minded {
    fn drop(&mut self) {
        if let Some(minder) = &self.minder {
            minder.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::time::sleep;

    const LIMIT: Duration = Duration::from_secs(30);

    fn pieces() -> Vec<Bytes> {
        vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_loses_the_body() {
        let cut = Arc::default();
        let (sender, body) = crate::channel(4);
        let mut body = Minded::new(body, LIMIT, Arc::clone(&cut));
        for piece in pieces() {
            sender.send(Ok(piece)).await.unwrap();
        }
        body.frame().await.unwrap().unwrap();
        // The source learns of it, without anybody who asks.
        sender.closed().await;
        assert_eq!(cut.load(Ordering::Relaxed), 1);
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_or_is_slow_does_not() {
        let cut = Arc::default();
        let (sender, body) = crate::channel(4);
        let mut body = Minded::new(body, LIMIT, Arc::clone(&cut));
        let sending = tokio::spawn(async move {
            for piece in pieces() {
                sender.send(Ok(piece)).await.unwrap();
                sleep(LIMIT * 10).await;
            }
        });
        for piece in pieces() {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), piece);
            sleep(LIMIT - Duration::from_secs(1)).await;
        }
        assert!(body.frame().await.is_none());
        sending.await.unwrap();
        assert_eq!(cut.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn sizes_and_ends_are_the_bodys() {
        let mut body = Minded::new(crate::chunks(pieces()), LIMIT, Arc::default());
        assert_eq!(body.size_hint().exact(), Some(6));
        assert!(!body.is_end_stream());
        while !body.is_end_stream() {
            body.frame().await.unwrap().unwrap();
        }
        assert!(Minded::new(crate::empty(), LIMIT, Arc::default()).is_end_stream());
    }
}
