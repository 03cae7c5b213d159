//! The breakable link between one hub and the API server.
//!
//! A TCP relay on a loopback address of the node. What it does to connections depends on its [`LinkState`], which may change at any
//! moment and counts for established connections, too. A cut link behaves like one whose packets vanish: nothing is closed and
//! nothing is reset, and after the heal a connection that both ends still hold goes on where it stopped, as after a TCP
//! retransmission. What a peer's kernel had taken before the cut (a few megabytes at most) is on its way and arrives then.

mod shaping;

use shaping::{Pacer, Shape};
use std::{
    collections::VecDeque,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Connections a link holds at once; more wait in the kernel.
const MAX_CONNECTIONS: usize = 1024;
/// Bytes read at once, and the unit in which a slow link delays and loses.
const CHUNK: usize = 16 << 10;
/// Chunks on their way in one direction of a connection, and of one that takes long: it holds more before it is full.
const MAX_CHUNKS: usize = 64;
const MAX_CHUNKS_LONG: usize = 1024;

/// What a link does to the bytes of its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// Passes them on.
    #[default]
    Up,
    /// Packets vanish: connections stay as they are, no byte comes through; new ones are accepted by the kernel and hear nothing.
    Cut,
    /// Connections are reset, new ones too.
    Reset,
    /// Everything takes longer.
    Slow {
        /// Added to each round trip.
        delay: Duration,
        /// For all connections together, each way. `None`: no limit.
        bytes_per_second: Option<u64>,
    },
    /// Packets get lost and are sent again: bytes stall for retransmission time-outs.
    Lossy {
        /// Added to each round trip.
        delay: Duration,
        /// How many of a hundred chunks stall, at most 95.
        loss_percent: u8,
    },
}

impl fmt::Display for LinkState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Up => "up",
            Self::Cut => "cut",
            Self::Reset => "reset",
            Self::Slow { .. } => "slow",
            Self::Lossy { .. } => "lossy",
        })
    }
}

/// What went over a link since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Bytes delivered to the target (the API server).
    pub to_target: u64,
    /// Bytes delivered from it.
    pub from_target: u64,
    /// Connections taken from clients.
    pub accepted: u64,
    /// Of them, open now.
    pub open: u64,
}

/// A relay. Dropping it closes everything.
pub struct Link {
    relay: Arc<Relay>,
    address: SocketAddr,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Link")
            .field("address", &self.address)
            .field("target", &self.relay.target)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Listens on `listen` and relays to `target`. Fails when the address cannot be listened on.
    pub async fn start(listen: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let relay = Arc::new(Relay {
            target,
            state: watch::Sender::new(LinkState::Up),
            stop: CancellationToken::new(),
            toward: [Way::default(), Way::default()],
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
        });
        tokio::spawn(accept(listener, Arc::clone(&relay)));
        Ok(Self { relay, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the state; effective at once, on established connections too.
    pub fn set(&self, state: LinkState) {
        self.relay.state.send_replace(state);
    }

    /// The state.
    pub fn state(&self) -> LinkState {
        *self.relay.state.borrow()
    }

    /// What went over it.
    pub fn counters(&self) -> LinkCounters {
        let relay = &self.relay;
        LinkCounters {
            to_target: relay.toward[TARGET].bytes.load(Ordering::Relaxed),
            from_target: relay.toward[CLIENT].bytes.load(Ordering::Relaxed),
            accepted: relay.accepted.load(Ordering::Relaxed),
            open: relay.open.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.relay.stop.cancel();
    }
}

const TARGET: usize = 0;
const CLIENT: usize = 1;

struct Relay {
    target: SocketAddr,
    state: watch::Sender<LinkState>,
    stop: CancellationToken,
    /// Toward the target and toward the client.
    toward: [Way; 2],
    accepted: AtomicU64,
    open: AtomicU64,
}

/// One direction of the link, shared by all connections.
#[derive(Default)]
struct Way {
    bytes: AtomicU64,
    pacer: Pacer,
}

async fn accept(listener: TcpListener, relay: Arc<Relay>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = relay.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let client = match accepted {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(target = %relay.target, %error, "link cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        relay.accepted.fetch_add(1, Ordering::Relaxed);
        let relay = Arc::clone(&relay);
        tokio::spawn(async move {
            relay.open.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                () = relay.stop.cancelled() => {}
                () = relay.connection(client) => {}
            }
            relay.open.fetch_sub(1, Ordering::Relaxed);
            drop(place);
        });
    }
}

/// How a connection ended other than by both sides closing it.
struct Broken;

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// Makes the kernel send RST instead of FIN when the socket is dropped.
fn reset_on_drop(stream: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

impl Relay {
    async fn connection(&self, client: TcpStream) {
        let mut state = self.state.subscribe();
        let _ = client.set_nodelay(true);
        let target = match self.dial(&mut state).await {
            Ok(target) => target,
            Err(Broken) => {
                reset_on_drop(&client);
                return;
            }
        };
        let both = async {
            tokio::try_join!(
                self.carry(&client, &target, &self.toward[TARGET]),
                self.carry(&target, &client, &self.toward[CLIENT]),
            )
        };
        let ended = tokio::select! {
            ended = both => ended.map(drop),
            // The sender lives as long as the relay.
            _ = state.wait_for(|state| *state == LinkState::Reset) => Err(Broken),
        };
        if ended.is_err() {
            reset_on_drop(&client);
            reset_on_drop(&target);
        }
    }

    /// Connects to the target as soon as packets get there.
    async fn dial(&self, state: &mut watch::Receiver<LinkState>) -> Result<TcpStream, Broken> {
        let now = passable(state).await;
        if now == LinkState::Reset {
            return Err(Broken);
        }
        let delay = Shape::of(now).delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let stream = TcpStream::connect(self.target).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Carries one direction until its end of stream has been passed on.
    async fn carry(&self, from: &TcpStream, to: &TcpStream, way: &Way) -> Result<(), Broken> {
        let mut state = self.state.subscribe();
        let mut flight = Flight::default();
        let mut buffer = vec![0; CHUNK];
        loop {
            let now = passable(&mut state).await;
            let shape = Shape::of(now);
            tokio::select! {
                // A change counts before any byte.
                biased;
                changed = state.changed() => changed.map_err(|_| Broken)?,
                arrived = flight.arrival(to) => {
                    let sent = match arrived? {
                        Some(sent) => sent,
                        None => return Ok(()),
                    };
                    way.bytes.fetch_add(sent as u64, Ordering::Relaxed);
                }
                departed = depart(from, &mut buffer, shape, way), if flight.has_room(shape) => {
                    let departed = departed?;
                    flight.launch(&buffer[..departed.length], departed.due);
                }
            }
        }
    }
}

/// Waits until packets get through (or connections are to be reset).
async fn passable(state: &mut watch::Receiver<LinkState>) -> LinkState {
    match state.wait_for(|state| *state != LinkState::Cut).await {
        Ok(state) => *state,
        // The relay is gone; its connections end with it.
        Err(_) => LinkState::Reset,
    }
}

struct Departed {
    /// 0: the end of the stream.
    length: usize,
    due: Instant,
}

/// Reads the next chunk and says when it arrives. Cancelled before the read nothing is lost, and after it nothing waits.
async fn depart(
    from: &TcpStream,
    buffer: &mut [u8],
    shape: Shape,
    way: &Way,
) -> io::Result<Departed> {
    let length = loop {
        from.readable().await?;
        // The link's capacity is waited for before bytes are taken, so that a change of state finds them in the kernel.
        way.pacer.room(shape).await;
        match from.try_read(&mut buffer[..shape.chunk(CHUNK)]) {
            Ok(length) => break length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    };
    let through = way.pacer.pass(shape, length);
    Ok(Departed {
        length,
        due: through + shape.delay / 2 + shape.stall(&mut fastrand::Rng::new()),
    })
}

/// Bytes on their way in one direction of one connection, in order.
#[derive(Default)]
struct Flight {
    chunks: VecDeque<Chunk>,
}

struct Chunk {
    bytes: Box<[u8]>,
    sent: usize,
    due: Instant,
}

impl Flight {
    fn has_room(&self, shape: Shape) -> bool {
        let ended = self
            .chunks
            .back()
            .is_some_and(|chunk| chunk.bytes.is_empty());
        // A thin link has its queue before the bottleneck.
        let most = match shape.delay.is_zero() || shape.is_thin() {
            true => MAX_CHUNKS,
            false => MAX_CHUNKS_LONG,
        };
        self.chunks.len() < most && !ended
    }

    /// An empty chunk is the end of the stream.
    fn launch(&mut self, bytes: &[u8], due: Instant) {
        self.chunks.push_back(Chunk {
            bytes: bytes.into(),
            sent: 0,
            due,
        });
    }

    /// Delivers (part of) the first chunk when it is due: how many bytes, or `None` for the end of the stream. Waits for ever when
    /// nothing is on its way. Cancelling it loses nothing.
    async fn arrival(&mut self, to: &TcpStream) -> io::Result<Option<usize>> {
        let Some(first) = self.chunks.front_mut() else {
            return std::future::pending().await;
        };
        // A timer rounds up to the next millisecond, which a link without delay must not add.
        if first.due > Instant::now() {
            sleep_until(first.due).await;
        }
        if first.bytes.is_empty() {
            socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write)?;
            return Ok(None);
        }
        loop {
            to.writable().await?;
            match to.try_write(&first.bytes[first.sent..]) {
                Ok(sent) => {
                    first.sent += sent;
                    if first.sent == first.bytes.len() {
                        self.chunks.pop_front();
                    }
                    return Ok(Some(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
