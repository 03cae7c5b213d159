//! The process: the way to the API server, the lease, the controllers, what is served beside them.

mod accounts;
mod args;
mod config;
mod serving;

pub use args::{ManagerArgs, WORKER_FLAGS, WorkerArgs};
pub use config::{Config, ConfigError, Election, LATER, Server};
pub use yurt_controller::access::AccessError;

use crate::{
    Context, Entry, registry,
    webhook::{self, WebhookError, Webhooks},
};
use accounts::Accounts;
use serving::Health;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_api::names::objects::MANAGER;
use yurt_controller::{
    Key,
    access::Clients,
    election::{Candidate, Lost, identity},
    kube::Kube,
    limit::RateLimit,
    metrics::Metrics,
};

/// How long workers may take to end. They are dropped where they wait, so it is a matter of scheduling.
const STOP: Duration = Duration::from_secs(2);
/// How long webhooks are served after the shutdown began: API servers learn only then that this replica goes.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// Why a manager does not run.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The flags are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The API server cannot be reached with what was given.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({purpose}): {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What for.
        purpose: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The webhooks cannot be served.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// Another leads, or the lease could not be renewed: whoever starts the process starts it again, standing by.
    #[error("no longer the leader: {0}")]
    Lost(#[from] Lost),
}

/// A manager at work.
struct Manager {
    config: Config,
    clients: Clients,
    context: Arc<Context>,
    accounts: Arc<Accounts>,
    limit: Option<Arc<RateLimit>>,
    health: Arc<Health>,
    life: CancellationToken,
}

/// Runs a manager until `shutdown`: all of the process.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), ManagerError> {
    // Whatever ends this ends what it started.
    let life = shutdown.child_token();
    let _ended = life.clone().drop_guard();
    let serving = CancellationToken::new();
    let _served = serving.clone().drop_guard();
    // Before anything is done that would be in vain.
    let metrics_listener = match config.metrics {
        Some(address) => Some(serving::bind(address, "metrics").await?),
        None => None,
    };
    let health_listener = match config.health {
        Some(address) => Some(serving::bind(address, "health probes").await?),
        None => None,
    };
    let clients = Clients::of(&config.server, &life)?;
    let metrics = yurt_telemetry::Metrics::new(MANAGER);
    let counted = Metrics::default();
    counted.register(
        &mut metrics
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    let limit = config
        .limit
        .map(|(rate, burst)| Arc::new(RateLimit::new(rate, burst)));
    let base = limited(clients.base.with_user_agent(MANAGER), limit.as_ref());
    let context = Context::counted(base, life.clone(), counted);
    let webhooks = webhooks(&config, &clients, &context, &metrics, &serving).await?;
    let accounts = Arc::new(Accounts::new(clients.clone(), &config.settings.namespace));
    let ready: Box<dyn Fn() -> bool + Send + Sync> = match &webhooks {
        Some(webhooks) => Box::new(webhooks.readiness()),
        None => Box::new(|| true),
    };
    let health = Health::new(context.clone(), accounts.clone(), ready);
    let listeners = TaskTracker::new();
    if let Some(listener) = metrics_listener {
        listeners.spawn(serving::metrics(listener, metrics, serving.clone()));
    }
    if let Some(listener) = health_listener {
        listeners.spawn(serving::health(listener, health.clone(), serving.clone()));
    }
    let last_calls = match config.server {
        Server::InCluster if webhooks.is_some() => LAST_CALLS,
        _ => Duration::ZERO,
    };
    let manager = Manager {
        config,
        clients,
        context,
        accounts,
        limit,
        health,
        life,
    };
    let ended = Box::pin(manager.lead()).await;
    if shutdown.is_cancelled() {
        tokio::time::sleep(last_calls).await;
    }
    serving.cancel();
    if let Some(webhooks) = webhooks {
        webhooks.stopped().await;
    }
    listeners.close();
    listeners.wait().await;
    ended
}

fn limited(kube: Kube, limit: Option<&Arc<RateLimit>>) -> Kube {
    match limit {
        Some(limit) => kube.with_limit(limit.clone()),
        None => kube,
    }
}

/// Starts the webhooks: in every replica, whoever leads, and with what the manager itself may do.
async fn webhooks(
    config: &Config,
    clients: &Clients,
    context: &Arc<Context>,
    metrics: &yurt_telemetry::Metrics,
    serving: &CancellationToken,
) -> Result<Option<Webhooks>, ManagerError> {
    let Some(options) = &config.webhooks else {
        return Ok(None);
    };
    let options = webhook::Options {
        metrics: Some(metrics.clone()),
        address: serving::any(options.address).await,
        ..options.clone()
    };
    let context = context.writing_as(clients.base.with_user_agent("yurt-manager/webhook"));
    Ok(Some(
        webhook::start(options, &context, serving.clone()).await?,
    ))
}

impl Manager {
    /// Works while leading.
    async fn lead(&self) -> Result<(), ManagerError> {
        let Some(election) = &self.config.election else {
            self.work(self.life.cancelled()).await;
            return Ok(());
        };
        let lease = Key::new(&self.config.settings.namespace, &election.lease);
        // Without a limit: a renewal never waits behind what controllers write.
        let kube = self
            .clients
            .base
            .with_user_agent("yurt-manager/leader-election")
            .with_metrics(self.context.metrics().clone());
        let mut candidate = Candidate::new(kube, lease, identity(MANAGER), election.timing);
        self.context.metrics().leads(&election.lease, false);
        if !candidate.acquire(&self.life).await {
            return Ok(());
        }
        tracing::info!(identity = candidate.holder(), "leading");
        self.context.metrics().leads(&election.lease, true);
        self.tell_of_leading(&candidate);
        let kept = Box::pin(self.work(Box::pin(candidate.keep(&self.life)))).await;
        self.context.metrics().leads(&election.lease, false);
        candidate.release().await;
        Ok(kept?)
    }

    fn tell_of_leading(&self, candidate: &Candidate) {
        if let Some(lease) = candidate.lease() {
            let message = format!("{} became leader", candidate.holder());
            let of = "yurt-manager/leader-election";
            self.context
                .event(of, lease, "Normal", "LeaderElection", &message);
        }
    }

    /// Runs the controllers for as long as `term` takes; what it says.
    async fn work<T>(&self, term: impl Future<Output = T>) -> T {
        let end = self.life.child_token();
        let context = self.context.during(end.clone());
        self.health.works(true);
        for entry in registry::selected(&self.config.controllers) {
            self.start(entry, &context);
        }
        let said = term.await;
        end.cancel();
        self.health.works(false);
        context.tasks().close();
        if tokio::time::timeout(STOP, context.tasks().wait())
            .await
            .is_err()
        {
            tracing::warn!(left = context.tasks().len(), "workers did not end in time");
        }
        said
    }

    /// Starts a controller, as soon as it has its identity.
    fn start(&self, entry: &'static Entry, context: &Arc<Context>) {
        let name = entry.names.name;
        let settings = self.config.settings.clone();
        let user_agent = format!("yurt-manager/{name}");
        let limit = self.limit.clone();
        if !self.config.independent_accounts {
            let kube = limited(
                self.clients.base.with_user_agent(&user_agent),
                limit.as_ref(),
            );
            return (entry.start)(&context.writing_as(kube), &settings);
        }
        let (accounts, context) = (self.accounts.clone(), context.clone());
        accounts.expect(name);
        let shutdown = context.shutdown().clone();
        let starting = async move {
            let kube = accounts.identity(name, context.shutdown()).await;
            let kube = limited(kube.with_user_agent(&user_agent), limit.as_ref());
            tracing::debug!(controller = name, "started");
            (entry.start)(&context.writing_as(kube), &settings);
        };
        tokio::spawn(shutdown.run_until_cancelled_owned(starting));
    }
}

#[cfg(test)]
mod tests;
