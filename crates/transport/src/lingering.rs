//! Closing a connection without losing what was said last.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::timeout,
};

/// How long a closed connection is read from.
const LINGER: Duration = Duration::from_secs(1);

/// A server's stream that, once its writing side was shut down, goes on reading for a moment instead of being closed.
///
/// A kernel that closes a socket while the peer still sends answers with a reset, and a peer that meets the reset while it writes
/// never reads what came before it: our GOAWAY, which says that its last requests were not processed and may be repeated.
pub(crate) struct Lingering<T, H>
where
    T: AsyncRead + Send + Unpin + 'static,
    H: Send + Unpin + 'static,
{
    /// Taken by `drop` only.
    stream: Option<T>,
    /// What the connection occupies until it is closed.
    hold: Option<H>,
    shut_down: bool,
}

impl<T, H> Lingering<T, H>
where
    T: AsyncRead + Send + Unpin + 'static,
    H: Send + Unpin + 'static,
{
    pub(crate) fn new(stream: T, hold: H) -> Self {
        Self {
            stream: Some(stream),
            hold: Some(hold),
            shut_down: false,
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut T>> {
        let stream = self.stream.as_mut();
        stream
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<T, H> Drop for Lingering<T, H>
where
    T: AsyncRead + Send + Unpin + 'static,
    H: Send + Unpin + 'static,
{
    fn drop(&mut self) {
        let hold = self.hold.take();
        // Outside of a runtime nothing can be waited for.
        if let (true, Some(mut stream), Ok(runtime)) =
            (self.shut_down, self.stream.take(), Handle::try_current())
        {
            runtime.spawn(async move {
                let mut discarded = [0; 4096];
                let drain = async { while let Ok(1..) = stream.read(&mut discarded).await {} };
                let _ = timeout(LINGER, drain).await;
                drop(hold);
            });
        }
    }
}

impl<T, H> AsyncRead for Lingering<T, H>
where
    T: AsyncRead + Send + Unpin + 'static,
    H: Send + Unpin + 'static,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl<T, H> AsyncWrite for Lingering<T, H>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Send + Unpin + 'static,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.stream()?.poll_shutdown(context);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.shut_down = true;
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(T::is_write_vectored)
    }
}
