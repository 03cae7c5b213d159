//! The listeners: agents, other instances and frontends on one TLS port, told apart by ALPN and first bytes; frontends on a Unix
//! socket, let in by its file mode.

mod guest;

use super::{
    callers::{Bearers, Refused, ServiceAccount, Shown},
    metrics::Metrics,
    switchboard::{Here, Switchboard},
};
use crate::{
    AgentHello, Link, Options, ServerHello, SessionError, Tunnels,
    certificates::Kept,
    frontend::{self, Page, Service, Unread},
    hello::{ALPN_CLOUD, ALPN_GRPC, ALPN_MUX},
    mux,
    registry::Origin,
    session::{self, congestion},
    standalone::{ALPN_JOIN, Authority},
};
use arc_swap::ArcSwap;
use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_controller::kube::Kube;
use yurt_pki::{Leaf, renewal};
use yurt_transport::BoxStream;

/// ALPN of other instances of the server.
pub const ALPN_PEER: &[u8] = b"yurt-peer/1";
/// Everything that the TLS port speaks, the best first. `http/1.1`: frontends by CONNECT that offer something at all.
pub const ALPN: &[&[u8]] = &[ALPN_MUX, ALPN_CLOUD, ALPN_PEER, ALPN_GRPC, b"http/1.1"];

/// How long a TLS handshake may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time: after an outage all agents come at once.
pub(super) const HANDSHAKES: usize = 256;
/// Reviews of tokens at a time.
const REVIEWS: usize = 16;
/// How long a review may take.
const REVIEW: Duration = Duration::from_secs(10);

/// How long after the end of its certificate somebody may go on: clocks differ.
const GRACE: i64 = 300;
/// The longest that the clock is not looked at; it may jump.
const DOZE: i64 = 60;

/// Waits until a certificate has ended for good, by a clock of seconds since the epoch.
async fn ended(certificate: Option<&Leaf>, now: fn() -> i64) {
    let Some(leaf) = certificate else {
        return std::future::pending().await;
    };
    let end = leaf.not_after.saturating_add(GRACE);
    loop {
        let left = u64::try_from(end.saturating_sub(now()).min(DOZE)).unwrap_or(0);
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left)).await;
    }
}

/// What whoever is ended so is told.
fn over(certificate: Option<&Leaf>) -> Refused {
    let end = certificate.map_or(0, |leaf| leaf.not_after);
    Refused(format!(
        "the certificate that was shown ended at {}; come again with the one after it",
        renewal::moment(end)
    ))
}

/// By tokens: whose, and who reviews them.
#[derive(Clone, Debug)]
pub struct Reviewer {
    /// Whose tokens let agents in.
    pub account: ServiceAccount,
    /// The API server that knows the tokens.
    pub kube: Kube,
}

/// Who may do what.
#[derive(Clone, Debug)]
pub struct Guards {
    /// Certificates whose bearers may be any agent: `--trusted-agents`.
    pub agents: Vec<Bearers>,
    /// Certificates of frontends: `--frontends`.
    pub frontends: Vec<Bearers>,
    /// Certificates of other instances: `--peer-identities`.
    pub peers: Vec<Bearers>,
    /// How agents without a certificate are let in, if they are.
    pub tokens: Option<Reviewer>,
}

/// What all listeners share.
pub struct Gate {
    pub(super) switchboard: Arc<Switchboard>,
    pub(super) cloud: Arc<dyn Tunnels>,
    pub(super) guards: Guards,
    /// The authority of a server without Kubernetes, and the certificate that it shows.
    pub(super) authority: Option<(Authority, Kept)>,
    /// The clock by which certificates end: seconds since the epoch.
    pub(super) now: fn() -> i64,
    pub(super) id: String,
    pub(super) count: Arc<AtomicU32>,
    /// The UDP port that agents are told of, as [`ServerHello::quic`].
    pub(super) quic: Option<u16>,
    pub(super) options: Options,
    pub(super) page: Arc<Page>,
    pub(super) metrics: Metrics,
    /// Connections at a time, of all kinds.
    pub(super) places: Arc<Semaphore>,
    pub(super) handshakes: Arc<Semaphore>,
    pub(super) reviews: Arc<Semaphore>,
    pub(super) tasks: TaskTracker,
    /// Nothing new is taken.
    pub(super) drain: CancellationToken,
    /// Everything ends.
    pub(super) stop: CancellationToken,
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Gate")
            .field("id", &self.id)
            .field("guards", &self.guards)
            .finish_non_exhaustive()
    }
}

/// Why somebody's connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("TLS: {0}")]
    Tls(#[from] io::Error),
    #[error("no TLS handshake within {HANDSHAKE:?}")]
    Slow,
    #[error("QUIC: {0}")]
    Quic(#[from] quinn::ConnectionError),
    #[error("certificate: {0}")]
    Pki(#[from] yurt_pki::PkiError),
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("{0}")]
    Session(#[from] crate::SessionError),
}

impl Gate {
    /// The bounds of handshakes and reviews.
    pub(super) fn bounds() -> (Arc<Semaphore>, Arc<Semaphore>) {
        (
            Arc::new(Semaphore::new(HANDSHAKES)),
            Arc::new(Semaphore::new(REVIEWS)),
        )
    }

    /// Takes connections until the drain begins.
    pub async fn listen(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<ArcSwap<rustls::ServerConfig>>,
    ) {
        congestion::begin(&listener);
        let mut failures = 0u32;
        while let Some(accepted) = self.next(|context| listener.poll_accept(context)).await {
            match accepted {
                Ok((stream, address)) => {
                    failures = 0;
                    let Ok(place) = self.places.clone().try_acquire_owned() else {
                        tracing::warn!(%address, "too many connections, turning one away");
                        continue;
                    };
                    let (gate, tls) = (self.clone(), tls.load_full());
                    self.tasks.spawn(gate.admit(stream, address, tls, place));
                }
                Err(error) => self.pause(&error, &mut failures).await,
            }
        }
    }

    /// The same for frontends on a Unix socket, whose file goes when the drain begins: whoever found it before is still served.
    pub async fn listen_unix(self: Arc<Self>, listener: UnixListener, path: PathBuf) {
        let (mut failures, mut path) = (0u32, Some(path));
        loop {
            let Some(accepted) = self.next(|context| listener.poll_accept(context)).await else {
                match path.take() {
                    Some(path) => {
                        let _ = std::fs::remove_file(path);
                        continue;
                    }
                    None => return,
                }
            };
            match accepted {
                Ok((stream, _)) => {
                    failures = 0;
                    let Ok(place) = self.places.clone().try_acquire_owned() else {
                        tracing::warn!("too many connections, turning a frontend away");
                        continue;
                    };
                    let gate = self.clone();
                    let service = Service {
                        unread: Some(Unread::of(&stream)),
                        ..self.service(None, "unix socket".into(), false)
                    };
                    self.tasks.spawn(async move {
                        let _place = place;
                        let serving = frontend::serve(Box::new(stream), service);
                        gate.stop.run_until_cancelled(serving).await;
                    });
                }
                Err(error) => self.pause(&error, &mut failures).await,
            }
        }
    }

    /// The next connection. When the drain has begun: what the kernel has taken already, whose callers believe that they are
    /// connected, and then none.
    async fn next<T>(
        &self,
        mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Option<io::Result<T>> {
        let mut draining = pin!(self.drain.cancelled());
        poll_fn(|context| match accept(context) {
            Poll::Ready(Err(_)) if self.drain.is_cancelled() => Poll::Ready(None),
            Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
            Poll::Pending => draining.as_mut().poll(context).map(|()| None),
        })
        .await
    }

    /// Out of descriptors or memory: what is open goes on, and accepting resumes when something was closed.
    async fn pause(&self, error: &io::Error, failures: &mut u32) {
        let pause = Duration::from_millis(20 << (*failures).min(5));
        *failures = failures.saturating_add(1);
        tracing::warn!(%error, ?pause, "cannot accept connections");
        self.drain
            .run_until_cancelled(tokio::time::sleep(pause))
            .await;
    }

    async fn admit(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        place: OwnedSemaphorePermit,
    ) {
        let _place = place;
        let stop = self.stop.clone();
        let serving = Box::pin(self.serve(stream, address, tls));
        match stop.run_until_cancelled(serving).await {
            // Agents that look for other instances hang up when they find this one again.
            Some(Err(Trouble::Session(SessionError::Broken(why)))) => {
                tracing::debug!(%address, %why, "a connection broke");
            }
            Some(Err(error)) => {
                tracing::info!(%address, %error, "a connection is refused or broke");
            }
            Some(Ok(())) | None => {}
        }
    }

    async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
    ) -> Result<(), Trouble> {
        session::tune(&stream)?;
        let join = match &self.authority {
            Some((authority, kept)) => Some(authority.join_config(kept)?),
            None => None,
        };
        let handshaking = async {
            let Ok(_turn) = self.handshakes.acquire().await else {
                return Err(io::ErrorKind::Interrupted.into());
            };
            match join {
                Some(join) => Authority::accept(stream, tls, join).await,
                None => tokio_rustls::TlsAcceptor::from(tls).accept(stream).await,
            }
        };
        let stream = match timeout(HANDSHAKE, Box::pin(handshaking)).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(error)) => {
                self.metrics.refused("handshake");
                return Err(error.into());
            }
            Err(_) => {
                self.metrics.refused("handshake");
                return Err(Trouble::Slow);
            }
        };
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let leaf = certificate.map(|der| Leaf::of(der)).transpose()?;
        let protocol = session.alpn_protocol().map(<[u8]>::to_vec);
        if let (Some(ALPN_JOIN), Some((authority, _))) = (protocol.as_deref(), &self.authority) {
            return Ok(authority.answer(*stream).await?);
        }
        if let Some(ALPN_MUX) = protocol.as_deref() {
            return self.agent(stream, leaf, address).await;
        }
        // How far away the others are is not known.
        congestion::pace_unless_near(stream.get_ref().0, None);
        let io: BoxStream = stream;
        match protocol.as_deref() {
            Some(ALPN_CLOUD) => self.cloud(io, leaf).await,
            Some(ALPN_PEER) => self.peer(io, leaf).await,
            Some(ALPN_GRPC) => {
                let grpc = self.grpc(leaf, address.to_string(), true);
                grpc(io).await;
                Ok(())
            }
            _ => {
                let service = self.service(leaf, address.to_string(), true);
                frontend::serve(io, service).await;
                Ok(())
            }
        }
    }

    pub(super) fn hello(&self) -> ServerHello {
        ServerHello {
            id: self.id.clone(),
            count: self.count.load(Ordering::Relaxed).max(1),
            quic: self.quic,
        }
    }

    /// One of our agents.
    async fn agent(
        self: Arc<Self>,
        io: Box<TlsStream<TcpStream>>,
        leaf: Option<Leaf>,
        address: SocketAddr,
    ) -> Result<(), Trouble> {
        // With no descriptor left the agent is served all the same, only not paced.
        let socket = io.get_ref().0.as_fd().try_clone_to_owned().ok();
        let began = Instant::now();
        let link = mux::call(io, self.hello(), self.options.clone()).await?;
        if let Some(socket) = socket {
            congestion::pace_unless_near(&socket, Some(began.elapsed()));
        }
        let refuse = link.clone();
        self.settle(link, leaf, address, |why| refuse.refuse(why))
            .await
    }

    /// Lets an agent in, or refuses it; returns when its connection has ended.
    pub(super) async fn settle(
        &self,
        link: Arc<dyn Link>,
        leaf: Option<Leaf>,
        address: SocketAddr,
        refuse: impl Fn(&str),
    ) -> Result<(), Trouble> {
        let hello = link.hello().clone();
        let closed = link.closed().clone();
        // Whatever ends this ends the connection.
        let ends = closed.clone().drop_guard();
        match self.welcome(&hello, leaf.as_ref(), None).await {
            Ok(identity) => {
                let address = address.to_string();
                let origin = Origin { address, identity };
                self.switchboard.registry().register(link, origin);
                tokio::select! {
                    () = closed.cancelled() => Ok(()),
                    () = ended(leaf.as_ref(), self.now) => {
                        let over = over(leaf.as_ref());
                        self.metrics.refused("expired");
                        refuse(&over.0);
                        closed.cancelled().await;
                        Err(over.into())
                    }
                }
            }
            Err(refused) => {
                self.metrics.refused("agent");
                refuse(&refused.0);
                // It hangs up when it has read why, and is hung up on when it does not.
                closed.cancelled().await;
                drop(ends);
                Err(refused.into())
            }
        }
    }

    /// As whom an agent is let in.
    async fn welcome(
        &self,
        hello: &AgentHello,
        leaf: Option<&Leaf>,
        bearer: Option<&str>,
    ) -> Result<String, Refused> {
        let directory = &**self.switchboard.directory();
        let shown = match (leaf, bearer, &self.guards.tokens) {
            (_, Some(token), Some(reviewer)) => {
                let status = self.review(reviewer, token).await?;
                let trusted = &self.guards.agents;
                Shown::by_token(&status, &reviewer.account, trusted, directory)?
            }
            (Some(leaf), ..) => Shown::by_certificate(leaf, &self.guards.agents, directory)?,
            (None, Some(_), None) => {
                return Err(Refused("this server takes certificates, not tokens".into()));
            }
            (None, None, _) => {
                return Err(Refused("an agent shows a certificate or a token".into()));
            }
        };
        shown.covers(hello)?;
        Ok(shown.identity)
    }

    async fn review(&self, reviewer: &Reviewer, token: &str) -> Result<serde_json::Value, Refused> {
        const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
        let failed = |why: String| Refused(format!("the token cannot be reviewed: {why}"));
        let reviewing = async {
            let turn = self.reviews.acquire().await;
            let _turn = turn.map_err(|error| failed(error.to_string()))?;
            let review = reviewer.account.review(token);
            let answer = reviewer.kube.create(PATH, &review).await;
            answer.map_err(|error| failed(error.to_string()))
        };
        let mut answer = match timeout(REVIEW, reviewing).await {
            Ok(answer) => answer?,
            Err(_) => return Err(failed(format!("no answer in {REVIEW:?}"))),
        };
        Ok(answer["status"].take())
    }

    /// An agent that wants to reach the cloud.
    async fn cloud(&self, io: BoxStream, leaf: Option<Leaf>) -> Result<(), Trouble> {
        let directory = &**self.switchboard.directory();
        let shown = match &leaf {
            Some(leaf) => Shown::by_certificate(leaf, &self.guards.agents, directory),
            None => Err(Refused("the way to the cloud takes a certificate".into())),
        };
        let shown = shown.inspect_err(|_| self.metrics.refused("cloud"))?;
        tracing::debug!(identity = %shown.identity, "an agent may ask for the cloud");
        let options = self.options.clone();
        let serving = mux::cloud::serve(io, self.cloud.clone(), options, self.drain.clone());
        tokio::select! {
            why = serving => Err(why.into()),
            () = ended(leaf.as_ref(), self.now) => {
                self.metrics.refused("expired");
                Err(over(leaf.as_ref()).into())
            }
        }
    }

    /// Another instance.
    async fn peer(&self, io: BoxStream, leaf: Option<Leaf>) -> Result<(), Trouble> {
        let identity = leaf.map(|leaf| leaf.identity).unwrap_or_default();
        if !Bearers::any(&self.guards.peers, &identity) {
            self.metrics.refused("peer");
            return Err(Trouble::Refused(Refused(format!(
                "{:?} is no instance of the server (--peer-identities)",
                identity.user
            ))));
        }
        let here = Arc::new(Here(self.switchboard.clone()));
        let serving = mux::cloud::serve(io, here, self.options.clone(), self.drain.clone());
        Err(serving.await.into())
    }

    /// What a frontend is given; without a certificate: on the Unix socket.
    fn service(self: &Arc<Self>, leaf: Option<Leaf>, from: String, tls: bool) -> Service {
        Service {
            tunnels: {
                let (gate, leaf) = (self.clone(), leaf.clone());
                Box::new(move || gate.frontend(leaf.as_ref(), tls))
            },
            page: self.page.clone(),
            grpc: self.grpc(leaf, from, tls),
            http: self.metrics.http.clone(),
            unread: None,
        }
    }

    /// What a frontend may have; the error says why it may not.
    fn frontend(&self, leaf: Option<&Leaf>, tls: bool) -> Result<Arc<dyn Tunnels>, String> {
        let identity = leaf.map(|leaf| &leaf.identity);
        // Other instances reach all that frontends do, and ask for explanations.
        let known = identity.is_some_and(|who| {
            Bearers::any(&self.guards.frontends, who) || Bearers::any(&self.guards.peers, who)
        });
        if known || !tls {
            return Ok(self.switchboard.clone());
        }
        self.metrics.refused("frontend");
        Err(match identity {
            Some(who) => format!("{:?} is no frontend of this server (--frontends)", who.user),
            None => "a frontend shows a client certificate".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    static CLOCK: AtomicI64 = AtomicI64::new(1_000);

    fn clock() -> i64 {
        CLOCK.load(Ordering::SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_ends_by_the_clock_however_it_jumps() {
        let ca = yurt_pki::Ca::new("test", 10).unwrap();
        let pair = ca.issue(&yurt_pki::Profile {
            days: 1,
            ..yurt_pki::Profile::default()
        });
        let pair = pair.unwrap();
        let mut leaf = yurt_pki::store::Pair::of(pair).unwrap().leaf;
        leaf.not_after = 2_000;
        let mut waiting = std::pin::pin!(ended(Some(&leaf), clock));
        for now in [1_000, 2_000, 2_299] {
            CLOCK.store(now, Ordering::SeqCst);
            let waited = timeout(Duration::from_secs(3_600), &mut waiting).await;
            assert!(waited.is_err(), "{now}: not before the grace is over");
        }
        CLOCK.store(2_300, Ordering::SeqCst);
        let waited = timeout(Duration::from_secs(61), &mut waiting).await;
        assert!(waited.is_ok(), "noticed within a minute");
        let never = timeout(Duration::from_secs(1 << 30), ended(None, clock)).await;
        assert!(
            never.is_err(),
            "who shows no certificate is let in by a token"
        );
    }
}
