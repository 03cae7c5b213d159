//! Whether the other end still lives: whatever is heard from it is proof, and only silence is asked about. A link that is busy
//! with megabytes is not taken for dead because an answer waits behind them.

use h2::{Ping, PingPong};
use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};
use yurt_transport::BoxStream;

/// When something was heard last.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    since: Instant,
    /// Milliseconds after `since`.
    last: Arc<AtomicU64>,
}

impl Pulse {
    fn beat(&self) {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Relaxed);
    }

    pub(crate) fn last(&self) -> Instant {
        self.since + Duration::from_millis(self.last.load(Relaxed))
    }
}

/// A stream that notes when something was read from it.
pub(crate) struct Heard {
    io: BoxStream,
    pulse: Pulse,
}

impl Heard {
    pub(crate) fn new(io: BoxStream) -> (Self, Pulse) {
        let pulse = Pulse {
            since: Instant::now(),
            last: Arc::default(),
        };
        let heard = Self {
            io,
            pulse: pulse.clone(),
        };
        (heard, pulse)
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if polled.is_ready() {
            self.pulse.beat();
        }
        polled
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Waits until the other end was silent for `quiet`, was asked, and stayed silent for `patience`; returns for how long.
pub(crate) async fn until_silent(
    pulse: Pulse,
    pings: Option<PingPong>,
    quiet: Duration,
    patience: Duration,
) -> Duration {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        let heard = pulse.last();
        sleep_until(heard + quiet).await;
        if pulse.last() > heard {
            continue;
        }
        let asked = Instant::now();
        let mut answer = pin!(pings.ping(Ping::opaque()));
        let mut deadline = asked + patience;
        loop {
            tokio::select! {
                answered = &mut answer => match answered {
                    Ok(_) => break,
                    // The connection is over: who drives it knows why.
                    Err(_) => return std::future::pending().await,
                },
                () = sleep_until(deadline) => {
                    let now = Instant::now();
                    let latest = pulse.last().max(asked);
                    // When we were stopped ourselves, the answer lies in the socket and nobody has had the time to look.
                    if latest + patience > now {
                        deadline = latest + patience;
                    } else if now > deadline + patience {
                        deadline = now + patience;
                    } else {
                        return now - pulse.last();
                    }
                }
            }
        }
    }
}
