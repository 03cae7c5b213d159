//! Our own protocol between our agent and our server: HTTP/2 turned round.
//!
//! On the connection that the agent dialled, the server is the HTTP/2 client. Its first stream is the control stream: a request whose
//! headers say who the server is, answered by headers that say who the agent is; both bodies then stay open and carry lines of text
//! ([`control`]). Every proxied connection is a `CONNECT host:port` stream of its own, answered 200 once the agent has
//! reached the target, or with the status and text of a [`DialError`]. Flow control, half-close
//! (END_STREAM) and reset (RST_STREAM) are HTTP/2's.

mod answerer;
mod caller;
pub mod cloud;
pub(crate) mod control;
mod inflow;
pub(crate) mod refusal;
mod stream;
pub(crate) mod windows;

pub use crate::session::Options;

use crate::{
    hello::{AgentHello, ServerHello},
    link::{self, Opening},
    session::{Ended, Heard, Live, Session, SessionError, until_silent},
};
pub(crate) use answerer::{Dialling, drained};

use answerer::Answerer;
use bytes::Bytes;
use caller::Caller;
use control::{Hearing, Line, Saying, obey};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_transport::{BoxStream, Destination, Dialer};

/// The control stream's path.
const CONTROL: &str = "/yurt-tunnel/v1/control";
/// No bound of its own: each stream has its window, and together they are bounded by [`windows`].
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Of one DATA frame: what a small message waits behind for each busy stream. Four TLS records with the frame's head.
const FRAME: u32 = (64 << 10) - 9;
/// What a stream may have handed over for sending: whole frames.
const SEND_BUFFER: usize = 4 * FRAME as usize;
/// Streams that were reset and whose last frames may still arrive.
const RESETS: usize = 1024;
/// Of the headers of one message.
const HEADERS: u32 = 64 << 10;

pub(crate) const AGENT_ID: &str = "agentid";
/// Names the node that a connection is for, where the asking end knows it (between instances of the server).
pub(crate) const NODE: &str = "x-tunnel-proxy-host";
pub(crate) const AGENT_IDENTIFIERS: &str = "agentidentifiers";
pub(crate) const AGENT_VERSION: &str = "agentversion";
pub(crate) const SERVER_ID: &str = "serverid";
pub(crate) const SERVER_COUNT: &str = "servercount";
const QUIC_PORT: &str = "quicport";

/// A connection to an agent of ours. Dropping it ends it.
#[derive(Debug)]
pub struct MuxLink {
    hello: AgentHello,
    caller: Caller,
    _ends: DropGuard,
    saying: Saying,
    draining: Arc<AtomicBool>,
}

impl MuxLink {
    /// Ends the connection, telling the agent why.
    pub fn refuse(&self, why: &str) {
        self.saying.say(&Line::Refuse(why.to_owned()));
        let closed = self.caller.closed.clone();
        tokio::spawn(async move {
            // The agent hangs up by itself, having read it.
            let _ = timeout(answerer::FAREWELL, closed.cancelled()).await;
            closed.cancel();
        });
    }
}

impl link::Link for MuxLink {
    fn hello(&self) -> &AgentHello {
        &self.hello
    }
    fn protocol(&self) -> &'static str {
        "mux"
    }
    fn dial<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(self.caller.open(to))
    }
    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
    fn drain(&self) {
        self.saying.say(&Line::Drain);
    }
    fn connections(&self) -> usize {
        self.caller.live.count()
    }
    fn closed(&self) -> &CancellationToken {
        &self.caller.closed
    }
}

/// The server's end: says hello on a connection that an agent dialled, and waits for the agent's. Drives the connection until it
/// ends or [`Link::closed`](link::Link::closed) is cancelled.
pub async fn call(
    io: BoxStream,
    us: ServerHello,
    options: Options,
) -> Result<Arc<MuxLink>, SessionError> {
    let limit = options.hello;
    timeout(limit, greet_agent(io, us, options))
        .await
        .unwrap_or(Err(SessionError::Silent(limit)))
}

async fn greet_agent(
    io: BoxStream,
    us: ServerHello,
    options: Options,
) -> Result<Arc<MuxLink>, SessionError> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static("http://agent/yurt-tunnel/v1/control");
    let headers = request.headers_mut();
    put(headers, SERVER_ID, &us.id)?;
    put(headers, SERVER_COUNT, &us.count.to_string())?;
    if let Some(port) = us.quic {
        put(headers, QUIC_PORT, &port.to_string())?;
    }

    let (driven, mut requests) = drive(io, &options).await?;
    let ends = driven.closed.clone().drop_guard();
    let (response, saying) = requests.send_request(request, false)?;
    let response = response.await?;
    if response.status() != StatusCode::OK {
        let status = response.status();
        return Err(SessionError::Protocol(format!(
            "the agent answered {status}"
        )));
    }
    let headers = response.headers();
    let hello = AgentHello {
        id: get(headers, AGENT_ID)?.to_owned(),
        identifiers: parsed(get(headers, AGENT_IDENTIFIERS)?)?,
        version: get(headers, AGENT_VERSION)?.to_owned(),
    };
    let closed = driven.closed;
    let draining = Arc::new(AtomicBool::new(false));
    let mut hearing = Hearing::new(response.into_body());
    tokio::spawn({
        let (closed, draining) = (closed.clone(), Arc::clone(&draining));
        async move {
            let heard = async {
                while let Ok(lines) = hearing.next().await {
                    if lines.contains(&Line::Drain) {
                        draining.store(true, Relaxed);
                    }
                }
            };
            // Without its control stream a connection is of no use.
            let _ = closed.run_until_cancelled(heard).await;
            closed.cancel();
        }
    });
    Ok(Arc::new(MuxLink {
        hello,
        caller: Caller {
            requests,
            options,
            live: driven.live,
            closed,
        },
        _ends: ends,
        saying: Saying::new(saying),
        draining,
    }))
}

/// A connection on which we ask, driven by a task of its own.
struct Driven {
    live: Arc<Live>,
    closed: CancellationToken,
}

async fn drive(
    io: BoxStream,
    options: &Options,
) -> Result<(Driven, h2::client::SendRequest<Bytes>), SessionError> {
    let (heard, pulse) = Heard::new(io);
    let mut granted = windows::window(0, options.memory);
    let (requests, mut connection) = h2::client::Builder::new()
        .initial_window_size(granted)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(options.memory)
        .max_concurrent_reset_streams(RESETS)
        .max_local_error_reset_streams(None)
        .max_header_list_size(HEADERS)
        .enable_push(false)
        .handshake::<_, Bytes>(heard)
        .await?;
    let driven = Driven {
        live: Arc::default(),
        closed: CancellationToken::new(),
    };
    let (live, closed, memory) = (
        Arc::clone(&driven.live),
        driven.closed.clone(),
        options.memory,
    );
    let (quiet, patience) = (options.quiet, options.patience);
    let pings = connection.ping_pong();
    tokio::spawn(async move {
        let _ends = closed.clone().drop_guard();
        let driving = poll_fn(|context| {
            live.driver.register(context.waker());
            let wanted = windows::window(live.count(), memory);
            // While the one before is not acknowledged it is refused; the acknowledgement comes by here.
            if wanted != granted && connection.set_initial_window_size(wanted).is_ok() {
                granted = wanted;
            }
            std::pin::Pin::new(&mut connection).poll(context)
        });
        tokio::select! {
            ended = driving => tracing::debug!(?ended, "the tunnel's connection ended"),
            silence = until_silent(pulse, pings, quiet, patience) => {
                tracing::warn!(?silence, "the other end of the tunnel is silent");
            }
            () = closed.cancelled() => {}
        }
    });
    Ok((driven, requests))
}

/// The agent's end: waits for the server's hello, says its own, and then dials for the server. `shutdown` asks the server for no more
/// dials, and ends the session when nothing is open any more.
pub async fn answer(
    io: BoxStream,
    us: AgentHello,
    dialer: Arc<dyn Dialer>,
    options: Options,
    shutdown: CancellationToken,
) -> Result<Session, SessionError> {
    answer_if(io, us, dialer, options, shutdown, &|_| true).await
}

/// [`answer`], if the server turns out to be a wanted one: another never hears who is there, and so asks nothing of a connection that is
/// about to end.
pub(crate) async fn answer_if(
    io: BoxStream,
    us: AgentHello,
    dialer: Arc<dyn Dialer>,
    options: Options,
    shutdown: CancellationToken,
    is_wanted: &(dyn Fn(&ServerHello) -> bool + Sync),
) -> Result<Session, SessionError> {
    let limit = options.hello;
    let greeted = timeout(limit, greet_server(io, us, &options, is_wanted)).await;
    let (connection, pulse, server, mut hearing, saying) =
        greeted.unwrap_or(Err(SessionError::Silent(limit)))?;
    let draining = CancellationToken::new();
    let live: Arc<Live> = Arc::default();
    let answerer = Answerer {
        connection,
        pulse,
        tunnels: Arc::new(Dialling(dialer)),
        options,
        live: Arc::clone(&live),
    };
    let server_drains = draining.clone();
    let heard = Box::pin(async move {
        loop {
            let lines = hearing.next().await;
            if let Err(error) = lines.and_then(|lines| obey(lines, &server_drains)) {
                return error;
            }
        }
    });
    let gone = CancellationToken::new();
    let ends = gone.clone().drop_guard();
    let running = tokio::spawn(async move {
        let running = answerer.run(heard, shutdown, move || saying.say(&Line::Drain));
        gone.run_until_cancelled(running)
            .await
            .unwrap_or(SessionError::Closed)
    });
    Ok(Session {
        server,
        protocol: "mux",
        round_trip: None,
        live,
        draining,
        ended: Ended::with(running),
        _ends: ends,
    })
}

type Greeted = (
    h2::server::Connection<Heard, Bytes>,
    crate::session::Pulse,
    ServerHello,
    Hearing,
    Saying,
);

async fn greet_server(
    io: BoxStream,
    us: AgentHello,
    options: &Options,
    is_wanted: &(dyn Fn(&ServerHello) -> bool + Sync),
) -> Result<Greeted, SessionError> {
    let (heard, pulse) = Heard::new(io);
    let mut connection = answerer::builder(options).handshake(heard).await?;
    let (request, mut respond) = connection
        .accept()
        .await
        .ok_or_else(|| SessionError::Broken("the server hung up".into()))??;
    if request.uri().path() != CONTROL {
        return Err(SessionError::Protocol(format!(
            "the server began with {}",
            request.uri().path()
        )));
    }
    let headers = request.headers();
    let server = ServerHello {
        id: get(headers, SERVER_ID)?.to_owned(),
        count: parsed(get(headers, SERVER_COUNT)?)?,
        quic: get(headers, QUIC_PORT)
            .ok()
            .and_then(|port| port.parse().ok()),
    };
    if !is_wanted(&server) {
        return Err(SessionError::Unwanted(server));
    }
    let mut response = Response::new(());
    let headers = response.headers_mut();
    put(headers, AGENT_ID, &us.id)?;
    put(headers, AGENT_IDENTIFIERS, &us.identifiers.to_string())?;
    put(headers, AGENT_VERSION, &us.version)?;
    let saying = Saying::new(respond.send_response(response, false)?);
    Ok((
        connection,
        pulse,
        server,
        Hearing::new(request.into_body()),
        saying,
    ))
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), SessionError> {
    let value = HeaderValue::from_str(value)
        .map_err(|_| SessionError::Protocol(format!("{name} {value:?} cannot be sent")))?;
    headers.insert(name, value);
    Ok(())
}

fn get<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, SessionError> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| SessionError::Protocol(format!("it did not say its {name}")))
}

pub(crate) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
) -> Result<T, SessionError> {
    text.parse()
        .map_err(|error: T::Err| SessionError::Protocol(format!("{text:?}: {error}")))
}

#[cfg(test)]
mod tests;
