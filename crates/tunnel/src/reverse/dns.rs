//! Names of the cloud, told at the edge: queries for declared zones go to the cloud's name server by the tunnel, one framed message
//! (RFC 7766) at a time on connections that are used again. All other queries are refused, which has resolvers ask the next server.
//!
//! Of a query only its question and what length of answer it takes is read ([`message`]); answers are passed on as they are.

mod message;

use crate::{
    DialError, Tunnels,
    agent::{AgentError, listen},
};
use message::{Fault, Query, REFUSED, SERVFAIL};
use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination};

/// Queries at a time, of one listener: resolvers ask again for what is dropped beyond.
const MOST: usize = 256;
/// Connections of programs at a time.
const CONNECTIONS: usize = 128;
/// For one query: resolvers give up after 5 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a program's connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// Connections to the cloud's name server that wait for the next query, and how long: it closes them itself soon after.
const SPARES: usize = 8;
const FRESH: Duration = Duration::from_secs(3);
/// Most bytes of a query by UDP that are read.
const DATAGRAM: usize = 4096;

/// A domain with all names below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(Vec<Vec<u8>>);

/// What is no zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no domain")]
pub struct NotAZone(String);

impl FromStr for Zone {
    type Err = NotAZone;

    fn from_str(text: &str) -> Result<Self, NotAZone> {
        let name = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let labels = name.split('.').map(|label| label.as_bytes().to_vec());
        let labels: Vec<_> = labels.collect();
        let fits = labels.iter().all(|label| (1..=63).contains(&label.len()));
        match fits && name.len() <= 253 {
            true => Ok(Self(labels)),
            false => Err(NotAZone(text.to_owned())),
        }
    }
}

impl Zone {
    fn holds(&self, query: &Query<'_>) -> bool {
        query.name.ends_with(&self.0)
    }
}

/// A name server for names of the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// Where it listens, by UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Of what names it knows.
    pub zones: Vec<Zone>,
    /// Whom it asks, in the cloud.
    pub server: Destination,
}

impl NameServer {
    /// Listens, until `stop`.
    pub(super) async fn start(
        &self,
        tunnels: Arc<dyn Tunnels>,
        stop: &CancellationToken,
    ) -> Result<(), AgentError> {
        for address in &self.listen {
            let listener = listen(*address).await?;
            // The same port, where any would do.
            let address = listener.local_addr()?;
            let socket = UdpSocket::bind(address)
                .await
                .map_err(|source| AgentError::Listen { address, source })?;
            let forwarder = Arc::new(Forwarder::new(self, tunnels.clone()));
            tracing::info!(%address, server = %self.server, "names of the cloud are told");
            let by_udp = serve_udp(socket, forwarder.clone(), stop.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(by_udp));
            let by_tcp = serve_tcp(listener, forwarder, stop.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(by_tcp));
        }
        Ok(())
    }
}

/// Asks the cloud.
#[derive(Debug)]
struct Forwarder {
    zones: Vec<Zone>,
    server: Destination,
    tunnels: Arc<dyn Tunnels>,
    /// Connections that carry nothing now, and since when.
    spares: Mutex<Vec<(BoxStreamed, Instant)>>,
    queries: Arc<Semaphore>,
    /// What was said last of what does not work.
    trouble: Mutex<String>,
}

/// A connection, for people: nothing is to be seen of it.
struct BoxStreamed(BoxStream);

impl std::fmt::Debug for BoxStreamed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("BoxStream")
    }
}

impl Forwarder {
    fn new(names: &NameServer, tunnels: Arc<dyn Tunnels>) -> Self {
        Self {
            zones: names.zones.clone(),
            server: names.server.clone(),
            tunnels,
            spares: Mutex::default(),
            queries: Arc::new(Semaphore::new(MOST)),
            trouble: Mutex::default(),
        }
    }

    /// What a message is answered with, however long; `None`: with nothing.
    async fn answer(&self, message: &[u8]) -> Option<(Vec<u8>, usize)> {
        let query = match Query::read(message) {
            Ok(query) => query,
            Err(Fault::Silence) => return None,
            Err(Fault::Answer(answer)) => return Some((answer, message::SHORTEST)),
        };
        let most = query.most;
        if !self.zones.iter().any(|zone| zone.holds(&query)) {
            return Some((query.failed(REFUSED), most));
        }
        let asked = timeout(PATIENCE, self.ask(&query)).await;
        let asked = asked.unwrap_or_else(|_| {
            let server = &self.server;
            Err(DialError::TimedOut(format!("{server} does not answer")))
        });
        let mut said = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match asked {
            Ok(answer) => {
                said.clear();
                Some((answer, most))
            }
            Err(error) => {
                let text = error.to_string();
                // Said once.
                if *said != text {
                    tracing::warn!(error = text, "names of the cloud are not told");
                    *said = text;
                }
                let code = match error {
                    DialError::Forbidden(_) => REFUSED,
                    _ => SERVFAIL,
                };
                Some((query.failed(code), most))
            }
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<(BoxStreamed, Instant)>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that was used before and may still be good.
    fn spare(&self) -> Option<BoxStream> {
        let mut spares = self.spares();
        // The last one is the freshest.
        let (stream, since) = spares.pop()?;
        if since.elapsed() > FRESH {
            spares.clear();
            return None;
        }
        Some(stream.0)
    }

    async fn ask(&self, query: &Query<'_>) -> Result<Vec<u8>, DialError> {
        if let Some(mut stream) = self.spare()
            && let Ok(answer) = exchange(&mut stream, query).await
        {
            self.keep(stream);
            return Ok(answer);
        }
        let mut stream = self.tunnels.open(&self.server).await?;
        let answer = exchange(&mut stream, query).await;
        let failed = |error| DialError::Lost(format!("{}: {error}", self.server));
        let answer = answer.map_err(failed)?;
        self.keep(stream);
        Ok(answer)
    }

    fn keep(&self, stream: BoxStream) {
        let mut spares = self.spares();
        if spares.len() < SPARES {
            spares.push((BoxStreamed(stream), Instant::now()));
        }
    }
}

/// A framed message.
fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes()[..], message].concat())
}

async fn exchange(stream: &mut BoxStream, query: &Query<'_>) -> io::Result<Vec<u8>> {
    stream.write_all(&framed(query.message)?).await?;
    stream.flush().await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    match query.is_answered_by(&answer) {
        true => Ok(answer),
        false => Err(io::Error::new(
            ErrorKind::InvalidData,
            "what the name server says answers something else",
        )),
    }
}

async fn serve_udp(socket: UdpSocket, forwarder: Arc<Forwarder>, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Of what was sent before (a port that is closed), or of the host.
                tracing::debug!(%error, "a query was not received");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Ok(turn) = forwarder.queries.clone().try_acquire_owned() else {
            continue;
        };
        let message = buffer.get(..length).unwrap_or_default().to_vec();
        let (socket, forwarder) = (socket.clone(), forwarder.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let _turn = turn;
            if let Some((answer, most)) = forwarder.answer(&message).await {
                let answer = message::cut(answer, most);
                if let Err(error) = socket.send_to(&answer, from).await {
                    tracing::debug!(%error, %from, "an answer was not sent");
                }
            }
        }));
    }
}

async fn serve_tcp(listener: TcpListener, forwarder: Arc<Forwarder>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection with queries");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let forwarder = forwarder.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let _permit = permit;
            if let Err(error) = answer_all(stream, &forwarder).await {
                tracing::debug!(%error, "a connection with queries ended");
            }
        }));
    }
}

/// Answers one query after the other.
async fn answer_all(mut stream: TcpStream, forwarder: &Forwarder) -> io::Result<()> {
    loop {
        let read = timeout(IDLE, async {
            let mut message = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut message).await?;
            io::Result::Ok(message)
        });
        let message = read.await??;
        let Ok(_turn) = forwarder.queries.acquire().await else {
            return Ok(());
        };
        let Some((answer, _)) = forwarder.answer(&message).await else {
            return Ok(());
        };
        timeout(IDLE, stream.write_all(&framed(&answer)?)).await??;
    }
}

#[cfg(test)]
mod tests;
