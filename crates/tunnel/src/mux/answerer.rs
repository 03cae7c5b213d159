//! The end that dials: an agent for its servers, a server for what its agents may reach in the cloud.

use super::{refusal::refuse, stream::MuxStream, windows};
use crate::{
    link::{DialError, Opening, Tunnels},
    pump::pump,
    session::{Heard, Live, Options, Pulse, SessionError, until_silent},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::{
    RecvStream,
    server::{Connection, SendResponse},
};
use http::{Method, Request, Response};
use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use yurt_transport::{Destination, Dialer};

/// How long what was said last may take to leave.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// A dialler as the tunnel's streams want it.
#[derive(Debug)]
pub(crate) struct Dialling(pub(crate) Arc<dyn Dialer>);

impl Tunnels for Dialling {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(async move { Ok(self.0.dial(to).await?) })
    }
}

/// A connection on which the other end asks.
pub(super) struct Answerer {
    pub(super) connection: Connection<Heard, Bytes>,
    pub(super) pulse: Pulse,
    pub(super) tunnels: Arc<dyn Tunnels>,
    pub(super) options: Options,
    pub(super) live: Arc<Live>,
}

pub(super) fn builder(options: &Options) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    // One more for the control stream.
    let streams = u32::try_from(options.max_connections).unwrap_or(u32::MAX - 1) + 1;
    builder
        .initial_window_size(windows::window(0, options.memory))
        .initial_connection_window_size(super::CONNECTION_WINDOW)
        .max_frame_size(super::FRAME)
        .max_send_buffer_size(super::SEND_BUFFER)
        .data_frame_budget(options.memory)
        .max_concurrent_streams(streams)
        .max_concurrent_reset_streams(super::RESETS)
        // Whoever gives up many dials at once is no attacker: the other end proved who it is.
        .max_pending_accept_reset_streams(options.max_connections)
        .max_local_error_reset_streams(None)
        .max_header_list_size(super::HEADERS);
    builder
}

impl Answerer {
    /// Answers until the connection ends, `other` tells to, or `shutdown` and everything open is over. `say_drain` is called when
    /// shutdown begins.
    pub(super) async fn run(
        mut self,
        mut other: BoxFuture<'static, SessionError>,
        shutdown: CancellationToken,
        say_drain: impl FnOnce() + Send,
    ) -> SessionError {
        let pings = self.connection.ping_pong();
        let (quiet, patience) = (self.options.quiet, self.options.patience);
        let mut silent = std::pin::pin!(until_silent(self.pulse.clone(), pings, quiet, patience));
        let mut say_drain = Some(say_drain);
        let mut granted = windows::window(0, self.options.memory);
        let stopping = CancellationToken::new();
        let mut over = std::pin::pin!(drained(
            shutdown.clone(),
            Arc::clone(&self.live),
            self.options.drain
        ));
        loop {
            let accepted = poll_fn(|context| {
                self.live.driver.register(context.waker());
                let wanted = windows::window(self.live.count(), self.options.memory);
                // While the one before is not acknowledged it is refused; the acknowledgement comes by here.
                if wanted != granted && self.connection.set_initial_window_size(wanted).is_ok() {
                    granted = wanted;
                }
                self.connection.poll_accept(context)
            });
            tokio::select! {
                accepted = accepted => match accepted {
                    Some(Ok((request, respond))) => self.answer(request, respond, &stopping),
                    Some(Err(error)) => return error.into(),
                    None => return SessionError::Broken("the other end closed it".into()),
                },
                silence = &mut silent => return SessionError::Silent(silence),
                ended = &mut other => return ended,
                () = shutdown.cancelled(), if say_drain.is_some() => {
                    if let Some(say) = say_drain.take() {
                        say();
                    }
                    stopping.cancel();
                }
                () = &mut over => break,
            }
        }
        // What the last streams said is still to be sent.
        self.connection.graceful_shutdown();
        let _ = timeout(
            FAREWELL,
            poll_fn(|context| match self.connection.poll_accept(context) {
                Poll::Ready(Some(Ok(_))) => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
            }),
        )
        .await;
        SessionError::Closed
    }

    fn answer(
        &self,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        stopping: &CancellationToken,
    ) {
        let Some(held) = self.live.enter(self.options.max_connections) else {
            let full = DialError::full(self.options.max_connections);
            return refuse(respond, &full);
        };
        if stopping.is_cancelled() {
            return refuse(respond, &DialError::Lost("this end stops".into()));
        }
        let (tunnels, limit) = (Arc::clone(&self.tunnels), self.options.dial);
        tokio::spawn(async move {
            let (to, recv) = match target(request) {
                Ok(target) => target,
                Err(error) => return refuse(respond, &error),
            };
            let mut respond = respond;
            let opened = tokio::select! {
                biased;
                // Whoever asked gave up.
                _ = poll_fn(|context| respond.poll_reset(context)) => return,
                opened = timeout(limit, tunnels.open(&to)) => opened,
            };
            let opened = opened.unwrap_or_else(|_| {
                Err(DialError::TimedOut(format!(
                    "{to} did not answer within {limit:?}"
                )))
            });
            match opened {
                Ok(stream) => {
                    if let Ok(send) = respond.send_response(Response::new(()), false) {
                        let ours = Box::new(MuxStream::new(send, recv, held));
                        let _ = pump(stream, ours).await;
                    }
                }
                Err(error) => refuse(respond, &error),
            }
        });
    }
}

fn target(request: Request<RecvStream>) -> Result<(Destination, RecvStream), DialError> {
    let (head, recv) = request.into_parts();
    let authority = match (head.method, head.uri.authority()) {
        (Method::CONNECT, Some(authority)) => authority.as_str(),
        _ => return Err(DialError::Invalid("only CONNECT is spoken here".into())),
    };
    let to = authority.parse::<Destination>();
    let to = to.map_err(|error| DialError::Invalid(error.to_string()))?;
    let node = head.headers.get(super::NODE);
    let node = node.and_then(|node| node.to_str().ok()).map(str::to_owned);
    Ok((Destination { node, ..to }, recv))
}

/// Waits for shutdown, and then until nothing is open any more, or for `limit`.
pub(crate) async fn drained(shutdown: CancellationToken, live: Arc<Live>, limit: Duration) {
    shutdown.cancelled().await;
    tokio::select! {
        () = live.idle() => {}
        () = sleep(limit) => {}
    }
}
