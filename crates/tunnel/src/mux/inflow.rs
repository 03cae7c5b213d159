//! What a stream received and nobody has read yet.

use super::stream::broken;
use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use std::{
    collections::VecDeque,
    io,
    task::{Context, Poll},
};
use tokio::io::ReadBuf;

/// Frames smaller than this are copied together when they have to wait: each by itself would hold on to the buffer that it came in, and
/// the library ends a connection on which too many wait.
const SMALL: usize = 4 << 10;
/// How much of them is kept in one piece.
const PIECE: usize = 64 << 10;

/// The receiving half of a stream. What is held stays within the stream's window: that is opened only for what was read.
#[derive(Debug)]
pub(super) struct Inflow {
    recv: RecvStream,
    /// Next to be read.
    front: Bytes,
    /// Then these, and then `small`.
    held: VecDeque<Bytes>,
    small: BytesMut,
    ended: bool,
    /// Comes after all that is held.
    failure: Option<io::Error>,
    /// A reader is to be woken by what comes next; nobody may take its place.
    awaited: bool,
}

impl Inflow {
    pub(super) fn new(recv: RecvStream) -> Self {
        Self {
            recv,
            front: Bytes::new(),
            held: VecDeque::new(),
            small: BytesMut::new(),
            ended: false,
            failure: None,
            awaited: false,
        }
    }

    /// As [`tokio::io::AsyncRead::poll_read`].
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.awaited = false;
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            let front = match self.poll_front(context) {
                Poll::Ready(Ok(front)) => front,
                // What was read before is told first.
                Poll::Pending if buffer.filled().len() > before => break,
                Poll::Ready(Err(error)) if buffer.filled().len() > before => {
                    self.failure = Some(error);
                    break;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.awaited = true;
                    return Poll::Pending;
                }
            };
            let count = front.len().min(buffer.remaining());
            if count == 0 {
                break;
            }
            buffer.put_slice(&front[..count]);
            self.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until there is something to read, and gives it; nothing at the end.
    fn poll_front(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&Bytes>> {
        while self.front.is_empty() {
            if let Some(next) = self.held.pop_front() {
                self.front = next;
            } else if !self.small.is_empty() {
                self.front = self.small.split().freeze();
            } else if let Some(failure) = self.failure.take() {
                return Poll::Ready(Err(failure));
            } else if self.ended {
                break;
            } else {
                match self.recv.poll_data(context) {
                    Poll::Ready(Some(Ok(data))) => self.front = data,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                    Poll::Ready(None) => self.ended = true,
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        Poll::Ready(Ok(&self.front))
    }

    /// So much of what is next was read.
    fn consume(&mut self, count: usize) {
        self.front.advance(count);
        // Refused only when the connection is over.
        let _ = self.recv.flow_control().release_capacity(count);
    }

    /// Takes in what arrived while nobody reads, and has the task woken by what arrives next.
    pub(super) fn take_in(&mut self, context: &mut Context<'_>) {
        while !self.awaited && !self.ended && self.failure.is_none() {
            match self.recv.poll_data(context) {
                Poll::Ready(Some(Ok(data))) => self.hold(data),
                Poll::Ready(Some(Err(error))) => self.failure = Some(broken(error)),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return,
            }
        }
    }

    fn hold(&mut self, data: Bytes) {
        if data.len() < SMALL {
            self.small.extend_from_slice(&data);
        }
        if data.len() >= SMALL || self.small.len() >= PIECE {
            if !self.small.is_empty() {
                self.held.push_back(self.small.split().freeze());
            }
            if data.len() >= SMALL {
                self.held.push_back(data);
            }
        }
    }

    /// Whether everything was read, or there is nothing more to come.
    pub(super) fn is_over(&self) -> bool {
        self.ended || self.recv.is_end_stream()
    }

    /// Reads to the end, for nobody.
    pub(super) async fn drain(&mut self) {
        while let Ok(count @ 1..) =
            std::future::poll_fn(|context| self.poll_front(context).map_ok(Bytes::len)).await
        {
            self.consume(count);
        }
    }
}
