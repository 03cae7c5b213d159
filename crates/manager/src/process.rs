//! The process: the way to the API server, the lease, the controllers, what is served beside them.

mod access;
mod args;
mod config;

pub use access::AccessError;
pub use args::{LoggingArgs, ManagerArgs, WORKER_FLAGS, WorkerArgs};
pub use config::{Config, ConfigError, Election, LATER, Server};

use crate::{Context, registry};
use access::Clients;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use yurt_controller::{
    Key,
    election::{Candidate, Lost},
};

/// How long workers may take to end. They are dropped where they wait, so it is a matter of scheduling.
const STOP: Duration = Duration::from_secs(2);

/// Why a manager does not run.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The flags are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The API server cannot be reached with what was given.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Another leads, or the lease could not be renewed: whoever starts the process starts it again, standing by.
    #[error("no longer the leader: {0}")]
    Lost(#[from] Lost),
}

/// Runs a manager until `shutdown`: all of the process.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), ManagerError> {
    // Whatever ends this ends what it started.
    let life = shutdown.child_token();
    let _ended = life.clone().drop_guard();
    let clients = Clients::of(&config.server, &life)?;
    let base = clients.base.with_user_agent("yurt-manager");
    let context = Context::new(base, life.clone());
    lead(&config, &context, &life).await
}

/// Works while leading.
async fn lead(
    config: &Config,
    context: &Arc<Context>,
    life: &CancellationToken,
) -> Result<(), ManagerError> {
    let Some(election) = &config.election else {
        work(config, context, life, life.cancelled()).await;
        return Ok(());
    };
    let lease = Key::new(&config.settings.namespace, &election.lease);
    let kube = context
        .kube()
        .with_user_agent("yurt-manager/leader-election");
    let mut candidate = Candidate::new(kube, lease, identity(), election.timing);
    if !candidate.acquire(life).await {
        return Ok(());
    }
    tracing::info!(identity = candidate.holder(), "leading");
    let kept = work(config, context, life, candidate.keep(life)).await;
    candidate.release().await;
    Ok(kept?)
}

/// Runs the controllers for as long as `term` takes; what it says.
async fn work<T>(
    config: &Config,
    context: &Arc<Context>,
    life: &CancellationToken,
    term: impl Future<Output = T>,
) -> T {
    let end = life.child_token();
    let context = context.during(end.clone());
    registry::start_in(&config.controllers, &config.settings, |_| context.clone());
    let said = term.await;
    end.cancel();
    context.tasks().close();
    if tokio::time::timeout(STOP, context.tasks().wait())
        .await
        .is_err()
    {
        tracing::warn!(left = context.tasks().len(), "workers did not end in time");
    }
    said
}

/// Who this process is among candidates: as client-go's managers call themselves.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "yurt-manager",
        host => host,
    };
    let random = fastrand::u128(..);
    let uuid = (random & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{uuid:032x}");
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| hex.get(from..to));
    let parts: Vec<&str> = parts.into_iter().flatten().collect();
    format!("{host}_{}", parts.join("-"))
}

#[cfg(test)]
mod tests;
