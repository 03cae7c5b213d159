//! Connects callers: through an agent of this server, through another instance's, or directly where the target is in the cloud.

use crate::{
    DialError, Opening, Tunnels,
    directory::Directory,
    peers::Peers,
    registry::Registry,
    routing::{Plan, Strategy},
    server::{
        counted::Counted,
        metrics::{Metrics, Pending},
    },
};
use std::{fmt, str::FromStr, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};
use yurt_transport::{BoxStream, Destination, Dialer, TcpDialer};

/// The longest host there can be.
const LONGEST_HOST: usize = 255;

/// What this server itself dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Nothing.
    Never,
    /// What the cluster says is on a node without an agent.
    #[default]
    Cloud,
    /// Also what nobody knows, where no agent takes it.
    Any,
}

impl FromStr for Direct {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::Never),
            "cloud" => Ok(Self::Cloud),
            "any" => Ok(Self::Any),
            other => Err(format!("{other:?} is none of never, cloud, any")),
        }
    }
}

impl fmt::Display for Direct {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Never => "never",
            Self::Cloud => "cloud",
            Self::Any => "any",
        })
    }
}

/// How targets are reached, and bounds.
#[derive(Clone, Debug)]
pub struct Ways {
    /// The first that finds an agent wins.
    pub strategies: Vec<Strategy>,
    /// What this server itself dials.
    pub direct: Direct,
    /// How it does.
    pub dialer: Arc<dyn Dialer>,
    /// Within what a caller has a connection or an error.
    pub dial: Duration,
    /// Dials at a time.
    pub pending: usize,
    /// Proxied connections at a time.
    pub connections: usize,
}

impl Default for Ways {
    fn default() -> Self {
        use Strategy::{Cidr, Cluster, DefaultRoute, DestHost};
        Self {
            strategies: vec![DestHost, Cluster, Cidr, DefaultRoute],
            direct: Direct::default(),
            dialer: Arc::new(TcpDialer),
            dial: Duration::from_secs(20),
            pending: 4096,
            connections: 32_768,
        }
    }
}

/// The server as its callers see it.
#[derive(Debug)]
pub struct Switchboard {
    registry: Arc<Registry>,
    directory: Arc<dyn Directory>,
    peers: Arc<Peers>,
    ways: Ways,
    pending: Semaphore,
    open: Arc<Semaphore>,
    metrics: Metrics,
}

/// Who may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Everywhere,
    /// Agents of this server: another instance asks, which has asked itself already.
    Here,
}

impl Switchboard {
    /// A switchboard of these agents and instances.
    pub fn new(
        registry: Arc<Registry>,
        directory: Arc<dyn Directory>,
        peers: Arc<Peers>,
        ways: Ways,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            registry,
            directory,
            peers,
            pending: Semaphore::new(ways.pending.min(Semaphore::MAX_PERMITS)),
            open: Arc::new(Semaphore::new(ways.connections.min(Semaphore::MAX_PERMITS))),
            ways,
            metrics,
        })
    }

    /// The agents.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// What is known of the cluster.
    pub fn directory(&self) -> &Arc<dyn Directory> {
        &self.directory
    }

    /// The other instances.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// How targets are reached.
    pub fn ways(&self) -> &Ways {
        &self.ways
    }

    /// Proxied connections that are open.
    pub fn connections(&self) -> usize {
        self.ways
            .connections
            .min(Semaphore::MAX_PERMITS)
            .saturating_sub(self.open.available_permits())
    }

    /// What would be done for a target.
    pub fn plan(&self, to: &Destination, strategies: &[Strategy]) -> Plan {
        self.registry.plan(to, strategies, &*self.directory)
    }

    async fn connect(&self, to: &Destination, scope: Scope) -> Result<BoxStream, DialError> {
        check(to)?;
        let busy = |what: &str, most: usize| {
            DialError::Busy(format!("this server has {most} {what} already"))
        };
        let pending = self.pending.try_acquire();
        let _pending = pending.map_err(|_| busy("dials", self.ways.pending))?;
        let open = self.open.clone().try_acquire_owned();
        let open = open.map_err(|_| busy("connections", self.ways.connections))?;
        let counted = Pending::new(&self.metrics);
        let limit = self.ways.dial;
        let dialled = match timeout(limit, self.dial(to, scope)).await {
            Ok(dialled) => dialled,
            Err(_) => Err(DialError::TimedOut(format!(
                "no answer from {to} in {limit:?}"
            ))),
        };
        counted.ended(&dialled);
        let stream = dialled?;
        Ok(Box::new(Counted::new(stream, self.metrics.clone(), open)))
    }

    async fn dial(&self, to: &Destination, scope: Scope) -> Result<BoxStream, DialError> {
        let plan = self.plan(to, &self.ways.strategies);
        let mut last = None;
        for route in &plan.routes {
            for link in self.registry.links(&route.agent) {
                match link.dial(&route.to).await {
                    Err(error) if error.may_retry() => {
                        tracing::debug!(agent = %route.agent, %to, %error, "another way is tried");
                        last = Some(error);
                    }
                    ended => return ended,
                }
            }
        }
        if self.ways.direct != Direct::Never {
            for there in &plan.direct {
                match self.ways.dialer.dial(there).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = Some(error.into()),
                }
            }
        }
        let Scope::Everywhere = scope else {
            return Err(last.unwrap_or_else(|| self.nobody(to, &plan)));
        };
        // Where the cluster says it is, when it does.
        let mut wanted = plan.elsewhere.iter().collect::<Vec<_>>();
        if wanted.is_empty() && plan.direct.is_empty() {
            wanted.push(to);
        }
        for there in wanted {
            match self.peers.open(there).await {
                Err(error) if error.may_retry() => {
                    let worse = matches!(error, DialError::NoAgent(_)) && last.is_some();
                    if !worse {
                        last = Some(error);
                    }
                }
                ended => return ended,
            }
        }
        let unknown = plan.routes.is_empty() && plan.elsewhere.is_empty();
        if self.ways.direct == Direct::Any && unknown && plan.direct.is_empty() && to.node.is_none()
        {
            return Ok(self.ways.dialer.dial(to).await?);
        }
        match last {
            Some(error) if !matches!(error, DialError::NoAgent(_)) => Err(error),
            _ => Err(self.nobody(to, &plan)),
        }
    }

    /// Why nobody reaches a target.
    fn nobody(&self, to: &Destination, plan: &Plan) -> DialError {
        let connected = self.registry.len();
        let node = plan.elsewhere.first().and_then(|there| there.node.as_ref());
        let others = match self.peers.connected() {
            0 => String::new(),
            count => format!(", nor to {count} other instances"),
        };
        DialError::NoAgent(match (node, plan.direct.first()) {
            (Some(node), _) => {
                format!("the agent of {node} is not connected to this server{others}")
            }
            (None, Some(_)) => {
                format!("{to} is on a node without an agent, and --direct=never")
            }
            (None, None) => {
                let strategies: Vec<_> = self.ways.strategies.iter().map(|s| s.name()).collect();
                let strategies = strategies.join(", ");
                format!(
                    "none of {connected} agents is for {to} by {strategies}{others}; `yurt tunnel explain {to}` says more"
                )
            }
        })
    }
}

/// Refuses what can be no target.
fn check(to: &Destination) -> Result<(), DialError> {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let fits = |text: &str| !text.is_empty() && text.len() <= LONGEST_HOST && plain(text);
    if to.port == 0 || !fits(&to.host) || !to.node.as_deref().is_none_or(fits) {
        return Err(DialError::Invalid(
            "the target is no host with a port".into(),
        ));
    }
    Ok(())
}

impl Tunnels for Switchboard {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(self.connect(to, Scope::Everywhere))
    }
}

/// The agents of this server only: what other instances are given, so that nothing is asked for in a circle.
#[derive(Debug)]
pub struct Here(pub Arc<Switchboard>);

impl Tunnels for Here {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(self.0.connect(to, Scope::Here))
    }
}
