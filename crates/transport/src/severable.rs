//! A stream that can be broken from outside.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Sees errors as they are: hyper and h2 pass on little more than the message.
pub(crate) trait Watcher: Unpin {
    /// A read failed.
    fn read_failed(&self, error: &io::Error);
}

/// Does not care.
impl Watcher for () {
    fn read_failed(&self, _: &io::Error) {}
}

/// A stream whose reads and writes fail with `ConnectionReset` from the moment a token is cancelled. hyper turns such an error into
/// errors of the bodies in flight; merely dropping its connection would end HTTP/1.1 bodies as if they were whole.
pub(crate) struct Severable<T, W> {
    inner: T,
    token: CancellationToken,
    // Reads and writes may be polled from different tasks after an upgrade: each needs its own waker.
    read_cut: Pin<Box<WaitForCancellationFutureOwned>>,
    write_cut: Pin<Box<WaitForCancellationFutureOwned>>,
    watcher: W,
}

impl<T, W> Severable<T, W> {
    pub(crate) fn new(inner: T, token: &CancellationToken, watcher: W) -> Self {
        Self {
            inner,
            token: token.clone(),
            read_cut: Box::pin(token.clone().cancelled_owned()),
            write_cut: Box::pin(token.clone().cancelled_owned()),
            watcher,
        }
    }
}

fn severed() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "connection was broken on purpose",
    )
}

impl<T, W> Severable<T, W> {
    fn check_read(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        // A completed future must not be polled again, so the token is asked first.
        if self.token.is_cancelled() || self.read_cut.as_mut().poll(context).is_ready() {
            return Err(severed());
        }
        Ok(())
    }

    fn check_write(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.token.is_cancelled() || self.write_cut.as_mut().poll(context).is_ready() {
            return Err(severed());
        }
        Ok(())
    }
}

impl<T: AsyncRead + Unpin, W: Watcher> AsyncRead for Severable<T, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_read(context)?;
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &polled {
            self.watcher.read_failed(error);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin, W: Watcher> AsyncWrite for Severable<T, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_write(context)?;
        Pin::new(&mut self.inner).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write(context)?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write(context)?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_write(context)?;
        Pin::new(&mut self.inner).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
