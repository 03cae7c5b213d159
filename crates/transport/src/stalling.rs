//! A stream that does not wait for ever for a peer that takes nothing.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// A socket whose writes fail with `TimedOut` when the peer took nothing of one for a while. Any progress begins the time anew.
/// hyper writes before it asks a body for more, so that only the stream itself can tell.
pub(crate) struct Stalling<T> {
    inner: T,
    limit: Duration,
    /// Set while the connection serves what minds its clients itself.
    unhurried: Arc<AtomicBool>,
    /// How many were cut.
    cut: Arc<AtomicU64>,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<T> Stalling<T> {
    pub(crate) fn new(
        inner: T,
        limit: Duration,
        unhurried: Arc<AtomicBool>,
        cut: Arc<AtomicU64>,
    ) -> Self {
        Self {
            inner,
            limit,
            unhurried,
            cut,
            waiting: None,
        }
    }

    fn judge(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        loop {
            ready!(waiting.as_mut().poll(context));
            if !self.unhurried.load(Ordering::Relaxed) {
                break;
            }
            waiting.as_mut().reset(Instant::now() + limit);
        }
        self.waiting = None;
        self.cut.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(?limit, "connection cut: its client takes nothing any more");
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer takes nothing any more",
        )))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stalling<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stalling<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, data);
        self.judge(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket keeps nothing back.
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, data);
        self.judge(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const LIMIT: Duration = Duration::from_secs(30);

    fn stalling<T>(inner: T) -> (Stalling<T>, Arc<AtomicBool>, Arc<AtomicU64>) {
        let (unhurried, cut) = (Arc::default(), Arc::default());
        let stream = Stalling::new(inner, LIMIT, Arc::clone(&unhurried), Arc::clone(&cut));
        (stream, unhurried, cut)
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut() {
        let (near, _far) = duplex(16);
        let (mut stream, _, cut) = stalling(near);
        let began = Instant::now();
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LIMIT);
        assert_eq!(cut.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_is_not() {
        let (near, mut far) = duplex(16);
        let (mut stream, _, cut) = stalling(near);
        let reading = tokio::spawn(async move {
            let mut piece = [0; 8];
            for _ in 0..8 {
                sleep(LIMIT - Duration::from_secs(1)).await;
                far.read_exact(&mut piece).await.unwrap();
            }
        });
        stream.write_all(&[0; 64]).await.unwrap();
        reading.await.unwrap();
        assert_eq!(cut.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_hurried_who_need_not_be() {
        let (near, mut far) = duplex(16);
        let (mut stream, unhurried, cut) = stalling(near);
        unhurried.store(true, Ordering::Relaxed);
        let reading = tokio::spawn(async move {
            sleep(LIMIT * 10).await;
            far.read_exact(&mut [0; 64]).await.unwrap();
        });
        stream.write_all(&[0; 64]).await.unwrap();
        reading.await.unwrap();
        assert_eq!(cut.load(Ordering::Relaxed), 0);
    }
}
