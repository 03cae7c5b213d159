//! Carries bytes both ways between two streams.

use crate::BoxStream;
use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// What is read at once: what one frame of a tunnel holds, whose head is of 9 bytes.
const BUFFER: usize = (64 << 10) - 9;
/// Reads before others on the thread get their turn.
const TURN: u32 = 16;
/// When one end takes nothing any more, how long what it said before may take, without progress, to reach the other.
const LINGER: Duration = Duration::from_secs(2);
/// How long one end may be silent after the other has ended: a question may take long to be answered, but whoever forgot to end must
/// not hold a connection for ever. While neither has ended there is no such bound: a terminal may idle for days.
pub const HALF_CLOSED: Duration = Duration::from_secs(3600);

thread_local! {
    /// What is read goes through here, so that a connection without traffic holds no buffer.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What was carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes from the first stream to the second.
    pub forth: u64,
    /// Bytes from the second stream to the first.
    pub back: u64,
}

/// Copies both ways until both directions have ended, each for itself: the end of one stream is the half-close of the other. A stream
/// that breaks ends both, and drops them without a half-close, so that whoever reads the other does not take a torn message for a
/// whole one. A stream that takes nothing any more (its reader went away) does not lose what it said itself: that is still delivered
/// as long as it is under way. When one direction has ended, the other may be silent for [`HALF_CLOSED`].
pub async fn pump(a: BoxStream, b: BoxStream) -> (Carried, io::Result<()>) {
    pump_within(a, b, HALF_CLOSED).await
}

/// [`pump`], with another bound of the silence in one direction when the other has ended.
pub async fn pump_within(
    a: BoxStream,
    b: BoxStream,
    half_closed: Duration,
) -> (Carried, io::Result<()>) {
    let (mut a, mut b) = (a, b);
    let (mut forth, mut back) = (Course::default(), Course::default());
    let mut silence = Silence::default();
    let ended = poll_fn(|context| {
        let one = forth.poll(&mut a, &mut b, context);
        let other = back.poll(&mut b, &mut a, context);
        let progress = match (one, other) {
            (Err(error), _) | (_, Err(error)) => return Poll::Ready(Err(error)),
            (Ok(one), Ok(other)) => one || other,
        };
        if forth.is_over() && back.is_over() {
            let failure = forth.failure.take().or_else(|| back.failure.take());
            return Poll::Ready(failure.map_or(Ok(()), Err));
        }
        let failed = forth.failure.is_some() || back.failure.is_some();
        let bound = match failed {
            true => LINGER,
            false if forth.is_over() || back.is_over() => half_closed,
            false => return Poll::Pending,
        };
        if silence.lasts(bound, progress, context) {
            let failure = forth.failure.take().or_else(|| back.failure.take());
            return Poll::Ready(Err(failure.unwrap_or_else(|| {
                let what = format!("nothing passed for {bound:?} after one end was done");
                io::Error::new(io::ErrorKind::TimedOut, what)
            })));
        }
        Poll::Pending
    })
    .await;
    let carried = Carried {
        forth: forth.carried,
        back: back.carried,
    };
    (carried, ended)
}

/// How long nothing has passed.
#[derive(Debug, Default)]
struct Silence(Option<(Duration, Pin<Box<Sleep>>)>);

impl Silence {
    /// Whether it has lasted for `bound`, counted anew with every progress and with every other bound.
    fn lasts(&mut self, bound: Duration, progress: bool, context: &mut Context<'_>) -> bool {
        let (counted, timer) = self
            .0
            .get_or_insert_with(|| (bound, Box::pin(sleep(bound))));
        if progress || *counted != bound {
            *counted = bound;
            timer.as_mut().reset(Instant::now() + bound);
        }
        timer.as_mut().poll(context).is_ready()
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Course {
    /// Read, and not taken by the other end yet.
    held: Vec<u8>,
    /// Where in `held` to go on.
    at: usize,
    stage: Stage,
    carried: u64,
    /// The end that is written to takes nothing any more.
    failure: Option<io::Error>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// Everything was read; what is held is to be written, and the end to be told.
    Ending,
    Over,
}

impl Course {
    fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Carries what can be. Tells whether something was; an error is one of reading, which ends everything.
    fn poll(
        &mut self,
        from: &mut BoxStream,
        to: &mut BoxStream,
        context: &mut Context<'_>,
    ) -> io::Result<bool> {
        let before = self.carried;
        if self.stage != Stage::Over {
            let mut scratch = SCRATCH.take();
            if scratch.len() < BUFFER {
                scratch.resize(BUFFER, 0);
            }
            let polled = self.carry(from, to, &mut scratch, context);
            SCRATCH.set(scratch);
            if let Poll::Ready(ended) = polled {
                self.stage = Stage::Over;
                self.held = Vec::new();
                match ended {
                    Err(Torn::Reading(error)) => return Err(error),
                    Err(Torn::Writing(error)) => self.failure = Some(error),
                    Ok(()) => {}
                }
            }
        }
        Ok(self.carried > before)
    }

    fn carry(
        &mut self,
        from: &mut BoxStream,
        to: &mut BoxStream,
        scratch: &mut [u8],
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Torn>> {
        let mut turns = 0;
        loop {
            while self.at < self.held.len() {
                match Pin::new(&mut *to).poll_write(context, &self.held[self.at..]) {
                    Poll::Ready(written) => self.at += self.took(written)?,
                    Poll::Pending => return wait(from, context),
                }
            }
            if !self.held.is_empty() {
                (self.held, self.at) = (Vec::new(), 0);
            }
            if self.stage == Stage::Ending {
                return Pin::new(&mut *to)
                    .poll_shutdown(context)
                    .map_err(Torn::Writing);
            }
            if turns == TURN {
                context.waker().wake_by_ref();
                return self.flush(to, context);
            }
            turns += 1;
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut *from).poll_read(context, &mut buffer) {
                Poll::Pending => return self.flush(to, context),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Torn::Reading(error))),
                Poll::Ready(Ok(())) => {}
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.stage = Stage::Ending;
                continue;
            }
            let mut written = 0;
            while written < read.len() {
                match Pin::new(&mut *to).poll_write(context, &read[written..]) {
                    Poll::Ready(took) => written += self.took(took)?,
                    Poll::Pending => {
                        self.held = read[written..].to_vec();
                        self.at = 0;
                        return wait(from, context);
                    }
                }
            }
        }
    }

    fn took(&mut self, written: io::Result<usize>) -> Result<usize, Torn> {
        match written {
            Ok(0) => Err(Torn::Writing(io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                self.carried += count as u64;
                Ok(count)
            }
            Err(error) => Err(Torn::Writing(error)),
        }
    }

    /// Lets out what the stream may have kept back, and learns whether it takes anything still. Pending, unless it fails.
    fn flush(&mut self, to: &mut BoxStream, context: &mut Context<'_>) -> Poll<Result<(), Torn>> {
        match Pin::new(&mut *to).poll_flush(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(Torn::Writing(error))),
            _ => Poll::Pending,
        }
    }
}

/// While the other end takes nothing, a stream that is not read is at least flushed: one that shares its connection with others takes in
/// then what arrived for it.
fn wait(from: &mut BoxStream, context: &mut Context<'_>) -> Poll<Result<(), Torn>> {
    // If it broke, reading tells.
    let _ = Pin::new(from).poll_flush(context);
    Poll::Pending
}

/// Which side of a direction broke.
enum Torn {
    Reading(io::Error),
    Writing(io::Error),
}

#[cfg(test)]
mod tests;
