//! The API servers: sending requests to those that are up, and finding out which are.

mod exchange;
mod history;
mod probe;
mod send;

use crate::{
    caller::Caller,
    config::LbMode,
    link::{Input, Link, State},
    metrics::{LastSeen, Metrics},
    tokens::Tokens,
};
use history::History;
pub use history::Turn;
pub use send::{Outgoing, OutgoingBody, SendError};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use yurt_transport::{Client, ClientError, ClientOptions};

/// Time to connect for requests. Longer than it takes to notice that the link is down.
const CONNECT: Duration = Duration::from_secs(5);
/// Time to connect for probes: an attempt whose packets were lost must soon be followed by a new one.
const PROBE_CONNECT: Duration = Duration::from_secs(2);

/// After a start, requests are sent for this long without a sign of life; then the node answers what it can until one comes.
pub(crate) const GRACE: Duration = Duration::from_millis(100);
/// How long after the start a server that is up counts even before the hub has gone online.
const FIRST_CONTACT: Duration = Duration::from_secs(5);

/// How the API servers are reached under each identity.
#[derive(Clone, Debug)]
pub struct CloudTls {
    /// With the node's certificate; `None` while the node has none.
    pub node: Option<Arc<rustls::ClientConfig>>,
    /// Without a certificate, for callers with a token of their own.
    pub bearer: Arc<rustls::ClientConfig>,
}

/// One API server.
#[derive(Debug)]
pub struct Server {
    authority: String,
    /// Only used while the node has a certificate.
    node: Client,
    identified: AtomicBool,
    bearer: Client,
    /// A connection of its own for probes, so that one stuck connection does not speak for the server.
    second: Client,
    origin: Instant,
    heard: LastSeen,
    link: Mutex<Link>,
    /// What the hub goes by: the link's state, or down during a drill.
    state: watch::Sender<State>,
    cut: AtomicBool,
    nudge: Notify,
    doubts: Arc<Notify>,
    reachable: watch::Sender<bool>,
    metrics: Metrics,
    /// Why it last refused, until it answers again.
    trouble: Mutex<Option<String>>,
    history: Mutex<History>,
}

/// What a server looks like from here, for `/v1/status`.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// `host:port`.
    pub server: String,
    /// `starting`, `up` or `down`.
    pub state: &'static str,
    /// Seconds in this state.
    pub for_seconds: f64,
    /// Smoothed round trip of probes.
    pub rtt_milliseconds: Option<f64>,
    /// Whether a probe is overdue.
    pub suspect: bool,
    /// Why it cannot be reached, in words, when more is known than that nothing comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Server {
    fn client(&self, caller: &Caller) -> Option<&Client> {
        match caller {
            Caller::Node | Caller::Peer(_) => self.identified().then_some(&self.node),
            Caller::User(_) | Caller::Bearer(_) => Some(&self.bearer),
        }
    }

    fn identified(&self) -> bool {
        self.identified.load(Ordering::Acquire)
    }

    /// The client whose connection most requests share.
    fn shared(&self) -> &Client {
        if self.identified() {
            &self.node
        } else {
            &self.bearer
        }
    }

    /// Takes what is new; what is under way goes on over the connections it has.
    fn set_tls(&self, old: &CloudTls, new: &CloudTls) {
        let is_new = |old: Option<&Arc<_>>, new: &Arc<_>| !old.is_some_and(|o| Arc::ptr_eq(o, new));
        if is_new(Some(&old.bearer), &new.bearer) {
            self.bearer.set_tls(new.bearer.clone());
        }
        match &new.node {
            Some(tls) => {
                if is_new(old.node.as_ref(), tls) {
                    self.node.set_tls(tls.clone());
                }
                self.identified.store(true, Ordering::Release);
            }
            None => {
                self.identified.store(false, Ordering::Release);
                // Nothing goes on under a certificate that has ended.
                self.node.reset();
            }
        }
        self.second
            .set_tls(new.node.as_ref().unwrap_or(&new.bearer).clone());
        // What was refused may be accepted now.
        self.suspect();
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Bytes came from the server.
    pub fn heard(&self) {
        self.heard.set(self.origin.elapsed());
    }

    /// Whether bytes came from the server after `moment`.
    pub fn heard_since(&self, moment: Instant) -> bool {
        self.origin + self.heard.get() > moment
    }

    /// Something failed on the way to or from the server.
    pub fn suspect(&self) {
        self.input(Instant::now(), Input::Suspicion);
        self.nudge.notify_one();
    }

    /// Its state, as far as requests are concerned: down during a drill.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// The state of the link itself, which a drill does not change.
    fn link_state(&self) -> State {
        self.link().state()
    }

    /// Cuts the server off for the length of a drill, or takes that back.
    fn set_cut(&self, cut: bool) {
        {
            let link = self.link();
            self.cut.store(cut, Ordering::Relaxed);
            self.state
                .send_replace(if cut { State::Down } else { link.state() });
        }
        if cut {
            self.reset();
        }
        self.reachable.send_modify(|_| {});
    }

    /// Resolves when the link is down.
    pub async fn went_down(&self) {
        // The sender lives as long as self.
        let _ = self
            .state
            .subscribe()
            .wait_for(|state| *state == State::Down)
            .await;
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        // A link is valid after every statement.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self, now: Instant, input: Input) {
        let (change, lasted) = {
            let mut link = self.link();
            let lasted = now.saturating_duration_since(link.since());
            let change = link.input(now, input);
            if let Some(state) = change
                && !self.cut.load(Ordering::Relaxed)
            {
                self.state.send_replace(state);
            }
            (change, lasted)
        };
        if let Some(to) = change {
            let error = self.trouble().clone().filter(|_| to == State::Down);
            self.history()
                .note(SystemTime::now(), to, lasted, input, error);
        }
        match change {
            Some(State::Down) => {
                tracing::warn!(server = %self.authority, up_for = ?lasted, cause = ?input, "link down");
                self.metrics.server(&self.authority, false);
                // Streams on it would hang until the kernel gives up; they end now, and their relays take over.
                self.reset();
            }
            Some(_) => {
                tracing::info!(server = %self.authority, was_down_for = ?lasted, "link up");
                self.metrics.server(&self.authority, true);
            }
            None => return,
        }
        self.reachable.send_modify(|_| {});
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A probe was refused; said once for every kind of trouble.
    fn refused(&self, error: &ClientError) {
        let text = error.to_string();
        let mut trouble = self.trouble();
        if trouble.as_ref() != Some(&text) {
            tracing::warn!(server = %self.authority, error = text, "API server cannot be reached");
            *trouble = Some(text);
        }
        // A TLS 1.3 server says so only after the handshake; it may be the certificate of either side.
        if self.identified() && matches!(error, ClientError::Tls { .. }) {
            self.doubts.notify_one();
        }
    }

    fn reset(&self) {
        for client in self.clients() {
            client.reset();
        }
    }

    fn clients(&self) -> [&Client; 3] {
        [&self.node, &self.bearer, &self.second]
    }

    fn status(&self) -> ServerStatus {
        let link = self.link();
        ServerStatus {
            server: self.authority.clone(),
            state: link.state().as_str(),
            for_seconds: link.since().elapsed().as_secs_f64(),
            rtt_milliseconds: link.rtt().map(|rtt| rtt.as_secs_f64() * 1e3),
            suspect: link.suspect(),
            error: self.trouble().clone(),
        }
    }
}

/// All API servers of the cloud.
#[derive(Debug)]
pub struct Upstreams {
    servers: Vec<Arc<Server>>,
    mode: LbMode,
    cursor: AtomicUsize,
    origin: Instant,
    reachable: watch::Sender<bool>,
    tls: Mutex<CloudTls>,
    metrics: Metrics,
    /// Told when a server may not accept the node's certificate.
    doubts: Arc<Notify>,
    tokens: Tokens,
    /// Held by who exchanges a token.
    exchanging: tokio::sync::Mutex<()>,
    cut: AtomicBool,
}

/// All servers are cut off while it lives.
#[derive(Debug)]
pub struct Cut(Arc<Upstreams>);

impl Drop for Cut {
    fn drop(&mut self) {
        for server in &self.0.servers {
            server.set_cut(false);
        }
        self.0.cut.store(false, Ordering::Release);
    }
}

impl Upstreams {
    /// Clients for all servers; nothing is connected yet. The node's own `tokens` are exchanged on their way.
    pub fn new(
        servers: &[String],
        mode: LbMode,
        tls: &CloudTls,
        metrics: Metrics,
        tokens: Tokens,
    ) -> Arc<Self> {
        let (reachable, _) = watch::channel(true);
        let doubts = Arc::new(Notify::new());
        let options = ClientOptions {
            connect_timeout: CONNECT,
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(10),
            max_idle: 4,
        };
        let probing = ClientOptions {
            connect_timeout: PROBE_CONNECT,
            max_idle: 1,
            ..options.clone()
        };
        let origin = Instant::now();
        let servers = servers
            .iter()
            .map(|authority| {
                let client = |tls: &Arc<rustls::ClientConfig>, options: &ClientOptions| {
                    Client::new(authority, Some(tls.clone()), options.clone())
                };
                Arc::new(Server {
                    authority: authority.clone(),
                    node: client(tls.node.as_ref().unwrap_or(&tls.bearer), &options),
                    identified: AtomicBool::new(tls.node.is_some()),
                    bearer: client(&tls.bearer, &options),
                    second: client(tls.node.as_ref().unwrap_or(&tls.bearer), &probing),
                    origin,
                    heard: LastSeen::default(),
                    link: Mutex::new(Link::new(origin)),
                    state: watch::channel(State::Starting).0,
                    cut: AtomicBool::new(false),
                    nudge: Notify::new(),
                    doubts: doubts.clone(),
                    reachable: reachable.clone(),
                    metrics: metrics.clone(),
                    trouble: Mutex::default(),
                    history: Mutex::default(),
                })
            })
            .collect();
        Arc::new(Self {
            servers,
            mode,
            cursor: AtomicUsize::new(0),
            origin,
            reachable,
            tls: Mutex::new(tls.clone()),
            doubts,
            metrics,
            tokens,
            exchanging: tokio::sync::Mutex::default(),
            cut: AtomicBool::new(false),
        })
    }

    /// Replaces the TLS configurations for new connections: certificates or CAs were renewed, or the node's identity came or
    /// ended. What is under way goes on, unless it went under an identity that has ended.
    pub fn set_tls(&self, new: &CloudTls) {
        let old = std::mem::replace(
            &mut *self.tls.lock().unwrap_or_else(PoisonError::into_inner),
            new.clone(),
        );
        for server in &self.servers {
            server.set_tls(&old, new);
        }
        self.reachable.send_modify(|_| {});
    }

    /// Ends what still goes over connections of certificates that were replaced. Watches are resumed over new ones.
    pub fn end_retired(&self) {
        for client in self.servers.iter().flat_map(|server| server.clients()) {
            client.end_retired();
        }
    }

    /// Resolves when it is doubtful whether the cloud accepts the node's certificate.
    pub async fn doubted(&self) {
        self.doubts.notified().await;
    }

    /// Whether the node has a certificate to go to the cloud with.
    pub fn identified(&self) -> bool {
        self.servers.iter().any(|server| server.identified())
    }

    /// Starts probing every server until `shutdown`.
    pub fn start(&self, shutdown: &CancellationToken, tasks: &tokio_util::task::TaskTracker) {
        for server in &self.servers {
            tasks.spawn(probe::run(server.clone(), shutdown.clone()));
        }
    }

    /// Whether requests should go to the cloud: a server is up, or may be because the hub just started.
    pub fn reachable(&self) -> bool {
        self.up() || self.starting() && self.origin.elapsed() < GRACE
    }

    /// Whether no server is known to be up, and of some nothing is known at all.
    pub fn starting(&self) -> bool {
        !self.up()
            && self
                .servers
                .iter()
                .any(|server| server.state() == State::Starting)
    }

    /// Waits until it is known whether a server is up, at most so long.
    pub async fn settled(&self, mut most: Duration) {
        // Counted from the start: the hundredth request need not wait as long as the first.
        most = most.saturating_sub(self.origin.elapsed());
        let mut changes = self.changes();
        let settled = async {
            while self.starting() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Not known in time is an answer too.
        let _ = tokio::time::timeout(most, settled).await;
    }

    /// Whether a server came up for the first time just now, so that the mode of the hub may not have followed yet.
    pub fn first_contact(&self) -> bool {
        self.up() && self.origin.elapsed() < FIRST_CONTACT
    }

    /// Whether any server is known to be up.
    pub fn up(&self) -> bool {
        self.servers
            .iter()
            .any(|server| server.state() == State::Up)
    }

    /// `host:port` of a server that is up, the first in the order of the flag.
    pub fn up_authority(&self) -> Option<&str> {
        let mut servers = self.servers.iter();
        let up = servers.find(|server| server.state() == State::Up)?;
        Some(up.authority())
    }

    /// Notified whenever a link changes; ask [`Self::reachable`] then.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.reachable.subscribe()
    }

    /// The state of every server with its last turns, oldest first.
    pub fn history(&self) -> Vec<(ServerStatus, Vec<Turn>)> {
        let with_turns = |server: &Arc<Server>| (server.status(), server.history().turns());
        self.servers.iter().map(with_turns).collect()
    }

    /// The state of every server.
    pub fn status(&self) -> Vec<ServerStatus> {
        self.servers.iter().map(|server| server.status()).collect()
    }

    /// Counts what is open to every server, for metrics.
    pub fn count_connections(&self) {
        for server in &self.servers {
            let open = server.clients().map(Client::connections).iter().sum();
            self.metrics.server_connections(&server.authority, open);
        }
    }

    /// Whether any server is up, drill or not.
    pub fn linked(&self) -> bool {
        self.servers
            .iter()
            .any(|server| server.link_state() == State::Up)
    }

    /// Cuts all servers off, as far as the hub and its clients can tell, until the cut is dropped. Probes go on. `None` when there
    /// is such a cut already.
    pub fn cut(self: &Arc<Self>) -> Option<Cut> {
        if self.cut.swap(true, Ordering::AcqRel) {
            return None;
        }
        for server in &self.servers {
            server.set_cut(true);
        }
        Some(Cut(self.clone()))
    }
}
