//! Whether the other end still lives: whatever is heard from it is proof, and only silence is asked about. A link that is busy
//! with megabytes is not taken for dead because an answer waits behind them.

use crate::wrapping::writes_go_to;
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
    io::{AsyncRead, ReadBuf},
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

writes_go_to!(Heard, io);

/// What makes a peer that lives say something.
pub(crate) trait Question: Send {
    /// Waits until it can be asked.
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
    /// Asks, and waits for the answer. An error: the connection is over.
    fn ask(&mut self) -> impl Future<Output = Result<(), h2::Error>> + Send;
}

impl Question for PingPong {
    async fn ask(&mut self) -> Result<(), h2::Error> {
        self.ping(Ping::opaque()).await.map(drop)
    }
}

/// Waits until the other end was silent for `quiet`, was asked, and stayed silent for `patience`; returns for how long.
pub(crate) async fn until_silent(
    pulse: Pulse,
    question: Option<impl Question>,
    quiet: Duration,
    patience: Duration,
) -> Duration {
    let Some(mut question) = question else {
        return std::future::pending().await;
    };
    loop {
        let heard = pulse.last();
        sleep_until(heard + quiet).await;
        if pulse.last() > heard {
            continue;
        }
        question.ready().await;
        let asked = Instant::now();
        let mut answer = pin!(question.ask());
        let mut deadline = asked + patience;
        loop {
            tokio::select! {
                answered = &mut answer => match answered {
                    Ok(()) => break,
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
