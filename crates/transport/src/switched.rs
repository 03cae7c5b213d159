//! Upgraded connections: bytes both ways until both sides have ended, or one has and the other goes quiet.

use crate::pump::pump_within;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::time::Duration;

/// How long either side may take to switch protocols after the 101.
const SWITCH: Duration = Duration::from_secs(10);
/// How long one direction may be silent after the other has ended.
const LINGER: Duration = Duration::from_secs(30);

/// Joins a client's connection and a backend's once both have switched, until both directions have ended, or one has and the other
/// is silent for half a minute. Bytes that either side sent early are part of what is passed on. Dropping it breaks both.
pub async fn join_upgraded(client: OnUpgrade, backend: OnUpgrade) {
    let both = async { tokio::try_join!(client, backend) };
    let (client, backend) = match tokio::time::timeout(SWITCH, both).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => {
            tracing::debug!(%error, "upgrade failed");
            return;
        }
        Err(_) => return,
    };
    let (client, backend) = (TokioIo::new(client), TokioIo::new(backend));
    if let (_, Err(error)) = pump_within(Box::new(client), Box::new(backend), LINGER).await {
        tracing::debug!(%error, "upgraded connection ended");
    }
}
