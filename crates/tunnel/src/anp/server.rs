//! Our server for agents and frontends that are not ours.

use super::{
    AGENT_ID, AGENT_IDENTIFIERS, CONNECT, PROXY, SEND_BUFFER, SERVER_COUNT, SERVER_ID, WINDOW,
    answering::{Answering, EndOnDrop},
    channel::{Channel, Event},
    core::Role,
};
use crate::{
    grpc::{self, Code},
    hello::{AgentHello, ServerHello},
    link::{DialError, Link, Opening, Tunnels},
    session::{Heard, Live, Occupied, Options, SessionError, answer_about, until_silent},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, header};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination};

/// gRPC streams on one connection: an agent has one, a frontend one for each connection.
const STREAMS: u32 = 1024;
/// For what was said last to leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// An agent that is not wanted, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Who decides about the callers of [`serve`], and is told of agents.
pub trait Welcome: Send + Sync {
    /// Whether an agent may be what it says it is. `bearer` is its token, if it sent one.
    fn agent<'a>(
        &'a self,
        hello: &'a AgentHello,
        bearer: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), Refused>>;
    /// An agent that was welcome is there, until its link is closed.
    fn registered(&self, link: Arc<dyn Link>);
    /// What frontends may open; `None` when this listener has none.
    fn frontend(&self) -> Option<Arc<dyn Tunnels>>;
}

/// Serves one HTTP/2 connection until it ends. `shutdown` takes no more streams and waits for those that are open.
pub async fn serve(
    io: BoxStream,
    us: ServerHello,
    welcome: Arc<dyn Welcome>,
    options: Options,
    shutdown: CancellationToken,
) -> SessionError {
    let (heard, pulse) = Heard::new(Box::new(grpc::Mended::new(io)));
    let handshake = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(STREAMS)
        .handshake::<_, Bytes>(heard);
    let mut connection = match timeout(options.hello, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return error.into(),
        Err(_) => return SessionError::Silent(options.hello),
    };
    let pings = connection.ping_pong();
    let mut silent = std::pin::pin!(until_silent(pulse, pings, options.quiet, options.patience));
    let over = CancellationToken::new();
    let _over = over.clone().drop_guard();
    let mut stopping = false;
    let mut deadline = std::pin::pin!(async {
        shutdown.cancelled().await;
        sleep(options.drain).await;
    });
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let caller = Caller {
                        us: us.clone(),
                        welcome: Arc::clone(&welcome),
                        options: options.clone(),
                        over: over.child_token(),
                    };
                    caller.serve(request, respond);
                }
                Some(Err(error)) => return error.into(),
                None if stopping => return SessionError::Closed,
                None => return SessionError::Broken("the other end closed it".into()),
            },
            silence = &mut silent => return SessionError::Silent(silence),
            () = shutdown.cancelled(), if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
            }
            () = &mut deadline => break,
        }
    }
    over.cancel();
    let _ = timeout(FAREWELL, async {
        while connection.accept().await.is_some() {}
    })
    .await;
    SessionError::Closed
}

/// One gRPC stream, before it is known whose.
struct Caller {
    us: ServerHello,
    welcome: Arc<dyn Welcome>,
    options: Options,
    over: CancellationToken,
}

impl Caller {
    fn serve(self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        tokio::spawn(async move {
            match request.uri().path() {
                CONNECT => self.agent(request, respond).await,
                PROXY => self.frontend(request, respond).await,
                path => grpc::refuse(
                    respond,
                    Code::Unimplemented,
                    &format!("unknown method {path}"),
                ),
            }
        });
    }

    async fn agent(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let hello = match said(request.headers()) {
            Ok(hello) => hello,
            Err(error) => return grpc::refuse(respond, Code::InvalidArgument, &error),
        };
        let bearer = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let limit = self.options.hello;
        match timeout(limit, self.welcome.agent(&hello, bearer)).await {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => {
                tracing::warn!(agent = hello.id, %refused, "agent refused");
                return grpc::refuse(respond, Code::PermissionDenied, &refused.0);
            }
            Err(_) => {
                return grpc::refuse(
                    respond,
                    Code::Unavailable,
                    "who you are could not be judged",
                );
            }
        }
        let mut response = grpc::answer();
        let Ok(id) = HeaderValue::from_str(&self.us.id) else {
            return grpc::refuse(
                respond,
                Code::Unavailable,
                "this server's id cannot be sent",
            );
        };
        response.headers_mut().insert(SERVER_ID, id);
        response
            .headers_mut()
            .insert(SERVER_COUNT, HeaderValue::from(self.us.count));
        let Ok(mut send) = respond.send_response(response, false) else {
            return;
        };
        let link = Arc::new(AnpLink {
            hello,
            channel: Channel::new(Role::Asking, self.options.max_connections),
            waiting: Mutex::default(),
            draining: AtomicBool::new(false),
            live: Arc::default(),
            options: self.options,
            closed: self.over,
        });
        let _ended = EndOnDrop(Arc::clone(&link.channel));
        let _closed = link.closed.clone().drop_guard();
        self.welcome.registered(Arc::clone(&link) as Arc<dyn Link>);
        let recv = request.into_body();
        let ended = tokio::select! {
            ended = link.channel.read(recv, |event| link.told(event)) => ended,
            ended = link.channel.write(&mut send) => ended.err().unwrap_or(SessionError::Closed),
            () = link.closed.cancelled() => SessionError::Closed,
        };
        tracing::debug!(agent = link.hello.id, %ended, "agent's stream ended");
        link.waiting().clear();
        let _ = send.send_trailers(grpc::status(Code::Ok, ""));
    }

    async fn frontend(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let Some(tunnels) = self.welcome.frontend() else {
            return grpc::refuse(respond, Code::Unimplemented, "no frontends are served here");
        };
        let Ok(mut send) = respond.send_response(grpc::answer(), false) else {
            return;
        };
        let answering = Answering::new(
            tunnels,
            // Who waits for an agent allows a little more than it takes.
            Options {
                dial: self.options.await_dial(),
                ..self.options
            },
            Arc::default(),
            CancellationToken::new(),
        );
        let running = answering.run(request.into_body(), &mut send);
        let _ = self.over.run_until_cancelled(running).await;
        let _ = send.send_trailers(grpc::status(Code::Ok, ""));
    }
}

/// Who an agent says it is.
fn said(headers: &HeaderMap) -> Result<AgentHello, String> {
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let mut ids = headers.get_all(AGENT_ID).iter();
    let id = match (ids.next().and_then(text), ids.next()) {
        (Some(id), None) if !id.is_empty() => id,
        _ => return Err(format!("exactly one {AGENT_ID} is expected")),
    };
    let mut identifiers = headers.get_all(AGENT_IDENTIFIERS).iter();
    let said = identifiers.next().and_then(text).unwrap_or_default();
    if identifiers.next().is_some() {
        return Err(format!("at most one {AGENT_IDENTIFIERS} is expected"));
    }
    let Ok(identifiers) = said.parse();
    Ok(AgentHello {
        id,
        identifiers,
        version: String::new(),
    })
}

/// Dials that wait for an answer.
type Waiting = HashMap<i64, (oneshot::Sender<Result<BoxStream, DialError>>, Occupied)>;

/// A connection to an agent of konnectivity's or Yurt-Tunnel's.
struct AnpLink {
    hello: AgentHello,
    channel: Arc<Channel>,
    waiting: Mutex<Waiting>,
    draining: AtomicBool,
    live: Arc<Live>,
    options: Options,
    closed: CancellationToken,
}

impl fmt::Debug for AnpLink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AnpLink")
            .field("hello", &self.hello)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl AnpLink {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, event: Event) {
        let (random, outcome) = match event {
            Event::Opened { random, id } => (random, Ok(id)),
            Event::Refused { random, error } => (random, Err(failure(error))),
            Event::Drain => return self.draining.store(true, Relaxed),
            Event::Dial { .. } | Event::GiveUp { .. } => return,
        };
        let waiting = self.waiting().remove(&random);
        match (outcome, waiting) {
            // Whoever waited may be gone just now: dropping the stream closes it.
            (Ok(id), Some((tell, held))) => {
                let _ = tell.send(Ok(Box::new(self.channel.stream(id, held))));
            }
            (Ok(id), None) => self.channel.abandon(id),
            (Err(error), Some((tell, _))) => {
                let _ = tell.send(Err(error));
            }
            (Err(_), None) => {}
        }
    }

    async fn ask(&self, to: &Destination) -> Result<BoxStream, DialError> {
        let full = || DialError::full(self.options.max_connections);
        let held = self.live.enter(self.options.max_connections);
        let held = held.ok_or_else(full)?;
        let random = fastrand::i64(1..);
        let (tell, told) = oneshot::channel();
        self.waiting().insert(random, (tell, held));
        let _given_up = GiveUp { link: self, random };
        if !self.channel.dial(random, to.to_string()) {
            return Err(full());
        }
        told.await.unwrap_or_else(|_| Err(DialError::over()))
    }
}

/// Tells the agent when nobody waits for a dial any more.
struct GiveUp<'a> {
    link: &'a AnpLink,
    random: i64,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.link.waiting().remove(&self.random);
        self.link.channel.give_up(self.random);
    }
}

/// What an agent's text means. The protocol has no more than that.
fn failure(error: String) -> DialError {
    let lower = error.to_ascii_lowercase();
    let says = |what: &str| lower.contains(what);
    if says("timeout") || says("timed out") || says("deadline exceeded") {
        DialError::TimedOut(error)
    } else if says("too many open files") || says("too many connections") {
        DialError::Busy(error)
    } else {
        DialError::Failed(error)
    }
}

impl Link for AnpLink {
    fn hello(&self) -> &AgentHello {
        &self.hello
    }
    fn protocol(&self) -> &'static str {
        "anp"
    }
    fn dial<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(async move {
            let limit = self.options.await_dial();
            answer_about(to, self.ask(to), limit, &self.closed).await
        })
    }
    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
    /// Its agents cannot be told; they look elsewhere when the connection ends.
    fn drain(&self) {}
    fn connections(&self) -> usize {
        self.live.count()
    }
    fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}
