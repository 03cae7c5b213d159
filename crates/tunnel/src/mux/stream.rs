//! One proxied connection as a byte stream.

use super::inflow::Inflow;
use crate::session::Occupied;
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::timeout,
};

/// How long a stream whose reader has gone is kept for what was written last: a reset would throw away what has not been sent yet.
const LINGER: Duration = Duration::from_secs(2);
/// What one write takes at most, the buffer that is allocated for it: what one frame holds. A rest would be a frame, a TLS record and a
/// packet of its own.
const WRITE: usize = super::FRAME as usize;

/// An HTTP/2 stream. `shutdown` is END_STREAM, dropping it without is RST_STREAM.
#[derive(Debug)]
pub(super) struct MuxStream {
    /// Taken by `drop` only.
    halves: Option<Halves>,
    held: Option<Occupied>,
}

#[derive(Debug)]
struct Halves {
    send: SendStream<Bytes>,
    inflow: Inflow,
    shut: bool,
}

impl MuxStream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, held: Occupied) -> Self {
        let halves = Halves {
            send,
            inflow: Inflow::new(recv),
            shut: false,
        };
        Self {
            halves: Some(halves),
            held: Some(held),
        }
    }

    fn halves(&mut self) -> io::Result<&mut Halves> {
        self.halves
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// A stream's error as the error of a socket.
pub(super) fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        let text = error.to_string();
        return error
            .into_io()
            .unwrap_or_else(|| io::Error::new(io::ErrorKind::ConnectionReset, text));
    }
    let kind = match error.reason() {
        // The far end reads no more.
        Some(Reason::NO_ERROR) => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.halves()?.inflow.poll_read(context, buffer)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let halves = self.halves()?;
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        halves.inflow.take_in(context);
        let wanted = data.len().min(WRITE);
        let send = &mut halves.send;
        while send.capacity() == 0 {
            send.reserve_capacity(wanted);
            match ready!(send.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => {
                    // Why is with the reset.
                    let why = match send.poll_reset(context) {
                        Poll::Ready(Ok(Reason::NO_ERROR)) | Poll::Pending => {
                            io::ErrorKind::BrokenPipe.into()
                        }
                        Poll::Ready(Ok(reason)) => broken(reason.into()),
                        Poll::Ready(Err(error)) => broken(error),
                    };
                    return Poll::Ready(Err(why));
                }
            }
        }
        let count = wanted.min(send.capacity());
        send.send_data(Bytes::copy_from_slice(&data[..count]), false)
            .map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.halves()?.inflow.take_in(context);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let halves = self.halves()?;
        if !halves.shut {
            halves.send.send_data(Bytes::new(), true).map_err(broken)?;
            halves.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        let Some(mut halves) = self.halves.take() else {
            return;
        };
        if !halves.shut {
            halves.send.send_reset(Reason::CANCEL);
            return;
        }
        if halves.inflow.is_over() {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let held = self.held.take();
            runtime.spawn(async move {
                let _ = timeout(LINGER, halves.inflow.drain()).await;
                drop((halves, held));
            });
        }
    }
}
