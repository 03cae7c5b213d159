//! Request and response bodies.

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::{Pin, pin},
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// The body type of every server response and client request of the project.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// No body.
pub fn empty() -> Body {
    Empty::new()
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// A body of chunks known beforehand (sends `Content-Length`).
pub fn chunks(chunks: Vec<Bytes>) -> Body {
    let chunks: VecDeque<Bytes> = chunks.into_iter().filter(|c| !c.is_empty()).collect();
    let remaining = chunks.iter().map(|c| c.len() as u64).sum();
    Chunks { chunks, remaining }.boxed_unsync()
}

/// A body fed by a bounded channel: the receiver side of a stream. Dropping the sender ends it cleanly; sending `Err` aborts it, so
/// that the peer sees a broken body and not a short one. `capacity` counts chunks and is at least 1.
pub fn channel(capacity: usize) -> (mpsc::Sender<Result<Bytes, BoxError>>, Body) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (sender, Channel { receiver }.boxed_unsync())
}

/// Reads a body up to `limit` bytes. A body that announces more fails before anything is read.
pub async fn collect<B>(body: B, limit: usize) -> Result<Bytes, CollectError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = pin!(body);
    if body.size_hint().lower() > limit as u64 {
        return Err(CollectError::TooLarge(limit));
    }
    // Most bodies are one frame: hand it on without copying it.
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| CollectError::Broken(e.into()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + joined.len() + data.len() > limit {
            return Err(CollectError::TooLarge(limit));
        }
        if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&std::mem::take(&mut first));
            }
            joined.extend_from_slice(&data);
        }
    }
    Ok(if joined.is_empty() {
        first
    } else {
        joined.freeze()
    })
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// It is longer than the reader allows (the bound in bytes).
    #[error("body is larger than {0} bytes")]
    TooLarge(usize),
    /// The connection or stream ended before the body did.
    #[error("body broke off: {0}")]
    Broken(BoxError),
}

struct Chunks {
    chunks: VecDeque<Bytes>,
    remaining: u64,
}

/// Smaller chunks are joined, up to this: each would cost a frame and a record of its own, and a connection of HTTP/2 never gives
/// back the 300 bytes for each frame that waited in it.
const JOINED_BYTES: usize = 32 << 10;

/// Takes the first chunk as it is when it is large, or joined with those after it.
pub fn next_joined(chunks: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let (mut count, mut bytes) = (0, 0);
    for chunk in &*chunks {
        if count > 0 && bytes + chunk.len() > JOINED_BYTES {
            break;
        }
        count += 1;
        bytes += chunk.len();
    }
    if count < 2 {
        return chunks.pop_front();
    }
    let mut joined = BytesMut::with_capacity(bytes);
    for chunk in chunks.drain(..count) {
        joined.extend_from_slice(&chunk);
    }
    Some(joined.freeze())
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(next_joined(&mut self.chunks).map(|chunk| {
            self.remaining -= chunk.remaining() as u64;
            Ok(Frame::data(chunk))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

struct Channel {
    receiver: mpsc::Receiver<Result<Bytes, BoxError>>,
}

impl http_body::Body for Channel {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.receiver
            .poll_recv(context)
            .map(|item| item.map(|chunk| chunk.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_chunks_are_joined_and_large_ones_are_not_copied() {
        let large = Bytes::from(vec![b'x'; JOINED_BYTES]);
        let parts = ["a", "b", "", "c"].map(Bytes::from);
        let mut all = parts.to_vec();
        all.push(large.clone());
        all.extend(vec![Bytes::from(vec![b'y'; 20_000]); 3]);
        let whole = all.concat();
        let mut body = chunks(all);
        assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            frames.push(frame.expect("a frame").into_data().expect("data"));
        }
        let lengths: Vec<usize> = frames.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [3, JOINED_BYTES, 20_000, 20_000, 20_000]);
        assert_eq!(frames[1].as_ptr(), large.as_ptr());
        assert_eq!(frames.concat(), whole);
        assert!(body.is_end_stream());
    }
}
