//! Our own protocol over QUIC, where UDP passes: what [`mux`](crate::mux) is over TLS and TCP, with the same words.
//!
//! The agent dials; the server opens the streams. Its first is the control stream: it says who it is, the agent answers who it is, and
//! both go on to say lines ([`control`](crate::mux::control)). Every proxied connection is a bidirectional stream of its own: `CONNECT host:port`, answered
//! `200` or with the status and text of a [`DialError`]. FIN is half-close, RESET_STREAM and STOP_SENDING are a reset. Each end has one more stream on
//! which it tells what its readers have read ([`credit`]). A lost datagram holds up only the streams that it was of, and a
//! connection goes on when an end's address changes.

mod answerer;
mod control;
mod credit;
pub mod endpoint;
mod head;
mod path;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod urgency;

pub use path::Path;

use crate::{
    hello::{AgentHello, ServerHello},
    link::{self, DialError, Opening},
    mux::{
        self,
        control::{Line, obey},
        windows,
    },
    session::{Ended, Live, Options, Session, SessionError, answer_about},
};
use answerer::Answerer;
use control::{Hearing, Saying, hear, say};
use credit::{Ledger, REPORT};
use head::Head;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use std::{
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};
use stream::QuicStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_transport::{BoxStream, Destination, Dialer};

/// Codes of streams and connections: HTTP/2's.
pub(crate) const NO_ERROR: VarInt = VarInt::from_u32(0);
const CANCEL: VarInt = VarInt::from_u32(8);
/// The server does not want this agent; the reason is the text.
const REFUSED: VarInt = VarInt::from_u32(7);

/// The first line of the control stream.
const CONTROL: &str = "control";
const OK: &str = "200";
/// How long the far end may take to grant another stream when all are taken: those that ended come back within a round trip.
const GRANT: Duration = Duration::from_secs(1);
/// Between the datagrams with which a path is looked at.
const GAP: Duration = Duration::from_millis(20);
/// Goes before everything that is proxied.
const FIRST: i32 = 1;

/// Why there is no QUIC. The network's or the far end's fault, or a certificate's.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The socket cannot be had, or nobody is there.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The address or the name is none.
    #[error(transparent)]
    Connect(#[from] quinn::ConnectError),
    /// The handshake failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The certificate's cipher suites do not include what QUIC begins with.
    #[error(transparent)]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

impl From<ConnectionError> for SessionError {
    fn from(error: ConnectionError) -> Self {
        match &error {
            ConnectionError::ApplicationClosed(close) if close.error_code == REFUSED => {
                Self::Refused(String::from_utf8_lossy(&close.reason).into_owned())
            }
            ConnectionError::LocallyClosed => Self::Closed,
            ConnectionError::VersionMismatch => Self::Protocol(error.to_string()),
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// What both ends of a connection keep up: they tell what was read and the window, and hear the same.
fn account(connection: &Connection, options: &Options, live: &Arc<Live>) -> Arc<Ledger> {
    let ledger = Arc::<Ledger>::default();
    let granting = {
        let (ledger, live, memory) = (ledger.clone(), live.clone(), options.memory);
        let mut granted = 0;
        poll_fn(move |context| {
            live.driver.register(context.waker());
            let wanted = windows::window(live.count(), memory);
            if wanted != granted {
                granted = wanted;
                ledger.grant(wanted);
            }
            Poll::<()>::Pending
        })
    };
    let telling = {
        let (ledger, connection) = (ledger.clone(), connection.clone());
        async move {
            let mut stream = connection.open_uni().await?;
            let _ = stream.set_priority(FIRST);
            loop {
                stream.write_all(&ledger.reports().await).await?;
            }
        }
    };
    let hearing = {
        let (ledger, connection) = (ledger.clone(), connection.clone());
        async move {
            let mut stream = connection.accept_uni().await?;
            let mut report = [0; REPORT];
            loop {
                stream.read_exact(&mut report).await?;
                ledger.hear(&report);
            }
        }
    };
    let connection = connection.clone();
    tokio::spawn(async move {
        let broke: Result<(), Box<dyn std::error::Error + Send + Sync>> = tokio::select! {
            () = granting => Ok(()),
            broke = telling => broke,
            broke = hearing => broke,
            _ = connection.closed() => Ok(()),
        };
        // Without it nobody would know what may be written. Where the connection ended, why stays what it was.
        if broke.is_err() && connection.close_reason().is_none() {
            connection.close(CANCEL, b"the reports ended");
        }
    });
    ledger
}

/// A connection to an agent of ours. Dropping it ends it.
#[derive(Debug)]
pub struct QuicLink {
    hello: AgentHello,
    connection: Connection,
    options: Options,
    live: Arc<Live>,
    ledger: Arc<Ledger>,
    closed: CancellationToken,
    saying: Saying,
    draining: Arc<AtomicBool>,
    /// Datagrams that had been heard when the connection was doubted.
    doubted: AtomicU64,
    _ends: DropGuard,
}

/// Nobody doubts it.
const CERTAIN: u64 = u64::MAX;

impl QuicLink {
    /// Ends the connection, telling the agent why.
    pub fn refuse(&self, why: &str) {
        let why = &why[..why.floor_char_boundary(mux::refusal::MAX_TEXT)];
        self.connection.close(REFUSED, why.as_bytes());
    }

    /// The connection itself: its statistics.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    async fn open(&self, to: &Destination) -> Result<BoxStream, DialError> {
        let limit = self.options.await_dial();
        answer_about(to, self.ask(to), limit, &self.closed).await
    }

    async fn ask(&self, to: &Destination) -> Result<BoxStream, DialError> {
        let most = self.options.max_connections;
        let Some(held) = self.live.enter(most) else {
            return Err(DialError::full(most));
        };
        let mut head = Head::new(format!("CONNECT {to}"));
        if let Some(node) = &to.node {
            head = head.with(mux::NODE, node);
        }
        // A stream that broke alone is the target's doing, or the agent's for it.
        let failed = |error: io::Error| match (self.connection.close_reason(), error.kind()) {
            (Some(why), _) => DialError::Lost(why.to_string()),
            (None, io::ErrorKind::InvalidInput) => DialError::Invalid(error.to_string()),
            (None, _) => DialError::Failed(format!("no answer about {to}: {error}")),
        };
        let streams = match timeout(GRANT, self.connection.open_bi()).await {
            Ok(streams) => streams.map_err(|error| DialError::Lost(error.to_string()))?,
            Err(_) => {
                return Err(DialError::Busy(
                    "the far end takes no more connections".into(),
                ));
            }
        };
        // From here on, whatever ends this resets the stream.
        let mut stream = QuicStream::new(streams, self.ledger.clone(), Some(held));
        stream.say(&head).await.map_err(failed)?;
        let answer = stream.hear().await.map_err(failed)?;
        match answer.first.as_str() {
            OK => Ok(Box::new(stream)),
            _ => Err(answer.refused(stream.rest().await)),
        }
    }
}

impl link::Link for QuicLink {
    fn hello(&self) -> &AgentHello {
        &self.hello
    }
    fn protocol(&self) -> &'static str {
        "quic"
    }
    fn is_preferred(&self) -> bool {
        // A number that was heard of since is the proof; it serves for good.
        let heard = || self.connection.stats().udp_rx.datagrams;
        match self.doubted.load(Relaxed) {
            CERTAIN => true,
            doubted if heard() > doubted => {
                let _ = self
                    .doubted
                    .compare_exchange(doubted, CERTAIN, Relaxed, Relaxed);
                true
            }
            _ => false,
        }
    }
    fn doubt(&self) {
        let heard = self.connection.stats().udp_rx.datagrams;
        self.doubted.store(heard, Relaxed);
        // An empty line means nothing, but is acknowledged by who lives.
        self.saying.say("\n".to_owned());
    }
    fn dial<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(self.open(to))
    }
    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
    fn drain(&self) {
        self.saying.say(Line::Drain.write());
    }
    fn connections(&self) -> usize {
        self.live.count()
    }
    fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}

/// The server's end: says hello on a connection that an agent made, and waits for the agent's, who may look at the connection first.
/// The connection lives until it ends or [`Link::closed`](link::Link::closed) is cancelled.
pub async fn call(
    connection: Connection,
    us: ServerHello,
    options: Options,
) -> Result<Arc<QuicLink>, SessionError> {
    let limit = options.hello;
    let greeted = timeout(limit, greet_agent(connection.clone(), us, options)).await;
    let greeted = greeted.unwrap_or(Err(SessionError::Silent(limit)));
    if greeted.is_err() {
        connection.close(CANCEL, b"no hello");
    }
    greeted
}

async fn greet_agent(
    connection: Connection,
    us: ServerHello,
    options: Options,
) -> Result<Arc<QuicLink>, SessionError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let head = Head::new(CONTROL)
        .with(mux::SERVER_ID, us.id)
        .with(mux::SERVER_COUNT, us.count.to_string());
    say(&mut send, &head).await?;
    let answer = match hear(&mut recv).await {
        Ok(answer) => answer,
        // The agent looked at the connection, and does not want it.
        Err(error) => return Err(connection.close_reason().map_or(error, Into::into)),
    };
    if answer.first != OK {
        return Err(SessionError::Protocol(format!(
            "the agent answered {:?}",
            answer.first
        )));
    }
    let hello = AgentHello {
        id: answer.need(mux::AGENT_ID)?.to_owned(),
        identifiers: mux::parsed(answer.need(mux::AGENT_IDENTIFIERS)?)?,
        version: answer.need(mux::AGENT_VERSION)?.to_owned(),
    };
    let live = Arc::<Live>::default();
    let ledger = account(&connection, &options, &live);
    let closed = CancellationToken::new();
    let draining = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let (connection, closed, draining) = (connection.clone(), closed.clone(), draining.clone());
        async move {
            let mut hearing = Hearing::new(recv);
            let heard = async {
                while let Ok(lines) = hearing.next().await {
                    if lines.contains(&Line::Drain) {
                        draining.store(true, Relaxed);
                    }
                }
            };
            // Without its control stream a connection is of no use.
            let _ = closed.run_until_cancelled(heard).await;
            connection.close(NO_ERROR, b"");
            closed.cancel();
        }
    });
    Ok(Arc::new(QuicLink {
        hello,
        connection,
        options,
        live,
        ledger,
        _ends: closed.clone().drop_guard(),
        closed,
        saying: Saying::new(send),
        draining,
        doubted: CERTAIN.into(),
    }))
}

/// A server that said hello, and waits for ours: [`Greeted::answer`], or nothing when the connection is not wanted.
#[derive(Debug)]
pub struct Greeted {
    /// Who is at the other end.
    pub server: ServerHello,
    connection: Connection,
    control: (SendStream, RecvStream),
    options: Options,
}

/// The agent's end: waits for the server's hello.
pub async fn greet(connection: Connection, options: Options) -> Result<Greeted, SessionError> {
    let limit = options.hello;
    let greeting = async {
        let (send, mut recv) = connection.accept_bi().await?;
        let head = hear(&mut recv).await?;
        if head.first != CONTROL {
            return Err(SessionError::Protocol(format!(
                "the server began with {:?}",
                head.first
            )));
        }
        let server = ServerHello {
            id: head.need(mux::SERVER_ID)?.to_owned(),
            count: mux::parsed(head.need(mux::SERVER_COUNT)?)?,
            quic: None,
        };
        Ok((server, (send, recv)))
    };
    let greeted = timeout(limit, greeting).await;
    let (server, control) = greeted.unwrap_or(Err(SessionError::Silent(limit)))?;
    Ok(Greeted {
        server,
        connection,
        control,
        options,
    })
}

impl Greeted {
    /// The connection itself.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Looks at the path for so long, with small datagrams (empty lines, which the server passes over); that must be less than the server
    /// waits for a hello.
    pub async fn look(&mut self, time: Duration) -> Result<Path, SessionError> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let said = self.control.0.write_all(b"\n").await;
            said.map_err(|error| SessionError::Broken(error.to_string()))?;
            sleep(GAP).await;
        }
        // The last of them are still under way, or found to be lost.
        sleep(self.connection.rtt().mul_f64(1.5).min(GRANT)).await;
        Ok(path::path(&self.connection))
    }

    /// Says who we are, and dials for the server from now on. `shutdown` asks the server for no more dials, and ends the session when
    /// nothing is open any more.
    pub async fn answer(
        self,
        us: AgentHello,
        dialer: Arc<dyn Dialer>,
        shutdown: CancellationToken,
    ) -> Result<Session, SessionError> {
        let (mut send, recv) = self.control;
        let head = Head::new(OK)
            .with(mux::AGENT_ID, us.id)
            .with(mux::AGENT_IDENTIFIERS, us.identifiers.to_string())
            .with(mux::AGENT_VERSION, us.version);
        say(&mut send, &head).await?;
        let (live, draining) = (Arc::<Live>::default(), CancellationToken::new());
        let round_trip = self.connection.rtt();
        let answerer = Answerer {
            ledger: account(&self.connection, &self.options, &live),
            connection: self.connection,
            tunnels: Arc::new(mux::Dialling(dialer)),
            options: self.options,
            live: live.clone(),
        };
        let server_drains = draining.clone();
        let mut hearing = Hearing::new(recv);
        let heard = Box::pin(async move {
            loop {
                let lines = hearing.next().await;
                if let Err(error) = lines.and_then(|lines| obey(lines, &server_drains)) {
                    return error;
                }
            }
        });
        let saying = Saying::new(send);
        let gone = CancellationToken::new();
        let ends = gone.clone().drop_guard();
        let running = tokio::spawn(async move {
            let connection = answerer.connection.clone();
            let running = answerer.run(heard, shutdown, move || saying.say(Line::Drain.write()));
            let ended = gone.run_until_cancelled(running).await;
            connection.close(NO_ERROR, b"");
            ended.unwrap_or(SessionError::Closed)
        });
        Ok(Session {
            server: self.server,
            protocol: "quic",
            round_trip: Some(round_trip),
            live,
            draining,
            ended: Ended::with(running),
            _ends: ends,
        })
    }
}
