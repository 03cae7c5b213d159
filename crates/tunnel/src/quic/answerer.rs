//! The end that dials: the agent for its servers.

use super::{OK, credit::Ledger, head::Head, stream::QuicStream};
use crate::{
    link::{DialError, Tunnels},
    mux,
    pump::pump,
    session::{Live, Options, SessionError},
};
use futures_util::future::BoxFuture;
use quinn::Connection;
use std::sync::Arc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use yurt_transport::Destination;

/// A connection on which the server asks.
pub(super) struct Answerer {
    pub(super) connection: Connection,
    pub(super) ledger: Arc<Ledger>,
    pub(super) tunnels: Arc<dyn Tunnels>,
    pub(super) options: Options,
    pub(super) live: Arc<Live>,
}

impl Answerer {
    /// Answers until the connection ends, `other` tells to, or `shutdown` and everything open is over. `say_drain` is called when
    /// shutdown begins.
    pub(super) async fn run(
        self,
        mut other: BoxFuture<'static, SessionError>,
        shutdown: CancellationToken,
        say_drain: impl FnOnce() + Send,
    ) -> SessionError {
        let mut say_drain = Some(say_drain);
        let stopping = CancellationToken::new();
        let drained = mux::drained(shutdown.clone(), self.live.clone(), self.options.drain);
        let mut over = std::pin::pin!(drained);
        loop {
            tokio::select! {
                accepted = self.connection.accept_bi() => match accepted {
                    Ok(streams) => {
                        let held = self.live.enter(self.options.max_connections);
                        let is_full = held.is_none();
                        let stream = QuicStream::new(streams, self.ledger.clone(), held);
                        self.answer(stream, is_full, &stopping);
                    }
                    Err(error) => return error.into(),
                },
                ended = &mut other => {
                    // Why the connection ended is the better reason.
                    return self.connection.close_reason().map_or(ended, Into::into);
                }
                () = shutdown.cancelled(), if say_drain.is_some() => {
                    if let Some(say) = say_drain.take() {
                        say();
                    }
                    stopping.cancel();
                }
                () = &mut over => return SessionError::Closed,
            }
        }
    }

    fn answer(&self, mut stream: QuicStream, is_full: bool, stopping: &CancellationToken) {
        let (tunnels, options) = (self.tunnels.clone(), self.options.clone());
        let is_stopping = stopping.is_cancelled();
        tokio::spawn(async move {
            if is_full {
                let full = DialError::full(options.max_connections);
                return stream.refuse(&full).await;
            }
            if is_stopping {
                return stream
                    .refuse(&DialError::Lost("this end stops".into()))
                    .await;
            }
            let Ok(Ok(head)) = timeout(options.hello, stream.hear()).await else {
                return;
            };
            let to = match target(&head) {
                Ok(to) => to,
                Err(error) => return stream.refuse(&error).await,
            };
            let (limit, given_up) = (options.dial, stream.given_up());
            let opened = tokio::select! {
                biased;
                // Whoever asked gave up.
                () = given_up => return,
                opened = timeout(limit, tunnels.open(&to)) => opened,
            };
            let opened = opened.unwrap_or_else(|_| {
                Err(DialError::TimedOut(format!(
                    "{to} did not answer within {limit:?}"
                )))
            });
            match opened {
                Ok(target) => {
                    if stream.say(&Head::new(OK)).await.is_ok() {
                        let _ = pump(target, Box::new(stream)).await;
                    }
                }
                Err(error) => stream.refuse(&error).await,
            }
        });
    }
}

fn target(head: &Head) -> Result<Destination, DialError> {
    let authority = head.first.strip_prefix("CONNECT ");
    let authority =
        authority.ok_or_else(|| DialError::Invalid("only CONNECT is spoken here".into()))?;
    let to = authority.parse::<Destination>();
    let to = to.map_err(|error| DialError::Invalid(error.to_string()))?;
    let node = head.get(mux::NODE).map(str::to_owned);
    Ok(Destination { node, ..to })
}
