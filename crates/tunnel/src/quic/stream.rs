//! One proxied connection as a byte stream.

use super::{
    CANCEL, NO_ERROR,
    credit::{Credit, Ledger},
    head::{Head, MAX_HEAD},
    urgency::Urgency,
};
use crate::{link::DialError, mux::refusal::MAX_TEXT, session::Occupied};
use bytes::{Buf, Bytes};
use futures_util::{FutureExt, future::BoxFuture};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::timeout,
};

/// How long a stream that ended still counts when its last bytes have not arrived.
const LINGER: Duration = Duration::from_secs(2);
/// What is read at once of a head.
const PIECE: usize = 2 << 10;

/// A QUIC stream. `shutdown` is FIN; dropping it without is RESET_STREAM and STOP_SENDING.
#[derive(Debug)]
pub(super) struct QuicStream {
    /// Taken by `drop` only.
    halves: Option<Halves>,
    held: Option<Occupied>,
}

struct Halves {
    send: SendStream,
    recv: RecvStream,
    /// Tells that the far end reads no more, while we wait for credit.
    stopped: Option<BoxFuture<'static, io::Error>>,
    /// Received with the head, and not read yet.
    rest: Bytes,
    ledger: Arc<Ledger>,
    credit: Arc<Credit>,
    sent: u64,
    read: u64,
    reported: u64,
    urgency: Urgency,
    shut: bool,
    ended: bool,
}

impl fmt::Debug for Halves {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "QuicStream({})", self.send.id())
    }
}

fn lost(error: &quinn::ConnectionError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())
}

fn unread(error: ReadError) -> io::Error {
    match error {
        ReadError::Reset(_) => {
            io::Error::new(io::ErrorKind::ConnectionReset, "reset by the far end")
        }
        ReadError::ConnectionLost(error) => lost(&error),
        error => io::Error::new(io::ErrorKind::NotConnected, error.to_string()),
    }
}

fn stopped(code: quinn::VarInt) -> io::Error {
    match code {
        NO_ERROR => io::Error::new(io::ErrorKind::BrokenPipe, "the far end reads no more"),
        _ => io::Error::new(io::ErrorKind::ConnectionReset, "stopped by the far end"),
    }
}

fn unwritten(error: WriteError) -> io::Error {
    match error {
        WriteError::Stopped(code) => stopped(code),
        WriteError::ConnectionLost(error) => lost(&error),
        error => io::Error::new(io::ErrorKind::NotConnected, error.to_string()),
    }
}

/// Resolves when the far end reads no more, or never will.
fn until_stopped(send: &SendStream) -> BoxFuture<'static, io::Error> {
    let stopping = send.stopped();
    Box::pin(async move {
        match stopping.await {
            Ok(Some(code)) => stopped(code),
            Ok(None) => io::ErrorKind::BrokenPipe.into(),
            Err(error) => io::Error::new(io::ErrorKind::ConnectionReset, error.to_string()),
        }
    })
}

impl QuicStream {
    pub(super) fn new(
        (send, recv): (SendStream, RecvStream),
        ledger: Arc<Ledger>,
        held: Option<Occupied>,
    ) -> Self {
        let credit = ledger.enter(send.id().into());
        let halves = Halves {
            send,
            recv,
            stopped: None,
            rest: Bytes::new(),
            ledger,
            credit,
            sent: 0,
            read: 0,
            reported: 0,
            urgency: Urgency::default(),
            shut: false,
            ended: false,
        };
        Self {
            halves: Some(halves),
            held,
        }
    }

    fn halves(&mut self) -> io::Result<&mut Halves> {
        self.halves
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Says what the stream, or the answer on it, is.
    pub(super) async fn say(&mut self, head: &Head) -> io::Result<()> {
        let bytes = head.write()?;
        self.halves()?
            .send
            .write_all(&bytes)
            .await
            .map_err(unwritten)
    }

    /// What the far end says it is.
    pub(super) async fn hear(&mut self) -> io::Result<Head> {
        let halves = self.halves()?;
        let mut data = Vec::new();
        loop {
            let parsed = Head::parse(&data)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if let Some((head, length)) = parsed {
                halves.rest = Bytes::from(data).slice(length..);
                return Ok(head);
            }
            let mut piece = [0; PIECE];
            let room = PIECE.min(MAX_HEAD - data.len());
            match halves.recv.read(&mut piece[..room]).await.map_err(unread)? {
                Some(count) => data.extend_from_slice(&piece[..count]),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Answers that there is no connection, and why.
    pub(super) async fn refuse(mut self, error: &DialError) {
        let (head, text) = Head::refusal(error);
        let text = &text[..text.floor_char_boundary(MAX_TEXT)];
        if self.say(&head).await.is_err() {
            return;
        }
        if let Some(halves) = &mut self.halves {
            // Whoever asked may be gone.
            let _ = halves.send.write_all(text.as_bytes()).await;
            halves.shut = halves.send.finish().is_ok();
        }
    }

    /// The text after a refusal's head.
    pub(super) async fn rest(mut self) -> String {
        use tokio::io::AsyncReadExt;
        let mut text = Vec::new();
        let _ = (&mut self)
            .take(MAX_TEXT as u64)
            .read_to_end(&mut text)
            .await;
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until whoever is at the far end has given the stream up.
    pub(super) fn given_up(&self) -> BoxFuture<'static, ()> {
        match &self.halves {
            Some(halves) => Box::pin(until_stopped(&halves.send).map(drop)),
            None => Box::pin(std::future::ready(())),
        }
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let halves = self.halves()?;
        let before = buffer.filled().len();
        if !halves.rest.is_empty() {
            let count = halves.rest.len().min(buffer.remaining());
            buffer.put_slice(&halves.rest[..count]);
            halves.rest.advance(count);
        } else if !halves.ended && buffer.remaining() > 0 {
            ready!(halves.recv.poll_read_buf(context, buffer)).map_err(unread)?;
            halves.ended = buffer.filled().len() == before;
        }
        let count = buffer.filled().len() - before;
        if count > 0 && !halves.ended {
            halves.read += count as u64;
            let id = halves.send.id().into();
            halves.reported = halves.ledger.has_read(id, halves.read, halves.reported);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let halves = self.halves()?;
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let left = halves.credit.left(halves.sent, &halves.ledger, context);
        if left == 0 {
            let send = &halves.send;
            let stopped = halves.stopped.get_or_insert_with(|| until_stopped(send));
            let error = ready!(stopped.as_mut().poll(context));
            halves.stopped = None;
            return Poll::Ready(Err(error));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
        let send = Pin::new(&mut halves.send);
        let count = ready!(send.poll_write(context, &data[..most])).map_err(unwritten)?;
        halves.sent += count as u64;
        if let Some(priority) = halves.urgency.wrote(count) {
            // Refused only when the stream is over.
            let _ = halves.send.set_priority(priority);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let halves = self.halves()?;
        if !halves.shut {
            let finished = halves.send.finish();
            finished.map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))?;
            halves.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        let Some(mut halves) = self.halves.take() else {
            return;
        };
        halves.ledger.leave(halves.send.id().into());
        if !halves.shut {
            let _ = halves.send.reset(CANCEL);
            let _ = halves.recv.stop(CANCEL);
            return;
        }
        if !halves.ended {
            let _ = halves.recv.stop(NO_ERROR);
        }
        // What was said last is still under way: a connection that is closed now would lose it.
        if let (Some(held), Ok(runtime)) = (self.held.take(), Handle::try_current()) {
            let arrived = halves.send.stopped();
            runtime.spawn(async move {
                let _ = timeout(LINGER, arrived).await;
                drop(held);
            });
        }
    }
}
