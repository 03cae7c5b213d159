//! Connecting to what is allowed.

use super::AllowList;
use crate::session::congestion;
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    fmt,
    io::{self, ErrorKind, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use yurt_transport::{BoxStream, Destination, Dialer, Dialing};

/// Most addresses of a name that are tried.
const ADDRESSES: usize = 8;
/// How long an address is tried alone (RFC 8305's recommendation).
const STAGGER: Duration = Duration::from_millis(250);

/// Bounds of what an agent dials.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Resolving and connecting together.
    pub timeout: Duration,
    /// Dials at a time.
    pub dials: usize,
    /// Connections at a time.
    pub connections: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            dials: 256,
            connections: 16_384,
        }
    }
}

/// Finds the addresses of names.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// Addresses of a name, the preferred first.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The node's own resolver.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Dials what an allow-list permits, and says what it does not. TCP only: a [`Destination`] is nothing else.
#[derive(Debug)]
pub struct AllowedDialer {
    list: Arc<ArcSwap<AllowList>>,
    resolver: Arc<dyn Resolve>,
    /// Names of the node and where they lead: no resolver is asked for them.
    own: BTreeMap<String, Vec<IpAddr>>,
    node: String,
    bounds: Bounds,
    dials: Semaphore,
    open: Arc<AtomicUsize>,
    beneath: Option<Arc<dyn Dialer>>,
    mark: Mark,
}

impl AllowedDialer {
    /// A dialer on `node`, whose name leads to `addresses`.
    pub fn new(
        list: Arc<ArcSwap<AllowList>>,
        resolver: Arc<dyn Resolve>,
        node: &str,
        addresses: Vec<IpAddr>,
        bounds: Bounds,
    ) -> Self {
        Self {
            list,
            resolver,
            own: BTreeMap::from([(node.to_ascii_lowercase(), addresses)]),
            node: node.to_owned(),
            dials: Semaphore::new(bounds.dials),
            bounds,
            open: Arc::default(),
            beneath: None,
            mark: Mark::default(),
        }
    }

    /// Marks what it opens.
    #[must_use]
    pub(crate) fn marked(self, mark: Mark) -> Self {
        Self { mark, ..self }
    }

    /// Has something else connect to permitted addresses, in place of TCP: the network of a node that is simulated.
    #[must_use]
    pub fn over(self, beneath: Option<Arc<dyn Dialer>>) -> Self {
        Self { beneath, ..self }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn forbidden(&self, to: &Destination) -> io::Error {
        let node = &self.node;
        io::Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "the agent of {node} refuses {to}: it is not on its allow-list (its kubelet, its pods, --allow)"
            ),
        )
    }

    /// The addresses to connect to, every one of them permitted.
    async fn permitted(&self, to: &Destination) -> io::Result<Vec<SocketAddr>> {
        let host = to.host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>() {
            return match self.list.load().permits(address, to.port) {
                true => Ok(vec![(address, to.port).into()]),
                false => Err(self.forbidden(to)),
            };
        }
        let found = match self
            .own
            .get(&host.trim_end_matches('.').to_ascii_lowercase())
        {
            Some(own) if !own.is_empty() => own.clone(),
            _ => self.resolver.resolve(host).await.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("{host} cannot be resolved on {}: {error}", self.node),
                )
            })?,
        };
        if found.is_empty() {
            let text = format!("{host} has no address on {}", self.node);
            return Err(io::Error::new(ErrorKind::NotFound, text));
        }
        let list = self.list.load();
        let mut permitted: Vec<SocketAddr> = found
            .into_iter()
            .filter(|address| list.permits_by_name(host, *address, to.port))
            .map(|address| (address, to.port).into())
            .collect();
        permitted.truncate(ADDRESSES);
        if permitted.is_empty() {
            return Err(self.forbidden(to));
        }
        Ok(permitted)
    }

    async fn connect(&self, to: &Destination) -> io::Result<BoxStream> {
        let busy = |what: &str| {
            io::Error::new(
                ErrorKind::ResourceBusy,
                format!("the agent of {} has {what}", self.node),
            )
        };
        let counted = Counted::of(&self.open);
        if self.open() > self.bounds.connections {
            return Err(busy("too many connections open"));
        }
        let _turn = self
            .dials
            .try_acquire()
            .map_err(|_| busy("too many connections to open at once"))?;
        let connected = timeout(self.bounds.timeout, async {
            let addresses = self.permitted(to).await?;
            let (Some(beneath), Some(first)) = (&self.beneath, addresses.first()) else {
                return connect_any(addresses, self.mark).await.map(Connected::Tcp);
            };
            let to = Destination {
                node: None,
                host: first.ip().to_string(),
                port: first.port(),
            };
            beneath.dial(&to).await.map(Connected::Other)
        });
        let connected = match connected.await {
            Ok(connected) => connected.map_err(|error| with_target(error, to))?,
            Err(_) => {
                let limit = self.bounds.timeout;
                let text = format!("{to} does not answer on {} within {limit:?}", self.node);
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
        };
        let stream = match connected {
            Connected::Tcp(stream) => stream,
            Connected::Other(stream) => {
                return Ok(Box::new(Counting {
                    stream,
                    ended: false,
                    _counted: counted,
                }));
            }
        };
        keep(&stream)?;
        Ok(Box::new(Counting {
            stream,
            ended: false,
            _counted: counted,
        }))
    }
}

/// What came of a dial.
enum Connected {
    Tcp(TcpStream),
    Other(BoxStream),
}

/// Silence after which a target is asked whether it still lives.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Has what is written sent at once, and a target that is gone found out.
fn keep(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(3);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Says what could not be reached; the code of the system is kept, since callers decide by it.
fn with_target(error: io::Error, to: &Destination) -> io::Error {
    match error.kind() {
        ErrorKind::PermissionDenied if error.raw_os_error().is_none() => error,
        // EMFILE and ENFILE.
        _ if matches!(error.raw_os_error(), Some(23 | 24)) => error,
        kind => io::Error::new(kind, format!("{to}: {error}")),
    }
}

/// How the tunnel's own connections are told from others', by the rules that lead others' to the tunnel: a mark of the kernel, where
/// there are such rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) Option<u32>);

impl Mark {
    /// Connects to one address.
    async fn connect(self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(mark) = self.0 {
            // It takes what writing the rules takes: where it cannot be had there are none.
            let _ = socket2::SockRef::from(&socket).set_mark(mark);
        }
        let usual = congestion::begin(&socket);
        let began = Instant::now();
        let stream = socket.connect(address).await?;
        if !congestion::is_near(began.elapsed()) {
            congestion::restore(&stream, &usual);
        }
        Ok(stream)
    }

    /// Connects to the first address of a name that answers.
    pub(crate) async fn connect_to(self, host: &str, port: u16) -> io::Result<TcpStream> {
        let found = tokio::net::lookup_host((host, port)).await?;
        connect_any(found.take(ADDRESSES).collect(), self).await
    }
}

/// Connects by TCP, marked.
impl Dialer for Mark {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(async move {
            let stream = self.connect_to(&to.host, to.port).await?;
            keep(&stream)?;
            socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(KEEPALIVE * 4))?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

/// Connects to the first of several addresses that answers; each gets a start before the next is tried beside it.
pub(crate) async fn connect_any(addresses: Vec<SocketAddr>, mark: Mark) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failure = io::Error::new(ErrorKind::NotFound, "no address");
    loop {
        let next = waiting.next();
        let is_last = next.is_none();
        if let Some(address) = next {
            attempts.spawn(mark.connect(address));
        }
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => failure = error,
                Some(Err(_)) => {}
                None if is_last => return Err(failure),
                None => {}
            },
            () = sleep(STAGGER), if !is_last => {}
        }
    }
}

impl Dialer for AllowedDialer {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(self.connect(to))
    }
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn of(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What can break a connection, so that the other end does not take what it has for all.
trait Break {
    fn break_off(&self);
}

impl Break for TcpStream {
    fn break_off(&self) {
        // Closing then resets. Where that cannot be had, closing ends.
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl Break for BoxStream {
    fn break_off(&self) {}
}

/// A connection that counts while it is open. Dropped before its end was told, it is reset: a torn upload is no whole one.
struct Counting<S: Break> {
    stream: S,
    ended: bool,
    _counted: Counted,
}

impl<S: Break> Drop for Counting<S> {
    fn drop(&mut self) {
        if !self.ended {
            self.stream.break_off();
        }
    }
}

impl<S: AsyncRead + Break + Unpin> AsyncRead for Counting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Break + Unpin> AsyncWrite for Counting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.ended |= matches!(ended, Poll::Ready(Ok(())));
        ended
    }
}
