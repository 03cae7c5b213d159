//! A stream that can be broken from outside.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A stream whose reads and writes fail with `ConnectionReset` from the moment a token is cancelled. hyper turns such an error into
/// errors of the bodies in flight; merely dropping its connection would end HTTP/1.1 bodies as if they were whole.
///
/// `H` is held until the stream is dropped, also when an upgrade took it out of hyper's hands (connection permits).
pub(crate) struct Severable<T, H = ()> {
    inner: T,
    token: CancellationToken,
    // Reads and writes may be polled from different tasks after an upgrade: each needs its own waker.
    read_cut: Pin<Box<WaitForCancellationFutureOwned>>,
    write_cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _hold: H,
}

impl<T, H> Severable<T, H> {
    pub(crate) fn new(inner: T, token: &CancellationToken, hold: H) -> Self {
        Self {
            inner,
            token: token.clone(),
            read_cut: Box::pin(token.clone().cancelled_owned()),
            write_cut: Box::pin(token.clone().cancelled_owned()),
            _hold: hold,
        }
    }
}

fn severed() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "connection was broken on purpose",
    )
}

impl<T, H> Severable<T, H> {
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

impl<T: AsyncRead + Unpin, H: Unpin> AsyncRead for Severable<T, H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_read(context)?;
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin, H: Unpin> AsyncWrite for Severable<T, H> {
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
